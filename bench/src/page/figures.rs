//! The table of figures: ours, the floor and every peer, what was due, and what became of it.

use charts::{Unit, number};
use serde_json::Value;

use crate::figure::median;
use crate::page::html::{cell, element, row_head, table, text};
use crate::page::run::Figure;
use crate::page::side::{FLOOR, OURS, Sides, samples, shown, spread};

/// A table of `figures` with a column for each side that has any, and for targets where there are any.
pub fn figures(caption: &str, figures: &[Figure], sides: &Sides) -> String {
    if figures.is_empty() {
        return String::new();
    }
    let has = |side: &str| side == OURS || figures.iter().any(|figure| is_about(figure, side));
    let shown_sides: Vec<&str> = sides.iter().filter(|side| has(side)).collect();
    let has_targets = figures.iter().any(|figure| !figure.target.is_null());
    // What was due stands beside ours: on a narrow screen the others are a swipe away.
    let targets = if has_targets { &["due"][..] } else { &[] };
    let others = shown_sides.iter().filter(|side| **side != OURS);
    let mut head = vec!["figure", shown(OURS)];
    head.extend(targets.iter().chain(others.clone()));
    let rows: Vec<Vec<String>> = figures
        .iter()
        .map(|figure| {
            let mut row = vec![row_head(&figure.name), side_cell(figure, OURS)];
            if has_targets {
                row.push(due_cell(figure));
            }
            row.extend(others.clone().map(|side| side_cell(figure, side)));
            row
        })
        .collect();
    table("figures", caption, &head, &rows)
}

/// Whether a figure has anything to say about a side.
fn is_about(figure: &Figure, side: &str) -> bool {
    match side {
        OURS => true,
        FLOOR => !figure.floor_samples.is_empty(),
        peer => figure.peers.contains_key(peer),
    }
}

/// Median, then the way from the lowest to the highest sample, then what ours is of it.
fn side_cell(figure: &Figure, side: &str) -> String {
    let unit = Unit::named(&figure.unit);
    let samples_here = samples(figure, side);
    let mut content = match median(&samples_here) {
        Some(middle) => text("span", "value", &unit.text(middle)),
        None if is_about(figure, side) => text("span", "", "not measured"),
        None => return cell("–"),
    };
    if let Some((low, high)) = spread(&samples_here) {
        let spread = format!("{} … {}", unit.text(low), unit.text(high));
        content.push_str(&text("span", "spread", &spread));
    }
    if side != OURS
        && let Some(ratio) = ratio(figure, side)
    {
        content.push_str(&text("span", "ratio", &format!("ours is {}×", number(ratio))));
    }
    if figure.peers.get(side).is_some_and(|peer| peer.is_flawed) {
        content.push_str(&text("span", "badge bad", "✗ flawed"));
    }
    element("td", "", &content)
}

/// Our median over a side's.
pub fn ratio(figure: &Figure, side: &str) -> Option<f64> {
    let theirs = median(&samples(figure, side)).filter(|theirs| *theirs > 0.0)?;
    median(&samples(figure, OURS)).map(|ours| ours / theirs)
}

/// What was due, in few characters.
fn due(figure: &Figure) -> String {
    let unit = Unit::named(&figure.unit);
    match &figure.target {
        Value::Null => "–".to_owned(),
        Value::String(target) if target == "below_floor" => "< floor".to_owned(),
        Value::String(target) => target.replace('_', " "),
        other => {
            if let Some(bound) = other["at_most"].as_f64() {
                return format!("≤ {}", unit.text(bound));
            }
            let share = &other["at_most_of_peer"];
            match (share["peer"].as_str(), share["ratio"].as_f64()) {
                (Some(peer), Some(ratio)) => format!("≤ {}× {peer}", number(ratio)),
                _ => other.to_string(),
            }
        }
    }
}

