//! A mixed load for a long time: nothing may be lost without a word, and nothing may grow.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::account::{Account, settle};
use super::storm::metronome_heads;
use super::{Outcome, seating, tell_doubts};
use crate::cli::Crowd;
use crate::comeback::Return;
use crate::dial::Slow;
use crate::figure::Figure;
use crate::growth::Growth;
use crate::latency::Latencies;
use crate::measure::{Meter, Reading};
use crate::metronome::Metronome;
use crate::peer::OURS;
use crate::phase::doubts;
use crate::publisher::Sent;
use crate::receivers::Receivers;
use crate::rhythm::Rhythm;
use crate::stage::{Bench, PATIENCE};
use crate::sys;
use crate::tally::Counts;
use crate::units::{parse_bytes, parse_duration};

/// Between two looks at the clock.
const LOOK: Duration = Duration::from_millis(20);
/// Clients leave and slow ones change their mind at most so often.
const STEP: Duration = Duration::from_secs(1);
/// Who comes back takes its time, so that the returns of a step are spread over it.
const RETURN_PACE: Duration = Duration::from_millis(500);
const RETRY: Duration = Duration::from_millis(200);
/// What the kernel keeps unread for a slow reader: little, so that it is the server that notices.
const SLOW_RECEIVE_BYTES: usize = 4_096;
/// Descriptors beside connections that a server may have opened meanwhile: its own to Redis and the like.
const DESCRIPTORS_GROWTH_MAX: i64 = 16;

/// The parameters.
#[derive(Debug, Clone, Args)]
pub struct SoakPlan {
    /// Connections.
    #[arg(long, default_value_t = 1_000)]
    pub clients: usize,
    /// Rooms that they are spread over.
    #[arg(long, default_value_t = 10)]
    pub rooms: u32,
    /// Messages a second, all rooms together.
    #[arg(long, default_value_t = 50.0)]
    pub rate: f64,
    /// Payload bytes.
    #[arg(long, default_value_t = 1_024)]
    pub bytes: usize,
    /// Messages of a burst, beside the rate.
    #[arg(long, default_value_t = 500)]
    pub burst: u64,
    /// Between two bursts.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub burst_every: Duration,
    /// Clients that leave each second, in turn, and come back within the next; 0: none.
    #[arg(long, default_value_t = 20)]
    pub leaving: usize,
    /// Every so many-th client stops reading again and again, and its kernel keeps little for it; 0: none.
    #[arg(long, default_value_t = 20)]
    pub slow_every: usize,
    /// How long it doesn't read, and then does. A server that tells a slow reader that it is too slow waits some seconds for
    /// it to listen: longer than that, and its connection just ends.
    #[arg(long, default_value = "4s", value_parser = parse_duration)]
    pub slow_for: Duration,
    /// How long all of it lasts.
    #[arg(long = "for", default_value = "10m", value_parser = parse_duration)]
    pub length: Duration,
    /// Between two samples.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub interval: Duration,
    /// How much the server's memory (RssAnon and RssShmem) may grow from the first settled samples to the last.
    #[arg(long, default_value = "8MiB", value_parser = parse_bytes)]
    pub growth_max: u64,
}

/// What was seen in one interval.
#[derive(Debug, Clone, Serialize)]
struct Sample {
    seconds: f64,
    clients: u64,
    /// Published since the beginning.
    messages: u64,
    deliveries_per_second: f64,
    p99_us: f64,
    max_us: f64,
    cpu_us_per_delivery: f64,
    anonymous_bytes: u64,
    resident_bytes: u64,
    tcp_pages: u64,
    slab_bytes: u64,
    descriptors: usize,
    /// Missed by connections that had ended: so far told by those that are back.
    absent: u64,
    /// Lost by connections that were there.
    gaps: u64,
    /// How connections ended that did not say goodbye, and read all along.
    closes: std::collections::BTreeMap<String, u64>,
    /// The same of those that stop reading now and then.
    slow_closes: std::collections::BTreeMap<String, u64>,
    used: crate::measure::Used,
    /// Why this sample may not mean what it seems to.
    doubts: Vec<String>,
}

