//! One fence out of the probes of many nodes: what was published before it has come back from each of them, if it ever will.

use std::collections::VecDeque;

use foldhash::HashMap;

use crate::redis::placement::NodeId;

/// See the module. A node that does not take probes is passed over: what it refused has been answered.
#[derive(Debug, Default)]
pub(super) struct Fences {
    /// Probes sent, over all nodes; the number of the last is that of its fence.
    sent: u64,
    told: u64,
    nodes: HashMap<NodeId, Probes>,
}

#[derive(Debug, Default)]
struct Probes {
    /// A node's own number of a probe that is out, and its fence.
    out: VecDeque<(u64, u64)>,
    /// The fence that came back last; `None` before the first and while it takes none.
    returned: Option<u64>,
}

impl Fences {
    /// A node is there.
    pub(super) fn add(&mut self, node: NodeId) {
        self.nodes.entry(node).or_default();
    }

    /// A node is gone; what was under way there has been answered.
    pub(super) fn remove(&mut self, node: NodeId) {
        self.nodes.remove(&node);
    }

    /// The probes of a node that are out will not come back.
    pub(super) fn forget(&mut self, node: NodeId) {
        if let Some(probes) = self.nodes.get_mut(&node) {
            *probes = Probes::default();
        }
    }

    /// A node's probe is sent. Returns the number of its fence.
    pub(super) fn sent(&mut self, node: NodeId, number: u64) -> u64 {
        self.sent += 1;
        self.nodes.entry(node).or_default().out.push_back((number, self.sent));
        self.sent
    }

    /// Whether more than one probe of a node is out.
    pub(super) fn has_many_out(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|probes| probes.out.len() > 1)
    }

    /// A node's probe is back. Returns the fence that has come back from all nodes, if that is a new one.
    pub(super) fn returned(&mut self, node: NodeId, number: u64) -> Option<u64> {
        let probes = self.nodes.get_mut(&node)?;
        while let Some((_, fence)) = probes.out.pop_front_if(|(out, _)| *out <= number) {
            probes.returned = Some(fence);
        }
        let fence = self.nodes.values().filter_map(|probes| probes.returned).min()?;
        (fence > self.told).then(|| {
            self.told = fence;
            fence
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_the_oldest_that_came_back_from_each_node() {
        let mut fences = Fences::default();
        fences.add(7);
        fences.add(8);
        assert_eq!((fences.sent(7, 1), fences.sent(8, 1), fences.sent(7, 2)), (1, 2, 3));
        assert_eq!(
            fences.returned(7, 1),
            Some(1),
            "the other has had none yet, so nothing is under way there"
        );
        assert_eq!(fences.returned(8, 1), None, "what was published after 1 may be under way at 7");
        assert!(!fences.has_many_out(8));
        assert_eq!(fences.returned(7, 2), Some(2));
        assert_eq!(fences.returned(7, 2), None);
    }

    #[test]
    fn a_node_that_takes_no_probes_holds_nobody_up() {
        let mut fences = Fences::default();
        fences.sent(7, 1);
        fences.sent(8, 1);
        fences.returned(7, 1);
        fences.returned(8, 1);
        assert_eq!(fences.sent(8, 2), 3);
        fences.forget(7);
        assert_eq!(fences.returned(8, 2), Some(3));
        fences.sent(7, 9);
        fences.remove(7);
        assert_eq!(fences.returned(7, 9), None);
    }
}
