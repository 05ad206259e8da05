//! Under a service manager: what it is told, the sockets it passes, and the units that are shipped for it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use socket2::{Domain, Protocol, Type};

use crate::support::client::Client;
use crate::support::deadline::{SOON, eventually};
use crate::support::http;
use crate::support::kernel::Confinement;
use crate::support::manager::Manager;
use crate::support::on_both_drivers;
use crate::support::payload::payload;
use crate::support::program;
use crate::support::redis::Redis;
use crate::support::scratch::Scratch;
use crate::support::server::{Driver, Server};
use crate::support::swarm::{Member, Phase, Swarm};

on_both_drivers!(
    a_passed_socket_is_served_by_every_shard,
    who_waits_in_the_queue_of_a_passed_socket_is_served_by_the_next_process,
    the_watchdog_is_told_while_every_thread_comes_round,
);

#[test]
fn the_manager_is_told_of_readiness_and_of_the_end() {
    let manager = Manager::new();
    let mut server = Server::builder().drain(DRAIN).manager(&manager).start();

    let first = manager.next();
    let status = format!("STATUS=Serving {} on ", server.address());
    assert_eq!(first[0], "READY=1");
    assert!(first[1].starts_with(&status), "{first:?}, {status:?} was due");
    Client::join(&server, "lobby").leave();
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit(SOON).code(), Some(0));

    let last = manager.next();
    assert_eq!(last, ["STOPPING=1", "EXTEND_TIMEOUT_USEC=12000000", "STATUS=Draining"]);
    assert!(manager.is_silent(), "it is told once");
}

#[test]
fn a_server_that_cannot_listen_is_never_ready() {
    let manager = Manager::new();
    let taken = TcpListener::bind(LOOPBACK).unwrap();
    let finished = Server::builder().listen(taken.local_addr().unwrap()).manager(&manager).start_in_vain();
    assert_eq!(finished.code(), Some(73), "{finished:?}");
    assert!(manager.is_silent());
}

#[test]
fn the_manager_is_told_when_redis_goes_and_comes() {
    let (manager, mut redis) = (Manager::new(), Redis::start());
    let server = Server::event_fanout(&redis, Driver::Epoll).manager(&manager).start();
    let serving = format!("STATUS=Serving {} on 1 shard (epoll)", server.address());
    let without = format!("{serving}; without Redis");
    manager.until("it serves", |line| line == serving);
    redis.kill9();
    let told = manager.until("Redis is away", |line| line == without);
    assert_eq!(told, [[without]], "it is told once");
    redis.restart();
    let told = manager.until("Redis is back", |line| line == serving);
    assert_eq!(told, [[serving]], "it is told once");
}

fn the_watchdog_is_told_while_every_thread_comes_round(driver: Driver) {
    let manager = Manager::new();
    let server = Server::builder()
        .driver(driver)
        .shards(2)
        .manager(&manager)
        .env("WATCHDOG_USEC", &WATCHDOG.as_micros().to_string())
        .start();
    manager.until("it is ready", |line| line == "READY=1");
    for _ in 0..3 {
        manager.until("it is alive", |line| line == "WATCHDOG=1");
    }
    let stopped = server.stop_thread("shard-1");
    manager.until("a shard hangs", |line| line.starts_with("STATUS=Thread shard-1 hangs"));
    let began = Instant::now();
    eventually(SOON, "the watchdog's time passes", || began.elapsed() > WATCHDOG);
    drop(stopped);

    let told = manager.until("it serves again", |line| line.starts_with("STATUS=Serving"));
    assert_eq!(told.len(), 1, "somebody called a server with a hanging shard alive: {told:?}");
    manager.until("it is alive", |line| line == "WATCHDOG=1");
}

fn a_passed_socket_is_served_by_every_shard(driver: Driver) {
    let passed = listening();
    let server = Server::builder().driver(driver).shards(2).pass(&passed, "corecast.socket").start();
    assert_eq!(server.address(), passed.local_addr().unwrap().as_socket().unwrap());
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", MEMBERS);
    swarm.wait_open();
    server.publish("lobby", &payload('P', 1, 32));
    swarm.wait_all("everybody hears it", |member| member.tally('P').is_exactly(1, 1));

    for stopped in ["shard-0", "shard-1"] {
        let _stopped = server.stop_thread(stopped);
        let answer = http::request(server.address(), "GET", "/livez", &[]);
        assert_eq!(answer.expect("the other shard answers").status, 200, "{stopped} stands still");
    }
}

