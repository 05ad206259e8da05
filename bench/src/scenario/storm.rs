//! All connections are cut at once and come back at once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::account::{Account, settle};
use super::{Outcome, cut_short, progress, seating, tell_doubts};
use crate::cli::Crowd;
use crate::comeback::{Return, Returned};
use crate::figure::Figure;
use crate::latency::{Latencies, LatencyPairs, Percentiles};
use crate::metronome::Metronome;
use crate::netstat::Netstat;
use crate::peer::OURS;
use crate::phase::doubts;
use crate::progress::Ticker;
use crate::publisher::Sent;
use crate::receivers::Receivers;
use crate::rhythm::Rhythm;
use crate::stage::{Bench, PATIENCE, Stage};
use crate::sys;
use crate::tally::{Counts, Seating};
use crate::units::parse_duration;

/// Between two looks at who is back; when the last one came is told by its receiver, to the nanosecond.
const LOOK: Duration = Duration::from_millis(2);

/// The parameters.
#[derive(Debug, Clone, Args)]
pub struct StormPlan {
    /// Connections.
    #[arg(long, default_value_t = 5_000)]
    pub clients: usize,
    /// Rooms that they are spread over.
    #[arg(long, default_value_t = 1)]
    pub rooms: u32,
    /// Messages a second, all rooms together, before, during and after the storm.
    #[arg(long, default_value_t = 10.0)]
    pub rate: f64,
    /// Payload bytes.
    #[arg(long, default_value_t = 128)]
    pub bytes: usize,
    /// What cuts the connections.
    #[arg(long, value_enum, default_value = "clients")]
    pub cut: Cut,
    /// The returns are spread evenly over this time; 0s: all at once.
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    pub pace: Duration,
    /// An attempt that failed is repeated after this time.
    #[arg(long, default_value = "200ms", value_parser = parse_duration)]
    pub retry: Duration,
    /// Who is not back after this time (and the pace) is given up.
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    pub give_up: Duration,
}

/// See [`StormPlan::cut`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Cut {
    /// The generator resets all its sockets: the server is there, and sees all of them break.
    Clients,
    /// The server is killed with SIGKILL and started again on the same port: nobody listens until it is ready.
    Server,
}

/// What one storm was like.
struct Storm {
    /// From the cut to the last 101.
    last_back_seconds: f64,
    /// From the kill until the new server was ready; nothing where clients were cut.
    ready_seconds: Option<f64>,
    cpu_us_per_handshake: f64,
    handshakes: Percentiles,
    away: Percentiles,
    firsts: Percentiles,
    returned: Returned,
    netstat: Netstat,
    /// Why these figures may not mean what they seem to.
    doubts: Vec<String>,
}

/// As many storms as there are runs, each on a fresh server.
pub fn storm(bench: &Bench, plan: &StormPlan) -> Result<Outcome> {
    if plan.cut == Cut::Server && bench.common.pid.is_some() {
        bail!(
            "--cut server kills the server and starts it again: it must be started by the generator, not named by --pid"
        );
    }
    if plan.rate <= 0.0 {
        bail!("{} messages a second never leave, and who is back hears nothing", plan.rate);
    }
    let StormPlan { clients, rooms, rate, bytes, .. } = *plan;
    let crowd = Crowd { clients, rooms, rooms_per_client: 1, bytes };
    let seating = seating(&crowd)?;
    let whose = match plan.cut {
        Cut::Clients => "cut by their owner",
        Cut::Server => "cut by the server's end",
    };
    let title = format!("storm, {clients} clients in {rooms} rooms {whose}, back over {:?}", plan.pace);
    let parameters = json!({
        "clients": clients, "rooms": rooms, "rate": rate, "bytes": bytes, "cut": format!("{:?}", plan.cut),
        "pace_seconds": plan.pace.as_secs_f64(), "retry_seconds": plan.retry.as_secs_f64(),
        "give_up_seconds": plan.give_up.as_secs_f64(),
    });
    let mut outcome = Outcome::new(title, parameters, "");
    let mut storms = Vec::new();
    for run in 1..=bench.common.runs {
        if sys::interrupted() {
            outcome.notes.push(format!("interrupted after {} of {} runs", run - 1, bench.common.runs));
            break;
        }
        progress(&outcome.title, run, bench.common.runs);
        let stormed = one_storm(bench, plan, seating, run, &mut outcome);
        storms.extend(cut_short(stormed, &mut outcome)?);
    }
    add_figures(&storms, plan, &mut outcome);
    let doubts: Vec<_> = storms.into_iter().map(|storm| storm.doubts).collect();
    tell_doubts(&doubts, "storms", &mut outcome);
    Ok(outcome)
}

