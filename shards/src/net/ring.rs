//! Step 3 of 5: the rings between the relay and a shard.
//!
//! One SPSC queue down (relay to shard), one up (shard to relay), each with a bell that wakes its consumer
//! ([`super::bell`]). Full means that the producer keeps the command (the relay spills, the shard waits); nobody ever waits
//! for space on a thread.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, fence};

use super::bell::Bell;
use crate::command::{Down, Up};
use crate::limits::{RING_SLOTS, TURN_COMMANDS_MAX};

/// The relay's ends of the rings of one shard.
pub struct RelayEnd {
    /// To the shard.
    pub down: rtrb::Producer<Down>,
    /// From the shard.
    pub up: rtrb::Consumer<Up>,
    /// The shard's bell.
    pub bell: Arc<Bell>,
    consumed_bytes: Arc<AtomicU64>,
    /// See [`RelayEnd::want_space`].
    starved: Arc<AtomicBool>,
    /// Something was pushed since the bell was rung, or space was made that the shard waits for.
    pub unrung: bool,
}

/// The shard's ends of its rings.
pub struct ShardEnd {
    /// From the relay.
    pub down: rtrb::Consumer<Down>,
    /// To the relay.
    pub up: rtrb::Producer<Up>,
    /// The relay's bell.
    pub relay_bell: Arc<Bell>,
    consumed_bytes: Arc<AtomicU64>,
    starved: Arc<AtomicBool>,
}

/// Both ends of the rings of one shard.
pub fn pair(shard_bell: Arc<Bell>, relay_bell: Arc<Bell>) -> (RelayEnd, ShardEnd) {
    let (down_producer, down_consumer) = rtrb::RingBuffer::new(RING_SLOTS);
    let (up_producer, up_consumer) = rtrb::RingBuffer::new(RING_SLOTS);
    let consumed_bytes = Arc::new(AtomicU64::new(0));
    let starved = Arc::new(AtomicBool::new(false));
    let relay_end = RelayEnd {
        down: down_producer,
        up: up_consumer,
        bell: shard_bell,
        consumed_bytes: consumed_bytes.clone(),
        starved: starved.clone(),
        unrung: false,
    };
    (relay_end, ShardEnd { down: down_consumer, up: up_producer, relay_bell, consumed_bytes, starved })
}

impl RelayEnd {
    /// Puts a command on the ring, or gives it back when there is no space.
    pub fn offer(&mut self, command: Down) -> Result<(), Down> {
        self.down.push(command).map_err(|rtrb::PushError::Full(command)| command)?;
        self.unrung = true;
        Ok(())
    }

    /// Something waits for space on the ring: the shard rings the relay's bell when it has taken what is there. Look for
    /// space once more after this, for the shard may have been through just before.
    pub fn want_space(&self) {
        self.starved.store(true, Relaxed);
        // Pairs with the fence of `tell_space`: the flag is up before the ring is looked at.
        fence(SeqCst);
    }

    /// Whether the shard has answered [`want_space`](Self::want_space). It may have found the relay awake and not rung, so
    /// whoever waits for space looks here before it sleeps.
    pub fn was_told_of_space(&self) -> bool {
        !self.starved.load(Relaxed)
    }

    /// Whether the shard may have found its ring up full since the last time that a batch of
    /// [`TURN_COMMANDS_MAX`] was taken: then it waits to be rung when there is space.
    pub fn is_crowded(&self) -> bool {
        self.up.slots() + TURN_COMMANDS_MAX >= RING_SLOTS
    }

    /// Rings for what was offered.
    pub fn flush(&mut self) {
        if std::mem::take(&mut self.unrung) {
            self.bell.ring();
        }
    }

    /// Commands on the ring to the shard.
    pub fn depth(&self) -> usize {
        RING_SLOTS - self.down.slots()
    }

    /// Bytes of publications that the shard has taken.
    pub fn consumed_bytes(&self) -> u64 {
        self.consumed_bytes.load(Relaxed)
    }
}

