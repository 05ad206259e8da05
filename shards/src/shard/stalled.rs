//! What is kept for a connection whose socket takes no more.
//!
//! The rest of the frame being sent (a reference to the frame itself, never to a turn's concatenation), a lane of private frames, and
//! what rooms with a log and rooms that conflate owe it. What it keeps is told to [`Kept`] as it comes and goes.

use std::collections::VecDeque;

use bytes::Bytes;

use super::conflate::Parked;
use super::kept::{Buffer, Kept};
use super::slow::{Untold, joined};
use crate::log;

/// See the module.
#[derive(Debug, Default)]
pub struct Stalled {
    /// Frame in the middle of being sent, and how much of it went.
    pub(super) rest: Bytes,
    pub(super) rest_sent: usize,
    /// The rest is a publication: one delivery is booked when it is through.
    pub(super) rest_is_delivery: bool,
    /// Answer to the last ping: at most one is owed (RFC 6455 section 5.5.3).
    pub(super) pong: Bytes,
    /// Private frames that wait.
    pub(super) lane: VecDeque<Bytes>,
    pub(super) lane_bytes: usize,
    /// Publications of rooms' pasts that it is to get before the live ones.
    pub(super) past: VecDeque<Past>,
    past_len: u64,
    /// What it is owed by conflating rooms.
    pub(super) parked: Option<Box<Parked>>,
    /// What it has lost and hasn't been told, at most once for each room.
    untold: Vec<Untold>,
    /// Tick since which it has not been at the head of all its rooms.
    pub(super) since: u32,
    /// Tick at which its socket last took bytes, or had none to take.
    pub(super) moved: u32,
    /// Index in the shard's list of stalled connections.
    pub(super) position: u32,
    /// Drops without a delivery between them.
    pub(super) drops_in_a_row: u32,
    /// Its connection is closing: what it still has to send is counted no more, as its end is a matter of seconds.
    pub(super) is_leaving: bool,
}

impl Stalled {
    /// Of a connection that stalls in this tick and has this place in the shard's list.
    pub(super) fn new(tick: u32, position: u32, is_leaving: bool) -> Self {
        Self { since: tick, moved: tick, position, is_leaving, ..Self::default() }
    }

    /// Index in the shard's list of stalled connections.
    pub(crate) fn position(&self) -> usize {
        self.position as usize
    }

    /// Panics if an invariant is broken.
    pub(crate) fn check(&self) {
        assert_eq!(self.lane.iter().map(Bytes::len).sum::<usize>(), self.lane_bytes, "bytes in the lane");
        let past_len = self.past.iter().map(|past| past.piece.len()).sum::<u64>();
        assert_eq!(past_len, self.past_len, "publications of the past");
        assert!(self.rest.is_empty() || self.rest_sent < self.rest.len(), "a rest of nothing");
        assert!(!self.rest_is_delivery || !self.rest.is_empty(), "a delivery of nothing is due");
    }

    /// Bytes in the lane.
    pub(crate) fn lane_bytes(&self) -> usize {
        self.lane_bytes
    }

    pub(crate) fn push_lane(&mut self, bytes: Bytes, kept: &mut Kept) {
        self.lane_bytes += bytes.len();
        if !self.is_leaving {
            kept.keep(&bytes);
        }
        self.lane.push_back(bytes);
    }

    /// Keeps what a socket did not take of a frame.
    pub(crate) fn hold_rest(&mut self, bytes: Bytes, sent: usize, is_delivery: bool, kept: &mut Kept) {
        debug_assert!(self.rest.is_empty(), "two frames half sent");
        debug_assert!(sent < bytes.len(), "a rest of nothing");
        if !self.is_leaving {
            kept.keep(&bytes);
        }
        (self.rest, self.rest_sent, self.rest_is_delivery) = (bytes, sent, is_delivery);
    }

    /// Its connection is closing: see [`Stalled::is_leaving`].
    pub(super) fn leave(&mut self, kept: &mut Kept) {
        if !std::mem::replace(&mut self.is_leaving, true) {
            std::iter::once(&self.rest).chain(&self.lane).for_each(|bytes| kept.let_go(bytes));
        }
    }

    /// Gives up the frame that is half sent and those behind it, if nobody else keeps it and it is larger than a lane may be:
    /// memory is wanted back at once. Returns whether it did, which tears the frame.
    pub(super) fn cut(&mut self, lane_bytes_max: usize) -> bool {
        debug_assert!(self.is_leaving, "cut, and yet to be sent to");
        let own = if self.rest.is_unique() { self.rest.len() } else { 0 };
        let is_large = own + self.lane_bytes > lane_bytes_max;
        if is_large {
            (self.rest, self.rest_sent) = (Bytes::new(), 0);
            self.lane = VecDeque::new();
            (self.lane_bytes, self.pong) = (0, Bytes::new());
        }
        is_large
    }

