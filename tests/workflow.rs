//! The preset `workflow`, as the users of that system know it: a user's connections get what is published to the user's
//! channel, byte for byte, and nobody else does.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::Value;
use tungstenite::Message;

use crate::support::client::{Client, RawClient};
use crate::support::http::{self, Response};
use crate::support::on_every_driver;
use crate::support::program;
use crate::support::redis::Redis;
use crate::support::scratch::Scratch;
use crate::support::server::{Driver, Server, ServerBuilder};
use crate::support::wire::{self, BINARY, TEXT};

on_every_driver!(
    events_arrive_byte_for_byte_at_every_connection_of_their_user,
    comings_and_goings_are_logged_with_user_address_and_counts,
    admin_stats_count_users_rooms_and_connections,
);

/// What happens in a run, in the form of the three events; white space and the order of keys are the coordinator's.
const EVENTS: [&str; 3] = [
    r#"{"type":"workflow_started","run_id":"flight-search:186e185fcb360f00","tag":"flight-search","nodes":2,"entry_nodes":1,"timestamp":1697234567,"username":"test-user"}"#,
    "{ \"username\" : \"test-user\",\r\n\t\"type\":\"node_completed\", \"run_id\":\"flight-search:186e185fcb360f00\",\"node_id\":\"fetch_flights\",\"status\":\"completed\",\"counter\":1,\"result_ref\":\"sha256:\\u0061b\",\"timestamp\":1697234568 }\n",
    r#"{"type":"workflow_completed","run_id":"flight-search:186e185fcb360f00","counter":0,"duration_ms":1234,"timestamp":1697234570.000,"type":"workflow_completed"}"#,
];

fn workflow(redis: &Redis) -> ServerBuilder {
    Server::builder().preset("workflow").redis(redis)
}

/// A WebSocket of a user whose name needs no encoding.
#[track_caller]
fn user(server: &Server, name: &str) -> Client {
    Client::connect(server.address(), &format!("/ws?username={name}"))
}

fn channel(name: &str) -> String {
    format!("workflow:events:{name}")
}

/// The status and text of an upgrade.
#[track_caller]
fn upgrade(server: &Server, target: &str) -> Response {
    let request = wire::upgrade(server.address(), target);
    http::exchange(server.address(), request.as_bytes()).expect("an answer")
}

fn json(response: &Response) -> Value {
    assert_eq!(response.status, 200, "{response:?}");
    serde_json::from_slice(&response.body).unwrap_or_else(|error| panic!("{error} in {response:?}"))
}

fn events_arrive_byte_for_byte_at_every_connection_of_their_user(driver: Driver) {
    let redis = Redis::start();
    let server = workflow(&redis).driver(driver).shards(2).start();
    let mut clients: Vec<Client> = (0..4).map(|_| user(&server, "test-user")).collect();
    let others = ["", "no JSON", "{\"cut\":", " \r\n", "ä\u{2028}😀", "\u{feff}{}"];
    for payload in EVENTS.into_iter().chain(others) {
        assert_eq!(redis.publish(&channel("test-user"), payload), 1);
        for client in &mut clients {
            assert_eq!(client.next(), Message::text(payload));
        }
    }
    let no_text = [b'{', 0xFF, 0x00, 0x80];
    redis.publish(&channel("test-user"), no_text);
    for client in &mut clients {
        assert_eq!(client.next(), Message::binary(no_text.to_vec()));
    }
}

#[test]
fn who_names_no_user_gets_400_username_is_required() {
    let server = Server::builder().preset("workflow").start();
    for target in
        ["/ws", "/ws?username=", "/ws?username", "/ws?Username=alice", "/ws?room=alice", "/workflow/ws"]
    {
        let answer = upgrade(&server, target);
        assert_eq!((answer.status, answer.text().trim()), (400, "username is required"), "{target}");
    }
}

/// Queries whose name looks like alice's, or would be hers if it were read another way, and the name that they mean.
const OTHERS: [(&str, &str); 23] = [
    ("%2561lice", "%61lice"),
    ("%25%36%31lice", "%61lice"),
    ("*", "*"),
    ("al*", "al*"),
    ("?lice", "?lice"),
    ("al%3Fce", "al?ce"),
    ("%5Ba%5Dlice", "[a]lice"),
    ("[^b]lice", "[^b]lice"),
    ("%5Calice", "\\alice"),
    ("Alice", "Alice"),
    ("ALICE", "ALICE"),
    ("alice+", "alice "),
    ("%20alice", " alice"),
    ("alice%2F", "alice/"),
    ("..%2Falice", "../alice"),
    ("bob%26username%3Dalice", "bob&username=alice"),
    ("bob&room=alice", "bob"),
    ("alice%2C", "alice,"),
    ("%D0%B0lice", "\u{430}lice"),
    ("%EF%BD%81lice", "\u{ff41}lice"),
    ("alice%E2%80%8B", "alice\u{200b}"),
    ("alice%CC%81", "alice\u{301}"),
    ("alice%C2%AD", "alice\u{ad}"),
];

