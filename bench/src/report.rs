//! What is kept and shown: raw results as JSON with all that a stranger needs to repeat them, and a table of figures.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cli::Common;
use crate::figure::{Figure, median, spread};
use crate::figure_table;
use crate::page;
use crate::peer::{FLOOR, OURS, Peer};
use crate::phase::Phase;
use crate::scenario::Outcome;
use crate::stage::Bench;
use crate::sys;

/// Writes `NAME-TIME.json` into the folder for raw results, and a page beside it where a table was due. Returns the path of
/// the raw results.
pub fn write(
    name: &str,
    bench: &Bench,
    outcomes: &[Outcome],
    table: &[Figure],
    failures: &[String],
) -> Result<PathBuf> {
    let common = &bench.common;
    let (date, time) = utc_now();
    let folder = match &common.out {
        Some(folder) => folder.clone(),
        None => Path::new("bench/runs").join(format!("{date}-{}", kernel())),
    };
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let with_verdicts = |figures: &[Figure]| -> Vec<Value> { figures.iter().map(figure_json).collect() };
    let outcomes: Vec<Value> = outcomes
        .iter()
        .map(|outcome| {
            json!({
                "title": outcome.title,
                "parameters": outcome.parameters,
                "server": outcome.server,
                "figures": with_verdicts(&outcome.figures),
                "notes": outcome.notes,
                "flaws": outcome.flaws(),
                "peers": outcome.peers.iter().map(|peer| (peer.name.clone(), json!({
                    "command": peer.command,
                    "is_out": peer.is_out,
                    "flaws": outcome.flaws_of(&peer.name),
                }))).collect::<serde_json::Map<_, _>>(),
                "phases": outcome.phases,
                "details": outcome.details,
            })
        })
        .collect();
    let report = json!({
        "utc": format!("{date}T{time}Z"),
        "command": std::env::args().collect::<Vec<_>>(),
        "interrupted": sys::interrupted(),
        "machine": machine(),
        "versions": versions(common),
        "peers": bench.peers.iter().map(peer_json).collect::<Vec<_>>(),
        "settings": {
            "receivers": common.receiving_text(),
            "server_cores": common.server_cores,
            "generator_cores": common.generator_cores,
            "runs": common.runs,
            "duration_seconds": common.duration.as_secs_f64(),
            "warm_up_seconds": common.warm_up.as_secs_f64(),
            "cpu": "user and system time of the server's processes, from before the first message to after the last delivery",
            "latency": "from the intended time of sending to the receive call's return; told apart to 1 %",
        },
        "table": with_verdicts(table),
        "failures": failures,
        "outcomes": outcomes,
    });
    let path = folder.join(format!("{name}-{}.json", time.replace(':', "")));
    fs::write(&path, serde_json::to_vec_pretty(&report)?)
        .with_context(|| format!("writing {}", path.display()))?;
    if !table.is_empty() {
        page::write(std::slice::from_ref(&path), None)?;
    }
    Ok(path)
}

fn figure_json(figure: &Figure) -> Value {
    json!({
        "name": figure.name,
        "unit": figure.unit,
        "median": median(&figure.samples),
        "spread": spread(&figure.samples),
        "samples": figure.samples,
        "floor_median": median(&figure.floor),
        "floor_samples": figure.floor,
        "ratio_to_floor": figure.ratio(),
        "peers": figure.peers.iter().map(|peer| (peer.name.clone(), json!({
            "samples": peer.samples,
            "median": median(&peer.samples),
            "spread": spread(&peer.samples),
            "ratio": figure.ratio_to(&peer.samples),
            "is_flawed": peer.is_flawed,
        }))).collect::<serde_json::Map<_, _>>(),
        "target": figure.target,
        "interval": figure.interval().map(|found| json!({
            "low": found.low, "high": found.high, "estimate": found.estimate, "confidence": found.confidence,
        })),
        "verdict": figure.verdict(),
    })
}

/// How a peer was set up, for whoever wants to repeat it.
fn peer_json(peer: &Peer) -> Value {
    let version = peer.version.as_deref().and_then(|command| {
        let (program, arguments) = command.split_once(' ').unwrap_or((command, ""));
        first_line(Command::new(program).args(arguments.split_whitespace()))
    });
    let mut value = json!(peer);
    value["version"] = json!(version);
    value["version_command"] = json!(peer.version);
    value
}

/// Prints one scenario: its figures, then what is to be known about them.
pub fn print_outcome(outcome: &Outcome) {
    println!("\n{}", outcome.title);
    print!("{}", figure_table::text(&outcome.figures));
    for line in remarks(outcome) {
        println!("  {line}");
    }
    for flaw in outcome.flaws() {
        println!("  FLAW: {flaw}");
    }
    for peer in &outcome.peers {
        for flaw in outcome.flaws_of(&peer.name) {
            println!("  FLAWED {}: {flaw}", peer.name);
        }
    }
}

