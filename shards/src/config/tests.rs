//! What a whole configuration does: layers, presets, contradictions, and `config show`.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::limits::KIB;

/// Inputs in a line: `Given::default().file(..).variable(..).flag(..)`.
#[derive(Default)]
struct Given {
    file: Option<String>,
    variables: BTreeMap<String, String>,
    flags: Vec<(String, String)>,
    presets: Option<Vec<String>>,
}

impl Given {
    fn file(mut self, text: &str) -> Self {
        self.file = Some(text.to_owned());
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.push((name.to_owned(), value.to_owned()));
        self
    }

    fn preset(mut self, names: &str) -> Self {
        self.presets = Some(names.split(',').map(str::to_owned).collect());
        self
    }

    fn load(self) -> Result<Loaded, ConfigErrors> {
        load(&Inputs {
            file: self.file.as_deref().map(|text| File { name: "corecast.toml", text }),
            environment: self.variables,
            flags: self.flags,
            presets: self.presets,
            node_id: "00112233aabbccdd".to_owned(),
        })
    }

    fn loaded(self) -> Loaded {
        self.load().unwrap_or_else(|errors| panic!("{errors}"))
    }

    fn config(self) -> Config {
        self.loaded().config
    }

    fn warnings(self) -> Vec<String> {
        self.loaded().warnings.into_iter().map(|warning| warning.0).collect()
    }

    fn refused(self) -> String {
        self.load().expect_err("the configuration must be refused").to_string()
    }
}

fn given() -> Given {
    Given::default()
}

fn listen(config: &Config) -> Vec<String> {
    config.listen.iter().map(ToString::to_string).collect()
}

fn redis(config: &Config) -> &RedisTarget {
    match &config.broker {
        BrokerChoice::Redis(servers) => &servers[0].target,
        BrokerChoice::Local => panic!("the broker is local"),
    }
}

#[test]
fn nothing_given_is_the_default() {
    let config = Config { node_id: "00112233aabbccdd".to_owned(), ..Config::default() };
    assert_eq!(given().config(), config);
    assert_eq!(given().warnings(), [""; 0]);
}

#[test]
fn a_file_says_everything_in_the_form_of_the_design() {
    let text = r#"
listen = ["127.0.0.1:9000", "127.0.0.1:9001"]
admin = "127.0.0.1:9002"
redis = "redis://app:secret@localhost:6380/3"
require_broker = true
shards = 2
cores = "0,1"
driver = "epoll"
drain = "20s"
ports_file = "/run/ports.json"
log_format = "json"
log_level = "debug"
api_key_file = "/run/key"
origins = ["https://example.org", "https://example.com"]
echo_route = true
node_id = "n1"
health = "broker"
plain_metrics = true

[bounds]
connections_max = 1_000
message_bytes_max = "128KiB"
fragments_max = 16
rooms_per_connection_max = 3
handshake_timeout = "500ms"
ping_interval = "25s"
pong_timeout = "2m"

[[route]]
path = "/ws"
when_query = "room"
room = "{query.room}"
user = "{query.client_id}"
publish = "member"
dialect = "raw"
ping = "30s"
hear_self = false
missing = "which room?"

[[room]]
name = "vip:*"
history = { frames = 100, bytes = "2MiB", age = "1m" }
slow = { policy = "drop-oldest", disconnect_after = 5, frames = 64, bytes = "256KiB", age = "3s" }

[[source]]
redis = "psubscribe room:*"
room = "{1}"
deliver = "field:data"
own = "echo"

[[source]]
redis = "subscribe events.critical"
room = "critical"
space = "events"
deliver = "wrap"
"#;
    let config = given().file(text).config();
    assert_eq!(listen(&config), ["127.0.0.1:9000", "127.0.0.1:9001"]);
    assert_eq!(config.admin.unwrap().port(), 9002);
    assert_eq!(redis(&config).password.as_deref(), Some("secret"));
    assert!(config.require_broker && config.echo_route && config.plain_metrics);
    assert_eq!((config.shards, config.cores), (ShardCount::Count(2), Some(vec![0, 1])));
    assert_eq!((config.driver, config.log_format), (DriverChoice::Epoll, LogFormat::Json));
    assert_eq!((config.drain, config.health), (Duration::from_secs(20), Health::Broker));
    assert_eq!((config.node_id.as_str(), config.log_level.as_str()), ("n1", "debug"));
    let bounds = Bounds {
        connections_max: 1_000,
        message_bytes_max: 128 * KIB,
        fragments_max: 16,
        rooms_per_connection_max: 3,
        handshake_timeout: Duration::from_millis(500),
        ping_interval: Duration::from_secs(25),
        pong_timeout: Duration::from_secs(120),
    };
    assert_eq!(config.bounds, bounds);
    let route = &config.routes[0];
    assert_eq!(config.routes.len(), 1, "corecast's own route is gone: {:?}", config.routes);
    assert_eq!((route.publish, route.hear_self), (Publish::Member, false));
    assert_eq!(route.user.as_ref().unwrap().to_string(), "{query.client_id}");
    assert_eq!(route.missing.as_deref(), Some("which room?"));
    assert_eq!(route.ping, Some(Duration::from_secs(30)));
    assert_eq!(config.rooms[0].name, "vip:*");
    assert_eq!(
        config.rooms[0].history,
        History { frames: 100, bytes: 2 * MIB, age: Duration::from_secs(60) }
    );
    assert_eq!(
        config.rooms[0].slow,
        Slow {
            policy: SlowPolicy::DropOldest { disconnect_after: 5 },
            frames: 64,
            bytes: 256 * KIB,
            age: Duration::from_secs(3)
        }
    );
    assert_eq!(config.rooms[1], RoomClass::default(), "a class for every other name is added");
    assert_eq!(config.sources[0].deliver, Deliver::Field("data".to_owned()));
    assert_eq!(
        (config.sources[1].deliver.clone(), config.sources[1].space.as_str()),
        (Deliver::Wrap, "events")
    );
}

