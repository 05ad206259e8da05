//! The two connections that read streams, beside those of channels: they live as long as the link is up, and break alone.
//!
//! They go where the link went, so that a failover is followed once; and a link that ends takes them along. What the bytes mean
//! is [`Streams`]'s, what an entry is for is the relay's.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use bytes::BytesMut;

use super::connect::{Connection, Connections, End, connect, describe};
use super::half::{ReadHalf, WriteHalf};
use super::{BrokerEvents, Link, Pair, Reader, Speaker, Wake, random, read, write};
use crate::config::RedisTarget;
use crate::limits::{
    BROKER_HANDSHAKE_TIMEOUT, HISTORY_PAGE_ELEMENTS_MAX, REFUSALS_NOTED_MAX, STREAM_HISTORY_BYTES_MAX,
    STREAM_HISTORY_ENTRIES_MAX,
};
use crate::redis::{
    Append, HistoryError, Position, ReaderCounters, Reconnect, Refused, SessionError, Streams, StreamsEvent,
};
use crate::resp::{Inbox, Received};

/// See the module.
pub(super) struct StreamLink {
    inner: RefCell<Inner>,
    reader_wake: Wake,
    recorder_wake: Wake,
    /// Also told when the link comes up, or ends.
    pub(super) supervisor_wake: Wake,
}

struct Inner {
    streams: Streams,
    /// Why the current connections are of no use any more; the first reason counts.
    ended: Option<String>,
    last_reason: String,
    refusals: Refusals,
    /// Capacity of the receive buffers: reader, recorder.
    inbox_bytes: [usize; 2],
}

/// Streams that are refused, and why, so that trying them again is not said again.
#[derive(Debug, Default)]
struct Refusals(HashMap<Box<[u8]>, String>);

impl Refusals {
    /// Whether this is news. Over the bound all of them are, once more.
    fn note(&mut self, stream: &[u8], reason: String) -> bool {
        if self.0.get(stream) == Some(&reason) {
            return false;
        }
        if self.0.len() == REFUSALS_NOTED_MAX {
            self.0.clear();
        }
        self.0.insert(stream.into(), reason);
        true
    }

    /// It is followed after all.
    fn forget(&mut self, stream: &[u8]) {
        self.0.remove(stream);
    }
}

impl StreamLink {
    pub(super) fn new(target: &RedisTarget) -> Rc<Self> {
        Rc::new(Self {
            inner: RefCell::new(Inner {
                streams: Streams::new(target),
                ended: None,
                last_reason: String::new(),
                refusals: Refusals::default(),
                inbox_bytes: [0; 2],
            }),
            reader_wake: Wake::default(),
            recorder_wake: Wake::default(),
            supervisor_wake: Wake::default(),
        })
    }

    pub(super) fn follow(&self, stream: &[u8]) -> Option<Position> {
        let mut inner = self.inner.borrow_mut();
        inner.streams.follow(stream, random());
        self.note_asked(&inner);
        inner.streams.anchored_at(stream)
    }

    pub(super) fn unfollow(&self, stream: &[u8]) {
        self.inner.borrow_mut().streams.unfollow(stream);
    }

    pub(super) fn recall(&self, token: u64, stream: &[u8], after: u64) -> Result<(), HistoryError> {
        let (entries, bytes) = (STREAM_HISTORY_ENTRIES_MAX, STREAM_HISTORY_BYTES_MAX);
        let mut inner = self.inner.borrow_mut();
        inner.streams.recall(token, stream, after, entries, bytes, random())?;
        self.note_asked(&inner);
        Ok(())
    }

    pub(super) fn append(&self, append: &Append<'_>, token: u64) -> Result<(), Refused> {
        let mut inner = self.inner.borrow_mut();
        inner.streams.append(append, token)?;
        self.note_asked(&inner);
        Ok(())
    }

