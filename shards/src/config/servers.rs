//! Several Redis at once: the tables `[[redis]]`, and which of them each source is of.

use std::collections::BTreeMap;

use super::input::{Input, Wrong};
use super::layers::{ConfigError, Origin, Provenance, Warning};
use super::nearest::hint;
use super::settings::{BrokerKind, Draft};
use super::{BrokerChoice, Config, RedisAddress, RedisServer, RedisTarget, RedisTls, Source, TemplatePart};
use crate::limits::REDIS_TABLES_MAX;

/// Settings of a single server.
const OF_ONE: &[&str] = &["redis", "redis_ca_file", "redis_cert_file", "redis_key_file", "redis_server_name"];
/// The password of a single server.
const PASSWORD_OF_ONE: &str = "REDIS_PASSWORD";

/// Puts the servers of the file's tables in the place of a single one, which then nothing may name: whoever has, by a flag or a
/// variable, means one of them, and doesn't say which.
pub(super) fn choose_servers(
    tables: Vec<(RedisServer, Origin)>,
    variables: &BTreeMap<String, String>,
    draft: &mut Draft,
    provenance: &mut Provenance,
    errors: &mut Vec<ConfigError>,
    warnings: &mut Vec<Warning>,
) {
    let Some((_, first)) = tables.first() else { return };
    let (first, of_preset) = (first.clone(), Origin::Preset(String::new()).level());
    for name in OF_ONE {
        let Some(origin) = provenance.settings.remove(name) else { continue };
        if origin.level() > of_preset {
            let message = format!(
                "found it beside the tables [[redis]] ({first}), which name the servers: leave one out"
            );
            errors.push(origin.error(name, message));
        }
    }
    find_faults(&tables, errors);
    let (mut servers, origins): (Vec<_>, Vec<_>) = tables.into_iter().unzip();
    provenance.servers = servers.iter().map(|server| server.name.clone()).zip(origins).collect();
    let kind_origin = provenance.settings.get("broker").cloned().unwrap_or_default();
    if draft.broker == Some(BrokerKind::Local) && kind_origin.level() >= first.level() {
        if kind_origin.level() == first.level() {
            warnings.push(Warning("broker is local, so the tables [[redis]] are not used".to_owned()));
        }
        return;
    }
    for (server, (_, origin)) in servers.iter_mut().zip(&provenance.servers) {
        let Some(name) = &server.password_variable else { continue };
        match variables.get(name).filter(|password| !password.is_empty()) {
            Some(password) => server.target.password = Some(password.clone()),
            None => errors.push(origin.error(
                "password_variable",
                format!("the variable {name}, which has the password of {}, is not set", server.name),
            )),
        }
    }
    let names_it = |server: &RedisServer| server.password_variable.as_deref() == Some(PASSWORD_OF_ONE);
    let is_set = variables.get(PASSWORD_OF_ONE).is_some_and(|password| !password.is_empty());
    if is_set && !servers.iter().any(names_it) {
        warnings.push(Warning(format!(
            "{PASSWORD_OF_ONE} is the password of a single Redis and not used: name it in its table, \
             password_variable = \"{PASSWORD_OF_ONE}\""
        )));
    }
    draft.config.broker = BrokerChoice::Redis(servers);
    if draft.broker != Some(BrokerKind::Redis) {
        provenance.settings.insert("broker", first);
    }
}

fn find_faults(tables: &[(RedisServer, Origin)], errors: &mut Vec<ConfigError>) {
    for (index, (server, origin)) in tables.iter().enumerate() {
        if let Some((_, earlier)) = tables[..index].iter().find(|(other, _)| other.name == server.name) {
            let message =
                format!("{:?} is already the Redis of {earlier}: give it a name of its own", server.name);
            errors.push(origin.error("name", message));
        }
    }
    if let Some((_, origin)) = tables.get(REDIS_TABLES_MAX) {
        let message = format!("found {} tables [[redis]], due at most {REDIS_TABLES_MAX}", tables.len());
        errors.push(origin.error("redis", message));
    }
}