#[test]
fn a_route_that_does_not_say_who_may_publish_lets_nobody() {
    let config = given().file("[[route]]\npath = \"/ws\"\nroom = \"lobby\"").config();
    assert_eq!(config.routes[0].publish, Publish::None);
}

#[test]
fn each_layer_overrides_the_one_below() {
    let file = "drain = \"2s\"\npreset = \"event-fanout\"";
    assert_eq!(given().config().drain, Duration::from_secs(10));
    assert_eq!(given().file(file).config().drain, Duration::from_secs(2));
    let variable = given().file(file).variable("CORECAST_DRAIN", "3s");
    assert_eq!(variable.config().drain, Duration::from_secs(3));
    let flag = given().file(file).variable("CORECAST_DRAIN", "3s").flag("drain", "4s");
    assert_eq!(flag.config().drain, Duration::from_secs(4));
    let config = given().file("preset = \"event-fanout\"\n[bounds]\nping_interval = \"5s\"").config();
    assert_eq!(config.bounds.ping_interval, Duration::from_secs(5), "the file's wins over the preset's");
    assert_eq!(config.bounds.pong_timeout, Duration::from_secs(60));
    let config = given().preset("event-fanout").flag("ping_interval", "9s").config();
    assert!(
        config.bounds.ping_interval == Duration::from_secs(9)
            && config.routes.iter().all(|route| route.ping.is_none())
    );
}

#[test]
fn an_empty_variable_is_an_unset_one() {
    let empty = [
        "ADDR",
        "PORT",
        "REDIS_URL",
        "REDIS_ADDR",
        "REDIS_HOST",
        "REDIS_PORT",
        "REDIS_PASSWORD",
        "CORECAST_LISTEN",
    ];
    let given = empty.iter().fold(given(), |given, name| given.variable(name, ""));
    let loaded = given.loaded();
    assert_eq!(listen(&loaded.config), ["127.0.0.1:8080"]);
    assert_eq!((loaded.config.broker, loaded.warnings.len()), (BrokerChoice::Local, 0));
}

#[test]
fn listen_beats_addr_beats_port() {
    let config = |given: Given| listen(&given.config()).join(",");
    let port = || given().variable("PORT", "8084");
    assert_eq!(config(port()), "[::]:8084");
    assert_eq!(config(port().variable("ADDR", ":8081")), "[::]:8081");
    let ours = || port().variable("ADDR", ":8081").variable("CORECAST_LISTEN", "127.0.0.1:1");
    assert_eq!(config(ours()), "127.0.0.1:1");
    assert_eq!(config(ours().flag("listen", "127.0.0.1:2")), "127.0.0.1:2");
    assert_eq!(config(port().file("listen = \"127.0.0.1:3\"")), "[::]:8084", "a variable beats the file");
}

#[test]
fn redis_beats_url_beats_addr_beats_host_and_port() {
    let config = |given: Given| redis(&given.config()).to_string();
    let host = || given().variable("REDIS_HOST", "a").variable("REDIS_PORT", "1");
    assert_eq!(config(host()), "redis://a:1");
    let addr = || host().variable("REDIS_ADDR", "b:2");
    assert_eq!(config(addr()), "redis://b:2");
    let url = || addr().variable("REDIS_URL", "redis://c:3/1");
    assert_eq!(config(url()), "redis://c:3/1");
    let ours = || url().variable("CORECAST_REDIS", "d:4");
    assert_eq!(config(ours()), "redis://d:4");
    assert_eq!(config(ours().flag("redis", "e:5")), "redis://e:5");
    assert_eq!(config(given().variable("REDIS_HOST", "a")), "redis://a:6379");
    assert_eq!(config(given().variable("REDIS_HOST", "::1")), "redis://[::1]:6379");
    assert_eq!(config(given().variable("REDIS_PORT", "7")), "redis://localhost:7");
}

#[test]
fn variables_that_disagree_are_both_named_and_those_that_agree_are_not() {
    let warnings = given().variable("ADDR", ":8081").variable("PORT", "8084").warnings();
    assert_eq!(warnings, ["ADDR (\":8081\") wins over PORT (\":8084\"): unset one"]);
    assert_eq!(given().variable("ADDR", ":8084").variable("PORT", "8084").warnings(), [""; 0]);
    let warnings = given().flag("listen", "127.0.0.1:1").variable("ADDR", ":8081").warnings();
    assert_eq!(warnings, ["--listen (\"127.0.0.1:1\") wins over ADDR (\":8081\"): unset one"]);
    let redis = given()
        .variable("REDIS_URL", "redis://:s3cret@a")
        .variable("REDIS_HOST", "b")
        .variable("REDIS_PORT", "1");
    assert_eq!(
        redis.warnings(),
        [
            "REDIS_URL (\"redis://:***@a:6379\") wins over REDIS_HOST and REDIS_PORT (\"redis://b:1\"): unset one"
        ]
    );
    let same = given().variable("REDIS_URL", "redis://a").variable("REDIS_ADDR", "a:6379");
    assert_eq!(same.warnings(), [""; 0]);
    let other = given().variable("REDIS_URL", "redis://:one@a").flag("redis", "redis://:two@a");
    assert_eq!(other.warnings(), ["--redis wins over REDIS_URL, which has another password: unset one"]);
    let ours = given().variable("CORECAST_LISTEN", "127.0.0.1:1").flag("listen", "127.0.0.1:2");
    assert_eq!(ours.warnings(), [""; 0], "overriding a variable of ours is what a flag is for");
}

