//! io_uring, tried as a shard uses it: before a driver is chosen, and for `corecast doctor`.
//!
//! A ring of a runtime's flags and sizes is made, entered with nothing to do, and dropped. No operation is started.

use std::io;

use io_uring::{IoUring, Probe};

use super::runtime::{COMPLETIONS, SUBMISSIONS};
use crate::config::RingSetup;

/// What the kernel said to each of the three calls.
#[derive(Debug)]
pub struct Trial {
    /// `io_uring_setup`, by default with SINGLE_ISSUER and DEFER_TASKRUN (Linux 6.1).
    pub setup: io::Result<()>,
    /// `io_uring_enter`; `None` where there was no ring to try it on.
    pub enter: Option<io::Result<()>>,
    /// `io_uring_register`, which serving doesn't need; `None` as above.
    pub register: Option<io::Result<()>>,
}

impl Trial {
    /// On this thread, with the flags of `setup`.
    pub fn run(setup: RingSetup) -> Self {
        let mut ring = IoUring::builder();
        match setup {
            RingSetup::Defer => ring.setup_single_issuer().setup_defer_taskrun(),
            RingSetup::Coop => ring.setup_coop_taskrun(),
            RingSetup::Plain => &mut ring,
        };
        let built: io::Result<IoUring> = ring.setup_cqsize(COMPLETIONS).build(SUBMISSIONS);
        match built {
            Err(error) => Self { setup: Err(error), enter: None, register: None },
            Ok(ring) => Self {
                setup: Ok(()),
                enter: Some(ring.submit().map(drop)),
                register: Some(ring.submitter().register_probe(&mut Probe::new())),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_ring_nothing_else_is_tried_and_with_one_everything() {
        let trial = Trial::run(RingSetup::Defer);
        assert_eq!(trial.setup.is_ok(), trial.enter.is_some(), "{trial:?}");
        assert_eq!(trial.setup.is_ok(), trial.register.is_some(), "{trial:?}");
    }
}
