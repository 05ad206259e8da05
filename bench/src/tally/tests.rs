use super::*;
use crate::rhythm::Rhythm;
use crate::stamp::{STAMP_BYTES, blank_payload};

fn take(tally: &mut Tally, connection: usize, room: u32, sequence: u32) {
    let mut payload = blank_payload(STAMP_BYTES);
    Stamp { room, sequence, intended_ns: 1_000 }.write(&mut payload);
    let first_room = tally.first_room(connection);
    tally.take(connection, first_room, &payload, payload.len() as u64, 5_000);
}

fn one_room(connections: usize) -> Tally {
    Tally::new(Seating { rooms: 1, rooms_per_connection: 1 }, 0, connections)
}

#[test]
fn messages_in_order_are_only_deliveries() {
    let mut tally = one_room(1);
    (0..100).for_each(|sequence| take(&mut tally, 0, 0, sequence));
    assert_eq!(tally.counts.delivered, 100);
    assert!(tally.counts.is_clean());
}

#[test]
fn a_skipped_message_is_a_gap_until_it_arrives_late() {
    let mut tally = one_room(1);
    [0, 1, 4].iter().for_each(|sequence| take(&mut tally, 0, 0, *sequence));
    assert_eq!((tally.counts.delivered, tally.counts.gaps), (3, 2));
    take(&mut tally, 0, 0, 3);
    assert_eq!((tally.counts.delivered, tally.counts.gaps, tally.counts.out_of_order), (4, 1, 1));
    take(&mut tally, 0, 0, 3);
    take(&mut tally, 0, 0, 4);
    assert_eq!((tally.counts.delivered, tally.counts.duplicates), (4, 2));
    take(&mut tally, 0, 0, 500);
    assert_eq!((tally.counts.gaps, tally.counts.duplicates), (496, 2));
}

#[test]
fn a_message_of_another_room_is_told_apart() {
    let mut tally = Tally::new(Seating { rooms: 5, rooms_per_connection: 2 }, 0, 3);
    // Connection 2 is in rooms 4 and 0.
    take(&mut tally, 2, 4, 0);
    take(&mut tally, 2, 0, 0);
    take(&mut tally, 2, 1, 0);
    take(&mut tally, 2, 9, 0);
    assert_eq!((tally.counts.delivered, tally.counts.wrong_room), (2, 2));
}

#[test]
fn a_message_is_complete_when_its_last_copy_is_there_and_those_before_it() {
    let mut tally = one_room(2);
    tally.begin(0, true);
    take(&mut tally, 0, 0, 0);
    take(&mut tally, 0, 0, 1);
    assert_eq!(tally.complete(), 0, "two copies of two messages at one member are no message at both");
    take(&mut tally, 1, 0, 0);
    assert_eq!(tally.complete(), 1);
    take(&mut tally, 1, 0, 1);
    assert_eq!(tally.complete(), 2);
}

/// One message each 10 ns from 1,000 on.
fn timetable(rooms: u32) -> Timetable {
    Timetable { rhythm: Rhythm::steady(1e8), start_ns: 1_000, first: 0, rooms }
}

#[test]
fn who_comes_back_has_missed_what_was_due_before_its_101_and_lost_what_was_due_after() {
    let mut tally = one_room(3);
    tally.expect_returns(timetable(1));
    for connection in 0..3 {
        (0..5).for_each(|sequence| take(&mut tally, connection, 0, sequence));
    }
    // Due at 1,100 is message 10, so the first after 1,105 is 11.
    (0..2).for_each(|connection| tally.rejoin(connection, 1_105));
    take(&mut tally, 0, 0, 11);
    assert_eq!((tally.counts.absent, tally.counts.gaps), (6, 0));
    take(&mut tally, 1, 0, 13);
    assert_eq!((tally.counts.absent, tally.counts.gaps), (12, 2));
    assert_eq!((tally.heard(), tally.counts.delivered), (2, 17));
    // The third never came back.
    let settled = tally.settle(&[15], |connection| connection < 2);
    assert_eq!(settled, Settled { missing: 3 + 1, absent: 10 });
    let owed = 3 * 15;
    let Counts { delivered, absent, gaps, .. } = tally.counts;
    assert_eq!(delivered + absent + gaps + settled.missing + settled.absent, owed);
}

/// One message each 100 ms from 1,000 ns on; those that `take` hands over arrive 4 us late.
fn slow_timetable() -> Timetable {
    Timetable { rhythm: Rhythm::steady(10.0), start_ns: 1_000, first: 0, rooms: 1 }
}

const SECOND_NS: u64 = 1_000_000_000;

