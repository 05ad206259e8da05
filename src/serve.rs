//! `corecast serve`: starts the engine, says what runs, waits for signals.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context;
use domains::{Registry, SchemaDomain};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shards::config::{BrokerChoice, Config, Loaded};
use shards::limits::BROKER_PATIENCE;
use shards::metrics::Metrics;
use shards::net::{Leave, LostThread, Passed, Server, StartError};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::activity::Activity;
use crate::configuration::refusal;
use crate::exit::{self, Failure};
use crate::hints;
use crate::manager::ServiceManager;
use crate::process::Process;
use crate::redis::check_tls;

/// How often the server is looked after: its threads, and the numbers of the process in /proc. More often where half of a
/// watchdog's time is less.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(10);
/// A server that has space for fewer than this was hardly meant to.
const FEW_CONNECTIONS: usize = 1000;
/// How often a server that waits for its broker looks for it.
const BROKER_POLL: Duration = Duration::from_millis(10);
/// What the end of a process takes beside its drain: last answers of Redis, logs, memory of many connections. A process that
/// takes longer hangs, and ends itself: where it has no service manager or its parent is gone, nobody else would.
const END_MARGIN: Duration = Duration::from_secs(5);
/// Whoever waits for its end is told to wait for so much longer.
pub const MANAGER_MARGIN: Duration = Duration::from_secs(5);
/// The first drains.
const SIGNALS_TO_STOP: u32 = 2;
/// How often a draining server is asked whether it has ended.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// Serves as the configuration says, on the sockets of `passed` where there are any, until a signal ends it.
///
/// # Errors
/// Whatever keeps it from starting: an address that can't be bound, a forbidden driver, a key file that can't be read. Then
/// a thread that ended before its time.
pub fn run(loaded: &Loaded, passed: Passed, process: Option<&Process>) -> anyhow::Result<ExitCode> {
    let config = &loaded.config;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let key = config.api_key_file.as_deref().map(read_key).transpose()?;
    for server in config.broker.servers() {
        check_tls(&server.target)?;
    }
    // Before any thread starts, so that none of them is interrupted.
    let (sender, said) = mpsc::channel();
    listen_for_signals(sender.clone(), process.is_some())?;
    let mut manager = process.map_or_else(ServiceManager::from_environment, Process::manager);
    if process.is_none() && !passed.listen.is_empty() {
        tracing::info!(
            sockets = passed.listen.len(),
            "the service manager passed sockets: --listen is not bound"
        );
    }
    let domains = domains_of(loaded)?;
    raise_descriptor_limit();
    let server = Server::start(config, key, domains, passed).map_err(|error| start_failure(error, loaded))?;
    // Before anybody is told that it serves.
    if let Some(path) = &config.ports_file {
        write_ports_file(path, &server)?;
    }
    announce(config, &server);
    if let Some(process) = process {
        process.listen(sender)?;
        wait_for_broker(&server);
    }
    manager.ready(&status(&server));
    let ended = serve(server, config, &said, &mut manager);
    remove_ports_file(config);
    ended.map(|()| ExitCode::SUCCESS)
}

/// As its shards do before they take clients: who is told that this process serves lets another one go for it.
fn wait_for_broker(server: &Server) {
    let began = Instant::now();
    while began.elapsed() < BROKER_PATIENCE && !server.setup.broker_is_known() {
        std::thread::sleep(BROKER_POLL);
    }
}

/// What ends a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// SIGTERM or SIGINT.
    Signal,
    /// The parent wants it to drain.
    Leave(Leave),
    /// The parent wants it to end at once.
    Stop,
}

