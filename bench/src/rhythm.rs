//! When messages are due in a load that goes on until it is stopped: some evenly, then some at once, over and over. Pure.
//!
//! A receiver that knows the rhythm knows which messages were published after it had its 101, and so what it is owed.

use serde::{Deserialize, Serialize};

/// In each period `steady` messages evenly, and `burst` more together with the last of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rhythm {
    period_ns: u64,
    steady: u64,
    burst: u64,
}

impl Rhythm {
    /// `rate` messages a second.
    pub fn steady(rate: f64) -> Self {
        assert!(rate > 0.0, "a rate of {rate} never sends");
        Self { period_ns: ((1e9 / rate) as u64).max(1), steady: 1, burst: 0 }
    }

    /// `rate` messages a second, and `burst` at once each `period_ns`.
    pub fn with_bursts(rate: f64, period_ns: u64, burst: u64) -> Self {
        assert!(rate > 0.0 && period_ns > 0, "a rate of {rate} in periods of {period_ns} ns never sends");
        let steady = ((rate * period_ns as f64 / 1e9).round() as u64).clamp(1, period_ns);
        Self { period_ns, steady, burst }
    }

    /// Nanoseconds after the start at which message `index` is due; never before those with lower numbers.
    pub fn due_ns(&self, index: u64) -> u64 {
        let of_period = self.steady + self.burst;
        let place = (index % of_period).min(self.steady - 1);
        index / of_period * self.period_ns + place * (self.period_ns / self.steady)
    }

    /// Messages that are due `elapsed_ns` after the start.
    pub fn due_by(&self, elapsed_ns: u64) -> u64 {
        let begun = (elapsed_ns % self.period_ns / (self.period_ns / self.steady) + 1).min(self.steady);
        let burst = if begun == self.steady { self.burst } else { 0 };
        elapsed_ns / self.period_ns * (self.steady + self.burst) + begun + burst
    }
}

/// A [`Rhythm`] that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timetable {
    /// How messages follow each other.
    pub rhythm: Rhythm,
    /// CLOCK_MONOTONIC at its beginning.
    pub start_ns: u64,
    /// Number of its first message within the run.
    pub first: u64,
    /// Rooms, which take turns.
    pub rooms: u32,
}

impl Timetable {
    /// The sequence in `room` of the first message that is due after `at_ns`: who was a member by then is owed that one and
    /// all that follow.
    pub fn first_owed(&self, room: u32, at_ns: u64) -> u32 {
        let number = match at_ns.checked_sub(self.start_ns) {
            Some(elapsed_ns) => self.first + self.rhythm.due_by(elapsed_ns),
            None => self.first,
        };
        let sequence = number.saturating_sub(u64::from(room)).div_ceil(u64::from(self.rooms));
        u32::try_from(sequence).unwrap_or(u32::MAX)
    }

    /// Messages that each room has had when `messages` have left in all.
    pub fn heads(&self, messages: u64) -> Vec<u32> {
        (0..self.rooms)
            .map(|room| messages.saturating_sub(u64::from(room)).div_ceil(u64::from(self.rooms)) as u32)
            .collect()
    }

    /// CLOCK_MONOTONIC at which message `number` of the run is due.
    pub fn due_ns(&self, number: u64) -> u64 {
        self.start_ns + self.rhythm.due_ns(number - self.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_message_is_due_by_its_due_time_and_not_before(
            rate in 0.5f64..1e5, period_ms in 1u64..5_000, burst in 0u64..300, index in 0u64..100_000,
        ) {
            let rhythm = Rhythm::with_bursts(rate, period_ms * 1_000_000, burst);
            let due_ns = rhythm.due_ns(index);
            prop_assert!(rhythm.due_by(due_ns) > index);
            prop_assert!(rhythm.due_ns(index + 1) >= due_ns);
            if due_ns > 0 {
                prop_assert!(rhythm.due_by(due_ns - 1) <= index);
            }
        }

        #[test]
        fn the_first_message_owed_is_the_first_of_its_room_due_later(
            rooms in 1u32..7, first in 0u64..50, at in 0u64..5_000, burst in 0u64..4,
        ) {
            let rhythm = Rhythm::with_bursts(10.0, 300, burst);
            let timetable = Timetable { rhythm, start_ns: 1_000, first, rooms };
            for room in 0..rooms {
                let owed = timetable.first_owed(room, at);
                let due = |sequence| timetable.due_ns(schedule::number(room, sequence, rooms).max(first));
                let is_of_run = |sequence| schedule::number(room, sequence, rooms) >= first;
                prop_assert!(due(owed) > at && is_of_run(owed));
                if owed > 0 && is_of_run(owed - 1) {
                    prop_assert!(due(owed - 1) <= at);
                }
            }
        }

        #[test]
        fn heads_count_the_messages_of_each_room(rooms in 1u32..9, messages in 0u64..60) {
            let timetable = Timetable { rhythm: Rhythm::steady(1.0), start_ns: 0, first: 0, rooms };
            let mut counted = vec![0; rooms as usize];
            (0..messages).for_each(|number| counted[schedule::place(number, rooms).0 as usize] += 1);
            prop_assert_eq!(timetable.heads(messages), counted);
        }
    }

    #[test]
    fn a_burst_leaves_with_the_last_steady_message_of_its_period() {
        let rhythm = Rhythm::with_bursts(4.0, 1_000_000_000, 10);
        let due: Vec<u64> = (0..16).map(|index| rhythm.due_ns(index) / 1_000_000).collect();
        assert_eq!(due[..4], [0, 250, 500, 750]);
        assert!(due[4..14].iter().all(|at| *at == 750));
        assert_eq!(due[14..], [1_000, 1_250]);
    }
}
