//! What stands at the top of a run: what was run where, and what to know before believing any of it.

use charts::{Unit, escape};
use serde_json::{Map, Value};

use crate::page::doubts::doubts;
use crate::page::figures::tally;
use crate::page::html::{element, folded, list, pairs, text};
use crate::page::run::Run;

/// Facts that have a place of their own, so that the list of all others leaves them out.
const TOLD: [&str; 6] = ["kernel", "cpu_model", "memory_kib", "online_cores", "architecture", "is_virtual"];

/// The head of a run, as markup.
pub fn head(run: &Run, heading: &str) -> String {
    let mut parts = vec![
        text(heading, "", &title(run)),
        pairs(facts(run).into_iter()),
        element("pre", "command", &element("code", "", &escape(&command(&run.command)))),
        warnings(run),
    ];
    let others = run.machine.iter().filter(|(name, _)| !TOLD.contains(&name.as_str()));
    let mut more = pairs(others.chain(&run.settings).map(|(name, value)| (name.as_str(), plain(value))));
    if !run.peers.is_empty() {
        more.push_str(&text("h3", "", "Other servers, as they were set up"));
        let peers = run.peers.iter().flatten().filter(|(_, value)| !value.is_null());
        more.push_str(&pairs(peers.map(|(name, value)| (name.as_str(), plain(value)))));
    }
    parts.push(folded("More about the machine and the settings", &more));
    parts.join("\n")
}

/// One line that tells a run from others.
pub fn title(run: &Run) -> String {
    let time = run.utc.replace('T', " ").replace('Z', " UTC");
    format!("{} {time}", run.name()).trim().to_owned()
}

fn facts(run: &Run) -> Vec<(&'static str, String)> {
    let of = |map: &Map<String, Value>, name: &str| map.get(name).filter(|value| !value.is_null()).map(plain);
    let machine = |name: &str| of(&run.machine, name);
    let memory = run.machine.get("memory_kib").and_then(Value::as_f64);
    let place = match run.machine.get("is_virtual") {
        Some(Value::Bool(true)) => Some("virtual".to_owned()),
        _ => None,
    };
    let parts = [
        machine("cpu_model"),
        machine("architecture"),
        machine("online_cores").map(|cores| format!("cores {cores}")),
        memory.map(|kib| Unit::named("KiB").text(kib)),
        place,
    ];
    let commit = of(&run.versions, "commit").map(|commit| match run.versions.get("uncommitted_changes") {
        Some(Value::Bool(true)) => format!("{commit}, with changes that were not committed"),
        _ => commit,
    });
    let versions = run.versions.iter().filter(|(name, value)| {
        !value.is_null() && !["commit", "uncommitted_changes"].contains(&name.as_str())
    });
    let versions: Vec<_> = versions.map(|(name, value)| format!("{name} {}", plain(value))).collect();
    let facts = [
        ("machine", Some(parts.into_iter().flatten().collect::<Vec<_>>().join(", "))),
        ("kernel", machine("kernel")),
        ("versions", Some(versions.join("; "))),
        ("commit", commit),
        ("figures", Some(tally(&run.table))),
        ("raw results", run.path.file_name().map(|name| name.to_string_lossy().into_owned())),
    ];
    let told = facts.into_iter().filter_map(|(name, value)| Some((name, value?)));
    told.filter(|(_, value)| !value.is_empty()).collect()
}

/// What a reader must see before any figure: it stands open, whatever is folded.
fn warnings(run: &Run) -> String {
    let mut lines = Vec::new();
    if run.interrupted {
        lines.push("This run was interrupted: some of it was not measured.".to_owned());
    }
    lines.extend(run.failures.iter().map(|failure| format!("Failed: {failure}")));
    for outcome in &run.outcomes {
        lines.extend(outcome.flaws.iter().map(|flaw| format!("Flawed: {}: {flaw}", outcome.title)));
        for (name, peer) in &outcome.peers {
            lines.extend(peer.flaws.iter().map(|flaw| format!("{name} flawed: {}: {flaw}", outcome.title)));
        }
    }
    let doubted = run.outcomes.iter().filter(|outcome| !doubts(&outcome.phases).is_empty()).count();
    let mut html = list("warnings bad", lines.into_iter());
    if doubted > 0 {
        let all = run.outcomes.len();
        let line = format!("{doubted} of {all} scenarios have doubts: they stand before their figures.");
        html.push_str(&list("warnings odd", std::iter::once(line)));
    }
    html
}

/// A command as one can give it to a shell.
pub fn command(arguments: &[String]) -> String {
    let quoted = arguments.iter().map(|argument| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
        match !argument.is_empty() && argument.chars().all(is_plain) {
            true => argument.clone(),
            false => format!("'{}'", argument.replace('\'', r"'\''")),
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// A value without the quotes and brackets of JSON, as far as it can be read without.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.split_whitespace().collect::<Vec<_>>().join(" "),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::Null => "–".to_owned(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_given_to_a_shell_again() {
        let words = ["bench", "--path", "/ws?room={room}", "it's", "", "--rate=1.5"].map(str::to_owned);
        assert_eq!(command(&words), r"bench --path '/ws?room={room}' 'it'\''s' '' --rate=1.5");
    }

    #[test]
    fn interruptions_failures_flaws_and_doubts_stand_at_the_top() {
        let run: Run = serde_json::from_str(
            r#"{"interrupted": true, "failures": ["echo: <no> path"], "outcomes": [
                {"title": "burst", "flaws": ["lost"], "peers": {"uws": {"flaws": ["out"]}},
                 "phases": [{"side": "server", "doubts": ["busy"]}]}, {"title": "idle"}]}"#,
        )
        .unwrap();
        let head = head(&run, "h1");
        for due in
            ["interrupted", "Failed: echo: &lt;no&gt; path", "Flawed: burst: lost", "uws flawed: burst: out"]
        {
            assert!(head.contains(due), "{due}: {head}");
        }
        assert!(head.contains("1 of 2 scenarios have doubts"), "{head}");
    }

    #[test]
    fn uncommitted_changes_are_told_with_the_commit() {
        let run = |changes: &str| -> Run {
            let versions = format!(r#"{{"commit": "abc", "uncommitted_changes": {changes}, "redis": null}}"#);
            serde_json::from_str(&format!(r#"{{"outcomes": [], "versions": {versions}}}"#)).unwrap()
        };
        assert!(head(&run("true"), "h1").contains("abc, with changes"));
        assert!(head(&run("false"), "h1").contains(">abc<"));
        assert!(!head(&run("false"), "h1").contains("redis"));
    }
}
