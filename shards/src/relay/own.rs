//! Publications of this node's clients, between their way to Redis and their return.
//!
//! Those of a source with `own = "origin"` have been delivered before they leave, and name their origin: their echo is
//! ignored when it comes, and only the answer of Redis is waited for. The others carry no such name, so an echo is known
//! by its channel and payload: Redis returns what one connection publishes in order, so the echo is one of the first that
//! have not returned. While the subscription is broken, what has not returned is delivered here, once, and its echo,
//! should it come after all, is swallowed.
//!
//! An entry ends when it has both returned and been answered; or at a fence: a probe published after it has returned, so
//! it will not any more.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::appends::Append;
use super::{BrokerCommand, BrokerState, Outlet, Particulars, Relay};
use crate::command::{ConnectionId, Down, Label, Outcome, Publish};
use crate::config::{self, Deliver};
use crate::envelope;
use crate::limits::{PAYLOAD_BYTES_MAX, PUBLISH_INFLIGHT_BYTES_MAX, PUBLISH_INFLIGHT_MAX};
use crate::metrics::{RefuseReason, Via};
use crate::route::plain_name;
use crate::shard::Micros;

/// Echoes may overtake only what Redis lost, so the search for one is short.
const SEARCH_MAX: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// Oldest first; tokens are consecutive.
    entries: VecDeque<Entry>,
    first_token: u64,
    /// Those of sources with `own = "origin"`, oldest first; their tokens are consecutive from [`PLACED_TOKENS`] on.
    placed: VecDeque<Placed>,
    first_placed: u64,
    /// Entries whose echo may still come.
    unreturned: usize,
    bytes: usize,
    /// Number of the last probe that was published.
    probe: u64,
}

#[derive(Debug)]
struct Entry {
    /// How its client said it.
    via: Via,
    room: Arc<str>,
    source: usize,
    channel: Box<[u8]>,
    /// As published; the payload for members is unwrapped from it.
    payload: Bytes,
    label: Option<Arc<Label>>,
    except: Option<ConnectionId>,
    answer_to: Option<ConnectionId>,
    /// What Redis said.
    answer: Option<Outcome>,
    returned: bool,
    /// Delivered here without Redis.
    delivered: bool,
    /// The last probe before it.
    after_probe: u64,
    /// When its client sent it.
    arrived: Micros,
}

/// A publication that the members here have had, on its way to the other nodes.
#[derive(Debug)]
struct Placed {
    answer_to: Option<ConnectionId>,
    bytes: usize,
    answered: bool,
}

/// Where the tokens of [`Placed`] begin; those of entries never come so far.
const PLACED_TOKENS: u64 = 1 << 63;

/// An echo that was recognised.
pub(super) struct Returned {
    /// It has been delivered already.
    pub delivered: bool,
    /// Who does not get it.
    pub except: Option<ConnectionId>,
    /// What was said of it when it left.
    pub label: Option<Arc<Label>>,
}

impl Own {
    /// Recognises an echo: its index, and what is known of it. What stands before it in the queue is passed over, not
    /// given up: its fence will come.
    pub(super) fn returned(&mut self, channel: &[u8], payload: &[u8]) -> Option<(usize, Returned)> {
        let waiting = self.entries.iter().enumerate().filter(|(_, entry)| !entry.returned);
        let mut waiting = waiting.take(SEARCH_MAX.min(self.unreturned));
        let (index, entry) =
            waiting.find(|(_, entry)| *entry.channel == *channel && *entry.payload == *payload)?;
        let returned =
            Returned { delivered: entry.delivered, except: entry.except, label: entry.label.clone() };
        self.note_returned(index);
        Some((index, returned))
    }

    /// It has returned, or will not, or need not.
    fn note_returned(&mut self, index: usize) {
        let was_returned = std::mem::replace(&mut self.entries[index].returned, true);
        self.unreturned -= usize::from(!was_returned);
    }

