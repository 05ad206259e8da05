//! A stage: a fresh server (with its Redis) or the floor, receivers before it, and a load measured on it.

use std::net::{SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cli::{Common, PublishVia};
use crate::floor::{Floor, FloorLoad};
use crate::measure::{Memory, Meter, memory};
use crate::orders::{PathTemplate, Receiving};
use crate::peer::{Access, Contender, FLOOR, OURS, Peer};
use crate::phase::{Phase, doubts};
use crate::post::{HttpPipeline, HttpPublisher};
use crate::process::{Places, Redis, Scratch, Server, resolve};
use crate::publisher::{Author, Publish, RedisPublisher, Sent, WebSocketPublisher};
use crate::receivers::{Audience, Crewing, Receivers};
use crate::schedule::Load;
use crate::sys;
use crate::tally::{Counts, Seating, TRACKED_MAX};

/// Configuration of corecast with the route that puts one connection into many rooms.
pub(crate) const ROOMS: &str = include_str!("../rooms.toml");
/// Deliveries that are owed are waited for as long as some come, and for this long without any.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);
/// Memory has settled when it is the same for so many looks.
const SETTLED_LOOKS: usize = 5;
const SETTLE_LOOK: Duration = Duration::from_millis(200);
const SETTLE_LOOKS_MAX: usize = 50;

/// Between two looks for the peak: a tenth of a second of 16 KiB x 100/s to twenty stuck readers is 3 MB.
const PEAK_LOOK: Duration = Duration::from_millis(50);

/// All that is the same in every scenario of a run.
pub struct Bench {
    /// As told on the command line.
    pub common: Common,
    /// Other servers to measure.
    pub peers: Rc<[Peer]>,
    /// A row of a table takes all runs, not its share of them.
    pub has_whole_runs: bool,
    scratch: Rc<Scratch>,
}

/// A server, ready, and the Redis in front of it.
pub struct Stage {
    /// Under measurement.
    pub server: Server,
    /// How to get in.
    pub access: Access,
    name: String,
    redis: Option<Redis>,
    cores: Vec<usize>,
}

/// Receivers and what sends to them.
pub struct Side {
    /// In results.
    pub name: String,
    /// Connected.
    pub receivers: Receivers,
    /// For readings outside of [`measure`](Self::measure).
    pub meter: Meter,
    source: Source,
    /// Members of each room that read.
    members: Vec<u32>,
}

enum Source {
    Server { author: Author, publisher: Box<dyn Publish> },
    Floor { floor: Floor, bytes: usize },
}

impl Bench {
    /// Makes its scratch folder, and reads who the peers are.
    pub fn new(common: Common) -> Result<Self> {
        let peers = common.peers.resolve()?.into();
        Ok(Self { common, peers, has_whole_runs: false, scratch: Rc::new(Scratch::create()?) })
    }

    /// The servers to measure: ours first.
    pub fn contenders(&self) -> Vec<Contender<'_>> {
        std::iter::once(Contender::Ours).chain(self.peers.iter().map(Contender::Peer)).collect()
    }

    /// The same with other settings.
    pub fn with(&self, common: Common) -> Self {
        let (peers, scratch) = (Rc::clone(&self.peers), Rc::clone(&self.scratch));
        Self { common, peers, has_whole_runs: self.has_whole_runs, scratch }
    }

    /// The same where each row takes all runs, or its share.
    pub fn with_whole_runs(&self, has_whole_runs: bool) -> Self {
        Self { has_whole_runs, ..self.with(self.common.clone()) }
    }

    /// Starts (or attaches to) a server with `shards` shards on `cores`.
    pub fn stage(&self, shards: usize, cores: &[usize]) -> Result<Stage> {
        self.stage_with(shards, cores, ROOMS)
    }

    /// The same, with `config` in the place of the generator's own configuration.
    pub fn stage_with(&self, shards: usize, cores: &[usize], config: &str) -> Result<Stage> {
        let common = &self.common;
        let redis = match common.redis_wanted()? {
            None => None,
            Some(None) => Some(Redis::start(&common.generator_cores, &self.scratch)?),
            Some(Some(address)) => Some(Redis::attach(address)),
        };
        let server = match common.attached()? {
            Some((pid, address)) => Server::attach(pid, address)?,
            None => {
                let redis = redis.as_ref().map(|redis| redis.address.to_string()).unwrap_or_default();
                let places = Places { redis, shards, cores: cores.to_vec(), config: config.to_owned() };
                Server::start(&common.server_command()?, &places, &self.scratch)?
            }
        };
        Stage { server, access: common.access(), name: OURS.to_owned(), redis, cores: cores.to_vec() }
            .subscribed()
    }

    /// Starts one of [`contenders`](Self::contenders) with the shards and cores of the command line. A peer has a Redis of
    /// its own: what is published for one server wakes no other.
    pub fn stage_of(&self, contender: Contender) -> Result<Stage> {
        let Contender::Peer(peer) = contender else { return self.default_stage() };
        let cores = self.common.server_cores.clone();
        let redis = match peer.needs_redis() {
            true => Some(Redis::start(&self.common.generator_cores, &self.scratch)?),
            false => None,
        };
        let places = Places {
            redis: redis.as_ref().map(|redis| redis.address.to_string()).unwrap_or_default(),
            shards: self.common.shards,
            cores: cores.clone(),
            config: peer.config.clone(),
        };
        let server = Server::start(&peer.command, &places, &self.scratch)?;
        Stage { server, access: peer.access(), name: peer.name.clone(), redis, cores }.subscribed()
    }

    /// A Redis of its own, or that of the command line.
    pub fn redis(&self) -> Result<Redis> {
        match self.common.redis_wanted()?.flatten() {
            Some(address) => Ok(Redis::attach(address)),
            None => Redis::start(&self.common.generator_cores, &self.scratch),
        }
    }

    /// A server by a command of the caller's.
    pub fn start_server(&self, command: &str, places: &Places) -> Result<Server> {
        Server::start(command, places, &self.scratch)
    }

    /// A stage with the shards and cores of the command line.
    pub fn default_stage(&self) -> Result<Stage> {
        self.stage(self.common.shards, &self.common.server_cores)
    }

    /// Ends a stage's server with SIGKILL and starts it again on the same address.
    pub fn kill_and_restart(&self, stage: &mut Stage) -> Result<()> {
        stage.server.kill_and_restart(&self.scratch)
    }

    /// Starts a server by a command of the caller's on these addresses.
    pub fn start_server_at(&self, command: &str, places: &Places, listen: &[SocketAddrV4]) -> Result<Server> {
        Server::start_at(command, places, &self.scratch, Some(listen))
    }

    /// What computes CPU and memory of a stage's server as it is now, and of the generator.
    pub fn meter(&self, stage: &Stage, receivers: &Receivers) -> Meter {
        self.meter_of(&[stage.server.pid], stage.redis.as_ref(), &stage.cores, receivers)
    }

    /// The same for several servers.
    pub fn meter_of(
        &self,
        servers: &[u32],
        redis: Option<&Redis>,
        cores: &[usize],
        receivers: &Receivers,
    ) -> Meter {
        let mut generator = receiver_names(receivers);
        generator.push(("publisher".to_owned(), std::process::id()));
        generator.extend(redis.and_then(Redis::pid).map(|pid| ("redis".to_owned(), pid)));
        Meter::of_servers(servers, generator, cores, &self.common.generator_cores)
    }

    /// Receivers connected to a stage, and a publisher to it.
    pub fn server_side(&self, stage: &Stage, seating: Seating, clients: usize, bytes: usize) -> Result<Side> {
        let audience = stage.audience(seating, clients)?;
        let mut receivers = Receivers::start(&self.crewing(), audience)?;
        let meter = self.meter(stage, &receivers);
        receivers.connect().context("connecting to the server")?;
        let publisher = stage.publisher(seating)?;
        Ok(self.side_of(&stage.name, receivers, meter, publisher, seating, bytes))
    }

    /// A side of receivers that are connected, and what publishes to the server before them.
    pub fn side_of(
        &self,
        name: &str,
        receivers: Receivers,
        meter: Meter,
        publisher: Box<dyn Publish>,
        seating: Seating,
        bytes: usize,
    ) -> Side {
        let clients = receivers.connections_by_process().iter().sum();
        Side {
            name: name.to_owned(),
            members: seating.members(0..clients),
            receivers,
            meter,
            source: Source::Server { author: Author::new(seating.rooms, bytes), publisher },
        }
    }

    /// Receivers connected to the floor, on the first of the server's cores, each in one of so many rooms.
    pub fn floor_side(&self, clients: usize, rooms: u32, bytes: usize) -> Result<Side> {
        let cores = &self.common.server_cores;
        let floor = Floor::start(cores)?;
        let seating = Seating { rooms, rooms_per_connection: 1 };
        let path = PathTemplate(crate::floor::PATH.to_owned());
        let audience = Audience { address: floor.address, path, seating, connections: clients };
        let mut receivers = Receivers::start(&self.crewing(), audience)?;
        let meter =
            Meter::new(floor.pid(), receiver_names(&receivers), &cores[..1], &self.common.generator_cores);
        receivers.connect().context("connecting to the floor")?;
        Ok(Side {
            name: FLOOR.to_owned(),
            members: seating.members(0..clients),
            receivers,
            meter,
            source: Source::Floor { floor, bytes },
        })
    }

    /// Receiver processes that have not connected: for connections that don't last.
    pub fn idle_receivers(
        &self,
        stage: &Stage,
        seating: Seating,
        clients: usize,
    ) -> Result<(Receivers, Meter)> {
        let receivers = Receivers::start(&self.crewing(), stage.audience(seating, clients)?)?;
        let names = receiver_names(&receivers);
        let meter = Meter::new(stage.server.pid, names, &stage.cores, &self.common.generator_cores);
        Ok((receivers, meter))
    }

    pub(crate) fn crewing(&self) -> Crewing {
        Crewing {
            cores: self.common.generator_cores.clone(),
            receiving: self.common.receivers.0,
            processes: self.common.receiver_processes,
        }
    }
}

