//! `corecast doctor`: what it says of this host, of one that a folder describes, of a network namespace, and of Redis.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use redis_protocol::resp2::types::OwnedFrame;
use serde_json::Value;

use crate::support::kernel::Confinement;
use crate::support::program::{self, Finished};
use crate::support::redis::Redis;
use crate::support::scratch::Scratch;
use crate::support::seccomp;
use crate::support::server::{Driver, Server};
use crate::support::tool::ClosedPort;

/// What a run said, its checks by id (the last of those that are there for each address).
struct Diagnosis {
    finished: Finished,
    summary: Value,
    checks: BTreeMap<String, Value>,
}

impl Diagnosis {
    #[track_caller]
    fn of(finished: Finished) -> Self {
        let object: Value = serde_json::from_str(&finished.stdout)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {finished:?}"));
        let list = object["checks"].as_array().expect("checks are a list").clone();
        let levels = |level: &str| list.iter().filter(|check| check["level"] == level).count();
        for level in ["ok", "info", "warn", "bad"] {
            assert_eq!(object["summary"][level], levels(level), "{level} is counted wrongly: {finished:?}");
        }
        let due = match (levels("bad"), levels("warn")) {
            (0, 0) => 0,
            (0, _) => 1,
            _ => 2,
        };
        assert_eq!(object["exit"], due);
        assert_eq!(finished.code(), Some(due), "the worst check decides: {finished:?}");
        let id = |check: &Value| check["id"].as_str().expect("an id is text").to_owned();
        let checks = list.iter().map(|check| (id(check), check.clone())).collect();
        Self { finished, summary: object["summary"].clone(), checks }
    }

    #[track_caller]
    fn check(&self, id: &str) -> &Value {
        self.checks.get(id).unwrap_or_else(|| panic!("{id} is missing: {:?}", self.finished))
    }

    #[track_caller]
    fn level(&self, id: &str) -> &str {
        self.check(id)["level"].as_str().expect("a level is text")
    }

    #[track_caller]
    fn cure(&self, id: &str) -> String {
        self.check(id)["cure"]
            .as_str()
            .unwrap_or_else(|| panic!("{id} has no cure: {}", self.check(id)))
            .to_owned()
    }

    /// Everything that is wrong has a cure.
    #[track_caller]
    fn assert_cured(&self) {
        for (id, check) in &self.checks {
            let is_fault = check["level"] == "warn" || check["level"] == "bad";
            assert!(!is_fault || check["cure"].is_string(), "{id} has no cure: {check}");
        }
    }

    #[track_caller]
    fn assert_levels(&self, expected: &[(&str, &str)]) {
        for (id, level) in expected {
            assert_eq!(self.level(id), *level, "{}", self.check(id));
        }
    }
}

/// Of the host that runs the tests.
#[track_caller]
fn diagnose(args: &[&str]) -> Diagnosis {
    diagnose_confined(args, Confinement::default())
}

#[track_caller]
fn diagnose_confined(args: &[&str], confinement: Confinement) -> Diagnosis {
    let mut command = program::command();
    command.args(["doctor", "--format", "json"]).args(args);
    Diagnosis::of(program::finish(command, confinement))
}

