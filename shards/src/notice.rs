//! What happened on a shard that somebody may want to read in a log. The shard hands it out, `net` logs it.
//!
//! A shard makes notices only where [`Noticed`] says that they will be read, so that nobody pays for lines that are not
//! written.

use std::sync::Arc;

use crate::close::CloseReason;
use crate::command::ConnectionId;

/// Which notices are made; settled once, at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Noticed {
    /// WebSockets that come and go.
    pub connections: bool,
    /// Publications that are sent to rooms.
    pub broadcasts: bool,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A WebSocket is open: its 101 is on its way.
    Opened {
        /// Which; its socket is there until the notice is taken.
        id: ConnectionId,
        /// Who and where.
        membership: Membership,
        /// Members of the room on this shard, this one included.
        members: usize,
    },
    /// A WebSocket has ended, or is being closed.
    Closed {
        /// Who and where.
        membership: Membership,
        /// Why.
        reason: CloseReason,
        /// Members of the room that are left on this shard.
        remaining: usize,
    },
    /// Publications were sent, or are owed, to the members of a room.
    Broadcast {
        /// Full name of the room.
        room: Arc<str>,
        /// How many publications.
        publications: u64,
        /// Members on this shard.
        members: usize,
    },
}

/// A connection's place among the rooms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Name of the user, where the route knows one.
    pub user: Option<Box<str>>,
    /// Full name of the first room it is in; `None` for connections that join by message and are in none.
    pub room: Option<Arc<str>>,
    /// How many rooms it is in.
    pub rooms: usize,
    /// Its route names room and user by the same text: the room's members are the user's connections.
    pub is_users_own: bool,
}
