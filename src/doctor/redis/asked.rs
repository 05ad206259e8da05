//! What a Redis says when it is asked as corecast would ask it. Nothing is written: subscriptions end with their
//! connection, and the one publication is empty and goes to a probe's channel that nobody has.

use std::time::{Duration, Instant};

use redis_protocol::resp2::types::OwnedFrame;
use shards::config::{Config, RedisAddress, RedisServer, RedisTarget, Subscribe};

use crate::exit::Failure;
use crate::redis::RedisConnection;

/// Round trips that are measured.
const PINGS: usize = 5;
/// The name of a room, and of a key, that nobody has.
const NOBODYS: &str = "corecast-doctor";

/// See the module. What a managed Redis hides is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// `7.0.15`.
    pub version: Option<String>,
    /// Takes HELLO 3.
    pub has_resp3: bool,
    /// `master` or `slave`.
    pub role: Option<String>,
    /// `standalone`, `sentinel`, `cluster`.
    pub mode: Option<String>,
    /// Each command of the server's that was tried, and what Redis had against it.
    pub rights: Vec<(String, Option<String>)>,
    /// ACL rules without which less can be judged, of INFO and CONFIG GET.
    pub hidden: Vec<&'static str>,
    /// `client-output-buffer-limit` of subscribers.
    pub output_limit: Option<OutputLimit>,
    /// Connections of others, and how many there may be.
    pub clients: Option<(u64, u64)>,
    /// `timeout`: seconds after which an idle connection is closed; 0 never.
    pub timeout: Option<u64>,
    /// `tcp-backlog`.
    pub backlog: Option<u64>,
    /// Round trips of PING, ascending.
    pub pings: Vec<Duration>,
}

/// When Redis cuts a subscriber that does not read; 0 is never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputLimit {
    /// Bytes waiting for it, at which it is cut at once.
    pub hard: u64,
    /// Bytes at which it is cut after `seconds`.
    pub soft: u64,
    /// See `soft`.
    pub seconds: u64,
}

impl OutputLimit {
    /// Out of the value of `client-output-buffer-limit`: classes of clients with three numbers each.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace().skip_while(|word| *word != "pubsub").skip(1);
        let mut number = || words.next()?.parse().ok();
        Some(Self { hard: number()?, soft: number()?, seconds: number()? })
    }
}

impl Asked {
    /// Asks the Redis at `target` for all that `config` needs of it.
    ///
    /// # Errors
    /// Exit code 69 where nobody answers, 77 where the user or password is refused.
    pub fn of(target: &RedisTarget, config: &Config) -> Result<Self, Failure> {
        let mut connection = RedisConnection::connect(target)?;
        let pings = pings(&mut connection)?;
        let info = connection.ask(&[b"INFO"])?;
        let is_hidden =
            |answer: &OwnedFrame| matches!(answer, OwnedFrame::Error(text) if text.starts_with("NOPERM"));
        let mut hidden = Vec::new();
        hidden.extend(is_hidden(&info).then_some("+info"));
        hidden.extend(is_hidden(&connection.ask(&[b"CONFIG", b"GET", b"timeout"])?).then_some("+config|get"));
        let info = text_of(info).unwrap_or_default();
        let field = |name: &str| {
            info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let number = |text: Option<&str>| text?.parse::<u64>().ok();
        let mut setting = |name: &str| -> Result<Option<String>, Failure> {
            Ok(setting_of(connection.ask(&[b"CONFIG", b"GET", name.as_bytes()])?))
        };
        let output_limit = setting("client-output-buffer-limit")?.and_then(|text| OutputLimit::parse(&text));
        let clients_max = setting("maxclients")?;
        // Without this connection.
        let others = number(field("connected_clients")).map(|clients| clients.saturating_sub(1));
        Ok(Self {
            version: field("redis_version").map(str::to_owned),
            role: field("role").map(str::to_owned),
            mode: field("redis_mode").map(str::to_owned),
            output_limit,
            clients: others.zip(number(clients_max.as_deref().or(field("maxclients")))),
            timeout: number(setting("timeout")?.as_deref()),
            backlog: number(setting("tcp-backlog")?.as_deref()),
            rights: rights(target, config)?,
            hidden,
            has_resp3: connection.takes_resp3()?,
            pings,
        })
    }
}

/// # Errors
/// Whatever keeps this user from asking anything: a password that is due, first of all.
fn pings(connection: &mut RedisConnection) -> Result<Vec<Duration>, Failure> {
    let mut pings = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let began = Instant::now();
        if let OwnedFrame::Error(text) = connection.ask(&[b"PING"])?
            && !text.starts_with("NOPERM")
        {
            return Err(connection.refused("PING", &text));
        }
        pings.push(began.elapsed());
    }
    pings.sort_unstable();
    Ok(pings)
}

