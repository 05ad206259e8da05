//! Doubts about windows, said once each: "97 %" and "99 %" of the same thing are one doubt, "97 – 99 %".

use crate::page::run::Phase;
use crate::page::side::shown;

/// A doubt, and how often it was had about whom.
#[derive(Debug)]
struct Doubt<'a> {
    /// The text around its numbers.
    words: Vec<&'a str>,
    /// The lowest and the highest of each number, as they were written.
    numbers: Vec<(&'a str, &'a str)>,
    /// Sides in the order of measuring, and the windows of each.
    sides: Vec<(&'a str, usize)>,
}

/// What to think of before believing a scenario's figures: a line each.
pub fn doubts(phases: &[Phase]) -> Vec<String> {
    let windows: Vec<_> = phases.iter().map(|phase| (phase.side.as_str(), phase.doubts.as_slice())).collect();
    merged_doubts(&windows, "windows")
}

/// The doubts of windows (or what else `of` calls them), by the side of each: every doubt once, with how often who had it.
pub fn merged_doubts(windows: &[(&str, &[String])], of: &str) -> Vec<String> {
    let mut doubts: Vec<Doubt> = Vec::new();
    for (side, texts) in windows {
        for text in *texts {
            let (words, numbers) = parts(text);
            let numbers: Vec<_> = numbers.into_iter().map(|number| (number, number)).collect();
            match doubts.iter_mut().find(|doubt| doubt.words == words) {
                Some(doubt) => doubt.merge(&numbers, side),
                None => doubts.push(Doubt { words, numbers, sides: vec![(side, 1)] }),
            }
        }
    }
    let count = |side: &str| windows.iter().filter(|(of, _)| *of == side).count();
    doubts.iter().map(|doubt| doubt.told(of, count)).collect()
}

impl<'a> Doubt<'a> {
    fn merge(&mut self, numbers: &[(&'a str, &'a str)], side: &'a str) {
        for ((low, high), (number, _)) in self.numbers.iter_mut().zip(numbers) {
            if size(number) < size(low) {
                *low = number;
            }
            if size(number) > size(high) {
                *high = number;
            }
        }
        match self.sides.iter_mut().find(|(known, _)| *known == side) {
            Some((_, windows)) => *windows += 1,
            None => self.sides.push((side, 1)),
        }
    }

    fn told(&self, of: &str, windows: impl Fn(&str) -> usize) -> String {
        let mut text = String::new();
        for (place, words) in self.words.iter().enumerate() {
            text.push_str(words);
            match self.numbers.get(place) {
                Some((low, high)) if low == high => text.push_str(low),
                Some((low, high)) => text.push_str(&format!("{low} – {high}")),
                None => {}
            }
        }
        let sides =
            self.sides.iter().map(|(side, had)| format!("{} {had} of {}", shown(side), windows(side)));
        format!("{text} ({of}: {})", sides.collect::<Vec<_>>().join(", "))
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
                "the generator's cores were 97 – 100 % busy: it may be the limit (windows: floor 1 of 1, ours 3 of 4)",
                "a message left 13.5 ms late (windows: ours 1 of 4)",
            ]
        );
    }

    #[test]
    fn different_doubts_stay_apart_and_texts_are_kept_as_they_are() {
        for text in ["", "7", "no number", "gaps 1, closed {\"1006\": 2}.", "ends in 7.", "10.1.2.3 …"] {
            let (words, numbers) = parts(text);
            assert_eq!(words.len(), numbers.len() + 1, "{text}");
            let told = doubts(&[phase("s", &[text])]);
            let kept = told[0].strip_suffix(" (windows: s 1 of 1)").unwrap();
            assert_eq!(kept, text);
        }
        let phases = [phase("server", &["gaps 1"]), phase("server", &["duplicates 1"])];
        assert_eq!(doubts(&phases).len(), 2);
    }
}