/// Sources of servers that nobody named, and sources of different servers that could feed one room: what came from one would
/// be numbered among what came from the other, and a break of either would be no gap in it.
pub(super) fn check_sources(
    config: &Config,
    provenance: &Provenance,
    errors: &mut Vec<ConfigError>,
    warnings: &mut Vec<Warning>,
) {
    let tables = provenance.servers.iter().map(|(name, _)| name.as_str());
    let single = config.broker.servers().iter().map(|server| server.name.as_str());
    let known: Vec<&str> = if provenance.servers.is_empty() { single.collect() } else { tables.collect() };
    let sources = || config.sources.iter().zip(&provenance.sources);
    for (source, origin) in sources() {
        if let Some(name) = source.server.as_deref().filter(|name| !known.contains(name)) {
            let message = match known.as_slice() {
                [] => format!("found {name:?}, due the name of a table [[redis]], of which there is none"),
                known => format!(
                    "found {name:?}, due the name of a table [[redis]]; {}",
                    hint(name, known.iter().copied())
                ),
            };
            errors.push(origin.error("server", message));
        }
    }
    if config.broker.servers().len() < 2 {
        return;
    }
    for (index, (source, origin)) in sources().enumerate() {
        let of_other = |other: &Source| config.server_of(other) != config.server_of(source);
        let mut earlier = sources().take(index).filter(|(other, _)| of_other(other));
        let Some((other, place)) =
            earlier.find(|(other, _)| may_feed_one_room(other, source, &config.node_id))
        else {
            continue;
        };
        let name = |source: &Source| config.broker.servers()[config.server_of(source)].name.clone();
        let (here, there) = (name(source), name(other));
        errors.push(origin.error(
            "room",
            format!(
                "the rooms {:?} of {here} and {:?} of {there} ({place}) can have one name, and a room is of one Redis: give \
                 one of them a prefix, room = \"{here}.{{1}}\", or a space = \"{here}\"",
                source.room.to_string(),
                other.room.to_string()
            ),
        ));
    }
    for (index, server) in config.broker.servers().iter().enumerate() {
        if !config.sources.iter().any(|source| config.server_of(source) == index) {
            let name = &server.name;
            warnings.push(Warning(format!(
                "no source is of the Redis {name}: nothing travels through it; add server = {name:?} to one"
            )));
        }
    }
}

/// The names that a source's rooms may have: one, or all with this beginning and end.
struct Names {
    prefix: String,
    suffix: String,
    is_one: bool,
}

impl Names {
    fn of(source: &Source, node_id: &str) -> Self {
        let mut names = Self { prefix: String::new(), suffix: String::new(), is_one: true };
        for part in &source.room.parts {
            let literal = match part {
                TemplatePart::Literal(text) => text.as_str(),
                TemplatePart::NodeId => node_id,
                TemplatePart::Wildcard | TemplatePart::Json(_) | TemplatePart::Query(_) => {
                    names.suffix.clear();
                    names.is_one = false;
                    continue;
                }
            };
            if names.is_one { &mut names.prefix } else { &mut names.suffix }.push_str(literal);
        }
        names
    }

    /// Whether `name` is one of them: a place stands for one byte at least.
    fn hold(&self, name: &str) -> bool {
        let Self { prefix, suffix, is_one } = self;
        match is_one {
            true => name == prefix,
            false => {
                name.len() > prefix.len() + suffix.len() && name.starts_with(prefix) && name.ends_with(suffix)
            }
        }
    }
}