fn serve(
    mut server: Server,
    config: &Config,
    said: &mpsc::Receiver<Said>,
    manager: &mut ServiceManager,
) -> anyhow::Result<()> {
    let first = match wait_for_word(said, &mut server, manager, config.report_interval) {
        Ok(first) => first,
        Err(lost) => {
            tracing::error!("{lost}: the process ends");
            return Err(lost.into());
        }
    };
    // A service manager may send its signal to a child too, before or after the parent's word: both are the first.
    let mut signals = u32::from(first == Said::Signal);
    let leave = match first {
        Said::Signal => Leave::ToSuccessor,
        Said::Leave(leave) => leave,
        Said::Stop => return Ok(()),
    };
    tracing::info!(seconds = config.drain.as_secs_f64(), "draining; a second signal ends at once");
    let due = Instant::now() + config.drain + END_MARGIN;
    manager.stopping(config.drain + END_MARGIN + MANAGER_MARGIN, "Draining");
    server.drain(leave);
    while !server.has_ended() {
        if Instant::now() >= due {
            let hanging = server.running_threads().join(", ");
            tracing::error!(threads = hanging, "the drain is over and a thread hangs: the process ends");
            anyhow::bail!("the drain is over and {hanging} did not end");
        }
        // A thread that hangs now is ended by the limit of the stop, not by the watchdog.
        manager.alive(Instant::now());
        match said.recv_timeout(DRAIN_POLL) {
            Err(_) => continue,
            Ok(Said::Leave(leave)) => server.drain(leave),
            Ok(Said::Signal) => signals += 1,
            Ok(Said::Stop) => signals = SIGNALS_TO_STOP,
        }
        if signals >= SIGNALS_TO_STOP {
            tracing::warn!("ended by a second signal before the drain was over");
            return Ok(());
        }
    }
    server.join().context("a thread ended badly")?;
    tracing::info!("drained");
    Ok(())
}

/// Why a server did not start, as text and exit code.
pub fn start_failure(error: StartError, loaded: &Loaded) -> anyhow::Error {
    match error {
        StartError::Bind { error: ref io, .. } => {
            let code = match io.kind() {
                io::ErrorKind::PermissionDenied => exit::NO_PERMISSION,
                _ => exit::CANT_BIND,
            };
            Failure { code, sentence: error.to_string() }.into()
        }
        StartError::NoIoUring(_) => {
            let sentence = format!("{error}. Or take --driver auto, which falls back to epoll");
            Failure { code: exit::UNAVAILABLE, sentence }.into()
        }
        StartError::Core { .. } => refusal(loaded, "cores", error.to_string()).into(),
        StartError::Steer(_) => refusal(loaded, "steer", error.to_string()).into(),
        StartError::Thread { .. } => error.into(),
    }
}

/// One thread turns the signals that end the server into messages. SIGPIPE is ignored by Rust's runtime; SIGHUP asks other
/// servers to read their configuration again, and must not be the end of one that doesn't. SIGUSR2 may be sent to a parent
/// and its children alike, and a unit's `ExecReload=` sends it whether there are several processes or one.
fn listen_for_signals(sender: mpsc::Sender<Said>, has_parent: bool) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR2]).context("can't listen for signals")?;
    let listen = move || {
        let _server_is_gone = signals.forever().try_for_each(|signal| match signal {
            SIGHUP => {
                tracing::info!("{NOTHING_IS_RELOADED}");
                Ok(())
            }
            SIGUSR2 => {
                let answer = match has_parent {
                    true => "a rolling restart is the parent's: send it there",
                    false => "nothing is rolled without --processes; restart instead",
                };
                tracing::info!("SIGUSR2: {answer}");
                Ok(())
            }
            _ => sender.send(Said::Signal).map_err(drop),
        });
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listen).context("can't start a thread")?;
    Ok(())
}

/// What SIGHUP means today.
pub const NOTHING_IS_RELOADED: &str = "SIGHUP: nothing is reloaded yet; restart to change the configuration";

