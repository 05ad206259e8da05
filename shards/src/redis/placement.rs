//! Which channel is subscribed at which node of a cluster, without sockets or clocks.
//!
//! It is told what the nodes say and asks for steps in return. Three words place a channel, in this order: a node's own
//! confirmation stands until that node ends it or is gone; a redirect (MOVED) moves one channel at once; a topology moves
//! those whose slot it claims with a newer epoch. So the word of a node that is behind costs nothing.
//!
//! A channel *lapses* when publications on it may be missing: its node has gone, or ended it, or there is none for it.
//! It is told once, until it is confirmed again. While the whole link is down nothing lapses: that is a break of its own.

use std::collections::VecDeque;
use std::rc::Rc;

use foldhash::{HashMap, HashMapExt};

use super::cluster::{SLOTS, Topology, slot_of};
use crate::config::Server;

/// Number of a node; never used twice.
pub type NodeId = u32;

/// What is to be done, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Connect to a node, whose probe is to travel in this slot.
    Start {
        /// Its number.
        node: NodeId,
        /// Where it listens.
        server: Server,
        /// A slot of its own.
        probe_slot: u16,
    },
    /// Leave a node.
    Stop(NodeId),
    /// Take another slot for a node's probe.
    MoveProbe(NodeId, u16),
    /// Want a channel at a node.
    Subscribe(NodeId, Rc<[u8]>),
    /// Don't want it there any more.
    Unsubscribe(NodeId, Rc<[u8]>),
}

/// See the module.
#[derive(Debug)]
pub struct Placement {
    nodes: HashMap<NodeId, Node>,
    next_node: NodeId,
    /// By slot.
    owners: Box<[Owner]>,
    channels: HashMap<Rc<[u8]>, Channel>,
    /// Channels that are at no node.
    homeless: usize,
    is_up: bool,
    steps: VecDeque<Step>,
    lapses: VecDeque<Rc<[u8]>>,
    wants_topology: bool,
}

#[derive(Debug)]
struct Node {
    server: Server,
    /// It is connected and proved.
    is_up: bool,
    /// It did not take its last probe.
    is_doubtful: bool,
    slots: usize,
    /// Channels that are to be there.
    channels: usize,
    probe_slot: u16,
    /// The probe's channel has not been refused since it was chosen.
    has_probe: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Owner {
    node: Option<NodeId>,
    /// Of the claim that made it so.
    epoch: u64,
}

#[derive(Debug)]
struct Channel {
    slot: u16,
    node: Option<NodeId>,
    is_confirmed: bool,
    has_lapsed: bool,
    /// Since it was confirmed, or a topology was read.
    redirects: u8,
}

impl Placement {
    /// Of a cluster of which nothing is known.
    pub fn new() -> Self {
        Self {
            nodes: HashMap::new(),
            next_node: 0,
            owners: vec![Owner::default(); SLOTS].into(),
            channels: HashMap::new(),
            homeless: 0,
            is_up: false,
            steps: VecDeque::new(),
            lapses: VecDeque::new(),
            wants_topology: true,
        }
    }

    // ---- what the relay wants

    /// Wants a channel. Returns whether it is confirmed already.
    pub fn subscribe(&mut self, name: &[u8]) -> bool {
        if let Some(channel) = self.channels.get(name) {
            return channel.is_confirmed;
        }
        let name: Rc<[u8]> = name.into();
        let slot = slot_of(&name);
        let channel = Channel { slot, node: None, is_confirmed: false, has_lapsed: false, redirects: 0 };
        self.channels.insert(name.clone(), channel);
        self.homeless += 1;
        self.place(&name, self.owners[usize::from(slot)].node);
        false
    }

    /// Doesn't want a channel any more.
    pub fn unsubscribe(&mut self, name: &[u8]) {
        if !self.channels.contains_key(name) {
            return;
        }
        self.leave(name);
        self.channels.remove(name);
        self.homeless -= 1;
    }

    /// The node that has the slot of a channel, if it can be spoken to.
    pub fn node_of(&self, channel: &[u8]) -> Option<NodeId> {
        let node = self.owners[usize::from(slot_of(channel))].node?;
        self.nodes.get(&node).filter(|node| node.is_up).map(|_| node)
    }

    // ---- what the nodes say