#[test]
fn nobody_hears_the_events_of_another_however_the_name_is_written() {
    let redis = Redis::start();
    let server = workflow(&redis).shards(2).start();
    let mut alice = user(&server, "alice");
    let mut same = user(&server, "%61l%69ce");
    let mut others: Vec<Client> = OTHERS.iter().map(|(query, _)| user(&server, query)).collect();
    redis.publish(&channel("alice"), "for alice alone");
    for client in [&mut alice, &mut same] {
        assert_eq!(client.next_text(), "for alice alone");
    }
    for (client, (query, name)) in others.iter_mut().zip(OTHERS) {
        redis.publish(&channel(name), format!("for {name}"));
        // The first that it hears: what was published before came before, if it came.
        assert_eq!(client.next_text(), format!("for {name}"), "{query}");
    }
    redis.publish(&channel("alice"), "the end");
    assert_eq!(alice.next_text(), "the end", "what was for the others did not come here");
}

#[test]
fn names_that_could_be_read_as_anothers_are_refused_with_400() {
    let server = Server::builder().preset("workflow").start();
    let longest = "x".repeat(255);
    assert_eq!(upgrade(&server, &format!("/ws?username={longest}")).status, 101);
    let too_long = format!("{longest}x");
    let in_two_bytes = "%C3%A4".repeat(128);
    for query in [
        "username=alice:",
        "username=:alice",
        "username=alice%3Ax",
        "username=events%3aalice",
        "username=alice%00",
        "username=%00",
        "username=alice%0A",
        "username=alice%0d%0aX-Y:z",
        "username=user%1Falice",
        "username=%1Falice",
        "username=alice%7F",
        "username=alice%C2%85",
        "username=%FFalice",
        "username=%C1%A1lice",
        "username=%ED%A0%80alice",
        "username=%u0061lice",
        "username=alice%",
        "username=alice%2",
        "username=bob&username=alice",
        "username=bob&%75sername=alice",
        "username=alice&username=",
        &format!("username={too_long}"),
        &format!("username={in_two_bytes}"),
    ] {
        let answer = upgrade(&server, &format!("/ws?{query}"));
        assert_eq!(answer.status, 400, "{query}: {answer:?}");
        assert!(answer.text().trim().len() > 10, "a sentence says why {query} is refused: {answer:?}");
    }
}

#[test]
fn a_channel_that_is_not_exactly_a_users_reaches_nobody() {
    let redis = Redis::start();
    let server = workflow(&redis).start();
    let mut alice = user(&server, "alice");
    let mut star = user(&server, "*");
    let channels: [&[u8]; 16] = [
        b"workflow:events:alice:x",
        b"workflow:events::alice",
        b"workflow:events:x:alice",
        b"workflow:events:alice ",
        b"workflow:events: alice",
        b"workflow:events:alice\n",
        b"workflow:events:alice\0",
        b"workflow:events:user\x1falice",
        b"workflow:events:\x1falice",
        b"workflow:events:\xffalice",
        b"workflow:events:",
        b"workflow:events",
        b"Workflow:Events:alice",
        b"x:workflow:events:alice",
        b"room:alice",
        b"alice",
    ];
    let mut connection = redis.connect().expect("redis takes connections");
    for channel in channels {
        connection.command(&[b"PUBLISH", channel, b"astray"]).expect("redis takes publications");
    }
    redis.publish(&channel("*"), "for the star");
    redis.publish(&channel("alice"), "for alice");
    assert_eq!(star.next_text(), "for the star");
    assert_eq!(alice.next_text(), "for alice");
}

