//! Which room a request joins, which rooms a channel feeds, which class a room has.
//!
//! Everything here is settled from the [`Config`] once; the questions asked per publication borrow their answers where the
//! room of a channel is a part of its name.
//!
//! **Name spaces.** A room's full name is its plain name, or `SPACE`, U+001F and its plain name. No text from outside, be it
//! a query parameter or a channel, may hold a control character, so no name can reach from one space into another: the
//! rooms of a user and the rooms anybody may name never meet, nor do those of two presets. The plain space is that of the
//! file's tables and of the first preset named. Inside the engine a room is its full name; [`plain_name`] is what clients
//! and channels see of it.

use std::borrow::Cow;

use crate::config::{
    Config, Deliver, Dialect, LastValue, Own, Publish, Role, RoomClass, Route, Source, Subscribe, Template,
    TemplatePart,
};
use crate::limits::{ROOM_NAME_BYTES_MAX, TABLES_MAX, USER_NAME_BYTES_MAX};
use crate::redis::Trim;

mod target;

/// Stands between a space and a plain name: ASCII's unit separator.
const SPACE_END: char = '\u{1f}';
/// Path of the debug route.
const ECHO_PATH: &str = "/echo";

/// Answers for one configuration.
#[derive(Debug, Clone)]
pub struct Routes {
    routes: Vec<Route>,
    /// For each listener the preset whose plain path it serves.
    owners: Vec<Option<String>>,
    /// Whose plain path it is where the listener is nobody's own.
    first_preset: Option<String>,
    node_id: String,
    rooms_max: usize,
    classes: Vec<RoomClass>,
    sources: Vec<CompiledSource>,
    servers_len: usize,
    /// Those of them whose rooms the payload names.
    payload_sources: Vec<usize>,
}

/// What a request joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Index into [`Config::routes`]; its length for `/echo`.
    pub route_index: usize,
    /// Full names of the rooms, each once; none under [`Dialect::Echo`], and where the route leaves joining to messages.
    pub rooms: Vec<String>,
    /// Name of the user, empty where the route or the request names none.
    pub user: String,
    /// See [`Route::publish`].
    pub publish: Publish,
    /// See [`Route::dialect`].
    pub dialect: Dialect,
    /// See [`Route::role`].
    pub role: Role,
    /// See [`Route::key`].
    pub key: bool,
    /// See [`Route::space`].
    pub space: String,
    /// See [`Route::hear_self`].
    pub hear_self: bool,
    /// See [`Route::ping`]: `None` is [`Bounds::ping_interval`](crate::limits::Bounds::ping_interval).
    pub ping: Option<std::time::Duration>,
}

/// Why a request joins nothing; the text is the body of the answer. `E` is the fault of the query itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError<E> {
    /// 404.
    #[error("no such path")]
    NotFound,
    /// 400: the route's own sentence.
    #[error("{0}")]
    Missing(String),
    /// 400: the request fits two conditions.
    #[error("found both {first} and {second} in the query, due one of them")]
    Ambiguous {
        /// A parameter.
        first: String,
        /// Another.
        second: String,
    },
    /// 400: the room's name breaks [`is_name`]; the sentence of [`name_fault`].
    #[error("{0}")]
    Room(String),
    /// 400: the list names too many rooms.
    #[error("found {found} rooms, due at most {due}")]
    Rooms {
        /// In the list.
        found: usize,
        /// [`Bounds::rooms_per_connection_max`](crate::limits::Bounds::rooms_per_connection_max).
        due: usize,
    },
    /// 400: a name holds what [`Route::forbid`] names.
    #[error("found {found:?} in a name, which may not hold it here")]
    Forbidden {
        /// The character.
        found: char,
    },
    /// 400: the user's name is too long or holds control characters.
    #[error("{}", user_fault(*.bytes))]
    User {
        /// Its length.
        bytes: usize,
    },
    /// The query can't be read: repeated parameter, bad encoding.
    #[error("{0}")]
    Query(E),
}

impl<E> RouteError<E> {
    /// Status of the answer.
    pub fn status(&self) -> u16 {
        if matches!(self, Self::NotFound) { 404 } else { 400 }
    }
}

/// What is wrong with a user's name of so many bytes that was refused.
fn user_fault(bytes: usize) -> String {
    if bytes > USER_NAME_BYTES_MAX {
        return format!("the user's name has {bytes} bytes, at most {USER_NAME_BYTES_MAX} are allowed");
    }
    "the user's name holds a control character".to_owned()
}

/// A source with its room as prefix and suffix of what the `*` or `{1}` stands for.
#[derive(Debug, Clone)]
struct CompiledSource {
    /// Index of its Redis.
    server: usize,
    subscribe: Subscribe,
    /// `prefix*suffix` for a pattern, as Redis repeats it in a pmessage.
    pattern: Option<String>,
    room: SourceRoom,
    deliver: Deliver,
    own: Own,
    last_value: Option<LastValue>,
    trim: Trim,
}

#[derive(Debug, Clone)]
enum SourceRoom {
    /// One room, by full name.
    Constant(String),
    /// Full name: prefix (with the space), the string member `field` of the payload, suffix.
    Payload { field: String, prefix: String, suffix: String },
    /// Full name: prefix (with the space), what the wildcard matched, suffix.
    Around { prefix: String, suffix: String },
    /// More than one wildcard: texts between which it stands. Leads from channel to room only.
    Between(Vec<String>),
}