    /// A node has confirmed a channel. Returns whether that is for the relay.
    pub fn confirmed(&mut self, node: NodeId, name: &[u8]) -> bool {
        match self.channels.get_mut(name) {
            Some(channel) if channel.node == Some(node) => {
                (channel.is_confirmed, channel.has_lapsed, channel.redirects) = (true, false, 0);
                true
            }
            _ => {
                self.steps.push_back(Step::Unsubscribe(node, name.into()));
                false
            }
        }
    }

    /// A node has ended a channel unasked, and is being asked for it again.
    pub fn ended(&mut self, node: NodeId, name: &[u8]) {
        if self.is_at(name, node) {
            self.lapse(name);
        }
        self.wants_topology = true;
    }

    /// A node doesn't permit a channel. Returns whether that is for the relay.
    pub fn refused(&mut self, node: NodeId, name: &[u8]) -> bool {
        let was_there = self.is_at(name, node);
        if was_there {
            // The node has forgotten it already.
            self.drop_from_node(name);
            self.channels.remove(name);
            self.homeless -= 1;
        }
        was_there
    }

    /// A node has not the slot of a channel, and doesn't want it any more; `to` has it.
    pub fn moved(&mut self, node: NodeId, name: &[u8], to: Option<Server>) {
        self.wants_topology = true;
        if !self.is_at(name, node) {
            return;
        }
        self.drop_from_node(name);
        let channel = self.channels.get_mut(name).expect("it is at the node");
        channel.redirects = channel.redirects.saturating_add(1);
        let (was_confirmed, slot) = (std::mem::take(&mut channel.is_confirmed), channel.slot);
        let may_follow = channel.redirects <= REDIRECTS_MAX;
        let to = to.filter(|_| may_follow).map(|server| self.node_at(&server, slot));
        if let Some(to) = to {
            self.give_slot(slot, Some(to), self.owners[usize::from(slot)].epoch);
        }
        let name = self.name_of(name);
        if was_confirmed {
            self.lapse(&name);
        }
        self.place(&name, to);
    }

    /// A publication was refused because another has the slot: it goes there. Returns whom it may be given to.
    pub fn publish_moved(&mut self, channel: &[u8], to: Option<Server>) -> Option<NodeId> {
        self.wants_topology = true;
        let slot = slot_of(channel);
        let to = self.node_at(&to?, slot);
        self.give_slot(slot, Some(to), self.owners[usize::from(slot)].epoch);
        self.nodes.get(&to).filter(|node| node.is_up).map(|_| to)
    }

    /// A node is connected and proved; what is wanted there is being subscribed.
    pub fn node_up(&mut self, node: NodeId) {
        if let Some(node) = self.nodes.get_mut(&node) {
            (node.is_up, node.is_doubtful) = (true, false);
        }
    }

    /// A node is gone. It keeps what is wanted there, for when it comes back.
    pub fn node_down(&mut self, node: NodeId) {
        self.wants_topology = true;
        let Some(gone) = self.nodes.get_mut(&node) else { return };
        gone.is_up = false;
        let there = self.channels.iter().filter(|(_, channel)| channel.node == Some(node));
        let there: Vec<Rc<[u8]>> = there.map(|(name, _)| name.clone()).collect();
        there.iter().for_each(|name| self.lapse(name));
    }

    /// A node has taken its probe, or has not.
    pub fn probed(&mut self, node: NodeId, is_taken: bool) {
        self.wants_topology |= !is_taken;
        if let Some(node) = self.nodes.get_mut(&node) {
            node.is_doubtful = !is_taken;
        }
    }

    /// The slot of a node's probe has gone: it takes another, as soon as one is known.
    pub fn probe_moved(&mut self, node: NodeId) {
        self.wants_topology = true;
        let Some(there) = self.nodes.get_mut(&node) else { return };
        there.has_probe = false;
        let slot = there.probe_slot;
        let Owner { node: owner, epoch } = self.owners[usize::from(slot)];
        if owner == Some(node) {
            // Nobody's, until a topology says whose it is.
            self.give_slot(slot, None, epoch);
        }
        self.mend_probe(node);
    }

    // ---- what one of them says of all

    /// Whether somebody should be asked: something happened, or something has no place.
    pub fn wants_topology(&self) -> bool {
        self.wants_topology || self.is_impaired()
    }