impl ShardEnd {
    /// Takes the next command.
    pub fn take(&mut self) -> Option<Down> {
        let command = self.down.pop().ok()?;
        let bytes = command.backlog_bytes() as u64;
        if bytes > 0 {
            // This end is the only writer.
            self.consumed_bytes.store(self.consumed_bytes.load(Relaxed) + bytes, Relaxed);
        }
        Some(command)
    }

    /// After taking: rings the relay's bell if it waits for space.
    pub fn tell_space(&self) {
        // Pairs with the fence of `want_space`: what was taken is off the ring before the flag is read. Without it both sides
        // may miss each other, as in a doorbell.
        fence(SeqCst);
        if self.starved.load(Relaxed) && self.starved.swap(false, Relaxed) {
            self.relay_bell.ring();
        }
    }

    /// Puts a command on the ring, or gives it back when there is no space.
    pub fn offer(&mut self, command: Up) -> Result<(), Up> {
        self.up.push(command).map_err(|rtrb::PushError::Full(command)| command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{ConnectionId, RoomSlot};
    use crate::metrics::GapReason;

    fn rings() -> (RelayEnd, ShardEnd, Arc<Bell>) {
        let relay_bell = Bell::new().expect("a descriptor");
        let (relay_end, shard_end) = pair(Bell::new().expect("a descriptor"), relay_bell.clone());
        (relay_end, shard_end, relay_bell)
    }

    fn command(offset: u64) -> Down {
        Down::Gap {
            slot: RoomSlot { index: 0, generation: 0 },
            from: offset,
            to: offset + 1,
            reason: GapReason::ShardOverload,
        }
    }

    #[test]
    fn a_full_ring_gives_the_command_back_and_keeps_its_order() {
        let (mut relay, mut shard, _) = rings();
        for offset in 0..RING_SLOTS as u64 {
            relay.offer(command(offset)).expect("there is space");
        }
        assert_eq!(relay.offer(command(9)), Err(command(9)));
        for offset in 0..RING_SLOTS as u64 {
            assert_eq!(shard.take(), Some(command(offset)));
        }
        assert_eq!(shard.take(), None);
    }

    #[test]
    fn only_a_sleeper_is_rung_for_and_once_for_a_batch() {
        let (mut relay, _shard, _) = rings();
        let bell = relay.bell.clone();
        relay.offer(command(0)).expect("there is space");
        relay.flush();
        assert_eq!(bell.times_written(), 0, "it is awake");
        bell.fall_asleep();
        relay.offer(command(1)).expect("there is space");
        relay.offer(command(2)).expect("there is space");
        relay.flush();
        relay.flush();
        assert_eq!(bell.times_written(), 1);
    }

    #[test]
    fn a_relay_that_waits_for_space_is_told_once() {
        let (relay, shard, relay_bell) = rings();
        relay_bell.fall_asleep();
        shard.tell_space();
        assert_eq!(relay_bell.times_written(), 0, "nobody asked");
        relay.want_space();
        shard.tell_space();
        shard.tell_space();
        assert_eq!(relay_bell.times_written(), 1);
    }

    #[test]
    fn a_relay_that_was_told_while_awake_sees_it_before_it_sleeps() {
        let (relay, shard, relay_bell) = rings();
        relay.want_space();
        assert!(!relay.was_told_of_space());
        shard.tell_space();
        assert_eq!(relay_bell.times_written(), 0, "it is awake");
        assert!(relay.was_told_of_space());
    }

    #[test]
    fn a_ring_that_a_shard_found_full_is_crowded_when_the_relay_next_looks() {
        let (mut relay, mut shard, _) = rings();
        let mut offered = 0;
        while shard.offer(Up::Ask { from: ConnectionId { shard: 0, generation: 0, slot: 0 } }).is_ok() {
            offered += 1;
        }
        assert_eq!(offered, RING_SLOTS);
        // The relay was in the middle of a batch.
        for _ in 0..TURN_COMMANDS_MAX {
            relay.up.pop().expect("it is full");
        }
        assert!(relay.is_crowded());
        relay.up.pop().expect("there is more");
        assert!(!relay.is_crowded());
    }
}
