//! The file's text: TOML into a layer of settings and tables, each with its place.
//!
//! Presets are written in the same form, so this is also what reads them. A fault never stops the reading: all of them
//! are collected.

use std::collections::BTreeMap;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::input::{Input, Wrong};
use super::layers::{ConfigError, Layer, Origin};
use super::nearest::{hint, nearest};
use super::settings::{SETTINGS, Setting, Table};
use super::template::Places;
use super::{
    Deliver, Dialect, History, LastValue, Own, Publish, Role, RoomClass, Route, Slow, SlowPolicy, Source,
    Subscribe, Template, TemplatePart,
};
use crate::limits::{
    CHANNEL_BYTES_MAX, MISSING_BYTES_MAX, NODE_LOG_BYTES_MAX, ROOM_NAME_BYTES_MAX, SHARD_WINDOW_BYTES_MAX,
    SPACE_BYTES_MAX, STREAM_MAXLEN_MAX,
};
use crate::route::is_name;

mod server;

use server::server_name;

const ROUTE_KEYS: &[&str] = &[
    "path",
    "when_query",
    "room",
    "space",
    "user",
    "forbid",
    "publish",
    "dialect",
    "role",
    "key",
    "hear_self",
    "separator",
    "missing",
    "ping",
    "preset",
];
const ROOM_KEYS: &[&str] = &["name", "space", "history", "slow"];
const SOURCE_KEYS: &[&str] =
    &["redis", "server", "variable", "room", "space", "deliver", "own", "last_value", "maxlen", "maxage"];
const LAST_VALUE_KEYS: &[&str] = &["prefix", "ttl", "timeout"];
const PUBLISHES: &[(&str, Publish)] = &[
    ("none", Publish::None),
    ("ignore", Publish::Ignore),
    ("member", Publish::Member),
    ("any", Publish::Any),
];
const HISTORY_KEYS: &[&str] = &["frames", "bytes", "age"];
const SLOW_KEYS: &[&str] = &["policy", "key", "disconnect_after", "frames", "bytes", "age"];

/// Reads `text`, telling apart its places by `origin(line, column)`; both count from 1.
pub(super) fn parse_layer(
    text: &str,
    origin: &dyn Fn(usize, usize) -> Origin,
    errors: &mut Vec<ConfigError>,
) -> Layer {
    let document = match DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let offset = error.span().map_or(0, |span| span.start);
            errors.push(at(text, origin, offset).error("not TOML", error.message()));
            return Layer::default();
        }
    };
    let mut reader = Reader { text, origin, errors, layer: Layer::default() };
    reader.top(document.get_ref());
    reader.layer
}

fn at(text: &str, origin: &dyn Fn(usize, usize) -> Origin, offset: usize) -> Origin {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    origin(line, before[line_start..].chars().count() + 1)
}

struct Reader<'a> {
    text: &'a str,
    origin: &'a dyn Fn(usize, usize) -> Origin,
    errors: &'a mut Vec<ConfigError>,
    layer: Layer,
}

