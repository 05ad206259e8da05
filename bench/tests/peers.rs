//! Other servers beside ours: corecast beside itself, and beside peers that fail.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// The program to measure: as `CORECAST_TEST_BINARY` says, or what was built beside the generator.
fn corecast() -> String {
    let beside = || PathBuf::from(env!("CARGO_BIN_EXE_corecast-bench")).with_file_name("corecast");
    let path = std::env::var_os("CORECAST_TEST_BINARY").map_or_else(beside, PathBuf::from);
    assert!(path.exists(), "no {}: cargo build -p corecast", path.display());
    path.to_string_lossy().into_owned()
}

/// A command of corecast's without Redis; messages come over HTTP.
fn local() -> String {
    format!("{} serve --listen {{listen}} --ports-file {{ports_file}} --shards 1 --broker local", corecast())
}

/// A run of the generator.
struct Run {
    output: Output,
    folder: PathBuf,
}

impl Run {
    /// `name` is the test's own: its results go to a folder of that name.
    fn of(name: &str, arguments: &[&str]) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).unwrap();
        }
        let output = Command::new(env!("CARGO_BIN_EXE_corecast-bench"))
            .args(arguments)
            .args(["--server", &local(), "--publish", "http"])
            .args(["--receivers", "poll:1ms", "--receiver-processes", "1", "--warm-up", "50ms"])
            .arg("--out")
            .arg(&folder)
            .output()
            .unwrap();
        Self { output, folder }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    fn printed(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    fn results(&self) -> Value {
        let files = std::fs::read_dir(&self.folder).unwrap_or_else(|_| panic!("no results: {}", self.said()));
        // A table has its page beside it.
        let mut files = files.map(|file| file.unwrap().path());
        let path = files.find(|path| path.extension().is_some_and(|end| end == "json")).unwrap();
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }
}

fn samples(figure: &Value) -> Vec<f64> {
    figure["samples"].as_array().unwrap().iter().map(|sample| sample.as_f64().unwrap()).collect()
}

fn sides(results: &Value) -> Vec<&str> {
    let phases = results["outcomes"][0]["phases"].as_array().unwrap();
    phases.iter().map(|phase| phase["side"].as_str().unwrap()).collect()
}

const SMALL: [&str; 8] = ["--clients", "20", "--rate", "100", "--bytes", "64", "--duration", "200ms"];

#[test]
fn a_twin_is_measured_in_turn_and_stands_beside_ours() {
    let twin = format!("twin={}", local());
    let peer = ["--peer", &twin, "--peer-set", "twin.publish=http", "--peer-set", "twin.notes=the same"];
    let run = Run::of("twin", &[&["fanout", "--runs", "2"][..], &SMALL, &peer].concat());
    assert_eq!(run.output.status.code(), Some(0), "{}", run.said());
    let results = run.results();
    assert_eq!(sides(&results), ["floor", "server", "twin", "server", "twin", "floor"]);
    assert_eq!(results["peers"][0]["notes"], "the same");
    let figure = &results["outcomes"][0]["figures"][0];
    let twin = &figure["peers"]["twin"];
    assert_eq!((samples(figure).len(), samples(twin).len()), (2, 2));
    let (ours, theirs) = (figure["median"].as_f64().unwrap(), twin["median"].as_f64().unwrap());
    assert!((twin["ratio"].as_f64().unwrap() - ours / theirs).abs() < 1e-9);
    assert_eq!(twin["is_flawed"], false);
    let [low, high] = [f64::min, f64::max].map(|of| samples(twin).into_iter().reduce(of).unwrap());
    assert!((twin["spread"].as_f64().unwrap() - (high - low)).abs() < 1e-9);
    let printed = run.printed();
    let head: Vec<_> = printed.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!(head, ["figure", "median", "spread", "n", "floor", "ratio", "twin", "ratio"]);
    assert!(printed.contains("twin: ") && !printed.contains("FLAW"), "{printed}");
}

