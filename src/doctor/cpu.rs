//! Cores against the pins of shards and relay.

use std::collections::BTreeSet;

use host::{Core, Cpus, Interface, Root};
use shards::net::Plan;

use super::finding::{Finding, list};
use super::need::Need;
use super::seats::{Seating, Seats};

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
            self.judge_pins(need),
            self.judge_relay(need),
            self.judge_siblings(need),
            self.judge_nodes(need),
            self.judge_isolated(need),
            self.judge_governor(need),
            self.judge_interrupts(),
        ]
    }

    fn judge_pins(&self, need: &Need) -> Finding {
        let processes = need.processes.len().min(need.usable_cores.len()).max(1);
        let has_relay = need.usable_cores.len() >= CORES_FOR_RELAY * processes;
        let cure = || {
            let seats = self.seats(need);
            seats.best(processes, shards_of_a_process(need), has_relay)
        };
        if let Some(why) = &need.refused_cores {
            return cured(Finding::bad(PINS, format!("the server would not start: {why}")), cure());
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
        let due = "a core for each shard: two on one only take turns";
        cured(Finding::warn(PINS, found).due(due), cure())
    }

    fn judge_relay(&self, need: &Need) -> Finding {
        let (cores, processes) = (need.usable_cores.len(), need.processes.len());
        if has_relays(need) {
            return Finding::ok(RELAY, "every relay has a core to itself");
        }
        let cure = match cores >= CORES_FOR_RELAY * processes {
            true => self.seats(need).best(processes, shards_of_a_process(need), true),
            false => None,
        };
        let Some(cure) = cure else {
            return Finding::info(
                RELAY,
                format!(
                    "with {cores} cores for {processes} process(es) a relay lives on its shard 0's, whose clients wait for it \
                     under load"
                ),
            );
        };
        Finding::warn(RELAY, format!("a relay lives on its shard 0's core, though {cores} may be used"))
            .due("a core of its own: what all rooms wait for would not wait for a shard's clients")
            .cure(cure.command())
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
        let (seats, processes) = (self.seats(need), need.processes.len());
        let shards = shards_of_a_process(need);
        if let Some(cure) = seats.alone(processes, shards, has_relays(need)) {
            return Finding::warn(SIBLINGS, found)
                .due("one thread a physical core, as there are enough of them on one NUMA node")
                .cure(cure.command());
        }
        let (physical, threads) = (seats.physical(), need.pinned_threads());
        Finding::info(
            SIBLINGS,
            format!("{found}: {physical} physical for {threads} threads; each alone would do more"),
        )
    }

    fn judge_nodes(&self, need: &Need) -> Finding {
        let nodes_of = |plan: &Plan| -> BTreeSet<usize> {
            let cores = plan.shards.iter().copied().chain(plan.relay);
            cores.filter_map(|core| Some(self.cpus.core(core)?.node)).collect()
        };
        let nodes: Vec<BTreeSet<usize>> = need.processes.iter().map(nodes_of).collect();
        if nodes.iter().all(BTreeSet::is_empty) {
            return Finding::untold(NODES, "the topology of the cores");
        }
        let Some(spread) = nodes.iter().find(|nodes| nodes.len() > 1) else {
            return Finding::ok(NODES, "all pinned cores of a process are on one NUMA node");
        };
        let nodes = list(&spread.iter().copied().collect::<Vec<_>>());
        let found = format!("the pinned cores of a process are on NUMA nodes {nodes}");
        let (processes, shards) = (need.processes.len(), shards_of_a_process(need));
        match self.seats(need).best(processes, shards, has_relays(need)) {
            Some(cure) => Finding::warn(NODES, found)
                .due("one node a process: every frame is written by the relay and read by all its shards")
                .cure(cure.command()),
            None => Finding::info(NODES, format!("{found}; no node has cores enough for one")),
        }
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
        // These raise the frequency only after the load has come, which costs the first messages after a silence most. Where
        // the driver sets frequencies by itself (intel_pstate, amd-pstate), "powersave" is only a hint for it, and usual.
        let is_slow = |core: &&Core| match core.governor.as_deref() {
            Some("powersave") => !core.sets_frequency_itself(),
            Some(name) => matches!(name, "ondemand" | "conservative"),
            None => false,
        };
        match self.pinned(need).iter().any(is_slow) {
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

    /// The cores that may be used; those without a known topology count as physical ones of one node.
    fn seats(&self, need: &Need) -> Seats {
        let known = |id: &usize| {
            let alone = || Core { id: *id, siblings: vec![*id], ..Core::default() };
            self.cpus.core(*id).cloned().unwrap_or_else(alone)
        };
        Seats::new(need.usable_cores.iter().map(known).collect(), &need.pinned_cores())
    }
}

/// Of the process that has most.
fn shards_of_a_process(need: &Need) -> usize {
    need.processes.iter().map(|plan| plan.shards.len()).max().unwrap_or(1)
}

fn has_relays(need: &Need) -> bool {
    need.processes.iter().all(|plan| plan.relay.is_some())
}

fn cured(finding: Finding, cure: Option<Seating>) -> Finding {
    match cure {
        Some(cure) => finding.cure(cure.command()),
        None => finding,
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
            governor: Some(if id >= 6 { "powersave" } else { "performance" }.to_owned()),
            frequency_driver: Some(if id == 6 { "intel_pstate" } else { "acpi-cpufreq" }.to_owned()),
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
        assert_eq!(spread.cure.as_deref(), Some("corecast serve --shards 2 --cores 0,1"));
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
        assert_eq!(layout().judge_pins(&need(2, &[0, 1])).level, Level::Ok);
        assert_eq!(layout().judge_pins(&need(3, &[0, 1])).level, Level::Warn);
        let turns = Config { processes: 3, ..Config::default() };
        let turns = layout().judge_pins(&Need::of(&turns, Some(1), &[0, 1], None));
        assert_eq!(turns.cure.as_deref(), Some("corecast serve --processes 2 --shards 1 --cores 0,1"));
        let refused = layout().judge_pins(&need(1, &[9]));
        assert_eq!(refused.level, Level::Bad);
        assert_eq!(refused.cure.as_deref(), Some("corecast serve --shards 1 --cores 0,1"));
    }

    #[test]
    fn the_relay_has_a_core_where_there_are_three() {
        assert_eq!(layout().judge_relay(&need(2, &[0, 1, 2])).level, Level::Ok);
        let without = layout().judge_relay(&need(8, &[0, 1, 2, 3, 4, 5, 6, 7]));
        assert_eq!(without.level, Level::Warn);
        assert_eq!(without.cure.as_deref(), Some("corecast serve --shards 3 --cores 0,1,4,5"));
        let two = Need::of(&Config::default(), Some(1), &[0, 1], None);
        assert_eq!(layout().judge_relay(&two).level, Level::Info);
        let several = |shards| {
            let shards = ShardCount::Count(shards);
            let config = Config { processes: 2, shards, ..Config::default() };
            layout().judge_relay(&Need::of(&config, Some(1), &[0, 1, 2, 3, 4, 5, 6, 7], None))
        };
        assert_eq!(several(3).level, Level::Ok);
        let cure = several(4).cure;
        assert_eq!(cure.as_deref(), Some("corecast serve --processes 2 --shards 3 --cores 0,1,4,5,2,3,6,7"));
    }

    /// What the server would be with the flags of a cure, beside those of `before`.
    fn need_of(cure: &str, before: &Need) -> Need {
        let words: Vec<&str> = cure.split_whitespace().collect();
        let flag = |name: &str| {
            words.iter().position(|word| *word == name).and_then(|index| words.get(index + 1)).copied()
        };
        let cores = flag("--cores").expect("it names the cores").split(',');
        let config = Config {
            processes: flag("--processes").map_or(1, |number| number.parse().expect("a number")),
            shards: ShardCount::Count(flag("--shards").expect("it says how many").parse().expect("a number")),
            cores: Some(cores.map(|core| core.parse().expect("a number")).collect()),
            ..Config::default()
        };
        Need::of(&config, Some(1), &before.usable_cores, None)
    }

    #[test]
    fn a_cure_helps_against_its_finding_and_no_two_undo_each_other() {
        let all: Vec<usize> = (0..8).collect();
        let mut tried = 0;
        for processes in 1..=3 {
            for shards in 1..=8 {
                for cores in [&[0, 4][..], &[0, 1], &[0, 2], &[1, 2, 3], &[0, 1, 2, 3], &[0, 4, 1, 5], &all] {
                    let config = Config {
                        processes,
                        shards: ShardCount::Count(shards),
                        cores: Some(cores.to_vec()),
                        ..Config::default()
                    };
                    let mut need = Need::of(&config, Some(1), &all, None);
                    // There are four that may warn, so that four cures are enough.
                    for _ in 0..4 {
                        let judged =
                            |need: &Need| layout().judge(need).into_iter().filter(|f| f.id != GOVERNOR);
                        let Some(warned) = judged(&need).find(|finding| finding.level >= Level::Warn) else {
                            break;
                        };
                        tried += 1;
                        let cure = warned.cure.expect("it has a cure");
                        need = need_of(&cure, &need);
                        let after =
                            judged(&need).find(|finding| finding.id == warned.id).expect("it is judged");
                        assert!(
                            after.level < Level::Warn,
                            "{processes} x {shards} on {cores:?}: {cure}: {after:?}"
                        );
                    }
                    let left: Vec<Finding> = layout().judge(&need);
                    let left = left.iter().find(|f| f.level >= Level::Warn && f.id != GOVERNOR);
                    assert!(left.is_none(), "{processes} x {shards} on {cores:?}: {left:?}");
                }
            }
        }
        assert!(tried > 50, "{tried} cures were tried");
    }

    #[test]
    fn isolation_governors_and_queues_are_told() {
        let isolated = |cores: &[usize]| layout().judge_isolated(&need(1, cores)).level;
        assert_eq!((isolated(&[2, 3]), isolated(&[1, 2])), (Level::Ok, Level::Info));
        let governor = |cores: &[usize]| layout().judge_governor(&need(1, cores)).level;
        assert_eq!(
            [governor(&[0, 1]), governor(&[0, 7]), governor(&[0, 6])],
            [Level::Ok, Level::Warn, Level::Ok]
        );
        assert!(
            layout().judge_interrupts().found.contains("eth0: receive queues 2, of these spread by RPS 1")
        );
        let nothing = Layout { cpus: Cpus::default(), interfaces: Vec::new() };
        assert!(nothing.judge(&need(1, &[0, 1])).iter().all(|finding| finding.level <= Level::Info));
    }
}