fn one_storm(
    bench: &Bench,
    plan: &StormPlan,
    seating: Seating,
    run: usize,
    outcome: &mut Outcome,
) -> Result<Storm> {
    let mut stage = bench.default_stage()?;
    outcome.server.clone_from(&stage.server.command);
    let (mut receivers, _) = bench.idle_receivers(&stage, seating, plan.clients)?;
    receivers.connect().context("connecting to the server")?;
    receivers.begin(0, false)?;
    let publisher = stage.publisher(seating)?;
    let metronome = Metronome::start(Rhythm::steady(plan.rate), plan.rooms, plan.bytes, publisher)?;
    let (pace_ns, retry_ns) = (plan.pace.as_nanos() as u64, plan.retry.as_nanos() as u64);
    receivers.expect_returns(Return { pace_ns, retry_ns, timetable: metronome.timetable })?;
    std::thread::sleep(bench.common.warm_up);
    let (mut counts, calm) = receivers.take()?;

    let netstat = Netstat::read()?;
    let meter = bench.meter(&stage, &receivers);
    let (cpu_before_ns, before) = (meter.server_cpu_ns()?, meter.read()?);
    let cut_ns = sys::monotonic_ns();
    let seconds_since_cut = |at_ns: u64| at_ns.saturating_sub(cut_ns) as f64 / 1e9;
    let (ready_seconds, cpu_before_ns, before) = match plan.cut {
        Cut::Clients => {
            receivers.cut()?;
            (None, cpu_before_ns, before)
        }
        Cut::Server => {
            bench.kill_and_restart(&mut stage)?;
            let ready_seconds = seconds_since_cut(sys::monotonic_ns());
            // A new process: its clock began at 0, and what it took to start is part of the storm.
            (Some(ready_seconds), 0, bench.meter(&stage, &receivers).read()?)
        }
    };
    wait_back(plan, &mut stage, &receivers, &metronome)?;
    // Of now: those of before may be gone, and a server may have children that do its work.
    let meter = bench.meter(&stage, &receivers);
    let cpu_ns = meter.server_cpu_ns()?.saturating_sub(cpu_before_ns);
    let used = meter.between(&before, &meter.read()?);
    wait_heard(plan, &receivers);
    let sent = metronome_heads(metronome, &receivers)?;
    let settled = settle(&mut receivers, &sent.heads)?;
    let (after, storm) = receivers.take()?;
    counts.merge(&after);
    let returned = receivers.returned()?;
    let netstat = Netstat::read()?.since(&netstat);
    stage.server.check_alive()?;

    let owed = sent.owed(seating, plan.clients);
    let account = Account::of(owed, counts, settled);
    let open = receivers.open();
    let flaws = account.flaws().into_iter().chain(flaws_of(plan, open, &account.counts));
    outcome.other_flaws.extend(flaws.map(|flaw| format!("run {run}: {flaw}")));
    let found = Storm {
        last_back_seconds: seconds_since_cut(returned.last_back_ns),
        ready_seconds,
        cpu_us_per_handshake: cpu_ns as f64 / 1e3 / returned.back.max(1) as f64,
        handshakes: percentiles(&returned.dialed.handshakes),
        away: percentiles(&returned.away),
        firsts: percentiles(&returned.firsts),
        returned,
        netstat,
        doubts: {
            let sent = Sent { late_max_us: sent.late_max_us, ..Sent::default() };
            // What was lost or closed is judged by the account.
            doubts(&used, &Counts::default(), &sent, 0, OURS)
        },
    };
    outcome.details.push(json!({
        "run": run, "last_back_seconds": found.last_back_seconds, "ready_seconds": ready_seconds,
        "server_cpu_seconds": cpu_ns as f64 / 1e9, "used": used, "handshake": found.handshakes, "away": found.away,
        "first_delivery_after_101": found.firsts, "ended": found.returned.ended, "back": found.returned.back,
        "heard": found.returned.heard, "open_in_the_end": open, "refused": found.returned.dialed.refused,
        "broken": found.returned.dialed.broken, "retried": found.returned.dialed.retried,
        "errors": found.returned.dialed.errors, "netstat": netstat, "account": account,
        "latency_before": calm.percentiles(), "latency_during_and_after": storm.percentiles(),
        "messages": sent.messages, "doubts": found.doubts,
    }));
    if sys::interrupted() {
        outcome.notes.push(format!("interrupted in run {run}: {open} of {} were back", plan.clients));
    }
    Ok(found)
}

