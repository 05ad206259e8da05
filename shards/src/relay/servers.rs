//! The Redis servers, each with its own state, runs, publications of ours and last values: a break of one is none of the
//! others', and what one sends feeds only the rooms of its own sources.
//!
//! Everything that the driver tells of a server comes with its index in the configuration. The local broker is a single
//! server that is never away.

use std::borrow::Cow;
use std::sync::Arc;

use super::arrival::Arrival;
use super::last_value::LastValues;
use super::own::Own;
use super::streamed::Streamed;
use super::{BrokerState, Interest, LogRoom, Outlet, Particulars, Relay};
use crate::command::Down;
use crate::config::Deliver;
use crate::envelope;
use crate::metrics::{GapReason, RefuseReason, Via};
use crate::route::plain_name;
use crate::shard::Micros;

/// One of them.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) state: BrokerState,
    was_up: bool,
    /// A publication has come by a subscription that is not proved yet, and the run that it belongs to has begun.
    is_returning: bool,
    /// See [`Relay::note_skipped`].
    skipped: u64,
    /// Counts its breaks: part of the epoch of each room that it feeds.
    pub(super) run: u64,
    pub(super) own: Own,
    pub(super) last_values: LastValues,
    pub(super) streamed: Streamed,
}

impl Server {
    pub(super) fn new(state: BrokerState) -> Self {
        Self {
            state,
            was_up: false,
            is_returning: false,
            skipped: 0,
            run: 0,
            own: Own::default(),
            last_values: LastValues::default(),
            streamed: Streamed::default(),
        }
    }
}

/// The run of the server that feeds the rooms of `source`; rooms that none feeds have one run for ever.
pub(super) fn run_of(servers: &[Server], source: Option<Fed>) -> u64 {
    source.map_or(0, |source| servers[usize::from(source.server)].run)
}

/// What feeds a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fed {
    /// Index of the source.
    pub(super) source: u8,
    /// Index of its server.
    pub(super) server: u8,
}

impl Relay {
    /// Publications that a Redis sent and that were skipped because they are too big, since the start.
    pub fn note_skipped(&mut self, server: usize, skipped: u64) {
        let known = std::mem::replace(&mut self.servers[server].skipped, skipped);
        self.metrics().refused.add(RefuseReason::TooBig, skipped - known);
    }

    /// Attempts to reach Redis that failed, since the start.
    pub fn note_attempts_failed(&self, server: usize, failed: u64) {
        self.metrics().broker_attempts_failed.of(server).set(failed);
    }

    /// What a Redis is now; the local broker's state never changes.
    pub fn broker_state(&self, server: usize) -> BrokerState {
        self.servers[server].state
    }

    /// The fixed subscriptions are confirmed and proved alive. After a break every room of a source begins a new run, and
    /// so do those whose members were here before the server was for the first time.
    pub fn broker_up(&mut self, server: usize, outlet: &mut impl Outlet) {
        let setup = Arc::clone(&self.setup);
        let of_relay = &mut self.servers[server];
        of_relay.state = BrokerState::Up;
        setup.metrics.relay.broker_up.of(server).set(1);
        let was_up = std::mem::replace(&mut of_relay.was_up, true);
        if was_up {
            setup.metrics.relay.broker_reconnects.of(server).add(1);
        }
        if std::mem::take(&mut of_relay.is_returning) {
            return;
        }
        // Before it was there for the first time nobody may have been here who could have missed anything.
        if was_up || self.rooms.iter().any(|(_, room)| room.is_fed_by(server)) {
            self.begin_runs(server, outlet);
        }
    }

    /// The subscription broke again before it was proved: what came by it is behind a gap, and what comes next is behind
    /// another.
    pub fn broker_broke_early(&mut self, server: usize) {
        self.servers[server].is_returning = false;
        for index in 0..self.rooms.span() {
            let room = self.rooms.at_mut(index);
            if let Some(room) = room.filter(|room| room.is_fed_by(server) && room.feed.is_none()) {
                (room.confirmed, room.is_returning) = (false, false);
            }
        }
    }

