//! SIGUSR2: one process after the other is replaced, and nobody is lost.

use std::os::unix::fs::{MetadataExt, symlink};
use std::time::Duration;

use rustix::process::Signal;

use super::parent::{MEMBERS, builder, draining_for, start, subscriptions};
use crate::support::client::Client;
use crate::support::deadline::{LONG, SOON, eventually};
use crate::support::http;
use crate::support::kernel::{is_running, signal};
use crate::support::on_both_drivers;
use crate::support::program;
use crate::support::publisher::Publisher;
use crate::support::redis::Redis;
use crate::support::scratch::Scratch;
use crate::support::server::{Driver, Server};
use crate::support::swarm::{Member, Phase, Swarm};

on_both_drivers!(a_rolling_restart_under_load_loses_no_connection_and_no_publication);

fn a_rolling_restart_under_load_loses_no_connection_and_no_publication(driver: Driver) {
    let redis = Redis::start();
    let server = start(&redis, driver);
    let load = Publisher::start(&redis, &["room:lobby".to_owned()], 'P', 128, 200);
    let swarm = Swarm::with_clock(load.started_probe());
    swarm.add_many(server.address(), "/ws?room=lobby", MEMBERS);
    swarm.wait_open();
    let before = server.processes();

    server.signal(Signal::USR2);

    server.wait_metrics("it is told", |page| page.only("corecast_rolling_restart") == Some(1.0));
    // Newcomers and those who were told to come back keep coming all the while.
    let mut returned = 0;
    eventually(LONG, "the rolling restart ends", || {
        let told = swarm.count(|member| member.close_code.is_some());
        let newcomers = usize::from(swarm.len() < NEWCOMERS_MAX);
        swarm.add_many(server.address(), "/ws?room=lobby", told - returned + newcomers);
        returned = told;
        server.log().contains("all processes have been replaced")
    });
    let all = 0..swarm.len();
    swarm.wait_each(all.clone(), "whoever connected is let in", |member| {
        let failed = matches!(member.phase(), Phase::Broken(_) | Phase::Refused(_));
        assert!(!failed, "a connection was lost: {:?}", member.phase());
        member.phase() != &Phase::Joining
    });
    let seen = load.accepted();
    eventually(LONG, "the load goes on", || load.accepted() >= seen + 100);
    let last = load.stop().last().expect("publications were accepted").sequence;

    let open = swarm.map(Member::is_open);
    let listening = all.clone().filter(|index| open[*index]);
    swarm.wait_each(listening, "who is there hears the end of it", |m| m.tally('P').last == last);
    for (index, (member, joined_at)) in
        swarm.map(|m| ((m.phase().clone(), m.close_code, m.tally('P')), m.joined_at)).into_iter().enumerate()
    {
        let (phase, code, tally) = member;
        let left_in_order = phase == Phase::Ended && code == Some(1012);
        assert!(phase == Phase::Open || left_in_order, "{index}: {phase:?} {code:?}");
        // Nothing is missing from the moment that a member was let in.
        let is_whole = tally.holes.is_empty() && tally.backwards == 0;
        assert!(is_whole && tally.first <= joined_at + 1, "{index}: {tally:?} since {joined_at}");
    }
    assert_eq!(swarm.map(|m| m.close_code)[..MEMBERS], [Some(1012); MEMBERS], "each was told to come back");
    let after = server.processes();
    assert!(after.len() == 2 && before.iter().all(|pid| !after.contains(pid) && !is_running(*pid)));
    let page = server.metrics();
    assert_eq!(page.only("corecast_rolling_restart"), Some(0.0));
    let restarts = |process| page.labelled_only("corecast_process_restarts_total", "process", process);
    assert_eq!([restarts("0"), restarts("1")], [Some(0.0); 2]);
    assert_eq!(subscriptions(&server).iter().sum::<f64>(), swarm.count(Member::is_open) as f64);
}

#[test]
fn a_successor_that_cannot_start_ends_the_rolling_restart_and_nobody_is_closed() {
    let redis = Redis::start();
    let server = builder(&redis, Driver::Epoll).config("").start();
    server.wait_brokers(2);
    let (processes, mut client) = (server.processes(), Client::join(&server, "lobby"));
    server.rewrite_config("nonsense = 1\n");

    server.signal(Signal::USR2);

    server.wait_log("it says so", |line| line.contains("rolling restart ended"));
    assert_eq!(server.processes(), processes);
    redis.publish("room:lobby", "still here");
    assert_eq!(client.next_text(), "still here");
    server.rewrite_config("");
    server.signal(Signal::USR2);
    eventually(LONG, "the next one is whole", || server.log().contains("all processes have been replaced"));
}

