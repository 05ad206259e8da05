//! A Redis Cluster of one test's own, on 127.0.0.1 and free ports: primaries with equal shares of the slots, replicas if wanted.

use std::net::SocketAddr;

use redis_protocol::redis_keyslot;
use redis_protocol::resp2::types::OwnedFrame;

use super::authority::{Authority, Identity};
use super::deadline::{LONG, eventually, eventually_ok};
use super::redis::{Redis, text};
use super::tls_redis;
use super::tool::free_port;

const SLOTS: usize = 16384;

pub struct Cluster {
    /// The primaries first, then the replica of each, in the same order.
    pub nodes: Vec<Redis>,
    primaries: usize,
    tls: Option<Authority>,
}

impl Cluster {
    /// Returns when every node says that the cluster is well, and each replica is in step.
    #[track_caller]
    pub fn start(primaries: usize, has_replicas: bool) -> Self {
        Self::start_of(primaries, has_replicas, None)
    }

    /// With TLS, also among themselves; their certificates are for 127.0.0.1.
    #[track_caller]
    pub fn start_tls(primaries: usize, has_replicas: bool) -> Self {
        let authority = Authority::new("an authority");
        let identity = authority.issue("redis", &["127.0.0.1"]);
        Self::start_of(primaries, has_replicas, Some((authority, identity)))
    }

    #[track_caller]
    fn start_of(primaries: usize, has_replicas: bool, tls: Option<(Authority, Identity)>) -> Self {
        let count = if has_replicas { 2 * primaries } else { primaries };
        let (nodes, buses): (Vec<Redis>, Vec<u16>) = (0..count).map(|_| node(tls.as_ref())).unzip();
        let cluster = Self { nodes, primaries, tls: tls.map(|(authority, _)| authority) };
        for (index, node) in cluster.nodes.iter().enumerate() {
            node.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
            if index < primaries {
                let (first, last) = cluster.share(index);
                node.cli(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
            }
            let port = cluster.address(0).port().to_string();
            if index > 0 {
                node.cli(&["CLUSTER", "MEET", "127.0.0.1", &port, &buses[0].to_string()]);
            }
        }
        cluster.wait_each("every node knows the others", |info| {
            info.contains(&format!("cluster_known_nodes:{count}\r"))
        });
        for replica in primaries..count {
            let primary = cluster.id(replica - primaries);
            eventually_ok(LONG, "a node becomes a replica", || {
                cluster.nodes[replica].connect()?.command(&[b"CLUSTER", b"REPLICATE", primary.as_bytes()])
            });
            eventually(LONG, "a replica is in step", || {
                text(&cluster.nodes[replica].cli(&["INFO", "replication"])).contains("master_link_status:up")
            });
        }
        cluster.wait_each("the cluster is well", |info| info.contains("cluster_state:ok"));
        cluster
    }

    /// What the server is given as `--redis`: two of the nodes.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "rediss" } else { "redis" };
        format!("{scheme}+cluster://{},{}", self.address(0), self.address(1))
    }

    /// Who signed its nodes' certificates.
    pub fn authority(&self) -> &Authority {
        self.tls.as_ref().expect("it has TLS")
    }

    /// Where the server reaches a node.
    fn address(&self, node: usize) -> SocketAddr {
        match &self.tls {
            Some(_) => self.nodes[node].second_address(),
            None => self.nodes[node].address(),
        }
    }

    /// First and last slot of a primary, as the cluster was made.
    pub fn share(&self, primary: usize) -> (usize, usize) {
        (primary * SLOTS / self.primaries, (primary + 1) * SLOTS / self.primaries - 1)
    }

    /// Which primary had the slot of `room` when the cluster was made.
    pub fn first_owner(&self, room: &str) -> usize {
        let slot = usize::from(redis_keyslot(format!("room:{room}").as_bytes()));
        (0..self.primaries).find(|&primary| slot <= self.share(primary).1).expect("each slot is somebody's")
    }

    /// So many rooms whose slots the primary had when the cluster was made.
    pub fn rooms_of(&self, primary: usize, count: usize) -> Vec<String> {
        let names = (0..).map(|number| format!("r{number}"));
        names.filter(|room| self.first_owner(room) == primary).take(count).collect()
    }

    /// Publishes to a room at whoever takes it; waits until somebody does.
    #[track_caller]
    pub fn publish(&self, room: &str, payload: impl AsRef<[u8]>) {
        let channel = format!("room:{room}");
        let command: [&[u8]; 3] = [b"SPUBLISH", channel.as_bytes(), payload.as_ref()];
        eventually_ok(LONG, "a node takes a publication", || {
            let mut last = None;
            for node in &self.nodes {
                match node.connect().and_then(|mut connection| connection.command(&command)) {
                    Ok(_) => return Ok(()),
                    Err(error) => last = Some(error),
                }
            }
            Err(last.expect("a cluster has nodes"))
        });
    }

    /// Publishes to a room at this node, which has its slot.
    #[track_caller]
    pub fn publish_at(&self, node: usize, room: &str, payload: impl AsRef<[u8]>) {
        let channel = format!("room:{room}");
        let command: [&[u8]; 3] = [b"SPUBLISH", channel.as_bytes(), payload.as_ref()];
        eventually_ok(LONG, "the node takes a publication", || self.nodes[node].connect()?.command(&command));
    }

    /// `master` or `slave`.
    #[track_caller]
    pub fn role(&self, node: usize) -> String {
        match self.nodes[node].cli(&["ROLE"]) {
            OwnedFrame::Array(parts) => parts.first().map(text).unwrap_or_default(),
            other => panic!("ROLE answered {other:?}"),
        }
    }

    /// Subscribers of a room over all nodes.
    #[track_caller]
    pub fn subscribers(&self, room: &str) -> i64 {
        let channel = format!("room:{room}");
        self.nodes.iter().map(|node| node.shard_subscribers(&channel)).sum()
    }

    /// Moves the slot of `room`, as `redis-cli --cluster reshard` does; there are no keys in it.
    #[track_caller]
    pub fn migrate(&self, room: &str, from: usize, to: usize) {
        let slot = redis_keyslot(format!("room:{room}").as_bytes()).to_string();
        let (source, target) = (self.id(from), self.id(to));
        self.nodes[to].cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source]);
        self.nodes[from].cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]);
        self.nodes[to].cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &target]);
        self.nodes[from].cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &target]);
    }

    fn id(&self, node: usize) -> String {
        text(&self.nodes[node].cli(&["CLUSTER", "MYID"]))
    }

    #[track_caller]
    fn wait_each(&self, what: &str, wanted: impl Fn(&str) -> bool) {
        for node in &self.nodes {
            eventually(LONG, what, || wanted(&text(&node.cli(&["CLUSTER", "INFO"]))));
        }
    }
}

/// A node that has met nobody, and the port of its bus.
#[track_caller]
fn node(tls: Option<&(Authority, Identity)>) -> (Redis, u16) {
    let bus = free_port();
    let port = bus.to_string();
    let args = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", &port];
    let args = [&args[..], &["--repl-diskless-sync-delay", "0"]].concat();
    let redis = match tls {
        Some((authority, identity)) => {
            let sealed = ["--tls-cluster", "yes", "--tls-replication", "yes"];
            tls_redis::start_node(authority, identity, &[&args[..], &sealed].concat())
        }
        None => Redis::start_with(&args),
    };
    (redis, bus)
}
