//! `corecast tune experiment`: order, verdicts, and that whatever ends it leaves the machine as it was.
//!
//! In the place of `corecast-bench` stands a script that writes a report with the figure a story wants, so that verdicts
//! don't depend on the machine. What host-wide knobs do is seen in a folder that stands for `/`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

use crate::support::deadline::{SOON, eventually};
use crate::support::kernel::Confinement;
use crate::support::program::{self, Finished, Running};
use crate::support::scratch::Scratch;
use crate::support::tool::repository;

/// A generator whose figure `story` decides: lines of a shell that set `value` and `flaws` from `ARM` (a or b) and `n` (the
/// number of the sample, from 1).
const GENERATOR: &str = r#"#!/bin/sh
previous=
for word in "$@"; do
  [ "$previous" = --out ] && out=$word
  previous=$word
done
n=$(($(cat "$STATE/count" 2>/dev/null || echo 0) + 1))
echo "$n" >"$STATE/count"
echo "$ARM" >>"$STATE/order"
echo "$@" >"$STATE/arguments"
value=2.0 flaws=
STORY
printf '{"interrupted":false,"machine":{"cpu_model":"x"},"versions":{"bench":"0"},"outcomes":[{"figures":[{"name":
  "CPU per delivery","unit":"us","median":%s}],"flaws":[%s],"phases":[]}]}' "$value" "$flaws" >"$out/fanout-1.json"
"#;

const FILE: &str = r#"title = "B beside A"
hypothesis = "B is cheaper"
metric = "CPU per delivery"
better = "lower"
scenario = ["fanout", "--clients", "10"]
pairs = 6
margin = "2%"

[arm.a.environment]
ARM = "a"

[arm.b.environment]
ARM = "b"
"#;

/// Noise of a percent or less that differs from sample to sample.
const NOISE: &str = "noise=$((n * 7 % 11))";

struct Story {
    scratch: Scratch,
}

impl Story {
    fn new(story: &str, file: &str) -> Self {
        let scratch = Scratch::new();
        let written = scratch.write("generator.new", &GENERATOR.replace("STORY", story));
        let generator = scratch.path("generator");
        program::install(&written, &generator);
        fs::set_permissions(&generator, fs::Permissions::from_mode(0o755)).expect("it is ours");
        scratch.write("hypothesis.toml", file);
        // A machine of its own, with one knob.
        for (path, text) in [
            ("proc/self/ns/net", ""),
            ("proc/sys/kernel/random/boot_id", "boot\n"),
            ("proc/sys/kernel/osrelease", "6.18.0\n"),
            ("proc/meminfo", "MemTotal: 1000000 kB\n"),
            ("sys/devices/system/cpu/online", "0\n"),
            (THP, "always [madvise] never\n"),
        ] {
            let path = format!("root/{path}");
            fs::create_dir_all(scratch.path(&path).parent().expect("it has a folder")).expect("a folder");
            scratch.write(&path, text);
        }
        // The first process is in the same network namespace.
        fs::create_dir_all(scratch.path("root/proc/1/ns")).expect("a folder");
        let ours = scratch.path("root/proc/self/ns/net");
        fs::hard_link(ours, scratch.path("root/proc/1/ns/net")).expect("a link");
        Self { scratch }
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = program::command();
        command.args(["tune", "experiment"]).arg(self.scratch.path("hypothesis.toml"));
        command.arg("--bench").arg(self.scratch.path("generator")).arg("--out").arg(self.scratch.path("out"));
        // What a killed experiment leaves goes with the story.
        command.args(flags).env("STATE", self.scratch.dir()).env("TMPDIR", self.scratch.dir());
        command
    }

    #[track_caller]
    fn run(&self, flags: &[&str]) -> Finished {
        program::finish(self.command(flags), Confinement::default())
    }

    /// On the machine of its own.
    fn rooted(&self) -> Command {
        let mut command = self.command(&["--host"]);
        command.arg("--root").arg(self.scratch.path("root"));
        command
    }

