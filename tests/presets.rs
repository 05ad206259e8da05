//! All presets in one process: each system's users do their own thing, hear what is theirs, and nothing else.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::json;

use crate::support::client::Client;
use crate::support::http;
use crate::support::kernel::Confinement;
use crate::support::on_both_drivers;
use crate::support::program::{self, Finished};
use crate::support::redis::Redis;
use crate::support::scratch::Scratch;
use crate::support::server::{Driver, Server, ServerBuilder};
use crate::support::speaker::{Speaker, price};
use crate::support::wire;

on_both_drivers!(
    on_its_own_port_each_systems_user_hears_exactly_what_is_his,
    on_one_port_each_preset_is_below_its_name_whichever_is_first,
);

fn on_its_own_port_each_systems_user_hears_exactly_what_is_his(driver: Driver) {
    let redis = Redis::start();
    let server = five(&redis, EACH_ITS_PORT).driver(driver).start();
    let mut users = on_their_ports(&server);
    users.assert_separate(&redis);
    // The pages of each are on every port.
    for &address in server.addresses() {
        for page in ["/healthz", "/health", "/metrics"] {
            assert_eq!(get(address, page), 200, "{page} at {address}");
        }
    }
}

fn on_one_port_each_preset_is_below_its_name_whichever_is_first(driver: Driver) {
    for first in 0..NAMES.len() {
        // Of its own, so that no last price waits for the next one's consumers.
        let redis = Redis::start();
        let mut names = NAMES;
        names.rotate_left(first);
        let server =
            Server::builder().preset(&names.join(",")).redis(&redis).driver(driver).shards(1).start();
        let address = server.address();
        let paths = ["event-fanout", "workflow", "backbone", "broadcaster", "star"]
            .map(|name| (address, format!("/{name}/ws")));
        Users::connect(&paths).assert_separate(&redis);
    }
}

