//! Counters of the TCP of a network namespace.

use crate::Root;

/// Connections that a full listen queue lost, since the namespace was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ListenCounters {
    /// `ListenOverflows`: the queue of finished handshakes was full.
    pub overflows: u64,
    /// `ListenDrops`: SYNs dropped by a listener for any reason, overflows included.
    pub drops: u64,
}

impl ListenCounters {
    /// `None` where the kernel doesn't tell.
    pub fn read(root: &Root) -> Option<Self> {
        Self::parse(&root.read("/proc/net/netstat").ok()?)
    }

    /// Out of the text of `/proc/net/netstat`: a line of names, then a line of as many values.
    pub fn parse(netstat: &str) -> Option<Self> {
        let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
        let (names, values) = (lines.next()?, lines.next()?);
        let value = |name: &str| -> Option<u64> {
            let index = names.split_whitespace().position(|found| found == name)?;
            values.split_whitespace().nth(index)?.parse().ok()
        };
        Some(Self { overflows: value("ListenOverflows")?, drops: value("ListenDrops")? })
    }
}

/// TCP sockets and what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpSockets {
    /// Of this namespace, listeners included.
    pub in_use: u64,
    /// In TIME-WAIT, of this namespace.
    pub time_wait: u64,
    /// Pages in buffers of the whole host: what `net.ipv4.tcp_mem` bounds.
    pub buffer_pages: u64,
}

impl TcpSockets {
    /// `None` where the kernel doesn't tell.
    pub fn read(root: &Root) -> Option<Self> {
        Self::parse(&root.read("/proc/net/sockstat").ok()?)
    }

    /// Out of the text of `/proc/net/sockstat`.
    pub fn parse(sockstat: &str) -> Option<Self> {
        let line = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
        let value = |name: &str| -> Option<u64> {
            line.split_whitespace().skip_while(|word| *word != name).nth(1)?.parse().ok()
        };
        Some(Self { in_use: value("inuse")?, time_wait: value("tw")?, buffer_pages: value("mem")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name_wherever_they_stand() {
        let text = "TcpExt: SyncookiesSent ListenOverflows Other ListenDrops\nTcpExt: 1 22 3 44\nIpExt: InNoRoutes\nIpExt: 7\n";
        assert_eq!(ListenCounters::parse(text), Some(ListenCounters { overflows: 22, drops: 44 }));
        for broken in
            ["", "TcpExt: ListenOverflows ListenDrops\n", "TcpExt: ListenOverflows ListenDrops\nTcpExt: 1\n"]
        {
            assert_eq!(ListenCounters::parse(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn sockets_are_counted_with_their_buffers() {
        let text =
            "sockets: used 2079\nTCP: inuse 2039 orphan 0 tw 42 alloc 2049 mem 49\nUDP: inuse 0 mem 0\n";
        let expected = TcpSockets { in_use: 2039, time_wait: 42, buffer_pages: 49 };
        assert_eq!(TcpSockets::parse(text), Some(expected));
        assert_eq!(TcpSockets::parse("UDP: inuse 0 mem 0\n"), None);
    }
}
