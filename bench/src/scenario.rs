//! The scenarios: what is connected, which load is put on, and which figures come of it.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::Crowd;
use crate::echo;
use crate::figure::{Figure, median};
use crate::latency::Latencies;
use crate::schedule::Load;
use crate::stage::{Bench, Phase, Side, Stage, settled_memory};
use crate::sys;
use crate::tally::Seating;

/// Messages that the gathering floor puts into one send: where its price per delivery has become flat.
const FLOOR_GATHER: u64 = 10;
/// Messages a second of the gathering floor.
const FLOOR_GATHER_RATE: f64 = 1_000.0;
/// Handshakes before the measured ones.
const CHURN_WARM_UP: usize = 2_000;

/// What a scenario found.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// Its name and parameters, for people.
    pub title: String,
    /// As run.
    pub parameters: Value,
    /// Command of the server.
    pub server: String,
    /// The rows of its table.
    pub figures: Vec<Figure>,
    /// Every measured window, raw.
    pub phases: Vec<Phase>,
    /// What has no place in a phase, raw.
    pub details: Vec<Value>,
    /// What a reader must know.
    pub notes: Vec<String>,
    /// Flaws that no phase knows of.
    pub(crate) other_flaws: Vec<String>,
}

impl Outcome {
    /// Nothing has been found yet.
    pub fn new(title: String, parameters: Value, server: &str) -> Self {
        Self {
            title,
            parameters,
            server: server.to_owned(),
            figures: Vec::new(),
            phases: Vec::new(),
            details: Vec::new(),
            notes: Vec::new(),
            other_flaws: Vec::new(),
        }
    }

    /// The figure called `name`.
    pub fn figure(&self, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.name == name)
    }

    /// What was lost or damaged: a server that delivers less is cheaper.
    pub fn flaws(&self) -> Vec<String> {
        let mut flaws = self.other_flaws.clone();
        for phase in self.phases.iter().filter(|phase| phase.side == "server") {
            if phase.missing > 0 || phase.sent.stuck || !phase.counts.is_clean() {
                flaws.push(format!("deliveries were lost or damaged: {}", phase.load));
            }
        }
        flaws.dedup();
        flaws
    }

    fn samples(&self, side: &str, value: impl Fn(&Phase) -> f64) -> Vec<f64> {
        self.phases.iter().filter(|phase| phase.side == side).map(value).collect()
    }

    /// The figures that every load has.
    fn add_load_figures(&mut self) {
        let beside_floor = |name: &str, unit, value: fn(&Phase) -> f64| {
            Figure::new(name, unit, self.samples("server", value)).beside(self.samples("floor", value))
        };
        let figures = [
            beside_floor(CPU_PER_DELIVERY, "us", |phase| phase.cpu_us_per_delivery),
            beside_floor("deliveries", "/s", |phase| phase.deliveries_per_second),
            beside_floor("latency p50", "us", |phase| phase.latency.p50_us),
            beside_floor("latency p90", "us", |phase| phase.latency.p90_us),
            beside_floor("latency p99", "us", |phase| phase.latency.p99_us),
            beside_floor("latency p99.9", "us", |phase| phase.latency.p999_us),
            beside_floor("latency max", "us", |phase| phase.latency.max_us),
        ];
        self.figures.extend(figures);
    }
}

/// Name of the figure that all scenarios with deliveries have.
pub const CPU_PER_DELIVERY: &str = "CPU per delivery";
/// Of [`idle`].
pub const BYTES_PER_CONNECTION: &str = "user memory per connection";
/// Of [`churn`].
pub const CPU_PER_HANDSHAKE: &str = "CPU per handshake and close";
/// Of [`echo`].
pub const ECHO_BUSY_P50: &str = "echo p50 while the room is being sent to";
/// Of [`saturate`].
pub const WORST_RISE: &str = "worst rise of CPU per delivery from a smaller window";
/// Of [`saturate`] and [`second_shard`].
pub const DELIVERIES: &str = "deliveries";

