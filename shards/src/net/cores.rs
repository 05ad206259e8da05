//! Which core each shard is pinned to, and the relay, in one process and in several.

use super::server::StartError;
use crate::config::{Config, ShardCount};
use crate::limits::SHARDS_MAX;

/// The cores of one process, shards first; one more is the relay's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Core of each shard.
    pub shards: Vec<usize>,
    /// Core of the relay's own thread; `None` where it lives on shard 0's.
    pub relay: Option<usize>,
}

impl Plan {
    /// One process on `cores`, not empty: a shard for each, and where there are three or more the last is the relay's,
    /// unless `count` says how many shards there are.
    pub fn new(cores: &[usize], count: ShardCount) -> Self {
        let shards = match count {
            ShardCount::Count(shards) => shards,
            ShardCount::Auto if cores.len() >= 3 => cores.len() - 1,
            ShardCount::Auto => cores.len(),
        };
        let shards = shards.clamp(1, SHARDS_MAX);
        let relay = cores.get(shards).copied();
        Self { shards: (0..shards).map(|shard| cores[shard % cores.len()]).collect(), relay }
    }
}

/// The cores of each of `processes` processes: neighbours together, the first have one more where they don't come out even.
/// More processes than cores take turns.
pub fn split(cores: &[usize], processes: usize) -> Vec<Vec<usize>> {
    if cores.len() < processes {
        return (0..processes).map(|process| vec![cores[process % cores.len()]]).collect();
    }
    let (each, more) = (cores.len() / processes, cores.len() % processes);
    let mut rest = cores;
    let mut take = |process| {
        let (own, others) = rest.split_at(each + usize::from(process < more));
        rest = others;
        own.to_vec()
    };
    (0..processes).map(&mut take).collect()
}

/// [`chosen`] of the cores that this process may run on.
///
/// # Errors
/// As there.
pub fn usable(config: &Config) -> Result<Vec<usize>, StartError> {
    let usable = core_affinity::get_core_ids().unwrap_or_default();
    chosen(config, &usable.iter().map(|core| core.id).collect::<Vec<_>>())
}

/// The cores that `config` names, or else all `usable` ones; these are none where the kernel doesn't tell.
///
/// # Errors
/// [`StartError::Core`] for one that is not usable.
pub fn chosen(config: &Config, usable: &[usize]) -> Result<Vec<usize>, StartError> {
    let cores = match &config.cores {
        Some(cores) => cores.clone(),
        None if usable.is_empty() => vec![0],
        None => usable.to_vec(),
    };
    match cores.iter().copied().find(|core| !usable.is_empty() && !usable.contains(core)) {
        Some(core) => Err(StartError::Core { core, usable: usable.to_vec() }),
        None => Ok(cores),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_leaves_a_core_to_the_relay_from_three_on() {
        let plan = |cores: &[usize], count| {
            let plan = Plan::new(cores, count);
            (plan.shards, plan.relay)
        };
        assert_eq!(plan(&[4], ShardCount::Auto), (vec![4], None));
        assert_eq!(plan(&[4, 5], ShardCount::Auto), (vec![4, 5], None));
        assert_eq!(plan(&[4, 5, 6], ShardCount::Auto), (vec![4, 5], Some(6)));
        assert_eq!(plan(&[4, 5], ShardCount::Count(1)), (vec![4], Some(5)));
        assert_eq!(plan(&[4, 5], ShardCount::Count(3)), (vec![4, 5, 4], None));
    }

    #[test]
    fn processes_get_cores_of_their_own_neighbours_together() {
        let cores: Vec<usize> = (0..7).collect();
        assert_eq!(split(&cores, 1), std::slice::from_ref(&cores));
        assert_eq!(split(&cores, 3), [vec![0, 1, 2], vec![3, 4], vec![5, 6]]);
        assert_eq!(split(&cores[..4], 2), [vec![0, 1], vec![2, 3]]);
    }

    #[test]
    fn more_processes_than_cores_take_turns() {
        assert_eq!(split(&[8, 9], 3), [vec![8], vec![9], vec![8]]);
    }

    #[test]
    fn every_core_belongs_to_exactly_one_process() {
        for cores in 1..40usize {
            for processes in 1..=cores {
                let all: Vec<usize> = (0..cores).collect();
                let split = split(&all, processes);
                assert_eq!(split.concat(), all, "{cores} cores, {processes} processes");
                let lens = split.iter().map(Vec::len);
                assert!(lens.clone().max().zip(lens.min()).is_some_and(|(max, min)| max - min <= 1));
            }
        }
    }
}
