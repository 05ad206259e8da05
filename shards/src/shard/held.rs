//! Input that waits for more of itself: requests and bodies that aren't whole, messages in pieces.
//!
//! Each is bounded on its own, by [`PAYLOAD_BYTES_MAX`](crate::limits::PAYLOAD_BYTES_MAX) and `message_bytes_max`; here
//! their sum is, over a shard. What a connection holds is booked after each `recv` that leaves something, so that whole
//! messages cost nothing.

use std::cmp::Reverse;

use super::{Connection, Micros, Phase, Shard, Wire};
use crate::close::CloseReason;
use crate::command::ConnectionId;
use crate::limits::{BODY_BYTES_PER_SECOND_MIN, BODY_TIMEOUT, KIB};
use crate::request::HttpError;

impl Connection {
    /// Heap bytes of input that waits for more.
    pub(crate) fn input_bytes(&self) -> u32 {
        let pending = self.pending.as_ref().map_or(0, |pending| pending.input.capacity());
        u32::try_from(pending + self.session.held_bytes()).unwrap_or(u32::MAX)
    }
}

impl Shard {
    /// Books what a connection holds now.
    pub(crate) fn book_input(&mut self, id: ConnectionId) {
        let Some(connection) = self.connection(id) else { return };
        let (before, now) = (connection.input_booked, connection.input_bytes());
        if before != now {
            connection.input_booked = now;
            self.input_bytes = self.input_bytes - u64::from(before) + u64::from(now);
        }
    }

    /// While connections hold more than a shard may, the one that holds most goes, down to seven eighths: the look at all of
    /// them comes once for each eighth that has arrived.
    pub(crate) fn keep_input_budget(&mut self, wire: &mut impl Wire, now: Micros) {
        let input_bytes_max = self.setup.engine.input_bytes_max as u64;
        if self.input_bytes <= input_bytes_max {
            return;
        }
        let holders = self.connections.iter().filter(|(_, connection)| connection.input_booked > 0);
        let mut holders: Vec<(u32, u32)> = holders.map(|(slot, c)| (c.input_booked, slot)).collect();
        holders.sort_unstable_by_key(|(bytes, _)| Reverse(*bytes));
        for (_, slot) in holders {
            if self.input_bytes <= input_bytes_max / 8 * 7 {
                return;
            }
            if let Some(id) = self.id_of(slot) {
                self.give_up_input(id, wire, now);
            }
        }
    }

    /// A body that is too slow: see [`BODY_TIMEOUT`](crate::limits::BODY_TIMEOUT).
    pub(super) fn give_up_body(&mut self, id: ConnectionId, wire: &mut impl Wire, now: Micros) {
        let error = HttpError::new(
            408,
            format!(
                "the body took too long, {} s and one more for each {} KiB are due: send faster, or less",
                BODY_TIMEOUT.as_secs(),
                BODY_BYTES_PER_SECOND_MIN / KIB
            ),
        );
        self.refuse(id, &error, false, false, wire, now);
    }

    /// A request gets its answer, a WebSocket its Close frame.
    fn give_up_input(&mut self, id: ConnectionId, wire: &mut impl Wire, now: Micros) {
        if self.connection(id).is_some_and(|connection| connection.phase == Phase::Head) {
            let error = HttpError::new(503, "too much is being sent to this server at once: try again later");
            let mut reply = Vec::new();
            error.answer(false, false, &mut reply);
            let metrics = self.metrics();
            metrics.http_requests.add(1);
            metrics.http_errors.add(1);
            self.send_private(id.slot, reply.into(), wire, now);
        }
        self.close(id, CloseReason::InputShardBudget, wire, now);
    }
}
