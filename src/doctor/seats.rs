//! Where threads should sit: which cores a server's flags should name.

use std::collections::{BTreeMap, BTreeSet};

use host::Core;

use super::finding::list;

/// The cores that may be used, by NUMA node, best first.
pub struct Seats(Vec<Node>);

/// Of one node.
struct Node {
    /// Of each physical core one thread, those that are pinned to already first.
    alone: Vec<usize>,
    /// Then the other threads.
    all: Vec<usize>,
}

/// Flags of `corecast serve`: so many processes of so many shards on these cores, process by process.
#[derive(Debug, PartialEq, Eq)]
pub struct Seating {
    processes: usize,
    shards: usize,
    cores: Vec<usize>,
}

impl Seating {
    /// As a shell takes it.
    pub fn command(&self) -> String {
        let Self { processes, shards, cores } = self;
        let several = if *processes > 1 { format!(" --processes {processes}") } else { String::new() };
        format!("corecast serve{several} --shards {shards} --cores {}", list(cores))
    }
}

impl Seats {
    /// Of `cores`; what is `pinned` already is kept where nothing speaks against it.
    pub fn new(mut cores: Vec<Core>, pinned: &[usize]) -> Self {
        cores.sort_by_key(|core| (!pinned.contains(&core.id), core.id));
        let mut nodes: BTreeMap<usize, Node> = BTreeMap::new();
        let mut taken = BTreeSet::new();
        let (alone, beside): (Vec<Core>, Vec<Core>) =
            cores.into_iter().partition(|core| taken.insert(core.siblings.clone()));
        for core in alone {
            let node = nodes.entry(core.node).or_insert(Node { alone: Vec::new(), all: Vec::new() });
            node.alone.push(core.id);
            node.all.push(core.id);
        }
        for core in beside {
            if let Some(node) = nodes.get_mut(&core.node) {
                node.all.push(core.id);
            }
        }
        let mut nodes: Vec<Node> = nodes.into_values().collect();
        let is_pinned = |core: &&usize| pinned.contains(*core);
        nodes.sort_by_key(|node| std::cmp::Reverse(node.all.iter().filter(is_pinned).count()));
        Self(nodes)
    }

    /// Physical cores.
    pub fn physical(&self) -> usize {
        self.0.iter().map(|node| node.alone.len()).sum()
    }

    /// A physical core for each thread, each process on one node; `None` where there are too few.
    pub fn alone(&self, processes: usize, shards: usize, has_relay: bool) -> Option<Seating> {
        self.seat(processes, shards, has_relay, |node| &node.alone)
    }

    /// The same, or else two threads on a physical core, or else fewer shards; `None` where nodes are too small for even one.
    pub fn best(&self, processes: usize, shards_most: usize, has_relay: bool) -> Option<Seating> {
        (1..=shards_most).rev().find_map(|shards| {
            let shared = || self.seat(processes, shards, has_relay, |node| &node.all);
            self.alone(processes, shards, has_relay).or_else(shared)
        })
    }

    fn seat(
        &self,
        processes: usize,
        shards: usize,
        has_relay: bool,
        cores: impl Fn(&Node) -> &Vec<usize>,
    ) -> Option<Seating> {
        let each = shards + usize::from(has_relay);
        let places: Vec<&[usize]> =
            self.0.iter().flat_map(|node| cores(node).chunks_exact(each)).take(processes).collect();
        (places.len() == processes).then(|| Seating { processes, shards, cores: places.concat() })
    }
}
