//! One blocking connection to Redis, a command at a time: for `corecast publish --redis` and `corecast doctor`.
//!
//! The server's own connections are the engine's; this one trusts nothing that comes back either: answers are bounded
//! in bytes and time.

use std::io::{self, Read, Write};
use std::time::Instant;

use corecast_consumer::{Stream, TLS_HINT, cure_of};
use redis_protocol::resp2::types::{OwnedFrame, Resp2Frame};
use redis_protocol::resp2::{decode, encode};
use shards::config::{RedisAddress, RedisTarget, Server};
use shards::net::broker::tls_client;
use shards::redis::cluster::Topology;
use shards::redis::moved_to;
use shards::redis::sentinel::locate;
use shards::redis::{self as append, Append};
use tls::TlsError;

use clap::Args;

use crate::client::ANSWER_TIMEOUT;
use crate::exit::{self, Failure};

/// Bytes of one answer: `+OK`, `:3`, an error line, or INFO (6 KiB). A server that sends more is no Redis.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Nodes of a cluster that one publication is sent on to.
const REDIRECTS_MAX: u32 = 4;

/// What failures of TLS begin with.
pub const NO_TLS: &str = "no TLS";

const TLS_HEADING: &str = "TLS to Redis (rediss://, rediss+sentinel://, rediss+cluster://)";

/// TLS to Redis, for the commands whose Redis is an argument; the server has settings of these names.
#[derive(Debug, Default, Args)]
pub struct TlsArgs {
    /// PEM file of the CAs to trust instead of the system's [env: CORECAST_REDIS_CA_FILE]
    #[arg(long, value_name = "PATH", help_heading = TLS_HEADING)]
    redis_ca_file: Option<String>,
    /// PEM file of our certificate, for a Redis that wants one [env: CORECAST_REDIS_CERT_FILE]
    #[arg(long, value_name = "PATH", help_heading = TLS_HEADING)]
    redis_cert_file: Option<String>,
    /// PEM file of its key [env: CORECAST_REDIS_KEY_FILE]
    #[arg(long, value_name = "PATH", help_heading = TLS_HEADING)]
    redis_key_file: Option<String>,
    /// Name that Redis' certificate must have, where it is not the host of the URL [env: CORECAST_REDIS_SERVER_NAME]
    #[arg(long, value_name = "NAME", help_heading = TLS_HEADING)]
    redis_server_name: Option<String>,
}

impl TlsArgs {
    /// Variables in the place of the flags.
    pub const VARIABLES: [&str; 4] = [
        "CORECAST_REDIS_CA_FILE",
        "CORECAST_REDIS_CERT_FILE",
        "CORECAST_REDIS_KEY_FILE",
        "CORECAST_REDIS_SERVER_NAME",
    ];

    /// Those that are given, as settings of the configuration.
    pub fn settings(&self) -> Vec<(String, String)> {
        let given = [
            ("redis_ca_file", &self.redis_ca_file),
            ("redis_cert_file", &self.redis_cert_file),
            ("redis_key_file", &self.redis_key_file),
            ("redis_server_name", &self.redis_server_name),
        ];
        given.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text.clone()?))).collect()
    }
}

/// An open, authenticated connection.
pub struct RedisConnection {
    stream: Stream,
    place: String,
    user: String,
    /// Whom it belongs to, where that is a cluster of which this is one node.
    cluster: Option<RedisTarget>,
    /// Bytes that came but were not yet an answer.
    pending: Vec<u8>,
    has_heard: bool,
}

impl RedisConnection {
    /// Connects and authenticates. Pub/Sub knows no databases, so none is selected.
    ///
    /// # Errors
    /// Exit code 69 where nobody answers, 77 where the password or user is refused.
    pub fn connect(target: &RedisTarget) -> Result<Self, Failure> {
        let (address, opened) = match &target.address {
            RedisAddress::Cluster(nodes) => open_one_of(nodes, target),
            _ => {
                let address = located(target)?;
                let opened = open(&target.at(address.clone()));
                (address, opened)
            }
        };
        let place = place(&address);
        let stream = opened.map_err(|error| match tls_failure(&error, &place) {
            Some(failure) => failure,
            None => Failure::new(
                exit::UNAVAILABLE,
                format!("no Redis answers at {place} ({error}): start it, or name another with --redis"),
            ),
        })?;
        let user = target.username.clone().unwrap_or_else(|| "default".to_owned());
        let cluster = matches!(target.address, RedisAddress::Cluster(_)).then(|| target.clone());
        let mut connection = Self { stream, place, user, cluster, pending: Vec::new(), has_heard: false };
        match (&target.username, &target.password) {
            (_, None) => {}
            (None, Some(password)) => connection.authenticate(&[b"AUTH", password.as_bytes()])?,
            (Some(user), Some(password)) => {
                connection.authenticate(&[b"AUTH", user.as_bytes(), password.as_bytes()])?;
            }
        }
        Ok(connection)
    }

