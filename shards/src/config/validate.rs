//! What no value is wrong about on its own: pairs that contradict each other.

use std::net::{IpAddr, SocketAddr};

use super::layers::{ConfigError, Origin, Provenance, Warning};
use super::servers::{check_sources, may_feed_one_room};
use super::{
    BrokerChoice, Config, Deliver, Dialect, Publish, RedisAddress, Route, ShardCount, Subscribe, Template,
    duration_text,
};
use crate::limits::TABLES_MAX;

/// 64 without the longest ending of a process's own: `-63-4194304`.
const PROCESS_NODE_BYTES_MAX: usize = 64 - 11;

/// Paths that are pages of corecast's own.
const PAGES: &[&str] = &[
    "/", "/healthz", "/health", "/livez", "/readyz", "/metrics", "/stats", "/publish", "/history", "/admin",
];

pub(super) fn validate(
    config: &Config,
    provenance: &Provenance,
    errors: &mut Vec<ConfigError>,
    warnings: &mut Vec<Warning>,
) {
    let mut check = Check { config, provenance, errors };
    check.pings();
    check.addresses();
    check.threads();
    check.routes();
    check.types();
    check.cluster();
    check.streams();
    check.tables();
    check_sources(config, provenance, errors, warnings);
    warn_of_meetings(config, warnings);
    warn_of_mute_lists(config, provenance, warnings);
    if config.require_broker && config.broker == BrokerChoice::Local {
        warnings.push(Warning(
            "require_broker does nothing with the local broker, which is always there".to_owned(),
        ));
    }
}

struct Check<'a> {
    config: &'a Config,
    provenance: &'a Provenance,
    errors: &'a mut Vec<ConfigError>,
}

