//! What the supervisor is to do, and what its log is to tell.

use std::time::Duration;

/// A process by its number: they are counted from the start of the parent, and none is used twice.
pub type Generation = u64;

/// What is to be done, or told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Start a process for this place.
    Start { place: usize, generation: Generation },
    /// Have it drain: to its successor, or because all leave.
    Leave { generation: Generation, for_good: bool },
    /// Have it end at once.
    Stop { generation: Generation },
    /// End it, whatever it does.
    Kill { generation: Generation },
    /// Have newcomers not wait in the queues of this place, which nobody serves; its next process opens them.
    Close { place: usize },
    /// Tell it.
    Tell(News),
}

/// What the log hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// It serves.
    Serves { place: usize, generation: Generation },
    /// It ended, and the next one starts after this long.
    Died { place: usize, generation: Generation, restarts_in: Duration },
    /// The same once more, in a row that has been told.
    DiedAgain { place: usize },
    /// It has left as it was told.
    Left { place: usize, generation: Generation },
    /// A rolling restart begins.
    RollBegins,
    /// There is one already: another follows it.
    RollsAgain,
    /// All have been replaced.
    Rolled,
    /// The successor of this place did not come to serve; its predecessor serves on, and nobody else is replaced.
    RollFailed { place: usize },
    /// A process that the rolling restart had started died; nobody else is replaced.
    RollBroken { place: usize },
    /// It has said nothing for as long as is borne.
    Hangs { place: usize, generation: Generation },
    /// It didn't drain in its time.
    Overdue { place: usize, generation: Generation },
}
