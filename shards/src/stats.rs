//! The page at `/stats`: the numbers of this process for people and scripts, as JSON.

use serde_json::{Map, Value, json};

use crate::command::Ledger;
use crate::metrics::{By, Label, RelayMetrics, SecondsBy};
use crate::setup::Setup;

/// One object: what runs, connections, deliveries with their ledger, the broker, and the shards one by one.
pub fn page(setup: &Setup, ledger: &Ledger) -> String {
    let metrics = &setup.metrics;
    let relay = &metrics.relay;
    let shards: Vec<Value> = metrics
        .shards
        .iter()
        .map(|shard| {
            json!({
                "connections": shard.connections.value(),
                "rooms": shard.rooms.value(),
                "subscriptions": shard.subscriptions.value(),
                "deliveries": shard.deliveries.value(),
                "stalled": shard.stalled.value(),
                "window_bytes": shard.window_bytes.value(),
            })
        })
        .collect();
    let page = json!({
        "version": metrics.identity.version,
        "node": metrics.identity.node_id,
        "process": metrics.identity.process,
        "driver": metrics.identity.driver,
        "presets": metrics.identity.presets,
        "draining": setup.is_draining(),
        "connections": {
            "open": metrics.sum(|s| s.connections.value()),
            "accepted": metrics.sum(|s| s.accepted.value()),
            "stalled": metrics.sum(|s| s.stalled.value()),
            "closed": totals(|value| metrics.sum(|s| s.closed.value(value))),
        },
        // The two numbers that the broadcaster's users look for, under their names.
        "clients": metrics.sum(|s| s.websockets.value()),
        "events": relay.publications_received.total() + relay.publications_unrouted.value(),
        "rooms": metrics.sum(|s| s.rooms.value()),
        "subscriptions": metrics.sum(|s| s.subscriptions.value()),
        "ledger": {
            "owed": ledger.owed,
            "delivered": ledger.delivered,
            "filtered": ledger.filtered,
            "conflated": ledger.conflated,
            "dropped": ledger.dropped,
            "pending": ledger.pending,
            "balances": ledger.balances(),
        },
        "drops": totals(|value| metrics.sum(|s| s.drops.value(value))),
        "gaps": by(&relay.gaps),
        "publications": {
            "received": relay.publications_received.total(),
            "by_source": relay.publications_received.by_name(),
            "unrouted": relay.publications_unrouted.value(),
            "refused": by(&relay.refused),
        },
        "broker": {
            "up": setup.broker_is_up(),
            "breaks": relay.broker_breaks.total(),
            "reconnects": relay.broker_reconnects.total(),
            "servers": servers(relay),
        },
        "relay": { "busy_seconds": seconds(&relay.busy) },
        "window_bytes": metrics.sum(|s| s.window_bytes.value()),
        "log_bytes": relay.log_bytes.value(),
        "shards": shards,
    });
    format!("{page}\n")
}

/// Each server of the broker, by its name.
fn servers(relay: &RelayMetrics) -> Value {
    let names = relay.broker_up.by_name().enumerate();
    let server = |(server, (name, up)): (usize, (&str, u64))| {
        let told = json!({
            "up": up == 1,
            "breaks": relay.broker_breaks.of(server).value(),
            "reconnects": relay.broker_reconnects.of(server).value(),
            "attempts_failed": relay.broker_attempts_failed.of(server).value(),
            "received": relay.publications_received.of_server(name),
            "published": relay.publishes_sent.of(server).value(),
        });
        (name.to_owned(), told)
    };
    Value::Object(names.map(server).collect())
}

fn by<L: Label>(numbers: &By<L>) -> Value {
    totals(|value| numbers.value(value))
}

fn seconds<L: Label>(of: &SecondsBy<L>) -> Value {
    let told = L::ALL.iter().map(|value| (value.label().to_owned(), of.seconds(*value).into()));
    Value::Object(told.collect::<Map<_, _>>())
}

/// The values of a label that are not zero.
fn totals<L: Label>(of: impl Fn(L) -> u64) -> Value {
    let counted = L::ALL.iter().map(|value| (value.label(), of(*value))).filter(|(_, n)| *n > 0);
    Value::Object(counted.map(|(name, n)| (name.to_owned(), n.into())).collect::<Map<_, _>>())
}
