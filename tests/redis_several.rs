//! Several Redis at once, with rooms spread over them: what happens to one is none of the others' business.

use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::deadline::{LONG, eventually};
use crate::support::kernel::Confinement;
use crate::support::on_both_drivers;
use crate::support::payload::{Tally, parse, payload};
use crate::support::program;
use crate::support::publisher::Publisher;
use crate::support::redis::Redis;
use crate::support::scratch::Scratch;
use crate::support::server::{Driver, Server};
use crate::support::speaker::Speaker;
use crate::support::swarm::Swarm;
use crate::support::tls_redis::TlsRedis;

on_both_drivers!(
    rooms_of_three_servers_hear_their_own_and_two_nodes_meet_in_each,
    a_crash_of_one_under_load_is_a_gap_in_its_rooms_and_nothing_in_the_others,
    one_that_stands_still_holds_nobody_up_who_publishes_through_another,
    streams_of_one_are_read_while_another_that_has_some_too_is_away,
);

fn rooms_of_three_servers_hear_their_own_and_two_nodes_meet_in_each(driver: Driver) {
    let orders = Redis::start();
    let chat = Redis::start_with(&["--requirepass", "open-sesame"]);
    let news = TlsRedis::start();
    let config = [
        table("orders", &orders.url(), ""),
        table("chat", &chat.url(), "password_variable = \"CHAT_PASSWORD\""),
        table("news", &news.tls_url(), &format!("ca_file = {:?}", news.authority.ca_file())),
        source("orders"),
        source("chat"),
        // Of the two kinds of subscription one each at least; the default is the first server's.
        "[[source]]\nredis = \"psubscribe room:*\"\nroom = \"news.{1}\"\nserver = \"news\"\n".to_owned(),
    ]
    .concat();
    let node = || {
        let builder = Server::builder().broker_unsaid().config(&config).env("CHAT_PASSWORD", "open-sesame");
        let server = builder.driver(driver).shards(1).start();
        wait_up(&server, 3);
        server
    };
    let (here, there) = (node(), node());
    assert!(!here.log().contains("open-sesame"), "the log shows the password");
    let rooms = ["orders.a", "chat.a", "news.a"];
    let mut members = rooms.map(|room| (Client::join(&here, room), Client::join(&there, room)));
    // One channel at all three, and three rooms.
    for (redis, room) in [&orders, &chat, &*news].into_iter().zip(rooms) {
        redis.publish("room:a", format!("to {room}"));
    }
    for (room, (member, other)) in rooms.iter().zip(&mut members) {
        assert_eq!([member.next_text(), other.next_text()], [format!("to {room}"), format!("to {room}")]);
        member.send_text(&format!("in {room}"));
        assert_eq!([member.next_text(), other.next_text()], [format!("in {room}"), format!("in {room}")]);
        there.publish(room, format!("by HTTP to {room}").as_bytes());
        assert_eq!(member.next_text(), format!("by HTTP to {room}"));
    }
    let page = here.metrics();
    for server in ["orders", "chat", "news"] {
        assert_eq!(page.labelled("corecast_broker_publishes_total", "server", server), 1.0, "{page:?}");
        assert_eq!(page.labelled("corecast_publications_received_total", "server", server), 3.0, "{page:?}");
        let told = &here.stats()["broker"]["servers"][server];
        assert_eq!(
            (&told["up"], &told["received"], &told["published"]),
            (&json!(true), &json!(3), &json!(1))
        );
    }
    assert_eq!(page.sum("corecast_echoes_missing_total"), 0.0, "{page:?}");
    drop(members);
    eventually(LONG, "rooms without members are left", || {
        orders.subscribers("room:a") == 0 && chat.subscribers("room:a") == 0
    });
}