#[test]
fn the_redis_port_that_kubernetes_sets_is_ignored_with_a_word() {
    let port = || given().variable("REDIS_PORT", "tcp://10.0.0.1:6379");
    let loaded = port().loaded();
    assert_eq!(loaded.config.broker, BrokerChoice::Local);
    assert!(loaded.warnings[0].0.contains("Kubernetes"), "{:?}", loaded.warnings);
    assert_eq!(redis(&port().variable("REDIS_HOST", "redis").config()).to_string(), "redis://redis:6379");
}

#[test]
fn bad_variables_are_named() {
    assert_eq!(
        given().variable("PORT", "http").refused(),
        "PORT: found \"http\", due a port number, for example 8084"
    );
    assert!(
        given()
            .variable("ADDR", "8081")
            .refused()
            .starts_with("ADDR: found \"8081\", due one or more ADDR:PORT")
            || given().variable("ADDR", "8081").refused().starts_with("ADDR: found \"8081\", due ADDR:PORT")
    );
    assert!(given().variable("REDIS_PORT", "x").refused().starts_with("REDIS_PORT: found \"x\""));
    assert!(given().variable("REDIS_HOST", "redis://h").refused().contains("a URL into REDIS_URL"));
    assert!(
        given().variable("REDIS_URL", "http://h").refused().contains("REDIS_URL: found the scheme \"http\"")
    );
    assert!(
        given()
            .variable("CORECAST_DRAIN", "5")
            .refused()
            .starts_with("CORECAST_DRAIN: found \"5\", due a duration")
    );
    let warnings = given().variable("CORECAST_PING_INTERVL", "5s").warnings();
    assert_eq!(
        warnings,
        [
            "CORECAST_PING_INTERVL is set, but corecast has no such variable; did you mean CORECAST_PING_INTERVAL?"
        ]
    );
}

#[test]
fn the_password_variable_fills_a_target_without_one() {
    let password = |given: Given| redis(&given.variable("REDIS_PASSWORD", "pw").config()).password.clone();
    assert_eq!(password(given().flag("redis", "h:1")).as_deref(), Some("pw"));
    assert_eq!(password(given().preset("event-fanout")).as_deref(), Some("pw"));
    assert_eq!(password(given().flag("redis", "redis://:own@h")).as_deref(), Some("own"));
    assert_eq!(
        password(given().file("redis = \"redis://:filed@h\"")).as_deref(),
        Some("pw"),
        "a variable beats the file"
    );
    let both = given().flag("redis", "redis://:own@h").variable("REDIS_PASSWORD", "pw");
    assert_eq!(
        both.warnings(),
        ["the password in --redis wins over REDIS_PASSWORD, which is another: unset one"]
    );
    assert_eq!(given().variable("REDIS_PASSWORD", "pw").config().broker, BrokerChoice::Local);
}

#[test]
fn tls_to_redis_has_its_files_and_its_name_from_settings() {
    let sealed = || {
        given()
            .flag("redis", "rediss://h:1")
            .flag("redis_ca_file", "/ca.pem")
            .variable("CORECAST_REDIS_CERT_FILE", "/me.pem")
            .file("redis_key_file = \"/me.key\"")
            .flag("redis_server_name", "redis.example")
    };
    let target = redis(&sealed().config()).clone();
    let tls = RedisTls {
        ca_file: Some("/ca.pem".into()),
        cert_file: Some("/me.pem".into()),
        key_file: Some("/me.key".into()),
        server_name: Some("redis.example".to_owned()),
    };
    assert_eq!((target.tls_name(), &target.tls), (Some("redis.example"), &Some(tls)));
    assert_eq!(target.to_string(), "rediss://h:1");
    let shown = show(&sealed().loaded());
    for line in
        ["redis = \"rediss://h:1\"", "redis_key_file = \"/me.key\"", "redis_server_name = \"redis.example\""]
    {
        assert!(shown.contains(line), "{shown}");
    }
}

#[test]
fn files_for_tls_beside_an_address_without_it_are_refused() {
    let refused = given().flag("redis", "redis://:pw@h:1").flag("redis_ca_file", "/ca.pem").refused();
    let due = "--redis-ca-file: found it beside redis://:***@h:1, which has no TLS, due rediss://: correct the URL, or \
               leave it out";
    assert_eq!(refused, due);
    for (several, due) in [
        ("redis+sentinel://h/orders", "due rediss+sentinel://"),
        ("redis+cluster://h", "due rediss+cluster://"),
    ] {
        let refused = given().flag("redis", several).flag("redis_ca_file", "/ca.pem").refused();
        assert!(refused.contains(due), "{refused}");
    }
    let lonely = |name: &str| given().flag("redis", "rediss://h").flag(name, "/me").refused();
    assert!(lonely("redis_cert_file").contains("found no key to it: name that with --redis-key-file"));
    assert!(lonely("redis_key_file").contains("found no certificate to it"));
    let name = given().flag("redis", "rediss://h").flag("redis_server_name", "a b").refused();
    assert!(name.contains("due a DNS name or an address"), "{name}");
    // A server of the local broker may share its variables with others.
    assert_eq!(given().variable("CORECAST_REDIS_CA_FILE", "/ca.pem").config().broker, BrokerChoice::Local);
}

#[test]
fn of_broker_and_redis_the_one_said_later_decides() {
    let local = |given: Given| given.config().broker == BrokerChoice::Local;
    assert!(local(given().preset("event-fanout").flag("broker", "local")));
    assert!(local(given().variable("REDIS_URL", "redis://h").flag("broker", "local")));
    assert!(!local(given().file("broker = \"local\"").flag("redis", "h:1")));
    assert!(!local(given().file("broker = \"local\"").flag("broker", "redis")));
    assert_eq!(redis(&given().flag("broker", "redis").config()).to_string(), "redis://localhost:6379");
    let both = || given().file("broker = \"local\"\nredis = \"h:1\"");
    assert!(local(both()));
    assert_eq!(
        both().warnings(),
        ["broker (corecast.toml:1) is local, so redis (corecast.toml:2) is not used: leave one out"]
    );
}