    /// Publications that are on their way.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.entries.len()
    }

    fn is_full(&self) -> bool {
        self.entries.len() + self.placed.len() >= PUBLISH_INFLIGHT_MAX
            || self.bytes >= PUBLISH_INFLIGHT_BYTES_MAX
    }

    fn index_of(&self, token: u64) -> Option<usize> {
        let index = token.checked_sub(self.first_token)? as usize;
        (index < self.entries.len()).then_some(index)
    }
}

impl Relay {
    /// A client publishes: through the broker, or at once where there is none.
    pub(super) fn publish(&mut self, publish: Publish, outlet: &mut impl Outlet, now: Micros) {
        let Publish { room, payload, from, user, except_sender, answer, label, keep } = publish;
        let except = except_sender.then_some(from);
        let setup = Arc::clone(&self.setup);
        let answer_to = answer.then_some(from);
        let source = setup.routes.channel_of_room(&room);
        // In an envelope it says what it is; elsewhere who reads it sees.
        let travels =
            source.as_ref().is_some_and(|(source, _)| *setup.routes.deliver(*source) == Deliver::Event);
        let label = label.or_else(|| travels.then(|| self.label_of(&payload)).flatten());
        let via = if answer { Via::Http } else { Via::Client };
        let particulars = Particulars { via, label: label.clone(), except };
        let server = source.as_ref().map(|(source, _)| setup.routes.server_of(*source));
        let state = server.map_or(BrokerState::Local, |server| self.servers[server].state);
        let through = source.zip(server).filter(|_| state != BrokerState::Local);
        let Some(((source, channel), server)) = through else {
            let outcome = self.place(&room, &payload, particulars, outlet, now);
            return self.answer_publish(answer_to, outcome, outlet);
        };
        // Judged as it will travel, before anybody has it: an envelope of octets is a third longer than they are.
        let wrapped = self.wrapped(source, &room, user.as_deref(), label.as_deref(), &payload);
        if wrapped.len() > PAYLOAD_BYTES_MAX {
            self.metrics().refused.add(RefuseReason::TooBig, 1);
            return self.answer_publish(answer_to, Outcome::TooBig, outlet);
        }
        if let Some(key) = &keep {
            self.keep_last(source, key, &payload, now);
        }
        if setup.routes.is_stream(source) {
            let trim = setup.routes.trim(source);
            let mut append = Append::new(channel.as_bytes(), wrapped, trim, answer_to, now);
            (append.label, append.except) = (label, except);
            return self.append(server, append, outlet);
        }
        if setup.routes.own(source) == config::Own::Origin {
            self.place(&room, &payload, particulars, outlet, now);
            return self.send_placed(server, channel.as_bytes(), wrapped, answer_to, outlet);
        }
        if state == BrokerState::Down {
            self.metrics().publishes_local.add(1);
            self.place(&room, &payload, particulars, outlet, now);
            return self.answer_publish(answer_to, Outcome::LocalOnly, outlet);
        }
        if self.servers[server].own.is_full() {
            self.metrics().refused.add(RefuseReason::BrokerBacklog, 1);
            return self.answer_publish(answer_to, Outcome::Busy, outlet);
        }
        // Until Redis has confirmed the room's channel (again) nothing returns on it.
        let is_deaf = self.has_unconfirmed_readers(&room);
        if is_deaf {
            self.metrics().publishes_local.add(1);
            self.place(&room, &payload, particulars.clone(), outlet, now);
        }
        let payload = wrapped;
        let channel: Box<[u8]> = channel.as_bytes().into();
        let own = &mut self.servers[server].own;
        let token = own.first_token + own.entries.len() as u64;
        own.bytes += payload.len() + channel.len();
        own.unreturned += 1;
        own.entries.push_back(Entry {
            via,
            label,
            room,
            source,
            channel: channel.clone(),
            payload: payload.clone(),
            except,
            answer_to,
            answer: None,
            returned: false,
            delivered: is_deaf,
            after_probe: own.probe,
            arrived: now,
        });
        self.metrics().publishes_sent.of(server).add(1);
        self.broker.push_back((server, BrokerCommand::Publish { token, channel, payload }));
    }

