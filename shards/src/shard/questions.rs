//! Questions to the relay for rooms' pasts: which are open, and which wait until one of these is answered.
//!
//! Who asks and leaves again and again has its questions taken back, and asks no more while too many of them are open.

use std::collections::{HashMap, VecDeque};

use crate::command::ConnectionId;

/// A question that waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deferred {
    /// Index of its room.
    pub room: u32,
    pub id: ConnectionId,
    /// See [`Recover::ticket`](crate::command::Recover::ticket).
    pub ticket: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    /// Who asked, by ticket.
    open: HashMap<u64, ConnectionId, foldhash::fast::FixedState>,
    deferred: VecDeque<Deferred>,
    /// Questions of each connection, open or deferred, those included that it has given up.
    of: HashMap<ConnectionId, u32, foldhash::fast::FixedState>,
}

impl Questions {
    /// Questions that the relay has not answered.
    pub(crate) fn open_len(&self) -> usize {
        self.open.len()
    }

    /// Questions of a connection, those included that it has given up and nobody has answered.
    pub(crate) fn len_of(&self, id: ConnectionId) -> usize {
        self.of.get(&id).map_or(0, |len| *len as usize)
    }

    /// Whether the relay is asked.
    pub(crate) fn is_open(&self, ticket: u64) -> bool {
        self.open.contains_key(&ticket)
    }

    /// Opens a question, or defers it where `open_max` are open. Returns whether it is to be asked now.
    pub(crate) fn open(&mut self, question: Deferred, open_max: usize) -> bool {
        *self.of.entry(question.id).or_default() += 1;
        let is_asked = self.open.len() < open_max;
        if is_asked {
            self.open.insert(question.ticket, question.id);
        } else {
            self.deferred.push_back(question);
        }
        is_asked
    }

    /// A question is answered.
    pub(crate) fn close(&mut self, ticket: u64) {
        if let Some(id) = self.open.remove(&ticket) {
            self.forget(id);
        }
    }

    /// The longest deferred question, if it may be asked now. Either [`open`](Self::open) it or not: it is forgotten here.
    pub(crate) fn take_deferred(&mut self, open_max: usize) -> Option<Deferred> {
        if self.open.len() >= open_max {
            return None;
        }
        let question = self.deferred.pop_front()?;
        self.forget(question.id);
        Some(question)
    }

    fn forget(&mut self, id: ConnectionId) {
        let Some(len) = self.of.get_mut(&id) else { return };
        *len -= 1;
        if *len == 0 {
            self.of.remove(&id);
        }
    }
}