    /// Has what was asked written, and its answer missed when it is late: where nothing is read, nobody else looks at the clock.
    fn note_asked(&self, inner: &Inner) {
        self.recorder_wake.notify();
        if inner.streams.is_unwatched() {
            self.supervisor_wake.notify();
        }
    }

    pub(super) fn appends_inflight(&self) -> usize {
        self.inner.borrow().streams.appends_inflight()
    }

    pub(super) fn counters(&self) -> ReaderCounters {
        self.inner.borrow().streams.counters()
    }

    pub(super) fn receive_buffer_bytes(&self) -> usize {
        self.inner.borrow().inbox_bytes.iter().sum()
    }

    /// Has what the sessions want to say written, after they have been asked what is due.
    fn poll(&self, now: Instant) -> Result<(), SessionError> {
        let polled = self.inner.borrow_mut().streams.poll(now, random());
        self.reader_wake.notify();
        self.recorder_wake.notify();
        polled
    }
}

/// The connections of one attempt, and the link that they belong to.
struct Attempt<E> {
    streams: Rc<StreamLink>,
    link: Rc<Link>,
    events: Rc<RefCell<E>>,
}

impl<E> Clone for Attempt<E> {
    fn clone(&self) -> Self {
        let Self { streams, link, events } = self;
        Self { streams: streams.clone(), link: link.clone(), events: events.clone() }
    }
}

impl<E> Pair for Attempt<E> {
    fn end(&self, reason: impl ToString) {
        self.streams.inner.borrow_mut().ended.get_or_insert_with(|| reason.to_string());
        self.streams.supervisor_wake.notify();
    }

    fn has_ended(&self) -> bool {
        self.streams.inner.borrow().ended.is_some() || self.link.has_ended()
    }

    fn is_stopping(&self) -> bool {
        self.link.is_stopping()
    }

    fn note_inbox(&self, index: usize, bytes: usize) {
        self.streams.inner.borrow_mut().inbox_bytes[index] = bytes;
    }
}

/// Keeps the connections up until the link ends.
pub(super) async fn keep_up<E: BrokerEvents + 'static>(
    streams: Rc<StreamLink>,
    link: Rc<Link>,
    events: Rc<RefCell<E>>,
    place: RedisTarget,
) {
    let attempt = Attempt { streams, link, events };
    let Attempt { streams, link, .. } = &attempt;
    while !link.inner.borrow().is_up && !link.has_ended() {
        streams.supervisor_wake.wait().await;
    }
    let address = describe(&place.address);
    let mut reconnect = Reconnect::new();
    while !link.has_ended() {
        let (up_since, reason) = match connect(&place, || link.has_ended()).await {
            _ if link.has_ended() => return,
            Ok(Connections::Tcp(reader, recorder)) => converse(&attempt, reader, recorder).await,
            Ok(Connections::Tls(reader, recorder)) => converse(&attempt, reader, recorder).await,
            Ok(Connections::Unix(reader, recorder)) => converse(&attempt, reader, recorder).await,
            Err(reason) => (None, reason),
        };
        if link.has_ended() {
            return;
        }
        if let Some(up_since) = up_since {
            reconnect.note_end(up_since, Instant::now());
        }
        // One line per change: attempts that fail like the last one say nothing.
        if up_since.is_some() || reason != streams.inner.borrow().last_reason {
            tracing::warn!(%address, %reason, "streams can't be read; connecting again, what comes meanwhile is read then");
        }
        streams.inner.borrow_mut().last_reason = reason;
        let until = Instant::now() + reconnect.next_wait(random());
        while !link.has_ended() && Instant::now() < until {
            streams.supervisor_wake.wait_until(until).await;
        }
    }
}