impl Reader<'_> {
    fn top(&mut self, document: &DeTable<'_>) {
        for (key, value) in document {
            let name: &str = key.get_ref();
            match (name, value.get_ref()) {
                ("preset", _) => self.preset(value),
                ("bounds", DeValue::Table(table)) => self.settings(table, Table::Bounds),
                ("route" | "room" | "source" | "redis", DeValue::Array(tables))
                    if tables.iter().all(|table| table.get_ref().is_table()) =>
                {
                    for table in tables {
                        self.table(name, table);
                    }
                }
                ("bounds", _) => self.fail(value, "bounds", &input(value).wrong("the table [bounds]")),
                ("route" | "room" | "source", _) => {
                    self.fail(
                        value,
                        name,
                        &input(value).wrong(format!("tables, each under its own [[{name}]]")),
                    );
                }
                ("redis", DeValue::Table(_) | DeValue::Array(_)) => {
                    let due = "one URL, redis = \"redis://localhost:6379\", or several servers, each under its own [[redis]]";
                    self.fail(value, name, &input(value).wrong(due));
                }
                _ => self.setting(Table::Top, key, value),
            }
        }
    }

    fn preset(&mut self, value: &Spanned<DeValue<'_>>) {
        let origin = self.place(value.span().start);
        match input(value).list("a preset's name or an array of them") {
            Ok(names) => {
                self.layer.presets =
                    Some((names.into_iter().map(|name| name.into_owned()).collect(), origin));
            }
            Err(wrong) => self.fail(value, "preset", &wrong),
        }
    }

    fn settings(&mut self, table: &DeTable<'_>, kind: Table) {
        for (key, value) in table {
            self.setting(kind, key, value);
        }
    }

    fn setting(&mut self, table: Table, key: &Spanned<toml::de::DeString<'_>>, value: &Spanned<DeValue<'_>>) {
        let name: &str = key.get_ref();
        if let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name && setting.table == table)
        {
            let origin = self.place(value.span().start);
            self.layer.settings.push((setting, input(value), origin));
            return;
        }
        let place = self.place(key.span().start);
        let message = match Setting::named(name) {
            Some(_) if table == Table::Top => "this key belongs in the table [bounds]".to_owned(),
            Some(_) => "this key belongs at the top of the file, before the first table".to_owned(),
            None => {
                let here =
                    || SETTINGS.iter().filter(|setting| setting.table == table).map(|setting| setting.name);
                let tables: &[&str] =
                    if table == Table::Top { &["preset", "bounds", "route", "room", "source"] } else { &[] };
                let known: Vec<&str> = here().chain(tables.iter().copied()).collect();
                hint(name, known)
            }
        };
        self.errors.push(place.error(name, format!("unknown key; {message}")));
    }

    fn table(&mut self, kind: &str, value: &Spanned<DeValue<'_>>) {
        let DeValue::Table(table) = value.get_ref() else { return };
        let origin = self.place(value.span().start);
        match kind {
            "route" => {
                let route = self.route(&mut Fields::new(table, value, "route"));
                self.layer.routes.extend(route.map(|route| (route, origin)));
            }
            "room" => {
                let class = self.room(&mut Fields::new(table, value, "room"));
                self.layer.rooms.extend(class.map(|class| (class, origin)));
            }
            "redis" => {
                let server = self.server(&mut Fields::new(table, value, "redis"));
                self.layer.servers.extend(server.map(|server| (server, origin)));
            }
            _ => {
                let source = self.source(&mut Fields::new(table, value, "source"));
                self.layer.sources.extend(source.map(|source| (source, origin)));
            }
        }
    }

    fn route(&mut self, fields: &mut Fields<'_>) -> Option<Route> {
        self.known(fields, ROUTE_KEYS);
        let path = self.required(fields, "path", path);
        let when_query = self.optional(fields, "when_query", |input| {
            input.line("the name of a query parameter").map(str::to_owned)
        });
        let dialect = self.optional(fields, "dialect", dialect).unwrap_or(Dialect::Raw);
        let is_json = dialect == Dialect::Json;
        let room = |input: &Input| room_template(input, Places::Request);
        // Connections of the JSON dialect may join by message instead.
        let room = match is_json && !fields.values.contains_key("room") {
            true => Some(Template::default()),
            false => self.required(fields, "room", room),
        };
        let separator = self.optional(fields, "separator", |input| {
            let due = "one character that separates the rooms of a list, for example \",\"";
            let mut characters = input.line(due)?.chars();
            match (characters.next(), characters.next()) {
                (Some(separator), None) => Ok(separator),
                _ => Err(input.wrong(due)),
            }
        });
        let space = self.optional(fields, "space", space);
        let user = self.optional(fields, "user", |input| template(input, Places::Request));
        let forbid = self.optional(fields, "forbid", |input| {
            let due = "characters that a name may not hold, for example \":\"";
            input.line(due).map(str::to_owned)
        });
        let publish = self.optional(fields, "publish", |input| input.one_of(PUBLISHES));
        let role = self.optional(fields, "role", |input| {
            if !is_json {
                let sentence = "only the JSON dialect knows roles: add dialect = \"json\", or leave role out";
                return Err(Wrong::Sentence(sentence.to_owned()));
            }
            input.one_of(&[("consumer", Role::Consumer), ("ingestor", Role::Ingestor)])
        });
        if role == Some(Role::Ingestor) && publish == Some(Publish::Member) {
            let place = self.place(fields.offset);
            let sentence = "ingestors are members of no room: say publish = \"any\"";
            self.errors.push(place.error("publish", sentence));
        }
        let key = self.optional(fields, "key", Input::boolean);
        let hear_self = self.optional(fields, "hear_self", Input::boolean);
        let missing = self.optional(fields, "missing", |input| {
            let due = format!("one line of at most {MISSING_BYTES_MAX} bytes");
            let line = input.line(&due)?;
            if line.len() > MISSING_BYTES_MAX { Err(input.wrong(due)) } else { Ok(line.to_owned()) }
        });
        let ping = self
            .optional(fields, "ping", |input| input.duration(Duration::ZERO..=super::units::DURATION_MAX));
        let preset =
            self.optional(fields, "preset", |input| input.line("a preset's name").map(str::to_owned));
        Some(Route {
            path: path?,
            when_query,
            room: room?,
            separator,
            space: space.unwrap_or_default(),
            user,
            forbid,
            // Who forgets to say who may publish has not said that anybody may.
            publish: publish.unwrap_or(Publish::None),
            role: role.unwrap_or(Role::Consumer),
            key: key.unwrap_or(false),
            dialect,
            hear_self: hear_self.unwrap_or(true),
            missing,
            ping,
            preset,
        })
    }

    fn room(&mut self, fields: &mut Fields<'_>) -> Option<RoomClass> {
        self.known(fields, ROOM_KEYS);
        let name = self.required(fields, "name", class_name);
        let space = self.optional(fields, "space", space);
        let history = self.inner(fields, "history", HISTORY_KEYS);
        let slow = self.inner(fields, "slow", SLOW_KEYS);
        let history = history.map_or_else(History::default, |mut fields| self.history(&mut fields));
        let (slow, conflate_key) = slow.map_or_else(Default::default, |mut fields| self.slow(&mut fields));
        Some(RoomClass { name: name?, space, history, slow, conflate_key })
    }

    fn history(&mut self, fields: &mut Fields<'_>) -> History {
        let default = History::default();
        let frames = self.optional(fields, "frames", |input| input.count(0..=usize::MAX));
        let bytes = self.optional(fields, "bytes", |input| input.size(0..=NODE_LOG_BYTES_MAX));
        let age = self.optional(fields, "age", positive);
        History {
            frames: frames.unwrap_or(default.frames),
            bytes: bytes.unwrap_or(default.bytes),
            age: age.unwrap_or(default.age),
        }
    }

    fn slow(&mut self, fields: &mut Fields<'_>) -> (Slow, Option<String>) {
        let default = Slow::default();
        let drop_oldest = SlowPolicy::DropOldest { disconnect_after: 0 };
        let policy = self.optional(fields, "policy", |input| {
            input.one_of(&[
                ("disconnect", SlowPolicy::Disconnect),
                ("drop-oldest", drop_oldest),
                ("conflate", SlowPolicy::Conflate),
            ])
        });
        let policy = policy.unwrap_or(SlowPolicy::Disconnect);
        let key = self.optional(fields, "key", |input| {
            if policy != SlowPolicy::Conflate {
                let sentence = "key says what supersedes what: it needs policy = \"conflate\"";
                return Err(Wrong::Sentence(sentence.to_owned()));
            }
            let due = "the name of a member of the payloads";
            let name = input.text(due)?;
            if name.is_empty() { Err(input.wrong(due)) } else { Ok(name.to_owned()) }
        });
        let disconnect_after = self.optional(fields, "disconnect_after", |input| {
            if policy != drop_oldest {
                let sentence = "disconnect_after counts drops in a row: it needs policy = \"drop-oldest\"";
                return Err(Wrong::Sentence(sentence.to_owned()));
            }
            let count = input.count(0..=u32::MAX as usize)?;
            u32::try_from(count).map_err(|_| input.wrong("less"))
        });
        let frames = self.optional(fields, "frames", |input| input.count(1..=usize::MAX));
        let bytes = self.optional(fields, "bytes", |input| input.size(1..=SHARD_WINDOW_BYTES_MAX));
        let age = self.optional(fields, "age", positive);
        let policy = match policy {
            SlowPolicy::DropOldest { .. } => {
                SlowPolicy::DropOldest { disconnect_after: disconnect_after.unwrap_or(0) }
            }
            policy => policy,
        };
        let slow = Slow {
            policy,
            frames: frames.unwrap_or(default.frames),
            bytes: bytes.unwrap_or(default.bytes),
            age: age.unwrap_or(default.age),
        };
        (slow, key)
    }

    fn source(&mut self, fields: &mut Fields<'_>) -> Option<Source> {
        self.known(fields, SOURCE_KEYS);
        let subscribe =
            self.required(fields, "redis", |input| Subscribe::parse(input.text("a subscription")?));
        let is_stream = matches!(subscribe, Some(Subscribe::Stream { .. }) | None);
        let room = self.required(fields, "room", |input| {
            let room = room_template(input, Places::Channel)?;
            match &subscribe {
                Some(subscribe) => fits(&room, subscribe).map(|()| room),
                None => Ok(room),
            }
        });
        let asks_payload = room.as_ref().is_some_and(Template::asks_payload);
        let space = self.optional(fields, "space", space);
        let server = self.optional(fields, "server", server_name);
        let variable = self.optional(fields, "variable", |input| {
            let due = "the name of a variable that may name the channel instead";
            match &subscribe {
                Some(Subscribe::Channel(_)) | None => input.line(due).map(str::to_owned),
                _ => Err(Wrong::Sentence(
                    "a variable can only name the channel of \"subscribe CHANNEL\"".to_owned(),
                )),
            }
        });
        let deliver = self.optional(fields, "deliver", |input| Deliver::parse(input.text("\"raw\"")?));
        let deliver = deliver.unwrap_or(Deliver::Raw);
        if asks_payload && deliver != Deliver::Event {
            let sentence = "a room with {json.NAME} comes out of an envelope: add deliver = \"event\"";
            let place = self.place(fields.offset);
            self.errors.push(place.error("room", sentence));
        }
        let own = self.optional(fields, "own", |input| {
            let own = input.one_of(&[("echo", Own::Echo), ("origin", Own::Origin)])?;
            if own == Own::Origin && deliver != Deliver::Event {
                let sentence = "own = \"origin\" needs a payload that names its origin: add deliver = \"event\", or leave \
                                own out";
                return Err(Wrong::Sentence(sentence.to_owned()));
            }
            if own == Own::Origin && is_stream {
                let sentence = "the rooms of a stream have nothing before it is in the stream: leave own out";
                return Err(Wrong::Sentence(sentence.to_owned()));
            }
            Ok(own)
        });
        let only_streams = "only streams are trimmed: leave it out, or write redis = \"stream PREFIX*\"";
        let maxlen = self.optional(fields, "maxlen", |input| match is_stream {
            true => Ok(input.count(1..=STREAM_MAXLEN_MAX)? as u64),
            false => Err(Wrong::Sentence(only_streams.to_owned())),
        });
        let maxage = self.optional(fields, "maxage", |input| match is_stream {
            true => positive(input),
            false => Err(Wrong::Sentence(only_streams.to_owned())),
        });
        let last_value = self.inner(fields, "last_value", LAST_VALUE_KEYS);
        let last_value = last_value.and_then(|mut fields| self.last_value(&mut fields));
        Some(Source {
            subscribe: subscribe?,
            variable,
            room: room?,
            space: space.unwrap_or_default(),
            server,
            deliver,
            own: own.unwrap_or(Own::Echo),
            last_value,
            maxlen,
            maxage,
        })
    }

    fn last_value(&mut self, fields: &mut Fields<'_>) -> Option<LastValue> {
        let prefix = self.required(fields, "prefix", |input| {
            let due = "what stands before the room's name in the key, for example \"last_price:\"";
            let text = input.line(due)?;
            if text.len() > CHANNEL_BYTES_MAX { Err(input.wrong(due)) } else { Ok(text.to_owned()) }
        });
        let ttl = self.optional(fields, "ttl", positive);
        let timeout = self.optional(fields, "timeout", positive);
        Some(LastValue {
            prefix: prefix?,
            ttl: ttl.unwrap_or(Duration::from_secs(30)),
            timeout: timeout.unwrap_or(Duration::from_millis(50)),
        })
    }

    /// Complains about keys that `fields` should not have.
    fn known(&mut self, fields: &Fields<'_>, known: &[&'static str]) {
        for (name, (offset, _)) in &fields.values {
            if !known.contains(name) {
                let place = self.place(*offset);
                let near = nearest(name, known.iter().copied());
                let elsewhere = Setting::named(name).is_some() && near.is_none();
                let message = if elsewhere {
                    "this key belongs above the first table, or in [bounds]".to_owned()
                } else {
                    hint(name, known.iter().copied())
                };
                self.errors.push(place.error(name, format!("unknown key in {}; {message}", fields.title())));
            }
        }
    }

    fn required<T>(
        &mut self,
        fields: &mut Fields<'_>,
        key: &'static str,
        read: impl FnOnce(&Input) -> Result<T, Wrong>,
    ) -> Option<T> {
        if !fields.values.contains_key(key) {
            let place = self.place(fields.offset);
            self.errors.push(place.error(key, format!("missing in {}, which needs it", fields.title())));
            return None;
        }
        self.optional(fields, key, read)
    }

    fn optional<T>(
        &mut self,
        fields: &mut Fields<'_>,
        key: &'static str,
        read: impl FnOnce(&Input) -> Result<T, Wrong>,
    ) -> Option<T> {
        let (_, value) = fields.values.get(key)?;
        match read(&input(value)) {
            Ok(read) => Some(read),
            Err(wrong) => {
                self.fail(value, key, &wrong);
                None
            }
        }
    }

    /// The table under `key`, its keys checked.
    fn inner<'t>(
        &mut self,
        fields: &Fields<'t>,
        key: &'static str,
        known: &[&'static str],
    ) -> Option<Fields<'t>> {
        let (_, value) = fields.values.get(key)?;
        let DeValue::Table(table) = value.get_ref() else {
            let due = format!("a table, for example {key} = {{ {} = ... }}", known.first().unwrap_or(&"key"));
            self.fail(value, key, &input(value).wrong(due));
            return None;
        };
        let inner = Fields::new(table, value, key);
        self.known(&inner, known);
        Some(inner)
    }

    fn fail(&mut self, value: &Spanned<DeValue<'_>>, key: &str, wrong: &Wrong) {
        let place = self.place(value.span().start);
        self.errors.push(place.error(key, wrong.to_string()));
    }

    fn place(&self, offset: usize) -> Origin {
        at(self.text, self.origin, offset)
    }
}

