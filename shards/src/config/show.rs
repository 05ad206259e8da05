//! A configuration as the TOML file that would make it, each value with the place it came from.

use std::fmt::Write;
use std::path::PathBuf;

use super::layers::{Loaded, Origin};
use super::settings::{SETTINGS, Table, list_toml, quoted};
use super::units::{duration_text, size_text};
use super::{Dialect, LastValue, Own, Publish, RedisServer, Role, RoomClass, Route, SlowPolicy, Source};

/// Writes `loaded` as a file: reading it back gives the same [`Config`](super::Config), but for the password to Redis, which is `***`.
pub fn show(loaded: &Loaded) -> String {
    let mut lines = Lines(String::new());
    let config = &loaded.config;
    if !config.presets.is_empty() {
        lines.key(
            "preset",
            &list_toml(config.presets.iter().cloned()),
            &loaded.provenance.presets.to_string(),
        );
    }
    for table in [Table::Top, Table::Bounds] {
        if table == Table::Bounds {
            lines.heading("[bounds]", "");
        }
        for setting in SETTINGS.iter().filter(|setting| setting.table == table) {
            let origin = loaded.provenance.settings.get(setting.name).unwrap_or(&Origin::Default);
            let mut origin = origin.to_string();
            if setting.name == "redis" && loaded.provenance.password_from_variable {
                origin.push_str(", password from variable REDIS_PASSWORD");
            }
            if setting.name == "node_id" && origin == "default" {
                origin = "random".to_owned();
            }
            match (setting.toml)(config) {
                Some(toml) => lines.key(setting.name, &toml, &origin),
                None => lines.comment(&format!("{} is not set", setting.name)),
            }
        }
    }
    let provenance = &loaded.provenance;
    if config.broker.single().is_none() {
        let servers = config.broker.servers().iter().zip(&provenance.servers);
        servers.for_each(|(server, (_, origin))| lines.server(server, origin));
    }
    config.routes.iter().zip(&provenance.routes).for_each(|(route, origin)| lines.route(route, origin));
    config.rooms.iter().zip(&provenance.rooms).for_each(|(class, origin)| lines.class(class, origin));
    config.sources.iter().zip(&provenance.sources).for_each(|(source, origin)| lines.source(source, origin));
    lines.0
}

struct Lines(String);

impl Lines {
    fn route(&mut self, route: &Route, origin: &Origin) {
        self.heading("[[route]]", &origin.to_string());
        self.text("path", &route.path);
        self.maybe("when_query", route.when_query.as_deref());
        self.maybe("room", Some(route.room.to_string()).filter(|room| !room.is_empty()).as_deref());
        self.maybe("separator", route.separator.map(String::from).as_deref());
        self.maybe("space", Some(route.space.as_str()).filter(|space| !space.is_empty()));
        self.maybe("user", route.user.as_ref().map(ToString::to_string).as_deref());
        self.maybe("forbid", route.forbid.as_deref());
        self.text("publish", publish_text(route.publish));
        self.text("dialect", dialect_text(route.dialect));
        if route.dialect == Dialect::Json {
            self.text("role", role_text(route.role));
        }
        self.key("key", &route.key.to_string(), "");
        self.key("hear_self", &route.hear_self.to_string(), "");
        self.maybe("missing", route.missing.as_deref());
        self.maybe("ping", route.ping.map(duration_text).as_deref());
        self.maybe("preset", route.preset.as_deref());
    }