/// Looks after the server until it is told to end.
fn wait_for_word(
    said: &mpsc::Receiver<Said>,
    server: &mut Server,
    manager: &mut ServiceManager,
    report_interval: Duration,
) -> Result<Said, LostThread> {
    let mut activity = Activity::every(report_interval);
    let watchdog = manager.watchdog_interval();
    // Twice as often as it is to be told: whoever looks just before that is due looks again in time.
    let interval = watchdog.map_or(LOOK_INTERVAL, |told| (told / 2).clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL));
    let mut was_silent = false;
    loop {
        update_process_metrics(&server.setup.metrics);
        activity.tick(&server.setup.metrics, Instant::now());
        if let Some(lost) = server.take_lost_thread() {
            return Err(lost);
        }
        let silent = watchdog.and_then(|patience| server.silent_thread(patience).map(str::to_owned));
        match &silent {
            Some(thread) if !was_silent => {
                tracing::error!(thread, "a thread hangs: the watchdog is not told any more");
                manager.status(&format!("Thread {thread} hangs: the watchdog is not told any more"));
            }
            Some(_) => {}
            None => {
                manager.status(&status(server));
                manager.alive(Instant::now());
            }
        }
        was_silent = silent.is_some();
        match said.recv_timeout(interval) {
            Ok(said) => return Ok(said),
            Err(RecvTimeoutError::Disconnected) => return Ok(Said::Signal),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Lets this process hold as many descriptors as the hard limit allows. The soft one, 1,024 almost everywhere, is for programs
/// that use select(2), which this one doesn't.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, "the limit of descriptors stays where it is");
    }
}

/// For the service manager: where it serves, and what is missing.
fn status(server: &Server) -> String {
    let addresses: Vec<String> = server.listen.iter().map(ToString::to_string).collect();
    let (shards, driver) = (server.cores.len(), server.driver.name());
    let broker = if server.setup.broker_is_up() { "" } else { "; without Redis" };
    let plural = if shards == 1 { "" } else { "s" };
    format!("Serving {} on {shards} shard{plural} ({driver}){broker}", addresses.join(" "))
}

/// The first lines of the log: what runs, and where.
fn announce(config: &Config, server: &Server) {
    if let Some(why) = &server.no_io_uring {
        tracing::warn!("the epoll driver is used instead of io_uring: {why}");
    }
    let urls: Vec<String> = server.listen.iter().map(|address| format!("http://{address}")).collect();
    let broker = match &config.broker {
        BrokerChoice::Local => "local".to_owned(),
        BrokerChoice::Redis(servers) => {
            let of_several = |name: &str| if servers.len() > 1 { format!("{name}=") } else { String::new() };
            let shown = servers.iter().map(|server| format!("{}{}", of_several(&server.name), server.target));
            shown.collect::<Vec<_>>().join(" ")
        }
    };
    tracing::info!(
        url = urls.join(" "),
        admin = server.admin.map(|address| format!("http://{address}")),
        driver = server.driver.name(),
        shards = server.cores.len(),
        cores = ?server.cores,
        relay_core = server.relay_core,
        descriptors = descriptor_limit(),
        connections_max = server.setup.bounds.connections_max,
        broker,
        presets = config.presets.join(","),
        node = config.node_id,
        "corecast {} serves", env!("CARGO_PKG_VERSION")
    );
    let fit = server.setup.bounds.connections_max;
    if fit < FEW_CONNECTIONS && fit < config.bounds.connections_max {
        tracing::warn!(
            "only {fit} connections fit into the limit of descriptors: raise its hard limit (LimitNOFILE=, ulimit -Hn, \
             docker --ulimit nofile=1048576)"
        );
    }
    for hint in hints::of(config, &server.setup.routes, &server.listen, server.admin) {
        tracing::info!("{hint}");
    }
}

fn write_ports_file(path: &Path, server: &Server) -> Result<(), Failure> {
    let content = serde_json::json!({
        "pid": std::process::id(),
        "listen": server.listen.first().map(ToString::to_string),
        "listeners": server.listen.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "admin": server.admin.map(|address| address.to_string()),
    });
    write_whole(path, &content)
}

