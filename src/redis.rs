//! One blocking connection to Redis that only publishes: for `corecast publish --redis`.
//!
//! The server's own connections are the engine's; this one trusts nothing that comes back either: answers are bounded
//! in bytes and time.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use redis_protocol::resp2::types::{OwnedFrame, Resp2Frame};
use redis_protocol::resp2::{decode, encode};
use shards::config::{RedisAddress, RedisTarget};

use crate::client::{
    ANSWER_TIMEOUT, CONNECT_TIMEOUT, EXIT_FAILED, EXIT_NO_PERMISSION, EXIT_UNAVAILABLE, Failure,
    host_and_port,
};

/// Bytes of one answer: `+OK`, `:3` or an error line. A server that sends more is no Redis.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Reads the forms of [`RedisTarget`]: `redis://[user[:password]@]host[:port][/database]`, `unix:///path.sock`, `HOST:PORT`.
///
/// # Errors
/// Exit code 2 with the forms that are known. The text is not repeated: it may hold a password.
pub fn parse_target(text: &str) -> Result<RedisTarget, Failure> {
    let unknown = || {
        Failure::usage(
            "the Redis address is of no known form: write redis://[USER[:PASSWORD]@]HOST[:PORT][/DB], \
             unix:///PATH.sock or HOST:PORT",
        )
    };
    let plain = |address| RedisTarget { address, username: None, password: None, database: 0 };
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    match scheme {
        "unix" | "redis+unix" => {
            let path = rest.split('?').next().unwrap_or_default();
            if path.is_empty() { Err(unknown()) } else { Ok(plain(RedisAddress::Unix(PathBuf::from(path)))) }
        }
        "" | "redis" => {
            let rest = rest.split(['?', '#']).next().unwrap_or_default();
            let (rest, database) = rest.split_once('/').unwrap_or((rest, ""));
            let (user, authority) = match rest.rsplit_once('@') {
                Some((user, authority)) => (Some(user), authority),
                None => (None, rest),
            };
            let (host, port) = host_and_port(authority, 6379).ok_or_else(unknown)?;
            let (username, password) = match user.map(|user| user.split_once(':').unwrap_or((user, ""))) {
                Some((username, password)) => (percent_decode(username), percent_decode(password)),
                None => (None, None),
            };
            let database = if database.is_empty() { 0 } else { database.parse().map_err(|_| unknown())? };
            Ok(RedisTarget { address: RedisAddress::Tcp { host, port }, username, password, database })
        }
        _ => Err(unknown()),
    }
}

/// Decodes `%40` and the like; `None` for an empty text. What is no escape stays.
fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escape = tail.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        match escape.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

/// An open, authenticated connection.
pub struct RedisPublisher {
    stream: Box<dyn Stream>,
    place: String,
    /// Bytes that came but were not yet an answer.
    pending: Vec<u8>,
}

trait Stream: Read + Write {}
impl Stream for TcpStream {}
impl Stream for UnixStream {}

impl RedisPublisher {
    /// Connects and authenticates. Pub/Sub knows no databases, so none is selected.
    ///
    /// # Errors
    /// Exit code 69 where nobody answers, 77 where the password or user is refused.
    pub fn connect(target: &RedisTarget) -> Result<Self, Failure> {
        let place = match &target.address {
            RedisAddress::Tcp { host, port } => format!("{host}:{port}"),
            RedisAddress::Unix(path) => path.display().to_string(),
        };
        let stream = open(&target.address).map_err(|error| {
            Failure::new(
                EXIT_UNAVAILABLE,
                format!("no Redis answers at {place} ({error}): start it, or name another with --redis"),
            )
        })?;
        let mut publisher = Self { stream, place, pending: Vec::new() };
        match (&target.username, &target.password) {
            (_, None) => {}
            (None, Some(password)) => publisher.authenticate(&[b"AUTH", password.as_bytes()])?,
            (Some(user), Some(password)) => {
                publisher.authenticate(&[b"AUTH", user.as_bytes(), password.as_bytes()])?;
            }
        }
        Ok(publisher)
    }

