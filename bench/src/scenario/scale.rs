//! More connections than one process may hold: several servers on one port, and every message to everyone checked.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;

use super::{CPU_PER_DELIVERY, Outcome, cut_short, seating};
use crate::addresses::{self, Places as AddressPlaces};
use crate::cli::Crowd;
use crate::dial::Dialed;
use crate::figure::Figure;
use crate::latency::Latencies;
use crate::measure::{Memory, Meter, descriptors};
use crate::netstat::Netstat;
use crate::peer::OURS;
use crate::phase::Phase;
use crate::process::{Places, Redis, Server, free_port};
use crate::publisher::RedisPublisher;
use crate::receivers::{Audience, Receivers};
use crate::schedule::Load;
use crate::slab::Slab;
use crate::stage::{Bench, settled_memory};
use crate::sys;

/// Ports for sources if the kernel's range can't be read: Linux's default, 32768 to 60999.
const PORTS_DEFAULT: usize = 28_232;
/// Descriptors of a server beside connections.
const DESCRIPTORS_OWN: u64 = 200;
/// Of a page of the kernel.
const PAGE_BYTES: f64 = 4096.0;

/// The parameters.
#[derive(Debug, Clone, Args)]
pub struct ScalePlan {
    /// Server processes on one port (SO_REUSEPORT), each by the server's command and with one Redis.
    #[arg(long, default_value_t = 6)]
    pub servers: usize,
    /// Processes of each server, under a parent of their own: more than one adds `--processes N` to the server's command, and
    /// gives it all of --server-cores.
    #[arg(long, default_value_t = 1)]
    pub processes: usize,
    /// Connections in all.
    #[arg(long, default_value_t = 100_000)]
    pub clients: usize,
    /// Rooms that they are spread over, one measurement each, on fresh servers.
    #[arg(long, value_delimiter = ',', default_value = "1,100")]
    pub rooms: Vec<u32>,
    /// Messages that each client gets in a measurement: so many to each room.
    #[arg(long, default_value_t = 20)]
    pub messages: u64,
    /// Messages a second that each client gets: times the clients, that is the deliveries a second.
    #[arg(long, default_value_t = 0.5)]
    pub rate: f64,
    /// Payload bytes.
    #[arg(long, default_value_t = 128)]
    pub bytes: usize,
    /// Connections begun a second.
    #[arg(long, default_value_t = 2_500.0)]
    pub pace: f64,
    /// Addresses that each server listens on: 127.0.0.1 and up.
    #[arg(long, default_value_t = 4)]
    pub destinations: u8,
}

/// The servers, and what is connected to them.
struct Fleet {
    // Receivers hang up before the servers go.
    receivers: Receivers,
    servers: Vec<Server>,
    redis: Redis,
    meter: Meter,
    addresses: Vec<SocketAddrV4>,
}

/// What connecting found.
struct Connected {
    dialed: Dialed,
    seconds: f64,
    user_bytes: f64,
    kernel_bytes: f64,
    tcp_pages: f64,
    cpu_us: f64,
    by_server: Vec<i64>,
}

/// One measurement for each number of rooms.
pub fn scale(bench: &Bench, plan: &ScalePlan) -> Result<Outcome> {
    check(bench, plan)?;
    let title = format!(
        "scale, {} clients on {} processes of one port, {} messages of {} B to each, {}/s",
        plan.clients,
        plan.servers * plan.processes,
        plan.messages,
        plan.bytes,
        plan.rate
    );
    let parameters = json!({
        "servers": plan.servers, "processes": plan.processes, "clients": plan.clients, "rooms": plan.rooms, "messages": plan.messages,
        "rate": plan.rate, "bytes": plan.bytes, "pace_per_second": plan.pace, "destinations": plan.destinations,
    });
    let mut outcome = Outcome::new(title, parameters, "");
    for rooms in &plan.rooms {
        if sys::interrupted() {
            outcome.notes.push(format!("interrupted before {rooms} rooms"));
            break;
        }
        let measured = one_scale(bench, plan, *rooms, &mut outcome);
        cut_short(measured, &mut outcome)?;
    }
    Ok(outcome)
}

