//! Why a connection is slow: `/stats` tells a reader that doesn't read from a network that doesn't carry.

use std::fs::File;
use std::process::Stdio;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::support::deadline::{LONG, eventually_ok};
use crate::support::netns::Netns;
use crate::support::on_both_drivers;
use crate::support::payload::payload;
use crate::support::program::{self, Running};
use crate::support::server::{Driver, Server};
use crate::support::swarm::Swarm;

on_both_drivers!(
    a_reader_that_does_not_read_is_told_from_the_network,
    a_network_that_does_not_carry_is_told_from_the_reader,
);

fn a_reader_that_does_not_read_is_told_from_the_network(driver: Driver) {
    let server = Server::builder().driver(driver).shards(1).start();
    let swarm = Swarm::new();
    let stuck = swarm.add_with(server.address(), "/ws?room=lobby", Some(16 * 1024));
    let reading = swarm.add(server.address(), "/ws?room=lobby");
    swarm.wait_open();
    swarm.stall(stuck);
    let told = publish_until(&server, "reader");
    assert_eq!(told.as_array().map(Vec::len), Some(1), "who reads is not among them: {told}");
    let tcp = &told[0]["tcp"];
    assert!(tcp["unsent_bytes"].as_u64() > Some(0), "{told}");
    assert_eq!(tcp["retransmits_in_a_row"], 0, "{told}");
    assert_counted(&server, "reader");
    swarm.wait_each([reading], "the other one stays", |member| member.is_open());
}

fn a_network_that_does_not_carry_is_told_from_the_reader(driver: Driver) {
    let (Some(here), Some(there)) = (Netns::new(), Netns::new()) else { return };
    here.link(HERE, &there, THERE);
    // 2 KiB a second: eight seconds for a message, and a queue that holds less than half a segment.
    let tbf = "tc qdisc add dev eth0 root tbf rate 16kbit burst 3kb latency 50ms";
    let limited = here.command(&tbf.split(' ').collect::<Vec<_>>()).output();
    if limited.as_ref().is_ok_and(|output| !output.status.success()) {
        eprintln!("SKIPPED: this kernel limits no rate: {limited:?}");
        return;
    }
    let entered = File::open(format!("/run/netns/{}", here.name())).expect("ip keeps them there");
    let story = thread::spawn(move || {
        // From here on everything that this thread opens or starts is in there.
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&entered), Some(LinkNameSpaceType::Network))
            .expect("root may enter");
        let listen = format!("{HERE}:0").parse().expect("an address");
        let server = Server::builder().driver(driver).shards(1).listen(listen).admin().start();
        let url = format!("ws://{}/ws?room=lobby", server.address());
        let binary = program::path();
        let mut subscribe = there.command(&[&binary.to_string_lossy(), "subscribe", "--url", &url]);
        subscribe.stdout(Stdio::null()).stderr(Stdio::null());
        let _subscriber = Running(subscribe.spawn().expect("ip runs"));
        server.wait_metrics("the subscriber has joined", |page| page.sum("corecast_subscriptions") == 1.0);
        let told = publish_until(&server, "network");
        let tcp = &told[0]["tcp"];
        assert!(tcp["window_bytes"].as_u64() > tcp["segment_bytes"].as_u64(), "its window is open: {told}");
        assert!(tcp["unacked_segments"].as_u64() > Some(0), "{told}");
        assert_counted(&server, "network");
    });
    story.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Publishes until somebody is stuck for `cause`; returns all who are.
#[track_caller]
fn publish_until(server: &Server, cause: &str) -> Value {
    let mut sequence = 0;
    eventually_ok(LONG, "somebody is stuck", || {
        // More than the kernel takes, and less than makes a client too slow.
        if sequence < 30 {
            sequence += 1;
            server.publish("lobby", &payload('P', sequence, 16 * 1024));
        }
        let mut told = server.stats()["slow"]["slowest"].take();
        if told[0]["cause"] == cause { Ok(told.take()) } else { Err(told) }
    })
}

/// Publishes until the stuck one is given up, and expects that it is counted for `cause`.
#[track_caller]
fn assert_counted(server: &Server, cause: &str) {
    let mut sequence = 1000;
    eventually_ok(LONG, "it is given up", || {
        sequence += 1;
        server.publish("lobby", &payload('P', sequence, 16 * 1024));
        let page = server.metrics();
        if page.closed_as_slow() == 1.0 { Ok(()) } else { Err(format!("{page:?}")) }
    });
    let page = server.metrics();
    let told = page.show("corecast_slow_connections_total");
    assert_eq!(page.labelled("corecast_slow_connections_total", "cause", cause), 1.0, "{told}");
    assert_eq!(page.sum("corecast_slow_connections_total"), 1.0, "{told}");
    assert_eq!(server.stats()["slow"]["found"][cause], 1);
}

const HERE: &str = "10.83.0.1";
const THERE: &str = "10.83.0.2";