impl Check<'_> {
    fn fail(&mut self, key: &str, message: String) {
        let origin = self.provenance.settings.get(key).cloned().unwrap_or_default();
        self.errors.push(origin.error(key, message));
    }

    fn pings(&mut self) {
        let timeout = self.config.bounds.pong_timeout;
        let sentence = |ping| {
            let (ping, timeout) = (duration_text(ping), duration_text(timeout));
            format!(
                "pings every {ping} and a pong_timeout of {timeout} would close healthy connections: pong_timeout must be \
                 longer"
            )
        };
        // The one that was said last is the one to be corrected.
        let level = |key| self.provenance.settings.get(key).map_or(0, Origin::level);
        let key =
            if level("pong_timeout") > level("ping_interval") { "pong_timeout" } else { "ping_interval" };
        if self.config.bounds.ping_interval >= timeout {
            self.fail(key, sentence(self.config.bounds.ping_interval));
        }
        for (route, origin) in self.config.routes.iter().zip(&self.provenance.routes) {
            if let Some(ping) = route.ping.filter(|ping| *ping >= timeout) {
                let origin = self
                    .provenance
                    .settings
                    .get("pong_timeout")
                    .filter(|later| later.level() > origin.level())
                    .unwrap_or(origin);
                self.errors.push(origin.error("ping", format!("route {}: {}", route.path, sentence(ping))));
            }
        }
    }

    fn addresses(&mut self) {
        let listen = &self.config.listen;
        for (index, address) in listen.iter().enumerate() {
            if let Some(earlier) = listen[..index].iter().find(|earlier| overlap(earlier, address)) {
                self.fail("listen", format!("{address} and {earlier} overlap: leave one out"));
            }
        }
        if let Some(admin) = self.config.admin
            && let Some(address) = listen.iter().find(|address| overlap(address, &admin))
        {
            self.fail("admin", format!("{admin} overlaps with listen's {address}: take another port"));
        }
    }

    fn threads(&mut self) {
        let processes = self.config.processes;
        if let (ShardCount::Count(shards), Some(cores)) = (self.config.shards, &self.config.cores)
            && shards * processes > cores.len()
        {
            let (cores, due) = (cores.len(), shards * processes);
            let (of, fewer) = match processes {
                1 => (String::new(), ""),
                _ => (format!(" in each of {processes} processes"), " or processes"),
            };
            let plural = |count: usize| if count == 1 { "" } else { "s" };
            self.fail(
                "shards",
                format!(
                    "found {shards} shard{}{of} for {cores} core{}, due {due} cores, one for each: name more cores, or take fewer \
                     shards{fewer}",
                    plural(shards),
                    plural(cores)
                ),
            );
        }
        if processes > 1 && self.config.broker == BrokerChoice::Local {
            // A flag may say it, and still it is no fault of usage: the same command line is right where Redis is named.
            let said = self.provenance.settings.get("broker");
            let origin =
                said.filter(|origin| !matches!(origin, Origin::Flag(_))).cloned().unwrap_or_default();
            self.errors.push(origin.error(
                "broker",
                format!(
                    "found local and {processes} processes, due Redis, through which they reach each other's clients: pass \
                     --redis, or leave --processes out"
                ),
            ));
        }
        if processes > 1 && self.config.node_id.len() > PROCESS_NODE_BYTES_MAX {
            self.fail(
                "node_id",
                format!(
                    "found {} bytes, due at most {PROCESS_NODE_BYTES_MAX} with several processes, each of which adds its number: \
                     shorten it",
                    self.config.node_id.len()
                ),
            );
        }
    }

    fn routes(&mut self) {
        for (route, origin) in self.config.routes.iter().zip(&self.provenance.routes) {
            let path = route.path.as_str();
            if PAGES.contains(&path) || path.starts_with("/admin/") {
                self.errors.push(origin.error(
                    "path",
                    format!("found {path:?}, which is a page of corecast's own: take another"),
                ));
            }
            if path == "/echo" && self.config.echo_route {
                self.errors.push(origin.error(
                    "path",
                    "found \"/echo\", which echo_route takes: take another, or echo_route = false",
                ));
            }
            if let Some(preset) = &route.preset
                && !self.config.presets.contains(preset)
            {
                self.errors.push(origin.error(
                    "preset",
                    format!("found the preset {preset:?}, which is not in use: name it in preset = ..."),
                ));
            }
        }
    }

    /// Where clients of the JSON dialect publish, the type of what they say must travel beside it: out of a bare payload
    /// another node would read whatever type the payload claims.
    fn types(&mut self) {
        if self.config.broker == BrokerChoice::Local {
            return;
        }
        let publishes = |route: &Route| {
            route.dialect == Dialect::Json && matches!(route.publish, Publish::Member | Publish::Any)
        };
        for (route, origin) in self.config.routes.iter().zip(&self.provenance.routes) {
            let mut sources = self.config.sources.iter().filter(|source| source.space == route.space);
            if publishes(route)
                && let Some(source) = sources.find(|source| source.deliver != Deliver::Event)
            {
                let (path, source) = (&route.path, &source.subscribe);
                self.errors.push(origin.error(
                    "dialect",
                    format!(
                        "clients of {path} publish with a type, and the source {:?} has no place for it: give that source \
                         deliver = \"event\", or the route publish = \"none\"",
                        source.to_string()
                    ),
                ));
            }
        }
    }

    /// A cluster sends what is published with PUBLISH over the bus to each of its nodes, whoever listens there; what scales with it
    /// is sharded Pub/Sub, which knows exact channels only.
    fn cluster(&mut self) {
        let servers = self.config.broker.servers();
        for (source, origin) in self.config.sources.iter().zip(&self.provenance.sources) {
            let subscribe = &source.subscribe;
            let server = servers.get(self.config.server_of(source));
            if !server.is_some_and(|server| matches!(server.target.address, RedisAddress::Cluster(_))) {
                continue;
            }
            if matches!(subscribe, Subscribe::Stream { .. }) {
                let sentence = format!(
                    "found the source {:?}, whose streams a cluster spreads over its nodes: name one server, redis://HOST:PORT",
                    subscribe.to_string()
                );
                self.errors.push(origin.error("redis", sentence));
            } else if !matches!(subscribe, Subscribe::OnDemand { .. }) {
                self.errors.push(origin.error(
                    "redis",
                    format!(
                        "found the source {:?}, but what is published with PUBLISH goes to every node of a cluster, and SPUBLISH \
                         knows no patterns: write \"subscribe room:{{1}}\" for channels on demand by SSUBSCRIBE, or name one \
                         node, redis://HOST:PORT, to take part in that flood",
                        subscribe.to_string()
                    ),
                ));
            } else if source.last_value.is_some() {
                self.errors.push(origin.error(
                    "last_value",
                    format!(
                        "the source {:?} keeps last values, which no cluster does yet: leave it out",
                        subscribe.to_string()
                    ),
                ));
            }
        }
    }

    /// The numbers of a stream's room are those of the stream's entries, so nothing else may feed it.
    fn streams(&mut self) {
        let node_id = &self.config.node_id;
        let sources: Vec<_> = self.config.sources.iter().zip(&self.provenance.sources).collect();
        let streams = sources.iter().enumerate();
        let streams = streams.filter(|(_, (source, _))| matches!(source.subscribe, Subscribe::Stream { .. }));
        for (at, (stream, origin)) in streams {
            let text = stream.subscribe.to_string();
            if self.config.broker == BrokerChoice::Local {
                let sentence = format!(
                    "found the source {text:?} and no Redis, which holds streams: name one, redis = \"redis://HOST:PORT\""
                );
                self.errors.push(origin.error("redis", sentence));
            }
            let other = sources.iter().enumerate().find(|(other_at, (other, _))| {
                let is_stream = matches!(other.subscribe, Subscribe::Stream { .. });
                *other_at != at && !(is_stream && *other_at < at) && may_feed_one_room(stream, other, node_id)
            });
            if let Some((_, (other, _))) = other {
                let sentence = format!(
                    "found the rooms {:?} of {text:?} and the rooms {:?} of {:?}, which may be the same, and a stream's room is \
                     fed by its stream alone: give one of them another name or space",
                    stream.room.to_string(),
                    other.room.to_string(),
                    other.subscribe.to_string()
                );
                self.errors.push(origin.error("room", sentence));
            }
        }
    }

    fn tables(&mut self) {
        let kinds = [
            (
                "route",
                &self.provenance.routes,
                "let one take the name from its query, room = \"{query.room}\"",
            ),
            ("room", &self.provenance.rooms, "let one hold for many names, name = \"chat:*\""),
            ("source", &self.provenance.sources, "let one take many channels, redis = \"psubscribe room:*\""),
        ];
        for (key, origins, cure) in kinds {
            // The first that is too many tells the place.
            if let Some(origin) = origins.get(TABLES_MAX) {
                let count = origins.len();
                let message = format!("found {count} tables [[{key}]], due at most {TABLES_MAX}: {cure}");
                self.errors.push(origin.error(key, message));
            }
        }
    }
}