    /// Whether a channel has no node, or a node with slots can't be spoken to.
    pub fn is_impaired(&self) -> bool {
        self.homeless > 0
            || self.nodes.values().any(|node| node.slots > 0 && (!node.is_up || node.is_doubtful))
    }

    /// Takes what a node says of all of them.
    pub fn take_topology(&mut self, topology: &Topology) {
        self.wants_topology = false;
        let mut superseded = vec![false; SLOTS];
        for claim in &topology.claims {
            let mut claimant = self.find_node(&claim.server);
            for slot in claim.slots.iter().flat_map(|&(first, last)| first..=last) {
                let owner = self.owners[usize::from(slot)];
                if owner.node.is_some() && owner.node == claimant {
                    self.owners[usize::from(slot)].epoch = claim.epoch.max(owner.epoch);
                    continue;
                }
                let is_newer = claim.epoch > owner.epoch;
                if is_newer || !owner.node.is_some_and(|node| self.is_node_up(node)) {
                    let node = self.node_at(&claim.server, slot);
                    claimant = Some(node);
                    self.give_slot(slot, Some(node), claim.epoch);
                    superseded[usize::from(slot)] = is_newer;
                }
            }
        }
        self.unconfirm(&superseded);
        self.replace_channels();
        self.stop_idle_nodes();
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.mend_probe(node));
    }

    /// Where nodes listen that can be asked: those that are up and took their last probe, and the others.
    pub fn servers(&self) -> (Vec<Server>, Vec<Server>) {
        let mut nodes: Vec<&Node> = self.nodes.values().collect();
        nodes.sort_by_key(|node| &node.server);
        let (sound, others): (Vec<&Node>, Vec<&Node>) =
            nodes.into_iter().partition(|node| node.is_up && !node.is_doubtful);
        let servers = |nodes: Vec<&Node>| nodes.into_iter().map(|node| node.server.clone()).collect();
        (servers(sound), servers(others))
    }

    /// Nodes that are up, nodes in all.
    pub fn nodes(&self) -> (usize, usize) {
        (self.nodes.values().filter(|node| node.is_up).count(), self.nodes.len())
    }

    // ---- the link as a whole

    /// The link is up from now on: what has no node that is up lapses.
    pub fn begin(&mut self) {
        self.is_up = true;
        let is_served = |channel: &Channel| {
            channel.node.and_then(|node| self.nodes.get(&node)).is_some_and(|node| node.is_up)
        };
        let lost = self.channels.iter().filter(|(_, channel)| !is_served(channel));
        let lost: Vec<Rc<[u8]>> = lost.map(|(name, _)| name.clone()).collect();
        lost.iter().for_each(|name| self.lapse(name));
    }

    /// The link is down: a break of all channels.
    pub fn end(&mut self) {
        self.is_up = false;
        self.lapses.clear();
        for channel in self.channels.values_mut() {
            (channel.is_confirmed, channel.has_lapsed) = (false, false);
        }
    }

    // ---- what is to be done

    /// The next step.
    pub fn take_step(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// Not now: the next step again.
    pub fn put_back(&mut self, step: Step) {
        self.steps.push_front(step);
    }

    /// The next channel on which publications may be missing from now on.
    pub fn take_lapse(&mut self) -> Option<Rc<[u8]>> {
        self.lapses.pop_front()
    }

    /// Whether there is one.
    pub fn has_lapses(&self) -> bool {
        !self.lapses.is_empty()
    }

    // ---- leaves

    fn is_at(&self, name: &[u8], node: NodeId) -> bool {
        self.channels.get(name).is_some_and(|channel| channel.node == Some(node))
    }

    fn name_of(&self, name: &[u8]) -> Rc<[u8]> {
        self.channels.get_key_value(name).map_or_else(|| name.into(), |(name, _)| name.clone())
    }

    fn lapse(&mut self, name: &[u8]) {
        let Some(channel) = self.channels.get_mut(name) else { return };
        channel.is_confirmed = false;
        if self.is_up && !std::mem::replace(&mut channel.has_lapsed, true) {
            let name = self.name_of(name);
            self.lapses.push_back(name);
        }
    }

    /// Puts a channel that is at no node to `node`; it lapses where there is none, or none that is up.
    fn place(&mut self, name: &Rc<[u8]>, node: Option<NodeId>) {
        let Some(channel) = self.channels.get_mut(name) else { return };
        debug_assert!(channel.node.is_none(), "a channel is placed twice");
        channel.node = node;
        let there = node.and_then(|node| self.nodes.get_mut(&node));
        let is_up = there.as_ref().is_some_and(|node| node.is_up);
        if let (Some(node), Some(there)) = (node, there) {
            there.channels += 1;
            self.homeless -= 1;
            self.steps.push_back(Step::Subscribe(node, name.clone()));
        }
        if !is_up {
            self.lapse(name);
        }
    }

    /// Takes a channel from its node, which is told.
    fn leave(&mut self, name: &[u8]) {
        let name = self.name_of(name);
        if let Some(node) = self.drop_from_node(&name) {
            self.steps.push_back(Step::Unsubscribe(node, name));
        }
    }

    fn drop_from_node(&mut self, name: &[u8]) -> Option<NodeId> {
        let node = self.channels.get_mut(name)?.node.take()?;
        self.homeless += 1;
        if let Some(node) = self.nodes.get_mut(&node) {
            node.channels -= 1;
        }
        Some(node)
    }

    fn find_node(&self, server: &Server) -> Option<NodeId> {
        self.nodes.iter().find(|(_, node)| node.server == *server).map(|(node, _)| *node)
    }

    fn is_node_up(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.is_up)
    }

