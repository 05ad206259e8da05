//! Which loopback address a connection comes from and which it goes to, so that no pair of them runs out of ports. Pure.
//!
//! TCP tells connections apart by source address, source port, destination address and destination port. The kernel chooses
//! the source port at connect from `ip_local_port_range`, so one pair of addresses holds as many connections to one port as
//! that range has ports, and every further address on either side holds as many again.

use std::net::Ipv4Addr;

/// Connections from one source address: few beside the 28,232 ephemeral ports of Linux's default range, so that ports in
/// TIME_WAIT don't matter and the kernel's search for a free one stays short.
pub const CONNECTIONS_PER_SOURCE: usize = 4_096;
/// Receiver processes with source addresses of their own: 127.64 to 127.191.
const PROCESSES_MAX: usize = 128;
/// Blocks of source addresses of one process: the third number of an address.
const BLOCKS_MAX: usize = 256;

/// The source address of connection `index` of receiver process `process`: 127.64.0.1 and up, never 127.0.0.x, where
/// servers and Redis have their own ports.
pub fn source(process: usize, index: usize) -> Ipv4Addr {
    let block = index / CONNECTIONS_PER_SOURCE % BLOCKS_MAX;
    Ipv4Addr::new(127, 64 + (process % PROCESSES_MAX) as u8, block as u8, 1)
}

/// The `count` destination addresses: 127.0.0.1 and up.
pub fn destinations(count: u8) -> Vec<Ipv4Addr> {
    (1..=count.max(1)).map(|last| Ipv4Addr::new(127, 0, 0, last)).collect()
}

/// How many connections the pairs of addresses hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Places {
    /// Different source addresses.
    pub sources: usize,
    /// Different destination addresses.
    pub destinations: usize,
    /// Ports of a pair: the size of `ip_local_port_range`.
    pub ports: usize,
    /// Connections between the busiest pair.
    pub busiest_pair: usize,
}

impl Places {
    /// For processes with so many connections each, spread over destinations in turn.
    pub fn of(connections_by_process: &[usize], destinations: usize, ports: usize) -> Self {
        let destinations = destinations.max(1);
        let sources = connections_by_process.iter().map(|one| one.div_ceil(CONNECTIONS_PER_SOURCE)).sum();
        let most = connections_by_process.iter().copied().max().unwrap_or(0);
        let busiest_pair = most.min(CONNECTIONS_PER_SOURCE).div_ceil(destinations);
        Self { sources, destinations, ports, busiest_pair }
    }

    /// Connections that fit in all.
    pub fn all(&self) -> usize {
        self.sources * self.destinations * self.ports
    }

    /// Whether each pair has twice as many ports as connections: the kernel looks at ports of one parity first (`connect()`
    /// leaves the others to `bind()`), and those of an earlier run may still be in TIME_WAIT.
    pub fn is_ample(&self) -> bool {
        self.busiest_pair * 2 <= self.ports
    }
}

/// The number of ports in the text of `/proc/sys/net/ipv4/ip_local_port_range`: two numbers, both inclusive.
pub fn ports_in_range(text: &str) -> Option<usize> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse::<usize>);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (last + 1).checked_sub(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn no_pair_of_addresses_holds_more_than_the_arithmetic_says() {
        let processes = [9_001, 8_999, 12_288];
        let to = destinations(3);
        let places = Places::of(&processes, to.len(), 28_232);
        let mut pairs = BTreeMap::<(Ipv4Addr, Ipv4Addr), usize>::new();
        for (process, connections) in processes.iter().enumerate() {
            for index in 0..*connections {
                *pairs.entry((source(process, index), to[index % to.len()])).or_default() += 1;
            }
        }
        let from: std::collections::BTreeSet<_> = pairs.keys().map(|(from, _)| from).collect();
        assert_eq!((places.sources, places.destinations), (from.len(), 3));
        assert_eq!(places.busiest_pair, pairs.values().copied().max().unwrap());
        assert_eq!(places.all(), 9 * 3 * 28_232);
        assert!(places.is_ample());
    }

    #[test]
    fn a_range_of_few_ports_is_not_ample() {
        assert!(!Places::of(&[4_096], 1, 8_000).is_ample());
        assert!(Places::of(&[4_096], 2, 8_000).is_ample());
        assert!(Places::of(&[], 1, 1).is_ample());
    }

    #[test]
    fn a_port_range_holds_both_its_ends() {
        assert_eq!(ports_in_range("32768\t60999\n"), Some(28_232));
        assert_eq!(ports_in_range("1024 1024"), Some(1));
        assert_eq!(ports_in_range("32768"), None);
        assert_eq!(ports_in_range("9 7"), None);
    }

    #[test]
    fn sources_never_meet_the_servers_addresses() {
        for process in [0, 1, 127, 128, 1_000] {
            let address = source(process, 0).octets();
            assert!(address[0] == 127 && (64..192).contains(&address[1]), "{address:?}");
        }
        assert_eq!(destinations(0), [Ipv4Addr::new(127, 0, 0, 1)]);
    }
}