#[test]
fn a_successor_reads_the_configuration_anew() {
    let redis = Redis::start();
    let server = builder(&redis, Driver::Epoll).config("").start();
    server.wait_brokers(2);
    let metrics = || {
        let page = http::request(server.admin_address(), "GET", "/metrics", &[]).expect("it answers");
        page.text().to_owned()
    };
    assert!(metrics().contains("\nrooms{process="), "the preset's own names are there");
    server.rewrite_config("plain_metrics = false\n");

    server.signal(Signal::USR2);

    eventually(LONG, "all are replaced", || server.log().contains("all processes have been replaced"));
    assert!(!metrics().contains("\nrooms{process="), "the new file says so");
}

#[test]
fn a_successor_runs_the_program_that_stands_there_now_or_else_the_parents() {
    let redis = Redis::start();
    let scratch = Scratch::new();
    let installed = scratch.path("corecast");
    let install = || {
        let beside = scratch.path("corecast.new");
        program::install(&program::path(), &beside);
        std::fs::rename(&beside, &installed).expect("it is on the same file system");
    };
    install();
    let server = builder(&redis, Driver::Epoll).program(installed.clone()).start();
    server.wait_brokers(2);
    let files = || files_of(&server);
    let roll = |times: usize| {
        server.signal(Signal::USR2);
        eventually(LONG, "all are replaced", || server.log().matches("have been replaced").count() == times);
        files()
    };
    let first = files();
    install();
    let second = roll(1);
    assert!(first[0] == first[1] && second[0] == second[1] && first[0] != second[0], "{first:?} {second:?}");
    std::fs::remove_file(&installed).expect("it is there");

    assert_eq!(roll(2), first, "the parent's own file is all that is left");
}

#[test]
fn an_upgrade_that_points_a_link_to_another_file_is_taken() {
    let redis = Redis::start();
    let scratch = Scratch::new();
    let versions = ["1", "2"].map(|version| scratch.path(version));
    for version in &versions {
        program::install(&program::path(), version);
    }
    let link = scratch.path("corecast");
    symlink(&versions[0], &link).expect("a free name");
    let server = builder(&redis, Driver::Epoll).program(link.clone()).start();
    server.wait_brokers(2);
    let beside = scratch.path("corecast.new");
    symlink(&versions[1], &beside).expect("a free name");
    std::fs::rename(&beside, &link).expect("it is on the same file system");

    server.signal(Signal::USR2);

    eventually(LONG, "all are replaced", || server.log().contains("all processes have been replaced"));
    let file = std::fs::metadata(&versions[1]).expect("it is there").ino();
    assert_eq!(files_of(&server), [file, file]);
}

/// What its processes run.
fn files_of(server: &Server) -> Vec<u64> {
    let file = |pid: &i32| std::fs::metadata(format!("/proc/{pid}/exe")).expect("it runs").ino();
    server.processes().iter().map(file).collect()
}

#[test]
fn sigusr2_to_a_process_of_a_parent_is_answered_in_the_log_and_ends_nothing() {
    let redis = Redis::start();
    let server = start(&redis, Driver::Epoll);
    let processes = server.processes();
    signal(processes[0], Signal::USR2);
    server.wait_log("it says so", |line| line.contains("send it there"));
    assert_eq!(server.processes(), processes);
    assert!(is_running(processes[0]));
}

#[test]
fn a_signal_to_end_in_the_middle_of_a_rolling_restart_ends_all() {
    let redis = Redis::start();
    let hour = Duration::from_secs(3600);
    let mut server = draining_for(&redis, hour).start();
    server.wait_brokers(2);
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", 40);
    swarm.wait_open();
    server.signal(Signal::USR2);
    eventually(SOON, "the first one leaves", || swarm.count(|m| m.close_code == Some(1012)) > 0);

    server.signal(Signal::TERM);
    server.wait_log("all are told", |line| line.contains("all processes drain"));
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit(SOON).code(), Some(0));
}

/// Enough to fall into every moment of the restart.
const NEWCOMERS_MAX: usize = 2000;