    fn authenticate(&mut self, command: &[&[u8]]) -> Result<(), Failure> {
        match self.ask(command)? {
            OwnedFrame::SimpleString(_) => Ok(()),
            answer => Err(self.unexpected("AUTH", "+OK", &answer)),
        }
    }

    /// Publishes and returns how many subscribers this Redis node handed the message to. In a cluster by sharded Pub/Sub, at the
    /// node that has the channel's slot.
    ///
    /// # Errors
    /// Exit code 69 when the connection breaks, 77 when the user may not publish there, 1 for other refusals.
    pub fn publish(&mut self, channel: &str, payload: &[u8]) -> Result<i64, Failure> {
        let verb = if self.cluster.is_some() { "SPUBLISH" } else { "PUBLISH" };
        let mut redirects = 0;
        loop {
            let answer = self.ask(&[verb.as_bytes(), channel.as_bytes(), payload])?;
            match (answer, &self.cluster) {
                (OwnedFrame::Integer(receivers), _) => return Ok(receivers),
                (OwnedFrame::Error(text), Some(cluster))
                    if text.starts_with("MOVED") && redirects < REDIRECTS_MAX =>
                {
                    let Some(server) = moved_to(&text) else { return Err(self.refused(verb, &text)) };
                    redirects += 1;
                    let address = RedisAddress::Cluster(vec![server]);
                    *self = Self::connect(&cluster.at(address))?;
                }
                (OwnedFrame::Error(text), _) if text.starts_with("NOPERM") => {
                    let cure = cure_of(&self.user, &[verb.as_bytes(), channel.as_bytes()], &text);
                    let sentence = format!("{} refused {verb} ({text}): {cure}", self.place);
                    return Err(Failure::new(exit::NO_PERMISSION, sentence));
                }
                (answer, _) => return Err(self.unexpected(verb, "number", &answer)),
            }
        }
    }

    /// Selects the database of `target`, where its keys are.
    ///
    /// # Errors
    /// As [`RedisConnection::publish`].
    pub fn select(&mut self, target: &RedisTarget) -> Result<(), Failure> {
        if target.database == 0 {
            return Ok(());
        }
        match self.ask(&[b"SELECT", target.database.to_string().as_bytes()])? {
            OwnedFrame::SimpleString(_) => Ok(()),
            answer => Err(self.unexpected("SELECT", "+OK", &answer)),
        }
    }

    /// Has Redis keep the script that appends; returns its name there.
    ///
    /// # Errors
    /// As [`RedisConnection::publish`].
    pub fn load_append(&mut self) -> Result<String, Failure> {
        match self.ask(&[b"SCRIPT", b"LOAD", append::SCRIPT.as_bytes()])? {
            OwnedFrame::BulkString(sha) => Ok(String::from_utf8_lossy(&sha).into_owned()),
            answer => Err(self.unexpected("SCRIPT LOAD", "name of 40 digits", &answer)),
        }
    }

    /// Appends an entry; returns its id, and to how many subscribers it was published (-1: it was not).
    ///
    /// # Errors
    /// As [`RedisConnection::publish`].
    pub fn append(&mut self, append: &Append<'_>, sha: &str) -> Result<(String, i64), Failure> {
        let mut answer = self.eval(append, Some(sha))?;
        if matches!(&answer, OwnedFrame::Error(text) if text.starts_with("NOSCRIPT")) {
            // A server that was started again, or another one behind the same address.
            answer = self.eval(append, None)?;
        }
        match answer {
            OwnedFrame::Array(parts) => match parts.as_slice() {
                [OwnedFrame::BulkString(id), OwnedFrame::Integer(receivers)] => {
                    Ok((String::from_utf8_lossy(id).into_owned(), *receivers))
                }
                _ => Err(self.unexpected("the append", "id and number", &OwnedFrame::Array(parts))),
            },
            answer => Err(self.unexpected("the append", "id and number", &answer)),
        }
    }