impl Routes {
    /// Settles what `config` says.
    ///
    /// # Panics
    /// Where [`load`](crate::config::load) would have refused it: more than 256 room classes, or a last one that doesn't
    /// match every name.
    pub fn new(config: &Config) -> Self {
        assert!(config.rooms.len() <= TABLES_MAX, "a class index is one byte");
        let matches_all = |class: &RoomClass| class.name == "*" && class.space.is_none();
        assert!(config.rooms.last().is_some_and(matches_all), "the last room class matches every name");
        let mut routes = config.routes.clone();
        if config.echo_route {
            routes.push(echo_route());
        }
        let sources: Vec<CompiledSource> =
            config.sources.iter().map(|source| CompiledSource::new(source, config)).collect();
        let names_room = |source: &CompiledSource| matches!(source.room, SourceRoom::Payload { .. });
        let payload_sources = (0..sources.len()).filter(|index| names_room(&sources[*index])).collect();
        Self {
            routes,
            payload_sources,
            owners: config.listen_presets.clone(),
            first_preset: config.presets.first().cloned(),
            node_id: config.node_id.clone(),
            rooms_max: config.bounds.rooms_per_connection_max,
            classes: config.rooms.clone(),
            sources,
            servers_len: config.broker.servers().len().max(1),
        }
    }