/// Tries what the server will do, each on a connection of its own: after SUBSCRIBE only messages come on it.
fn rights(target: &RedisTarget, config: &Config) -> Result<Vec<(String, Option<String>)>, Failure> {
    let probe = format!("corecast:probe:{}", config.node_id);
    let is_cluster = matches!(target.address, RedisAddress::Cluster(_));
    let [subscribe, publish] = match is_cluster {
        true => ["SSUBSCRIBE", "SPUBLISH"].map(str::to_owned),
        false => ["SUBSCRIBE", "PUBLISH"].map(str::to_owned),
    };
    let mut tried = vec![vec![subscribe.clone(), probe.clone()], vec![publish, probe, String::new()]];
    let is_sentinel = |server: &RedisServer| matches!(server.target.address, RedisAddress::Sentinel(_));
    if config.broker.servers().iter().any(is_sentinel) {
        tried.push(vec!["ROLE".to_owned()]);
    }
    for source in &config.sources {
        match &source.subscribe {
            Subscribe::Channel(channel) => tried.push(vec!["SUBSCRIBE".to_owned(), channel.clone()]),
            Subscribe::Pattern { prefix, suffix } => {
                tried.push(vec!["PSUBSCRIBE".to_owned(), format!("{prefix}*{suffix}")]);
            }
            Subscribe::OnDemand { prefix, suffix } => {
                tried.push(vec![subscribe.clone(), format!("{prefix}{NOBODYS}{suffix}")]);
            }
            // XADD is not tried: it would write.
            Subscribe::Stream { prefix, suffix } => {
                let key = format!("{prefix}{NOBODYS}{suffix}");
                tried.push(["XREAD", "COUNT", "1", "STREAMS", &key, "0"].map(str::to_owned).to_vec());
                tried.push(["XREVRANGE", &key, "+", "-", "COUNT", "1"].map(str::to_owned).to_vec());
                tried.push(["EVAL", "return 0", "1", &key].map(str::to_owned).to_vec());
            }
        }
        // SET of a last value is not tried: it would write.
        let last_value = source.last_value.as_ref();
        tried.extend(last_value.map(|last| vec!["GET".to_owned(), format!("{}{NOBODYS}", last.prefix)]));
    }
    let mut rights = Vec::with_capacity(tried.len());
    for words in tried {
        let bytes: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let refusal = match RedisConnection::connect(target)?.ask(&bytes)? {
            // Allowed, and another node's.
            OwnedFrame::Error(text) if is_cluster && text.starts_with("MOVED") => None,
            OwnedFrame::Error(text) => Some(text),
            _ => None,
        };
        rights.push((words.join(" ").trim_end().to_owned(), refusal));
    }
    Ok(rights)
}

/// The value in the answer of CONFIG GET, which has none where this user may not ask, or the setting is not known.
fn setting_of(answer: OwnedFrame) -> Option<String> {
    match answer {
        OwnedFrame::Array(parts) => text_of(parts.into_iter().nth(1)?),
        _ => None,
    }
}

fn text_of(answer: OwnedFrame) -> Option<String> {
    match answer {
        OwnedFrame::BulkString(bytes) => String::from_utf8(bytes).ok(),
        OwnedFrame::SimpleString(bytes) => String::from_utf8(bytes).ok(),
        _ => None,
    }
}

/// What reading streams and appending to them takes.
const STREAM_RIGHTS: &str = "+xread +xrevrange +xinfo|stream +script|load +eval +evalsha +exists +get +set +ttl +client|id \
                             +client|unblock +xadd +xtrim +time";

/// What Redis calls an ACL rule that would have allowed a refused command.
pub fn rule_of(command: &str) -> String {
    let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
    let verb = verb.to_lowercase();
    match verb.as_str() {
        _ if rest.is_empty() => format!("+{verb}"),
        "get" => format!("+get +set ~{}*", rest.trim_end_matches(NOBODYS)),
        "xread" | "xrevrange" | "eval" => {
            let key = rest.split(' ').find(|word| word.contains(NOBODYS)).unwrap_or(rest);
            format!("'~{}' '~corecast:epoch:*' {STREAM_RIGHTS}", key.replace(NOBODYS, "*"))
        }
        _ if rest.contains(NOBODYS) => format!("+{verb} '&{}'", rest.replace(NOBODYS, "*")),
        _ if rest.starts_with("corecast:probe:") => format!("+{verb} '&corecast:probe:*'"),
        _ => format!("+{verb} '&{rest}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_subscribers_is_found_among_those_of_others() {
        let parse = OutputLimit::parse;
        assert_eq!(
            parse("normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60"),
            Some(OutputLimit { hard: 33_554_432, soft: 8_388_608, seconds: 60 })
        );
        for broken in ["", "normal 0 0 0", "pubsub 1 2", "pubsub a b c"] {
            assert_eq!(parse(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn the_rule_for_a_refused_command_covers_all_that_the_server_will_ask() {
        for (command, rule) in [
            ("SUBSCRIBE corecast:probe:0123", "+subscribe '&corecast:probe:*'"),
            ("PUBLISH corecast:probe:0123", "+publish '&corecast:probe:*'"),
            ("SUBSCRIBE room:corecast-doctor", "+subscribe '&room:*'"),
            ("PSUBSCRIBE room:*", "+psubscribe '&room:*'"),
            ("SUBSCRIBE events.critical", "+subscribe '&events.critical'"),
            ("GET last:corecast-doctor", "+get +set ~last:*"),
            ("ROLE", "+role"),
            (
                "XREAD COUNT 1 STREAMS orders:corecast-doctor 0",
                &format!("'~orders:*' '~corecast:epoch:*' {STREAM_RIGHTS}"),
            ),
        ] {
            assert_eq!(rule_of(command), rule);
        }
    }
}