    /// The number of the node at `server`, which has `slot`.
    fn node_at(&mut self, server: &Server, slot: u16) -> NodeId {
        if let Some(node) = self.find_node(server) {
            return node;
        }
        let node = self.next_node;
        self.next_node += 1;
        let (server, probe_slot) = (server.clone(), slot);
        self.nodes.insert(
            node,
            Node {
                server: server.clone(),
                is_up: false,
                is_doubtful: false,
                slots: 0,
                channels: 0,
                probe_slot,
                has_probe: true,
            },
        );
        self.steps.push_back(Step::Start { node, server, probe_slot });
        node
    }

    fn give_slot(&mut self, slot: u16, node: Option<NodeId>, epoch: u64) {
        let old = std::mem::replace(&mut self.owners[usize::from(slot)], Owner { node, epoch });
        for (node, is_new) in [(old.node, false), (node, true)] {
            if let Some(node) = node.and_then(|node| self.nodes.get_mut(&node)) {
                node.slots = if is_new { node.slots + 1 } else { node.slots - 1 };
            }
        }
    }

    /// A newer claim ends what an older owner confirmed: it may be cut off and not know.
    fn unconfirm(&mut self, superseded: &[bool]) {
        let is_over = |channel: &Channel| {
            let slot = usize::from(channel.slot);
            superseded[slot] && channel.is_confirmed && channel.node != self.owners[slot].node
        };
        let over = self.channels.iter().filter(|(_, channel)| is_over(channel));
        let over: Vec<Rc<[u8]>> = over.map(|(name, _)| name.clone()).collect();
        over.iter().for_each(|name| self.lapse(name));
    }

    /// Moves what is confirmed nowhere to whoever has its slot.
    fn replace_channels(&mut self) {
        let is_misplaced = |channel: &Channel| {
            !channel.is_confirmed && channel.node != self.owners[usize::from(channel.slot)].node
        };
        let misplaced = self.channels.iter().filter(|(_, channel)| is_misplaced(channel));
        let misplaced: Vec<Rc<[u8]>> = misplaced.map(|(name, _)| name.clone()).collect();
        for name in misplaced {
            self.leave(&name);
            let slot = self.channels.get_mut(&name).map_or(0, |channel| {
                channel.redirects = 0;
                channel.slot
            });
            self.place(&name, self.owners[usize::from(slot)].node);
        }
    }

    fn stop_idle_nodes(&mut self) {
        let idle = self.nodes.iter().filter(|(_, node)| node.slots == 0 && node.channels == 0);
        let idle: Vec<NodeId> = idle.map(|(node, _)| *node).collect();
        for node in idle {
            self.nodes.remove(&node);
            self.steps.push_back(Step::Stop(node));
        }
    }