impl Stage {
    /// The same once the server has subscribed at a Redis that nobody else uses; one that is in no hurry is waited for no
    /// longer than 2 s.
    fn subscribed(self) -> Result<Self> {
        if let Some(redis) = self.redis.as_ref().filter(|redis| redis.pid().is_some()) {
            redis.wait_subscribed()?;
        }
        Ok(self)
    }

    fn audience(&self, seating: Seating, connections: usize) -> Result<Audience> {
        let path = match seating.rooms_per_connection {
            1 => self.access.path.clone(),
            _ => {
                self.access.multi_room_path.clone().context("no path puts a connection into several rooms")?
            }
        };
        Ok(Audience { address: self.server.address, path, seating, connections })
    }

    /// What sends messages to it.
    pub fn publisher(&self, seating: Seating) -> Result<Box<dyn Publish>> {
        let Access { path, publish, publish_path, channel_prefix, envelope, .. } = &self.access;
        let address = self.server.address;
        Ok(match publish {
            PublishVia::Redis => {
                let redis = self.redis.as_ref().context("--publish redis needs --redis")?;
                Box::new(RedisPublisher::connect(redis.address, channel_prefix, envelope.as_deref())?)
            }
            PublishVia::Http => Box::new(HttpPublisher::new(address, publish_path.clone())),
            PublishVia::PipelinedHttp => Box::new(HttpPipeline::connect(address, publish_path.clone())?),
            PublishVia::Ws => Box::new(WebSocketPublisher::connect(address, path, seating.rooms)?),
        })
    }
}