fn who_waits_in_the_queue_of_a_passed_socket_is_served_by_the_next_process(driver: Driver) {
    let passed = listening();
    let hour = Duration::from_secs(3600);
    let start = || Server::builder().driver(driver).shards(1).pass(&passed, "corecast.socket");
    let mut first = start().drain(hour).start();
    let swarm = Swarm::new();
    // One that will not answer its Close frame keeps the first process draining.
    let stuck = swarm.add(first.address(), "/ws?room=lobby");
    let told = swarm.add(first.address(), "/ws?room=lobby");
    swarm.wait_open();
    swarm.stall(stuck);
    first.signal(Signal::TERM);
    swarm.wait_each([told], "it is told to come back", |member| member.close_code == Some(1012));

    let newcomers = swarm.add_many(first.address(), "/ws?room=lobby", MEMBERS);
    first.signal(Signal::TERM);
    first.wait_exit(SOON);
    let joining = |member: &Member| member.phase() == &Phase::Joining;
    assert!(newcomers.clone().all(|index| swarm.look(index, joining)), "somebody was answered or reset");
    let second = start().start();

    swarm.wait_each(newcomers.clone(), "the next process serves them", Member::is_open);
    second.publish("lobby", &payload('P', 1, 32));
    swarm.wait_each(newcomers, "they hear the room", |member| member.tally('P').is_exactly(1, 1));
}

#[test]
fn a_passed_socket_named_admin_is_the_admin_address() {
    let [clients, admin] = [listening(), listening()];
    let server = Server::builder().pass(&clients, "clients").pass(&admin, "admin").start();
    let address = admin.local_addr().unwrap().as_socket().unwrap();
    assert_eq!(server.admin_address(), address);
    let status = |address, target| http::request(address, "GET", target, &[]).expect("it answers").status;
    assert_eq!((status(address, "/metrics"), status(server.address(), "/metrics")), (200, 404));
}

#[test]
fn what_is_passed_and_cannot_be_served_is_refused_with_its_name() {
    let datagram = UdpSocket::bind(LOOPBACK).unwrap();
    let scratch = Scratch::new();
    let unix = UnixListener::bind(scratch.path("socket")).unwrap();
    let tcp = listening();
    let builder = Server::builder;
    let many = (0..9).fold(builder(), |builder, _| builder.pass(&tcp, "many"));
    for (server, word) in [
        (builder().pass(&datagram, "odd"), "descriptor 3 (\"odd\") was passed and is a datagram socket"),
        (
            builder().pass(&tcp, "good").pass(&unix, "odd"),
            "descriptor 4 (\"odd\") was passed and is a Unix socket",
        ),
        (builder().pass(&tcp, "admin").pass(&tcp, "admin"), "two sockets named \"admin\""),
        (many, "LISTEN_FDS=\"9\""),
        // Promised, and not there.
        (
            builder().pass(&tcp, "").env("LISTEN_FDS", "2"),
            "descriptor 4 (\"\") was passed, but can't be used",
        ),
    ] {
        let finished = server.start_in_vain();
        assert_eq!(finished.code(), Some(78), "{finished:?}");
        assert!(finished.stderr.contains(word), "{word:?} is missing in: {finished:?}");
    }
}

#[test]
fn sockets_that_were_passed_to_another_process_are_not_taken() {
    let server = Server::builder().env("LISTEN_FDS", "1").env("LISTEN_PID", "1").start();
    Client::join(&server, "lobby").leave();
}