    /// Bytes that go out before anything else.
    pub(super) fn private_bytes(&self) -> u64 {
        if self.is_leaving { 0 } else { (self.rest.len() + self.lane_bytes) as u64 }
    }

    /// Queues publications of a room's past.
    pub(crate) fn push_past(&mut self, room: u32, epoch: u64, past: log::Past, kept: &mut Kept) {
        self.past_len += past.len();
        past.pieces.iter().for_each(|piece| kept.keep(&piece.page));
        self.past.extend(past.pieces.into_iter().map(|piece| Past { room, epoch, piece }));
    }

    /// Publications of the past that wait, and those that conflating rooms owe.
    pub(crate) fn past_len(&self) -> u64 {
        self.past_len + self.parked.as_ref().map_or(0, |parked| parked.len())
    }

    /// Bytes that they keep in memory, others' share of them included.
    pub(crate) fn past_bytes(&self) -> u64 {
        let past: u64 = self.past.iter().map(|past| past.piece.page.bytes()).sum();
        past + self.parked.as_ref().map_or(0, |parked| parked.bytes())
    }

    /// Every buffer that it keeps.
    pub(super) fn buffers(&self) -> impl Iterator<Item = Buffer> {
        let pages = self.past.iter().map(|past| Buffer::from(&past.piece.page));
        let parked = self.parked.iter().flat_map(|parked| parked.iter()).map(|item| Buffer::from(&item.wire));
        let private = std::iter::once(&self.rest).chain(&self.lane).filter(|_| !self.is_leaving);
        let private = private.map(Buffer::from);
        pages.chain(parked).chain(private)
    }

    /// Tick since which it has not been at the head of all its rooms.
    pub(super) fn since(&self) -> u32 {
        self.since
    }

    /// Tick at which its socket last took bytes.
    pub(super) fn moved(&self) -> u32 {
        self.moved
    }

    /// Whether publications of the past wait before the live ones.
    pub(super) fn has_past(&self) -> bool {
        !self.past.is_empty()
    }

    /// Drops without a delivery between them.
    pub(super) fn drops_in_a_row(&self) -> u32 {
        self.drops_in_a_row
    }

    /// Drops without a delivery between them, with these.
    pub(super) fn note_drops(&mut self, drops: u64) -> u32 {
        self.drops_in_a_row = self.drops_in_a_row.saturating_add(drops as u32);
        self.drops_in_a_row
    }

    /// What it has lost of a room is one piece, because nothing of the room was sent since.
    pub(super) fn note_untold(&mut self, untold: Untold) {
        match self.untold.iter_mut().find(|known| known.room == untold.room) {
            Some(known) => known.lost = joined(Some(known.lost), untold.lost),
            None => self.untold.push(untold),
        }
    }

    pub(super) fn take_untold(&mut self) -> Vec<Untold> {
        std::mem::take(&mut self.untold)
    }

    /// The oldest publication of the past is on its way.
    pub(super) fn pass_past(&mut self, kept: &mut Kept) {
        let Some(Past { piece, .. }) = self.past.front_mut() else { return };
        (piece.from, piece.is_beginning) = (piece.from + 1, false);
        self.past_len -= 1;
        if piece.is_empty()
            && let Some(Past { piece, .. }) = self.past.pop_front()
        {
            kept.let_go(&piece.page);
        }
    }

    /// Gives up what waits of the past of one room, or of all. Returns how many publications these are.
    pub(crate) fn forget_past(&mut self, room: Option<u32>, kept: &mut Kept) -> u64 {
        let before = self.past_len();
        self.untold.retain(|untold| room.is_some_and(|room| untold.room != room));
        self.past.retain(|past| {
            let stays = room.is_some_and(|room| past.room != room);
            if !stays {
                kept.let_go(&past.piece.page);
            }
            stays
        });
        self.past_len = self.past.iter().map(|past| past.piece.len()).sum();
        if let Some(parked) = &mut self.parked {
            parked.forget(room, kept);
        }
        before - self.past_len()
    }

    /// Whether a publication is half sent.
    pub(crate) fn owes_delivery(&self) -> bool {
        self.rest_is_delivery
    }

    /// The half-sent publication will count as dropped; its bytes still go out, so that the frame isn't torn.
    pub(crate) fn forget_delivery(&mut self) -> bool {
        std::mem::take(&mut self.rest_is_delivery)
    }
}

/// Publications out of a room's log that one connection is to get.
#[derive(Debug)]
pub(super) struct Past {
    pub room: u32,
    pub epoch: u64,
    /// Never empty.
    pub piece: log::Piece,
}
