//! The command line.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::orders::{PathTemplate, Receiving};
use crate::peer::{Access, PeerArguments};
use crate::process::resolve;
use crate::scenario::{ScalePlan, SoakPlan, StormPlan};
use crate::sys;
use crate::units::parse_duration;

/// Runs corecast from this program's folder. `{corecast}` is filled with its path.
const SERVER_COMMAND: &str = "{corecast} serve --listen {listen} --ports-file {ports_file} --shards {shards} \
                              --cores {cores} --redis {redis} --echo-route --config {config}";

/// The same with `{preset}` and nothing of the generator's own configuration.
const PRESET_COMMAND: &str = "{corecast} serve --preset {preset} --listen {listen} --ports-file {ports_file} \
                              --shards {shards} --cores {cores} --redis {redis}";

/// Measures what a WebSocket fan-out server pays per delivery, beside a plain send() loop on the same core.
#[derive(Debug, Parser)]
#[command(version, about, after_help = EXAMPLES)]
pub struct Cli {
    /// What to measure.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  corecast-bench table
  corecast-bench fanout --clients 1000 --rate 100
  corecast-bench saturate --windows 1,8,64
  corecast-bench fanout --server 'node server.js {port} {redis}' --path '/ws?room={room}'
  corecast-bench burst --peer 'node=node server.js {port} {redis}' --peer-set 'node.path=/?room={room}'
  corecast-bench versus --peers peers.toml --runs 10
  corecast-bench versus --peers peers.toml --rows single,rooms --runs 15
  corecast-bench ingest --rooms 100 --members 1
  corecast-bench idle --preset workflow --path '/ws?username={room}' --clients 5000 --rooms 5000
  corecast-bench storm --clients 10000 --cut server --pace 2s
  corecast-bench soak --for 10m --growth-max 8MiB
  corecast-bench scale --servers 6 --clients 100000
  corecast-bench burst --pid 1234 --url 'ws://127.0.0.1:8080/ws?room={room}' --redis 127.0.0.1:6379
  corecast-bench page bench/runs/2026-11-21-6.18/table-061036.json --out report.html

Raw results go to --out as JSON, with the machine, the kernel and the command; table and versus put a page beside them.";

/// See [`Cli::command`].
#[derive(Debug, Subcommand)]
pub enum Command {
    /// All figures that corecast promises, on one server core, in a few minutes.
    Table(#[command(flatten)] Common),
    /// The figures that servers are compared by, ours beside each --peer in one run: some twenty minutes with four of them.
    Versus {
        /// Only these rows, each with all of --runs: single, burst, windows, rooms, large-room, large-frames, idle,
        /// idle-own-rooms, slow, churn, dirty-rooms, echo, shards, hop.
        #[arg(long, value_delimiter = ',', value_name = "ROWS")]
        rows: Vec<String>,
        /// See Common. Rows take a share of --runs (all of them with --rows) and of --duration each.
        #[command(flatten)]
        common: Common,
    },
    /// Messages at a rate to rooms of clients.
    Fanout {
        /// See Crowd.
        #[command(flatten)]
        crowd: Crowd,
        /// Messages a second, all rooms together.
        #[arg(long, default_value_t = 100.0)]
        rate: f64,
        /// Messages sent at once (at the same rate): with as many as there are rooms all of them are dirty in a turn.
        #[arg(long, default_value_t = 1)]
        group: u64,
        /// See Common.
        #[command(flatten)]
        common: Common,
    },
    /// Messages back to back.
    Burst {
        /// See Crowd.
        #[command(flatten)]
        crowd: Crowd,
        /// How many.
        #[arg(long, default_value_t = 1_000)]
        messages: u64,
        /// See Common.
        #[command(flatten)]
        common: Common,
    },
    /// As many messages as the server takes while so many are under way.
    Saturate {
        /// See Crowd.
        #[command(flatten)]
        crowd: Crowd,
        /// Messages under way, one measurement each.
        #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16,32,64,128,256,512,1024")]
        windows: Vec<u64>,
        /// See Common.
        #[command(flatten)]
        common: Common,
    },
    /// The same closed loop on one shard and on more, as many as there are cores.
    Shards {
        /// See Crowd.
        #[command(flatten)]
        crowd: Crowd,
        /// Messages under way.
        #[arg(long, default_value_t = 64)]
        window: u64,
        /// Numbers of shards, one measurement each; the cores are the server's and then the generator's.
        #[arg(long, value_delimiter = ',', default_value = "1,2,4,8", value_name = "SHARDS")]
        shards_list: Vec<usize>,
        /// See Common.
        #[command(flatten)]
        common: Common,
    },
    /// Memory of connections that do nothing.
    Idle {
        /// Connections.
        #[arg(long, default_value_t = 19_000)]
        clients: usize,
        /// Rooms that they are spread over.
        #[arg(long, default_value_t = 100)]
        rooms: u32,
        /// See Common.
        #[command(flatten)]
        common: Common,
    },
    /// Connections that come and go.
    Churn {
        /// Handshakes per run.
        #[arg(long, default_value_t = 20_000)]
        handshakes: usize,
        /// Under way at once.
        #[arg(long, default_value_t = 64)]
        parallel: usize,
        /// See Common.
        #[command(flatten)]
        common: Common,
    },
    /// How long one connection waits for itself while a large room is being sent to.
    Echo {
        /// Clients of the large room.
        #[arg(long, default_value_t = 10_000)]
        clients: usize,
        /// Messages a second to the large room.
        #[arg(long, default_value_t = 10.0)]
        rate: f64,
        /// Payload bytes.
        #[arg(long, default_value_t = 128)]
        bytes: usize,
        /// Echoes a second.
        #[arg(long, default_value_t = 500.0)]
        echo_rate: f64,
        /// See Common.
        #[command(flatten)]
        common: Common,
    },
    /// What the others feel when some clients stop reading.
    Slow {
        /// Clients of one room.
        #[arg(long, default_value_t = 200)]
        clients: usize,
        /// Every so many-th client stops reading.
        #[arg(long, default_value_t = 10)]
        stalled_every: usize,
        /// Messages a second.
        #[arg(long, default_value_t = 100.0)]
        rate: f64,
        /// Payload bytes. With the defaults a stalled client is owed 16 KiB x 100/s x 8 s = 13 MB, beyond what TCP hides.
        #[arg(long, default_value_t = 16_384)]
        bytes: usize,
        /// Leave out corecast with drop-oldest, and keeping 64 MiB for a slow reader.
        #[arg(long)]
        default_policy: bool,
        /// See Common.
        #[command(flatten)]
        common: Common,
    },
    /// CPU of the relay per publication, and where it goes. The relay has the server's core to itself; its shard runs beside
    /// the generator.
    Ingest {
        /// Rooms that publications go to in turn, one measurement each.
        #[arg(long, value_delimiter = ',', default_value = "1,100,10000")]
        rooms: Vec<u32>,
        /// Members of each room, one measurement each; more than 12,000 in all are left out.
        #[arg(long, value_delimiter = ',', default_value = "0,1,4")]
        members: Vec<u32>,
        /// Payload bytes (at least 36), without the envelope of field:data.
        #[arg(long, default_value_t = 64)]
        bytes: usize,
        /// Publications of a window.
        #[arg(long, default_value_t = 300_000)]
        publications: u64,
        /// What they come from. redis-server runs on the generator's core and is slower than the relay, so behind it the
        /// relay idles and wakes up more often; the stand-in measures the relay alone.
        #[arg(long, value_enum, default_value = "replay")]
        source: PublicationSource,
        /// See Common.
        #[command(flatten)]
        common: Common,
    },
    /// CPU per delivery with deliver = "field:data" beside raw, in pairs.
    PresetCost {
        /// See Crowd.
        #[command(flatten)]
        crowd: Crowd,
        /// Messages a second, all rooms together.
        #[arg(long, default_value_t = 3_200.0)]
        rate: f64,
        /// Messages sent at once: the more, the cheaper a delivery and the larger the share of what parses.
        #[arg(long, default_value_t = 64)]
        group: u64,
        /// See Common.
        #[command(flatten)]
        common: Common,
    },
    /// The plain send() loop alone.
    Floor {
        /// Sockets.
        #[arg(long, default_value_t = 1_000)]
        clients: usize,
        /// Messages a second.
        #[arg(long, default_value_t = 100.0)]
        rate: f64,
        /// Payload bytes.
        #[arg(long, default_value_t = 128)]
        bytes: usize,
        /// Messages per send(), one measurement each.
        #[arg(long, value_delimiter = ',', default_value = "1,10")]
        gather: Vec<u64>,
        /// See Common.
        #[command(flatten)]
        common: Common,
    },
    /// All connections are cut at once and come back at once.
    Storm {
        /// See StormPlan.
        #[command(flatten)]
        plan: StormPlan,
        /// See Common.
        #[command(flatten)]
        common: Common,
    },
    /// A mixed load for a long time: nothing may be lost without a word, and nothing may grow.
    Soak {
        /// See SoakPlan.
        #[command(flatten)]
        plan: SoakPlan,
        /// See Common.
        #[command(flatten)]
        common: Common,
    },
    /// More connections than one process may hold: several servers on one port, every message to everyone checked.
    Scale {
        /// See ScalePlan.
        #[command(flatten)]
        plan: ScalePlan,
        /// See Common.
        #[command(flatten)]
        common: Common,
    },
    /// A page of raw results: tables and charts in one HTML file that needs nothing else.
    Page {
        /// What runs wrote to --out.
        #[arg(required = true, value_name = "FILE.json")]
        files: Vec<PathBuf>,
        /// Where the page goes. Default: beside the first file, as .html.
        #[arg(long, value_name = "FILE.html")]
        out: Option<PathBuf>,
    },
    /// One receiver process (started by the others).
    #[command(hide = true)]
    ReceiverProcess {
        /// Which one.
        #[arg(long)]
        index: usize,
        /// Of how many.
        #[arg(long)]
        processes: usize,
        /// Where the shared counters are.
        #[arg(long)]
        counters: String,
        /// Nanoseconds between looks, 0 for epoll.
        #[arg(long)]
        poll_ns: u64,
    },
    /// The floor's process (started by the others).
    #[command(hide = true)]
    FloorProcess,
}

/// Who listens to what.
#[derive(Debug, Clone, Args)]
pub struct Crowd {
    /// Connections.
    #[arg(long, default_value_t = 1_000)]
    pub clients: usize,
    /// Rooms.
    #[arg(long, default_value_t = 1)]
    pub rooms: u32,
    /// Rooms that each connection is in; more than one needs --multi-room-path.
    #[arg(long, default_value_t = 1)]
    pub rooms_per_client: u32,
    /// Payload bytes (at least 36: every payload carries a stamp).
    #[arg(long, default_value_t = 128)]
    pub bytes: usize,
}

/// What every measurement needs to know.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "The server and the generator")]
pub struct Common {
    /// Command that runs the server, split at blanks, without a shell. Places: {listen} {port} {ports_file} {redis}
    /// {shards} {cores} {scratch} {config}, the last a file of corecast's with the route of --multi-room-path. With {ports_file} it must write JSON with its "listen" there; without, it must accept on {port}.
    /// Default: corecast from this program's folder.
    #[arg(long, value_name = "COMMAND")]
    pub server: Option<String>,
    /// Preset of corecast to run, as its users do; with the --path and --channel-prefix that they know.
    #[arg(long, conflicts_with_all = ["server", "pid"])]
    pub preset: Option<String>,
    /// Process id of a server that runs already; with --url.
    #[arg(long, requires = "url", conflicts_with = "server")]
    pub pid: Option<u32>,
    /// URL of a server that runs already, like ws://HOST:PORT/ws?room={room}; with --pid.
    #[arg(long, requires = "pid")]
    pub url: Option<String>,
    /// Path of a connection in one room.
    #[arg(long, default_value = "/ws?room={room}")]
    pub path: String,
    /// Path of a connection in several rooms; {rooms} is a list with commas.
    #[arg(long, default_value = "/rooms?rooms={rooms}")]
    pub multi_room_path: String,
    /// Path of a connection that gets back what it sends.
    #[arg(long, default_value = "/echo")]
    pub echo_path: String,
    /// How messages get to the server.
    #[arg(long, value_enum, default_value = "redis")]
    pub publish: PublishVia,
    /// Path of --publish http.
    #[arg(long, default_value = "/publish?room={room}")]
    pub publish_path: String,
    /// What stands before a room's name in its Redis channel.
    #[arg(long, default_value = "room:")]
    pub channel_prefix: String,
    /// Publish through Redis as this string field of a JSON object.
    #[arg(long, value_name = "FIELD")]
    pub envelope: Option<String>,
    /// HOST:PORT of a Redis that runs already, or "auto" to start one on the generator's cores (the default where Redis is
    /// needed).
    #[arg(long)]
    pub redis: Option<String>,
    /// Shards of the server: fills {shards}.
    #[arg(long, default_value_t = 1)]
    pub shards: usize,
    /// Cores of the server and of the floor: it is pinned to them. Default: the first usable one.
    #[arg(long, value_delimiter = ',', value_name = "CORES")]
    pub server_cores: Vec<usize>,
    /// Cores of the generator and of its Redis. Default: all other usable ones.
    #[arg(long, value_delimiter = ',', value_name = "CORES")]
    pub generator_cores: Vec<usize>,
    /// How receivers learn of input: "epoll", or "poll:200us" to look each 200 us, so that no wake-up is billed to the
    /// server (adds half of that to the latency).
    #[arg(long, default_value = "poll:200us", value_parser = parse_receiving)]
    pub receivers: ReceivingArgument,
    /// Receiver processes. Default: one per core of the generator, more where the descriptor limit asks for them.
    #[arg(long)]
    pub receiver_processes: Option<usize>,
    /// Measured windows of each kind; the table shows their median.
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
    /// Length of a measured window.
    #[arg(long, default_value = "2s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Length of the unmeasured load before the first window.
    #[arg(long, default_value = "500ms", value_parser = parse_duration)]
    pub warm_up: Duration,
    /// Leave out the floor.
    #[arg(long)]
    pub no_floor: bool,
    /// Folder for the raw results. Default: bench/runs/DATE-KERNEL.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// See PeerArguments.
    #[command(flatten)]
    pub peers: PeerArguments,
}

/// See [`Common::publish`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PublishVia {
    /// PUBLISH, pipelined on one connection.
    Redis,
    /// POST, one after the other.
    Http,
    /// POST, pipelined on one connection.
    PipelinedHttp,
    /// As a client of each room.
    Ws,
}

/// What pushes publications to the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PublicationSource {
    /// A stand-in that only copies bytes.
    Replay,
    /// redis-server.
    Redis,
}

