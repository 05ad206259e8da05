//! `--steer cpu`: who is received on a core is served by its shard.

use std::net::TcpStream;
use std::thread;

use super::parent::builder;
use crate::support::deadline::{SOON, eventually};
use crate::support::kernel;
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server};

#[test]
fn connections_go_to_the_shard_of_the_core_that_received_them() {
    let Some([first, second]) = two_cores() else { return };
    let cores = format!("{second},{first}");
    let server = Server::builder().shards(2).arg("--cores").arg(&cores).arg("--steer").arg("cpu").start();
    // On loopback that core is the client's.
    let _clients = connect_from(first, &server);
    eventually(SOON, "the second shard has them all", || {
        let shards = &server.stats()["shards"];
        shards[1]["connections"].as_u64() >= Some(20) && shards[0]["connections"].as_u64() <= Some(1)
    });
}

#[test]
fn connections_go_to_the_process_of_the_core_that_received_them() {
    let redis = Redis::start();
    let Some([first, second]) = two_cores() else { return };
    let cores = format!("{second},{first}");
    let server =
        builder(&redis, Driver::IoUring).arg("--cores").arg(&cores).arg("--steer").arg("cpu").start();
    let _clients = connect_from(first, &server);
    let connections = |process| server.metrics().labelled("corecast_connections", "process", process);
    eventually(SOON, "the second process has them all", || {
        connections("1") >= 20.0 && connections("0") <= 1.0
    });
}

#[test]
fn a_port_that_somebody_serves_is_not_steered() {
    let redis = Redis::start();
    let first = Server::event_fanout(&redis, Driver::Epoll).start();
    let second =
        Server::event_fanout(&redis, Driver::Epoll).listen(first.address()).arg("--steer").arg("cpu");
    let finished = second.start_in_vain();
    assert_eq!(finished.code(), Some(73), "{finished:?}");
    assert!(finished.stderr.contains("leave --steer out"), "{finished:?}");
}

#[test]
fn two_processes_on_one_core_are_not_steered() {
    let redis = Redis::start();
    let core = kernel::usable_cores()[0].to_string();
    // Without --shards: what says how many are due is refused before anybody looks at cores.
    let server = Server::builder().preset("event-fanout").redis(&redis).processes(2);
    let finished = server.arg("--steer").arg("cpu").arg("--cores").arg(&core).start_in_vain();
    // A fault of the command line.
    assert_eq!(finished.code(), Some(2), "{finished:?}");
    let due = format!("several shards on core {core}");
    assert!(finished.stderr.contains(&due), "{finished:?}");
}

fn two_cores() -> Option<[usize; 2]> {
    let cores = kernel::usable_cores();
    let two = cores.first_chunk().copied();
    if two.is_none() {
        eprintln!("not run: one core");
    }
    two
}

fn connect_from(core: usize, server: &Server) -> Vec<TcpStream> {
    let address = server.address();
    let connect = move || {
        kernel::pin(core);
        (0..20).map(|_| TcpStream::connect(address).expect("it listens")).collect()
    };
    thread::spawn(connect).join().expect("it connects")
}
