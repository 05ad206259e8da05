//! `--processes N`: a parent that holds the sockets, and processes that come and go.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::client::Client;
use crate::support::deadline::{LONG, SOON, eventually};
use crate::support::http;
use crate::support::kernel::{is_running, signal, stop};
use crate::support::manager::Manager;
use crate::support::on_both_drivers;
use crate::support::payload::payload;
use crate::support::publisher::Publisher;
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server, ServerBuilder};
use crate::support::speaker::Speaker;
use crate::support::swarm::{Member, Phase, Swarm};

on_both_drivers!(
    the_processes_of_one_server_share_its_connections_and_hear_each_other,
    a_process_that_is_killed_under_load_costs_only_its_own_clients,
    who_waits_in_the_queue_of_a_killed_process_is_served_by_its_successor,
    sigterm_says_1001_to_the_clients_of_all_and_ends_with_0,
);

fn the_processes_of_one_server_share_its_connections_and_hear_each_other(driver: Driver) {
    let redis = Redis::start();
    let server = start(&redis, driver);
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", MEMBERS);
    swarm.wait_open();
    let members = subscriptions(&server);
    assert_eq!(members.iter().sum::<f64>(), MEMBERS as f64);
    assert!(members.iter().all(|count| *count > 0.0), "the port was not shared: {members:?}");

    for sequence in 1..=20 {
        swarm.send_text(0, &payload('A', sequence, 32));
        redis.publish("room:lobby", payload('R', sequence, 32));
    }

    swarm.wait_all("everybody heard a client and Redis", |member| {
        ['A', 'R'].iter().all(|&publisher| member.tally(publisher).is_exactly(1, 20))
    });
}

fn a_process_that_is_killed_under_load_costs_only_its_own_clients(driver: Driver) {
    let redis = Redis::start();
    let server = start(&redis, driver);
    let load = Publisher::start(&redis, &["room:lobby".to_owned()], 'P', 128, 200);
    let swarm = Swarm::with_clock(load.started_probe());
    swarm.add_many(server.address(), "/ws?room=lobby", MEMBERS);
    swarm.wait_open();
    let [survivors, lost] = subscriptions(&server)[..] else { panic!("two processes were due") };
    let killed = server.processes()[1];

    signal(killed, Signal::KILL);
    eventually(SOON, "its clients lose their connection", || {
        swarm.count(|member| !member.is_open()) >= lost as usize
    });
    assert_eq!(swarm.count(Member::is_open), survivors as usize, "and nobody else does");
    let returned = swarm.add_many(server.address(), "/ws?room=lobby", lost as usize);
    swarm.wait_each(returned.clone(), "they are let in at once", Member::is_open);
    eventually(SOON, "the process has a successor", || {
        server.processes().len() == 2 && server.processes()[1] != killed
    });
    let seen = load.accepted();
    eventually(LONG, "the load goes on", || load.accepted() >= seen + 200);
    let last = load.stop().last().expect("publications were accepted").sequence;

    let open = swarm.map(Member::is_open);
    let listening = (0..swarm.len()).filter(|index| open[*index]);
    swarm.wait_each(listening, "everybody who is there hears the end of it", |m| m.tally('P').last == last);
    swarm.wait_each(0..swarm.len(), "nobody missed anything while he was there", |member| {
        let tally = member.tally('P');
        tally.holes.is_empty() && tally.backwards == 0 && tally.first <= member.joined_at + 1
    });
    let how = format!("pid {killed}, signal: 9");
    server.wait_log("how it ended is told", |line| line.contains("a process died") && line.contains(&how));
    server.wait_metrics("the restart is counted", |page| {
        page.labelled("corecast_process_restarts_total", "process", "1") == 1.0
            && page.sum("corecast_processes") == 2.0
    });
}

fn who_waits_in_the_queue_of_a_killed_process_is_served_by_its_successor(driver: Driver) {
    let redis = Redis::start();
    let server = start(&redis, driver);
    let stopped = server.processes()[0];
    // While it stands still the kernel takes connections on its behalf.
    stop(stopped);
    let swarm = Swarm::new();
    let all = swarm.add_many(server.address(), "/ws?room=lobby", MEMBERS);
    eventually(SOON, "the other process has let its share in", || {
        let open = swarm.count(Member::is_open);
        open >= MEMBERS / 4 && open + swarm.count(|m| m.phase() == &Phase::Joining) == MEMBERS
    });
    signal(stopped, Signal::KILL);

    swarm.wait_each(all, "everybody is let in", Member::is_open);
    redis.publish("room:lobby", payload('R', 1, 32));
    swarm.wait_all("and hears the room", |member| member.tally('R').is_exactly(1, 1));
}