/// Drives both sessions until one of the connections ends. Returns since when streams were read, and why they aren't any more.
async fn converse<E, R, W>(
    attempt: &Attempt<E>,
    reader: Connection<R, W>,
    recorder: Connection<R, W>,
) -> (Option<Instant>, String)
where
    E: BrokerEvents + 'static,
    R: ReadHalf + 'static,
    W: WriteHalf + 'static,
{
    let Attempt { streams, events, .. } = attempt;
    {
        let mut inner = streams.inner.borrow_mut();
        inner.ended = None;
        inner.streams.begin();
    }
    let ends = [reader.end, recorder.end];
    let pair = Rc::new(attempt.clone());
    let tasks = [
        monoio::spawn(read(EntryReader(attempt.clone()), reader.read, pair.clone())),
        monoio::spawn(read(RecordReader(attempt.clone()), recorder.read, pair)),
        monoio::spawn(write(Voice(attempt.clone(), Direction::Reader), reader.write)),
        monoio::spawn(write(Voice(attempt.clone(), Direction::Recorder), recorder.write)),
    ];
    let up_since = watch(attempt).await;
    ends.iter().for_each(End::shutdown);
    streams.reader_wake.notify();
    streams.recorder_wake.notify();
    for task in tasks {
        task.await;
    }
    let (reason, unanswered) = {
        let mut inner = streams.inner.borrow_mut();
        inner.inbox_bytes = [0; 2];
        let reason = inner.ended.take().unwrap_or_else(|| "the link to redis ended".to_owned());
        (reason, inner.streams.end())
    };
    let mut events = events.borrow_mut();
    if up_since.is_some() {
        events.streams_down();
    }
    for event in unanswered {
        events.stream(event);
    }
    events.batch_end();
    (up_since, reason)
}

/// Asks for what is due until the connections are of no use. Returns since when streams were read.
async fn watch<E: BrokerEvents>(attempt: &Attempt<E>) -> Option<Instant> {
    let Attempt { streams, events, .. } = attempt;
    let handshake_until = Instant::now() + BROKER_HANDSHAKE_TIMEOUT;
    let mut up_since = None;
    while !attempt.has_ended() {
        let now = Instant::now();
        if let Err(error) = streams.poll(now) {
            attempt.end(error);
            break;
        }
        let (is_up, deadline) = {
            let inner = streams.inner.borrow();
            (inner.streams.is_up(), inner.streams.next_deadline())
        };
        if is_up && up_since.is_none() {
            up_since = Some(now);
            tracing::info!("streams are read");
            let mut events = events.borrow_mut();
            events.streams_up();
            events.batch_end();
        }
        if !is_up && now >= handshake_until {
            attempt.end(SessionError::HandshakeTimeout(BROKER_HANDSHAKE_TIMEOUT));
            break;
        }
        let deadline = deadline.into_iter().chain((!is_up).then_some(handshake_until)).min();
        match deadline {
            Some(deadline) => streams.supervisor_wake.wait_until(deadline).await,
            None => streams.supervisor_wake.wait().await,
        }
    }
    up_since
}

/// What comes on the reader's connection.
struct EntryReader<E>(Attempt<E>);

impl<E: BrokerEvents> Reader for EntryReader<E> {
    const INBOX: usize = 0;

    fn handle_batch(&mut self, inbox: &mut Inbox, pair: &impl Pair) -> Result<(), SessionError> {
        let Attempt { streams, events, .. } = &self.0;
        let now = Instant::now();
        while !pair.is_stopping() {
            // The event is lent by the session: whoever hears it doesn't use the link meanwhile.
            let mut inner = streams.inner.borrow_mut();
            let Inner { streams, refusals, .. } = &mut *inner;
            let Some(event) = streams.take_entry(inbox, now)? else { break };
            note(&event, refusals);
            events.borrow_mut().stream(event);
        }
        streams.poll(now)
    }

    fn handle(&mut self, _received: Received<'_>, _now: Instant) -> Result<(), SessionError> {
        unreachable!("entries are taken one by one, as they come")
    }

    fn batch_begin(&mut self) {
        self.0.events.borrow_mut().batch_begin();
    }

