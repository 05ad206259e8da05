//! The connection that receives: what is subscribed, what is confirmed, and the publications.
//!
//! It outlives connections: what is wanted stays, and is subscribed again on the next one. A channel has at most one
//! (UN)SUBSCRIBE outstanding; what is wanted meanwhile is settled when its answer comes. So *confirmed* means by
//! construction what the relay's rule asks: every (UN)SUBSCRIBE of the channel is answered and the last was a SUBSCRIBE.
//!
//! Commands name one channel each, because an error reply names none: it belongs to the oldest request. (So no command crosses
//! slots either, where the server is a node of a cluster.)
//!
//! At a node of a cluster all of it is sharded Pub/Sub: a channel lives where its slot does. One that has moved ends unasked, is
//! subscribed again and refused with MOVED, and is then not wanted here any more: somebody else wants it elsewhere.

use std::collections::VecDeque;
use std::rc::Rc;

use foldhash::{HashMap, HashMapExt};

use super::handshake::Handshake;
use super::{Outbox, SERVICE_CHANNEL_PREFIX, SessionError, channel_rule};
use crate::config::{RedisTarget, Server};
use crate::limits::SUBSCRIBE_INFLIGHT_MAX;
use crate::resp::{Frame, Inbox, Protocol, Publication, Value, excerpt};

/// The subscribing session. One per link to Redis, for its whole life.
#[derive(Debug)]
pub struct Subscriber {
    handshake: Handshake,
    out: Outbox,
    user: String,
    /// The channel of our own probes.
    probe_channel: Rc<[u8]>,
    /// Distinguishes this run from another process that was given the same node id.
    run: u64,
    /// The server is a node of a cluster.
    is_sharded: bool,
    channels: HashMap<Rc<[u8]>, Subscription>,
    patterns: HashMap<Rc<[u8]>, Subscription>,
    /// Topics whose request must be written, each once; some may need none any more.
    due: VecDeque<Topic>,
    /// Length of `due` at which those are looked for and forgotten.
    due_max: usize,
    /// Requests that have been written, oldest first; at most [`SUBSCRIBE_INFLIGHT_MAX`].
    asked: VecDeque<Topic>,
    /// Channels whose end a node of a cluster could not take while the cluster was down; asked for again when a probe is back.
    unended: Vec<Topic>,
    /// Fixed topics that are not confirmed.
    fixed_missing: usize,
    /// Whether [`take_ready`](Self::take_ready) has said so on this connection.
    said_ready: bool,
    counters: SubscriberCounters,
}

/// What a subscriber has ignored. Counted from the start of the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SubscriberCounters {
    /// Publications on channels and patterns, probes not included.
    pub messages: u64,
    /// Pushes of kinds that we don't know.
    pub pushes_unknown: u64,
    /// Messages on our probe's channel that are not our probes.
    pub probes_foreign: u64,
    /// Frames that were too big and were skipped.
    pub too_big: u64,
    /// Subscriptions that Redis ended unasked.
    pub lapses: u64,
}

/// What a frame meant. Names and payloads are borrowed from the frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubscriberEvent<'f> {
    /// The exact channel is confirmed: what Redis accepts from now on arrives.
    Confirmed {
        /// Its name.
        channel: &'f [u8],
    },
    /// The exact channel was confirmed, and Redis ended its subscription unasked. It is being subscribed again.
    Lapsed {
        /// Its name.
        channel: &'f [u8],
    },
    /// Redis doesn't let us subscribe to this channel. It isn't wanted any more.
    Refused {
        /// Its name.
        channel: Rc<[u8]>,
        /// Found, and what to do.
        reason: SessionError,
    },
    /// A publication.
    Message {
        /// The pattern that let it in, `None` for an exact subscription.
        pattern: Option<&'f [u8]>,
        /// Where it was published.
        channel: &'f [u8],
        /// What was published.
        payload: &'f [u8],
    },
    /// Our probe of this number has come back.
    Probe(u64),
    /// The exact channel can't be subscribed at this node of the cluster. It isn't wanted here any more.
    Moved {
        /// Its name.
        channel: Rc<[u8]>,
        /// Who has its slot; `None` where the node doesn't know, or the cluster is down.
        to: Option<Server>,
    },
    /// The slot of the probe's channel is not this node's any more: [`Subscriber::set_probe`] is due.
    ProbeMoved,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Topic {
    is_pattern: bool,
    name: Rc<[u8]>,
}

#[derive(Debug, Clone, Copy)]
struct Subscription {
    is_wanted: bool,
    /// Wanted for ever, and part of being ready.
    is_fixed: bool,
    /// As far as Redis has answered.
    is_subscribed: bool,
    /// The request that is outstanding.
    asked: Option<Ask>,
    /// Whether it stands in `due`.
    is_due: bool,
}

/// What is subscribed for as long as the session lives, before it is.
const FIXED: Subscription =
    Subscription { is_wanted: true, is_fixed: true, is_subscribed: false, asked: None, is_due: false };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Subscribe,
    Unsubscribe,
}

impl Subscriber {
    /// A session that isn't connected yet.
    ///
    /// `patterns` and `channels` are subscribed for ever. `run` is a random number of this process.
    pub fn new(
        target: &RedisTarget,
        node_id: &str,
        run: u64,
        patterns: &[String],
        channels: &[String],
    ) -> Self {
        let probe_channel = format!("{SERVICE_CHANNEL_PREFIX}{node_id}");
        let mut subscriber = Self::bare(target, &probe_channel, run);
        subscriber.channels.extend(channels.iter().map(|name| (name.as_bytes().into(), FIXED)));
        subscriber.patterns.extend(patterns.iter().map(|name| (name.as_bytes().into(), FIXED)));
        subscriber
    }

    /// A session with a node of a cluster that isn't connected yet. The slot of `probe_channel` is that node's.
    pub fn sharded(target: &RedisTarget, probe_channel: &str, run: u64) -> Self {
        Self { is_sharded: true, ..Self::bare(target, probe_channel, run) }
    }

