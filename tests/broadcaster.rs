//! The preset `broadcaster`, as its users run it: publisher, many clients that measure, the report, the scripts.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::client::Client;
use crate::support::deadline::{LONG, SOON, eventually};
use crate::support::http;
use crate::support::kernel::{Confinement, confine};
use crate::support::program::{self, Finished, Running};
use crate::support::redis::Redis;
use crate::support::scratch::Scratch;
use crate::support::server::Server;
use crate::support::tool::{ClosedPort, free_port};

#[test]
fn published_events_arrive_with_the_systems_schema_on_its_channel() {
    let redis = Redis::start();
    let server = Server::builder().preset("broadcaster").redis(&redis).start();
    let mut client = Client::connect(server.address(), "/ws");
    let finished = publish(&redis, &["--type", "SERVER_DOWN", "--source", "server-a", "--count", "10"]);
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    assert_eq!(finished.stdout, "{\"channel\":\"events.critical\",\"receivers\":1}\n".repeat(10));
    let mut ids = Vec::new();
    for sequence in 1..=10 {
        let event: Value = serde_json::from_str(&client.next_text()).expect("an event is JSON");
        assert_eq!(event["event_type"], "SERVER_DOWN");
        assert_eq!(event["source"], "server-a");
        assert_eq!(event["sequence"], sequence);
        assert!(event["published_at_ms"].as_u64().is_some_and(|ms| ms > 1_600_000_000_000), "{event}");
        assert_eq!(event.as_object().map(serde_json::Map::len), Some(5), "{event}");
        ids.push(event["event_id"].as_str().expect("an id is text").to_owned());
    }
    assert!(ids.iter().all(|id| id.len() == 36 && id.as_bytes()[14] == b'4'), "{ids:?}");
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 10, "every event has an id of its own");
}

#[test]
fn the_stars_demonstration_is_five_events_on_the_channel_of_its_variable() {
    let redis = Redis::start();
    let server = Server::builder().preset("star").redis(&redis).env("CHANNEL_NAME", "events.mine").start();
    let mut client = Client::connect(server.address(), "/ws");
    let mut command = program::command();
    command.args(["publish", "--demo", "--interval", "10ms"]);
    command
        .env("REDIS_ADDR", redis.address().to_string())
        .env("CHANNEL_NAME", "events.mine")
        .env("SERVER_ID", "server-7");
    let finished = program::finish(command, Confinement::default());
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    assert_eq!(finished.stdout, "{\"channel\":\"events.mine\",\"receivers\":1}\n".repeat(5));
    for counter in 1..=5 {
        let event: Value = serde_json::from_str(&client.next_text()).expect("an event is JSON");
        assert_eq!(
            (&event["type"], &event["source"]),
            (&"demo.message".into(), &"server-7".into()),
            "{event}"
        );
        assert_eq!(event["payload"]["counter"], counter);
        let timestamp = event["timestamp"].as_str().expect("a timestamp is text");
        assert!(
            timestamp.starts_with("20") && timestamp.contains('T') && timestamp.ends_with('Z'),
            "{timestamp}"
        );
    }
}

#[test]
fn fifty_clients_get_fifty_events_each_and_the_report_says_so() {
    let redis = Redis::start();
    let server = Server::builder().preset("broadcaster").redis(&redis).start();
    let mut clients = Clients::start(&server, 50, &["--events", "50"]);
    let scratch = clients.scratch.dir().to_owned();
    let finished = publish(&redis, &["--type", "T", "--source", "s", "--count", "50", "--rate", "500"]);
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    assert_eq!(clients.end(), (Some(0), String::new()));
    let report = report(&["--strict", scratch.to_str().expect("UTF-8")]);
    assert_eq!(report.code(), Some(0), "{report:?}");
    let table = "Clients: 50\nEvents: 50\nExpected deliveries: 2500\nReceived deliveries: 2500\nDropped deliveries: 0\n\n\
                 Latency (ms):\np50: ";
    assert!(report.stdout.starts_with(table), "{report:?}");
    let lines: Vec<&str> = report.stdout.lines().collect();
    let figures: Vec<f64> = lines[7..].iter().map(|line| line[5..].parse().expect("a number")).collect();
    assert!(figures.is_sorted() && figures.len() == 4 && figures[0] > 0.0, "{report:?}");
}

