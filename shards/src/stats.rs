//! The page at `/stats`: the numbers of this process for people and scripts, as JSON.

use serde_json::{Map, Value, json};

use crate::command::Report;
use crate::metrics::{By, Cause, Label, RelayMetrics, SecondsBy};
use crate::setup::Setup;
use crate::tcp::Slowest;

/// One object: what runs, connections, deliveries with their ledger, the broker, and the shards one by one.
pub fn page(setup: &Setup, report: &Report) -> String {
    let ledger = &report.ledger;
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
        "slow": {
            "found": totals(|value| metrics.sum(|s| s.slow.value(value))),
            "slowest": report.slowest.iter().map(slowest).collect::<Vec<_>>(),
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

fn slowest(one: &Slowest) -> Value {
    let cause = one.tcp.map_or(Cause::Unknown, |tcp| tcp.cause());
    json!({
        "shard": one.shard,
        "cause": cause.label(),
        "stuck_seconds": one.stuck.as_secs_f64(),
        "behind_seconds": one.behind.as_secs_f64(),
        "behind_bytes": one.behind_bytes,
        "tcp": one.tcp.map(|tcp| json!({
            "window_bytes": tcp.window_bytes,
            "segment_bytes": tcp.segment_bytes,
            "unsent_bytes": tcp.unsent_bytes,
            "unacked_segments": tcp.unacked,
            "lost_segments": tcp.lost,
            "retransmits_in_a_row": tcp.retransmits,
            "retransmitted_segments": tcp.retransmitted,
            "round_trip_seconds": tcp.round_trip.as_secs_f64(),
            "busy_seconds": tcp.busy.as_secs_f64(),
            "window_limited_seconds": tcp.window_limited.as_secs_f64(),
            "buffer_limited_seconds": tcp.buffer_limited.as_secs_f64(),
        })),
    })
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
