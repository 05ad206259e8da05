//! What the kernel counted of connections it could not take: listen queues that were full, and SYNs sent again.
//!
//! Of the network namespace, all its sockets together, from `/proc/net/netstat`.

use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

const PATH: &str = "/proc/net/netstat";

/// A reading, or the difference of two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Netstat {
    /// `ListenOverflows`: a handshake's last packet found the accept queue full.
    pub listen_overflows: u64,
    /// `ListenDrops`: the same, and everything else for which a listener drops a connection.
    pub listen_drops: u64,
    /// `TCPReqQFullDoCookies`: the SYN queue was full, and answered with a cookie.
    pub syn_queue_cookies: u64,
    /// `TCPReqQFullDrop`: the SYN queue was full, and the SYN was dropped.
    pub syn_queue_drops: u64,
    /// `TCPSynRetrans`: SYNs and SYN-ACKs sent again.
    pub syn_retransmits: u64,
    /// `TCPTimeouts`: retransmission timers that ran out.
    pub timeouts: u64,
}

impl Netstat {
    /// As of now.
    pub fn read() -> Result<Self> {
        let text = fs::read_to_string(PATH).with_context(|| format!("reading {PATH}"))?;
        Self::parse(&text).with_context(|| format!("{PATH} holds no TcpExt lines"))
    }

    /// Pairs of lines, names and then values, both after `TcpExt:`. A counter that the kernel doesn't have is 0.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
        let (names, values) = (lines.next()?, lines.next()?);
        let of = |wanted: &str| -> u64 {
            let mut pairs = names.split_ascii_whitespace().zip(values.split_ascii_whitespace());
            let found = pairs.find(|(name, _)| *name == wanted);
            found.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
        };
        Some(Self {
            listen_overflows: of("ListenOverflows"),
            listen_drops: of("ListenDrops"),
            syn_queue_cookies: of("TCPReqQFullDoCookies"),
            syn_queue_drops: of("TCPReqQFullDrop"),
            syn_retransmits: of("TCPSynRetrans"),
            timeouts: of("TCPTimeouts"),
        })
    }

    /// What was counted since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let grown = |of: fn(&Self) -> u64| of(self).saturating_sub(of(before));
        Self {
            listen_overflows: grown(|one| one.listen_overflows),
            listen_drops: grown(|one| one.listen_drops),
            syn_queue_cookies: grown(|one| one.syn_queue_cookies),
            syn_queue_drops: grown(|one| one.syn_queue_drops),
            syn_retransmits: grown(|one| one.syn_retransmits),
            timeouts: grown(|one| one.timeouts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPTimeouts TCPReqQFullDoCookies \
                        TCPReqQFullDrop TCPSynRetrans\nTcpExt: 1 2 3 4 5 6 7\nIpExt: InNoRoutes\nIpExt: 9\n";

    #[test]
    fn counters_are_found_by_name() {
        let found = Netstat::parse(TEXT).unwrap();
        assert_eq!((found.listen_overflows, found.listen_drops, found.timeouts), (2, 3, 4));
        assert_eq!((found.syn_queue_cookies, found.syn_queue_drops, found.syn_retransmits), (5, 6, 7));
    }

    #[test]
    fn a_kernel_without_a_counter_has_none_of_it_and_a_text_without_values_is_refused() {
        let found = Netstat::parse("TcpExt: ListenDrops\nTcpExt: 8\n").unwrap();
        assert_eq!(found, Netstat { listen_drops: 8, ..Netstat::default() });
        assert_eq!(Netstat::parse("TcpExt: ListenDrops\n"), None);
        assert_eq!(Netstat::parse(""), None);
    }

    #[test]
    fn two_readings_have_a_difference() {
        let before = Netstat::parse(TEXT).unwrap();
        let after = Netstat { listen_drops: 10, ..before };
        assert_eq!(after.since(&before), Netstat { listen_drops: 7, ..Netstat::default() });
    }

    #[test]
    fn this_kernel_tells_its_counters() {
        Netstat::read().unwrap();
    }
}
