//! What the relay pays per publication: CPU time of its own thread, on a core of its own, as the kernel counts it.
//!
//! Publications come as fast as the relay takes them, from a stand-in that only pushes bytes or through a real Redis. The
//! server's counters are read for two things that nobody outside can see: that every publication had its place, and how
//! the relay itself divides its time. The figure is the kernel's.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use statistics::{Interval, interval};

use crate::cli::{Crowd, PublicationSource, PublishVia};
use crate::figure::{Figure, median};
use crate::measure::{Meter, ThreadMeter};
use crate::process::{Places, Redis, Server};
use crate::publisher::{Author, Publish, RedisPublisher};
use crate::receivers::{Audience, Receivers};
use crate::replay::Replay;
use crate::scenario::{CPU_PER_DELIVERY, Outcome, crowd_json, crowd_text, progress, seating};
use crate::schedule::Load;
use crate::stage::{Bench, PATIENCE, Stage};
use crate::sys;
use crate::tally::Seating;

/// corecast with one shard and a relay on a core of its own, the second of `{cores}`.
const COMMAND: &str = "{corecast} serve --listen {listen} --ports-file {ports_file} --shards {shards} --cores {cores} \
                       --redis {redis} --config {config}";
/// As `shards/src/net/server.rs` calls it.
const RELAY_THREAD: &str = "relay";
/// Publications that are not yet with their members: they fill four of the relay's reads (64 KiB are 450 of 64 B).
const UNDER_WAY_MAX: u64 = 2_048;
/// How far a member may be behind in one room before the server counts it as slow: never here, where a receiver that waits
/// for the generator's core is no news.
const SLOW_FRAMES: u64 = 8 * UNDER_WAY_MAX;
/// Publications between two looks at what is under way.
const LOOK_EVERY: u64 = 256;
/// All that was pushed is placed within this time, or was lost.
const PLACED_TIMEOUT: Duration = Duration::from_secs(10);
/// The relay settles its own accounts each 100 ms.
const SETTLED_AFTER: Duration = Duration::from_millis(250);
/// JSON field of the enveloped publications.
const FIELD: &str = "data";

/// How publications lie in what Redis sends, and how the relay subscribes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form {
    is_enveloped: bool,
    is_on_demand: bool,
}

const FORMS: [Form; 4] = [
    Form { is_enveloped: false, is_on_demand: false },
    Form { is_enveloped: true, is_on_demand: false },
    Form { is_enveloped: false, is_on_demand: true },
    Form { is_enveloped: true, is_on_demand: true },
];

impl Form {
    fn config(self, prefix: &str) -> String {
        let verb = if self.is_on_demand {
            format!("subscribe {prefix}{{1}}")
        } else {
            format!("psubscribe {prefix}*")
        };
        let deliver = if self.is_enveloped { format!("field:{FIELD}") } else { "raw".to_owned() };
        format!(
            "[[route]]\npath = \"/ws\"\nroom = \"{{query.room}}\"\npublish = \"none\"\n\n\
             [[source]]\nredis = \"{verb}\"\nroom = \"{{1}}\"\ndeliver = \"{deliver}\"\n\n\
             [[room]]\nname = \"*\"\nslow = {{ policy = \"disconnect\", frames = {SLOW_FRAMES}, bytes = \"16MiB\", age = \"10s\" }}\n"
        )
    }

    fn field(self) -> Option<&'static str> {
        self.is_enveloped.then_some(FIELD)
    }
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let deliver = if self.is_enveloped { "field:data" } else { "raw" };
        write!(f, "{deliver}, {}", if self.is_on_demand { "on demand" } else { "pattern" })
    }
}

/// One server with the relay on a core of its own, members in its rooms, and what pushes to it.
struct Bed {
    // Receivers hang up before the server goes.
    receivers: Option<Receivers>,
    relay: ThreadMeter,
    meter: Meter,
    author: Author,
    publisher: Box<dyn Publish>,
    server: Server,
    _redis: Option<Redis>,
    members: u64,
}

/// One measured window.
struct Window {
    cpu_us: f64,
    per_second: f64,
    busy_share: f64,
    stages: BTreeMap<String, f64>,
    raw: Value,
    flaw: Option<String>,
}

