use bytes::Bytes;

use super::*;
use crate::auth::Gate;
use crate::command::{ConnectionId, Outcome, Publish, Read, Recover, Recovered, RoomSlot, Since, Up};
use crate::config::{Config, RoomClass, Source, Subscribe};
use crate::limits::{
    AHEAD_SWEEPS, NODE_LOG_BYTES_MAX, PAYLOAD_BYTES_MAX, RECALLED_FRAMES_MAX, RECALLED_KEPT, RECALLS_MAX,
};
use crate::metrics::{AppendFate, Identity, Metrics};
use crate::redis::{EntryId, HistoryError, Past};
use crate::relay::PublishFailure;
use crate::relay::tests::Ring;
use crate::setup::Setup;

const FROM: ConnectionId = ConnectionId { shard: 0, generation: 0, slot: 9 };
const SECOND: u64 = 1_000_000;

/// A relay whose rooms are fed by the streams `s:*`, and its ring.
struct World {
    relay: Relay,
    ring: Ring,
    now: Micros,
}

impl World {
    fn away() -> Self {
        let source =
            Source { subscribe: Subscribe::parse("stream s:*").expect("a stream"), ..Source::default() };
        let config = Config { sources: vec![source], rooms: vec![RoomClass::default()], ..Config::default() };
        let metrics = std::sync::Arc::new(Metrics::new(1, Identity::default(), false));
        let setup = Setup::new(&config, Gate::new(None, true), metrics);
        let relay = Relay::new(std::sync::Arc::new(setup), BrokerState::Down, 7);
        Self { relay, ring: Ring::default(), now: Micros(SECOND) }
    }

    fn up() -> Self {
        let mut world = Self::away();
        world.relay.streams_up(0);
        world
    }

    /// The room "r", with a member, whose stream has so many entries.
    fn anchored(entries: u64) -> Self {
        let mut world = Self::up();
        world.join(0, "r");
        world.anchor("r", entries);
        assert_eq!(world.told(), [Down::Joined { slot: slot(0), epoch: 5, head: entries + 1, source: None }]);
        world.asked();
        world
    }

    fn join(&mut self, index: u32, room: &str) {
        self.relay.handle(0, Up::Join { slot: slot(index), name: room.into() }, &mut self.ring, self.now);
    }

    fn anchor(&mut self, room: &str, number: u64) {
        let stream = format!("s:{room}");
        self.relay.stream_anchored(0, stream.as_bytes(), position(5, number), &mut self.ring, self.now);
    }

    fn entry(&mut self, number: u64) {
        let payload = number.to_string();
        self.relay.stream_entry(0, b"s:r", number, Some(payload.as_bytes()), &mut self.ring, self.now);
    }

    fn sweep_after(&mut self, seconds: u64) {
        self.now.0 += seconds * SECOND;
        self.relay.sweep(&mut self.ring, self.now);
    }

    /// What the shard was told since.
    fn told(&mut self) -> Vec<Down> {
        std::mem::take(&mut self.ring.0)
    }

    /// What the broker was asked since.
    fn asked(&mut self) -> Vec<BrokerCommand> {
        self.relay.broker.drain(..).map(|(_, command)| command).collect()
    }

    fn recover(&mut self, since: Since, ticket: u64) {
        let recover = Recover { to: FROM, slot: slot(0), room: "r".into(), since, ticket };
        self.relay.handle(0, Up::Recover(Box::new(recover)), &mut self.ring, self.now);
    }

    /// The only thing that is asked: what comes after a number.
    fn recalling(&mut self) -> (u64, u64) {
        match self.asked().as_slice() {
            [BrokerCommand::Recall { token, after, .. }] => (*token, *after),
            other => panic!("one reading is due: {other:?}"),
        }
    }

    fn recalled(&mut self, token: u64, numbers: std::ops::RangeInclusive<u64>, lacks: Option<HistoryError>) {
        let head = position(5, *numbers.end());
        let payloads = numbers.map(|number| number.to_string().into_bytes().into()).collect();
        self.relay.recalled(0, token, Ok(Past { head, payloads, lacks }), &mut self.ring, self.now);
    }

