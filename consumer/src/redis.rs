//! One blocking connection to Redis in RESP2: commands one at a time, or a subscription.
//!
//! Everything that comes is bounded in bytes by the frame scanner of `shards`, everything waited for in time.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use redis_protocol::resp2::encode::extend_encode;
use redis_protocol::resp2::types::OwnedFrame;
use redis_protocol::resp2::{decode, types::BytesFrame};
use shards::config::{RedisAddress, RedisTarget, Server};
use shards::redis::KIND;
use shards::redis::sentinel::locate;
use shards::resp::{Inbox, Received, excerpt};

use crate::event::Event;
use crate::group::DATA_FIELD;
use crate::stream::{Stream, TLS_HINT};

/// How long an answer may take.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Elements of one answer, over all depths. A page of 100 entries of 300 fields each, or the groups of a stream that has
/// 4,000; decoded about 2 MiB.
const ANSWER_ELEMENTS_MAX: u64 = 64 * 1024;

/// Why Redis could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// Nobody answers there.
    #[error("no Redis answers at {place} ({error}): start it, or name another")]
    Absent {
        /// Host and port, or path.
        place: String,
        /// What the system said.
        error: io::Error,
    },
    /// There is no TLS, or no more.
    #[error("no TLS with {place}: {error}")]
    Tls {
        /// Host and port.
        place: String,
        /// With a [`tls::TlsError`] inside.
        error: io::Error,
    },
    /// The connection ended, or fell silent.
    #[error("{place} broke the connection ({error})")]
    Broken {
        /// Host and port, or path.
        place: String,
        /// What the system said.
        error: io::Error,
    },
    /// User or password.
    #[error("{place} refused {command} ({text}): {cure}")]
    Forbidden {
        /// Host and port, or path.
        place: String,
        /// The command's first word.
        command: String,
        /// What Redis said.
        text: String,
        /// What to do.
        cure: String,
    },
    /// Another error reply.
    #[error("{place} refused {command} ({text})")]
    Refused {
        /// Host and port, or path.
        place: String,
        /// The command's first word.
        command: String,
        /// What Redis said.
        text: String,
    },
    /// What came is not what Redis sends.
    #[error("{place} sent {found} where {due} was due: is that a Redis?")]
    Unexpected {
        /// Host and port, or path.
        place: String,
        /// Its kind, or what is wrong with it.
        found: String,
        /// What the command's answer is.
        due: &'static str,
    },
}

/// What a subscription's connection had to say.
#[derive(Debug)]
pub(crate) enum Heard {
    Frame(OwnedFrame),
    /// A frame of so many bytes, which were not kept.
    TooBig(u64),
    /// Nothing in the time given.
    Nothing,
}

/// An open, authenticated connection.
pub struct Connection {
    stream: Stream,
    inbox: Inbox,
    place: String,
    user: String,
    has_heard: bool,
}

impl Connection {
    /// Connects and authenticates; selects the target's database.
    ///
    /// # Errors
    /// [`RedisError`].
    pub fn open(target: &RedisTarget) -> Result<Self, RedisError> {
        let address = located(target)?;
        let place = place(&address);
        let user = target.username.clone().unwrap_or_else(|| "default".to_owned());
        let opened = Stream::open(&target.at(address))
            .and_then(|stream| stream.set_write_timeout(ANSWER_TIMEOUT).map(|()| stream));
        let stream = opened.map_err(|error| match is_tls(&error) {
            true => RedisError::Tls { place: place.clone(), error },
            false => RedisError::Absent { place: place.clone(), error },
        })?;
        let inbox = Inbox::with_elements_max(ANSWER_ELEMENTS_MAX);
        let mut connection = Self { stream, inbox, place, user, has_heard: false };
        match (&target.username, &target.password) {
            (_, None) => {}
            (None, Some(password)) => drop(connection.ask(&[b"AUTH", password.as_bytes()])?),
            (Some(user), Some(password)) => {
                drop(connection.ask(&[b"AUTH", user.as_bytes(), password.as_bytes()])?);
            }
        }
        if target.database != 0 {
            connection.ask(&[b"SELECT", target.database.to_string().as_bytes()])?;
        }
        if matches!(target.address, RedisAddress::Sentinel(_)) {
            connection.check_primary()?;
        }
        Ok(connection)
    }

