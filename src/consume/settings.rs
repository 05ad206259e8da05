//! What flags and variables make of a consumer. A flag wins over our variable, that over the system's own; an empty
//! variable is an unset one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use corecast_consumer::{ANY_TYPE, Backoff, Group, Home, Options, RedisTarget, Registry, WhenFull};
use shards::config::{BrokerChoice, Inputs, LogFormat};
use tracing_subscriber::EnvFilter;

use super::ConsumeArgs;
use super::handlers::{self, Action};
use super::place::Place;
use crate::client::{duration, host_and_port};
use crate::exit::{CONFIG, Failure, USAGE};
use crate::logs::parse_level;
use crate::redis::TlsArgs;

/// More threads than any load needs; each costs a stack.
const WORKERS_MAX: usize = 1024;
/// With events of 1 KiB about 1 GiB.
const QUEUE_MAX: usize = 1_000_000;

/// Four signs of life in it are 4 a second.
const CLAIM_IDLE_MIN: Duration = Duration::from_secs(1);

/// A consumer to be built.
pub struct Settings {
    pub options: Options,
    pub registry: Registry,
    pub redis: RedisTarget,
    pub intake: Intake,
    pub dead_letters: Place,
    pub metrics: Option<SocketAddr>,
    pub log_format: LogFormat,
    pub log_level: EnvFilter,
    /// Sentences for the operator.
    pub warnings: Vec<String>,
}

/// How events come in.
pub enum Intake {
    Channel(WhenFull),
    Stream(Group),
}

impl Settings {
    /// Out of `args` and the environment.
    ///
    /// # Errors
    /// A [`Failure`]: 2 where a flag makes no sense, 78 where a variable doesn't.
    pub fn load(args: &ConsumeArgs) -> Result<Self, Failure> {
        let defaults = Options::default();
        let attempts = pick("--attempts", &args.attempts, &["CORECAST_ATTEMPTS"], |text| count(text, 100))?;
        let backoff = Backoff {
            first: pick("--backoff", &args.backoff, &["CORECAST_BACKOFF"], duration)?
                .unwrap_or(defaults.backoff.first),
            max: pick("--backoff-max", &args.backoff_max, &["CORECAST_BACKOFF_MAX"], duration)?
                .unwrap_or(defaults.backoff.max),
        };
        if backoff.max < backoff.first {
            let sentence = format!(
                "--backoff-max: found {:?}, due no less than --backoff, which is {:?}",
                backoff.max, backoff.first
            );
            return Err(Failure { code: USAGE, sentence });
        }
        let server_id = pick("--server-id", &args.server_id, &["CORECAST_SERVER_ID", "SERVER_ID"], named)?;
        let group = group(args, server_id.as_deref())?;
        let options = Options {
            workers: pick("--workers", &args.workers, &["CORECAST_WORKERS"], |text| {
                count(text, WORKERS_MAX)
            })?
            .unwrap_or(defaults.workers),
            queue: pick("--queue", &args.queue, &["CORECAST_QUEUE"], |text| count(text, QUEUE_MAX))?
                .unwrap_or(defaults.queue),
            attempts: attempts.map_or(defaults.attempts, |attempts| attempts as u32),
            backoff,
            drain: pick("--drain", &args.drain, &["CORECAST_DRAIN"], duration)?.unwrap_or(defaults.drain),
            home: match (&group, defaults.home) {
                (Some(group), _) => Home::Stream(group.stream.clone()),
                (None, home) => {
                    pick("--channel", &args.channel, &["CORECAST_CHANNEL", "CHANNEL_NAME"], named)?
                        .map_or(home, Home::Channel)
                }
            },
            server_id: server_id.unwrap_or(defaults.server_id),
        };
        let when_full = pick("--when-full", &args.when_full, &["CORECAST_WHEN_FULL"], when_full)?;
        let (redis, warnings) = redis_target(args.redis.as_deref(), &args.tls)?;
        Ok(Self {
            options,
            registry: registry(args)?,
            redis,
            intake: match group {
                Some(group) => Intake::Stream(group),
                None => Intake::Channel(when_full.unwrap_or_default()),
            },
            dead_letters: pick("--dead-letters", &args.dead_letters, &["CORECAST_DEAD_LETTERS"], str::parse)?
                .unwrap_or_default(),
            metrics: pick("--metrics", &args.metrics, &["CORECAST_METRICS"], address)?,
            log_format: pick("--log-format", &args.log_format, &["CORECAST_LOG_FORMAT"], log_format)?
                .unwrap_or(LogFormat::Json),
            log_level: pick("--log-level", &args.log_level, &["CORECAST_LOG_LEVEL"], parse_level)?
                .unwrap_or_else(|| EnvFilter::new("info")),
            warnings,
        })
    }
}

