//! A cluster: whether its nodes are there, and whether each slot is somebody's.

use shards::config::{RedisAddress, RedisTarget};
use shards::redis::cluster::{SLOTS, Topology};

use super::finding::{Count, Finding};
use crate::redis::RedisConnection;

const CLUSTER: &str = "redis.cluster";

/// `None` where `target` is no cluster.
pub fn judge(target: &RedisTarget) -> Option<Finding> {
    let RedisAddress::Cluster(_) = &target.address else { return None };
    Some(match RedisConnection::connect(target).and_then(|mut connection| connection.topology()) {
        Ok(topology) => judge_topology(&topology),
        Err(failure) => Finding::bad(CLUSTER, failure.sentence)
            .due("a node that says who has which slot (CLUSTER NODES)")
            .cure("redis-cli -h NODE CLUSTER INFO  # of each of them"),
    })
}

fn judge_topology(topology: &Topology) -> Finding {
    let ranges = topology.claims.iter().flat_map(|claim| &claim.slots);
    let covered: usize = ranges.map(|&(first, last)| usize::from(last - first) + 1).sum();
    let found = format!("{} primaries have {} slots", topology.claims.len(), Count(covered as u64));
    if covered < SLOTS {
        return Finding::bad(CLUSTER, found)
            .due(format!("all {}: rooms of the others hear this node's clients only", Count(SLOTS as u64)))
            .cure("redis-cli --cluster fix NODE:PORT");
    }
    Finding::ok(CLUSTER, found)
}

#[cfg(test)]
mod tests {
    use shards::config::Server;

    use super::super::finding::Level;
    use super::*;

    #[test]
    fn each_slot_is_somebodys() {
        let asked = Server { host: "h".to_owned(), port: 1 };
        let judged = |text: &str| judge_topology(&Topology::parse(text, &asked).expect("nodes")).level;
        let one = "a h:1@2 master - 0 0 1 connected 0-8191\n";
        assert_eq!(judged(&format!("{one}b h:2@3 master - 0 0 2 connected 8192-16383\n")), Level::Ok);
        assert_eq!(judged(one), Level::Bad);
    }
}