    /// Gives a node's probe a slot of its own, where it has another's and there is one.
    fn mend_probe(&mut self, node: NodeId) {
        let Some(Node { probe_slot, slots, has_probe, .. }) = self.nodes.get(&node) else { return };
        let is_own = self.owners[usize::from(*probe_slot)].node == Some(node);
        if *slots == 0 || (is_own && *has_probe) {
            return;
        }
        let own = self.owners.iter().position(|owner| owner.node == Some(node));
        let own = own.expect("a node with slots owns one") as u16;
        if let Some(there) = self.nodes.get_mut(&node) {
            (there.probe_slot, there.has_probe) = (own, true);
        }
        self.steps.push_back(Step::MoveProbe(node, own));
    }

    /// Counts agree with what they count.
    #[cfg(test)]
    fn check(&self) {
        assert_eq!(self.homeless, self.channels.values().filter(|channel| channel.node.is_none()).count());
        for (id, node) in &self.nodes {
            assert_eq!(node.slots, self.owners.iter().filter(|owner| owner.node == Some(*id)).count());
            assert_eq!(node.channels, self.channels.values().filter(|c| c.node == Some(*id)).count());
        }
        for channel in self.channels.values() {
            assert!(channel.node.is_none_or(|node| self.nodes.contains_key(&node)), "at a node that is gone");
            assert!(!channel.is_confirmed || channel.node.is_some(), "confirmed by nobody");
            assert!(!(channel.is_confirmed && channel.has_lapsed), "confirmed and lapsed");
        }
    }
}

impl Default for Placement {
    fn default() -> Self {
        Self::new()
    }
}

