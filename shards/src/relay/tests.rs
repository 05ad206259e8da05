//! The relay's memory of rooms; the rest of it is held to its word by `tests/model.rs`.

use std::time::Duration;

use super::*;
use crate::auth::Gate;
use crate::config::{Config, History, RoomClass, Source, Subscribe};
use crate::metrics::{Identity, Metrics, Via};

struct Nowhere;

impl Outlet for Nowhere {
    fn offer(&mut self, _shard: u16, _command: Down) -> Result<(), Down> {
        Ok(())
    }

    fn consumed_bytes(&self, _shard: u16) -> u64 {
        0
    }
}

/// A ring without end that keeps what it is given.
#[derive(Default)]
pub(super) struct Ring(pub(super) Vec<Down>);

impl Ring {
    /// Rooms of the shard that were admitted, by index.
    fn joined(&self) -> Vec<u32> {
        let slots = self.0.iter().filter_map(|command| match command {
            Down::Joined { slot, .. } => Some(slot.index),
            _ => None,
        });
        slots.collect()
    }
}

impl Outlet for Ring {
    fn offer(&mut self, _shard: u16, command: Down) -> Result<(), Down> {
        self.0.push(command);
        Ok(())
    }

    fn consumed_bytes(&self, _shard: u16) -> u64 {
        0
    }
}

const SECOND: u64 = 1_000_000;

/// Rooms "log-..." keep a log for 60 seconds, others none.
fn relay() -> Relay {
    relay_with(BrokerState::Local)
}

/// The same with a broker whose channels are subscribed on demand.
fn relay_with(broker_state: BrokerState) -> Relay {
    let history = History { frames: 3, age: Duration::from_secs(60), ..History::default() };
    let log = RoomClass { name: "log-*".to_owned(), history, ..RoomClass::default() };
    let config = Config { rooms: vec![log, RoomClass::default()], ..Config::default() };
    let metrics = Arc::new(Metrics::new(1, Identity::default(), false));
    let mut setup = Setup::new(&config, Gate::new(None, true), metrics);
    setup.engine.log_rooms_max = 3;
    Relay::new(Arc::new(setup), broker_state, 0)
}

fn rooms_at(relay: &mut Relay, seconds: u64) -> u64 {
    relay.sweep(&mut Nowhere, Micros(seconds * SECOND));
    relay.metrics().log_rooms.value()
}

#[test]
fn a_log_without_readers_lives_until_its_last_publication_is_too_old() {
    let mut relay = relay();
    for seconds in [1, 50, 100] {
        assert!(rooms_at(&mut relay, seconds) <= 1);
        relay.place("log-a", b"x", Via::Client.into(), &mut Nowhere, Micros(seconds * SECOND));
    }
    assert_eq!((rooms_at(&mut relay, 159), relay.log_bytes > 0), (1, true));
    assert_eq!((rooms_at(&mut relay, 161), relay.log_bytes), (0, 0));
}

#[test]
fn publications_to_ever_new_names_make_no_more_rooms_than_the_bound() {
    let mut relay = relay();
    for name in 0..9 {
        relay.place(&format!("log-{name}"), b"x", Via::Client.into(), &mut Nowhere, Micros(SECOND));
    }
    assert_eq!(rooms_at(&mut relay, 2), 3);
    assert_eq!(relay.metrics().publications_unrouted.value(), 6);
    assert!(matches!(
        relay.place("log-0", b"x", Via::Client.into(), &mut Nowhere, Micros(SECOND)),
        Outcome::Placed { .. }
    ));
}

#[test]
fn a_room_is_forgotten_in_its_time_whatever_another_room_waits_for() {
    let mut relay = relay();
    for (index, name) in ["log-a", "plain"].into_iter().enumerate() {
        let slot = RoomSlot { index: index as u32, generation: 0 };
        relay.handle(0, Up::Join { slot, name: name.into() }, &mut Nowhere, Micros(0));
        relay.handle(0, Up::Leave { slot, name: name.into() }, &mut Nowhere, Micros(SECOND));
    }
    assert_eq!((rooms_at(&mut relay, 5), rooms_at(&mut relay, 7), rooms_at(&mut relay, 62)), (2, 1, 0));
}