    /// What sentinels say may be older than what a server has become.
    fn check_primary(&mut self) -> Result<(), RedisError> {
        use redis_protocol::resp2::types::Resp2Frame;
        match self.ask(&[b"ROLE"])? {
            OwnedFrame::Array(parts) if parts.first().is_some_and(|role| role.as_str() == Some("master")) => {
                Ok(())
            }
            _ => Err(self.unexpected("a replica".to_owned(), "a primary")),
        }
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// [`RedisError`]; an error reply is `Forbidden` or `Refused`.
    pub fn ask(&mut self, command: &[&[u8]]) -> Result<OwnedFrame, RedisError> {
        let answer = self.ask_bounded(command)?;
        answer.ok_or_else(|| self.unexpected("more bytes than are kept".to_owned(), "an answer"))
    }

    /// As [`ask`](Self::ask), for a command whose answer may be too long to be kept: then `None`.
    ///
    /// # Errors
    /// [`RedisError`].
    pub(crate) fn ask_bounded(&mut self, command: &[&[u8]]) -> Result<Option<OwnedFrame>, RedisError> {
        self.send(command)?;
        match self.hear(ANSWER_TIMEOUT)? {
            Heard::Frame(OwnedFrame::Error(text)) => Err(self.refused(command, &text)),
            Heard::Frame(frame) => Ok(Some(frame)),
            Heard::TooBig(_) => Ok(None),
            Heard::Nothing => {
                let late =
                    io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {ANSWER_TIMEOUT:?}"));
                Err(self.broken(late))
            }
        }
    }

    /// As [`ask`](Self::ask), for commands that answer with a number.
    ///
    /// # Errors
    /// [`RedisError`].
    pub fn ask_number(&mut self, command: &[&[u8]]) -> Result<i64, RedisError> {
        match self.ask(command)? {
            OwnedFrame::Integer(number) => Ok(number),
            other => Err(self.unexpected(described(&other), "a number")),
        }
    }

    /// Publishes `payload` and returns how many subscribers this Redis node handed it to.
    ///
    /// # Errors
    /// [`RedisError`].
    pub fn publish(&mut self, channel: &str, payload: &[u8]) -> Result<i64, RedisError> {
        self.ask_number(&[b"PUBLISH", channel.as_bytes(), payload])
    }

    /// Appends an event to a stream, in the form that a [`Membership`](crate::Membership) reads.
    ///
    /// # Errors
    /// [`RedisError`].
    pub fn append(&mut self, stream: &str, event: &Event) -> Result<(), RedisError> {
        let (kind, text) = (event.kind().as_bytes(), event.text().as_bytes());
        let (data_field, kind_field) = (DATA_FIELD.as_bytes(), KIND.as_bytes());
        let command: [&[u8]; 7] = [b"XADD", stream.as_bytes(), b"*", data_field, text, kind_field, kind];
        self.ask(&command).map(drop)
    }

    pub(crate) fn send(&mut self, command: &[&[u8]]) -> Result<(), RedisError> {
        let words = command.iter().map(|word| BytesFrame::BulkString(word.to_vec().into())).collect();
        let mut bytes = Default::default();
        extend_encode(&mut bytes, &BytesFrame::Array(words), false)
            .map_err(|error| self.unexpected(error.to_string(), "a command that can be encoded"))?;
        self.stream.write_all(&bytes).map_err(|error| self.broken(error))
    }

    /// What comes within `wait`.
    pub(crate) fn hear(&mut self, wait: Duration) -> Result<Heard, RedisError> {
        loop {
            let frame = match self.inbox.take_frame() {
                Ok(Some(Received::Frame(bytes))) => decoded(bytes),
                Ok(Some(Received::TooBig { bytes })) => return Ok(Heard::TooBig(bytes)),
                Ok(None) => {
                    if self.receive(wait)? {
                        continue;
                    }
                    return Ok(Heard::Nothing);
                }
                Err(error) => Err(error.to_string()),
            };
            return frame.map(Heard::Frame).map_err(|found| self.unexpected(found, "RESP"));
        }
    }

    /// The same socket, for another thread to write to or to shut down.
    pub(crate) fn stream(&self) -> io::Result<Stream> {
        self.stream.try_clone()
    }

    /// False when nothing came within `wait`.
    fn receive(&mut self, wait: Duration) -> Result<bool, RedisError> {
        // A time-out of zero would mean none.
        let wait = wait.max(Duration::from_millis(1));
        self.stream.set_read_timeout(wait).map_err(|error| self.broken(error))?;
        let mut buffer = self.inbox.take_buffer();
        let held = buffer.len();
        buffer.resize(buffer.capacity(), 0);
        let received = self.stream.read(&mut buffer[held..]);
        buffer.truncate(held + *received.as_ref().unwrap_or(&0));
        self.inbox.put_buffer(buffer);
        match received {
            Ok(0) => Err(self.broken(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {
                self.has_heard = true;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Ok(false)
            }
            Err(error) => Err(self.broken(error)),
        }
    }

    pub(crate) fn broken(&self, error: io::Error) -> RedisError {
        let place = self.place.clone();
        let is_end = matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
        match () {
            () if is_tls(&error) => RedisError::Tls { place, error },
            () if is_end && !self.has_heard && self.stream.is_plain_tcp() => {
                let error = io::Error::new(error.kind(), format!("{error} {TLS_HINT}"));
                RedisError::Broken { place, error }
            }
            () => RedisError::Broken { place, error },
        }
    }

    pub(crate) fn unexpected(&self, found: String, due: &'static str) -> RedisError {
        RedisError::Unexpected { place: self.place.clone(), found, due }
    }

    pub(crate) fn refused(&self, command: &[&[u8]], text: &str) -> RedisError {
        let cure = cure_of(&self.user, command, text);
        let word = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (place, command) = (self.place.clone(), word(command.first().copied().unwrap_or_default()));
        let text = excerpt(text.as_bytes());
        let is_forbidden =
            ["NOAUTH", "WRONGPASS", "NOPERM", "ERR AUTH"].iter().any(|code| text.starts_with(code));
        match is_forbidden {
            true => RedisError::Forbidden { place, command, text, cure },
            false => RedisError::Refused { place, command, text },
        }
    }
}

/// What helps `user` against the refusal of `command`: the ACL rule, or the right password.
///
/// Out of a command's words the rule names the channel or the key; a script is permitted by itself, and what it calls too.
pub fn cure_of(user: &str, command: &[&[u8]], text: &str) -> String {
    let words: Vec<_> = command.iter().take(4).map(|word| String::from_utf8_lossy(word)).collect();
    let word = |index: usize| words.get(index).map_or("", |word| word.as_ref());
    if !text.starts_with("NOPERM") {
        return "set REDIS_PASSWORD, or write redis://USER:PASSWORD@HOST".to_owned();
    }
    let verb = word(0).to_lowercase();
    let rule = match verb.as_str() {
        "subscribe" | "psubscribe" | "publish" | "ssubscribe" | "spublish" => {
            format!("+{verb} '&{}'", word(1))
        }
        "eval" => format!("+eval +xrange +xdel +publish '~{}' and '&CHANNEL' of its letters", word(3)),
        "ping" | "auth" | "select" | "info" | "" => format!("+{verb}"),
        _ => format!("+{verb} '~{}'", word(1)),
    };
    format!("permit it with ACL SETUSER {user} {rule}")
}

fn is_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<tls::TlsError>())
}

/// Where it is now; what sentinels say is asked for anew with each connection.
fn located(target: &RedisTarget) -> Result<RedisAddress, RedisError> {
    let address = &target.address;
    let absent =
        |sentence: String| RedisError::Absent { place: place(address), error: io::Error::other(sentence) };
    match address {
        RedisAddress::Tcp { .. } | RedisAddress::Unix(_) => Ok(address.clone()),
        RedisAddress::Sentinel(sentinels) => {
            let open = |sentinel: &Server| {
                let stream = Stream::open(&target.of_sentinel(sentinels, sentinel))?;
                stream.set_read_timeout(ANSWER_TIMEOUT)?;
                stream.set_write_timeout(ANSWER_TIMEOUT)?;
                Ok(stream)
            };
            locate(sentinels, Instant::now(), open).map_err(absent)
        }
        RedisAddress::Cluster(_) => Err(absent(
            "handlers listen to one server: name one node of the cluster, redis://HOST:PORT, which hears what is \
             published anywhere with PUBLISH"
                .to_owned(),
        )),
    }
}

/// An address as people write it.
fn place(address: &RedisAddress) -> String {
    match address {
        RedisAddress::Tcp { host, port } => format!("{host}:{port}"),
        RedisAddress::Unix(path) => path.display().to_string(),
        RedisAddress::Sentinel(sentinels) => format!("the sentinels of {}", sentinels.primary),
        RedisAddress::Cluster(nodes) => {
            let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
            format!("the cluster of {}", nodes.join(","))
        }
    }
}

fn decoded(bytes: &[u8]) -> Result<OwnedFrame, String> {
    match decode::decode(bytes) {
        Ok(Some((frame, _))) => Ok(frame),
        Ok(None) => Err("half a frame".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A value's kind, for errors.
pub(crate) fn described(frame: &OwnedFrame) -> String {
    use redis_protocol::resp2::types::Resp2Frame;
    format!("a {:?}", frame.kind())
}