/// Whether both can't be bound at once. `[::]` takes both families.
fn overlap(a: &SocketAddr, b: &SocketAddr) -> bool {
    let takes = |a: IpAddr, b: IpAddr| a == b || (a.is_unspecified() && (a.is_ipv6() || b.is_ipv4()));
    a.port() != 0 && a.port() == b.port() && (takes(a.ip(), b.ip()) || takes(b.ip(), a.ip()))
}

/// Routes of one space whose different templates can make the same name: a client of one could read the other's rooms.
fn warn_of_meetings(config: &Config, warnings: &mut Vec<Warning>) {
    for (index, route) in config.routes.iter().enumerate() {
        let mut earlier = config.routes[..index].iter();
        if let Some(other) = earlier.find(|other| may_meet(other, route)) {
            warnings.push(Warning(format!(
                "the rooms of route {} ({}) and route {} ({}) can have the same name: give one of them a space = \"...\" \
                 if they are not to meet",
                other.path, other.room, route.path, route.room
            )));
        }
    }
}

/// Routes whose clients may publish and, being in several rooms, have no words to say to which.
fn warn_of_mute_lists(config: &Config, provenance: &Provenance, warnings: &mut Vec<Warning>) {
    for (route, origin) in config.routes.iter().zip(&provenance.routes) {
        let may_publish = matches!(route.publish, Publish::Any | Publish::Member);
        if route.separator.is_some() && route.dialect == Dialect::Raw && may_publish {
            warnings.push(Warning(format!(
                "{origin}: who joins several rooms by the route {} may publish and can't say to which: its first message \
                 would close it with 1008; say publish = \"none\", or dialect = \"json\"",
                route.path
            )));
        }
    }
}

fn may_meet(a: &Route, b: &Route) -> bool {
    fn begins(a: &str, b: &str) -> bool {
        a.starts_with(b) || b.starts_with(a)
    }
    fn ends(a: &str, b: &str) -> bool {
        a.ends_with(b) || b.ends_with(a)
    }
    let places = |template: &Template| template.constant().is_none();
    let differ = a.room != b.room && a.space == b.space && (places(&a.room) || places(&b.room));
    differ && begins(a.room.prefix(), b.room.prefix()) && ends(a.room.suffix(), b.room.suffix())
}