#[test]
fn a_killed_client_is_told_as_dropped_deliveries_and_an_incomplete_log() {
    let redis = Redis::start();
    let server = Server::builder().preset("broadcaster").redis(&redis).start();
    let scratch = Scratch::new();
    let mut four = Clients::start_in(&server, 4, scratch.path("logs"), Scratch::new(), &["--events", "30"]);
    let mut one = Clients::start_in(&server, 1, scratch.path("logs"), Scratch::new(), &[]);
    publish(&redis, &["--type", "T", "--count", "10"]);
    eventually(SOON, "the one has written its ten deliveries", || {
        one.log().matches("\"client\":0,\"event_id\"").count() == 10
    });
    one.child.kill();
    publish(&redis, &["--type", "T", "--count", "20"]);
    assert_eq!(four.end().0, Some(0));
    let report = report(&["--json", scratch.path("logs").to_str().expect("UTF-8")]);
    let table: Value =
        serde_json::from_str(&report.stdout).unwrap_or_else(|error| panic!("{error}: {report:?}"));
    for (name, value) in
        [("clients", 5), ("events", 30), ("expected", 150), ("received", 130), ("dropped", 20)]
    {
        assert_eq!(table[name], value, "{name}: {table}");
    }
    let notes = table["notes"].as_array().expect("notes are a list");
    assert!(
        notes.len() == 1 && notes[0].as_str().is_some_and(|note| note.contains("has no last line")),
        "{table}"
    );
}

#[test]
fn clients_that_the_server_closes_are_counted_and_named() {
    let redis = Redis::start();
    let server = Server::builder().preset("broadcaster").redis(&redis).start();
    let mut clients = Clients::start(&server, 3, &[]);
    // Nothing is waited for after the last event.
    assert_eq!(publish(&redis, &["--type", "T", "--interval", "1h"]).code(), Some(0));
    let scratch = clients.scratch.dir().to_owned();
    server.signal(Signal::TERM);
    let (code, words) = clients.end();
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("3 clients lost: closed by the server with 1001 going_away"), "{words}");
    let report = report(&["--strict", scratch.to_str().expect("UTF-8")]);
    assert_eq!(report.code(), Some(1));
    assert!(report.stdout.contains("Received deliveries: 3\n"), "{report:?}");
    assert!(report.stdout.contains("Lost clients: 3\n"), "{report:?}");
}

#[test]
fn clients_end_when_idle_and_a_run_that_gets_too_little_fails() {
    let redis = Redis::start();
    let server = Server::builder().preset("broadcaster").redis(&redis).start();
    let mut clients = Clients::start(&server, 2, &["--events", "5", "--idle", "300ms"]);
    publish(&redis, &["--type", "T", "--count", "4"]);
    let (code, words) = clients.end();
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("0 of 2 clients received the 5 events due"), "{words}");
    let report = report(&[clients.scratch.dir().to_str().expect("UTF-8")]);
    assert!(
        report
            .stdout
            .contains("Events: 5\nExpected deliveries: 10\nReceived deliveries: 8\nDropped deliveries: 2\n")
    );
}