/// Until all are back, or given up.
fn wait_back(
    plan: &StormPlan,
    stage: &mut Stage,
    receivers: &Receivers,
    metronome: &Metronome,
) -> Result<()> {
    let (started, mut ticker) = (Instant::now(), Ticker::new());
    let is_back = || receivers.back() >= plan.clients as u64 && receivers.open() == plan.clients as u64;
    while !is_back() && !sys::interrupted() && started.elapsed() < plan.pace + plan.give_up {
        stage.server.check_alive()?;
        if metronome.has_ended() {
            bail!("publishing ended in the middle of the storm");
        }
        let elapsed = started.elapsed().as_secs();
        ticker.tick(|| format!("{elapsed} s: {} of {} clients are back", receivers.open(), plan.clients));
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Until all who are back have heard something, or nothing more is to be expected: a room's turn comes each
/// `rooms / rate` seconds.
fn wait_heard(plan: &StormPlan, receivers: &Receivers) {
    let turn = Duration::from_secs_f64(2.0 * f64::from(plan.rooms) / plan.rate);
    let (mut seen, mut since) = (receivers.heard(), Instant::now());
    while receivers.heard() < receivers.back() && since.elapsed() < turn + PATIENCE && !sys::interrupted() {
        std::thread::sleep(LOOK);
        if receivers.heard() != seen {
            (seen, since) = (receivers.heard(), Instant::now());
        }
    }
}

/// What was published in all.
pub(super) struct Published {
    /// Messages.
    pub messages: u64,
    /// Messages of each room.
    pub heads: Vec<u32>,
    /// The longest that one left after it was due, in microseconds.
    pub late_max_us: f64,
}

impl Published {
    /// Copies owed to `clients` connections that are seated so.
    pub fn owed(&self, seating: Seating, clients: usize) -> u64 {
        let members = seating.members(0..clients);
        self.heads.iter().zip(members).map(|(head, members)| u64::from(*head) * u64::from(members)).sum()
    }
}

/// Stops publishing and tells what left.
pub(super) fn metronome_heads(metronome: Metronome, receivers: &Receivers) -> Result<Published> {
    let timetable = metronome.timetable;
    let sent = metronome.stop().with_context(|| format!("with {} clients there", receivers.open()))?;
    let heads = timetable.heads(sent.messages);
    Ok(Published { messages: sent.messages, heads, late_max_us: sent.late_max_us })
}

fn flaws_of(plan: &StormPlan, open: u64, counts: &Counts) -> Vec<String> {
    let mut flaws = Vec::new();
    if open != plan.clients as u64 && !sys::interrupted() {
        flaws.push(format!(
            "{open} of {} clients are back after {:?}",
            plan.clients,
            plan.pace + plan.give_up
        ));
    }
    // A server that dies says nothing to anybody, once; one that lives has no reason to close who has just come back.
    let clients = plan.clients as u64;
    let is_due =
        |(code, count): &(&String, &u64)| plan.cut == Cut::Server && *code == "none" && **count <= clients;
    let closed: Vec<_> = counts.closes.iter().filter(|close| !is_due(close)).collect();
    if !closed.is_empty() {
        flaws.push(format!("connections were closed: {closed:?}"));
    }
    flaws
}

fn percentiles(pairs: &LatencyPairs) -> Percentiles {
    let mut latencies = Latencies::new();
    latencies.merge(pairs);
    latencies.percentiles()
}

fn add_figures(storms: &[Storm], plan: &StormPlan, outcome: &mut Outcome) {
    let mut add = |name: &str, unit, value: &dyn Fn(&Storm) -> f64| {
        outcome.figures.push(Figure::new(name, unit, storms.iter().map(value).collect()));
    };
    add("the last is back after", "s", &|storm| storm.last_back_seconds);
    if plan.cut == Cut::Server {
        add("the server is ready again after", "s", &|storm| storm.ready_seconds.unwrap_or(0.0));
    }
    add("handshake p50", "ms", &|storm| storm.handshakes.p50_us / 1e3);
    add("handshake p99", "ms", &|storm| storm.handshakes.p99_us / 1e3);
    add("handshake max", "ms", &|storm| storm.handshakes.max_us / 1e3);
    add("away p50, from the end to the 101", "ms", &|storm| storm.away.p50_us / 1e3);
    add("away p99", "ms", &|storm| storm.away.p99_us / 1e3);
    add("first delivery after the 101 p50", "ms", &|storm| storm.firsts.p50_us / 1e3);
    add("first delivery after the 101 max", "ms", &|storm| storm.firsts.max_us / 1e3);
    add("server CPU per handshake, all of the storm's", "us", &|storm| storm.cpu_us_per_handshake);
    add("attempts refused", "", &|storm| storm.returned.dialed.refused as f64);
    add("attempts that broke", "", &|storm| storm.returned.dialed.broken as f64);
    add("attempts repeated", "", &|storm| storm.returned.dialed.retried as f64);
    add("listen queue overflows", "", &|storm| storm.netstat.listen_overflows as f64);
    add("connections dropped by listeners", "", &|storm| storm.netstat.listen_drops as f64);
    add("SYNs sent again", "", &|storm| storm.netstat.syn_retransmits as f64);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(cut: Cut) -> StormPlan {
        StormPlan {
            clients: 20,
            rooms: 1,
            rate: 10.0,
            bytes: 64,
            cut,
            pace: Duration::ZERO,
            retry: Duration::ZERO,
            give_up: Duration::ZERO,
        }
    }

    #[test]
    fn a_server_that_dies_ends_each_client_once_and_one_that_lives_none() {
        let closed = |cut, code: &str, count| {
            let closes = [(code.to_owned(), count)].into();
            flaws_of(&plan(cut), 20, &Counts { closes, ..Counts::default() }).len()
        };
        assert_eq!([closed(Cut::Server, "none", 20), closed(Cut::Server, "none", 21)], [0, 1]);
        assert_eq!([closed(Cut::Server, "1011", 1), closed(Cut::Clients, "none", 1)], [1, 1]);
    }
}