    /// The only answer: its numbers, and whether it is whole.
    fn recovered(&mut self) -> (Vec<u64>, bool) {
        let mut told = self.told();
        let Some(Down::Recovered(recovered)) = told.pop() else { panic!("an answer is due") };
        assert_eq!(told, []);
        numbers(&recovered)
    }

    fn publish(&mut self, except_sender: bool) {
        let publish = Publish {
            room: "r".into(),
            payload: Bytes::from_static(b"mine"),
            from: FROM,
            user: None,
            except_sender,
            answer: true,
            label: None,
            keep: None,
        };
        self.relay.handle(0, Up::Publish(Box::new(publish)), &mut self.ring, self.now);
    }

    fn outcome(&mut self) -> Outcome {
        match self.told().as_slice() {
            [Down::Published { outcome, .. }] => *outcome,
            other => panic!("an answer is due: {other:?}"),
        }
    }
}

fn slot(index: u32) -> RoomSlot {
    RoomSlot { index, generation: 0 }
}

fn position(epoch: u64, number: u64) -> Position {
    Position { epoch, number, id: EntryId { millis: number, sequence: 0 } }
}

fn after(offset: u64) -> Since {
    Since::After { epoch: Some(5), offset }
}

fn numbers(recovered: &Recovered) -> (Vec<u64>, bool) {
    for (offset, _, record) in recovered.past.iter() {
        assert_eq!(record.frame.payload(), offset.to_string().as_bytes());
    }
    (recovered.past.iter().map(|(offset, ..)| offset).collect(), recovered.is_whole)
}

#[test]
fn a_room_has_the_numbers_of_its_stream_and_nothing_else_has_one_in_it() {
    let mut world = World::anchored(4);
    world.entry(5);
    assert!(matches!(world.told().as_slice(), [Down::Publication { offset: 5, .. }]));
    let placed = world.relay.place("r", b"x", Via::Client.into(), &mut world.ring, world.now);
    assert_eq!((placed, world.told()), (Outcome::Refused, vec![]));
    world.relay.streams_down(0, world.now);
    world.relay.broker_down(0, &mut world.ring);
    world.relay.broker_up(0, &mut world.ring);
    world.relay.streams_up(0);
    world.anchor("r", 5);
    assert_eq!(world.told(), [], "a break that lost nothing says nothing");
    world.entry(6);
    assert!(matches!(world.told().as_slice(), [Down::Publication { offset: 6, .. }]));
}

#[test]
fn who_joins_waits_for_the_numbers_but_not_for_ever() {
    let mut world = World::away();
    world.join(0, "r");
    assert_eq!(world.asked(), [BrokerCommand::Follow(b"s:r".as_slice().into())]);
    world.sweep_after(1);
    assert_eq!(world.told(), [], "redis may be coming back");
    world.sweep_after(5);
    let [Down::Joined { epoch, head: FIRST_OFFSET, .. }] = world.told()[..] else { panic!("it is let in") };
    world.join(1, "later");
    assert_eq!(world.told().len(), 1, "nobody else is kept waiting for what is known to be away");
    world.relay.streams_up(0);
    world.anchor("r", 9);
    assert_eq!(world.told(), [Down::RoomGap { slot: slot(0), epoch: 5, last: 9 }]);
    assert_ne!(epoch, 5);
    world.entry(10);
    assert!(matches!(world.told().as_slice(), [Down::Publication { offset: 10, .. }]));
}

#[test]
fn what_is_gone_is_told_with_its_numbers_and_why() {
    let mut world = World::anchored(4);
    world.relay.stream_gap(0, b"s:r", position(5, 7), &mut world.ring, world.now);
    let gap = |from, to, reason| Down::Gap { slot: slot(0), from, to, reason };
    assert_eq!(world.told(), [gap(5, 8, GapReason::Trimmed)]);
    world.relay.stream_entry(0, b"s:r", 8, None, &mut world.ring, world.now);
    assert_eq!(world.told(), [gap(8, 9, GapReason::TooBig)]);
    world.relay.stream_entry(
        0,
        b"s:r",
        9,
        Some(&vec![b'x'; PAYLOAD_BYTES_MAX + 1]),
        &mut world.ring,
        world.now,
    );
    assert_eq!(world.told(), [gap(9, 10, GapReason::TooBig)]);
    world.relay.stream_broken(0, b"s:r", position(6, 0), &mut world.ring, world.now);
    assert_eq!(world.told(), [Down::RoomGap { slot: slot(0), epoch: 6, last: 0 }]);
    let gaps = &world.relay.metrics().gaps;
    let counted = [GapReason::Trimmed, GapReason::TooBig, GapReason::Broker].map(|reason| gaps.value(reason));
    assert_eq!(counted, [3, 2, 1]);
    world.recover(after(4), 1);
    assert_eq!(world.recovered(), (vec![], false), "another run of numbers");
}