/// Name of the figure of one window.
pub fn window_figure(window: u64) -> String {
    format!("{CPU_PER_DELIVERY}, {window} under way")
}

pub(crate) fn seating(crowd: &Crowd) -> Result<Seating> {
    if crowd.rooms == 0 || crowd.rooms_per_client == 0 || crowd.rooms_per_client > crowd.rooms {
        bail!("{} rooms per client of {} rooms is not possible", crowd.rooms_per_client, crowd.rooms);
    }
    if crowd.clients == 0 {
        bail!("no clients");
    }
    Ok(Seating { rooms: crowd.rooms, rooms_per_connection: crowd.rooms_per_client })
}

pub(crate) fn crowd_text(crowd: &Crowd) -> String {
    let Crowd { clients, rooms, rooms_per_client, bytes } = crowd;
    match (rooms, rooms_per_client) {
        (1, _) => format!("1 room x {clients} clients x {bytes} B"),
        (_, 1) => format!("{clients} clients in {rooms} rooms x {bytes} B"),
        _ => format!("{clients} clients in {rooms_per_client} of {rooms} rooms each x {bytes} B"),
    }
}

pub(crate) fn crowd_json(crowd: &Crowd) -> Value {
    json!({
        "clients": crowd.clients,
        "rooms": crowd.rooms,
        "rooms_per_client": crowd.rooms_per_client,
        "bytes": crowd.bytes,
    })
}

/// The server's side, and the floor's, both connected, so that they can be measured in turn.
struct Duel {
    // Before the stage: receivers hang up before the server goes, or its end would count as theirs.
    server: Side,
    floor: Option<Side>,
    stage: Stage,
}

impl Duel {
    fn connect(bench: &Bench, crowd: &Crowd) -> Result<Self> {
        let stage = bench.default_stage()?;
        let server = bench.server_side(&stage, seating(crowd)?, crowd.clients, crowd.bytes)?;
        let floor = match bench.common.no_floor {
            true => None,
            false => Some(bench.floor_side(crowd.clients, crowd.bytes)?),
        };
        Ok(Self { server, floor, stage })
    }

    fn warm_up(&mut self, bench: &Bench, load: Load) -> Result<()> {
        self.server.measure(load)?;
        if let Some(floor) = &mut self.floor {
            let (rate, burst) = (FLOOR_GATHER_RATE, FLOOR_GATHER);
            floor.measure(Load::Open { rate, burst, duration_ns: bench.common.warm_up_ns() })?;
        }
        Ok(())
    }

    /// Floor, server, floor, server ...: what the machine does in the meantime hits both.
    fn alternate(&mut self, bench: &Bench, server: Load, floor: Load, outcome: &mut Outcome) -> Result<()> {
        for run in 1..=bench.common.runs {
            if sys::interrupted() {
                outcome.notes.push(format!("interrupted after {} of {} runs", run - 1, bench.common.runs));
                return Ok(());
            }
            progress(&outcome.title, run, bench.common.runs);
            if let Some(side) = &mut self.floor {
                outcome.phases.push(side.measure(floor)?);
            }
            let phase = self.server.measure(server)?;
            // A window that was cut short is in the raw results like any other: its figures are per delivery.
            outcome.phases.push(phase);
            self.stage.server.check_alive()?;
        }
        Ok(())
    }
}

pub(crate) fn progress(title: &str, run: usize, runs: usize) {
    eprintln!("{title}: run {run} of {runs}");
}

fn floor_gathered(bench: &Bench) -> Load {
    Load::Open { rate: FLOOR_GATHER_RATE, burst: FLOOR_GATHER, duration_ns: bench.common.duration_ns() }
}