#[test]
fn the_preset_event_fanout_is_what_its_users_have() {
    let config = given().preset("event-fanout").config();
    assert_eq!(listen(&config), ["[::]:8081"]);
    assert_eq!(config.listen_presets, [Some("event-fanout".to_owned())]);
    assert_eq!(redis(&config).to_string(), "redis://localhost:6379");
    assert_eq!((config.health, config.plain_metrics), (Health::Broker, true));
    assert_eq!(config.origins, Origins::Any);
    assert_eq!(config.bounds.message_bytes_max, MIB);
    assert_eq!(config.bounds.ping_interval, Duration::from_secs(30));
    assert_eq!(config.bounds.pong_timeout, Duration::from_secs(60));
    let paths: Vec<&str> = config.routes.iter().map(|route| route.path.as_str()).collect();
    assert_eq!(paths, ["/ws", "/event-fanout/ws"]);
    assert_eq!(config.routes[0].missing.as_deref(), Some("missing room"));
    assert_eq!(config.routes[0].publish, Publish::Any);
    assert_eq!((config.rooms[0].slow.policy, config.rooms[0].slow.frames), (SlowPolicy::Disconnect, 256));
    assert_eq!(config.sources.len(), 1);
    assert_eq!(config.sources[0].subscribe.to_string(), "psubscribe room:*");
    assert_eq!(config.sources[0].deliver, Deliver::Field("data".to_owned()));
    assert_eq!(config.presets, ["event-fanout"]);
}

#[test]
fn event_fanouts_own_variables_move_it() {
    let given = given()
        .preset("event-fanout")
        .variable("ADDR", "127.0.0.1:9999")
        .variable("REDIS_ADDR", "redis:6380")
        .variable("REDIS_PASSWORD", "pw");
    let config = given.config();
    assert_eq!(listen(&config), ["127.0.0.1:9999"]);
    assert_eq!(config.listen_presets, [None]);
    let target = redis(&config);
    assert_eq!(
        (target.to_string().as_str(), target.password.as_deref()),
        ("redis://:***@redis:6380", Some("pw"))
    );
}

#[test]
fn presets_are_named_by_flag_before_variable_before_file() {
    let file = || given().file("preset = [\"event-fanout\"]");
    assert_eq!(file().config().presets, ["event-fanout"]);
    assert!(
        file()
            .variable("CORECAST_PRESET", "nosuch")
            .refused()
            .starts_with("CORECAST_PRESET: found the preset")
    );
    assert_eq!(
        given().variable("CORECAST_PRESET", "nosuch").preset("event-fanout").config().presets,
        ["event-fanout"]
    );
}

#[test]
fn a_preset_without_a_name_is_one_fault_however_many_commas_there_are() {
    let refused = given().variable("CORECAST_PRESET", ",,").refused();
    assert_eq!(refused.lines().count(), 1, "{refused}");
}

#[test]
fn too_many_tables_name_the_first_that_is_too_many_and_what_to_do() {
    let route = |index: usize| {
        format!("[[route]]\npath = \"/{index}\"\nwhen_query = \"room\"\nroom = \"{{query.room}}\"\n")
    };
    let file: String = (0..257).map(route).collect();
    let refused = given().file(&file).refused();
    // 256 of four lines before it.
    assert!(refused.starts_with("corecast.toml:1025:"), "{refused}");
    assert!(
        refused.contains("found 257 tables [[route]], due at most 256: let one take the name from its query")
    );
}

#[test]
fn a_list_of_rooms_whose_clients_may_publish_is_warned_of() {
    let list = |more: &str| {
        let file =
            format!("[[route]]\npath = \"/ws\"\nroom = \"{{query.rooms}}\"\nseparator = \",\"\n{more}\n");
        given().file(&file).warnings()
    };
    let warnings = list("publish = \"any\"");
    assert!(warnings.len() == 1 && warnings[0].contains("close it with 1008"), "{warnings:?}");
    assert_eq!(list("publish = \"none\""), [""; 0]);
}

