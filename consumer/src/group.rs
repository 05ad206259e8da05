//! Membership in a consumer group of a Redis stream: events come at least once.
//!
//! Two threads, each with a connection of its own, because a connection that waits for new entries can say nothing: the
//! [`reader`] hands entries to the [`Consumer`], the [`acknowledger`] tells Redis what is settled, and that
//! this member still works on the rest. What is held and said is [`Holdings`]'.
//!
//! An entry is acknowledged when its handler has taken it, when it is kept as a dead letter, and when it can't be
//! handled by anybody: it is no event, or of a type without a handler, both counted. Everything else stays pending in
//! Redis, and goes to whoever asks for what has lain idle for [`Group::claim_idle`]. A member that lives says so in time.

mod acknowledger;
mod entry;
mod holdings;
mod reader;

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use shards::config::RedisTarget;
use shards::redis::EntryId;

use crate::pool::Consumer;
use acknowledger::Acknowledger;
pub use entry::DATA_FIELD;
use holdings::Holdings;
use reader::Reader;

/// A consumer group, and this member of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Key of the stream; made with the group where it isn't there.
    pub stream: String,
    /// Name of the group; made where it isn't there.
    pub name: String,
    /// Name of this member, which no other process may have at the same time: both would handle everything.
    pub consumer: String,
    /// Where a group begins that has to be made.
    pub start: GroupStart,
    /// How long an entry lies idle before another member takes it over. A member that lives says four times in this time
    /// that it still works on what it has.
    pub claim_idle: Duration,
    /// Deliveries after which an event becomes a dead letter and isn't handled once more: its handler may be what ends the
    /// consumers.
    pub deliveries_max: u64,
}

impl Group {
    /// The group `corecast` of a stream, with the defaults: what is new, a minute, 10 deliveries.
    pub fn new(stream: impl Into<String>, consumer: impl Into<String>) -> Self {
        Self {
            stream: stream.into(),
            name: "corecast".to_owned(),
            consumer: consumer.into(),
            start: GroupStart::Newest,
            claim_idle: Duration::from_secs(60),
            deliveries_max: 10,
        }
    }
}

/// Where a new group begins; as text what XGROUP CREATE takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupStart {
    /// `$`: with what is appended from now on.
    #[default]
    Newest,
    /// `0`, or an entry's id: with what comes after it.
    After {
        /// First part of the id.
        millis: u64,
        /// Second part.
        sequence: u64,
    },
}

impl FromStr for GroupStart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "$" => Ok(Self::Newest),
            "0" => Ok(Self::After { millis: 0, sequence: 0 }),
            _ => match EntryId::parse(text.as_bytes()) {
                Some(EntryId { millis, sequence }) => Ok(Self::After { millis, sequence }),
                None => Err(format!(
                    "found {text:?}, due $ (what is new), 0 (everything) or an entry's id such as 1771754400000-0"
                )),
            },
        }
    }
}

impl fmt::Display for GroupStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("$"),
            Self::After { millis: 0, sequence: 0 } => f.write_str("0"),
            Self::After { millis, sequence } => write!(f, "{millis}-{sequence}"),
        }
    }
}

/// Threads that feed a [`Consumer`] with the entries of a stream, and acknowledge what it has settled.
pub struct Membership {
    shared: Arc<Shared>,
    reader: Mutex<Option<JoinHandle<()>>>,
    acknowledger: JoinHandle<()>,
}

struct Shared {
    target: RedisTarget,
    consumer: Arc<Consumer>,
    group: Group,
    is_up: AtomicBool,
    desk: Arc<Desk>,
}

/// Where the threads and the consumer's workers meet.
pub(crate) struct Desk {
    state: Mutex<DeskState>,
    /// Something is to be said, or the phase has changed.
    due: Condvar,
}

struct DeskState {
    holdings: Holdings,
    phase: Phase,
    /// Redis' number for the reader's connection, while there is one.
    reader_client: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Reading,
    /// The reader is to end.
    Leaving,
    /// Nothing is handled any more; what is to be said has this long.
    Ending(Instant),
}

/// An entry in the consumer's hands; whoever has it last says what became of it.
#[derive(Clone)]
pub(crate) struct Ticket {
    id: EntryId,
    desk: Arc<Desk>,
}

impl Ticket {
    /// The entry is to be acknowledged.
    pub(crate) fn settle(&self) {
        self.desk.lock().holdings.settle(self.id);
        self.desk.due.notify_all();
    }

    /// The entry was not handled here: it stays pending.
    pub(crate) fn put_down(&self) {
        self.desk.lock().holdings.put_down(self.id);
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, DeskState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        let mut state = self.lock();
        state.phase = phase;
        state.holdings.leave();
        drop(state);
        self.due.notify_all();
    }
}

impl Membership {
    /// Joins `group`, now or as soon as Redis is there. The consumer's queue bounds what is taken at once.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn start(target: RedisTarget, consumer: Arc<Consumer>, group: Group) -> io::Result<Self> {
        let state = DeskState {
            holdings: Holdings::new(group.claim_idle, Instant::now()),
            phase: Phase::Reading,
            reader_client: None,
        };
        let desk = Arc::new(Desk { state: Mutex::new(state), due: Condvar::new() });
        let shared = Arc::new(Shared { target, consumer, group, is_up: AtomicBool::new(false), desk });
        let spawn = |name: &str, body: fn(&Shared)| {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(name.to_owned()).spawn(move || body(&shared))
        };
        let acknowledger = spawn("acknowledger", |shared| Acknowledger::new(shared).run())?;
        let reader = spawn("member", |shared| Reader::new(shared).run()).inspect_err(|_| {
            shared.desk.enter(Phase::Ending(Instant::now()));
        })?;
        Ok(Self { reader: Mutex::new(Some(reader)), acknowledger, shared })
    }

    /// Whether this is a member of the group, and Redis answers.
    pub fn is_up(&self) -> bool {
        self.shared.is_up.load(Ordering::Acquire)
    }

    /// A view of [`is_up`](Self::is_up) for another thread.
    pub fn up_probe(&self) -> impl Fn() -> bool + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.is_up.load(Ordering::Acquire)
    }

    /// Reads no more, and returns when what was read is with the consumer; [`Consumer::stop`] is next, and then
    /// [`end`](Self::end). Begins the consumer's drain.
    pub fn stop(&self) {
        self.shared.consumer.begin_drain();
        self.shared.desk.enter(Phase::Leaving);
        let is_connected = self.shared.desk.lock().reader_client.is_some();
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Without a connection there is nothing at hand, and a connect may take long: the thread ends by itself.
        if let Some(reader) = reader.filter(|_| is_connected) {
            reader.join().expect("the member's thread does not panic");
        }
    }

    /// Has Redis take the last acknowledgements, and hands back what was not settled, for the others in the group to take
    /// over at once. Returns within 10 s: what Redis doesn't hear it delivers again.
    pub fn end(self) {
        self.shared.desk.enter(Phase::Ending(Instant::now() + LAST_WORD_MAX));
        self.acknowledger.join().expect("the acknowledger's thread does not panic");
    }
}

/// For the last acknowledgements; as long as one answer may take.
const LAST_WORD_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_reads_as_it_is_shown() {
        for text in ["$", "0", "1771754400000-7"] {
            assert_eq!(text.parse::<GroupStart>().unwrap().to_string(), text);
        }
        for text in ["", "new", "1771754400000", "-", ">"] {
            assert!(text.parse::<GroupStart>().unwrap_err().contains("due $ (what is new)"), "{text}");
        }
    }
}
