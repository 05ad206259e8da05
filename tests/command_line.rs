//! The binary's words and exit codes around the configuration.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

/// Runs the binary in an environment of `variables` alone.
fn corecast(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_corecast"));
    command.args(args).env_clear().envs(variables.iter().copied());
    command.output().expect("the binary runs")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("no signal ended it")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// A file that is gone when the test is.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("corecast-{}-{name}", std::process::id()));
        fs::write(&path, text).expect("the temporary directory takes files");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a path of text")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Only the test's own file is at stake.
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn config_show_names_where_each_value_came_from() {
    let shown =
        corecast(&["config", "show", "--preset", "event-fanout", "--shards", "2"], &[("ADDR", ":9000")]);
    assert_eq!(code(&shown), 0);
    let text = stdout(&shown);
    let line =
        |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{text}"));
    assert!(line("listen = \":9000\"").ends_with("# variable ADDR"));
    assert!(line("shards = 2").ends_with("# flag --shards"));
    assert!(line("health = \"broker\"").ends_with("# preset event-fanout"));
    assert!(line("node_id = ").ends_with("# random"));
}

#[test]
fn what_config_show_prints_is_a_file_that_check_config_takes() {
    let shown = corecast(&["config", "show", "--preset", "event-fanout"], &[]);
    let file = Scratch::new("shown.toml", &stdout(&shown));
    let checked = corecast(&["check-config", file.path()], &[]);
    assert_eq!((code(&checked), stdout(&checked).as_str()), (0, "ok\n"), "{}", stderr(&checked));
    let again = corecast(&["config", "show", "--config", file.path()], &[]);
    let values = |text: String| {
        text.lines()
            .map(|line| line.split("  #").next().unwrap_or_default().trim().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(values(stdout(&again)), values(stdout(&shown)));
}

#[test]
fn a_wrong_file_ends_with_78_and_a_line_for_each_fault() {
    let file = Scratch::new("wrong.toml", "lisen = 1\ndrain = 5\n");
    let checked = corecast(&["check-config", "--config", file.path()], &[]);
    let name = file.path();
    assert_eq!(code(&checked), 78);
    assert_eq!(
        stderr(&checked),
        format!(
            "corecast: {name}:1:1: lisen: unknown key; did you mean \"listen\"?\n\
             corecast: {name}:2:9: drain: found the integer 5, due a duration with its unit (ms, s, m, h), for example \
             \"25s\"\n"
        )
    );
    assert_eq!(code(&corecast(&["serve", "--config", name], &[])), 78);
    assert_eq!(code(&corecast(&["check-config"], &[("CORECAST_CONFIG", name)])), 78);
}

#[test]
fn a_wrong_flag_ends_with_2_and_a_missing_file_with_78() {
    let flag = corecast(&["serve", "--shards", "x"], &[]);
    assert_eq!(code(&flag), 2);
    assert_eq!(stderr(&flag), "corecast: --shards: found \"x\", due auto or a whole number from 1 to 64\n");
    assert_eq!(code(&corecast(&["serve", "--nosuch"], &[])), 2);
    assert_eq!(code(&corecast(&[], &[])), 2);
    let missing = corecast(&["check-config", "/nonexistent/corecast.toml"], &[]);
    assert_eq!(code(&missing), 78);
    assert!(stderr(&missing).starts_with("corecast: cannot read /nonexistent/corecast.toml: "));
    let level = corecast(&["check-config", "--log-level", "inof"], &[]);
    assert_eq!(code(&level), 78);
    assert!(stderr(&level).contains("found \"inof\", due error, warn"), "{}", stderr(&level));
}

#[test]
fn variables_that_disagree_are_warned_of_on_stderr() {
    let checked = corecast(&["check-config"], &[("ADDR", ":1"), ("PORT", "2")]);
    assert_eq!(code(&checked), 0);
    assert_eq!(stderr(&checked), "corecast: warning: ADDR (\":1\") wins over PORT (\":2\"): unset one\n");
}

#[test]
fn version_and_help_go_to_stdout() {
    let version = corecast(&["version"], &[]);
    assert_eq!((code(&version), stdout(&version)), (0, format!("corecast {}\n", env!("CARGO_PKG_VERSION"))));
    assert!(stdout(&corecast(&["version", "--verbose"], &[])).contains("presets event-fanout"));
    let help = corecast(&["serve", "--help"], &[]);
    assert_eq!(code(&help), 0);
    assert!(stdout(&help).contains("--ping-interval <DURATION>"), "{}", stdout(&help));
}