    /// What a request for `path` on listener `listener` (index into [`Config::listen`]) joins.
    ///
    /// `query` gives a parameter's decoded value; an empty value counts as absent. Of the routes of a path the one whose
    /// condition the request meets is taken. Where it meets none the path is the listener's own preset's, or else the
    /// first named preset's: its route without condition, or the sentence of its 400.
    ///
    /// # Errors
    /// [`RouteError`]; that of `query` as [`RouteError::Query`].
    pub fn resolve<'q, E>(
        &self,
        listener: usize,
        path: &str,
        query: impl Fn(&str) -> Result<Option<Cow<'q, str>>, E>,
    ) -> Result<Resolved, RouteError<E>> {
        let query = |name: &str| match query(name) {
            Ok(value) => Ok(value.filter(|value| !value.is_empty())),
            Err(error) => Err(RouteError::Query(error)),
        };
        let on_path = || self.routes.iter().enumerate().filter(|(_, route)| route.path == path);
        let mut met: Option<(usize, &Route, &str)> = None;
        for (index, route) in on_path() {
            let Some(name) = route.when_query.as_deref() else { continue };
            if query(name)?.is_none() {
                continue;
            }
            match met {
                None => met = Some((index, route, name)),
                // Two presets with one condition: the first named has it.
                Some((.., earlier)) if earlier == name => {}
                Some((.., earlier)) => {
                    return Err(RouteError::Ambiguous { first: earlier.to_owned(), second: name.to_owned() });
                }
            }
        }
        if let Some((index, route, _)) = met {
            return self.join(index, route, query);
        }
        let owner = self.owners.get(listener).and_then(Option::as_ref).or(self.first_preset.as_ref());
        let is_owners = |route: &Route| route.preset.is_none() || route.preset.as_ref() == owner;
        let of_owner = on_path().any(|(_, route)| is_owners(route));
        let mut candidates = on_path().filter(|(_, route)| !of_owner || is_owners(route));
        let first = candidates.clone().next().ok_or(RouteError::NotFound)?;
        match candidates.find(|(_, route)| route.when_query.is_none()) {
            Some((index, route)) => self.join(index, route, query),
            None => Err(RouteError::Missing(missing_sentence(first.1))),
        }
    }

    /// What a connection of the JSON dialect joins on `path` that names no room in its URL: none, and rooms by message, on
    /// the path's first route that lets it.
    pub fn resolve_without_room(&self, listener: usize, path: &str) -> Option<Resolved> {
        let owner = self.owners.get(listener).and_then(Option::as_ref).or(self.first_preset.as_ref());
        let on_path = self.routes.iter().enumerate().filter(|(_, route)| route.path == path);
        let is_owners = |route: &Route| route.preset.is_none() || route.preset.as_ref() == owner;
        let mut free = on_path.filter(|(_, route)| is_owners(route) && route.joins_by_message());
        let (route_index, route) = free.next()?;
        Some(Resolved {
            route_index,
            rooms: Vec::new(),
            user: String::new(),
            publish: route.publish,
            dialect: route.dialect,
            role: route.role,
            key: route.key,
            space: route.space.clone(),
            hear_self: route.hear_self,
            ping: route.ping,
        })
    }

    fn join<'q, E>(
        &self,
        route_index: usize,
        route: &Route,
        query: impl Fn(&str) -> Result<Option<Cow<'q, str>>, RouteError<E>>,
    ) -> Result<Resolved, RouteError<E>> {
        let mut rooms = Vec::new();
        if !route.room.parts.is_empty() {
            let parameter =
                |name: &str| query(name)?.ok_or_else(|| RouteError::Missing(missing_parameter(name)));
            let text = self.filled(&route.room, parameter)?;
            not_forbidden(route, &text)?;
            rooms = self.listed(route, &text)?;
        }
        let user = match &route.user {
            Some(template) => self.filled(template, |name| Ok(query(name)?.unwrap_or_default()))?,
            None => String::new(),
        };
        if user.len() > USER_NAME_BYTES_MAX || user.chars().any(char::is_control) {
            return Err(RouteError::User { bytes: user.len() });
        }
        not_forbidden(route, &user)?;
        Ok(Resolved {
            route_index,
            rooms,
            user,
            publish: route.publish,
            dialect: route.dialect,
            role: route.role,
            key: route.key,
            space: route.space.clone(),
            hear_self: route.hear_self,
            ping: route.ping,
        })
    }

    /// The rooms that `text` names: one, or a list where the route has a separator.
    fn listed<E>(&self, route: &Route, text: &str) -> Result<Vec<String>, RouteError<E>> {
        let names: Vec<&str> = match route.separator {
            Some(separator) => text.split(separator).collect(),
            None => vec![text],
        };
        if names.len() > self.rooms_max {
            return Err(RouteError::Rooms { found: names.len(), due: self.rooms_max });
        }
        let mut rooms: Vec<String> = Vec::with_capacity(names.len());
        for name in names {
            if !is_name(name) {
                return Err(RouteError::Room(name_fault(name)));
            }
            let room = full_name(&route.space, name);
            if !rooms.contains(&room) {
                rooms.push(room);
            }
        }
        Ok(rooms)
    }

    fn filled<'q, E>(
        &self,
        template: &Template,
        parameter: impl Fn(&str) -> Result<Cow<'q, str>, E>,
    ) -> Result<String, E> {
        let mut text = String::new();
        for part in &template.parts {
            match part {
                TemplatePart::Literal(literal) => text.push_str(literal),
                TemplatePart::Query(name) => text.push_str(&parameter(name)?),
                TemplatePart::NodeId => text.push_str(&self.node_id),
                // Only sources' templates hold them.
                TemplatePart::Wildcard | TemplatePart::Json(_) => {}
            }
        }
        Ok(text)
    }

    /// The sources of `server` that `channel` belongs to and whose rooms the payload names: each with its index and the member that
    /// does. `pattern` as in [`Routes::rooms_of_channel`].
    pub fn payload_sources<'a>(
        &'a self,
        server: usize,
        pattern: Option<&'a [u8]>,
        channel: &'a [u8],
    ) -> impl Iterator<Item = (usize, &'a str)> {
        self.payload_sources.iter().filter_map(move |index| {
            let source = &self.sources[*index];
            let SourceRoom::Payload { field, .. } = &source.room else { return None };
            (source.server == server && source.is_fed_by(pattern, channel))
                .then_some((*index, field.as_str()))
        })
    }

    /// The full name of the room that a payload of source `source_index` calls `name`.
    pub fn room_of_payload(&self, source_index: usize, name: &str) -> Option<String> {
        let SourceRoom::Payload { prefix, suffix, .. } = &self.sources[source_index].room else {
            return None;
        };
        let room = [prefix, name, suffix].concat();
        (is_name(name) && is_name(plain_name(&room))).then_some(room)
    }

    /// Index of the class of `room` (a full name) in [`Config::rooms`].
    pub fn class_of(&self, room: &str) -> u8 {
        let (space, name) = split_name(room);
        let matches = |class: &RoomClass| {
            class.space.as_deref().is_none_or(|only| only == space)
                && class.name.strip_suffix('*').map_or(class.name == name, |prefix| name.starts_with(prefix))
        };
        let index = self.classes.iter().position(matches).unwrap_or(self.classes.len() - 1);
        u8::try_from(index).unwrap_or(u8::MAX)
    }

    /// Every room that a message from `server` feeds, by full name, each with the index of its source in
    /// [`Config::sources`].
    ///
    /// `pattern` is that of a pmessage, `None` for a message. A channel gives no room where its part of the name isn't one:
    /// empty, too long, not UTF-8, or with control characters.
    pub fn rooms_of_channel<'a>(
        &'a self,
        server: usize,
        pattern: Option<&'a [u8]>,
        channel: &'a [u8],
    ) -> impl Iterator<Item = (usize, Cow<'a, str>)> {
        let room = move |source: &'a CompiledSource| source.room_of(pattern, channel);
        let of_server = self.sources.iter().enumerate().filter(move |(_, source)| source.server == server);
        of_server.filter_map(move |(index, source)| Some((index, room(source)?)))
    }

    /// The first of [`Routes::rooms_of_channel`].
    pub fn room_of_channel<'a>(
        &'a self,
        server: usize,
        pattern: Option<&'a [u8]>,
        channel: &'a [u8],
    ) -> Option<(usize, Cow<'a, str>)> {
        self.rooms_of_channel(server, pattern, channel).next()
    }

    /// Every room that an entry of the stream `key` of `server` feeds, by full name, each with the index of its source in
    /// [`Config::sources`]. Streams and channels may have one name, and never feed each other's rooms.
    pub fn rooms_of_stream<'a>(
        &'a self,
        server: usize,
        key: &'a [u8],
    ) -> impl Iterator<Item = (usize, Cow<'a, str>)> {
        let room = move |source: &'a CompiledSource| source.room_of_stream(key);
        let of_server = self.sources.iter().enumerate().filter(move |(_, source)| source.server == server);
        of_server.filter_map(move |(index, source)| Some((index, room(source)?)))
    }

    /// Whether the rooms of source `source_index` are fed by streams; [`channel_of_room`](Self::channel_of_room) is then
    /// the stream's key.
    pub fn is_stream(&self, source_index: usize) -> bool {
        matches!(self.sources[source_index].subscribe, Subscribe::Stream { .. })
    }

    /// What a stream of source `source_index` keeps when this node appends to it.
    pub fn trim(&self, source_index: usize) -> Trim {
        self.sources[source_index].trim
    }

    /// The channel (or the stream's key) through which `room` (a full name) is published, and the index of its source in
    /// [`Config::sources`]: the first whose room leads back to one.
    pub fn channel_of_room<'a>(&'a self, room: &'a str) -> Option<(usize, Cow<'a, str>)> {
        self.sources.iter().enumerate().find_map(|(index, source)| Some((index, source.channel_of(room)?)))
    }

    /// The class of index `class`, as [`class_of`](Self::class_of) gives it.
    pub fn class(&self, class: u8) -> &RoomClass {
        &self.classes[usize::from(class)]
    }

    /// Name of this node.
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// Whether route `route_index` names room and user by the same text, so that a room of it has one user.
    pub fn is_users_own(&self, route_index: usize) -> bool {
        self.routes.get(route_index).is_some_and(|route| route.user.as_ref() == Some(&route.room))
    }

    /// Servers that publications travel through; the local broker counts as one.
    pub fn servers_len(&self) -> usize {
        self.servers_len
    }

    /// Index of the server of source `source_index`.
    pub fn server_of(&self, source_index: usize) -> usize {
        self.sources[source_index].server
    }

    /// Indices of the sources of `server`.
    pub fn sources_of(&self, server: usize) -> impl Iterator<Item = usize> {
        let of_server = self.sources.iter().enumerate().filter(move |(_, source)| source.server == server);
        of_server.map(|(index, _)| index)
    }

    /// Whether the channels of source `source_index` are subscribed for their rooms' first members.
    pub fn is_on_demand(&self, source_index: usize) -> bool {
        matches!(self.sources[source_index].subscribe, Subscribe::OnDemand { .. })
    }

    /// The route of index `route_index`, as [`Resolved::route_index`] gives it.
    pub fn route(&self, route_index: usize) -> Option<&Route> {
        self.routes.get(route_index)
    }

    /// Whether newcomers of `room` (a full name) are told its last value.
    pub fn keeps_last_value(&self, room: &str) -> bool {
        self.channel_of_room(room).is_some_and(|(source, _)| self.sources[source].last_value.is_some())
    }

    /// What the rooms of source `source_index` keep for newcomers.
    pub fn last_value(&self, source_index: usize) -> Option<&LastValue> {
        self.sources[source_index].last_value.as_ref()
    }

    /// How this node's own publications come to its members.
    pub fn own(&self, source_index: usize) -> Own {
        self.sources[source_index].own
    }

    /// How payloads of source `source_index` are unwrapped and own publications wrapped.
    pub fn deliver(&self, source_index: usize) -> &Deliver {
        &self.sources[source_index].deliver
    }
}

