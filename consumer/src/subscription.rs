//! The subscription: a thread that reads a Redis channel into a consumer, and comes back when Redis does.
//!
//! Whether Redis is there is said once per change. A connection on which nothing comes is asked (PING) and given up when
//! the answer is late, because TCP alone doesn't notice a peer that has gone.

use std::collections::hash_map::RandomState;
use std::fmt::Display;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use redis_protocol::resp2::types::OwnedFrame;
use shards::config::RedisTarget;
use shards::redis::Reconnect;

use crate::options::WhenFull;
use crate::pool::{Consumer, MessageError, OfferError};
use crate::redis::{Connection, Heard, RedisError, described};
use crate::stream::Stream;
use crate::throttle::{Throttle, Word};

/// Silence after which Redis is asked whether it is there, and how long its answer may take.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);

/// A thread that feeds a [`Consumer`] with what is published to its channel.
pub struct Subscription {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

struct Shared {
    target: RedisTarget,
    consumer: Arc<Consumer>,
    when_full: WhenFull,
    is_stopping: AtomicBool,
    is_up: AtomicBool,
    /// The connection in use, for [`Subscription::stop`] to write to.
    stream: Mutex<Option<Stream>>,
}

impl Subscription {
    /// Subscribes to the channel that is the home in the consumer's options, now or as soon as Redis is there.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn start(target: RedisTarget, consumer: Arc<Consumer>, when_full: WhenFull) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            target,
            consumer,
            when_full,
            is_stopping: AtomicBool::new(false),
            is_up: AtomicBool::new(false),
            stream: Mutex::new(None),
        });
        let thread = thread::Builder::new().name("subscriber".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || Subscriber::new(&shared).run()
        })?;
        Ok(Self { shared, thread })
    }

    /// Whether Redis has confirmed the subscription, and answers.
    pub fn is_up(&self) -> bool {
        self.shared.is_up.load(Ordering::Acquire)
    }

    /// A view of [`is_up`](Self::is_up) for another thread.
    pub fn up_probe(&self) -> impl Fn() -> bool + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.is_up.load(Ordering::Acquire)
    }

    /// Ends the subscription, and returns when all that Redis had for it is with the consumer; [`Consumer::stop`] is next.
    ///
    /// Begins the consumer's drain, whose deadline bounds the wait for room in the queue. A Redis that doesn't answer is
    /// waited for as long as any silence, 5 s.
    pub fn stop(self) {
        self.shared.consumer.begin_drain();
        self.shared.is_stopping.store(true, Ordering::Release);
        let stream = self.shared.stream().take();
        self.thread.thread().unpark();
        // Without a connection there is nothing at hand, and a connect may take long: the thread ends by itself.
        let Some(mut stream) = stream else { return };
        // What was published before Redis answers this comes before the answer. Where it can't be written, the
        // connection is broken, and its reader finds out by itself.
        if unsubscribe(&mut stream).is_err() {
            stream.shutdown();
        }
        self.thread.join().expect("the subscriber's thread does not panic");
    }
}

/// Written by another thread than the subscriber's: one write of few bytes, which the other's can't come between.
fn unsubscribe(stream: &mut Stream) -> io::Result<()> {
    stream.write_all(b"*1\r\n$11\r\nUNSUBSCRIBE\r\n")
}

impl Shared {
    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    fn stream(&self) -> MutexGuard<'_, Option<Stream>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's own state.
struct Subscriber<'s> {
    shared: &'s Shared,
    channel: &'s str,
    /// `None` before the first attempt.
    was_up: Option<bool>,
    invalid: Throttle,
    dropped: Throttle,
}

impl<'s> Subscriber<'s> {
    fn new(shared: &'s Shared) -> Self {
        let channel = shared.consumer.options().home.name();
        Self { shared, channel, was_up: None, invalid: Throttle::default(), dropped: Throttle::default() }
    }