#[test]
fn what_kubernetes_sets_beside_a_service_named_corecast_is_no_misspelt_setting() {
    let variables = [
        ("CORECAST_SERVICE_HOST", "10.0.0.1"),
        ("CORECAST_SERVICE_PORT", "8080"),
        ("CORECAST_SERVICE_PORT_HTTP", "8080"),
        ("CORECAST_PORT", "tcp://10.0.0.1:8080"),
        ("CORECAST_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("CORECAST_PORT_8080_TCP_PROTO", "tcp"),
        ("CORECAST_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("CORECAST_REDIS_SERVICE_HOST", "10.0.0.2"),
        ("CORECAST_REDIS_PORT", "tcp://10.0.0.2:6379"),
    ];
    let given = variables.iter().fold(given(), |given, (name, value)| given.variable(name, value));
    assert_eq!(given.warnings(), [""; 0]);
    let misspelt = self::given().variable("CORECAST_PORT", "8080").warnings();
    assert!(misspelt.len() == 1 && misspelt[0].contains("no such variable"), "{misspelt:?}");
}

#[test]
fn each_of_several_presets_can_be_given_an_address_of_its_own() {
    let given =
        || given().preset("workflow,star").flag("listen", "star=127.0.0.1:0,workflow=127.0.0.1:0,:8090");
    let config = given().config();
    let owners: Vec<Option<&str>> = config.listen_presets.iter().map(Option::as_deref).collect();
    assert_eq!(owners, [Some("star"), Some("workflow"), Some("star")], "8090 is star's own port");
    let refused = given().flag("listen", "nosuch=127.0.0.1:0").refused();
    assert!(refused.contains("the preset \"nosuch\", which is not in use"), "{refused}");
}

#[test]
fn a_variable_names_the_channel_of_the_source_that_asks_for_it() {
    let config = given().preset("star").variable("CHANNEL_NAME", "events.prod").config();
    assert_eq!(config.sources[0].subscribe, Subscribe::Channel("events.prod".to_owned()));
    let refused = given().preset("star").variable("CHANNEL_NAME", "a b").refused();
    assert!(refused.starts_with("CHANNEL_NAME: ") && refused.contains("without spaces"), "{refused}");
    let refused = given().preset("star").variable("CHANNEL_NAME", "x:{1}").refused();
    assert!(refused.contains("due the name of one channel"), "{refused}");
    let untouched = given().preset("workflow").variable("CHANNEL_NAME", "events.prod").config();
    assert_eq!(untouched.sources.len(), 1);
}

#[test]
fn a_file_that_was_shown_with_the_variable_keeps_its_channel_without_it() {
    let shown = show(&given().preset("star").variable("CHANNEL_NAME", "events.prod").loaded());
    let sources = given().file(&shown).config().sources;
    let channels: Vec<&Subscribe> = sources.iter().map(|source| &source.subscribe).collect();
    assert_eq!(channels, [&Subscribe::Channel("events.prod".to_owned())]);
}

#[test]
fn an_unknown_preset_names_the_known_ones() {
    assert_eq!(
        given().preset("event-fanuot").refused(),
        "--preset: found the preset \"event-fanuot\"; did you mean \"event-fanout\"? known: event-fanout, workflow, backbone, \
         broadcaster, star"
    );
    assert_eq!(
        given().preset("x").refused(),
        "--preset: found the preset \"x\"; known: event-fanout, workflow, backbone, broadcaster, star"
    );
    assert!(given().preset("event-fanout,event-fanout").refused().contains("named twice"));
}

#[test]
fn the_files_tables_replace_those_of_a_preset_with_the_same_condition_and_join_the_others() {
    let text = r#"
[[route]]
path = "/ws"
when_query = "room"
room = "{query.room}"
[[route]]
path = "/live"
room = "live"
[[room]]
name = "*"
slow = { frames = 9 }
[[source]]
redis = "psubscribe room:*"
room = "{1}"
deliver = "raw"
"#;
    let config = given().preset("event-fanout").file(text).config();
    let routes: Vec<(&str, Publish)> =
        config.routes.iter().map(|route| (route.path.as_str(), route.publish)).collect();
    assert_eq!(
        routes,
        [("/ws", Publish::None), ("/live", Publish::None), ("/event-fanout/ws", Publish::Any)]
    );
    assert_eq!((config.rooms.len(), config.rooms[0].slow.frames), (1, 9));
    assert_eq!((config.sources.len(), &config.sources[0].deliver), (1, &Deliver::Raw));
}

#[test]
fn unknown_keys_are_refused_with_their_place_and_the_nearest_known_key() {
    let refused = |text| given().file(text).refused();
    assert_eq!(refused("\n  lisen = 1"), "corecast.toml:2:3: lisen: unknown key; did you mean \"listen\"?");
    assert!(
        refused("zzzzzz = 1")
            .starts_with("corecast.toml:1:1: zzzzzz: unknown key; known here: listen, admin")
    );
    assert_eq!(
        refused("ping_interval = \"5s\""),
        "corecast.toml:1:1: ping_interval: unknown key; this key belongs in the table [bounds]"
    );
    assert_eq!(
        refused("[bounds]\nlisten = \"x\""),
        "corecast.toml:2:1: listen: unknown key; this key belongs at the top of the file, before the first table"
    );
    assert_eq!(
        refused("[bounds]\nping_intervall = \"5s\""),
        "corecast.toml:2:1: ping_intervall: unknown key; did you mean \"ping_interval\"?"
    );
    assert_eq!(
        refused("[[route]]\npath = \"/a\"\nroom = \"r\"\npublsh = \"any\""),
        "corecast.toml:4:1: publsh: unknown key in [[route]]; did you mean \"publish\"?"
    );
    assert_eq!(
        refused("[[room]]\nname = \"*\"\nslow = { polcy = \"disconnect\" }"),
        "corecast.toml:3:10: polcy: unknown key in \"slow\" of a [[room]]; did you mean \"policy\"?"
    );
    assert!(refused("[[room]]\nname = \"*\"\ndrain = \"5s\"").contains("belongs above the first table"));
    assert!(refused("[[rooms]]\nname = \"*\"").contains("rooms: unknown key; did you mean \"room\"?"));
}

#[test]
fn wrong_values_in_a_file_say_where_what_was_found_and_what_was_due() {
    let cases = [
        ("drain = 5", "corecast.toml:1:9: drain: found the integer 5, due a duration with its unit"),
        (
            "shards = 99999999999999999999",
            "found the integer 99999999999999999999, due auto or a whole number",
        ),
        ("drain = 1.5", "found the number 1.5, due a duration"),
        ("drain = 1979-05-27", "found the time 1979-05-27, due a duration"),
        ("drain = {}", "found a table, due a duration"),
        ("bounds = 5", "bounds: found the integer 5, due the table [bounds]"),
        ("[route]\npath = \"/ws\"", "route: found a table, due tables, each under its own [[route]]"),
        ("preset = 1", "preset: found the integer 1, due a preset's name"),
        ("redis = \"http://h\"", "corecast.toml:1:9: redis: found the scheme \"http\""),
        ("drain = ", "corecast.toml:1:9: not TOML: "),
        ("a = 1\na = 2", "corecast.toml:2:1: not TOML: duplicate key"),
        ("[[route]]\nroom = \"r\"", "corecast.toml:1:1: path: missing in [[route]], which needs it"),
        ("[[route]]\npath = \"/a\"", "room: missing in [[route]]"),
        ("[[route]]\npath = \"ws\"\nroom = \"r\"", "found the string \"ws\", due an exact path"),
        ("[[route]]\npath = \"/a/{id}\"\nroom = \"r\"", "due an exact path of printable ASCII"),
        ("[[route]]\npath = \"/a\"\nroom = \"{path.x}\"", "nothing fills {path.x} yet"),
        ("[[route]]\npath = \"/a\"\nroom = \"r\"\nrole = \"ingestor\"", "only the JSON dialect knows roles"),
        ("[[route]]\npath = \"/a\"", "room: missing in [[route]]"),
        ("[[route]]\npath = \"/a\"\nroom = \"r\"\npublish = \"all\"", "due one of none, ignore, member, any"),
        ("[[route]]\npath = \"/a\"\nroom = \"r\"\ndialect = \"sse\"", "what is joined at /ws is at /sse too"),
        ("[[route]]\npath = \"/a\"\nroom = \"r\"\ndialect = \"echo\"", "set echo_route = true"),
        ("[[route]]\npath = \"/a\"\nroom = \"r\"\nspace = \"a b\"", "due at most 64 letters"),
        ("[[route]]\npath = \"/a\"\nroom = \"r\"\npreset = \"x\"", "the preset \"x\", which is not in use"),
        ("[[route]]\npath = \"/metrics\"\nroom = \"r\"", "which is a page of corecast's own"),
        ("echo_route = true\n[[route]]\npath = \"/echo\"\nroom = \"r\"", "which echo_route takes"),
        ("[[route]]\npath = \"/a\"\nroom = \"r\"\nmissing = \"a\\nb\"", "due one line"),
        ("[[room]]\nname = \"a*b\"", "due a room's name, or a prefix followed by '*'"),
        ("[[room]]\nname = \"\"", "due a room's name"),
        ("[[room]]\nname = \"a\"\nslow = \"disconnect\"", "due a table, for example slow = { policy = ... }"),
        ("[[room]]\nname = \"a\"\nslow = { key = \"symbol\" }", "it needs policy = \"conflate\""),
        ("[[room]]\nname = \"a\"\nslow = { policy = \"conflate\", key = \"\" }", "the name of a member"),
        ("[[room]]\nname = \"a\"\nslow = { disconnect_after = 5 }", "it needs policy = \"drop-oldest\""),
        ("[[room]]\nname = \"a\"\nslow = { bytes = \"65MiB\" }", "due a size from 1B to 64MiB"),
        ("[[room]]\nname = \"a\"\nslow = { age = \"0s\" }", "due a duration from 1ms"),
        ("[[room]]\nname = \"a\"\nhistory = { bytes = \"1GiB\" }", "due a size from 0B to 256MiB"),
        ("[[source]]\nredis = \"psubscribe a*b*\"\nroom = \"{1}\"", "found 2 '*'"),
        ("[[source]]\nredis = \"subscribe a\"\nroom = \"{1}\"", "{1} stands for nothing"),
        ("[[source]]\nredis = \"subscribe a:{1}\"\nroom = \"x\"", "needs exactly one {1}"),
        ("[[source]]\nredis = \"subscribe a:{1}\"\nroom = \"{1}{1}\"", "needs exactly one {1}"),
        (
            "[[source]]\nredis = \"subscribe a\"\nroom = \"r\"\nown = \"origin\"",
            "needs a payload that names its origin: add deliver = \"event\"",
        ),
        ("[[source]]\nredis = \"subscribe a\"\nroom = \"{json.room}\"", "add deliver = \"event\""),
        (
            "[[source]]\nredis = \"psubscribe a*\"\nroom = \"{1}{json.room}\"\ndeliver = \"event\"",
            "no other place",
        ),
        (
            "[[source]]\nredis = \"subscribe a:{1}\"\nroom = \"{json.room}\"\ndeliver = \"event\"",
            "needs {1} in it",
        ),
        (
            "[[source]]\nredis = \"subscribe a\"\nroom = \"r\"\nlast_value = { ttl = \"1s\" }",
            "prefix: missing in \"last_value\" of a [[source]]",
        ),
        (
            "[[source]]\nredis = \"subscribe a\"\nroom = \"r\"\ndeliver = \"json\"",
            "due \"raw\", \"field:NAME\"",
        ),
        ("[[source]]\nredis = \"stream a:*\"\nroom = \"{1}\"", "and no Redis, which holds streams"),
        ("[[source]]\nredis = \"stream a:*\"\nroom = \"x\"", "needs exactly one {1}"),
        (
            "[[source]]\nredis = \"stream a:*\"\nroom = \"{1}\"\ndeliver = \"event\"\nown = \"origin\"",
            "have nothing before it is in the stream: leave own out",
        ),
        ("[[source]]\nredis = \"subscribe a\"\nroom = \"r\"\nmaxlen = 5", "only streams are trimmed"),
        (
            "redis = \"redis+cluster://h:1\"\n[[source]]\nredis = \"stream a:*\"\nroom = \"{1}\"",
            "whose streams a cluster spreads over its nodes",
        ),
        (
            "redis = \"redis://h\"\n[[source]]\nredis = \"stream a:*\"\nroom = \"x-{1}\"\n\
             [[source]]\nredis = \"psubscribe *\"\nroom = \"{1}\"",
            "a stream's room is fed by its stream alone",
        ),
    ];
    for (text, expected) in cases {
        let message = given().file(text).refused();
        assert!(message.contains(expected), "{text}\n  said: {message}\n  lacks: {expected}");
    }
}

#[test]
fn contradictions_are_refused() {
    let refused = |text| given().file(text).refused();
    let pings = refused("[bounds]\nping_interval = \"60s\"");
    assert!(
        pings.starts_with("corecast.toml:2:17: ping_interval: pings every 1m and a pong_timeout of 1m"),
        "{pings}"
    );
    let flag = given().flag("pong_timeout", "20s").refused();
    assert!(flag.starts_with("--pong-timeout: pings every 25s and a pong_timeout of 20s"), "{flag}");
    let route = refused("[[route]]\npath = \"/a\"\nroom = \"r\"\nping = \"2m\"");
    assert!(route.contains("route /a: pings every 2m"), "{route}");
    assert!(refused("listen = [\"127.0.0.1:1\", \"127.0.0.1:1\"]").contains("overlap: leave one out"));
    assert!(refused("listen = [\":1\", \"127.0.0.1:1\"]").contains("overlap: leave one out"));
    assert!(refused("admin = \"127.0.0.1:8080\"").contains("overlaps with listen's 127.0.0.1:8080"));
    assert!(refused("shards = 3\ncores = \"0,1\"").contains("found 3 shards for 2 cores"));
    assert_eq!(
        given().flag("listen", "127.0.0.1:0,127.0.0.1:0").config().listen.len(),
        2,
        "port 0 is a free one"
    );
    assert!(given().flag("ping_interval", "0s").flag("pong_timeout", "1s").load().is_ok(), "without pings");
}

#[test]
fn the_same_condition_twice_in_a_file_is_refused() {
    let route = "[[route]]\npath = \"/a\"\nwhen_query = \"x\"\nroom = \"r\"\n";
    let message = given().file(&format!("{route}{route}")).refused();
    assert!(message.contains("/a with ?x= is already the route of corecast.toml:1"), "{message}");
    let class = "[[room]]\nname = \"a\"\n";
    assert!(
        given().file(&format!("{class}{class}")).refused().contains("is already there at corecast.toml:1")
    );
    let source = "[[source]]\nredis = \"subscribe a\"\nroom = \"r\"\n";
    assert!(given().file(&format!("{source}{source}")).refused().contains("feeds the same rooms"));
}

#[test]
fn all_faults_are_told_at_once_in_the_order_of_the_file() {
    let message =
        given().file("zone = 1\ndrain = 5\n[bounds]\npong_timeout = 1\n").flag("shards", "x").refused();
    let starts: Vec<&str> = message.lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(starts, ["corecast.toml:1:1", "corecast.toml:2:9", "corecast.toml:4:16", "--shards"]);
}

#[test]
fn rooms_that_could_meet_are_warned_of() {
    let routes = |space| {
        format!(
            "[[route]]\npath = \"/a\"\nroom = \"{{query.room}}\"\n[[route]]\npath = \"/b\"\nroom = \"user:{{query.name}}\"\n{space}"
        )
    };
    let warnings = given().file(&routes("")).warnings();
    assert!(warnings[0].contains("can have the same name: give one of them a space"), "{warnings:?}");
    assert_eq!(given().file(&routes("space = \"user\"")).warnings(), [""; 0]);
}

#[test]
fn a_class_behind_one_that_matches_everything_is_warned_of() {
    let warnings = given().file("[[room]]\nname = \"*\"\n[[room]]\nname = \"vip\"\n").warnings();
    assert!(warnings[0].contains("corecast.toml:3: no room reaches the class \"vip\""), "{warnings:?}");
}

#[test]
fn show_prints_each_value_with_its_place_and_no_secret() {
    let loaded = given()
        .preset("event-fanout")
        .file("drain = \"3s\"")
        .variable("REDIS_ADDR", "h:1")
        .variable("REDIS_PASSWORD", "s3cret")
        .flag("shards", "2")
        .loaded();
    let text = show(&loaded);
    assert!(!text.contains("s3cret"), "{text}");
    for (line, origin) in [
        ("preset = \"event-fanout\"", "flag --preset"),
        ("listen = \":8081\"", "preset event-fanout"),
        ("redis = \"redis://:***@h:1\"", "variable REDIS_ADDR, password from variable REDIS_PASSWORD"),
        ("broker = \"redis\"", "variable REDIS_ADDR"),
        ("drain = \"3s\"", "corecast.toml:1"),
        ("shards = 2", "flag --shards"),
        ("driver = \"auto\"", "default"),
        ("node_id = \"00112233aabbccdd\"", "random"),
        ("ping_interval = \"30s\"", "preset event-fanout"),
        ("[[route]]", "preset event-fanout"),
    ] {
        let found =
            text.lines().any(|shown| shown.starts_with(line) && shown.ends_with(&format!("  # {origin}")));
        assert!(found, "{line} # {origin} is not in\n{text}");
    }
    assert!(text.contains("# admin is not set"));
}

/// Two presets as they may come, beside event-fanout.
const MORE_PRESETS: &[(&str, &str)] = &[
    ("event-fanout", include_str!("presets/event-fanout.toml")),
    (
        "workflow",
        r#"
listen = ":8084"
redis = "redis://localhost:6379"
origins = "any"
[bounds]
message_bytes_max = "4KiB"
ping_interval = "54s"
pong_timeout = "70s"
[[route]]
path = "/ws"
when_query = "username"
room = "{query.username}"
[[room]]
name = "*"
slow = { frames = 7 }
[[source]]
redis = "psubscribe workflow:events:*"
room = "{1}"
"#,
    ),
    (
        "star",
        "listen = \":8080\"\n[[route]]\npath = \"/ws\"\nroom = \"all\"\n[[source]]\nredis = \"subscribe broadcast.events\"\nroom = \"all\"\n",
    ),
];

fn merged(names: &str) -> Config {
    merged_loaded(Inputs {
        presets: Some(names.split(',').map(str::to_owned).collect()),
        ..Inputs::default()
    })
    .config
}

fn merged_loaded(inputs: Inputs<'_>) -> Loaded {
    let inputs = Inputs { node_id: "n".to_owned(), ..inputs };
    layers::load_with(MORE_PRESETS, &inputs).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn merged_presets_are_shown_as_a_file_that_reads_back() {
    let presets = ["workflow", "star", "event-fanout"].map(str::to_owned).to_vec();
    let loaded = merged_loaded(Inputs { presets: Some(presets), ..Inputs::default() });
    let text = show(&loaded);
    let again = merged_loaded(Inputs { file: Some(File { name: "x", text: &text }), ..Inputs::default() });
    assert_eq!(again.config, loaded.config, "\n{text}");
}

#[test]
fn merged_presets_keep_their_ports_and_the_widest_bounds() {
    let config = merged("event-fanout,workflow,star");
    assert_eq!(listen(&config), ["[::]:8081", "[::]:8084", "[::]:8080"]);
    let owners: Vec<&str> = config.listen_presets.iter().map(|owner| owner.as_deref().unwrap()).collect();
    assert_eq!(owners, ["event-fanout", "workflow", "star"]);
    assert_eq!(config.bounds.message_bytes_max, MIB, "the largest");
    assert_eq!(config.bounds.ping_interval, Duration::from_secs(30), "the smallest");
    assert_eq!(config.bounds.pong_timeout, Duration::from_secs(70), "the largest");
    assert_eq!(merged("workflow,event-fanout").bounds.message_bytes_max, MIB, "whatever the order");
    assert!(merged("star,event-fanout").plain_metrics);
}

#[test]
fn each_further_preset_has_its_own_space_and_classes() {
    let config = merged("event-fanout,workflow");
    let spaces: Vec<(&str, &str)> =
        config.routes.iter().map(|route| (route.path.as_str(), route.space.as_str())).collect();
    assert_eq!(
        spaces,
        [("/ws", ""), ("/event-fanout/ws", ""), ("/ws", "workflow"), ("/workflow/ws", "workflow")]
    );
    let classes: Vec<(Option<&str>, usize)> =
        config.rooms.iter().map(|class| (class.space.as_deref(), class.slow.frames)).collect();
    assert_eq!(classes, [(Some("workflow"), 7), (None, 256)]);
    assert_eq!((config.sources[0].space.as_str(), config.sources[1].space.as_str()), ("", "workflow"));
    assert_eq!(merged("workflow").routes[0].space, "", "alone it has the plain space");
}

/// Reads what `show` printed and expects the same configuration.
fn assert_reads_back(loaded: &Loaded) {
    let text = show(loaded);
    let again = given().file(&text).load().unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    assert_eq!(again.config, loaded.config, "\n{text}");
}

#[test]
fn what_show_prints_reads_back_as_the_same_configuration() {
    assert_reads_back(&given().loaded());
    assert_reads_back(&given().preset("event-fanout").loaded());
    assert_reads_back(
        &given().preset("event-fanout").flag("broker", "local").flag("echo_route", "1").loaded(),
    );
    let text = r#"
listen = [":1", "[::1]:2"]
admin = "127.0.0.1:3"
redis = "unix:///run/redis.sock?db=2"
cores = "3,1-2"
shards = 3
ports_file = "/tmp/a \"b\" \\ c"
origins = ["https://a.example"]
preset = "event-fanout"
[[route]]
path = "/ws"
room = "all\t"
"#;
    let refused = given().file(text).refused();
    assert!(refused.contains("due a text with places"), "a tab is a control character: {refused}");
    assert_reads_back(&given().file(&text.replace("\\t", "")).loaded());
    let classes = r#"
[[room]]
name = "ä\"*"
space = "x"
history = { frames = 3, bytes = "1000B", age = "1500ms" }
slow = { policy = "drop-oldest", disconnect_after = 7 }
[[source]]
redis = "subscribe a:{1}:b"
room = "x{1}y{node_id}"
space = "x"
deliver = "field:a\"b"
"#;
    assert_reads_back(&given().file(classes).loaded());
}

proptest! {
    #[test]
    fn no_text_breaks_the_reader(text in "(\\[\\[(route|room|source)\\]\\]\n|[a-z_]{1,8} = (\"[^\"\n]{0,12}\"|[0-9]{1,4}|\\{\\}|\\[\\])\n|\\PC{0,6}\n){0,8}") {
        let _ = given().file(&text).load();
    }
}

#[test]
fn several_processes_need_redis_and_a_core_for_each_of_their_shards() {
    let several = || given().flag("processes", "3");
    let alone = several().load().expect_err("they would not hear each other");
    assert!(alone.to_string().contains("found local and 3 processes, due Redis"), "{alone}");
    // No fault of usage: where Redis is named the same flags are right.
    assert!(alone.0.iter().all(|error| !matches!(error.origin, Origin::Flag(_))), "{alone}");
    let with_redis = || several().flag("redis", "localhost");
    assert_eq!(with_redis().config().processes, 3);
    let crowded = with_redis().flag("shards", "2").flag("cores", "0-4").refused();
    assert!(crowded.contains("found 2 shards in each of 3 processes for 5 cores, due 6 cores"), "{crowded}");
    let crowded = with_redis().flag("shards", "1").flag("cores", "0").refused();
    assert!(crowded.contains("found 1 shard in each of 3 processes for 1 core, due 3 cores"), "{crowded}");
    assert!(crowded.contains("take fewer shards or processes"), "{crowded}");
    assert_eq!(with_redis().flag("shards", "2").flag("cores", "0-5").config().processes, 3);
    let long = with_redis().flag("node_id", &"n".repeat(54)).refused();
    assert!(long.contains("found 54 bytes, due at most 53"), "{long}");
}

#[test]
fn connections_are_steered_by_hash_unless_somebody_says_otherwise() {
    assert_eq!(given().config().steer, Steer::Hash);
    assert_eq!(given().flag("steer", "cpu").config().steer, Steer::Cpu);
    assert!(given().flag("steer", "core").refused().contains("hash"));
}