#[test]
fn the_plain_path_without_a_query_is_the_first_presets() {
    let redis = Redis::start();
    for (names, due) in [
        ("event-fanout,backbone", Plain::Refused("missing room")),
        ("workflow,backbone", Plain::Refused("username is required")),
        ("backbone,star,event-fanout", Plain::Json),
        ("broadcaster,star,workflow", Plain::Hears("events.critical")),
        ("star,broadcaster,event-fanout", Plain::Hears("broadcast.events")),
    ] {
        let server = Server::builder().preset(names).redis(&redis).start();
        match due {
            Plain::Refused(sentence) => {
                assert_eq!(upgrade(server.address(), "/ws"), (400, sentence.to_owned()))
            }
            Plain::Json => drop(Speaker::in_room(server.address(), "lobby")),
            Plain::Hears(channel) => {
                let mut client = Client::connect(server.address(), "/ws");
                redis.publish(channel, "for the first");
                assert_eq!(client.next_text(), "for the first", "{names}");
            }
        }
        // A query tells whose it is wherever its preset stands.
        if names.contains("event-fanout") {
            let mut client = Client::connect(server.address(), "/ws?room=lobby");
            redis.publish("room:lobby", r#"{"room":"lobby","from":"","data":"by room"}"#);
            assert_eq!(client.next_text(), "by room", "{names}");
        }
        if names.contains("workflow") {
            let mut client = Client::connect(server.address(), "/ws?username=alice");
            redis.publish("workflow:events:alice", "by username");
            assert_eq!(client.next_text(), "by username", "{names}");
        }
    }
}

#[test]
fn a_request_that_fits_two_conditions_is_refused_on_every_port() {
    let redis = Redis::start();
    let server = five(&redis, EACH_ITS_PORT).start();
    for &address in server.addresses() {
        let (status, sentence) = upgrade(address, "/ws?username=alice&room=lobby");
        assert_eq!(status, 400);
        assert!(sentence.contains("room") && sentence.contains("username"), "{sentence}");
    }
    // Below a preset's name there is one condition only.
    assert_eq!(upgrade(server.address(), "/workflow/ws?username=alice&room=lobby").0, 101);
    assert_eq!(upgrade(server.address(), "/nothing/ws?room=lobby").0, 404);
}

#[test]
fn no_name_reaches_into_another_systems_rooms() {
    let redis = Redis::start();
    for names in ["event-fanout,workflow,backbone", "backbone,workflow,event-fanout"] {
        let server = Server::builder().preset(names).redis(&redis).start();
        let address = server.address();
        let mut alice = Client::connect(address, "/workflow/ws?username=alice");
        let mut speaker = Speaker::at(address, "/backbone/ws");
        for space in ["workflow.user", "backbone", "event-fanout"] {
            // U+001F is what stands between a space and a name inside the server.
            let inside = format!("{space}\u{1f}alice");
            assert_eq!(upgrade(address, &format!("/event-fanout/ws?room={space}%1Falice")).0, 400);
            assert_eq!(upgrade(address, &format!("/workflow/ws?username={space}%1Falice")).0, 400);
            assert_eq!(speaker.refused(&json!({ "type": "join", "room": inside }), "invalid"), "room");
            redis.publish(&format!("room:{inside}"), "to a space");
            redis.publish(&format!("workflow:events:{inside}"), "to a space");
            redis.publish("chat:events", json!({ "room": inside, "data": "to a space" }).to_string());
        }
        redis.publish("workflow:events:alice", "for alice");
        assert_eq!(alice.next_text(), "for alice", "{names}");
        server.wait_metrics("each is refused and counted", |page| {
            page.labelled("corecast_publications_refused_total", "reason", "bad_room") == 9.0
        });
    }
}

#[test]
fn of_variables_that_disagree_the_higher_wins_and_a_warning_names_both() {
    let redis = Redis::start();
    let right = redis.address().to_string();
    let server = Server::builder()
        .preset("workflow,event-fanout")
        .listen_unsaid()
        .broker_unsaid()
        .env("ADDR", "127.0.0.1:0")
        .env("PORT", "9")
        .env("REDIS_ADDR", &right)
        .env("REDIS_HOST", "redis.example")
        .env("REDIS_PORT", "tcp://10.0.0.1:6379")
        .start();
    server.wait_broker(true);
    let mut client = Client::connect(server.address(), "/ws?username=alice");
    redis.publish("workflow:events:alice", "by the higher");
    assert_eq!(client.next_text(), "by the higher");
    for pair in [["ADDR", "PORT"], ["REDIS_ADDR", "REDIS_HOST"], ["REDIS_PORT", "Kubernetes"]] {
        server.wait_log(&format!("a warning names {pair:?}"), |line| {
            line.contains("WARN") && pair.iter().all(|name| line.contains(name))
        });
    }

    for (higher, lower) in [
        (("--listen", "127.0.0.1:81"), ("ADDR", ":82")),
        (("--listen", "127.0.0.1:81"), ("PORT", "82")),
        (("ADDR", ":81"), ("PORT", "82")),
        (("--redis", "h:81"), ("REDIS_URL", "redis://h:82")),
        (("--redis", "h:81"), ("REDIS_ADDR", "h:82")),
        (("REDIS_URL", "redis://h:81"), ("REDIS_ADDR", "h:82")),
        (("REDIS_URL", "redis://h:81"), ("REDIS_HOST", "other")),
        (("REDIS_ADDR", "h:81"), ("REDIS_HOST", "other")),
        (("REDIS_ADDR", "h:81"), ("REDIS_PORT", "82")),
    ] {
        let shown = show_with(&[higher, lower], &["--preset", &NAMES.join(",")]);
        assert!(shown.stdout.contains(":81\""), "{higher:?} over {lower:?}: {shown:?}");
        assert!(!shown.stdout.contains(":82\""), "{higher:?} over {lower:?}: {shown:?}");
        let names_both =
            |line: &str| line.contains(higher.0) && line.contains(lower.0) && line.contains("wins over");
        assert!(shown.stderr.lines().any(names_both), "{higher:?} over {lower:?}: {shown:?}");
        let alone = show_with(&[higher], &["--preset", &NAMES.join(",")]);
        assert_eq!(alone.stderr, "", "{higher:?} alone disagrees with nothing");
    }
}

#[test]
fn config_show_names_the_origin_of_every_value_and_starts_the_same_server_as_a_file() {
    let redis = Redis::start();
    let with = |variables: &[(&str, &str)]| {
        let args = ["--preset", &NAMES.join(","), "--drain", "2s", "--node-id", "n1"];
        show_with(&[&[("REDIS_URL", redis.url().as_str())], variables].concat(), &args).stdout
    };
    let shown = with(&[("CORECAST_SHARDS", "1")]);
    let tops = shown.lines().take_while(|line| !line.starts_with("[[")).filter(|line| line.contains(" = "));
    let tables = shown.lines().filter(|line| line.starts_with("[["));
    let origins: Vec<&str> = tops
        .chain(tables)
        .map(|line| line.rsplit_once("  # ").unwrap_or_else(|| panic!("{line}")).1)
        .collect();
    let mut due: BTreeSet<String> = NAMES.map(|name| format!("preset {name}")).into();
    due.extend(
        [
            "default",
            "flag --preset",
            "flag --drain",
            "flag --node-id",
            "variable CORECAST_SHARDS",
            "variable REDIS_URL",
        ]
        .map(str::to_owned),
    );
    assert_eq!(origins.iter().map(|&origin| origin.to_owned()).collect::<BTreeSet<_>>(), due, "{shown}");

    let scratch = Scratch::new();
    for (case, shown) in [shown, with(&[("CHANNEL_NAME", "events.mine")])].into_iter().enumerate() {
        let file = scratch.write(&format!("shown-{case}.toml"), &shown);
        let again = show_with(&[], &["--config", &file.to_string_lossy()]);
        assert_eq!(values(&again.stdout), values(&shown), "case {case}");
    }

    let server = Server::builder()
        .config(&with(&[]))
        .listen_unsaid()
        .broker_unsaid()
        .arg("--listen")
        .arg(EACH_ITS_PORT)
        .start();
    server.wait_broker(true);
    on_their_ports(&server).assert_separate(&redis);
}

/// One user of each system. All of them are in rooms of the same name as far as their systems name rooms.
struct Users {
    event_fanout: Client,
    workflow: Client,
    backbone: Speaker,
    feed: Speaker,
    broadcaster: Client,
    star: Client,
    /// Rooms that anybody may name, named as the channels of others.
    impostors: [Client; 3],
}

impl Users {
    /// Each at his address and path, in the order of [`NAMES`].
    #[track_caller]
    fn connect(paths: &[(SocketAddr, String); 5]) -> Self {
        let open = |index: usize, rest: &str| {
            let (address, path) = &paths[index];
            Client::connect(*address, &format!("{path}{rest}"))
        };
        let mut backbone = Speaker::at(paths[2].0, &paths[2].1);
        for room in ["alice", "events.critical", "broadcast.events"] {
            backbone.join(room);
        }
        Self {
            event_fanout: open(0, "?room=alice&client_id=alice"),
            workflow: open(1, "?username=alice"),
            backbone,
            feed: Speaker::at(paths[2].0, &format!("{}/ingest", paths[2].1)),
            broadcaster: open(3, ""),
            star: open(4, ""),
            impostors: ["?room=events.critical", "?room=broadcast.events", "?room=workflow:events:alice"]
                .map(|rest| open(0, rest)),
        }
    }

    /// Two rounds in which everybody is spoken to: who heard something of another in the first hears it instead of his
    /// own in the second.
    #[track_caller]
    fn assert_separate(&mut self, redis: &Redis) {
        for round in 1..=2 {
            self.publish_through_redis(redis, round);
            self.speak(round);
        }
        redis.publish("room:events.critical", r#"{"room":"","from":"","data":"critical room"}"#);
        redis.publish("room:broadcast.events", r#"{"room":"","from":"","data":"star's room"}"#);
        redis.publish("room:workflow:events:alice", r#"{"room":"","from":"","data":"workflow's room"}"#);
        let heard = self.impostors.each_mut().map(|client| client.next_text());
        assert_eq!(heard, ["critical room", "star's room", "workflow's room"]);
    }

    #[track_caller]
    fn publish_through_redis(&mut self, redis: &Redis, round: u32) {
        let hello = json!({ "room": "alice", "from": "x", "data": format!("event-fanout {round}") });
        redis.publish("room:alice", hello.to_string());
        redis.publish("workflow:events:alice", format!("workflow {round}"));
        let event =
            json!({ "room": "alice", "type": "note", "data": format!("backbone {round}"), "origin": "o" });
        redis.publish("chat:events", event.to_string());
        redis.publish("events.critical", format!("broadcaster {round}"));
        redis.publish("broadcast.events", format!("star {round}"));
        self.assert_heard(round);
        assert_eq!(self.backbone.hear_data("note", "alice"), format!("backbone {round}"));
    }

    #[track_caller]
    fn assert_heard(&mut self, round: u32) {
        let clients = [&mut self.event_fanout, &mut self.workflow, &mut self.broadcaster, &mut self.star];
        for (client, name) in clients.into_iter().zip(["event-fanout", "workflow", "broadcaster", "star"]) {
            assert_eq!(client.next_text(), format!("{name} {round}"));
        }
    }

    /// What clients say: event-fanout's and the backbone's are heard, the others' mean nothing.
    #[track_caller]
    fn speak(&mut self, round: u32) {
        for client in [&mut self.workflow, &mut self.broadcaster, &mut self.star] {
            client.send_text("nobody hears this");
        }
        self.event_fanout.send_text(&format!("said {round}"));
        assert_eq!(self.event_fanout.next_text(), format!("said {round}"));
        for room in ["alice", "events.critical"] {
            self.feed.say(&price(room, f64::from(round)));
            assert_eq!(self.backbone.hear_data("price_update", room), price(room, f64::from(round)));
        }
        let message = json!({ "type": "message", "room": "broadcast.events", "data": round });
        self.backbone.say(&message);
        assert_eq!(self.backbone.hear(), message);
    }
}

enum Plain {
    Refused(&'static str),
    Json,
    Hears(&'static str),
}

/// All presets in the contract's order, listening at `listen`.
fn five(redis: &Redis, listen: &str) -> ServerBuilder {
    let builder = Server::builder().preset(&NAMES.join(",")).redis(redis).listen_unsaid();
    builder.arg("--listen").arg(listen).shards(1)
}

#[track_caller]
fn on_their_ports(server: &Server) -> Users {
    let addresses: [SocketAddr; 5] = server.addresses().try_into().expect("an address for each preset");
    Users::connect(&addresses.map(|address| (address, "/ws".to_owned())))
}

#[track_caller]
fn get(address: SocketAddr, page: &str) -> u16 {
    http::request(address, "GET", page, &[]).expect("an answer").status
}

/// Status and sentence with which an upgrade is answered.
#[track_caller]
fn upgrade(address: SocketAddr, target: &str) -> (u16, String) {
    let answer = http::exchange(address, wire::upgrade(address, target).as_bytes()).expect("an answer");
    (answer.status, answer.text().trim().to_owned())
}

/// `corecast config show` with flags and variables, those that begin with dashes being flags.
#[track_caller]
fn show_with(said: &[(&str, &str)], args: &[&str]) -> Finished {
    let mut command = program::command();
    command.args(["config", "show"]).args(args);
    for (name, value) in said {
        if name.starts_with("--") {
            command.args([name, value])
        } else {
            command.env(name, value)
        };
    }
    let finished = program::finish(command, Confinement::default());
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    finished
}

/// What a shown configuration says, its comments left out.
fn values(shown: &str) -> Vec<&str> {
    shown.lines().map(|line| line.split("  # ").next().unwrap_or_default().trim_end()).collect()
}

const NAMES: [&str; 5] = ["event-fanout", "workflow", "backbone", "broadcaster", "star"];
const EACH_ITS_PORT: &str = "event-fanout=127.0.0.1:0,workflow=127.0.0.1:0,backbone=127.0.0.1:0,broadcaster=127.0.0.1:0,star=127.0.0.1:0";
