//! corecast's own bounds against what is wanted of it.

use std::time::Duration;

use shards::config::{Config, duration_text};
use shards::limits::SHARD_INPUT_BYTES_MAX;

use super::finding::{Bytes, Count, Finding};
use super::need::{Need, WantedBy};

const CONNECTIONS: &str = "bounds.connections";
const PINGS: &str = "bounds.pings";
const MESSAGES: &str = "bounds.messages";
/// Proxies and load balancers end what was idle for so long (nginx: proxy_read_timeout, AWS: idle timeout).
const PROXY_PATIENCE: Duration = Duration::from_secs(60);
/// Fewer of the largest messages under way than this, and two clients can have a third closed with 1013.
const MESSAGES_AT_ONCE_MIN: u64 = 16;

/// Of `config`.
pub fn judge(config: &Config, need: &Need) -> Vec<Finding> {
    vec![judge_connections(config, need), judge_pings(config, need), judge_messages(config)]
}

fn judge_connections(config: &Config, need: &Need) -> Finding {
    let bound = config.bounds.connections_max as u64;
    let wanted = Count(need.connections);
    let found = match need.processes.len() {
        1 => format!("connections_max {}", Count(bound)),
        processes => format!("connections_max {} in each of {processes} processes", Count(bound)),
    };
    match need.wanted_by {
        WantedBy::Flag if need.connections_of_a_process() > bound => Finding::bad(CONNECTIONS, found)
            .due(format!("{wanted}: above the bound of a process newcomers wait in the kernel's queue"))
            .cure(format!(
                "corecast serve{} --connections-max {}",
                need.several(),
                need.connections_of_a_process()
            )),
        WantedBy::Flag => {
            Finding::ok(CONNECTIONS, format!("{found}; all is judged for the {wanted} of --connections"))
        }
        WantedBy::Bound => Finding::ok(CONNECTIONS, format!("{found}; all is judged for {wanted}")),
        WantedBy::Descriptors => Finding::ok(
            CONNECTIONS,
            format!(
                "{found}; all is judged for the {wanted} that the limit of descriptors leaves (or say --connections)"
            ),
        ),
    }
}

fn judge_pings(config: &Config, need: &Need) -> Finding {
    let intervals = config.routes.iter().map(|route| route.ping.unwrap_or(config.bounds.ping_interval));
    let intervals: Vec<Duration> = intervals.collect();
    if intervals.contains(&Duration::ZERO) {
        return Finding::warn(PINGS, "pings are off on some routes (interval 0)")
            .due("pings: clients that vanish without a word stay until TCP gives them up, and proxies end idle connections")
            .cure("corecast serve --ping-interval 25s  # or ping = \"25s\" on the route");
    }
    let longest = intervals.iter().max().copied().unwrap_or(config.bounds.ping_interval);
    let shortest = intervals.iter().min().copied().unwrap_or(longest);
    let rate = need.connections as f64 / shortest.as_secs_f64();
    let found = format!(
        "a ping after {} of silence, up to {} a second; TCP keep-alive is not needed",
        duration_text(longest),
        Count(rate.ceil() as u64)
    );
    if longest >= PROXY_PATIENCE {
        return Finding::warn(PINGS, found)
            .due("less than 60s: proxies end what is idle for a minute")
            .cure("corecast serve --ping-interval 25s  # or ping = \"25s\" on the route");
    }
    Finding::ok(PINGS, found)
}

fn judge_messages(config: &Config) -> Finding {
    let largest = config.bounds.message_bytes_max as u64;
    let budget = SHARD_INPUT_BYTES_MAX as u64;
    // A buffer that has just doubled holds half of what it takes.
    let at_once = budget / (2 * largest).max(1);
    let found = format!(
        "messages of clients up to {}: a shard holds {} of them half received ({})",
        Bytes(largest),
        Count(at_once),
        Bytes(budget)
    );
    if at_once < MESSAGES_AT_ONCE_MIN {
        return Finding::warn(MESSAGES, found)
            .due(format!(
                "{MESSAGES_AT_ONCE_MIN} or more: over the budget those that hold most are closed with 1013"
            ))
            .cure(format!(
                "corecast serve --message-bytes-max {}KiB",
                budget / MESSAGES_AT_ONCE_MIN / 2 / 1024
            ));
    }
    Finding::ok(MESSAGES, found)
}

#[cfg(test)]
mod tests {
    use shards::config::Route;
    use shards::limits::{Bounds, MIB};

    use super::super::finding::Level;
    use super::super::need::tests::need;
    use super::*;

    fn config(bounds: Bounds) -> Config {
        Config { bounds, ..Config::default() }
    }

    #[test]
    fn more_than_the_bound_is_bad_only_where_it_was_asked_for() {
        let config = config(Bounds { connections_max: 1000, ..Bounds::default() });
        let judged = |connections| judge_connections(&config, &need(connections)).level;
        assert_eq!((judged(1000), judged(1001)), (Level::Ok, Level::Bad));
        let unasked = Need::of(&config, None, &[0], Some(100));
        assert_eq!(judge_connections(&config, &unasked).level, Level::Ok);
    }

    #[test]
    fn pings_come_before_a_proxy_gives_up_on_every_route() {
        let judged = |seconds, route: Option<u64>| {
            let ping = route.map(Duration::from_secs);
            let bounds = Bounds { ping_interval: Duration::from_secs(seconds), ..Bounds::default() };
            let config = Config { routes: vec![Route { ping, ..Route::default() }], ..config(bounds) };
            judge_pings(&config, &need(1_000_000))
        };
        assert_eq!(judged(25, None).level, Level::Ok);
        assert!(judged(25, None).found.contains("40,000 a second"));
        assert_eq!(judged(60, None).level, Level::Warn);
        assert_eq!(judged(0, None).level, Level::Warn);
        assert_eq!(judged(25, Some(0)).level, Level::Warn);
        assert_eq!(judged(0, Some(25)).level, Level::Ok);
    }

    #[test]
    fn a_shard_holds_a_few_of_the_largest_messages() {
        let judged =
            |message_bytes_max| judge_messages(&config(Bounds { message_bytes_max, ..Bounds::default() }));
        assert_eq!(judged(2 * MIB).level, Level::Ok);
        let large = judged(2 * MIB + 1);
        assert_eq!(large.level, Level::Warn);
        assert_eq!(large.cure.as_deref(), Some("corecast serve --message-bytes-max 2048KiB"));
    }
}
