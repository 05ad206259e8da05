//! What a server is told: one typed structure, parsed once, passed by reference.
//!
//! The doc comment of a field is its manual. Text becomes a [`Config`] in the files under `config/`; nothing here reads
//! files or the environment: [`load`] is given their text. Each scalar of a server is one row of
//! [`settings::SETTINGS`], from which its key, flag, variable, help and line in `config show` come.

mod environment;
mod expert;
mod file;
mod input;
mod layers;
mod nearest;
mod preset;
mod redis_servers;
mod redis_target;
mod servers;
pub mod settings;
mod show;
mod source;
mod template;
#[cfg(test)]
mod tests;
mod units;
mod validate;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use environment::OTHER_VARIABLES;
pub use expert::{Expert, RingSetup};
pub use input::{Input, Wrong};
pub use layers::{ConfigError, ConfigErrors, File, Inputs, Loaded, Origin, Provenance, Warning, load};
pub use nearest::hint;
pub use preset::preset_names;
pub use redis_target::RedisTargetError;
pub use show::show;
pub use template::Places;
pub use units::{duration_text, parse_duration, parse_size, size_text};

use crate::limits::{Bounds, MIB};

/// All that `corecast serve` obeys, after file, environment and flags have been merged.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where clients connect. One listener per shard and address. Default 127.0.0.1:8080; a preset brings its own port.
    ///
    /// `:8081` is `[::]:8081` here and means every interface and both families, as in Go: such a socket is bound with
    /// IPV6_V6ONLY off, and where the host has no IPv6 to 0.0.0.0. Port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// For each address of `listen` the preset whose own port it has: a path without a fitting condition belongs to that
    /// preset there. `None`: to the first preset named.
    pub listen_presets: Vec<Option<String>>,
    /// Where `/metrics /stats /publish /admin/...` are served instead of on `listen`. Default: on `listen`.
    pub admin: Option<SocketAddr>,
    /// Where publications come from and go to.
    pub broker: BrokerChoice,
    /// `/readyz` (and `/healthz` under [`Health::Broker`]) fail while the broker is away. Default false.
    pub require_broker: bool,
    /// Processes behind one port. Default 1: this one. Above that it is their parent: it holds the sockets, restarts who dies
    /// and divides the cores. Needs Redis, through which they reach each other's clients. A crash then costs the clients of
    /// one process; each keeps its own relay and room logs, so memory and Redis' output grow with their number.
    pub processes: usize,
    /// Shards: one pinned thread each, in each process.
    pub shards: ShardCount,
    /// Cores to pin to, shards first, then the relay when it has its own thread. Default: all that the process may use.
    pub cores: Option<Vec<usize>>,
    /// Which shard a new connection goes to. Default hash.
    pub steer: Steer,
    /// The kernel interface of the shards.
    pub driver: DriverChoice,
    /// How long a drain may take. Default 10 s.
    pub drain: Duration,
    /// Written whole, as JSON `{"pid","listen","listeners","admin"}`, `listen` being the first of `listeners`, when the server is ready.
    pub ports_file: Option<PathBuf>,
    /// Form of the log lines.
    pub log_format: LogFormat,
    /// Threshold, in the syntax of `tracing_subscriber::EnvFilter`. Default "info".
    pub log_level: String,
    /// File whose trimmed content is the key for `POST /publish` and whatever names rooms or users.
    pub api_key_file: Option<PathBuf>,
    /// Which `Origin` headers may connect.
    pub origins: Origins,
    /// Serve `/echo` (each connection gets back its own messages; for conformance suites). Default false.
    pub echo_route: bool,
    /// Name of this node in envelopes and service channels. Default: random, 16 hex digits.
    pub node_id: String,
    /// Every so often one info line says what happened since the last: publications, deliveries, drops, connections, rooms.
    /// Default 0: never. A line in which nothing moved is left out: `seconds` of the next tells how long it covers. There is at
    /// most one a second.
    pub report_interval: Duration,
    /// Log each WebSocket's coming and going at info, with user, room, remote address and how many of the room remain on its
    /// shard; otherwise at debug. Costs a line per connect and leave; in a storm the lines that stderr is too slow for are lost and
    /// counted (`log_lines_lost` in the report). Default false.
    pub log_connections: bool,
    /// Domains that judge what ingestors send: `trading`, `chat`, `common`. Default none: any JSON object with a `type` and a
    /// `room` is an event.
    pub domains: Vec<String>,
    /// JSON files, each a domain made of a schema.
    pub domain_files: Vec<PathBuf>,
    /// What `/healthz` says.
    pub health: Health,
    /// Add event-fanout's `rooms`, `clients` and `dropped_messages` to `/metrics`. Default false.
    pub plain_metrics: bool,
    /// Bounds that may be moved.
    pub bounds: Bounds,
    /// What only an experiment has a reason to move.
    pub expert: Expert,
    /// The file's before the presets', each preset's also below `/NAME`; [`Routes`](crate::route::Routes) says which one a
    /// request takes.
    pub routes: Vec<Route>,
    /// First match wins; the last one matches every name in every space.
    pub rooms: Vec<RoomClass>,
    /// Which channels feed which rooms.
    pub sources: Vec<Source>,
    /// Presets this was built from, in order; for logs and `/stats`.
    pub presets: Vec<String>,
}

