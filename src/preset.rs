//! Where the users of a preset find its server, its Redis and its channels: by the same configuration as the server's own,
//! so that a command and the server that it is meant for can't differ.

use std::borrow::Cow;
use std::convert::Infallible;
use std::net::IpAddr;

use clap::builder::PossibleValuesParser;
use shards::config::{BrokerChoice, Config, Deliver, RedisTarget, Route, Source, Subscribe};
use shards::route::Routes;

use crate::cli::ConfigArgs;
use crate::client::Target;
use crate::configuration;
use crate::exit::Failure;
use crate::redis::TlsArgs;

/// One preset, under the variables of this process.
pub struct Preset {
    name: String,
    config: Config,
    /// Index of the Redis that was asked for.
    server: Option<usize>,
}

/// For clap: the names that there are.
pub fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(shards::config::preset_names())
}

/// The Redis that `redis` names, as a URL or as a table of the configuration, else the one that the variables name, else the one
/// on this host.
///
/// # Errors
/// Those of the configuration, and 2 where it names several and nobody said which.
pub fn redis(redis: Option<&str>, tls: &TlsArgs) -> anyhow::Result<RedisTarget> {
    let broker = ("broker".to_owned(), "redis".to_owned());
    let settings = std::iter::once(broker).chain(tls.settings()).collect();
    let args = ConfigArgs { settings, ..ConfigArgs::default() };
    let (loaded, server) = configuration::load_naming(args, redis)?;
    if let ([first, _, ..], None) = (loaded.config.broker.servers(), server) {
        let sentence =
            format!("the configuration names several Redis: say which, for example --redis {}", first.name);
        return Err(Failure::usage(sentence).into());
    }
    Ok(redis_of(&loaded.config, server.unwrap_or(0))?.clone())
}

impl Preset {
    /// Reads the preset `name`, with `redis` and `tls` in the place of its own Redis.
    ///
    /// # Errors
    /// Those of the configuration: a variable or file that makes no sense.
    pub fn load(name: &str, redis: Option<&str>, tls: &TlsArgs) -> anyhow::Result<Self> {
        let presets = Some(vec![name.to_owned()]);
        let args = ConfigArgs { presets, settings: tls.settings(), ..ConfigArgs::default() };
        let (loaded, server) = configuration::load_naming(args, redis)?;
        configuration::warn(&loaded);
        Ok(Self { name: name.to_owned(), config: loaded.config, server })
    }

    /// Where its server listens; one that listens everywhere is asked on this host.
    ///
    /// # Errors
    /// Exit code 78 where it listens nowhere.
    pub fn target(&self) -> anyhow::Result<Target> {
        let address = self.config.listen.first();
        let address = address.ok_or_else(|| Failure::config("no address is listened on: set listen"))?;
        let host = match address.ip() {
            ip if ip.is_unspecified() => "localhost".to_owned(),
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => ip.to_string(),
        };
        Ok(Target::new(host, address.port()))
    }

    /// Its Redis.
    ///
    /// # Errors
    /// Exit code 2 where its broker is no Redis.
    pub fn redis(&self) -> Result<&RedisTarget, Failure> {
        let of_source = || self.source().map_or(0, |source| self.config.server_of(source));
        redis_of(&self.config, self.server.unwrap_or_else(of_source))
    }

    /// The query parameter that names what a connection joins (`room`, `username`); `None` where `/ws` asks for none.
    pub fn room_parameter(&self) -> Option<&str> {
        self.routes().find(|route| route.path == "/ws")?.when_query.as_deref()
    }

    /// The channel on which the system's own programs publish: the one there is, or the one of `room`.
    ///
    /// # Errors
    /// Exit code 2 where a room is missing or is one too many.
    pub fn channel(&self, room: Option<&str>) -> Result<String, Failure> {
        let name = &self.name;
        match (self.source().map(|source| &source.subscribe), room) {
            (Some(Subscribe::Channel(channel)), None) => Ok(channel.clone()),
            (Some(Subscribe::Channel(channel)), Some(_)) => Err(Failure::usage(format!(
                "the preset {name} has one channel ({channel}) for everybody: leave out --room"
            ))),
            (
                Some(Subscribe::Pattern { prefix, suffix } | Subscribe::OnDemand { prefix, suffix }),
                Some(room),
            ) => {
                self.check_room(room)?;
                Ok(format!("{prefix}{room}{suffix}"))
            }
            (Some(Subscribe::Pattern { .. } | Subscribe::OnDemand { .. }), None) => {
                Err(Failure::usage(format!(
                    "the preset {name} has a channel for each {}: name it with --room",
                    self.room_parameter().unwrap_or("room")
                )))
            }
            (None | Some(Subscribe::Stream { .. }), _) => Err(Failure::usage(format!(
                "the preset {name} has no channel that other programs publish to: publish with --url or --channel"
            ))),
        }
    }

    /// Whether anybody can join `room`: what is published to another one reaches nobody, and Redis wouldn't say so.
    fn check_room(&self, room: &str) -> Result<(), Failure> {
        let parameter = self.room_parameter().unwrap_or("room");
        let asked = |name: &str| Ok::<_, Infallible>((name == parameter).then_some(Cow::Borrowed(room)));
        Routes::new(&self.config)
            .room_to_publish(0, "/ws", asked)
            .map(drop)
            .map_err(|error| Failure::usage(format!("--room: {error}")))
    }

    /// The field of an envelope in which the system's messages travel through Redis.
    pub fn envelope_field(&self) -> Option<&str> {
        match &self.source()?.deliver {
            Deliver::Field(field) => Some(field),
            _ => None,
        }
    }

    fn source(&self) -> Option<&Source> {
        self.config.sources.first()
    }

    fn routes(&self) -> impl Iterator<Item = &Route> {
        self.config.routes.iter().filter(|route| route.preset.as_deref() == Some(&self.name))
    }
}

fn redis_of(config: &Config, server: usize) -> Result<&RedisTarget, Failure> {
    match &config.broker {
        BrokerChoice::Redis(servers) => Ok(&servers[server].target),
        BrokerChoice::Local => Err(Failure::usage(
            "the broker is the local one (CORECAST_BROKER?), due was a Redis: name it with --redis",
        )),
    }
}
