//! Step 1 of 5: bytes from Redis become publications.
//!
//! Owns the two connections to Redis and their life: connecting, reading, writing, time-outs, coming back. What the
//! bytes mean is [`redis`](crate::redis)'s; what a publication is for is the relay's, which hears of everything through
//! [`BrokerEvents`] and speaks through [`BrokerLink`]. All of it runs on the relay's thread, in the monoio runtime that
//! [`start`] was called in, on either driver; the runtime needs its timer.
//!
//! Names are resolved and connections made on a plain thread, because both block. Reads and writes are never raced
//! against anything, since a dropped read loses data: a task for each direction owns them, and shutting the socket down
//! ends them. Nothing is published or subscribed while the link is down; what is wanted is subscribed again.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::RandomState;
use std::future::poll_fn;
use std::hash::{BuildHasher, Hasher};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use monoio::buf::{IoBufMut, SliceMut};
use tls::TlsError;

use crate::config::{RedisAddress, RedisTarget, Server};
use crate::limits::{BROKER_HANDSHAKE_TIMEOUT, RECEIVE_BUFFER_BYTES};
use crate::redis::{
    Commander, CommanderEvent, PublishError, ReaderCounters, Reconnect, Refused, SessionError, StreamsEvent,
    Subscriber, SubscriberCounters, SubscriberEvent,
};
use crate::resp::{Inbox, Received};

mod blocking;
mod cluster;
mod connect;
mod faults;
mod fences;
mod half;
mod link;
mod sentinel;
mod streams;

pub use link::BrokerLink;

pub use connect::tls_client;
use connect::{Connection, Connections, End, connect, describe};
use faults::LastValueFaults;
use half::{ReadHalf, WriteHalf};
use sentinel::Watch;
use streams::StreamLink;

/// What the relay hears of the broker. Every call is made from the link's own tasks, never from inside a
/// [`BrokerLink`] method, and may itself call those.
///
/// Between two calls of [`batch_end`](Self::batch_end) nothing is awaited, so rings and doorbells may be flushed there.
pub trait BrokerEvents {
    /// All fixed sources are subscribed, and a probe has shown that both connections work. Publishing is possible.
    ///
    /// Publications of this run may have come a little earlier. Channels wanted by [`BrokerLink::subscribe`] are being
    /// subscribed again, each followed by [`confirmed`](Self::confirmed).
    fn up(&mut self);
    /// The subscription broke, or a probe was late: publications may be missing from now on.
    ///
    /// Called once per [`up`](Self::up). Every publication under way is answered next, by [`published`](Self::published).
    fn down(&mut self, reason: &str);
    /// The link broke again before it was [`up`](Self::up), and publications or confirmations had come by it.
    fn broke_early(&mut self) {}
    /// The exact channel is confirmed: whatever Redis accepts from now on arrives. May precede [`up`](Self::up).
    fn confirmed(&mut self, channel: &[u8]);
    /// Redis ended the subscription of this exact channel unasked; publications may be missing until it is
    /// [`confirmed`](Self::confirmed) again, which is under way.
    fn lapsed(&mut self, channel: &[u8]);
    /// Redis doesn't permit this exact channel. It isn't wanted any more; the reason has been logged.
    fn refused(&mut self, channel: &[u8], reason: &str);
    /// This node of a cluster has not the slot of the exact channel, which isn't wanted there any more; `to` has it. Told to who
    /// drives the cluster, never to the relay.
    fn moved(&mut self, _channel: &[u8], _to: Option<Server>) {}
    /// This node of a cluster has not the slot of the probe's channel any more, and the probe takes another. As for `moved`.
    fn probe_moved(&mut self) {}
    /// This node of a cluster did not take the probe. As for `moved`.
    fn probe_refused(&mut self) {}
    /// A publication; `pattern` is the one that let it in, `None` for an exact subscription. Copy what you keep.
    fn message(&mut self, pattern: Option<&[u8]>, channel: &[u8], payload: &[u8]);
    /// Redis answered a publication (number of its connections that received it), or never will.
    fn published(&mut self, token: u64, result: Result<u64, PublishError>);
    /// Redis answered a [`BrokerLink::keep`]. Not called where the connection ended first; [`down`](Self::down) was then.
    fn kept(&mut self, key: &str, is_kept: bool);
    /// Redis answered a [`BrokerLink::fetch`]: a value, or that there is none. Not called where the connection ended first.
    fn fetched(&mut self, key: &str, value: Option<&[u8]>);
    /// Probe `number` is on its way, behind every publication accepted before this call and ahead of every later one.
    fn probe_sent(&mut self, number: u64);
    /// A fence: every PUBLISH that was written before probe `number` has come back, if it ever will.
    fn probe_returned(&mut self, number: u64);
    /// The connections that read streams are up: what is followed is anchored and then read, [`stream`](Self::stream) tells.
    fn streams_up(&mut self) {}
    /// They broke. What was under way is answered next, by [`stream`](Self::stream).
    fn streams_down(&mut self) {}
    /// What a stream says. The link must not be used from inside this call, but at the end of the batch.
    fn stream(&mut self, _event: StreamsEvent<'_>) {}
    /// A read from Redis has returned, and what it brought is told next.
    fn batch_begin(&mut self) {}
    /// All that one read, or one change of state, brought has been told.
    fn batch_end(&mut self);
}

/// The link to one server. What its methods promise is said at [`BrokerLink`].
#[derive(Clone)]
struct OneLink {
    link: Rc<Link>,
}

/// What the link has counted since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BrokerCounters {
    /// Times that the link came up.
    pub ups: u64,
    /// Times that it came up after having been up before.
    pub reconnects: u64,
    /// Attempts to connect that failed before the link was up.
    pub attempts_failed: u64,
    /// Publications that were refused because the link was down, full, or the payload too long.
    pub publishes_refused: u64,
    /// Publications that Redis refused, or whose fate is unknown.
    pub publishes_failed: u64,
    /// Bytes of the receive buffers, both connections: what a hostile server can make us hold.
    pub receive_buffer_bytes: usize,
    /// What the subscriber counted.
    pub subscriber: SubscriberCounters,
    /// What the reader of streams counted.
    pub reader: ReaderCounters,
}

