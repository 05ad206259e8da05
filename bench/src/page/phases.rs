//! Every measured window of a scenario as a row of numbers.

use charts::{Unit, number};

use crate::page::html::{cell, folded, row_head, table};
use crate::page::run::{Counts, Phase};
use crate::page::side::shown;

const HEAD: [&str; 17] = [
    "window",
    "load",
    "CPU per delivery",
    "deliveries",
    "p50",
    "p90",
    "p99",
    "p99.9",
    "max",
    "delivered",
    "missing",
    "damaged",
    "server's CPU",
    "softirq, stolen",
    "generator busy",
    "late by at most",
    "memory: own, resident, TCP",
];

/// The folded table of a scenario's windows; nothing where there are none.
pub fn phases(phases: &[Phase]) -> String {
    if phases.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> =
        phases.iter().enumerate().map(|(place, phase)| row(place + 1, phase)).collect();
    let caption = "Every measured window, in the order of measuring";
    folded(&format!("Raw numbers of {} windows", phases.len()), &table("raw", caption, &HEAD, &rows))
}

fn row(place: usize, phase: &Phase) -> Vec<String> {
    let us = |value: Option<f64>| shown_in("us", value);
    let latency = &phase.latency;
    let mut row = vec![row_head(&format!("{place} {}", shown(&phase.side))), cell(&phase.load)];
    let cells = [
        us(phase.cpu_us_per_delivery),
        shown_in("/s", phase.deliveries_per_second),
        us(latency.p50_us),
        us(latency.p90_us),
        us(latency.p99_us),
        us(latency.p999_us),
        us(latency.max_us),
        format!("{} of {}", number(phase.counts.delivered as f64), number(phase.expected as f64)),
        phase.missing.to_string(),
        damage(&phase.counts, phase.sent.stuck),
        server_cpu(phase),
        beside_cpu(phase),
        generator_busy(phase),
        us(phase.sent.late_max_us),
        memory(phase),
    ];
    row.extend(cells.iter().map(|text| cell(text)));
    row
}

fn shown_in(unit: &str, value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |value| Unit::named(unit).text(value))
}

fn share(part: Option<f64>, whole: Option<f64>) -> String {
    match (part, whole) {
        (Some(part), Some(whole)) if whole > 0.0 => format!("{:.0}%", part / whole * 100.0),
        _ => "–".to_owned(),
    }
}

/// What was wrong with what arrived; "none" is what all of it should say.
fn damage(counts: &Counts, stuck: bool) -> String {
    let kinds = [
        ("gaps", counts.gaps),
        ("duplicates", counts.duplicates),
        ("out of order", counts.out_of_order),
        ("wrong room", counts.wrong_room),
        ("unreadable", counts.unreadable),
    ];
    let mut found: Vec<String> =
        kinds.iter().filter(|(_, count)| *count > 0).map(|(kind, count)| format!("{kind} {count}")).collect();
    found.extend(counts.closes.iter().map(|(code, count)| format!("closed with {code}: {count}")));
    if stuck {
        found.push("stuck".to_owned());
    }
    if found.is_empty() { "none".to_owned() } else { found.join(", ") }
}

fn server_cpu(phase: &Phase) -> String {
    let used = &phase.used;
    let user = used.server_user_share.map_or("–".to_owned(), |share| format!("{:.0}%", share * 100.0));
    let busy = share(used.server_cpu_seconds, used.seconds);
    format!(
        "{} in {}: {busy} busy, {user} user",
        shown_in("s", used.server_cpu_seconds),
        shown_in("s", used.seconds)
    )
}

fn beside_cpu(phase: &Phase) -> String {
    let used = &phase.used;
    let softirq = share(used.server_cores_softirq_seconds, used.seconds);
    format!("{softirq}, {}", share(used.server_cores_steal_seconds, used.seconds))
}

/// All of the generator's cores, then its busiest process: either may be the limit instead of the server.
fn generator_busy(phase: &Phase) -> String {
    let cores = share(phase.used.generator_cores_busy, Some(1.0));
    let processes = phase.used.generator_busy.iter().filter_map(|(name, busy)| Some((name, (*busy)?)));
    match processes.max_by(|one, other| one.1.total_cmp(&other.1)) {
        Some((name, busy)) => format!("{cores}; {name} {:.0}%", busy * 100.0),
        None => cores,
    }
}

fn memory(phase: &Phase) -> String {
    let memory = &phase.memory;
    let tcp = memory.tcp_pages.map(|pages| pages * PAGE_BYTES);
    [memory.anonymous_bytes, memory.resident_bytes, tcp].map(|bytes| shown_in("B", bytes)).join(", ")
}

/// Of the kernels that the generator runs on.
const PAGE_BYTES: f64 = 4096.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_says_what_was_lost_and_what_the_generator_was_doing() {
        let phase: Phase = serde_json::from_str(
            r#"{"side": "server", "load": "1 under way", "expected": 3, "missing": 1, "sent": {"stuck": true},
                "counts": {"delivered": 2, "gaps": 1, "closes": {"1006": 4}}, "latency": {"p50_us": 1500},
                "used": {"seconds": 2, "server_cpu_seconds": 1, "generator_cores_busy": 0.97,
                         "generator_busy": {"receiver 0": 0.5, "redis": 0.75, "publisher": null}}}"#,
        )
        .unwrap();
        let row = row(1, &phase).join("\n");
        for due in [
            "1 ours",
            "1.5 ms",
            "2 of 3",
            "gaps 1, closed with 1006: 4, stuck",
            "1 s in 2 s: 50% busy, – user",
            "97%; redis 75%",
        ] {
            assert!(row.contains(due), "{due}: {row}");
        }
        assert_eq!(row.matches("<td>").count() + row.matches("<th ").count(), HEAD.len());
    }

    #[test]
    fn no_windows_have_no_table() {
        assert_eq!(phases(&[]), "");
        assert!(phases(&[Phase::default()]).contains("none"));
    }
}
