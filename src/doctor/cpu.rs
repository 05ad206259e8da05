//! Cores against the pins of shards and relay.

use std::collections::BTreeSet;

use host::{Core, Cpus, Interface, Root};
use shards::net::Plan;

use super::finding::{Finding, list};
use super::need::Need;

const PINS: &str = "cpu.pins";
const RELAY: &str = "cpu.relay";
const SIBLINGS: &str = "cpu.siblings";
const NODES: &str = "cpu.nodes";
const ISOLATED: &str = "cpu.isolated";
const GOVERNOR: &str = "cpu.governor";
const INTERRUPTS: &str = "cpu.interrupts";
/// From so many cores on the relay gets one of its own, unless the configuration takes all of them.
const CORES_FOR_RELAY: usize = 3;

/// The cores, and who else works on them.
pub struct Layout {
    /// Those that are online.
    pub cpus: Cpus,
    /// Whose packets come in where.
    pub interfaces: Vec<Interface>,
}

impl Layout {
    /// Of this host.
    pub fn read(root: &Root) -> Self {
        Self { cpus: Cpus::read(root), interfaces: Interface::read_all(root) }
    }

    /// Numbers of the cores that are online.
    pub fn online(&self) -> Vec<usize> {
        self.cpus.cores.iter().map(|core| core.id).collect()
    }

    /// Against the pins.
    pub fn judge(&self, need: &Need) -> Vec<Finding> {
        vec![
            judge_pins(need),
            judge_relay(need),
            self.judge_siblings(need),
            self.judge_nodes(need),
            self.judge_isolated(need),
            self.judge_governor(need),
            self.judge_interrupts(),
        ]
    }

    fn judge_siblings(&self, need: &Need) -> Finding {
        let pinned = self.pinned(need);
        if pinned.is_empty() {
            return Finding::untold(SIBLINGS, "the topology of the cores");
        }
        let shares = |core: &&&Core| {
            pinned.iter().any(|other| other.id != core.id && core.siblings.contains(&other.id))
        };
        let sharing: Vec<usize> = pinned.iter().filter(shares).map(|core| core.id).collect();
        if sharing.is_empty() {
            return Finding::ok(SIBLINGS, "every pinned thread has a physical core of its own");
        }
        let found = format!("of the pinned cores {} share physical ones (SMT)", list(&sharing));
        let own = self.one_of_each_physical(need);
        let threads = need.pinned_threads();
        if own.len() >= threads {
            return Finding::warn(SIBLINGS, found)
                .due("one thread a physical core, as there are enough of them")
                .cure(format!("corecast serve{} --cores {}", sizes(need), list(&own[..threads])));
        }
        Finding::info(
            SIBLINGS,
            format!("{found}: {} physical for {threads} threads; each alone would do more", own.len()),
        )
    }

    fn judge_nodes(&self, need: &Need) -> Finding {
        let nodes_of = |plan: &Plan| -> BTreeSet<usize> {
            let cores = plan.shards.iter().copied().chain(plan.relay);
            cores.filter_map(|core| Some(self.cpus.core(core)?.node)).collect()
        };
        let nodes: Vec<BTreeSet<usize>> = need.processes.iter().map(nodes_of).collect();
        let Some(first) = nodes.first().and_then(|nodes| nodes.first()) else {
            return Finding::untold(NODES, "the topology of the cores");
        };
        let Some(spread) = nodes.iter().find(|nodes| nodes.len() > 1) else {
            return Finding::ok(NODES, "all pinned cores of a process are on one NUMA node");
        };
        let near = self.usable(need).into_iter().filter(|core| core.node == *first).map(|core| core.id);
        let nodes = list(&spread.iter().copied().collect::<Vec<_>>());
        Finding::warn(NODES, format!("the pinned cores of a process are on NUMA nodes {nodes}"))
            .due("one node a process: every frame is written by the relay and read by all its shards")
            .cure(format!("corecast serve --cores {}", list(&near.collect::<Vec<_>>())))
    }

    fn judge_isolated(&self, need: &Need) -> Finding {
        let isolated = &self.cpus.isolated;
        if isolated.is_empty() {
            return Finding::info(
                ISOLATED,
                "no core is isolated (isolcpus=): other programs may run on the shards' cores",
            );
        }
        let pinned = need.pinned_cores();
        let beside: Vec<usize> = pinned.iter().copied().filter(|core| !isolated.contains(core)).collect();
        let found = format!("cores {} are isolated", list(isolated));
        match beside.is_empty() {
            true => Finding::ok(ISOLATED, format!("{found}, and all pins are on them")),
            false => Finding::info(ISOLATED, format!("{found}, and pins are beside them: {}", list(&beside)))
                .cure(format!("taskset -c {0} corecast serve --cores {0}", list(isolated))),
        }
    }