    fn eval(&mut self, append: &Append<'_>, sha: Option<&str>) -> Result<OwnedFrame, Failure> {
        let words = append.words(sha);
        self.ask(&words.each_ref().map(Vec::as_slice))
    }

    /// What a node of a cluster says of all of them.
    ///
    /// # Errors
    /// As [`RedisConnection::ask`], and 1 where it is none, or 77 where this user may not ask.
    pub fn topology(&mut self) -> Result<Topology, Failure> {
        let asked = Server { host: self.place.clone(), port: 0 };
        let text = match self.ask(&[b"CLUSTER", b"NODES"])? {
            OwnedFrame::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            answer => return Err(self.unexpected("CLUSTER NODES", "text", &answer)),
        };
        Topology::parse(&text, &asked).map_err(|error| Failure::new(exit::FAILED, error))
    }

    /// One command and its answer, an error of Redis included.
    ///
    /// # Errors
    /// Exit code 69 when the connection breaks, is silent, or brings something else than RESP.
    pub fn ask(&mut self, command: &[&[u8]]) -> Result<OwnedFrame, Failure> {
        self.say(command)?;
        self.read_answer()
    }

    /// Whether it takes HELLO 3. Ends the connection, whose answers would be RESP3 from then on.
    ///
    /// # Errors
    /// As [`RedisConnection::ask`].
    pub fn takes_resp3(mut self) -> Result<bool, Failure> {
        self.say(&[b"HELLO", b"3"])?;
        let mut first = [0; 1];
        self.stream.read_exact(&mut first).map_err(|error| self.broken(&error))?;
        // The answer is a map; RESP2 has none.
        Ok(first == *b"%")
    }

    fn say(&mut self, command: &[&[u8]]) -> Result<(), Failure> {
        let words = command.iter().map(|word| OwnedFrame::BulkString(word.to_vec())).collect();
        let command = OwnedFrame::Array(words);
        let mut bytes = vec![0; command.encode_len(false)];
        encode::encode(&mut bytes, &command, false).map_err(|error| {
            Failure::new(exit::FAILED, format!("the command can't be encoded for Redis ({error})"))
        })?;
        self.stream.write_all(&bytes).map_err(|error| self.broken(&error))
    }