impl CompiledSource {
    fn new(source: &Source, config: &Config) -> Self {
        let mut texts = Vec::new();
        let mut text = full_name(&source.space, "");
        let mut field = None;
        for part in &source.room.parts {
            match part {
                TemplatePart::Wildcard => texts.push(std::mem::take(&mut text)),
                TemplatePart::Literal(literal) => text.push_str(literal),
                TemplatePart::NodeId => text.push_str(&config.node_id),
                TemplatePart::Json(name) => {
                    field = Some(name.clone());
                    texts.push(std::mem::take(&mut text));
                }
                // Only routes' templates hold it.
                TemplatePart::Query(_) => {}
            }
        }
        texts.push(text);
        let room = match <[String; 1]>::try_from(texts) {
            Ok([name]) => SourceRoom::Constant(name),
            Err(texts) => match <[String; 2]>::try_from(texts) {
                Ok([prefix, suffix]) => match field {
                    Some(field) => SourceRoom::Payload { field, prefix, suffix },
                    None => SourceRoom::Around { prefix, suffix },
                },
                Err(texts) => SourceRoom::Between(texts),
            },
        };
        let pattern = matches!(source.subscribe, Subscribe::Pattern { .. });
        let pattern = pattern.then(|| source.subscribe.to_string()["psubscribe ".len()..].to_owned());
        Self {
            server: config.server_of(source),
            subscribe: source.subscribe.clone(),
            pattern,
            room,
            deliver: source.deliver.clone(),
            own: source.own,
            last_value: source.last_value.clone(),
            trim: Trim {
                entries: source.maxlen,
                millis: source.maxage.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            },
        }
    }

    fn room_of<'a>(&'a self, pattern: Option<&[u8]>, channel: &'a [u8]) -> Option<Cow<'a, str>> {
        let (prefix, suffix) = match (&self.subscribe, pattern) {
            (Subscribe::Pattern { prefix, suffix }, Some(pattern)) => {
                self.pattern.as_ref().filter(|own| own.as_bytes() == pattern)?;
                (prefix, suffix)
            }
            (Subscribe::OnDemand { prefix, suffix }, None) => (prefix, suffix),
            (Subscribe::Channel(own), None) if own.as_bytes() == channel => return self.constant(),
            _ => return None,
        };
        self.room_between(prefix, suffix, channel)
    }

    fn room_of_stream<'a>(&'a self, key: &'a [u8]) -> Option<Cow<'a, str>> {
        match &self.subscribe {
            Subscribe::Stream { prefix, suffix } => self.room_between(prefix, suffix, key),
            _ => None,
        }
    }