/// See [`Config::broker`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerChoice {
    /// Publications stay in this process.
    Local,
    /// Publications travel through Redis: one server, or several over which the rooms are spread.
    Redis(Vec<RedisServer>),
}

/// A Redis, and what sources call it (table `[[redis]]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisServer {
    /// Of its own among the servers; in metrics, `/stats` and logs too. Default "redis".
    pub name: String,
    /// Where it is.
    pub target: RedisTarget,
    /// Variable that its password came from, if it did.
    pub password_variable: Option<String>,
}

/// A Redis server, out of a URL, `HOST:PORT`, or variables.
///
/// Forms: `redis://[user[:password]@]host[:port][/database]`, `unix:///path.sock[?db=N]`, `redis+unix://...`, `host:port`;
/// `redis+sentinel://[user[:password]@]host[:port],.../NAME[/database][?sentinel_username=..&sentinel_password=..]`;
/// `redis+cluster://[user[:password]@]host[:port],...`. With TLS `rediss://...`, `rediss+sentinel://...`, which is TLS to the
/// sentinels too unless `sentinel_tls=no` is among its parameters, and `rediss+cluster://...`.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisTarget {
    /// Where it listens.
    pub address: RedisAddress,
    /// ACL user; `None` is `default`.
    pub username: Option<String>,
    /// Never logged, never shown.
    pub password: Option<String>,
    /// Database for SELECT; Pub/Sub doesn't know databases, KV does.
    pub database: u32,
    /// `Some` for `rediss://` and its likes.
    pub tls: Option<RedisTls>,
}

/// What TLS to Redis takes besides the address. Files are PEM; they are read for each connection, so that one that was
/// replaced is taken at the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisTls {
    /// CAs to trust. Default: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Our certificate, for a Redis that asks for one (`tls-auth-clients`), its intermediate CAs after it. Needs
    /// `key_file`. Default: none.
    pub cert_file: Option<PathBuf>,
    /// Its key, without a passphrase.
    pub key_file: Option<PathBuf>,
    /// DNS name or address that Redis' certificate must have; of several servers that of each. Default: the host by which a server
    /// is reached, out of the URL or as sentinels and nodes of a cluster name it.
    pub server_name: Option<String>,
}

/// See [`RedisTarget`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisAddress {
    /// Host name or address, and port.
    Tcp { host: String, port: u16 },
    /// Path of a unix socket.
    Unix(PathBuf),
    /// Wherever these sentinels say.
    Sentinel(Box<Sentinels>),
    /// A cluster: these nodes are asked where the others are.
    Cluster(Vec<Server>),
}

/// One server of several.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Server {
    /// Name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// Sentinels, and what they are asked for.
#[derive(Clone, PartialEq, Eq)]
pub struct Sentinels {
    /// At least one. All of them are listened to.
    pub servers: Vec<Server>,
    /// The name under which they watch it.
    pub primary: String,
    /// ACL user at the sentinels; `None` is `default`.
    pub username: Option<String>,
    /// Password at the sentinels. Never logged, never shown.
    pub password: Option<String>,
    /// They speak TLS, with the files of the [`RedisTarget`]; never without TLS to what they watch.
    pub tls: bool,
}

/// See [`Config::shards`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardCount {
    /// One per usable core; with three or more cores one is left to the relay.
    Auto,
    /// This many.
    Count(usize),
}

