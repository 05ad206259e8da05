//! Network interfaces: how many queues bring packets in, and whether the kernel spreads them.

use crate::Root;

/// One interface, loopback left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// `eth0`.
    pub name: String,
    /// Receive queues.
    pub queues: usize,
    /// Of these how many are spread over cores by software (RPS).
    pub spread_queues: usize,
}

impl Interface {
    /// All but loopback, by name.
    pub fn read_all(root: &Root) -> Vec<Self> {
        let names = root.names("/sys/class/net").into_iter().filter(|name| name != "lo");
        names.map(|name| Self::read(root, name)).collect()
    }

    fn read(root: &Root, name: String) -> Self {
        let folder = format!("/sys/class/net/{name}/queues");
        let queues: Vec<String> =
            root.names(&folder).into_iter().filter(|queue| queue.starts_with("rx-")).collect();
        // A mask of cores in hexadecimal, in groups of eight digits; zeros are "off".
        let is_spread = |queue: &&String| {
            root.read(&format!("{folder}/{queue}/rps_cpus"))
                .is_ok_and(|mask| mask.chars().any(|digit| !matches!(digit, '0' | ',')))
        };
        let spread_queues = queues.iter().filter(is_spread).count();
        Self { name, queues: queues.len(), spread_queues }
    }
}
