//! Sessions with Redis, without sockets or clocks: bytes and the time go in, bytes to send and events come out.
//!
//! Two connections, each with its own session: a [`Subscriber`] receives publications, a [`Commander`] publishes. A third,
//! the [`Reader`], reads streams. All begin with the same handshake (HELLO 3, or AUTH and RESP2 where the server doesn't know HELLO). The commander
//! publishes a probe on a channel of this node's own, and its return on the subscriber proves both connections and the
//! server between them; TCP alone proves nothing (after a failover a dead subscription can look healthy for ever).
//!
//! A session that fails is not repaired: whoever drives it closes both connections, waits ([`Reconnect`]) and begins
//! again. No reply, asked or unasked, makes a session panic or grow.

mod anchor;
mod append;
pub mod cluster;
mod commander;
mod entry;
mod handshake;
mod history;
pub mod placement;
mod reader;
mod recorder;
pub mod sentinel;
mod streams;
mod subscriber;

use std::time::{Duration, Instant};

use bytes::BytesMut;
use redis_protocol::resp2::encode::extend_encode_borrowed;
use redis_protocol::resp2::types::BorrowedFrame;

use crate::config::Server;
use crate::limits::{BROKER_WRITE_BYTES_MAX, RECONNECT_LASTED, RECONNECT_WAIT_MAX, RECONNECT_WAIT_MIN};
use crate::resp::{RespError, excerpt};

pub use anchor::{ANCHOR_SCRIPT, Anchor, AnchorError, Judgement, Position, anchor_words, epoch_key};
pub use append::{Append, DATA, KIND, SCRIPT, Trim};
pub use commander::{Commander, CommanderEvent, PublishError, Refused};
pub use entry::EntryId;
pub use history::{History, HistoryError, HistoryStep, Past};
pub use reader::{Reader, ReaderCounters, ReaderEvent};
pub use recorder::{Recorder, RecorderEvent};
pub use streams::{Streams, StreamsEvent};
pub use subscriber::{Subscriber, SubscriberCounters, SubscriberEvent};

/// Channels that begin with this are ours: they carry probes and never feed a room.
pub const SERVICE_CHANNEL_PREFIX: &str = "corecast:probe:";

/// Name of our connections in CLIENT LIST.
pub const CLIENT_NAME: &str = "corecast";

/// Why a session with Redis can't go on. The text is fit for an operator: found, due, what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// What came is no RESP.
    #[error("redis sent {0}")]
    Resp(#[from] RespError),
    /// A password is due.
    #[error("redis wants a password ({0}): give one, for example redis://user:password@host:6379")]
    PasswordDue(String),
    /// The password, or the user, is wrong.
    #[error(
        "redis refused the user {user} or its password ({text}): correct them, or set them there with ACL SETUSER {user} on \
         >PASSWORD"
    )]
    PasswordWrong {
        /// Who we said we are.
        user: String,
        /// What Redis said.
        text: String,
    },
    /// The user may not do this.
    #[error("redis refused {what} ({text}): permit it with ACL SETUSER {user} {rule}")]
    NotPermitted {
        /// What was tried, with the channel's name.
        what: String,
        /// What Redis said.
        text: String,
        /// Who may not.
        user: String,
        /// What is missing, as ACL SETUSER takes it.
        rule: String,
    },
    /// The server can't serve now: it loads its data, has lost its master, or has no room for a connection.
    #[error("redis can't serve now ({0}): it is tried again")]
    NotNow(String),
    /// The server is a node of a cluster, and another has the slot.
    #[error(
        "{what} belongs to another node of the cluster ({text}): name the cluster, redis+cluster://HOST:PORT,HOST:PORT"
    )]
    Moved {
        /// The command.
        what: String,
        /// What Redis said.
        text: String,
        /// Who has it; `None` where the node doesn't know its address.
        to: Option<Server>,
    },
    /// The server refused a command for another reason.
    #[error("redis refused {what} ({text})")]
    Rejected {
        /// The command.
        what: String,
        /// What Redis said.
        text: String,
    },
    /// A reply to nothing.
    #[error("redis sent {0} although no reply was due")]
    Unasked(String),
    /// A reply of the wrong type.
    #[error("redis answered {what} with {found} where {expected} was due")]
    WrongReply {
        /// The command.
        what: String,
        /// The reply.
        found: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// Redis ended a subscription that the server's sources need.
    #[error("redis ended the subscription of {0} unasked: subscribing again on a new connection")]
    SubscriptionEnded(String),
    /// A probe didn't come back.
    #[error(
        "a probe published {late:?} ago has not come back: the server hangs, or its two connections are apart"
    )]
    ProbeLate {
        /// Age of the oldest probe.
        late: Duration,
    },
    /// The answer to XREAD is overdue.
    #[error(
        "redis has not answered for {late:?} what it was asked to answer within a second: it hangs, or is out of reach"
    )]
    ReadLate {
        /// Age of the question, or of the last part of its answer.
        late: Duration,
    },
    /// The server is no primary, and one is due.
    #[error(
        "found a {0} where a primary was due: the sentinels' word is older than its role, it is tried again"
    )]
    NoPrimary(String),
    /// A sentinel doesn't answer.
    #[error("a sentinel has not answered for {late:?}: it hangs, or the way to it is cut")]
    SentinelLate {
        /// Age of the oldest question.
        late: Duration,
    },
    /// Connecting, the handshake, subscribing and the first probe took too long together.
    #[error("redis did not finish the handshake in {0:?}: it hangs, or this is not a Redis server")]
    HandshakeTimeout(Duration),
}

