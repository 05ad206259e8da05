//! `corecast tune`: what it sets it sets where it should, and sets back. Real values only in namespaces of the tests' own; what
//! belongs to the whole host is that of a folder.

mod export;
mod machine;
mod pipe;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::deadline::{SOON, eventually, eventually_ok};
use crate::support::netns::Netns;
use crate::support::program::{self, Finished, Running, run};
use crate::support::scratch::Scratch;
use machine::Machine;
use pipe::Pipe;

/// Every parameter of a namespace that holds still: name and value.
#[track_caller]
fn parameters(netns: &Netns) -> BTreeMap<String, String> {
    let listed = netns.output(&["sysctl", "-a", "--pattern", "^net\\.(core|ipv4)\\."]);
    let parameters: BTreeMap<_, _> = listed
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, value)| (name.to_owned(), value.replace('\t', " ")))
        .collect();
    assert!(parameters.len() > 50, "{listed}");
    parameters
}

/// What differs: name, before, after.
fn differences(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    let differ = before.iter().filter(|(name, value)| after.get(*name) != Some(value));
    differ.map(|(name, value)| format!("{name}: {value} -> {}", after[name])).collect()
}

/// What this process' own namespace has.
fn own(name: &str) -> String {
    fs::read_to_string(Path::new("/proc/sys").join(name)).expect(name).trim().replace('\t', " ")
}

/// A namespace and a journal.
struct Trial {
    netns: Netns,
    scratch: Scratch,
}

impl Trial {
    fn new() -> Option<Self> {
        Some(Self { netns: Netns::new()?, scratch: Scratch::new() })
    }

    fn journal(&self) -> String {
        self.scratch.path("journal.jsonl").to_string_lossy().into_owned()
    }

    /// `corecast tune ... --netns --journal`.
    #[track_caller]
    fn tune(&self, args: &[&str]) -> Finished {
        let journal = self.journal();
        let place = ["--netns", self.netns.name(), "--journal", &journal];
        let taken = if args[0] == "plan" { &place[..2] } else { &place[..] };
        run(&[&["tune"], args, taken].concat())
    }
}

#[test]
fn a_profile_is_set_in_a_namespace_and_there_only_and_set_back_exactly() {
    let Some(trial) = Trial::new() else { return };
    let before = parameters(&trial.netns);
    let ours = own("net/ipv4/ip_local_port_range");
    assert_eq!(trial.tune(&["plan", "load-generator"]).code(), Some(1), "something differs");

    let applied = trial.tune(&["apply", "load-generator"]);
    assert_eq!((applied.code(), applied.stderr.as_str()), (Some(0), ""), "{applied:?}");
    let changed = differences(&before, &parameters(&trial.netns));
    let due = ["net.ipv4.ip_local_port_range: 32768 60999 -> 1024 65535", "net.ipv4.tcp_tw_reuse: 2 -> 1"];
    assert_eq!(changed, due);
    assert_eq!(own("net/ipv4/ip_local_port_range"), ours, "this namespace is another one");
    let planned = trial.tune(&["plan", "load-generator"]);
    assert_eq!(planned.code(), Some(0), "nothing differs: {planned:?}");
    let again = trial.tune(&["apply", "load-generator"]);
    assert!(again.stdout.starts_with("Nothing to do in the network namespace "), "{again:?}");

    let reverted = trial.tune(&["revert", "--format", "json"]);
    assert_eq!((reverted.code(), reverted.stderr.as_str()), (Some(0), ""), "{reverted:?}");
    let restored: Value = serde_json::from_str(&reverted.stdout).expect("JSON");
    let knobs = [0, 1].map(|index| restored["restored"][index]["knob"].clone());
    assert_eq!(knobs, ["net.ipv4.tcp_tw_reuse", "net.ipv4.ip_local_port_range"], "newest first");
    assert_eq!(differences(&before, &parameters(&trial.netns)), [""; 0]);
    let again = trial.tune(&["revert"]);
    assert_eq!((again.code(), again.stdout.contains("Nothing is left")), (Some(0), true), "{again:?}");
}