fn receiver_names(receivers: &Receivers) -> Vec<(String, u32)> {
    receivers.pids().enumerate().map(|(index, pid)| (format!("receiver {index}"), pid)).collect()
}

impl Side {
    /// Puts a load on and measures until its last delivery (or until nothing comes any more).
    pub fn measure(&mut self, load: Load) -> Result<Phase> {
        let tracked = matches!(load, Load::Closed { .. });
        if let Load::Closed { window: messages, .. } | Load::Burst { messages } = load
            && messages > TRACKED_MAX
        {
            bail!("at most {TRACKED_MAX} messages can be under way, {messages} were asked for");
        }
        let first = self.sent();
        self.meter.look_again();
        self.receivers.begin(first, tracked)?;
        let before = self.meter.read()?;
        let receivers = &self.receivers;
        let sent = match &mut self.source {
            Source::Server { author, publisher } => {
                author.run(load, publisher.as_mut(), || receivers.complete())?
            }
            Source::Floor { floor, bytes } => match load {
                Load::Open { rate, burst: gather, duration_ns } => {
                    let (bytes, rooms) = (*bytes, self.members.len() as u32);
                    floor.send(FloorLoad { rate, gather, bytes, rooms, duration_ns })?
                }
                Load::Burst { .. } | Load::Closed { .. } => bail!("the floor knows only the open loop"),
            },
        };
        self.end(load, first, before, sent)
    }

