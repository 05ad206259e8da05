//! Sockets that take what they like, and remember it.

use std::collections::HashMap;

use shards::shard::{Batch, Wire};

use crate::random::Random;

#[derive(Debug, Default)]
pub struct Socket {
    /// Everything it took.
    pub taken: Vec<u8>,
    /// Bytes that the kernel takes before it is full.
    pub space: usize,
    /// Nobody reads at the other end.
    pub stuck: bool,
    /// Every send fails.
    pub broken: bool,
    /// Shut down for writing: nothing may be sent any more.
    pub shut: bool,
}

pub struct Sockets {
    pub all: HashMap<i32, Socket>,
    pub random: Random,
    /// Nothing is refused: quiet moments.
    pub generous: bool,
}

impl Sockets {
    fn take(&mut self, number: i32, pieces: &[&[u8]]) -> isize {
        let socket = self.all.get_mut(&number).expect("a send to a socket that is closed");
        assert!(!socket.shut, "a send after the socket was shut down for writing");
        if socket.broken {
            return -1;
        }
        let due: usize = pieces.iter().map(|piece| piece.len()).sum();
        assert!(due > 0, "a send of nothing");
        let mut space = if self.generous { usize::MAX } else { socket.space };
        if !self.generous && self.random.chance(10) {
            space = space.min(self.random.below(due + 1));
        }
        let mut left = space.min(due);
        let taken = left;
        socket.space -= taken.min(socket.space);
        for piece in pieces {
            let part = left.min(piece.len());
            socket.taken.extend_from_slice(&piece[..part]);
            left -= part;
        }
        taken as isize
    }
}

impl Wire for Sockets {
    fn send(&mut self, socket: i32, bytes: &[u8]) -> isize {
        self.take(socket, &[bytes])
    }

    fn send_batch(&mut self, batch: &Batch, taken: &mut Vec<isize>) {
        for op in batch.ops() {
            let pieces: Vec<&[u8]> = batch.slices(op).collect();
            let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
            assert_eq!(op.bytes, bytes, "a send's length is wrong");
            taken.push(self.take(op.socket, &pieces));
        }
    }
}