    /// `corecast tune` on the machine of its own.
    #[track_caller]
    fn tune(&self, args: &[&str]) -> Finished {
        let root = self.scratch.path("root").display().to_string();
        program::run(&[&["tune"], args, &["--root", &root]].concat())
    }

    fn text(&self, name: &str) -> String {
        program::text(&self.scratch.path(name))
    }

    fn reports(&self, ending: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.scratch.path("out")).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == ending))
            .collect()
    }

    #[track_caller]
    fn report(&self) -> Value {
        let reports = self.reports("json");
        assert_eq!(reports.len(), 1, "{reports:?}");
        serde_json::from_slice(&fs::read(&reports[0]).expect("it is there")).expect("a report is JSON")
    }

    fn thp(&self) -> String {
        self.text(&format!("root/{THP}")).trim().to_owned()
    }
}

const THP: &str = "sys/kernel/mm/transparent_hugepage/enabled";

/// [`FILE`], with an arm that changes the host.
fn file_with_a_host_knob() -> String {
    format!("{FILE}[arm.b]\nhost = true\nsys = {{ \"/{THP}\" = \"never\" }}\n")
        .replace("[arm.b.environment]\nARM = \"b\"\n[arm.b]\n", "[arm.b]\nenvironment = { ARM = \"b\" }\n")
}

#[test]
fn samples_come_in_abba_order_and_those_before_the_first_pair_do_not_count() {
    let story = Story::new("value=1.$((100 + n))", FILE);
    let finished = story.run(&[]);
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    let order: String = story.text("order").split_whitespace().collect();
    assert_eq!(order, "ababbaabbaabba");
    let report = story.report();
    let pairs: Vec<(f64, f64)> = report["pairs"]
        .as_array()
        .expect("pairs")
        .iter()
        .map(|pair| (pair["a"].as_f64().expect("a number"), pair["b"].as_f64().expect("a number")))
        .collect();
    assert_eq!(pairs[..2], [(1.103, 1.104), (1.106, 1.105)]);
    assert_eq!(pairs.len(), 6);
    assert_eq!(report["samples"].as_array().map(Vec::len), Some(14));
    assert_eq!(report["samples"][0]["pair"], Value::Null);
    assert_eq!(report["samples"][0]["report"]["outcomes"][0]["figures"][0]["median"], 1.101);
}

#[test]
fn each_verdict_is_told_in_words_with_its_exit_code_and_a_picture() {
    for (story, code, due) in [
        (
            format!("{NOISE}; value=2.0$noise; [ $ARM = b ] && value=1.5$noise"),
            0,
            "verdict      better, by more",
        ),
        (
            format!("{NOISE}; value=2.0$noise; [ $ARM = b ] && value=2.5$noise"),
            0,
            "verdict      worse, by more",
        ),
        (
            "value=2.00$((n % 2)); [ $ARM = b ] && value=2.00$((n % 3))".to_owned(),
            0,
            "no difference (within 2 %)",
        ),
        (
            format!("{NOISE}; value=2.0$noise; [ $n -gt 8 ] && [ $ARM = b ] && value=3"),
            3,
            "undecided: the interval spans",
        ),
    ] {
        let told = Story::new(&story, FILE);
        let finished = told.run(&[]);
        assert_eq!(finished.code(), Some(code), "{story}: {finished:?}");
        assert!(finished.stdout.contains(due), "{story}: {finished:?}");
        assert!(finished.stderr.contains("sample 14 of 14 (A of pair 6)"), "{finished:?}");
        assert!(finished.stderr.contains("about 0 s left"), "{finished:?}");
        let pictures = told.reports("svg");
        let picture = fs::read_to_string(&pictures[0]).expect("it is there");
        let dots = picture.matches("<circle").count();
        assert!(picture.contains("<title id=\"title\">B beside A</title>"), "{picture}");
        assert_eq!((picture.starts_with("<svg "), dots), (true, 6 * 2 + 2 + 1), "{picture}");
        assert_eq!(
            told.report()["sentence"].as_str().map(|words| finished.stdout.contains(words)),
            Some(true)
        );
    }
}

