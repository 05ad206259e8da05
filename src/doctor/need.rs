//! What a configuration asks of its host, worked out as the server itself would.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use shards::config::{BrokerChoice, Config};
use shards::limits::{
    LAST_VALUE_BYTES_MAX, NODE_LOG_BYTES_MAX, PUBLISH_INFLIGHT_BYTES_MAX, SHARD_BACKLOG_BYTES_MAX,
    SHARD_INPUT_BYTES_MAX, SHARD_WINDOW_BYTES_MAX, descriptors_reserved,
};
use shards::net::{Plan, chosen_cores, split};

use crate::footprint;

/// What a connection pins whose client acknowledges nothing: ten segments under way, 16 KiB of TCP_NOTSENT_LOWAT, and
/// the buffer that crossed it (45 KiB in 13 pages of 4 KiB, measured over an MTU of 1,500 that went away). One that
/// acknowledges and does not read pins five (`limits.rs`).
pub const STUCK_BYTES: u64 = 13 * 4096;
/// One in so many connections is taken to be stuck at once, when room is worked out: a network that went away for a tenth.
pub const STUCK_ONE_IN: u64 = 10;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// Connections that are wanted, of all processes together.
    pub connections: u64,
    /// Where that number comes from.
    pub wanted_by: WantedBy,
    /// Cores of each process, at least one.
    pub processes: Vec<Plan>,
    /// Why the server would refuse the cores it is given.
    pub refused_cores: Option<String>,
    /// Cores that may be used.
    pub usable_cores: Vec<usize>,
    /// Descriptors of a process beside those of its connections.
    pub descriptors_reserved: u64,
    /// Public addresses, then the admin address.
    pub addresses: Vec<SocketAddr>,
    /// Processes that share the public addresses reach each other's clients.
    pub has_redis: bool,
    /// The server doesn't refuse huge pages.
    pub takes_huge_pages: bool,
    /// The unit of `tcp_mem`: 4 KiB, or 16 or 64 on some arm64 kernels.
    pub page_bytes: u64,
}

/// See [`Need::wanted_by`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WantedBy {
    /// `--connections`.
    Flag,
    /// `--connections-max`.
    Bound,
    /// What the hard limit of descriptors leaves, less than the bound.
    Descriptors,
}

impl Need {
    /// Of `config` on a host that gives this process `usable` cores and `descriptors` at most (`None`: no limit).
    pub fn of(config: &Config, wanted: Option<u64>, usable: &[usize], descriptors: Option<u64>) -> Self {
        let (cores, refused_cores) = match chosen_cores(config, usable) {
            Ok(cores) => (cores, None),
            Err(error) => (config.cores.clone().unwrap_or_else(|| vec![0]), Some(error.to_string())),
        };
        let count = config.processes.max(1);
        let processes: Vec<Plan> =
            split(&cores, count).iter().map(|own| Plan::new(own, config.shards)).collect();
        let shards_most = processes.iter().map(|plan| plan.shards.len()).max().unwrap_or(1);
        let broker = config.broker.descriptors();
        let reserved = descriptors_reserved(shards_most, config.admin.is_some(), broker) as u64;
        let bound = config.bounds.connections_max as u64;
        let fit = descriptors.map(|limit| limit.saturating_sub(reserved).max(1));
        let (connections, wanted_by) = match (wanted, fit) {
            (Some(wanted), _) => (wanted, WantedBy::Flag),
            (None, Some(fit)) if fit < bound => (fit.saturating_mul(count as u64), WantedBy::Descriptors),
            (None, _) => (bound.saturating_mul(count as u64), WantedBy::Bound),
        };
        Self {
            connections,
            wanted_by,
            processes,
            refused_cores,
            usable_cores: usable.to_vec(),
            descriptors_reserved: reserved,
            addresses: config.listen.iter().copied().chain(config.admin).collect(),
            has_redis: matches!(config.broker, BrokerChoice::Redis(_)),
            takes_huge_pages: config.expert.huge_pages,
            page_bytes: rustix::param::page_size() as u64,
        }
    }

    /// Shards of all processes.
    pub fn shards(&self) -> u64 {
        self.shard_cores().len() as u64
    }

    /// Core of each shard of all processes.
    pub fn shard_cores(&self) -> Vec<usize> {
        self.processes.iter().flat_map(|plan| plan.shards.iter().copied()).collect()
    }

    /// Threads with a core of their own: shards, and relays that don't live with one.
    pub fn pinned_threads(&self) -> usize {
        self.processes.iter().map(|plan| plan.shards.len() + usize::from(plan.relay.is_some())).sum()
    }

    /// Connections of the process that has most, where they spread evenly.
    pub fn connections_of_a_process(&self) -> u64 {
        self.connections.div_ceil(self.processes.len() as u64)
    }

    /// Descriptors of that process.
    pub fn descriptors(&self) -> u64 {
        self.connections_of_a_process().saturating_add(self.descriptors_reserved)
    }

    /// Descriptors of all processes.
    pub fn descriptors_of_all(&self) -> u64 {
        self.connections.saturating_add(self.descriptors_reserved * self.processes.len() as u64)
    }

