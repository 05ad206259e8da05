//! Latencies that a scenario recorded beside its windows: of handshakes, round trips, returns.

use charts::{Drawing, Series, Style};
use serde_json::Value;

use crate::page::pictures::{latency_chart, point};
use crate::page::side::{OURS, Sides, shown};

const PERCENTILES: [(&str, &str); 5] =
    [("p50", "p50_us"), ("p90", "p90_us"), ("p99", "p99_us"), ("p99.9", "p999_us"), ("max", "max_us")];
/// Lines that one picture can hold.
const SERIES_MAX: usize = charts::STYLES;

/// What was recorded under one name for one side, a record per run.
struct Records<'a> {
    side: &'a str,
    name: &'a str,
    records: Vec<&'a Value>,
}

/// A picture of all latencies in `details`, a line for each name and side; none where there are none.
pub fn latencies(details: &[Value], sides: &Sides) -> Option<Drawing> {
    let mut all: Vec<Records> = Vec::new();
    for detail in details {
        let side = detail["side"].as_str().unwrap_or(OURS);
        let fields = detail.as_object().into_iter().flatten();
        for (name, record) in fields.filter(|(_, value)| is_record(value)) {
            match all.iter_mut().find(|records| records.side == side && records.name == name) {
                Some(records) => records.records.push(record),
                None => all.push(Records { side, name, records: vec![record] }),
            }
        }
    }
    if all.is_empty() {
        return None;
    }
    let names: std::collections::BTreeSet<&str> = all.iter().map(|records| records.name).collect();
    let has_peers = all.iter().any(|records| records.side != OURS);
    let title = match (all.as_slice(), all.len() > SERIES_MAX) {
        // One line has no legend.
        ([records], _) => format!("Recorded latencies: {}", records.name.replace('_', " ")),
        (_, true) => format!("Recorded latencies: the first {SERIES_MAX} of {}", all.len()),
        (_, false) => "Recorded latencies".to_owned(),
    };
    // With one name a side has its usual look; with several the look tells the names apart.
    let series = all.iter().take(SERIES_MAX).enumerate().map(|(place, records)| Series {
        name: match has_peers {
            true => format!("{}, {}", shown(records.side), records.name.replace('_', " ")),
            false => records.name.replace('_', " "),
        },
        style: if names.len() == 1 { sides.style(records.side) } else { Style(place) },
        points: PERCENTILES
            .iter()
            .enumerate()
            .filter_map(|(at, (_, field))| records.point(at, field))
            .collect(),
    });
    let names = PERCENTILES.map(|(name, _)| name.to_owned()).to_vec();
    Some(latency_chart(&title, names, "us", series.collect()))
}

/// What has percentiles and counted something.
fn is_record(value: &Value) -> bool {
    value["p50_us"].is_number() && value["count"].as_u64() != Some(0)
}

impl Records<'_> {
    fn point(&self, at: usize, field: &str) -> Option<charts::Point> {
        let samples: Vec<f64> = self.records.iter().filter_map(|record| record[field].as_f64()).collect();
        point(at as f64, &samples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(details: &str) -> Option<String> {
        let details: Vec<Value> = serde_json::from_str(details).unwrap();
        latencies(&details, &Sides::default()).map(|drawing| drawing.inline())
    }

    #[test]
    fn records_of_one_name_are_one_line_over_all_runs() {
        let drawing = drawn(
            r#"[{"during": {"count": 2, "p50_us": 10, "p99_us": 40}, "all": {"count": 9, "p50_us": 5}, "lost": 0},
                {"during": {"count": 2, "p50_us": 30, "p99_us": 20}, "all": {"count": 0, "p50_us": 0}}]"#,
        )
        .unwrap();
        assert!(drawing.contains("during, p50: 20 µs (10 µs to 30 µs)"), "{drawing}");
        assert!(drawing.contains("all, p50: 5 µs"), "of nothing there is no latency: {drawing}");
    }

    #[test]
    fn details_without_latencies_have_no_picture() {
        assert!(drawn(r#"[{"before": {"resident_bytes": 1}}, 7, null, "text", [1]]"#).is_none());
        assert!(drawn("[]").is_none());
    }

    #[test]
    fn more_lines_than_can_be_told_apart_are_not_drawn_and_that_is_said() {
        let fields: Vec<_> =
            (0..12).map(|n| format!(r#""name{n:02}": {{"count": 1, "p50_us": 1}}"#)).collect();
        let drawing = drawn(&format!("[{{{}}}]", fields.join(","))).unwrap();
        assert!(drawing.contains("the first 8 of 12"), "{drawing}");
        assert!(drawing.contains("name07") && !drawing.contains("name08"), "{drawing}");
    }
}