fn check(bench: &Bench, plan: &ScalePlan) -> Result<()> {
    let common = &bench.common;
    if common.pid.is_some() {
        bail!("scale starts its servers: name their command with --server instead of --pid");
    }
    if plan.servers == 0
        || plan.rooms.is_empty()
        || plan.messages == 0
        || plan.rate <= 0.0
        || plan.pace <= 0.0
    {
        bail!("no servers, rooms, messages, rate or pace: nothing to measure");
    }
    let limit = sys::raise_descriptor_limit()?;
    // SO_REUSEPORT spreads by hash: a server may get a tenth more than its share.
    let processes = plan.servers * plan.processes;
    let most = plan.clients.div_ceil(processes) as u64 * 11 / 10 + DESCRIPTORS_OWN;
    if most > limit {
        bail!(
            "{} clients are about {most} descriptors for each of {processes} processes, and the limit is {limit}: more \
             --servers, or raise it (ulimit -Hn)",
            plan.clients,
        );
    }
    Ok(())
}

fn one_scale(bench: &Bench, plan: &ScalePlan, rooms: u32, outcome: &mut Outcome) -> Result<()> {
    let crowd = Crowd { clients: plan.clients, rooms, rooms_per_client: 1, bytes: plan.bytes };
    let seating = seating(&crowd)?;
    let case = format!("{rooms} {}", if rooms == 1 { "room" } else { "rooms" });
    let mut fleet = Fleet::start(bench, plan, &crowd)?;
    outcome.server = fleet.servers.iter().map(|one| one.command.as_str()).collect::<Vec<_>>().join("\n");
    let connected = fleet.connect(plan, &case, outcome)?;
    fleet.check_alive()?;
    connected.tell(plan, &case, outcome);
    if sys::interrupted() || connected.dialed.done < plan.clients {
        return Ok(());
    }
    let Fleet { receivers, mut servers, redis, meter, .. } = fleet;
    let common = &bench.common;
    let publisher =
        RedisPublisher::connect(redis.address, &common.channel_prefix, common.envelope.as_deref())?;
    let mut side = bench.side_of(OURS, receivers, meter, Box::new(publisher), seating, plan.bytes);
    // The first message to a connection makes the kernel and the server touch what idle ones never did: once to each.
    let load = |messages: u64| {
        let rate = plan.rate * f64::from(rooms);
        eprintln!("{case}: {messages} messages to everyone, in {:.0} s", messages as f64 / plan.rate);
        Load::Open { rate, burst: 1, duration_ns: (messages as f64 / plan.rate * 1e9) as u64 }
    };
    let warm_up = side.measure(load(1))?;
    let phase = match sys::interrupted() {
        true => warm_up,
        false => side.measure(load(plan.messages))?,
    };
    servers.iter_mut().try_for_each(Server::check_alive)?;
    tell_phase(&case, &phase, outcome);
    outcome.phases.push(phase);
    Ok(())
}

impl Fleet {
    fn start(bench: &Bench, plan: &ScalePlan, crowd: &Crowd) -> Result<Self> {
        let common = &bench.common;
        let redis = bench.redis()?;
        let port = free_port()?;
        let addresses: Vec<_> = addresses::destinations(plan.destinations)
            .into_iter()
            .map(|address| SocketAddrV4::new(address, port))
            .collect();
        let mut command = common.server_command()?;
        if plan.processes > 1 {
            command += &format!(" --processes {}", plan.processes);
        }
        let mut servers = Vec::with_capacity(plan.servers);
        for index in 0..plan.servers {
            // One core each, in turn: a process of one shard has no use for a second.
            let core = common.server_cores[index % common.server_cores.len()];
            let cores = if plan.processes > 1 { common.server_cores.clone() } else { vec![core] };
            let (redis, config) = (redis.address.to_string(), crate::stage::ROOMS.to_owned());
            let places = Places { redis, shards: common.shards, cores, config };
            servers.push(bench.start_server_at(&command, &places, &addresses)?);
        }
        let path = common.path(false);
        let seating = seating(crowd)?;
        let audience = Audience { address: addresses[0], path, seating, connections: crowd.clients };
        let receivers = Receivers::start(&bench.crewing(), audience)?;
        let pids: Vec<u32> = servers.iter().map(|server| server.pid).collect();
        let meter = bench.meter_of(&pids, Some(&redis), &common.server_cores, &receivers);
        Ok(Self { receivers, servers, redis, meter, addresses })
    }