    /// A publication comes before the probe, which would prove that all is well: what was missed before it is declared first.
    ///
    /// With the first one of fixed subscriptions the run begins for all; channels on demand are subscribed one by one, and
    /// what one of them brings says nothing of the others.
    fn declare_missed(&mut self, server: usize, source: usize, room: &str, outlet: &mut impl Outlet) {
        if self.servers[server].state != BrokerState::Down {
            return;
        }
        if !self.setup.routes.is_on_demand(source) {
            if !std::mem::replace(&mut self.servers[server].is_returning, true) {
                self.begin_runs(server, outlet);
            }
            return;
        }
        let Some(index) = self.find(room) else { return };
        if self.rooms.at_mut(index).is_some_and(|room| !std::mem::replace(&mut room.is_returning, true)) {
            self.metrics().gaps.add(GapReason::Broker, 1);
            self.begin_epoch(index, outlet);
        }
    }

    /// Publications of every source of a server are missing, an unknown number: their rooms' numbers go on in a new epoch.
    fn begin_runs(&mut self, server: usize, outlet: &mut impl Outlet) {
        let setup = Arc::clone(&self.setup);
        self.servers[server].run += 1;
        let run = self.servers[server].run;
        // The gap must not overtake what comes before it.
        let behind: Vec<u32> =
            self.backlogs.iter().flat_map(|b| b.rooms.iter().map(|(index, _)| *index)).collect();
        for index in behind {
            if self.rooms.at(index).is_some_and(|room| room.is_fed_by(server) && room.feed.is_none()) {
                self.lose_behind(index, outlet);
            }
        }
        let is_touched =
            |room: &LogRoom| room.is_fed_by(server) && room.feed.is_none() && !room.interest.is_empty();
        let touched = self.rooms.iter().filter(|(_, room)| is_touched(room)).count();
        setup.metrics.relay.gaps.add(GapReason::Broker, touched as u64);
        for shard in 0..self.shards {
            for source in setup.routes.sources_of(server).filter(|source| !setup.routes.is_stream(*source)) {
                self.offer(shard, Down::SourceGap { source: source as u8, run }, outlet);
            }
        }
    }

    /// The subscription broke. Whoever waits for a confirmation is admitted: local routing goes on, and a gap follows
    /// when the broker is back. Own publications that have not returned are delivered here, once.
    pub fn broker_down(&mut self, server: usize, outlet: &mut impl Outlet) {
        if std::mem::replace(&mut self.servers[server].state, BrokerState::Down) == BrokerState::Up {
            self.metrics().broker_breaks.of(server).add(1);
        }
        self.servers[server].is_returning = false;
        self.metrics().broker_up.of(server).set(0);
        for index in 0..self.rooms.span() {
            let room = self.rooms.at_mut(index);
            let Some(room) = room.filter(|room| room.is_fed_by(server) && room.feed.is_none()) else {
                continue;
            };
            // What had lapsed is part of this break.
            (room.confirmed, room.has_lapsed, room.is_returning) = (false, false, false);
            self.admit_waiting(index, outlet);
        }
        self.forget_last_values(server);
        self.deliver_unreturned(server, None, outlet);
    }

    /// Redis has confirmed an on-demand channel: every (UN)SUBSCRIBE of it is answered and the last was a SUBSCRIBE.
    pub fn confirmed(&mut self, server: usize, channel: &[u8], outlet: &mut impl Outlet) {
        let setup = Arc::clone(&self.setup);
        for (_, name) in setup.routes.rooms_of_channel(server, None, channel) {
            let Some(index) = self.find(&name) else { continue };
            let Some(room) = self.rooms.at_mut(index).filter(|room| room.subscribed) else { continue };
            room.confirmed = true;
            if std::mem::take(&mut room.has_lapsed) {
                self.begin_epoch(index, outlet);
            }
            self.admit_waiting(index, outlet);
        }
    }