impl BrokerCounters {
    /// Of two links together.
    fn plus(&self, other: &Self) -> Self {
        let (a, b) = (&self.subscriber, &other.subscriber);
        Self {
            ups: self.ups + other.ups,
            reconnects: self.reconnects + other.reconnects,
            attempts_failed: self.attempts_failed + other.attempts_failed,
            publishes_refused: self.publishes_refused + other.publishes_refused,
            publishes_failed: self.publishes_failed + other.publishes_failed,
            receive_buffer_bytes: self.receive_buffer_bytes + other.receive_buffer_bytes,
            subscriber: SubscriberCounters {
                messages: a.messages + b.messages,
                pushes_unknown: a.pushes_unknown + b.pushes_unknown,
                probes_foreign: a.probes_foreign + b.probes_foreign,
                too_big: a.too_big + b.too_big,
                lapses: a.lapses + b.lapses,
            },
            // No cluster has streams.
            reader: self.reader,
        }
    }
}

impl OneLink {
    fn subscribe(&self, channel: &[u8]) -> bool {
        let is_confirmed = self.link.inner.borrow_mut().subscriber.subscribe(channel);
        self.link.subscriber_wake.notify();
        is_confirmed
    }

    fn unsubscribe(&self, channel: &[u8]) {
        self.link.inner.borrow_mut().subscriber.unsubscribe(channel);
        self.link.subscriber_wake.notify();
    }

    fn publish(&self, channel: &[u8], payload: &[u8], token: u64) -> Result<(), Refused> {
        let mut inner = self.link.inner.borrow_mut();
        let result =
            if inner.is_up { inner.commander.publish(channel, payload, token) } else { Err(Refused::Down) };
        inner.counters.publishes_refused += u64::from(result.is_err());
        drop(inner);
        if result.is_ok() {
            self.link.commander_wake.notify();
        }
        result
    }

    fn keep(&self, key: &str, value: &[u8], ttl_millis: u64) -> Result<(), Refused> {
        self.command(|commander| commander.keep(key, value, ttl_millis))
    }

    fn fetch(&self, key: &str) -> Result<(), Refused> {
        self.command(|commander| commander.fetch(key))
    }

