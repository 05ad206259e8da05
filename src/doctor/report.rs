//! Findings as text and as JSON, and the exit code they mean.

use serde_json::json;

use super::finding::{Finding, Level};

/// Columns of a level and of an id.
const LEVEL_WIDTH: usize = 5;
const ID_WIDTH: usize = 23;

/// 0 where all is well, 1 with warnings, 2 where something is bad.
pub fn exit_code(findings: &[Finding]) -> u8 {
    match findings.iter().map(|finding| finding.level).max() {
        Some(Level::Bad) => 2,
        Some(Level::Warn) => 1,
        _ => 0,
    }
}

/// A line each, its cure below it, and a line that sums them up.
pub fn text(findings: &[Finding]) -> String {
    let mut text: String = findings.iter().map(line).collect();
    let counts: Vec<String> =
        Level::ALL.iter().map(|level| format!("{} {}", count(findings, *level), level.name())).collect();
    text.push_str(&format!("\n{}\n", counts.join(", ")));
    if findings
        .iter()
        .any(|finding| finding.cure.as_deref().is_some_and(|cure| cure.starts_with("sysctl -w ")))
    {
        text.push_str(
            "sysctl -w holds until the next boot: to keep a line, write it without \"sysctl -w\" to \
             /etc/sysctl.d/90-corecast.conf; for a container docker run --sysctl sets what begins with net., but for \
             net.ipv4.tcp_mem and net.netfilter.nf_conntrack_max, which are the host's\n",
        );
    }
    text
}

fn line(finding: &Finding) -> String {
    let Finding { id, level, found, due, cure } = finding;
    let mut line = format!("{:<LEVEL_WIDTH$} {id:<ID_WIDTH$} {found}", level.name());
    if let Some(due) = due {
        line.push_str(&format!("; due: {due}"));
    }
    line.push('\n');
    if let Some(cure) = cure {
        line.push_str(&format!("{:indent$}cure: {cure}\n", "", indent = LEVEL_WIDTH + ID_WIDTH + 2));
    }
    line
}

/// One object, with a line end.
pub fn json(findings: &[Finding]) -> String {
    let summary: serde_json::Map<_, _> =
        Level::ALL.iter().map(|level| (level.name().to_owned(), count(findings, *level).into())).collect();
    format!("{}\n", json!({ "summary": summary, "exit": exit_code(findings), "checks": findings }))
}

fn count(findings: &[Finding], level: Level) -> usize {
    findings.iter().filter(|finding| finding.level == level).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        vec![
            Finding::ok("a.b", "fine"),
            Finding::warn("net.somaxconn", "128").due("4096").cure("sysctl -w net.core.somaxconn=4096"),
        ]
    }

    #[test]
    fn the_worst_finding_decides_the_exit_code() {
        let code = |levels: &[Level]| {
            let findings: Vec<_> = levels.iter().map(|level| Finding::new("x", *level, "y")).collect();
            exit_code(&findings)
        };
        use Level::{Bad, Info, Ok, Warn};
        assert_eq!(
            (code(&[]), code(&[Ok, Info]), code(&[Ok, Warn, Info]), code(&[Bad, Warn, Ok])),
            (0, 0, 1, 2)
        );
    }

    #[test]
    fn a_line_has_level_id_found_and_due_and_its_cure_stands_below() {
        let text = text(&findings());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "ok    a.b                     fine");
        assert_eq!(lines[1], "warn  net.somaxconn           128; due: 4096");
        assert_eq!(lines[2].trim_start(), "cure: sysctl -w net.core.somaxconn=4096");
        assert_eq!(lines[4], "1 ok, 0 info, 1 warn, 0 bad");
        assert!(lines[5].contains("/etc/sysctl.d/90-corecast.conf"));
    }

    #[test]
    fn the_object_has_summary_exit_and_checks() {
        let object: serde_json::Value = serde_json::from_str(&json(&findings())).unwrap();
        assert_eq!(object["summary"], json!({ "ok": 1, "info": 0, "warn": 1, "bad": 0 }));
        assert_eq!(object["exit"], 1);
        assert_eq!(
            object["checks"][1],
            json!({
                "id": "net.somaxconn", "level": "warn", "found": "128", "due": "4096",
                "cure": "sysctl -w net.core.somaxconn=4096",
            })
        );
        assert_eq!(object["checks"][0]["cure"], json!(null));
    }
}