/// Messages at a rate. The floor makes as many deliveries a second, each message to all sockets, `group` in one send.
pub fn fanout(bench: &Bench, crowd: &Crowd, rate: f64, group: u64) -> Result<Outcome> {
    if rate <= 0.0 || group == 0 {
        bail!("{rate} messages a second in groups of {group} never leave");
    }
    let mut duel = Duel::connect(bench, crowd)?;
    let title = format!("fanout, {}, {rate}/s in groups of {group}", crowd_text(crowd));
    let parameters = json!({"crowd": crowd_json(crowd), "rate": rate, "group": group});
    let mut outcome = Outcome::new(title, parameters, &duel.stage.server.command);
    let load = |duration_ns| Load::Open { rate, burst: group, duration_ns };
    duel.warm_up(bench, load(bench.common.warm_up_ns()))?;
    let duration_ns = bench.common.duration_ns();
    let members_share = f64::from(crowd.rooms_per_client) / f64::from(crowd.rooms);
    let floor = Load::Open { rate: rate * members_share, burst: group, duration_ns };
    duel.alternate(bench, load(duration_ns), floor, &mut outcome)?;
    outcome.add_load_figures();
    Ok(outcome)
}

/// Messages back to back. The floor gathers ten a send.
pub fn burst(bench: &Bench, crowd: &Crowd, messages: u64) -> Result<Outcome> {
    let mut duel = Duel::connect(bench, crowd)?;
    let title = format!("burst, {}, {messages} back to back", crowd_text(crowd));
    let parameters = json!({"crowd": crowd_json(crowd), "messages": messages, "floor_gather": FLOOR_GATHER});
    let mut outcome = Outcome::new(title, parameters, &duel.stage.server.command);
    duel.warm_up(bench, Load::Burst { messages: messages.div_ceil(10) })?;
    duel.alternate(bench, Load::Burst { messages }, floor_gathered(bench), &mut outcome)?;
    outcome.add_load_figures();
    Ok(outcome)
}

/// A closed loop at each window. The floor gathers ten a send.
pub fn saturate(bench: &Bench, crowd: &Crowd, windows: &[u64]) -> Result<Outcome> {
    if windows.is_empty() || windows.contains(&0) {
        bail!("a window of at least one message is needed");
    }
    let mut duel = Duel::connect(bench, crowd)?;
    let title = format!("saturate, {}", crowd_text(crowd));
    let parameters = json!({"crowd": crowd_json(crowd), "windows": windows, "floor_gather": FLOOR_GATHER});
    let mut outcome = Outcome::new(title, parameters, &duel.stage.server.command);
    let closed = |window, duration_ns| Load::Closed { window, duration_ns };
    duel.warm_up(bench, closed(windows[windows.len() / 2], bench.common.warm_up_ns()))?;
    let mut by_window = vec![(Vec::new(), Vec::new()); windows.len()];
    'runs: for run in 1..=bench.common.runs {
        progress(&outcome.title, run, bench.common.runs);
        if let Some(floor) = &mut duel.floor {
            outcome.phases.push(floor.measure(floor_gathered(bench))?);
        }
        for (window, samples) in windows.iter().zip(&mut by_window) {
            if sys::interrupted() {
                outcome.notes.push(format!("interrupted in run {run} of {}", bench.common.runs));
                break 'runs;
            }
            let phase = duel.server.measure(closed(*window, bench.common.duration_ns()))?;
            let is_stuck = phase.sent.stuck;
            samples.0.push(phase.cpu_us_per_delivery);
            samples.1.push(phase.deliveries_per_second);
            outcome.phases.push(phase);
            duel.stage.server.check_alive()?;
            if is_stuck {
                outcome.notes.push(format!("gave up at {window} under way: messages were lost"));
                break 'runs;
            }
        }
    }
    let floor = outcome.samples("floor", |phase| phase.cpu_us_per_delivery);
    let floor_rate = outcome.samples("floor", |phase| phase.deliveries_per_second);
    let medians: Vec<_> = by_window.iter().filter_map(|(cpu, _)| median(cpu)).collect();
    for (window, (cpu, rate)) in windows.iter().zip(by_window) {
        outcome.figures.push(Figure::new(window_figure(*window), "us", cpu).beside(floor.clone()));
        let name = format!("{DELIVERIES}, {window} under way");
        outcome.figures.push(Figure::new(name, "/s", rate).beside(floor_rate.clone()));
    }
    outcome.figures.push(Figure::new(WORST_RISE, "x", worst_rise(&medians).into_iter().collect()));
    Ok(outcome)
}