    fn run(mut self) {
        let mut reconnect = Reconnect::new();
        while !self.shared.is_stopping() {
            let began = Instant::now();
            let Err(error) = self.serve() else { return };
            self.note_down(&error);
            reconnect.note_end(began, Instant::now());
            let random = RandomState::new().build_hasher().finish();
            self.wait(reconnect.next_wait(random));
        }
    }

    /// One connection, until it fails; `Ok` when the subscription is to end.
    fn serve(&mut self) -> Result<(), RedisError> {
        let mut connection = Connection::open(&self.shared.target)?;
        let stream = connection.stream().map_err(|error| connection.broken(error))?;
        *self.shared.stream() = Some(stream);
        // Whoever stopped us either found the stream, or has us find this.
        if self.shared.is_stopping() {
            return Ok(());
        }
        let served = self.read(&mut connection);
        self.say_rest();
        *self.shared.stream() = None;
        if self.shared.is_stopping() { Ok(()) } else { served }
    }

    /// Until the connection fails, or Redis has confirmed the end that [`Subscription::stop`] asked for.
    fn read(&mut self, connection: &mut Connection) -> Result<(), RedisError> {
        let subscribe: [&[u8]; 2] = [b"SUBSCRIBE", self.channel.as_bytes()];
        connection.send(&subscribe)?;
        let mut liveness = Liveness::new(Instant::now());
        loop {
            let now = Instant::now();
            self.say_due(now);
            let word = self.next_word(now).map(|due| due.saturating_duration_since(now));
            match liveness.next(now) {
                Step::Hear(silence) => {
                    match connection.hear(word.map_or(silence, |word| word.min(silence)))? {
                        // It was no silence, only time for a word.
                        Heard::Nothing if word.is_some_and(|word| word < silence) => {}
                        Heard::Nothing if self.shared.is_stopping() => return Ok(()),
                        Heard::Nothing => {}
                        Heard::TooBig(bytes) => {
                            liveness.heard(Instant::now());
                            self.shared.consumer.note_invalid();
                            self.note_invalid(&format_args!("found {bytes} bytes"));
                        }
                        Heard::Frame(OwnedFrame::Error(text)) => {
                            return Err(connection.refused(&subscribe, &text));
                        }
                        Heard::Frame(frame) => {
                            if self.handle(connection, frame)? {
                                return Ok(());
                            }
                            // Afterwards: while we waited for room in the queue, Redis was not the silent one.
                            liveness.heard(Instant::now());
                        }
                    }
                }
                Step::Ask => connection.send(&[b"PING"])?,
                Step::GiveUp => {
                    let silent = format!("nothing for {:?} although it was asked", 2 * SILENCE_MAX);
                    return Err(connection.broken(io::Error::new(io::ErrorKind::TimedOut, silent)));
                }
            }
        }
    }

    /// `["message", channel, payload]`, `["subscribe", channel, count]`, `["pong", ""]`, `["unsubscribe", channel, 0]`;
    /// returns whether it was the last, which was asked for.
    fn handle(&mut self, connection: &Connection, frame: OwnedFrame) -> Result<bool, RedisError> {
        let OwnedFrame::Array(parts) = &frame else {
            return Err(connection.unexpected(described(&frame), "a message"));
        };
        let word = |index: usize| match parts.get(index) {
            Some(OwnedFrame::BulkString(bytes)) => bytes.as_slice(),
            _ => b"",
        };
        match word(0) {
            b"message" => self.offer(word(2)),
            b"subscribe" => self.note_up(),
            b"pong" => {}
            b"unsubscribe" if self.shared.is_stopping() => return Ok(true),
            other => {
                let found = format!("{:?}", String::from_utf8_lossy(other));
                return Err(connection.unexpected(found, "a message, subscribe or pong"));
            }
        }
        Ok(false)
    }

