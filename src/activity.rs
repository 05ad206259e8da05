//! One line every so often that says what the server did since the last.
//!
//! From the main thread and the shared numbers: a shard pays nothing for it. Its users know it as "events ingested,
//! broadcast, delivered, dropped, active clients and rooms".

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use shards::metrics::{By, Label, Metrics};

use crate::logs;

/// The lines of one process; see [`Config::report_interval`](shards::config::Config::report_interval).
pub struct Activity {
    interval: Duration,
    /// When the next line is due; `None` where none ever is.
    due: Option<Instant>,
    begun: Instant,
    last: Counts,
}

/// What a line is made of, since the start of the process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Counts {
    /// Publications from the broker, over HTTP and from clients, refused ones left out.
    ingested: u64,
    /// Those of them whose room had members.
    broadcast: u64,
    delivered: u64,
    dropped: Reasons,
    refused: Reasons,
    missed: Reasons,
    /// Messages of clients that mean nothing here.
    ignored: u64,
    log_lines_lost: u64,
    // Gauges.
    clients: u64,
    rooms: u64,
}

/// Numbers by reason, in the order of their label.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Reasons(Vec<(&'static str, u64)>);

impl Activity {
    /// Lines every `interval`, counted from now; zero means never.
    pub fn every(interval: Duration) -> Self {
        let begun = Instant::now();
        let due = (!interval.is_zero()).then(|| begun + interval);
        Self { interval, due, begun, last: Counts::default() }
    }

    /// Logs a line if one is due at `now` and something moved since the last. Called once a second: a shorter interval is
    /// a second.
    pub fn tick(&mut self, metrics: &Metrics, now: Instant) {
        let Some(due) = self.due.filter(|due| *due <= now) else { return };
        // A call that comes late doesn't move the lines after it; calls that were missed are not made up for.
        let late = now.duration_since(due).as_nanos() / self.interval.as_nanos().max(1);
        self.due = Some(due + self.interval * u32::try_from(late + 1).unwrap_or(u32::MAX));
        let counts = Counts::of(metrics);
        if counts != self.last {
            let seconds = now.duration_since(std::mem::replace(&mut self.begun, now)).as_secs_f64();
            counts.log(&self.last, seconds);
            self.last = counts;
        }
    }
}

impl Counts {
    fn of(metrics: &Metrics) -> Self {
        let relay = &metrics.relay;
        Self {
            ingested: relay.publications_received.total() + relay.publications_unrouted.value(),
            broadcast: relay.publications_broadcast.value(),
            delivered: metrics.sum(|shard| shard.deliveries.value()),
            dropped: Reasons::of(|reason| metrics.sum(|shard| shard.drops.value(reason))),
            refused: Reasons::of_one(&relay.refused),
            missed: Reasons::of_one(&relay.gaps),
            ignored: metrics.sum(|shard| shard.messages_ignored.value()),
            log_lines_lost: logs::lost_lines() as u64,
            clients: metrics.sum(|shard| shard.websockets.value()),
            rooms: metrics.sum(|shard| shard.rooms.value()),
        }
    }

    fn log(&self, last: &Self, seconds: f64) {
        let some = |n: u64| (n > 0).then_some(n);
        let dropped = self.dropped.since(&last.dropped);
        tracing::info!(
            seconds = (seconds * 10.0).round() / 10.0,
            ingested = self.ingested - last.ingested,
            broadcast = self.broadcast - last.broadcast,
            delivered = self.delivered - last.delivered,
            dropped = dropped.total(),
            dropped_by = dropped.text(),
            refused = self.refused.since(&last.refused).text(),
            missed = self.missed.since(&last.missed).text(),
            ignored = some(self.ignored - last.ignored),
            log_lines_lost = some(self.log_lines_lost - last.log_lines_lost),
            clients = self.clients,
            rooms = self.rooms,
            total_ingested = self.ingested,
            total_broadcast = self.broadcast,
            total_delivered = self.delivered,
            total_dropped = self.dropped.total(),
            "report"
        );
    }
}

impl Reasons {
    fn of<L: Label>(number: impl Fn(L) -> u64) -> Self {
        Self(L::ALL.iter().map(|reason| (reason.label(), number(*reason))).collect())
    }

    fn of_one<L: Label>(numbers: &By<L>) -> Self {
        Self::of(|reason| numbers.value(reason))
    }

    /// What was added since `last`, which is empty or has the same reasons.
    fn since(&self, last: &Self) -> Self {
        let before = |at: usize| last.0.get(at).map_or(0, |(_, n)| *n);
        Self(self.0.iter().enumerate().map(|(at, (reason, n))| (*reason, n - before(at))).collect())
    }

    fn total(&self) -> u64 {
        self.0.iter().map(|(_, n)| n).sum()
    }

    /// `reason=3 other=1`; `None` where there is nothing to say.
    fn text(&self) -> Option<String> {
        let mut text = String::new();
        for (reason, n) in self.0.iter().filter(|(_, n)| *n > 0) {
            let separator = if text.is_empty() { "" } else { " " };
            let _ = write!(text, "{separator}{reason}={n}");
        }
        (!text.is_empty()).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use shards::metrics::{DropReason, Identity};

    use super::*;

    #[test]
    fn reasons_are_told_with_what_was_added_to_them() {
        let metrics = Metrics::new(2, Identity::default(), false);
        metrics.shards[0].drops.add(DropReason::Closed, 2);
        let before = Counts::of(&metrics);
        metrics.shards[1].drops.add(DropReason::Closed, 3);
        metrics.shards[1].drops.add(DropReason::DropOldest, 1);
        let since = Counts::of(&metrics).dropped.since(&before.dropped);
        assert_eq!((since.total(), since.text().as_deref()), (4, Some("drop_oldest=1 closed=3")));
        assert_eq!(before.dropped.since(&before.dropped).text(), None);
        assert_eq!(
            before.dropped.since(&Reasons::default()).total(),
            2,
            "the first line counts from the start"
        );
    }

    #[test]
    fn lines_keep_their_pace_and_a_quiet_server_writes_none() {
        let metrics = Metrics::new(1, Identity::default(), false);
        let mut activity = Activity::every(Duration::from_secs(10));
        let begun = activity.begun;
        activity.last = Counts::of(&metrics);
        let due_after = |activity: &Activity| activity.due.map(|due| due - begun);
        activity.tick(&metrics, begun + Duration::from_secs(9));
        assert_eq!(due_after(&activity), Some(Duration::from_secs(10)));
        activity.tick(&metrics, begun + Duration::from_secs(11));
        assert_eq!(due_after(&activity), Some(Duration::from_secs(20)), "a late call moves nothing");
        assert_eq!(activity.begun, begun, "a line in which nothing moved was written");
        metrics.shards[0].deliveries.add(1);
        activity.tick(&metrics, begun + Duration::from_secs(47));
        assert_eq!(due_after(&activity), Some(Duration::from_secs(50)));
        assert_eq!(activity.begun, begun + Duration::from_secs(47));
        let mut never = Activity::every(Duration::ZERO);
        never.tick(&metrics, begun + Duration::from_secs(1_000_000));
        assert_eq!(never.due, None);
    }
}
