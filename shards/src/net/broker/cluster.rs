//! A Redis Cluster as one link: an ordinary link to each primary, and who has which slot asked for again and again.
//!
//! Each node's link has its own connections, sessions, probe and way back; [`Placement`] decides which channel is wanted at
//! which of them. The cluster is up while one node is: a node that goes breaks the rooms of its slots alone, which are
//! told as lapsed. Its publications go by slot too, and follow a redirect.

use std::cell::RefCell;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::{HashMap, HashMapExt};

use super::blocking::blocking;
use super::fences::Fences;
use super::{BrokerCounters, BrokerEvents, OneLink, Wake, start_node, tls_client};
use crate::config::{RedisAddress, RedisTarget, Server};
use crate::redis::cluster::{Topology, ask_topology, probe_channel};
use crate::redis::placement::{NodeId, Placement, Step};
use crate::redis::{PublishError, Refused, SessionError};

/// The link to a cluster.
pub(super) struct Cluster {
    /// Never held across an await, nor while [`BrokerEvents`] is called.
    inner: RefCell<Inner>,
    target: RedisTarget,
    node_id: String,
    asker_wake: Wake,
    teller_wake: Wake,
    stopped_wake: Wake,
}

struct Inner {
    placement: Placement,
    links: HashMap<NodeId, OneLink>,
    /// Links of nodes that have nothing any more, on their way out.
    leaving: Vec<OneLink>,
    /// What may have to follow a redirect.
    inflight: HashMap<u64, Inflight>,
    fences: Fences,
    is_up: bool,
    is_stopping: bool,
    is_stopped: bool,
    /// When the cluster is up although not every node is.
    up_at: Option<Instant>,
    last_reason: String,
    counters: BrokerCounters,
    /// Of the links that are gone.
    gone: BrokerCounters,
}

struct Inflight {
    channel: Box<[u8]>,
    payload: Bytes,
    redirects: u8,
}

/// Starts the link; see [`super::start`].
pub(super) fn start<E: BrokerEvents + 'static>(
    target: RedisTarget,
    node_id: &str,
    events: Rc<RefCell<E>>,
) -> Rc<Cluster> {
    let cluster = Rc::new(Cluster {
        inner: RefCell::new(Inner {
            placement: Placement::new(),
            links: HashMap::new(),
            leaving: Vec::new(),
            inflight: HashMap::new(),
            fences: Fences::default(),
            is_up: false,
            is_stopping: false,
            is_stopped: false,
            up_at: None,
            last_reason: String::new(),
            counters: BrokerCounters::default(),
            gone: BrokerCounters::default(),
        }),
        target,
        node_id: node_id.to_owned(),
        asker_wake: Wake::default(),
        teller_wake: Wake::default(),
        stopped_wake: Wake::default(),
    });
    monoio::spawn(supervise(cluster.clone(), events.clone()));
    monoio::spawn(tell(cluster.clone(), events));
    cluster
}

impl Cluster {
    pub(super) fn subscribe(&self, channel: &[u8]) -> bool {
        self.inner.borrow_mut().placement.subscribe(channel);
        self.perform_at_links();
        let mut inner = self.inner.borrow_mut();
        if inner.placement.has_lapses() {
            self.teller_wake.notify();
        }
        inner.placement.subscribe(channel)
    }

    pub(super) fn unsubscribe(&self, channel: &[u8]) {
        self.inner.borrow_mut().placement.unsubscribe(channel);
        self.perform_at_links();
    }

    pub(super) fn publish(&self, channel: &[u8], payload: &[u8], token: u64) -> Result<(), Refused> {
        let mut inner = self.inner.borrow_mut();
        let node = inner.placement.node_of(channel).filter(|_| inner.is_up);
        let link = node.and_then(|node| inner.links.get(&node));
        let result = match link {
            Some(link) => link.publish(channel, payload, token),
            None => Err(Refused::Down),
        };
        match result {
            Ok(()) => {
                let payload = Bytes::copy_from_slice(payload);
                inner.inflight.insert(token, Inflight { channel: channel.into(), payload, redirects: 0 });
            }
            Err(_) => inner.counters.publishes_refused += 1,
        }
        result
    }

