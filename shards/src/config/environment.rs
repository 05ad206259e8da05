//! Variables: our own, and those of the systems whose users we serve.
//!
//! The order is `--listen` > `CORECAST_LISTEN` > `ADDR` > `PORT` and `--redis` > `CORECAST_REDIS` > `REDIS_URL` > `REDIS_ADDR` >
//! `REDIS_HOST` + `REDIS_PORT`. Where two are set and disagree the higher wins and a warning names both. An empty variable is
//! an unset one: compose files pass those.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::RedisTarget;
use super::input::{Input, parse_listener};
use super::layers::{ConfigError, Layer, Origin, Warning};
use super::nearest::nearest;
use super::settings::{SETTINGS, Setting};

/// Variables of ours that are no settings of the server: they choose its files, or are for other commands, with which it may
/// share an environment file.
pub const OTHER_VARIABLES: &[&str] = &[
    "CORECAST_PRESET",
    "CORECAST_CONFIG",
    "CORECAST_ATTEMPTS",
    "CORECAST_BACKOFF",
    "CORECAST_BACKOFF_MAX",
    "CORECAST_CHANNEL",
    "CORECAST_CLAIM_IDLE",
    "CORECAST_CONSUMER",
    "CORECAST_DEAD_LETTERS",
    "CORECAST_DELIVERIES",
    "CORECAST_GROUP",
    "CORECAST_GROUP_START",
    "CORECAST_HANDLER",
    "CORECAST_HANDLER_TIMEOUT",
    "CORECAST_METRICS",
    // A parent process tells its children which of them they are.
    "CORECAST_PROCESS",
    "CORECAST_QUEUE",
    "CORECAST_SERVER_ID",
    "CORECAST_STREAM",
    "CORECAST_WHEN_FULL",
    "CORECAST_WORKERS",
];

/// What the environment says.
pub(super) struct Environment {
    pub layer: Layer,
    /// `REDIS_PASSWORD`, for a target that has none of its own.
    pub redis_password: Option<String>,
}

/// A set variable, or several that make one value.
struct Candidate {
    origin: Origin,
    setting: &'static str,
    text: String,
}

/// Reads `variables`; `flags` are looked at only to find disagreement.
pub(super) fn parse_environment(
    variables: &BTreeMap<String, String>,
    flags: &[(String, String)],
    errors: &mut Vec<ConfigError>,
    warnings: &mut Vec<Warning>,
) -> Environment {
    let set = |name: &str| variables.get(name).filter(|value| !value.is_empty());
    let mut layer = Layer::default();
    if let Some(names) = set("CORECAST_PRESET") {
        let names = names.split(',').map(|name| name.trim().to_owned()).collect();
        layer.presets = Some((names, Origin::Variable("CORECAST_PRESET".to_owned())));
    }
    warn_of_unknown(variables, warnings);

    let listen = [candidate(&set, "listen", "ADDR"), port_candidate(&set, errors)];
    let redis = [
        candidate(&set, "redis", "REDIS_URL"),
        candidate(&set, "redis", "REDIS_ADDR"),
        redis_host_candidate(&set, errors, warnings),
    ];
    for (name, foreign) in [("listen", listen.as_slice()), ("redis", redis.as_slice())] {
        let flag = flags.iter().find(|(flag, _)| flag == name);
        let flag = flag.map(|(_, text)| Candidate::new(name, Origin::Flag(name.to_owned()), text));
        let own = Setting::named(name).and_then(|setting| candidate(&set, setting.name, &setting.variable()));
        let order: Vec<&Candidate> = flag.iter().chain(own.iter()).chain(foreign.iter().flatten()).collect();
        warn_of_disagreement(&order, warnings);
        // The flag is a layer of its own, ours is pushed below with the other settings.
        if own.is_none()
            && let Some(winner) = foreign.iter().flatten().next()
        {
            push(&mut layer, winner);
        }
    }
    for setting in SETTINGS {
        if let Some(own) = candidate(&set, setting.name, &setting.variable()) {
            push(&mut layer, &own);
        }
    }
    Environment { layer, redis_password: set("REDIS_PASSWORD").cloned() }
}

fn push(layer: &mut Layer, candidate: &Candidate) {
    if let Some(setting) = Setting::named(candidate.setting) {
        layer.settings.push((setting, Input::Word(candidate.text.clone()), candidate.origin.clone()));
    }
}

impl Candidate {
    fn new(setting: &'static str, origin: Origin, text: &str) -> Self {
        Self { origin, setting, text: text.to_owned() }
    }

    /// The value as it may be shown, also what is compared; `None` for one that can't be read.
    fn shown(&self) -> Option<String> {
        match self.setting {
            "redis" => self.text.parse::<RedisTarget>().ok().map(|target| target.to_string()),
            _ => {
                let addresses: Result<Vec<_>, _> =
                    self.text.split(',').map(|text| parse_listener(text.trim())).collect();
                addresses.ok().map(|_| self.text.clone())
            }
        }
    }

    fn agrees(&self, other: &Self) -> bool {
        match self.setting {
            // By value, passwords included: two URLs that differ only there look alike.
            "redis" => {
                let target = |text: &str| text.parse::<RedisTarget>().ok();
                target(&self.text) == target(&other.text)
            }
            _ => {
                let addresses = |text: &str| -> Option<Vec<(SocketAddr, Option<String>)>> {
                    text.split(',').map(|text| parse_listener(text.trim()).ok()).collect()
                };
                addresses(&self.text) == addresses(&other.text)
            }
        }
    }
}

