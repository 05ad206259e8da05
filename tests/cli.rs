//! The command line around the server: exit codes, and sentences that help.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use crate::support::http;
use crate::support::program::{self, Finished, run};
use crate::support::scratch::Scratch;
use crate::support::server::Server;

#[test]
fn version_and_help_go_to_stdout() {
    let version = run(&["version"]);
    let line = format!("corecast {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!((version.code(), version.stdout), (Some(0), line));
    assert!(
        run(&["version", "--verbose"])
            .stdout
            .contains("presets event-fanout workflow backbone broadcaster star")
    );
    assert_eq!(run(&["--help"]).code(), Some(0));
}

#[test]
fn a_reader_that_leaves_is_no_panic() {
    let is_read_by_nobody = |args: &[&str]| {
        let (reader, writer) = std::io::pipe().expect("descriptors are left");
        drop(reader);
        let mut command = program::command();
        command.args(args).stdout(writer.try_clone().expect("a descriptor is left")).stderr(writer);
        command.status().expect("the binary runs").code()
    };
    for args in
        [&["version", "--verbose"][..], &["help"], &["--version"], &["check-config"], &["config", "show"]]
    {
        assert_eq!(is_read_by_nobody(args), Some(0), "{args:?}");
    }
    assert_eq!(is_read_by_nobody(&["check-config", "/nonexistent/file"]), Some(78));
    assert_eq!(is_read_by_nobody(&["publish", "--room", "a", "--url", "ftp://h", "hello"]), Some(2));
}

#[test]
fn a_usage_error_is_2_and_names_the_nearest_flag() {
    let finished = run(&["serve", "--shrads", "2"]);
    assert_eq!(finished.code(), Some(2), "{finished:?}");
    assert!(finished.stderr.contains("--shards"), "{finished:?}");
    assert_eq!(run(&["sevre"]).code(), Some(2));
    assert_eq!(run(&[]).code(), Some(2));
    assert_eq!(run(&["serve", "--driver", "kqueue"]).code(), Some(2));
    assert_eq!(run(&["serve", "--domains", "trading,nope"]).code(), Some(2));
    assert_eq!(run_with(&[("CORECAST_DOMAINS", "trading,nope")], &["serve"]).code(), Some(78));
    let value = run(&["serve", "--shards", "x"]);
    assert_eq!(value.code(), Some(2));
    assert_eq!(value.stderr, "corecast: --shards: found \"x\", due auto or a whole number from 1 to 64\n");
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
        "--ping-interval <DURATION>",
        "CORECAST_LISTEN",
        "127.0.0.1:8080",
    ] {
        assert!(finished.stdout.contains(part), "{part} is missing in: {}", finished.stdout);
    }
}

#[test]
fn help_never_shows_what_a_variable_holds() {
    let help = run_with(&[("CORECAST_API_KEY_FILE", "/my/key")], &["publish", "--help"]).stdout;
    assert!(help.contains("CORECAST_API_KEY_FILE]") && !help.contains("/my/key"), "{help}");
}

#[test]
fn check_config_says_ok_to_a_good_file() {
    let scratch = Scratch::new();
    let file = scratch.write("good.toml", "shards = 2\n\n[[room]]\nname = \"chat:*\"\n");
    let finished = run(&["check-config", "--config", file.to_str().expect("UTF-8")]);
    assert_eq!((finished.code(), finished.stdout.as_str()), (Some(0), "ok\n"), "{}", finished.stderr);
}

#[test]
fn a_bad_file_is_78_and_each_fault_is_named_with_line_column_and_cure() {
    let scratch = Scratch::new();
    let file = scratch.write("bad.toml", "lisen = 1\ndrain = 5\n\n[bounds]\n  pign_interval = \"25s\"\n");
    let name = file.to_str().expect("UTF-8");
    let checked = run(&["check-config", "--config", name]);
    assert_eq!(checked.code(), Some(78));
    assert_eq!(
        checked.stderr,
        format!(
            "corecast: {name}:1:1: lisen: unknown key; did you mean \"listen\"?\n\
             corecast: {name}:2:9: drain: found the integer 5, due a duration with its unit (ms, s, m, h), for example \
             \"25s\"\n\
             corecast: {name}:5:3: pign_interval: unknown key; did you mean \"ping_interval\"?\n"
        )
    );
    assert_eq!(run(&["serve", "--config", name]).code(), Some(78));
    assert_eq!(run_with(&[("CORECAST_CONFIG", name)], &["check-config"]).code(), Some(78));
}

#[test]
fn a_missing_file_and_a_wrong_value_are_78() {
    let missing = run(&["check-config", "/nonexistent/corecast.toml"]);
    assert_eq!(missing.code(), Some(78));
    assert!(missing.stderr.starts_with("corecast: cannot read /nonexistent/corecast.toml: "), "{missing:?}");
    let level = run(&["check-config", "--log-level", "inof"]);
    assert_eq!(level.code(), Some(2), "a flag is usage");
    assert!(level.stderr.starts_with("corecast: --log-level: found \"inof\", due error, warn"), "{level:?}");
    let variable = run_with(&[("CORECAST_LOG_LEVEL", "inof")], &["serve"]);
    assert_eq!(variable.code(), Some(78));
    assert!(variable.stderr.starts_with("corecast: CORECAST_LOG_LEVEL: found \"inof\""), "{variable:?}");
    let cores = Server::builder().arg("--cores").arg("4095").start_in_vain();
    assert_eq!(cores.code(), Some(2), "{cores:?}");
    assert!(cores.stderr.contains("corecast: --cores: found core 4095, due some of"), "{cores:?}");
}

