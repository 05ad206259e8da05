//! Doubts about windows, said once each: "97 %" and "99 %" of the same thing are one doubt, "97 – 99 %".

use crate::page::run::Phase;
use crate::page::side::shown;

/// A doubt, who it is about, and how often it was had.
#[derive(Debug)]
struct Doubt<'a> {
    side: &'a str,
    /// The text around its numbers.
    words: Vec<&'a str>,
    /// The lowest and the highest of each number, as they were written.
    numbers: Vec<(&'a str, &'a str)>,
    windows: usize,
}

/// What to think of before believing a scenario's figures: a line each, those of our side first.
pub fn doubts(phases: &[Phase]) -> Vec<String> {
    let mut doubts: Vec<Doubt> = Vec::new();
    for phase in phases {
        for text in &phase.doubts {
            let (words, numbers) = parts(text);
            match doubts.iter_mut().find(|doubt| doubt.side == phase.side && doubt.words == words) {
                Some(doubt) => doubt.add(&numbers),
                None => {
                    let numbers = numbers.into_iter().map(|number| (number, number)).collect();
                    doubts.push(Doubt { side: &phase.side, words, numbers, windows: 1 });
                }
            }
        }
    }
    doubts.sort_by_key(|doubt| (doubt.side != "server", doubt.side.to_owned()));
    let windows = |side: &str| phases.iter().filter(|phase| phase.side == side).count();
    doubts.iter().map(|doubt| doubt.told(windows(doubt.side))).collect()
}

impl<'a> Doubt<'a> {
    fn add(&mut self, numbers: &[&'a str]) {
        self.windows += 1;
        for ((low, high), number) in self.numbers.iter_mut().zip(numbers) {
            if size(number) < size(low) {
                *low = number;
            }
            if size(number) > size(high) {
                *high = number;
            }
        }
    }

    fn told(&self, windows: usize) -> String {
        let mut text = String::new();
        for (place, words) in self.words.iter().enumerate() {
            text.push_str(words);
            match self.numbers.get(place) {
                Some((low, high)) if low == high => text.push_str(low),
                Some((low, high)) => text.push_str(&format!("{low} – {high}")),
                None => {}
            }
        }
        format!("{}, {} of {windows} windows: {text}", shown(self.side), self.windows)
    }
}

/// A text, taken apart at its numbers: one piece of words more than there are numbers.
fn parts(text: &str) -> (Vec<&str>, Vec<&str>) {
    let (mut words, mut numbers, mut rest) = (Vec::new(), Vec::new(), text);
    while let Some(start) = rest.find(|character: char| character.is_ascii_digit()) {
        let (before, tail) = rest.split_at(start);
        let end = tail.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(tail.len());
        // A sentence may end in a number: its full stop is none of it.
        let digits = tail[..end].trim_end_matches('.');
        words.push(before);
        numbers.push(digits);
        rest = &tail[digits.len()..];
    }
    words.push(rest);
    (words, numbers)
}

/// Of a number as it was written; what only looks like one, an address for example, is the smallest of all.
fn size(digits: &str) -> f64 {
    digits.parse().unwrap_or(f64::NEG_INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(side: &str, doubts: &[&str]) -> Phase {
        let doubts = doubts.iter().map(|doubt| (*doubt).to_owned()).collect();
        Phase { side: side.to_owned(), doubts, ..Phase::default() }
    }

    #[test]
    fn one_doubt_with_different_numbers_is_said_once() {
        let busy = |share: u32| format!("the generator's cores were {share} % busy: it may be the limit");
        let phases = [
            phase("floor", &[&busy(97)]),
            phase("server", &[&busy(99), "a message left 13.5 ms late"]),
            phase("server", &[&busy(97)]),
            phase("server", &[&busy(100)]),
            phase("server", &[]),
        ];
        assert_eq!(
            doubts(&phases),
            [
                "ours, 3 of 4 windows: the generator's cores were 97 – 100 % busy: it may be the limit",
                "ours, 1 of 4 windows: a message left 13.5 ms late",
                "floor, 1 of 1 windows: the generator's cores were 97 % busy: it may be the limit",
            ]
        );
    }

    #[test]
    fn different_doubts_stay_apart_and_texts_are_kept_as_they_are() {
        for text in ["", "7", "no number", "gaps 1, closed {\"1006\": 2}.", "ends in 7.", "10.1.2.3 …"] {
            let (words, numbers) = parts(text);
            assert_eq!(words.len(), numbers.len() + 1, "{text}");
            let told =
                Doubt { side: "s", words, numbers: numbers.iter().map(|n| (*n, *n)).collect(), windows: 1 }
                    .told(1);
            let kept = told.strip_prefix("s, 1 of 1 windows: ").unwrap();
            assert_eq!(kept, text);
        }
        let phases = [phase("server", &["gaps 1"]), phase("server", &["duplicates 1"])];
        assert_eq!(doubts(&phases).len(), 2);
    }
}