fn candidate<'a>(
    set: &impl Fn(&str) -> Option<&'a String>,
    setting: &'static str,
    variable: &str,
) -> Option<Candidate> {
    set(variable).map(|text| Candidate::new(setting, Origin::Variable(variable.to_owned()), text))
}

/// `PORT=8084` is `:8084`.
fn port_candidate<'a>(
    set: &impl Fn(&str) -> Option<&'a String>,
    errors: &mut Vec<ConfigError>,
) -> Option<Candidate> {
    let text = set("PORT")?;
    let origin = Origin::Variable("PORT".to_owned());
    match parse_port(text) {
        Some(port) => Some(Candidate::new("listen", origin, &format!(":{port}"))),
        None => {
            errors.push(origin.error("PORT", format!("found {text:?}, due a port number, for example 8084")));
            None
        }
    }
}

/// `REDIS_HOST` and `REDIS_PORT`, each alone with the other's default.
fn redis_host_candidate<'a>(
    set: &impl Fn(&str) -> Option<&'a String>,
    errors: &mut Vec<ConfigError>,
    warnings: &mut Vec<Warning>,
) -> Option<Candidate> {
    let port = set("REDIS_PORT").filter(|text| {
        let is_kubernetes = text.starts_with("tcp://");
        if is_kubernetes {
            warnings.push(Warning(format!(
                "REDIS_PORT is {text:?}, which Kubernetes sets beside a Service named redis: ignored"
            )));
        }
        !is_kubernetes
    });
    let host = set("REDIS_HOST");
    let name = match (host, port) {
        (None, None) => return None,
        (Some(_), None) => "REDIS_HOST",
        (None, Some(_)) => "REDIS_PORT",
        (Some(_), Some(_)) => "REDIS_HOST and REDIS_PORT",
    };
    if let Some(text) = port.filter(|text| parse_port(text).is_none()) {
        let origin = Origin::Variable("REDIS_PORT".to_owned());
        errors
            .push(origin.error("REDIS_PORT", format!("found {text:?}, due a port number, for example 6379")));
        return None;
    }
    let host = host.map_or("localhost", String::as_str);
    let is_bare_v6 = host.parse::<std::net::Ipv6Addr>().is_ok();
    if host.contains(['/', '@']) || (host.contains(':') && !is_bare_v6 && !host.starts_with('[')) {
        let origin = Origin::Variable("REDIS_HOST".to_owned());
        let message = "found more than a host: put host and port into REDIS_ADDR, a URL into REDIS_URL";
        errors.push(origin.error("REDIS_HOST", message));
        return None;
    }
    let host = if is_bare_v6 { format!("[{host}]") } else { host.to_owned() };
    let text = format!("{host}:{}", port.map_or("6379", String::as_str));
    Some(Candidate::new("redis", Origin::Variable(name.to_owned()), &text))
}

fn parse_port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn warn_of_disagreement(order: &[&Candidate], warnings: &mut Vec<Warning>) {
    let Some((winner, losers)) = order.split_first() else { return };
    for loser in losers {
        // That a flag overrides our own variable of the same name is what flags are for.
        let is_ours = matches!(&loser.origin, Origin::Variable(name) if name.starts_with("CORECAST_"));
        if is_ours || winner.agrees(loser) {
            continue;
        }
        let shown = |candidate: &Candidate| {
            candidate.shown().map_or("unreadable".to_owned(), |text| format!("{text:?}"))
        };
        let (won, lost) = (winner.origin.bare(), loser.origin.bare());
        let mut text = format!("{won} ({}) wins over {lost} ({}): unset one", shown(winner), shown(loser));
        if winner.setting == "redis" && shown(winner) == shown(loser) {
            text = format!("{won} wins over {lost}, which has another password: unset one");
        }
        warnings.push(Warning(text));
    }
}

/// Whether Kubernetes puts `name` into every container beside a Service whose name begins with "corecast":
/// `CORECAST_SERVICE_HOST`, `CORECAST_SERVICE_PORT_HTTP`, `CORECAST_REDIS_PORT=tcp://...`, `CORECAST_PORT_8080_TCP_ADDR`.
fn is_of_a_service(name: &str, value: &str) -> bool {
    let is_link = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let is_of_a_port = name.split_once("_PORT_").is_some_and(|(_, rest)| {
        rest.split('_').nth(1).is_some_and(|protocol| matches!(protocol, "TCP" | "UDP" | "SCTP"))
    });
    let is_of_service =
        name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_");
    is_of_service || is_of_a_port || (name.ends_with("_PORT") && is_link)
}

fn warn_of_unknown(variables: &BTreeMap<String, String>, warnings: &mut Vec<Warning>) {
    let known: Vec<String> = SETTINGS
        .iter()
        .map(Setting::variable)
        .chain(OTHER_VARIABLES.iter().map(|name| (*name).to_owned()))
        .collect();
    for (name, value) in variables.iter().filter(|(name, _)| name.starts_with("CORECAST_")) {
        if known.contains(name) || is_of_a_service(name, value) {
            continue;
        }
        let near = nearest(name, known.iter().map(String::as_str));
        let near = near.map_or(String::new(), |near| format!("; did you mean {near}?"));
        warnings.push(Warning(format!("{name} is set, but corecast has no such variable{near}")));
    }
}