/// A folder that looks like a host with four cores, 16 GiB, and defaults; `changed` files differ.
fn host(changed: &[(&str, &str)]) -> Scratch {
    let scratch = Scratch::new();
    let plain = [
        (
            "proc/self/status",
            "Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\nSeccomp:\t0\nCpus_allowed_list:\t0-3\n",
        ),
        ("proc/self/limits", "Max open files 1024 1048576 files\n"),
        ("proc/self/cgroup", "0::/corecast\n"),
        ("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
        (
            "proc/meminfo",
            "MemTotal: 16777216 kB\nMemAvailable: 14000000 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n",
        ),
        ("proc/net/netstat", "TcpExt: ListenOverflows ListenDrops\nTcpExt: 0 0\n"),
        ("proc/net/sockstat", "TCP: inuse 5 orphan 0 tw 1 alloc 6 mem 2\n"),
        ("proc/sys/fs/file-nr", "1000\t0\t9223372036854775807\n"),
        ("proc/sys/fs/nr_open", "1073741816\n"),
        ("proc/sys/kernel/osrelease", "6.18.0\n"),
        ("proc/sys/kernel/io_uring_disabled", "0\n"),
        ("proc/sys/net/core/somaxconn", "4096\n"),
        ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
        ("proc/sys/net/ipv4/ip_local_reserved_ports", "\n"),
        ("proc/sys/net/ipv4/ip_unprivileged_port_start", "1024\n"),
        ("proc/sys/net/ipv4/tcp_max_syn_backlog", "1024\n"),
        ("proc/sys/net/ipv4/tcp_max_tw_buckets", "131072\n"),
        ("proc/sys/net/ipv4/tcp_mem", "190000\t250000\t380000\n"),
        ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456\n"),
        ("proc/sys/net/ipv4/tcp_syncookies", "1\n"),
        ("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304\n"),
        ("proc/sys/vm/overcommit_memory", "0\n"),
        ("proc/sys/vm/swappiness", "60\n"),
        ("sys/fs/cgroup/corecast/cpu.max", "max 100000\n"),
        ("sys/fs/cgroup/corecast/memory.max", "max\n"),
        ("sys/fs/cgroup/corecast/pids.max", "max\n"),
        ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
        ("sys/devices/system/cpu/online", "0-3\n"),
        ("sys/devices/system/cpu/isolated", "\n"),
        ("sys/devices/system/node/node0/cpulist", "0-3\n"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
    ];
    for (path, text) in plain.iter().chain(changed) {
        let folder = scratch.path(path);
        std::fs::create_dir_all(folder.parent().expect("a file has a folder")).expect("folders can be made");
        scratch.write(path, text);
    }
    scratch
}

#[track_caller]
fn diagnose_host(changed: &[(&str, &str)], args: &[&str]) -> Diagnosis {
    let host = host(changed);
    // Tried for real, whatever the folder says; the driver so that a machine without io_uring gives the same answer.
    let mut all =
        vec!["--listen", "127.0.0.1:0", "--driver", "epoll", "--root", host.dir().to_str().expect("UTF-8")];
    all.extend_from_slice(args);
    diagnose(&all)
}

#[test]
fn text_and_json_say_the_same_of_this_host_and_agree_on_the_exit_code() {
    let args = ["doctor", "--listen", "127.0.0.1:0", "--connections", "1000"];
    let diagnosis = diagnose(&args[1..]);
    let text = program::run(&args);
    assert_eq!(text.code(), diagnosis.finished.code());
    for (id, check) in &diagnosis.checks {
        let is_it = |line: &&str| line.split_whitespace().nth(1) == Some(id);
        let line =
            text.stdout.lines().find(is_it).unwrap_or_else(|| panic!("{id} is missing: {}", text.stdout));
        assert_eq!(line.split_whitespace().next(), check["level"].as_str(), "{line}");
    }
    let counted = |level: &str| format!("{} {level}", diagnosis.summary[level]);
    let summary = ["ok", "info", "warn", "bad"].map(counted).join(", ");
    assert!(text.stdout.lines().any(|line| line == summary), "{summary} is missing: {}", text.stdout);
    assert_eq!((text.stderr.as_str(), diagnosis.finished.stderr.as_str()), ("", ""));
}

#[test]
fn the_manual_lists_every_check_and_no_other() {
    let manual =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/OPERATIONS.md")).unwrap();
    let section = manual.split("| check |").nth(1).expect("the manual has a table of checks");
    let rows = section.lines().skip(2).take_while(|line| line.starts_with('|'));
    let documented: BTreeSet<String> = rows
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|cell| cell.split(',').map(|id| id.trim().trim_matches('`').to_owned()))
        .collect();
    let redis = Redis::start();
    let diagnosis = diagnose(&["--listen", "127.0.0.1:0", "--redis", &redis.url()]);
    let mut told: BTreeSet<String> = diagnosis.checks.keys().cloned().collect();
    for several in ["redis+sentinel://127.0.0.1:1/orders", "redis+cluster://127.0.0.1:1"] {
        told.extend(diagnose(&["--listen", "127.0.0.1:0", "--redis", several]).checks.into_keys());
    }
    assert_eq!(documented, told, "docs/OPERATIONS.md, section corecast doctor");
}

#[test]
fn a_host_with_defaults_is_well_and_one_that_is_not_is_told_what_to_do() {
    let well = diagnose_host(&[], &["--connections", "20000"]);
    assert_eq!(well.finished.code(), Some(0), "{:?}", well.finished);

    let changed = [
        ("proc/self/limits", "Max open files 1024 4096 files\n"),
        ("proc/sys/fs/nr_open", "16384\n"),
        ("proc/sys/fs/file-nr", "1000\t0\t20000\n"),
        ("proc/sys/net/core/somaxconn", "128\n"),
        ("proc/sys/net/ipv4/tcp_syncookies", "0\n"),
        ("proc/sys/net/ipv4/tcp_max_syn_backlog", "512\n"),
        ("proc/net/netstat", "TcpExt: ListenOverflows ListenDrops\nTcpExt: 7 9\n"),
        ("proc/net/sockstat", "TCP: inuse 5 orphan 0 tw 131072 alloc 6 mem 2\n"),
        ("proc/sys/net/ipv4/tcp_mem", "1900\t2500\t3800\n"),
        ("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t32768\n"),
        ("proc/sys/net/netfilter/nf_conntrack_count", "50\n"),
        ("proc/sys/net/netfilter/nf_conntrack_max", "8192\n"),
        ("proc/meminfo", "MemTotal: 262144 kB\nMemAvailable: 65536 kB\nSwapTotal: 1024 kB\nSwapFree: 0 kB\n"),
        ("proc/sys/vm/overcommit_memory", "2\n"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n"),
        ("sys/fs/cgroup/corecast/cpu.max", "150000 100000\n"),
        ("sys/fs/cgroup/corecast/memory.max", "67108864\n"),
        ("sys/fs/cgroup/corecast/pids.max", "4\n"),
        ("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n"),
        ("sys/devices/system/clocksource/clocksource0/available_clocksource", "tsc hpet\n"),
        ("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0-1\n"),
        ("sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "0-1\n"),
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n"),
        ("sys/devices/system/node/node0/cpulist", "0-1\n"),
        ("sys/devices/system/node/node1/cpulist", "2-3\n"),
    ];
    let args = ["--connections", "20000", "--shards", "2", "--cores", "0,1", "--ping-interval", "0s"];
    let ill = diagnose_host(&changed, &args);
    ill.assert_levels(&[
        ("bounds.pings", "warn"),
        ("descriptors.limit", "bad"),
        ("descriptors.nr_open", "bad"),
        ("descriptors.file_max", "bad"),
        ("net.somaxconn", "warn"),
        ("net.syn_backlog", "warn"),
        ("net.listen_overflows", "warn"),
        ("net.time_wait", "warn"),
        ("net.tcp_mem", "warn"),
        ("net.tcp_buffers", "warn"),
        ("net.conntrack", "bad"),
        ("memory.connections", "bad"),
        ("memory.budgets", "warn"),
        ("memory.huge_pages", "info"),
        ("memory.overcommit", "warn"),
        ("memory.swap", "warn"),
        ("cgroup.cpu", "warn"),
        ("cgroup.memory", "bad"),
        ("cgroup.pids", "bad"),
        ("clock.source", "warn"),
        ("cpu.siblings", "warn"),
        ("cpu.relay", "warn"),
        ("cpu.governor", "warn"),
    ]);
    let other_user = [("proc/self/status", "Uid:\t33\t33\t33\t33\nCapEff:\t0\nCpus_allowed_list:\t0-3\n")];
    diagnose_host(&other_user, &["--listen", "127.0.0.1:1023"]).assert_levels(&[("ports.privileged", "bad")]);
    assert_eq!(ill.cure("net.somaxconn").split("  #").next(), Some("sysctl -w net.core.somaxconn=65535"));
    assert_eq!(ill.cure("cpu.siblings"), "corecast serve --shards 2 --cores 2,3");
    ill.assert_cured();
}

#[test]
fn a_fault_of_the_command_line_or_the_configuration_is_none_of_the_host() {
    for (args, code) in [
        (&["doctor", "--connections", "0"][..], 2),
        (&["doctor", "--shards", "x"], 2),
        (&["doctor", "--config", "/nonexistent/corecast.toml"], 78),
    ] {
        let finished = program::run(args);
        assert_eq!(finished.code(), Some(code), "{finished:?}");
        assert_eq!(finished.stdout, "", "nothing is judged");
    }
    let refused = diagnose(&["--listen", "127.0.0.1:0", "--cores", "4095"]);
    refused.assert_levels(&[("cpu.pins", "bad")]);
}

#[test]
fn where_io_uring_is_denied_the_filter_is_named_and_what_epoll_costs() {
    let under = |filter, driver: &str| {
        let confinement = Confinement { filter: Some(filter), ..Confinement::default() };
        diagnose_confined(&["--listen", "127.0.0.1:0", "--driver", driver], confinement)
    };
    let denied = |driver| under(seccomp::without_io_uring(), driver);
    let auto = denied("auto");
    auto.assert_levels(&[("io_uring.setup", "warn"), ("io_uring.enter", "info"), ("driver", "warn")]);
    assert!(auto.cure("io_uring.setup").contains("seccomp=deploy/seccomp-io_uring.json"));
    assert!(auto.check("io_uring.setup")["found"].as_str().is_some_and(|found| found.contains("filter")));
    assert!(auto.check("driver")["found"].as_str().is_some_and(|found| found.contains("takes epoll")));
    auto.assert_cured();
    denied("io_uring").assert_cured();
    denied("io_uring").assert_levels(&[("io_uring.setup", "bad"), ("driver", "bad")]);
    denied("epoll").assert_levels(&[("io_uring.setup", "info"), ("driver", "info")]);
    let useless = under(seccomp::without_io_uring_enter(), "auto");
    useless.assert_cured();
    useless.assert_levels(&[("io_uring.setup", "ok"), ("io_uring.enter", "warn"), ("driver", "warn")]);
    assert_eq!(diagnose(&["--listen", "127.0.0.1:0"]).level("driver"), "ok", "where it is not denied");
}

#[test]
fn too_few_descriptors_for_what_is_wanted_are_bad_and_few_that_nobody_chose_a_warning() {
    let with = |max, args: &[&str]| {
        let confinement = Confinement { descriptors_max: Some(max), ..Confinement::default() };
        let mut all = vec!["--listen", "127.0.0.1:0", "--shards", "1"];
        all.extend_from_slice(args);
        diagnose_confined(&all, confinement)
    };
    let wanted = with(2048, &["--connections", "2009"]);
    wanted.assert_levels(&[("descriptors.limit", "bad")]);
    // 24 for the process, 16 for its shard.
    assert!(
        wanted.cure("descriptors.limit").starts_with("ulimit -Hn 2049 "),
        "{}",
        wanted.check("descriptors.limit")
    );
    with(2048, &["--connections", "2008"]).assert_levels(&[("descriptors.limit", "ok")]);
    with(96, &[]).assert_levels(&[("descriptors.limit", "warn")]);
}

#[test]
fn who_listens_already_is_named_and_may_be_joined_only_through_redis() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound").to_string();
    let taken = diagnose(&["--listen", &address]);
    taken.assert_levels(&[("ports.free", "bad")]);
    let found = taken.check("ports.free")["found"].to_string();
    assert!(found.contains(&format!("pid {}", std::process::id())), "{found}");

    let redis = Redis::start();
    let server = Server::event_fanout(&redis, Driver::Epoll).start();
    let address = server.address().to_string();
    let joined = diagnose(&["--redis", &redis.url(), "--listen", &address]);
    joined.assert_levels(&[("ports.free", "info")]);
    let found = joined.check("ports.free")["found"].to_string();
    assert!(found.contains(&format!("pid {}", server.pid())), "{found}");
    diagnose(&["--listen", &address]).assert_levels(&[("ports.free", "bad")]);
    diagnose(&["--listen", "127.0.0.1:0", "--admin", &address, "--redis", &redis.url()])
        .assert_levels(&[("ports.free", "bad")]);
}

#[test]
fn cures_of_a_network_namespace_cure_it() {
    let ill = "sysctl -qw net.core.somaxconn=128 net.ipv4.ip_local_port_range='2000 60001' \
               net.ipv4.ip_local_reserved_ports=9000-9010 net.ipv4.tcp_syncookies=0 net.ipv4.tcp_max_syn_backlog=64";
    let args = "--listen 0.0.0.0:9100 --connections 1000";
    let ids = ["net.somaxconn", "net.syn_backlog", "ports.ephemeral"];
    let before = diagnose_in_namespace(ill, args);
    before.assert_levels(&ids.map(|id| (id, "warn")));
    assert_eq!(before.level("net.tcp_mem"), "info", "it belongs to the host");

    let cures: Vec<String> = ids.iter().map(|id| before.cure(id)).collect();
    let after = diagnose_in_namespace(&format!("{ill}\n{}", cures.join("\n")), args);
    after.assert_levels(&ids.map(|id| (id, "ok")));
    let reserved = after.check("ports.ephemeral")["found"].to_string();
    assert!(reserved.contains("9100 is reserved"), "{reserved}");
}

/// Runs in a network namespace of its own, after `setup` (lines of a shell) has changed it.
#[track_caller]
fn diagnose_in_namespace(setup: &str, args: &str) -> Diagnosis {
    let mut command = Command::new("unshare");
    // Whoever isn't root becomes it in a user namespace, where the host allows these.
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let script = format!("set -e\nip link set lo up\n{setup}\nexec \"$0\" doctor --format json {args}");
    // What the commands of the setup print is not the program's.
    let script = script.replace("\nsysctl -w", "\nsysctl -qw");
    command.args(["--net", "sh", "-c", &script]).arg(program::path());
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let finished = program::finish(command, Confinement::default());
    assert!(!finished.stdout.is_empty(), "unshare, ip or sysctl failed: {finished:?}");
    Diagnosis::of(finished)
}

#[test]
fn limits_of_redis_that_would_cut_a_node_are_warned_of_and_nothing_is_left_behind() {
    let redis = Redis::start();
    let ask = |args: &[&str]| {
        let mut all = vec!["--preset", "event-fanout", "--listen", "127.0.0.1:0"];
        all.extend_from_slice(args);
        diagnose(&all)
    };
    let well = ask(&["--redis", &redis.url()]);
    well.assert_levels(&[
        ("redis.reachable", "ok"),
        ("redis.version", "ok"),
        ("redis.role", "ok"),
        ("redis.rights", "ok"),
        ("redis.output_limit", "ok"),
        ("redis.clients", "ok"),
        ("redis.timeout", "ok"),
        ("redis.backlog", "info"),
    ]);
    assert_eq!(ask(&["--redis", &redis.unix_url()]).level("redis.rights"), "ok");
    assert_eq!(redis.cli(&["DBSIZE"]), OwnedFrame::Integer(0), "a key was written");
    assert_eq!(redis.cli(&["PUBSUB", "NUMPAT"]), OwnedFrame::Integer(0), "a subscription is left");

    let small = Redis::start_with(&[
        "--client-output-buffer-limit",
        "pubsub 1mb 256kb 10",
        "--maxclients",
        "4",
        "--timeout",
        "1",
    ]);
    let held: Vec<_> = (0..2).map(|_| small.connect().expect("a place is left")).collect();
    let ill = ask(&["--redis", &small.url()]);
    ill.assert_levels(&[
        ("redis.output_limit", "warn"),
        ("redis.clients", "warn"),
        ("redis.timeout", "warn"),
    ]);
    let message = ask(&["--redis", &small.url(), "--message-bytes-max", "2MiB"]);
    message.assert_levels(&[("redis.output_limit", "bad")]);
    drop(held);
}

#[test]
fn a_password_a_wrong_one_and_an_absent_redis_are_told_apart() {
    let redis = Redis::start_with(&["--requirepass", "secret"]);
    let ask = |url: &str| diagnose(&["--listen", "127.0.0.1:0", "--redis", url]);
    let found = |diagnosis: &Diagnosis| diagnosis.check("redis.reachable")["found"].to_string();
    let without = ask(&redis.url());
    without.assert_levels(&[("redis.reachable", "bad")]);
    assert!(found(&without).contains("NOAUTH") && without.cure("redis.reachable").contains("REDIS_PASSWORD"));
    let wrong = ask(&format!("redis://:guess@{}", redis.address()));
    assert!(found(&wrong).contains("WRONGPASS"), "{}", found(&wrong));
    let right = ask(&format!("redis://:secret@{}", redis.address()));
    right.assert_levels(&[("redis.reachable", "ok"), ("redis.rights", "ok")]);
    assert!(!right.finished.stdout.contains("secret"), "a password is never shown");
    let nobody = ClosedPort::new();
    let away = ask(&format!("redis://{}", nobody.address()));
    away.assert_levels(&[("redis.reachable", "bad")]);
    assert!(found(&away).contains("no Redis answers"), "{}", found(&away));
}

#[test]
fn a_user_without_rights_gets_them_by_the_cure() {
    let redis = Redis::start();
    redis.cli(&["ACL", "SETUSER", "ann", "on", ">word", "+ping"]);
    let url = format!("redis://ann:word@{}", redis.address());
    let ask = || {
        diagnose(&["--preset", "event-fanout,workflow,backbone", "--listen", "127.0.0.1:0", "--redis", &url])
    };
    let refused = ask();
    refused.assert_levels(&[
        ("redis.reachable", "ok"),
        ("redis.rights", "bad"),
        ("redis.output_limit", "info"),
    ]);

    let cure = refused.cure("redis.rights");
    let command =
        cure.split("  #").next().and_then(|cure| cure.split_once(" ACL ")).expect("the cure is an ACL").1;
    let words: Vec<&str> = command.split(' ').map(|word| word.trim_matches('\'')).collect();
    redis.cli(&[&["ACL"], words.as_slice()].concat());
    ask().assert_levels(&[("redis.rights", "ok")]);
}