#[test]
fn flawed_samples_are_kept_and_counted_and_too_many_void_the_verdict() {
    let worse = "value=2.1; [ $ARM = b ] && value=1.5";
    let few = Story::new(&format!("{worse}; [ $n = 4 ] && flaws='\"lost\"'"), FILE);
    let finished = few.run(&[]);
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    assert!(finished.stdout.contains("doubtful     1 of 12 samples"), "{finished:?}");
    assert_eq!(few.report()["samples"][3]["doubts"][0], "lost");
    let many = Story::new(&format!("{worse}; [ $n -gt 11 ] && flaws='\"lost\"'"), FILE);
    let finished = many.run(&[]);
    assert_eq!(finished.code(), Some(4), "{finished:?}");
    assert!(finished.stdout.contains("void: 3 of 12 samples are flawed or doubtful"), "{finished:?}");
}

#[test]
fn a_sample_that_fails_ends_the_experiment_with_the_generators_last_words() {
    let story = Story::new("[ $n = 5 ] && echo 'no descriptors left' >&2 && exit 1", FILE);
    let finished = story.run(&[]);
    assert_eq!(finished.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.contains("sample 5 of 14: corecast-bench ended with"), "{finished:?}");
    assert!(finished.stderr.contains("no descriptors left"), "{finished:?}");
    let report = story.report();
    assert_eq!((report["samples"].as_array().map(Vec::len), &report["verdict"]), (Some(4), &Value::Null));
    let other = Story::new("", &FILE.replace("CPU per delivery", "CPU per handshake"));
    let finished = other.run(&[]);
    assert_eq!(finished.code(), Some(1), "{finished:?}");
    assert!(
        finished.stderr.contains("no figure \"CPU per handshake\"; it has \"CPU per delivery\""),
        "{finished:?}"
    );
}

#[test]
fn the_generator_is_told_the_arms_server_and_reads_nothing_of_the_callers_shell() {
    let file = format!("{FILE}\n").replace(
        "[arm.b.environment]",
        "[arm.b]\nserver = [\"--driver\", \"epoll\"]\ncores = \"1\"\n[arm.b.environment]",
    );
    let story = Story::new(
        "[ $ARM = b ] && cp \"$STATE/arguments\" \"$STATE/of_b\"; env >\"$STATE/environment\"; \
         grep THP_enabled /proc/self/status >\"$STATE/huge_pages\"",
        &file,
    );
    let mut command = story.command(&["--pairs", "7"]);
    command.env("CORECAST_DRIVER", "epoll").env("REDIS_URL", "redis://elsewhere").env("OTHER", "kept");
    let finished = program::finish(command, Confinement::default());
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    let arguments = story.text("of_b");
    let server = format!("{} serve --listen {{listen}}", program::path().display());
    for due in [
        "fanout --clients 10 ",
        server.as_str(),
        "--config {config} --driver epoll --server-cores 1 ",
        "--duration 2000ms --warm-up 500ms --runs 1 --out ",
        " --no-floor",
    ] {
        assert!(arguments.contains(due), "{due}: {arguments}");
    }
    let environment = story.text("environment");
    assert!(environment.contains("OTHER=kept"), "{environment}");
    assert!(!environment.contains("CORECAST_") && !environment.contains("REDIS_URL"), "{environment}");
    // What corecast refuses for its own memory is none of the generator's business, nor of a server's that is told not to.
    let ours = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let ours = ours.lines().find(|line| line.starts_with("THP_enabled")).unwrap_or_default();
    assert_eq!(story.text("huge_pages").trim(), ours);
    assert_eq!(story.report()["pairs"].as_array().map(Vec::len), Some(7));
}

