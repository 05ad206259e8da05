//! The drain of a process: its shards stop listening, see whether somebody else serves their addresses, close their
//! connections at a pace, and end together, so that the admin address answers to the last.
//!
//! Closing a queue resets whoever is in the middle of a handshake with it. Where nobody else listens that is the answer
//! anyway; where others share the port, newcomers are turned to them first ([`Listener::turn_newcomers_away`]).

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use super::bind::is_served_by_somebody;
use super::connection::{Core, SharedCore, enter};
use super::listener::{Holder, Listener};
use super::siblings;
use crate::setup::Setup;
use crate::shard::TICK_MICROS;

const TICK: Duration = Duration::from_micros(TICK_MICROS);
/// Ticks at the end of a drain in which nobody is told any more: Close frames are answered meanwhile.
const FAREWELL_TICKS: usize = 10;
/// For so many ticks a shard waits for the others to stop listening: until then nobody knows of a successor. A shard that
/// hangs doesn't hold the others up for longer.
const SILENCE_TICKS: usize = 3;

/// For so many ticks who is in the middle of a handshake may finish it, before a queue that others share is closed: most
/// round trips are shorter.
const SETTLE_TICKS: usize = 5;

/// What becomes of the addresses of a process that leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Whoever holds its queues starts the next one that serves them.
    ToSuccessor,
    /// The parent ends too, or is gone: its queues are closed. A service manager's stay.
    ForGood,
}

/// What the shards of a process share of their drain.
pub struct Drain {
    /// How long it may take.
    limit: Duration,
    /// What the process listens on.
    addresses: Vec<SocketAddr>,
    /// Who keeps the sockets of these.
    holder: Holder,
    /// [`WAITS`], then how it begins.
    begun: AtomicU8,
    /// The parent's queues are closed too.
    for_good: AtomicBool,
    /// Shards that listen.
    listening: AtomicUsize,
    /// Shards that have clients.
    serving: AtomicUsize,
}

const WAITS: u8 = 0;
const SETTLES: u8 = 1;
const BEGINS: u8 = 2;

impl Drain {
    /// One of `shards` shards that takes `limit` at most. `addresses` are what they listen on, with sockets that `holder`
    /// keeps.
    pub fn new(limit: Duration, shards: usize, addresses: Vec<SocketAddr>, holder: Holder) -> Self {
        let (listening, serving) = (AtomicUsize::new(shards), AtomicUsize::new(shards));
        let (begun, for_good) = (AtomicU8::new(WAITS), AtomicBool::new(false));
        Self { limit, addresses, holder, begun, for_good, listening, serving }
    }

    /// The process leaves. Somebody who left to a successor may leave for good afterwards. Reads a file: not for a shard.
    pub fn begin(&self, leave: Leave) {
        if leave == Leave::ForGood {
            self.for_good.store(true, Ordering::Release);
        }
        let shards = self.listening.load(Ordering::Acquire);
        let others_listen = self.holder == Holder::Nobody && siblings::listen_at(&self.addresses, shards);
        let how = if others_listen { SETTLES } else { BEGINS };
        // Who has begun already goes on as he began.
        let _begun_before = self.begun.compare_exchange(WAITS, how, Ordering::AcqRel, Ordering::Acquire);
    }

    fn keeps(&self, holder: Holder) -> bool {
        match holder {
            Holder::Manager => true,
            Holder::Parent => !self.for_good.load(Ordering::Acquire),
            Holder::Nobody => false,
        }
    }

    /// A shard listens no more. The last one looks whether somebody else does.
    fn stop_listening(&self, setup: &Setup) {
        let is_last = self.listening.fetch_sub(1, Ordering::AcqRel) == 1;
        let is_served = || self.addresses.iter().all(|address| is_served_by_somebody(*address));
        if is_last && (self.keeps(self.holder) || self.holder == Holder::Nobody && is_served()) {
            setup.expect_successor();
        }
    }

    fn nobody_listens(&self) -> bool {
        self.listening.load(Ordering::Acquire) == 0
    }

    /// A shard has no clients any more.
    fn stop_serving(&self) {
        self.serving.fetch_sub(1, Ordering::AcqRel);
    }

    fn nobody_serves(&self) -> bool {
        self.serving.load(Ordering::Acquire) == 0
    }

    fn ticks(&self) -> usize {
        (self.limit.as_micros() / TICK.as_micros()) as usize
    }
}

/// The sweep each tick; once the server drains, closes everybody at a pace, and returns when no shard has clients or time is
/// up.
pub async fn sweep_and_drain(core: SharedCore, listeners: Vec<Rc<Listener>>, drain: &Drain) {
    while drain.begun.load(Ordering::Acquire) == WAITS {
        tick(&core).await;
    }
    let (admin, public): (Vec<_>, Vec<_>) =
        listeners.into_iter().partition(|listener| listener.is_of_admin());
    if drain.begun.load(Ordering::Acquire) == SETTLES {
        turn_newcomers_away(&core, &public, drain).await;
    }
    core.borrow().shard.setup().drain();
    // Asked first: that all leave for good may be heard while the queues are being kept, and closing twice does no harm.
    let mut are_kept = drain.holder == Holder::Parent && drain.keeps(drain.holder);
    close_all(&core, &public, drain);
    drain.stop_listening(core.borrow().shard.setup());
    let mut is_serving = true;
    let ticks = drain.ticks().max(FAREWELL_TICKS + 1);
    for passed in 0..=ticks {
        if is_serving && core.borrow().shard.clients_len() == 0 {
            is_serving = false;
            drain.stop_serving();
        }
        if drain.nobody_serves() {
            break;
        }
        if are_kept && !drain.keeps(drain.holder) {
            are_kept = false;
            close_all(&core, &public, drain);
        }
        if drain.nobody_listens() || passed >= SILENCE_TICKS {
            close_share(&core, (ticks - passed).saturating_sub(FAREWELL_TICKS).max(1));
        }
        tick(&core).await;
    }
    if !drain.nobody_serves() {
        return;
    }
    // Only who asks the admin address is left.
    close_all(&core, &admin, drain);
    for _ in 0..FAREWELL_TICKS {
        if core.borrow().shard.connections_len() == 0 {
            return;
        }
        close_share(&core, 1);
        tick(&core).await;
    }
}

/// Serves on until whoever is in the middle of a handshake has finished it.
async fn turn_newcomers_away(core: &SharedCore, listeners: &[Rc<Listener>], drain: &Drain) {
    listeners.iter().for_each(|listener| listener.turn_newcomers_away());
    for _ in 0..SETTLE_TICKS.min(drain.ticks() / 2) {
        tick(core).await;
    }
}

fn close_all(core: &SharedCore, listeners: &[Rc<Listener>], drain: &Drain) {
    listeners.iter().for_each(|listener| listener.close(core, |holder| drain.keeps(holder)));
}

async fn tick(core: &SharedCore) {
    monoio::time::sleep(TICK).await;
    enter(core, Core::sweep);
}

/// Closes as many connections as must go in this tick for all of them to be gone in `ticks`.
fn close_share(core: &SharedCore, ticks: usize) {
    let (ids, farewell) = {
        let core = core.borrow();
        (core.open_ids(), core.shard.setup().farewell())
    };
    let share = ids.len().div_ceil(ticks);
    for id in ids.into_iter().take(share) {
        enter(core, |core| core.close(id, farewell));
    }
}