    /// Redis ended the subscription of an on-demand channel unasked, or the node of the cluster that has it is away; it is
    /// subscribed again, and confirmed anew. Meanwhile the room is as if the broker were down, the others are not.
    pub fn lapsed(&mut self, server: usize, channel: &[u8], outlet: &mut impl Outlet) {
        let setup = Arc::clone(&self.setup);
        for (_, name) in setup.routes.rooms_of_channel(server, None, channel) {
            let Some(index) = self.find(&name) else { continue };
            let Some(room) = self.rooms.at_mut(index).filter(|room| room.subscribed) else { continue };
            (room.confirmed, room.has_lapsed) = (false, true);
            self.metrics().gaps.add(GapReason::Broker, 1);
            self.admit_waiting(index, outlet);
        }
        self.deliver_unreturned(server, Some(channel), outlet);
    }

    /// Publications of one room are missing: its numbers go on in a new epoch, which its members are told.
    fn begin_epoch(&mut self, index: u32, outlet: &mut impl Outlet) {
        // The gap must not overtake what comes before it.
        self.lose_behind(index, outlet);
        let Some(room) = self.rooms.at_mut(index) else { return };
        let (base, run) = (self.epoch_base, run_of(&self.servers, room.source));
        self.incarnations += 1;
        room.incarnation = self.incarnations;
        let (epoch, last, interest) = (room.epoch(base, run), room.next - 1, room.interest.clone());
        for Interest { shard, slot } in interest {
            self.offer(shard, Down::RoomGap { slot, epoch, last }, outlet);
        }
    }

    /// Redis does not permit an on-demand channel. Whoever waits is admitted: the room works on this node, and its gap
    /// from the others is counted; the broker's log line names the ACL rule that is due.
    pub fn channel_refused(&mut self, server: usize, channel: &[u8], outlet: &mut impl Outlet) {
        let setup = Arc::clone(&self.setup);
        for (_, name) in setup.routes.rooms_of_channel(server, None, channel) {
            let Some(index) = self.find(&name) else { continue };
            let Some(room) = self.rooms.at_mut(index) else { continue };
            room.subscribed = false;
            self.metrics().gaps.add(GapReason::Broker, 1);
            self.admit_waiting(index, outlet);
        }
    }

    pub(super) fn admit_waiting(&mut self, index: u32, outlet: &mut impl Outlet) {
        let Some(room) = self.rooms.at_mut(index) else { return };
        let waiting = room.exceptional.as_mut().map(|e| std::mem::take(&mut e.waiting)).unwrap_or_default();
        room.tidy();
        for interest in waiting {
            self.admit(index, interest, outlet);
        }
    }