#[test]
fn clients_without_a_server_or_with_one_that_refuses_say_why() {
    let scratch = Scratch::new();
    let logs = scratch.path("logs");
    let logs = logs.to_str().expect("UTF-8");
    let closed = ClosedPort::new();
    let nobody = program::run(&["clients", "3", "--url", &closed.address().to_string(), "--logs", logs]);
    assert_eq!(nobody.code(), Some(69), "{nobody:?}");
    assert!(nobody.stderr.contains("corecast serve"), "{nobody:?}");
    let server = Server::builder().start();
    let url = format!("ws://{}/ws", server.address());
    let refused = program::run(&["clients", "3", "--url", &url, "--logs", logs]);
    assert_eq!(refused.code(), Some(1), "{refused:?}");
    assert!(refused.stderr.contains("answered 400 Bad Request"), "{refused:?}");
    let mut many = program::command();
    many.args(["clients", "100", "--url", &url, "--logs", logs]);
    let confinement = Confinement { descriptors_max: Some(100), ..Confinement::default() };
    let many = program::finish(many, confinement);
    assert_eq!(many.code(), Some(77), "{many:?}");
    assert!(many.stderr.contains("100 clients need 164 descriptors, the limit is 100"), "{many:?}");
    assert_eq!(program::run(&["clients", "3", "--room", "a"]).code(), Some(2));
    assert_eq!(program::run(&["clients", "0"]).code(), Some(2));
    let report = program::run(&["report", scratch.path("nothing").to_str().expect("UTF-8")]);
    assert_eq!(report.code(), Some(69), "{report:?}");
    let empty = scratch.write("empty.jsonl", "");
    let report = program::run(&["report", empty.to_str().expect("UTF-8")]);
    assert_eq!((report.code(), report.stdout.as_str()), (Some(69), ""), "{report:?}");
}

#[test]
fn clients_that_a_full_server_has_not_let_in_are_none() {
    // Of several, each may take one more than the bound while another does.
    let server = Server::builder().shards(1).admin().arg("--connections-max").arg("5").start();
    let scratch = Scratch::new();
    let [stdout, stderr] = ["stdout", "stderr"].map(|name| scratch.path(name));
    let file = |path: &Path| File::create(path).expect("a scratch directory takes files");
    let mut command = program::command();
    command.args(["clients", "12", "--room", "a", "--url", &format!("ws://{}/ws", server.address())]);
    command.arg("--logs").arg(scratch.path("logs")).stdout(file(&stdout)).stderr(file(&stderr));
    confine(&mut command, Confinement::default());
    let mut clients = Running(command.spawn().expect("the binary starts"));
    server.wait_metrics("five are in", |page| page.sum("corecast_handshakes_total") == 5.0);
    signal(clients.pid(), Signal::INT);
    assert_eq!(clients.wait(LONG, "the clients end").code(), Some(1));
    let said = [&stdout, &stderr].map(|path| program::text(path));
    assert!(said[0].starts_with("5 of 12 clients received 0 deliveries and ended by a signal"), "{said:?}");
    assert!(said[1].contains("7 clients were not connected yet"), "{said:?}");
    let report = report(&[scratch.path("logs").to_str().expect("UTF-8")]);
    assert!(
        report.stdout.contains("7 clients of run") && report.stdout.contains("not connected"),
        "{report:?}"
    );
}

#[test]
fn subscribe_and_publish_find_every_preset_by_its_variables() {
    let redis = Redis::start();
    for (preset, room) in
        [("broadcaster", None), ("star", None), ("workflow", Some("alice")), ("event-fanout", Some("lobby"))]
    {
        let server = Server::builder().preset(preset).redis(&redis).start();
        let scratch = Scratch::new();
        let [stdout, stderr] = ["stdout", "stderr"].map(|name| scratch.path(name));
        let file = |path: &Path| File::create(path).expect("a scratch directory takes files");
        let args = ["--preset", preset].into_iter().chain(room.into_iter().flat_map(|room| ["--room", room]));
        let args: Vec<&str> = args.collect();
        let mut command = program::command();
        command.arg("subscribe").args(&args).args(["--count", "1"]);
        command.env("PORT", server.address().port().to_string()).stdout(file(&stdout)).stderr(file(&stderr));
        confine(&mut command, Confinement::default());
        let mut subscriber = Running(command.spawn().expect("the binary starts"));
        eventually(SOON, "it has joined", || program::text(&stderr).contains("joined"));
        let published = publish(&redis, &[&args[..], &["hello"]].concat());
        assert_eq!(published.code(), Some(0), "{preset}: {published:?}");
        assert_eq!(subscriber.wait(SOON, "it has its message").code(), Some(0), "{preset}");
        assert_eq!(program::text(&stdout), "hello\n", "{preset}");
    }
}