/// The parameters of [`run`].
#[derive(Debug, Clone)]
pub struct Plan {
    /// Rooms that publications go to in turn, one measurement each.
    pub rooms: Vec<u32>,
    /// Members of each room, one measurement each.
    pub members: Vec<u32>,
    /// Payload bytes, without envelope.
    pub bytes: usize,
    /// Publications of a window.
    pub publications: u64,
    /// What they come from.
    pub source: PublicationSource,
}

/// Connections of one server: more would measure the generator.
const CONNECTIONS_MAX: u64 = 12_000;

/// Name of the figure of one case.
pub fn case_figure(form: &str, rooms: u32, members: u32) -> String {
    format!("{form}, {rooms} rooms x {members} members: relay CPU per publication")
}

/// CPU of the relay's thread per publication, for each number of rooms and members and each [`Form`]; forms take turns.
pub fn run(bench: &Bench, plan: &Plan) -> Result<Outcome> {
    let common = &bench.common;
    if common.server.is_some() || common.pid.is_some() || common.preset.is_some() {
        bail!(
            "ingest knows corecast's relay by its thread and configures it: no --server, --pid or --preset"
        );
    }
    if plan.publications == 0 || plan.rooms.contains(&0) {
        bail!("{} publications to {:?} rooms are none", plan.publications, plan.rooms);
    }
    let Plan { bytes, publications, source, .. } = plan;
    let title = format!("ingest, {publications} publications of {bytes} B a window, from {source}");
    let parameters = json!({
        "rooms": plan.rooms, "members": plan.members, "bytes": bytes, "publications": publications,
        "source": source.to_string(), "under_way_max": UNDER_WAY_MAX,
    });
    let mut outcome = Outcome::new(title, parameters, "");
    for (rooms, members) in plan.rooms.iter().flat_map(|r| plan.members.iter().map(move |m| (*r, *m))) {
        if u64::from(rooms) * u64::from(members) <= CONNECTIONS_MAX {
            run_case(bench, plan, rooms, members, &mut outcome)?;
        }
    }
    Ok(outcome)
}

fn run_case(bench: &Bench, plan: &Plan, rooms: u32, members: u32, outcome: &mut Outcome) -> Result<()> {
    // Nobody subscribes to the rooms of nobody.
    let forms: Vec<Form> = FORMS.into_iter().filter(|form| members > 0 || !form.is_on_demand).collect();
    let mut beds =
        forms.iter().map(|form| Bed::make(bench, plan, *form, rooms, members)).collect::<Result<Vec<_>>>()?;
    outcome.server.clone_from(&beds[0].server.command);
    let mut windows: Vec<Vec<Window>> = forms.iter().map(|_| Vec::new()).collect();
    let case = format!("{}, {rooms} rooms x {members}", outcome.title);
    for bed in &mut beds {
        bed.window(plan.publications / 4 + 1)?;
    }
    'runs: for run in 1..=bench.common.runs {
        if sys::interrupted() {
            outcome.notes.push(format!("interrupted after {} of {} runs", run - 1, bench.common.runs));
            break;
        }
        progress(&case, run, bench.common.runs);
        for (index, bed) in beds.iter_mut().enumerate() {
            let window = bed.window(plan.publications)?;
            if sys::interrupted() {
                // What was pushed of it is no window.
                outcome.notes.push(format!("interrupted in run {run} of {}", bench.common.runs));
                break 'runs;
            }
            if let Some(flaw) = &window.flaw {
                // A server that has lost something once is no longer what was asked for.
                outcome.other_flaws.push(format!("{}, {rooms} rooms x {members}: {flaw}", forms[index]));
                break 'runs;
            }
            let head =
                json!({"form": forms[index].to_string(), "rooms": rooms, "members": members, "run": run});
            outcome.details.push(json!({"case": head, "window": window.raw}));
            windows[index].push(window);
        }
    }
    for (form, windows) in forms.iter().zip(&windows) {
        let of = |value: fn(&Window) -> f64| windows.iter().map(value).collect::<Vec<_>>();
        let name = case_figure(&form.to_string(), rooms, members);
        outcome.figures.push(Figure::new(name, "us", of(|window| window.cpu_us)));
        outcome.notes.push(format!(
            "{form}, {rooms} rooms x {members} members: {:.0} /s in a second of the relay's core; {:.0} /s came, the \
             relay {:.0} % busy; of its time, by its own account: {}",
            1e6 / median(&of(|window| window.cpu_us)).unwrap_or(f64::INFINITY),
            median(&of(|window| window.per_second)).unwrap_or(0.0),
            median(&of(|window| window.busy_share)).unwrap_or(0.0) * 100.0,
            shares(windows),
        ));
    }
    Ok(())
}

