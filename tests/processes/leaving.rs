//! A process that leaves a port which others share: whoever connects meanwhile is served.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use socket2::{Domain, Socket, Type};

use super::two_on_one_port;
use crate::support::deadline::{SOON, eventually};
use crate::support::http;
use crate::support::on_both_drivers;
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server};
use crate::support::swarm::{Phase, Swarm};
use crate::support::wire;

on_both_drivers!(
    who_is_in_the_middle_of_a_handshake_when_a_process_leaves_the_port_is_not_reset,
    who_connects_while_one_of_two_processes_leaves_the_port_is_served,
    who_connects_while_the_only_process_on_a_port_leaves_is_refused_at_once,
);

fn who_is_in_the_middle_of_a_handshake_when_a_process_leaves_the_port_is_not_reset(driver: Driver) {
    let redis = Redis::start();
    let (first, second) = two_on_one_port(&redis, driver);
    let mut clients: Vec<TcpStream> = (0..100).map(|_| half_connected(second.address())).collect();
    first.signal(Signal::TERM);

    // Meanwhile the first process would close its queue, and their last ACKs go out.
    let reset = |client: &mut TcpStream| {
        let read = client.read(&mut [0]);
        read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
    };
    clients[0].set_read_timeout(Some(LAST_ACK * 3 / 2)).expect("a positive timeout");
    assert!(!reset(&mut clients[0]), "the first was reset");
    let answered = clients.iter_mut().map(|client| {
        client.set_read_timeout(Some(SOON))?;
        client.write_all(wire::upgrade(second.address(), "/ws?room=lobby").as_bytes())?;
        http::read_response(client, false).map(|answer| answer.status)
    });
    let answered: Vec<_> = answered.collect();
    // Let in, or refused for now because the request came late.
    let lost: Vec<_> = answered.iter().filter(|status| !matches!(status, Ok(101 | 503))).collect();
    assert!(lost.is_empty(), "{} of {} were lost: {lost:?}", lost.len(), answered.len());
    let served = answered.iter().filter(|status| matches!(status, Ok(101))).count();
    assert!(served >= answered.len() / 4, "the other process lets its share in: {served}");
}

/// A client whose kernel keeps the ACK that ends the handshake back until there is data to go with it, or for
/// [`LAST_ACK`]: to the server the connection is half open.
fn half_connected(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a descriptor is left");
    socket.set_tcp_quickack(false).expect("Linux has it");
    socket.connect(&address.into()).expect("it listens");
    socket.into()
}

/// `TCP_DELACK_MAX` of Linux.
const LAST_ACK: Duration = Duration::from_millis(200);

fn who_connects_while_one_of_two_processes_leaves_the_port_is_served(driver: Driver) {
    let redis = Redis::start();
    let (mut first, second) = two_on_one_port(&redis, driver);
    let swarm = Swarm::new();
    let (began, mut told) = (Instant::now(), false);
    // From before its signal until after its end connections come as fast as they can be made.
    while first.is_running() {
        assert!(began.elapsed() < SOON, "the process doesn't end");
        swarm.add_many(second.address(), "/ws?room=lobby", 20);
        if !told && swarm.len() > 200 {
            first.signal(Signal::TERM);
            told = true;
        }
        swarm.wait_some_joined();
    }

    swarm.wait_all("everybody is let in", |member| member.phase() != &Phase::Joining);
    let ends = swarm.map(|member| (member.phase().clone(), member.close_code));
    let served = |(phase, code): &(Phase, Option<u16>)| {
        *phase == Phase::Open || (*phase == Phase::Ended && *code == Some(1012))
    };
    let lost: Vec<_> = ends.iter().filter(|end| !served(end)).collect();
    assert!(lost.is_empty(), "{} of {} were lost: {lost:?}", lost.len(), ends.len());
}

fn who_connects_while_the_only_process_on_a_port_leaves_is_refused_at_once(driver: Driver) {
    let redis = Redis::start();
    let hour = Duration::from_secs(3600);
    let server = Server::event_fanout(&redis, driver).drain(hour).start();
    let swarm = Swarm::new();
    swarm.add(server.address(), "/ws?room=lobby");
    swarm.wait_open();
    server.signal(Signal::TERM);

    let mut took = Duration::ZERO;
    eventually(SOON, "the port refuses", || {
        let began = Instant::now();
        let is_refused = http::connect(server.address()).is_err();
        took = began.elapsed();
        is_refused
    });

    // A SYN that is turned away would wait for its retransmission, a second later.
    assert!(took < Duration::from_millis(900), "it took {took:?}");
}