#[test]
fn a_namespace_may_be_named_by_a_process_in_it() {
    let Some(trial) = Trial::new() else { return };
    let sleeper = sleeper(&trial.netns);
    let pid = sleeper.pid().to_string();
    let applied = run(&["tune", "apply", "10k", "--netns", &pid, "--journal", &trial.journal()]);
    assert_eq!(applied.code(), Some(0), "{applied:?}");
    assert_eq!(parameters(&trial.netns)["net.core.somaxconn"], "10000");
    assert_eq!(trial.tune(&["revert"]).code(), Some(0), "by its name it is the same one");
    assert_eq!(parameters(&trial.netns)["net.core.somaxconn"], "4096");
}

#[test]
fn a_server_that_starts_after_it_has_the_longer_backlog() {
    let Some(trial) = Trial::new() else { return };
    let backlog = || {
        let program = program::path();
        let words = [&program.to_string_lossy(), "serve", "--listen", "127.0.0.1:0", "--shards", "1"];
        let mut command = trial.netns.command(&words);
        let _server =
            Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"));
        eventually_ok(SOON, "it listens", || {
            let listed = trial.netns.output(&["ss", "-Hltn"]);
            // State, connections that wait, how many may.
            listed.split_whitespace().nth(2).map(str::to_owned).ok_or(listed)
        })
    };
    assert_eq!(backlog(), "4096");
    assert_eq!(trial.tune(&["apply", "100k"]).code(), Some(0));
    assert_eq!(backlog(), "65535", "all that the server asks for");
}

#[test]
fn the_hosts_own_namespace_is_not_touched_without_a_word() {
    let machine = Machine::new();
    let before = machine.values();
    let refused = machine.tune(&["apply", "100k"]);
    assert_eq!(refused.code(), Some(2), "{refused:?}");
    assert!(refused.stderr.contains("say --host if that is meant"), "{refused:?}");
    let dry = machine.tune(&["apply", "100k", "--host", "--dry-run"]);
    assert!(dry.stdout.contains("net.core.somaxconn") && dry.stdout.contains(" would be set in "), "{dry:?}");
    assert_eq!(machine.values(), before);
    assert!(!machine.path("var").exists(), "no journal is begun");
}

#[test]
fn with_a_word_the_host_is_changed_as_planned_and_changed_back() {
    let machine = Machine::new();
    let before = machine.values();
    for profile in ["1m", "low-latency"] {
        let applied = machine.tune(&["apply", profile, "--host"]);
        assert_eq!(applied.code(), Some(0), "{applied:?}");
        assert_eq!(machine.tune(&["plan", profile]).code(), Some(0), "nothing is left to do");
    }
    let changed: BTreeMap<_, _> =
        machine.values().into_iter().filter(|(path, value)| before[path] != *value).collect();
    let due = [
        ("proc/sys/fs/file-max", "1265536"),
        ("proc/sys/kernel/numa_balancing", "0"),
        ("proc/sys/net/core/somaxconn", "65535"),
        // A quarter and a third of 2,097,152 pages: less than the 2.3 and 3.45 million that a million connections want.
        ("proc/sys/net/ipv4/tcp_mem", "94212 524288 699051"),
        ("proc/sys/net/ipv4/tcp_slow_start_after_idle", "0"),
        ("proc/sys/net/netfilter/nf_conntrack_max", "1315536"),
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance"),
        ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "performance"),
    ];
    assert_eq!(changed, BTreeMap::from(due.map(|(path, value)| (path, value.to_owned()))));

    let status = machine.tune(&["status", "--format", "json"]);
    let journals: Value = serde_json::from_str(&status.stdout).expect("JSON");
    let outstanding = journals[0]["outstanding"].as_array().expect("a list");
    assert_eq!(outstanding.len(), due.len());
    assert_eq!((&outstanding[0]["by"], &outstanding[7]["by"]), (&"low-latency".into(), &"1m".into()));
    assert!(machine.path("var/lib/corecast/tune/host.jsonl").exists());

    let reverted = machine.tune(&["revert"]);
    assert_eq!((reverted.code(), reverted.stdout.lines().count()), (Some(0), due.len()), "{reverted:?}");
    assert_eq!(machine.values(), before);
    assert_eq!(machine.tune(&["status"]).stdout, "Nothing is changed.\n");
}