    fn offer(&mut self, message: &[u8]) {
        match self.shared.consumer.offer_message(message, self.shared.when_full) {
            Ok(()) => {}
            Err(MessageError::Invalid(error)) => self.note_invalid(&error),
            // Once per name: what goes on is in the counters.
            Err(MessageError::Refused(OfferError::UnknownType { kind, is_new: true })) => {
                tracing::warn!(
                    component = "subscriber",
                    r#type = kind,
                    "no handler for this type of event: counted, not handled"
                );
            }
            Err(MessageError::Refused(OfferError::UnknownType { .. })) => {}
            Err(MessageError::Refused(error)) => {
                self.dropped.note(&error, Instant::now()).inspect(say_dropped);
            }
        }
    }

    fn note_invalid(&mut self, error: &dyn Display) {
        self.invalid.note(error, Instant::now()).inspect(say_invalid);
    }

    /// When there is something to say though nothing comes any more.
    fn next_word(&self, now: Instant) -> Option<Instant> {
        self.invalid.next_due(now).into_iter().chain(self.dropped.next_due(now)).min()
    }

    fn say_due(&mut self, now: Instant) {
        self.invalid.due(now).inspect(say_invalid);
        self.dropped.due(now).inspect(say_dropped);
    }

    fn say_rest(&mut self) {
        self.invalid.rest().inspect(say_invalid);
        self.dropped.rest().inspect(say_dropped);
    }

    fn note_up(&mut self) {
        self.shared.is_up.store(true, Ordering::Release);
        self.was_up = Some(true);
        tracing::info!(component = "subscriber", "subscribed to redis");
    }

    fn note_down(&mut self, error: &RedisError) {
        self.shared.is_up.store(false, Ordering::Release);
        match self.was_up.replace(false) {
            None => {
                tracing::error!(component = "subscriber", %error, "failed to connect to redis: it is tried again")
            }
            Some(true) => {
                tracing::error!(component = "subscriber", %error, "lost redis: what is published until it is back is missed");
            }
            Some(false) => tracing::debug!(component = "subscriber", %error, "redis is still away"),
        }
    }

    fn wait(&self, wait: Duration) {
        let until = Instant::now() + wait;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            if self.shared.is_stopping() || left.is_zero() {
                return;
            }
            thread::park_timeout(left);
        }
    }
}

fn say_invalid(word: &Word) {
    tracing::warn!(component = "subscriber", events = word.events, error = word.error, "invalid event");
}

fn say_dropped(word: &Word) {
    tracing::warn!(component = "subscriber", events = word.events, error = word.error, "event dropped");
}

/// Whether the other side is still there. Time is an argument.
struct Liveness {
    heard_at: Instant,
    asked_at: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Hear(Duration),
    Ask,
    GiveUp,
}

impl Liveness {
    fn new(now: Instant) -> Self {
        Self { heard_at: now, asked_at: None }
    }

    fn heard(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    fn next(&mut self, now: Instant) -> Step {
        let since = self.asked_at.unwrap_or(self.heard_at);
        let left = (since + SILENCE_MAX).saturating_duration_since(now);
        match (left.is_zero(), self.asked_at) {
            (false, _) => Step::Hear(left),
            (true, Some(_)) => Step::GiveUp,
            (true, None) => {
                self.asked_at = Some(now);
                Step::Ask
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_connection_is_asked_once_and_then_given_up() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        assert_eq!(liveness.next(start), Step::Hear(SILENCE_MAX));
        assert_eq!(liveness.next(start + SILENCE_MAX), Step::Ask);
        assert_eq!(liveness.next(start + SILENCE_MAX), Step::Hear(SILENCE_MAX));
        assert_eq!(liveness.next(start + 2 * SILENCE_MAX), Step::GiveUp);
    }

    #[test]
    fn an_answer_begins_the_silence_anew() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        assert_eq!(liveness.next(start + SILENCE_MAX), Step::Ask);
        let answered = start + SILENCE_MAX + SILENCE_MAX / 2;
        liveness.heard(answered);
        assert_eq!(liveness.next(start + 2 * SILENCE_MAX), Step::Hear(SILENCE_MAX / 2));
        assert_eq!(liveness.next(answered + SILENCE_MAX), Step::Ask);
    }
}