    fn command(&self, queue: impl FnOnce(&mut Commander) -> Result<(), Refused>) -> Result<(), Refused> {
        let mut inner = self.link.inner.borrow_mut();
        let result = if inner.is_up { queue(&mut inner.commander) } else { Err(Refused::Down) };
        drop(inner);
        if result.is_ok() {
            self.link.commander_wake.notify();
        }
        result
    }

    fn is_up(&self) -> bool {
        self.link.inner.borrow().is_up
    }

    fn streams(&self) -> Option<&StreamLink> {
        self.link.streams.as_deref()
    }

    fn last_reason(&self) -> String {
        self.link.inner.borrow().last_reason.clone()
    }

    fn publishes_inflight(&self) -> usize {
        let appends = self.streams().map_or(0, StreamLink::appends_inflight);
        self.link.inner.borrow().commander.publishes_inflight() + appends
    }

    fn counters(&self) -> BrokerCounters {
        let inner = self.link.inner.borrow();
        BrokerCounters {
            subscriber: inner.subscriber.counters(),
            receive_buffer_bytes: inner.inbox_bytes.iter().sum::<usize>()
                + self.streams().map_or(0, StreamLink::receive_buffer_bytes),
            reader: self.streams().map(StreamLink::counters).unwrap_or_default(),
            ..inner.counters
        }
    }

    fn shutdown(&self) {
        self.link.inner.borrow_mut().is_stopping = true;
        self.link.notify_supervisors();
    }

    async fn stopped(&self) {
        while !self.link.inner.borrow().is_stopped {
            self.link.stopped_wake.wait().await;
        }
        // Another clone may wait as well.
        self.link.stopped_wake.notify();
    }

    /// Takes another channel for the probe, at a node of a cluster.
    fn set_probe(&self, channel: &str) {
        let mut inner = self.link.inner.borrow_mut();
        inner.subscriber.set_probe(channel);
        inner.commander.set_probe(channel);
        drop(inner);
        self.link.subscriber_wake.notify();
    }
}

/// Starts the link on the monoio runtime of this thread, and keeps it up until [`BrokerLink::shutdown`].
///
/// `wants` is subscribed for the life of the link. `node_id` names the probe's channel.
pub fn start<E: BrokerEvents + 'static>(
    target: RedisTarget,
    node_id: &str,
    wants: &Wants,
    events: Rc<RefCell<E>>,
) -> BrokerLink {
    let Wants { patterns, channels, streams } = wants;
    if let RedisAddress::Cluster(_) = &target.address {
        // The configuration refuses sources of other kinds there.
        let is_on_demand = patterns.is_empty() && channels.is_empty() && !streams;
        assert!(is_on_demand, "a cluster has channels on demand only");
        return BrokerLink::cluster(cluster::start(target, node_id, events));
    }
    let run = random();
    let subscriber = Subscriber::new(&target, node_id, run, patterns, channels);
    let commander = Commander::new(&target, node_id, run);
    let streams = streams.then(|| StreamLink::new(&target));
    BrokerLink::one(start_one(target, subscriber, commander, streams, events))
}

/// What a link is wanted for, beside channels on demand and publishing.
#[derive(Debug, Clone, Default)]
pub struct Wants {
    /// Patterns that are subscribed.
    pub patterns: Vec<String>,
    /// Channels that are.
    pub channels: Vec<String>,
    /// Streams are followed on demand: two connections more.
    pub streams: bool,
}

/// The same for a node of a cluster, whose probe has its own channel.
fn start_node<E: BrokerEvents + 'static>(
    target: RedisTarget,
    probe_channel: &str,
    events: Rc<RefCell<E>>,
) -> OneLink {
    let run = random();
    let subscriber = Subscriber::sharded(&target, probe_channel, run);
    let commander = Commander::sharded(&target, probe_channel, run);
    start_one(target, subscriber, commander, None, events)
}

fn start_one<E: BrokerEvents + 'static>(
    target: RedisTarget,
    subscriber: Subscriber,
    commander: Commander,
    streams: Option<Rc<StreamLink>>,
    events: Rc<RefCell<E>>,
) -> OneLink {
    let link = Rc::new(Link {
        inner: RefCell::new(Inner {
            subscriber,
            commander,
            is_up: false,
            has_come_early: false,
            is_stopping: false,
            is_stopped: false,
            ended: None,
            last_reason: String::new(),
            last_value_faults: LastValueFaults::default(),
            counters: BrokerCounters::default(),
            inbox_bytes: [0; 2],
        }),
        subscriber_wake: Wake::default(),
        commander_wake: Wake::default(),
        supervisor_wake: Wake::default(),
        stopped_wake: Wake::default(),
        streams,
    });
    monoio::spawn(supervise(link.clone(), events, target));
    OneLink { link }
}