#[test]
fn who_connects_while_a_process_dies_again_and_again_reaches_the_others_at_once() {
    let redis = Redis::start();
    let server = builder(&redis, Driver::IoUring).config("").start();
    server.wait_brokers(2);
    server.rewrite_config("nonsense = 1\n");
    signal(server.processes()[1], Signal::KILL);
    server.wait_metrics("its successors have died one after the other", |page| {
        page.labelled("corecast_process_restarts_total", "process", "1") >= 4.0
    });

    let swarm = Swarm::new();
    let began = Instant::now();
    swarm.add_many(server.address(), "/ws?room=lobby", 50);
    swarm.wait_open();
    // A queue that a dead process left would never be served; the rest is for a busy machine.
    assert!(began.elapsed() < SOON / 2, "it took {:?}", began.elapsed());

    server.rewrite_config("");
    server.wait_brokers(2);
    swarm.add_many(server.address(), "/ws?room=lobby", MEMBERS);
    swarm.wait_open();
    assert!(subscriptions(&server).iter().all(|count| *count > 0.0), "its queue is open again");
}

fn sigterm_says_1001_to_the_clients_of_all_and_ends_with_0(driver: Driver) {
    let redis = Redis::start();
    let mut server = start(&redis, driver);
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", MEMBERS);
    swarm.wait_open();
    let processes = server.processes();

    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit(SOON).code(), Some(0));

    swarm.wait_all("everybody's TCP ended in order", |member| member.phase() == &Phase::Ended);
    assert_eq!(swarm.count(|member| member.close_code == Some(1001)), MEMBERS);
    assert!(processes.iter().all(|pid| !is_running(*pid)), "a process outlived its parent");
}

#[test]
fn a_second_signal_ends_all_processes_at_once() {
    let redis = Redis::start();
    let hour = Duration::from_secs(3600);
    let mut server = draining_for(&redis, hour).start();
    server.wait_brokers(2);
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", 50);
    swarm.wait_open();
    // One that will not answer its Close frame, so that a drain has somebody to wait for.
    swarm.stall(0);
    server.signal(Signal::TERM);
    server.wait_log("the drain has begun", |line| line.contains("all processes drain"));

    let began = Instant::now();
    server.signal(Signal::INT);
    assert_eq!(server.wait_exit(SOON).code(), Some(0));
    assert!(began.elapsed() < SOON / 2, "it took {:?}", began.elapsed());
}

#[test]
fn a_second_signal_ends_a_process_that_hangs_too() {
    let redis = Redis::start();
    let hour = Duration::from_secs(3600);
    let mut server = draining_for(&redis, hour).start();
    server.wait_brokers(2);
    let hanging = server.processes()[1];
    stop(hanging);
    server.signal(Signal::TERM);
    server.wait_log("the drain has begun", |line| line.contains("all processes drain"));

    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit(SOON).code(), Some(0));
    assert!(!is_running(hanging));
}

#[test]
fn a_port_whose_processes_leave_refuses_also_where_one_of_them_was_dead() {
    let redis = Redis::start();
    let hour = Duration::from_secs(3600);
    let server = draining_for(&redis, hour).config("").start();
    server.wait_brokers(2);
    let swarm = Swarm::new();
    // Of an hour's drain a process closes one in a tenth of a second: half of these take it ten seconds.
    swarm.add_many(server.address(), "/ws?room=lobby", MEMBERS);
    swarm.wait_open();
    let [leaving, dead] = server.processes()[..] else { panic!("two processes were due") };
    server.rewrite_config("nonsense = 1\n");
    signal(dead, Signal::KILL);
    server.wait_metrics("its successor has died too", |page| {
        page.labelled("corecast_process_restarts_total", "process", "1") >= 2.0
    });

    server.signal(Signal::TERM);

    let refused = || (0..20).all(|_| http::connect(server.address()).is_err());
    eventually(SOON, "nobody waits in a queue without a process", refused);
    assert!(is_running(leaving), "only because all had ended");
    server.signal(Signal::TERM);
}

#[test]
fn processes_whose_parent_is_killed_drain_and_leave_the_port() {
    let redis = Redis::start();
    let mut server = start(&redis, Driver::IoUring);
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", 50);
    swarm.wait_open();
    let processes = server.processes();

    server.kill9();

    swarm.wait_all("everybody is told", |member| matches!(member.close_code, Some(1001)));
    eventually(LONG, "no process lingers", || processes.iter().all(|pid| !is_running(*pid)));
    let again = builder(&redis, Driver::IoUring).listen(server.address()).start();
    Client::join(&again, "lobby").leave();
}

