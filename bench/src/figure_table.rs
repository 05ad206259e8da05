//! Figures as a table of text: each column only where a figure has it. Pure.

use crate::figure::{Figure, Target, Verdict, median, spread};

/// One line per figure, under a head: ours, of how many runs, the floor, each peer with ours over theirs, what is due, and the
/// verdict; behind that, what the runs say of the ratio that is due.
pub fn text(figures: &[Figure]) -> String {
    let has_floor = figures.iter().any(|figure| !figure.floor.is_empty());
    let has_target = figures.iter().any(|figure| figure.target.is_some());
    let mut peers: Vec<&str> = Vec::new();
    for peer in figures.iter().flat_map(|figure| &figure.peers) {
        if !peers.contains(&peer.name.as_str()) {
            peers.push(&peer.name);
        }
    }
    let mut head = vec!["figure", "median", "spread", "n"];
    if has_floor {
        head.extend(["floor", "ratio"]);
    }
    for peer in &peers {
        head.extend([*peer, "ratio"]);
    }
    if has_target {
        head.extend(["target", ""]);
    }
    let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for figure in figures {
        let spread = (!figure.samples.is_empty()).then(|| spread(&figure.samples));
        let mut row = vec![
            figure.name.clone(),
            with_unit(median(&figure.samples), figure.unit),
            spread.map_or("-".to_owned(), number),
            figure.samples.len().to_string(),
        ];
        if has_floor {
            row.extend(beside(figure, &figure.floor));
        }
        for peer in &peers {
            row.extend(peer_cells(figure, peer));
        }
        if has_target {
            row.push(figure.target.as_ref().map_or("-".to_owned(), |target| due(target, figure.unit)));
            row.push(verdict(figure.verdict()).to_owned() + &interval(figure));
        }
        rows.push(row);
    }
    aligned(&rows)
}

/// The median of other samples, and ours over it.
fn beside(figure: &Figure, others: &[f64]) -> [String; 2] {
    let ratio = figure.ratio_to(others).map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
    [with_unit(median(others), figure.unit), ratio]
}

/// A flawed peer's median is shown, and proves nothing.
fn peer_cells(figure: &Figure, peer: &str) -> [String; 2] {
    let Some(peer) = figure.peer(peer) else { return ["-".to_owned(), "-".to_owned()] };
    let [median, ratio] = beside(figure, &peer.samples);
    [median, if peer.is_flawed { "FLAWED".to_owned() } else { ratio }]
}

/// Between which ratios the true one lies, and how surely.
fn interval(figure: &Figure) -> String {
    figure.interval().map_or_else(String::new, |found| {
        format!(" {:.2} to {:.2} ({:.0} %)", found.low, found.high, found.confidence * 100.0)
    })
}

fn due(target: &Target, unit: &str) -> String {
    match target {
        Target::AtMost(bound) => format!("<= {} {unit}", number(*bound)),
        Target::BelowFloor => "< floor".to_owned(),
        Target::AtMostOfPeer { peer, ratio } => format!("<= {ratio} of {peer}"),
    }
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Missed => "MISSED",
        Verdict::Undecided => "UNDECIDED",
        Verdict::Informative => "",
        Verdict::Unmeasured => "NOT MEASURED",
        Verdict::Flawed => "FLAWED",
    }
}

fn with_unit(value: Option<f64>, unit: &str) -> String {
    value.map_or("-".to_owned(), |value| format!("{} {unit}", number(value)))
}

fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = format!("  {:<width$}", row[0], width = widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            line.push_str(&format!("  {cell:>width$}"));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Three digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        large if large >= 10.0 => format!("{value:.1}"),
        large if large >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::PeerSamples;

    #[test]
    fn numbers_keep_three_digits() {
        assert_eq!(number(2.71649), "2.72");
        assert_eq!(number(0.04219), "0.042");
        assert_eq!(number(1234.5), "1234");
    }

    #[test]
    fn peers_stand_in_columns_of_their_own_with_ours_over_theirs() {
        let peer = |name: &str, samples, is_flawed| PeerSamples { name: name.to_owned(), samples, is_flawed };
        let mut cost = Figure::new("cost", "us", vec![1.0]).beside(vec![4.0]);
        cost.peers = vec![peer("quick", vec![2.0], false), peer("lossy", vec![1.0], true)];
        cost.target = Some(Target::AtMostOfPeer { peer: "quick", ratio: 0.6 });
        let rise = Figure::new("rise", "x", vec![1.5]);
        let lines: Vec<Vec<String>> = text(&[cost, rise])
            .lines()
            .map(|line| {
                line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
            })
            .collect();
        assert_eq!(
            lines[0],
            [
                "figure", "median", "spread", "n", "floor", "ratio", "quick", "ratio", "lossy", "ratio",
                "target"
            ]
        );
        let quick =
            ["cost", "1.00 us", "0.000", "1", "4.00 us", "0.25", "2.00 us", "0.50", "1.00 us", "FLAWED"];
        assert_eq!(lines[1][..10], quick);
        assert_eq!(lines[1][10..], ["<= 0.6 of quick", "ok 0.50 to 0.50 (0 %)"]);
        assert_eq!(lines[2], ["rise", "1.50 x", "0.000", "1", "-", "-", "-", "-", "-", "-", "-"]);
    }
}
