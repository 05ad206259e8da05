//! The table of scalar settings: key, variable and flag, help, reader, and line in `config show`, one row each.
//!
//! Row `ping_interval` is `ping_interval` in the file (under `[bounds]`), `CORECAST_PING_INTERVAL` in the environment and
//! `--ping-interval` on the command line. The manual of a setting is the doc comment of its field.

use std::path::Path;
use std::time::Duration;

use super::input::{Input, Wrong, address_text, parse_address, parse_listener};
use super::units::{DURATION_MAX, duration_text, size_text};
use super::{
    BrokerChoice, Config, DriverChoice, Health, LogFormat, Origins, RedisTarget, RedisTls, RingSetup,
    ShardCount, Steer,
};
use crate::limits::{
    BATCH_SENDS_LIMIT, KIB, PAYLOAD_BYTES_MAX, PROCESSES_MAX, ROOMS_PER_CONNECTION_LIMIT, SHARDS_MAX,
};

/// One row of [`SETTINGS`].
pub struct Setting {
    /// Key in the file; `-` for `_` it is the flag, in capitals after `CORECAST_` the variable.
    pub name: &'static str,
    /// Another spelling of the flag.
    pub flag_alias: Option<&'static str>,
    /// Where the file has it: at the top or under `[bounds]`.
    pub table: Table,
    /// Heading in `--help`.
    pub heading: &'static str,
    /// Form of the value in `--help`; `BOOL` may be left out on the command line.
    pub form: &'static str,
    /// Sentence in `--help`.
    pub help: &'static str,
    pub(super) apply: fn(&mut Draft, &Input) -> Result<(), Wrong>,
    /// The value as TOML, `None` where it isn't set.
    pub(super) toml: fn(&Config) -> Option<String>,
    pub(super) combine: Combine,
}

/// See [`Setting::table`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Above the first table.
    Top,
    /// `[bounds]`.
    Bounds,
}

/// Which of several presets' values holds.
pub(super) enum Combine {
    /// The first named preset's that has one.
    First,
    /// All, one after the other.
    Join(fn(&mut Config, &Config)),
    /// The largest, so that no preset's users are refused what they may do today.
    Largest(fn(&Config) -> u128),
    /// The smallest.
    Smallest(fn(&Config) -> u128),
}

/// A configuration in the making: broker and its address are separate settings until all are known.
#[derive(Default)]
pub(super) struct Draft {
    pub config: Config,
    pub redis: Option<RedisTarget>,
    pub redis_tls: RedisTls,
    pub broker: Option<BrokerKind>,
}

/// The value of setting `broker`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BrokerKind {
    Local,
    Redis,
}

impl Setting {
    /// The row of `name`.
    pub fn named(name: &str) -> Option<&'static Setting> {
        SETTINGS.iter().find(|setting| setting.name == name)
    }

    /// `--ping-interval`, without the dashes.
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// `CORECAST_PING_INTERVAL`.
    pub fn variable(&self) -> String {
        format!("CORECAST_{}", self.name.to_ascii_uppercase())
    }

    /// What holds without file, preset, variable and flag, as a flag would say it; `None` where nothing holds.
    pub fn default_text(&self) -> Option<String> {
        let toml = (self.toml)(&Config::default())?;
        Some(toml.trim_matches('"').to_owned()).filter(|_| self.name != "node_id")
    }

    /// Whether the flag may stand alone, for true.
    pub fn is_switch(&self) -> bool {
        self.form == "BOOL"
    }
}

const LISTENING: &str = "Listening";
const BROKER: &str = "Broker";
const THREADS: &str = "Threads";
const ACCESS: &str = "Access";
const DOMAINS: &str = "Domains";
const PAGES: &str = "HTTP pages";
const RUNNING: &str = "Logs and stopping";
const BOUNDS: &str = "Bounds";
const EXPERT: &str = "For experiments";