    /// The room that `name` feeds, where it is what stands for the wildcard between `prefix` and `suffix`.
    fn room_between<'a>(&'a self, prefix: &str, suffix: &str, name: &'a [u8]) -> Option<Cow<'a, str>> {
        let wildcard = name.strip_prefix(prefix.as_bytes())?.strip_suffix(suffix.as_bytes())?;
        match &self.room {
            SourceRoom::Constant(name) => Some(Cow::Borrowed(name)),
            SourceRoom::Payload { .. } => None,
            SourceRoom::Around { prefix, suffix } => around(prefix, wildcard, suffix),
            SourceRoom::Between(texts) => {
                let wildcard = std::str::from_utf8(wildcard).ok()?;
                Some(Cow::Owned(texts.join(wildcard))).filter(|room| is_name(plain_name(room)))
            }
        }
    }

    /// Whether messages of `channel` are this source's.
    fn is_fed_by(&self, pattern: Option<&[u8]>, channel: &[u8]) -> bool {
        match (&self.subscribe, pattern) {
            (Subscribe::Pattern { .. }, Some(pattern)) => {
                self.pattern.as_ref().is_some_and(|own| own.as_bytes() == pattern)
            }
            (Subscribe::Channel(own), None) => own.as_bytes() == channel,
            _ => false,
        }
    }

    fn constant(&self) -> Option<Cow<'_, str>> {
        match &self.room {
            SourceRoom::Constant(name) => Some(Cow::Borrowed(name)),
            _ => None,
        }
    }

    fn channel_of<'a>(&'a self, room: &'a str) -> Option<Cow<'a, str>> {
        match (&self.room, &self.subscribe) {
            (SourceRoom::Constant(name), Subscribe::Channel(channel)) => {
                (name == room).then_some(Cow::Borrowed(channel.as_str()))
            }
            (SourceRoom::Payload { prefix, suffix, .. }, Subscribe::Channel(channel)) => {
                let middle = room.strip_prefix(prefix.as_str())?.strip_suffix(suffix.as_str())?;
                // No name is empty, so nothing that comes by the channel would be for this room.
                let is_fed = !middle.is_empty() && !middle.contains(SPACE_END);
                is_fed.then_some(Cow::Borrowed(channel.as_str()))
            }
            (
                SourceRoom::Around { prefix: before, suffix: after },
                Subscribe::Pattern { prefix, suffix }
                | Subscribe::OnDemand { prefix, suffix }
                | Subscribe::Stream { prefix, suffix },
            ) => {
                let wildcard = room.strip_prefix(before.as_str())?.strip_suffix(after.as_str())?;
                // In the plain space the prefix is no guard: a room of another space begins with anything. And what comes by a
                // channel without a name is for no room.
                if wildcard.is_empty() || wildcard.contains(SPACE_END) {
                    return None;
                }
                Some(joined(prefix, wildcard, suffix))
            }
            _ => None,
        }
    }
}

/// The full name of room `name` in `space`; the empty space is the plain one.
pub fn full_name(space: &str, name: &str) -> String {
    if space.is_empty() { name.to_owned() } else { format!("{space}{SPACE_END}{name}") }
}

/// What clients and channels see of a full name.
pub fn plain_name(room: &str) -> &str {
    split_name(room).1
}

/// Whether `name` may be a room's plain name: 1 to [`ROOM_NAME_BYTES_MAX`] bytes, no control characters.
pub fn is_name(name: &str) -> bool {
    (1..=ROOM_NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// The name space of a full name; empty for the plain one.
pub fn space_of(room: &str) -> &str {
    split_name(room).0
}

/// What is wrong with a `name` that [`is_name`] refuses.
pub fn name_fault(name: &str) -> String {
    match name.len() {
        0 => "the room's name is empty".to_owned(),
        1..=ROOM_NAME_BYTES_MAX => "the room's name holds a control character".to_owned(),
        found => format!("the room's name has {found} bytes, at most {ROOM_NAME_BYTES_MAX} are allowed"),
    }
}

fn split_name(room: &str) -> (&str, &str) {
    room.split_once(SPACE_END).unwrap_or(("", room))
}

/// `prefix` (which may hold a space), what a wildcard matched, `suffix`: a full name, if its plain part is one.
fn around<'a>(prefix: &str, wildcard: &'a [u8], suffix: &str) -> Option<Cow<'a, str>> {
    // Checked before it is read as UTF-8, which costs its length.
    if wildcard.is_empty() || wildcard.len() > ROOM_NAME_BYTES_MAX {
        return None;
    }
    let wildcard = std::str::from_utf8(wildcard).ok().filter(|text| is_name(text))?;
    let plain_bytes = plain_name(prefix).len() + wildcard.len() + suffix.len();
    (plain_bytes <= ROOM_NAME_BYTES_MAX).then(|| joined(prefix, wildcard, suffix))
}

/// Borrows `middle` where nothing stands around it.
fn joined<'a>(prefix: &str, middle: &'a str, suffix: &str) -> Cow<'a, str> {
    if prefix.is_empty() && suffix.is_empty() {
        return Cow::Borrowed(middle);
    }
    Cow::Owned([prefix, middle, suffix].concat())
}

fn not_forbidden<E>(route: &Route, text: &str) -> Result<(), RouteError<E>> {
    let forbidden = route.forbid.as_deref().unwrap_or_default();
    match text.chars().find(|c| forbidden.contains(*c)) {
        Some(found) => Err(RouteError::Forbidden { found }),
        None => Ok(()),
    }
}

fn missing_sentence(route: &Route) -> String {
    match (&route.missing, &route.when_query) {
        (Some(sentence), _) => sentence.clone(),
        (None, Some(name)) => missing_parameter(name),
        (None, None) => missing_parameter("room"),
    }
}

fn missing_parameter(name: &str) -> String {
    format!("missing parameter {name}")
}

