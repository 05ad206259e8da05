//! What slow readers may make a shard keep: each buffer once, and never more than its budget.

use super::*;
use crate::command::{Recover, Recovered};
use crate::log::{Log, RECORD_BYTES, Record};

const BOUND: usize = 256 * 1024;

impl Bench {
    fn of_little_memory() -> Self {
        Self::with(RoomClass::default(), EngineBounds { window_bytes_max: BOUND, ..EngineBounds::default() })
    }

    /// Answers with what a log holds.
    fn answer_from(&mut self, recover: Recover, log: &Log) {
        let recovered = Recovered { recover, epoch: 1, offset: 0, is_whole: true, past: log.past(0) };
        self.handle(Down::Recovered(Box::new(recovered)));
    }

    /// An event stream that wants all of a room's past, and its question.
    fn stream(&mut self, socket: i32, room: &str) -> (ConnectionId, Recover) {
        let id = self.accept(socket);
        let request = format!("GET /sse?room={room}&first=oldest HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.receive(id, request.as_bytes());
        self.answer_joins_but_questions();
        let asked = self.asked();
        (id, asked)
    }

    fn closed_for_memory(&self) -> u64 {
        self.shard.metrics().closed.value(CloseReason::SlowShardBudget)
    }
}

/// A log of so many publications.
fn log(publications: usize, payload: &str) -> Log {
    let mut log = Log::starting_at(1);
    for _ in 0..publications {
        let frame = Frame::data(payload.as_bytes()).expect("short");
        log.push(Record { frame, arrived_micros: 0, except: None, label: None, run: 0 });
    }
    log
}

#[test]
fn readers_of_one_past_keep_it_once_and_none_of_them_is_closed_for_memory() {
    let mut bench = Bench::of_little_memory();
    let log = log(1000, &"x".repeat(100));
    for socket in 1..=120 {
        let (_, asked) = bench.wisher(socket, "a", r#""first":"oldest""#);
        bench.wire.space.insert(socket, 0);
        bench.answer_from(asked, &log);
    }
    assert_eq!(bench.closed_for_memory(), 0);
    assert!((100_000..BOUND as u64).contains(&bench.shard.kept.bytes()), "{}", bench.shard.kept.bytes());
    assert_eq!(bench.shard.ledger().pending, 120_000);
}

#[test]
fn pasts_that_come_where_nothing_is_published_are_kept_to_the_budget() {
    let mut bench = Bench::of_little_memory();
    for socket in 1..=20 {
        let (_, asked) = bench.wisher(socket, &format!("room-{socket}"), r#""first":"oldest""#);
        bench.wire.space.insert(socket, 0);
        bench.answer_from(asked, &log(400, &"x".repeat(100)));
        assert!(bench.shard.kept.bytes() <= BOUND as u64, "{} with {socket}", bench.shard.kept.bytes());
    }
    assert!(bench.closed_for_memory() > 0);
    bench.balance();
}

#[test]
fn a_past_of_small_publications_counts_what_it_costs_and_not_what_it_says() {
    let mut bench = Bench::new();
    let (_, asked) = bench.wisher(1, "a", r#""first":"oldest""#);
    bench.wire.space.insert(1, 0);
    bench.answer_from(asked, &log(1000, "x"));
    assert!(bench.shard.kept.bytes() >= 1000 * RECORD_BYTES as u64, "{}", bench.shard.kept.bytes());
}

#[test]
fn what_is_encoded_for_a_stream_and_half_sent_is_in_the_budget() {
    let mut bench = Bench::of_little_memory();
    // As an event each line break is 7 bytes.
    let log = log(1, &"\n".repeat(10_000));
    for socket in 1..=20 {
        let (_, asked) = bench.stream(socket, "a");
        bench.wire.space.insert(socket, 500);
        bench.answer_from(asked, &log);
        assert!(bench.shard.kept.bytes() <= BOUND as u64, "{} with {socket}", bench.shard.kept.bytes());
    }
    assert!((1..20).contains(&bench.closed_for_memory()), "{}", bench.closed_for_memory());
    bench.balance();
}
