//! When each message is due. An open loop never waits for the server; a closed loop keeps a window under way.

/// A load, as a scenario asks for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// `burst` messages at once, `rate` messages a second, for `duration_ns`, whatever the server does.
    Open { rate: f64, burst: u64, duration_ns: u64 },
    /// `messages` back to back, all due at once.
    Burst { messages: u64 },
    /// A message leaves as soon as fewer than `window` are under way.
    Closed { window: u64, duration_ns: u64 },
}

/// A group of an open loop leaves up to this much later than evenly, by chance. What the kernel tells in ticks (4 ms at 250 Hz)
/// would otherwise see a load that keeps step with it always at the same point.
const SHIFT_NS_MAX: f64 = 4e6;
/// Of the interval between two groups: no two come so close that one finds the other still under way at a light load.
const SHIFT_SHARE_MAX: f64 = 0.4;

/// The due times of an open loop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    interval_ns: f64,
    burst: u64,
    messages: u64,
}

impl Schedule {
    /// `rate` messages a second in groups of `burst`, for `duration_ns`.
    pub fn open(rate: f64, burst: u64, duration_ns: u64) -> Self {
        assert!(rate > 0.0 && burst > 0, "a rate of {rate} in bursts of {burst} never sends");
        let interval_ns = burst as f64 * 1e9 / rate;
        let bursts = (duration_ns as f64 / interval_ns).round().max(1.0) as u64;
        Self { interval_ns, burst, messages: bursts * burst }
    }

    /// Messages in all.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Nanoseconds after the start at which message `index` is due: at unequal intervals, the same in each window. Multiplied,
    /// not added up, so that it doesn't drift.
    pub fn due_ns(&self, index: u64) -> u64 {
        let group = index / self.burst;
        let shift_ns = chance(group) * SHIFT_NS_MAX.min(SHIFT_SHARE_MAX * self.interval_ns);
        (group as f64 * self.interval_ns + shift_ns) as u64
    }

    /// Messages that are due `elapsed_ns` after the start.
    pub fn due_by(&self, elapsed_ns: u64) -> u64 {
        let mut bursts = (elapsed_ns as f64 / self.interval_ns) as u64 + 1;
        // The division and the multiplication may round to either side of a due time.
        while self.due_ns(bursts * self.burst) <= elapsed_ns {
            bursts += 1;
        }
        while bursts > 0 && self.due_ns((bursts - 1) * self.burst) > elapsed_ns {
            bursts -= 1;
        }
        (bursts * self.burst).min(self.messages)
    }
}

/// From 0 to 1, evenly, and always the same of a number.
///
/// Source: the output function of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
fn chance(number: u64) -> f64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Which room message `number` of a run goes to, and its number there: the rooms take turns.
pub fn place(number: u64, rooms: u32) -> (u32, u32) {
    ((number % u64::from(rooms)) as u32, (number / u64::from(rooms)) as u32)
}

/// The inverse of [`place`].
pub fn number(room: u32, sequence: u32, rooms: u32) -> u64 {
    u64::from(sequence) * u64::from(rooms) + u64::from(room)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_message_is_due_by_its_due_time_and_not_before(
            rate in 0.5f64..1e6, burst in 1u64..50, index in 0u64..100_000,
        ) {
            let schedule = Schedule::open(rate, burst, u64::MAX / 4);
            let due_ns = schedule.due_ns(index);
            prop_assert!(schedule.due_by(due_ns) > index);
            if due_ns > 0 {
                prop_assert!(schedule.due_by(due_ns - 1) <= index);
            }
        }

        #[test]
        fn rooms_and_sequences_come_from_the_number_and_lead_back(value in 0u64..1 << 40, rooms in 1024u32..9000) {
            let (room, sequence) = place(value, rooms);
            prop_assert!(room < rooms);
            prop_assert_eq!(number(room, sequence, rooms), value);
        }
    }

    #[test]
    fn an_hour_at_a_rate_ends_on_the_hour() {
        let hour_ns = 3_600_000_000_000;
        let schedule = Schedule::open(300.0, 1, hour_ns);
        assert_eq!(schedule.messages(), 3_600 * 300);
        let shift_ns = schedule.due_ns(300 * 3_599).checked_sub(3_599_000_000_000).unwrap();
        assert!(shift_ns as f64 <= SHIFT_SHARE_MAX * 1e9 / 300.0, "{shift_ns}");
        assert_eq!(schedule.due_by(hour_ns), schedule.messages());
    }

    #[test]
    fn a_load_does_not_keep_step_with_the_ticks_of_the_kernel() {
        for rate in [10.0, 100.0] {
            let schedule = Schedule::open(rate, 1, 10_000_000_000);
            let mut in_quarter = [0; 4];
            (0..schedule.messages())
                .for_each(|index| in_quarter[(schedule.due_ns(index) / 1_000_000 % 4) as usize] += 1);
            let least = schedule.messages() / 8;
            assert!(in_quarter.iter().all(|count| *count >= least), "{rate}/s: {in_quarter:?}");
        }
    }

    #[test]
    fn a_burst_is_due_at_once() {
        let schedule = Schedule::open(1_000.0, 10, 1_000_000_000);
        assert_eq!(schedule.due_ns(0), schedule.due_ns(9));
        assert!((10_000_000..14_000_000).contains(&schedule.due_ns(10)));
        assert_eq!(schedule.messages(), 1_000);
    }
}
