//! What a configuration asks of its host, worked out as the server itself would.

use std::net::SocketAddr;

use shards::config::{BrokerChoice, Config, ShardCount};
use shards::limits::{
    LAST_VALUE_BYTES_MAX, NODE_LOG_BYTES_MAX, PUBLISH_INFLIGHT_BYTES_MAX, SHARD_BACKLOG_BYTES_MAX,
    SHARD_INPUT_BYTES_MAX, SHARD_WINDOW_BYTES_MAX, descriptors_reserved,
};
use shards::net::{Plan, chosen_cores};

/// What the kernel holds for an idle connection: socket, inode, descriptor, epoll or poll entry (measured, Linux 6.18).
pub const KERNEL_BYTES: u64 = 4200;
/// What corecast holds for one: 706 B where each is in a room of its own, less where rooms are shared (README, measured).
pub const USER_BYTES: u64 = 706;
/// What one connection pins in the kernel whose client stopped reading: 16 KiB of TCP_NOTSENT_LOWAT and the message that
/// crossed it (`limits.rs`, measured).
pub const STUCK_KERNEL_BYTES: u64 = 20 * 1024;
/// One in so many connections is taken to be stuck at once, when room is worked out: a network that failed for a tenth.
pub const STUCK_ONE_IN: u64 = 10;
/// The unit of `tcp_mem` (page of the machines this runs on).
pub const PAGE_BYTES: u64 = 4096;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// Connections that are wanted.
    pub connections: u64,
    /// Where that number comes from.
    pub wanted_by: WantedBy,
    /// Core of each shard.
    pub shard_cores: Vec<usize>,
    /// Core of the relay; `None` where it lives on shard 0's.
    pub relay_core: Option<usize>,
    /// Why the server would refuse the cores it is given.
    pub refused_cores: Option<String>,
    /// Cores that may be used.
    pub usable_cores: Vec<usize>,
    /// Descriptors beside those of connections.
    pub descriptors_reserved: u64,
    /// Public addresses, then the admin address.
    pub addresses: Vec<SocketAddr>,
    /// Processes that share the public addresses reach each other's clients.
    pub has_redis: bool,
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
        let planned = chosen_cores(config, usable).map(|cores| Plan::new(&cores, config.shards));
        let (shard_cores, relay_core, refused_cores) = match planned {
            Ok(Plan { shards, relay }) => (shards, relay, None),
            Err(error) => (asked_cores(config), None, Some(error.to_string())),
        };
        let reserved = descriptors_reserved(shard_cores.len(), config.admin.is_some()) as u64;
        let bound = config.bounds.connections_max as u64;
        let fit = descriptors.map(|limit| limit.saturating_sub(reserved).max(1));
        let (connections, wanted_by) = match (wanted, fit) {
            (Some(wanted), _) => (wanted, WantedBy::Flag),
            (None, Some(fit)) if fit < bound => (fit, WantedBy::Descriptors),
            (None, _) => (bound, WantedBy::Bound),
        };
        Self {
            connections,
            wanted_by,
            shard_cores,
            relay_core,
            refused_cores,
            usable_cores: usable.to_vec(),
            descriptors_reserved: reserved,
            addresses: config.listen.iter().copied().chain(config.admin).collect(),
            has_redis: matches!(config.broker, BrokerChoice::Redis(_)),
        }
    }

    /// Shards.
    pub fn shards(&self) -> u64 {
        self.shard_cores.len() as u64
    }

    /// Descriptors in all.
    pub fn descriptors(&self) -> u64 {
        self.connections.saturating_add(self.descriptors_reserved)
    }

    /// Every core that is pinned to, ascending, each once.
    pub fn pinned_cores(&self) -> Vec<usize> {
        let mut cores: Vec<usize> = self.shard_cores.iter().copied().chain(self.relay_core).collect();
        cores.sort_unstable();
        cores.dedup();
        cores
    }

    /// Memory of so many idle connections, the kernel's and ours.
    pub fn idle_bytes(&self) -> u64 {
        self.connections.saturating_mul(KERNEL_BYTES + USER_BYTES)
    }

    /// The most that the bounds inside the engine let it hold beside that: windows of slow readers, halves of messages and
    /// rings of each shard, the logs, and what is on its way to Redis.
    pub fn budget_bytes(&self) -> u64 {
        let shard = SHARD_WINDOW_BYTES_MAX + SHARD_INPUT_BYTES_MAX + SHARD_BACKLOG_BYTES_MAX;
        let node = NODE_LOG_BYTES_MAX + PUBLISH_INFLIGHT_BYTES_MAX + LAST_VALUE_BYTES_MAX;
        self.shards() * shard as u64 + node as u64
    }

    /// Connections that are taken to be stuck at once.
    pub fn stuck_connections(&self) -> u64 {
        self.connections / STUCK_ONE_IN
    }
}

/// What the configuration would have, where its cores are refused.
fn asked_cores(config: &Config) -> Vec<usize> {
    let cores = config.cores.clone().unwrap_or_else(|| vec![0]);
    let shards = match config.shards {
        ShardCount::Count(shards) => shards,
        ShardCount::Auto => cores.len(),
    };
    (0..shards.max(1)).map(|shard| cores[shard % cores.len().max(1)]).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Of a default configuration with `connections` wanted, on four cores and 1,000,000 descriptors.
    pub fn need(connections: u64) -> Need {
        Need::of(&Config::default(), Some(connections), &[0, 1, 2, 3], Some(1_000_000))
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
        let four = need(1);
        assert_eq!((four.shard_cores.as_slice(), four.relay_core), ([0, 1, 2].as_slice(), Some(3)));
        let config = Config { cores: Some(vec![9, 10]), ..Config::default() };
        let refused = Need::of(&config, Some(1), &[0, 1], None);
        assert!(refused.refused_cores.is_some_and(|why| why.contains("core 9")));
        assert_eq!(refused.shard_cores, [9, 10]);
    }
}