    /// A message arrived on a channel; `pattern` is that of a pmessage.
    pub fn message(
        &mut self,
        server: usize,
        pattern: Option<&[u8]>,
        channel: &[u8],
        payload: &[u8],
        outlet: &mut impl Outlet,
        now: Micros,
    ) {
        let setup = Arc::clone(&self.setup);
        let own = self.servers[server].own.returned(channel, payload);
        if own.as_ref().is_none_or(|(_, returned)| !returned.delivered) {
            let except = own.as_ref().and_then(|(_, returned)| returned.except);
            let mut rooms = 0;
            for (source, room) in setup.routes.rooms_of_channel(server, pattern, channel) {
                rooms += 1;
                self.declare_missed(server, source, &room, outlet);
                let deliver = setup.routes.deliver(source);
                if *deliver == Deliver::Event {
                    let event = envelope::event(payload, None);
                    self.arrived(Arrival { source, room, payload, event, except }, outlet, now);
                    continue;
                }
                let delivered = envelope::unwrap(deliver, plain_name(&room), payload);
                let label = match &own {
                    Some((_, returned)) => returned.label.clone(),
                    None => None,
                };
                let particulars = Particulars { via: Via::Source(source), label, except };
                self.place(&room, &delivered, particulars, outlet, now);
            }
            for (source, field) in setup.routes.payload_sources(server, pattern, channel) {
                let event = envelope::event(payload, Some(field));
                let name = event.as_ref().and_then(|event| event.room.as_deref());
                let Some(room) = name.and_then(|name| setup.routes.room_of_payload(source, name)) else {
                    continue;
                };
                rooms += 1;
                self.declare_missed(server, source, &room, outlet);
                let room = Cow::Owned(room);
                self.arrived(Arrival { source, room, payload, event, except }, outlet, now);
            }
            if rooms == 0 {
                self.metrics().refused.add(RefuseReason::BadRoom, 1);
            }
        }
        if let Some((index, _)) = own {
            self.answer_entry(server, index, outlet);
            self.forget_settled(server);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Gate;
    use crate::command::{ConnectionId, Publish, RoomSlot, Up};
    use crate::config::{BrokerChoice, Config, RedisServer, Source, Subscribe, Template, TemplatePart};
    use crate::metrics::{Identity, Metrics};
    use crate::relay::BrokerCommand;
    use crate::relay::tests::Ring;
    use crate::setup::Setup;

    const NOW: Micros = Micros(1);
    const ORDERS: usize = 0;
    const CHAT: usize = 1;

    /// Two servers, each with the rooms and the channels that begin with its name, both up; a member in a room of each.
    fn relay() -> (Relay, Ring) {
        let server = |name: &str| RedisServer {
            name: name.to_owned(),
            target: name.parse().expect("a host alone is a target"),
            password_variable: None,
        };
        let source = |name: &str| Source {
            server: Some(name.to_owned()),
            subscribe: Subscribe::OnDemand { prefix: "room:".to_owned(), suffix: String::new() },
            room: Template { parts: vec![TemplatePart::Literal(format!("{name}.")), TemplatePart::Wildcard] },
            ..Source::default()
        };
        let config = Config {
            broker: BrokerChoice::Redis(vec![server("orders"), server("chat")]),
            sources: vec![source("orders"), source("chat")],
            ..Config::default()
        };
        let metrics = Arc::new(Metrics::new(1, Identity::default(), false));
        let setup = Setup::new(&config, Gate::new(None, true), metrics);
        let (mut relay, mut ring) = (Relay::new(Arc::new(setup), BrokerState::Down, 0), Ring::default());
        for (server, name) in ["orders.a", "chat.a"].into_iter().enumerate() {
            relay.broker_up(server, &mut ring);
            let slot = RoomSlot { index: server as u32, generation: 0 };
            relay.handle(0, Up::Join { slot, name: name.into() }, &mut ring, NOW);
            let due = BrokerCommand::Subscribe(b"room:a"[..].into());
            assert_eq!(relay.broker.pop_front(), Some((server, due)));
            relay.confirmed(server, b"room:a", &mut ring);
        }
        ring.0.clear();
        (relay, ring)
    }

    fn publish(relay: &mut Relay, ring: &mut Ring, room: &str) {
        let publish = Publish {
            room: room.into(),
            payload: bytes::Bytes::from_static(b"x"),
            from: ConnectionId { shard: 0, generation: 0, slot: 9 },
            user: None,
            except_sender: false,
            answer: true,
            label: None,
            keep: None,
        };
        relay.handle(0, Up::Publish(Box::new(publish)), ring, NOW);
    }

    /// Index of the room of each publication on the ring.
    fn delivered(ring: &Ring) -> Vec<u32> {
        let room = |down: &Down| match down {
            Down::Publication { slot, .. } => Some(slot.index),
            _ => None,
        };
        ring.0.iter().filter_map(room).collect()
    }

    fn answers(ring: &Ring) -> usize {
        ring.0.iter().filter(|down| matches!(down, Down::Published { .. })).count()
    }

    #[test]
    fn one_channel_of_two_servers_feeds_the_rooms_of_each_alone() {
        let (mut relay, mut ring) = relay();
        relay.message(CHAT, None, b"room:a", b"x", &mut ring, NOW);
        assert_eq!(delivered(&ring), [1]);
        relay.message(ORDERS, None, b"room:a", b"x", &mut ring, NOW);
        assert_eq!(delivered(&ring), [1, 0]);
    }

    #[test]
    fn a_break_of_one_is_a_gap_in_its_rooms_and_in_no_others() {
        let (mut relay, mut ring) = relay();
        relay.broker_down(ORDERS, &mut ring);
        assert_eq!(relay.broker_state(CHAT), BrokerState::Up);
        assert_eq!(relay.setup.servers_away().collect::<Vec<_>>(), ["orders"]);
        relay.message(CHAT, None, b"room:a", b"x", &mut ring, NOW);
        relay.broker_up(ORDERS, &mut ring);
        relay.confirmed(ORDERS, b"room:a", &mut ring);
        let gaps: Vec<_> = ring.0.iter().filter(|down| matches!(down, Down::SourceGap { .. })).collect();
        assert!(matches!(gaps[..], [Down::SourceGap { source: 0, run: 1 }]), "{gaps:?}");
        assert_eq!(relay.metrics().gaps.value(GapReason::Broker), 1);
        assert_eq!(
            relay.metrics().broker_reconnects.by_name().collect::<Vec<_>>(),
            [("orders", 1), ("chat", 0)]
        );
        assert_eq!((delivered(&ring), relay.servers[CHAT].run), (vec![1], 0));
    }

    #[test]
    fn an_own_publication_goes_to_its_rooms_server_and_waits_for_that_one_alone() {
        let (mut relay, mut ring) = relay();
        publish(&mut relay, &mut ring, "orders.a");
        publish(&mut relay, &mut ring, "chat.a");
        let sent: Vec<usize> = relay.broker.drain(..).map(|(server, _)| server).collect();
        assert_eq!(sent, [ORDERS, CHAT]);
        // Both are the first of their server.
        relay.published(CHAT, 0, Ok(1), &mut ring);
        relay.message(CHAT, None, b"room:a", b"x", &mut ring, NOW);
        assert_eq!((delivered(&ring), answers(&ring)), (vec![1], 1));
        relay.probe_sent(CHAT, 1);
        relay.probe_returned(CHAT, 1, &mut ring);
        assert_eq!(relay.servers[ORDERS].own.waiting(), 1, "a fence of the other proves nothing");
        relay.broker_down(CHAT, &mut ring);
        assert_eq!(delivered(&ring), [1], "nor does its break");
        relay.broker_down(ORDERS, &mut ring);
        assert_eq!((delivered(&ring), answers(&ring)), (vec![1, 0], 1));
        relay.published(ORDERS, 0, Err(crate::relay::PublishFailure::Unknown), &mut ring);
        assert_eq!(answers(&ring), 2);
    }

    #[test]
    fn while_one_is_away_its_rooms_are_local_and_the_others_are_not() {
        let (mut relay, mut ring) = relay();
        relay.broker_down(ORDERS, &mut ring);
        publish(&mut relay, &mut ring, "orders.a");
        assert_eq!((delivered(&ring), relay.broker.len()), (vec![0], 0));
        publish(&mut relay, &mut ring, "chat.a");
        assert_eq!((delivered(&ring), relay.broker.len()), (vec![0], 1));
        let slot = RoomSlot { index: 2, generation: 0 };
        relay.handle(0, Up::Join { slot, name: "chat.b".into() }, &mut ring, NOW);
        let joined = |ring: &Ring| ring.0.iter().filter(|down| matches!(down, Down::Joined { .. })).count();
        assert_eq!(joined(&ring), 0, "it waits for its server");
        relay.confirmed(ORDERS, b"room:b", &mut ring);
        assert_eq!(joined(&ring), 0, "for no other one");
        relay.confirmed(CHAT, b"room:b", &mut ring);
        assert_eq!(joined(&ring), 1);
    }
}