    fn judge_governor(&self, need: &Need) -> Finding {
        let governors: BTreeSet<&str> =
            self.pinned(need).iter().filter_map(|core| core.governor.as_deref()).collect();
        let names = governors.iter().copied().collect::<Vec<_>>().join(", ");
        if governors.is_empty() {
            return Finding::info(GOVERNOR, "this kernel sets no frequencies, as in most virtual machines");
        }
        let found = format!("frequency governor of the pinned cores: {names}");
        // These raise the frequency only after the load has come, which costs the first messages after a silence most.
        let is_slow = |name: &&str| matches!(*name, "powersave" | "ondemand" | "conservative");
        match governors.iter().any(is_slow) {
            true => Finding::warn(GOVERNOR, found)
                .due("performance, or schedutil")
                .cure("cpupower frequency-set -g performance"),
            false => Finding::ok(GOVERNOR, found),
        }
    }

    fn judge_interrupts(&self) -> Finding {
        let of = |interface: &Interface| {
            let Interface { name, queues, spread_queues } = interface;
            format!("{name}: receive queues {queues}, of these spread by RPS {spread_queues}")
        };
        let interfaces: Vec<String> = self.interfaces.iter().map(of).collect();
        match interfaces.is_empty() {
            true => Finding::info(INTERRUPTS, "no interface but loopback"),
            false => Finding::info(INTERRUPTS, interfaces.join("; ")),
        }
    }

    fn pinned(&self, need: &Need) -> Vec<&Core> {
        need.pinned_cores().into_iter().filter_map(|core| self.cpus.core(core)).collect()
    }

    fn usable(&self, need: &Need) -> Vec<&Core> {
        self.cpus.cores.iter().filter(|core| need.usable_cores.contains(&core.id)).collect()
    }

    /// Of every physical core the first logical one that may be used.
    fn one_of_each_physical(&self, need: &Need) -> Vec<usize> {
        let mut taken = BTreeSet::new();
        let usable = self.usable(need);
        usable.into_iter().filter(|core| taken.insert(&core.siblings)).map(|core| core.id).collect()
    }
}

fn judge_pins(need: &Need) -> Finding {
    if let Some(why) = &need.refused_cores {
        return Finding::bad(PINS, format!("the server would not start: {why}"))
            .cure(format!("corecast serve --cores {}", list(&need.usable_cores)));
    }
    let cores = need.shard_cores();
    let found = match need.processes.as_slice() {
        [Plan { relay: Some(relay), .. }] => {
            format!("{} shards on cores {}, the relay on core {relay}", need.shards(), list(&cores))
        }
        [_] => format!("{} shards on cores {}, the relay with shard 0", need.shards(), list(&cores)),
        processes => {
            format!("{} processes, {} shards on cores {}", processes.len(), need.shards(), list(&cores))
        }
    };
    let distinct = cores.iter().collect::<BTreeSet<_>>().len();
    if distinct == cores.len() {
        return Finding::ok(PINS, found);
    }
    let cure = match need.processes.len() {
        1 => format!("corecast serve --shards {distinct}"),
        processes if processes <= distinct => {
            format!("corecast serve --processes {processes} --shards {}", distinct / processes)
        }
        _ => format!("corecast serve --processes {distinct} --shards 1"),
    };
    Finding::warn(PINS, found).due("a core for each shard: two on one only take turns").cure(cure)
}

fn judge_relay(need: &Need) -> Finding {
    let (cores, processes) = (need.usable_cores.len(), need.processes.len());
    let without = need.processes.iter().filter(|plan| plan.relay.is_none()).count();
    if without == 0 {
        return Finding::ok(RELAY, "every relay has a core to itself");
    }
    if cores < CORES_FOR_RELAY * processes {
        return Finding::info(
            RELAY,
            format!(
                "with {cores} cores for {processes} process(es) a relay lives on its shard 0's, whose clients wait for it \
                 under load"
            ),
        );
    }
    let most = cores / processes - 1;
    let shards = need.processes.iter().map(|plan| plan.shards.len()).max().unwrap_or(1).min(most);
    let several = if processes > 1 { format!(" --processes {processes}") } else { String::new() };
    Finding::warn(RELAY, format!("a relay lives on its shard 0's core, though {cores} may be used"))
        .due("a core of its own: what all rooms wait for would not wait for a shard's clients")
        .cure(format!("corecast serve{several} --shards {shards} --cores {}", list(&need.usable_cores)))
}

/// The flags that keep shards and processes as many as they are.
fn sizes(need: &Need) -> String {
    let shards = need.processes.iter().map(|plan| plan.shards.len()).max().unwrap_or(1);
    match need.processes.len() {
        1 => format!(" --shards {shards}"),
        processes => format!(" --processes {processes} --shards {shards}"),
    }
}

#[cfg(test)]
mod tests {
    use shards::config::{Config, ShardCount};

    use super::super::finding::Level;
    use super::*;