/// The stages of all windows together, in percent.
fn shares(windows: &[Window]) -> String {
    let mut sums = BTreeMap::<&str, f64>::new();
    for (stage, seconds) in windows.iter().flat_map(|window| &window.stages) {
        *sums.entry(stage).or_default() += seconds;
    }
    let all: f64 = sums.values().sum();
    let told: Vec<_> =
        sums.iter().map(|(stage, seconds)| format!("{stage} {:.0} %", seconds / all * 100.0)).collect();
    told.join(", ")
}

impl Bed {
    fn make(bench: &Bench, plan: &Plan, form: Form, rooms: u32, members: u32) -> Result<Self> {
        let common = &bench.common;
        let prefix = &common.channel_prefix;
        let (replay, redis) = match plan.source {
            PublicationSource::Replay => (Some(Replay::start()?), None),
            PublicationSource::Redis => (None, Some(bench.redis()?)),
        };
        let address =
            replay.as_ref().map(|replay| replay.address).or(redis.as_ref().map(|redis| redis.address));
        let address = address.context("no Redis")?;
        // The shard beside the generator, so that nothing but the relay runs on the server's core.
        let shard_core = common.generator_cores.first().context("no core for the shard")?;
        let relay_core = common.server_cores.first().context("no core for the relay")?;
        let places = Places {
            redis: address.to_string(),
            shards: 1,
            cores: vec![*shard_core, *relay_core],
            config: form.config(prefix),
        };
        let server = bench.start_server(COMMAND, &places)?;
        let relay =
            ThreadMeter::of(server.pid, RELAY_THREAD).context("the relay has no thread of its own")?;
        let meter = Meter::new(server.pid, Vec::new(), &[*relay_core], &common.generator_cores);
        let seating = Seating { rooms, rooms_per_connection: 1 };
        let connections = rooms as usize * members as usize;
        let mut receivers = None;
        if connections > 0 {
            let audience =
                Audience { address: server.address, path: common.path(false), seating, connections };
            let mut crew = Receivers::start(&bench.crewing(), audience)?;
            crew.connect().context("connecting to the server")?;
            receivers = Some(crew);
        }
        if let Some(replay) = &replay {
            replay.wait_subscribed(if form.is_on_demand { rooms as usize } else { 1 })?;
        }
        let pattern = format!("{prefix}*");
        let pattern = (!form.is_on_demand).then_some(pattern.as_str());
        let publisher: Box<dyn Publish> = match &replay {
            Some(replay) => Box::new(replay.publisher(prefix, pattern, form.field())),
            None => Box::new(RedisPublisher::connect(address, prefix, form.field())?),
        };
        let author = Author::new(rooms, plan.bytes);
        let members = u64::from(members);
        Ok(Self { receivers, relay, meter, author, publisher, server, _redis: redis, members })
    }

    /// Pushes so many publications as fast as they are taken, and waits until all have arrived.
    fn window(&mut self, publications: u64) -> Result<Window> {
        if let Some(receivers) = &mut self.receivers {
            receivers.begin(self.author.next(), false)?;
        }
        let (before, reading) = (Counters::scrape(self.server.address)?, self.meter.read()?);
        let (cpu_before, since) = (self.relay.cpu_ns()?, Instant::now());
        self.push(publications)?;
        let due = before.placed() + publications;
        let placed = || Ok::<_, anyhow::Error>(Counters::scrape(self.server.address)?.placed() >= due);
        let deadline = Instant::now() + PLACED_TIMEOUT;
        while !placed()? && Instant::now() < deadline && !sys::interrupted() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let seconds = since.elapsed().as_secs_f64();
        let cpu_ns = self.relay.cpu_ns()? - cpu_before;
        let used = self.meter.between(&reading, &self.meter.read()?);
        std::thread::sleep(SETTLED_AFTER);
        let after = Counters::scrape(self.server.address)?;
        let placed = after.placed() - before.placed();
        let mut flaw = (placed != publications)
            .then(|| format!("{publications} publications were pushed and {placed} had their place"));
        let mut counts = Value::Null;
        if let Some(receivers) = &mut self.receivers {
            let expected = publications * self.members;
            receivers.wait_delivered(expected, PATIENCE);
            let (found, _) = receivers.end()?;
            if found.delivered != expected || !found.is_clean() {
                flaw = Some(format!("{expected} deliveries were due: {found:?}"));
            }
            counts = serde_json::to_value(&found)?;
        }
        self.server.check_alive()?;
        let stages = after.stages_since(&before);
        let cpu_us = cpu_ns as f64 / 1e3 / publications as f64;
        let raw = json!({
            "publications": publications, "placed": placed, "unrouted": after.unrouted - before.unrouted,
            "seconds": seconds, "relay_cpu_seconds": cpu_ns as f64 / 1e9, "cpu_us_per_publication": cpu_us,
            "stage_seconds": stages, "deliveries": counts, "used": used,
        });
        let per_second = publications as f64 / seconds;
        Ok(Window { cpu_us, per_second, busy_share: cpu_ns as f64 / 1e9 / seconds, stages, raw, flaw })
    }

