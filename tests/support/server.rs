//! A running `corecast serve`: started on free ports, watched, and dead when the test is.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::deadline::{LONG, SOON, eventually_ok};
use super::http::{self, Response};
use super::kernel::{Confinement, StoppedThread, confine, ticks_per_second};
use super::manager::Manager;
use super::metrics::Metrics;
use super::program::{self, Finished, Running};
use super::redis::Redis;
use super::scratch::Scratch;
use super::seccomp;

/// On which kernel interface the server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// `--driver io_uring`.
    IoUring,
    /// `--driver epoll`.
    Epoll,
    /// `--driver auto` under a filter that denies io_uring.
    AutoDenied,
}

/// How a server is started. Without [`ServerBuilder::redis`] its broker is the local one.
pub struct ServerBuilder {
    args: Vec<String>,
    env: Vec<(String, String)>,
    shards: Option<usize>,
    listen: SocketAddr,
    listen_flag: bool,
    admin: bool,
    local: bool,
    broker_due: bool,
    confinement: Confinement,
    config: Option<String>,
    program: Option<PathBuf>,
    /// Names of the sockets in `confinement.passed`.
    passed: Vec<String>,
}

impl ServerBuilder {
    pub fn preset(self, name: &str) -> Self {
        self.arg("--preset").arg(name)
    }

    /// With this Redis; [`ServerBuilder::start`] waits until its subscription stands.
    pub fn redis(mut self, redis: &Redis) -> Self {
        self.broker_due = true;
        self.redis_url(&redis.url())
    }

    /// With whatever is at `url`; whether it answers is the story's business.
    pub fn redis_url(mut self, url: &str) -> Self {
        self.local = false;
        self.arg("--redis").arg(url)
    }

    /// The broker comes from the environment or the config file: no flag is given.
    pub fn broker_unsaid(mut self) -> Self {
        self.local = false;
        self
    }

    pub fn driver(mut self, driver: Driver) -> Self {
        let name = match driver {
            Driver::IoUring => "io_uring",
            Driver::Epoll => "epoll",
            Driver::AutoDenied => {
                self = self.without_io_uring();
                "auto"
            }
        };
        self.arg("--driver").arg(name)
    }

    /// Under a filter that answers EPERM to the io_uring calls.
    pub fn without_io_uring(mut self) -> Self {
        self.confinement.filter = Some(seccomp::without_io_uring());
        self
    }

    /// Under a filter that answers to IPv6 as a kernel without it does.
    pub fn without_ipv6(mut self) -> Self {
        self.confinement.filter = Some(seccomp::without_ipv6());
        self
    }

    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = Some(shards);
        self
    }

    /// At this address instead of a free port.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// The address comes from the environment: `--listen` is not given.
    pub fn listen_unsaid(mut self) -> Self {
        self.listen_flag = false;
        self
    }

    /// With an admin address of its own.
    pub fn admin(mut self) -> Self {
        self.admin = true;
        self
    }

    pub fn drain(self, limit: Duration) -> Self {
        self.arg("--drain").arg(&format!("{}ms", limit.as_millis()))
    }

    /// This many processes behind one port, each with one shard; needs Redis.
    pub fn processes(self, processes: usize) -> Self {
        self.arg("--processes").arg(&processes.to_string())
    }

    /// From this copy of the binary.
    pub fn program(mut self, path: PathBuf) -> Self {
        self.program = Some(path);
        self
    }

    /// With this config file.
    pub fn config(mut self, toml: &str) -> Self {
        self.config = Some(toml.to_owned());
        self
    }

    /// May hold this many descriptors.
    pub fn descriptors(mut self, max: u64) -> Self {
        self.confinement.descriptors_max = Some(max);
        self
    }

    /// Starts with this soft limit of descriptors below [`ServerBuilder::descriptors`].
    pub fn descriptors_soft(mut self, soft: u64) -> Self {
        self.confinement.descriptors_soft = Some(soft);
        self
    }

    /// Passes it this descriptor, as a service manager would; `--listen` stays where it is.
    pub fn pass(mut self, descriptor: impl AsFd, name: &str) -> Self {
        let descriptor = descriptor.as_fd().try_clone_to_owned().expect("a descriptor is left");
        self.confinement.passed.push(descriptor);
        self.passed.push(name.to_owned());
        self
    }

    /// Tells this manager how it is.
    pub fn manager(self, manager: &Manager) -> Self {
        self.env("NOTIFY_SOCKET", &manager.path().to_string_lossy())
    }

    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it and returns when it is ready.
    ///
    /// # Panics
    /// When it ends or isn't ready within [`SOON`], with its log.
    #[track_caller]
    pub fn start(self) -> Server {
        let scratch = Scratch::new();
        let broker_due = self.broker_due;
        let (mut command, confinement) = self.into_command(&scratch);
        let log = scratch.path("log");
        let file = File::create(&log).expect("a scratch directory takes files");
        command.stdout(file.try_clone().expect("a descriptor is left")).stderr(file);
        confine(&mut command, confinement);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let mut server = Server {
            child: Running(child),
            log,
            listen: SocketAddr::from(([0, 0, 0, 0], 0)),
            listeners: Vec::new(),
            admin: None,
            scratch,
        };
        server.wait_ready(&command);
        if broker_due {
            server.wait_broker(true);
        }
        server
    }

    /// Starts what is expected to end by itself, and returns how it did.
    #[track_caller]
    pub fn start_in_vain(self) -> Finished {
        let scratch = Scratch::new();
        let (command, confinement) = self.into_command(&scratch);
        program::finish(command, confinement)
    }

    fn into_command(self, scratch: &Scratch) -> (Command, Confinement) {
        let names: Vec<&str> = self.passed.iter().map(String::as_str).collect();
        let mut command = match (&self.program, names.is_empty()) {
            (Some(path), _) => program::command_at(path),
            (None, true) => program::command(),
            (None, false) => program::activated_command(&names),
        };
        command.arg("serve").args(&self.args).envs(self.env);
        if let Some(shards) = self.shards {
            command.arg("--shards").arg(shards.to_string());
        }
        if self.listen_flag {
            command.arg("--listen").arg(self.listen.to_string());
        }
        if self.admin {
            command.args(["--admin", "127.0.0.1:0"]);
        }
        if self.local && self.args.iter().any(|arg| arg == "--preset") {
            command.args(["--broker", "local"]);
        }
        if let Some(config) = &self.config {
            command.arg("--config").arg(scratch.write("corecast.toml", config));
        }
        command.arg("--ports-file").arg(scratch.path("ports.json"));
        (command, self.confinement)
    }
}

