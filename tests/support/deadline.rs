//! Waiting for a condition until a deadline; never for a time.
//!
//! Deadlines are generous, because a test machine may have two cores and other work: a deadline says "this never
//! happens", and a promise about speed is asserted on a measured duration instead.

use std::thread;
use std::time::{Duration, Instant};

/// For what should happen at once.
pub const SOON: Duration = Duration::from_secs(20);
/// For what moves much data or many connections.
pub const LONG: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Returns once `condition` holds, with the time it took.
///
/// # Panics
/// With `what` when it doesn't hold within `deadline`.
#[track_caller]
pub fn eventually(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    eventually_ok(deadline, what, || condition().then_some(()).ok_or(""));
    began.elapsed()
}

/// Returns the first success of `attempt`.
///
/// # Panics
/// With `what` and the last failure when none succeeds within `deadline`.
#[track_caller]
pub fn eventually_ok<T, E: std::fmt::Display>(
    deadline: Duration,
    what: &str,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> T {
    let end = Instant::now() + deadline;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if Instant::now() >= end => {
                panic!("not within {deadline:?}: {what}; last seen: {error}")
            }
            Err(_) => thread::sleep(POLL),
        }
    }
}