impl std::fmt::Display for PublicationSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Replay => "the stand-in",
            Self::Redis => "redis-server",
        })
    }
}

/// [`Receiving`] as clap takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceivingArgument(pub Receiving);

impl Common {
    /// Fills in the cores that were left to us. Before this process is pinned: afterwards it sees only its own.
    pub fn settle_cores(&mut self) {
        let usable = sys::usable_cores();
        if self.server_cores.is_empty() {
            self.server_cores.extend(usable.first());
        }
        if self.generator_cores.is_empty() {
            let others = usable.iter().filter(|core| !self.server_cores.contains(core));
            self.generator_cores = others.copied().collect();
        }
        if self.generator_cores.is_empty() {
            self.generator_cores = usable;
        }
    }

    /// The server's command, with its places.
    pub fn server_command(&self) -> Result<String> {
        if let Some(command) = &self.server {
            return Ok(command.clone());
        }
        let corecast = corecast_path()?;
        if !corecast.exists() {
            bail!(
                "no server to measure: {} does not exist; build it, or name one with --server",
                corecast.display()
            );
        }
        Ok(match &self.preset {
            Some(preset) => PRESET_COMMAND.replace("{preset}", preset),
            None => SERVER_COMMAND.to_owned(),
        })
    }

    /// Process and address of a server that runs already.
    pub fn attached(&self) -> Result<Option<(u32, SocketAddrV4)>> {
        let (Some(pid), Some(url)) = (self.pid, &self.url) else { return Ok(None) };
        let (authority, _) = split_url(url)?;
        Ok(Some((pid, resolve(authority)?)))
    }