fn a_crash_of_one_under_load_is_a_gap_in_its_rooms_and_nothing_in_the_others(driver: Driver) {
    let (mut orders, chat) = (Redis::start(), Redis::start());
    let config = [table("orders", &orders.url(), ""), table("chat", &chat.url(), "")].concat();
    let config = [&config, source("orders").as_str(), &source("chat"), JSON].concat();
    let server = Server::builder().broker_unsaid().config(&config).driver(driver).shards(1).start();
    wait_up(&server, 2);
    let swarm = Swarm::new();
    let of_orders = swarm.add_many(server.address(), "/ws?room=orders.a", MEMBERS);
    let of_chat = swarm.add_many(server.address(), "/ws?room=chat.a", MEMBERS);
    let listening = ["orders.a", "chat.a"].map(|room| Listener::start(&server, room));
    swarm.wait_open();
    let loads = [&orders, &chat].map(|redis| Publisher::start(redis, &["room:a".to_owned()], 'P', 128, RATE));
    swarm.wait_all("the load is on", |member| member.tally('P').received >= 20);

    orders.kill9();
    let killed = Instant::now();
    wait_server(&server, "orders", false);
    assert_eq!(server.metrics().labelled("corecast_broker_up", "server", "chat"), 1.0);
    swarm.send_text(of_orders.start, &payload('O', 1, 64));
    swarm
        .wait_each(of_orders.clone(), "clients hear each other meanwhile", |m| m.tally('O').is_exactly(1, 1));
    swarm.send_text(of_chat.start, &payload('C', 1, 64));
    swarm.wait_each(of_chat.clone(), "in the other room by Redis", |m| m.tally('C').is_exactly(1, 1));
    let mark = loads[1].accepted() + 50;
    swarm.wait_each(of_chat.clone(), "the other room goes on", |member| member.tally('P').last > mark);
    orders.restart();
    let recovery = wait_server(&server, "orders", true);
    eprintln!("{driver:?}: Redis was away for {:?} and used again after {recovery:?}", killed.elapsed());
    assert!(recovery < RECOVERY_MAX, "Redis was back for {recovery:?} before it was used");

    let lasts = loads.map(|load| {
        let mark = load.accepted() + 20;
        eventually(LONG, "publications flow", || load.accepted() > mark);
        load.stop().last().expect("something was published").sequence
    });
    for (members, last) in [of_orders.clone(), of_chat.clone()].into_iter().zip(lasts) {
        swarm.wait_each(members, "the last has come", |member| member.tally('P').last == last);
    }
    swarm.assert_all_open();
    let chats = tallies(&swarm, of_chat);
    assert!(chats.iter().all(|tally| tally.holes.is_empty() && tally.backwards == 0), "{chats:?}");
    assert!(tallies(&swarm, of_orders).iter().all(|tally| tally.backwards == 0));
    for room in ["orders.a", "chat.a"] {
        server.publish(room, THE_END.as_bytes());
    }
    let [of_orders, of_chat] = listening.map(Listener::stop);
    assert_eq!((of_chat.gaps.len(), of_chat.undeclared), (0, 0), "{of_chat:?}");
    assert_eq!((of_orders.gaps.len(), of_orders.undeclared), (1, 0), "{of_orders:?}");
    assert_ne!(of_orders.gaps[0], of_orders.epoch, "the gap begins another epoch");

    let page = server.metrics();
    let of = |name: &str| ["orders", "chat"].map(|server| page.labelled(name, "server", server));
    assert_eq!(of("corecast_broker_breaks_total"), [1.0, 0.0], "{page:?}");
    assert_eq!(of("corecast_broker_reconnects_total"), [1.0, 0.0], "{page:?}");
    assert_eq!(of("corecast_broker_publishes_total"), [1.0, 2.0], "{page:?}");
    assert_eq!(page.labelled("corecast_gaps_total", "reason", "broker"), 1.0, "{page:?}");
    assert_eq!(server.stats()["ledger"]["balances"], true);
}

fn one_that_stands_still_holds_nobody_up_who_publishes_through_another(driver: Driver) {
    let (orders, chat) = (Redis::start(), Redis::start());
    let config = [table("orders", &orders.url(), ""), table("chat", &chat.url(), "")].concat();
    let config = [&config, source("orders").as_str(), &source("chat")].concat();
    let server = Server::builder().broker_unsaid().config(&config).driver(driver).shards(1).start();
    wait_up(&server, 2);
    let (mut stuck, mut lively) = (Client::join(&server, "orders.a"), Client::join(&server, "chat.a"));
    orders.sigstop();
    stuck.send_text("1");
    for number in 0..100 {
        let text = number.to_string();
        lively.send_text(&text);
        assert_eq!(lively.next_text(), text);
        chat.publish("room:a", format!("from outside {text}"));
        assert_eq!(lively.next_text(), format!("from outside {text}"));
    }
    // The probe finds it out; what was under way is delivered here.
    wait_server(&server, "orders", false);
    assert_eq!(stuck.next_text(), "1");
    orders.sigcont();
    wait_server(&server, "orders", true);
    stuck.send_text("2");
    assert_eq!(stuck.next_text(), "2");
    let page = server.metrics();
    assert_eq!(page.labelled("corecast_broker_breaks_total", "server", "chat"), 0.0, "{page:?}");
    assert_eq!(page.sum("corecast_echoes_missing_total"), 0.0, "{page:?}");
}