/// See [`Config::steer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steer {
    /// The kernel's hash of both addresses: even but for a few per cent, whatever receives.
    Hash,
    /// The shard that is pinned to the core which received it: for network cards that spread flows over as many queues as
    /// there are shards. The port must be this server's alone. On loopback that core is the client's.
    Cpu,
}

/// See [`Config::driver`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverChoice {
    /// io_uring where SINGLE_ISSUER and DEFER_TASKRUN work (Linux 6.1), else epoll, said in one log line.
    Auto,
    /// io_uring, or an error.
    IoUring,
    /// epoll.
    Epoll,
}

/// See [`Config::log_format`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// See [`Config::origins`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// Absent origins and those whose host and port equal the Host header's.
    SameHost,
    /// Any origin, as the users of some presets rely on.
    Any,
    /// These (scheme, host, port), compared after parsing; absent origins pass.
    List(Vec<String>),
}

/// See [`Config::health`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// 200 `ok` while the process lives.
    Alive,
    /// 200 `ok` while Redis answers, else 503 `redis down` (event-fanout).
    Broker,
}

impl Default for Config {
    /// Corecast without file, preset, variables and flags. The node id is all zeros: [`load`] is given a random one.
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))],
            listen_presets: vec![None],
            admin: None,
            broker: BrokerChoice::Local,
            require_broker: false,
            processes: 1,
            shards: ShardCount::Auto,
            cores: None,
            steer: Steer::Hash,
            driver: DriverChoice::Auto,
            drain: Duration::from_secs(10),
            ports_file: None,
            log_format: LogFormat::Text,
            log_level: "info".to_owned(),
            api_key_file: None,
            origins: Origins::SameHost,
            echo_route: false,
            node_id: "0000000000000000".to_owned(),
            report_interval: Duration::ZERO,
            log_connections: false,
            domains: Vec::new(),
            domain_files: Vec::new(),
            health: Health::Alive,
            plain_metrics: false,
            bounds: Bounds::default(),
            expert: Expert::default(),
            routes: vec![Route::default()],
            rooms: vec![RoomClass::default()],
            sources: vec![Source::default()],
            presets: Vec::new(),
        }
    }
}

/// Which URL joins what (table `[[route]]`).
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Exact path, for example `/ws`.
    pub path: String,
    /// The route applies only to requests that carry this query parameter.
    pub when_query: Option<String>,
    /// Room to join, out of the request. Empty where the route has none: such connections join by message.
    pub room: Template,
    /// The room's text is a list with this between its members, and the connection joins all of them (at most
    /// [`Bounds::rooms_per_connection_max`]). On the raw dialect nothing tells the rooms of what arrives apart, and such a
    /// connection can't publish unless it is in one room only. Default none: one room.
    pub separator: Option<char>,
    /// Name space of the room: rooms of different spaces never meet, whatever their names. Empty is the plain space, of
    /// the file's tables and of the first preset named; each further preset has a space of its own name.
    pub space: String,
    /// Name of the user, out of the request; absent parameters leave it empty.
    pub user: Option<Template>,
    /// Characters that neither the room's nor the user's text may hold: 400. For users whose names become part of a
    /// channel in which these characters separate.
    pub forbid: Option<String>,
    /// Who may publish through the connection.
    pub publish: Publish,
    /// What the connection is there for; the JSON dialect only.
    pub role: Role,
    /// The handshake needs the key of [`Config::api_key_file`], where one is configured: 401 without.
    pub key: bool,
    /// How entries look on the wire.
    pub dialect: Dialect,
    /// Whether a connection hears what it published itself. Default true.
    pub hear_self: bool,
    /// Sentence of the 400 when `when_query` is missing on the path; default names the parameter.
    pub missing: Option<String>,
    /// Ping interval of the connections that came this way, instead of [`Bounds::ping_interval`]; zero turns pings off.
    pub ping: Option<Duration>,
    /// Preset that brought it, `None` for the file.
    pub preset: Option<String>,
}

impl Default for Route {
    /// The route of corecast without file and preset: `/ws?room=NAME`, where everybody may publish.
    fn default() -> Self {
        Self {
            path: "/ws".to_owned(),
            when_query: Some("room".to_owned()),
            room: Template { parts: vec![TemplatePart::Query("room".to_owned())] },
            separator: None,
            space: String::new(),
            user: None,
            forbid: None,
            publish: Publish::Any,
            role: Role::Consumer,
            key: false,
            dialect: Dialect::Raw,
            hear_self: true,
            missing: None,
            ping: None,
            preset: None,
        }
    }
}