#[test]
fn a_host_with_a_profile_applied_is_well_to_the_doctor() {
    for (profile, connections) in
        [("10k", 500_u64), ("10k", 10_000), ("100k", 100_000), ("1m", 300_000), ("1m", 1_000_000)]
    {
        let machine = Machine::new();
        for (path, text) in [
            ("proc/meminfo", "MemTotal: 67108864 kB\nMemAvailable: 60000000 kB\n"),
            ("proc/sys/net/core/somaxconn", "128\n"),
            ("proc/sys/net/ipv4/tcp_syncookies", "1\n"),
            ("proc/sys/net/ipv4/tcp_max_syn_backlog", "512\n"),
            ("proc/sys/net/netfilter/nf_conntrack_count", "5000\n"),
            ("proc/sys/net/netfilter/nf_conntrack_max", "8192\n"),
            ("proc/sys/fs/file-nr", "9000\t0\t805306\n"),
        ] {
            machine.write(path, text);
        }
        let connections = connections.to_string();
        let applied = machine.tune(&["apply", profile, "--connections", &connections, "--host"]);
        assert_eq!(applied.code(), Some(0), "{applied:?}");
        let file_max = fs::read_to_string(machine.path("proc/sys/fs/file-max")).expect("it is there");
        machine.write("proc/sys/fs/file-nr", &format!("9000\t0\t{}\n", file_max.trim()));
        let root = machine.root().to_string_lossy().into_owned();
        let doctor =
            ["doctor", "--root", &root, "--connections", &connections, "--shards", "1", "--format", "json"];
        let judged: Value = serde_json::from_str(&run(&doctor).stdout).expect("JSON");
        let of = |id: &str| {
            let all = judged["checks"].as_array().expect("a list");
            all.iter().find(|check| check["id"] == id).cloned().expect(id)
        };
        for id in
            ["net.somaxconn", "net.tcp_mem", "net.conntrack", "descriptors.nr_open", "descriptors.file_max"]
        {
            let check = of(id);
            // The smallest profile leaves the table as it is.
            let is_left = id == "net.conntrack" && profile == "10k";
            assert!(is_left || check["level"] == "ok", "{profile} for {connections}: {check}");
        }
    }
}

#[test]
fn what_the_whole_host_has_once_is_left_out_of_a_namespace_and_told() {
    let Some(trial) = Trial::new() else { return };
    let before = own("fs/nr_open");
    let wanted = "1000000000";
    let planned = trial.tune(&["plan", "1m", "--connections", wanted, "--format", "json"]);
    assert!(!planned.stdout.contains("\"host\""), "{planned:?}");
    let applied = trial.tune(&["apply", "1m", "--connections", wanted]);
    assert_eq!(applied.code(), Some(0), "{applied:?}");
    assert!(
        applied.stdout.contains("Left out, because the whole host has it once (--host): fs.nr_open"),
        "{applied:?}"
    );
    assert_eq!(own("fs/nr_open"), before);
}

#[test]
fn one_refused_value_undoes_those_before_it() {
    let Some(trial) = Trial::new() else { return };
    let before = parameters(&trial.netns);
    let knob = |name: &str, due: &str| {
        format!(
            "[[knob]]\nname = \"{name}\"\n{due}\nscope = \"network\"\nreason = \"r\"\nrisk = \"r\"\nevidence = \"e\"\n"
        )
    };
    for (name, due) in [
        ("net.ipv4.tcp_congestion_control", "word = \"no-such-thing\""),
        ("net.ipv4.tcp_sack", "value = \"4294967296\""),
        // The kernel stores the first number of the list before it refuses the second.
        ("net.ipv4.tcp_rmem", "value = [\"8192\", \"0\", \"0\"]\nrule = \"exact\""),
    ] {
        let text =
            ["title = \"t\"\nconnections = 5000\nknobs = [\"net.core.somaxconn\"]\n", &knob(name, due)]
                .concat();
        let file = trial.scratch.write("mine.toml", &text);
        let applied = trial.tune(&["apply", "--profile-file", &file.to_string_lossy()]);
        assert_eq!(applied.code(), Some(1), "{applied:?}");
        assert!(applied.stderr.contains(&format!("can't set {name} to ")), "{applied:?}");
        let is_undone = ["its old value again", "their old values again"]
            .iter()
            .any(|said| applied.stderr.contains(said));
        assert!(is_undone, "{applied:?}");
        assert_eq!(differences(&before, &parameters(&trial.netns)), [""; 0], "{name}");
        assert!(trial.tune(&["revert"]).stdout.contains("Nothing is left"));
    }
}