    pub(super) fn is_up(&self) -> bool {
        self.inner.borrow().is_up
    }

    pub(super) fn last_reason(&self) -> String {
        self.inner.borrow().last_reason.clone()
    }

    pub(super) fn publishes_inflight(&self) -> usize {
        self.inner.borrow().inflight.len()
    }

    pub(super) fn counters(&self) -> BrokerCounters {
        let inner = self.inner.borrow();
        let links = inner.links.values().map(OneLink::counters);
        let mut sum = links.fold(inner.gone, |sum, one| sum.plus(&one));
        // Those of the nodes are not the cluster's.
        (sum.ups, sum.reconnects) = (inner.counters.ups, inner.counters.reconnects);
        sum.attempts_failed += inner.counters.attempts_failed;
        sum.publishes_refused = inner.counters.publishes_refused;
        sum
    }

    pub(super) fn shutdown(&self) {
        self.inner.borrow_mut().is_stopping = true;
        self.asker_wake.notify();
        self.teller_wake.notify();
    }

    pub(super) async fn stopped(&self) {
        while !self.inner.borrow().is_stopped {
            self.stopped_wake.wait().await;
        }
        // Another clone may wait as well.
        self.stopped_wake.notify();
    }

    fn is_stopping(&self) -> bool {
        self.inner.borrow().is_stopping
    }

    /// Carries out the steps that make no new link.
    fn perform_at_links(&self) {
        let mut inner = self.inner.borrow_mut();
        while let Some(step) = inner.placement.take_step() {
            if matches!(step, Step::Start { .. }) {
                inner.placement.put_back(step);
                return self.asker_wake.notify();
            }
            inner.perform(step, &self.node_id);
        }
    }

    /// Carries out all steps and tells what has lapsed. Called from the link's own tasks only.
    fn settle<E: BrokerEvents + 'static>(self: &Rc<Self>, events: &Rc<RefCell<E>>) {
        loop {
            let step = self.inner.borrow_mut().placement.take_step();
            match step {
                Some(Step::Start { node, server, probe_slot }) => {
                    self.start_node(node, &server, probe_slot, events);
                }
                Some(step) => {
                    let confirmed = self.inner.borrow_mut().perform(step, &self.node_id);
                    if let Some(channel) = confirmed {
                        events.borrow_mut().confirmed(&channel);
                    }
                }
                None => break,
            }
        }
        self.tell_lapses(events);
        if self.inner.borrow().placement.wants_topology() {
            self.asker_wake.notify();
        }
    }

    fn tell_lapses<E: BrokerEvents>(&self, events: &RefCell<E>) {
        loop {
            let lapse = self.inner.borrow_mut().placement.take_lapse();
            let Some(channel) = lapse else { return };
            tracing::debug!(channel = ?String::from_utf8_lossy(&channel), "lapsed");
            events.borrow_mut().lapsed(&channel);
        }
    }

    fn start_node<E: BrokerEvents + 'static>(
        self: &Rc<Self>,
        node: NodeId,
        server: &Server,
        probe_slot: u16,
        events: &Rc<RefCell<E>>,
    ) {
        let address = RedisAddress::Tcp { host: server.host.clone(), port: server.port };
        let target = self.target.at(address);
        let node_events = NodeEvents { cluster: self.clone(), node, events: events.clone() };
        let channel = probe_channel(probe_slot, &self.node_id);
        let link = start_node(target, &channel, Rc::new(RefCell::new(node_events)));
        self.inner.borrow_mut().links.insert(node, link);
    }

    /// Comes up when every node is, or when one is and the others have had their time.
    fn come_up<E: BrokerEvents + 'static>(self: &Rc<Self>, events: &Rc<RefCell<E>>, now: Instant) {
        {
            let mut inner = self.inner.borrow_mut();
            let (up, all) = inner.placement.nodes();
            if inner.is_up || up == 0 {
                inner.up_at = None;
                return;
            }
            let up_at = *inner.up_at.get_or_insert(now + OTHERS_PATIENCE);
            if up < all && now < up_at {
                return self.asker_wake.notify();
            }
            inner.is_up = true;
            inner.up_at = None;
            inner.counters.reconnects += u64::from(inner.counters.ups > 0);
            inner.counters.ups += 1;
            inner.placement.begin();
            tracing::info!(nodes = up, of = all, "the cluster is up");
        }
        events.borrow_mut().up();
        self.settle(events);
    }

    fn go_down<E: BrokerEvents>(&self, events: &RefCell<E>, reason: &str) {
        {
            let mut inner = self.inner.borrow_mut();
            inner.last_reason = reason.to_owned();
            if !std::mem::take(&mut inner.is_up) {
                return;
            }
            inner.placement.end();
        }
        events.borrow_mut().down(reason);
    }
}

