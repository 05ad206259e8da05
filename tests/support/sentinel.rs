//! A primary, its replica and three sentinels of one test's own, on 127.0.0.1 and free ports.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use redis_protocol::resp2::types::OwnedFrame;

use super::authority::{Authority, Identity};
use super::deadline::{LONG, eventually, eventually_ok};
use super::redis::{Connection, Redis, text};
use super::tls_redis;
use super::tool::{Tool, free_port};

/// Watched under the name [`Watched::NAME`]; a failover takes about a second.
pub struct Watched {
    pub primary: Redis,
    pub replica: Redis,
    sentinels: Vec<Sentinel>,
    password: Option<&'static str>,
    tls: Option<(Authority, Identity)>,
}

/// One of them: its plain port, which stays the story's own way in, and the other one, if it has TLS.
struct Sentinel {
    tool: Tool,
    tls_port: u16,
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
        let sentinels = (0..3).map(|_| sentinel(primary.address(), password, "")).collect();
        Self { primary, replica, sentinels, password, tls: None }.ready()
    }

    /// All of them with TLS, also among themselves; their certificates are for 127.0.0.1.
    #[track_caller]
    pub fn start_tls(args: &[&str]) -> Self {
        let authority = Authority::new("an authority");
        let identity = authority.issue("redis", &["127.0.0.1"]);
        let node = |more: &[&str]| {
            let own = ["--tls-replication", "yes", "--repl-diskless-sync-delay", "0"];
            tls_redis::start_node(&authority, &identity, &[&own, args, more].concat())
        };
        let primary = node(&[]);
        let replica = node(&["--replicaof", "127.0.0.1", &primary.second_address().port().to_string()]);
        let options: String = args.chunks(2).map(|pair| format!("{} {}\n", &pair[0][2..], pair[1])).collect();
        let tls = format!(
            "tls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-replication yes\ntls-auth-clients no\n{options}",
            identity.cert,
            identity.key,
            authority.ca_file(),
        );
        let sentinels = (0..3).map(|_| sentinel(primary.second_address(), None, &tls)).collect();
        Self { primary, replica, sentinels, password: None, tls: Some((authority, identity)) }.ready()
    }

    #[track_caller]
    fn ready(self) -> Self {
        let watched = self;
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
        let sentinels = self.sentinels.iter().map(|sentinel| sentinel.tool.address().to_string());
        let password = self.password.map(|password| format!("?sentinel_password={password}"));
        let sentinels = sentinels.collect::<Vec<_>>().join(",");
        format!("redis+sentinel://{sentinels}/{}{}", Self::NAME, password.unwrap_or_default())
    }

    /// The same by TLS.
    pub fn tls_url(&self) -> String {
        let sentinels = self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.tls_port));
        format!("rediss+sentinel://{}/{}", sentinels.collect::<Vec<_>>().join(","), Self::NAME)
    }

    /// Who signed their certificates.
    pub fn authority(&self) -> &Authority {
        &self.tls.as_ref().expect("they have TLS").0
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
        let promoted = match &self.tls {
            Some(_) => self.replica.second_address().port(),
            None => self.replica.address().port(),
        };
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
        let address = self.sentinels[index].tool.address();
        eventually_ok(LONG, "a sentinel answers", || {
            Connection::open(address, self.password)?.command(command)
        })
    }
}

#[track_caller]
fn sentinel(primary: SocketAddr, password: Option<&str>, tls: &str) -> Sentinel {
    assert_eq!(primary.ip(), Ipv4Addr::LOCALHOST);
    let tls_port = Cell::new(0);
    let tool = Tool::start("install redis-server", |port, scratch| {
        let mut tls = tls.to_owned();
        if !tls.is_empty() {
            tls_port.set(free_port());
            tls.push_str(&format!("tls-port {}\n", tls_port.get()));
        }
        let (name, monitored) = (Watched::NAME, primary.port());
        let password =
            password.map(|password| format!("requirepass {password}\nsentinel sentinel-pass {password}\n"));
        let config = format!(
            "bind 127.0.0.1\nport {port}\n{tls}sentinel monitor {name} 127.0.0.1 {monitored} 2\n\
             sentinel down-after-milliseconds {name} 500\nsentinel failover-timeout {name} 5000\n{}",
            password.unwrap_or_default()
        );
        let program = if tls.is_empty() { super::redis::program() } else { tls_redis::program() };
        let mut command = Command::new(program);
        // It writes what it learns into its configuration.
        command.arg(scratch.write("sentinel.conf", &config)).arg("--sentinel").current_dir(scratch.dir());
        command
    });
    Sentinel { tool, tls_port: tls_port.get() }
}