    fn check_alive(&mut self) -> Result<()> {
        self.servers.iter_mut().try_for_each(Server::check_alive)
    }

    /// Open descriptors of each process that takes connections: a parent of several takes none.
    fn descriptors(&self, plan: &ScalePlan) -> Result<Vec<usize>> {
        let is_parent =
            |pid: &u32| plan.processes > 1 && self.servers.iter().any(|server| server.pid == *pid);
        self.meter.server_pids().iter().filter(|pid| !is_parent(pid)).map(|pid| descriptors(*pid)).collect()
    }

    fn connect(&mut self, plan: &ScalePlan, case: &str, outcome: &mut Outcome) -> Result<Connected> {
        let by_process = self.receivers.connections_by_process();
        let places = AddressPlaces::of(&by_process, self.addresses.len(), local_ports());
        if !places.is_ample() {
            bail!(
                "{} connections between two addresses need twice as many ports, and ip_local_port_range has {}: more \
                 --destinations",
                places.busiest_pair,
                places.ports
            );
        }
        let (before, netstat) = (settled_memory(&self.meter)?, Netstat::read()?);
        let (own, reading, slab) = (self.descriptors(plan)?, self.meter.read()?, Slab::read());
        eprintln!("{case}: connecting at {} a second", plan.pace);
        let pace = Duration::from_secs_f64(plan.clients as f64 / plan.pace);
        let started = Instant::now();
        let dialed = self.receivers.connect_over(&self.addresses, pace)?;
        let seconds = started.elapsed().as_secs_f64();
        let used = self.meter.between(&reading, &self.meter.read()?);
        let after = settled_memory(&self.meter)?;
        let by_cache = slab.zip(Slab::read()).map(|(before, now)| now.grown_since(&before, dialed.done));
        let now = self.descriptors(plan)?;
        let by_server: Vec<i64> = now.iter().zip(&own).map(|(now, own)| *now as i64 - *own as i64).collect();
        let netstat = Netstat::read()?.since(&netstat);
        let done = dialed.done.max(1) as f64;
        let grown = |of: fn(&Memory) -> u64| of(&after) as f64 - of(&before) as f64;
        let mut handshakes = Latencies::new();
        handshakes.merge(&dialed.handshakes);
        let connected = Connected {
            seconds,
            user_bytes: grown(|memory| memory.anonymous_bytes) / done,
            kernel_bytes: grown(|memory| memory.slab_bytes) / done,
            tcp_pages: grown(|memory| memory.tcp_pages),
            cpu_us: used.server_cpu_seconds * 1e6 / done,
            by_server,
            dialed,
        };
        outcome.details.push(json!({
            "case": case, "connections": connected.dialed.done, "failed": connected.dialed.failed,
            "errors": connected.dialed.errors, "seconds": seconds, "handshake": handshakes.percentiles(),
            "before": before, "after": after, "user_bytes_per_connection": connected.user_bytes,
            "kernel_bytes_per_connection_both_ends": connected.kernel_bytes, "tcp_pages_grown": connected.tcp_pages,
            "kernel_bytes_per_connection_by_cache": by_cache,
            "connections_by_server": connected.by_server, "connections_by_receiver_process": by_process,
            "addresses": places, "netstat": netstat, "used": used,
            "server_cpu_us_per_handshake": connected.cpu_us,
        }));
        outcome.notes.push(format!(
            "{case}: {} source x {} destination addresses x {} ports = {} places, at most {} taken between two addresses; \
             handshake p99 {:.1} ms, {} dropped by listeners",
            places.sources,
            places.destinations,
            places.ports,
            places.all(),
            places.busiest_pair,
            handshakes.percentiles().p99_us / 1e3,
            netstat.listen_drops,
        ));
        if let Some(by_cache) = by_cache {
            outcome.notes.push(format!(
                "{case}: the kernel's memory per connection, both ends: {}",
                in_words(by_cache)
            ));
        }
        Ok(connected)
    }
}