/// The keys of one table, each with its offset.
struct Fields<'t> {
    name: &'static str,
    offset: usize,
    values: BTreeMap<&'t str, (usize, &'t Spanned<DeValue<'t>>)>,
}

impl<'t> Fields<'t> {
    fn new(table: &'t DeTable<'t>, value: &Spanned<DeValue<'_>>, name: &'static str) -> Self {
        let values =
            table.iter().map(|(key, value)| (key.get_ref().as_ref(), (key.span().start, value))).collect();
        Self { name, offset: value.span().start, values }
    }

    fn title(&self) -> String {
        match self.name {
            "history" | "slow" => format!("{:?} of a [[room]]", self.name),
            "last_value" => format!("{:?} of a [[source]]", self.name),
            name => format!("[[{name}]]"),
        }
    }
}

fn input(value: &Spanned<DeValue<'_>>) -> Input {
    match value.get_ref() {
        DeValue::String(text) => Input::Text(text.as_ref().to_owned()),
        DeValue::Boolean(value) => Input::Boolean(*value),
        DeValue::Integer(digits) => match i64::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(value) => Input::Integer(value),
            Err(_) => Input::Other(format!("the integer {digits}")),
        },
        DeValue::Array(values) => Input::List(values.iter().map(input).collect()),
        DeValue::Float(digits) => Input::Other(format!("the number {digits}")),
        DeValue::Datetime(time) => Input::Other(format!("the time {time}")),
        DeValue::Table(_) => Input::Other("a table".to_owned()),
    }
}

