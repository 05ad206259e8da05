//! What the supervisor knows of its processes, for whoever asks the admin address meanwhile.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// One place.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The process that serves, or starts.
    pub pid: Option<u32>,
    /// Where the one that serves is asked; `None` while none does.
    pub door: Option<Arc<OwnedFd>>,
    /// Those that leave, which have clients until they are gone.
    pub leaving: Vec<Leaving>,
    /// See `corecast_process_restarts_total`.
    pub restarts: u64,
    /// What the process said of itself last.
    pub status: String,
}

/// A process that leaves.
#[derive(Debug, Clone)]
pub struct Leaving {
    /// Its id.
    pub pid: u32,
    /// Where it is asked.
    pub door: Option<Arc<OwnedFd>>,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Views {
    /// By place.
    pub places: Vec<View>,
    /// A rolling restart is under way.
    pub is_rolling: bool,
    /// All leave.
    pub is_leaving: bool,
}

/// The last [`Views`]; written by the supervisor's thread, read by those of requests.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<Arc<Views>>>);

impl Board {
    /// Puts up `views`.
    pub fn show(&self, views: Views) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(views);
    }

    /// What is up.
    pub fn look(&self) -> Arc<Views> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