#[test]
fn a_value_that_was_empty_is_empty_again() {
    let Some(trial) = Trial::new() else { return };
    let before = parameters(&trial.netns);
    let name = "net.ipv4.ip_local_reserved_ports";
    assert_eq!(before[name], "");
    let profile = format!(
        "title = \"t\"\nconnections = 5\nknobs = []\n[[knob]]\nname = \"{name}\"\nword = \"8080,9000-9010\"\n\
         scope = \"network\"\nreason = \"r\"\nrisk = \"r\"\nevidence = \"e\"\n"
    );
    let file = trial.scratch.write("mine.toml", &profile);
    let applied = trial.tune(&["apply", "--profile-file", &file.to_string_lossy()]);
    assert_eq!(applied.code(), Some(0), "{applied:?}");
    assert_eq!(parameters(&trial.netns)[name], "8080,9000-9010");
    let reverted = trial.tune(&["revert"]);
    assert_eq!(reverted.code(), Some(0), "{reverted:?}");
    assert_eq!(differences(&before, &parameters(&trial.netns)), [""; 0], "{reverted:?}");
}

#[test]
fn what_somebody_else_changed_since_stays_unless_forced() {
    let Some(trial) = Trial::new() else { return };
    let before = parameters(&trial.netns);
    assert_eq!(trial.tune(&["apply", "load-generator"]).code(), Some(0));
    trial.netns.output(&["sysctl", "-w", "net.ipv4.tcp_tw_reuse=0"]);
    let reverted = trial.tune(&["revert"]);
    assert_eq!(reverted.code(), Some(1), "{reverted:?}");
    assert!(
        reverted.stderr.contains("net.ipv4.tcp_tw_reuse is 0, which somebody else made of it"),
        "{reverted:?}"
    );
    assert_eq!(differences(&before, &parameters(&trial.netns)), ["net.ipv4.tcp_tw_reuse: 2 -> 0"]);
    assert_eq!(trial.tune(&["revert", "--force"]).code(), Some(0));
    assert_eq!(differences(&before, &parameters(&trial.netns)), [""; 0]);
}

#[test]
fn a_damaged_journal_is_not_followed_unless_forced() {
    let Some(trial) = Trial::new() else { return };
    let before = parameters(&trial.netns);
    assert_eq!(trial.tune(&["apply", "load-generator"]).code(), Some(0));
    let journal = fs::read_to_string(trial.journal()).expect("it is there");
    let damaged = journal.replacen("\"old\":\"32768 60999\"", "\"old\":32768", 1);
    assert_ne!(damaged, journal);
    fs::write(trial.journal(), damaged).expect("it is writable");
    for args in [&["revert"][..], &["apply", "10k"]] {
        let refused = trial.tune(args);
        assert_eq!(refused.code(), Some(1), "{refused:?}");
        assert!(refused.stderr.contains("line 2 can't be read"), "{refused:?}");
    }
    assert_eq!(trial.tune(&["revert", "--force"]).code(), Some(0));
    let left = ["net.ipv4.ip_local_port_range: 32768 60999 -> 1024 65535"];
    assert_eq!(differences(&before, &parameters(&trial.netns)), left, "what can't be read can't be undone");
    assert_eq!(trial.tune(&["apply", "10k"]).code(), Some(0), "the journal may be used again");
}