impl Route {
    /// Whether connections of the JSON dialect may join rooms by message here: where that is what the route is for, or where
    /// its URL could name any room as well and no user by it.
    pub fn joins_by_message(&self) -> bool {
        let is_free = matches!(self.room.parts.as_slice(), [TemplatePart::Query(_)]);
        self.dialect == Dialect::Json || (is_free && self.user.as_ref() != Some(&self.room))
    }
}

/// A text with places, for example `user:{query.username}`.
///
/// Places: `{query.x} {path.x} {1} {json.x} {claim.x} {node_id}`; of these `path` and `claim` are refused, by name, until
/// something implements them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template {
    /// Literal and place in turn.
    pub parts: Vec<TemplatePart>,
}

/// See [`Template`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplatePart {
    /// Copied.
    Literal(String),
    /// `{query.x}`: the percent-decoded parameter `x`.
    Query(String),
    /// `{1}`: what the pattern's `*` matched in a channel's name.
    Wildcard,
    /// `{json.x}`: the string member `x` of the JSON object that arrived.
    Json(String),
    /// `{node_id}`.
    NodeId,
}

/// See [`Route::publish`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publish {
    /// Nobody: a data frame closes the connection with 1008.
    None,
    /// Nobody: a data frame is thrown away and counted. For systems whose clients may say what they like.
    Ignore,
    /// Members, to the rooms they are in.
    Member,
    /// Anybody who got in.
    Any,
}

/// See [`Route::dialect`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// The payload and nothing else.
    Raw,
    /// `{"type","room","data"}` both ways; connections join and leave by message.
    Json,
    /// nchan's `ws+meta.nchan`: before each payload a line with its id, one with its type, and an empty one.
    Meta,
    /// Server-sent events over HTTP (HTML standard, section 9.2).
    Sse,
    /// The debug route `/echo`: no room, each message comes back.
    Echo,
}

impl Dialect {
    /// Dialects that members of rooms speak.
    pub const ALL: [Self; Self::COUNT] = [Self::Raw, Self::Json, Self::Meta, Self::Sse];
    /// How many they are.
    pub const COUNT: usize = 4;

    /// Its place in tables by dialect; the raw one has 0.
    pub const fn index(self) -> usize {
        match self {
            Self::Raw | Self::Echo => 0,
            Self::Json => 1,
            Self::Meta => 2,
            Self::Sse => 3,
        }
    }

    /// Its bit in masks of dialects.
    pub const fn bit(self) -> u8 {
        1 << self.index()
    }
}

/// See [`Route::role`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Joins rooms, hears them, and may send a `message` to those it is in.
    Consumer,
    /// Sends events of the domains and never joins.
    Ingestor,
}

/// How much is kept of the rooms of a name, and what slowness means in them (table `[[room]]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomClass {
    /// Exact name, or a prefix followed by `*`.
    pub name: String,
    /// The class holds for rooms of this space only; `None` for those of every space.
    pub space: Option<String>,
    /// Depth of the log of record.
    pub history: History,
    /// What happens to a subscription that falls behind.
    pub slow: Slow,
    /// [`SlowPolicy::Conflate`]: the member of a payload's JSON object that is its key; `None`: all have one key.
    pub conflate_key: Option<String>,
}

impl Default for RoomClass {
    /// The class of every room that no other class names.
    fn default() -> Self {
        Self {
            name: "*".to_owned(),
            space: None,
            history: History::default(),
            slow: Slow::default(),
            conflate_key: None,
        }
    }
}

/// See [`RoomClass::history`]. `frames = 0` keeps only what a ring gap may still need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    /// Publications.
    pub frames: usize,
    /// Bytes of their frames.
    pub bytes: usize,
    /// Age of the oldest.
    pub age: Duration,
}

impl Default for History {
    fn default() -> Self {
        Self { frames: 0, bytes: MIB, age: Duration::from_secs(300) }
    }
}

/// See [`RoomClass::slow`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slow {
    /// What happens at a limit.
    pub policy: SlowPolicy,
    /// How far behind in publications. Default 256.
    pub frames: usize,
    /// How far behind in bytes. Default 1 MiB.
    pub bytes: usize,
    /// How old the oldest unsent publication may be. Default 10 s.
    pub age: Duration,
}