/// Every scalar setting, in the order of `--help` and `config show`.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "listen",
        heading: LISTENING,
        form: "ADDR:PORT,...",
        help: "Where clients connect; \":8081\" is every interface, port 0 a free port, PRESET=ADDR:PORT that preset's own",
        apply: |draft, input| {
            let due = "one or more ADDR:PORT, for example \"127.0.0.1:8080\" or [\":8081\", \"star=:8084\"]";
            let texts = input.list(due)?;
            let listeners: Vec<_> =
                texts.iter().map(|text| parse_listener(text)).collect::<Result<_, _>>()?;
            if texts.is_empty() {
                return Err(input.wrong(due));
            }
            (draft.config.listen, draft.config.listen_presets) = listeners.into_iter().unzip();
            Ok(())
        },
        toml: |config| {
            let listeners = config.listen.iter().zip(&config.listen_presets);
            Some(list_toml(listeners.map(|(address, preset)| match preset {
                // With one preset there is nobody else whose it could be.
                Some(preset) if config.presets.len() > 1 => format!("{preset}={}", address_text(address)),
                _ => address_text(address),
            })))
        },
        combine: Combine::Join(|kept, added| {
            for (address, preset) in added.listen.iter().zip(&added.listen_presets) {
                if !kept.listen.contains(address) {
                    kept.listen.push(*address);
                    kept.listen_presets.push(preset.clone());
                }
            }
        }),
        ..EMPTY
    },
    Setting {
        name: "admin",
        heading: LISTENING,
        form: "ADDR:PORT",
        help: "Serve /metrics, /stats, /publish and /admin here instead of where clients connect",
        apply: |draft, input| {
            draft.config.admin =
                Some(parse_address(input.text("ADDR:PORT, for example \"127.0.0.1:9090\"")?)?);
            Ok(())
        },
        toml: |config| config.admin.as_ref().map(|address| quoted(&address_text(address))),
        ..EMPTY
    },
    Setting {
        name: "ports_file",
        heading: LISTENING,
        form: "PATH",
        help: "Write {\"pid\",\"listen\",\"admin\"} there when the server is ready",
        apply: |draft, input| {
            draft.config.ports_file = Some(input.line("a path")?.into());
            Ok(())
        },
        toml: |config| config.ports_file.as_ref().map(|path| quoted(&path.to_string_lossy())),
        ..EMPTY
    },
    Setting {
        name: "broker",
        heading: BROKER,
        form: "local|redis",
        help: "Where publications travel; redis follows from --redis or a preset",
        apply: |draft, input| {
            draft.broker = Some(input.one_of(&[("local", BrokerKind::Local), ("redis", BrokerKind::Redis)])?);
            Ok(())
        },
        toml: |config| {
            Some(quoted(if matches!(config.broker, BrokerChoice::Local) { "local" } else { "redis" }))
        },
        ..EMPTY
    },
    Setting {
        name: "redis",
        heading: BROKER,
        form: "URL",
        help: "redis://[user[:password]@]host[:port][/database], unix:///path[?db=N], HOST:PORT, or several servers: redis+sentinel://host:port,host:port/NAME, redis+cluster://host:port,host:port; with TLS rediss in the place of redis",
        apply: |draft, input| {
            let text = input.text("a URL or HOST:PORT, for example \"redis://localhost:6379\"")?;
            let target =
                text.parse().map_err(|error: super::RedisTargetError| Wrong::Sentence(error.to_string()))?;
            draft.redis = Some(target);
            Ok(())
        },
        toml: |config| config.broker.single().map(|server| quoted(&server.target.to_string())),
        ..EMPTY
    },
    Setting {
        name: "redis_ca_file",
        heading: BROKER,
        form: "PATH",
        help: "For rediss://: PEM file of the CAs to trust instead of the system's",
        apply: |draft, input| {
            draft.redis_tls.ca_file = Some(input.line("a path")?.into());
            Ok(())
        },
        toml: |config| path_toml(redis_tls(config)?.ca_file.as_deref()),
        ..EMPTY
    },
    Setting {
        name: "redis_cert_file",
        heading: BROKER,
        form: "PATH",
        help: "For a Redis that wants a client certificate: PEM file of ours; needs --redis-key-file",
        apply: |draft, input| {
            draft.redis_tls.cert_file = Some(input.line("a path")?.into());
            Ok(())
        },
        toml: |config| path_toml(redis_tls(config)?.cert_file.as_deref()),
        ..EMPTY
    },
    Setting {
        name: "redis_key_file",
        heading: BROKER,
        form: "PATH",
        help: "PEM file of its key, without a passphrase",
        apply: |draft, input| {
            draft.redis_tls.key_file = Some(input.line("a path")?.into());
            Ok(())
        },
        toml: |config| path_toml(redis_tls(config)?.key_file.as_deref()),
        ..EMPTY
    },
    Setting {
        name: "redis_server_name",
        heading: BROKER,
        form: "NAME",
        help: "Name that Redis' certificate must have, where it is not the host of the URL",
        apply: |draft, input| {
            draft.redis_tls.server_name = Some(RedisTls::read_server_name(input)?);
            Ok(())
        },
        toml: |config| redis_tls(config)?.server_name.as_deref().map(quoted),
        ..EMPTY
    },
    Setting {
        name: "require_broker",
        heading: BROKER,
        form: "BOOL",
        help: "/readyz fails while the broker is away",
        apply: |draft, input| set(&mut draft.config.require_broker, input.boolean()),
        toml: |config| Some(config.require_broker.to_string()),
        ..EMPTY
    },
    Setting {
        name: "node_id",
        heading: BROKER,
        form: "NAME",
        help: "Name of this node in envelopes and service channels; random by default",
        apply: |draft, input| {
            let due = "1 to 64 letters, digits, '-', '_' or '.'";
            let text = input.text(due)?;
            let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            if text.is_empty() || text.len() > 64 || !text.bytes().all(known) {
                return Err(input.wrong(due));
            }
            draft.config.node_id = text.to_owned();
            Ok(())
        },
        toml: |config| Some(quoted(&config.node_id)),
        ..EMPTY
    },
    Setting {
        name: "processes",
        heading: THREADS,
        form: "N",
        help: "Processes behind one port, each with shards of its own, restarted by a parent; above 1 needs Redis",
        apply: |draft, input| set(&mut draft.config.processes, input.count(1..=PROCESSES_MAX)),
        toml: |config| Some(config.processes.to_string()),
        ..EMPTY
    },
    Setting {
        name: "shards",
        heading: THREADS,
        form: "N|auto",
        help: "Pinned threads that hold connections, in each process; auto: one per usable core, one left to the relay from three on",
        apply: |draft, input| {
            let auto = matches!(input, Input::Word(text) | Input::Text(text) if text == "auto");
            draft.config.shards = if auto {
                ShardCount::Auto
            } else {
                let due = format!("auto or a whole number from 1 to {SHARDS_MAX}");
                ShardCount::Count(input.count(1..=SHARDS_MAX).map_err(|_| input.wrong(due))?)
            };
            Ok(())
        },
        toml: |config| {
            Some(match config.shards {
                ShardCount::Auto => quoted("auto"),
                ShardCount::Count(count) => count.to_string(),
            })
        },
        ..EMPTY
    },
    Setting {
        name: "cores",
        heading: THREADS,
        form: "LIST",
        help: "Cores to pin to, shards first, then the relay: \"0,2-5\"; by default all that the process may use",
        apply: |draft, input| {
            draft.config.cores = Some(cores(input)?);
            Ok(())
        },
        toml: |config| {
            let cores = config.cores.as_ref()?;
            Some(quoted(&cores.iter().map(usize::to_string).collect::<Vec<_>>().join(",")))
        },
        ..EMPTY
    },
    Setting {
        name: "steer",
        heading: THREADS,
        form: "hash|cpu",
        help: "Which shard gets a new connection: by a hash of its addresses, or that of the core which received it",
        apply: |draft, input| set(&mut draft.config.steer, input.one_of(STEERS)),
        toml: |config| word_toml(STEERS, config.steer),
        ..EMPTY
    },
    Setting {
        name: "driver",
        heading: THREADS,
        form: "auto|io_uring|epoll",
        help: "Kernel interface of the shards; auto takes io_uring where it works",
        apply: |draft, input| set(&mut draft.config.driver, input.one_of(DRIVERS)),
        toml: |config| word_toml(DRIVERS, config.driver),
        ..EMPTY
    },
    Setting {
        name: "origins",
        heading: ACCESS,
        form: "same-host|any|URL,...",
        help: "Which Origin headers may connect",
        apply: |draft, input| set(&mut draft.config.origins, origins(input)),
        toml: |config| {
            Some(match &config.origins {
                Origins::SameHost => quoted("same-host"),
                Origins::Any => quoted("any"),
                Origins::List(list) => list_toml(list.iter().cloned()),
            })
        },
        ..EMPTY
    },
    Setting {
        name: "api_key_file",
        heading: ACCESS,
        form: "PATH",
        help: "File with the key for POST /publish and pages that name rooms or users",
        apply: |draft, input| {
            draft.config.api_key_file = Some(input.line("a path")?.into());
            Ok(())
        },
        toml: |config| config.api_key_file.as_ref().map(|path| quoted(&path.to_string_lossy())),
        ..EMPTY
    },
    Setting {
        name: "domains",
        heading: DOMAINS,
        form: "NAME,...",
        help: "Domains that judge what ingestors send: trading, chat, common",
        apply: |draft, input| {
            let due = "domains' names, for example [\"trading\", \"chat\"]";
            draft.config.domains = input.list(due)?.into_iter().map(|name| name.into_owned()).collect();
            Ok(())
        },
        toml: |config| Some(array_toml(config.domains.iter().cloned())),
        combine: Combine::Join(|kept, added| {
            for name in &added.domains {
                if !kept.domains.contains(name) {
                    kept.domains.push(name.clone());
                }
            }
        }),
        ..EMPTY
    },
    Setting {
        name: "domain_files",
        heading: DOMAINS,
        form: "PATH,...",
        help: "JSON files, each a domain made of a schema",
        apply: |draft, input| {
            let due = "paths, for example [\"sensors.json\"]";
            let paths = input.list(due)?;
            draft.config.domain_files = paths.into_iter().map(|path| path.into_owned().into()).collect();
            Ok(())
        },
        toml: |config| {
            Some(array_toml(config.domain_files.iter().map(|path| path.to_string_lossy().into_owned())))
        },
        ..EMPTY
    },
    Setting {
        name: "echo_route",
        flag_alias: Some("echo"),
        heading: PAGES,
        form: "BOOL",
        help: "Serve /echo, which returns each connection its own messages, for conformance suites",
        apply: |draft, input| set(&mut draft.config.echo_route, input.boolean()),
        toml: |config| Some(config.echo_route.to_string()),
        ..EMPTY
    },
    Setting {
        name: "health",
        heading: PAGES,
        form: "alive|broker",
        help: "What /healthz says: ok while the process lives, or only while the broker answers",
        apply: |draft, input| set(&mut draft.config.health, input.one_of(HEALTHS)),
        toml: |config| word_toml(HEALTHS, config.health),
        ..EMPTY
    },
    Setting {
        name: "plain_metrics",
        heading: PAGES,
        form: "BOOL",
        help: "Add rooms, clients and dropped_messages to /metrics",
        apply: |draft, input| set(&mut draft.config.plain_metrics, input.boolean()),
        toml: |config| Some(config.plain_metrics.to_string()),
        ..EMPTY
    },
    Setting {
        name: "log_format",
        heading: RUNNING,
        form: "text|json",
        help: "Form of the log lines",
        apply: |draft, input| set(&mut draft.config.log_format, input.one_of(LOG_FORMATS)),
        toml: |config| word_toml(LOG_FORMATS, config.log_format),
        ..EMPTY
    },
    Setting {
        name: "log_level",
        heading: RUNNING,
        form: "LEVEL",
        help: "error, warn, info, debug, trace, or by module: \"info,shards=debug\"",
        apply: |draft, input| {
            draft.config.log_level = input.line("a level, for example \"info\"")?.to_owned();
            Ok(())
        },
        toml: |config| Some(quoted(&config.log_level)),
        ..EMPTY
    },
    Setting {
        name: "log_connections",
        heading: RUNNING,
        form: "BOOL",
        help: "Log each WebSocket's coming and going at info, with user and counts; else at debug",
        apply: |draft, input| set(&mut draft.config.log_connections, input.boolean()),
        toml: |config| Some(config.log_connections.to_string()),
        combine: Combine::Join(|kept, added| kept.log_connections |= added.log_connections),
        ..EMPTY
    },
    Setting {
        name: "report_interval",
        heading: RUNNING,
        form: "DURATION",
        help: "One info line this often with what was received, delivered and dropped, unless nothing moved; 0s: never",
        apply: |draft, input| {
            set(&mut draft.config.report_interval, input.duration(Duration::ZERO..=DURATION_MAX))
        },
        toml: |config| Some(quoted(&duration_text(config.report_interval))),
        combine: Combine::Smallest(|config| config.report_interval.as_nanos()),
        ..EMPTY
    },
    Setting {
        name: "drain",
        heading: RUNNING,
        form: "DURATION",
        help: "How long SIGTERM may take to close the connections, at a pace",
        apply: |draft, input| set(&mut draft.config.drain, input.duration(Duration::ZERO..=DURATION_MAX)),
        toml: |config| Some(quoted(&duration_text(config.drain))),
        ..EMPTY
    },
    Setting {
        name: "connections_max",
        help: "Connections per process; at the bound accepting pauses",
        apply: |draft, input| set(&mut draft.config.bounds.connections_max, input.count(1..=usize::MAX)),
        toml: |config| Some(config.bounds.connections_max.to_string()),
        ..BOUND_COUNT
    },
    Setting {
        name: "message_bytes_max",
        form: "SIZE",
        help: "Bytes of one message from a client; above: close 1009",
        apply: |draft, input| {
            set(&mut draft.config.bounds.message_bytes_max, input.size(1..=PAYLOAD_BYTES_MAX))
        },
        toml: |config| Some(quoted(&size_text(config.bounds.message_bytes_max))),
        combine: Combine::Largest(|config| config.bounds.message_bytes_max as u128),
        ..BOUND_COUNT
    },
    Setting {
        name: "fragments_max",
        help: "Fragments of one message from a client; above: close 1008",
        apply: |draft, input| {
            let count = input.count(1..=u32::MAX as usize)?;
            draft.config.bounds.fragments_max = u32::try_from(count).map_err(|_| input.wrong("less"))?;
            Ok(())
        },
        toml: |config| Some(config.bounds.fragments_max.to_string()),
        ..BOUND_COUNT
    },
    Setting {
        name: "rooms_per_connection_max",
        help: "Rooms one connection may be in; above: the join is refused",
        apply: |draft, input| {
            set(
                &mut draft.config.bounds.rooms_per_connection_max,
                input.count(1..=ROOMS_PER_CONNECTION_LIMIT),
            )
        },
        toml: |config| Some(config.bounds.rooms_per_connection_max.to_string()),
        ..BOUND_COUNT
    },
    Setting {
        name: "handshake_timeout",
        form: "DURATION",
        help: "From accept to the end of the request head",
        apply: |draft, input| {
            set(&mut draft.config.bounds.handshake_timeout, input.duration(MILLISECOND..=DURATION_MAX))
        },
        toml: |config| Some(quoted(&duration_text(config.bounds.handshake_timeout))),
        ..BOUND_COUNT
    },
    Setting {
        name: "ping_interval",
        form: "DURATION",
        help: "A ping goes out when nothing came for this long; 0s: never",
        apply: |draft, input| {
            set(&mut draft.config.bounds.ping_interval, input.duration(Duration::ZERO..=DURATION_MAX))
        },
        toml: |config| Some(quoted(&duration_text(config.bounds.ping_interval))),
        combine: Combine::Smallest(|config| config.bounds.ping_interval.as_nanos()),
        ..BOUND_COUNT
    },
    Setting {
        name: "pong_timeout",
        form: "DURATION",
        help: "Nothing received for this long: closed; longer than --ping-interval",
        apply: |draft, input| {
            set(&mut draft.config.bounds.pong_timeout, input.duration(MILLISECOND..=DURATION_MAX))
        },
        toml: |config| Some(quoted(&duration_text(config.bounds.pong_timeout))),
        combine: Combine::Largest(|config| config.bounds.pong_timeout.as_nanos()),
        ..BOUND_COUNT
    },
    Setting {
        name: "ring_setup",
        heading: EXPERT,
        form: "defer|coop|plain",
        help: "Flags of the runtime's ring: SINGLE_ISSUER and DEFER_TASKRUN, COOP_TASKRUN, none",
        apply: |draft, input| set(&mut draft.config.expert.ring_setup, input.one_of(RING_SETUPS)),
        toml: |config| word_toml(RING_SETUPS, config.expert.ring_setup),
        ..EMPTY
    },
    Setting {
        name: "batch_sends_max",
        heading: EXPERT,
        form: "N",
        help: "Sends in one system call, and between two yields to others on the thread",
        apply: |draft, input| {
            set(&mut draft.config.expert.batch_sends_max, input.count(1..=BATCH_SENDS_LIMIT))
        },
        toml: |config| Some(config.expert.batch_sends_max.to_string()),
        ..EMPTY
    },
    Setting {
        name: "pass_slice",
        heading: EXPERT,
        form: "DURATION",
        help: "After a batch that took longer the next ones are smaller",
        apply: |draft, input| {
            let range = Duration::from_micros(10)..=Duration::from_secs(1);
            set(&mut draft.config.expert.pass_slice, input.duration(range))
        },
        toml: |config| Some(quoted(&duration_text(config.expert.pass_slice))),
        ..EMPTY
    },
    Setting {
        name: "notsent_lowat",
        heading: EXPERT,
        form: "SIZE",
        help: "TCP_NOTSENT_LOWAT: unsent bytes that the kernel takes for a client before its socket is full",
        apply: |draft, input| set(&mut draft.config.expert.notsent_lowat, input.size(1..=SOCKET_BYTES_MAX)),
        toml: |config| Some(quoted(&size_text(config.expert.notsent_lowat))),
        ..EMPTY
    },
    Setting {
        name: "socket_receive_bytes",
        heading: EXPERT,
        form: "SIZE",
        help: "SO_RCVBUF of clients' sockets; by default the kernel adjusts it",
        apply: |draft, input| {
            draft.config.expert.socket_receive_bytes = Some(input.size(KIB..=SOCKET_BYTES_MAX)?);
            Ok(())
        },
        toml: |config| config.expert.socket_receive_bytes.map(|bytes| quoted(&size_text(bytes))),
        ..EMPTY
    },
    Setting {
        name: "socket_send_bytes",
        heading: EXPERT,
        form: "SIZE",
        help: "SO_SNDBUF of clients' sockets; by default the kernel adjusts it",
        apply: |draft, input| {
            draft.config.expert.socket_send_bytes = Some(input.size(KIB..=SOCKET_BYTES_MAX)?);
            Ok(())
        },
        toml: |config| config.expert.socket_send_bytes.map(|bytes| quoted(&size_text(bytes))),
        ..EMPTY
    },
    Setting {
        name: "busy_poll",
        heading: EXPERT,
        form: "DURATION",
        help: "SO_BUSY_POLL of clients' sockets; needs CAP_NET_ADMIN and a device with queues of its own",
        apply: |draft, input| {
            let found = input.duration(Duration::ZERO..=Duration::from_millis(10))?;
            if found.as_nanos() % 1000 != 0 {
                return Err(input.wrong("whole microseconds"));
            }
            draft.config.expert.busy_poll = found;
            Ok(())
        },
        toml: |config| Some(quoted(&duration_text(config.expert.busy_poll))),
        ..EMPTY
    },
    Setting {
        name: "huge_pages",
        heading: EXPERT,
        form: "BOOL",
        help: "Let the kernel use transparent huge pages for the server's memory, where the host gives them",
        apply: |draft, input| set(&mut draft.config.expert.huge_pages, input.boolean()),
        toml: |config| Some(config.expert.huge_pages.to_string()),
        ..EMPTY
    },
];