#[test]
fn a_host_wide_knob_needs_a_word_and_is_put_back_after_every_sample() {
    let told = format!("cat \"$STATE/root/{THP}\" >>\"$STATE/values\"; echo >>\"$STATE/values\"");
    let story = Story::new(&told, &file_with_a_host_knob());
    let refused = story.run(&[]);
    assert_eq!(refused.code(), Some(2), "{refused:?}");
    assert!(
        refused.stderr.contains(&format!("arm B sets /{THP}")) && refused.stderr.contains("--host"),
        "{refused:?}"
    );
    let finished = program::finish(story.rooted(), Confinement::default());
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    let values = story.text("values");
    let of_arms: Vec<&str> = values.split_whitespace().filter(|word| !word.starts_with('[')).collect();
    assert!(values.matches("never").count() >= 7, "{values}");
    assert_eq!(of_arms.first(), Some(&"always"), "arm A finds what was there: {values}");
    assert_eq!(story.thp(), "madvise");
}

/// Waits until the sample of arm B hangs, as `hanging` makes it, and returns the running experiment and the generator.
#[track_caller]
fn hung(story: &Story) -> (Running, Pid) {
    let mut command = story.rooted();
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let running = Running(command.spawn().expect("the binary runs"));
    eventually(SOON, "the sample hangs", || story.scratch.path("pid").exists());
    let pid = story.text("pid").trim().parse().ok().and_then(Pid::from_raw);
    (running, pid.expect("a process id"))
}

/// Sample 12 is arm B's, of the fifth pair.
const HANGING: &str = "if [ $n = 12 ]; then echo $$ >\"$STATE/pid.new\"; mv \"$STATE/pid.new\" \"$STATE/pid\"; exec sleep 600; fi";

#[test]
fn a_signal_ends_the_sample_puts_everything_back_and_keeps_what_was_measured() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT] {
        let story = Story::new(HANGING, &file_with_a_host_knob());
        let (mut running, generator) = hung(&story);
        assert_eq!(story.thp(), "never");
        kill_process(Pid::from_raw(running.pid()).expect("a process id"), signal).expect("it runs");
        let status = running.wait(SOON, "the experiment ends");
        assert_eq!(status.code(), Some(130), "{signal:?}");
        assert_eq!(story.thp(), "madvise");
        eventually(SOON, "the generator is gone", || test_kill_process(generator).is_err());
        let report = story.report();
        assert_eq!(report["ended_early"], "interrupted after 4 of 6 pairs");
        assert_eq!(report["samples"].as_array().map(Vec::len), Some(11));
    }
}

#[test]
fn after_a_kill_the_journal_is_there_the_generator_is_not_and_the_next_experiment_refuses() {
    let story = Story::new(HANGING, &file_with_a_host_knob());
    let (mut running, generator) = hung(&story);
    running.kill();
    eventually(SOON, "the generator dies with the experiment", || test_kill_process(generator).is_err());
    assert_eq!(story.thp(), "never");
    let refused = program::finish(story.rooted(), Confinement::default());
    assert_eq!(refused.code(), Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("an experiment was killed before it had put back 1 of this host's values"),
        "{refused:?}"
    );
    assert!(refused.stderr.contains("`corecast tune revert --experiments`"), "{refused:?}");
    let reverted = story.tune(&["revert", "--experiments"]);
    assert_eq!(reverted.code(), Some(0), "{reverted:?}");
    assert_eq!(story.thp(), "madvise");
    fs::remove_file(story.scratch.path("pid")).expect("it is there");
    let finished = program::finish(story.rooted(), Confinement::default());
    assert_eq!(finished.code(), Some(0), "the story's twelfth sample is over: {finished:?}");
}