struct Link {
    /// Never held across an await, nor while [`BrokerEvents`] is called.
    inner: RefCell<Inner>,
    subscriber_wake: Wake,
    commander_wake: Wake,
    supervisor_wake: Wake,
    stopped_wake: Wake,
    /// Where streams are wanted: they live with the link.
    streams: Option<Rc<StreamLink>>,
}

struct Inner {
    subscriber: Subscriber,
    commander: Commander,
    is_up: bool,
    /// A publication, or the confirmation of a channel, has come before it was up.
    has_come_early: bool,
    is_stopping: bool,
    is_stopped: bool,
    /// Why the current connections are of no use any more; the first reason counts.
    ended: Option<String>,
    last_reason: String,
    last_value_faults: LastValueFaults,
    counters: BrokerCounters,
    /// Capacity of the receive buffers: subscriber, commander.
    inbox_bytes: [usize; 2],
}

impl Inner {
    fn note_arrival(&mut self) {
        self.has_come_early |= !self.is_up;
    }
}

impl Link {
    fn end(&self, reason: impl ToString) {
        let mut inner = self.inner.borrow_mut();
        inner.ended.get_or_insert_with(|| reason.to_string());
        drop(inner);
        self.notify_supervisors();
    }

    fn notify_supervisors(&self) {
        self.supervisor_wake.notify();
        if let Some(streams) = &self.streams {
            streams.supervisor_wake.notify();
        }
    }

    fn has_ended(&self) -> bool {
        let inner = self.inner.borrow();
        inner.ended.is_some() || inner.is_stopping
    }

    fn is_stopping(&self) -> bool {
        self.inner.borrow().is_stopping
    }
}

/// Keeps the link up: one attempt after the other, with a wait between them.
async fn supervise<E: BrokerEvents + 'static>(link: Rc<Link>, events: Rc<RefCell<E>>, target: RedisTarget) {
    let watch = match &target.address {
        RedisAddress::Sentinel(sentinels) => Some(Watch::start(&target, sentinels, &link)),
        _ => None,
    };
    let is_over = || link.is_stopping() || watch.as_ref().is_some_and(|watch| watch.has_moved());
    let mut reconnect = Reconnect::new();
    while !link.is_stopping() {
        let place = match &watch {
            Some(watch) => watch.locate(&link).await,
            None => Ok(target.address.clone()),
        };
        let address = describe(place.as_ref().unwrap_or(&target.address));
        let place = place.map(|address| target.at(address));
        let connections = match &place {
            Ok(place) => connect(place, is_over).await,
            Err(reason) => Err(reason.clone()),
        };
        let place = place.as_ref().unwrap_or(&target);
        let (up_since, reason) = match connections {
            _ if is_over() => (None, "its sentinels named another primary meanwhile".into()),
            Ok(Connections::Tcp(subscriber, commander)) => {
                converse(&link, &events, subscriber, commander, place).await
            }
            Ok(Connections::Tls(subscriber, commander)) => {
                converse(&link, &events, subscriber, commander, place).await
            }
            Ok(Connections::Unix(subscriber, commander)) => {
                converse(&link, &events, subscriber, commander, place).await
            }
            Err(reason) => (None, reason),
        };
        if link.is_stopping() {
            break;
        }
        if let Some(up_since) = up_since {
            reconnect.note_end(up_since, Instant::now());
        } else {
            link.inner.borrow_mut().counters.attempts_failed += 1;
        }
        // One line per change: attempts that fail like the last one say nothing.
        if up_since.is_some() || reason != link.inner.borrow().last_reason {
            tracing::warn!(%address, %reason, "redis is away; local routing goes on, connecting again");
        }
        link.inner.borrow_mut().last_reason = reason;
        let until = Instant::now() + reconnect.next_wait(random());
        while !is_over() && Instant::now() < until {
            link.supervisor_wake.wait_until(until).await;
        }
    }
    if let Some(watch) = watch {
        watch.stopped().await;
    }
    link.inner.borrow_mut().is_stopped = true;
    link.stopped_wake.notify();
}