/// Whether a room of one source may be one of the other.
pub(super) fn may_feed_one_room(a: &Source, b: &Source, node_id: &str) -> bool {
    if a.space != b.space {
        return false;
    }
    let (a, b) = (Names::of(a, node_id), Names::of(b, node_id));
    match (a.is_one, b.is_one) {
        (true, _) => b.hold(&a.prefix),
        (_, true) => a.hold(&b.prefix),
        (false, false) => {
            let begin = a.prefix.starts_with(&b.prefix) || b.prefix.starts_with(&a.prefix);
            begin && (a.suffix.ends_with(&b.suffix) || b.suffix.ends_with(&a.suffix))
        }
    }
}

impl RedisTls {
    /// Reads a [`RedisTls::server_name`].
    pub(super) fn read_server_name(input: &Input) -> Result<String, Wrong> {
        let due = "a DNS name or an address, for example \"redis.example\"";
        let text = input.line(due)?;
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
        if text.is_empty() || !text.bytes().all(known) { Err(input.wrong(due)) } else { Ok(text.to_owned()) }
    }

    fn is_said(&self) -> Option<&'static str> {
        let Self { ca_file, cert_file, key_file, server_name } = self;
        let said = [
            ("ca_file", ca_file.is_some()),
            ("cert_file", cert_file.is_some()),
            ("key_file", key_file.is_some()),
            ("server_name", server_name.is_some()),
        ];
        said.into_iter().find(|(_, is_said)| *is_said).map(|(key, _)| key)
    }

    /// Gives a target with TLS its files. Files for one without it are an error: whoever named them believes that what
    /// travels to Redis is sealed.
    ///
    /// # Errors
    /// The key that is wrong, and the sentence; `flag_prefix` stands before keys that are named in it.
    pub(super) fn put_into(
        &self,
        target: &mut RedisTarget,
        flag_prefix: &str,
    ) -> Result<(), (&'static str, String)> {
        let named = |key: &str| match flag_prefix {
            "" => key.to_owned(),
            prefix => format!("{prefix}{}", key.replace('_', "-")),
        };
        let Some(wanted) = &mut target.tls else {
            let Some(key) = self.is_said() else { return Ok(()) };
            let due = match target.address {
                RedisAddress::Sentinel(_) => "rediss+sentinel://",
                RedisAddress::Cluster(_) => "rediss+cluster://",
                RedisAddress::Tcp { .. } | RedisAddress::Unix(_) => "rediss://",
            };
            let sentence = format!(
                "found it beside {target}, which has no TLS, due {due}: correct the URL, or leave it out"
            );
            return Err((key, sentence));
        };
        match (&self.cert_file, &self.key_file) {
            (Some(_), None) => {
                return Err((
                    "cert_file",
                    format!("found no key to it: name that with {}", named("key_file")),
                ));
            }
            (None, Some(_)) => {
                let sentence = format!("found no certificate to it: name that with {}", named("cert_file"));
                return Err(("key_file", sentence));
            }
            _ => {}
        }
        wanted.clone_from(self);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{File, Inputs, load};
    use crate::config::{Loaded, show};

    const TWO: &str = r#"
[[redis]]
name = "orders"
url = "rediss://app@orders.example/2"
password_variable = "ORDERS_PASSWORD"
ca_file = "/ca.pem"
server_name = "redis.example"

[[redis]]
name = "chat"
url = "redis+sentinel://:pw@s1,s2/chat"

[[source]]
redis = "subscribe room:{1}"
room = "orders.{1}"

[[source]]
redis = "psubscribe room:*"
room = "chat.{1}"
server = "chat"
"#;

    fn loaded(text: &str, variables: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Loaded, String> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let inputs = Inputs {
            file: Some(File { name: "c.toml", text }),
            environment: variables.iter().map(owned).collect(),
            flags: flags.iter().map(owned).collect(),
            node_id: "n1".to_owned(),
            ..Inputs::default()
        };
        load(&inputs).map_err(|errors| errors.to_string())
    }

    const PASSWORD: (&str, &str) = ("ORDERS_PASSWORD", "hunter2");

    fn refused(text: &str) -> String {
        loaded(text, &[PASSWORD], &[]).expect_err(text)
    }

    #[test]
    fn sources_are_of_the_server_that_they_name_and_else_of_the_first() {
        let Loaded { config, warnings, .. } = loaded(TWO, &[PASSWORD], &[]).unwrap();
        let servers = config.broker.servers();
        let [orders, chat] = servers else { panic!("two servers: {servers:?}") };
        assert_eq!((orders.name.as_str(), chat.name.as_str()), ("orders", "chat"));
        let target = &orders.target;
        assert_eq!((target.password.as_deref(), target.database), (Some("hunter2"), 2));
        assert_eq!((target.tls_name(), chat.target.password.as_deref()), (Some("redis.example"), Some("pw")));
        let of: Vec<usize> = config.sources.iter().map(|source| config.server_of(source)).collect();
        assert_eq!((of, warnings.len()), (vec![0, 1], 0));
        let alone = config.of_server(1);
        assert_eq!((alone.broker.servers(), alone.sources.len()), (&servers[1..], 1));
    }

    #[test]
    fn what_is_shown_is_read_as_the_same_and_shows_no_password() {
        let before = loaded(TWO, &[PASSWORD], &[]).unwrap();
        let shown = show(&before);
        assert!(!shown.contains("hunter2") && shown.contains("[[redis]]"), "{shown}");
        // The password that stood in a URL is the one thing that is not shown.
        let again =
            loaded(&shown.replace("***", "pw"), &[PASSWORD], &[]).unwrap_or_else(|e| panic!("{e}\n{shown}"));
        assert_eq!(again.config, before.config, "{shown}");
    }

    #[test]
    fn one_table_is_one_server_and_may_have_any_name() {
        let text = "[[redis]]\nname = \"orders\"\nurl = \"h\"\n";
        let Loaded { config, .. } = loaded(text, &[], &[]).unwrap();
        assert_eq!(config.broker.servers()[0].name, "orders");
        assert!(config.sources.iter().all(|source| config.server_of(source) == 0));
    }

    #[test]
    fn a_room_that_two_servers_could_feed_is_refused() {
        let tables = "[[redis]]\nname = \"a\"\nurl = \"h:1\"\n[[redis]]\nname = \"b\"\nurl = \"h:2\"\n";
        let judged = |one: &str, other: &str| {
            let source = |room: &str, server: &str| {
                let (redis, more) = match room {
                    room if room.contains("{1}") => ("psubscribe x:*", ""),
                    room if room.contains("{json") => ("subscribe x", "deliver = \"event\"\n"),
                    _ => ("subscribe x", ""),
                };
                format!("[[source]]\nredis = \"{redis}\"\nroom = \"{room}\"\nserver = \"{server}\"\n{more}")
            };
            let text = [tables, &source(one, "a"), &source(other, "b")].concat();
            loaded(&text, &[], &[]).err()
        };
        for (one, other) in [
            ("{1}", "{1}"),
            ("{1}", "b.{1}"),
            ("a{1}", "{1}b"),
            ("all", "all"),
            ("all", "{1}"),
            ("a{json.room}", "a.b"),
            ("{1}", "{node_id}"),
        ] {
            for said in [judged(one, other), judged(other, one)] {
                let said = said.unwrap_or_else(|| panic!("{one} and {other} meet"));
                assert!(said.contains("a room is of one Redis: give one of them a prefix"), "{said}");
            }
        }
        for (one, other) in
            [("a.{1}", "b.{1}"), ("{1}.a", "{1}.b"), ("all", "every"), ("all", "all{1}"), ("a{1}b", "ab")]
        {
            assert_eq!(judged(one, other), None, "{one} and {other} never meet");
        }
    }

    #[test]
    fn each_fault_has_its_sentence() {
        let change = |from: &str, to: &str| {
            assert!(TWO.contains(from));
            refused(&TWO.replacen(from, to, 1))
        };
        let twice = change("name = \"chat\"", "name = \"orders\"");
        assert!(twice.contains("c.toml:9:1: name: \"orders\" is already the Redis of c.toml:2"), "{twice}");
        let unknown = change("server = \"chat\"", "server = \"chats\"");
        assert!(
            unknown.contains("found \"chats\", due the name of a table [[redis]]; did you mean \"chat\"?"),
            "{unknown}"
        );
        assert!(change("ca_file", "ca_fil").contains("unknown key"));
        assert!(
            change("rediss://app", "redis://app")
                .contains("c.toml:6:1: ca_file: found it beside redis://app@")
        );
        assert!(change("server_name", "cert_file").contains("found no key to it: name that with key_file"));
        assert!(change("rediss://app@", "rediss://app:pw@").contains("the url has a password too"));
        assert!(change("redis+sentinel://", "redis+sentinels://").contains("found the scheme"));
        assert!(
            change("name = \"chat\"", "name = \"the chat\"")
                .contains("found the string \"the chat\", due a name")
        );
        let unset = loaded(TWO, &[], &[]).expect_err("the password is due");
        assert!(unset.contains("c.toml:2:1: password_variable: the variable ORDERS_PASSWORD"), "{unset}");
        let source = "[[source]]\nredis = \"subscribe a\"\nroom = \"a\"\nserver = \"x\"\n";
        assert!(refused(source).contains("due the name of a table [[redis]], of which there is none"));
        let many: String =
            (0..=REDIS_TABLES_MAX).map(|n| format!("[[redis]]\nname = \"n{n}\"\nurl = \"h\"\n")).collect();
        assert!(refused(&many).contains("found 17 tables [[redis]], due at most 16"));
    }

    #[test]
    fn what_names_a_single_server_beside_the_tables_is_refused_and_a_presets_gives_way() {
        let by_flag = loaded(TWO, &[PASSWORD], &[("redis", "h")]).expect_err("two say who the servers are");
        assert!(by_flag.contains("--redis: found it beside the tables [[redis]] (c.toml:2)"), "{by_flag}");
        let by_variable = loaded(TWO, &[PASSWORD, ("REDIS_HOST", "h")], &[]).expect_err("a variable too");
        assert!(by_variable.contains("REDIS_HOST: found it beside"), "{by_variable}");
        let file = loaded(TWO, &[PASSWORD, ("CORECAST_REDIS_CA_FILE", "/x")], &[]).expect_err("of which?");
        assert!(file.contains("CORECAST_REDIS_CA_FILE: found it beside"), "{file}");
        let tables = TWO.split("[[source]]").next().unwrap_or_default();
        let preset = format!("preset = \"event-fanout\"\n{tables}");
        let Loaded { config, warnings, .. } = loaded(&preset, &[PASSWORD], &[]).unwrap();
        assert_eq!(config.broker.servers().len(), 2);
        assert!(
            warnings.iter().any(|warning| warning.0.contains("no source is of the Redis chat")),
            "{warnings:?}"
        );
    }

    #[test]
    fn the_local_broker_may_be_tried_with_the_same_file() {
        let Loaded { config, warnings, .. } = loaded(TWO, &[], &[("broker", "local")]).unwrap();
        assert_eq!((config.broker, warnings.len()), (BrokerChoice::Local, 0));
    }

    #[test]
    fn the_password_of_a_single_redis_is_not_used_in_silence() {
        let said = |text: &str| loaded(text, &[PASSWORD, ("REDIS_PASSWORD", "x")], &[]).unwrap().warnings;
        assert!(
            said(TWO).iter().any(|warning| warning.0.contains("REDIS_PASSWORD is the password of a single"))
        );
        assert_eq!(said(&TWO.replace("ORDERS_PASSWORD", "REDIS_PASSWORD")), []);
    }
}