/// The load, sampled, and the account in the end.
pub fn soak(bench: &Bench, plan: &SoakPlan) -> Result<Outcome> {
    if plan.rate <= 0.0 || plan.burst_every.is_zero() || plan.interval.is_zero() || plan.slow_for.is_zero() {
        bail!("a rate, time between bursts, interval or time of slowness of zero is none");
    }
    let SoakPlan { clients, rooms, rate, bytes, burst, .. } = *plan;
    let seating = seating(&Crowd { clients, rooms, rooms_per_client: 1, bytes })?;
    let mut stage = bench.default_stage()?;
    let title = format!(
        "soak, {clients} clients in {rooms} rooms x {bytes} B, {rate}/s and {burst} at once each {:?}, {} leave a second, \
         1 of {} reads slowly",
        plan.burst_every, plan.leaving, plan.slow_every,
    );
    let mut outcome = Outcome::new(title, parameters(plan), &stage.server.command);
    let (mut receivers, _) = bench.idle_receivers(&stage, seating, clients)?;
    let meter = bench.meter(&stage, &receivers);
    let descriptors_before: usize = meter.descriptors()?.iter().sum();
    if plan.slow_every > 0 {
        receivers.have_slow(Slow { every: plan.slow_every, receive_bytes: SLOW_RECEIVE_BYTES });
    }
    receivers.connect().context("connecting to the server")?;
    receivers.begin(0, false)?;
    let publisher = stage.publisher(seating)?;
    let rhythm = Rhythm::with_bursts(rate, plan.burst_every.as_nanos() as u64, burst);
    let metronome = Metronome::start(rhythm, rooms, bytes, publisher)?;
    let (pace_ns, retry_ns) = (RETURN_PACE.as_nanos() as u64, RETRY.as_nanos() as u64);
    receivers.expect_returns(Return { pace_ns, retry_ns, timetable: metronome.timetable })?;

    let mut soaking = Soaking::new(plan, meter)?;
    let started = Instant::now();
    while started.elapsed() < plan.length && !sys::interrupted() {
        std::thread::sleep(LOOK);
        if metronome.has_ended() {
            bail!("publishing ended in the middle: {:?}", metronome.stop().err());
        }
        stage.server.check_alive()?;
        soaking.step(started.elapsed(), &metronome, &mut receivers)?;
    }
    if sys::interrupted() {
        let seconds = started.elapsed().as_secs();
        outcome.notes.push(format!("interrupted after {seconds} s of {} s", plan.length.as_secs()));
    }
    soaking.sample(started.elapsed(), &metronome, &mut receivers)?;
    receivers.resume()?;
    let published = metronome_heads(metronome, &receivers)?;
    let open = wait_all_back(&receivers, clients);
    let settled = settle(&mut receivers, &published.heads)?;
    let (counts, _) = receivers.take()?;
    soaking.counts.merge(&counts);
    stage.server.check_alive()?;
    if open != clients as u64 {
        outcome.other_flaws.push(format!("{open} of {clients} clients are there in the end"));
    }
    let opened = soaking.descriptors_opened(descriptors_before, &receivers)?;
    if opened > DESCRIPTORS_GROWTH_MAX {
        outcome
            .other_flaws
            .push(format!("the server has {opened} descriptors more than connections and before"));
    }
    let account = Account::of(published.owed(seating, clients), soaking.counts.clone(), settled);
    outcome.other_flaws.extend(account.flaws());
    let Counts { closes, slow_closes, .. } = &account.counts;
    if !closes.is_empty() {
        outcome.other_flaws.push(format!("connections that read all along were closed: {closes:?}"));
    }
    let returned = receivers.returned()?;
    outcome.notes.push(format!(
        "{} were owed: {} came, {} were missed by {} connections that had ended (told so, of those that read slowly: \
         {slow_closes:?}), {} were lost",
        account.owed, account.delivered, account.absent, returned.ended, account.lost,
    ));
    let doubts: Vec<_> = soaking.samples.iter().map(|sample| sample.doubts.clone()).collect();
    tell_doubts(&doubts, "samples", &mut outcome);
    soaking.judge(plan, &mut outcome);
    outcome.details.push(json!({
        "samples": soaking.samples, "account": account, "growth": Growth::of(&soaking.memory()),
        "ended": returned.ended, "back": returned.back, "errors": returned.dialed.errors,
        "refused": returned.dialed.refused, "broken": returned.dialed.broken, "retried": returned.dialed.retried,
        "messages": published.messages, "descriptors_opened_beside_connections": opened,
    }));
    Ok(outcome)
}

