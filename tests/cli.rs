//! The command line around the server: exit codes, and sentences that help.

use std::net::TcpListener;

use crate::support::program::run;
use crate::support::scratch::Scratch;
use crate::support::server::Server;

#[test]
fn version_says_name_and_version() {
    let finished = run(&["version"]);
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    assert!(finished.stdout.contains(&format!("corecast {}", env!("CARGO_PKG_VERSION"))), "{finished:?}");
}

#[test]
fn a_usage_error_is_2_and_names_the_nearest_flag() {
    let finished = run(&["serve", "--shrads", "2"]);
    assert_eq!(finished.code(), Some(2), "{finished:?}");
    assert!(finished.stderr.contains("--shards"), "{finished:?}");
    assert_eq!(run(&["sevre"]).code(), Some(2));
    assert_eq!(run(&["serve", "--driver", "kqueue"]).code(), Some(2));
}

#[test]
fn help_groups_the_flags_with_variable_and_default() {
    let finished = run(&["serve", "--help"]);
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    for part in [
        "--listen",
        "--admin",
        "--redis",
        "--preset",
        "--config",
        "--shards",
        "--cores",
        "--driver",
        "--drain",
        "--ports-file",
        "--log-format",
        "CORECAST_LISTEN",
        "127.0.0.1:8080",
    ] {
        assert!(finished.stdout.contains(part), "{part} is missing in: {}", finished.stdout);
    }
}

#[test]
fn check_config_says_nothing_bad_about_a_good_file() {
    let scratch = Scratch::new();
    let file = scratch.write("good.toml", "shards = 2\n\n[[room]]\nname = \"chat:*\"\n");
    let finished = run(&["check-config", "--config", file.to_str().expect("UTF-8")]);
    assert_eq!(finished.code(), Some(0), "{finished:?}");
}

#[test]
fn check_config_names_line_column_and_nearest_key_of_a_bad_file() {
    let scratch = Scratch::new();
    let file = scratch.write("bad.toml", "shards = 2\n\n[bounds]\n  pign_interval = \"25s\"\n");
    let finished = run(&["check-config", "--config", file.to_str().expect("UTF-8")]);
    assert_eq!(finished.code(), Some(78), "{finished:?}");
    for part in ["bad.toml:4:3", "pign_interval", "ping_interval"] {
        assert!(finished.stderr.contains(part), "{part} is missing in: {finished:?}");
    }
}

#[test]
fn a_server_with_a_bad_config_does_not_start() {
    let finished = Server::builder().config("[[room]]\nname = \"a*b\"\n").start_in_vain();
    assert_eq!(finished.code(), Some(78), "{finished:?}");
    assert!(finished.stderr.contains("corecast.toml:2"), "{finished:?}");
}

#[test]
fn config_show_prints_values_and_where_they_come_from() {
    let finished = run(&["config", "show", "--preset", "event-fanout", "--drain", "3s"]);
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    let line = |key: &str| {
        let found = finished.stdout.lines().find(|line| line.trim_start().starts_with(key));
        found.unwrap_or_else(|| panic!("no line for {key}: {}", finished.stdout)).to_owned()
    };
    assert!(
        line("listen").contains(":8081") && line("listen").contains("event-fanout"),
        "{}",
        line("listen")
    );
    assert!(line("redis").contains("localhost:6379"), "{}", line("redis"));
    assert!(line("drain").contains("3s") && line("drain").contains("--drain"), "{}", line("drain"));
    assert!(line("ping_interval").contains("30s"), "{}", line("ping_interval"));
}

#[test]
fn config_show_hides_the_password_of_redis() {
    let finished = run(&["config", "show", "--redis", "redis://cast:sesame@localhost:6379"]);
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    assert!(!finished.stdout.contains("sesame"), "{finished:?}");
}

#[test]
fn a_port_in_use_is_73_and_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("127.0.0.1 has a free port");
    let address = taken.local_addr().expect("a bound socket has an address");
    let finished = Server::builder().listen(address).start_in_vain();
    assert_eq!(finished.code(), Some(73), "{finished:?}");
    assert!(finished.stderr.contains(&address.to_string()), "{finished:?}");
}

#[test]
fn logs_are_json_on_request_and_the_first_line_says_what_runs_where() {
    let server = Server::builder().arg("--log-format").arg("json").start();
    let log = server.log();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}")))
        .collect();
    let first = lines.first().expect("the server logs").to_string();
    let port = server.address().port().to_string();
    assert!(log.contains(&port), "the port {port} is not logged: {log}");
    assert!(first.contains("shards") && first.contains("driver"), "{first}");
}