fn echo_route() -> Route {
    Route {
        path: ECHO_PATH.to_owned(),
        when_query: None,
        room: Template::default(),
        publish: Publish::Any,
        dialect: Dialect::Echo,
        ..Route::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{File, Inputs, load};

    fn routes(presets: &str, file: &str) -> Routes {
        let presets = (!presets.is_empty()).then(|| presets.split(',').map(str::to_owned).collect());
        let file = Some(File { name: "test.toml", text: file });
        let inputs = Inputs { presets, file, node_id: "n1".to_owned(), ..Inputs::default() };
        let loaded = load(&inputs).unwrap_or_else(|errors| panic!("{errors}"));
        Routes::new(&loaded.config)
    }

    /// Resolves `path?query`, its values not encoded.
    fn resolve(routes: &Routes, target: &str) -> Result<Resolved, String> {
        resolve_on(routes, 0, target)
    }

    fn resolve_on(routes: &Routes, listener: usize, target: &str) -> Result<Resolved, String> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let parameters: BTreeMap<&str, &str> =
            query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let query = |name: &str| match parameters.get(name) {
            Some(&"BAD") => Err("bad encoding"),
            value => Ok(value.map(|value| Cow::Borrowed(*value))),
        };
        routes.resolve(listener, path, query).map_err(|error| format!("{} {error}", error.status()))
    }

    fn room(routes: &Routes, target: &str) -> Result<String, String> {
        resolve(routes, target).map(|resolved| resolved.rooms.concat())
    }

    /// Two kinds of rooms told apart by the query, and a path without condition.
    const KINDS: &str = r#"
[[route]]
path = "/ws"
when_query = "room"
room = "{query.room}"
user = "{query.client_id}"
publish = "any"
[[route]]
path = "/ws"
when_query = "username"
room = "{query.username}"
space = "user"
hear_self = false
ping = "54s"
[[route]]
path = "/all"
room = "everybody@{node_id}"
[[room]]
name = "vip:*"
slow = { frames = 1 }
[[room]]
name = "alice"
space = "user"
slow = { frames = 2 }
[[source]]
redis = "psubscribe room:*"
room = "{1}"
deliver = "field:data"
[[source]]
redis = "psubscribe workflow:*:events"
room = "{1}"
space = "user"
[[source]]
redis = "subscribe events.critical"
room = "everybody@{node_id}"
deliver = "wrap"
[[source]]
redis = "subscribe x:{1}:y"
room = "x-{1}"
"#;

    #[test]
    fn a_list_of_rooms_joins_each_once_and_no_more_than_the_bound() {
        let text = r#"
[bounds]
rooms_per_connection_max = 3
[[route]]
path = "/ws"
when_query = "rooms"
room = "{query.rooms}"
separator = ","
"#;
        let routes = routes("", text);
        let rooms = |target: &str| resolve(&routes, target).map(|resolved| resolved.rooms);
        assert_eq!(rooms("/ws?rooms=a,b,a"), Ok(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(rooms("/ws?rooms=a,,b"), Err("400 the room's name is empty".to_owned()));
        assert_eq!(rooms("/ws?rooms=a,b,c,d"), Err("400 found 4 rooms, due at most 3".to_owned()));
    }

    #[test]
    fn a_query_says_which_room_is_joined() {
        let routes = routes("", KINDS);
        let named = resolve(&routes, "/ws?room=lobby&client_id=al").unwrap();
        assert_eq!((named.rooms.as_slice(), named.user.as_str()), (["lobby".to_owned()].as_slice(), "al"));
        assert_eq!((named.publish, named.hear_self, named.route_index), (Publish::Any, true, 0));
        let user = resolve(&routes, "/ws?username=lobby").unwrap();
        assert_eq!(
            (user.rooms.as_slice(), user.user.as_str()),
            (["user\u{1f}lobby".to_owned()].as_slice(), "")
        );
        assert_eq!((user.publish, user.hear_self, user.route_index), (Publish::None, false, 1));
        assert_eq!(user.ping, Some(std::time::Duration::from_secs(54)));
        assert_eq!(room(&routes, "/all"), Ok("everybody@n1".to_owned()));
    }

    #[test]
    fn a_request_that_fits_no_condition_or_two_is_refused() {
        let routes = routes("", KINDS);
        let refused = |target| room(&routes, target).unwrap_err();
        assert_eq!(refused("/nosuch"), "404 no such path");
        assert_eq!(refused("/ws/"), "404 no such path");
        assert_eq!(refused("/ws"), "400 missing parameter room");
        assert_eq!(refused("/ws?room="), "400 missing parameter room");
        assert_eq!(
            refused("/ws?room=a&username=b"),
            "400 found both room and username in the query, due one of them"
        );
        assert_eq!(refused("/ws?room=BAD"), "400 bad encoding");
        assert_eq!(refused("/ws?room=a&client_id=BAD"), "400 bad encoding");
    }

    #[test]
    fn names_are_bounded_and_without_control_characters() {
        let routes = routes("", KINDS);
        let named = |name: &str| room(&routes, &format!("/ws?room={name}"));
        let longest = "x".repeat(ROOM_NAME_BYTES_MAX);
        assert_eq!(named(&longest), Ok(longest.clone()));
        let too_long = "400 the room's name has 256 bytes, at most 255 are allowed";
        assert_eq!(named(&format!("{longest}x")), Err(too_long.to_owned()));
        for name in ["\n", "a\nb", "user\u{1f}alice", "a\u{85}"] {
            let refused = Err("400 the room's name holds a control character".to_owned());
            assert_eq!(named(name), refused, "{name:?}");
        }
        let user = |name: &str| {
            resolve(&routes, &format!("/ws?room=a&client_id={name}")).map(|resolved| resolved.user)
        };
        assert_eq!(user(&longest), Ok(longest.clone()));
        assert!(user(&format!("{longest}x")).unwrap_err().starts_with("400 the user's name has 256 bytes"));
        assert_eq!(user("a\0").unwrap_err(), "400 the user's name holds a control character");
    }

    #[test]
    fn event_fanout_refuses_a_request_without_room_in_its_own_words() {
        let routes = routes("event-fanout", "");
        for target in ["/ws", "/ws?client_id=x", "/event-fanout/ws", "/ws?room="] {
            assert_eq!(room(&routes, target), Err("400 missing room".to_owned()), "{target}");
        }
        assert_eq!(room(&routes, "/event-fanout/ws?room=a"), Ok("a".to_owned()));
    }

    #[test]
    fn a_plain_path_is_the_listeners_presets_or_the_first_named() {
        let route = |preset: &str, when: Option<&str>, name: &str| Route {
            when_query: when.map(str::to_owned),
            room: Template { parts: vec![TemplatePart::Literal(name.to_owned())] },
            preset: Some(preset.to_owned()),
            ..Route::default()
        };
        let config = Config {
            routes: vec![
                route("a", Some("room"), "of a"),
                route("b", None, "of b"),
                route("c", None, "of c"),
            ],
            presets: ["a", "b", "c"].map(str::to_owned).to_vec(),
            listen: vec!["127.0.0.1:1".parse().unwrap(); 3],
            listen_presets: vec![None, Some("c".to_owned()), Some("b".to_owned())],
            ..Config::default()
        };
        let on = |config: &Config, listener, target| {
            resolve_on(&Routes::new(config), listener, target).map(|resolved| resolved.rooms.concat())
        };
        assert_eq!(
            on(&config, 0, "/ws"),
            Err("400 missing parameter room".to_owned()),
            "a is the first named"
        );
        assert_eq!(on(&config, 1, "/ws"), Ok("of c".to_owned()));
        assert_eq!(on(&config, 2, "/ws"), Ok("of b".to_owned()));
        assert_eq!(on(&config, 1, "/ws?room=x"), Ok("of a".to_owned()), "a condition goes before ownership");
        let config = Config { presets: vec!["b".to_owned(), "a".to_owned(), "c".to_owned()], ..config };
        assert_eq!(on(&config, 0, "/ws"), Ok("of b".to_owned()));
        let config = Config { presets: vec!["nobody".to_owned()], ..config };
        assert_eq!(on(&config, 0, "/ws"), Ok("of b".to_owned()), "who has the path alone serves it");
    }

    #[test]
    fn echo_is_there_only_when_asked_for() {
        assert_eq!(resolve(&routes("", ""), "/echo").unwrap_err(), "404 no such path");
        let echo = resolve(&routes("", "echo_route = true"), "/echo").unwrap();
        assert_eq!(
            (echo.rooms.first(), echo.dialect, echo.publish, echo.route_index),
            (None, Dialect::Echo, Publish::Any, 1)
        );
    }

    #[test]
    fn rooms_have_the_class_of_their_name_and_space() {
        let routes = routes("", KINDS);
        assert_eq!(routes.class_of("vip:1"), 0);
        assert_eq!(routes.class_of("user\u{1f}vip:1"), 0, "without a space a class holds in all");
        assert_eq!(routes.class_of("user\u{1f}alice"), 1);
        assert_eq!(routes.class_of("alice"), 2);
        assert_eq!(routes.class_of("vip"), 2);
    }

    fn fed(routes: &Routes, pattern: Option<&str>, channel: &[u8]) -> Vec<(usize, String)> {
        let rooms = routes.rooms_of_channel(0, pattern.map(str::as_bytes), channel);
        rooms.map(|(index, room)| (index, room.into_owned())).collect()
    }

    #[test]
    fn a_channel_feeds_the_rooms_of_its_sources() {
        let routes = routes("", KINDS);
        let one = |index, room: &str| vec![(index, room.to_owned())];
        assert_eq!(fed(&routes, Some("room:*"), b"room:lobby"), one(0, "lobby"));
        assert_eq!(fed(&routes, Some("workflow:*:events"), b"workflow:al:events"), one(1, "user\u{1f}al"));
        assert_eq!(fed(&routes, None, b"events.critical"), one(2, "everybody@n1"));
        assert_eq!(fed(&routes, None, b"x:a:y"), one(3, "x-a"));
        for (pattern, channel) in [
            (None, "room:lobby"),
            (Some("room:*"), "other"),
            (Some("other:*"), "room:lobby"),
            (Some("room:*"), "events.critical"),
            (Some("workflow:*:events"), "workflow:events"),
            (None, "x:y"),
            (None, "x::y"),
        ] {
            assert_eq!(fed(&routes, pattern, channel.as_bytes()), [], "{pattern:?} {channel}");
        }
    }

    #[test]
    fn a_channel_whose_part_is_no_name_feeds_nothing() {
        let routes = routes("", KINDS);
        let long = format!("room:{}", "x".repeat(256));
        for channel in
            [b"room:".as_slice(), b"room:a\nb", b"room:user\x1falice", b"room:\xff", long.as_bytes()]
        {
            assert_eq!(fed(&routes, Some("room:*"), channel), [], "{channel:?}");
        }
        let fits = format!("x:{}:y", "x".repeat(253));
        assert_eq!(fed(&routes, None, fits.as_bytes()).len(), 1);
        let long = format!("x:{}:y", "x".repeat(254));
        assert_eq!(fed(&routes, None, long.as_bytes()), [], "with the literal it is too long");
    }

    #[test]
    fn a_room_leads_back_to_its_channel() {
        let routes = routes("", KINDS);
        let channel =
            |room| routes.channel_of_room(room).map(|(index, channel)| (index, channel.into_owned()));
        assert_eq!(channel("lobby"), Some((0, "room:lobby".to_owned())));
        assert_eq!(channel("user\u{1f}al"), Some((1, "workflow:al:events".to_owned())));
        assert_eq!(channel("other\u{1f}al"), None, "no source feeds that space");
        let only_constant = "[[source]]\nredis = \"subscribe a\"\nroom = \"r\"\n[[source]]\nredis = \"psubscribe b*\"\nroom = \"all\"";
        let routes = self::routes("", only_constant);
        assert_eq!(
            routes.channel_of_room("r").map(|(index, channel)| (index, channel.into_owned())),
            Some((0, "a".to_owned()))
        );
        assert_eq!(routes.channel_of_room("all"), None, "no channel of a pattern is the room's own");
        assert_eq!(fed(&routes, Some("b*"), b"banana"), [(1, "all".to_owned())]);
    }

    #[test]
    fn streams_and_channels_of_one_name_never_feed_each_others_rooms() {
        let file = "[[source]]\nredis = \"subscribe orders:{1}\"\nroom = \"channel:{1}\"";
        let inputs = Inputs { file: Some(File { name: "test.toml", text: file }), ..Inputs::default() };
        let mut config = load(&inputs).unwrap_or_else(|errors| panic!("{errors}")).config;
        let room = vec![TemplatePart::Literal("stream:".to_owned()), TemplatePart::Wildcard];
        config.sources.push(Source {
            subscribe: Subscribe::parse("stream orders:*").unwrap(),
            room: Template { parts: room },
            ..Source::default()
        });
        let routes = Routes::new(&config);
        let of_channel: Vec<_> = routes.rooms_of_channel(0, None, b"orders:7").collect();
        let of_stream: Vec<_> = routes.rooms_of_stream(0, b"orders:7").collect();
        assert_eq!(of_channel, [(0, Cow::Borrowed("channel:7"))]);
        assert_eq!(of_stream, [(1, Cow::Borrowed("stream:7"))]);
        assert_eq!(routes.rooms_of_stream(0, b"others:7").count(), 0);
        assert_eq!(routes.rooms_of_stream(0, b"orders:").count(), 0, "no name");
        assert_eq!(routes.channel_of_room("stream:7"), Some((1, Cow::Borrowed("orders:7"))));
        assert_eq!(routes.channel_of_room("stream:"), None, "nothing that came would be for it");
        assert!(routes.is_stream(1) && !routes.is_stream(0) && !routes.is_on_demand(1));
    }

    #[test]
    fn several_wildcards_lead_from_channel_to_room_only() {
        let routes = routes("", "[[source]]\nredis = \"psubscribe a:*\"\nroom = \"{1}/{1}\"\nspace = \"s\"");
        assert_eq!(fed(&routes, Some("a:*"), b"a:x"), [(0, "s\u{1f}x/x".to_owned())]);
        assert_eq!(fed(&routes, Some("a:*"), b"a:\x1f"), []);
        assert_eq!(routes.channel_of_room("s\u{1f}x/x"), None);
    }

    #[test]
    fn the_room_of_a_plain_channel_is_borrowed() {
        let routes = routes("event-fanout", "");
        let (_, room) = routes.room_of_channel(0, Some(b"room:*"), b"room:lobby").unwrap();
        assert!(matches!(room, Cow::Borrowed("lobby")), "no allocation per publication");
        assert_eq!(routes.deliver(0), &Deliver::Field("data".to_owned()));
    }

    #[test]
    fn full_names_show_their_plain_part() {
        assert_eq!((full_name("", "a").as_str(), full_name("s", "a").as_str()), ("a", "s\u{1f}a"));
        assert_eq!((plain_name("a"), plain_name("s\u{1f}a")), ("a", "a"));
    }

    proptest! {
        #[test]
        fn whatever_a_room_is_called_its_channel_feeds_it_and_nothing_else(name in "\\PC{1,60}", space in "(user|)") {
            let routes = routes("", KINDS);
            let room = full_name(&space, &name);
            let (source, channel) = routes.channel_of_room(&room).unwrap();
            let pattern = if source == 0 { "room:*" } else { "workflow:*:events" };
            prop_assert_eq!(fed(&routes, Some(pattern), channel.as_bytes()), [(source, room.clone())]);
        }

        #[test]
        fn no_text_of_a_client_or_channel_reaches_another_space(text in any::<String>()) {
            let routes = routes("", KINDS);
            let query = |name: &str| Ok::<_, ()>((name == "room").then_some(Cow::Borrowed(text.as_str())));
            if let Ok(resolved) = routes.resolve(0, "/ws", query) {
                prop_assert!(!resolved.rooms.concat().contains(SPACE_END));
            }
            let channel = format!("room:{text}");
            for (_, room) in routes.rooms_of_channel(0, Some(b"room:*"), channel.as_bytes()) {
                prop_assert!(!room.contains(SPACE_END));
            }
        }
    }
}