#[test]
fn peers_that_end_or_lose_are_flawed_and_cost_nobody_their_figures() {
    let dying = format!("dying=timeout -s KILL 2 {}", local());
    let deaf = format!("deaf={}", local());
    let peers = [
        ["--peer", "gone=false", "--peer", &dying, "--peer-set", "dying.publish=http"],
        [
            "--peer",
            &deaf,
            "--peer-set",
            "deaf.publish=http",
            "--peer-set",
            "deaf.publish_path=/publish?room=else",
        ],
    ];
    // The deaf one's windows take until nothing has come for three seconds: by then the dying one has died.
    let run = Run::of("failing", &[&["fanout", "--runs", "2"][..], &SMALL, peers.as_flattened()].concat());
    assert_eq!(run.output.status.code(), Some(0), "a peer's flaw is not ours: {}", run.said());
    let results = run.results();
    let outcome = &results["outcomes"][0];
    let is_out = ["gone", "dying", "deaf"].map(|name| outcome["peers"][name]["is_out"].as_bool().unwrap());
    assert_eq!(is_out, [true, true, false]);
    let flaw = outcome["peers"]["gone"]["flaws"][0].as_str().unwrap();
    assert!(flaw.contains("exit status: 1 before it was ready"), "{flaw}");
    let figure = &outcome["figures"][0];
    assert_eq!(samples(figure).len(), 2);
    for name in ["gone", "dying", "deaf"] {
        assert_eq!(figure["peers"][name]["is_flawed"], true, "{name}");
        assert!(run.printed().contains(&format!("FLAWED {name}: ")), "{name}");
    }
    assert_eq!(outcome["flaws"], serde_json::json!([]));
}

#[test]
fn other_scenarios_take_peers_too() {
    let twin = format!("twin={}", local());
    let peer = ["--peer", &twin, "--peer-set", "twin.publish=pipelined-http"];
    let short = ["--runs", "1", "--duration", "100ms"];
    let scenarios: [(&str, &[&str]); 4] = [
        ("saturate", &["--clients", "10", "--bytes", "64", "--windows", "1,4"]),
        ("idle", &["--clients", "50", "--rooms", "5"]),
        ("churn", &["--handshakes", "100", "--parallel", "4"]),
        ("slow", &["--clients", "10", "--stalled-every", "5", "--bytes", "64"]),
    ];
    for (scenario, arguments) in scenarios {
        let run = Run::of(scenario, &[&[scenario][..], arguments, &short, &peer].concat());
        assert_eq!(run.output.status.code(), Some(0), "{scenario}: {}", run.said());
        let results = run.results();
        for figure in results["outcomes"][0]["figures"].as_array().unwrap() {
            let count = samples(figure).len();
            assert_eq!(samples(&figure["peers"]["twin"]).len(), count, "{scenario}: {}", figure["name"]);
            assert_eq!(count, 1, "{scenario}: {}", figure["name"]);
        }
    }
}

#[test]
fn versus_runs_the_rows_it_is_told_to() {
    let twin = format!("twin={}", local());
    let peer = ["--peer", &twin, "--peer-set", "twin.publish=http"];
    let arguments = ["versus", "--rows", "hop", "--runs", "1", "--duration", "200ms"];
    let run = Run::of("versus", &[&arguments[..], &peer].concat());
    assert_eq!(run.output.status.code(), Some(0), "{}", run.said());
    let results = run.results();
    let table = results["table"].as_array().unwrap();
    assert_eq!(table.len(), 2);
    assert_eq!(samples(&table[0]["peers"]["twin"]).len(), 1);
    assert_eq!(results["outcomes"].as_array().unwrap().len(), 1);
    let run = Run::of("versus-unknown", &["versus", "--rows", "hops"]);
    assert_eq!(run.output.status.code(), Some(1));
    assert!(run.said().contains("known are single, burst"), "{}", run.said());
}

#[test]
fn a_peer_that_is_told_wrongly_is_a_mistake_of_usage() {
    for wrong in [["--peer", "twin"], ["--peer", "server=x"], ["--peer-set", "twin=x"]] {
        let run = Run::of("usage", &[&["fanout"], &wrong[..]].concat());
        assert_eq!(run.output.status.code(), Some(2), "{wrong:?}: {}", run.said());
    }
    let run = Run::of("usage", &["ingest", "--peer", "twin=x"]);
    assert_eq!(run.output.status.code(), Some(1));
    assert!(run.said().contains("leave out --peer"), "{}", run.said());
}