/// What `flag` says, else the first of `variables` that is set.
///
/// # Errors
/// A [`Failure`] that names the flag or the variable: 2 or 78.
pub fn pick<T>(
    flag: &str,
    value: &Option<String>,
    variables: &[&str],
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, Failure> {
    if let Some(text) = value {
        let parsed = parse(text);
        return parsed
            .map(Some)
            .map_err(|wrong| Failure { code: USAGE, sentence: format!("{flag}: {wrong}") });
    }
    let Some((name, text)) = variables.iter().find_map(|name| Some((name, set(name)?))) else {
        return Ok(None);
    };
    parse(&text).map(Some).map_err(|wrong| Failure::config(format!("{name}: {wrong}")))
}

/// The Redis that the flag or the variables name, else localhost:6379, and where they disagree; as `corecast serve` reads
/// them.
///
/// # Errors
/// A [`Failure`]: 2 or 78.
pub fn redis_target(flag: Option<&str>, tls: &TlsArgs) -> Result<(RedisTarget, Vec<String>), Failure> {
    const NAMES: [&str; 6] =
        ["CORECAST_REDIS", "REDIS_URL", "REDIS_ADDR", "REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD"];
    let url = flag.map(|text| ("redis".to_owned(), text.to_owned()));
    let flags: Vec<_> = url.into_iter().chain(tls.settings()).collect();
    let mut environment: BTreeMap<String, String> = NAMES
        .iter()
        .chain(&TlsArgs::VARIABLES)
        .filter_map(|name| Some(((*name).to_owned(), set(name)?)))
        .collect();
    let code = if flags.is_empty() { CONFIG } else { USAGE };
    loop {
        let (environment_now, flags) = (environment.clone(), flags.clone());
        let inputs = Inputs { environment: environment_now, flags, ..Inputs::default() };
        let loaded =
            shards::config::load(&inputs).map_err(|errors| Failure { code, sentence: errors.to_string() })?;
        let warnings = loaded.warnings.iter().map(ToString::to_string).collect();
        match loaded.config.broker {
            BrokerChoice::Redis(mut servers) => return Ok((servers.swap_remove(0).target, warnings)),
            // Nobody named one; REDIS_PASSWORD may be set all the same.
            BrokerChoice::Local => {
                let named = environment.insert("REDIS_ADDR".to_owned(), "localhost:6379".to_owned());
                assert!(named.is_none(), "an address of Redis that was named is the broker");
            }
        }
    }
}

fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn registry(args: &ConsumeArgs) -> Result<Registry, Failure> {
    let (texts, origin, code) = match (args.handler.as_slice(), set("CORECAST_HANDLER")) {
        ([], Some(lines)) => {
            let lines = lines.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned);
            (lines.collect(), "CORECAST_HANDLER", CONFIG)
        }
        (texts, _) => (texts.to_vec(), "--handler", USAGE),
    };
    let timeout =
        pick("--handler-timeout", &args.handler_timeout, &["CORECAST_HANDLER_TIMEOUT"], time_to_work)?
            .unwrap_or(Duration::from_secs(10));
    let wrong = |sentence: String| Failure { code, sentence: format!("{origin}: {sentence}") };
    let mut actions: BTreeMap<String, Action> = BTreeMap::new();
    for text in &texts {
        let (kind, action) = handlers::parse(text).map_err(wrong)?;
        if actions.insert(kind.clone(), action).is_some() {
            return Err(wrong(format!("found two handlers for type {kind:?}, due one: leave one out")));
        }
    }
    if actions.is_empty() {
        actions.insert(ANY_TYPE.to_owned(), Action::Log);
    }
    let mut registry = Registry::new();
    for (kind, action) in actions {
        action.register(&kind, timeout, &mut registry);
    }
    Ok(registry)
}

