//! `corecast clients`: N WebSocket clients in one process that measure every delivery and write it down.
//!
//! A few threads hold them, each with an epoll instance of its own ([`receiver`]); one writes the log ([`log`]); the main
//! thread watches, and ends the run. A lost connection is not opened again: it is part of what is measured.

mod log;
mod receiver;
mod seat;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Args;
use hdrhistogram::Histogram;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::client::{Target, duration, rate};
use crate::connection;
use crate::exit::{self, Failure};
use crate::output::complain;
use crate::preset::{self, Preset};
use crate::record::{Note, millis};
use crate::redis::TlsArgs;
use crate::signals;
use log::{Entry, Log};
use receiver::{Progress, Receiver};
use seat::Way;

/// Descriptors that are no client: standard streams, log, epoll instances.
const DESCRIPTORS_SPARE: u64 = 64;
/// How often the main thread looks how far the others are.
const WATCH: Duration = Duration::from_millis(20);
/// More threads than this only take turns on the cores of a small machine.
const THREADS_DEFAULT_MAX: usize = 4;

/// Connects N clients, measures every delivery, and writes it down for `corecast report`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  corecast clients 50                                  ws://localhost:8000/ws, until Ctrl-C; then: corecast report
  corecast clients 10000 --events 50 --idle 10s        ends when everybody has 50 events, or 10 s after the last one
  corecast clients 200 --preset event-fanout --room r --duration 30s

A lost connection is counted and named, not opened again. Latency is arrival minus the event's own stamp
(published_at_ms, ts, timestamp, ...), so both clocks must agree; a stamp in whole milliseconds adds up to 1 ms.

Exit codes: 0 ended as asked, 1 clients were lost or not connected yet or --events not reached, 2 usage, 69 no server there
or it took only some of the clients, 77 refused or too few descriptors.")]
pub struct ClientsArgs {
    /// How many
    #[arg(value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    clients: u32,
    /// The server, as ws://HOST:PORT/ws, http://HOST:PORT or HOST:PORT
    #[arg(long, value_name = "URL", conflicts_with = "preset")]
    url: Option<String>,
    /// Find the server where this preset puts it ($ADDR, $PORT or the preset's own port) [default: broadcaster]
    #[arg(long, value_name = "NAME", value_parser = preset::names())]
    preset: Option<String>,
    /// Room that all of them join, where the server asks for one
    #[arg(long, value_name = "ROOM")]
    room: Option<String>,
    /// Folder for the log, a new file for each run
    #[arg(long, value_name = "DIR", default_value = "logs")]
    logs: PathBuf,
    /// Connects a second
    #[arg(long, value_name = "R", value_parser = rate, default_value = "2000")]
    connect_rate: f64,
    /// Threads that hold the clients [default: one per core, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: Option<u16>,
    /// Written when all are connected, as JSON {"pid","clients","log"}; removed at the end
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// End this long after all are connected
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    duration: Option<Duration>,
    /// End when every client has received this many; the exit code is 1 if the run ends before
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    events: Option<u64>,
    /// End when this long nobody has received anything, counted from the first delivery on
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    idle: Option<Duration>,
}

/// Runs until a signal, `--duration`, `--events`, `--idle`, or the loss of all clients.
///
/// # Errors
/// Clients that could not all be connected, logs that can't be written.
pub fn run(args: ClientsArgs) -> anyhow::Result<ExitCode> {
    let way = Arc::new(way(&args)?);
    raise_descriptor_limit(args.clients)?;
    let stop = signals::stop_flag()?;
    let threads = args.threads();
    let log = create_log(&args, &way, threads)?;
    let progress = Arc::new(Progress::default());
    let began_at = Instant::now();
    let receivers = (0..threads)
        .map(|thread| {
            let receiver = Receiver {
                way: Arc::clone(&way),
                progress: Arc::clone(&progress),
                log: log.sender.clone(),
                clients: (0..args.clients).skip(thread).step_by(threads).collect(),
                connect_interval: Duration::try_from_secs_f64(threads as f64 / args.connect_rate)
                    .unwrap_or(Duration::MAX),
                events: args.events,
            };
            thread::Builder::new().name(format!("clients-{thread}")).spawn(move || receiver.run())
        })
        .collect::<io::Result<Vec<_>>>()
        .context("can't start a thread")?;
    let watch = Watch { args: &args, url: &way.url, log: &log, progress: &progress, stop: &stop, began_at };
    let ended = watch.run();
    progress.stop.store(true, Ordering::Relaxed);
    for receiver in receivers {
        let died = || anyhow::anyhow!("a thread that holds clients ended badly: this is a fault of corecast");
        receiver.join().map_err(|_| died())?.context("epoll failed")?;
    }
    if let Some(path) = &args.ready_file {
        // It is there only if all were connected.
        let _ = fs::remove_file(path);
    }
    finish(&args, log, &progress, ended)
}