    fn push(&mut self, publications: u64) -> Result<()> {
        let delivered = |receivers: &Option<Receivers>| receivers.as_ref().map(Receivers::delivered);
        let mut progress = (0, Instant::now());
        for pushed in 0..publications {
            if pushed % LOOK_EVERY == 0 {
                self.publisher.flush()?;
                while let Some(delivered) = delivered(&self.receivers)
                    && pushed > delivered / self.members + UNDER_WAY_MAX
                {
                    if progress.0 != delivered {
                        progress = (delivered, Instant::now());
                    } else if progress.1.elapsed() > PATIENCE || sys::interrupted() {
                        return Ok(());
                    }
                    std::thread::sleep(Duration::from_micros(50));
                }
            }
            let (room, payload) = self.author.write(sys::monotonic_ns());
            self.publisher.publish(room, payload)?;
        }
        self.publisher.flush()
    }
}

/// What the server says of itself, of which this scenario needs three families.
#[derive(Debug, Default)]
struct Counters {
    received: u64,
    unrouted: u64,
    busy_seconds: BTreeMap<String, f64>,
}

impl Counters {
    fn scrape(address: SocketAddrV4) -> Result<Self> {
        let mut stream = TcpStream::connect(address).context("asking for /metrics")?;
        stream.set_read_timeout(Some(PLACED_TIMEOUT))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("reading /metrics")?;
        let (head, page) = answer.split_once("\r\n\r\n").context("/metrics was answered with half a head")?;
        if !head.starts_with("HTTP/1.1 200") {
            bail!("/metrics was answered {:?}", head.lines().next().unwrap_or_default());
        }
        Ok(Self::parse(page))
    }

    fn parse(page: &str) -> Self {
        let mut counters = Self::default();
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let (family, labels) = series.split_once('{').unwrap_or((series, ""));
            let count = || value.parse::<u64>().unwrap_or(0);
            match family {
                "corecast_publications_received_total" => counters.received += count(),
                "corecast_publications_unrouted_total" => counters.unrouted += count(),
                "corecast_relay_busy_seconds_total" => {
                    let stage = labels.split('"').nth(1).unwrap_or_default().to_owned();
                    counters.busy_seconds.insert(stage, value.parse().unwrap_or(0.0));
                }
                _ => {}
            }
        }
        counters
    }

    /// Publications that the relay has handled: into a room, or into none because nobody is there.
    fn placed(&self) -> u64 {
        self.received + self.unrouted
    }

    fn stages_since(&self, before: &Self) -> BTreeMap<String, f64> {
        let spent = |(stage, now): (&String, &f64)| {
            (stage.clone(), now - before.busy_seconds.get(stage).copied().unwrap_or(0.0))
        };
        self.busy_seconds.iter().map(spent).collect()
    }
}

/// Of [`preset_cost`]: the median of the pairs' ratios.
pub const COST_OF_FIELD: &str = "CPU per delivery, field:data over raw";