/// What is to be known about a scenario's figures.
pub fn remarks(outcome: &Outcome) -> Vec<String> {
    let mut remarks = outcome.notes.clone();
    let peers = outcome.peers.iter().map(|peer| peer.name.as_str());
    for (side, phases) in [OURS, FLOOR].into_iter().chain(peers).map(|side| (side, of_side(outcome, side))) {
        if phases.is_empty() {
            continue;
        }
        let middle = |value: fn(&Phase) -> f64| {
            median(&phases.iter().map(|phase| value(phase)).collect::<Vec<_>>()).unwrap_or(0.0)
        };
        remarks.push(format!(
            "{side}: {:.0} % busy ({:.0} % user), softirq on its cores {:.0} %, resident {:.1} MiB, TCP buffers of the \
             machine {:.1} MiB",
            middle(|phase| phase.used.server_cpu_seconds / phase.used.seconds) * 100.0,
            middle(|phase| phase.used.server_user_share) * 100.0,
            middle(|phase| phase.used.server_cores_softirq_seconds / phase.used.seconds) * 100.0,
            middle(|phase| phase.memory.resident_bytes as f64) / f64::from(1 << 20),
            middle(|phase| phase.memory.tcp_pages as f64 * 4096.0) / f64::from(1 << 20),
        ));
        let expected: u64 = phases.iter().map(|phase| phase.expected).sum();
        let missing: u64 = phases.iter().map(|phase| phase.missing).sum();
        let mut generator: BTreeMap<&str, f64> = BTreeMap::new();
        for (name, busy) in phases.iter().flat_map(|phase| &phase.used.generator_busy) {
            let busiest = generator.entry(name).or_default();
            *busiest = busiest.max(*busy);
        }
        let generator: Vec<_> =
            generator.iter().map(|(name, busy)| format!("{name} {:.0} %", busy * 100.0)).collect();
        remarks.push(format!(
            "  {missing} of {expected} deliveries missing; generator's cores {:.0} % busy, at most: {}",
            middle(|phase| phase.used.generator_cores_busy) * 100.0,
            generator.join(", "),
        ));
    }
    let mut doubts: Vec<(String, usize)> = Vec::new();
    for phase in &outcome.phases {
        for doubt in &phase.doubts {
            let text = format!("{} ({}): {doubt}", phase.side, phase.load);
            match doubts.iter_mut().find(|(known, _)| *known == text) {
                Some((_, times)) => *times += 1,
                None => doubts.push((text, 1)),
            }
        }
    }
    let shown = doubts.into_iter().map(|(text, times)| match times {
        1 => format!("doubt: {text}"),
        _ => format!("doubt, {times} times: {text}"),
    });
    remarks.extend(shown);
    remarks
}

fn of_side<'a>(outcome: &'a Outcome, side: &str) -> Vec<&'a Phase> {
    outcome.phases.iter().filter(|phase| phase.side == side).collect()
}

fn machine() -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|rest| rest.split_once(':'))
        .map(|(_, model)| model.trim().to_owned());
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = meminfo.lines().next().and_then(|line| line.split_ascii_whitespace().nth(1));
    json!({
        "kernel": kernel(),
        "architecture": std::env::consts::ARCH,
        "cpu_model": model,
        "online_cores": read_trimmed("/sys/devices/system/cpu/online"),
        "memory_kib": memory.and_then(|kib| kib.parse::<u64>().ok()),
        "is_virtual": cpuinfo.contains(" hypervisor"),
        "clocksource": read_trimmed("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "tcp_congestion_control": read_trimmed("/proc/sys/net/ipv4/tcp_congestion_control"),
        "tcp_wmem": read_trimmed("/proc/sys/net/ipv4/tcp_wmem"),
        "tcp_rmem": read_trimmed("/proc/sys/net/ipv4/tcp_rmem"),
    })
}

fn versions(common: &Common) -> Value {
    let corecast = common.server.is_none() && common.pid.is_none();
    let server = corecast
        .then(crate::cli::corecast_path)
        .and_then(Result::ok)
        .and_then(|path| first_line(Command::new(path).arg("version")));
    let commit = first_line(Command::new("git").args(["rev-parse", "HEAD"]));
    let changes = first_line(Command::new("git").args(["status", "--porcelain"])).is_some();
    json!({
        "bench": env!("CARGO_PKG_VERSION"),
        "server": server,
        "uncommitted_changes": commit.is_some().then_some(changes),
        "commit": commit,
        "redis": first_line(Command::new("redis-server").arg("--version")),
    })
}

fn kernel() -> String {
    read_trimmed("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned())
}

fn read_trimmed(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    // Some programs, nginx among them, tell their version on standard error.
    let said = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    String::from_utf8_lossy(&said).lines().next().map(str::to_owned)
}

/// Date and time of day in UTC, as ISO 8601 writes them.
fn utc_now() -> (String, String) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = civil(since / 86_400);
    let second = since % 86_400;
    let time = format!("{:02}:{:02}:{:02}", second / 3_600, second / 60 % 60, second % 60);
    (format!("{year:04}-{month:02}-{day:02}"), time)
}

/// Year, month and day of a number of days since 1970-01-01.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`, for days from 1970 on.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(11_017), (2000, 3, 1));
        assert_eq!(civil(20_453), (2025, 12, 31));
    }
}