/// What was due, and below it what became of it.
fn due_cell(figure: &Figure) -> String {
    let due = text("span", "due", &due(figure));
    element("td", "", &(due + &verdict(&figure.verdict)))
}

/// A mark and a word: colour says nothing that they don't.
fn verdict(verdict: &str) -> String {
    match verdict {
        "ok" => text("span", "badge good", "✓ ok"),
        "missed" => text("span", "badge bad", "✗ missed"),
        "flawed" => text("span", "badge bad", "✗ flawed"),
        "unmeasured" => text("span", "badge odd", "? not measured"),
        "undecided" => text("span", "badge odd", "? undecided"),
        "informative" | "" => String::new(),
        other => text("span", "badge", other),
    }
}

/// How many figures there are of each verdict, in words.
pub fn tally(figures: &[Figure]) -> String {
    let count = |verdict: &str| figures.iter().filter(|figure| figure.verdict == verdict).count();
    let words = [
        ("ok", "as due"),
        ("missed", "missed"),
        ("undecided", "undecided"),
        ("flawed", "flawed"),
        ("unmeasured", "not measured"),
        ("informative", "for information"),
    ];
    let counted = words.iter().filter(|(verdict, _)| count(verdict) > 0);
    let words: Vec<_> = counted.map(|(verdict, word)| format!("{} {word}", count(verdict))).collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(text: &str) -> Figure {
        serde_json::from_str(text).unwrap()
    }

    fn shown_table(text: &str) -> String {
        let run = format!(r#"{{"outcomes": [], "table": [{text}]}}"#);
        let run = serde_json::from_str(&run).unwrap();
        figures("c", &[figure(text)], &Sides::of(&run))
    }

    #[test]
    fn a_row_has_every_side_the_ratio_to_it_what_was_due_and_the_verdict() {
        let table = shown_table(
            r#"{"name": "CPU", "unit": "us", "samples": [1, 2, 3], "floor_samples": [4],
                "peers": {"uws": {"samples": [8], "is_flawed": true}}, "target": "below_floor", "verdict": "ok"}"#,
        );
        for due in [
            "2 µs",
            "1 µs … 3 µs",
            "4 µs",
            "ours is 0.5×",
            "8 µs",
            "ours is 0.25×",
            "✗ flawed",
            "&lt; floor",
            "✓ ok",
        ] {
            assert!(table.contains(due), "{due}: {table}");
        }
    }

    #[test]
    fn nothing_measured_is_said_and_no_ratio_is_made_of_it() {
        let table = shown_table(
            r#"{"name": "CPU", "unit": "us", "samples": [null], "floor_samples": [0], "peers": {"uws": {"samples": [], "is_flawed": true}},
                "target": {"at_most": 0.4}, "verdict": "unmeasured"}"#,
        );
        assert_eq!(table.matches("not measured").count(), 3, "ours, the peer's and the verdict: {table}");
        assert!(table.contains("≤ 400 ns") && table.contains("✗ flawed"), "{table}");
        assert!(!table.contains("ours is"), "{table}");
    }

    #[test]
    fn targets_are_told_even_if_nobody_knows_them() {
        let due_of = |target: &str| due(&figure(&format!(r#"{{"unit": "us", "target": {target}}}"#)));
        assert_eq!(due_of(r#"{"at_most_of_peer": {"peer": "uws", "ratio": 0.6}}"#), "≤ 0.6× uws");
        assert_eq!(due_of(r#"{"at_least": 3}"#), r#"{"at_least":3}"#);
        assert_eq!(due_of(r#""above_floor""#), "above floor");
        assert_eq!(due_of("null"), "–");
    }

    #[test]
    fn verdicts_are_counted() {
        let of = |verdict: &str| Figure { verdict: verdict.to_owned(), ..Figure::default() };
        assert_eq!(
            tally(&[of("ok"), of("ok"), of("missed"), of("informative")]),
            "2 as due, 1 missed, 1 for information"
        );
        assert_eq!(tally(&[]), "");
    }
}
