//! clients/javascript in a process of its own, in Node or in a page of Chromium: told what to do, and asked what happened.

use std::fs::File;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use super::deadline::{LONG, eventually_ok};
use super::kernel::{Confinement, confine};
use super::payload::{self, Ledger, Tally};
use super::program::{self, Running};
use super::scratch::Scratch;
use super::tool;

/// Where the client runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    Node,
    /// The one that `CORECAST_TEST_CHROMIUM` names, else `chromium` on PATH.
    Chromium,
}

/// Gone when the test is.
pub struct Peer {
    child: Running,
    scratch: Scratch,
}

impl Peer {
    /// Starts a client of `plan`: its URL, options and rooms, as clients/javascript/test/support/play.js reads them.
    #[track_caller]
    pub fn start(runtime: Runtime, plan: &Value) -> Self {
        let scratch = Scratch::new();
        let mut command = tool::command("node");
        let programs = tool::repository("clients/javascript/test");
        match runtime {
            Runtime::Node => command.arg(programs.join("peer.js")),
            Runtime::Chromium => {
                let chromium =
                    std::env::var_os("CORECAST_TEST_CHROMIUM").unwrap_or_else(|| "chromium".into());
                command.arg(programs.join("page.js")).arg(which(&chromium))
            }
        };
        command.arg(plan.to_string()).stdin(Stdio::piped());
        let file = |name: &str| File::create(scratch.path(name)).expect("a scratch directory takes files");
        command.stdout(file("said")).stderr(file("log"));
        confine(&mut command, Confinement::default());
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("cannot run node: {error}; install Node 20 or later, as `make test` does")
        });
        Self { child: Running(child), scratch }
    }

    /// Tells it to do something.
    #[track_caller]
    pub fn tell(&mut self, command: &Value) {
        let stdin = self.child.0.stdin.as_mut().expect("its stdin is a pipe");
        writeln!(stdin, "{command}").expect("it reads what it is told");
    }

    /// All that it said, in order.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        let said = program::text(&self.scratch.path("said"));
        let whole = said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        whole.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line:?}"))).collect()
    }

    /// Those of one kind.
    #[track_caller]
    pub fn events_of(&self, kind: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["event"] == kind).collect()
    }

    /// Waits until what it said is `wanted`, and returns that.
    ///
    /// # Panics
    /// When it doesn't come to that, or the client ended.
    #[track_caller]
    pub fn wait(&mut self, what: &str, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        eventually_ok(LONG, what, || {
            let events = self.events();
            if wanted(&events) {
                return Ok(events);
            }
            assert!(self.child.is_running(), "the client ended before {what}: {}", self.log());
            Err(format!("{} events, the last: {:?}", events.len(), events.last()))
        })
    }

    /// Waits for the `count`th event of a kind, and returns it.
    #[track_caller]
    pub fn wait_for(&mut self, kind: &str, count: usize) -> Value {
        let of_kind = |events: &[Value]| events.iter().filter(|event| event["event"] == kind).count();
        self.wait(&format!("it says {count} times {kind}"), |events| of_kind(events) >= count);
        self.events_of(kind).swap_remove(count - 1)
    }

    /// Waits for the change to `state` that is the `count`th.
    #[track_caller]
    pub fn wait_state(&mut self, state: &str, count: usize) {
        let in_state = |events: &[Value]| {
            events.iter().filter(|event| event["event"] == "state" && event["state"] == state).count()
        };
        self.wait(&format!("it is {count} times {state}"), |events| in_state(events) >= count);
    }

    /// What it got of the numbered payloads of `publisher`.
    #[track_caller]
    pub fn tally(&self, publisher: char) -> Tally {
        let mut ledger = Ledger::default();
        for event in self.events_of("publication") {
            let data = event["data"].as_str().unwrap_or_default();
            if let Some((publisher, sequence)) = payload::parse(data.as_bytes()) {
                ledger.book(publisher, sequence);
            }
        }
        ledger.of(publisher)
    }

    fn log(&self) -> String {
        program::text(&self.scratch.path("log"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what the client said ---\n{}", program::text(&self.scratch.path("said")));
            eprintln!("--- its log ---\n{}", self.log());
        }
        // The end of stdin ends it, and so the browser; killed, it would leave the browser's folder behind.
        drop(self.child.0.stdin.take());
        let end = std::time::Instant::now() + GOODBYE;
        while self.child.is_running() && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The program of this name on PATH, as playwright wants it.
fn which(name: &std::ffi::OsStr) -> std::path::PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| {
        panic!("no {name:?} on PATH: install Debian's chromium, as `scripts/test.sh browser` does")
    })
}

/// How long a browser may take to end.
const GOODBYE: Duration = Duration::from_secs(10);
