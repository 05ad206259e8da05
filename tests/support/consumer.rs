//! A running `corecast consume`: its log, its metrics, and events to feed it with.

use std::cell::OnceCell;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::deadline::{LONG, SOON, eventually_ok};
use super::http::{self, Response};
use super::kernel::{Confinement, confine};
use super::metrics::Metrics;
use super::program::{self, Running};
use super::redis::Redis;
use super::scratch::Scratch;

/// The channel that a consumer reads unless it is told another.
pub const CHANNEL: &str = "broadcast.events";

/// Dead when the test is.
pub struct Consumer {
    child: Running,
    /// Of its metrics, once it has said so.
    address: OnceCell<SocketAddr>,
    scratch: Scratch,
}

impl Consumer {
    /// Starts one with `args` on `redis`, and returns when it is subscribed.
    #[track_caller]
    pub fn start(redis: &Redis, args: &[&str]) -> Self {
        let consumer = Self::spawn(&[("REDIS_ADDR", &redis.address().to_string())], args);
        consumer.wait_log("it subscribes", |line| line["msg"] == "subscribed to redis");
        consumer
    }

    /// Starts one in an environment of `variables`, with a page of metrics.
    #[track_caller]
    pub fn spawn(variables: &[(&str, &str)], args: &[&str]) -> Self {
        let scratch = Scratch::new();
        let log = File::create(scratch.path("log")).expect("a scratch directory takes files");
        let mut command = program::command();
        command
            .args(["consume", "--metrics", "127.0.0.1:0", "--backoff", "10ms"])
            .args(args)
            .envs(variables.iter().copied())
            .current_dir(scratch.dir())
            .stderr(log);
        confine(&mut command, Confinement::default());
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        Self { child: Running(child), address: OnceCell::new(), scratch }
    }

    /// A file of its working directory.
    pub fn file(&self, name: &str) -> String {
        program::text(&self.scratch.path(name))
    }

    /// Makes an empty file in its working directory: the sign that some handlers here wait for.
    pub fn create(&self, name: &str) {
        self.scratch.write(name, "");
    }

    /// The path of a file of its working directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
    }

    /// Its lines so far, each of them JSON.
    #[track_caller]
    pub fn log(&self) -> Vec<Value> {
        let text = self.file("log");
        let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        whole
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in the log line {line:?}"))
            })
            .collect()
    }

    /// The first line that is `wanted`, once there is one.
    #[track_caller]
    pub fn wait_log(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually_ok(SOON, what, || {
            let log = self.log();
            log.iter().find(|line| wanted(line)).cloned().ok_or_else(|| self.file("log"))
        })
    }

    /// How many lines have this message.
    #[track_caller]
    pub fn count_log(&self, message: &str) -> usize {
        self.log().iter().filter(|line| line["msg"] == message).count()
    }

    #[track_caller]
    pub fn get(&self, target: &str) -> Response {
        let address = *self.address.get_or_init(|| self.wait_address());
        http::request(address, "GET", target, &[])
            .unwrap_or_else(|error| panic!("no answer to {target}: {error}"))
    }

    #[track_caller]
    fn wait_address(&self) -> SocketAddr {
        let line = self.wait_log("its metrics have an address", |line| line["msg"] == "metrics");
        let url = line["url"].as_str().expect("an address is text");
        let address = url.strip_prefix("http://").and_then(|rest| rest.strip_suffix("/metrics"));
        address.and_then(|text| text.parse().ok()).expect("an address of a page")
    }

    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(self.get("/metrics").text())
    }

    /// Returns once a metric's sum satisfies `wanted`.
    #[track_caller]
    pub fn wait_metric(&self, name: &str, wanted: impl Fn(f64) -> bool) {
        let family = format!("corecast_consume_{name}");
        eventually_ok(SOON, &family, || match self.metrics().sum(&family) {
            value if wanted(value) => Ok(()),
            value => Err(format!("{value}; {}", self.file("log"))),
        });
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.pid()).expect("a child has a positive pid");
        kill_process(pid, signal).expect("a child of ours may be signalled until it is waited for");
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait(LONG, "the consumer ends")
    }

    /// Asks it to end, and returns its last line.
    #[track_caller]
    pub fn drain(&mut self) -> Value {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.file("log"));
        let last = self.log().pop().expect("it said something");
        assert_eq!(last["msg"], "drained", "{}", self.file("log"));
        last
    }
}

/// An event of type `kind` whose payload holds `number`.
pub fn event(kind: &str, number: u64) -> String {
    json!({
        "id": format!("550e8400-e29b-41d4-a716-{number:012x}"), "type": kind, "source": "publisher",
        "timestamp": "2026-02-22T10:00:00Z", "payload": {"counter": number, "text": "hello"},
    })
    .to_string()
}

/// Publishes the events 1 to `count` of type `kind` back to back.
#[track_caller]
pub fn publish(redis: &Redis, kind: &str, count: u64) {
    let mut connection = redis.connect().expect("redis takes connections");
    let events = (1..=count).map(|number| event(kind, number).into_bytes());
    connection.publish_all(CHANNEL, events).expect("redis takes publications");
}