/// Debian's package systemd has the tool; a service manager need not run.
#[test]
fn systemd_finds_no_fault_in_the_units() {
    if !analyze(&["--version"]).status.success() {
        eprintln!("not run: no systemd-analyze");
        return;
    }
    let scratch = Scratch::new();
    for (name, instance) in UNITS {
        let unit = unit(name).replace("/usr/local/bin/corecast", program::path().to_str().unwrap());
        scratch.write(name, &unit);
        // What the template wants of the host.
        if name != instance {
            std::os::unix::fs::symlink(scratch.path(name), scratch.path(instance)).unwrap();
        }
    }
    for (_, instance) in UNITS {
        let path = scratch.path(instance);
        let verified = analyze(&["verify", "--man=no", "--recursive-errors=no", path.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(verified.status.success() && !said.contains("corecast"), "{instance}: {said}");
    }
}

#[test]
fn systemd_calls_the_services_well_confined() {
    if !analyze(&["--version"]).status.success() {
        eprintln!("not run: no systemd-analyze");
        return;
    }
    let scratch = Scratch::new();
    for name in SERVICES {
        let path = scratch.write(&name.replace('@', ""), &unit(name));
        // In tenths; a service without any of it has 9.6.
        let judged = analyze(&["security", "--offline=yes", "--threshold=20", path.to_str().unwrap()]);
        assert!(judged.status.success(), "{name}: {judged:?}");
    }
}

#[test]
fn the_system_calls_that_the_services_may_make_include_those_of_io_uring_and_of_pinning() {
    for name in SERVICES {
        let unit = unit(name);
        let filters: Vec<&str> =
            unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")).collect();
        assert_eq!(filters, ["@system-service"], "{name}");
    }
    let listed = analyze(&["syscall-filter", "@system-service", "@aio", "@resources"]);
    if !listed.status.success() {
        eprintln!("not run: no systemd-analyze");
        return;
    }
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let calls: Vec<&str> = listed.lines().map(str::trim).collect();
    for call in
        ["@aio", "@resources", "io_uring_setup", "io_uring_enter", "io_uring_register", "sched_setaffinity"]
    {
        assert!(calls.contains(&call), "{call} is not allowed");
    }
}

#[test]
fn the_template_differs_from_the_service_in_what_a_process_has_of_its_own() {
    let settings = |name| {
        let unit = unit(name);
        let lines = unit.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let [one, many] = SERVICES.map(settings);
    let only_in =
        |these: &[String], those: &[String]| these.iter().filter(|line| !those.contains(line)).count();
    assert_eq!(only_in(&one, &many), 1, "its description");
    assert_eq!(only_in(&many, &one), 3, "its description, its environment, its capabilities");
}

#[test]
fn the_environment_file_is_a_configuration() {
    let text = unit("corecast.env");
    // What is commented out is meant to be taken, but for the paths of files that are not there.
    let lines = text
        .lines()
        .map(|line| line.strip_prefix("#CORECAST").map_or(line.to_owned(), |rest| format!("CORECAST{rest}")));
    let variables: Vec<(String, String)> = lines
        .filter(|line| line.starts_with("CORECAST_") && !line.starts_with("CORECAST_CONFIG="))
        .filter_map(|line| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
        .collect();
    assert!(variables.len() >= 6, "{variables:?}");
    let mut command = program::command();
    command.arg("check-config").envs(variables);
    let finished = program::finish(command, Confinement::default());
    assert_eq!((finished.code(), &*finished.stdout, &*finished.stderr), (Some(0), "ok\n", ""));
}

fn unit(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What systemd-analyze says; a failure where it is not installed.
fn analyze(args: &[&str]) -> Output {
    Command::new("systemd-analyze").args(args).stdin(Stdio::null()).output().unwrap_or_else(|error| Output {
        status: ExitStatus::from_raw(1),
        stdout: Vec::new(),
        stderr: error.to_string().into_bytes(),
    })
}

const SERVICES: [&str; 2] = ["corecast.service", "corecast@.service"];
/// Files, and what they are verified as.
const UNITS: [(&str, &str); 3] = [
    ("corecast.service", "corecast.service"),
    ("corecast.socket", "corecast.socket"),
    ("corecast@.service", "corecast@1.service"),
];
const LOOPBACK: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
const MEMBERS: usize = 100;
const DRAIN: Duration = Duration::from_secs(2);
const WATCHDOG: Duration = Duration::from_secs(3);

/// A socket as systemd makes one: blocking, and with a queue that holds all members.
fn listening() -> socket2::Socket {
    let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.bind(&LOOPBACK.into()).unwrap();
    socket.listen(4096).unwrap();
    socket
}
