//! What connections keep in memory beside the windows: pages of rooms' pasts, publications of conflating rooms, frames half
//! sent, private frames that wait.
//!
//! A buffer that many of them keep is in memory once, and so it is counted once: a thousand readers of one past cost what
//! one does.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::log::Page;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// By address: how many keep it, and its bytes.
    buffers: HashMap<usize, (u32, u64), foldhash::fast::FixedState>,
    bytes: u64,
}

/// A buffer, by what tells it from the others for as long as somebody keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Buffer {
    address: usize,
    bytes: u64,
}

impl From<&Bytes> for Buffer {
    fn from(bytes: &Bytes) -> Self {
        Self { address: bytes.as_ptr() as usize, bytes: bytes.len() as u64 }
    }
}

impl From<&Arc<Page>> for Buffer {
    fn from(page: &Arc<Page>) -> Self {
        Self { address: Arc::as_ptr(page) as usize, bytes: page.bytes() }
    }
}

impl Kept {
    /// Bytes of all buffers, each once.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// One more keeps that buffer. To be told before it could be freed and another take its address.
    pub(crate) fn keep(&mut self, buffer: impl Into<Buffer>) {
        let Buffer { address, bytes } = buffer.into();
        // What is empty has no memory of its own.
        if bytes == 0 {
            return;
        }
        let (keepers, known) = self.buffers.entry(address).or_insert((0, bytes));
        if *keepers == 0 {
            self.bytes += *known;
        }
        *keepers += 1;
    }

    /// One less.
    pub(crate) fn let_go(&mut self, buffer: impl Into<Buffer>) {
        let Buffer { address, bytes } = buffer.into();
        if bytes == 0 {
            return;
        }
        let Some((keepers, known)) = self.buffers.get_mut(&address) else {
            return debug_assert!(false, "a buffer is let go that nobody keeps");
        };
        *keepers -= 1;
        if *keepers == 0 {
            self.bytes -= *known;
            self.buffers.remove(&address);
        }
    }

    /// Panics unless it is what these together keep.
    pub(crate) fn check<'a>(&self, buffers: impl Iterator<Item = Buffer> + 'a) {
        let mut due = Kept::default();
        buffers.for_each(|buffer| due.keep(buffer));
        assert_eq!((due.bytes, due.buffers.len()), (self.bytes, self.buffers.len()), "what connections keep");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_many_keep_counts_once_until_the_last_lets_it_go() {
        let mut kept = Kept::default();
        let (one, other) = (Bytes::from(vec![0; 100]), Bytes::from(vec![0; 7]));
        for _ in 0..3 {
            kept.keep(&one);
        }
        kept.keep(&other);
        kept.keep(&Bytes::new());
        assert_eq!(kept.bytes(), 107);
        kept.let_go(&one);
        kept.let_go(&Bytes::new());
        kept.let_go(&other);
        kept.check([Buffer::from(&one), Buffer::from(&one.clone())].into_iter());
        kept.let_go(&one);
        kept.let_go(&one);
        assert_eq!(kept.bytes(), 0);
    }
}
