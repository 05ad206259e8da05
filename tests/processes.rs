//! Several processes, one room: on ports of their own, on one port together, or on one port behind a parent.

mod admin;
mod leaving;
mod nginx;
mod parent;
mod rolling;
mod steering;

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::client::Client;
use crate::support::deadline::{SOON, eventually};
use crate::support::on_both_drivers;
use crate::support::payload::payload;
use crate::support::program::{self, Running};
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server};
use crate::support::swarm::{Phase, Swarm};

on_both_drivers!(
    two_processes_on_one_port_share_the_connections_and_hear_each_other,
    when_one_of_two_processes_on_a_port_is_killed_the_other_serves_on,
    when_one_of_two_processes_on_a_port_drains_the_other_serves_on,
    who_is_started_where_a_server_was_killed_a_moment_ago_serves,
);

fn two_processes_on_one_port_share_the_connections_and_hear_each_other(driver: Driver) {
    let redis = Redis::start();
    let (first, second) = two_on_one_port(&redis, driver);
    let swarm = Swarm::new();
    swarm.add_many(first.address(), "/ws?room=lobby", MEMBERS);
    swarm.wait_open();
    let members = [&first, &second].map(|server| server.metrics().sum("corecast_subscriptions"));
    assert_eq!(members.iter().sum::<f64>(), MEMBERS as f64);
    assert!(members.iter().all(|&count| count > 0.0), "the port was not shared: {members:?}");

    for sequence in 1..=20 {
        swarm.send_text(0, &payload('A', sequence, 32));
        swarm.send_text(MEMBERS - 1, &payload('Z', sequence, 32));
        redis.publish("room:lobby", payload('R', sequence, 32));
    }

    swarm.wait_all("everybody heard the clients and Redis", |member| {
        ['A', 'Z', 'R'].iter().all(|&publisher| member.tally(publisher).is_exactly(1, 20))
    });
}

fn when_one_of_two_processes_on_a_port_is_killed_the_other_serves_on(driver: Driver) {
    let redis = Redis::start();
    let (mut first, second) = two_on_one_port(&redis, driver);
    let swarm = Swarm::new();
    swarm.add_many(second.address(), "/ws?room=lobby", MEMBERS);
    swarm.wait_open();
    let survivors = second.metrics().sum("corecast_subscriptions") as usize;

    first.kill9();
    swarm.wait_all("the killed one's connections end", |m| m.is_open() || m.phase() != &Phase::Joining);
    eventually(SOON, "only the other's members are left", || {
        swarm.count(|member| member.is_open()) == survivors
    });
    let newcomers = swarm.add_many(second.address(), "/ws?room=lobby", 20);
    swarm.wait_each(newcomers.clone(), "newcomers reach the survivor", |member| member.is_open());
    redis.publish("room:lobby", payload('R', 1, 32));

    swarm.wait_each(newcomers, "they hear the room", |member| member.tally('R').is_exactly(1, 1));
    assert_eq!(swarm.count(|member| member.tally('R').received == 1), survivors + 20);
}

fn when_one_of_two_processes_on_a_port_drains_the_other_serves_on(driver: Driver) {
    let redis = Redis::start();
    let (mut first, second) = two_on_one_port(&redis, driver);
    let swarm = Swarm::new();
    swarm.add_many(second.address(), "/ws?room=lobby", MEMBERS);
    swarm.wait_open();
    let survivors = second.metrics().sum("corecast_subscriptions") as usize;

    first.signal(Signal::TERM);
    assert_eq!(first.wait_exit(SOON).code(), Some(0));

    swarm.wait_all("nobody is left in between", |m| m.is_open() || m.phase() == &Phase::Ended);
    assert_eq!(swarm.count(|member| member.is_open()), survivors);
    let told = swarm.count(|member| member.close_code == Some(1012));
    assert_eq!(told, MEMBERS - survivors, "{:?}", swarm.map(|member| member.close_code));
    let mut client = Client::join(&second, "lobby");
    redis.publish("room:lobby", "still here");
    assert_eq!(client.next_text(), "still here");
}

/// The kernel ends the rings of a killed process, and with them its sockets, after its parent has been told.
fn who_is_started_where_a_server_was_killed_a_moment_ago_serves(driver: Driver) {
    let mut server = Server::builder().driver(driver).admin().start();
    let (address, admin) = (server.address(), server.admin_address().to_string());
    for _ in 0..5 {
        server.kill9();
        server = Server::builder().driver(driver).listen(address).arg("--admin").arg(&admin).start();
        assert_eq!(server.get("/livez").status, 200);
    }
}

#[test]
fn a_server_that_ends_leaves_the_ports_file_of_the_next_one_and_removes_its_own() {
    let mut first = Server::builder().start();
    let path = first.ports_file();
    let mut command = program::command();
    command.args(["serve", "--listen", "127.0.0.1:0", "--log-level", "error", "--ports-file"]).arg(&path);
    let mut second = Running(command.spawn().expect("the binary runs"));
    let names_the_second = || program::text(&path).contains(&format!("\"pid\":{}", second.pid()));
    eventually(SOON, "the second has written it", names_the_second);

    first.signal(Signal::TERM);
    assert_eq!(first.wait_exit(SOON).code(), Some(0));
    assert!(names_the_second(), "{:?}", program::text(&path));
    kill_process(Pid::from_child(&second.0), Signal::TERM).expect("it runs");
    second.wait(SOON, "the second ends");
    assert!(!path.exists());
}

#[test]
fn processes_on_ports_of_their_own_fan_out_to_each_others_clients() {
    let redis = Redis::start();
    let drivers = [Driver::IoUring, Driver::Epoll];
    let servers = drivers.map(|driver| Server::event_fanout(&redis, driver).start());
    let mut clients = servers.each_ref().map(|server| Client::join(server, "lobby"));

    clients[0].send_text("from the first");
    clients[1].send_text("from the second");

    for client in &mut clients {
        let mut heard = [client.next_text(), client.next_text()];
        heard.sort();
        assert_eq!(heard, ["from the first", "from the second"]);
    }
}

#[test]
fn a_second_process_with_the_same_admin_address_ends_with_73_and_says_why() {
    let first = Server::builder().admin().start();
    let admin = first.admin_address().to_string();
    let finished = Server::builder().arg("--admin").arg(&admin).start_in_vain();
    assert_eq!(finished.code(), Some(73), "{finished:?}");
    for part in [&*admin, "one process's own", "--admin"] {
        assert!(finished.stderr.contains(part), "{part:?} is missing in: {finished:?}");
    }
}

#[test]
fn two_servers_without_redis_on_one_port_split_no_audience_the_second_ends_with_73() {
    let first = Server::builder().shards(2).start();
    for second in [Server::builder(), Server::builder().preset("event-fanout")] {
        let finished = second.listen(first.address()).start_in_vain();
        assert_eq!(finished.code(), Some(73), "{finished:?}");
        for part in [&*first.address().to_string(), "serves there already", "sharing a port needs Redis"] {
            assert!(finished.stderr.contains(part), "{part:?} is missing in: {finished:?}");
        }
    }
    assert_eq!(first.get("/livez").status, 200);
}

/// Each with an admin address of its own, because the kernel chooses who answers on the shared one.
fn two_on_one_port(redis: &Redis, driver: Driver) -> (Server, Server) {
    let start = || Server::event_fanout(redis, driver).admin().drain(Duration::from_secs(2));
    let first = start().start();
    let second = start().listen(first.address()).start();
    (first, second)
}

const MEMBERS: usize = 200;
