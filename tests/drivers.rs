//! Which kernel interface is used, and how one learns of it.

use crate::support::client::Client;
use crate::support::server::{Driver, Server};

#[test]
fn the_driver_in_use_is_in_metrics_stats_and_log() {
    for (driver, name) in
        [(Driver::IoUring, "io_uring"), (Driver::Epoll, "epoll"), (Driver::AutoDenied, "epoll")]
    {
        let server = Server::builder().driver(driver).start();
        let page = server.metrics();
        let told = page.labelled("corecast_driver_info", "driver", name);
        assert_eq!(told, 1.0, "{driver:?}: {}", page.show("corecast_driver_info"));
        let stats = server.stats().to_string();
        assert!(stats.contains(&format!("\"{name}\"")), "{driver:?} is not in /stats: {stats}");
        server.wait_log(&format!("{driver:?} is in the log"), |line| line.contains(name));
    }
}

#[test]
fn where_io_uring_is_denied_auto_falls_back_to_epoll_and_says_why_and_what_to_do() {
    let server = Server::builder().driver(Driver::AutoDenied).start();
    let is_warning = |line: &str| line.contains("WARN") && line.contains("io_uring");
    let line = server.wait_log("a warning names io_uring", is_warning);
    assert!(line.contains("seccomp"), "the cure is missing: {line}");
    let mut client = Client::join(&server, "lobby");
    server.publish("lobby", b"works all the same");
    assert_eq!(client.next_text(), "works all the same");
}

#[test]
fn where_io_uring_is_denied_demanding_it_is_an_error_with_its_cure() {
    let finished = Server::builder().driver(Driver::IoUring).without_io_uring().start_in_vain();
    assert_ne!(finished.code(), Some(0), "{finished:?}");
    assert!(finished.code().is_some(), "it was ended by a signal: {finished:?}");
    for part in ["io_uring", "seccomp", "--driver"] {
        assert!(finished.stderr.contains(part), "{part:?} is missing in: {finished:?}");
    }
}