impl SessionError {
    /// The error for an error reply to `what`, where the reply's first word says enough.
    fn from_reply(what: &str, text: &[u8], user: &str, rule: &str) -> Self {
        let said = excerpt(text);
        match text.split(|&byte| byte == b' ').next().unwrap_or_default() {
            b"NOAUTH" => Self::PasswordDue(said),
            b"WRONGPASS" => Self::PasswordWrong { user: user.into(), text: said },
            b"NOPERM" => {
                Self::NotPermitted { what: what.into(), text: said, user: user.into(), rule: rule.into() }
            }
            b"LOADING" | b"MASTERDOWN" | b"BUSY" | b"TRYAGAIN" | b"CLUSTERDOWN" => Self::NotNow(said),
            b"MOVED" => Self::Moved { what: what.into(), to: moved_to(&said), text: said },
            _ if said.contains("max number of clients") => Self::NotNow(said),
            _ => Self::Rejected { what: what.into(), text: said },
        }
    }
}

/// The rule that permits `verb` on `channel`. That of our probes holds for every node, whose names are random.
fn channel_rule(verb: &str, channel: &str) -> String {
    match channel.starts_with(SERVICE_CHANNEL_PREFIX) {
        true => format!("+{verb} '&{SERVICE_CHANNEL_PREFIX}*'"),
        false => format!("+{verb} '&{channel}'"),
    }
}

/// Who has the slot, out of an error reply that begins with MOVED: slot and address follow. Where the node doesn't know the
/// address, `?` or nothing stands for the host.
pub fn moved_to(said: &str) -> Option<Server> {
    let (host, port) = said.split(' ').nth(2)?.rsplit_once(':')?;
    let port = port.parse().ok().filter(|&port| port > 0)?;
    (!matches!(host, "" | "?")).then(|| Server { host: host.to_owned(), port })
}

/// How long to wait before the next attempt.
#[derive(Debug, Clone)]
pub struct Reconnect {
    wait: Duration,
}

impl Reconnect {
    /// Begins at [`RECONNECT_WAIT_MIN`].
    pub fn new() -> Self {
        Self { wait: RECONNECT_WAIT_MIN }
    }

    /// The next wait: half of the current bound plus a share of the other half by `random`; the bound then doubles.
    ///
    /// Jitter keeps the nodes of a cluster from coming back to Redis in one moment, the floor keeps one from hammering.
    pub fn next_wait(&mut self, random: u64) -> Duration {
        let half = self.wait / 2;
        self.wait = (self.wait * 2).min(RECONNECT_WAIT_MAX);
        half + half.mul_f64(random as f64 / u64::MAX as f64)
    }

    /// To be called when a connection ends that had been of use since `up_since`.
    ///
    /// Only one that lasted begins at the minimum again, so that a server which drops us at once isn't hammered.
    pub fn note_end(&mut self, up_since: Instant, now: Instant) {
        if now.saturating_duration_since(up_since) >= RECONNECT_LASTED {
            self.wait = RECONNECT_WAIT_MIN;
        }
    }
}

impl Default for Reconnect {
    fn default() -> Self {
        Self::new()
    }
}

/// Commands that wait to be written.
#[derive(Debug, Default)]
struct Outbox {
    buffer: BytesMut,
    /// Bytes that were ever put in.
    queued_bytes: u64,
    /// Longest that the buffer has been since it was empty.
    peak_bytes: usize,
}

impl Outbox {
    /// Appends one command. At most [`WORDS_MAX`] words.
    fn push(&mut self, words: &[&[u8]]) {
        assert!(words.len() <= WORDS_MAX, "a command of {} words", words.len());
        let mut frames = [const { BorrowedFrame::Null }; WORDS_MAX];
        for (frame, word) in frames.iter_mut().zip(words) {
            *frame = BorrowedFrame::BulkString(word);
        }
        self.encode(&BorrowedFrame::Array(&frames[..words.len()]));
    }