    fn batch_end(&mut self) {
        self.0.events.borrow_mut().batch_end();
        // What is due next may be due earlier now.
        self.0.streams.supervisor_wake.notify();
    }
}

/// What comes on the recorder's.
struct RecordReader<E>(Attempt<E>);

impl<E: BrokerEvents> Reader for RecordReader<E> {
    const INBOX: usize = 1;

    /// Entries have as many fields as whoever appends them likes: a page that has too many is asked for anew, shorter.
    fn inbox() -> Inbox {
        Inbox::skipping_elements(HISTORY_PAGE_ELEMENTS_MAX)
    }

    fn handle_batch(&mut self, inbox: &mut Inbox, pair: &impl Pair) -> Result<(), SessionError> {
        let now = Instant::now();
        while !pair.is_stopping() {
            let Some(received) = inbox.take_frame()? else { break };
            self.handle(received, now)?;
        }
        self.0.streams.poll(now)
    }

    fn handle(&mut self, received: Received<'_>, now: Instant) -> Result<(), SessionError> {
        let Attempt { streams, events, .. } = &self.0;
        let event = streams.inner.borrow_mut().streams.handle_record(received, now, random())?;
        if let Some(event) = event {
            note(&event, &mut streams.inner.borrow_mut().refusals);
            events.borrow_mut().stream(event);
        }
        Ok(())
    }

    fn batch_begin(&mut self) {
        self.0.events.borrow_mut().batch_begin();
    }

    fn batch_end(&mut self) {
        self.0.events.borrow_mut().batch_end();
        self.0.streams.supervisor_wake.notify();
    }
}

/// Says what is worth a line.
fn note(event: &StreamsEvent<'_>, refusals: &mut Refusals) {
    match event {
        StreamsEvent::Anchored { stream, .. } => refusals.forget(stream),
        StreamsEvent::Refused { stream, reason } => {
            let is_news = refusals.note(stream, reason.to_string());
            if is_news {
                let stream = String::from_utf8_lossy(stream);
                tracing::warn!(%stream, %reason, "a stream can't be followed; it is tried again");
            }
        }
        StreamsEvent::Gap { stream, from, position } => {
            let (stream, to) = (String::from_utf8_lossy(stream), position.number);
            tracing::warn!(%stream, from, to, "entries of a stream were gone before they could be read");
        }
        StreamsEvent::Broken { stream, position } => {
            let (stream, number) = (String::from_utf8_lossy(stream), position.number);
            tracing::warn!(%stream, number, "a stream was made anew or set back; its numbers go on in a new epoch");
        }
        _ => {}
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Reader,
    Recorder,
}

struct Voice<E>(Attempt<E>, Direction);

impl<E> Speaker for Voice<E> {
    fn take_output(&self) -> BytesMut {
        let streams = &mut self.0.streams.inner.borrow_mut().streams;
        match self.1 {
            Direction::Reader => streams.take_reader_output(),
            Direction::Recorder => streams.take_recorder_output(),
        }
    }

    fn wake(&self) -> &Wake {
        match self.1 {
            Direction::Reader => &self.0.streams.reader_wake,
            Direction::Recorder => &self.0.streams.recorder_wake,
        }
    }

    fn pair(&self) -> &impl Pair {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_stays_refused_is_said_once() {
        let mut refusals = Refusals::default();
        let mut note = |stream: &[u8], reason: &str| refusals.note(stream, reason.to_owned());
        assert_eq!((note(b"a", "old"), note(b"a", "old"), note(b"b", "old")), (true, false, true));
        assert!(note(b"a", "denied"), "another reason is news");
        for stream in 0..2 * REFUSALS_NOTED_MAX {
            note(stream.to_string().as_bytes(), "old");
        }
        assert!(refusals.0.len() <= REFUSALS_NOTED_MAX);
        refusals.note(b"a", "old".to_owned());
        refusals.forget(b"a");
        assert!(refusals.note(b"a", "old".to_owned()), "it was well meanwhile");
    }
}