    /// Four physical cores of two threads each, 0 with 4 and so on, the upper half of the physical ones on node 1.
    fn layout() -> Layout {
        let core = |id: usize| Core {
            id,
            siblings: vec![id % 4, id % 4 + 4],
            node: (id % 4) / 2,
            governor: Some(if id == 7 { "powersave" } else { "performance" }.to_owned()),
        };
        let cpus = Cpus { cores: (0..8).map(core).collect(), isolated: vec![2, 3] };
        Layout { cpus, interfaces: vec![Interface { name: "eth0".to_owned(), queues: 2, spread_queues: 1 }] }
    }

    fn need(shards: usize, cores: &[usize]) -> Need {
        let config =
            Config { shards: ShardCount::Count(shards), cores: Some(cores.to_vec()), ..Config::default() };
        Need::of(&config, Some(1), &[0, 1, 2, 3, 4, 5, 6, 7], None)
    }

    #[test]
    fn two_threads_of_one_core_are_a_fault_only_while_another_core_is_free() {
        assert_eq!(layout().judge_siblings(&need(2, &[0, 1])).level, Level::Ok);
        let shared = layout().judge_siblings(&need(2, &[0, 4]));
        assert_eq!(shared.level, Level::Warn);
        assert_eq!(shared.cure.as_deref(), Some("corecast serve --shards 2 --cores 0,1"));
        let full = layout().judge_siblings(&need(7, &[0, 1, 2, 3, 4, 5, 6, 7]));
        assert!(full.level == Level::Info && full.found.contains("4 physical for 8 threads"), "{full:?}");
        let relay = layout().judge_siblings(&need(1, &[0, 4]));
        assert_eq!(relay.level, Level::Warn, "the relay is one of them");
    }

    #[test]
    fn pins_stay_on_one_node() {
        assert_eq!(layout().judge_nodes(&need(2, &[0, 1])).level, Level::Ok);
        let spread = layout().judge_nodes(&need(2, &[0, 2]));
        assert_eq!(spread.level, Level::Warn);
        assert_eq!(spread.cure.as_deref(), Some("corecast serve --cores 0,1,4,5"));
        let several = Need {
            processes: vec![
                Plan { shards: vec![0, 1], relay: None },
                Plan { shards: vec![2, 3], relay: None },
            ],
            ..need(2, &[0, 1])
        };
        assert_eq!(layout().judge_nodes(&several).level, Level::Ok, "each process is on one");
    }

    #[test]
    fn cores_are_there_and_each_is_taken_once() {
        assert_eq!(judge_pins(&need(2, &[0, 1])).level, Level::Ok);
        assert_eq!(judge_pins(&need(3, &[0, 1])).level, Level::Warn);
        let turns = Config { processes: 3, ..Config::default() };
        let turns = judge_pins(&Need::of(&turns, Some(1), &[0, 1], None));
        assert_eq!(turns.cure.as_deref(), Some("corecast serve --processes 2 --shards 1"));
        let refused = judge_pins(&need(1, &[9]));
        assert_eq!(refused.level, Level::Bad);
        assert_eq!(refused.cure.as_deref(), Some("corecast serve --cores 0,1,2,3,4,5,6,7"));
    }

    #[test]
    fn the_relay_has_a_core_where_there_are_three() {
        assert_eq!(judge_relay(&need(2, &[0, 1, 2])).level, Level::Ok);
        let without = judge_relay(&need(8, &[0, 1, 2, 3, 4, 5, 6, 7]));
        assert_eq!(without.level, Level::Warn);
        assert_eq!(without.cure.as_deref(), Some("corecast serve --shards 7 --cores 0,1,2,3,4,5,6,7"));
        let two = Need::of(&Config::default(), Some(1), &[0, 1], None);
        assert_eq!(judge_relay(&two).level, Level::Info);
        let several = |shards| {
            let shards = ShardCount::Count(shards);
            let config = Config { processes: 2, shards, ..Config::default() };
            judge_relay(&Need::of(&config, Some(1), &[0, 1, 2, 3, 4, 5, 6, 7], None))
        };
        assert_eq!(several(3).level, Level::Ok);
        let cure = several(4).cure;
        assert_eq!(cure.as_deref(), Some("corecast serve --processes 2 --shards 3 --cores 0,1,2,3,4,5,6,7"));
    }

    #[test]
    fn isolation_governors_and_queues_are_told() {
        let isolated = |cores: &[usize]| layout().judge_isolated(&need(1, cores)).level;
        assert_eq!((isolated(&[2, 3]), isolated(&[1, 2])), (Level::Ok, Level::Info));
        let governor = |cores: &[usize]| layout().judge_governor(&need(1, cores)).level;
        assert_eq!((governor(&[0, 1]), governor(&[0, 7])), (Level::Ok, Level::Warn));
        assert!(
            layout().judge_interrupts().found.contains("eth0: receive queues 2, of these spread by RPS 1")
        );
        let nothing = Layout { cpus: Cpus::default(), interfaces: Vec::new() };
        assert!(nothing.judge(&need(1, &[0, 1])).iter().all(|finding| finding.level <= Level::Info));
    }
}