    fn bare(target: &RedisTarget, probe_channel: &str, run: u64) -> Self {
        let probe_channel: Rc<[u8]> = probe_channel.as_bytes().into();
        Self {
            // Pub/Sub doesn't know databases.
            handshake: Handshake::new(target, 0),
            out: Outbox::default(),
            user: target.username.clone().unwrap_or_else(|| "default".into()),
            probe_channel: probe_channel.clone(),
            run,
            is_sharded: false,
            channels: HashMap::from_iter([(probe_channel, FIXED)]),
            patterns: HashMap::new(),
            due: VecDeque::new(),
            due_max: SUBSCRIBE_INFLIGHT_MAX,
            asked: VecDeque::new(),
            unended: Vec::new(),
            fixed_missing: 0,
            said_ready: false,
            counters: SubscriberCounters::default(),
        }
    }

    /// Takes another channel for the probe. The session is ready again when that is confirmed.
    pub fn set_probe(&mut self, channel: &str) {
        let channel: Rc<[u8]> = channel.as_bytes().into();
        let old = std::mem::replace(&mut self.probe_channel, channel.clone());
        self.said_ready = false;
        if old != channel {
            if let Some(subscription) = self.channels.get_mut(&old) {
                (subscription.is_wanted, subscription.is_fixed) = (false, false);
                self.fixed_missing -= usize::from(!subscription.is_subscribed && self.fixed_missing > 0);
            }
            self.channels.insert(channel.clone(), FIXED);
            self.fixed_missing += 1;
            self.set_due(Topic { is_pattern: false, name: old });
        }
        self.set_due(Topic { is_pattern: false, name: channel });
        self.write_due();
    }

    /// Begins on a fresh connection: the handshake, then all that is wanted, fixed topics first.
    pub fn begin(&mut self) {
        self.end();
        self.handshake.begin(&mut self.out);
        let probe = Topic { is_pattern: false, name: self.probe_channel.clone() };
        self.set_due(probe);
        for is_fixed in [true, false] {
            for is_pattern in [false, true] {
                let table = if is_pattern { &self.patterns } else { &self.channels };
                let of_kind = table.iter().filter(|(_, subscription)| subscription.is_fixed == is_fixed);
                let topics: Vec<_> =
                    of_kind.map(|(name, _)| Topic { is_pattern, name: name.clone() }).collect();
                topics.into_iter().for_each(|topic| self.set_due(topic));
            }
        }
        let fixed = |table: &HashMap<Rc<[u8]>, Subscription>| table.values().filter(|s| s.is_fixed).count();
        self.fixed_missing = fixed(&self.channels) + fixed(&self.patterns);
    }

    /// Forgets the connection; what is wanted stays.
    pub fn end(&mut self) {
        self.handshake.reset();
        self.out.clear();
        self.due.clear();
        self.asked.clear();
        self.unended.clear();
        self.said_ready = false;
        self.channels.retain(|_, subscription| subscription.is_wanted);
        for subscription in self.channels.values_mut().chain(self.patterns.values_mut()) {
            subscription.is_subscribed = false;
            subscription.asked = None;
            subscription.is_due = false;
        }
    }

    /// Wants the exact channel. Returns whether it is confirmed already; otherwise
    /// [`Confirmed`](SubscriberEvent::Confirmed) or [`Refused`](SubscriberEvent::Refused) follows, now or on a later
    /// connection.
    pub fn subscribe(&mut self, channel: &[u8]) -> bool {
        let name: Rc<[u8]> = match self.channels.get_mut(channel) {
            Some(subscription) => {
                subscription.is_wanted = true;
                if subscription.is_subscribed && subscription.asked.is_none() {
                    return true;
                }
                channel.into()
            }
            None => {
                let name: Rc<[u8]> = channel.into();
                self.channels.insert(name.clone(), Subscription { is_fixed: false, ..FIXED });
                name
            }
        };
        self.set_due(Topic { is_pattern: false, name });
        self.write_due();
        false
    }

    /// Doesn't want the exact channel any more. Its publications may still arrive for a moment. Fixed channels stay.
    pub fn unsubscribe(&mut self, channel: &[u8]) {
        let Some(subscription) = self.channels.get_mut(channel) else { return };
        if subscription.is_fixed {
            return;
        }
        subscription.is_wanted = false;
        self.set_due(Topic { is_pattern: false, name: channel.into() });
        self.write_due();
    }

    /// What is to be written now; empty when nothing is.
    pub fn take_output(&mut self) -> bytes::BytesMut {
        self.out.take()
    }

    /// True once per connection, when all fixed topics are confirmed.
    pub fn take_ready(&mut self) -> bool {
        let is_ready = self.handshake.is_done() && self.fixed_missing == 0;
        is_ready && !std::mem::replace(&mut self.said_ready, true)
    }

    /// The RESP that is spoken, for logs.
    pub fn protocol(&self) -> Protocol {
        self.handshake.protocol()
    }

    /// Channels and patterns that are wanted, the probe's included.
    pub fn topics(&self) -> usize {
        self.channels.len() + self.patterns.len()
    }

    /// Names of what is subscribed for as long as the session lives, and whether each is a pattern; the probe's channel is
    /// left out.
    pub fn fixed_names(&self) -> impl Iterator<Item = (bool, &[u8])> {
        let of = |is_pattern| {
            let subscriptions = if is_pattern { &self.patterns } else { &self.channels };
            let fixed = subscriptions.iter().filter(|(_, subscription)| subscription.is_fixed);
            fixed.map(move |(name, _)| (is_pattern, &**name))
        };
        of(true).chain(of(false)).filter(|(_, name)| *name != &*self.probe_channel)
    }

    /// What was ignored so far.
    pub fn counters(&self) -> SubscriberCounters {
        self.counters
    }

    /// Notes a frame that was too long and has been skipped: a publication, as nothing else here is long.
    pub fn handle_too_big(&mut self) {
        self.counters.too_big += 1;
    }