    /// Sends what the members here have already to the other nodes. Its echo names its origin and is not waited for.
    ///
    /// Whatever keeps it from them, its client is never told to send it again: here it would come twice.
    fn send_placed(
        &mut self,
        server: usize,
        channel: &[u8],
        payload: Bytes,
        answer_to: Option<ConnectionId>,
        outlet: &mut impl Outlet,
    ) {
        let is_down = self.servers[server].state == BrokerState::Down;
        if is_down || self.servers[server].own.is_full() {
            if !is_down {
                self.metrics().refused.add(RefuseReason::BrokerBacklog, 1);
            }
            self.metrics().publishes_local.add(1);
            return self.answer_publish(answer_to, Outcome::LocalOnly, outlet);
        }
        let own = &mut self.servers[server].own;
        let token = PLACED_TOKENS + own.first_placed + own.placed.len() as u64;
        let bytes = payload.len() + channel.len();
        own.bytes += bytes;
        own.placed.push_back(Placed { answer_to, bytes, answered: false });
        self.metrics().publishes_sent.of(server).add(1);
        self.broker.push_back((server, BrokerCommand::Publish { token, channel: channel.into(), payload }));
    }

    /// Redis has answered a publication that the members here had before, or it never will.
    fn placed_answered(
        &mut self,
        server: usize,
        number: u64,
        receivers: Result<u64, PublishFailure>,
        outlet: &mut impl Outlet,
    ) {
        let index = number.checked_sub(self.servers[server].own.first_placed).map(|index| index as usize);
        let Some(placed) = index.and_then(|index| self.servers[server].own.placed.get_mut(index)) else {
            return;
        };
        placed.answered = true;
        let answer_to = placed.answer_to.take();
        let outcome = match receivers {
            Ok(receivers) => Outcome::Sent { receivers },
            Err(failure) => {
                let metrics = &self.setup.metrics.relay;
                match failure {
                    PublishFailure::Refused => metrics.refused.add(RefuseReason::BrokerError, 1),
                    PublishFailure::Busy => metrics.refused.add(RefuseReason::BrokerBacklog, 1),
                    PublishFailure::TooBig => metrics.refused.add(RefuseReason::TooBig, 1),
                    PublishFailure::Unsent | PublishFailure::Unknown => {}
                }
                metrics.publishes_local.add(1);
                Outcome::LocalOnly
            }
        };
        self.answer_publish(answer_to, outcome, outlet);
        while let Some(placed) = self.servers[server].own.placed.pop_front_if(|placed| placed.answered) {
            self.servers[server].own.bytes -= placed.bytes;
            self.servers[server].own.first_placed += 1;
        }
    }

    /// An own publication in the form of its source.
    fn wrapped(
        &self,
        source: usize,
        room: &str,
        user: Option<&str>,
        label: Option<&Label>,
        payload: &Bytes,
    ) -> Bytes {
        match self.setup.routes.deliver(source) {
            config::Deliver::Event => {
                let (node, instance) = (self.setup.routes.node_id(), &*self.instance_id);
                envelope::wrap_event(plain_name(room), label, payload, node, instance)
            }
            deliver => envelope::wrap(deliver, plain_name(room), user, payload),
        }
    }

    pub(super) fn answer_publish(
        &mut self,
        to: Option<ConnectionId>,
        outcome: Outcome,
        outlet: &mut impl Outlet,
    ) {
        if let Some(to) = to {
            self.offer(to.shard, Down::Published { to, outcome }, outlet);
        }
    }