/// The largest ratio of a cost to the cheapest one before it: more messages under way may never cost more per delivery.
fn worst_rise(costs: &[f64]) -> Option<f64> {
    let mut cheapest = *costs.first().filter(|cost| **cost > 0.0)?;
    let mut worst: f64 = 1.0;
    for cost in costs {
        worst = worst.max(cost / cheapest);
        cheapest = cheapest.min(*cost);
    }
    Some(worst)
}

/// Memory per connection that does nothing: what the server has more than before its first connection.
pub fn idle(bench: &Bench, clients: usize, rooms: u32) -> Result<Outcome> {
    let crowd = Crowd { clients, rooms, rooms_per_client: 1, bytes: 0 };
    let seating = seating(&crowd)?;
    let title = format!("idle, {clients} connections in {rooms} rooms");
    let mut outcome = Outcome::new(title, json!({"clients": clients, "rooms": rooms}), "");
    let (mut per_connection, mut resident) = (Vec::new(), Vec::new());
    let (mut process, mut kernel) = (Vec::new(), Vec::new());
    for run in 1..=bench.common.runs {
        if sys::interrupted() {
            outcome.notes.push(format!("interrupted after {} of {} runs", run - 1, bench.common.runs));
            break;
        }
        progress(&outcome.title, run, bench.common.runs);
        let mut stage = bench.default_stage()?;
        let (mut receivers, meter) = bench.idle_receivers(&stage, seating, clients)?;
        outcome.server.clone_from(&stage.server.command);
        let before = settled_memory(&meter)?;
        receivers.connect().context("connecting to the server")?;
        let after = settled_memory(&meter)?;
        // A server that sheds idle connections would look lean.
        let (counts, _) = receivers.end()?;
        if !counts.closes.is_empty() {
            outcome.other_flaws.push(format!("run {run}: idle connections were closed: {:?}", counts.closes));
        }
        let grown = |of: fn(&crate::measure::Memory) -> u64| {
            (of(&after) as f64 - of(&before) as f64) / clients as f64
        };
        per_connection.push(grown(|memory| memory.anonymous_bytes));
        resident.push(grown(|memory| memory.resident_bytes));
        process.push(after.resident_bytes as f64 / f64::from(1 << 20));
        kernel.push(grown(|memory| memory.slab_bytes));
        stage.server.check_alive()?;
        outcome.details.push(json!({"before": before, "after": after, "closes": counts.closes}));
    }
    outcome.figures.push(Figure::new(BYTES_PER_CONNECTION, "B", per_connection));
    outcome.figures.push(Figure::new("resident memory per connection", "B", resident));
    outcome.figures.push(Figure::new("resident memory of the server", "MiB", process));
    outcome.figures.push(Figure::new("kernel memory per connection, both ends", "B", kernel));
    Ok(outcome)
}

