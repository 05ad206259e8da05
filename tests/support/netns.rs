//! A network namespace of one test's own. It takes root, and ip-netns(8).

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use super::tool;

/// Gone when the test is.
pub struct Netns(String);

impl Netns {
    /// With its loopback interface up. `None`, with a word, for a user who is not root: CI runs these stories as root.
    #[track_caller]
    pub fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: a network namespace takes root");
            return None;
        }
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let netns = Self(format!("corecast-{}-{number}", std::process::id()));
        netns.add();
        Some(netns)
    }

    #[track_caller]
    fn add(&self) {
        ip(&["netns", "add", &self.0]);
        ip(&["-n", &self.0, "link", "set", "lo", "up"]);
    }

    /// Another one under the same name.
    #[track_caller]
    pub fn renew(&self) {
        self.delete();
        self.add();
    }

    /// Joins it to `other` by a cable: `eth0` on both sides, with these addresses of one network.
    #[track_caller]
    pub fn link(&self, address: &str, other: &Self, other_address: &str) {
        let (here, there) = (&self.0, &other.0);
        let kind = ["type", "veth", "peer", "name", "eth0", "netns", there];
        ip(&[&["-n", here, "link", "add", "eth0"][..], &kind].concat());
        for (name, address) in [(here, address), (there, other_address)] {
            ip(&["-n", name, "address", "add", &format!("{address}/24"), "dev", "eth0"]);
            ip(&["-n", name, "link", "set", "eth0", "up"]);
        }
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    /// A command that runs inside.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = tool::command("ip");
        command.args(["netns", "exec", &self.0]).args(words);
        command
    }

    /// What such a command prints.
    #[track_caller]
    pub fn output(&self, words: &[&str]) -> String {
        output(self.command(words))
    }

    /// Takes it away before the test ends.
    #[track_caller]
    pub fn delete(&self) {
        ip(&["netns", "del", &self.0]);
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // It may be gone.
        let _ = tool::command("ip").args(["netns", "del", &self.0]).output();
    }
}

#[track_caller]
fn ip(args: &[&str]) {
    let mut command = tool::command("ip");
    command.args(args);
    output(command);
}

#[track_caller]
fn output(mut command: Command) -> String {
    let output =
        command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}; install iproute2"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}, which takes root: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