    fn read_answer(&mut self) -> Result<OwnedFrame, Failure> {
        let mut chunk = [0; 4096];
        loop {
            let decoded = decode::decode(&self.pending).map_err(|error| {
                let place = &self.place;
                Failure::new(
                    exit::UNAVAILABLE,
                    format!("{place} doesn't speak RESP ({error}): is that a Redis?"),
                )
            })?;
            if let Some((answer, bytes_used)) = decoded {
                self.pending.drain(..bytes_used);
                return Ok(answer);
            }
            if self.pending.len() > ANSWER_BYTES_MAX {
                let place = &self.place;
                return Err(Failure::new(
                    exit::UNAVAILABLE,
                    format!("{place} sends without end: is that a Redis?"),
                ));
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(self.broken(&io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => {
                    self.has_heard = true;
                    self.pending.extend_from_slice(&chunk[..count]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.broken(&error)),
            }
        }
    }

    fn broken(&self, error: &io::Error) -> Failure {
        let place = &self.place;
        if let Some(failure) = tls_failure(error, place) {
            return failure;
        }
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::new(
                exit::UNAVAILABLE,
                format!("{place} didn't answer within {} s: is Redis stuck?", ANSWER_TIMEOUT.as_secs()),
            ),
            _ if !self.has_heard && self.stream.is_plain_tcp() => {
                Failure::new(exit::UNAVAILABLE, format!("{place} hung up ({error}) {TLS_HINT}"))
            }
            _ => Failure::new(
                exit::UNAVAILABLE,
                format!(
                    "{place} broke the connection ({error}); the last message may or may not have gone out"
                ),
            ),
        }
    }

    /// What an error of Redis to `command` means for the caller.
    pub fn refused(&self, command: &str, text: &str) -> Failure {
        self.unexpected(command, "+OK", &OwnedFrame::Error(text.to_owned()))
    }

    fn unexpected(&self, command: &str, due: &str, answer: &OwnedFrame) -> Failure {
        let place = &self.place;
        match answer {
            OwnedFrame::Error(text) if is_refusal(text) => Failure::new(
                exit::NO_PERMISSION,
                format!(
                    "{place} refused {command} ({text}): set REDIS_PASSWORD, or write redis://USER:PASSWORD@HOST"
                ),
            ),
            OwnedFrame::Error(text) => {
                Failure::new(exit::FAILED, format!("{place} refused {command} ({text})"))
            }
            other => Failure::new(
                exit::FAILED,
                format!(
                    "{place} answered {command} with a {:?} where a {due} was due: is that a Redis?",
                    other.kind()
                ),
            ),
        }
    }
}

/// The first of a cluster's nodes that answers, or the last that doesn't.
fn open_one_of(nodes: &[Server], target: &RedisTarget) -> (RedisAddress, io::Result<Stream>) {
    let mut last = (target.address.clone(), Err(io::ErrorKind::NotFound.into()));
    for Server { host, port } in nodes {
        let address = RedisAddress::Tcp { host: host.clone(), port: *port };
        let opened = open(&target.at(address.clone()));
        let is_open = opened.is_ok();
        last = (address, opened);
        if is_open {
            break;
        }
    }
    last
}

/// One server: the one that it is, or that its sentinels name.
///
/// # Errors
/// Exit code 69 where no sentinel knows.
pub fn located(target: &RedisTarget) -> Result<RedisAddress, Failure> {
    match &target.address {
        RedisAddress::Sentinel(sentinels) => {
            let open = |sentinel: &Server| open(&target.of_sentinel(sentinels, sentinel));
            locate(sentinels, Instant::now(), open).map_err(|said| Failure::new(exit::UNAVAILABLE, said))
        }
        other => Ok(other.clone()),
    }
}

/// An address as people write it.
pub fn place(address: &RedisAddress) -> String {
    match address {
        RedisAddress::Tcp { host, port } => format!("{host}:{port}"),
        RedisAddress::Unix(path) => path.display().to_string(),
        RedisAddress::Sentinel(sentinels) => format!("{}, by its sentinels", sentinels.primary),
        RedisAddress::Cluster(nodes) => {
            let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
            format!("the cluster of {}", nodes.join(","))
        }
    }
}

/// Whether an error of Redis says that this user may not, or is not known.
pub fn is_refusal(error: &str) -> bool {
    ["NOAUTH", "WRONGPASS", "NOPERM", "ERR AUTH"].iter().any(|code| error.starts_with(code))
}

fn open(target: &RedisTarget) -> io::Result<Stream> {
    let stream = Stream::open(target)?;
    stream.set_read_timeout(ANSWER_TIMEOUT)?;
    stream.set_write_timeout(ANSWER_TIMEOUT)?;
    Ok(stream)
}

/// What TLS says, if it was TLS.
fn tls_failure(error: &io::Error, place: &str) -> Option<Failure> {
    let fault = error.get_ref()?.downcast_ref::<TlsError>()?;
    Some(Failure::new(exit_of(fault), format!("{NO_TLS} with {place}: {fault}")))
}

/// Reads the files that TLS to `target` takes, so that one which can't be used is told before anything starts.
///
/// # Errors
/// Exit code 78, or 77 for one that may not be read.
pub fn check_tls(target: &RedisTarget) -> Result<(), Failure> {
    tls_client(target).map(drop).map_err(|fault| Failure::new(exit_of(&fault), format!("{target}: {fault}")))
}

/// The exit code of an error that has a [`TlsError`] inside.
pub fn tls_exit(error: &io::Error) -> u8 {
    let fault = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    fault.map_or(exit::UNAVAILABLE, exit_of)
}

/// Permission, configuration, or not available.
fn exit_of(fault: &TlsError) -> u8 {
    match () {
        () if fault.is_permission() => exit::NO_PERMISSION,
        () if fault.is_ours() => exit::CONFIG,
        () => exit::UNAVAILABLE,
    }
}
