//! One blocking connection to Redis, a command at a time: for `corecast publish --redis` and `corecast doctor`.
//!
//! The server's own connections are the engine's; this one trusts nothing that comes back either: answers are bounded
//! in bytes and time.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use redis_protocol::resp2::types::{OwnedFrame, Resp2Frame};
use redis_protocol::resp2::{decode, encode};
use shards::config::{RedisAddress, RedisTarget, Server};
use shards::redis::cluster::Topology;
use shards::redis::moved_to;
use shards::redis::sentinel::locate;

use crate::client::{ANSWER_TIMEOUT, CONNECT_TIMEOUT};
use crate::exit::{self, Failure};

/// Bytes of one answer: `+OK`, `:3`, an error line, or INFO (6 KiB). A server that sends more is no Redis.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Nodes of a cluster that one publication is sent on to.
const REDIRECTS_MAX: u32 = 4;

/// An open, authenticated connection.
pub struct RedisConnection {
    stream: Box<dyn Stream>,
    place: String,
    /// Whom it belongs to, where that is a cluster of which this is one node.
    cluster: Option<RedisTarget>,
    /// Bytes that came but were not yet an answer.
    pending: Vec<u8>,
}

trait Stream: Read + Write {}
impl Stream for TcpStream {}
impl Stream for UnixStream {}

impl RedisConnection {
    /// Connects and authenticates. Pub/Sub knows no databases, so none is selected.
    ///
    /// # Errors
    /// Exit code 69 where nobody answers, 77 where the password or user is refused.
    pub fn connect(target: &RedisTarget) -> Result<Self, Failure> {
        let (address, stream) = match &target.address {
            RedisAddress::Cluster(nodes) => open_one_of(nodes),
            address => {
                let address = located(address)?;
                open(&address)
                    .map(|stream| (address.clone(), stream))
                    .map_err(|error| (place(&address), error))
            }
        }
        .map_err(|(place, error)| {
            Failure::new(
                exit::UNAVAILABLE,
                format!("no Redis answers at {place} ({error}): start it, or name another with --redis"),
            )
        })?;
        let cluster = matches!(target.address, RedisAddress::Cluster(_)).then(|| target.clone());
        let mut connection = Self { stream, place: place(&address), cluster, pending: Vec::new() };
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
                    *self = Self::connect(&RedisTarget { address, ..cluster.clone() })?;
                }
                (answer, _) => return Err(self.unexpected(verb, "number", &answer)),
            }
        }
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
                Ok(count) => self.pending.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.broken(&error)),
            }
        }
    }

    fn broken(&self, error: &io::Error) -> Failure {
        let place = &self.place;
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::new(
                exit::UNAVAILABLE,
                format!("{place} didn't answer within {} s: is Redis stuck?", ANSWER_TIMEOUT.as_secs()),
            ),
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

/// The first of a cluster's nodes that answers.
fn open_one_of(nodes: &[Server]) -> Result<(RedisAddress, Box<dyn Stream>), (String, io::Error)> {
    let mut last = (String::new(), io::Error::from(io::ErrorKind::NotFound));
    for Server { host, port } in nodes {
        let address = RedisAddress::Tcp { host: host.clone(), port: *port };
        match open(&address) {
            Ok(stream) => return Ok((address, stream)),
            Err(error) => last = (place(&address), error),
        }
    }
    Err(last)
}

/// One server: the one that it is, or that its sentinels name.
///
/// # Errors
/// Exit code 69 where no sentinel knows.
pub fn located(address: &RedisAddress) -> Result<RedisAddress, Failure> {
    match address {
        RedisAddress::Sentinel(sentinels) => {
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

fn open(address: &RedisAddress) -> io::Result<Box<dyn Stream>> {
    match address {
        RedisAddress::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
            Ok(Box::new(stream))
        }
        RedisAddress::Sentinel(_) | RedisAddress::Cluster(_) => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "several servers where one is due"))
        }
        RedisAddress::Tcp { host, port } => {
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            for address in (host.as_str(), *port).to_socket_addrs()? {
                match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                    Ok(stream) => {
                        stream.set_nodelay(true)?;
                        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
                        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
                        return Ok(Box::new(stream));
                    }
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
    }
}
