//! A primary, its replica and three sentinels of one test's own, on 127.0.0.1 and free ports.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use redis_protocol::resp2::types::OwnedFrame;

use super::deadline::{LONG, eventually, eventually_ok};
use super::redis::{Connection, Redis, text};
use super::tool::Tool;

/// Watched under the name [`Watched::NAME`]; a failover takes about a second.
pub struct Watched {
    pub primary: Redis,
    pub replica: Redis,
    sentinels: Vec<Tool>,
    password: Option<&'static str>,
}

impl Watched {
    pub const NAME: &'static str = "orders";

    /// Returns when the replica is in step and each sentinel knows it and the two others.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// With sentinels that want this password.
    #[track_caller]
    pub fn start_with(password: Option<&'static str>) -> Self {
        let primary = Redis::start_with(&["--repl-diskless-sync-delay", "0"]);
        let port = primary.address().port().to_string();
        let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &port]);
        let sentinels = (0..3).map(|_| sentinel(primary.address(), password)).collect();
        let watched = Self { primary, replica, sentinels, password };
        for index in 0..3 {
            eventually(LONG, "each sentinel knows the replica and the others", || {
                watched.field(index, "num-slaves") == "1"
                    && watched.field(index, "num-other-sentinels") == "2"
            });
        }
        eventually(LONG, "the replica is in step", || {
            text(&watched.replica.cli(&["INFO", "replication"])).contains("master_link_status:up")
        });
        watched
    }

    /// What the server is given as `--redis`.
    pub fn url(&self) -> String {
        let sentinels: Vec<String> = self.sentinels.iter().map(|tool| tool.address().to_string()).collect();
        let password = self.password.map(|password| format!("?sentinel_password={password}"));
        format!("redis+sentinel://{}/{}{}", sentinels.join(","), Self::NAME, password.unwrap_or_default())
    }

    /// Who is the primary in the eyes of the sentinel `index`.
    #[track_caller]
    pub fn primary_of(&self, index: usize) -> u16 {
        let command: [&[u8]; 3] = [b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", Self::NAME.as_bytes()];
        match self.ask(index, &command) {
            OwnedFrame::Array(parts) => parts.last().map(text).and_then(|port| port.parse().ok()),
            _ => None,
        }
        .expect("a sentinel says who the primary is")
    }

    /// Waits until a sentinel says that the replica has been promoted.
    #[track_caller]
    pub fn wait_promoted(&self) {
        let promoted = self.replica.address().port();
        eventually(LONG, "a sentinel promotes the replica", || {
            (0..3).any(|index| self.primary_of(index) == promoted)
        });
    }

    fn field(&self, index: usize, name: &str) -> String {
        match self.ask(index, &[b"SENTINEL", b"MASTER", Self::NAME.as_bytes()]) {
            OwnedFrame::Array(parts) => {
                let mut texts = parts.iter().map(text).skip_while(|part| part != name);
                texts.nth(1).unwrap_or_default()
            }
            _ => String::new(),
        }
    }

    #[track_caller]
    fn ask(&self, index: usize, command: &[&[u8]]) -> OwnedFrame {
        let address = self.sentinels[index].address();
        eventually_ok(LONG, "a sentinel answers", || {
            Connection::open(address, self.password)?.command(command)
        })
    }
}

#[track_caller]
fn sentinel(primary: SocketAddr, password: Option<&str>) -> Tool {
    assert_eq!(primary.ip(), Ipv4Addr::LOCALHOST);
    Tool::start("install redis-server", |port, scratch| {
        let (name, monitored) = (Watched::NAME, primary.port());
        let password =
            password.map(|password| format!("requirepass {password}\nsentinel sentinel-pass {password}\n"));
        let config = format!(
            "bind 127.0.0.1\nport {port}\nsentinel monitor {name} 127.0.0.1 {monitored} 2\n\
             sentinel down-after-milliseconds {name} 500\nsentinel failover-timeout {name} 5000\n{}",
            password.unwrap_or_default()
        );
        let mut command = Command::new(super::redis::program());
        // It writes what it learns into its configuration.
        command.arg(scratch.write("sentinel.conf", &config)).arg("--sentinel").current_dir(scratch.dir());
        command
    })
}