/// Nodes that one channel is sent on to before a topology is waited for: two that each name the other would play for ever.
const REDIRECTS_MAX: u8 = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::cluster::Claim;
    use super::*;

    fn server(port: u16) -> Server {
        Server { host: "10.0.0.1".to_owned(), port }
    }

    fn claim(port: u16, epoch: u64, first: u16, last: u16) -> Claim {
        Claim { server: server(port), epoch, slots: vec![(first, last)] }
    }

    /// Two nodes, half of the slots each: 0 has that of "b" (3300), 1 that of "a" (15495) and of "c" (7365).
    fn two() -> Topology {
        Topology { claims: vec![claim(1, 1, 0, 5000), claim(2, 2, 5001, 16383)] }
    }

    struct Played(Placement);

    impl Played {
        /// Both nodes are up.
        fn up() -> Self {
            let mut played = Self(Placement::new());
            played.0.take_topology(&two());
            let starts = played.steps();
            assert!(
                matches!(starts.as_slice(), [Step::Start { node: 0, .. }, Step::Start { node: 1, .. }]),
                "{starts:?}"
            );
            (0..2).for_each(|node| played.0.node_up(node));
            played.0.begin();
            played
        }

        fn steps(&mut self) -> Vec<Step> {
            self.0.check();
            std::iter::from_fn(|| self.0.take_step()).collect()
        }

        fn lapses(&mut self) -> Vec<String> {
            self.0.check();
            let lapses = std::iter::from_fn(|| self.0.take_lapse());
            lapses.map(|name| String::from_utf8_lossy(&name).into_owned()).collect()
        }

        /// Wanted, and confirmed by its node.
        fn confirmed(&mut self, names: &[(NodeId, &str)]) {
            for (node, name) in names {
                assert!(!self.0.subscribe(name.as_bytes()));
                assert_eq!(self.steps(), [subscribe(*node, name)]);
                assert!(self.0.confirmed(*node, name.as_bytes()));
            }
        }
    }

    fn subscribe(node: NodeId, name: &str) -> Step {
        Step::Subscribe(node, name.as_bytes().into())
    }

    fn unsubscribe(node: NodeId, name: &str) -> Step {
        Step::Unsubscribe(node, name.as_bytes().into())
    }

    #[test]
    fn a_channel_is_wanted_at_the_node_that_has_its_slot() {
        let mut played = Played::up();
        played.confirmed(&[(1, "a"), (0, "b"), (1, "c")]);
        assert!(played.0.subscribe(b"a"), "confirmed already");
        assert_eq!((played.0.node_of(b"a"), played.0.node_of(b"b")), (Some(1), Some(0)));
        played.0.unsubscribe(b"b");
        assert_eq!(played.steps(), [unsubscribe(0, "b")]);
        assert_eq!(played.lapses(), [""; 0]);
        assert!(!played.0.wants_topology());
    }

    #[test]
    fn a_moved_channel_follows_the_redirect_and_lapses_until_it_is_confirmed() {
        let mut played = Played::up();
        played.confirmed(&[(1, "a"), (1, "c")]);
        played.0.ended(1, b"a");
        assert_eq!((played.lapses(), played.steps()), (vec!["a".to_owned()], vec![]));
        assert!(!played.0.subscribe(b"a"), "not until it is confirmed");
        played.0.moved(1, b"a", Some(server(1)));
        assert_eq!(played.steps(), [subscribe(0, "a")]);
        assert_eq!(played.lapses(), [""; 0], "once");
        assert_eq!(played.0.node_of(b"a"), Some(0), "publications too");
        assert!(played.0.wants_topology());
        assert!(played.0.confirmed(0, b"a"));
        assert!(!played.0.confirmed(1, b"a"), "an answer of the old node is not for the relay");
        assert_eq!(played.steps(), [unsubscribe(1, "a")]);
        // A node that is behind, in the epoch that is known.
        played.0.take_topology(&two());
        assert_eq!((played.steps(), played.lapses()), (vec![], vec![]));
    }

    #[test]
    fn a_redirect_to_a_new_node_starts_it() {
        let mut played = Played::up();
        played.confirmed(&[(1, "a")]);
        played.0.ended(1, b"a");
        played.0.moved(1, b"a", Some(server(3)));
        let start = Step::Start { node: 2, server: server(3), probe_slot: slot_of(b"a") };
        assert_eq!(played.steps(), [start, subscribe(2, "a")]);
        played.0.node_up(2);
        assert!(played.0.confirmed(2, b"a"));
        assert_eq!(played.lapses(), ["a"]);
    }

    #[test]
    fn two_nodes_that_each_name_the_other_wait_for_a_topology() {
        let mut played = Played::up();
        played.confirmed(&[(1, "a")]);
        played.0.ended(1, b"a");
        let mut at = 1;
        while played.0.is_at(b"a", at) {
            let other = 1 - at;
            played.0.moved(at, b"a", Some(server(other as u16 + 1)));
            at = other;
        }
        assert!(played.0.is_impaired());
        played.steps();
        played.0.take_topology(&Topology { claims: vec![claim(1, 3, 0, 16383)] });
        let steps = played.steps();
        assert_eq!(steps.first(), Some(&subscribe(0, "a")), "{steps:?}");
        assert_eq!(steps.last(), Some(&Step::Stop(1)), "it has nothing any more");
        assert!(!played.0.is_impaired());
    }

    #[test]
    fn channels_of_a_node_that_is_gone_lapse_and_follow_its_replica() {
        let mut played = Played::up();
        played.confirmed(&[(1, "a"), (0, "b"), (1, "c")]);
        played.0.node_down(1);
        let mut lapses = played.lapses();
        lapses.sort();
        assert_eq!(lapses, ["a", "c"]);
        assert!(played.0.is_impaired() && played.0.node_of(b"a").is_none());
        assert!(!played.0.subscribe(b"d"), "slot 11298, of the same node");
        assert_eq!((played.lapses(), played.steps()), (vec!["d".to_owned()], vec![subscribe(1, "d")]));
        played.0.take_topology(&Topology { claims: vec![claim(1, 1, 0, 5000), claim(3, 3, 5001, 16383)] });
        let steps = played.steps();
        assert!(matches!(steps[0], Step::Start { node: 2, .. }), "{steps:?}");
        for name in ["a", "c", "d"] {
            assert!(
                steps.contains(&subscribe(2, name)) && steps.contains(&unsubscribe(1, name)),
                "{steps:?}"
            );
        }
        assert_eq!(steps.last(), Some(&Step::Stop(1)));
        assert_eq!(played.lapses(), [""; 0], "told once");
        played.0.node_up(2);
        assert!(played.0.confirmed(2, b"a") && !played.0.is_impaired());
    }

    #[test]
    fn a_newer_claim_ends_what_a_node_that_was_cut_off_still_confirms() {
        let mut played = Played::up();
        played.confirmed(&[(1, "a"), (0, "b")]);
        let claims = vec![claim(1, 1, 0, 5000), claim(2, 2, 5001, 16383), claim(3, 7, 15000, 16383)];
        played.0.take_topology(&Topology { claims });
        assert_eq!(played.lapses(), ["a"]);
        let steps = played.steps();
        assert!(steps.contains(&unsubscribe(1, "a")) && steps.contains(&subscribe(2, "a")), "{steps:?}");
    }

    #[test]
    fn a_probe_whose_slot_moves_takes_another_of_the_same_node() {
        let mut played = Played::up();
        played.0.probe_moved(0);
        assert_eq!(played.steps(), [Step::MoveProbe(0, 1)]);
        played.0.take_topology(&two());
        assert_eq!(played.steps(), [], "slot 0 is its own in the eyes of others, and slot 1 serves");
        // Its last slot.
        let mut played = Played(Placement::new());
        played.0.take_topology(&Topology { claims: vec![claim(1, 1, 9, 9), claim(2, 2, 10, 10)] });
        played.steps();
        played.0.node_up(0);
        played.0.node_up(1);
        played.0.probe_moved(0);
        assert_eq!(played.steps(), []);
        played.0.take_topology(&Topology { claims: vec![claim(1, 1, 9, 9), claim(2, 2, 10, 10)] });
        assert_eq!(played.steps(), [Step::MoveProbe(0, 9)], "it has come back");
    }

    #[test]
    fn while_the_link_is_down_nothing_lapses_and_when_it_is_up_what_has_no_node_does() {
        let mut played = Played(Placement::new());
        played.0.take_topology(&two());
        played.steps();
        played.0.subscribe(b"a");
        played.0.subscribe(b"b");
        assert_eq!(played.lapses(), [""; 0]);
        played.0.node_up(0);
        played.0.begin();
        assert_eq!(played.lapses(), ["a"]);
        played.0.end();
        played.0.node_down(0);
        assert_eq!(played.lapses(), [""; 0]);
    }

    #[test]
    fn whoever_took_no_probe_is_asked_after_the_others() {
        let mut played = Played::up();
        assert_eq!(played.0.servers(), (vec![server(1), server(2)], vec![]));
        played.0.probed(0, false);
        assert!(played.0.is_impaired());
        assert_eq!(played.0.servers(), (vec![server(2)], vec![server(1)]));
        played.0.probed(0, true);
        assert!(!played.0.is_impaired());
        played.0.node_down(1);
        assert_eq!(played.0.servers(), (vec![server(1)], vec![server(2)]));
    }

    #[test]
    fn a_refused_channel_is_forgotten() {
        let mut played = Played::up();
        played.confirmed(&[(1, "a")]);
        assert!(!played.0.refused(0, b"a"), "by a node that it has left");
        assert!(played.0.refused(1, b"a"));
        assert!(!played.0.subscribe(b"a"), "it may be tried again");
    }

    proptest! {
        // Each topology walks 16,384 slots, and each check does.
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Whatever the nodes say in whatever order: a topology of a newer epoch settles it, and each channel is then wanted
        /// at its owner and nowhere else.
        #[test]
        fn a_newer_topology_settles_everything(
            events in proptest::collection::vec((0..9u8, 0..4u32, 0..6usize, 1..5u16), 0..60)
        ) {
            const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
            let mut played = Played::up();
            let mut wanted = [false; 6];
            for (kind, node, name, port) in events {
                let name_bytes = NAMES[name].as_bytes();
                match kind {
                    0 => { played.0.subscribe(name_bytes); wanted[name] = true; }
                    1 => { played.0.unsubscribe(name_bytes); wanted[name] = false; }
                    2 => drop(played.0.confirmed(node, name_bytes)),
                    3 => played.0.ended(node, name_bytes),
                    4 => played.0.moved(node, name_bytes, Some(server(port)).filter(|_| port < 4)),
                    5 => played.0.node_down(node),
                    6 => played.0.node_up(node),
                    7 => played.0.probe_moved(node),
                    _ => played.0.take_topology(&two()),
                }
                played.0.check();
            }
            let last = Topology { claims: vec![claim(1, 8, 0, 8000), claim(4, 9, 8001, 16383)] };
            played.0.take_topology(&last);
            played.0.check();
            for (index, name) in NAMES.iter().enumerate() {
                let channel = played.0.channels.get(name.as_bytes());
                prop_assert_eq!(channel.is_some(), wanted[index]);
                if let Some(channel) = channel {
                    let owner = last.owner(slot_of(name.as_bytes())).expect("all slots are claimed");
                    let node = channel.node.expect("it has a place");
                    prop_assert_eq!(&played.0.nodes[&node].server, owner);
                }
            }
        }
    }
}
