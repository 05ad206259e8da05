//! `--admin` of a server of several processes: the pages of each and of all, and publishing through any.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::parent::{MEMBERS, builder, draining_for, start};
use crate::support::client::Client;
use crate::support::deadline::{SOON, eventually};
use crate::support::http;
use crate::support::kernel::{signal, stop};
use crate::support::metrics::Metrics;
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server};
use crate::support::swarm::Swarm;

#[test]
fn promtool_finds_nothing_to_say_about_the_metrics_of_all() {
    let redis = Redis::start();
    let server = start(&redis, Driver::Epoll);
    let page = get(&server, "/metrics");
    assert!(page.contains("corecast_deliveries_total{process=\"1\"}"), "{page}");
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("cannot run promtool: {error}. It checks /metrics: install Debian's package `prometheus`")
        });
    promtool.stdin.take().expect("a pipe").write_all(page.as_bytes()).expect("promtool reads its input");
    let output = promtool.wait_with_output().expect("promtool ends with its input");
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(output.status.success() && said.trim().is_empty(), "promtool says: {said}");
}

#[test]
fn the_pages_of_all_add_up_to_those_of_each() {
    let redis = Redis::start();
    let server = start(&redis, Driver::IoUring);
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", MEMBERS);
    swarm.wait_open();

    let one = |process: usize| Metrics::parse(&get(&server, &format!("/metrics?process={process}")));
    let each = [one(0), one(1)];
    let members = each.each_ref().map(|page| page.sum("corecast_subscriptions"));
    let told = each.each_ref().map(|page| page.labelled("corecast_process_info", "index", "1"));
    assert_eq!((members.iter().sum::<f64>(), told), (MEMBERS as f64, [0.0, 1.0]));
    let all = server.metrics();
    assert_eq!(all.labelled("corecast_subscriptions", "process", "0"), members[0]);
    let stats = server.stats();
    assert_eq!(stats["total"]["subscriptions"], MEMBERS);
    assert_eq!(stats["processes"][1]["subscriptions"], members[1]);
    assert_eq!(stats["processes"][1]["pid"], server.processes()[1]);
    let survey: serde_json::Value = serde_json::from_str(&get(&server, "/admin/stats")).expect("JSON");
    assert_eq!(survey["processes"].as_array().map(Vec::len), Some(2), "{survey}");
}

#[test]
fn who_is_still_connected_to_a_process_that_leaves_is_on_the_pages_of_all() {
    let redis = Redis::start();
    let server = draining_for(&redis, Duration::from_secs(3600)).start();
    server.wait_brokers(2);
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", MEMBERS);
    swarm.wait_open();
    let leaving = server.processes()[1];

    signal(leaving, Signal::TERM);

    let pid = leaving.to_string();
    server.wait_metrics("it is told beside its successor", |page| {
        let of = |name: &str| page.sum_where(name, "leaving", |found| found == pid);
        let all = page.labelled("corecast_process_info", "process", "1");
        of("corecast_connections") > 0.0 && of("corecast_process_info") == 1.0 && all == 2.0
    });
    let stats = server.stats();
    let counts = [&stats["processes"][0], &stats["processes"][1], &stats["leaving"][0]]
        .map(|process| process["connections"]["open"].as_u64().expect("each is told"));
    assert_eq!(stats["leaving"][0]["pid"], leaving);
    assert!(counts[2] > 0 && stats["total"]["connections"]["open"] == counts.iter().sum::<u64>(), "{stats}");
    signal(leaving, Signal::KILL);
}

#[test]
fn a_page_of_a_process_that_there_is_not_is_refused_with_a_word() {
    let redis = Redis::start();
    let server = start(&redis, Driver::Epoll);
    for target in ["/metrics?process=2", "/stats?process=x"] {
        let answer = http::request(server.admin_address(), "GET", target, &[]).expect("it answers");
        assert_eq!(answer.status, 404, "{answer:?}");
        assert!(answer.text().contains("due a number from 0 to 1"), "{answer:?}");
    }
    let head = http::request(server.admin_address(), "HEAD", "/metrics", &[]).expect("it answers");
    assert_eq!((head.status, head.body.len()), (200, 0), "{head:?}");
    let elsewhere = http::request(server.admin_address(), "GET", "/ws", &[]).expect("it answers");
    assert_eq!(elsewhere.status, 404);
    assert_eq!(server.get("/metrics").status, 404, "clients' port has none of it");
}

#[test]
fn without_an_admin_address_a_page_says_whose_it_is() {
    let redis = Redis::start();
    let server = Server::event_fanout(&redis, Driver::Epoll).processes(2).start();
    let page = server.metrics();
    let of = |process| page.labelled("corecast_process_info", "index", process);
    assert_eq!(of("0") + of("1"), 1.0, "{}", page.show("corecast_process_info"));
    assert!(matches!(server.stats()["process"].as_u64(), Some(0 | 1)));
}

#[test]
fn publishing_on_the_admin_address_reaches_the_clients_of_all_processes() {
    let redis = Redis::start();
    let server = start(&redis, Driver::IoUring);
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", MEMBERS);
    swarm.wait_open();
    let long = vec![b'x'; 300 * 1024];
    for body in [b"short".as_slice(), &long] {
        server.publish("lobby", body);
    }
    swarm.wait_all("everybody hears both", |member| member.messages == 2);
    // Refused from its head on, before all of it has come, and without any of it.
    let refused = server.post("/publish?room=lobby", &vec![b'x'; 17 * 1024 * 1024]);
    assert_eq!(refused.status, 413, "{refused:?}");
    let announced = format!(
        "POST /publish?room=lobby HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n",
        server.admin_address(),
        17 << 20
    );
    let refused = http::exchange(server.admin_address(), announced.as_bytes()).expect("an answer");
    assert_eq!(refused.status, 413, "{refused:?}");
}