    fn class(&mut self, class: &RoomClass, origin: &Origin) {
        self.heading("[[room]]", &origin.to_string());
        self.text("name", &class.name);
        self.maybe("space", class.space.as_deref());
        let history = &class.history;
        let (bytes, age) = (quoted(&size_text(history.bytes)), quoted(&duration_text(history.age)));
        self.key("history", &format!("{{ frames = {}, bytes = {bytes}, age = {age} }}", history.frames), "");
        let slow = &class.slow;
        let policy = match slow.policy {
            SlowPolicy::Disconnect => "policy = \"disconnect\"".to_owned(),
            SlowPolicy::Conflate => match &class.conflate_key {
                Some(key) => format!("policy = \"conflate\", key = {}", quoted(key)),
                None => "policy = \"conflate\"".to_owned(),
            },
            SlowPolicy::DropOldest { disconnect_after } => {
                format!("policy = \"drop-oldest\", disconnect_after = {disconnect_after}")
            }
        };
        let (bytes, age) = (quoted(&size_text(slow.bytes)), quoted(&duration_text(slow.age)));
        self.key(
            "slow",
            &format!("{{ {policy}, frames = {}, bytes = {bytes}, age = {age} }}", slow.frames),
            "",
        );
    }

    fn source(&mut self, source: &Source, origin: &Origin) {
        self.heading("[[source]]", &origin.to_string());
        self.text("redis", &source.subscribe.to_string());
        self.maybe("server", source.server.as_deref());
        self.maybe("variable", source.variable.as_deref());
        self.text("room", &source.room.to_string());
        self.maybe("space", Some(source.space.as_str()).filter(|space| !space.is_empty()));
        self.text("deliver", &source.deliver.to_string());
        self.text("own", own_text(source.own));
        if let Some(LastValue { prefix, ttl, timeout }) = &source.last_value {
            let (prefix, ttl) = (quoted(prefix), quoted(&duration_text(*ttl)));
            let timeout = quoted(&duration_text(*timeout));
            let table = format!("{{ prefix = {prefix}, ttl = {ttl}, timeout = {timeout} }}");
            self.key("last_value", &table, "");
        }
        if let Some(maxlen) = source.maxlen {
            self.key("maxlen", &maxlen.to_string(), "");
        }
        self.maybe("maxage", source.maxage.map(duration_text).as_deref());
    }

    fn server(&mut self, server: &RedisServer, origin: &Origin) {
        self.heading("[[redis]]", &origin.to_string());
        self.text("name", &server.name);
        let mut target = server.target.clone();
        if server.password_variable.is_some() {
            target.password = None;
        }
        self.text("url", &target.to_string());
        self.maybe("password_variable", server.password_variable.as_deref());
        let Some(tls) = &target.tls else { return };
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
        self.maybe("ca_file", path(&tls.ca_file).as_deref());
        self.maybe("cert_file", path(&tls.cert_file).as_deref());
        self.maybe("key_file", path(&tls.key_file).as_deref());
        self.maybe("server_name", tls.server_name.as_deref());
    }

    fn heading(&mut self, heading: &str, origin: &str) {
        self.0.push('\n');
        self.line(heading, origin);
    }

    fn text(&mut self, key: &str, text: &str) {
        self.key(key, &quoted(text), "");
    }

    fn maybe(&mut self, key: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    fn key(&mut self, key: &str, toml: &str, origin: &str) {
        self.line(&format!("{key} = {toml}"), origin);
    }

    fn comment(&mut self, text: &str) {
        self.line(&format!("# {text}"), "");
    }

    fn line(&mut self, line: &str, origin: &str) {
        // Writing to a String never fails. A file's name in a comment must not end it.
        let _ = match origin {
            "" => writeln!(self.0, "{line}"),
            origin => writeln!(self.0, "{line:<44}  # {}", origin.replace(char::is_control, "?")),
        };
    }
}

fn publish_text(publish: Publish) -> &'static str {
    match publish {
        Publish::None => "none",
        Publish::Ignore => "ignore",
        Publish::Member => "member",
        Publish::Any => "any",
    }
}

fn dialect_text(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Raw => "raw",
        Dialect::Json => "json",
        Dialect::Meta => "meta",
        Dialect::Sse => "sse",
        Dialect::Echo => "echo",
    }
}

fn role_text(role: Role) -> &'static str {
    match role {
        Role::Consumer => "consumer",
        Role::Ingestor => "ingestor",
    }
}

fn own_text(own: Own) -> &'static str {
    match own {
        Own::Echo => "echo",
        Own::Origin => "origin",
    }
}