#[test]
fn what_a_killed_experiment_left_is_put_back_and_the_applied_profile_stays() {
    let story = Story::new(HANGING, &file_with_a_host_knob());
    let profile = format!(
        "title = \"t\"\nconnections = 5\nknobs = []\n[[knob]]\nname = \"/{THP}\"\nword = \"always\"\nscope = \"host\"\n\
         reason = \"r\"\nrisk = \"r\"\nevidence = \"e\"\n"
    );
    let profile = story.scratch.write("mine.toml", &profile);
    let applied = story.tune(&["apply", "--host", "--profile-file", &profile.to_string_lossy()]);
    assert_eq!((applied.code(), story.thp().as_str()), (Some(0), "always"), "{applied:?}");
    let (mut running, _) = hung(&story);
    running.kill();
    assert_eq!(story.thp(), "never");
    let reverted = story.tune(&["revert", "--experiments"]);
    assert_eq!((reverted.code(), story.thp().as_str()), (Some(0), "always"), "{reverted:?}");
    let again = story.tune(&["revert", "--experiments"]);
    assert!(again.stdout.contains("no experiment has left anything"), "{again:?}");
    fs::remove_file(story.scratch.path("pid")).expect("it is there");
    let finished = program::finish(story.rooted(), Confinement::default());
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    let report = story.report();
    assert_eq!(report["applied_profile"][0], format!("/{THP} = always"));
    assert_eq!(report["applied_outside_of_samples"].as_array().map(Vec::len), Some(0));
    let reverted = story.tune(&["revert"]);
    assert_eq!((reverted.code(), story.thp().as_str()), (Some(0), "madvise"), "{reverted:?}");
}

#[test]
fn what_the_kernel_makes_of_a_knob_stands_in_the_report() {
    let story = Story::new("", &file_with_a_host_knob());
    let finished = program::finish(story.rooted(), Confinement::default());
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    let report = story.report();
    let of = |side: &str| {
        report["samples"].as_array().and_then(|all| all.iter().find(|s| s["side"] == side)).cloned()
    };
    assert_eq!(of("A").map(|sample| sample["knobs"].clone()), Some(serde_json::json!([])));
    let knob = serde_json::json!([{"target": format!("/{THP}"), "value": "never", "found": "never"}]);
    assert_eq!(of("B").map(|sample| sample["knobs"].clone()), Some(knob));
}

#[test]
fn a_knob_that_the_host_does_not_have_ends_it_before_the_first_sample() {
    let file = file_with_a_host_knob().replace(THP, "sys/kernel/mm/no_such_knob");
    let story = Story::new("", &file);
    let finished = program::finish(story.rooted(), Confinement::default());
    assert_eq!(finished.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.contains("/sys/kernel/mm/no_such_knob is not there"), "{finished:?}");
    assert!(!story.scratch.path("count").exists(), "a sample was taken");
}

#[test]
fn network_knobs_are_set_in_the_samples_own_namespace() {
    if !rustix::process::geteuid().is_root() {
        println!("only root may make a namespace: this was not tested");
        return;
    }
    let knob = "sysctl = { \"net.core.somaxconn\" = 77 }\nsys = { \"/sys/class/net/lo/queues/rx-0/rps_cpus\" = \"1\" }\n";
    let file = FILE.replace("[arm.b.environment]", &format!("[arm.b]\n{knob}[arm.b.environment]"));
    let told = "readlink /proc/self/ns/net >>\"$STATE/namespaces\"; \
                echo \"$ARM $(cat /proc/sys/net/core/somaxconn)\" >>\"$STATE/values\"";
    let story = Story::new(told, &file);
    let somaxconn = || fs::read_to_string("/proc/sys/net/core/somaxconn").expect("Linux has it");
    let rps = || fs::read_to_string("/sys/class/net/lo/queues/rx-0/rps_cpus").ok();
    let before = (somaxconn(), rps());
    let finished = story.run(&[]);
    if finished.code() == Some(77) {
        println!("this root may not make a namespace ({}): this was not tested", finished.stderr);
        return;
    }
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    assert_eq!((somaxconn(), rps()), before);
    let values = story.text("values");
    assert!(values.lines().filter(|line| line.starts_with('b')).all(|line| line == "b 77"), "{values}");
    assert!(values.lines().any(|line| line.starts_with("a ") && line != "a 77"), "{values}");
    let ours = fs::read_link("/proc/self/ns/net").expect("Linux has it").display().to_string();
    assert!(!story.text("namespaces").contains(&ours), "{}", story.text("namespaces"));
    assert_eq!(story.report()["network_namespace"], "a fresh one for each sample");
}

