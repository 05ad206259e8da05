//! `corecast serve --processes N`: the parent of N servers behind one port. It holds the listening sockets, so that a queue
//! outlives the process that serves it, and starts, watches and replaces the processes. It serves nobody itself: no shard,
//! no Redis, a few threads that wait.

mod admin;
mod ask;
mod backoff;
mod board;
pub mod channel;
mod child;
mod fleet;
mod overview;
mod page;
mod passing;

use std::collections::HashMap;
use std::process::{ExitCode, ExitStatus};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::getpid;
use shards::config::{Config, Loaded, Steer};
use shards::net::{Groups, Holder, Passed, Plan, split, usable_cores};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::exit;
use crate::manager::ServiceManager;
use crate::random::Random;
use crate::serve::{self, MANAGER_MARGIN, NOTHING_IS_RELOADED};
use admin::Admin;
use board::{Board, Leaving, View, Views};
use channel::{Address, Order, Place};
use child::{Child, Program, Word};
use fleet::{Fleet, Generation, News, Patience, Step};

/// From a process's start until it serves: files, sockets and threads take milliseconds, a machine under load seconds.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// What a process may take that is told to end at once: it only drops what it has.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
/// A build that fails with its first clients has done so by then: who was told to come back does so within a second or two.
const SETTLE: Duration = Duration::from_secs(2);
/// What a process may take beyond its drain: last answers of Redis, logs, memory of many connections.
const LEAVE_MARGIN: Duration = Duration::from_secs(10);
/// The longest that a process is believed when it says how long it takes to leave: no configuration has a drain above 366 days.
const LEAVE_MAX: Duration = Duration::from_secs(367 * 86_400);
/// How often the service manager's watchdog is thought of, where nothing happens.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Serves with as many processes as the configuration says, until a signal ends it.
///
/// # Errors
/// An address that can't be bound; with its own exit code what keeps the first processes from starting.
pub fn run(loaded: &Loaded, passed: Passed) -> anyhow::Result<ExitCode> {
    let config = &loaded.config;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let (sender, happens) = mpsc::channel();
    listen_for_signals(sender.clone())?;
    serve::raise_descriptor_limit();
    let manager = ServiceManager::from_environment();
    let failed = |error| serve::start_failure(error, loaded);
    let cores = split(&usable_cores(config).map_err(failed)?, config.processes);
    let plans: Vec<Plan> = cores.iter().map(|cores| Plan::new(cores, config.shards)).collect();
    let of_shards: Vec<Vec<usize>> = plans.iter().map(|plan| plan.shards.clone()).collect();
    let mut groups = Groups::bind(config, passed, &of_shards).map_err(failed)?;
    let board = Board::default();
    let admin = groups.admin.take();
    let admin_address = admin.as_ref().map(|(_, address)| *address);
    if let Some((socket, _)) = admin {
        let timeout = config.bounds.handshake_timeout;
        Admin::start(socket, board.clone(), config.health, timeout).context("can't start a thread")?;
    }
    let watchdog = manager.watchdog_interval();
    let silence = watchdog.map(|interval| interval * 2);
    let leave = config.drain + LEAVE_MARGIN;
    let patience = Patience { start: START_PATIENCE, leave, stop: STOP_PATIENCE, settle: SETTLE, silence };
    let places = plans
        .into_iter()
        .enumerate()
        .map(|(process, plan)| place(process, plan, &groups, admin_address, watchdog))
        .collect();
    let mut supervisor = Supervisor {
        config,
        fleet: Fleet::new(config.processes, patience, Instant::now()),
        groups,
        program: Program::of_this_process(),
        places,
        children: HashMap::new(),
        statuses: HashMap::new(),
        sender,
        board,
        manager,
        random: Random::new()?,
        is_announced: false,
        told_until: Instant::now(),
        failure: None,
        last_end: String::new(),
    };
    let ended = supervisor.supervise(&happens);
    serve::remove_ports_file(config);
    ended
}

/// What the supervisor's thread hears.
enum Happening {
    Signal(i32),
    Child(Generation, Word),
}

