//! Whether the consumer of a ring has to be woken: the flag half of a doorbell. The other half is an eventfd.
//!
//! The consumer says that it will wait, drains its ring once more, and only then waits on the eventfd. The producer pushes
//! a whole batch, and writes the eventfd only if it takes the flag down. So a batch costs one wake-up at most, and none
//! while the consumer is awake.
//!
//! ```text
//! consumer                          producer
//! loop {                            push the batch            (Release, the ring's)
//!     drain the ring                if must_ring() {          (fence, then the flag)
//!     before_waiting()  (flag up,       write the eventfd
//!     drain once more    fence)     }
//!     if nothing came { read the eventfd }
//!     woken()           (flag down)
//! }
//! ```
//!
//! **Why no wake-up is lost.** Both sides write one thing and then read the other: the consumer the flag and then the
//! ring, the producer the ring and then the flag. Release and Acquire let both reads miss both writes (the hardware's
//! store buffer does just that), so between write and read each side has a SeqCst fence. Of two such fences one comes
//! first, whatever the interleaving. If it is the producer's, the second drain finds the batch. If it is the consumer's,
//! the producer sees the flag up, or sees what came later: that the consumer is awake and will drain again before it waits.
//! What publishes the items themselves is the ring's own Release and Acquire, or the eventfd; the flag carries no data, so
//! that its accesses can be Relaxed.
//!
//! A wake-up too many is possible, when the second drain found what the producer rings for; the eventfd then makes one
//! wait return at once. `tests/doorbell_loom.rs` runs this protocol through every interleaving.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};

/// See the module. One consumer and any number of producers share it.
#[derive(Debug)]
pub struct Doorbell {
    /// The consumer waits, or is about to.
    asleep: AtomicBool,
}

impl Doorbell {
    /// A doorbell whose consumer is awake.
    pub fn new() -> Self {
        Self { asleep: AtomicBool::new(false) }
    }

    /// The consumer has drained its ring and wants to wait. It must drain once more before it does: what was pushed until
    /// now may never be rung for. A consumer that finds something calls [`woken`](Self::woken) and does not wait.
    pub fn before_waiting(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        // Pairs with the fence of `must_ring`: the flag is up before the ring is read.
        fence(Ordering::SeqCst);
    }

    /// The consumer is awake and will drain: nobody needs to ring meanwhile.
    pub fn woken(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Whether the producer, who has pushed its whole batch, has to write the eventfd now. Costs a fence, and no write to
    /// the shared line while the consumer is awake.
    #[must_use = "a consumer that is not woken sleeps on what was pushed"]
    pub fn must_ring(&self) -> bool {
        // Pairs with the fence of `before_waiting`: the batch is in the ring before the flag is read.
        fence(Ordering::SeqCst);
        // An exchange and not a swap, for loom's sake: it doesn't know that what a swap wrote over a lowered flag comes
        // before the consumer's next write, reports a lost wake-up that the memory model rules out, and could prove nothing.
        self.asleep.load(Ordering::Relaxed)
            && self.asleep.compare_exchange(true, false, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Default for Doorbell {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_a_consumer_that_waits_is_rung_and_only_once() {
        let doorbell = Doorbell::new();
        assert!(!doorbell.must_ring(), "rung while awake");
        doorbell.before_waiting();
        assert!(doorbell.must_ring(), "not rung while asleep");
        assert!(!doorbell.must_ring(), "rung twice for one wait");
        doorbell.before_waiting();
        doorbell.woken();
        assert!(!doorbell.must_ring(), "rung after it woke by itself");
    }
}