#[test]
fn a_journal_holds_for_its_namespace_only() {
    let (Some(trial), Some(other)) = (Trial::new(), Netns::new()) else { return };
    assert_eq!(trial.tune(&["apply", "load-generator"]).code(), Some(0));
    let elsewhere = |args: &[&str]| {
        run(&[&["tune"], args, &["--netns", other.name(), "--journal", &trial.journal()]].concat())
    };
    for args in [&["revert"][..], &["revert", "--force"], &["apply", "load-generator"]] {
        let refused = elsewhere(args);
        assert_eq!(refused.code(), Some(1), "{refused:?}");
        assert!(refused.stderr.contains("holds changes of the network namespace "), "{refused:?}");
    }
    assert_eq!(parameters(&trial.netns)["net.ipv4.tcp_tw_reuse"], "1");
    assert_eq!(parameters(&other)["net.ipv4.tcp_tw_reuse"], "2");

    let status = || run(&["tune", "status", "--journal", &trial.journal()]).stdout;
    assert!(status().contains("net.ipv4.tcp_tw_reuse"), "{}", status());
    assert!(trial.tune(&["status"]).stdout.contains("net.ipv4.tcp_tw_reuse"), "--netns is its namespace");
    assert_eq!(elsewhere(&["status"]).stdout, "Nothing is changed.\n", "but not another's");
    trial.netns.delete();
    let gone = trial.tune(&["revert"]);
    assert_eq!(gone.code(), Some(69), "{gone:?}");
    assert!(gone.stderr.contains("can't open the network namespace "), "{gone:?}");
    let told = run(&["tune", "revert", "--journal", &trial.journal()]);
    assert_eq!(told.code(), Some(0), "{told:?}");
    assert!(told.stdout.contains("its network namespace is gone, and its values went with it"), "{told:?}");
    assert!(status().contains("its network namespace is gone; nothing is left of it"), "{}", status());
}