#[test]
fn a_signal_to_one_process_replaces_that_one_before_it_has_drained() {
    let redis = Redis::start();
    let hour = Duration::from_secs(3600);
    let server = draining_for(&redis, hour).start();
    server.wait_brokers(2);
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", MEMBERS);
    swarm.wait_open();
    let [kept, leaving] = server.processes()[..] else { panic!("two processes were due") };

    signal(leaving, Signal::TERM);

    eventually(SOON, "it has a successor", || {
        let now = server.processes();
        now.len() == 2 && now[1] != leaving
    });
    let newcomers = swarm.add_many(server.address(), "/ws?room=lobby", MEMBERS);
    swarm.wait_each(newcomers, "newcomers are served meanwhile", Member::is_open);
    let processes = server.processes();
    assert!(processes[0] == kept && processes[1] != leaving && is_running(leaving), "{processes:?}");
    eventually(SOON, "its clients are told one by one", || swarm.count(|m| m.close_code == Some(1012)) > 0);
    assert_eq!(server.stats()["processes"][1]["leaving"][0], leaving);
    assert_eq!(server.metrics().sum("corecast_process_restarts_total"), 0.0);
    signal(leaving, Signal::KILL);
}

#[test]
fn processes_serve_without_redis_once_they_have_waited_for_it() {
    let mut redis = Redis::start();
    redis.kill9();
    let server = Server::builder().processes(2).redis_url(&redis.url()).shards(1).admin().start();
    let mut client = Client::join(&server, "lobby");
    redis.restart();
    server.wait_brokers(2);
    server.publish("lobby", b"now it is there");
    assert_eq!(client.next_text(), "now it is there");
}

#[test]
fn sighup_to_a_parent_is_answered_in_the_log_and_ends_nothing() {
    let redis = Redis::start();
    let server = start(&redis, Driver::Epoll);
    let processes = server.processes();
    server.signal(Signal::HUP);
    server.wait_log("it says so", |line| line.contains("nothing is reloaded yet"));
    assert_eq!(server.get("/readyz").status, 200);
    assert_eq!(server.processes(), processes);
}

#[test]
fn every_line_of_the_log_tells_which_process_it_is_of() {
    let redis = Redis::start();
    let server = start(&redis, Driver::Epoll);
    let of = |line: &str| line.split_whitespace().last().map(str::to_owned);
    for process in ["process=0", "process=1"] {
        server.wait_log("each tells that it serves", |line| {
            line.contains(" serves url=") && of(line).as_deref() == Some(process)
        });
    }
}

#[test]
fn several_processes_without_redis_are_refused_with_78() {
    for server in [Server::builder(), Server::builder().preset("event-fanout")] {
        let finished = server.processes(2).start_in_vain();
        assert_eq!(finished.code(), Some(78), "{finished:?}");
        for part in ["2 processes", "due Redis", "--redis"] {
            assert!(finished.stderr.contains(part), "{part:?} is missing in: {finished:?}");
        }
    }
}

#[test]
fn what_keeps_the_first_processes_from_starting_is_the_parents_exit_code() {
    let redis = Redis::start();
    let finished = builder(&redis, Driver::IoUring).without_io_uring().start_in_vain();
    assert_eq!(finished.code(), Some(69), "{finished:?}");
    assert!(finished.stderr.contains("io_uring can't be used"), "{finished:?}");
}

#[test]
fn a_variable_that_only_a_parent_sets_is_refused_with_a_word() {
    let finished = Server::builder().env("CORECAST_PROCESS", "0").start_in_vain();
    assert_eq!(finished.code(), Some(78), "{finished:?}");
    assert!(finished.stderr.contains("unset it"), "{finished:?}");
}

#[test]
fn processes_with_one_name_hear_each_others_publications() {
    let redis = Redis::start();
    // This preset tells a node's own publications by the node's name and leaves them out.
    let server = Server::builder()
        .preset("backbone")
        .redis(&redis)
        .processes(2)
        .shards(1)
        .arg("--node-id")
        .arg("one")
        .admin()
        .start();
    server.wait_brokers(2);
    let names = server.stats()["processes"].as_array().map(|processes| {
        processes
            .iter()
            .map(|process| process["node"].as_str().unwrap_or_default().to_owned())
            .collect::<Vec<_>>()
    });
    let names = names.expect("the processes are told");
    assert!(names[0].starts_with("one-0-") && names[1].starts_with("one-1-"), "{names:?}");

    let mut members = Vec::new();
    let mut processes = [0.0; 2];
    while processes.contains(&0.0) {
        assert!(members.len() < MEMBERS, "all went to one process: {processes:?}");
        members.push(Speaker::in_room(server.address(), "lobby"));
        let page = server.metrics();
        processes = ["0", "1"].map(|process| page.labelled("corecast_subscriptions", "process", process));
    }
    for speaker in 0..members.len() {
        members[speaker].say(&serde_json::json!({ "type": "message", "room": "lobby", "data": speaker }));
        for member in &mut members {
            assert_eq!(member.hear_data("message", "lobby"), speaker, "each hears each, and once");
        }
    }
}