fn path(input: &Input) -> Result<String, Wrong> {
    let due = "an exact path of printable ASCII, for example \"/ws\"";
    let text = input.text(due)?;
    let known = |byte: u8| byte.is_ascii_graphic() && !b"?#{}*\"\\".contains(&byte);
    if text.starts_with('/') && text.len() <= 255 && text.bytes().all(known) {
        Ok(text.to_owned())
    } else {
        Err(input.wrong(due))
    }
}

fn template(input: &Input, places: Places) -> Result<Template, Wrong> {
    Template::parse(input.text("a text with places")?, places)
}

fn room_template(input: &Input, places: Places) -> Result<Template, Wrong> {
    let template = template(input, places)?;
    let literal: usize = template
        .parts
        .iter()
        .map(|part| if let TemplatePart::Literal(text) = part { text.len() } else { 0 })
        .sum();
    if literal > ROOM_NAME_BYTES_MAX {
        return Err(input.wrong(format!("a room name of at most {ROOM_NAME_BYTES_MAX} bytes")));
    }
    Ok(template)
}

/// Whether a source's room can be made from what its subscription gives, and, on demand, the other way round.
fn fits(room: &Template, subscribe: &Subscribe) -> Result<(), Wrong> {
    let sentence =
        |text: &str| Err(Wrong::Sentence(format!("found the room {:?}: {text}", room.to_string())));
    if room.asks_payload() {
        let places = room.parts.iter().filter(|part| !matches!(part, TemplatePart::Literal(_))).count();
        return match subscribe {
            _ if places > 1 => sentence("beside {json.NAME} there may be text, but no other place"),
            Subscribe::Stream { .. } => {
                sentence("a stream's room needs {1} in it, so that a room's name leads back to its stream")
            }
            Subscribe::OnDemand { .. } => sentence(
                "subscribing on demand needs {1} in it, so that a room's name leads back to its channel",
            ),
            _ => Ok(()),
        };
    }
    match (subscribe, room.wildcards()) {
        (Subscribe::Channel(_), 1..) => {
            sentence("{1} stands for nothing, because the subscription names one channel; name one room too")
        }
        (Subscribe::Stream { .. }, wildcards) if wildcards != 1 => sentence(
            "a stream's room needs exactly one {1} in it, so that a room's name leads back to its stream",
        ),
        (Subscribe::OnDemand { .. }, wildcards) if wildcards != 1 => sentence(
            "subscribing on demand needs exactly one {1} in it, so that a room's name leads back to its channel",
        ),
        _ => Ok(()),
    }
}