    /// Redis has answered a publication, or it never will.
    ///
    /// After a break its driver says [`PublishFailure::Unsent`] or `Unknown` of each, before or after `broker_down`.
    pub fn published(
        &mut self,
        server: usize,
        token: u64,
        receivers: Result<u64, PublishFailure>,
        outlet: &mut impl Outlet,
    ) {
        if let Some(number) = token.checked_sub(PLACED_TOKENS) {
            return self.placed_answered(server, number, receivers, outlet);
        }
        let Some(index) = self.servers[server].own.index_of(token) else { return };
        let has_readers = self.has_readers(&self.servers[server].own.entries[index].room);
        // Nobody here waits for it, and an on-demand channel of which nobody is here returns nothing: the client isn't
        // kept waiting for a fence. An echo is then placed like anybody's publication.
        if receivers.is_ok() && !has_readers {
            self.servers[server].own.note_returned(index);
        }
        let (outcome, will_not_return) = match receivers {
            // Nobody subscribes to it, so not this node either: nothing will return. Whoever is here has lost his
            // subscription, or has it not yet.
            Ok(receivers) => (Outcome::Sent { receivers }, receivers == 0),
            Err(PublishFailure::Unsent) => (Outcome::LocalOnly, true),
            // `broker_down`, which comes with this, delivers it, unless it returned before. It may yet return after.
            Err(PublishFailure::Unknown) => (Outcome::LocalOnly, false),
            Err(failure @ (PublishFailure::Refused | PublishFailure::Busy | PublishFailure::TooBig)) => {
                self.servers[server].own.note_returned(index);
                let (outcome, reason) = match failure {
                    PublishFailure::Busy => (Outcome::Busy, RefuseReason::BrokerBacklog),
                    PublishFailure::TooBig => (Outcome::TooBig, RefuseReason::TooBig),
                    _ => (Outcome::Refused, RefuseReason::BrokerError),
                };
                self.setup.metrics.relay.refused.add(reason, 1);
                (outcome, false)
            }
        };
        let entry = &mut self.servers[server].own.entries[index];
        entry.answer = entry.answer.or(Some(outcome));
        if will_not_return {
            self.deliver_here(server, index, outlet);
            self.servers[server].own.note_returned(index);
        }
        self.answer_entry(server, index, outlet);
        self.forget_settled(server);
    }

    /// A probe was published: what comes back before it was published before it.
    pub fn probe_sent(&mut self, server: usize, number: u64) {
        self.servers[server].own.probe = number;
    }

    /// A probe returned: what was published before it and has not returned never will.
    pub fn probe_returned(&mut self, server: usize, number: u64, outlet: &mut impl Outlet) {
        let mut missing = 0;
        for index in 0..self.servers[server].own.entries.len() {
            let entry = &mut self.servers[server].own.entries[index];
            if entry.after_probe >= number {
                break;
            }
            missing += u64::from(!entry.returned && !entry.delivered);
            entry.answer = entry.answer.or(Some(Outcome::LocalOnly));
            self.servers[server].own.note_returned(index);
            self.answer_entry(server, index, outlet);
        }
        self.metrics().echoes_missing.add(missing);
        self.forget_settled(server);
    }

    /// The subscription is broken, or that of `channel` alone: own publications that have not returned are delivered here. Their
    /// echoes, should they come after all, are swallowed until a fence.
    pub(super) fn deliver_unreturned(
        &mut self,
        server: usize,
        channel: Option<&[u8]>,
        outlet: &mut impl Outlet,
    ) {
        for index in 0..self.servers[server].own.entries.len() {
            if channel.is_some_and(|channel| *self.servers[server].own.entries[index].channel != *channel) {
                continue;
            }
            self.deliver_here(server, index, outlet);
            self.answer_entry(server, index, outlet);
        }
        self.forget_settled(server);
    }