#[test]
fn what_a_channel_on_demand_brings_does_not_keep_it_subscribed() {
    let mut relay = relay_with(BrokerState::Up);
    for (index, name) in ["log-a", "plain"].into_iter().enumerate() {
        let slot = RoomSlot { index: index as u32, generation: 0 };
        relay.handle(0, Up::Join { slot, name: name.into() }, &mut Nowhere, Micros(0));
        relay.confirmed(0, format!("room:{name}").as_bytes(), &mut Nowhere);
        relay.handle(0, Up::Leave { slot, name: name.into() }, &mut Nowhere, Micros(0));
    }
    relay.broker.clear();
    for seconds in 1..=60 {
        for channel in [&b"room:log-a"[..], b"room:plain"] {
            relay.message(0, None, channel, b"x", &mut Nowhere, Micros(seconds * SECOND));
        }
        relay.sweep(&mut Nowhere, Micros(seconds * SECOND));
    }
    let left = ["room:plain", "room:log-a"]
        .map(|channel| (0, BrokerCommand::Unsubscribe(channel.as_bytes().into())));
    assert!(relay.broker.iter().eq(&left), "{:?}", relay.broker);
}

#[test]
fn a_room_that_is_left_again_and_again_is_noted_once() {
    let mut relay = relay();
    for generation in 0..100 {
        let slot = RoomSlot { index: 0, generation };
        relay.handle(0, Up::Join { slot, name: "plain".into() }, &mut Nowhere, Micros(0));
        relay.handle(0, Up::Leave { slot, name: "plain".into() }, &mut Nowhere, Micros(0));
    }
    assert_eq!(relay.idle.len(), 1);
}

#[test]
fn rooms_that_nobody_reads_any_more_have_a_bound() {
    let mut relay = relay();
    for index in 0..400_000 {
        let (slot, name) = (RoomSlot { index, generation: 0 }, Arc::<str>::from(format!("r{index}")));
        relay.handle(0, Up::Join { slot, name: name.clone() }, &mut Nowhere, Micros(0));
        relay.handle(0, Up::Leave { slot, name }, &mut Nowhere, Micros(0));
    }
    assert_eq!(relay.rooms.len(), crate::limits::IDLE_ROOMS_MAX);
}

#[test]
fn who_leaves_before_the_confirmation_waits_no_longer_and_the_channel_is_given_back() {
    let mut relay = relay_with(BrokerState::Up);
    let mut ring = Ring::default();
    for index in 0..2 {
        let (slot, name) = (RoomSlot { index, generation: 0 }, Arc::<str>::from("plain"));
        relay.handle(0, Up::Join { slot, name: name.clone() }, &mut ring, Micros(0));
        relay.handle(0, Up::Leave { slot, name }, &mut ring, Micros(0));
    }
    relay.confirmed(0, b"room:plain", &mut ring);
    assert!(ring.joined().is_empty(), "nobody waits");
    relay.broker.clear();
    relay.sweep(&mut ring, Micros(6 * SECOND));
    assert!(relay.broker.iter().eq(&[(0, BrokerCommand::Unsubscribe(b"room:plain"[..].into()))]));
    assert_eq!(relay.rooms.len(), 0);
}

#[test]
fn whoever_waits_for_a_confirmation_is_admitted_once_whichever_way_it_ends() {
    let mut relay = relay_with(BrokerState::Up);
    let mut ring = Ring::default();
    for index in 0..5 {
        let slot = RoomSlot { index, generation: 0 };
        relay.handle(0, Up::Join { slot, name: format!("r{index}").into() }, &mut ring, Micros(0));
    }
    assert!(ring.joined().is_empty());
    relay.confirmed(0, b"room:r3", &mut ring);
    relay.channel_refused(0, b"room:r1", &mut ring);
    assert_eq!(ring.joined(), [3, 1]);
    relay.broker_down(0, &mut ring);
    assert_eq!(ring.joined(), [3, 1, 0, 2, 4]);
    relay.broker_down(0, &mut ring);
    assert_eq!(ring.joined().len(), 5);
}

/// What a ring was told of one room behind a break, in order: "gap", or the text of a publication.
fn told_behind_the_break(act: impl FnOnce(&mut Relay, &mut Ring)) -> Vec<String> {
    let mut relay = relay_with(BrokerState::Down);
    relay.broker_up(0, &mut Nowhere);
    assert_eq!(relay.servers[0].run, 0, "nobody was here before");
    let mut ring = Ring::default();
    let slot = RoomSlot { index: 0, generation: 0 };
    relay.handle(0, Up::Join { slot, name: "plain".into() }, &mut ring, Micros(0));
    relay.confirmed(0, b"room:plain", &mut ring);
    relay.message(0, None, b"room:plain", b"before", &mut ring, Micros(0));
    relay.broker_down(0, &mut ring);
    ring.0.clear();
    act(&mut relay, &mut ring);
    told(&ring)
}