    /// Ends a window that began at message `first`: waits for what is owed, reads, counts.
    fn end(&mut self, load: Load, first: u64, before: crate::measure::Reading, sent: Sent) -> Result<Phase> {
        let rooms = self.members.len() as u64;
        let expected: u64 = (first..first + sent.messages)
            .map(|number| u64::from(self.members[(number % rooms) as usize]))
            .sum();
        self.receivers.wait_delivered(expected, PATIENCE);
        let after = self.meter.read()?;
        let memory = self.meter.memory()?;
        let (counts, latencies) = self.receivers.end()?;
        let used = self.meter.between(&before, &after);
        let delivered = counts.delivered.max(1) as f64;
        let missing = expected.saturating_sub(counts.delivered);
        Ok(Phase {
            side: self.name.clone(),
            load: load.to_string(),
            sent,
            expected,
            missing,
            latency: latencies.percentiles(),
            cpu_us_per_delivery: used.server_cpu_seconds * 1e6 / delivered,
            deliveries_per_second: counts.delivered as f64 / used.seconds,
            memory,
            doubts: doubts(&used, &counts, &sent, missing, &self.name),
            counts,
            used,
        })
    }

    /// Messages sent so far: the number of the next one.
    fn sent(&self) -> u64 {
        match &self.source {
            Source::Server { author, .. } => author.next(),
            Source::Floor { floor, .. } => floor.sent,
        }
    }

    /// Sends by an open loop like [`measure`](Self::measure), and notes when deliveries were under way: from a message's
    /// leaving to its last arrival, in CLOCK_MONOTONIC nanoseconds.
    pub fn measure_busy(&mut self, rate: f64, duration_ns: u64) -> Result<(Phase, Vec<(u64, u64)>)> {
        /// Between two looks at the receivers: the error of an interval's end.
        const LOOK_NS: u64 = 250_000;
        let first = self.sent();
        self.meter.look_again();
        self.receivers.begin(first, true)?;
        let before = self.meter.read()?;
        let Source::Server { author, publisher } = &mut self.source else {
            bail!("the floor echoes nothing");
        };
        let schedule = crate::schedule::Schedule::open(rate, 1, duration_ns);
        let start_ns = sys::monotonic_ns();
        let (mut sent, mut busy) = (Sent::default(), Vec::new());
        let mut busy_since_ns = None;
        while sys::monotonic_ns() < start_ns + duration_ns && !sys::interrupted() {
            let due_ns = start_ns + schedule.due_ns(sent.messages);
            let now_ns = sys::monotonic_ns();
            if sent.messages < schedule.messages() && now_ns >= due_ns {
                let (room, payload) = author.write(due_ns);
                publisher.publish(room, payload)?;
                publisher.flush()?;
                sent.messages += 1;
                sent.late_max_us = sent.late_max_us.max((now_ns - due_ns) as f64 / 1_000.0);
                busy_since_ns = busy_since_ns.or(Some(now_ns));
            } else if self.receivers.complete() == author.next()
                && let Some(since_ns) = busy_since_ns.take()
            {
                busy.push((since_ns, now_ns));
            }
            sys::sleep_until_ns(now_ns + LOOK_NS);
        }
        if let Some(since_ns) = busy_since_ns {
            busy.push((since_ns, sys::monotonic_ns()));
        }
        let phase = self.end(Load::Open { rate, burst: 1, duration_ns }, first, before, sent)?;
        Ok((phase, busy))
    }