struct Supervisor<'a> {
    config: &'a Config,
    fleet: Fleet,
    groups: Groups,
    program: Program,
    places: Vec<Place>,
    children: HashMap<Generation, Child>,
    statuses: HashMap<Generation, String>,
    sender: mpsc::Sender<Happening>,
    board: Board,
    manager: ServiceManager,
    random: Random,
    is_announced: bool,
    /// When all is over, as the service manager was told.
    told_until: Instant,
    /// Why it ends before it has served.
    failure: Option<u8>,
    /// How the process ended that is being told of, or did not begin.
    last_end: String,
}

impl Supervisor<'_> {
    fn supervise(&mut self, happens: &mpsc::Receiver<Happening>) -> anyhow::Result<ExitCode> {
        let steps = self.fleet.tick(Instant::now());
        self.take(steps);
        while !self.fleet.has_ended() {
            let now = Instant::now();
            let due = self.fleet.next_due().map_or(LOOK_INTERVAL, |due| due.saturating_duration_since(now));
            let interval = self.manager.watchdog_interval().map_or(LOOK_INTERVAL, |told| told / 2);
            let steps = match happens.recv_timeout(due.min(interval)) {
                Ok(happening) => self.handle(happening),
                Err(RecvTimeoutError::Timeout) => {
                    self.last_end = "it took too long".to_owned();
                    self.fleet.tick(Instant::now())
                }
                // It holds a sender itself.
                Err(RecvTimeoutError::Disconnected) => unreachable!("the supervisor holds a sender"),
            };
            self.take(steps);
            self.manager.alive(Instant::now());
        }
        match self.failure {
            Some(code) => Ok(ExitCode::from(code)),
            None => {
                tracing::info!("all processes have ended");
                Ok(ExitCode::SUCCESS)
            }
        }
    }

    fn handle(&mut self, happening: Happening) -> Vec<Step> {
        let now = Instant::now();
        match happening {
            Happening::Signal(SIGHUP) => {
                tracing::info!("{NOTHING_IS_RELOADED}");
                Vec::new()
            }
            Happening::Signal(SIGUSR2) => self.fleet.roll(now),
            Happening::Signal(_) => self.end(now),
            Happening::Child(generation, Word::Said(lines)) => self.hear(generation, &lines, now),
            Happening::Child(generation, Word::Gone(status)) => self.bury(generation, status, now),
        }
    }

    fn end(&mut self, now: Instant) -> Vec<Step> {
        if self.fleet.is_leaving() {
            tracing::warn!("ended by a second signal before the drain was over");
            return self.fleet.end(now);
        }
        let seconds = self.config.drain.as_secs_f64();
        tracing::info!(seconds, "all processes drain; a second signal ends them at once");
        let steps = self.fleet.end(now);
        self.told_until = self.fleet.leave_due().unwrap_or(now);
        self.manager.stopping(self.told_until - now + MANAGER_MARGIN, "Draining");
        steps
    }

    /// Has the service manager wait for as long as the slowest child may take: that reads a newer configuration than this
    /// parent's, and says with STOPPING how long its drain is.
    fn lift_limit(&mut self, now: Instant) {
        if let Some(due) = self.fleet.leave_due().filter(|due| *due > self.told_until) {
            self.told_until = due;
            self.manager.stopping_later(due - now + MANAGER_MARGIN);
        }
    }

    /// What a child says in the words of sd_notify(3).
    fn hear(&mut self, generation: Generation, lines: &str, now: Instant) -> Vec<Step> {
        if let Some(status) = lines.lines().find_map(|line| line.strip_prefix("STATUS=")) {
            self.statuses.insert(generation, status.to_owned());
        }
        self.fleet.handle_alive(generation, now);
        let says = |word: &str| lines.lines().any(|line| line == word);
        match (says("READY=1"), says("STOPPING=1")) {
            (true, _) => self.fleet.handle_ready(generation, now),
            (_, true) => {
                let steps = self.fleet.handle_leaving(generation, time_to_leave(lines), now);
                self.lift_limit(now);
                steps
            }
            _ => Vec::new(),
        }
    }

    fn bury(
        &mut self,
        generation: Generation,
        status: std::io::Result<ExitStatus>,
        now: Instant,
    ) -> Vec<Step> {
        self.statuses.remove(&generation);
        let pid = self.children.remove(&generation).map(|child| child.pid);
        let code = status.as_ref().ok().and_then(ExitStatus::code);
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        tracing::debug!(pid, how, "a process ended");
        self.last_end = pid.map_or_else(|| how.clone(), |pid| format!("pid {pid}, {how}"));
        let place = self.fleet.place_of(generation);
        // Another try ends the same way, and nobody has been served yet.
        let is_final = code.and_then(|code| u8::try_from(code).ok()).filter(|code| FINAL.contains(code));
        if let Some(code) = is_final
            && place.is_some_and(|place| self.fleet.never_served(place))
            && !self.fleet.is_leaving()
        {
            self.failure = Some(code);
            let mut steps = self.fleet.end(now);
            // Nobody has anything to drain.
            steps.extend(self.fleet.end(now));
            steps.extend(self.fleet.handle_gone(generation, now, 0.0));
            return steps;
        }
        let jitter = self.random.unit();
        self.fleet.handle_gone(generation, now, jitter)
    }

    fn take(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Start { place, generation } => self.start(place, generation),
                Step::Leave { generation, for_good } => self.say(generation, &Order::Leave { for_good }),
                Step::Stop { generation } => self.say(generation, &Order::Stop),
                Step::Kill { generation } => {
                    if let Some(child) = self.children.get(&generation) {
                        child.kill();
                    }
                }
                // The kernel puts the last of a group into the place of one that is closed: what steers by place would be wrong.
                Step::Close { place } => {
                    if self.config.steer == Steer::Hash || self.fleet.is_leaving() {
                        self.groups.close(place);
                    }
                }
                Step::Tell(news) => self.tell(&news),
            }
        }
        self.show();
        if !self.is_announced && self.fleet.has_served() {
            self.is_announced = true;
            self.announce();
        }
        if self.is_announced && !self.fleet.is_leaving() {
            let status = self.status();
            self.manager.status(&status);
        }
    }

    fn start(&mut self, place: usize, generation: Generation) {
        let sender = self.sender.clone();
        // The supervisor listens for as long as it has children.
        let words = move |generation, word| drop(sender.send(Happening::Child(generation, word)));
        let sockets: Vec<_> = self.groups.of(place).flat_map(|(.., sockets)| sockets).collect();
        match Child::start(&self.program, generation, self.places[place].clone(), &sockets, words) {
            Ok(child) => drop(self.children.insert(generation, child)),
            Err(error) => {
                tracing::error!(process = place, %error, "a process could not be started");
                drop(self.sender.send(Happening::Child(generation, Word::Gone(Err(error)))));
            }
        }
    }

    fn say(&self, generation: Generation, order: &Order) {
        if let Some(child) = self.children.get(&generation) {
            child.say(order);
        }
    }

    fn pid(&self, generation: Generation) -> Option<u32> {
        self.children.get(&generation).map(|child| child.pid)
    }

    fn tell(&mut self, news: &News) {
        match *news {
            News::Serves { place, generation } => {
                tracing::info!(process = place, pid = self.pid(generation), "a process serves");
                if self.is_announced {
                    self.write_ports_file();
                }
            }
            News::Died { place, restarts_in, .. } => {
                let seconds = restarts_in.as_secs_f64();
                tracing::error!(
                    process = place,
                    how = self.last_end,
                    seconds,
                    "a process died; its successor starts in so many seconds"
                );
            }
            News::DiedAgain { place } => {
                tracing::debug!(
                    process = place,
                    restarts = self.fleet.restarts(place),
                    "a process died again"
                );
            }
            News::Left { place, .. } => tracing::info!(process = place, "a process has left"),
            News::RollBegins => tracing::info!("rolling restart: one process after the other is replaced"),
            News::RollsAgain => {
                tracing::info!("a rolling restart is under way: another follows it")
            }
            News::Rolled => tracing::info!("rolling restart: all processes have been replaced"),
            News::RollFailed { place } => tracing::error!(
                process = place,
                how = self.last_end,
                "rolling restart ended: the successor did not come to serve; the running processes serve on"
            ),
            News::RollBroken { place } => tracing::error!(
                process = place,
                how = self.last_end,
                "rolling restart ended: a process that it had started died; nobody else is replaced"
            ),
            News::Hangs { place, generation } => {
                tracing::error!(process = place, pid = self.pid(generation), "a process hangs and is killed");
            }
            News::Overdue { place, generation } => {
                tracing::error!(
                    process = place,
                    pid = self.pid(generation),
                    "a process outlived its drain and is killed"
                );
            }
        }
    }

    fn show(&self) {
        let leaving = |generation| {
            let child = self.children.get(&generation)?;
            Some(Leaving { pid: child.pid, door: child.door.clone() })
        };
        let view = |place| {
            let serving = self.fleet.serving(place).and_then(|generation| {
                Some((self.children.get(&generation)?, self.statuses.get(&generation)))
            });
            View {
                pid: serving.map(|(child, _)| child.pid),
                door: serving.and_then(|(child, _)| child.door.clone()),
                leaving: self.fleet.leaving(place).filter_map(leaving).collect(),
                restarts: self.fleet.restarts(place),
                status: serving.and_then(|(_, status)| status.cloned()).unwrap_or_default(),
            }
        };
        self.board.show(Views {
            places: (0..self.fleet.len()).map(view).collect(),
            is_rolling: self.fleet.is_rolling(),
            is_leaving: self.fleet.is_leaving(),
        });
    }

    fn serving(&self) -> impl Iterator<Item = (usize, Generation)> {
        (0..self.fleet.len()).filter_map(|place| Some((place, self.fleet.serving(place)?)))
    }

    fn status(&self) -> String {
        let addresses: Vec<String> =
            self.groups.listen.iter().map(|group| group.address.to_string()).collect();
        let rolling = if self.fleet.is_rolling() { "; rolling restart" } else { "" };
        let (serving, all) = (self.serving().count(), self.fleet.len());
        format!("Serving {} with {serving} of {all} processes{rolling}", addresses.join(" "))
    }

    fn announce(&mut self) {
        let urls: Vec<String> =
            self.groups.listen.iter().map(|group| format!("http://{}", group.address)).collect();
        let cores: Vec<&[usize]> = self.places.iter().map(|place| &place.cores[..]).collect();
        tracing::info!(
            url = urls.join(" "),
            admin =
                self.places.first().and_then(|place| place.admin).map(|address| format!("http://{address}")),
            processes = self.fleet.len(),
            ?cores,
            "corecast {} serves with several processes",
            env!("CARGO_PKG_VERSION")
        );
        self.write_ports_file();
        let status = self.status();
        self.manager.ready(&status);
    }

    /// Its processes change with every restart.
    fn write_ports_file(&self) {
        let Some(path) = &self.config.ports_file else { return };
        let listeners: Vec<String> =
            self.groups.listen.iter().map(|group| group.address.to_string()).collect();
        let processes: Vec<_> = self
            .serving()
            .map(|(place, generation)| serde_json::json!({"process": place, "pid": self.pid(generation)}))
            .collect();
        let content = serde_json::json!({
            "pid": getpid().as_raw_pid(),
            "listen": listeners.first(),
            "listeners": listeners,
            "admin": self.places.first().and_then(|place| place.admin).map(|address| address.to_string()),
            "processes": processes,
        });
        if let Err(failure) = serve::write_whole(path, &content) {
            tracing::error!("{failure}");
        }
    }
}