    /// Appends one command of any number of words; allocates a list of them.
    fn push_long<'w>(&mut self, words: impl Iterator<Item = &'w [u8]>) {
        let frames: Vec<_> = words.map(BorrowedFrame::BulkString).collect();
        self.encode(&BorrowedFrame::Array(&frames));
    }

    fn encode(&mut self, command: &BorrowedFrame<'_>) {
        let queued = self.buffer.len();
        extend_encode_borrowed(&mut self.buffer, command, false)
            .expect("a buffer that was extended by the command's length holds it");
        // Not its return value, which is where the command ends (redis-protocol 6.0.0), not how long it is.
        self.queued_bytes += (self.buffer.len() - queued) as u64;
        self.peak_bytes = self.peak_bytes.max(self.buffer.len());
    }

    /// Takes what one write to the socket may carry; empty when nothing waits.
    fn take(&mut self) -> BytesMut {
        let chunk = self.buffer.split_to(self.buffer.len().min(BROKER_WRITE_BYTES_MAX));
        if self.buffer.is_empty() && self.peak_bytes > BROKER_WRITE_BYTES_MAX {
            // Otherwise the next command would take the large allocation over, and keep it.
            self.buffer = BytesMut::new();
            self.peak_bytes = 0;
        }
        chunk
    }

    /// Bytes that were ever taken.
    fn taken_bytes(&self) -> u64 {
        self.queued_bytes - self.buffer.len() as u64
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// HELLO 3 AUTH user password SETNAME name.
const WORDS_MAX: usize = 7;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{RedisAddress, RedisTarget};
    use crate::resp::{Frame, Inbox, Protocol, Received, Value};

    /// A server that is never asked where it is.
    pub(super) fn target(username: Option<&str>, password: Option<&str>, database: u32) -> RedisTarget {
        RedisTarget {
            address: RedisAddress::Tcp { host: "127.0.0.1".into(), port: 0 },
            username: username.map(Into::into),
            password: password.map(Into::into),
            database,
            tls: None,
        }
    }

    /// The commands in `output`, words joined by spaces.
    pub(super) fn commands(output: &[u8]) -> Vec<String> {
        let mut inbox = Inbox::new();
        let mut buffer = inbox.take_buffer();
        buffer.extend_from_slice(output);
        inbox.put_buffer(buffer);
        let mut commands = Vec::new();
        while let Some(Received::Frame(bytes)) = inbox.take_frame().expect("we send valid RESP") {
            let frame = Frame::decode(Protocol::Resp2, bytes).expect("we send valid RESP");
            let words = (0..).map_while(|index| match frame.item(index)? {
                Value::Text(word) => Some(String::from_utf8_lossy(word).into_owned()),
                other => panic!("{} in a command", other.describe()),
            });
            commands.push(words.collect::<Vec<_>>().join(" "));
        }
        commands
    }

    #[test]
    fn waits_double_to_their_bound_and_keep_a_floor_of_half() {
        for random in [0, u64::MAX / 3, u64::MAX] {
            let mut reconnect = Reconnect::new();
            let mut bound = RECONNECT_WAIT_MIN;
            for _ in 0..12 {
                let wait = reconnect.next_wait(random);
                assert!(wait >= bound / 2 && wait <= bound, "{wait:?} outside of half to whole of {bound:?}");
                bound = (bound * 2).min(RECONNECT_WAIT_MAX);
            }
            assert_eq!(bound, RECONNECT_WAIT_MAX);
        }
    }

    #[test]
    fn only_a_connection_that_lasted_resets_the_wait() {
        let start = Instant::now();
        let mut reconnect = Reconnect::new();
        (0..9).for_each(|_| assert!(reconnect.next_wait(0) < RECONNECT_WAIT_MAX));
        reconnect.note_end(start, start + RECONNECT_LASTED / 2);
        assert_eq!(reconnect.next_wait(0), RECONNECT_WAIT_MAX / 2);
        reconnect.note_end(start, start + RECONNECT_LASTED);
        assert_eq!(reconnect.next_wait(0), RECONNECT_WAIT_MIN / 2);
    }

    #[test]
    fn a_long_queue_leaves_in_bounded_writes_and_leaves_no_large_buffer() {
        let mut outbox = Outbox::default();
        let payload = vec![b'x'; 100_000];
        (0..20).for_each(|_| outbox.push(&[b"PUBLISH", b"room:a", &payload]));
        let mut written = 0;
        while let chunk = outbox.take()
            && !chunk.is_empty()
        {
            assert!(chunk.len() <= BROKER_WRITE_BYTES_MAX);
            written += chunk.len() as u64;
            assert_eq!(outbox.taken_bytes(), written);
        }
        assert_eq!(outbox.queued_bytes, written);
        outbox.push(&[b"PUBLISH", b"room:a", b"x"]);
        assert!(outbox.buffer.capacity() < BROKER_WRITE_BYTES_MAX, "the large buffer was kept");
    }

    #[test]
    fn error_replies_say_what_to_do() {
        let error = |text: &str| {
            SessionError::from_reply("SUBSCRIBE a", text.as_bytes(), "ann", "+subscribe '&a'").to_string()
        };
        assert!(error("NOAUTH Authentication required.").contains("give one"));
        assert!(error("WRONGPASS invalid").contains("ACL SETUSER ann on >PASSWORD"));
        assert!(error("NOPERM no").ends_with("ACL SETUSER ann +subscribe '&a'"));
        assert!(error("LOADING Redis is loading").contains("tried again"));
        assert!(error("ERR max number of clients reached").contains("tried again"));
        assert!(error("READONLY You can't write").contains("refused SUBSCRIBE a"));
        assert!(error("MOVED 1 10.0.0.1:7000").contains("redis+cluster://"));
    }
}