/// Written beside its place and renamed, so that whoever reads it reads all of it.
///
/// # Errors
/// The kernel's refusal.
pub fn write_whole(path: &Path, content: &serde_json::Value) -> Result<(), Failure> {
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    fs::write(&beside, format!("{content}\n"))
        .and_then(|()| fs::rename(&beside, path))
        .map_err(|error| Failure::file(format!("can't write the ports file {}", path.display()), &error))
}

/// A ports file that is left behind names a server that is gone; one that names another process is that one's.
pub fn remove_ports_file(config: &Config) {
    if let Some(path) = &config.ports_file
        && fs::read(path).is_ok_and(|content| names_this_process(&content))
        && let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %path.display(), "the ports file could not be removed");
    }
}

fn names_this_process(content: &[u8]) -> bool {
    let ports: Result<serde_json::Value, _> = serde_json::from_slice(content);
    ports.is_ok_and(|ports| ports["pid"] == std::process::id())
}

fn read_key(path: &Path) -> anyhow::Result<String> {
    let name = path.display();
    let bytes =
        fs::read(path).map_err(|error| Failure::file(format!("can't read the key file {name}"), &error))?;
    let refused = |found: &str| {
        Failure::config(format!(
            "the key file {name} {found}, due one line with the key, which fits a header field"
        ))
    };
    let text = String::from_utf8(bytes).map_err(|_| refused("holds bytes that are not UTF-8"))?;
    let key = text.trim();
    if key.is_empty() {
        return Err(refused("is empty").into());
    }
    // No request could present such a key, so that everybody would be refused.
    if key.contains('\n') {
        return Err(refused("holds several lines").into());
    }
    if key.chars().any(char::is_control) {
        return Err(refused("holds a control character").into());
    }
    if fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o004 != 0) {
        tracing::warn!(path = %path.display(), "every user of this machine can read the key file: chmod o-r");
    }
    Ok(key.to_owned())
}

/// The domains that the configuration names, and those in its files.
fn domains_of(loaded: &Loaded) -> Result<Registry, Failure> {
    let config = &loaded.config;
    let mut registry =
        Registry::built_in(&config.domains).map_err(|error| refusal(loaded, "domains", error.to_string()))?;
    // A file is configuration, wherever it was named.
    let wrong = |sentence: String| Failure::config(format!("domain_files: {sentence}"));
    for path in &config.domain_files {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| wrong(format!("can't read {name}: {error}")))?;
        let domain = SchemaDomain::parse(&text, &name).map_err(|error| wrong(error.to_string()))?;
        registry.register(Box::new(domain)).map_err(|error| wrong(format!("{name}: {error}")))?;
    }
    Ok(registry)
}

fn descriptor_limit() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok())
}

/// The process's own numbers, as Prometheus' clients name them. What /proc does not tell keeps its last value.
fn update_process_metrics(metrics: &Arc<Metrics>) {
    // proc_pid_stat(5): utime and stime are fields 14 and 15, in ticks of 1/100 s on every Linux this runs on.
    const MILLIS_PER_TICK: u64 = 10;
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is the program's name in parentheses, and may hold anything.
    let fields: Vec<u64> = match stat.rsplit_once(')') {
        Some((_, rest)) => rest.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect(),
        None => return,
    };
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
    metrics.cpu_millis.set((field(14) + field(15)) * MILLIS_PER_TICK);
    let process = &metrics.process;
    process.threads.set(field(20));
    process.virtual_bytes.set(field(23));
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
    if let Some(kib) = resident {
        let kib: u64 = kib;
        process.resident_bytes.set(kib * 1024);
    }
    // The directory's size is their number from Linux 6.2 on, and 0 before. Counting looks at every socket: tens of
    // milliseconds of each second at 100,000 connections.
    match fs::metadata("/proc/self/fd").map_or(0, |directory| directory.len()) {
        0 => {
            if let Ok(entries) = fs::read_dir("/proc/self/fd") {
                process.open_fds.set(entries.count() as u64);
            }
        }
        descriptors => process.open_fds.set(descriptors),
    }
    if let Some(limit) = descriptor_limit() {
        process.max_fds.set(limit);
    }
}