fn parameters(plan: &SoakPlan) -> serde_json::Value {
    json!({
        "clients": plan.clients, "rooms": plan.rooms, "rate": plan.rate, "bytes": plan.bytes, "burst": plan.burst,
        "burst_every_seconds": plan.burst_every.as_secs_f64(), "leaving_per_second": plan.leaving,
        "slow_every": plan.slow_every, "slow_seconds": plan.slow_for.as_secs_f64(),
        "seconds": plan.length.as_secs_f64(), "interval_seconds": plan.interval.as_secs_f64(),
        "growth_bytes_max": plan.growth_max,
    })
}

/// Everybody who left has come back, or nobody does any more.
fn wait_all_back(receivers: &Receivers, clients: usize) -> u64 {
    let (mut seen, mut since) = (receivers.open(), Instant::now());
    while seen != clients as u64 && since.elapsed() < PATIENCE + RETURN_PACE {
        std::thread::sleep(LOOK);
        let open = receivers.open();
        if open != seen {
            (seen, since) = (open, Instant::now());
        }
    }
    seen
}

/// Where a soak is.
struct Soaking<'a> {
    plan: &'a SoakPlan,
    meter: Meter,
    reading: Reading,
    since: Duration,
    steps: usize,
    is_slow: bool,
    samples: Vec<Sample>,
    counts: Counts,
    latencies: Latencies,
}

impl<'a> Soaking<'a> {
    fn new(plan: &'a SoakPlan, meter: Meter) -> Result<Self> {
        let reading = meter.read()?;
        let (counts, latencies) = (Counts::default(), Latencies::new());
        let since = Duration::ZERO;
        Ok(Self { plan, meter, reading, since, steps: 0, is_slow: false, samples: vec![], counts, latencies })
    }

    /// Does what is due after `elapsed`: some leave, some stop or begin to read, a sample is taken.
    fn step(&mut self, elapsed: Duration, metronome: &Metronome, receivers: &mut Receivers) -> Result<()> {
        let plan = self.plan;
        if elapsed >= STEP * (self.steps as u32 + 1) {
            self.steps += 1;
            if plan.leaving > 0 {
                // In a turn of `every` steps each client leaves once.
                let every = plan.clients.div_ceil(plan.leaving);
                receivers.leave(every, self.steps % every)?;
            }
        }
        let is_slow = plan.slow_every > 0 && (elapsed.as_nanos() / plan.slow_for.as_nanos()) % 2 == 1;
        if is_slow != self.is_slow {
            self.is_slow = is_slow;
            if is_slow {
                receivers.stall(plan.slow_every)?;
            } else {
                receivers.resume()?;
            }
        }
        if elapsed >= self.since + plan.interval {
            self.sample(elapsed, metronome, receivers)?;
        }
        Ok(())
    }