    fn authenticate(&mut self, command: &[&[u8]]) -> Result<(), Failure> {
        match self.ask(command)? {
            OwnedFrame::SimpleString(_) => Ok(()),
            answer => Err(self.unexpected("AUTH", "+OK", &answer)),
        }
    }

    /// Publishes and returns how many subscribers this Redis node handed the message to.
    ///
    /// # Errors
    /// Exit code 69 when the connection breaks, 77 when the user may not publish there, 1 for other refusals.
    pub fn publish(&mut self, channel: &str, payload: &[u8]) -> Result<i64, Failure> {
        match self.ask(&[b"PUBLISH", channel.as_bytes(), payload])? {
            OwnedFrame::Integer(receivers) => Ok(receivers),
            answer => Err(self.unexpected("PUBLISH", "number", &answer)),
        }
    }

    fn ask(&mut self, command: &[&[u8]]) -> Result<OwnedFrame, Failure> {
        let words = command.iter().map(|word| OwnedFrame::BulkString(word.to_vec())).collect();
        let command = OwnedFrame::Array(words);
        let mut bytes = vec![0; command.encode_len(false)];
        encode::encode(&mut bytes, &command, false).map_err(|error| {
            Failure::new(EXIT_FAILED, format!("the command can't be encoded for Redis ({error})"))
        })?;
        self.stream.write_all(&bytes).map_err(|error| self.broken(&error))?;
        self.read_answer()
    }

    fn read_answer(&mut self) -> Result<OwnedFrame, Failure> {
        let mut chunk = [0; 4096];
        loop {
            let decoded = decode::decode(&self.pending).map_err(|error| {
                let place = &self.place;
                Failure::new(
                    EXIT_UNAVAILABLE,
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
                    EXIT_UNAVAILABLE,
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
                EXIT_UNAVAILABLE,
                format!("{place} didn't answer within {} s: is Redis stuck?", ANSWER_TIMEOUT.as_secs()),
            ),
            _ => Failure::new(
                EXIT_UNAVAILABLE,
                format!(
                    "{place} broke the connection ({error}); the last message may or may not have gone out"
                ),
            ),
        }
    }

    fn unexpected(&self, command: &str, due: &str, answer: &OwnedFrame) -> Failure {
        let place = &self.place;
        match answer {
            OwnedFrame::Error(text) if is_refusal(text) => Failure::new(
                EXIT_NO_PERMISSION,
                format!(
                    "{place} refused {command} ({text}): set REDIS_PASSWORD, or write redis://USER:PASSWORD@HOST"
                ),
            ),
            OwnedFrame::Error(text) => {
                Failure::new(EXIT_FAILED, format!("{place} refused {command} ({text})"))
            }
            other => Failure::new(
                EXIT_FAILED,
                format!(
                    "{place} answered {command} with a {:?} where a {due} was due: is that a Redis?",
                    other.kind()
                ),
            ),
        }
    }
}

fn is_refusal(error: &str) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> RedisAddress {
        RedisAddress::Tcp { host: host.to_owned(), port }
    }

    #[test]
    fn every_form_of_a_redis_address_is_read() {
        for (text, address, user, password, database) in [
            ("localhost:6379", tcp("localhost", 6379), None, None, 0),
            ("redis://h", tcp("h", 6379), None, None, 0),
            ("redis://:secret@h:1/2", tcp("h", 1), None, Some("secret"), 2),
            ("redis://u:p%40ss@[::1]:7", tcp("::1", 7), Some("u"), Some("p@ss"), 0),
            ("unix:///run/r.sock?db=1", RedisAddress::Unix("/run/r.sock".into()), None, None, 0),
        ] {
            let target = parse_target(text).unwrap();
            assert_eq!(target.address, address, "{text}");
            let found = (target.username.as_deref(), target.password.as_deref(), target.database);
            assert_eq!(found, (user, password, database), "{text}");
        }
    }

    #[test]
    fn a_refused_address_never_shows_its_password() {
        for text in ["rediss://u:secret@h", "redis://u:secret@h:port", "redis://u:secret@h/x", "unix://"] {
            let failure = parse_target(text).expect_err(text);
            assert!(!failure.sentence.contains("secret"), "{failure}");
        }
    }
}