    /// Delivers one to the members here, unless it has come to them already.
    fn deliver_here(&mut self, server: usize, index: usize, outlet: &mut impl Outlet) {
        let entry = &mut self.servers[server].own.entries[index];
        if entry.returned || std::mem::replace(&mut entry.delivered, true) {
            return;
        }
        let setup = Arc::clone(&self.setup);
        let (room, payload, except) = (entry.room.clone(), entry.payload.clone(), entry.except);
        let (source, arrived, label, via) = (entry.source, entry.arrived, entry.label.clone(), entry.via);
        let payload = match setup.routes.deliver(source) {
            config::Deliver::Event => match envelope::event(&payload, None) {
                Some(event) => Cow::Owned(event.data.into_owned()),
                None => Cow::Borrowed(&payload[..]),
            },
            deliver => envelope::unwrap(deliver, plain_name(&room), &payload),
        };
        self.metrics().publishes_local.add(1);
        self.place(&room, &payload, Particulars { via, label, except }, outlet, arrived);
    }

    /// Answers the client once its publication has come to the members here and Redis has said what became of it.
    pub(super) fn answer_entry(&mut self, server: usize, index: usize, outlet: &mut impl Outlet) {
        let entry = &mut self.servers[server].own.entries[index];
        if let Some(outcome) = entry.answer
            && (entry.returned || entry.delivered)
            && let Some(to) = entry.answer_to.take()
        {
            self.offer(to.shard, Down::Published { to, outcome }, outlet);
        }
    }

    /// Forgets, from the oldest on, what has both returned and been answered by Redis.
    pub(super) fn forget_settled(&mut self, server: usize) {
        while let Some(entry) =
            self.servers[server].own.entries.pop_front_if(|e| e.returned && e.answer.is_some())
        {
            debug_assert!(entry.answer_to.is_none(), "a publication is forgotten before its answer");
            self.servers[server].own.bytes -= entry.payload.len() + entry.channel.len();
            self.servers[server].own.first_token += 1;
        }
    }
}