/// CPU per connection that comes and goes: TCP, upgrade, Close frames, end.
pub fn churn(bench: &Bench, handshakes: usize, parallel: usize) -> Result<Outcome> {
    let seating = Seating { rooms: 1, rooms_per_connection: 1 };
    let mut stage = bench.default_stage()?;
    let (mut receivers, meter) = bench.idle_receivers(&stage, seating, parallel)?;
    let title = format!("churn, {handshakes} handshakes, {parallel} at a time");
    let parameters = json!({"handshakes": handshakes, "parallel": parallel});
    let mut outcome = Outcome::new(title, parameters, &stage.server.command);
    receivers.churn(CHURN_WARM_UP, parallel)?;
    let (mut cpu, mut rate, mut p50, mut p99) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for run in 1..=bench.common.runs {
        if sys::interrupted() {
            outcome.notes.push(format!("interrupted after {} of {} runs", run - 1, bench.common.runs));
            break;
        }
        progress(&outcome.title, run, bench.common.runs);
        let before = meter.read()?;
        let dialed = receivers.churn(handshakes, parallel)?;
        stage.server.check_alive()?;
        let used = meter.between(&before, &meter.read()?);
        let mut latencies = Latencies::new();
        latencies.merge(&dialed.handshakes);
        let latency = latencies.percentiles();
        cpu.push(used.server_cpu_seconds * 1e6 / dialed.done.max(1) as f64);
        rate.push(dialed.done as f64 / used.seconds);
        p50.push(latency.p50_us);
        p99.push(latency.p99_us);
        if dialed.failed > 0 {
            outcome.other_flaws.push(format!("{} failed: {}", dialed.failed, dialed.errors.join("; ")));
        }
        outcome.details.push(json!({
            "done": dialed.done, "failed": dialed.failed, "errors": dialed.errors, "used": used, "latency": latency,
        }));
    }
    outcome.figures.push(Figure::new(CPU_PER_HANDSHAKE, "us", cpu));
    outcome.figures.push(Figure::new("handshakes and closes", "/s", rate));
    outcome.figures.push(Figure::new("handshake p50", "us", p50));
    outcome.figures.push(Figure::new("handshake p99", "us", p99));
    Ok(outcome)
}

/// Round trips of one connection by an open loop, while a room is sent to; those that began while deliveries of a
/// message were under way count apart, or a mostly idle server would look quick.
pub fn echo(bench: &Bench, clients: usize, rate: f64, bytes: usize, echo_rate: f64) -> Result<Outcome> {
    let seating = Seating { rooms: 1, rooms_per_connection: 1 };
    let mut stage = bench.default_stage()?;
    let mut side = bench.server_side(&stage, seating, clients, bytes)?;
    let title = format!("echo, beside 1 room x {clients} clients x {bytes} B, {rate}/s");
    let parameters = json!({"clients": clients, "rate": rate, "bytes": bytes, "echo_rate": echo_rate});
    let mut outcome = Outcome::new(title, parameters, &stage.server.command);
    side.measure_busy(rate, bench.common.warm_up_ns())?;
    let interval_ns = (1e9 / echo_rate.max(1e-3)) as u64;
    let path = bench.common.echo_path.replace("{room}", "bench-echo");
    let (mut busy_p50, mut busy_p99, mut all_p50, mut all_p99) = (vec![], vec![], vec![], vec![]);
    for run in 1..=bench.common.runs {
        if sys::interrupted() {
            outcome.notes.push(format!("interrupted after {} of {} runs", run - 1, bench.common.runs));
            break;
        }
        progress(&outcome.title, run, bench.common.runs);
        let stop = AtomicBool::new(false);
        let (measured, echoes) = std::thread::scope(|scope| {
            let echo = scope.spawn(|| echo::run(stage.server.address, &path, interval_ns, &stop));
            let measured = side.measure_busy(rate, bench.common.duration_ns());
            stop.store(true, Ordering::Relaxed);
            (measured, echo.join())
        });
        stage.server.check_alive()?;
        let (phase, busy) = measured?;
        let Ok(echoes) = echoes else { bail!("the echo thread panicked") };
        let echoes = echoes?;
        let (mut during, mut all) = (Latencies::new(), Latencies::new());
        for trip in &echoes.trips {
            all.record(trip.took_ns);
            if is_within(&busy, trip.intended_ns) {
                during.record(trip.took_ns);
            }
        }
        let (during, all) = (during.percentiles(), all.percentiles());
        let busy_ns: u64 = busy.iter().map(|(since, until)| until - since).sum();
        let busy_share = busy_ns as f64 / bench.common.duration_ns() as f64;
        if during.count > 0 {
            busy_p50.push(during.p50_us / 1e3);
            busy_p99.push(during.p99_us / 1e3);
        }
        all_p50.push(all.p50_us / 1e3);
        all_p99.push(all.p99_us / 1e3);
        if echoes.lost > 0 {
            outcome.other_flaws.push(format!("run {run}: {} echoes never came back", echoes.lost));
        }
        if !echoes.ran_first {
            outcome
                .notes
                .push("the echo thread may not preempt the receivers: its figures include them".to_owned());
        }
        outcome.details.push(json!({
            "during": during, "all": all, "lost": echoes.lost, "busy_share": busy_share, "ran_first": echoes.ran_first,
        }));
        outcome.phases.push(phase);
    }
    outcome.figures.push(Figure::new(ECHO_BUSY_P50, "ms", busy_p50));
    outcome.figures.push(Figure::new("echo p99 while the room is being sent to", "ms", busy_p99));
    outcome.figures.push(Figure::new("echo p50", "ms", all_p50));
    outcome.figures.push(Figure::new("echo p99", "ms", all_p99));
    outcome.add_load_figures();
    Ok(outcome)
}

