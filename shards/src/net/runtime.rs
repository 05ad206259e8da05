//! The threads: which driver, which cores, and what a shard's thread does from start to end.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

use super::bell::{Bell, Sleeper, Yielder};
use super::connection::{Clock, Core, SharedCore, enter};
use super::drain::{Drain, sweep_and_drain};
use super::fanout::Fanout;
use super::listener::{Listener, Place, accept_all};
use super::notice::Journal;
use super::options::SocketOptions;
use super::ring::ShardEnd;
use super::trial::Trial;
use crate::config::{DriverChoice, RingSetup};
use crate::shard::{Progress, Shard};

/// The kernel interface of the shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// io_uring.
    IoUring(RingSetup),
    /// epoll.
    Epoll,
}

impl Driver {
    /// As in logs, `/stats` and `/metrics`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::IoUring(_) => "io_uring",
            Self::Epoll => "epoll",
        }
    }
}

/// io_uring can't be used; the text says why and what to do.
#[derive(Debug, thiserror::Error)]
#[error("io_uring can't be used: {error}; {cure}")]
pub struct NoIoUring {
    error: io::Error,
    cure: &'static str,
}

/// What `choice`, with a ring of `setup`, means on this kernel. The error, if any, is why it is not io_uring.
///
/// # Errors
/// [`NoIoUring`] where io_uring was demanded.
pub fn choose(choice: DriverChoice, setup: RingSetup) -> Result<(Driver, Option<NoIoUring>), NoIoUring> {
    if choice == DriverChoice::Epoll {
        return Ok((Driver::Epoll, None));
    }
    match (probe(setup), choice) {
        (Ok(()), _) => Ok((Driver::IoUring(setup), None)),
        (Err(why), DriverChoice::IoUring) => Err(why),
        (Err(why), _) => Ok((Driver::Epoll, Some(why))),
    }
}

fn probe(ring_setup: RingSetup) -> Result<(), NoIoUring> {
    let Trial { setup, enter, .. } = Trial::run(ring_setup);
    let Err(error) = setup.and(enter.unwrap_or(Ok(()))) else { return Ok(()) };
    let cure = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "a seccomp profile or kernel.io_uring_disabled forbids it. In Docker: --security-opt \
             seccomp=deploy/seccomp-io_uring.json; else: sysctl kernel.io_uring_disabled=0"
        }
        Some(libc::ENOSYS | libc::EINVAL) => "Linux 6.1 or later is due, built with CONFIG_IO_URING",
        Some(libc::ENOMEM) => "raise the limit of locked memory (LimitMEMLOCK, ulimit -l)",
        _ => "see io_uring_setup(2)",
    };
    Err(NoIoUring { error, cure })
}

/// Runs `future` on a runtime of `driver` on this thread.
///
/// # Errors
/// The ring or the epoll descriptor could not be made.
pub fn block_on<F: Future>(driver: Driver, future: F) -> io::Result<F::Output> {
    match driver {
        Driver::IoUring(setup) => {
            let builder = RuntimeBuilder::<TimeDriver<IoUringDriver>>::new();
            Ok(builder.uring_builder(ring(setup)).with_entries(SUBMISSIONS).build()?.block_on(future))
        }
        Driver::Epoll => Ok(RuntimeBuilder::<TimeDriver<LegacyDriver>>::new().build()?.block_on(future)),
    }
}

/// A ring as a runtime waits on it.
fn ring(setup: RingSetup) -> monoio_io_uring::Builder {
    let mut ring = monoio_io_uring::IoUring::builder();
    match setup {
        RingSetup::Defer => ring.setup_single_issuer().setup_defer_taskrun(),
        RingSetup::Coop => ring.setup_coop_taskrun(),
        RingSetup::Plain => &mut ring,
    };
    ring.setup_cqsize(COMPLETIONS);
    ring
}

/// Entries of a runtime's submission queue: polls that are armed between two parks.
pub const SUBMISSIONS: u32 = 2048;
/// Entries of its completion queue: sockets that become ready between two parks without overflowing.
pub const COMPLETIONS: u32 = 8192;

/// Everything a shard's thread is given.
pub struct ShardParts {
    pub shard: Shard,
    pub journal: Journal,
    pub driver: Driver,
    pub clock: Clock,
    pub ring: ShardEnd,
    pub bell: Arc<Bell>,
    pub listeners: Vec<Place>,
    pub options: SocketOptions,
    pub drain: Arc<Drain>,
}

/// A shard from its first connection to the end of its drain.
///
/// `may_serve` is called once, before anything is accepted, when the shard holds every descriptor it needs; it blocks until
/// all threads do, and says whether to go on.
///
/// # Errors
/// Out of descriptors or memory at the start.
pub async fn run_shard(parts: ShardParts, may_serve: impl FnOnce() -> bool) -> io::Result<()> {
    let fanout = match parts.driver {
        Driver::IoUring(_) => Fanout::ring(parts.shard.batch_sends_max())?,
        Driver::Epoll => Fanout::plain(),
    };
    let core = Rc::new(std::cell::RefCell::new(Core::new(
        parts.shard,
        parts.journal,
        fanout,
        parts.clock,
        parts.ring,
    )));
    let mut listeners = Vec::new();
    for place in parts.listeners {
        listeners.push(Listener::new(place, parts.options)?);
    }
    let (sleeper, yielder) = (Sleeper::new(parts.bell)?, Yielder::new()?);
    if !may_serve() {
        return Ok(());
    }
    for listener in &listeners {
        monoio::spawn(accept_all(core.clone(), listener.clone()));
    }
    monoio::spawn(turns(core.clone(), sleeper, yielder));
    sweep_and_drain(core, listeners, &parts.drain).await;
    Ok(())
}

/// The heart of a shard: commands in, batches out.
async fn turns(core: SharedCore, sleeper: Sleeper, yielder: Yielder) {
    loop {
        let began = core.borrow().now();
        let worked = enter(&core, Core::take_commands);
        while core.borrow().shard.has_dirty_rooms() {
            let progress = enter(&core, Core::step);
            if progress == Progress::More {
                yielder.give_way().await;
            }
        }
        if worked {
            core.borrow_mut().turn_ended(began);
            if core.borrow().has_work() {
                yielder.give_way().await;
                continue;
            }
        }
        sleeper.wait(|| core.borrow().has_work()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_ring_of_the_default_set_up_belongs_to_one_thread() {
        use monoio_io_uring::types::{SubmitArgs, Timespec};
        for (setup, due) in [
            // A thread that is not the single issuer may not even wait (io_uring_enter(2)).
            (RingSetup::Defer, libc::EEXIST),
            (RingSetup::Coop, libc::ETIME),
            (RingSetup::Plain, libc::ETIME),
        ] {
            let built: io::Result<monoio_io_uring::IoUring> = ring(setup).build(8);
            let Ok(elsewhere) = built else {
                println!("io_uring is not to be had here: {setup:?} was not tested");
                continue;
            };
            let waited = std::thread::spawn(move || {
                let at_once = Timespec::new().nsec(1);
                elsewhere.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&at_once))
            });
            let error = waited.join().expect("no panic").expect_err("nothing completes");
            assert_eq!(error.raw_os_error(), Some(due), "{setup:?}");
        }
    }
}