    /// The way into our server.
    pub fn access(&self) -> Access {
        Access {
            path: self.path(false),
            multi_room_path: Some(self.path(true)),
            echo_path: Some(self.echo_path.clone()),
            publish: self.publish,
            publish_path: PathTemplate(self.publish_path.clone()),
            channel_prefix: self.channel_prefix.clone(),
            envelope: self.envelope.clone(),
        }
    }

    /// The path of connections in one room, or in several.
    pub fn path(&self, many_rooms: bool) -> PathTemplate {
        let from_url =
            self.url.as_deref().and_then(|url| split_url(url).ok()).map(|(_, path)| path.to_owned());
        PathTemplate(if many_rooms {
            self.multi_room_path.clone()
        } else {
            from_url.unwrap_or_else(|| self.path.clone())
        })
    }

    /// Length of a measured window in nanoseconds.
    pub fn duration_ns(&self) -> u64 {
        self.duration.as_nanos() as u64
    }

    /// Length of the warm-up in nanoseconds.
    pub fn warm_up_ns(&self) -> u64 {
        self.warm_up.as_nanos() as u64
    }
}

/// The server that is built beside this program.
pub fn corecast_path() -> Result<PathBuf> {
    Ok(std::env::current_exe().context("finding this program")?.with_file_name("corecast"))
}