const MILLISECOND: Duration = Duration::from_millis(1);
const DRIVERS: &[(&str, DriverChoice)] =
    &[("auto", DriverChoice::Auto), ("io_uring", DriverChoice::IoUring), ("epoll", DriverChoice::Epoll)];
const STEERS: &[(&str, Steer)] = &[("hash", Steer::Hash), ("cpu", Steer::Cpu)];
const RING_SETUPS: &[(&str, RingSetup)] =
    &[("defer", RingSetup::Defer), ("coop", RingSetup::Coop), ("plain", RingSetup::Plain)];
/// The kernel's numbers are of 31 bits, and it doubles them.
const SOCKET_BYTES_MAX: usize = 1 << 30;
const HEALTHS: &[(&str, Health)] = &[("alive", Health::Alive), ("broker", Health::Broker)];
const LOG_FORMATS: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];

/// What most rows leave as it is.
const EMPTY: Setting = Setting {
    name: "",
    flag_alias: None,
    table: Table::Top,
    heading: "",
    form: "",
    help: "",
    apply: |_, _| Ok(()),
    toml: |_| None,
    combine: Combine::First,
};
const BOUND_COUNT: Setting = Setting { table: Table::Bounds, heading: BOUNDS, form: "N", ..EMPTY };

/// `text` as a TOML string.
pub(super) fn quoted(text: &str) -> String {
    let mut toml = String::with_capacity(text.len() + 2);
    toml.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => toml.extend(['\\', c]),
            c if c.is_control() => toml.push_str(&format!("\\U{:08X}", u32::from(c))),
            c => toml.push(c),
        }
    }
    toml.push('"');
    toml
}

