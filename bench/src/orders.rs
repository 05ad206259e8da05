//! What the generator tells its receiver processes and what they answer: one JSON object a line, through pipes.

use serde::{Deserialize, Serialize};

use crate::comeback::{Return, Returned};
use crate::dial::{Dial, Dialed};
use crate::latency::LatencyPairs;
use crate::tally::{Counts, Seating, Settled};

/// How a receiver process learns of input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Receiving {
    /// It sleeps in epoll. The send that wakes it pays for the wake-up, and that is billed to the server.
    Epoll,
    /// It looks each so many nanoseconds and sleeps between. Adds half of that to the latency.
    Poll { interval_ns: u64 },
}

/// An order to a receiver process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Order {
    /// Open connections and keep them. Once per process.
    Connect(Connect),
    /// Open and close connections, and keep none.
    Churn { dial: Dial, path: PathTemplate, seating: Seating, first: usize, count: usize },
    /// Count from now on.
    Begin { number: u64, track: bool },
    /// Report what was counted.
    End,
    /// Report what was counted, and begin again at zero.
    Take,
    /// Stop reading every so many-th connection.
    Stall { every: usize },
    /// Read all again.
    Resume,
    /// Who ends from now on comes back.
    Return(Return),
    /// End all connections at once, as if their owner had died: no Close frame, and TCP is reset.
    Cut,
    /// Close every so many-th connection, from number `offset` on, with a Close frame.
    Leave { every: usize, offset: usize },
    /// Report who came back.
    Returned,
    /// Compare with the messages that each room has had.
    Settle { heads: Vec<u32> },
}

/// See [`Order::Connect`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Connect {
    /// Where.
    pub dial: Dial,
    /// Of the upgrade request.
    pub path: PathTemplate,
    /// Who sits where.
    pub seating: Seating,
    /// Number of this process's first connection within the run.
    pub first: usize,
    /// Connections of this process.
    pub connections: usize,
}

/// The answer to an order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    /// To `Connect` and `Churn`.
    Dialed(Dialed),
    /// To what asks for nothing.
    Done,
    /// To `End` and `Take`.
    Counted { counts: Counts, latencies: LatencyPairs },
    /// To `Returned`.
    Returned(Returned),
    /// To `Settle`.
    Settled(Settled),
    /// The process can't go on.
    Failed(String),
}

/// A path with its query, in which `{room}` stands for the first room of a connection and `{rooms}` for all, with commas
/// between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathTemplate(pub String);

impl PathTemplate {
    /// The path for these rooms.
    pub fn fill(&self, mut rooms: impl Iterator<Item = u32>) -> String {
        let first = rooms.next().map(room_name).unwrap_or_default();
        if !self.0.contains("{rooms}") {
            return self.0.replace("{room}", &first);
        }
        let all = rooms.fold(first.clone(), |all, room| all + "," + &room_name(room));
        self.0.replace("{rooms}", &all).replace("{room}", &first)
    }
}

/// The name of a room of the run.
pub fn room_name(room: u32) -> String {
    format!("bench{room}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_filled_with_one_room_or_with_all() {
        let one = PathTemplate("/ws?room={room}".to_owned());
        assert_eq!(one.fill([3, 4].into_iter()), "/ws?room=bench3");
        let all = PathTemplate("/rooms?rooms={rooms}".to_owned());
        assert_eq!(all.fill([3, 4, 0].into_iter()), "/rooms?rooms=bench3,bench4,bench0");
    }
}