    /// Takes the next frame of `inbox` if it is a publication and the session takes such; `Some(None)` where it means
    /// nothing. The same as [`handle_frame`](Self::handle_frame) of that frame, at a third of its cost.
    pub fn take_publication<'i>(&mut self, inbox: &'i mut Inbox) -> Option<Option<SubscriberEvent<'i>>> {
        if !self.handshake.is_done() {
            return None;
        }
        let Publication { pattern, channel, payload } = inbox.take_publication()?;
        Some(self.receive(pattern, channel, payload))
    }

    /// Takes one complete frame.
    ///
    /// # Errors
    /// The connection is of no use any more, see [`SessionError`].
    pub fn handle_frame<'f>(&mut self, bytes: &'f [u8]) -> Result<Option<SubscriberEvent<'f>>, SessionError> {
        let frame = Frame::decode(self.handshake.protocol(), bytes)?;
        let value = frame.value();
        if !self.handshake.is_done() {
            if matches!(value, Value::Push(_)) {
                self.counters.pushes_unknown += 1;
                return Ok(None);
            }
            self.handshake.handle(&frame, &mut self.out)?;
            self.write_due();
            return Ok(None);
        }
        match value {
            Value::Push(_) | Value::Array(_) => self.handle_aggregate(&frame),
            Value::Error(text) => self.handle_refusal(text),
            other => Err(SessionError::Unasked(other.describe())),
        }
    }

    fn handle_aggregate<'f>(
        &mut self,
        frame: &Frame<'f>,
    ) -> Result<Option<SubscriberEvent<'f>>, SessionError> {
        match frame.item(0) {
            Some(Value::Text(b"message" | b"smessage")) => {
                let (channel, payload) = (text(frame, 1)?, text(frame, 2)?);
                Ok(self.receive(None, channel, payload))
            }
            Some(Value::Text(b"pmessage")) => {
                let (pattern, channel, payload) = (text(frame, 1)?, text(frame, 2)?, text(frame, 3)?);
                Ok(self.receive(Some(pattern), channel, payload))
            }
            Some(Value::Text(b"subscribe" | b"ssubscribe")) => self.confirm(false, text(frame, 1)?),
            Some(Value::Text(b"psubscribe")) => self.confirm(true, text(frame, 1)?),
            Some(Value::Text(b"unsubscribe" | b"sunsubscribe")) => self.handle_end(frame, false),
            Some(Value::Text(b"punsubscribe")) => self.handle_end(frame, true),
            _ if matches!(frame.value(), Value::Push(_)) => {
                self.counters.pushes_unknown += 1;
                Ok(None)
            }
            _ => Err(SessionError::Unasked(frame.value().describe())),
        }
    }

    fn receive<'f>(
        &mut self,
        pattern: Option<&'f [u8]>,
        channel: &'f [u8],
        payload: &'f [u8],
    ) -> Option<SubscriberEvent<'f>> {
        if channel.starts_with(SERVICE_CHANNEL_PREFIX.as_bytes()) {
            // A wide pattern brings the probes of all nodes.
            let is_ours = pattern.is_none() && *channel == *self.probe_channel;
            let probe = if is_ours { parse_probe(payload, self.run) } else { None };
            self.counters.probes_foreign += u64::from(is_ours && probe.is_none());
            if probe.is_some() && !self.unended.is_empty() {
                std::mem::take(&mut self.unended).into_iter().for_each(|topic| self.set_due(topic));
                self.write_due();
            }
            return probe.map(SubscriberEvent::Probe);
        }
        self.counters.messages += 1;
        Some(SubscriberEvent::Message { pattern, channel, payload })
    }

    fn confirm<'f>(
        &mut self,
        is_pattern: bool,
        name: &'f [u8],
    ) -> Result<Option<SubscriberEvent<'f>>, SessionError> {
        let Some(topic) = self.take_answered(is_pattern, name, Ask::Subscribe) else {
            return Err(SessionError::Unasked(format!("the subscription of {:?}", excerpt(name))));
        };
        let subscription = entry(&mut self.channels, &mut self.patterns, is_pattern, name)
            .expect("a topic that was asked for has an entry");
        subscription.is_subscribed = true;
        self.fixed_missing -= usize::from(subscription.is_fixed);
        let event = (subscription.is_wanted && !is_pattern && *name != *self.probe_channel)
            .then_some(SubscriberEvent::Confirmed { channel: name });
        self.set_due(topic);
        self.write_due();
        Ok(event)
    }

    fn handle_end<'f>(
        &mut self,
        frame: &Frame<'f>,
        is_pattern: bool,
    ) -> Result<Option<SubscriberEvent<'f>>, SessionError> {
        // UNSUBSCRIBE of everything, while nothing is subscribed, ends null. We never send it.
        if frame.item(1) == Some(Value::Null) {
            self.counters.pushes_unknown += 1;
            return Ok(None);
        }
        let name = text(frame, 1)?;
        let topic = self.take_answered(is_pattern, name, Ask::Unsubscribe);
        let Some(subscription) = entry(&mut self.channels, &mut self.patterns, is_pattern, name) else {
            self.counters.pushes_unknown += 1;
            return Ok(None);
        };
        let was_subscribed = std::mem::replace(&mut subscription.is_subscribed, false);
        let (is_fixed, is_wanted) = (subscription.is_fixed, subscription.is_wanted);
        if let Some(topic) = topic {
            self.set_due(topic);
            self.write_due();
            return Ok(None);
        }
        if !was_subscribed {
            self.counters.pushes_unknown += 1;
            return Ok(None);
        }
        self.counters.lapses += 1;
        if is_fixed && self.is_sharded {
            self.fixed_missing += 1;
            return Ok(Some(SubscriberEvent::ProbeMoved));
        }
        if is_fixed {
            return Err(SessionError::SubscriptionEnded(excerpt(name)));
        }
        self.set_due(Topic { is_pattern, name: name.into() });
        self.write_due();
        Ok(is_wanted.then_some(SubscriberEvent::Lapsed { channel: name }))
    }

    /// An error reply belongs to the oldest request.
    fn handle_refusal(&mut self, text: &[u8]) -> Result<Option<SubscriberEvent<'static>>, SessionError> {
        let Some(topic) = self.asked.pop_front() else {
            return Err(SessionError::Unasked(Value::Error(text).describe()));
        };
        let subscription = entry(&mut self.channels, &mut self.patterns, topic.is_pattern, &topic.name)
            .expect("a topic that was asked for has an entry");
        let asked = subscription.asked.take();
        let name = excerpt(&topic.name);
        let verb = match (asked, topic.is_pattern, self.is_sharded) {
            (Some(Ask::Subscribe), false, false) => "SUBSCRIBE",
            (Some(Ask::Subscribe), false, true) => "SSUBSCRIBE",
            (Some(Ask::Subscribe), true, _) => "PSUBSCRIBE",
            (_, _, true) => "SUNSUBSCRIBE",
            _ => "UNSUBSCRIBE",
        };
        let rule = channel_rule(&verb.to_ascii_lowercase(), &name);
        let reason = SessionError::from_reply(&format!("{verb} {name}"), text, &self.user, &rule);
        if self.is_sharded && matches!(reason, SessionError::Moved { .. } | SessionError::NotNow(_)) {
            return Ok(self.handle_moved(topic, asked, reason));
        }
        let is_tolerable = matches!(reason, SessionError::NotPermitted { .. })
            && !subscription.is_fixed
            && asked == Some(Ask::Subscribe);
        if !is_tolerable {
            return Err(reason);
        }
        // One channel that a client's room maps to must not end the subscription of all others.
        let was_wanted = std::mem::replace(&mut subscription.is_wanted, false);
        let channel = topic.name.clone();
        self.set_due(topic);
        self.write_due();
        Ok(was_wanted.then_some(SubscriberEvent::Refused { channel, reason }))
    }

    /// A node of a cluster has not the slot of a channel, or nobody has.
    fn handle_moved(
        &mut self,
        topic: Topic,
        asked: Option<Ask>,
        reason: SessionError,
    ) -> Option<SubscriberEvent<'static>> {
        let subscription =
            self.channels.get_mut(&topic.name).expect("a topic that was asked for has an entry");
        if asked == Some(Ask::Unsubscribe) && matches!(reason, SessionError::NotNow(_)) {
            self.unended.push(topic);
            self.write_due();
            return None;
        }
        // The end of a subscription that is refused so has come by the slot's moving, or its word is on the way.
        subscription.is_subscribed = false;
        let is_probe = subscription.is_fixed;
        let was_wanted = std::mem::replace(&mut subscription.is_wanted, is_probe);
        let channel = topic.name.clone();
        if !is_probe {
            self.set_due(topic);
        }
        self.write_due();
        if is_probe {
            return Some(SubscriberEvent::ProbeMoved);
        }
        let SessionError::Moved { to, .. } = reason else {
            return was_wanted.then_some(SubscriberEvent::Moved { channel, to: None });
        };
        (was_wanted && asked == Some(Ask::Subscribe)).then_some(SubscriberEvent::Moved { channel, to })
    }

    /// The oldest request, if this is its answer.
    fn take_answered(&mut self, is_pattern: bool, name: &[u8], ask: Ask) -> Option<Topic> {
        let oldest = self.asked.front()?;
        if oldest.is_pattern != is_pattern || *oldest.name != *name {
            return None;
        }
        let subscription = entry(&mut self.channels, &mut self.patterns, is_pattern, name)?;
        if subscription.asked != Some(ask) {
            return None;
        }
        subscription.asked = None;
        self.asked.pop_front()
    }

    /// Lines the topic up for the request that it may need, or forgets it when nobody wants it any more.
    fn set_due(&mut self, topic: Topic) {
        let entry = entry(&mut self.channels, &mut self.patterns, topic.is_pattern, &topic.name);
        let Some(subscription) = entry else { return };
        if subscription.asked.is_some() || subscription.is_due {
            return;
        }
        if subscription.is_wanted != subscription.is_subscribed {
            subscription.is_due = true;
            self.due.push_back(topic);
            self.keep_due_bound();
        } else if !subscription.is_wanted {
            self.channels.remove(&topic.name);
        }
    }

    /// While Redis answers nothing, channels that are wanted and left again would pile up behind the requests that are
    /// outstanding. The walk comes once for as many topics as it leaves, so it costs a constant for each.
    fn keep_due_bound(&mut self) {
        if self.due.len() < self.due_max {
            return;
        }
        let Self { due, channels, patterns, .. } = self;
        due.retain(|topic| {
            let entry = entry(channels, patterns, topic.is_pattern, &topic.name);
            let subscription = entry.expect("a topic that is due has an entry");
            subscription.is_due = subscription.is_wanted != subscription.is_subscribed;
            let (is_due, is_wanted) = (subscription.is_due, subscription.is_wanted);
            if !is_due && !is_wanted {
                channels.remove(&topic.name);
            }
            is_due
        });
        self.due_max = SUBSCRIBE_INFLIGHT_MAX.max(self.due.len() * 2);
    }

    /// Writes requests, as many as may be outstanding.
    fn write_due(&mut self) {
        if !self.handshake.is_done() {
            return;
        }
        while self.asked.len() < SUBSCRIBE_INFLIGHT_MAX
            && let Some(topic) = self.due.pop_front()
        {
            let entry = entry(&mut self.channels, &mut self.patterns, topic.is_pattern, &topic.name);
            let subscription = entry.expect("a topic that is due has an entry");
            subscription.is_due = false;
            let (ask, verb): (Ask, &[u8]) = match (subscription.is_wanted, subscription.is_subscribed) {
                (true, false) if topic.is_pattern => (Ask::Subscribe, b"PSUBSCRIBE"),
                (true, false) if self.is_sharded => (Ask::Subscribe, b"SSUBSCRIBE"),
                (true, false) => (Ask::Subscribe, b"SUBSCRIBE"),
                (false, true) if self.is_sharded => (Ask::Unsubscribe, b"SUNSUBSCRIBE"),
                (false, true) => (Ask::Unsubscribe, b"UNSUBSCRIBE"),
                // Wanted and left, or left and wanted again, while it stood in the queue.
                (true, true) => continue,
                (false, false) => {
                    self.channels.remove(&topic.name);
                    continue;
                }
            };
            subscription.asked = Some(ask);
            self.out.push(&[verb, &topic.name]);
            self.asked.push_back(topic);
        }
    }

    /// Every topic is in exactly the queue that its entry says.
    #[cfg(test)]
    fn check(&self) {
        let all = || self.channels.values().chain(self.patterns.values());
        assert_eq!(
            self.due.len(),
            all().filter(|s| s.is_due).count(),
            "the due queue and the entries differ"
        );
        assert_eq!(
            self.asked.len(),
            all().filter(|s| s.asked.is_some()).count(),
            "the requests and the entries differ"
        );
        assert!(self.asked.len() <= SUBSCRIBE_INFLIGHT_MAX, "more requests than may be outstanding");
        if self.handshake.is_done() {
            let missing = all().filter(|s| s.is_fixed && !s.is_subscribed).count();
            assert_eq!(self.fixed_missing, missing, "the count of missing fixed topics is wrong");
        }
    }
}