/// `ws://HOST:PORT/PATH` into authority and path.
fn split_url(url: &str) -> Result<(&str, &str)> {
    let Some(rest) = url.strip_prefix("ws://") else { bail!("{url:?} does not begin with ws://") };
    let at = rest.find('/').with_context(|| format!("{url:?} has no path"))?;
    Ok(rest.split_at(at))
}

fn parse_receiving(text: &str) -> Result<ReceivingArgument, String> {
    match text.split_once(':') {
        None if text == "epoll" => Ok(ReceivingArgument(Receiving::Epoll)),
        Some(("poll", interval)) => match parse_duration(interval)?.as_nanos() as u64 {
            0 => Err("an interval of zero never sleeps".to_owned()),
            interval_ns => Ok(ReceivingArgument(Receiving::Poll { interval_ns })),
        },
        _ => Err(format!("{text:?} is neither \"epoll\" nor like \"poll:200us\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn receivers_poll_or_wait() {
        assert_eq!(parse_receiving("epoll"), Ok(ReceivingArgument(Receiving::Epoll)));
        let poll = Receiving::Poll { interval_ns: 200_000 };
        assert_eq!(parse_receiving("poll:200us"), Ok(ReceivingArgument(poll)));
        assert!(parse_receiving("poll:0us").is_err());
        assert!(parse_receiving("select").is_err());
    }

    #[test]
    fn a_url_is_split_before_its_path() {
        assert_eq!(split_url("ws://h:1/ws?room={room}").unwrap(), ("h:1", "/ws?room={room}"));
        assert!(split_url("http://h:1/").is_err());
    }
}