#[test]
fn a_shard_that_is_behind_is_told_what_it_loses_when_the_numbers_jump() {
    let mut world = World::anchored(0);
    let bytes = vec![b'x'; PAYLOAD_BYTES_MAX];
    let mut number = 0;
    while !world.relay.has_backlog() {
        number += 1;
        world.relay.stream_entry(0, b"s:r", number, Some(&bytes), &mut world.ring, world.now);
    }
    world.told();
    world.relay.stream_broken(0, b"s:r", position(6, 2), &mut world.ring, world.now);
    let lost = Down::Gap { slot: slot(0), from: number, to: number + 1, reason: GapReason::ShardOverload };
    assert_eq!(world.told(), [lost, Down::RoomGap { slot: slot(0), epoch: 6, last: 2 }]);
    assert_eq!(world.relay.log_bytes, 0);
}

#[test]
fn a_shard_that_is_behind_loses_nothing_by_the_next_entry() {
    let mut world = World::anchored(0);
    let bytes = vec![b'x'; PAYLOAD_BYTES_MAX];
    let mut number = 0;
    while !world.relay.has_backlog() {
        number += 1;
        world.relay.stream_entry(0, b"s:r", number, Some(&bytes), &mut world.ring, world.now);
    }
    world.told();
    world.entry(number + 1);
    assert_eq!(world.told(), [], "it waits for space, in the room's log");
    assert_eq!(world.relay.metrics().gaps.total(), 0);
    assert!(world.relay.has_backlog());
}