impl ClientsArgs {
    fn threads(&self) -> usize {
        let cores = || thread::available_parallelism().map_or(1, usize::from).min(THREADS_DEFAULT_MAX);
        self.threads.map_or_else(cores, usize::from).min(self.clients as usize)
    }

    fn preset_name(&self) -> Option<&str> {
        match self.url {
            Some(_) => None,
            None => Some(self.preset.as_deref().unwrap_or("broadcaster")),
        }
    }
}

fn way(args: &ClientsArgs) -> anyhow::Result<Way> {
    let preset = args.preset_name().map(|name| Preset::load(name, None, &TlsArgs::default())).transpose()?;
    let target = match (&preset, &args.url) {
        (Some(preset), _) => preset.target()?,
        (None, url) => Target::parse(url.as_deref().unwrap_or_default())?,
    };
    let parameter = preset.as_ref().map_or(Some("room"), Preset::room_parameter);
    let parameters = match (parameter, args.room.as_deref()) {
        (Some(parameter), Some(room)) => vec![(parameter, room)],
        (None, Some(_)) => {
            return Err(Failure::usage("this preset's address asks for no room: leave out --room").into());
        }
        (Some(parameter), None) if preset.is_some() => {
            return Err(
                Failure::usage(format!("this preset wants a {parameter}: name it with --room")).into()
            );
        }
        (_, None) => Vec::new(),
    };
    let url = target.subscribe_url(&parameters);
    let request = connection::request(&url, None)?;
    // Which of the name's addresses answers; and if none does, this says so before anything is begun.
    let address = connection::connect(&target)?.peer_addr().context("a connection without a peer")?;
    Ok(Way { address, target, url, request })
}

fn raise_descriptor_limit(clients: u32) -> Result<(), Failure> {
    let mut limit = getrlimit(Resource::Nofile);
    let due = u64::from(clients) + DESCRIPTORS_SPARE;
    if limit.current.is_none_or(|current| current >= due) {
        return Ok(());
    }
    limit.current = limit.maximum;
    let raised = setrlimit(Resource::Nofile, limit);
    match (limit.maximum, raised) {
        (Some(maximum), _) if maximum < due => Err(Failure::new(
            exit::NO_PERMISSION,
            format!(
                "{clients} clients need {due} descriptors, the limit is {maximum}: raise it (ulimit -Hn), or start several \
                 processes with fewer each"
            ),
        )),
        (_, Err(error)) => {
            Err(Failure::new(exit::NO_PERMISSION, format!("the descriptor limit can't be raised ({error})")))
        }
        _ => Ok(()),
    }
}

fn create_log(args: &ClientsArgs, way: &Way, threads: usize) -> anyhow::Result<Log> {
    let started_at_ms = now_ms();
    let run = format!("{started_at_ms:.0}-{}", std::process::id());
    let head = Note::Run {
        run: run.clone(),
        started_at_ms,
        clients: args.clients,
        url: way.url.clone(),
        preset: args.preset_name().map(str::to_owned),
        room: args.room.clone(),
        events: args.events,
        threads,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    Log::create(&args.logs, &run, head).with_context(|| {
        format!("no log can be written in {}: name another folder with --logs", args.logs.display())
    })
}

fn now_ms() -> f64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// What the main thread looks at.
struct Watch<'a> {
    args: &'a ClientsArgs,
    url: &'a str,
    log: &'a Log,
    progress: &'a Progress,
    stop: &'a AtomicBool,
    began_at: Instant,
}