/// Drives both sessions over their connections until one of them ends. Returns since when the link was up, and why it
/// isn't any more.
async fn converse<E, R, W>(
    link: &Rc<Link>,
    events: &Rc<RefCell<E>>,
    subscriber: Connection<R, W>,
    commander: Connection<R, W>,
    place: &RedisTarget,
) -> (Option<Instant>, String)
where
    E: BrokerEvents + 'static,
    R: ReadHalf + 'static,
    W: WriteHalf + 'static,
{
    {
        let mut inner = link.inner.borrow_mut();
        inner.ended = None;
        inner.subscriber.begin();
        inner.commander.begin();
    }
    let ends = [subscriber.end, commander.end];
    let tasks = [
        monoio::spawn(read(SubscriberReader::new(link, events), subscriber.read, link.clone())),
        monoio::spawn(read(CommanderReader::new(link, events), commander.read, link.clone())),
        monoio::spawn(write(
            Voice { link: link.clone(), direction: Direction::Subscriber },
            subscriber.write,
        )),
        monoio::spawn(write(Voice { link: link.clone(), direction: Direction::Commander }, commander.write)),
    ];
    let streams = link
        .streams
        .clone()
        .map(|streams| monoio::spawn(streams::keep_up(streams, link.clone(), events.clone(), place.clone())));
    let up_since = watch(link, events, &describe(&place.address)).await;
    ends.iter().for_each(End::shutdown);
    link.subscriber_wake.notify();
    link.commander_wake.notify();
    if let Some(streams) = streams {
        streams.await;
    }
    for task in tasks {
        task.await;
    }
    let (reason, was_up, came_early, unanswered) = {
        let mut inner = link.inner.borrow_mut();
        inner.subscriber.end();
        let unanswered = inner.commander.end();
        inner.counters.publishes_failed += unanswered.len() as u64;
        inner.inbox_bytes = [0; 2];
        let reason = inner.ended.take().unwrap_or_else(|| "the server is shutting down".into());
        let came_early = std::mem::take(&mut inner.has_come_early);
        (reason, std::mem::take(&mut inner.is_up), came_early, unanswered)
    };
    let mut events = events.borrow_mut();
    if was_up {
        events.down(&reason);
    } else if came_early {
        events.broke_early();
    }
    for (token, fate) in unanswered {
        events.published(token, Err(fate));
    }
    events.batch_end();
    (up_since.filter(|_| was_up), reason)
}

/// A subscription that lasts as long as the server stands: Redis has confirmed it, and the probe has come back.
fn log_subscribed(is_pattern: bool, name: &str) {
    let (pattern, channel) = if is_pattern { (Some(name), None) } else { (None, Some(name)) };
    tracing::info!(pattern, channel, "subscribed");
}

/// Probes and waits until the connections are of no use. Returns since when the link was up.
async fn watch<E: BrokerEvents>(link: &Rc<Link>, events: &Rc<RefCell<E>>, address: &str) -> Option<Instant> {
    let handshake_until = Instant::now() + BROKER_HANDSHAKE_TIMEOUT;
    let mut up_since = None;
    while !link.has_ended() {
        let now = Instant::now();
        let (probed, is_up, deadline) = {
            let mut inner = link.inner.borrow_mut();
            let probed = inner.commander.poll(now);
            (probed, inner.is_up, inner.commander.next_deadline())
        };
        match probed {
            Ok(None) => {}
            Ok(Some(number)) => {
                let mut events = events.borrow_mut();
                events.probe_sent(number);
                events.batch_end();
            }
            Err(error) => {
                link.end(error);
                break;
            }
        }
        link.commander_wake.notify();
        if is_up && up_since.is_none() {
            up_since = Some(now);
            let inner = link.inner.borrow();
            let (protocol, topics) = (inner.subscriber.protocol(), inner.subscriber.topics());
            tracing::info!(%address, ?protocol, topics, "redis is up");
            for (is_pattern, name) in inner.subscriber.fixed_names() {
                log_subscribed(is_pattern, &String::from_utf8_lossy(name));
            }
        }
        if !is_up && now >= handshake_until {
            link.end(SessionError::HandshakeTimeout(BROKER_HANDSHAKE_TIMEOUT));
            break;
        }
        let deadline = deadline.into_iter().chain((!is_up).then_some(handshake_until)).min();
        match deadline {
            Some(deadline) => link.supervisor_wake.wait_until(deadline).await,
            None => link.supervisor_wake.wait().await,
        }
    }
    up_since
}