/// Why Redis did not take a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishFailure {
    /// The connection broke before it was written.
    Unsent,
    /// The connection broke after it was written and before it was answered.
    Unknown,
    /// Redis answered with an error.
    Refused,
    /// Too much is on its way already.
    Busy,
    /// In its envelope it is longer than a publication may be: the same one would be refused again.
    TooBig,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Gate;
    use crate::command::{RoomSlot, Up};
    use crate::config::{Config, Deliver, Own, RoomClass, Source, Subscribe, Template, TemplatePart};
    use crate::metrics::{GapReason, Identity, Metrics};
    use crate::relay::tests::Ring;
    use crate::setup::Setup;

    const NOW: Micros = Micros(1);
    const FROM: ConnectionId = ConnectionId { shard: 0, generation: 0, slot: 9 };

    /// A relay with one member in room "r", proved up.
    fn relay() -> (Relay, Ring) {
        let config = Config { rooms: vec![RoomClass::default()], ..Config::default() };
        let metrics = Arc::new(Metrics::new(1, Identity::default(), false));
        let setup = Setup::new(&config, Gate::new(None, true), metrics);
        let (mut relay, mut ring) = (Relay::new(Arc::new(setup), BrokerState::Down, 0), Ring::default());
        relay.broker_up(0, &mut ring);
        let slot = RoomSlot { index: 0, generation: 0 };
        relay.handle(0, Up::Join { slot, name: "r".into() }, &mut ring, NOW);
        relay.confirmed(0, b"room:r", &mut ring);
        (relay, ring)
    }

    fn publish(relay: &mut Relay, ring: &mut Ring, room: &str) -> u64 {
        relay.broker.clear();
        let publish = Publish {
            room: room.into(),
            payload: Bytes::from_static(b"x"),
            from: FROM,
            user: None,
            except_sender: false,
            answer: true,
            label: None,
            keep: None,
        };
        relay.handle(0, Up::Publish(Box::new(publish)), ring, NOW);
        match relay.broker.pop_front() {
            Some((0, BrokerCommand::Publish { token, .. })) => token,
            other => panic!("no publication: {other:?}"),
        }
    }

    fn deliveries(ring: &Ring) -> usize {
        ring.0.iter().filter(|command| matches!(command, Down::Publication { .. })).count()
    }

    fn answers(ring: &Ring) -> usize {
        ring.0.iter().filter(|command| matches!(command, Down::Published { .. })).count()
    }

    #[test]
    fn what_broke_off_is_delivered_here_once_in_whatever_order_the_driver_says_so() {
        for failure in [PublishFailure::Unsent, PublishFailure::Unknown] {
            for fails_first in [true, false] {
                let (mut relay, mut ring) = relay();
                let token = publish(&mut relay, &mut ring, "r");
                if fails_first {
                    relay.published(0, token, Err(failure), &mut ring);
                }
                relay.broker_down(0, &mut ring);
                if !fails_first {
                    relay.published(0, token, Err(failure), &mut ring);
                }
                assert_eq!((deliveries(&ring), answers(&ring)), (1, 1), "{failure:?}, first: {fails_first}");
            }
        }
    }

    #[test]
    fn what_is_too_long_in_its_envelope_is_told_so_and_not_to_try_again() {
        for (failure, outcome, reason) in [
            (PublishFailure::TooBig, Outcome::TooBig, RefuseReason::TooBig),
            (PublishFailure::Busy, Outcome::Busy, RefuseReason::BrokerBacklog),
            (PublishFailure::Refused, Outcome::Refused, RefuseReason::BrokerError),
        ] {
            let (mut relay, mut ring) = relay();
            let token = publish(&mut relay, &mut ring, "r");
            relay.published(0, token, Err(failure), &mut ring);
            assert!(
                ring.0.iter().any(|c| matches!(c, Down::Published { outcome: told, .. } if *told == outcome)),
                "{failure:?}"
            );
            assert_eq!(relay.metrics().refused.value(reason), 1, "{failure:?}");
        }
    }

    #[test]
    fn what_broke_off_on_a_channel_that_lapsed_is_delivered_here_and_other_rooms_wait_for_theirs() {
        let (mut relay, mut ring) = relay();
        let slot = RoomSlot { index: 1, generation: 0 };
        relay.handle(0, Up::Join { slot, name: "s".into() }, &mut ring, NOW);
        relay.confirmed(0, b"room:s", &mut ring);
        let token = publish(&mut relay, &mut ring, "r");
        publish(&mut relay, &mut ring, "s");
        relay.lapsed(0, b"room:r", &mut ring);
        relay.published(0, token, Err(PublishFailure::Unknown), &mut ring);
        assert_eq!((deliveries(&ring), answers(&ring)), (1, 1));
        relay.message(0, None, b"room:s", b"x", &mut ring, NOW);
        assert_eq!(deliveries(&ring), 2, "the other came by Redis");
    }

    #[test]
    fn who_waits_for_a_channel_that_lapses_is_admitted() {
        let (mut relay, mut ring) = relay();
        let slot = RoomSlot { index: 1, generation: 0 };
        relay.handle(0, Up::Join { slot, name: "s".into() }, &mut ring, NOW);
        let joined = |ring: &Ring| ring.0.iter().filter(|down| matches!(down, Down::Joined { .. })).count();
        assert_eq!(joined(&ring), 1);
        relay.lapsed(0, b"room:s", &mut ring);
        assert_eq!((joined(&ring), relay.metrics().gaps.value(GapReason::Broker)), (2, 1));
        let gaps = |ring: &Ring| ring.0.iter().filter(|down| matches!(down, Down::RoomGap { .. })).count();
        assert_eq!(gaps(&ring), 0, "it is still lost");
        relay.confirmed(0, b"room:s", &mut ring);
        relay.confirmed(0, b"room:s", &mut ring);
        assert_eq!((joined(&ring), gaps(&ring)), (2, 1), "told when it is back, and once");
        let epochs = |ring: &Ring| {
            let epoch = |down: &Down| match down {
                Down::Joined { slot, epoch, .. } | Down::RoomGap { slot, epoch, .. } if slot.index == 1 => {
                    Some(*epoch)
                }
                _ => None,
            };
            ring.0.iter().filter_map(epoch).collect::<Vec<u64>>()
        };
        let [before, after] = epochs(&ring)[..] else { panic!("a join and a gap") };
        assert_ne!(before, after, "in a new epoch");
    }

    #[test]
    fn a_late_echo_is_swallowed_until_a_fence() {
        let (mut relay, mut ring) = relay();
        let token = publish(&mut relay, &mut ring, "r");
        relay.broker_down(0, &mut ring);
        relay.published(0, token, Err(PublishFailure::Unknown), &mut ring);
        relay.message(0, None, b"room:r", b"x", &mut ring, NOW);
        assert_eq!(deliveries(&ring), 1, "its own echo");
        relay.message(0, None, b"room:r", b"x", &mut ring, NOW);
        assert_eq!(deliveries(&ring), 2, "somebody's publication of the same payload");
    }

    #[test]
    fn an_answer_does_not_wait_for_another_publication() {
        let (mut relay, mut ring) = relay();
        let first = publish(&mut relay, &mut ring, "r");
        let second = publish(&mut relay, &mut ring, "r");
        relay.broker_down(0, &mut ring);
        relay.published(0, second, Err(PublishFailure::Unsent), &mut ring);
        assert_eq!(answers(&ring), 1);
        relay.published(0, first, Err(PublishFailure::Unknown), &mut ring);
        assert_eq!((deliveries(&ring), answers(&ring)), (2, 2));
    }

    #[test]
    fn what_reached_no_subscriber_is_delivered_here() {
        let (mut relay, mut ring) = relay();
        let token = publish(&mut relay, &mut ring, "r");
        relay.published(0, token, Ok(0), &mut ring);
        relay.broker_down(0, &mut ring);
        assert_eq!((deliveries(&ring), answers(&ring)), (1, 1));
    }

    #[test]
    fn a_publication_to_a_room_without_readers_is_answered_at_once() {
        let (mut relay, mut ring) = relay();
        let token = publish(&mut relay, &mut ring, "elsewhere");
        relay.published(0, token, Ok(3), &mut ring);
        assert_eq!((deliveries(&ring), answers(&ring)), (0, 1));
        assert!(relay.servers[0].own.entries.is_empty());
    }

    #[test]
    fn what_a_fence_overtook_is_forgotten() {
        let (mut relay, mut ring) = relay();
        relay.probe_sent(0, 1);
        let token = publish(&mut relay, &mut ring, "r");
        relay.published(0, token, Ok(1), &mut ring);
        relay.probe_returned(0, 1, &mut ring);
        assert_eq!(relay.servers[0].own.entries.len(), 1, "a probe before it proves nothing");
        relay.probe_sent(0, 2);
        relay.probe_returned(0, 2, &mut ring);
        assert_eq!(
            (relay.servers[0].own.entries.len(), relay.servers[0].own.bytes, answers(&ring)),
            (0, 0, 1)
        );
    }

    /// The same with a source that names the origin.
    fn origin_relay() -> (Relay, Ring) {
        let source = Source {
            subscribe: Subscribe::Channel("events".to_owned()),
            room: Template { parts: vec![TemplatePart::Json("room".to_owned())] },
            deliver: Deliver::Event,
            own: Own::Origin,
            ..Source::default()
        };
        let config = Config { sources: vec![source], ..Config::default() };
        let metrics = Arc::new(Metrics::new(1, Identity::default(), false));
        let setup = Setup::new(&config, Gate::new(None, true), metrics);
        let (mut relay, mut ring) = (Relay::new(Arc::new(setup), BrokerState::Down, 0), Ring::default());
        let slot = RoomSlot { index: 0, generation: 0 };
        relay.handle(0, Up::Join { slot, name: "r".into() }, &mut ring, NOW);
        relay.broker_up(0, &mut ring);
        (relay, ring)
    }

    fn outcomes(ring: &Ring) -> Vec<Outcome> {
        let outcome = |command: &Down| match command {
            Down::Published { outcome, .. } => Some(*outcome),
            _ => None,
        };
        ring.0.iter().filter_map(outcome).collect()
    }

    #[test]
    fn what_members_have_is_never_to_be_sent_again_whatever_keeps_it_from_others() {
        for failure in
            [PublishFailure::Unsent, PublishFailure::Unknown, PublishFailure::Refused, PublishFailure::Busy]
        {
            let (mut relay, mut ring) = origin_relay();
            let token = publish(&mut relay, &mut ring, "r");
            assert_eq!((deliveries(&ring), answers(&ring)), (1, 0), "members have it at once");
            relay.broker_down(0, &mut ring);
            relay.published(0, token, Err(failure), &mut ring);
            assert_eq!(outcomes(&ring), [Outcome::LocalOnly], "{failure:?}");
            assert_eq!(deliveries(&ring), 1, "{failure:?}");
            assert_eq!(relay.metrics().publishes_local.value(), 1, "{failure:?}: nobody else got it");
            assert!(relay.servers[0].own.placed.is_empty() && relay.servers[0].own.bytes == 0);
        }
    }

    #[test]
    fn an_own_envelope_that_comes_back_is_ignored_and_one_of_the_same_name_is_not() {
        let (mut relay, mut ring) = origin_relay();
        relay.broker.clear();
        publish(&mut relay, &mut ring, "r");
        let envelope = |instance: &str| {
            format!(r#"{{"room":"r","data":"x","origin":"0000000000000000","instance_id":"{instance}"}}"#)
        };
        let own = envelope(&relay.instance_id.clone());
        relay.message(0, None, b"events", own.as_bytes(), &mut ring, NOW);
        assert_eq!((deliveries(&ring), relay.metrics().echoes_ignored.value()), (1, 1));
        let namesake = envelope("0000000000000000-other");
        relay.message(0, None, b"events", namesake.as_bytes(), &mut ring, NOW);
        relay.message(
            0,
            None,
            b"events",
            br#"{"room":"r","data":"x","origin":"0000000000000000"}"#,
            &mut ring,
            NOW,
        );
        assert_eq!(deliveries(&ring), 3);
    }

    #[test]
    fn what_is_too_long_in_its_envelope_is_refused_before_anybody_has_it() {
        let (mut relay, mut ring) = origin_relay();
        let publish = Publish {
            room: "r".into(),
            payload: Bytes::from(vec![0xff; PAYLOAD_BYTES_MAX - 1000]),
            from: FROM,
            user: None,
            except_sender: false,
            answer: true,
            label: None,
            keep: None,
        };
        relay.handle(0, Up::Publish(Box::new(publish)), &mut ring, NOW);
        assert_eq!((outcomes(&ring), deliveries(&ring)), (vec![Outcome::TooBig], 0));
        assert_eq!(relay.metrics().refused.value(RefuseReason::TooBig), 1);
    }

    #[test]
    fn a_payload_speaks_neither_for_the_server_nor_for_a_type_that_its_client_may_not_send() {
        let (mut relay, mut ring) = origin_relay();
        for kind in ["joined", "left", "error"] {
            let envelope = format!(r#"{{"room":"r","type":"{kind}","data":{{}},"origin":"other"}}"#);
            relay.message(0, None, b"events", envelope.as_bytes(), &mut ring, NOW);
        }
        let kinds: Vec<&str> = ring
            .0
            .iter()
            .filter_map(|command| match command {
                Down::Publication { label, .. } => label.as_deref().map(|label| &*label.kind),
                _ => None,
            })
            .collect();
        assert_eq!(kinds, ["message"; 3]);
    }
}
