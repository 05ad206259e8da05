//! Redis: whether it is there, what this user may do, and when it would cut us.

pub mod asked;

use std::net::IpAddr;
use std::path::PathBuf;

use shards::config::{BrokerChoice, Config, RedisAddress, RedisTarget, RedisTls, Subscribe};
use shards::limits::PROBE_INTERVAL;

use super::finding::{Bytes, Count, Finding};
use super::{cluster, sentinels};
use crate::exit::{self, Failure};
use crate::redis::{NO_TLS, is_refusal, place};
use asked::{Asked, OutputLimit, rule_of};

const REACHABLE: &str = "redis.reachable";
const VERSION: &str = "redis.version";
const ROLE: &str = "redis.role";
const RIGHTS: &str = "redis.rights";
const OUTPUT: &str = "redis.output_limit";
const CLIENTS: &str = "redis.clients";
const TIMEOUT: &str = "redis.timeout";
const BACKLOG: &str = "redis.backlog";
const LATENCY: &str = "redis.latency";
/// Redis' own defaults for subscribers: 32 MiB, or 8 MiB for a minute.
const OUTPUT_DEFAULT: OutputLimit = OutputLimit { hard: 32 << 20, soft: 8 << 20, seconds: 60 };
/// The first that counts the entries of a stream.
const STREAMS_MAJOR: u32 = 7;
/// A round trip above this is no neighbour's: every publication of a client makes one before anybody hears it.
const LATENCY_MILLIS_MAX: f64 = 5.0;

/// Asks and judges; one line where the configuration has no Redis, or nobody answers.
pub fn judge(config: &Config) -> Vec<Finding> {
    match &config.broker {
        BrokerChoice::Local => {
            vec![Finding::info(
                REACHABLE,
                "the broker is the local one: one process, and nobody publishes from outside but HTTP",
            )]
        }
        BrokerChoice::Redis(servers) => {
            let mut findings = Vec::new();
            for (index, server) in servers.iter().enumerate() {
                let of_one = judge_server(&config.of_server(index));
                findings.extend(of_one.into_iter().map(|finding| match servers.len() {
                    1 => finding,
                    _ => Finding { found: format!("{}: {}", server.name, finding.found), ..finding },
                }));
            }
            findings
        }
    }
}

/// The one server of `config`.
fn judge_server(config: &Config) -> Vec<Finding> {
    let [server] = config.broker.servers() else { return Vec::new() };
    let (target, sentinels) = sentinels::judge(&server.target);
    let findings = match Asked::of(&target, config) {
        Ok(asked) => judge_asked(&asked, &target, config),
        Err(failure) => vec![judge_failure(&failure, &target)],
    };
    sentinels.into_iter().chain(cluster::judge(&target)).chain(findings).collect()
}

fn judge_failure(failure: &Failure, target: &RedisTarget) -> Finding {
    let finding = Finding::bad(REACHABLE, failure.sentence.clone());
    if target.tls.is_some() && failure.sentence.starts_with(NO_TLS) {
        // The sentence says what to do; this shows whether it is done, with no part of corecast in it.
        return finding
            .due("TLS with this Redis, its certificate checked")
            .cure(format!("{} PING  # once that is done", cli(target, target.password.is_some())));
    }
    match failure.code {
        exit::NO_PERMISSION => finding.due("a user and password that this Redis knows").cure(format!(
            "{} PING  # with the password that works: REDIS_PASSWORD=... corecast doctor",
            cli(target, true)
        )),
        _ => finding
            .due("a Redis that answers; without it the server starts, and its clients hear only each other")
            .cure(match is_here(target) {
                true => "systemctl start redis-server  # or name another: --redis".to_owned(),
                false => format!("{} PING  # where it runs, and on the way there", cli(target, false)),
            }),
    }
}