/// Whether `at_ns` lies in one of the intervals, which are in order and don't overlap.
fn is_within(intervals: &[(u64, u64)], at_ns: u64) -> bool {
    let after = intervals.partition_point(|(since, _)| *since <= at_ns);
    after > 0 && at_ns < intervals[after - 1].1
}

/// A window with all clients reading, then one with some that don't, on one server.
pub fn slow(bench: &Bench, clients: usize, stalled_every: usize, rate: f64, bytes: usize) -> Result<Outcome> {
    if stalled_every < 2 {
        bail!("of every {stalled_every} clients one stops reading: nobody is left");
    }
    let seating = Seating { rooms: 1, rooms_per_connection: 1 };
    let title = format!("slow, 1 of {stalled_every} of {clients} clients stops reading, {bytes} B, {rate}/s");
    let parameters =
        json!({"clients": clients, "stalled_every": stalled_every, "rate": rate, "bytes": bytes});
    let mut outcome = Outcome::new(title, parameters, "");
    let load = |duration_ns| Load::Open { rate, burst: 1, duration_ns };
    let (mut p99_without, mut p99_with, mut grown, mut kernel) = (vec![], vec![], vec![], vec![]);
    for run in 1..=bench.common.runs {
        if sys::interrupted() {
            outcome.notes.push(format!("interrupted after {} of {} runs", run - 1, bench.common.runs));
            break;
        }
        progress(&outcome.title, run, bench.common.runs);
        let mut stage = bench.default_stage()?;
        outcome.server.clone_from(&stage.server.command);
        let mut side = bench.server_side(&stage, seating, clients, bytes)?;
        side.measure(load(bench.common.warm_up_ns()))?;
        let without = side.measure(load(bench.common.duration_ns()))?;
        let before = side.settled_memory()?;
        side.stall(stalled_every)?;
        let with = side.measure(load(bench.common.duration_ns()))?;
        let after = side.meter.memory()?;
        let ends = side.resume()?;
        stage.server.check_alive()?;
        p99_without.push(without.latency.p99_us / 1e3);
        p99_with.push(with.latency.p99_us / 1e3);
        let mebibytes = |of: u64, since: u64| (of as f64 - since as f64) / f64::from(1 << 20);
        grown.push(mebibytes(after.anonymous_bytes, before.anonymous_bytes));
        kernel.push(mebibytes(after.tcp_pages * 4096, before.tcp_pages * 4096));
        outcome.notes.push(format!(
            "run {run}: the stalled, once they read again: closed {:?}, missed {}, received {}",
            ends.closes, ends.gaps, ends.delivered
        ));
        outcome.details.push(json!({"before": before, "after": after, "resumed": ends}));
        outcome.phases.extend([without, with]);
    }
    outcome.figures.push(Figure::new("p99 of the healthy, all reading", "ms", p99_without));
    outcome.figures.push(Figure::new("p99 of the healthy, some stalled", "ms", p99_with));
    outcome.figures.push(Figure::new("user memory grown by the stalled", "MiB", grown));
    outcome.figures.push(Figure::new("kernel memory grown by the stalled", "MiB", kernel));
    Ok(outcome)
}

