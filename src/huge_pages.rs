//! Transparent huge pages for the memory of this process: refused, unless an experiment asks for them.
//!
//! Small objects of many connections, spread over pages of 2 MiB, hold twice the memory (measured). The allocator doesn't ask
//! for such pages (`no_thp`), but where the host gives them to everybody (`transparent_hugepage/enabled` says `always`) only
//! prctl(2) refuses them. That is inherited, through exec too, so only `serve` does it, which starts no programs but itself.

use rustix::io::Errno;
use rustix::thread::{disable_transparent_huge_pages, transparent_huge_pages_are_disabled};

/// What became of a refusal.
pub struct Refusal(Result<Before, Errno>);

/// What held before it.
enum Before {
    Allowed,
    /// By whoever started this process.
    Refused,
}

impl Refusal {
    /// Refuses huge pages for all memory that is touched from now on. To be called before much is.
    pub fn make() -> Self {
        Self(refuse())
    }

    /// Takes it back where the configuration says so, as far as it was this process's; says where it could not be made.
    pub fn settle(self, is_wanted: bool) {
        match (self.0, is_wanted) {
            (Ok(Before::Allowed), true) => {
                if let Err(error) = disable_transparent_huge_pages(false) {
                    tracing::warn!(%error, "huge pages stay refused, though huge_pages is true");
                }
            }
            (Ok(Before::Refused), true) => {
                tracing::warn!(
                    "huge pages stay refused by whoever started this process, though huge_pages is true"
                );
            }
            (Err(error), false) => {
                tracing::warn!(
                    %error,
                    "huge pages could not be refused: memory per connection may double where the host gives them to everybody"
                );
            }
            (Ok(_), false) | (Err(_), true) => {}
        }
    }
}

fn refuse() -> Result<Before, Errno> {
    if transparent_huge_pages_are_disabled()? {
        return Ok(Before::Refused);
    }
    disable_transparent_huge_pages(true).map(|()| Before::Allowed)
}