impl Inner {
    /// Returns a channel that turned out to be confirmed there.
    fn perform(&mut self, step: Step, node_id: &str) -> Option<Rc<[u8]>> {
        match step {
            Step::Start { .. } => unreachable!("who makes links does it himself"),
            Step::Stop(node) => {
                let link = self.links.remove(&node)?;
                self.fences.remove(node);
                self.gone = self.gone.plus(&link.counters());
                link.shutdown();
                self.leaving.push(link);
            }
            Step::MoveProbe(node, slot) => {
                self.fences.forget(node);
                self.links.get(&node)?.set_probe(&probe_channel(slot, node_id));
            }
            Step::Subscribe(node, channel) => {
                let is_confirmed = self.links.get(&node)?.subscribe(&channel);
                return (is_confirmed && self.placement.confirmed(node, &channel)).then_some(channel);
            }
            Step::Unsubscribe(node, channel) => self.links.get(&node)?.unsubscribe(&channel),
        }
        None
    }

    /// Sends a publication on that another node has the slot for. Returns whether it is under way again.
    fn resend(&mut self, token: u64, to: Option<Server>) -> bool {
        let Some(publication) = self.inflight.get_mut(&token) else { return false };
        publication.redirects += 1;
        if publication.redirects > REDIRECTS_MAX {
            return false;
        }
        let node = self.placement.publish_moved(&publication.channel, to);
        let Some(link) = node.and_then(|node| self.links.get(&node)) else { return false };
        link.publish(&publication.channel, &publication.payload, token).is_ok()
    }
}

/// What one node says, on its way to the relay.
struct NodeEvents<E> {
    cluster: Rc<Cluster>,
    node: NodeId,
    events: Rc<RefCell<E>>,
}

impl<E: BrokerEvents + 'static> NodeEvents<E> {
    fn placement<T>(&self, act: impl FnOnce(&mut Placement, NodeId) -> T) -> T {
        act(&mut self.cluster.inner.borrow_mut().placement, self.node)
    }

    fn settle(&self) {
        self.cluster.settle(&self.events);
    }
}