/// The floor alone, at each width of gathering.
pub fn floor(bench: &Bench, clients: usize, rate: f64, bytes: usize, gather: &[u64]) -> Result<Outcome> {
    if rate <= 0.0 || gather.contains(&0) {
        bail!("{rate} messages a second in groups of {gather:?} never leave");
    }
    let mut side = bench.floor_side(clients, bytes)?;
    let title = format!("floor, {clients} sockets x {bytes} B, {rate}/s");
    let parameters = json!({"clients": clients, "rate": rate, "bytes": bytes, "gather": gather});
    let mut outcome = Outcome::new(title, parameters, "");
    let load = |burst, duration_ns| Load::Open { rate, burst, duration_ns };
    side.measure(load(1, bench.common.warm_up_ns()))?;
    let mut by_width = vec![Vec::new(); gather.len()];
    'runs: for run in 1..=bench.common.runs {
        progress(&outcome.title, run, bench.common.runs);
        for (width, samples) in gather.iter().zip(&mut by_width) {
            if sys::interrupted() {
                outcome.notes.push(format!("interrupted in run {run} of {}", bench.common.runs));
                break 'runs;
            }
            let phase = side.measure(load(*width, bench.common.duration_ns()))?;
            samples.push(phase.cpu_us_per_delivery);
            outcome.phases.push(phase);
        }
    }
    for (width, samples) in gather.iter().zip(by_width) {
        let name = format!("{CPU_PER_DELIVERY}, {width} gathered");
        outcome.figures.push(Figure::new(name, "us", samples));
    }
    Ok(outcome)
}

/// The same closed loop on one shard and on two. The second shard's core is the generator's first: on a host with two
/// cores they share it, and the figure says more about CPU per delivery than about deliveries.
pub fn second_shard(bench: &Bench, crowd: &Crowd, window: u64) -> Result<Outcome> {
    let seating = seating(crowd)?;
    let title = format!("second shard, {}, {window} under way", crowd_text(crowd));
    let parameters = json!({"crowd": crowd_json(crowd), "window": window});
    let mut outcome = Outcome::new(title, parameters, "");
    let one_core: Vec<_> = bench.common.server_cores.iter().copied().take(1).collect();
    let mut two_cores = one_core.clone();
    two_cores.extend(bench.common.generator_cores.iter().find(|core| !one_core.contains(core)));
    for (shards, cores) in [(1, one_core), (2, two_cores)] {
        let mut stage = bench.stage(shards, &cores)?;
        outcome.server.clone_from(&stage.server.command);
        let mut side = bench.server_side(&stage, seating, crowd.clients, crowd.bytes)?;
        side.measure(Load::Closed { window, duration_ns: bench.common.warm_up_ns() })?;
        let (mut cpu, mut rate) = (Vec::new(), Vec::new());
        for run in 1..=bench.common.runs {
            if sys::interrupted() {
                outcome.notes.push(format!("interrupted at {shards} shards"));
                break;
            }
            progress(&format!("{}, shards: {shards}", outcome.title), run, bench.common.runs);
            let phase = side.measure(Load::Closed { window, duration_ns: bench.common.duration_ns() })?;
            stage.server.check_alive()?;
            cpu.push(phase.cpu_us_per_delivery);
            rate.push(phase.deliveries_per_second);
            outcome.phases.push(phase);
        }
        outcome.figures.push(Figure::new(format!("{CPU_PER_DELIVERY}, shards: {shards}"), "us", cpu));
        outcome.figures.push(Figure::new(format!("{DELIVERIES}, shards: {shards}"), "/s", rate));
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cliff_is_measured_from_the_cheapest_smaller_window() {
        assert_eq!(worst_rise(&[4.0, 2.0, 1.0, 1.0]), Some(1.0));
        assert_eq!(worst_rise(&[4.0, 1.0, 2.0, 0.5]), Some(2.0));
        assert_eq!(worst_rise(&[]), None);
    }

    #[test]
    fn a_moment_is_inside_an_interval_or_not() {
        let intervals = [(10, 20), (30, 40)];
        let inside: Vec<u64> = (0..50).step_by(5).filter(|at| is_within(&intervals, *at)).collect();
        assert_eq!(inside, [10, 15, 30, 35]);
    }
}