#[test]
fn what_was_due_long_before_a_silent_end_was_lost_and_the_rest_missed_by_being_away() {
    let mut tally = one_room(4);
    tally.expect_returns(slow_timetable());
    tally.leave_untimed(3);
    (0..4).for_each(|connection| take(&mut tally, connection, 0, 0));
    // Deaf since 0 s. At 3 s messages 0 to 30 have been due, 0 to 20 a second before.
    let ended_ns = 3 * SECOND_NS + 500_000;
    [0, 1, 3].iter().for_each(|connection| tally.part(*connection, ended_ns, false));
    tally.part(2, ended_ns, true);
    let open = |_: usize| false;
    assert_eq!(tally.settle(&[31], open), Settled { missing: 20, absent: 4 * 30 - 20 });
    (0..4).for_each(|connection| tally.rejoin(connection, 4 * SECOND_NS + 500_000));
    assert_eq!((tally.counts.gaps, tally.counts.absent), (20, 0), "of the one who was not told and reads");
    (0..4).for_each(|connection| take(&mut tally, connection, 0, 41));
    assert_eq!((tally.counts.gaps, tally.counts.absent), (20, 4 * 40 - 20));
    assert_eq!(tally.counts.delivered + tally.counts.gaps + tally.counts.absent, 4 * 42);
}

#[test]
fn a_life_in_which_nothing_was_heard_was_owed_what_was_due_in_it() {
    let mut tally = one_room(1);
    tally.expect_returns(slow_timetable());
    tally.rejoin(0, 2 * SECOND_NS + 500_000);
    tally.part(0, 5 * SECOND_NS + 500_000, false);
    // In its life messages 21 to 50 were due, 21 to 40 a second before its end.
    assert_eq!(tally.settle(&[51], |_| false), Settled { missing: 20, absent: 31 });
    tally.rejoin(0, 6 * SECOND_NS);
    assert_eq!((tally.counts.gaps, tally.counts.absent), (20, 21));
}

#[test]
fn where_deliveries_take_long_more_is_under_way_at_an_end() {
    let mut tally = one_room(2);
    tally.expect_returns(slow_timetable());
    let mut payload = blank_payload(STAMP_BYTES);
    Stamp { room: 0, sequence: 0, intended_ns: 0 }.write(&mut payload);
    tally.take(1, 0, &payload, STAMP_BYTES as u64, 2 * SECOND_NS);
    tally.take_counted();
    tally.part(0, 3 * SECOND_NS + 500_000, false);
    assert_eq!(tally.settle(&[31], |connection| connection == 1).missing, 30 + 1);
    tally.rejoin(0, 3 * SECOND_NS + 600_000);
    assert_eq!(tally.counts.gaps, 1, "one took two seconds, so only what was due three before is lost");
}

#[test]
fn who_reads_when_it_likes_is_counted_and_not_timed() {
    let mut tally = one_room(4);
    tally.leave_untimed(2);
    (0..4).for_each(|connection| take(&mut tally, connection, 0, 0));
    assert_eq!((tally.counts.delivered, tally.latencies.percentiles().count), (4, 2));
}

#[test]
fn a_message_of_the_life_before_is_a_duplicate() {
    let mut tally = one_room(1);
    tally.expect_returns(timetable(1));
    (0..5).for_each(|sequence| take(&mut tally, 0, 0, sequence));
    tally.rejoin(0, 1_000);
    take(&mut tally, 0, 0, 4);
    assert_eq!((tally.counts.duplicates, tally.counts.absent), (1, 0));
    take(&mut tally, 0, 0, 5);
    assert_eq!((tally.counts.delivered, tally.counts.gaps), (6, 0));
}

#[test]
fn who_is_back_and_hears_nothing_has_lost_only_what_it_is_owed() {
    let mut tally = Tally::new(Seating { rooms: 2, rooms_per_connection: 1 }, 1, 1);
    tally.expect_returns(timetable(2));
    // Room 1 has the odd numbers: its messages 0, 1, 2 are due at 1,010, 1,030, 1,050.
    take(&mut tally, 0, 1, 0);
    tally.rejoin(0, 1_045);
    assert_eq!(tally.settle(&[4, 4], |_| true), Settled { missing: 2, absent: 1 });
    assert_eq!(tally.settle(&[4, 4], |_| false), Settled { missing: 0, absent: 3 });
}

#[test]
fn every_room_is_seated_evenly() {
    let seating = Seating { rooms: 10, rooms_per_connection: 3 };
    assert_eq!(seating.members(0..100), vec![30; 10]);
    assert_eq!(seating.rooms_of(3).collect::<Vec<_>>(), [9, 0, 1]);
}