/// Exit codes of what no second try cures: usage, something needed that is not there, can't bind, no permission, configuration.
const FINAL: [u8; 5] = [exit::USAGE, exit::UNAVAILABLE, exit::CANT_BIND, exit::NO_PERMISSION, exit::CONFIG];

fn place(
    process: usize,
    plan: Plan,
    groups: &Groups,
    admin: Option<std::net::SocketAddr>,
    watchdog: Option<Duration>,
) -> Place {
    let listen = groups
        .of(process)
        .map(|(address, holder, sockets)| Address {
            address,
            sockets: sockets.len(),
            of_manager: holder == Holder::Manager,
        })
        .collect();
    Place {
        version: channel::VERSION,
        process: process as u16,
        shards: plan.shards.len(),
        cores: plan.shards.into_iter().chain(plan.relay).collect(),
        listen,
        admin,
        watchdog,
    }
}

/// Of EXTEND_TIMEOUT_USEC, which a process says with STOPPING.
fn time_to_leave(lines: &str) -> Duration {
    let micros = lines.lines().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC=")?.parse().ok());
    micros.map_or(Duration::ZERO, Duration::from_micros).min(LEAVE_MAX)
}

fn listen_for_signals(sender: mpsc::Sender<Happening>) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR2]).context("can't listen for signals")?;
    let listen = move || {
        let _supervisor_is_gone =
            signals.forever().try_for_each(|signal| sender.send(Happening::Signal(signal)));
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listen).context("can't start a thread")?;
    Ok(())
}