/// A free function, because callers hold other fields of the session.
fn entry<'s>(
    channels: &'s mut HashMap<Rc<[u8]>, Subscription>,
    patterns: &'s mut HashMap<Rc<[u8]>, Subscription>,
    is_pattern: bool,
    name: &[u8],
) -> Option<&'s mut Subscription> {
    if is_pattern { patterns.get_mut(name) } else { channels.get_mut(name) }
}

fn text<'f>(frame: &Frame<'f>, index: usize) -> Result<&'f [u8], SessionError> {
    match frame.item(index) {
        Some(Value::Text(text)) => Ok(text),
        found => {
            let kind = frame.item(0).map_or_else(|| "a push".into(), |kind| kind.describe());
            let found = found.map_or_else(|| "nothing".into(), |found| found.describe());
            let what = format!("a subscription, in {kind}");
            Err(SessionError::WrongReply { what, found, expected: "a string" })
        }
    }
}

/// The payload of probe `number`.
pub(super) fn probe_payload(run: u64, number: u64) -> String {
    format!("{run:016x}:{number}")
}

fn parse_probe(payload: &[u8], run: u64) -> Option<u64> {
    let (theirs, number) = std::str::from_utf8(payload).ok()?.split_once(':')?;
    (u64::from_str_radix(theirs, 16).ok()? == run).then(|| number.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{commands, target};
    use super::*;

    /// A session with what it has sent and not been answered.
    struct Scripted {
        session: Subscriber,
    }

    impl Scripted {
        fn new(patterns: &[&str], channels: &[&str]) -> Self {
            let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
            let mut session =
                Subscriber::new(&target(None, None, 5), "node", 7, &owned(patterns), &owned(channels));
            session.begin();
            Self { session }
        }

        /// One whose handshake in RESP3 is done and whose fixed topics are confirmed.
        fn ready(patterns: &[&str], channels: &[&str]) -> Self {
            let mut scripted = Self::new(patterns, channels);
            assert_eq!(scripted.sent(), ["HELLO 3 SETNAME corecast"]);
            scripted.take("%1\r\n+server\r\n+redis\r\n").expect("HELLO is answered");
            scripted.answer_all();
            assert!(scripted.session.take_ready(), "all fixed topics are confirmed");
            scripted
        }

        fn sent(&mut self) -> Vec<String> {
            let mut output = Vec::new();
            while let chunk = self.session.take_output()
                && !chunk.is_empty()
            {
                output.extend_from_slice(&chunk);
            }
            self.session.check();
            commands(&output)
        }

        fn take(&mut self, reply: &str) -> Result<Option<SubscriberEvent<'static>>, SessionError> {
            let result = self.session.handle_frame(reply.to_string().leak().as_bytes());
            if result.is_ok() {
                self.session.check();
            }
            result
        }

        /// Answers what was sent as Redis does, until nothing more is sent.
        fn answer_all(&mut self) -> Vec<SubscriberEvent<'static>> {
            let mut events = Vec::new();
            loop {
                let sent = self.sent();
                if sent.is_empty() {
                    return events;
                }
                for command in sent {
                    let (verb, name) = command.split_once(' ').expect("a request has a name");
                    events.extend(self.take(&push(&verb.to_lowercase(), name)).expect("it was asked for"));
                }
            }
        }
    }

    fn push(kind: &str, name: &str) -> String {
        format!(">3\r\n${}\r\n{kind}\r\n${}\r\n{name}\r\n:1\r\n", kind.len(), name.len())
    }

    fn message(channel: &str, payload: &str) -> String {
        format!(
            ">3\r\n$7\r\nmessage\r\n${}\r\n{channel}\r\n${}\r\n{payload}\r\n",
            channel.len(),
            payload.len()
        )
    }

    fn confirmed(channel: &'static str) -> SubscriberEvent<'static> {
        SubscriberEvent::Confirmed { channel: channel.as_bytes() }
    }

    #[test]
    fn fixed_topics_are_subscribed_with_the_probe_first_and_then_it_is_ready_once() {
        let mut scripted = Scripted::new(&["room:*"], &["events"]);
        scripted.sent();
        scripted.take("%1\r\n+proto\r\n:3\r\n").expect("HELLO is answered");
        assert_eq!(
            scripted.sent(),
            ["SUBSCRIBE corecast:probe:node", "SUBSCRIBE events", "PSUBSCRIBE room:*"]
        );
        assert_eq!(scripted.take(&push("subscribe", "corecast:probe:node")), Ok(None));
        assert_eq!(scripted.take(&push("subscribe", "events")), Ok(Some(confirmed("events"))));
        assert!(!scripted.session.take_ready(), "a pattern is missing");
        assert_eq!(scripted.take(&push("psubscribe", "room:*")), Ok(None));
        assert!(scripted.session.take_ready());
        assert!(!scripted.session.take_ready(), "once per connection");
    }

    #[test]
    fn messages_come_with_their_pattern_and_probes_apart() {
        let mut scripted = Scripted::ready(&["*"], &[]);
        let expected = SubscriberEvent::Message { pattern: None, channel: b"room:a", payload: b"hi" };
        assert_eq!(scripted.take(&message("room:a", "hi")), Ok(Some(expected)));
        let pmessage = ">4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$6\r\nroom:a\r\n$0\r\n\r\n";
        let expected = SubscriberEvent::Message { pattern: Some(b"*"), channel: b"room:a", payload: b"" };
        assert_eq!(scripted.take(pmessage), Ok(Some(expected)));

        let probe = message("corecast:probe:node", "0000000000000007:12");
        assert_eq!(scripted.take(&probe), Ok(Some(SubscriberEvent::Probe(12))));
        for foreign in ["0000000000000008:12", "12", "", "0000000000000007:x"] {
            assert_eq!(scripted.take(&message("corecast:probe:node", foreign)), Ok(None), "{foreign:?}");
        }
        assert_eq!(scripted.session.counters().probes_foreign, 4);
        let by_pattern = ">4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$20\r\ncorecast:probe:other\r\n$1\r\n1\r\n";
        assert_eq!(scripted.take(by_pattern), Ok(None), "another node's probe is no publication");
        assert_eq!(scripted.session.counters().messages, 2);
    }

    #[test]
    fn a_channel_is_confirmed_only_when_its_last_request_was_a_subscribe() {
        let mut scripted = Scripted::ready(&[], &[]);
        assert!(!scripted.session.subscribe(b"a"));
        scripted.session.unsubscribe(b"a");
        assert_eq!(scripted.sent(), ["SUBSCRIBE a"], "one request at a time");
        assert_eq!(scripted.take(&push("subscribe", "a")), Ok(None), "it isn't wanted any more");
        assert!(!scripted.session.subscribe(b"a"));
        assert_eq!(scripted.sent(), ["UNSUBSCRIBE a"]);
        assert_eq!(scripted.take(&push("unsubscribe", "a")), Ok(None));
        assert_eq!(scripted.sent(), ["SUBSCRIBE a"]);
        assert_eq!(scripted.take(&push("subscribe", "a")), Ok(Some(confirmed("a"))));
        assert!(scripted.session.subscribe(b"a"), "confirmed already");
        scripted.session.unsubscribe(b"a");
        assert_eq!(scripted.answer_all(), []);
        assert_eq!(scripted.session.topics(), 1, "only the probe's channel is left");
    }

    #[test]
    fn what_is_wanted_is_subscribed_again_on_the_next_connection() {
        let mut scripted = Scripted::ready(&["room:*"], &[]);
        scripted.session.subscribe(b"a");
        scripted.session.subscribe(b"b");
        scripted.answer_all();
        scripted.session.unsubscribe(b"b");
        scripted.session.end();
        assert!(!scripted.session.subscribe(b"c"), "nothing is confirmed while it is away");
        scripted.session.begin();
        assert_eq!(scripted.sent(), ["HELLO 3 SETNAME corecast"]);
        scripted.take("%1\r\n+proto\r\n:3\r\n").expect("HELLO is answered");
        let mut events = scripted.answer_all();
        events.sort_by_key(|event| format!("{event:?}"));
        assert_eq!(events, [confirmed("a"), confirmed("c")]);
        assert!(scripted.session.take_ready());
    }

    #[test]
    fn many_channels_are_subscribed_a_bounded_number_at_a_time() {
        let mut scripted = Scripted::ready(&[], &[]);
        let names: Vec<_> = (0..3 * SUBSCRIBE_INFLIGHT_MAX).map(|n| format!("room:{n}")).collect();
        names.iter().for_each(|name| assert!(!scripted.session.subscribe(name.as_bytes())));
        let first = scripted.sent();
        assert_eq!(first.len(), SUBSCRIBE_INFLIGHT_MAX);
        scripted.take(&push("subscribe", "room:0")).expect("it was asked for");
        assert_eq!(scripted.sent().len(), 1, "an answer makes room for one");
    }

    #[test]
    fn channels_that_are_wanted_and_left_again_do_not_pile_up_while_redis_answers_nothing() {
        let mut scripted = Scripted::ready(&[], &[]);
        for n in 0..10 * SUBSCRIBE_INFLIGHT_MAX {
            let name = format!("room:{n}");
            scripted.session.subscribe(name.as_bytes());
            // One in a hundred stays wanted.
            if n % 100 > 0 {
                scripted.session.unsubscribe(name.as_bytes());
            }
            assert!(scripted.session.topics() <= 2 * SUBSCRIBE_INFLIGHT_MAX + 2, "{n}");
        }
        let events = scripted.answer_all();
        let confirmed = events.iter().filter(|e| matches!(e, SubscriberEvent::Confirmed { .. })).count();
        assert_eq!(confirmed, (10 * SUBSCRIBE_INFLIGHT_MAX).div_ceil(100));
        assert_eq!(scripted.session.topics(), confirmed + 1, "and the probe's");
    }

    #[test]
    fn a_refused_fixed_topic_ends_the_session_and_names_channel_and_rule() {
        let mut scripted = Scripted::new(&[], &["events"]);
        scripted.take("%1\r\n+proto\r\n:3\r\n").expect("HELLO is answered");
        let error =
            scripted.take("-NOPERM No permissions to access a channel\r\n").expect_err("the probe is due");
        let text = error.to_string();
        assert!(text.contains("SUBSCRIBE corecast:probe:node"), "{text}");
        assert!(text.contains("ACL SETUSER default +subscribe '&corecast:probe:*'"), "{text}");
    }

    #[test]
    fn a_refused_channel_of_a_room_leaves_the_others_alone() {
        let mut scripted = Scripted::ready(&[], &[]);
        scripted.session.subscribe(b"secret");
        scripted.session.subscribe(b"open");
        scripted.sent();
        let event = scripted.take("-NOPERM No permissions\r\n").expect("the session goes on");
        let Some(SubscriberEvent::Refused { channel, reason }) = event else { panic!("{event:?}") };
        assert_eq!(&*channel, b"secret");
        assert!(reason.to_string().contains("&secret"), "{reason}");
        assert_eq!(scripted.take(&push("subscribe", "open")), Ok(Some(confirmed("open"))));
        assert!(!scripted.session.subscribe(b"secret"));
        assert_eq!(scripted.sent(), ["SUBSCRIBE secret"], "it may be tried again");
    }

    #[test]
    fn an_unasked_end_of_a_subscription_is_told_and_mended() {
        for kind in ["unsubscribe", "sunsubscribe"] {
            let mut scripted = Scripted::ready(&[], &[]);
            scripted.session.subscribe(b"a");
            scripted.answer_all();
            let lapsed = SubscriberEvent::Lapsed { channel: b"a" };
            assert_eq!(scripted.take(&push(kind, "a")), Ok(Some(lapsed)));
            assert_eq!(scripted.answer_all(), [confirmed("a")]);
            assert_eq!(scripted.session.counters().lapses, 1);
            assert_eq!(scripted.take(&push(kind, "never")), Ok(None), "of nothing");
            assert_eq!(scripted.take(">3\r\n$11\r\nunsubscribe\r\n_\r\n:0\r\n"), Ok(None), "of null");
        }
        let mut scripted = Scripted::ready(&["room:*"], &[]);
        let error = scripted.take(&push("punsubscribe", "room:*")).expect_err("a source has ended");
        assert_eq!(error, SessionError::SubscriptionEnded("room:*".into()));
    }

    /// A session with a node of a cluster, its probe's channel confirmed.
    fn sharded() -> Scripted {
        let mut scripted = Scripted { session: Subscriber::sharded(&target(None, None, 0), PROBE, 7) };
        scripted.session.begin();
        scripted.sent();
        scripted.take("%1\r\n+proto\r\n:3\r\n").expect("HELLO is answered");
        assert_eq!(scripted.sent(), ["SSUBSCRIBE corecast:probe:{1}:node"]);
        assert_eq!(scripted.take(&push("ssubscribe", PROBE)), Ok(None));
        assert!(scripted.session.take_ready());
        scripted
    }

    const PROBE: &str = "corecast:probe:{1}:node";

    fn moved_to(port: u16) -> Option<Server> {
        Some(Server { host: "10.0.0.1".to_owned(), port })
    }

    #[test]
    fn at_a_node_of_a_cluster_a_channel_that_has_moved_is_told_and_not_wanted_there() {
        let mut scripted = sharded();
        assert!(!scripted.session.subscribe(b"a"));
        assert_eq!(scripted.sent(), ["SSUBSCRIBE a"]);
        assert_eq!(scripted.take(&push("ssubscribe", "a")), Ok(Some(confirmed("a"))));
        let smessage = ">3\r\n$8\r\nsmessage\r\n$1\r\na\r\n$2\r\nhi\r\n";
        let expected = SubscriberEvent::Message { pattern: None, channel: b"a", payload: b"hi" };
        assert_eq!(scripted.take(smessage), Ok(Some(expected)));

        let lapsed = SubscriberEvent::Lapsed { channel: b"a" };
        assert_eq!(scripted.take(&push("sunsubscribe", "a")), Ok(Some(lapsed)));
        assert_eq!(scripted.sent(), ["SSUBSCRIBE a"]);
        let event = scripted.take("-MOVED 15495 10.0.0.1:7001\r\n");
        assert_eq!(event, Ok(Some(SubscriberEvent::Moved { channel: b"a"[..].into(), to: moved_to(7001) })));
        assert_eq!(scripted.session.topics(), 1, "only the probe's channel is left");

        for (reply, to) in [
            ("-MOVED 15495 :7001\r\n", None),
            ("-MOVED 15495 ?:7001\r\n", None),
            ("-MOVED 15495 10.0.0.1:0\r\n", None),
            ("-MOVED\r\n", None),
            ("-CLUSTERDOWN Hash slot not served\r\n", None),
            ("-MOVED 15495 10.0.0.1:7002\r\n", moved_to(7002)),
        ] {
            scripted.session.subscribe(b"b");
            assert_eq!(scripted.sent(), ["SSUBSCRIBE b"]);
            let event = Ok(Some(SubscriberEvent::Moved { channel: b"b"[..].into(), to }));
            assert_eq!(scripted.take(reply), event, "{reply}");
        }
    }

    #[test]
    fn an_end_that_a_node_of_a_cluster_refuses_has_come_by_the_move_or_is_asked_for_again() {
        let mut scripted = sharded();
        for channel in ["a", "b"] {
            scripted.session.subscribe(channel.as_bytes());
        }
        scripted.answer_all();
        for channel in ["a", "b"] {
            scripted.session.unsubscribe(channel.as_bytes());
        }
        assert_eq!(scripted.sent(), ["SUNSUBSCRIBE a", "SUNSUBSCRIBE b"]);
        assert_eq!(scripted.take("-MOVED 15495 10.0.0.1:7001\r\n"), Ok(None));
        assert_eq!(scripted.take("-CLUSTERDOWN The cluster is down\r\n"), Ok(None));
        assert_eq!(scripted.session.topics(), 2, "b and the probe's");
        assert_eq!(scripted.sent(), [""; 0], "not at once");
        let probe = format!(">3\r\n$8\r\nsmessage\r\n${}\r\n{PROBE}\r\n$18\r\n{:016x}:1\r\n", PROBE.len(), 7);
        assert_eq!(scripted.take(&probe), Ok(Some(SubscriberEvent::Probe(1))));
        assert_eq!(scripted.sent(), ["SUNSUBSCRIBE b"]);
        assert_eq!(scripted.take(&push("sunsubscribe", "b")), Ok(None));
        assert_eq!(scripted.session.topics(), 1);
    }

    #[test]
    fn a_probe_whose_slot_has_moved_takes_another_channel_and_breaks_nothing() {
        let mut scripted = sharded();
        scripted.session.subscribe(b"a");
        scripted.answer_all();
        assert_eq!(scripted.take(&push("sunsubscribe", PROBE)), Ok(Some(SubscriberEvent::ProbeMoved)));
        assert_eq!(scripted.sent(), [""; 0]);
        scripted.session.set_probe("corecast:probe:{2}:node");
        assert_eq!(scripted.sent(), ["SSUBSCRIBE corecast:probe:{2}:node"]);
        assert!(!scripted.session.take_ready());
        let refused = scripted.take("-MOVED 1 10.0.0.1:7001\r\n");
        assert_eq!(refused, Ok(Some(SubscriberEvent::ProbeMoved)));
        scripted.session.set_probe("corecast:probe:{2}:node");
        assert_eq!(scripted.sent(), ["SSUBSCRIBE corecast:probe:{2}:node"], "its slot has come back");
        assert_eq!(scripted.take(&push("ssubscribe", "corecast:probe:{2}:node")), Ok(None));
        assert!(scripted.session.take_ready());
        assert!(scripted.session.subscribe(b"a"), "still confirmed");
        assert_eq!(scripted.session.topics(), 2);
    }

    #[test]
    fn unknown_pushes_are_counted_and_unasked_replies_end_the_session() {
        let mut scripted = Scripted::ready(&[], &[]);
        for unknown in [">2\r\n+invalidate\r\n_\r\n", ">0\r\n", ">1\r\n:5\r\n", ">1\r\n_\r\n"] {
            assert_eq!(scripted.take(unknown), Ok(None), "{unknown:?}");
        }
        assert_eq!(scripted.session.counters().pushes_unknown, 4);
        for reply in [
            "+OK\r\n",
            ":1\r\n",
            "_\r\n",
            "-ERR what\r\n",
            "*0\r\n",
            "*1\r\n_\r\n",
            "$-1\r\n",
            "%0\r\n",
            "#t\r\n",
            ">1\r\n+message\r\n",
            ">3\r\n+message\r\n_\r\n_\r\n",
            ">3\r\n+message\r\n+a\r\n*0\r\n",
            ">3\r\n+subscribe\r\n+a\r\n:1\r\n",
            ">1\r\n+unsubscribe\r\n",
        ] {
            let mut scripted = Scripted::ready(&[], &[]);
            assert!(scripted.take(reply).is_err(), "{reply:?} was accepted");
        }
    }

    #[test]
    fn without_hello_it_is_authenticated_and_spoken_to_in_resp2() {
        let account = target(Some("ann"), Some("secret"), 0);
        let mut scripted = Scripted { session: Subscriber::new(&account, "node", 7, &[], &[]) };
        scripted.session.begin();
        assert_eq!(scripted.sent(), ["HELLO 3 AUTH ann secret SETNAME corecast"]);
        assert_eq!(scripted.take("-ERR unknown command 'HELLO'\r\n"), Ok(None));
        assert_eq!(scripted.sent(), ["AUTH ann secret"]);
        assert_eq!(scripted.take("+OK\r\n"), Ok(None));
        assert_eq!(scripted.sent(), ["CLIENT SETNAME corecast"]);
        assert_eq!(scripted.take("-NOPERM no\r\n"), Ok(None), "the name is a convenience");
        assert_eq!(scripted.sent(), ["SUBSCRIBE corecast:probe:node"]);
        let confirm = "*3\r\n$9\r\nsubscribe\r\n$19\r\ncorecast:probe:node\r\n:1\r\n";
        assert_eq!(scripted.take(confirm), Ok(None));
        assert!(scripted.session.take_ready());
        let message = "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n";
        let expected = SubscriberEvent::Message { pattern: None, channel: b"a", payload: b"hi" };
        assert_eq!(scripted.take(message), Ok(Some(expected)));
        assert_eq!(scripted.session.protocol(), Protocol::Resp2);
    }

    #[test]
    fn handshakes_fail_with_a_sentence_for_the_operator() {
        for (reply, due) in [
            ("-NOAUTH HELLO must be called with the client already authenticated\r\n", "give one"),
            ("-WRONGPASS invalid username-password pair\r\n", "correct them"),
            ("-LOADING Redis is loading the dataset in memory\r\n", "tried again"),
            ("-MASTERDOWN Link with MASTER is down\r\n", "tried again"),
            ("-ERR max number of clients reached\r\n", "tried again"),
            ("-DENIED Redis is running in protected mode\r\n", "refused HELLO (DENIED"),
            ("+OK\r\n", "where a map was due"),
            ("_\r\n", "null where a map was due"),
        ] {
            let text = Scripted::new(&[], &[]).take(reply).expect_err("it failed").to_string();
            assert!(text.contains(due), "{reply:?} gave {text:?}");
        }
    }

    proptest! {
        /// Whatever is wanted and left in whatever order, and however late Redis answers: what is wanted at the end is
        /// what Redis has at the end, and a channel is told as confirmed exactly when Redis has it and it is wanted.
        #[test]
        fn redis_ends_up_with_what_is_wanted(
            steps in proptest::collection::vec((0..4u8, 0..3usize), 1..80)
        ) {
            const NAMES: [&str; 3] = ["a", "b", "c"];
            let mut scripted = Scripted::ready(&[], &[]);
            let mut wanted = [false; 3];
            let mut at_redis = [false; 3];
            let mut confirmed = [false; 3];
            let mut unanswered: VecDeque<String> = VecDeque::new();
            let drain = steps.iter().copied().chain(std::iter::repeat_n((3, 0), 400));
            for (action, index) in drain {
                match action {
                    0 | 1 => {
                        wanted[index] = true;
                        let is_confirmed = scripted.session.subscribe(NAMES[index].as_bytes());
                        prop_assert!(!is_confirmed || at_redis[index], "confirmed, but redis lacks it");
                        confirmed[index] |= is_confirmed;
                    }
                    2 => {
                        wanted[index] = false;
                        confirmed[index] = false;
                        scripted.session.unsubscribe(NAMES[index].as_bytes());
                    }
                    _ => {
                        let Some(command) = unanswered.pop_front() else {
                            unanswered.extend(scripted.sent());
                            continue;
                        };
                        let (verb, name) = command.split_once(' ').expect("a request has a name");
                        let of = NAMES.iter().position(|known| *known == name).expect("it is ours");
                        at_redis[of] = verb == "SUBSCRIBE";
                        let event = scripted.take(&push(&verb.to_lowercase(), name)).expect("it was asked for");
                        if event.is_some() {
                            prop_assert!(wanted[of] && at_redis[of], "confirmed, but not there");
                            confirmed[of] = true;
                        }
                    }
                }
                unanswered.extend(scripted.sent());
            }
            prop_assert_eq!(wanted, at_redis);
            prop_assert_eq!(wanted, confirmed);
        }

        #[test]
        fn no_reply_makes_it_panic(
            replies in proptest::collection::vec(
                (
                    proptest::sample::select(vec![
                        "message", "pmessage", "subscribe", "psubscribe", "unsubscribe", "punsubscribe", "x",
                    ]),
                    proptest::sample::select(vec!["+a\r\n", "+room:*\r\n", "_\r\n", ":1\r\n", "*0\r\n", "-ERR\r\n"]),
                    proptest::sample::select(vec!["+1\r\n", "_\r\n", ":1\r\n", "", "+1\r\n+2\r\n"]),
                    proptest::sample::select(vec!['>', '*', '-']),
                ),
                0..30,
            )
        ) {
            let mut scripted = Scripted::ready(&["room:*"], &[]);
            scripted.session.subscribe(b"a");
            for (kind, second, rest, mark) in replies {
                let items = 2 + rest.matches("\r\n").count();
                let reply = match mark {
                    '-' => "-ERR no\r\n".to_string(),
                    mark => format!("{mark}{items}\r\n+{kind}\r\n{second}{rest}"),
                };
                if scripted.take(&reply).is_err() {
                    break;
                }
                scripted.sent();
            }
        }
    }
}