fn streams_of_one_are_read_while_another_that_has_some_too_is_away(driver: Driver) {
    let (orders, mut audit) = (Redis::start(), Redis::start());
    let source = |name: &str| {
        format!("[[source]]\nredis = \"stream s:*\"\nroom = \"{name}.{{1}}\"\nserver = \"{name}\"\n\n")
    };
    let config = [table("orders", &orders.url(), ""), table("audit", &audit.url(), "")].concat();
    let config = [&config, source("orders").as_str(), &source("audit"), JSON].concat();
    let server = Server::builder().broker_unsaid().config(&config).driver(driver).shards(1).start();
    server.wait_metrics("both are read", |page| page.sum("corecast_streams_up") == 2.0);
    let mut members = ["orders.a", "audit.a"].map(|room| Client::join(&server, room));
    let add = |redis: &Redis, payload: &str| redis.cli(&["XADD", "s:a", "*", "data", payload]);
    // One key at both, and two streams.
    add(&orders, "an order");
    add(&audit, "a note");
    assert_eq!([members[0].next_text(), members[1].next_text()], ["an order", "a note"]);
    audit.kill9();
    wait_server(&server, "audit", false);
    add(&orders, "another order");
    assert_eq!(members[0].next_text(), "another order");
    assert_eq!(server.post("/publish?room=orders.a", b"a third").status, 200);
    assert_eq!(members[0].next_text(), "a third");
    assert_eq!(server.post("/publish?room=audit.a", b"nobody keeps it").status, 503);
    audit.restart();
    wait_server(&server, "audit", true);
    server.wait_metrics("both are read again", |page| page.sum("corecast_streams_up") == 2.0);
    add(&audit, "a second note");
    assert_eq!(members[1].next_text(), "a second note");
    let page = server.metrics();
    let breaks =
        ["orders", "audit"].map(|server| page.labelled("corecast_stream_breaks_total", "server", server));
    assert_eq!(breaks, [0.0, 1.0], "{page:?}");
}

#[test]
fn the_one_that_is_away_is_named_by_readyz_stats_log_and_doctor() {
    let mut chat = Redis::start();
    let orders = Redis::start();
    let away = chat.url();
    chat.kill9();
    let config = [table("orders", &orders.url(), ""), table("chat", &away, "")].concat();
    let config = [&config, source("orders").as_str(), &source("chat")].concat();
    let config = format!("require_broker = true\n{config}");
    let server = Server::builder().broker_unsaid().config(&config).shards(1).start();
    wait_server(&server, "orders", true);
    let ready = server.get("/readyz");
    assert_eq!((ready.status, ready.text()), (503, "away: chat\n"));
    let broker = &server.stats()["broker"];
    let up = |server: &str| broker["servers"][server]["up"] == true;
    assert_eq!((broker["up"] == true, up("orders"), up("chat")), (false, true, false), "{broker}");
    server.wait_log("who is away is told", |line| {
        line.contains("redis is away") && line.contains(away.trim_start_matches("redis://"))
    });

    let scratch = Scratch::new();
    let file = scratch.write("corecast.toml", &config);
    let doctor = program::run(&["doctor", "--config", &file.to_string_lossy()]);
    assert!(doctor.stdout.contains("chat: no Redis answers at"), "{doctor:?}");
    assert!(doctor.stdout.contains("orders: "), "{doctor:?}");
    assert_eq!(doctor.code(), Some(2), "{doctor:?}");
    chat.restart();
    wait_server(&server, "chat", true);
    assert_eq!(server.get("/readyz").status, 200);
}

#[test]
fn a_room_that_two_could_feed_is_refused_at_the_start() {
    let sources = "[[source]]\nredis = \"psubscribe a:*\"\nroom = \"{1}\"\n\
                   [[source]]\nredis = \"psubscribe b:*\"\nroom = \"b.{1}\"\nserver = \"chat\"\n";
    let config = [table("orders", "h:1", ""), table("chat", "h:2", ""), sources.to_owned()].concat();
    let refused = Server::builder().broker_unsaid().config(&config).start_in_vain();
    assert_eq!(refused.code(), Some(78), "{refused:?}");
    let said = "the rooms \"b.{1}\" of chat and \"{1}\" of orders";
    assert!(refused.stderr.contains(said) && refused.stderr.contains("room = \"chat.{1}\""), "{refused:?}");
}

