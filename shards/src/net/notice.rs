//! Notices of a shard as log lines.
//!
//! The logs' writer never waits: in a storm of connections lines are lost, counted, and told.

use std::net::SocketAddr;

use tracing::{Level, enabled};

use super::socket::Socket;
use crate::config::Config;
use crate::notice::{Membership, Notice, Noticed};
use crate::route::plain_name;

/// Which notices anybody will read, under the level that the logs have now.
pub fn noticed(config: &Config) -> Noticed {
    let debug = enabled!(Level::DEBUG);
    let connections = debug || (config.log_connections && enabled!(Level::INFO));
    Noticed { connections, broadcasts: debug }
}

/// The lines of one shard.
#[derive(Debug, Clone, Copy)]
pub struct Journal {
    /// In each line, because its counts are this shard's.
    pub shard: u16,
    /// Connections are logged at info, not at debug.
    pub connections_at_info: bool,
}

/// One event at one of two levels: a level is a part of the place in the code that logs it.
macro_rules! at_info_or_debug {
    ($info:expr, $($rest:tt)+) => {
        if $info { tracing::info!($($rest)+) } else { tracing::debug!($($rest)+) }
    };
}

impl Journal {
    /// Logs `notice`. `socket` is that of the connection it is about, asked for its peer only here.
    pub fn write(self, notice: &Notice, socket: Option<&Socket>) {
        match notice {
            Notice::Opened { membership, members, .. } => {
                let remote = socket.and_then(Socket::peer).map(canonical);
                self.opened(membership, *members, remote);
            }
            Notice::Closed { membership, reason, remaining } => {
                let of_user = membership.is_users_own;
                at_info_or_debug!(
                    self.connections_at_info,
                    username = membership.user.as_deref(),
                    room = room(membership),
                    reason = reason.name(),
                    remaining_for_user = of_user.then_some(remaining),
                    remaining_in_room = (!of_user && membership.room.is_some()).then_some(remaining),
                    shard = self.shard,
                    "connection closed"
                );
            }
            Notice::Broadcast { room, publications, members } => {
                tracing::debug!(
                    room = plain_name(room),
                    members,
                    publications,
                    shard = self.shard,
                    "broadcasting"
                );
            }
        }
    }

    fn opened(self, membership: &Membership, members: usize, remote: Option<SocketAddr>) {
        at_info_or_debug!(
            self.connections_at_info,
            username = membership.user.as_deref(),
            room = room(membership),
            rooms = (membership.rooms > 1).then_some(membership.rooms),
            remote = remote.map(tracing::field::display),
            members = membership.room.is_some().then_some(members),
            shard = self.shard,
            "new WebSocket connection"
        );
    }
}

fn room(membership: &Membership) -> Option<&str> {
    membership.room.as_deref().map(plain_name)
}

/// A listener on `[::]` sees IPv4 peers as `::ffff:a.b.c.d`; people don't.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
