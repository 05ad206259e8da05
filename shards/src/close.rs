//! Why a connection ends: one reason, its close code on the wire, its name in metrics.
//!
//! This table is the operator's manual of disconnects; docs/PROTOCOL.md prints it and a test compares the two.

/// Why the server ended a connection (or saw it end). Codes: RFC 6455 section 7.4 and the IANA registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CloseReason {
    /// The peer closed with a Close frame, or ended TCP after one.
    PeerClosed,
    /// TCP ended or broke without a Close frame.
    PeerVanished,
    /// The request head did not arrive in time.
    HandshakeTimeout,
    /// The request was answered with an HTTP error or was a plain HTTP request.
    HttpDone,
    /// Nothing of the answer to an HTTP request was taken for longer than the handshake timeout.
    AnswerUnread,
    /// The server is draining.
    GoingAway,
    /// The server is draining, and another process listens on its addresses or the service manager holds its sockets.
    ServiceRestart,
    /// A frame broke RFC 6455.
    ProtocolError,
    /// A text message was not UTF-8.
    InvalidUtf8,
    /// A message was longer than its bound.
    MessageTooBig,
    /// A message came in too many, too small fragments.
    TooManyFragments,
    /// The route does not let this connection publish.
    PublishNotAllowed,
    /// Nothing came for longer than the pong timeout.
    PongTimeout,
    /// Further behind than the room class allows, in frames.
    SlowFrames,
    /// Further behind than the room class allows, in bytes.
    SlowBytes,
    /// Further behind than the room class allows, in age.
    SlowAge,
    /// More drops in a row than `disconnect_after`.
    SlowDrops,
    /// The shard's budget for windows is spent and this connection was furthest behind.
    SlowShardBudget,
    /// The shard's budget for requests and messages that aren't whole is spent and this connection held most of it.
    InputShardBudget,
    /// A bug of ours that one connection can survive on its own.
    Internal,
}

impl CloseReason {
    /// Every reason, in the order of the metrics' label.
    pub const ALL: [CloseReason; 20] = [
        Self::PeerClosed,
        Self::PeerVanished,
        Self::HandshakeTimeout,
        Self::HttpDone,
        Self::AnswerUnread,
        Self::GoingAway,
        Self::ServiceRestart,
        Self::ProtocolError,
        Self::InvalidUtf8,
        Self::MessageTooBig,
        Self::TooManyFragments,
        Self::PublishNotAllowed,
        Self::PongTimeout,
        Self::SlowFrames,
        Self::SlowBytes,
        Self::SlowAge,
        Self::SlowDrops,
        Self::SlowShardBudget,
        Self::InputShardBudget,
        Self::Internal,
    ];

    /// Whether the connection did not take what it was owed.
    pub const fn is_slow(self) -> bool {
        matches!(
            self,
            Self::SlowFrames | Self::SlowBytes | Self::SlowAge | Self::SlowDrops | Self::SlowShardBudget
        )
    }

    /// The close code of the raw and JSON dialects; `None` where no Close frame is sent.
    pub const fn code(self) -> Option<u16> {
        match self {
            Self::PeerClosed
            | Self::PeerVanished
            | Self::HandshakeTimeout
            | Self::HttpDone
            | Self::AnswerUnread => None,
            Self::GoingAway => Some(1001),
            Self::ServiceRestart => Some(1012),
            Self::ProtocolError => Some(1002),
            Self::InvalidUtf8 => Some(1007),
            Self::MessageTooBig => Some(1009),
            Self::TooManyFragments | Self::PublishNotAllowed | Self::PongTimeout => Some(1008),
            Self::SlowFrames
            | Self::SlowBytes
            | Self::SlowAge
            | Self::SlowDrops
            | Self::SlowShardBudget
            | Self::InputShardBudget => Some(1013),
            Self::Internal => Some(1011),
        }
    }

    /// The label in `corecast_connections_closed_total{reason}`, and the text of the Close frame.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PeerClosed => "peer_closed",
            Self::PeerVanished => "peer_vanished",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::HttpDone => "http_done",
            Self::AnswerUnread => "answer_unread",
            Self::GoingAway => "going_away",
            Self::ServiceRestart => "service_restart",
            Self::ProtocolError => "protocol_error",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::MessageTooBig => "message_too_big",
            Self::TooManyFragments => "too_many_fragments",
            Self::PublishNotAllowed => "publish_not_allowed",
            Self::PongTimeout => "pong_timeout",
            Self::SlowFrames => "slow_frames",
            Self::SlowBytes => "slow_bytes",
            Self::SlowAge => "slow_age",
            Self::SlowDrops => "slow_drops",
            Self::SlowShardBudget => "slow_shard_budget",
            Self::InputShardBudget => "input_shard_budget",
            Self::Internal => "internal",
        }
    }
}

/// Whether a peer may send `code` in a Close frame.
///
/// Not 0-999, 1004-1006, 1015-2999 and above 4999 (RFC 6455 section 7.4.1 and 7.4.2): those are answered with 1002.
pub const fn code_is_allowed_from_peer(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_stands_at_its_own_index() {
        for (index, reason) in CloseReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index, "{reason:?} is counted under another's label");
        }
    }

    #[test]
    fn codes_we_send_are_codes_a_peer_may_send() {
        for code in CloseReason::ALL.iter().filter_map(|reason| reason.code()) {
            assert!(code_is_allowed_from_peer(code), "{code} would be a protocol error to a strict client");
        }
    }
}