#[test]
fn beside_another_preset_users_and_rooms_of_one_name_never_meet() {
    let redis = Redis::start();
    let server = Server::builder().preset("event-fanout,workflow").redis(&redis).start();
    let mut user = user(&server, "alice");
    let mut room = Client::connect(server.address(), "/ws?room=alice&client_id=alice");
    let mut room_too = Client::connect(server.address(), "/event-fanout/ws?room=alice");
    let mut user_too = Client::connect(server.address(), "/workflow/ws?username=alice");
    redis.publish(&channel("alice"), "for the user");
    redis.publish("room:alice", "for the room");
    room.send_text("from the room");
    for (users, rooms) in [(&mut user, &mut room), (&mut user_too, &mut room_too)] {
        assert_eq!(users.next_text(), "for the user");
        assert_eq!((rooms.next_text(), rooms.next_text()), ("for the room".into(), "from the room".into()));
    }
    redis.publish(&channel("alice"), "the end");
    assert_eq!(user.next_text(), "the end");
    assert_eq!(upgrade(&server, "/ws?username=alice&room=alice").status, 400);
    assert_eq!(upgrade(&server, "/ws?room=user%1Falice").status, 400);
}

#[test]
fn any_origin_may_connect_and_health_says_200() {
    let server = Server::builder().preset("workflow").start();
    for origin in ["https://elsewhere.example", "null", "http://localhost:3000"] {
        let request = wire::upgrade(server.address(), "/ws?username=alice");
        let request = request.replacen("\r\n\r\n", &format!("\r\nOrigin: {origin}\r\n\r\n"), 1);
        let answer = http::exchange(server.address(), request.as_bytes()).expect("an answer");
        assert_eq!(answer.status, 101, "{origin}");
    }
    for path in ["/health", "/healthz", "/livez", "/readyz"] {
        let answer = server.get(path);
        assert_eq!((answer.status, answer.text().trim()), (200, "ok"), "{path}");
    }
}

#[test]
fn a_redis_that_is_away_leaves_health_at_200() {
    let mut redis = Redis::start();
    let server = workflow(&redis).start();
    redis.kill9();
    server.wait_broker(false);
    assert_eq!(server.get("/health").status, 200);
    redis.restart();
    server.wait_broker(true);
    let mut alice = user(&server, "alice");
    redis.publish(&channel("alice"), "again");
    assert_eq!(alice.next_text(), "again");
}