    /// Every core that is pinned to, ascending, each once.
    pub fn pinned_cores(&self) -> Vec<usize> {
        let cores = self.processes.iter().flat_map(|plan| plan.shards.iter().copied().chain(plan.relay));
        cores.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Memory of so many idle connections, the kernel's and ours.
    pub fn idle_bytes(&self) -> u64 {
        footprint::idle_bytes(self.connections)
    }

    /// The most that the bounds inside the engine let all processes hold beside that: windows of slow readers, halves of messages and
    /// rings of each shard; of each process the logs, and what is on its way to Redis.
    pub fn budget_bytes(&self) -> u64 {
        let shard = SHARD_WINDOW_BYTES_MAX + SHARD_INPUT_BYTES_MAX + SHARD_BACKLOG_BYTES_MAX;
        let node = NODE_LOG_BYTES_MAX + PUBLISH_INFLIGHT_BYTES_MAX + LAST_VALUE_BYTES_MAX;
        self.shards() * shard as u64 + self.processes.len() as u64 * node as u64
    }

    /// The flag that keeps as many processes as there are; nothing for one.
    pub fn several(&self) -> String {
        match self.processes.len() {
            1 => String::new(),
            processes => format!(" --processes {processes}"),
        }
    }

    /// Pages of TCP's buffers at worst: one for a message on its way to each connection, and what those pin that are stuck.
    /// `tuning/knobs.toml` has the same as a formula.
    pub fn tcp_pages(&self) -> u64 {
        self.connections.saturating_add(self.stuck_bytes().div_ceil(self.page_bytes))
    }

    /// What those pin that are stuck, a page each at least.
    pub fn stuck_bytes(&self) -> u64 {
        self.stuck_connections().saturating_mul(STUCK_BYTES.max(self.page_bytes))
    }

    /// As many connections as `pages` of TCP's buffers are enough for.
    pub fn connections_in(&self, pages: u64) -> u64 {
        let tenth_bytes = STUCK_ONE_IN * self.page_bytes + STUCK_BYTES.max(self.page_bytes);
        pages.saturating_mul(STUCK_ONE_IN * self.page_bytes) / tenth_bytes
    }

    /// Connections that are taken to be stuck at once.
    pub fn stuck_connections(&self) -> u64 {
        self.connections / STUCK_ONE_IN
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Of a default configuration with `connections` wanted, on four cores and 1,000,000 descriptors.
    pub fn need(connections: u64) -> Need {
        let need = Need::of(&Config::default(), Some(connections), &[0, 1, 2, 3], Some(1_000_000));
        // Whatever machine tests it.
        Need { page_bytes: 4096, ..need }
    }

    #[test]
    fn large_pages_are_fewer_and_one_holds_what_a_stuck_connection_pins() {
        let pages = |page_bytes| Need { page_bytes, ..need(1000) }.tcp_pages();
        assert_eq!([4096, 16_384, 65_536].map(pages), [2300, 1325, 1100]);
        for page_bytes in [4096, 16_384, 65_536] {
            let need = Need { page_bytes, ..need(1_000_000) };
            assert_eq!(need.connections_in(need.tcp_pages()), 1_000_000);
        }
    }

    #[test]
    fn what_is_wanted_is_the_flag_or_the_bound_or_what_descriptors_leave() {
        let config = Config::default();
        let wanted = |flag, descriptors| {
            let need = Need::of(&config, flag, &[0, 1], descriptors);
            (need.connections, need.wanted_by)
        };
        assert_eq!(wanted(Some(5_000_000), Some(1024)), (5_000_000, WantedBy::Flag));
        assert_eq!(wanted(None, None), (1_000_000, WantedBy::Bound));
        // 24 of the process and 16 of each of two shards are not for connections.
        assert_eq!(wanted(None, Some(1024)), (968, WantedBy::Descriptors));
        assert_eq!(wanted(None, Some(10)), (1, WantedBy::Descriptors));
    }

    #[test]
    fn cores_are_those_that_the_server_would_take() {
        assert_eq!(need(1).processes, [Plan { shards: vec![0, 1, 2], relay: Some(3) }]);
        let config = Config { cores: Some(vec![9, 10]), ..Config::default() };
        let refused = Need::of(&config, Some(1), &[0, 1], None);
        assert!(refused.refused_cores.is_some_and(|why| why.contains("core 9")));
        assert_eq!(refused.processes, [Plan { shards: vec![9, 10], relay: None }]);
    }

    #[test]
    fn several_processes_divide_cores_and_connections_and_each_has_its_own_reserve() {
        let config = Config { processes: 2, ..Config::default() };
        let need = Need::of(&config, Some(9999), &[0, 1, 2, 3], Some(1024));
        assert_eq!((need.shard_cores(), need.pinned_threads()), (vec![0, 1, 2, 3], 4));
        // 24 of a process and 16 of each of its two shards.
        assert_eq!((need.connections_of_a_process(), need.descriptors()), (5000, 5056));
        assert_eq!(need.descriptors_of_all(), 9999 + 2 * 56);
        assert_eq!(need.budget_bytes(), (4 * 160 + 2 * 304) << 20);
        let unasked = Need::of(&config, None, &[0, 1, 2, 3], Some(1056));
        assert_eq!((unasked.connections, unasked.wanted_by), (2000, WantedBy::Descriptors));
    }
}