impl Default for Slow {
    fn default() -> Self {
        Self { policy: SlowPolicy::Disconnect, frames: 256, bytes: MIB, age: Duration::from_secs(10) }
    }
}

/// See [`Slow::policy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlowPolicy {
    /// Close with 1013.
    Disconnect,
    /// Skip to the tail; after `disconnect_after` drops in a row (0: never) close with 1013.
    DropOldest {
        /// Publications dropped in a row, without one delivered between them; 0 never disconnects.
        disconnect_after: u32,
    },
    /// Of the publications with one [`RoomClass::conflate_key`] keep the newest; close with 1013 where more keys wait than
    /// the limits allow.
    Conflate,
}

/// Which channels feed which rooms, and how a payload is unwrapped (table `[[source]]`).
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// How the channels are subscribed.
    pub subscribe: Subscribe,
    /// Variable that, where it is set, names the channel instead; only for one fixed channel.
    pub variable: Option<String>,
    /// Room of a channel, for example `{1}`.
    pub room: Template,
    /// Name space of the room, as in [`Route::space`].
    pub space: String,
    /// Name of the Redis that it is of. Default: the first.
    pub server: Option<String>,
    /// What a member receives of a payload.
    pub deliver: Deliver,
    /// How this node's own publications come to its members.
    pub own: Own,
    /// The newest event of each room that a domain marks so, kept in Redis for newcomers.
    pub last_value: Option<LastValue>,
    /// Entries that a stream keeps, about, when this server appends to it; `None`: all.
    pub maxlen: Option<u64>,
    /// How long it keeps them.
    pub maxage: Option<Duration>,
}

impl Default for Source {
    /// The source of corecast without file and preset, when it is given a Redis: channel `room:NAME` feeds room NAME.
    fn default() -> Self {
        Self {
            subscribe: Subscribe::OnDemand { prefix: "room:".to_owned(), suffix: String::new() },
            variable: None,
            room: Template { parts: vec![TemplatePart::Wildcard] },
            space: String::new(),
            server: None,
            deliver: Deliver::Raw,
            own: Own::Echo,
            last_value: None,
            maxlen: None,
            maxage: None,
        }
    }
}

/// See [`Source::own`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    /// When Redis returns them: one order on all nodes. While the subscription is broken, here and once.
    Echo,
    /// At once, before Redis has them; what Redis returns names its origin and is ignored.
    Origin,
}

/// See [`Source::last_value`]. Written when an event is ingested and at no other time; read for each newcomer, and only from
/// Redis, so that its end means something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastValue {
    /// Key in Redis: what the event's domain names as its key follows it; a newcomer reads that of its room's plain name.
    pub prefix: String,
    /// How long Redis keeps it. Default 30 s.
    pub ttl: Duration,
    /// A write that Redis hasn't been sent within this time is given up, and counted. Default 50 ms.
    pub timeout: Duration,
}

/// See [`Source::subscribe`]. A client's text never becomes part of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subscribe {
    /// `psubscribe room:*`: one fixed pattern with exactly one `*`, for as long as the server runs.
    Pattern { prefix: String, suffix: String },
    /// `subscribe events.critical`: one fixed channel.
    Channel(String),
    /// `subscribe room:{1}`: the channel of a room is subscribed for its first member and left after its last.
    OnDemand { prefix: String, suffix: String },
    /// `stream orders:*`: the Redis stream of a room is read for as long as somebody wants the room, from where it was.
    Stream { prefix: String, suffix: String },
}

/// See [`Source::deliver`]; what clients publish is put into the same form on the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deliver {
    /// The payload as it is.
    Raw,
    /// The named string field of a JSON object; anything else as it is. Own publications leave as
    /// `{"room":..,"from":..,NAME:..}` when they are UTF-8, and as they are when not.
    Field(String),
    /// `{"room":..,"data":..}` around the payload.
    Wrap,
    /// A JSON object `{"room","type","data","origin","instance_id"}`: members get `data`, and dialects with an envelope also
    /// `type`. Anything else as it is. Own publications leave in this form, their `origin` and `instance_id` this node's
    /// name.
    Event,
}

impl std::fmt::Debug for RedisTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let password = self.password.as_ref().map(|_| "***");
        f.debug_struct("RedisTarget")
            .field("address", &self.address)
            .field("username", &self.username)
            .field("password", &password)
            .field("database", &self.database)
            .field("tls", &self.tls)
            .finish()
    }
}