impl Watch<'_> {
    /// Returns why the run ended.
    ///
    /// # Errors
    /// Clients that could not all be connected, a ready file that can't be written.
    fn run(&self) -> anyhow::Result<&'static str> {
        let clients = u64::from(self.args.clients);
        while self.progress.connected.load(Ordering::Relaxed) < clients {
            if let Some((client, failure)) = self.progress.ends().refused.take() {
                let connected = self.progress.connected.load(Ordering::Relaxed);
                let sentence = format!("client {client} of {clients} ({connected} are connected): {failure}");
                return Err(Failure::new(failure.code, sentence).into());
            }
            if let Some(reason) = self.reason_to_stop() {
                return Ok(reason);
            }
            thread::sleep(WATCH);
        }
        self.announce()?;
        let ready_at = Instant::now();
        let (mut received, mut news_at) = (0, ready_at);
        loop {
            if let Some(reason) = self.reason_to_stop() {
                return Ok(reason);
            }
            if self.args.duration.is_some_and(|duration| ready_at.elapsed() >= duration) {
                return Ok("--duration");
            }
            let found = self.progress.received.load(Ordering::Relaxed);
            if found > received {
                (received, news_at) = (found, Instant::now());
            } else if received > 0 && self.args.idle.is_some_and(|idle| news_at.elapsed() >= idle) {
                return Ok("--idle");
            }
            thread::sleep(WATCH);
        }
    }

    fn reason_to_stop(&self) -> Option<&'static str> {
        let clients = u64::from(self.args.clients);
        let progress = self.progress;
        if self.stop.load(Ordering::Relaxed) {
            Some("a signal")
        } else if progress.log_failed.load(Ordering::Relaxed) {
            Some("the log can't be written")
        } else if progress.lost.load(Ordering::Relaxed) >= clients {
            Some("all clients are lost")
        } else if self.args.events.is_some() && progress.satisfied.load(Ordering::Relaxed) >= clients {
            Some("--events")
        } else {
            None
        }
    }

    fn announce(&self) -> anyhow::Result<()> {
        let log = self.log.path.display().to_string();
        self.log.sender.send(Entry::Note(Note::Ready { at_ms: now_ms() }));
        let seconds = self.began_at.elapsed().as_secs_f64();
        say(&format!("{} clients connected to {} in {seconds:.1} s, log {log}", self.args.clients, self.url));
        if let Some(path) = &self.args.ready_file {
            let content =
                serde_json::json!({ "pid": std::process::id(), "clients": self.args.clients, "log": log });
            write_whole(path, &format!("{content}\n"))
                .with_context(|| format!("can't write the ready file {}", path.display()))?;
        }
        Ok(())
    }
}

/// Written beside its place and renamed, so that whoever reads it reads all of it.
fn write_whole(path: &Path, content: &str) -> io::Result<()> {
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    fs::write(&beside, content).and_then(|()| fs::rename(&beside, path))
}

fn finish(
    args: &ClientsArgs,
    log: Log,
    progress: &Progress,
    ended: anyhow::Result<&'static str>,
) -> anyhow::Result<ExitCode> {
    let received = progress.received.load(Ordering::Relaxed);
    let lost = progress.lost.load(Ordering::Relaxed);
    let reason = match &ended {
        Ok(reason) => (*reason).to_owned(),
        Err(error) => format!("{error:#}"),
    };
    let (path, waits) = (log.path.clone(), log.waits());
    let end = Note::End { run: log.run.clone(), at_ms: now_ms(), received, lost, reason: reason.clone() };
    let latencies =
        log.finish(end).with_context(|| format!("the log {} can't be written", path.display()))?;
    ended?;
    let connected = progress.connected.load(Ordering::Relaxed);
    let clients = u64::from(args.clients);
    let who = if connected < clients { format!("{connected} of {clients}") } else { connected.to_string() };
    say(&format!("{who} clients received {received} deliveries and ended by {reason}"));
    if !latencies.is_empty() {
        say(&format!("latency {}", percentiles(&latencies)));
    }
    if waits > 0 {
        say(&format!("the log's disk was too slow {waits} times: latencies around these contain the wait"));
    }
    if connected < clients {
        complain!("corecast: {} clients were not connected yet", clients - connected);
    }
    for (how, count) in &progress.ends().lost {
        complain!("corecast: {count} clients lost: {how}");
    }
    let unsatisfied = args.events.is_some() && progress.satisfied.load(Ordering::Relaxed) < clients;
    if unsatisfied {
        let satisfied = progress.satisfied.load(Ordering::Relaxed);
        complain!(
            "corecast: {satisfied} of {} clients received the {} events due",
            args.clients,
            args.events.unwrap_or(0)
        );
    }
    let is_amiss = lost > 0 || unsatisfied || connected < clients;
    Ok(ExitCode::from(if is_amiss { exit::FAILED } else { 0 }))
}

fn percentiles(latencies: &Histogram<u64>) -> String {
    let at = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1e3;
    let max = latencies.max() as f64 / 1e3;
    format!("p50 {:.3} ms, p95 {:.3} ms, p99 {:.3} ms, max {max:.3} ms", at(0.5), at(0.95), at(0.99))
}

/// For a person; that nobody reads it is no fault.
fn say(sentence: &str) {
    let _ = writeln!(io::stdout(), "{sentence}");
}
