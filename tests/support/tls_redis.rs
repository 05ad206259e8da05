//! A redis-server with TLS beside its plain port, which stays the story's own way in.

use std::ops::{Deref, DerefMut};

use super::authority::{Authority, Identity};
use super::redis::{FREE_PORT, Redis};
use super::server::{Driver, Server, ServerBuilder};

/// See the module. Its certificate is for 127.0.0.1 and `redis.example`.
pub struct TlsRedis {
    redis: Redis,
    pub authority: Authority,
}

impl TlsRedis {
    /// One that asks nobody for a certificate.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more arguments, for example `tls-auth-clients`.
    #[track_caller]
    pub fn start_with(args: &[&str]) -> Self {
        let authority = Authority::new("an authority");
        let identity = authority.issue("redis", &["127.0.0.1", "redis.example"]);
        Self::start_as(authority, &identity, args)
    }

    /// With this certificate.
    ///
    /// # Panics
    /// When the redis-server at hand has no TLS, with what to install.
    #[track_caller]
    pub fn start_as(authority: Authority, identity: &Identity, args: &[&str]) -> Self {
        let redis = start_node(&authority, identity, args);
        Self { redis, authority }
    }

    pub fn tls_url(&self) -> String {
        format!("rediss://{}", self.second_address())
    }

    /// The flags of every command that lets it trust this Redis.
    pub fn flags(&self) -> [String; 4] {
        ["--redis".to_owned(), self.tls_url(), "--redis-ca-file".to_owned(), self.authority.ca_file()]
    }

    /// `corecast serve --preset event-fanout` with one shard, over TLS.
    pub fn event_fanout(&self, driver: Driver) -> ServerBuilder {
        self.event_fanout_at(&self.tls_url(), driver)
    }

    /// The same at another address: a proxy's.
    pub fn event_fanout_at(&self, url: &str, driver: Driver) -> ServerBuilder {
        let server = Server::builder().preset("event-fanout").redis_url(url).driver(driver).shards(1);
        server.arg("--redis-ca-file").arg(&self.authority.ca_file())
    }
}

/// A redis-server with this certificate, which may be one of several; it asks nobody for one.
///
/// # Panics
/// When the redis-server at hand has no TLS, with what to install.
#[track_caller]
pub fn start_node(authority: &Authority, identity: &Identity, args: &[&str]) -> Redis {
    let program = program();
    assert_has_tls(&program);
    let ca_file = authority.ca_file();
    let tls = [
        "--tls-port",
        FREE_PORT,
        "--tls-cert-file",
        &identity.cert,
        "--tls-key-file",
        &identity.key,
        "--tls-ca-cert-file",
        &ca_file,
    ];
    // The last of two that say the same holds.
    let optional = ["--tls-auth-clients", "no"];
    Redis::start_program(&program, &[&tls[..], &optional, args].concat())
}

/// The redis-server that has TLS.
pub fn program() -> String {
    let program = ["CORECAST_TEST_TLS_REDIS_SERVER", "CORECAST_TEST_REDIS_SERVER"];
    let program = program.iter().find_map(|name| std::env::var(name).ok());
    program.unwrap_or_else(|| "redis-server".to_owned())
}

impl Deref for TlsRedis {
    type Target = Redis;

    fn deref(&self) -> &Redis {
        &self.redis
    }
}

impl DerefMut for TlsRedis {
    fn deref_mut(&mut self) -> &mut Redis {
        &mut self.redis
    }
}

/// The wheels of Valkey, for one, are built without.
#[track_caller]
fn assert_has_tls(program: &str) {
    // It reads the first line, and ends at the second, or at the first where it knows no TLS.
    let mut child = std::process::Command::new(program)
        .arg("-")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}; {INSTALL}"));
    let mut stdin = child.stdin.take().expect("it is piped");
    // One that has ended already has said why.
    let _ = std::io::Write::write_all(&mut stdin, b"tls-port 0\nno-such-directive 1\n");
    drop(stdin);
    let output = child.wait_with_output().expect("a child of ours can be waited for");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(
        said.contains("no-such-directive") && !said.contains("'tls-port"),
        "{program} has no TLS: {INSTALL}\n{said}"
    );
}

const INSTALL: &str = "these tests need a Redis that is built with TLS: install redis-server (Debian: apt install \
                       redis-server), or name one in CORECAST_TEST_TLS_REDIS_SERVER";