#[test]
fn publish_takes_a_configured_server_by_its_name() {
    let (orders, chat) = (Redis::start(), Redis::start());
    let config = [table("orders", &orders.url(), ""), table("chat", &chat.url(), "")].concat();
    let config = [&config, source("orders").as_str(), &source("chat")].concat();
    let server = Server::builder().broker_unsaid().config(&config).shards(1).start();
    wait_up(&server, 2);
    let mut members = ["orders.a", "chat.a"].map(|room| Client::join(&server, room));
    let scratch = Scratch::new();
    let file = scratch.write("corecast.toml", &config);
    let publish = |args: &[&str]| {
        let mut command = program::command();
        command.args(["publish", "--channel", "room:a"]).args(args).env("CORECAST_CONFIG", &file);
        program::finish(command, Confinement::default())
    };
    assert_eq!(publish(&["--redis", "chat", "to chat"]).code(), Some(0));
    assert_eq!(members[1].next_text(), "to chat");
    assert_eq!(publish(&["--redis", &orders.url(), "by URL"]).code(), Some(0));
    assert_eq!(members[0].next_text(), "by URL");
    let unsaid = publish(&["to whom?"]);
    assert_eq!(unsaid.code(), Some(2), "{unsaid:?}");
    assert!(unsaid.stderr.contains("names several Redis: say which"), "{unsaid:?}");
}

fn table(name: &str, url: &str, more: &str) -> String {
    format!("[[redis]]\nname = \"{name}\"\nurl = \"{url}\"\n{more}\n\n")
}

/// Channel `room:X` of the server is the room `NAME.X`.
fn source(name: &str) -> String {
    format!("[[source]]\nredis = \"subscribe room:{{1}}\"\nroom = \"{name}.{{1}}\"\nserver = \"{name}\"\n\n")
}

/// Members of the JSON dialect are told of gaps.
const JSON: &str = "[[route]]\npath = \"/ws\"\nwhen_query = \"room\"\nroom = \"{query.room}\"\npublish = \"any\"\n\n\
                    [[route]]\npath = \"/json\"\ndialect = \"json\"\nroom = \"{query.room}\"\n";

#[track_caller]
fn wait_up(server: &Server, servers: usize) {
    server.wait_metrics("every Redis is up", |page| page.sum("corecast_broker_up") == servers as f64);
}

#[track_caller]
fn wait_server(server: &Server, name: &str, up: bool) -> Duration {
    let what = format!("the Redis {name} is {}", if up { "up" } else { "away" });
    server.wait_metrics(&what, |page| (page.labelled("corecast_broker_up", "server", name) == 1.0) == up).1
}

fn tallies(swarm: &Swarm, members: Range<usize>) -> Vec<Tally> {
    members.map(|index| swarm.look(index, |member| member.tally('P'))).collect()
}

/// A member of the JSON dialect who writes down what it is told.
struct Listener {
    thread: thread::JoinHandle<Heard>,
}

#[derive(Debug)]
struct Heard {
    epoch: Value,
    /// The epoch that each begins.
    gaps: Vec<Value>,
    /// Publications that are missing without a gap before what follows them.
    undeclared: u64,
}

impl Listener {
    /// Returns when it has joined.
    #[track_caller]
    fn start(server: &Server, room: &str) -> Self {
        let mut speaker = Speaker::at(server.address(), &format!("/json?room={room}"));
        let joined = speaker.hear();
        assert_eq!(joined["type"], "joined", "{joined}");
        let mut heard = Heard { epoch: joined["data"]["epoch"].clone(), gaps: Vec::new(), undeclared: 0 };
        let thread = thread::spawn(move || {
            let (mut last, mut is_excused) = (None::<u64>, false);
            loop {
                let frame = speaker.hear();
                if frame["type"] == "gap" {
                    heard.gaps.push(frame["data"]["epoch"].clone());
                    is_excused = true;
                    continue;
                }
                let text = frame["data"].as_str().unwrap_or_default();
                if text == THE_END {
                    return heard;
                }
                let Some(('P', sequence)) = parse(text.as_bytes()) else { continue };
                let missing = last.map_or(0, |last| sequence.saturating_sub(last + 1));
                heard.undeclared += if std::mem::take(&mut is_excused) { 0 } else { missing };
                last = Some(sequence);
            }
        });
        Self { thread }
    }

    #[track_caller]
    fn stop(self) -> Heard {
        self.thread.join().expect("the listener hears its end")
    }
}

const THE_END: &str = "the end";
const MEMBERS: usize = 20;
/// Publications a second.
const RATE: u32 = 100;
/// From Redis' answering to our using it: 0.5 s, and what a busy machine adds.
const RECOVERY_MAX: Duration = Duration::from_secs(2);
