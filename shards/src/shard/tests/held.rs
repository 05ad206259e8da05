//! The sum of what connections have sent and nobody can read yet.

use super::*;
use crate::metrics::Label;

/// A shard that may hold 64 KiB.
fn bench() -> Bench {
    Bench::with(
        RoomClass::default(),
        EngineBounds { input_bytes_max: 64 * crate::limits::KIB, ..EngineBounds::default() },
    )
}

impl Bench {
    /// A request whose body has begun: `bytes` of it are there and more is due.
    fn half_a_body(&mut self, socket: i32, bytes: usize) -> ConnectionId {
        let id = self.accept(socket);
        let head =
            "POST /publish?room=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n".to_owned();
        self.receive(id, head.as_bytes());
        self.receive(id, &vec![b'x'; bytes]);
        id
    }

    /// A WebSocket in a room that has said `bytes` of a message and no end of it.
    fn half_a_message(&mut self, socket: i32, bytes: usize) -> ConnectionId {
        let id = self.member(socket, &["a"]);
        let mut frame = masked(2, &vec![b'x'; bytes]);
        // Not the last fragment.
        frame[0] &= 0x7f;
        self.receive(id, &frame);
        id
    }

    fn closed(&self, reason: CloseReason) -> u64 {
        assert_eq!(reason.label(), reason.name());
        self.shard.metrics().closed.value(reason)
    }
}

#[test]
fn bodies_of_many_requests_are_bounded_in_sum_and_who_holds_most_is_answered_503() {
    let mut bench = bench();
    let largest = bench.half_a_body(1, 20_000);
    for socket in 2..60 {
        bench.half_a_body(socket, 1500);
        assert!(bench.shard.input_bytes <= 64 * 1024, "{}", bench.shard.input_bytes);
    }
    let answer = bench.wire.text(1);
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Connection: close"), "{answer}");
    assert!(bench.shard.actions.contains(&Action::ShutdownWrite(largest)));
    assert_eq!(bench.wire.text(59), "", "the last that came holds little, and stays");
    assert!(bench.closed(CloseReason::InputShardBudget) >= 1);
    // What it goes on to send is thrown away.
    bench.receive(largest, &[b'x'; 60_000]);
    assert!(bench.shard.input_bytes <= 64 * 1024);
}

#[test]
fn half_messages_are_bounded_in_sum_and_who_holds_most_is_closed_with_1013() {
    let mut bench = bench();
    bench.half_a_message(1, 30_000);
    bench.half_a_message(2, 10_000);
    bench.half_a_message(3, 40_000);
    assert!(bench.wire.text(3).ends_with("\u{3}\u{fffd}input_shard_budget"), "{:?}", bench.wire.text(3));
    assert_eq!([1, 2].map(|socket| bench.wire.text(socket)), ["", ""]);
    assert_eq!(bench.closed(CloseReason::InputShardBudget), 1);
}

#[test]
fn what_is_whole_or_gone_is_not_held() {
    let mut bench = bench();
    let id = bench.half_a_message(1, 30_000);
    bench.receive(id, &masked(0, b"end"));
    assert_eq!(bench.shard.input_bytes, 0);
    let id = bench.half_a_body(2, 30_000);
    assert!(bench.shard.input_bytes >= 30_000);
    bench.shard.release(id, bench.now);
    assert_eq!(bench.shard.input_bytes, 0);
}
