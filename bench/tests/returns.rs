//! Connections that end and come back, and many servers on one port: the generator against the real server and a real Redis.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// What a run may take before the test gives up, on a machine that does much else.
const DEADLINE: Duration = Duration::from_secs(60);

/// The server's program: that of the whole test run, or the one that was built beside the generator.
fn corecast() -> PathBuf {
    let beside = || Path::new(env!("CARGO_BIN_EXE_corecast-bench")).with_file_name("corecast");
    let path = std::env::var_os("CORECAST_TEST_BINARY").map_or_else(beside, PathBuf::from);
    assert!(path.exists(), "{} does not exist: cargo build -p corecast", path.display());
    path
}

/// A generator under way.
struct Run {
    child: Child,
    out: PathBuf,
}

impl Run {
    fn start(name: &str, arguments: &[&str]) -> Self {
        Self::start_by("", name, arguments)
    }

    /// The server is started by `wrapper`.
    fn start_by(wrapper: &str, name: &str, arguments: &[&str]) -> Self {
        let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        if out.exists() {
            std::fs::remove_dir_all(&out).unwrap();
        }
        let server = format!(
            "{wrapper} {} serve --listen {{listen}} --ports-file {{ports_file}} --shards {{shards}} --cores {{cores}} \
             --redis {{redis}} --config {{config}}",
            corecast().display()
        );
        let child = Command::new(env!("CARGO_BIN_EXE_corecast-bench"))
            .args(arguments)
            .args([
                "--server",
                &server,
                "--runs",
                "1",
                "--receivers",
                "poll:1ms",
                "--receiver-processes",
                "2",
            ])
            .arg("--out")
            .arg(&out)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, out }
    }

    /// Reads what it says until a line holds `text`, and then goes on reading so that it never waits for us.
    fn wait_for_line(&mut self, text: &str) {
        let mut lines = BufReader::new(self.child.stderr.take().unwrap()).lines();
        let found = lines.by_ref().map_while(Result::ok).find(|line| line.contains(text));
        assert!(found.is_some(), "it ended without a line with {text:?}");
        std::thread::spawn(move || lines.for_each(drop));
    }

    /// What a terminal's Ctrl-C does. Returns when the process has taken notice, so that a second one is not the same.
    fn interrupt(&self) {
        let pid = self.child.id();
        let killed = Command::new("kill").args(["-INT", &pid.to_string()]).status().unwrap();
        assert!(killed.success());
        let is_pending = || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let mut masks = status.lines().filter_map(|line| line.strip_prefix("ShdPnd:").map(str::trim));
            // Nobody takes notice any more where nobody lives.
            !status.contains("State:\tZ") && masks.any(|mask| !mask.trim_start_matches('0').is_empty())
        };
        while is_pending() {
            std::thread::yield_now();
        }
    }

    /// Its exit code and raw results.
    fn end(mut self) -> (i32, Value) {
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                self.child.kill().unwrap();
                panic!("the generator did not end within {DEADLINE:?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let file = std::fs::read_dir(&self.out).ok().and_then(|mut files| files.next());
        let path = file.unwrap_or_else(|| panic!("no results, {status}")).unwrap().path();
        (status.code().unwrap(), serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
    }
}

fn details(results: &Value) -> &Value {
    &results["outcomes"][0]["details"][0]
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// What was owed came, or was missed by being away, and nothing else.
fn assert_balanced(account: &Value) {
    assert_eq!(number(&account["lost"]), 0, "{account}");
    assert_eq!(
        number(&account["delivered"]) + number(&account["absent"]),
        number(&account["owed"]),
        "{account}"
    );
    assert!(number(&account["delivered"]) > 0, "{account}");
}

fn notes(results: &Value) -> String {
    results["outcomes"][0]["notes"].to_string()
}

#[test]
fn all_who_are_cut_by_their_owner_come_back_and_nothing_is_lost() {
    let run = Run::start("storm-clients", &["storm", "--clients", "300", "--rooms", "3", "--rate", "60"]);
    let (code, results) = run.end();
    assert_eq!(code, 0, "{}", results["outcomes"][0]["flaws"]);
    let found = details(&results);
    for field in ["ended", "back", "heard", "open_in_the_end"] {
        assert_eq!(number(&found[field]), 300, "{field}");
    }
    assert_balanced(&found["account"]);
    assert_eq!(number(&found["handshake"]["count"]), 300);
    assert_eq!(number(&found["first_delivery_after_101"]["count"]), 300);
    assert!(found["netstat"]["listen_drops"].is_u64());
    let cores = found["used"]["cores"].as_array().unwrap();
    assert!(!cores.is_empty() && cores.iter().all(|core| core["softirq_seconds"].is_f64()));
}

#[test]
fn all_whose_server_is_killed_come_back_to_the_next_one() {
    let arguments = ["storm", "--clients", "200", "--cut", "server", "--pace", "300ms", "--rate", "50"];
    let (code, results) = Run::start("storm-server", &arguments).end();
    assert_eq!(code, 0, "{}", results["outcomes"][0]["flaws"]);
    let found = details(&results);
    assert_eq!((number(&found["ended"]), number(&found["open_in_the_end"])), (200, 200));
    assert_balanced(&found["account"]);
    assert_eq!(found["account"]["counts"]["closes"], serde_json::json!({"none": 200}));
    let last_back = found["last_back_seconds"].as_f64().unwrap();
    assert!(last_back >= 0.29, "199 of 200 wait at least so long at this pace: {last_back}");
}

#[test]
fn a_storm_that_is_interrupted_tells_who_was_back() {
    let mut run = Run::start("storm-interrupted", &["storm", "--clients", "100", "--pace", "10m"]);
    run.wait_for_line("clients are back");
    run.interrupt();
    let (code, results) = run.end();
    assert_eq!((code, &results["interrupted"]), (130, &true.into()));
    let found = details(&results);
    assert_eq!(number(&found["ended"]), 100);
    assert!(number(&found["back"]) < 100);
    assert_balanced(&found["account"]);
    assert!(notes(&results).contains("interrupted in run 1"), "{}", notes(&results));
}

const SOAK: [&str; 19] = [
    "soak",
    "--clients",
    "60",
    "--rooms",
    "3",
    "--rate",
    "90",
    "--burst",
    "60",
    "--burst-every",
    "500ms",
    "--leaving",
    "20",
    "--slow-every",
    "10",
    "--slow-for",
    "300ms",
    "--interval",
    "400ms",
];

#[test]
fn a_soak_accounts_for_every_delivery_to_who_leaves_returns_and_reads_slowly() {
    let (code, results) = Run::start("soak", &[&SOAK[..], &["--for", "2s"]].concat()).end();
    assert_eq!(code, 0, "{}", results["outcomes"][0]["flaws"]);
    let found = details(&results);
    assert_balanced(&found["account"]);
    // The step of the first second is at least one; all who left came back.
    assert!(number(&found["ended"]) >= 20);
    assert_eq!(found["ended"], found["back"]);
    let samples = found["samples"].as_array().unwrap();
    assert!(samples.len() >= 3, "{} samples in 2 s", samples.len());
    assert!(samples.iter().all(|sample| number(&sample["anonymous_bytes"]) > 0));
    assert!(found["growth"]["grown_bytes"].is_f64());
}

#[test]
fn a_soak_that_is_interrupted_still_closes_its_account() {
    let mut run = Run::start("soak-interrupted", &[&SOAK[..], &["--for", "10m"]].concat());
    run.wait_for_line("descriptors");
    run.interrupt();
    let (code, results) = run.end();
    assert_eq!((code, &results["interrupted"]), (130, &true.into()));
    assert_balanced(&details(&results)["account"]);
    assert_eq!(results["outcomes"][0]["flaws"], serde_json::json!([]));
}

const SCALE: [&str; 9] = ["scale", "--servers", "2", "--clients", "200", "--messages", "5", "--rate", "10"];

#[test]
fn two_servers_on_one_port_deliver_every_message_to_all_clients() {
    let (code, results) = Run::start("scale", &[&SCALE[..], &["--rooms", "1,4"]].concat()).end();
    assert_eq!(code, 0, "{}", results["outcomes"][0]["flaws"]);
    let cases = results["outcomes"][0]["details"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    for case in cases {
        let by_server: Vec<u64> =
            case["connections_by_server"].as_array().unwrap().iter().map(number).collect();
        assert_eq!((by_server.len(), by_server.iter().sum::<u64>()), (2, 200));
        assert!(by_server.iter().all(|connections| *connections > 0), "{by_server:?}");
    }
    for phase in results["outcomes"][0]["phases"].as_array().unwrap() {
        assert_eq!(number(&phase["counts"]["delivered"]), 5 * 200);
        assert_eq!((number(&phase["missing"]), number(&phase["counts"]["duplicates"])), (0, 0));
    }
}

#[test]
fn a_scale_that_is_interrupted_while_it_connects_tells_how_far_it_was() {
    let mut run = Run::start("scale-interrupted", &[&SCALE[..], &["--pace", "1"]].concat());
    run.wait_for_line("of 200 connections are open");
    run.interrupt();
    let (code, results) = run.end();
    assert_eq!((code, &results["interrupted"]), (130, &true.into()));
    let open = number(&details(&results)["connections"]);
    assert!((1..200).contains(&open), "{open}");
    assert!(notes(&results).contains("of 200 were open"), "{}", notes(&results));
    assert_eq!(results["outcomes"][0]["flaws"], serde_json::json!([]));
}

#[test]
fn handshakes_that_are_interrupted_leave_the_record_of_those_that_were_done() {
    let mut run = Run::start("churn-interrupted", &["churn", "--handshakes", "100000000"]);
    // Not those of the warm-up, which ask for fewer.
    run.wait_for_line("100000000 connections come and go");
    run.interrupt();
    let (code, results) = run.end();
    assert_eq!((code, &results["interrupted"]), (130, &true.into()));
    assert!(number(&details(&results)["done"]) > 0);
    assert_eq!(number(&details(&results)["failed"]), 0);
}

/// Whether a process that is no zombie has this id.
fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with('Z'))
}

#[test]
fn a_second_interrupt_leaves_no_process_and_no_folder() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("second-interrupt");
    std::fs::create_dir_all(&folder).unwrap();
    let (wrapper, pid_file) = (folder.join("with-child.sh"), folder.join("pid"));
    // A server with a child of its own, as nginx has: the end of its parent is no news to it.
    let script = format!("sleep 600 & echo $! >{}; exec \"$@\"\n", pid_file.display());
    std::fs::write(&wrapper, script).unwrap();
    let arguments = [&SOAK[..], &["--for", "10m"]].concat();
    let mut run = Run::start_by(&format!("sh {}", wrapper.display()), "second-interrupt/out", &arguments);
    run.wait_for_line("descriptors");
    let child = std::fs::read_to_string(&pid_file).unwrap().trim().to_owned();
    let scratch = std::env::temp_dir().join(format!("corecast-bench-{}", run.child.id()));
    assert!(is_running(&child) && scratch.exists());
    run.interrupt();
    run.interrupt();
    assert_eq!(run.child.wait().unwrap().code(), Some(130));
    assert!(!run.out.exists(), "there was no time for results");
    assert!(!scratch.exists(), "{}", scratch.display());
    let deadline = Instant::now() + DEADLINE;
    while is_running(&child) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let was_left = is_running(&child);
    if was_left {
        Command::new("kill").arg(&child).status().unwrap();
    }
    assert!(!was_left, "the server's child {child} was left");
}