/// CPU per delivery with `deliver = "field:data"` beside `raw`, in pairs: `rate` messages a second, `group` at once, to two
/// servers that take turns on the same core. Not a closed loop: how many messages a turn gathers would depend on the
/// generator, and the cost of a delivery hangs on that.
pub fn preset_cost(bench: &Bench, crowd: &Crowd, rate: f64, group: u64) -> Result<Outcome> {
    if rate <= 0.0 || group == 0 {
        bail!("{rate} messages a second in groups of {group} never leave");
    }
    let title = format!("field:data beside raw, {}, {rate}/s in groups of {group}", crowd_text(crowd));
    let parameters = json!({"crowd": crowd_json(crowd), "rate": rate, "group": group});
    let mut outcome = Outcome::new(title, parameters, "");
    if bench.common.publish != PublishVia::Redis {
        bail!("envelopes come through Redis: --publish redis");
    }
    let forms = [FORMS[0], FORMS[1]];
    let with_field = |form: Form| {
        bench.with(crate::cli::Common { envelope: form.field().map(str::to_owned), ..bench.common.clone() })
    };
    let common = &bench.common;
    let make = |form: Form| -> Result<(crate::stage::Side, Stage)> {
        let bench = with_field(form);
        let stage =
            bench.stage_with(common.shards, &common.server_cores, &form.config(&common.channel_prefix))?;
        let side = bench.server_side(&stage, seating(crowd)?, crowd.clients, crowd.bytes)?;
        Ok((side, stage))
    };
    let mut sides = [make(forms[0])?, make(forms[1])?];
    outcome.server.clone_from(&sides[0].1.server.command);
    for (side, _) in &mut sides {
        side.measure(Load::Open { rate, burst: group, duration_ns: common.warm_up_ns() })?;
    }
    let mut costs = [Vec::new(), Vec::new()];
    for run in 1..=common.runs {
        if sys::interrupted() {
            outcome.notes.push(format!("interrupted after {} of {} runs", run - 1, common.runs));
            break;
        }
        progress(&outcome.title, run, common.runs);
        // Who goes first changes, so that what drifts drifts for both.
        for at in if run % 2 == 0 { [1, 0] } else { [0, 1] } {
            let (side, stage) = &mut sides[at];
            let phase = side.measure(Load::Open { rate, burst: group, duration_ns: common.duration_ns() })?;
            stage.server.check_alive()?;
            costs[at].push(phase.cpu_us_per_delivery);
            outcome.phases.push(phase);
        }
    }
    let ratios: Vec<f64> = costs[1].iter().zip(&costs[0]).map(|(field, raw)| field / raw).collect();
    let [raw, field] = costs;
    let pairs: Vec<(f64, f64)> = raw.iter().copied().zip(field.iter().copied()).collect();
    if let Some(Interval { low, high, confidence, .. }) = interval(&pairs) {
        outcome.notes.push(format!(
            "{} pairs: the true ratio lies between {low:.3} and {high:.3} in {:.0} of 100 such runs",
            pairs.len(),
            confidence * 100.0,
        ));
    }
    outcome.figures.push(Figure::new(format!("{CPU_PER_DELIVERY}, raw"), "us", raw));
    outcome.figures.push(Figure::new(format!("{CPU_PER_DELIVERY}, field:data"), "us", field));
    outcome.figures.push(Figure::new(COST_OF_FIELD, "x", ratios));
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_read_for_what_was_placed_and_where_time_went() {
        let page = "# HELP corecast_publications_received_total Something 9\n\
                    corecast_publications_received_total{source=\"client\"} 1\n\
                    corecast_publications_received_total{source=\"psubscribe room:*\"} 40\n\
                    corecast_publications_unrouted_total 2\n\
                    corecast_relay_busy_seconds_total{stage=\"parse\"} 0.5\n\
                    corecast_deliveries_total 77\n";
        let counters = Counters::parse(page);
        assert_eq!(counters.placed(), 43);
        let before = Counters::parse("corecast_relay_busy_seconds_total{stage=\"parse\"} 0.125\n");
        assert_eq!(counters.stages_since(&before), BTreeMap::from([("parse".to_owned(), 0.375)]));
    }

    #[test]
    fn a_form_is_configured_as_it_is_named() {
        assert!(
            FORMS[3]
                .config("room:")
                .contains("redis = \"subscribe room:{1}\"\nroom = \"{1}\"\ndeliver = \"field:data\"")
        );
        assert!(
            FORMS[0]
                .config("room:")
                .contains("redis = \"psubscribe room:*\"\nroom = \"{1}\"\ndeliver = \"raw\"")
        );
        assert_eq!(FORMS[1].to_string(), "field:data, pattern");
    }
}