#[test]
fn a_server_with_a_bad_config_does_not_start() {
    let finished = Server::builder().config("[[room]]\nname = \"a*b\"\n").start_in_vain();
    assert_eq!(finished.code(), Some(78), "{finished:?}");
    assert!(finished.stderr.contains("corecast.toml:2"), "{finished:?}");
}

#[test]
fn config_show_prints_values_and_where_they_come_from() {
    let args = ["config", "show", "--preset", "event-fanout", "--drain", "3s", "--shards", "2"];
    let finished = run_with(&[("ADDR", ":9000")], &args);
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    let line = |start: &str| {
        let found = finished.stdout.lines().find(|line| line.trim_start().starts_with(start));
        found.unwrap_or_else(|| panic!("no line for {start}: {}", finished.stdout)).to_owned()
    };
    for (start, from) in [
        ("listen = \":9000\"", "# variable ADDR"),
        ("drain = \"3s\"", "# flag --drain"),
        ("shards = 2", "# flag --shards"),
        ("ping_interval = \"30s\"", "# preset event-fanout"),
        ("health = \"broker\"", "# preset event-fanout"),
        ("node_id = ", "# random"),
    ] {
        assert!(line(start).ends_with(from), "{}", line(start));
    }
    assert!(line("redis").contains("localhost:6379"), "{}", line("redis"));
    let unsaid = run(&["config", "show", "--preset", "event-fanout"]).stdout;
    let listen = unsaid.lines().find(|line| line.starts_with("listen = \":8081\""));
    assert!(listen.is_some_and(|line| line.ends_with("# preset event-fanout")), "{unsaid}");
}

#[test]
fn what_config_show_prints_is_a_file_that_check_config_takes() {
    let shown = run(&["config", "show", "--preset", "event-fanout"]);
    let scratch = Scratch::new();
    let file = scratch.write("shown.toml", &shown.stdout);
    let name = file.to_str().expect("UTF-8");
    let checked = run(&["check-config", name]);
    assert_eq!((checked.code(), checked.stdout.as_str()), (Some(0), "ok\n"), "{}", checked.stderr);
    let again = run(&["config", "show", "--config", name]);
    let values = |text: &str| {
        let value = |line: &str| line.split("  #").next().unwrap_or_default().trim().to_owned();
        text.lines().map(value).collect::<Vec<_>>()
    };
    assert_eq!(values(&again.stdout), values(&shown.stdout));
}

#[test]
fn config_show_hides_the_password_of_redis() {
    let finished = run(&["config", "show", "--redis", "redis://cast:sesame@localhost:6379"]);
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    assert!(!finished.stdout.contains("sesame"), "{finished:?}");
}

#[test]
fn variables_that_disagree_are_warned_of_on_stderr() {
    let checked = run_with(&[("ADDR", ":1"), ("PORT", "2")], &["check-config"]);
    assert_eq!(checked.code(), Some(0));
    assert_eq!(checked.stderr, "corecast: warning: ADDR (\":1\") wins over PORT (\":2\"): unset one\n");
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
fn a_key_file_that_no_request_could_fit_is_78() {
    let scratch = Scratch::new();
    for (content, found) in [
        (&b"one\ntwo\n"[..], "several lines"),
        (b"a\x07b", "a control character"),
        (b"\xff", "not UTF-8"),
        (b" \n", "empty"),
    ] {
        let file = scratch.path("key");
        std::fs::write(&file, content).expect("a scratch directory takes files");
        let finished =
            Server::builder().arg("--api-key-file").arg(file.to_str().expect("UTF-8")).start_in_vain();
        assert_eq!(finished.code(), Some(78), "{finished:?}");
        assert!(finished.stderr.contains(found) && finished.stderr.contains("due one line"), "{finished:?}");
    }
}

#[test]
fn a_file_that_is_not_there_is_78_before_anybody_is_told_that_it_serves() {
    for flag in ["--api-key-file", "--ports-file"] {
        let mut command = program::command();
        command.args(["serve", "--listen", "127.0.0.1:0", flag, "/nonexistent/corecast/file"]);
        let finished = program::finish(command, Default::default());
        assert_eq!(finished.code(), Some(78), "{flag}: {finished:?}");
        let said = &finished.stderr;
        assert!(said.contains("/nonexistent/corecast/file") && !said.contains("serves"), "{flag}: {said}");
    }
}

#[test]
fn every_address_means_those_of_ipv4_where_there_is_no_ipv6() {
    let every_address = "[::]:0".parse().expect("an address");
    for has_ipv6 in [true, false] {
        let server = Server::builder().preset("event-fanout").listen(every_address);
        let server = if has_ipv6 { server } else { server.without_ipv6() }.start();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.address().port()));
        let answer = http::request(address, "GET", "/livez", &[]).expect("127.0.0.1 is one of them");
        assert_eq!(answer.status, 200, "with IPv6: {has_ipv6}");
    }
}

#[test]
fn logs_are_json_on_request_and_the_first_line_says_what_runs_where() {
    let server = Server::builder().arg("--log-format").arg("json").start();
    let port = server.address().port().to_string();
    let first = server.wait_log("a first line", |_| true);
    assert!(first.contains(&port) && first.contains("shards") && first.contains("driver"), "{first}");
    server.wait_log("all lines are JSON, to the one with curl", |line| {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
        parsed.unwrap_or_else(|error| panic!("{error} in {line:?}"));
        line.contains("curl")
    });
}

/// Runs the binary to its end in an environment with `variables`.
#[track_caller]
fn run_with(variables: &[(&str, &str)], args: &[&str]) -> Finished {
    let mut command = program::command();
    command.args(args).envs(variables.iter().copied());
    program::finish(command, Default::default())
}
