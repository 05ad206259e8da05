//! The system's programs: a price feed and consumers, `corecast publish --feed` and `corecast subscribe --rooms`.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::backbone;
use crate::support::deadline::SOON;
use crate::support::kernel::{Confinement, confine};
use crate::support::program::{self, Running};
use crate::support::redis::Redis;
use crate::support::scratch::Scratch;
use crate::support::server::Server;

#[test]
fn a_feed_and_consumers_of_two_instances_need_nothing_but_their_ports() {
    let redis = Redis::start();
    let [first, second] = [(), ()].map(|()| backbone(&redis).start());
    let mut consumers = [&first, &second].map(|server| {
        Program::start(server, &["subscribe", "--preset", "backbone", "--rooms", ROOMS, "--count", "30"])
    });
    for server in [&first, &second] {
        server.wait_metrics("both rooms are joined", |page| page.sum("corecast_subscriptions") == 2.0);
    }
    let mut feed = Program::start(
        &first,
        &[
            "publish",
            "--preset",
            "backbone",
            "--feed",
            "--instruments",
            ROOMS,
            "--rate",
            "200",
            "--count",
            "30",
        ],
    );
    assert_eq!(feed.running.wait(SOON, "the feed has sent all").code(), Some(0), "{}", feed.stderr());
    let sent: Vec<Value> = feed.lines();
    assert_eq!(sent.len(), 30);
    for consumer in &mut consumers {
        assert_eq!(consumer.running.wait(SOON, "it has all").code(), Some(0), "{}", consumer.stderr());
        for room in ROOMS.split(',') {
            let of_room = |line: &&Value| line["instrument"] == room;
            let received: Vec<Value> =
                consumer.lines().into_iter().filter(|line| line["room"] == room).collect();
            assert!(received.iter().all(|line| line["type"] == "price_update"), "{received:?}");
            let data: Vec<&Value> = received.iter().map(|line| &line["data"]).collect();
            assert_eq!(data, sent.iter().filter(of_room).collect::<Vec<_>>(), "{room}");
        }
    }
}

#[test]
fn a_feed_without_the_key_that_is_due_ends_and_one_with_it_feeds() {
    let redis = Redis::start();
    let scratch = Scratch::new();
    let key = scratch.write("key", "sesame\n");
    let key = key.to_string_lossy();
    let server = backbone(&redis).arg("--api-key-file").arg(&key).start();
    let feed = ["publish", "--preset", "backbone", "--feed", "--count", "3", "--rate", "100"];
    let mut without = Program::start(&server, &feed);
    assert_eq!(without.running.wait(SOON, "it is refused").code(), Some(77), "{}", without.stderr());
    assert!(without.stderr().contains("401"), "{}", without.stderr());
    let mut with = Program::start(&server, &[&feed[..], &["--api-key-file", &key]].concat());
    assert_eq!(with.running.wait(SOON, "it has sent all").code(), Some(0), "{}", with.stderr());
    server.wait_metrics("all three came", |page| page.sum("corecast_messages_received_total") == 3.0);
}

/// A client command of corecast's that finds `server` by the system's variable.
struct Program {
    running: Running,
    scratch: Scratch,
}

impl Program {
    #[track_caller]
    fn start(server: &Server, args: &[&str]) -> Self {
        let scratch = Scratch::new();
        let file = |path: &Path| File::create(path).expect("a scratch directory takes files");
        let mut command: Command = program::command();
        command.args(args).env("PORT", server.address().port().to_string());
        command.stdout(file(&scratch.path("stdout"))).stderr(file(&scratch.path("stderr")));
        confine(&mut command, Confinement::default());
        Self { running: Running(command.spawn().expect("the binary starts")), scratch }
    }

    /// What it has printed, each line JSON.
    #[track_caller]
    fn lines(&self) -> Vec<Value> {
        let text = program::text(&self.scratch.path("stdout"));
        text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
    }

    fn stderr(&self) -> String {
        program::text(&self.scratch.path("stderr"))
    }
}

const ROOMS: &str = "BTC_USDT,ETH_USDT";