impl<E: BrokerEvents + 'static> BrokerEvents for NodeEvents<E> {
    fn up(&mut self) {
        self.placement(|placement, node| placement.node_up(node));
        self.cluster.inner.borrow_mut().fences.add(self.node);
        self.settle();
        self.cluster.come_up(&self.events, Instant::now());
    }

    fn connected(&mut self) {
        // While the cluster is up, channels are told one by one.
        if !self.cluster.is_up() {
            self.events.borrow_mut().connected();
        }
    }

    fn down(&mut self, reason: &str) {
        self.placement(|placement, node| placement.node_down(node));
        let is_last = {
            let mut inner = self.cluster.inner.borrow_mut();
            inner.fences.remove(self.node);
            inner.placement.nodes().0 == 0
        };
        if is_last {
            self.cluster.go_down(&self.events, reason);
        }
        self.settle();
    }

    fn confirmed(&mut self, channel: &[u8]) {
        let is_for_relay = self.placement(|placement, node| placement.confirmed(node, channel));
        if is_for_relay {
            self.events.borrow_mut().confirmed(channel);
        }
        self.settle();
    }

    fn lapsed(&mut self, channel: &[u8]) {
        self.placement(|placement, node| placement.ended(node, channel));
        self.settle();
    }

    fn refused(&mut self, channel: &[u8], reason: &str) {
        let is_for_relay = self.placement(|placement, node| placement.refused(node, channel));
        if is_for_relay {
            self.events.borrow_mut().refused(channel, reason);
        }
    }

    fn moved(&mut self, channel: &[u8], to: Option<Server>) {
        self.placement(|placement, node| placement.moved(node, channel, to));
        self.settle();
    }

    fn probe_moved(&mut self) {
        self.placement(Placement::probe_moved);
        self.settle();
    }

    fn probe_refused(&mut self) {
        self.placement(|placement, node| placement.probed(node, false));
        self.cluster.inner.borrow_mut().fences.forget(self.node);
        self.settle();
    }

    fn message(&mut self, pattern: Option<&[u8]>, channel: &[u8], payload: &[u8]) {
        self.events.borrow_mut().message(pattern, channel, payload);
    }

    fn published(&mut self, token: u64, result: Result<u64, PublishError>) {
        let result = match result {
            Err(PublishError::Rejected(SessionError::Moved { to, .. })) => {
                let is_resent = self.cluster.inner.borrow_mut().resend(token, to);
                self.settle();
                if is_resent {
                    return;
                }
                // Nobody has it, and for now nobody takes it.
                Err(PublishError::Unsent)
            }
            Err(PublishError::Rejected(SessionError::NotNow(_))) => Err(PublishError::Unsent),
            result => result,
        };
        self.cluster.inner.borrow_mut().inflight.remove(&token);
        self.events.borrow_mut().published(token, result);
    }

    fn kept(&mut self, _key: &str, _is_kept: bool) {}

    fn fetched(&mut self, _key: &str, _value: Option<&[u8]>) {}

    fn probe_sent(&mut self, number: u64) {
        let (fence, is_late) = {
            let mut inner = self.cluster.inner.borrow_mut();
            let fence = inner.fences.sent(self.node, number);
            // The one before it has been out for a second: the node may have been replaced meanwhile.
            let is_late = inner.fences.has_many_out(self.node);
            if is_late {
                inner.placement.probed(self.node, false);
            }
            (fence, is_late)
        };
        if is_late {
            self.cluster.asker_wake.notify();
        }
        self.events.borrow_mut().probe_sent(fence);
    }

    fn probe_returned(&mut self, number: u64) {
        let fence = {
            let mut inner = self.cluster.inner.borrow_mut();
            inner.placement.probed(self.node, true);
            inner.fences.returned(self.node, number)
        };
        if let Some(fence) = fence {
            self.events.borrow_mut().probe_returned(fence);
        }
    }

    fn batch_begin(&mut self) {
        self.events.borrow_mut().batch_begin();
    }

    fn batch_end(&mut self) {
        self.events.borrow_mut().batch_end();
    }
}