#[test]
fn who_waits_for_the_word_to_send_a_body_gets_it_and_is_answered() {
    let redis = Redis::start();
    let scratch = crate::support::scratch::Scratch::new();
    let key = scratch.write("key", "secret\n");
    let server = builder(&redis, Driver::IoUring).arg("--api-key-file").arg(&key.to_string_lossy()).start();
    server.wait_brokers(2);
    let body = vec![b'x'; 2 << 20];
    let head = |key: &str| {
        format!(
            "POST /publish?room=lobby HTTP/1.1\r\nHost: {}\r\nX-API-Key: {key}\r\nContent-Length: {}\r\n\
             Expect: 100-continue\r\n\r\n",
            server.admin_address(),
            body.len()
        )
    };
    let mut stream = http::connect(server.admin_address()).expect("it listens");
    let mut say = |head: &str| {
        stream.write_all(head.as_bytes()).expect("it listens");
        http::read_response(&mut stream, false).expect("an answer")
    };
    assert_eq!(say(&head("secret")).status, 100);
    stream.write_all(&body).expect("it listens");
    let answer = http::read_response(&mut stream, false).expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");

    let refused = http::exchange(server.admin_address(), head("another").as_bytes()).expect("an answer");
    assert_eq!(refused.status, 401, "it is not asked for a body that is of no use");
}

#[test]
fn the_gate_of_the_processes_judges_what_the_client_of_the_admin_address_sent() {
    let redis = Redis::start();
    let scratch = crate::support::scratch::Scratch::new();
    let key = scratch.write("key", "secret\n");
    let server = builder(&redis, Driver::Epoll).arg("--api-key-file").arg(&key.to_string_lossy()).start();
    server.wait_brokers(2);
    let with_key = ["X-API-Key: secret"];
    let post = |headers: &[&str]| {
        http::post(server.admin_address(), "/publish?room=a", headers, b"x").expect("it answers").status
    };
    assert_eq!((post(&[]), post(&with_key)), (401, 200));
    let survey = |headers: &[&str]| {
        http::request(server.admin_address(), "GET", "/admin/stats", headers).expect("it answers").status
    };
    assert_eq!((survey(&[]), survey(&with_key)), (401, 200));
}

#[test]
fn a_server_is_ready_as_long_as_one_of_its_processes_is() {
    let redis = Redis::start();
    let server = start(&redis, Driver::Epoll);
    let ready = || {
        let answer = http::request(server.admin_address(), "GET", "/readyz", &[]).expect("it answers");
        let page: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
        (answer.status, page["ready"].clone())
    };
    assert_eq!(ready(), (200, 2.into()));
    // One that has begun to drain is not ready, and has clients that keep it from ending.
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", 50);
    swarm.wait_open();
    signal(server.processes()[0], Signal::TERM);
    eventually(SOON, "one is ready", || ready() == (200, 1.into()));
    eventually(SOON, "and two again", || ready() == (200, 2.into()));
}

#[test]
fn a_probe_for_readiness_does_not_wait_for_a_process_that_stands_still() {
    let redis = Redis::start();
    let server = start(&redis, Driver::Epoll);
    stop(server.processes()[1]);
    let began = Instant::now();
    let answer = http::request(server.admin_address(), "GET", "/readyz", &[]).expect("it answers");
    let took = began.elapsed();
    let page: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!((answer.status, &page["ready"]), (200, &1.into()), "{page}");
    assert!(took < PROBE_TIMEOUT, "it took {took:?}");
}

/// `timeoutSeconds` of the probes in deploy/kubernetes.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

#[test]
fn a_process_that_stands_still_does_not_keep_the_others_from_answering_for_ever() {
    let redis = Redis::start();
    let server = start(&redis, Driver::Epoll);
    let stopped = server.processes()[1];
    stop(stopped);
    let page = Metrics::parse(&get(&server, "/metrics"));
    assert!(page.labelled("corecast_broker_up", "process", "0") == 1.0);
    assert_eq!(page.labelled("corecast_broker_up", "process", "1"), 0.0, "it has not answered");
    signal(stopped, Signal::CONT);
    eventually(SOON, "it answers again", || {
        Metrics::parse(&get(&server, "/metrics")).labelled("corecast_broker_up", "process", "1") == 1.0
    });
}

#[test]
fn many_who_ask_at_once_are_all_answered() {
    let redis = Redis::start();
    let server = start(&redis, Driver::Epoll);
    // More than the admin address answers at a time, one of them silent.
    let _silent = http::connect(server.admin_address()).expect("it listens");
    thread::scope(|scope| {
        let asked: Vec<_> = (0..40).map(|_| scope.spawn(|| get(&server, "/stats").len())).collect();
        for asked in asked {
            assert!(asked.join().expect("it is answered") > 100);
        }
    });
    let mut client = Client::join(&server, "lobby");
    server.publish("lobby", b"still well");
    assert_eq!(client.next_text(), "still well");
}

#[track_caller]
fn get(server: &Server, target: &str) -> String {
    let answer = http::request(server.admin_address(), "GET", target, &[]).expect("it answers");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text().to_owned()
}