fn class_name(input: &Input) -> Result<String, Wrong> {
    let due = "a room's name, or a prefix followed by '*', of 1 to 255 bytes";
    let text = input.text(due)?;
    let prefix = text.strip_suffix('*').unwrap_or(text);
    if is_name(text) && !prefix.contains('*') { Ok(text.to_owned()) } else { Err(input.wrong(due)) }
}

fn space(input: &Input) -> Result<String, Wrong> {
    let due = format!("at most {SPACE_BYTES_MAX} letters, digits, '-', '_' or '.'");
    let text = input.text(&due)?;
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.len() <= SPACE_BYTES_MAX && text.bytes().all(known) {
        Ok(text.to_owned())
    } else {
        Err(input.wrong(due))
    }
}

fn dialect(input: &Input) -> Result<Dialect, Wrong> {
    match input.text("\"raw\" or \"json\"")? {
        "raw" => Ok(Dialect::Raw),
        "json" => Ok(Dialect::Json),
        "sse" => {
            let sentence = "\"sse\" is no dialect of a route: what is joined at /ws is at /sse too; use \"raw\" or \"json\"";
            Err(Wrong::Sentence(sentence.to_owned()))
        }
        "echo" => Err(Wrong::Sentence(
            "\"echo\" is no dialect of rooms: set echo_route = true for /echo".to_owned(),
        )),
        _ => Err(input.wrong("\"raw\" or \"json\"")),
    }
}

fn positive(input: &Input) -> Result<Duration, Wrong> {
    input.duration(Duration::from_millis(1)..=super::units::DURATION_MAX)
}