/// The consumer group that `args` name; none where they name a channel, or neither.
fn group(args: &ConsumeArgs, server_id: Option<&str>) -> Result<Option<Group>, Failure> {
    let stream = match args.channel {
        // What a flag says wins over a variable that says something else.
        Some(_) => None,
        None => pick("--stream", &args.stream, &["CORECAST_STREAM"], named)?,
    };
    let Some(stream) = stream else {
        let flags = [
            ("--group", &args.group),
            ("--consumer", &args.consumer),
            ("--group-start", &args.group_start),
            ("--claim-idle", &args.claim_idle),
            ("--deliveries", &args.deliveries),
        ];
        return match flags.iter().find(|(_, value)| value.is_some()) {
            None => Ok(None),
            Some((flag, _)) => Err(Failure::usage(format!(
                "{flag} is about a consumer group: name its stream with --stream"
            ))),
        };
    };
    let consumer = match pick("--consumer", &args.consumer, &["CORECAST_CONSUMER"], named)? {
        Some(consumer) => consumer,
        None => server_id.map_or_else(member_name, str::to_owned),
    };
    let mut group = Group::new(stream, consumer);
    if let Some(name) = pick("--group", &args.group, &["CORECAST_GROUP"], named)? {
        group.name = name;
    }
    if let Some(start) = pick("--group-start", &args.group_start, &["CORECAST_GROUP_START"], str::parse)? {
        group.start = start;
    }
    if let Some(idle) = pick("--claim-idle", &args.claim_idle, &["CORECAST_CLAIM_IDLE"], idle_time)? {
        group.claim_idle = idle;
    }
    let deliveries =
        pick("--deliveries", &args.deliveries, &["CORECAST_DELIVERIES"], |text| count(text, 1_000_000))?;
    if let Some(deliveries) = deliveries {
        group.deliveries_max = deliveries as u64;
    }
    Ok(Some(group))
}

/// Unlike any other's that runs now.
fn member_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let host = if host.is_empty() { "corecast" } else { host };
    format!("{host}-{}", std::process::id())
}

/// A duration of which a quarter is long enough to say a word to Redis.
fn idle_time(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        idle if idle >= CLAIM_IDLE_MIN => Ok(idle),
        _ => Err(format!(
            "found {text:?}, due at least {CLAIM_IDLE_MIN:?}: others take what this one still has"
        )),
    }
}

/// A duration in which a handler can do something.
fn time_to_work(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => {
            Err(format!("found {text:?}, due more than nothing: every handler would be given up at once"))
        }
        time => Ok(time),
    }
}

/// A whole number from 1 to `max`.
fn count(text: &str, max: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=max).contains(&count) => Ok(count),
        _ => Err(format!("found {text:?}, due a whole number from 1 to {max}")),
    }
}

fn named(text: &str) -> Result<String, String> {
    match text {
        "" => Err("found nothing, due a name".to_owned()),
        text => Ok(text.to_owned()),
    }
}

fn when_full(text: &str) -> Result<WhenFull, String> {
    match text {
        "drop" => Ok(WhenFull::Drop),
        "block" => Ok(WhenFull::Block),
        _ => Err(format!("found {text:?}, due drop or block")),
    }
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "json" => Ok(LogFormat::Json),
        "text" => Ok(LogFormat::Text),
        _ => Err(format!("found {text:?}, due json or text")),
    }
}

/// `ADDRESS:PORT`, or `:PORT` for this host alone: metrics are not for everyone unless somebody says so.
fn address(text: &str) -> Result<SocketAddr, String> {
    let due = || format!("found {text:?}, due ADDRESS:PORT or :PORT, for example 127.0.0.1:9100");
    let (host, port) = host_and_port(text, 0).filter(|_| text.contains(':')).ok_or_else(due)?;
    let host = if host == "localhost" { "127.0.0.1" } else { &host };
    host.parse().map(|address| SocketAddr::new(address, port)).map_err(|_| due())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_host_is_this_host() {
        assert_eq!(address(":0"), Ok(SocketAddr::from(([127, 0, 0, 1], 0))));
        assert_eq!(address("0.0.0.0:9100"), Ok(SocketAddr::from(([0, 0, 0, 0], 9100))));
        assert_eq!(address("[::1]:9100").unwrap().port(), 9100);
        for text in ["", "9100", "example.org:1", "127.0.0.1", ":x"] {
            assert!(address(text).unwrap_err().contains("due ADDRESS:PORT"), "{text}");
        }
    }

    #[test]
    fn counts_have_both_bounds() {
        assert_eq!(count("4", 8), Ok(4));
        for text in ["0", "9", "-1", "x", ""] {
            assert_eq!(count(text, 8), Err(format!("found {text:?}, due a whole number from 1 to 8")));
        }
    }

    #[test]
    fn a_type_has_one_handler_and_without_any_everything_is_logged() {
        let with = |handler: &[&str]| {
            let handler = handler.iter().map(|&text| text.to_owned()).collect();
            registry(&ConsumeArgs { handler, ..ConsumeArgs::default() })
        };
        assert_eq!(with(&[]).unwrap().kinds(), ["*"]);
        assert_eq!(with(&["b=log", "a=exec:true"]).unwrap().kinds(), ["a", "b"]);
        let twice = with(&["a=log", "a=exec:true"]).unwrap_err();
        assert_eq!((twice.code, twice.sentence.contains("two handlers for type \"a\"")), (USAGE, true));
    }
}
