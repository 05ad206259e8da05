//! Every interleaving of the doorbell's protocol, by loom: nothing that was pushed is slept on.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p shards --release --no-default-features --test doorbell_loom`
//!
//! The ring is modelled by its published length (Release and Acquire, as in rtrb), the eventfd by a counter that a read
//! waits for and takes. A wake-up that is lost leaves the consumer waiting for ever, which loom reports as a deadlock.
//! Variants with a known fault show that the model can see it.
#![cfg(loom)]

// Loom's own Arc panics when it is dropped by the unwinding that the faulty variants are due to cause.
use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use shards::doorbell::Doorbell;

/// The flag half of the protocol.
trait Bell: Send + Sync + 'static {
    fn before_waiting(&self);
    fn woken(&self);
    fn must_ring(&self) -> bool;
}

impl Bell for Doorbell {
    fn before_waiting(&self) {
        self.before_waiting();
    }

    fn woken(&self) {
        self.woken();
    }

    fn must_ring(&self) -> bool {
        self.must_ring()
    }
}

/// A doorbell whose sides may forget their fences.
struct Faulty {
    asleep: AtomicBool,
    consumer_fences: bool,
    producer_fences: bool,
}

impl Bell for Faulty {
    fn before_waiting(&self) {
        self.asleep.store(true, Ordering::Release);
        if self.consumer_fences {
            fence(Ordering::SeqCst);
        }
    }

    fn woken(&self) {
        self.asleep.store(false, Ordering::Release);
    }

    fn must_ring(&self) -> bool {
        if self.producer_fences {
            fence(Ordering::SeqCst);
        }
        self.asleep.compare_exchange(true, false, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// What producer and consumer share.
struct Shared<B> {
    bell: B,
    /// Items; the ring's slots.
    slots: [AtomicUsize; 2],
    /// Items pushed; the ring's tail.
    pushed: AtomicUsize,
    eventfd: Mutex<u64>,
    readable: Condvar,
}

impl<B: Bell> Shared<B> {
    fn new(bell: B) -> Arc<Self> {
        Arc::new(Self {
            bell,
            slots: [AtomicUsize::new(0), AtomicUsize::new(0)],
            pushed: AtomicUsize::new(0),
            eventfd: Mutex::new(0),
            readable: Condvar::new(),
        })
    }

    fn push(&self, index: usize) {
        self.slots[index].store(index + 1, Ordering::Relaxed);
        self.pushed.store(index + 1, Ordering::Release);
    }

    fn ring(&self) {
        *self.eventfd.lock().unwrap() += 1;
        self.readable.notify_one();
    }

    /// Pushes the items in batches of these lengths, ringing after each.
    fn produce(&self, batches: &[usize]) {
        let mut index = 0;
        for batch in batches {
            for _ in 0..*batch {
                self.push(index);
                index += 1;
            }
            if self.bell.must_ring() {
                self.ring();
            }
        }
    }

    /// Takes what is there beyond the first `taken` items; returns how many have been taken then.
    fn drain(&self, taken: usize) -> usize {
        let pushed = self.pushed.load(Ordering::Acquire);
        for index in taken..pushed {
            assert_eq!(self.slots[index].load(Ordering::Relaxed), index + 1, "an item before its content");
        }
        pushed
    }

    fn wait(&self) {
        let mut count = self.eventfd.lock().unwrap();
        while *count == 0 {
            count = self.readable.wait(count).unwrap();
        }
        *count = 0;
    }

    /// Takes `due` items, waiting whenever there are none.
    fn consume(&self, due: usize, drains_again: bool) {
        let mut taken = self.drain(0);
        while taken < due {
            self.bell.before_waiting();
            let found = if drains_again { self.drain(taken) } else { taken };
            if found == taken {
                self.wait();
            }
            self.bell.woken();
            taken = self.drain(found);
        }
    }
}

fn run<B: Bell>(bell: impl Fn() -> B + Send + Sync + 'static, batches: &'static [usize], drains_again: bool) {
    loom::model(move || {
        let shared = Shared::new(bell());
        let consumer = {
            let shared = shared.clone();
            thread::spawn(move || shared.consume(batches.iter().sum(), drains_again))
        };
        shared.produce(batches);
        consumer.join().unwrap();
    });
}

#[test]
fn one_batch_is_never_slept_on() {
    run(Doorbell::new, &[1], true);
    run(Doorbell::new, &[2], true);
}

#[test]
fn a_second_batch_is_never_slept_on() {
    run(Doorbell::new, &[1, 1], true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn the_model_sees_a_consumer_without_its_fence() {
    let faulty = || Faulty { asleep: AtomicBool::new(false), consumer_fences: false, producer_fences: true };
    run(faulty, &[1], true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn the_model_sees_a_producer_without_its_fence() {
    let faulty = || Faulty { asleep: AtomicBool::new(false), consumer_fences: true, producer_fences: false };
    run(faulty, &[1], true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn the_model_sees_a_consumer_that_does_not_drain_once_more() {
    run(Doorbell::new, &[1], false);
}