#[test]
fn the_past_is_read_once_for_all_who_ask_and_meets_what_comes_meanwhile() {
    let mut world = World::anchored(20);
    world.recover(after(15), 1);
    let (token, from) = world.recalling();
    assert_eq!(from, 15);
    world.recover(after(18), 2);
    world.entry(21);
    world.told();
    world.recalled(token, 16..=20, None);
    let told = world.told();
    let answers: Vec<_> = told
        .iter()
        .map(|down| match down {
            Down::Recovered(recovered) => numbers(recovered),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(answers, [((16..=21).collect(), true), ((19..=21).collect(), true)]);
    world.entry(22);
    world.told();
    world.recover(after(15), 3);
    assert_eq!(world.recovered(), ((16..=22).collect(), true), "who comes next is answered out of the log");
    world.recover(after(10), 4);
    let (token, from) = world.recalling();
    assert_eq!(from, 10);
    world.recalled(token, 12..=22, Some(HistoryError::Trimmed));
    assert_eq!(world.recovered(), (vec![], false), "the eleventh is gone");
    world.recover(after(3), 5);
    assert_eq!(world.recovered(), (vec![], false), "which is known now");
    world.recover(Since::Oldest, 6);
    assert_eq!(world.recovered(), ((12..=22).collect(), false));
    assert!(world.relay.log_bytes > 0);
    world.sweep_after(RECALLED_KEPT.as_secs() + 1);
    assert_eq!(world.relay.log_bytes, 0, "it isn't kept for ever");
    world.entry(23);
    assert_eq!(world.relay.log_bytes, 0);
}

#[test]
fn what_is_not_certain_is_not_given_and_not_asked_again() {
    for error in [HistoryError::Deleted, HistoryError::Refused, HistoryError::Broken] {
        let mut world = World::anchored(20);
        world.recover(after(15), 1);
        let (token, _) = world.recalling();
        world.relay.recalled(0, token, Err(error), &mut world.ring, world.now);
        assert_eq!(world.recovered(), (vec![], false), "{error}");
        world.recover(after(16), 2);
        assert_eq!((world.recovered(), world.asked()), ((vec![], false), vec![]), "{error}");
        world.entry(21);
        world.told();
        world.recover(after(20), 3);
        let (_, from) = world.recalling();
        assert_eq!(from, 20, "{error}: what has come since is certain");
    }
}

#[test]
fn a_question_outlives_a_break_and_is_answered_in_the_end() {
    let mut world = World::anchored(20);
    world.recover(after(15), 1);
    let (token, _) = world.recalling();
    world.relay.streams_down(0, world.now);
    world.relay.recalled(0, token, Err(HistoryError::Away), &mut world.ring, world.now);
    world.sweep_after(1);
    assert_eq!((world.told(), world.asked()), (vec![], vec![]));
    world.relay.streams_up(0);
    world.anchor("r", 20);
    let (token, _) = world.recalling();
    world.relay.streams_down(0, world.now);
    world.relay.recalled(0, token, Err(HistoryError::Away), &mut world.ring, world.now);
    world.sweep_after(6);
    assert_eq!(world.recovered(), (vec![], false), "nobody waits for ever");
}

#[test]
fn a_question_that_comes_before_its_stream_is_followed_anew_waits_for_that() {
    let mut world = World::anchored(20);
    world.relay.stream_refused(0, b"s:r", &mut world.ring, world.now);
    world.sweep_after(STREAM_RETRY.as_secs() + 1);
    assert_eq!(world.asked(), [BrokerCommand::Follow(b"s:r".as_slice().into())]);
    world.told();
    world.recover(after(15), 1);
    let (token, _) = world.recalling();
    // The link doesn't know yet where the stream stands. Asking again at once would never end.
    world.relay.recalled(0, token, Err(HistoryError::Away), &mut world.ring, world.now);
    assert_eq!((world.told(), world.asked()), (vec![], vec![]));
    world.anchor("r", 20);
    let (token, _) = world.recalling();
    world.recalled(token, 16..=20, None);
    assert_eq!(world.recovered(), ((16..=20).collect(), true));
}

#[test]
fn nobody_is_told_that_it_has_all_by_a_log_that_was_left_from_a_reading_that_failed() {
    for error in [HistoryError::Deleted, HistoryError::Away] {
        let mut world = World::anchored(20);
        world.recover(after(15), 1);
        let (token, _) = world.recalling();
        world.entry(21);
        world.relay.handle(0, Up::Withdraw { ticket: 1 }, &mut world.ring, world.now);
        world.relay.recalled(0, token, Err(error), &mut world.ring, world.now);
        assert_eq!(world.relay.log_bytes, 0, "{error}: the class keeps nothing");
        (22..=24).for_each(|number| world.entry(number));
        world.told();
        world.recover(after(21), 2);
        let (token, from) = world.recalling();
        assert_eq!(from, 21, "{error}");
        world.recalled(token, 22..=24, None);
        assert_eq!(world.recovered(), ((22..=24).collect(), true), "{error}");
    }
}

#[test]
fn who_waits_for_a_stream_is_answered_though_it_was_trimmed_meanwhile() {
    let mut world = World::anchored(20);
    world.recover(after(15), 1);
    let (token, _) = world.recalling();
    world.relay.streams_down(0, world.now);
    world.relay.recalled(0, token, Err(HistoryError::Away), &mut world.ring, world.now);
    world.relay.streams_up(0);
    world.relay.stream_gap(0, b"s:r", position(5, 30), &mut world.ring, world.now);
    let gap = Down::Gap { slot: slot(0), from: 21, to: 31, reason: GapReason::Trimmed };
    let told = world.told();
    let [first, Down::Recovered(recovered)] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((first, numbers(recovered)), (&gap, (vec![], false)));
}

#[test]
fn who_has_gone_is_not_waited_for() {
    let mut world = World::anchored(20);
    world.recover(after(15), 1);
    world.recover(after(12), 2);
    let (token, _) = world.recalling();
    world.relay.handle(0, Up::Withdraw { ticket: 2 }, &mut world.ring, world.now);
    assert_eq!(world.told(), [Down::Withdrawn { ticket: 2 }]);
    world.recalled(token, 16..=20, None);
    assert_eq!((world.recovered(), world.asked()), (((16..=20).collect(), true), vec![]));
}

#[test]
fn numbers_of_an_earlier_run_say_nothing_of_what_is_gone_in_the_next() {
    let mut world = World::anchored(20);
    world.recover(after(15), 1);
    let (token, _) = world.recalling();
    world.relay.stream_broken(0, b"s:r", position(6, 30), &mut world.ring, world.now);
    world.told();
    world.recalled(token, 16..=20, None);
    world.recover(Since::After { epoch: Some(6), offset: 25 }, 2);
    assert_eq!(world.recalling().1, 25);
}

#[test]
fn a_bounded_number_of_streams_is_read_back_at_once() {
    let mut world = World::up();
    let rooms = RECALLS_MAX as u32 + 2;
    for index in 0..rooms {
        let room = format!("r{index}");
        world.join(index, &room);
        world.anchor(&room, 20);
        let recover =
            Recover { to: FROM, slot: slot(index), room: room.as_str().into(), since: after(15), ticket: 1 };
        world.relay.handle(0, Up::Recover(Box::new(recover)), &mut world.ring, world.now);
    }
    let tokens = |world: &mut World| -> Vec<u64> {
        let asked = world.asked().into_iter();
        let token = |command| match command {
            BrokerCommand::Recall { token, .. } => Some(token),
            _ => None,
        };
        asked.filter_map(token).collect()
    };
    let first = tokens(&mut world);
    assert_eq!(first.len(), RECALLS_MAX);
    world.told();
    for token in &first[..2] {
        world.recalled(*token, 16..=20, None);
    }
    assert_eq!((world.told().len(), tokens(&mut world).len()), (2, 2));
}

#[test]
fn who_reads_a_room_that_is_not_followed_is_told_how_far_its_stream_is_now() {
    let mut world = World::anchored(10);
    world.relay.stream_refused(0, b"s:r", &mut world.ring, world.now);
    world.relay.handle(0, Up::Leave { slot: slot(0), name: "r".into() }, &mut world.ring, world.now);
    world.sweep_after(STREAM_RETRY.as_secs());
    let read = Read { to: FROM, room: "r".into(), since: after(10), limit: 100 };
    world.relay.handle(0, Up::Read(Box::new(read)), &mut world.ring, world.now);
    assert_eq!(world.asked(), [BrokerCommand::Follow(b"s:r".as_slice().into())]);
    world.anchor("r", 12);
    let (token, from) = world.recalling();
    assert_eq!(from, 10);
    world.recalled(token, 11..=12, None);
    let told = world.told();
    let Some(Down::Reading(reading)) = told.last() else { panic!("{told:?}") };
    assert_eq!((reading.records.len(), reading.newest, reading.is_whole), (2, 12, true));
}

#[test]
fn a_log_that_holds_what_was_read_back_is_bounded_in_publications_too() {
    let mut world = World::anchored(20);
    world.recover(after(15), 1);
    let (token, _) = world.recalling();
    world.recalled(token, 16..=20, None);
    (21..=21 + RECALLED_FRAMES_MAX as u64).for_each(|number| world.entry(number));
    let kept = |relay: &Relay| {
        relay.rooms.iter().filter_map(|(_, room)| room.log.as_ref()).map(|log| log.len()).sum()
    };
    let kept: usize = kept(&world.relay);
    assert_eq!(kept, RECALLED_FRAMES_MAX);
}

#[test]
fn what_is_read_back_is_not_kept_beyond_the_budget_of_the_node() {
    let mut world = World::up();
    let rooms = (NODE_LOG_BYTES_MAX / PAYLOAD_BYTES_MAX + 1) as u32;
    let payload: Box<[u8]> = vec![b'x'; PAYLOAD_BYTES_MAX].into();
    for index in 0..rooms {
        let room = format!("r{index}");
        world.join(index, &room);
        world.anchor(&room, 1);
        let recover =
            Recover { to: FROM, slot: slot(index), room: room.as_str().into(), since: after(0), ticket: 1 };
        world.relay.handle(0, Up::Recover(Box::new(recover)), &mut world.ring, world.now);
        let past = Past { head: position(5, 1), payloads: vec![payload.clone()], lacks: None };
        world.relay.recalled(0, u64::from(index) + 1, Ok(past), &mut world.ring, world.now);
        world.told();
        assert!(world.relay.log_bytes <= NODE_LOG_BYTES_MAX, "{index}");
    }
}

#[test]
fn who_reads_a_room_that_nobody_is_in_has_its_stream_followed_for_a_while() {
    let mut world = World::up();
    let read = Read { to: FROM, room: "r".into(), since: Since::Last(2), limit: 100 };
    world.relay.handle(0, Up::Read(Box::new(read)), &mut world.ring, world.now);
    assert_eq!(world.asked(), [BrokerCommand::Follow(b"s:r".as_slice().into())]);
    world.anchor("r", 9);
    let (token, from) = world.recalling();
    assert_eq!(from, 7);
    world.recalled(token, 8..=9, None);
    let told = world.told();
    let [Down::Reading(reading)] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((reading.records.len(), reading.newest, reading.is_whole, reading.epoch), (2, 9, true, 5));
    world.sweep_after(60);
    assert_eq!(world.asked(), [BrokerCommand::Unfollow(b"s:r".as_slice().into())]);
    assert_eq!((world.relay.rooms.len(), world.relay.log_bytes), (0, 0));
}

#[test]
fn who_comes_from_a_node_that_has_read_further_is_recovered_when_this_one_gets_there() {
    let mut world = World::anchored(20);
    world.recover(after(22), 1);
    assert_eq!((world.told(), world.asked()), (vec![], vec![]));
    world.entry(21);
    assert_eq!(world.told().len(), 1, "not yet");
    world.entry(22);
    let told = world.told();
    let [Down::Publication { offset: 22, .. }, Down::Recovered(recovered)] = told.as_slice() else {
        panic!("{told:?}")
    };
    assert_eq!(numbers(recovered), (vec![], true));
}

#[test]
fn who_names_a_number_that_never_comes_is_told_so_in_a_second() {
    let mut world = World::anchored(20);
    world.recover(after(1 << 60), 1);
    world.relay.streams_down(0, world.now);
    (0..20).for_each(|_| world.sweep_after(0));
    assert_eq!(world.told(), [], "while redis is away this node can't get there");
    world.relay.streams_up(0);
    (0..AHEAD_SWEEPS).for_each(|_| world.sweep_after(0));
    assert_eq!(world.recovered(), (vec![], false));
}

#[test]
fn a_room_that_was_read_slowly_is_forgotten_all_the_same() {
    let mut world = World::up();
    let read = Read { to: FROM, room: "r".into(), since: Since::Last(2), limit: 100 };
    world.relay.handle(0, Up::Read(Box::new(read)), &mut world.ring, world.now);
    world.anchor("r", 9);
    world.asked();
    world.sweep_after(30);
    world.recalled(1, 8..=9, None);
    assert!(matches!(world.told().as_slice(), [Down::Reading(_)]));
    world.sweep_after(1);
    world.sweep_after(60);
    assert_eq!(world.asked(), [BrokerCommand::Unfollow(b"s:r".as_slice().into())]);
    assert_eq!(world.relay.rooms.len(), 0);
}

#[test]
fn an_entry_behind_some_that_are_gone_has_its_number_and_they_are_told() {
    let mut world = World::anchored(4);
    world.entry(7);
    let told = world.told();
    let gap = Down::Gap { slot: slot(0), from: 5, to: 7, reason: GapReason::Trimmed };
    let [first, Down::Publication { offset: 7, .. }] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(first, &gap);
}

#[test]
fn what_is_published_to_a_room_that_nobody_is_in_is_done_when_it_is_answered() {
    let mut world = World::up();
    world.publish(true);
    let Some(BrokerCommand::Append { token, .. }) = world.asked().pop() else { panic!("an append") };
    assert_eq!(world.relay.servers[0].streamed.appends.waiting(), 1);
    let id = EntryId { millis: 1, sequence: 0 };
    world.relay.appended(0, token, Ok(id), &mut world.ring);
    assert_eq!(world.relay.servers[0].streamed.appends.waiting(), 0, "no entry will come");
}

#[test]
fn a_stream_that_is_refused_is_tried_again_while_somebody_is_there() {
    let mut world = World::up();
    world.join(0, "r");
    world.asked();
    world.relay.stream_refused(0, b"s:r", &mut world.ring, world.now);
    assert!(matches!(world.told().as_slice(), [Down::Joined { head: FIRST_OFFSET, .. }]));
    world.sweep_after(STREAM_RETRY.as_secs() + 1);
    assert_eq!(world.asked(), [BrokerCommand::Follow(b"s:r".as_slice().into())]);
    world.anchor("r", 3);
    assert_eq!(world.told(), [Down::RoomGap { slot: slot(0), epoch: 5, last: 3 }]);
}

#[test]
fn an_own_publication_has_one_answer_which_is_what_became_of_it() {
    let id = EntryId { millis: 1, sequence: 0 };
    for (result, outcome, fate) in [
        (Ok(id), Outcome::Appended(id), AppendFate::Appended),
        (Err(PublishFailure::Unknown), Outcome::Unknown, AppendFate::Unknown),
        (Err(PublishFailure::Refused), Outcome::Refused, AppendFate::Refused),
        (Err(PublishFailure::Busy), Outcome::Busy, AppendFate::Refused),
    ] {
        let mut world = World::anchored(0);
        world.publish(false);
        let asked = world.asked();
        let [BrokerCommand::Append { token, .. }] = asked[..] else { panic!("{asked:?}") };
        world.relay.appended(0, token, result, &mut world.ring);
        assert_eq!(world.outcome(), outcome);
        assert_eq!(world.relay.metrics().appends.value(fate), 1);
        assert_eq!(world.relay.metrics().appends.total(), 1);
    }
}

#[test]
fn an_append_that_met_a_server_without_the_script_is_sent_once_more() {
    let mut world = World::anchored(0);
    world.publish(false);
    let token = |world: &mut World| match world.asked()[..] {
        [BrokerCommand::Append { token, .. }] => token,
        ref other => panic!("an append is due: {other:?}"),
    };
    let first = token(&mut world);
    world.relay.appended(0, first, Err(PublishFailure::Unsent), &mut world.ring);
    let second = token(&mut world);
    assert_eq!((first, world.told()), (second, vec![]));
    world.relay.appended(0, second, Err(PublishFailure::Unsent), &mut world.ring);
    assert_eq!((world.outcome(), world.asked()), (Outcome::Away, vec![]));
    world.relay.streams_down(0, world.now);
    world.publish(false);
    assert_eq!(
        (world.outcome(), world.asked()),
        (Outcome::Away, vec![]),
        "none is taken while redis is away"
    );
}

#[test]
fn a_sender_that_is_left_out_is_left_out_of_its_own_entry_alone() {
    let mut world = World::anchored(0);
    let excepts = |world: &mut World| -> Vec<Option<ConnectionId>> {
        let told = world.told().into_iter();
        let except = |down| match down {
            Down::Publication { except, .. } => Some(except),
            _ => None,
        };
        told.filter_map(except).collect()
    };
    for number in 1..=2 {
        world.publish(true);
        let Some(BrokerCommand::Append { token, .. }) = world.asked().pop() else { panic!("an append") };
        let id = EntryId { millis: number, sequence: 0 };
        let mine = |world: &mut World| {
            world.relay.stream_entry(0, b"s:r", number, Some(b"mine"), &mut world.ring, world.now);
        };
        // The two connections keep no order between them.
        if number == 1 {
            mine(&mut world);
        }
        world.relay.appended(0, token, Ok(id), &mut world.ring);
        if number == 2 {
            mine(&mut world);
        }
        assert_eq!(excepts(&mut world), [Some(FROM)]);
    }
    world.relay.stream_entry(0, b"s:r", 3, Some(b"mine"), &mut world.ring, world.now);
    assert_eq!(excepts(&mut world), [None], "somebody else said the same");
    world.publish(true);
    let Some(BrokerCommand::Append { token, .. }) = world.asked().pop() else { panic!("an append") };
    world.relay.appended(0, token, Err(PublishFailure::Unknown), &mut world.ring);
    world.sweep_after(11);
    world.told();
    world.relay.stream_entry(0, b"s:r", 4, Some(b"mine"), &mut world.ring, world.now);
    assert_eq!(excepts(&mut world), [None], "it is not waited for for ever");
}