/// A server that is ready.
pub struct Server {
    child: Running,
    log: PathBuf,
    listen: SocketAddr,
    listeners: Vec<SocketAddr>,
    admin: Option<SocketAddr>,
    scratch: Scratch,
}

impl Server {
    pub fn builder() -> ServerBuilder {
        ServerBuilder {
            args: Vec::new(),
            env: Vec::new(),
            shards: None,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            listen_flag: true,
            admin: false,
            local: true,
            broker_due: false,
            confinement: Confinement::default(),
            config: None,
            program: None,
            passed: Vec::new(),
        }
    }

    /// `corecast serve --preset event-fanout` with one shard, the form most stories are about.
    pub fn event_fanout(redis: &Redis, driver: Driver) -> ServerBuilder {
        Self::builder().preset("event-fanout").redis(redis).driver(driver).shards(1)
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    /// Where clients connect, in the order of `--listen`.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.listeners
    }

    /// Where counters and publishing are.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.unwrap_or(self.listen)
    }

    pub fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Where it tells its addresses.
    pub fn ports_file(&self) -> PathBuf {
        self.scratch.path("ports.json")
    }

    /// Writes its config file anew, for whoever reads it next.
    pub fn rewrite_config(&self, toml: &str) {
        self.scratch.write("corecast.toml", toml);
    }

    /// Ids of its processes (`--processes`), by their number; those that serve.
    #[track_caller]
    pub fn processes(&self) -> Vec<i32> {
        let ports: serde_json::Value = serde_json::from_str(&program::text(&self.scratch.path("ports.json")))
            .unwrap_or_else(|error| panic!("{error} in the ports file"));
        let processes = ports["processes"].as_array().into_iter().flatten();
        let pids = processes.map(|process| process["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()));
        pids.collect::<Option<_>>().unwrap_or_else(|| panic!("a process without an id: {ports}"))
    }

    /// Waits until so many processes reach Redis.
    #[track_caller]
    pub fn wait_brokers(&self, processes: usize) {
        let all = |page: &Metrics| page.sum("corecast_broker_up") == processes as f64;
        self.wait_metrics(&format!("{processes} processes reach Redis"), all);
    }

    /// All that has been logged; the log's own thread may be behind what the server does, and in the middle of a line.
    pub fn log(&self) -> String {
        program::text(&self.log)
    }

    /// Waits for the first whole line of the log that is `wanted`.
    #[track_caller]
    pub fn wait_log(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        eventually_ok(SOON, what, || {
            let log = self.log();
            let mut lines = log.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            lines.find(|line| wanted(line)).map(str::to_owned).ok_or(log)
        })
    }

    #[track_caller]
    pub fn get(&self, target: &str) -> Response {
        answered(http::request(self.listen, "GET", target, &[]), target)
    }

    #[track_caller]
    pub fn post(&self, target: &str, body: &[u8]) -> Response {
        answered(http::post(self.admin_address(), target, &[], body), target)
    }

    /// Publishes over HTTP and expects success.
    #[track_caller]
    pub fn publish(&self, room: &str, body: &[u8]) {
        let response = self.post(&format!("/publish?room={room}"), body);
        assert_eq!(response.status, 200, "{response:?}");
    }

    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        let response = answered(http::request(self.admin_address(), "GET", "/metrics", &[]), "/metrics");
        assert_eq!(response.status, 200, "{response:?}");
        Metrics::parse(response.text())
    }

    #[track_caller]
    pub fn stats(&self) -> serde_json::Value {
        let response = answered(http::request(self.admin_address(), "GET", "/stats", &[]), "/stats");
        assert_eq!(response.status, 200, "{response:?}");
        serde_json::from_slice(&response.body)
            .unwrap_or_else(|error| panic!("{error} in /stats: {response:?}"))
    }

    /// Waits until the scraped page satisfies `condition`; returns the page and how long it took.
    #[track_caller]
    pub fn wait_metrics(&self, what: &str, condition: impl Fn(&Metrics) -> bool) -> (Metrics, Duration) {
        let began = Instant::now();
        let page = eventually_ok(LONG, what, || {
            let page = self.metrics();
            if condition(&page) { Ok(page) } else { Err(format!("{page:?}")) }
        });
        (page, began.elapsed())
    }

    /// Waits until the broker is reachable, or isn't; returns how long it took.
    #[track_caller]
    pub fn wait_broker(&self, up: bool) -> Duration {
        let what = if up { "corecast_broker_up is 1" } else { "corecast_broker_up is 0" };
        self.wait_metrics(what, |page| (page.sum("corecast_broker_up") > 0.0) == up).1
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid()).expect("a child has a positive pid");
        kill_process(pid, signal).expect("a child of ours may be signalled until it is waited for");
    }

    /// Ends it as a crash does.
    pub fn kill9(&mut self) {
        self.child.kill();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.is_running()
    }

    #[track_caller]
    pub fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        self.child.wait(deadline, "the server ends")
    }

    /// User memory (anonymous resident pages), in bytes.
    pub fn user_memory_bytes(&self) -> u64 {
        let status = program::text(&self.proc("status"));
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib =
            line.and_then(|rest| rest.trim().strip_suffix(" kB")).and_then(|kib| kib.parse::<u64>().ok());
        kib.unwrap_or_else(|| panic!("no RssAnon in {status:?}")) * 1024
    }

    /// CPU time used so far, user and system.
    pub fn cpu_time(&self) -> Duration {
        let stat = program::text(&self.proc("stat"));
        // Fields 14 and 15 counted from 1 (proc_pid_stat(5)); the command's name in field 2 may hold spaces.
        let after_name = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
        let field =
            |number: usize| after_name.split_whitespace().nth(number - 3).and_then(|t| t.parse::<f64>().ok());
        let ticks = field(14).zip(field(15)).unwrap_or_else(|| panic!("no times in {stat:?}"));
        Duration::from_secs_f64((ticks.0 + ticks.1) / ticks_per_second())
    }

    /// Names of its threads.
    pub fn threads(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(self.proc("task")).into_iter().flatten().flatten();
        tasks.map(|task| program::text(&task.path().join("comm")).trim().to_owned()).collect()
    }

    /// Stops the thread of this name until the result is dropped.
    #[track_caller]
    pub fn stop_thread(&self, name: &str) -> StoppedThread {
        let tasks = self.proc("task");
        let tids = std::fs::read_dir(&tasks).expect("a running process lists its threads").flatten();
        let mut names = Vec::new();
        for tid in tids {
            let found = program::text(&tid.path().join("comm"));
            if found.trim() == name {
                let tid = tid.file_name().to_string_lossy().parse().expect("a thread's folder is its number");
                return StoppedThread::stop(tid)
                    .unwrap_or_else(|error| panic!("cannot stop {name}: {error}"));
            }
            names.push(found.trim().to_owned());
        }
        panic!("no thread is named {name:?}, only {names:?}")
    }

    fn proc(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.pid()))
    }

    #[track_caller]
    fn wait_ready(&mut self, command: &Command) {
        let ports = self.scratch.path("ports.json");
        let ports: serde_json::Value =
            eventually_ok(SOON, &format!("{command:?} writes its ports file"), || {
                assert!(self.child.is_running(), "{command:?} ended before it was ready");
                serde_json::from_str(&program::text(&ports)).map_err(|error| error.to_string())
            });
        assert_eq!(ports["pid"], self.child.0.id(), "the ports file names another process: {ports}");
        let address = |key: &str| ports[key].as_str().and_then(|text| text.parse().ok());
        self.listen = address("listen").unwrap_or_else(|| panic!("no address under \"listen\": {ports}"));
        self.admin = address("admin");
        let listeners = ports["listeners"].as_array().into_iter().flatten();
        let parsed = listeners.map(|text| text.as_str().and_then(|text| text.parse().ok()));
        self.listeners = parsed
            .collect::<Option<_>>()
            .unwrap_or_else(|| panic!("no addresses under \"listeners\": {ports}"));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let shown = lines.len().saturating_sub(LOG_LINES_SHOWN);
            let ended = if self.child.is_running() { "running" } else { "ended" };
            eprintln!("--- log of server {} ({ended}), its last lines ---", self.pid());
            eprintln!("{}", lines[shown..].join("\n"));
        }
    }
}

#[track_caller]
fn answered(result: std::io::Result<Response>, target: &str) -> Response {
    result.unwrap_or_else(|error| panic!("no answer to {target}: {error}"))
}

const LOG_LINES_SHOWN: usize = 100;