fn redis_tls(config: &Config) -> Option<&RedisTls> {
    config.broker.single()?.target.tls.as_ref()
}

fn path_toml(path: Option<&Path>) -> Option<String> {
    path.map(|path| quoted(&path.to_string_lossy()))
}

/// One text as a TOML string, several as an array.
pub(super) fn list_toml(texts: impl Iterator<Item = String>) -> String {
    let texts: Vec<String> = texts.map(|text| quoted(&text)).collect();
    if let [text] = texts.as_slice() { text.clone() } else { format!("[{}]", texts.join(", ")) }
}

/// Texts as an array, also none and one.
fn array_toml(texts: impl Iterator<Item = String>) -> String {
    let texts: Vec<String> = texts.map(|text| quoted(&text)).collect();
    format!("[{}]", texts.join(", "))
}

fn word_toml<T: PartialEq>(words: &[(&str, T)], value: T) -> Option<String> {
    words.iter().find(|(_, known)| *known == value).map(|(word, _)| quoted(word))
}

fn set<T>(field: &mut T, value: Result<T, Wrong>) -> Result<(), Wrong> {
    *field = value?;
    Ok(())
}

fn cores(input: &Input) -> Result<Vec<usize>, Wrong> {
    let due = "cores with commas and ranges, each once, for example \"0,2-5\"";
    let number = |text: &str| text.trim().parse::<usize>().ok().filter(|core| *core < 4096);
    let mut cores = Vec::new();
    for part in input.text(due)?.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Some(first), Some(last)) = (number(first), number(last)) else { return Err(input.wrong(due)) };
        let known = cores.len();
        cores.extend(first..=last);
        if cores.len() == known || cores[known..].iter().any(|core| cores[..known].contains(core)) {
            return Err(input.wrong(due));
        }
    }
    Ok(cores)
}