/// Caches that grew by at least a byte per connection, the largest first.
fn in_words(by_cache: BTreeMap<String, f64>) -> String {
    let mut caches: Vec<_> = by_cache.into_iter().filter(|(_, bytes)| *bytes >= 1.0).collect();
    caches.sort_by(|one, other| other.1.total_cmp(&one.1));
    let words: Vec<_> = caches.iter().map(|(name, bytes)| format!("{name} {bytes:.0} B")).collect();
    words.join(", ")
}

impl Connected {
    fn tell(&self, plan: &ScalePlan, case: &str, outcome: &mut Outcome) {
        let Dialed { done, failed, left, errors, .. } = &self.dialed;
        if *left > 0 {
            outcome.notes.push(format!("{case}: interrupted when {done} of {} were open", plan.clients));
        }
        if *failed > 0 {
            let why = errors.join("; ");
            outcome
                .other_flaws
                .push(format!("{case}: {failed} of {} connections failed: {why}", plan.clients));
        }
        let (least, most) = (self.by_server.iter().min(), self.by_server.iter().max());
        if let (Some(least), Some(most)) = (least, most) {
            let share = *done as f64 / self.by_server.len() as f64;
            outcome.notes.push(format!(
                "{case}: {least} to {most} connections a process: {:+.1} % to {:+.1} % of an equal share",
                (*least as f64 / share - 1.0) * 100.0,
                (*most as f64 / share - 1.0) * 100.0,
            ));
        }
        let mut add = |name: &str, unit, value: f64| {
            outcome.figures.push(Figure::new(format!("{case}: {name}"), unit, vec![value]));
        };
        add("connections", "", *done as f64);
        add("user memory per connection", "B", self.user_bytes);
        add("kernel memory per connection, both ends", "B", self.kernel_bytes);
        add("TCP buffers grown, both ends", "MiB", self.tcp_pages * PAGE_BYTES / f64::from(1 << 20));
        add("time to connect", "s", self.seconds);
        add("server CPU per handshake", "us", self.cpu_us);
    }
}

fn tell_phase(case: &str, phase: &Phase, outcome: &mut Outcome) {
    let mut add = |name: &str, unit, value: f64| {
        outcome.figures.push(Figure::new(format!("{case}: {name}"), unit, vec![value]));
    };
    add("deliveries", "/s", phase.deliveries_per_second);
    add("latency p50", "ms", phase.latency.p50_us / 1e3);
    add("latency p99", "ms", phase.latency.p99_us / 1e3);
    add("latency max", "ms", phase.latency.max_us / 1e3);
    add(CPU_PER_DELIVERY, "us", phase.cpu_us_per_delivery);
}

fn local_ports() -> usize {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    addresses::ports_in_range(&range).unwrap_or(PORTS_DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_told_largest_first_and_without_those_that_hardly_grew() {
        let caches = [("filp", 390.2), ("TCP", 5040.4), ("radix", 0.4)];
        let caches = caches.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
        assert_eq!(in_words(caches), "TCP 5040 B, filp 390 B");
    }

    #[test]
    fn this_kernel_tells_its_port_range() {
        let ports = local_ports();
        assert!((1..=65_535).contains(&ports), "{ports}");
    }
}