#[test]
fn the_load_test_script_brings_its_own_server_and_takes_it_away() {
    let redis = Redis::start();
    let scratch = Scratch::new();
    let (port, finished) = on_a_free_port(|port| {
        let mut command = script("run_loadtest.sh", &redis);
        command
            .args(["20", "10"])
            .env("PORT", port.to_string())
            .env("RATE", "200")
            .env("LOGS", scratch.dir());
        let finished = program::finish(command, Confinement::default());
        (!finished.stderr.contains("the server did not start")).then_some(finished)
    });
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    let table = "Clients: 20\nEvents: 10\nExpected deliveries: 200\nReceived deliveries: 200\nDropped deliveries: 0\n";
    assert!(finished.stdout.contains(table), "{finished:?}");
    assert!(finished.stdout.contains("server: started at port"), "{finished:?}");
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err(), "the server is gone");
    assert!(!scratch.path("clients.pid").exists(), "the clients are gone");
}

#[test]
fn clients_that_a_script_started_are_stopped_by_the_other() {
    let redis = Redis::start();
    let server = Server::builder().preset("broadcaster").redis(&redis).start();
    let scratch = Scratch::new();
    let with = |name: &str| {
        let mut command = script(name, &redis);
        command.env("LOGS", scratch.dir()).env("URL", format!("ws://{}/ws", server.address()));
        command
    };
    let mut start = with("run_clients.sh");
    start.arg("7");
    // The clients must outlive the script that starts them, so only the script itself dies with the test.
    let started = program::finish(start, Confinement::default());
    assert_eq!(started.code(), Some(0), "{started:?}");
    assert!(started.stdout.starts_with("7 clients connected to ws://"), "{started:?}");
    let pid: i32 = program::text(&scratch.path("clients.pid")).trim().parse().expect("a pid");
    let _leftover = Leftover(pid);
    let again = program::finish(with("run_clients.sh"), Confinement::default());
    assert_eq!(again.code(), Some(1), "{again:?}");
    assert!(again.stderr.contains("stop_clients.sh"), "{again:?}");
    publish(&redis, &["--type", "T", "--count", "2"]);
    eventually(SOON, "all have both", || {
        let log = fs::read_dir(scratch.dir()).expect("the folder is there").flatten();
        let log =
            log.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|end| end == "jsonl"));
        log.is_some_and(|log| program::text(&log).matches("latency_ms").count() == 14)
    });
    let stopped = program::finish(with("stop_clients.sh"), Confinement::default());
    assert_eq!(stopped.code(), Some(0), "{stopped:?}");
    assert!(stopped.stdout.contains("7 clients received 14 deliveries"), "{stopped:?}");
    let nobody = program::finish(with("stop_clients.sh"), Confinement::default());
    assert_eq!(nobody.code(), Some(1), "{nobody:?}");
}

#[test]
fn a_file_that_is_no_log_is_not_reported_on() {
    let finished = report(&["/etc/passwd"]);
    assert_eq!(finished.code(), Some(69), "{finished:?}");
    assert!(finished.stderr.contains("/etc/passwd is no log of `corecast clients`"), "{finished:?}");
}