fn origins(input: &Input) -> Result<Origins, Wrong> {
    let due = "\"same-host\", \"any\", or origins as \"https://example.org\" or [\"https://a.example\", ...]";
    let texts = input.list(due)?;
    match texts.as_slice() {
        [text] if text == "same-host" => return Ok(Origins::SameHost),
        [text] if text == "any" => return Ok(Origins::Any),
        [] => return Err(input.wrong(due)),
        _ => {}
    }
    if let Some(wrong) = texts.iter().find(|text| !is_origin(text)) {
        let due =
            "an origin, SCHEME://HOST[:PORT] with neither path nor '*', or alone \"same-host\" or \"any\"";
        return Err(Wrong::text(wrong, due));
    }
    Ok(Origins::List(texts.into_iter().map(|text| text.into_owned()).collect()))
}

/// RFC 6454 section 6.2: scheme, `://`, host, perhaps a port.
fn is_origin(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (rest, None),
    };
    let host_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte);
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        && !host.is_empty()
        && host.bytes().all(host_byte)
        && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(name: &str, input: Input) -> Result<Draft, String> {
        let mut draft = Draft::default();
        let setting = Setting::named(name).unwrap();
        (setting.apply)(&mut draft, &input).map(|()| draft).map_err(|wrong| wrong.to_string())
    }

    fn word(text: &str) -> Input {
        Input::Word(text.to_owned())
    }

    fn refused(name: &str, input: Input) -> String {
        applied(name, input).err().expect("the value must be refused")
    }

    #[test]
    fn names_are_unique_and_every_row_is_complete() {
        for (index, setting) in SETTINGS.iter().enumerate() {
            assert!(SETTINGS[index + 1..].iter().all(|other| other.name != setting.name), "{}", setting.name);
            assert!(!setting.help.is_empty() && !setting.form.is_empty() && !setting.heading.is_empty());
        }
    }

    #[test]
    fn lists_of_cores_hold_ranges_and_no_core_twice() {
        assert_eq!(applied("cores", word("0,2-4")).unwrap().config.cores, Some(vec![0, 2, 3, 4]));
        for wrong in ["", "a", "3-1", "1,1", "0-3,2", "1,", "99999"] {
            assert!(refused("cores", word(wrong)).contains("due cores with commas"), "{wrong}");
        }
    }

    #[test]
    fn origins_are_words_or_a_list() {
        assert_eq!(applied("origins", word("any")).unwrap().config.origins, Origins::Any);
        let list = Origins::List(vec!["https://a.example".to_owned(), "http://[::1]:80".to_owned()]);
        assert_eq!(
            applied("origins", word("https://a.example, http://[::1]:80")).unwrap().config.origins,
            list
        );
        for wrong in
            ["*", "https://a/b", "a.example", "https://", "https://*.a", "https://a:x", "any,https://a"]
        {
            assert!(refused("origins", word(wrong)).contains("SCHEME://HOST[:PORT]"), "{wrong}");
        }
    }

    #[test]
    fn wrong_values_say_what_was_found_and_due() {
        assert_eq!(refused("shards", word("65")), "found \"65\", due auto or a whole number from 1 to 64");
        assert_eq!(
            refused("shards", Input::Integer(0)),
            "found the integer 0, due auto or a whole number from 1 to 64"
        );
        assert_eq!(refused("driver", word("kqueue")), "found \"kqueue\", due one of auto, io_uring, epoll");
        assert_eq!(
            refused("ping_interval", Input::Integer(25)),
            "found the integer 25, due a duration with its unit (ms, s, m, h), for example \"25s\""
        );
        assert_eq!(
            refused("message_bytes_max", word("17MiB")),
            "found \"17MiB\", due a size from 1B to 16MiB"
        );
        assert_eq!(
            refused("require_broker", Input::Text("true".to_owned())),
            "found the string \"true\", due true or false, without quotes"
        );
        assert_eq!(
            refused("connections_max", Input::Integer(-1)),
            "found the integer -1, due a whole number of at least 1"
        );
        assert!(refused("listen", Input::List(vec![])).contains("found an array, due one or more ADDR:PORT"));
        assert!(refused("node_id", word("a b")).contains("due 1 to 64 letters"));
        assert!(refused("log_level", word("")).contains("due a level"));
        assert!(refused("drain", Input::Boolean(true)).contains("found the boolean true, due a duration"));
    }

    #[test]
    fn toml_strings_are_escaped() {
        assert_eq!(quoted("a\"b\\c\n\u{85}"), "\"a\\\"b\\\\c\\U0000000A\\U00000085\"");
    }
}