#[test]
fn the_host_is_not_changed_from_within_another_namespace() {
    let Some(trial) = Trial::new() else { return };
    let program = program::path();
    let words = [&program.to_string_lossy(), "tune", "apply", "1m", "--host", "--journal", &trial.journal()];
    let refused = trial.netns.command(&words).output().expect("it runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("--host is found in this process's network namespace"), "{said}");
    assert!(!trial.scratch.path("journal.jsonl").exists());
}

#[test]
fn a_namespace_that_was_made_anew_has_nothing_to_revert() {
    let Some(trial) = Trial::new() else { return };
    assert_eq!(trial.tune(&["apply", "load-generator"]).code(), Some(0));
    // Mostly with the number of the first one.
    trial.netns.renew();
    trial.netns.output(&["sysctl", "-w", "net.ipv4.tcp_tw_reuse=1"]);
    let reverted = trial.tune(&["revert"]);
    assert_eq!(reverted.code(), Some(0), "{reverted:?}");
    assert!(
        reverted.stdout.contains("Nothing is left to revert: its network namespace is gone"),
        "{reverted:?}"
    );
    assert_eq!(parameters(&trial.netns)["net.ipv4.tcp_tw_reuse"], "1", "it was not set by apply");
}

#[test]
fn a_successor_that_is_named_by_a_process_in_it_is_told_apart_too() {
    let Some(trial) = Trial::new() else { return };
    assert_eq!(trial.tune(&["apply", "load-generator"]).code(), Some(0));
    trial.netns.renew();
    trial.netns.output(&["sysctl", "-w", "net.ipv4.tcp_tw_reuse=1"]);
    let sleeper = sleeper(&trial.netns);
    let reverted =
        run(&["tune", "revert", "--netns", &sleeper.pid().to_string(), "--journal", &trial.journal()]);
    assert_eq!(reverted.code(), Some(0), "{reverted:?}");
    assert_eq!(
        parameters(&trial.netns)["net.ipv4.tcp_tw_reuse"],
        "1",
        "it was not set by apply: {reverted:?}"
    );
}

/// A process inside.
#[track_caller]
fn sleeper(netns: &Netns) -> Running {
    let sleeper = Running(netns.command(&["sleep", "600"]).spawn().expect("it starts"));
    let own = fs::read_link("/proc/self/ns/net").expect("it is ours");
    eventually(SOON, "it is inside", || {
        fs::read_link(format!("/proc/{}/ns/net", sleeper.pid())).is_ok_and(|theirs| theirs != own)
    });
    sleeper
}

#[test]
fn after_a_restart_of_the_kernel_nothing_is_left_to_revert() {
    let machine = Machine::new();
    assert_eq!(machine.tune(&["apply", "10k", "--host"]).code(), Some(0));
    machine.write("proc/sys/kernel/random/boot_id", "another\n");
    // The kernel's own again, by chance the one that was set.
    let before = machine.values();
    assert!(machine.tune(&["status"]).stdout.contains("of an earlier start of the kernel"));
    let reverted = machine.tune(&["revert"]);
    assert_eq!(reverted.code(), Some(0), "{reverted:?}");
    assert!(
        reverted.stdout.contains("Nothing is left to revert: the kernel was started again"),
        "{reverted:?}"
    );
    assert_eq!(machine.values(), before);
    assert_eq!(machine.tune(&["apply", "100k", "--host"]).code(), Some(0), "its journal is begun anew");
    assert_eq!(machine.tune(&["revert"]).code(), Some(0));
    assert_eq!(machine.values(), before);
}

/// An `apply` on `machine` that has set two values and stands before the third, `fs.nr_open`, a pipe now.
#[track_caller]
fn apply_halfway(machine: &Machine) -> (Running, Pipe) {
    let pipe = Pipe::in_place_of(&machine.path("proc/sys/fs/nr_open"));
    let profile = "title = \"t\"\nconnections = 2000000\n\
                   knobs = [\"net.core.somaxconn\", \"fs.file-max\", \"fs.nr_open\", \"net.ipv4.tcp_tw_reuse\"]\n";
    machine.write("mine.toml", profile);
    let mut command = program::command();
    command.args(["tune", "apply", "--host", "--profile-file"]).arg(machine.path("mine.toml"));
    command.arg("--root").arg(machine.root()).stdout(Stdio::null()).stderr(Stdio::piped());
    let apply = Running(command.spawn().expect("it starts"));
    // For the plan, and for the journal.
    pipe.is_read_as("1048576\n");
    pipe.is_read_as("1048576\n");
    eventually(SOON, "the third change is noted down", || {
        program::text(&machine.path("var/lib/corecast/tune/host.jsonl")).contains("fs.nr_open")
    });
    (apply, pipe)
}

#[test]
fn killed_between_two_writes_it_leaves_what_revert_undoes() {
    let machine = Machine::new();
    let before = machine.values();
    let (mut apply, _pipe) = apply_halfway(&machine);
    apply.kill();
    fs::remove_file(machine.path("proc/sys/fs/nr_open")).expect("the pipe is there");
    machine.write("proc/sys/fs/nr_open", "1048576\n");
    let halfway = machine.values();
    let set = ["proc/sys/net/core/somaxconn", "proc/sys/fs/file-max"].map(|path| halfway[path].as_str());
    assert_eq!(set, ["65535", "2465536"]);
    assert_eq!(halfway["proc/sys/net/ipv4/tcp_tw_reuse"], "2");

    let reverted = machine.tune(&["revert"]);
    assert_eq!(reverted.code(), Some(0), "{reverted:?}");
    assert!(reverted.stdout.starts_with("fs.nr_open          already -> 1048576\n"), "{reverted:?}");
    assert_eq!(machine.values(), before);
}

#[test]
fn interrupted_it_undoes_what_it_has_set() {
    for signal in [Signal::INT, Signal::HUP, Signal::QUIT] {
        interrupted_by(signal);
    }
}

fn interrupted_by(signal: Signal) {
    let machine = Machine::new();
    let before = machine.values();
    let (mut apply, pipe) = apply_halfway(&machine);
    let pid = Pid::from_raw(apply.pid()).expect("a pid is positive");
    kill_process(pid, signal).expect("it runs");
    // Of somebody without patience.
    kill_process(pid, signal).expect("it runs");
    assert_eq!(pipe.written(), "2000072\n");
    // What it is after the write, and before and after it is undone.
    pipe.is_read_as("2000072\n");
    pipe.is_read_as("2000072\n");
    assert_eq!(pipe.written(), "1048576\n");
    pipe.is_read_as("1048576\n");
    assert_eq!(apply.wait(SOON, "it ends").code(), Some(130));
    fs::remove_file(machine.path("proc/sys/fs/nr_open")).expect("the pipe is there");
    machine.write("proc/sys/fs/nr_open", "1048576\n");
    assert_eq!(machine.values(), before);
    assert!(machine.tune(&["revert"]).stdout.contains("Nothing is left"));
}

#[test]
fn two_at_once_do_not_mix() {
    let machine = Machine::new();
    let (_apply, _pipe) = apply_halfway(&machine);
    for args in [&["apply", "low-latency", "--host"][..], &["revert"]] {
        let second = machine.tune(args);
        assert_eq!(second.code(), Some(1), "{second:?}");
        assert!(
            second.stderr.contains("host.jsonl is in use: another `corecast tune` is at work"),
            "{second:?}"
        );
    }
    assert!(machine.tune(&["status"]).stdout.contains("fs.nr_open"), "looking takes no lock");
}

#[test]
fn a_profile_of_ones_own_that_is_wrong_is_refused_with_its_place() {
    let machine = Machine::new();
    let refused = |text: &str| {
        machine.write("mine.toml", text);
        let refused = machine.tune(&["plan", "--profile-file", &machine.path("mine.toml").to_string_lossy()]);
        assert_eq!(refused.code(), Some(78), "{refused:?}");
        refused.stderr
    };
    let head = "title = \"t\"\nconnections = 10\n";
    assert!(refused(&format!("{head}knob = 5\n")).contains("line 3"));
    assert!(refused(&format!("{head}knobs = [\"net.core.somax\"]\n")).contains("which is not built in"));
    let knob = "[[knob]]\nname = \"fs.nr_open\"\nscope = \"host\"\nvalue = \"current / (cores - 2)\"\n\
                reason = \"r\"\nrisk = \"r\"\nevidence = \"e\"\n";
    let divided = refused(&format!("{head}{knob}"));
    assert!(
        divided.contains("fs.nr_open: in the formula \"current / (cores - 2)\": it divides by zero"),
        "{divided}"
    );
    let absent = machine.tune(&["plan", "--profile-file", "/nowhere.toml"]);
    assert_eq!(absent.code(), Some(78), "{absent:?}");
    let unknown = machine.tune(&["plan", "50k"]);
    assert_eq!(unknown.code(), Some(2), "{unknown:?}");
    assert!(unknown.stderr.contains("due one of 10k, 100k, 1m, low-latency, load-generator"), "{unknown:?}");
}

#[test]
fn it_says_why_nobody_should_set_what_it_refuses() {
    let explained = run(&["tune", "explain", "tcp_tw_recycle"]);
    assert_eq!(explained.code(), Some(0), "{explained:?}");
    assert!(explained.stdout.contains("Linux 4.12 removed it"), "{explained:?}");
    let unknown = run(&["tune", "explain", "tcp_magic"]);
    assert_eq!(unknown.code(), Some(2), "{unknown:?}");
    let profiles: Value =
        serde_json::from_str(&run(&["tune", "list", "--format", "json"]).stdout).expect("JSON");
    assert_eq!(profiles.as_array().expect("a list").len(), 5);
}

#[test]
fn what_is_not_there_is_named() {
    let machine = Machine::new();
    fs::remove_file(machine.path("proc/meminfo")).expect("it is there");
    let planned = machine.tune(&["plan", "10k"]);
    assert_eq!(planned.code(), Some(69), "{planned:?}");
    assert!(planned.stderr.contains("/proc/meminfo: "), "{planned:?}");

    let machine = Machine::new();
    machine.write("proc/sys/net/core/somaxconn", "plenty\n");
    for args in [&["plan", "10k"][..], &["apply", "10k", "--host"]] {
        let odd = machine.tune(args);
        assert_eq!(odd.code(), Some(69), "{odd:?}");
        assert!(format!("{odd:?}").contains("net.core.somaxconn is "), "{odd:?}");
    }
    let nowhere = run(&["tune", "plan", "10k", "--netns", "no-such-namespace"]);
    assert_eq!(nowhere.code(), Some(69), "{nowhere:?}");
}
