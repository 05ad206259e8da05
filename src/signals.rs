//! Signals that end a command.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::flag;

/// Becomes true with the first SIGINT or SIGTERM; a second one ends the process at once, with exit code 130.
///
/// # Errors
/// Handlers that can't be installed.
pub fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first handler looks at the flag before the second one sets it.
        flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))
            .context("can't listen for signals")?;
        flag::register(signal, Arc::clone(&stop)).context("can't listen for signals")?;
    }
    Ok(stop)
}

/// Becomes true with the first signal that wants the command to end, a terminal's that goes away among them. Further ones
/// change nothing: what the kernel was set to must be set back, and that takes a moment only. SIGKILL is left, and the journal.
///
/// # Errors
/// Handlers that can't be installed.
pub fn patient_stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
        flag::register(signal, Arc::clone(&stop)).context("can't listen for signals")?;
    }
    Ok(stop)
}