#[test]
fn the_start_script_serves_the_workflow_where_its_variables_say() {
    let redis = Redis::start();
    let scratch = Scratch::new();
    let (port, mut running) = on_a_free_port(|port| {
        let mut command = script("start.sh", &redis);
        let log = File::create(scratch.path("log")).expect("a scratch directory takes files");
        command
            .env("PORT", port.to_string())
            .stdout(log.try_clone().expect("a descriptor is left"))
            .stderr(log);
        confine(&mut command, Confinement::default());
        let mut running = Running(command.spawn().expect("bash is there"));
        eventually(SOON, "it hears Redis or has ended", || {
            !running.is_running() || program::text(&scratch.path("log")).contains("redis is up")
        });
        running.is_running().then_some(running)
    });
    let address = (Ipv4Addr::LOCALHOST, port).into();
    assert_eq!(http::request(address, "GET", "/health", &[]).expect("an answer").status, 200);
    let mut client = Client::connect(address, "/ws?username=test-user");
    redis.publish("workflow:events:test-user", r#"{"type":"test","message":"hello"}"#);
    assert_eq!(client.next_text(), r#"{"type":"test","message":"hello"}"#);
    signal(running.pid(), Signal::TERM);
    assert_eq!(running.wait(SOON, "it drains").code(), Some(0));
}

/// `corecast publish` through `redis`, by the variables of the system.
#[track_caller]
fn publish(redis: &Redis, args: &[&str]) -> Finished {
    let mut command = program::command();
    command.arg("publish").args(args);
    command.env("REDIS_HOST", "127.0.0.1").env("REDIS_PORT", redis.address().port().to_string());
    program::finish(command, Confinement::default())
}

#[track_caller]
fn report(args: &[&str]) -> Finished {
    let args: Vec<&str> = ["report"].into_iter().chain(args.iter().copied()).collect();
    program::run(&args)
}

/// A script of ours, with the binary under test on its PATH.
fn script(name: &str, redis: &Redis) -> Command {
    let binary = program::path();
    let folder = binary.parent().expect("the binary is in a folder").display().to_string();
    let path = std::env::var("PATH").expect("the environment has a PATH");
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name));
    command.env_clear().env("PATH", format!("{folder}:{path}")).env("CARGO_TARGET_DIR", "/nonexistent");
    command.env("REDIS_HOST", "127.0.0.1").env("REDIS_PORT", redis.address().port().to_string());
    command
}

/// What `start` makes of a free port, with the port.
///
/// It is free only until another process takes it, and then `start` makes nothing of it: the next one is tried.
#[track_caller]
fn on_a_free_port<T>(mut start: impl FnMut(u16) -> Option<T>) -> (u16, T) {
    let mut attempt = || {
        let port = free_port();
        start(port).map(|started| (port, started))
    };
    (0..PORTS_TRIED).find_map(|_| attempt()).expect("one of the ports stays free")
}

fn signal(pid: i32, signal: Signal) {
    let pid = Pid::from_raw(pid).expect("a child has a positive pid");
    // It may have ended by itself.
    let _ = kill_process(pid, signal);
}

/// A process that a script left behind, ended with the test.
struct Leftover(i32);

impl Drop for Leftover {
    fn drop(&mut self) {
        signal(self.0, Signal::KILL);
    }
}

/// A running `corecast clients`, all of them connected.
struct Clients {
    child: Running,
    logs: PathBuf,
    scratch: Scratch,
}

impl Clients {
    /// With logs in the scratch directory.
    #[track_caller]
    fn start(server: &Server, clients: usize, args: &[&str]) -> Self {
        let scratch = Scratch::new();
        Self::start_in(server, clients, scratch.dir().to_owned(), scratch, args)
    }

    #[track_caller]
    fn start_in(server: &Server, clients: usize, logs: PathBuf, scratch: Scratch, args: &[&str]) -> Self {
        let ready = scratch.path("ready.json");
        let stderr = File::create(scratch.path("stderr")).expect("a scratch directory takes files");
        let mut command = program::command();
        command.args(["clients", &clients.to_string(), "--url", &format!("ws://{}/ws", server.address())]);
        command.arg("--logs").arg(&logs).arg("--ready-file").arg(&ready).args(args);
        command.stdout(std::process::Stdio::null()).stderr(stderr);
        confine(&mut command, Confinement::default());
        let child = Running(command.spawn().expect("the binary starts"));
        eventually(LONG, "all clients are connected", || ready.exists());
        Self { child, logs, scratch }
    }

    /// What its log holds, of the only run or this process's.
    fn log(&self) -> String {
        let end = format!("-{}.jsonl", self.child.pid());
        let mut logs =
            fs::read_dir(&self.logs).expect("the logs' folder is there").flatten().map(|entry| entry.path());
        let log = logs.find(|path| path.to_string_lossy().ends_with(&end)).expect("each run has a log");
        program::text(&log)
    }

    /// Waits for its end: exit code and what it said on stderr.
    #[track_caller]
    fn end(&mut self) -> (Option<i32>, String) {
        let status = self.child.wait(LONG, "the clients end");
        (status.code(), program::text(&self.scratch.path("stderr")))
    }
}

const PORTS_TRIED: usize = 5;