#[test]
fn the_manager_is_told_by_the_parent_alone() {
    let (manager, redis) = (Manager::new(), Redis::start());
    let watchdog = Duration::from_secs(4);
    let mut server = builder(&redis, Driver::Epoll)
        .manager(&manager)
        .env("WATCHDOG_USEC", &watchdog.as_micros().to_string())
        .start();
    let serving = format!("STATUS=Serving {} with 2 of 2 processes", server.address());
    let first = manager.until("it is ready", |line| line == "READY=1");
    assert_eq!(first.last().and_then(|lines| lines.get(1)), Some(&serving), "{first:?}");
    manager.until("it is alive", |line| line == "WATCHDOG=1");

    let hanging = server.processes()[1];
    stop(hanging);
    manager.until("a hanging process is replaced", |line| line.ends_with("with 1 of 2 processes"));
    manager.until("its successor serves", |line| line == serving);
    assert!(!is_running(hanging));

    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit(SOON).code(), Some(0));
    let told = manager.until("it stops", |line| line == "STOPPING=1");
    assert!(told.iter().flatten().all(|line| line != "READY=1"), "a child spoke for all: {told:?}");
}

#[test]
fn the_manager_waits_as_long_as_the_slowest_process_may_take() {
    let (manager, redis) = (Manager::new(), Redis::start());
    let server = Server::event_fanout(&redis, Driver::Epoll)
        .processes(2)
        .admin()
        .config("drain = \"2s\"\n")
        .manager(&manager)
        .start();
    server.wait_brokers(2);
    // Only the successor knows of this.
    server.rewrite_config("drain = \"30s\"\n");
    let killed = server.processes()[1];
    signal(killed, Signal::KILL);
    eventually(SOON, "it has a successor", || server.processes().get(1).is_some_and(|pid| *pid != killed));
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", 20);
    swarm.wait_open();
    (0..20).for_each(|member| swarm.stall(member));

    server.signal(Signal::TERM);

    let limit = |line: &str| line.strip_prefix("EXTEND_TIMEOUT_USEC=")?.parse::<u64>().ok();
    let first = manager.until("it stops", |line| line == "STOPPING=1");
    let first = first.iter().flatten().find_map(|line| limit(line));
    // 2 s of drain; a process is killed 10 s later, and the manager waits for 5 s more.
    assert_eq!(first, Some(17_000_000));
    manager.until("it takes longer", |line| limit(line) > Some(40_000_000));
    server.signal(Signal::TERM);
}

#[test]
fn a_passed_socket_is_served_by_every_process() {
    let redis = Redis::start();
    let passed = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let server = builder(&redis, Driver::IoUring).pass(&passed, "corecast.socket").start();
    assert_eq!(server.address(), passed.local_addr().expect("it is bound"));
    server.wait_brokers(2);
    // Whoever is idle accepts, so each is given the other's absence.
    for stopped in server.processes() {
        stop(stopped);
        let mut client = Client::join(&server, "lobby");
        redis.publish("room:lobby", "hello");
        assert_eq!(client.next_text(), "hello");
        signal(stopped, Signal::CONT);
    }
}

/// Two processes of one shard each, that reach Redis.
#[track_caller]
pub fn start(redis: &Redis, driver: Driver) -> Server {
    let server = builder(redis, driver).start();
    server.wait_brokers(2);
    server
}

pub fn builder(redis: &Redis, driver: Driver) -> ServerBuilder {
    Server::event_fanout(redis, driver).processes(2).admin().drain(Duration::from_secs(2))
}

pub fn draining_for(redis: &Redis, drain: Duration) -> ServerBuilder {
    Server::event_fanout(redis, Driver::IoUring).processes(2).admin().drain(drain)
}

/// Members of each process.
pub fn subscriptions(server: &Server) -> Vec<f64> {
    let page = server.metrics();
    let of = |process: usize| page.labelled("corecast_subscriptions", "process", &process.to_string());
    (0..2).map(of).collect()
}

pub const MEMBERS: usize = 200;