    /// The same, and the most memory that the server had meanwhile.
    pub fn measure_with_peak(&mut self, load: Load) -> Result<(Phase, Memory)> {
        let (pids, stop) = (self.meter.server_pids(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let watching = scope.spawn(|| peak_memory(&pids, &stop));
            let measured = self.measure(load);
            stop.store(true, Ordering::Relaxed);
            let Ok(peak) = watching.join() else { bail!("the thread that looks at memory panicked") };
            Ok((measured?, peak?))
        })
    }

    /// Every so many-th client stops reading; what it is owed no longer counts as expected. Returns how many these are.
    pub fn stall(&mut self, every: usize) -> Result<usize> {
        let before: u32 = self.members.iter().sum();
        self.members = self.receivers.stall(every)?;
        Ok((before - self.members.iter().sum::<u32>()) as usize)
    }

    /// The stalled read again. Returns what then arrived and how connections ended.
    pub fn resume(&mut self) -> Result<Counts> {
        self.receivers.begin(self.sent(), false)?;
        self.receivers.resume()?;
        self.receivers.wait_delivered(u64::MAX, PATIENCE);
        Ok(self.receivers.end()?.0)
    }

    /// Memory of the server when it no longer changes.
    pub fn settled_memory(&self) -> Result<Memory> {
        settled_memory(&self.meter)
    }
}

/// The most memory that these processes have until `stop`.
fn peak_memory(pids: &[u32], stop: &AtomicBool) -> Result<Memory> {
    let mut peak = memory(pids)?;
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(PEAK_LOOK);
        peak = peak.peak(memory(pids)?);
    }
    Ok(peak)
}

/// Memory of a meter's server when it no longer changes (or after 10 s).
pub fn settled_memory(meter: &Meter) -> Result<Memory> {
    let mut last = meter.memory()?;
    let mut same = 0;
    for _ in 0..SETTLE_LOOKS_MAX {
        std::thread::sleep(SETTLE_LOOK);
        meter.look_again();
        let now = meter.memory()?;
        same = if now.anonymous_bytes == last.anonymous_bytes { same + 1 } else { 0 };
        last = now;
        if same == SETTLED_LOOKS || sys::interrupted() {
            break;
        }
    }
    Ok(last)
}

impl Common {
    /// `Some(None)` means that one is to be started.
    fn redis_wanted(&self) -> Result<Option<Option<SocketAddr>>> {
        let named_in_command = self.attached()?.is_none() && self.server_command()?.contains("{redis}");
        match self.redis.as_deref() {
            Some("auto") => Ok(Some(None)),
            Some(address) => {
                let address = address.strip_prefix("redis://").unwrap_or(address);
                Ok(Some(Some(SocketAddr::V4(resolve(address.trim_end_matches('/'))?))))
            }
            None if self.publish == PublishVia::Redis || named_in_command => Ok(Some(None)),
            None => Ok(None),
        }
    }

    /// Words for the receivers' way of reading.
    pub fn receiving_text(&self) -> String {
        match self.receivers.0 {
            Receiving::Epoll => "epoll".to_owned(),
            Receiving::Poll { interval_ns } => format!("poll each {} us", interval_ns / 1_000),
        }
    }
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open { rate, burst, duration_ns } => {
                write!(f, "{rate}/s in groups of {burst} for {} s", *duration_ns as f64 / 1e9)
            }
            Self::Burst { messages } => write!(f, "{messages} back to back"),
            Self::Closed { window, duration_ns } => {
                write!(f, "{window} under way for {} s", *duration_ns as f64 / 1e9)
            }
        }
    }
}