/// Two connections that end together.
trait Pair {
    /// They are of no use any more; the first reason counts.
    fn end(&self, reason: impl ToString);
    /// Somebody said so, or the link is stopping.
    fn has_ended(&self) -> bool;
    fn is_stopping(&self) -> bool;
    /// Capacity of the receive buffer of one of them.
    fn note_inbox(&self, index: usize, bytes: usize);
}

impl Pair for Link {
    fn end(&self, reason: impl ToString) {
        Self::end(self, reason);
    }

    fn has_ended(&self) -> bool {
        Self::has_ended(self)
    }

    fn is_stopping(&self) -> bool {
        Self::is_stopping(self)
    }

    fn note_inbox(&self, index: usize, bytes: usize) {
        self.inner.borrow_mut().inbox_bytes[index] = bytes;
    }
}

/// What happens to the frames of one connection.
trait Reader {
    /// Which of its pair.
    const INBOX: usize;
    /// What its connection brings.
    fn inbox() -> Inbox {
        Inbox::new()
    }
    /// Handles the publications at the front, up to the next frame that is none.
    fn handle_publications(&mut self, _inbox: &mut Inbox, _now: Instant) {}
    fn handle(&mut self, received: Received<'_>, now: Instant) -> Result<(), SessionError>;
    /// Handles all that is complete.
    fn handle_batch(&mut self, inbox: &mut Inbox, pair: &impl Pair) -> Result<(), SessionError> {
        let now = Instant::now();
        while !pair.is_stopping() {
            self.handle_publications(inbox, now);
            let Some(received) = inbox.take_frame()? else { break };
            self.handle(received, now)?;
        }
        Ok(())
    }
    fn batch_begin(&mut self);
    fn batch_end(&mut self);
}

/// Reads until the socket ends or the session can't go on.
async fn read<R: Reader, H: ReadHalf, P: Pair>(mut reader: R, mut half: H, link: Rc<P>) {
    let mut inbox = R::inbox();
    let mut reads_at_once = 0;
    let mut has_read = false;
    loop {
        let buffer = inbox.take_buffer();
        let (held, capacity) = (buffer.len(), buffer.capacity());
        link.note_inbox(R::INBOX, capacity);
        // A bounded read is a bounded turn, however large the buffer has grown.
        let room = held..capacity.min(held + RECEIVE_BUFFER_BYTES);
        let (result, buffer, was_at_once) = read_some(&mut half, buffer.slice_mut(room)).await;
        inbox.put_buffer(buffer.into_inner());
        if link.has_ended() {
            return;
        }
        let end = match result {
            Ok(0) => "redis closed the connection".to_owned(),
            Ok(_) => {
                has_read = true;
                String::new()
            }
            Err(error) => describe_fault("reading from", &error),
        };
        if !end.is_empty() {
            // OpenSSL says nothing to what is no TLS: it hangs up.
            let hint = if has_read || H::IS_SEALED { "" } else { TLS_HINT };
            return link.end(end + hint);
        }
        reader.batch_begin();
        let handled = reader.handle_batch(&mut inbox, &*link);
        reader.batch_end();
        if let Err(error) = handled {
            return link.end(error);
        }
        reads_at_once = if was_at_once { reads_at_once + 1 } else { 0 };
        if reads_at_once == READS_AT_ONCE_MAX {
            // On epoll a read that finds data doesn't yield, and waking oneself starves timers: sleep for a tick.
            reads_at_once = 0;
            monoio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// What the system said, or the sentence of TLS.
fn describe_fault(doing: &str, error: &std::io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        Some(fault) => fault.to_string(),
        None => format!("{doing} redis failed: {error}"),
    }
}

/// Reads, and says whether the data were there already.
async fn read_some<H: ReadHalf>(
    half: &mut H,
    buffer: SliceMut<Vec<u8>>,
) -> (std::io::Result<usize>, SliceMut<Vec<u8>>, bool) {
    let mut was_at_once = true;
    let mut reading = pin!(half.read(buffer));
    let (result, buffer) = poll_fn(|context| {
        let polled = reading.as_mut().poll(context);
        was_at_once &= polled.is_ready();
        polled
    })
    .await;
    (result, buffer, was_at_once)
}

struct SubscriberReader<E> {
    link: Rc<Link>,
    events: Rc<RefCell<E>>,
}

impl<E: BrokerEvents> SubscriberReader<E> {
    fn new(link: &Rc<Link>, events: &Rc<RefCell<E>>) -> Self {
        Self { link: link.clone(), events: events.clone() }
    }

    fn note_probe(&self, number: u64) {
        let (is_ours, comes_up) = {
            let mut inner = self.link.inner.borrow_mut();
            let is_ours = inner.commander.note_probe_returned(number);
            let comes_up = is_ours && !inner.is_up;
            if comes_up {
                inner.is_up = true;
                inner.counters.reconnects += u64::from(inner.counters.ups > 0);
                inner.counters.ups += 1;
            }
            (is_ours, comes_up)
        };
        if comes_up {
            self.events.borrow_mut().up();
            self.link.notify_supervisors();
        }
        if is_ours {
            self.events.borrow_mut().probe_returned(number);
        }
    }
}

impl<E: BrokerEvents> SubscriberReader<E> {
    fn tell(&mut self, event: Option<SubscriberEvent<'_>>, now: Instant) {
        match event {
            Some(SubscriberEvent::Message { pattern, channel, payload }) => {
                self.link.inner.borrow_mut().note_arrival();
                self.events.borrow_mut().message(pattern, channel, payload);
                return;
            }
            Some(SubscriberEvent::Probe(number)) => self.note_probe(number),
            Some(SubscriberEvent::Confirmed { channel }) => {
                // One for the first member of each room: for whoever looks for one of them.
                tracing::debug!(channel = ?String::from_utf8_lossy(channel), "subscribed");
                self.link.inner.borrow_mut().note_arrival();
                self.events.borrow_mut().confirmed(channel);
            }
            Some(SubscriberEvent::Lapsed { channel }) => self.events.borrow_mut().lapsed(channel),
            Some(SubscriberEvent::Moved { channel, to }) => self.events.borrow_mut().moved(&channel, to),
            Some(SubscriberEvent::ProbeMoved) => self.events.borrow_mut().probe_moved(),
            Some(SubscriberEvent::Refused { channel, reason }) => {
                tracing::warn!(%reason, "a channel is not permitted");
                self.events.borrow_mut().refused(&channel, &reason.to_string());
            }
            None => {}
        }
        // A reply may have made room for requests, or made the session ready.
        self.link.subscriber_wake.notify();
        start_probing(&self.link, now);
    }
}

impl<E: BrokerEvents> Reader for SubscriberReader<E> {
    const INBOX: usize = 0;

    fn handle_publications(&mut self, inbox: &mut Inbox, now: Instant) {
        loop {
            let taken = self.link.inner.borrow_mut().subscriber.take_publication(inbox);
            let Some(event) = taken else { return };
            self.tell(event, now);
        }
    }

    fn handle(&mut self, received: Received<'_>, now: Instant) -> Result<(), SessionError> {
        let bytes = match received {
            Received::Frame(bytes) => bytes,
            Received::TooBig { bytes } => {
                tracing::warn!(bytes, "redis sent a publication that is too big; it is dropped");
                self.link.inner.borrow_mut().subscriber.handle_too_big();
                return Ok(());
            }
        };
        let event = self.link.inner.borrow_mut().subscriber.handle_frame(bytes)?;
        self.tell(event, now);
        Ok(())
    }

    fn batch_begin(&mut self) {
        self.events.borrow_mut().batch_begin();
    }

    fn batch_end(&mut self) {
        self.events.borrow_mut().batch_end();
    }
}

struct CommanderReader<E> {
    link: Rc<Link>,
    events: Rc<RefCell<E>>,
}

impl<E: BrokerEvents> CommanderReader<E> {
    fn new(link: &Rc<Link>, events: &Rc<RefCell<E>>) -> Self {
        Self { link: link.clone(), events: events.clone() }
    }
}

impl<E: BrokerEvents> Reader for CommanderReader<E> {
    const INBOX: usize = 1;

    fn handle(&mut self, received: Received<'_>, now: Instant) -> Result<(), SessionError> {
        let mut inner = self.link.inner.borrow_mut();
        let event = match received {
            Received::Frame(bytes) => inner.commander.handle_frame(bytes)?,
            Received::TooBig { bytes } => inner.commander.handle_too_big(bytes)?,
        };
        match event {
            Some(CommanderEvent::Published { token, result }) => {
                inner.counters.publishes_failed += u64::from(result.is_err());
                drop(inner);
                self.events.borrow_mut().published(token, result);
                return Ok(());
            }
            Some(CommanderEvent::Kept { key, result }) => {
                inner.last_value_faults.note("SET", &key, result.as_ref().err(), now);
                drop(inner);
                self.events.borrow_mut().kept(&key, result.is_ok());
                return Ok(());
            }
            Some(CommanderEvent::Fetched { key, result }) => {
                inner.last_value_faults.note("GET", &key, result.as_ref().err(), now);
                drop(inner);
                self.events.borrow_mut().fetched(&key, result.ok().flatten().as_deref());
                return Ok(());
            }
            Some(CommanderEvent::ProbeRefused) => {
                drop(inner);
                self.events.borrow_mut().probe_refused();
                return Ok(());
            }
            None => drop(inner),
        }
        // The handshake has another command to send, or is done.
        self.link.commander_wake.notify();
        start_probing(&self.link, now);
        Ok(())
    }

    fn batch_begin(&mut self) {
        self.events.borrow_mut().batch_begin();
    }

    fn batch_end(&mut self) {
        self.events.borrow_mut().batch_end();
    }
}

/// Begins to probe once both sessions are ready.
fn start_probing(link: &Link, now: Instant) {
    let mut inner = link.inner.borrow_mut();
    if inner.commander.is_ready() && inner.subscriber.take_ready() {
        inner.commander.start_probing(now);
        drop(inner);
        link.supervisor_wake.notify();
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Subscriber,
    Commander,
}

/// One session's half of a pair, as far as it is to be written.
trait Speaker {
    /// What the session wants to say; empty where it is nothing.
    fn take_output(&self) -> BytesMut;
    /// Told when there is something.
    fn wake(&self) -> &Wake;
    fn pair(&self) -> &impl Pair;
}

struct Voice {
    link: Rc<Link>,
    direction: Direction,
}

impl Speaker for Voice {
    fn take_output(&self) -> BytesMut {
        let mut inner = self.link.inner.borrow_mut();
        match self.direction {
            Direction::Subscriber => inner.subscriber.take_output(),
            Direction::Commander => inner.commander.take_output(),
        }
    }

    fn wake(&self) -> &Wake {
        match self.direction {
            Direction::Subscriber => &self.link.subscriber_wake,
            Direction::Commander => &self.link.commander_wake,
        }
    }

    fn pair(&self) -> &impl Pair {
        &*self.link
    }
}

/// Writes what the session queues until the connections end. All that was queued since the last write leaves together.
async fn write<W: WriteHalf>(speaker: impl Speaker, mut half: W) {
    while !speaker.pair().has_ended() {
        let chunk = speaker.take_output();
        if chunk.is_empty() {
            speaker.wake().wait().await;
            continue;
        }
        if let Err(error) = half.write_all(chunk).await {
            return speaker.pair().end(describe_fault("writing to", &error));
        }
    }
}

/// Wakes one task of this thread; remembers one call that came too early.
#[derive(Default)]
struct Wake {
    is_due: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Wake {
    fn notify(&self) {
        self.is_due.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    async fn wait(&self) {
        poll_fn(|context| {
            if self.is_due.take() {
                return Poll::Ready(());
            }
            self.waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// As [`wait`](Self::wait), or until `deadline`.
    async fn wait_until(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        let _ = monoio::time::timeout(left, self.wait()).await;
    }
}

/// To one who hangs up before it has said anything.
const TLS_HINT: &str =
    " before it answered anything: if that is its tls-port, write rediss:// instead of redis://";

/// For jitter and for telling runs apart; no secret.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Reads that may find data at once before other tasks get their turn: 4 x 64 KiB is about 1 ms of small publications.
const READS_AT_ONCE_MAX: u32 = 4;