#[test]
fn what_clients_send_means_nothing_and_is_counted() {
    let redis = Redis::start();
    let server = workflow(&redis).start();
    let mut client = RawClient::upgraded(server.address(), "/ws?username=alice");
    let mut other = user(&server, "alice");
    client.send(&wire::masked(TEXT, br#"{"type":"ping"}"#));
    client.send(&wire::masked(BINARY, &[0, 1, 2]));
    client.send(&wire::masked(TEXT, b""));
    server.wait_metrics("three messages are ignored", |page| {
        page.sum("corecast_messages_ignored_total") == 3.0
    });
    redis.publish(&channel("alice"), "an event");
    assert_eq!(client.next(), wire::Frame::Text(b"an event".to_vec()));
    assert_eq!(other.next_text(), "an event", "and nothing before it");
    assert_eq!(server.metrics().sum("corecast_publications_received_total"), 1.0);
}

#[test]
fn its_settings_are_those_that_its_users_know() {
    let shown = program::run(&["config", "show", "--preset", "workflow"]);
    assert_eq!(shown.code(), Some(0));
    for line in ["ping_interval = \"54s\"", "log_connections = true", "report_interval = \"10s\"", ":8084"] {
        assert!(shown.stdout.contains(line), "{line} in {}", shown.stdout);
    }
}

#[test]
fn its_variables_choose_port_redis_and_password() {
    let redis = Redis::start_with(&["--requirepass", "sesame"]);
    let server = Server::builder()
        .preset("workflow")
        .listen_unsaid()
        .broker_unsaid()
        .env("PORT", "0")
        .env("REDIS_HOST", &redis.address().ip().to_string())
        .env("REDIS_PORT", &redis.address().port().to_string())
        .env("REDIS_PASSWORD", "sesame")
        .start();
    server.wait_broker(true);
    assert!(server.address().ip().is_unspecified(), "{} is not every interface", server.address());
    let mut client = user(&server, "alice");
    redis.publish(&channel("alice"), "by the variables");
    assert_eq!(client.next_text(), "by the variables");
}

#[test]
fn several_instances_serve_one_redis() {
    let redis = Redis::start();
    let servers = [workflow(&redis).start(), workflow(&redis).start()];
    let mut clients: Vec<Client> = servers.iter().map(|server| user(server, "alice")).collect();
    assert_eq!(redis.publish(&channel("alice"), "to both"), 2);
    for client in &mut clients {
        assert_eq!(client.next_text(), "to both");
    }
}

fn comings_and_goings_are_logged_with_user_address_and_counts(driver: Driver) {
    let redis = Redis::start();
    let server = workflow(&redis).driver(driver).shards(1).start();
    let logged = |words: &[&str]| {
        server
            .wait_log(&format!("a line with {words:?}"), |line| words.iter().all(|word| line.contains(word)))
    };
    logged(&[" INFO ", "subscribed", "pattern=\"workflow:events:*\""]);
    let first = user(&server, "test-user");
    let line = logged(&[" INFO ", "new WebSocket connection username=\"test-user\"", "members=1 "]);
    assert!(line.contains(" remote=127.0.0.1:"), "{line}");
    let second = RawClient::upgraded(server.address(), "/ws?username=test-user");
    logged(&["new WebSocket connection username=\"test-user\"", "members=2 "]);
    first.leave();
    logged(&[" INFO ", "connection closed username=\"test-user\"", "peer_closed", "remaining_for_user=1 "]);
    drop(second);
    logged(&["connection closed", "peer_vanished", "remaining_for_user=0 "]);
    // Neither plain requests nor what is refused are connections of anybody.
    assert_eq!(server.get("/ws").status, 400);
    let _last = user(&server, "last");
    logged(&["username=\"last\""]);
    let log = server.log();
    assert_eq!(log.matches("new WebSocket connection").count(), 3, "{log}");
    assert_eq!(log.matches("connection closed").count(), 2, "{log}");
    assert!(!log.contains("broadcasting"), "{log}");
}

#[test]
fn a_broadcast_is_a_line_at_debug() {
    let redis = Redis::start();
    let server = workflow(&redis).shards(1).arg("--log-level").arg("info,shards=debug").start();
    let mut clients = [user(&server, "test-user"), user(&server, "test-user")];
    redis.publish(&channel("test-user"), "an event");
    for client in &mut clients {
        assert_eq!(client.next_text(), "an event");
    }
    let words = "broadcasting room=\"test-user\" members=2 publications=1 shard=0";
    server.wait_log("the broadcast's line", |line| line.contains("DEBUG") && line.contains(words));
}

#[test]
fn without_log_connections_they_are_lines_at_debug_only() {
    for (level, lines) in [("info", 0), ("info,shards=debug", 2)] {
        let server = Server::builder()
            .preset("workflow")
            .config("log_connections = false\n")
            .arg("--log-level")
            .arg(level)
            .start();
        user(&server, "alice").leave();
        server.signal(rustix::process::Signal::TERM);
        // The last line: whatever was to come has come.
        server.wait_log("the end of the drain", |line| line.contains("drained"));
        let log = server.log();
        let of_connections =
            |line: &&str| line.contains("new WebSocket connection") || line.contains("connection closed");
        assert_eq!(log.lines().filter(of_connections).count(), lines, "at {level}: {log}");
        assert_eq!(log.lines().filter(of_connections).filter(|line| line.contains("DEBUG")).count(), lines);
    }
}

#[test]
fn a_name_can_not_add_fields_to_its_log_line_nor_a_header_an_address() {
    let server = Server::builder().preset("workflow").start();
    let _client = user(&server, "x%22+remote=6.6.6.6+y=%22");
    let request = wire::upgrade(server.address(), "/ws?username=behind");
    let request = request.replacen("\r\n\r\n", "\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n", 1);
    assert_eq!(http::exchange(server.address(), request.as_bytes()).expect("an answer").status, 101);
    let line =
        server.wait_log("the first line", |line| line.contains("new WebSocket connection username=\"x"));
    assert!(line.contains(r#"username="x\" remote=6.6.6.6 y=\"""#), "{line}");
    let line = server.wait_log("the second line", |line| line.contains("username=\"behind\""));
    assert!(line.contains("remote=127.0.0.1:") && !line.contains("6.6.6.6"), "{line}");
}

#[test]
fn a_report_counts_what_happened_since_the_last() {
    let redis = Redis::start();
    let server = workflow(&redis).shards(1).arg("--report-interval").arg("1s").start();
    let mut clients = [user(&server, "alice"), user(&server, "alice"), user(&server, "bob")];
    for _ in 0..3 {
        redis.publish(&channel("alice"), "for two");
    }
    redis.publish(&channel("nobody"), "for none");
    for client in &mut clients[..2] {
        for _ in 0..3 {
            client.next_text();
        }
    }
    let totals = "total_ingested=4 total_broadcast=3 total_delivered=6 total_dropped=0";
    let line = server.wait_log("the totals", |line| line.contains(totals));
    assert!(line.contains(" INFO report seconds=") && line.contains(" clients=3 rooms=2 "), "{line}");
    // The lines' own counts add up to the totals of the last.
    let sum = |key: &str| -> u64 {
        let log = server.log();
        let lines = log.lines().take_while(|other| *other != line).chain([line.as_str()]);
        let lines = lines.filter(|line| line.contains(" INFO report "));
        lines.filter_map(|line| line.split(key).nth(1)?.split(' ').next()?.parse::<u64>().ok()).sum()
    };
    assert_eq!([sum(" ingested="), sum(" broadcast="), sum(" delivered="), sum(" dropped=")], [4, 3, 6, 0]);
}

fn admin_stats_count_users_rooms_and_connections(driver: Driver) {
    let redis = Redis::start();
    let server = workflow(&redis).driver(driver).shards(2).start();
    let _clients: Vec<Client> =
        ["alice", "bob", "alice", "carol", "alice", "bob"].map(|name| user(&server, name)).into();
    let page = json(&server.get("/admin/stats"));
    assert_eq!(
        [&page["connections"], &page["users"], &page["rooms"], &page["stalled"]],
        [6, 3, 3, 0],
        "{page}"
    );
    let busiest = |list: &str, key: &str, count: &str| -> Vec<(String, u64)> {
        let entries = page[list].as_array().expect("a list").iter();
        entries.map(|e| (e[key].as_str().unwrap_or("").to_owned(), e[count].as_u64().unwrap_or(0))).collect()
    };
    let counts = [("alice", 3), ("bob", 2), ("carol", 1)].map(|(name, count)| (name.to_owned(), count));
    assert_eq!(busiest("busiest_users", "username", "connections"), counts);
    assert_eq!(busiest("busiest_rooms", "room", "members"), counts);
    assert_eq!(page["by_route"][0]["preset"], "workflow", "{page}");
    assert_eq!((&page["by_route"][0]["connections"], &page["ages"]["under_1m"]), (&6.into(), &6.into()));
    assert!(page["uptime_seconds"].is_u64() && page["complete"] == true, "{page}");

    let bob = json(&server.get("/admin/stats?username=bob&limit=1"));
    assert_eq!([&bob["connections"], &bob["users"], &bob["rooms"]], [2, 1, 1], "{bob}");
    let limited = json(&server.get("/admin/stats?limit=1"));
    assert_eq!(limited["busiest_users"].as_array().map(Vec::len), Some(1), "{limited}");
    for query in ["limit=0", "limit=1001", "limit=x", "username=%FF", "room=a&room=b"] {
        assert_eq!(server.get(&format!("/admin/stats?{query}")).status, 400, "{query}");
    }
    let head = http::request(server.address(), "HEAD", "/admin/stats", &[]).expect("an answer");
    assert_eq!((head.status, head.body.len()), (200, 0));
    let posted = server.post("/admin/stats", b"");
    assert_eq!((posted.status, posted.header("allow")), (405, Some("GET, HEAD")));
}

#[test]
fn admin_stats_name_users_and_so_are_not_for_everybody() {
    // As its users start it: on every interface, without a key.
    let server = Server::builder().preset("workflow").listen_unsaid().env("PORT", "0").start();
    let (status, said) = curl(&[&url(&server, "localhost", "/admin/stats")]);
    assert_eq!(status, 403, "{said}");
    for cure in ["--api-key-file FILE", "X-API-Key: KEY", "--admin 127.0.0.1:PORT", "--listen"] {
        assert!(said.contains(cure), "{cure} in {said:?}");
    }
    // The counters alone are for everybody.
    assert_eq!(curl(&[&url(&server, "localhost", "/stats")]).0, 200);

    let local = Server::builder().preset("workflow").start();
    for header in
        ["X-Forwarded-For: 10.0.0.1", "Forwarded: for=10.0.0.1", "Origin: https://elsewhere.example"]
    {
        let answer = http::request(local.address(), "GET", "/admin/stats", &[header]).expect("an answer");
        assert_eq!(answer.status, 403, "{header}");
    }
}

#[test]
fn admin_stats_answer_on_a_loopback_admin_address_and_with_the_key() {
    let server = Server::builder().preset("workflow").listen_unsaid().env("PORT", "0").admin().start();
    let _alice = user(&server, "alice");
    assert_eq!(server.get("/admin/stats").status, 404, "the public address has it no more");
    let asked = http::request(server.admin_address(), "GET", "/admin/stats", &[]).expect("an answer");
    assert_eq!(json(&asked)["users"], 1);
    let proxied = ["X-Forwarded-For: 10.0.0.1"];
    let asked = http::request(server.admin_address(), "GET", "/admin/stats", &proxied).expect("an answer");
    assert_eq!(asked.status, 403);

    let scratch = Scratch::new();
    let key = scratch.write("key", "sesame\n");
    let server = Server::builder()
        .preset("workflow")
        .listen_unsaid()
        .env("PORT", "0")
        .arg("--api-key-file")
        .arg(key.to_str().expect("a path in UTF-8"))
        .start();
    let target = url(&server, "localhost", "/admin/stats");
    assert_eq!(curl(&[&target]).0, 401);
    assert_eq!(curl(&["-H", "X-API-Key: wrong", &target]).0, 401);
    let (status, page) = curl(&["-H", "X-API-Key: sesame", &target]);
    assert_eq!(status, 200, "{page}");
    assert!(page.contains("\"connections\":0"), "{page}");
}

#[test]
fn publishing_by_username_reaches_that_user_through_redis() {
    let redis = Redis::start();
    let server = workflow(&redis).start();
    let (mut alice, mut bob) = (user(&server, "alice"), user(&server, "bob"));
    for (target, message) in [
        ("/publish?username=alice", "one"),
        ("/workflow/publish?username=alice", "two"),
        ("/publish?username=%61lice&room=bob", "three"),
    ] {
        let answer = json(&server.post(target, message.as_bytes()));
        assert_eq!((&answer["room"], &answer["receivers"]), (&"alice".into(), &1.into()), "{target}");
        assert_eq!(alice.next_text(), message);
    }
    for (target, sentence) in [
        ("/publish", "username is required"),
        ("/publish?room=alice", "username is required"),
        ("/publish?username=alice:x", "found ':' in a name"),
        ("/publish?username=a&username=b", "repeated"),
        ("/publish?username=a%00", "control character"),
    ] {
        let refused = server.post(target, b"astray");
        assert_eq!(refused.status, 400, "{target}");
        assert!(refused.text().contains(sentence), "{target}: {refused:?}");
    }
    assert_eq!(server.post("/nobody/publish?username=alice", b"astray").status, 404);
    let forwarded = ["X-Forwarded-For: 10.0.0.1"];
    let refused = http::post(server.address(), "/publish?username=alice", &forwarded, b"astray");
    assert_eq!(refused.expect("an answer").status, 403);
    redis.publish(&channel("bob"), "for bob");
    assert_eq!(bob.next_text(), "for bob");
}

/// The recipe of the system's own document, with its own tools.
#[test]
fn the_recipe_with_redis_cli_works() {
    let redis = Redis::start();
    let server = workflow(&redis).start();
    let mut client = user(&server, "test-user");
    let address = redis.address();
    let published = Command::new("redis-cli")
        .args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()])
        .args(["PUBLISH", "workflow:events:test-user", r#"{"type":"test","message":"hello"}"#])
        .output()
        .unwrap_or_else(|error| panic!("cannot run redis-cli: {error}. It comes with redis-server"));
    assert_eq!(String::from_utf8_lossy(&published.stdout).trim(), "1");
    assert_eq!(client.next_text(), r#"{"type":"test","message":"hello"}"#);
    assert_eq!(curl(&[&url(&server, "127.0.0.1", "/health")]), (200, "ok\n".to_owned()));
    let (status, page) = curl(&[&url(&server, "127.0.0.1", "/admin/stats")]);
    assert!(status == 200 && page.contains("\"username\":\"test-user\""), "{page}");
}

fn url(server: &Server, host: &str, path: &str) -> String {
    let address: SocketAddr = server.address();
    format!("http://{host}:{}{path}", address.port())
}

/// The status and body of what curl gets.
#[track_caller]
fn curl(args: &[&str]) -> (u16, String) {
    let output =
        Command::new("curl").args(["-s", "-w", "\n%{http_code}", "--max-time", "20"]).args(args).output();
    let output =
        output.unwrap_or_else(|error| panic!("cannot run curl: {error}. Install the package `curl`"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or_else(|| panic!("curl says {output:?}"));
    (status.parse().unwrap_or_else(|_| panic!("curl says {output:?}")), body.to_owned())
}