/// Asks who has which slot: every [`REFRESH`], and soon after something happened.
async fn supervise<E: BrokerEvents + 'static>(cluster: Rc<Cluster>, events: Rc<RefCell<E>>) {
    let mut turn = 0;
    let mut last_reason = String::new();
    while !cluster.is_stopping() {
        let asked_at = Instant::now();
        let (servers, target) = (servers_to_ask(&cluster, turn), cluster.target.clone());
        turn += 1;
        let asked = blocking(move || ask_any(&servers, &target), || cluster.is_stopping(), || {}).await;
        match asked.and_then(|asked| asked) {
            Ok(topology) => {
                last_reason.clear();
                cluster.inner.borrow_mut().placement.take_topology(&topology);
            }
            Err(reason) if reason != last_reason && !cluster.is_stopping() => {
                // One line per change: attempts that fail like the last one say nothing.
                tracing::warn!(%reason, "no node of the cluster says who has which slot; asking again");
                let mut inner = cluster.inner.borrow_mut();
                inner.counters.attempts_failed += 1;
                inner.last_reason.clone_from(&reason);
                last_reason = reason;
            }
            Err(_) => cluster.inner.borrow_mut().counters.attempts_failed += 1,
        }
        loop {
            cluster.settle(&events);
            cluster.come_up(&events, Instant::now());
            events.borrow_mut().batch_end();
            let (wants, up_at) = {
                let inner = cluster.inner.borrow();
                (inner.placement.wants_topology() || !last_reason.is_empty(), inner.up_at)
            };
            let due = asked_at + if wants { HURRY } else { REFRESH };
            if cluster.is_stopping() || Instant::now() >= due {
                break;
            }
            let until = due.min(up_at.unwrap_or(due)).max(Instant::now() + Duration::from_millis(1));
            cluster.asker_wake.wait_until(until).await;
        }
    }
    let links: Vec<OneLink> = {
        let mut inner = cluster.inner.borrow_mut();
        let Inner { links, leaving, .. } = &mut *inner;
        links.values().cloned().chain(leaving.drain(..)).collect()
    };
    links.iter().for_each(OneLink::shutdown);
    for link in links {
        link.stopped().await;
    }
    cluster.inner.borrow_mut().is_stopped = true;
    cluster.stopped_wake.notify();
}

/// Tells what lapsed inside a call of the relay's own, which may not be answered there.
async fn tell<E: BrokerEvents + 'static>(cluster: Rc<Cluster>, events: Rc<RefCell<E>>) {
    while !cluster.is_stopping() {
        cluster.teller_wake.wait().await;
        cluster.tell_lapses(&events);
        events.borrow_mut().batch_end();
    }
}

/// Nodes that are well, each in its turn, because one may be cut off and not know; then those that the configuration names, then
/// the others, which may hold the question up.
fn servers_to_ask(cluster: &Cluster, turn: usize) -> Vec<Server> {
    let (mut sound, others) = cluster.inner.borrow().placement.servers();
    if !sound.is_empty() {
        let first = turn % sound.len();
        sound.rotate_left(first);
    }
    let RedisAddress::Cluster(seeds) = &cluster.target.address else { return sound };
    let seeds = seeds.iter().filter(|seed| !others.contains(seed)).cloned();
    sound.into_iter().chain(seeds).chain(others.iter().cloned()).collect()
}

/// Blocks. What the first of a few servers says that answers.
fn ask_any(servers: &[Server], target: &RedisTarget) -> Result<Topology, String> {
    let mut said = Vec::new();
    for server in servers {
        match ask(server, target) {
            Ok(topology) => return Ok(topology),
            Err(error) => said.push(format!("{server}: {error}")),
        }
    }
    said.dedup();
    said.truncate(ANSWERS_SHOWN);
    Err(said.join("; "))
}

fn ask(server: &Server, target: &RedisTarget) -> io::Result<Topology> {
    let node = target.at(RedisAddress::Tcp { host: server.host.clone(), port: server.port });
    let client = tls_client(&node)?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (server.host.as_str(), server.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, ASK_TIMEOUT) {
            Ok(mut stream) => {
                stream.set_read_timeout(Some(ASK_TIMEOUT))?;
                stream.set_write_timeout(Some(ASK_TIMEOUT))?;
                let Some(client) = client else { return ask_topology(&mut stream, target, server) };
                let mut sealed = tls::Stream::connect(stream, &client, Instant::now() + ASK_TIMEOUT)?;
                return ask_topology(&mut sealed, target, server);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// How often somebody is asked while nothing happens: what a node that is cut off doesn't tell is seen so.
const REFRESH: Duration = Duration::from_secs(2);
/// How soon after the last time, when something happened or has no place.
const HURRY: Duration = Duration::from_millis(100);
/// How long one node may take to say it.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the other nodes are waited for when the first is up.
const OTHERS_PATIENCE: Duration = Duration::from_secs(1);
/// Nodes that one publication is sent on to.
const REDIRECTS_MAX: u8 = 4;
/// In one log line.
const ANSWERS_SHOWN: usize = 3;