    /// Takes a sample and shows it.
    fn sample(&mut self, elapsed: Duration, metronome: &Metronome, receivers: &mut Receivers) -> Result<()> {
        let (counts, latencies) = receivers.take()?;
        let reading = self.meter.read()?;
        let used = self.meter.between(&self.reading, &reading);
        let memory = self.meter.memory()?;
        self.latencies.merge(&latencies.pairs());
        let latency = latencies.percentiles();
        let sent = Sent { late_max_us: metronome.take_late_us(), ..Sent::default() };
        let sample = Sample {
            seconds: elapsed.as_secs_f64(),
            clients: receivers.open(),
            messages: metronome.published(),
            deliveries_per_second: counts.delivered as f64 / used.seconds,
            p99_us: latency.p99_us,
            max_us: latency.max_us,
            cpu_us_per_delivery: used.server_cpu_seconds * 1e6 / counts.delivered.max(1) as f64,
            anonymous_bytes: memory.anonymous_bytes,
            resident_bytes: memory.resident_bytes,
            tcp_pages: memory.tcp_pages,
            slab_bytes: memory.slab_bytes,
            descriptors: self.meter.descriptors()?.iter().sum(),
            absent: counts.absent,
            gaps: counts.gaps,
            closes: counts.closes.clone(),
            slow_closes: counts.slow_closes.clone(),
            // What was lost or closed is judged by the account.
            doubts: doubts(&used, &Counts::default(), &sent, 0, OURS),
            used,
        };
        eprintln!("{sample}");
        self.samples.push(sample);
        self.counts.merge(&counts);
        (self.reading, self.since) = (reading, elapsed);
        Ok(())
    }

    fn memory(&self) -> Vec<u64> {
        self.samples.iter().map(|sample| sample.anonymous_bytes).collect()
    }

    /// Descriptors that the server has more than before and than it has connections, once those that ended are gone.
    fn descriptors_opened(&self, before: usize, receivers: &Receivers) -> Result<i64> {
        let started = Instant::now();
        loop {
            let now: usize = self.meter.descriptors()?.iter().sum();
            let opened = now as i64 - before as i64 - receivers.open() as i64;
            if opened <= DESCRIPTORS_GROWTH_MAX || started.elapsed() > PATIENCE {
                return Ok(opened);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Whether memory grew, and the figures.
    fn judge(&self, plan: &SoakPlan, outcome: &mut Outcome) {
        let mebibytes = |bytes: f64| bytes / f64::from(1 << 20);
        let growth = Growth::of(&self.memory());
        if let Some(growth) = growth {
            let (grown, due) = (mebibytes(growth.grown_bytes), mebibytes(plan.growth_max as f64));
            let settled = self.samples[growth.settled_at].seconds;
            outcome.notes.push(format!(
                "memory grew by {grown:.2} MiB from {:.2} MiB at {settled:.0} s; at most {due:.2} MiB was due",
                mebibytes(growth.settled_bytes),
            ));
            if growth.is_beyond(plan.growth_max) {
                outcome
                    .other_flaws
                    .push(format!("memory grew by {grown:.2} MiB, at most {due:.2} MiB was due"));
            }
        } else {
            outcome
                .notes
                .push("too few samples to tell growth: a shorter --interval, or a longer --for".to_owned());
        }
        let of = |value: fn(&Sample) -> f64| self.samples.iter().map(value).collect::<Vec<_>>();
        let all = self.latencies.percentiles();
        outcome.figures.extend([
            Figure::new("deliveries", "/s", of(|sample| sample.deliveries_per_second)),
            Figure::new(
                "latency p99 of an interval, without slow readers",
                "ms",
                of(|sample| sample.p99_us / 1e3),
            ),
            Figure::new("latency p50, without slow readers", "ms", vec![all.p50_us / 1e3]),
            Figure::new("latency p99, without slow readers", "ms", vec![all.p99_us / 1e3]),
            Figure::new(super::CPU_PER_DELIVERY, "us", of(|sample| sample.cpu_us_per_delivery)),
            Figure::new(
                "user memory",
                "MiB",
                of(|sample| sample.anonymous_bytes as f64 / f64::from(1 << 20)),
            ),
            Figure::new(
                "growth of user memory",
                "MiB",
                growth.map(|growth| mebibytes(growth.grown_bytes)).into_iter().collect(),
            ),
        ]);
    }
}

impl std::fmt::Display for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.0} s: {} clients, {:.0} deliveries/s, p99 {:.2} ms, RSS {:.1} MiB, {} descriptors, missed by being away {}, \
             lost {}",
            self.seconds,
            self.clients,
            self.deliveries_per_second,
            self.p99_us / 1e3,
            self.resident_bytes as f64 / f64::from(1 << 20),
            self.descriptors,
            self.absent,
            self.gaps,
        )
    }
}