fn told(ring: &Ring) -> Vec<String> {
    let told = ring.0.iter().filter_map(|command| match command {
        Down::SourceGap { .. } => Some("gap".to_owned()),
        Down::RoomGap { slot, .. } => Some(format!("gap of room {}", slot.index)),
        Down::Publication { frame, .. } => Some(String::from_utf8_lossy(frame.payload()).into_owned()),
        _ => None,
    });
    told.collect()
}

#[test]
fn what_comes_by_a_new_subscription_before_it_is_proved_stands_behind_the_gap() {
    let told = told_behind_the_break(|relay, ring| {
        relay.message(0, None, b"room:plain", b"early", ring, Micros(0));
        relay.message(0, None, b"room:plain", b"too", ring, Micros(0));
        relay.broker_up(0, ring);
        relay.message(0, None, b"room:plain", b"after", ring, Micros(0));
    });
    // Its channel is subscribed on demand: what of other rooms' comes early is their own.
    assert_eq!(told, ["gap of room 0", "early", "too", "gap", "after"]);
}

#[test]
fn a_subscription_that_breaks_again_before_it_is_proved_leaves_two_gaps() {
    let told = told_behind_the_break(|relay, ring| {
        relay.message(0, None, b"room:plain", b"early", ring, Micros(0));
        relay.broker_broke_early(0);
        relay.message(0, None, b"room:plain", b"again", ring, Micros(0));
        relay.broker_up(0, ring);
        relay.message(0, None, b"room:plain", b"after", ring, Micros(0));
    });
    assert_eq!(told, ["gap of room 0", "early", "gap of room 0", "again", "gap", "after"]);
}

#[test]
fn who_was_here_before_the_broker_ever_was_is_told_that_something_may_be_missing() {
    let mut relay = relay_with(BrokerState::Down);
    let mut ring = Ring::default();
    let slot = RoomSlot { index: 0, generation: 0 };
    relay.handle(0, Up::Join { slot, name: "plain".into() }, &mut ring, Micros(0));
    relay.broker_up(0, &mut ring);
    assert_eq!(told(&ring), ["gap"]);
    assert_eq!(relay.metrics().broker_reconnects.of(0).value(), 0);
}

#[test]
fn what_a_fixed_subscription_brings_early_stands_behind_the_one_gap_of_all_its_rooms() {
    let subscribe = Subscribe::Pattern { prefix: "room:".to_owned(), suffix: String::new() };
    let sources = vec![Source { subscribe, ..Source::default() }];
    let config = Config { sources, ..Config::default() };
    let metrics = Arc::new(Metrics::new(1, Identity::default(), false));
    let setup = Setup::new(&config, Gate::new(None, true), metrics);
    let mut relay = Relay::new(Arc::new(setup), BrokerState::Down, 0);
    let mut ring = Ring::default();
    relay.broker_up(0, &mut ring);
    let slot = RoomSlot { index: 0, generation: 0 };
    relay.handle(0, Up::Join { slot, name: "plain".into() }, &mut ring, Micros(0));
    relay.broker_down(0, &mut ring);
    for payload in ["early", "too"] {
        relay.message(0, Some(b"room:*"), b"room:plain", payload.as_bytes(), &mut ring, Micros(0));
    }
    relay.broker_broke_early(0);
    relay.message(0, Some(b"room:*"), b"room:plain", b"again", &mut ring, Micros(0));
    relay.broker_up(0, &mut ring);
    relay.message(0, Some(b"room:*"), b"room:plain", b"after", &mut ring, Micros(0));
    assert_eq!(told(&ring), ["gap", "early", "too", "gap", "again", "after"]);
}

#[test]
fn a_confirmation_of_a_subscription_that_breaks_again_admits_nobody_later() {
    let mut relay = relay_with(BrokerState::Down);
    let mut ring = Ring::default();
    relay.broker_up(0, &mut ring);
    relay.broker_down(0, &mut ring);
    let join = |relay: &mut Relay, ring: &mut Ring, index| {
        relay.handle(
            0,
            Up::Join { slot: RoomSlot { index, generation: 0 }, name: "plain".into() },
            ring,
            Micros(0),
        );
    };
    join(&mut relay, &mut ring, 0);
    relay.confirmed(0, b"room:plain", &mut ring);
    relay.broker_broke_early(0);
    relay.broker_up(0, &mut ring);
    ring.0.clear();
    join(&mut relay, &mut ring, 1);
    assert_eq!(ring.joined(), [0; 0], "it is not subscribed again yet");
    relay.confirmed(0, b"room:plain", &mut ring);
    assert_eq!(ring.joined(), [1]);
}