#[test]
fn a_knob_that_is_not_there_ends_it_before_the_first_sample() {
    let file = FILE
        .replace("[arm.b.environment]", "[arm.b.sysctl]\n\"net.ipv4.no_such_knob\" = 1\n[arm.b.environment]");
    let finished = Story::new("", &file).run(&[]);
    assert!(matches!(finished.code(), Some(1 | 77)), "{finished:?}");
    let due = ["net.ipv4.no_such_knob is not there", "can't make a network namespace"];
    assert!(due.iter().any(|due| finished.stderr.contains(due)), "{finished:?}");
    assert!(finished.stdout.is_empty(), "{finished:?}");
}

#[test]
fn faults_of_the_file_and_of_the_command_line_have_their_codes() {
    let faulty = Story::new("", &FILE.replace("margin", "margim"));
    let finished = faulty.run(&[]);
    assert_eq!(finished.code(), Some(78), "{finished:?}");
    assert!(finished.stderr.contains(":7:1: margim: unknown key; did you mean \"margin\"?"), "{finished:?}");
    let flag = Story::new(
        "",
        &format!("{FILE}[arm.a]\nserver = [\"--drivr\", \"epoll\"]\n")
            .replace("[arm.a.environment]\nARM = \"a\"\n", ""),
    );
    let finished = flag.run(&[]);
    assert_eq!(finished.code(), Some(78), "{finished:?}");
    assert!(finished.stderr.contains("--driver"), "{finished:?}");
    let value = Story::new(
        "",
        &format!("{FILE}[arm.a]\nserver = [\"--driver\", \"kqueue\"]\n")
            .replace("[arm.a.environment]\nARM = \"a\"\n", ""),
    );
    assert!(value.run(&[]).stderr.contains("found \"kqueue\", due one of auto, io_uring, epoll"));
    let good = Story::new("", FILE);
    assert_eq!(good.run(&["--pairs", "5"]).code(), Some(2));
    assert_eq!(program::run(&["tune", "experiment", "/nonexistent.toml"]).code(), Some(78));
    let file = good.scratch.path("hypothesis.toml").display().to_string();
    let no_bench = program::run(&["tune", "experiment", &file, "--bench", "/nonexistent"]);
    assert_eq!(no_bench.code(), Some(69), "{no_bench:?}");
    assert!(!good.scratch.path("count").exists(), "a sample was taken");
}

#[test]
fn the_experiments_of_this_repository_are_good_and_a_dry_run_starts_nothing() {
    let story = Story::new("", FILE);
    let bench = story.scratch.path("generator").display().to_string();
    let page = fs::read_to_string(repository("docs/EXPERIMENTS.md")).expect("it is there");
    let mut found = 0;
    for entry in fs::read_dir(repository("tuning/experiments")).expect("they are there") {
        let path = entry.expect("a folder can be read").path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        found += 1;
        let finished = program::run(&[
            "tune",
            "experiment",
            &path.display().to_string(),
            "--dry-run",
            "--bench",
            &bench,
        ]);
        assert_eq!(finished.code(), Some(0), "{}: {finished:?}", path.display());
        assert!(
            finished.stdout.contains("arm B: ") && finished.stdout.contains(" --server '"),
            "{finished:?}"
        );
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        assert!(page.contains(&format!("`{name}`")), "docs/EXPERIMENTS.md doesn't name {name}");
        assert!(is_lower_kebab(&path), "{}", path.display());
    }
    assert!(found >= 9, "{found} experiments");
    assert!(!story.scratch.path("count").exists(), "a sample was taken");
}

fn is_lower_kebab(path: &Path) -> bool {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    !stem.is_empty()
        && stem.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}
