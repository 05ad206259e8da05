//! Settings for experiments take effect on a running server.

use std::fmt::Display;
use std::path::Path;
use std::process::Command;

use crate::support::client::Client;
use crate::support::deadline::{SOON, eventually};
use crate::support::program;
use crate::support::server::{Driver, Server};

#[test]
fn smaller_batches_take_more_system_calls() {
    const CLIENTS: usize = 48;
    let calls = |batch: &str| {
        let server = Server::builder().driver(Driver::IoUring).arg("--shards").arg("1");
        let server = server.arg("--batch-sends-max").arg(batch).start();
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::join(&server, "lobby")).collect();
        let counted = || server.metrics().sum("corecast_send_calls_total");
        // Calls are counted at the end of a turn: with those of the first publication the answers to the handshakes are.
        let mut before = 0.0;
        for at_least in [CLIENTS as f64, 0.0] {
            before = counted();
            server.publish("lobby", b"hello");
            for client in &mut clients {
                assert_eq!(client.next_text(), "hello");
            }
            eventually(SOON, "calls are counted", || counted() > before + at_least);
        }
        let after = counted();
        after - before
    };
    let (few, many) = (calls("256"), calls("4"));
    // 48 clients in batches of four are twelve calls; answers to the scrapes are sent, too.
    assert!(many >= 12.0 && few <= many / 3.0, "{few} calls with 256, {many} with 4");
}

#[test]
fn every_set_of_ring_flags_serves() {
    for setup in ["defer", "coop", "plain"] {
        let server = Server::builder().driver(Driver::IoUring).arg("--ring-setup").arg(setup).start();
        assert_eq!(server.metrics().labelled("corecast_driver_info", "driver", "io_uring"), 1.0, "{setup}");
        let mut client = Client::join(&server, "lobby");
        server.publish("lobby", b"hello");
        assert_eq!(client.next_text(), "hello", "{setup}");
    }
}

#[test]
fn clients_sockets_have_the_buffers_that_were_asked_for() {
    let flags =
        ["--socket-receive-bytes", "10KiB", "--socket-send-bytes", "20KiB", "--notsent-lowat", "4KiB"];
    let server = flags.iter().fold(Server::builder(), |server, flag| server.arg(flag)).start();
    let mut client = Client::join(&server, "lobby");
    server.publish("lobby", b"hello");
    assert_eq!(client.next_text(), "hello");
    let port = server.address().port();
    let mut command = Command::new("ss");
    command.args(["-tmHn", "state", "established", "sport", "="]).arg(format!(":{port}"));
    let Ok(output) = command.output() else {
        println!("no ss(8): the sockets were not looked at");
        return;
    };
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    // socket(7): the kernel doubles them.
    assert!(told.contains(",rb20480,") && told.contains(",tb40960,"), "{told}");
}

/// `THP_enabled` of proc_pid_status(5); kernels without huge pages have no such line.
fn may_have_huge_pages(process: impl Display) -> Option<bool> {
    let status = program::text(Path::new(&format!("/proc/{process}/status")));
    status.lines().find_map(|line| Some(line.strip_prefix("THP_enabled:")?.trim() == "1"))
}

#[test]
fn the_kernel_gives_a_server_no_huge_pages_unless_it_is_told_to() {
    let Some(ours) = may_have_huge_pages("self") else {
        println!("this kernel has no huge pages: they were not looked at");
        return;
    };
    let plain = Server::builder().start();
    assert_eq!(may_have_huge_pages(plain.pid()), Some(false));
    let told = Server::builder().arg("--huge-pages").start();
    assert_eq!(may_have_huge_pages(told.pid()), Some(ours), "as whoever starts it has it");
}

#[test]
fn values_out_of_bounds_are_refused() {
    for (flag, value, due) in [
        ("--batch-sends-max", "1025", "a whole number from 1 to 1024"),
        ("--pass-slice", "2s", "a duration from 10us to 1s"),
        ("--notsent-lowat", "0B", "a size from 1B to 1GiB"),
        ("--busy-poll", "11ms", "a duration from 0s to 10ms"),
        ("--busy-poll", "1500ns", "whole microseconds"),
        ("--ring-setup", "sqpoll", "one of defer, coop, plain"),
    ] {
        let refused = program::run(&["serve", flag, value]);
        assert_eq!(refused.code(), Some(2), "{refused:?}");
        assert!(refused.stderr.contains(due), "{flag}: {refused:?}");
    }
}