fn is_here(target: &RedisTarget) -> bool {
    match &target.address {
        RedisAddress::Unix(_) => true,
        RedisAddress::Sentinel(_) | RedisAddress::Cluster(_) => false,
        RedisAddress::Tcp { host, .. } => {
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    }
}

fn judge_asked(asked: &Asked, target: &RedisTarget, config: &Config) -> Vec<Finding> {
    let user = target.username.as_deref().unwrap_or("default");
    let password = if target.password.is_some() { "with a password" } else { "without a password" };
    let cli = cli(target, target.password.is_some());
    vec![
        Finding::ok(REACHABLE, format!("{} answers the user {user} {password}", place(&target.address))),
        judge_version(asked, config),
        judge_role(asked, matches!(target.address, RedisAddress::Cluster(_))),
        judge_rights(asked, user, target),
        judge_output(asked.output_limit, config.bounds.message_bytes_max as u64, &cli),
        judge_clients(asked.clients, connections(config), config.processes as u64, &cli),
        judge_timeout(asked.timeout, &cli),
        match asked.backlog {
            Some(backlog) => Finding::info(
                BACKLOG,
                format!("tcp-backlog {}: newcomers that may wait for Redis", Count(backlog)),
            ),
            None => Finding::untold(BACKLOG, "CONFIG GET tcp-backlog"),
        },
        judge_latency(asked),
    ]
}

fn judge_version(asked: &Asked, config: &Config) -> Finding {
    let version = asked.version.as_deref().unwrap_or("unknown");
    let major: Option<u32> = version.split('.').next().and_then(|major| major.parse().ok());
    if has_streams(config) && major.is_some_and(|major| major < STREAMS_MAJOR) {
        return Finding::bad(VERSION, format!("Redis {version} doesn't count the entries of a stream"))
            .due("Redis 7.0 or later for sources that are streams")
            .cure("corecast serve --redis redis://HOST:PORT  # of a newer one");
    }
    match asked.has_resp3 {
        true => Finding::ok(VERSION, format!("Redis {version} speaks RESP3 (HELLO 3)")),
        false => {
            Finding::info(VERSION, format!("Redis {version} doesn't take HELLO 3; RESP2 is spoken instead"))
        }
    }
}

fn judge_role(asked: &Asked, is_cluster: bool) -> Finding {
    let (role, mode) = (asked.role.as_deref(), asked.mode.as_deref());
    match (role, mode) {
        (None, _) => Finding::untold(ROLE, "the role in INFO"),
        (Some("slave"), _) => Finding::warn(ROLE, "a replica: what is published here reaches none of its primary's subscribers")
            .due("the primary")
            .cure("corecast serve --redis redis://PRIMARY:6379  # redis-cli INFO replication names it (master_host)"),
        (_, Some("cluster")) if !is_cluster => Finding::info(
            ROLE,
            "a node of a cluster: what is published with PUBLISH goes to all of its nodes; for sharded Pub/Sub name the cluster, \
             redis+cluster://HOST:PORT",
        ),
        (Some(role), mode) => Finding::ok(ROLE, format!("{role}, {}", mode.unwrap_or("standalone"))),
    }
}

fn judge_rights(asked: &Asked, user: &str, target: &RedisTarget) -> Finding {
    let refused: Vec<&(String, Option<String>)> =
        asked.rights.iter().filter(|(_, refusal)| refusal.is_some()).collect();
    let Some((command, Some(text))) = refused.first() else {
        let all: Vec<&str> = asked.rights.iter().map(|(command, _)| command.as_str()).collect();
        let allowed = format!("allowed: {}", all.join(", "));
        if asked.hidden.is_empty() {
            return Finding::ok(RIGHTS, allowed);
        }
        // The server itself asks neither.
        let rules = asked.hidden.join(" ");
        let found = format!(
            "{allowed}; INFO or CONFIG GET are not, so that less is judged here: ACL SETUSER {user} {rules} permits them"
        );
        return Finding::ok(RIGHTS, found);
    };
    let finding = Finding::bad(
        RIGHTS,
        format!("{} of {} commands are refused: {command} ({text})", refused.len(), asked.rights.len()),
    );
    if !is_refusal(text) {
        return finding.due("all of them");
    }
    let mut rules: Vec<String> = refused.iter().map(|(command, _)| rule_of(command)).collect();
    rules.dedup();
    let cure =
        format!("{} ACL SETUSER {user} {}  # as an administrator", cli(target, false), rules.join(" "));
    finding.due("all of them, for this user").cure(cure)
}

fn judge_output(limit: Option<OutputLimit>, message_bytes_max: u64, cli: &str) -> Finding {
    let Some(limit) = limit else { return Finding::untold(OUTPUT, "CONFIG GET client-output-buffer-limit") };
    let OutputLimit { hard, soft, seconds } = limit;
    let default = OUTPUT_DEFAULT;
    let cure = format!(
        "{cli} CONFIG SET client-output-buffer-limit \"pubsub {} {} {}\"  # and CONFIG REWRITE, or redis.conf",
        default.hard, default.soft, default.seconds
    );
    if (hard, soft) == (0, 0) {
        return Finding::warn(OUTPUT, "a subscriber that stops reading is never cut")
            .due(format!(
                "a limit, {} by default: else its publications fill Redis' memory",
                Bytes(default.hard)
            ))
            .cure(cure);
    }
    let found = format!(
        "Redis cuts a node that is {} behind, or {} for {seconds} s: at 1 MiB/s of publications one that stood still {}",
        Bytes(hard),
        Bytes(soft),
        stands(limit)
    );
    if hard > 0 && hard < message_bytes_max {
        return Finding::bad(OUTPUT, found)
            .due(format!(
                "more than one message of {}, which alone would cut every node",
                Bytes(message_bytes_max)
            ))
            .cure(cure);
    }
    let is_less = |value: u64, due: u64| value > 0 && value < due;
    if is_less(hard, default.hard) || is_less(soft, default.soft) {
        return Finding::warn(OUTPUT, found)
            .due(format!(
                "{} and {} at least, Redis' defaults: what was waiting is lost with the connection",
                Bytes(default.hard),
                Bytes(default.soft)
            ))
            .cure(cure);
    }
    Finding::ok(OUTPUT, found)
}

/// After how long a node is cut that reads nothing, at 1 MiB of publications a second.
fn stands(limit: OutputLimit) -> String {
    let soft = (limit.soft > 0).then_some((limit.soft >> 20) + limit.seconds);
    let hard = (limit.hard > 0).then_some(limit.hard >> 20);
    match hard.into_iter().chain(soft).min() {
        Some(seconds) => format!("for {seconds} s"),
        None => "for ever is kept".to_owned(),
    }
}

/// Of a process: one that subscribes, one that publishes; where streams are read, one that waits and one that asks.
fn connections(config: &Config) -> u64 {
    if has_streams(config) { 4 } else { 2 }
}

fn has_streams(config: &Config) -> bool {
    config.sources.iter().any(|source| matches!(source.subscribe, Subscribe::Stream { .. }))
}

fn judge_clients(clients: Option<(u64, u64)>, connections: u64, processes: u64, cli: &str) -> Finding {
    let Some((clients, max)) = clients else {
        return Finding::untold(CLIENTS, "connected_clients and maxclients");
    };
    let found = format!(
        "{} clients beside this one, maxclients {}; a process takes {connections}",
        Count(clients),
        Count(max)
    );
    let due = clients.saturating_add(connections * processes);
    let cure = format!("{cli} CONFIG SET maxclients {}", max.saturating_mul(2).max(1000));
    if due > max {
        return Finding::bad(CLIENTS, found).due(Count(due).to_string()).cure(cure);
    }
    if due.saturating_mul(10) > max.saturating_mul(9) {
        return Finding::warn(CLIENTS, found)
            .due("a tenth left: after a restart of Redis all come back at once")
            .cure(cure);
    }
    Finding::ok(CLIENTS, found)
}

fn judge_timeout(timeout: Option<u64>, cli: &str) -> Finding {
    match timeout {
        None => Finding::untold(TIMEOUT, "CONFIG GET timeout"),
        Some(0) => Finding::ok(TIMEOUT, "idle connections are not closed"),
        // Whoever is asked each second is not idle, as long as that second is short enough.
        Some(seconds) if seconds > PROBE_INTERVAL.as_secs() * 2 => Finding::ok(
            TIMEOUT,
            format!(
                "idle connections are closed after {seconds} s; corecast's are used every {} s",
                PROBE_INTERVAL.as_secs()
            ),
        ),
        Some(seconds) => Finding::warn(TIMEOUT, format!("idle connections are closed after {seconds} s"))
            .due("0, or well above the second between two probes")
            .cure(format!("{cli} CONFIG SET timeout 0")),
    }
}

fn judge_latency(asked: &Asked) -> Finding {
    let millis = |index: usize| asked.pings.get(index).map_or(0.0, |ping| ping.as_secs_f64() * 1e3);
    let (median, most) = (millis(asked.pings.len() / 2), millis(asked.pings.len().saturating_sub(1)));
    let found = format!("PING takes {median:.2} ms, {most:.2} ms at most of {}", asked.pings.len());
    match median > LATENCY_MILLIS_MAX {
        true => Finding::warn(LATENCY, found)
            .due(format!("less than {LATENCY_MILLIS_MAX} ms: every publication goes to Redis and comes back before anybody hears it"))
            .cure("corecast serve --redis redis://NEARER:6379  # or see redis-cli --latency and SLOWLOG GET"),
        false => Finding::ok(LATENCY, found),
    }
}

/// The command of Redis' own client for `target`.
fn cli(target: &RedisTarget, has_password: bool) -> String {
    let place = match &target.address {
        RedisAddress::Tcp { host, port } => format!("-h {host} -p {port}{}", tls_options(target)),
        RedisAddress::Unix(path) => format!("-s {}", path.display()),
        RedisAddress::Sentinel(_) | RedisAddress::Cluster(_) => "-h HOST -p PORT".to_owned(),
    };
    if !has_password {
        return format!("redis-cli {place}");
    }
    let user = target.username.as_ref().map_or(String::new(), |user| format!(" --user {user}"));
    // It asks for the password, so that none stands in a shell's history.
    format!("redis-cli {place}{user} --askpass")
}

fn tls_options(target: &RedisTarget) -> String {
    let Some(RedisTls { ca_file, cert_file, key_file, server_name }) = &target.tls else {
        return String::new();
    };
    let option = |name: &str, path: &Option<PathBuf>| {
        path.as_ref().map_or(String::new(), |path| format!(" {name} {}", path.display()))
    };
    // Redis' own client has the name only for the server's choice (SNI), and checks no name.
    let name = server_name.as_ref().map_or(String::new(), |name| format!(" --sni {name}"));
    let (ca, cert, key) =
        (option("--cacert", ca_file), option("--cert", cert_file), option("--key", key_file));
    format!(" --tls{name}{ca}{cert}{key}")
}

#[cfg(test)]
mod tests {
    use shards::config::Source;

    use std::time::Duration;

    use super::super::finding::Level;
    use super::*;

    #[test]
    fn the_limit_of_subscribers_is_at_least_redis_own_and_above_a_message() {
        let judged = |hard: u64, soft: u64| {
            let limit = OutputLimit { hard, soft, seconds: 60 };
            judge_output(Some(limit), 64 << 10, "redis-cli").level
        };
        assert_eq!(judged(32 << 20, 8 << 20), Level::Ok);
        assert_eq!(judged(0, 8 << 20), Level::Ok);
        assert_eq!(judged(256 << 20, 0), Level::Ok);
        assert_eq!(judged(16 << 20, 8 << 20), Level::Warn);
        assert_eq!(judged(32 << 20, 1 << 20), Level::Warn);
        assert_eq!(judged(0, 0), Level::Warn, "unlimited is Redis' risk");
        assert_eq!(judged(32 << 10, 8 << 10), Level::Bad);
        assert_eq!(judge_output(None, 1, "redis-cli").level, Level::Info);
    }

    #[test]
    fn the_default_means_half_a_minute_at_a_mebibyte_a_second() {
        assert_eq!(stands(OUTPUT_DEFAULT), "for 32 s");
        assert_eq!(stands(OutputLimit { hard: 0, soft: 8 << 20, seconds: 60 }), "for 68 s");
    }

    #[test]
    fn clients_time_out_and_round_trips_have_room() {
        let clients = |clients, max| judge_clients(Some((clients, max)), 2, 1, "redis-cli").level;
        assert_eq!(
            (clients(0, 10_000), clients(8, 10), clients(9, 10)),
            (Level::Ok, Level::Warn, Level::Bad)
        );
        let timeout = |seconds| judge_timeout(Some(seconds), "redis-cli").level;
        assert_eq!((timeout(0), timeout(2), timeout(300)), (Level::Ok, Level::Warn, Level::Ok));
        let latency = |millis: &[u64]| {
            let pings = millis.iter().map(|millis| Duration::from_millis(*millis)).collect();
            judge_latency(&Asked { pings, ..Asked::default() }).level
        };
        assert_eq!(
            (latency(&[0, 1, 90]), latency(&[1, 6, 7]), latency(&[])),
            (Level::Ok, Level::Warn, Level::Ok)
        );
    }

    #[test]
    fn an_old_redis_is_bad_for_streams_alone() {
        let stream = Source { subscribe: Subscribe::parse("stream s:*").unwrap(), ..Source::default() };
        let level = |version: &str, sources: Vec<Source>| {
            let asked = Asked { version: Some(version.to_owned()), has_resp3: true, ..Asked::default() };
            judge_version(&asked, &Config { sources, ..Config::default() }).level
        };
        assert_eq!(level("6.2.14", vec![stream.clone()]), Level::Bad);
        assert_eq!(level("6.2.14", vec![Source::default()]), Level::Ok);
        assert_eq!(level("8.0.1", vec![stream]), Level::Ok);
    }

    #[test]
    fn a_replica_is_no_place_to_publish() {
        let judged = |role: Option<&str>, mode: Option<&str>| {
            let text = |text: Option<&str>| text.map(str::to_owned);
            judge_role(&Asked { role: text(role), mode: text(mode), ..Asked::default() }, false).level
        };
        assert_eq!(judged(Some("master"), Some("standalone")), Level::Ok);
        assert_eq!(judged(Some("slave"), Some("standalone")), Level::Warn);
        assert_eq!(judged(Some("master"), Some("cluster")), Level::Info);
        assert_eq!(judged(None, None), Level::Info);
    }

    #[test]
    fn refused_commands_are_cured_by_one_rule() {
        let rights = vec![
            ("SUBSCRIBE corecast:probe:1".to_owned(), Some("NOPERM no".to_owned())),
            ("PUBLISH corecast:probe:1".to_owned(), None),
            ("PSUBSCRIBE room:*".to_owned(), Some("NOPERM no".to_owned())),
        ];
        let target: RedisTarget = "redis://ann:secret@h:7000".parse().unwrap();
        let finding = judge_rights(&Asked { rights, ..Asked::default() }, "ann", &target);
        assert_eq!(finding.level, Level::Bad);
        assert!(finding.found.starts_with("2 of 3 commands are refused"));
        let cure = "redis-cli -h h -p 7000 ACL SETUSER ann +subscribe '&corecast:probe:*' +psubscribe '&room:*'  # as";
        assert!(finding.cure.is_some_and(|found| found.starts_with(cure)));
    }

    #[test]
    fn commands_for_people_name_the_place_and_never_the_password() {
        let target: RedisTarget = "redis://ann:secret@h:7000".parse().unwrap();
        assert_eq!(cli(&target, true), "redis-cli -h h -p 7000 --user ann --askpass");
        let mut target: RedisTarget = "rediss://h:7000".parse().unwrap();
        target.tls.as_mut().unwrap().ca_file = Some("ca.pem".into());
        assert_eq!(cli(&target, false), "redis-cli -h h -p 7000 --tls --cacert ca.pem");
        let target: RedisTarget = "unix:///run/redis.sock".parse().unwrap();
        assert_eq!(cli(&target, false), "redis-cli -s /run/redis.sock");
    }
}
