//! The queues of a listening socket: how many newcomers may wait in the kernel.

use host::{ListenCounters, Root};
use shards::limits::LISTEN_BACKLOG;

use super::finding::{Count, Finding, Level};
use super::need::Need;

const SOMAXCONN: &str = "net.somaxconn";
const SYN_BACKLOG: &str = "net.syn_backlog";
const OVERFLOWS: &str = "net.listen_overflows";
/// A tenth of a shard's connections come back at once (a proxy of ten restarts, or a cell of a mobile network), but no fewer
/// than this.
const WAITING_MIN: u64 = 1024;
const COME_BACK_ONE_IN: u64 = 10;

/// What bounds them, and what they lost.
pub struct Backlog {
    /// `net.core.somaxconn`.
    pub somaxconn: Option<u64>,
    /// `net.ipv4.tcp_max_syn_backlog`.
    pub syn_backlog: Option<u64>,
    /// `net.ipv4.tcp_syncookies`: 0 never, 1 when the queue is full, 2 always.
    pub syncookies: Option<u64>,
    /// What was lost.
    pub lost: Option<ListenCounters>,
}

impl Backlog {
    /// Of this network namespace.
    pub fn read(root: &Root) -> Self {
        Self {
            somaxconn: root.number("/proc/sys/net/core/somaxconn"),
            syn_backlog: root.number("/proc/sys/net/ipv4/tcp_max_syn_backlog"),
            syncookies: root.number("/proc/sys/net/ipv4/tcp_syncookies"),
            lost: ListenCounters::read(root),
        }
    }

    /// Against a tenth of the wanted connections, who come back at once.
    pub fn judge(&self, need: &Need) -> Vec<Finding> {
        let due = (need.connections / need.shards().max(1) / COME_BACK_ONE_IN)
            .clamp(WAITING_MIN, LISTEN_BACKLOG as u64);
        let accept_queue = match self.somaxconn {
            Some(somaxconn) => judge_somaxconn(somaxconn, due),
            None => Finding::untold(SOMAXCONN, "net.core.somaxconn"),
        };
        let is_short = accept_queue.level != Level::Ok;
        let lost = match self.lost {
            Some(lost) => judge_lost(lost, is_short),
            None => Finding::untold(OVERFLOWS, "/proc/net/netstat"),
        };
        vec![accept_queue, self.judge_syn_queue(due), lost]
    }

    fn judge_syn_queue(&self, due: u64) -> Finding {
        let (Some(backlog), Some(cookies)) = (self.syn_backlog, self.syncookies) else {
            return Finding::untold(SYN_BACKLOG, "net.ipv4.tcp_max_syn_backlog or tcp_syncookies");
        };
        let found = format!("tcp_max_syn_backlog {}, tcp_syncookies {cookies}", Count(backlog));
        match cookies {
            // With cookies a full queue refuses nobody: what the queue would hold is in the cookie.
            1 => Finding::ok(SYN_BACKLOG, found),
            0 if backlog >= due => Finding::ok(SYN_BACKLOG, found),
            0 => Finding::warn(SYN_BACKLOG, found)
                .due(format!("cookies, or {} half-open connections", Count(due)))
                .cure("sysctl -w net.ipv4.tcp_syncookies=1"),
            _ => Finding::warn(SYN_BACKLOG, found)
                .due("1: sent to everybody, cookies cost each connection its TCP options without timestamps")
                .cure("sysctl -w net.ipv4.tcp_syncookies=1"),
        }
    }
}

fn judge_somaxconn(somaxconn: u64, due: u64) -> Finding {
    let asked = LISTEN_BACKLOG as u64;
    let found = format!(
        "net.core.somaxconn {}: a shard's listen backlog of {} becomes {}",
        Count(somaxconn),
        Count(asked),
        Count(asked.min(somaxconn))
    );
    if somaxconn >= due {
        return Finding::ok(SOMAXCONN, found);
    }
    Finding::warn(SOMAXCONN, found)
        .due(format!("{}: a tenth of a shard's connections, come back at once", Count(due)))
        .cure(format!("sysctl -w net.core.somaxconn={asked}  # Docker: --sysctl net.core.somaxconn={asked}"))
}

/// The counters never go back, so that a past that is cured must not warn for ever.
fn judge_lost(lost: ListenCounters, is_short: bool) -> Finding {
    let found = format!(
        "{} listen overflows, {} drops in this network namespace since it began, of all programs",
        Count(lost.overflows),
        Count(lost.drops)
    );
    match (lost.overflows, is_short) {
        (0, _) => Finding::ok(OVERFLOWS, found),
        (_, true) => Finding::warn(OVERFLOWS, found)
            .due(format!("none: newcomers were turned away; raise the backlog ({SOMAXCONN})"))
            .cure("nstat -az TcpExtListenOverflows TcpExtListenDrops  # whether they grow"),
        (_, false) => Finding::info(
            OVERFLOWS,
            format!("{found}; nstat -az TcpExtListenOverflows says whether they grow"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::need::tests::need;
    use super::*;

    fn levels(somaxconn: u64, syn: (u64, u64), overflows: u64, connections: u64) -> Vec<&'static str> {
        let backlog = Backlog {
            somaxconn: Some(somaxconn),
            syn_backlog: Some(syn.0),
            syncookies: Some(syn.1),
            lost: Some(ListenCounters { overflows, drops: overflows }),
        };
        backlog.judge(&need(connections)).iter().map(|finding| finding.level.name()).collect()
    }

    #[test]
    fn the_queues_are_long_enough_for_a_tenth_that_comes_back() {
        for (somaxconn, syn, overflows, connections, expected) in [
            (4096, (2048, 1), 0, 10_000, ["ok", "ok", "ok"]),
            (128, (128, 1), 0, 10_000, ["warn", "ok", "ok"]),
            (128, (128, 1), 5, 10_000, ["warn", "ok", "warn"]),
            (4096, (128, 0), 5, 10_000, ["ok", "warn", "info"]),
            (4096, (1024, 2), 0, 10_000, ["ok", "warn", "ok"]),
            // Three shards: 33,333 of a million.
            (33_333, (128, 1), 0, 1_000_000, ["ok", "ok", "ok"]),
            (33_332, (65_536, 0), 0, 1_000_000, ["warn", "ok", "ok"]),
            // More than the server asks for can't be due.
            (65_535, (128, 1), 0, 1_000_000_000, ["ok", "ok", "ok"]),
        ] {
            assert_eq!(
                levels(somaxconn, syn, overflows, connections),
                expected,
                "{somaxconn} {syn:?} {overflows}"
            );
        }
    }

    #[test]
    fn what_is_not_told_is_not_judged() {
        let nothing = Backlog { somaxconn: None, syn_backlog: None, syncookies: None, lost: None };
        assert!(nothing.judge(&need(1)).iter().all(|finding| finding.level == Level::Info));
    }
}
