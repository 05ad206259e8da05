//! The drain of a process: its shards stop listening, see whether somebody else serves their addresses, close their
//! connections at a pace, and end together, so that the admin address answers to the last.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::connection::{Core, SharedCore, enter};
use super::listener::{Listener, is_served_by_somebody};
use crate::setup::Setup;
use crate::shard::TICK_MICROS;

const TICK: Duration = Duration::from_micros(TICK_MICROS);
/// Ticks at the end of a drain in which nobody is told any more: Close frames are answered meanwhile.
const FAREWELL_TICKS: usize = 10;
/// For so many ticks a shard waits for the others to stop listening: until then nobody knows of a successor. A shard that
/// hangs doesn't hold the others up for longer.
const SILENCE_TICKS: usize = 3;

/// What the shards of a process share of their drain.
pub struct Drain {
    /// How long it may take.
    limit: Duration,
    /// What the process listens on; empty where the service manager holds the sockets.
    addresses: Vec<SocketAddr>,
    /// Shards that listen.
    listening: AtomicUsize,
    /// Shards that have clients.
    serving: AtomicUsize,
}

impl Drain {
    /// One of `shards` shards that takes `limit` at most. `addresses` are what they share with nobody but other processes;
    /// none where the sockets outlive the process.
    pub fn new(limit: Duration, shards: usize, addresses: Vec<SocketAddr>) -> Self {
        let (listening, serving) = (AtomicUsize::new(shards), AtomicUsize::new(shards));
        Self { limit, addresses, listening, serving }
    }

    /// A shard listens no more. The last one looks whether somebody else does.
    fn stop_listening(&self, setup: &Setup) {
        let is_last = self.listening.fetch_sub(1, Ordering::AcqRel) == 1;
        if is_last && self.addresses.iter().all(|address| is_served_by_somebody(*address)) {
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
    while !core.borrow().shard.is_draining() {
        tick(&core).await;
    }
    let (admin, public): (Vec<_>, Vec<_>) =
        listeners.into_iter().partition(|listener| listener.is_of_admin());
    public.iter().for_each(|listener| listener.close(&core));
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
        if drain.nobody_listens() || passed >= SILENCE_TICKS {
            close_share(&core, (ticks - passed).saturating_sub(FAREWELL_TICKS).max(1));
        }
        tick(&core).await;
    }
    if !drain.nobody_serves() {
        return;
    }
    // Only who asks the admin address is left.
    admin.iter().for_each(|listener| listener.close(&core));
    for _ in 0..FAREWELL_TICKS {
        if core.borrow().shard.connections_len() == 0 {
            return;
        }
        close_share(&core, 1);
        tick(&core).await;
    }
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
