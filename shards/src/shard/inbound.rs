//! What clients say: HTTP requests, handshakes, WebSocket frames.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use super::polls::Wanted;
use super::{Action, Connection, Micros, PAUSED_BY_ANSWER, PAUSED_BY_UP, Pending, Phase, Shard, Wire, wish};
use crate::close::CloseReason;
use crate::command::{ConnectionId, Outcome, Publish, Report, Since, Up};
use crate::config::{self, Dialect, Health};
use crate::dialect::{self, Standing, epoch_text};
use crate::frame::{
    FIRST_OCTET_BINARY, FIRST_OCTET_TEXT, encode_close, encode_close_without_code, encode_header, encode_pong,
};
use crate::limits::{HEAD_BYTES_MAX, PAYLOAD_BYTES_MAX, body_patience};
use crate::request::{self, Head, HttpError, Method};
use crate::route::{RouteError, plain_name};
use crate::session::{Event, Input, Session, SessionBounds};

/// Whether the runtime reads a connection further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Yes, when its socket has something.
    Read,
    /// Not before [`Action::Resume`].
    Pause,
    /// The same, but what its client says meanwhile is taken, so that its hanging up is noticed.
    Watch,
    /// No more: release it and close the socket.
    Done,
}

/// The listener index of the admin address.
pub const ADMIN: u8 = u8::MAX;

/// Names rooms and users, where `/stats` only counts.
const ADMIN_STATS: &str = "/admin/stats";
/// Server-sent events of what the path beside it joins.
const SSE: &str = "/sse";
/// The log of its room.
const HISTORY: &str = "/history";
/// The same, waiting for something to come.
const POLL: &str = "/poll";
const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// Version of Prometheus' text format that [`Metrics::page`](crate::metrics::Metrics::page) writes.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const NOT_CACHED: (&str, &str) = ("Cache-Control", "no-store");
const PAGE: &str = include_str!("../page.html");
/// The page loads nothing from anywhere and talks only to this server.
const PAGE_POLICY: (&str, &str) = (
    "Content-Security-Policy",
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// What becomes of a request once its head and body are there.
enum Verdict {
    /// An answer; the connection goes on if the client likes.
    Answer(Vec<u8>),
    /// The 101 and what it opens.
    Upgrade(Box<Upgrade>),
    /// The relay answers.
    Ask(Up, Option<Arc<str>>),
    /// The relay answers out of a log.
    Read(Wanted),
}

struct Upgrade {
    reply: Vec<u8>,
    rooms: Vec<String>,
    /// What is wanted of the past of the one room.
    since: Option<Since>,
    user: Option<Box<str>>,
    publish: config::Publish,
    hear_self: bool,
    dialect: Dialect,
    route: u16,
    ping: Duration,
}

impl Shard {
    /// Takes a socket in, accepted on the listener of that index ([`ADMIN`]); an HTTP request is due on it.
    pub fn accept(&mut self, socket: i32, listener: u8, now: Micros) -> ConnectionId {
        let (slot, generation) = self.connections.insert(Connection {
            socket,
            phase: Phase::Head,
            listener,
            ping: 0,
            publish: config::Publish::None,
            hear_self: true,
            dialect: Dialect::Raw,
            route: 0,
            pinged: false,
            paused: 0,
            keep_alive: false,
            reason: None,
            joining: 0,
            heard: now.ticks(),
            collected: 0,
            subscriptions: SmallVec::new(),
            stalled: None,
            pending: None,
            session: Session::default(),
            input_booked: 0,
            user: None,
            opened: 0,
        });
        let metrics = self.metrics();
        metrics.accepted.add(1);
        metrics.connections.add(1);
        let id = ConnectionId { shard: self.index, generation, slot };
        if listener == ADMIN {
            self.admin.push(id);
        }
        id
    }

    /// Whether the runtime has to wait for [`Action::Resume`] before it reads the connection.
    pub fn is_paused(&self, id: ConnectionId) -> bool {
        self.connections.holds(id.slot, id.generation)
            && self.connections.at(id.slot).is_some_and(|c| c.paused != 0)
    }

    /// Whether a connection may be read now. One that publishes may not while there is no space on the way to the relay: what
    /// one `recv` brings can be ten thousand messages, and everybody may have sent some.
    pub fn may_be_read(&mut self, id: ConnectionId) -> bool {
        if self.up.len() <= self.setup.engine.up_backlog_max {
            return true;
        }
        let Some(connection) = self.connection(id) else { return true };
        let publishes = match connection.dialect {
            Dialect::Raw | Dialect::Meta => {
                !matches!(connection.publish, config::Publish::None | config::Publish::Ignore)
            }
            // Joins go up too.
            Dialect::Json => true,
            Dialect::Echo | Dialect::Sse => false,
        };
        if connection.phase != Phase::Open || !publishes {
            return true;
        }
        if connection.paused & PAUSED_BY_UP == 0 {
            connection.paused |= PAUSED_BY_UP;
            let (resumed, again) = &mut self.resumed_up;
            if resumed.contains(&id) {
                self.unread_up.insert((*again).min(self.unread_up.len()), id);
                *again += 1;
            } else {
                self.unread_up.push_back(id);
            }
            self.metrics().reads_paused.add(1);
        }
        false
    }

    /// Takes what one `recv` brought. `input` is the shard's own buffer and is changed.
    pub fn receive(&mut self, id: ConnectionId, input: &mut [u8], wire: &mut impl Wire, now: Micros) -> Next {
        self.metrics().received_bytes.add(input.len() as u64);
        self.take_input(id, input, wire, now);
        self.book_input(id);
        self.keep_input_budget(wire, now);
        self.keep_memory_budget(wire, now);
        self.debug_check();
        self.next(id)
    }

    fn take_input(&mut self, id: ConnectionId, input: &mut [u8], wire: &mut impl Wire, now: Micros) {
        let Some(connection) = self.connection(id) else { return };
        match connection.phase {
            Phase::Head => match connection.pending.take() {
                None => {
                    let used = self.requests(id, input, 0, wire, now);
                    self.hold(id, &input[used..]);
                }
                Some(mut held) => {
                    let seen = held.input.len();
                    held.input.extend_from_slice(input);
                    self.requests_held(id, held, seen, wire, now);
                }
            },
            Phase::Open => self.feed(id, input, wire, now),
            Phase::Joining | Phase::Answering => self.hold(id, input),
            Phase::Closing => {}
        }
    }

    fn next(&mut self, id: ConnectionId) -> Next {
        match self.connection(id) {
            None => Next::Done,
            Some(c) if c.reason == Some(CloseReason::PeerClosed) && c.stalled.is_none() => Next::Done,
            Some(c) if c.paused != 0 => {
                let is_read = c.paused == PAUSED_BY_ANSWER
                    && c.pending.as_ref().is_none_or(|pending| pending.input.len() < HEAD_BYTES_MAX);
                if is_read && self.is_polling(id) {
                    return Next::Watch;
                }
                self.metrics().reads_paused.add(1);
                Next::Pause
            }
            Some(_) => Next::Read,
        }
    }

    /// Keeps input that can't be read yet. The runtime doesn't read the connection meanwhile, so it is one `recv` at most, and
    /// [`HEAD_BYTES_MAX`] more of who waits for a long answer.
    fn hold(&mut self, id: ConnectionId, input: &[u8]) {
        if let Some(connection) = self.connection(id)
            && !input.is_empty()
        {
            connection.pending.get_or_insert_default().input.extend_from_slice(input);
        }
    }

    // ---- HTTP

    /// Handles the requests in what is held, of which the first `seen` bytes have been read in vain before. What can't be
    /// read yet stays where it is: a body that comes in pieces is not copied for each.
    fn requests_held(
        &mut self,
        id: ConnectionId,
        mut held: Box<Pending>,
        seen: usize,
        wire: &mut impl Wire,
        now: Micros,
    ) {
        let used = self.requests(id, &mut held.input, seen, wire, now);
        held.input.drain(..used);
        if used > 0 {
            held.body_due = None;
        }
        let Some(connection) = self.connection(id).filter(|_| !held.input.is_empty()) else { return };
        match &mut connection.pending {
            Some(pending) => pending.input = held.input,
            None => connection.pending = Some(held),
        }
    }

    /// Handles the requests in `input`, of which the first `seen` bytes have been read in vain before; returns how many bytes
    /// are used up. The rest is to be held.
    fn requests(
        &mut self,
        id: ConnectionId,
        input: &mut [u8],
        seen: usize,
        wire: &mut impl Wire,
        now: Micros,
    ) -> usize {
        let mut at = 0;
        let mut seen = seen;
        loop {
            let Some(connection) = self.connection(id) else { return input.len() };
            match connection.phase {
                Phase::Head if at < input.len() && connection.paused == 0 => {}
                Phase::Head | Phase::Joining | Phase::Answering => return at,
                Phase::Open => {
                    self.feed(id, &mut input[at..], wire, now);
                    return input.len();
                }
                Phase::Closing => return input.len(),
            }
            match self.request(id, &input[at..], seen, wire, now) {
                Some(taken) => at += taken,
                None => return at,
            }
            seen = 0;
        }
    }

    /// Handles the request at the start of `input`; returns its bytes, or `None` while it isn't whole.
    fn request(
        &mut self,
        id: ConnectionId,
        input: &[u8],
        seen: usize,
        wire: &mut impl Wire,
        now: Micros,
    ) -> Option<usize> {
        let body_is_due = seen > 0 && input[..seen].windows(4).any(|w| w == b"\r\n\r\n");
        if !body_is_due && !request::is_worth_parsing(input, seen) {
            return None;
        }
        let head = match request::parse(input) {
            Ok(Some(head)) => head,
            Ok(None) => return None,
            Err(error) => {
                self.refuse(id, &error, false, false, wire, now);
                return Some(input.len());
            }
        };
        let body_bytes = head.content_length().unwrap_or(0);
        let head_only = head.method == Method::Head;
        if body_bytes > PAYLOAD_BYTES_MAX {
            let message = format!("the body has {body_bytes} bytes, at most {PAYLOAD_BYTES_MAX} are taken");
            self.refuse(id, &HttpError::new(413, message), head_only, false, wire, now);
            return Some(input.len());
        }
        let whole = head.bytes + body_bytes;
        let is_whole = input.len() >= whole;
        if !is_whole && body_is_due {
            return None;
        }
        // Judged before the body comes: nobody fills our memory who may not publish.
        let body = if is_whole { &input[head.bytes..whole] } else { &[] };
        let verdict = match self.judge(id, &head, body) {
            Ok(Verdict::Ask(publish @ Up::Publish(_), room)) => Ok(Verdict::Ask(publish, room)),
            Ok(_) if body_bytes > 0 => {
                Err(HttpError::new(400, "found a body where none is due: POST /publish takes one"))
            }
            verdict => verdict,
        };
        if !is_whole && verdict.is_ok() {
            if let Some(connection) = self.connection(id) {
                connection.pending.get_or_insert_default().body_due = Some(body_due(body_bytes, now));
            }
            if head.expects_continue() {
                self.send_private(id.slot, Bytes::from_static(b"HTTP/1.1 100 Continue\r\n\r\n"), wire, now);
            }
            return None;
        }
        let keep_alive = head.keep_alive() && !self.setup.is_draining();
        match verdict {
            Err(error) => {
                // Whoever waits with its body for our 100 won't send it now, and what others send of it is no request.
                let keep_alive = keep_alive && body_bytes == 0;
                self.refuse(id, &error, head_only, keep_alive, wire, now);
            }
            Ok(Verdict::Answer(reply)) => self.reply(id, reply, keep_alive, wire, now),
            Ok(Verdict::Upgrade(upgrade)) => self.upgrade(id, *upgrade, wire, now),
            Ok(Verdict::Read(wanted)) => {
                self.read_log(id, wanted, now);
                if let Some(connection) = self.connection(id) {
                    connection.phase = Phase::Answering;
                    connection.keep_alive = keep_alive;
                    connection.paused |= PAUSED_BY_ANSWER;
                    connection.pending.get_or_insert_default().head_only = head_only;
                }
            }
            Ok(Verdict::Ask(command, room)) => {
                self.up.push_back(command);
                if let Some(connection) = self.connection(id) {
                    connection.phase = Phase::Answering;
                    connection.keep_alive = keep_alive;
                    connection.paused |= PAUSED_BY_ANSWER;
                    let pending = connection.pending.get_or_insert_default();
                    (pending.room, pending.head_only) = (room, head_only);
                }
            }
        }
        Some(whole.min(input.len()))
    }

    pub(super) fn refuse(
        &mut self,
        id: ConnectionId,
        error: &HttpError,
        head_only: bool,
        keep_alive: bool,
        wire: &mut impl Wire,
        now: Micros,
    ) {
        self.metrics().http_errors.add(1);
        let mut reply = Vec::new();
        error.answer(head_only, keep_alive, &mut reply);
        self.reply(id, reply, keep_alive, wire, now);
    }

    fn reply(
        &mut self,
        id: ConnectionId,
        reply: Vec<u8>,
        keep_alive: bool,
        wire: &mut impl Wire,
        now: Micros,
    ) {
        self.metrics().http_requests.add(1);
        self.send_private(id.slot, reply.into(), wire, now);
        let Some(connection) = self.connection(id) else { return };
        if connection.phase == Phase::Closing {
            return;
        }
        connection.phase = Phase::Head;
        connection.heard = now.ticks();
        if !keep_alive {
            self.close(id, CloseReason::HttpDone, wire, now);
        }
    }

    /// Decides about one whole request. Nothing is sent or changed here.
    fn judge(&mut self, id: ConnectionId, head: &Head<'_>, body: &[u8]) -> Result<Verdict, HttpError> {
        let path = head.decoded_path()?;
        let head_only = head.method == Method::Head;
        let keep_alive = head.keep_alive() && !self.setup.is_draining();
        let listener = self.connection(id).map_or(ADMIN, |c| c.listener);
        let admin = listener == ADMIN;
        let setup = Arc::clone(&self.setup);
        let answer = |status, kind: &str, extra: &[(&str, &str)], body: &[u8]| {
            let mut out = Vec::with_capacity(body.len() + 256);
            request::response(status, kind, extra, body, head_only, keep_alive, &mut out);
            Ok(Verdict::Answer(out))
        };
        let health = |ok: bool, words: &str| match ok {
            true => answer(200, TEXT, &[NOT_CACHED], b"ok\n"),
            false => answer(503, TEXT, &[NOT_CACHED], words.as_bytes()),
        };
        let allow_get = || match head.method {
            Method::Get | Method::Head => Ok(()),
            other => Err(HttpError::new(405, format!("{} is not possible here: use GET", other.name()))
                .with_fields(&[("Allow", "GET, HEAD")])),
        };
        match &*path {
            "*" => answer(204, TEXT, &[("Allow", "GET, HEAD, POST, OPTIONS")], b""),
            "/livez" | "/health" => allow_get().and_then(|()| health(true, "")),
            "/healthz" => {
                allow_get()?;
                match setup.health == Health::Broker {
                    true => {
                        let up = setup.broker_is_up();
                        let (status, words) = if up { (200, "ok") } else { (503, "redis down") };
                        answer(status, TEXT, &[NOT_CACHED], words.as_bytes())
                    }
                    false => health(true, ""),
                }
            }
            "/readyz" => {
                allow_get()?;
                if setup.is_draining() {
                    return health(false, "draining\n");
                }
                health(setup.broker_is_up() || !setup.require_broker, &setup.broker_fault())
            }
            path if setup.admin_elsewhere && !admin && self.is_admins(path) => {
                Err(HttpError::new(404, format!("{path} is served on the admin address")))
            }
            "/metrics" => allow_get()
                .and_then(|()| answer(200, PROMETHEUS, &[NOT_CACHED], setup.metrics.page().as_bytes())),
            "/stats" => allow_get().map(|()| Verdict::Ask(Up::Ask { from: id }, None)),
            ADMIN_STATS => {
                allow_get()?;
                self.judge_survey(id, head).map(|question| Verdict::Ask(question, None))
            }
            "/" if !admin && !head.wants_upgrade() => {
                allow_get()?;
                answer(200, "text/html; charset=utf-8", &[PAGE_POLICY, NOT_CACHED], PAGE.as_bytes())
            }
            path => match setup.routes.joining_path(path) {
                Some(joining) => self.judge_publish(id, head, &joining, body),
                None if !admin && setup.routes.beside(path, SSE).is_some() => {
                    allow_get()?;
                    let joining = setup.routes.beside(path, SSE).unwrap_or_default();
                    self.judge_stream(id, head, &joining, usize::from(listener))
                }
                None if !admin && self.reading_path(path).is_some() => {
                    allow_get()?;
                    self.judge_reading(head, path, usize::from(listener))
                }
                None if admin => Err(HttpError::new(
                    404,
                    "not here: the admin address serves /metrics, /stats, /admin/stats, /publish and health",
                )),
                None => self.judge_upgrade(head, path, usize::from(listener)),
            },
        }
    }

    /// Whether a path is served on the admin address alone, where there is one.
    fn is_admins(&self, path: &str) -> bool {
        matches!(path, "/metrics" | "/stats" | ADMIN_STATS) || self.setup.routes.joining_path(path).is_some()
    }

    fn judge_publish(
        &mut self,
        id: ConnectionId,
        head: &Head<'_>,
        joining_path: &str,
        body: &[u8],
    ) -> Result<Verdict, HttpError> {
        if head.method != Method::Post {
            let message =
                format!("{} is not possible here: POST the message as the body", head.method.name());
            return Err(HttpError::new(405, message).with_fields(&[("Allow", "POST")]));
        }
        let listener = self.admitted(id, head)?;
        if head.content_length().is_none() {
            let message =
                "Content-Length is missing: send it with the message as the body, 0 for an empty message";
            return Err(HttpError::new(411, message));
        }
        let query = |name: &str| head.query_value(name);
        let room = self.setup.routes.room_to_publish(listener, joining_path, query).map_err(route_error)?;
        let room: Arc<str> = room.into();
        self.check_durable(head, &room)?;
        let user = head.query_value("from")?.filter(|user| !user.is_empty()).map(|user| user.into());
        let publish = Publish {
            room: room.clone(),
            payload: Bytes::copy_from_slice(body),
            from: id,
            user,
            except_sender: false,
            answer: true,
            label: None,
            keep: None,
        };
        Ok(Verdict::Ask(Up::Publish(Box::new(publish)), Some(room)))
    }

    /// `?durable=1`: only where the publication is kept by Redis. There it is anyway.
    fn check_durable(&self, head: &Head<'_>, room: &str) -> Result<(), HttpError> {
        match head.query_value("durable")?.as_deref() {
            None | Some("" | "0") => return Ok(()),
            Some("1") => {}
            Some(other) => {
                let found = crate::resp::excerpt(other.as_bytes());
                return Err(HttpError::new(400, format!("found durable={found}, due durable=1 or nothing")));
            }
        }
        let routes = &self.setup.routes;
        let channel = routes.channel_of_room(room);
        if channel.as_ref().is_some_and(|(source, _)| routes.is_stream(*source)) {
            return Ok(());
        }
        let fed = match channel {
            Some((_, channel)) => format!("is fed by the channel {channel:?}, which keeps nothing"),
            None => "is fed by nothing that keeps it".to_owned(),
        };
        let name = plain_name(room);
        Err(HttpError::new(
            409,
            format!(
                "the room {name:?} {fed}: give it a stream ([[source]] redis = \"stream PREFIX*\"), or leave durable out"
            ),
        ))
    }

    /// Lets a request through the gate; returns the index of its listener.
    pub(super) fn admitted(&mut self, id: ConnectionId, head: &Head<'_>) -> Result<usize, HttpError> {
        let listener = self.connection(id).map_or(0, |c| c.listener);
        match listener == ADMIN {
            true => self.setup.gate.admits_on_admin(head)?,
            false => self.setup.gate.admits(head)?,
        }
        Ok(usize::from(listener))
    }

    fn judge_upgrade(&mut self, head: &Head<'_>, path: &str, listener: usize) -> Result<Verdict, HttpError> {
        let protocol = [dialect::PROTOCOL, dialect::meta::PROTOCOL]
            .into_iter()
            .find(|known| head.lists("sec-websocket-protocol", known));
        let query = |name: &str| head.query_value(name);
        let resolved = match self.setup.routes.resolve(listener, path, query) {
            Err(error @ RouteError::Missing(_)) if protocol == Some(dialect::PROTOCOL) => {
                self.setup.routes.resolve_without_room(listener, path).ok_or(error)
            }
            resolved => resolved,
        };
        let mut resolved = resolved.map_err(route_error)?;
        let protocol = match (resolved.dialect, protocol) {
            (Dialect::Raw, Some(dialect::PROTOCOL)) => {
                resolved.dialect = Dialect::Json;
                protocol
            }
            (Dialect::Raw, Some(dialect::meta::PROTOCOL)) => {
                resolved.dialect = Dialect::Meta;
                protocol
            }
            (Dialect::Json, Some(dialect::PROTOCOL)) => protocol,
            _ => None,
        };
        let since = wish_of_one(head, &resolved.rooms)?;
        if resolved.key {
            self.setup.gate.admits_handshake(head)?;
        }
        let key = head.websocket_key()?;
        self.setup.gate.admits_page(&self.setup.origins, head)?;
        let mut reply = Vec::with_capacity(160);
        request::switching_protocols(&key, protocol, &mut reply);
        Ok(Verdict::Upgrade(Box::new(Upgrade {
            reply,
            rooms: resolved.rooms,
            since,
            user: Some(resolved.user).filter(|user| !user.is_empty()).map(String::into_boxed_str),
            ping: resolved.ping.unwrap_or(self.setup.bounds.ping_interval),
            publish: resolved.publish,
            hear_self: resolved.hear_self,
            dialect: resolved.dialect,
            // As many as there are tables, twice for the paths below presets' names, and /echo.
            route: resolved.route_index as u16,
        })))
    }

    /// The path of the WebSockets beside a path at which logs are read, and whether it is one that waits.
    fn reading_path(&self, path: &str) -> Option<(String, bool)> {
        let beside = |name, waits| Some((self.setup.routes.beside(path, name)?, waits));
        beside(HISTORY, false).or_else(|| beside(POLL, true))
    }

    /// The log of the room that the path beside `path` would join.
    fn judge_reading(&mut self, head: &Head<'_>, path: &str, listener: usize) -> Result<Verdict, HttpError> {
        let Some((joining, is_poll)) = self.reading_path(path) else {
            return Err(route_error(RouteError::NotFound));
        };
        let query = |name: &str| head.query_value(name);
        let resolved = self.setup.routes.resolve(listener, &joining, query).map_err(route_error)?;
        let since = wish::in_reading(head)?;
        let [room] = resolved.rooms.as_slice() else {
            let found = resolved.rooms.len();
            return Err(HttpError::new(
                400,
                format!("found {found} rooms, due one: name it as in the URL that joins it"),
            ));
        };
        if resolved.key {
            self.setup.gate.admits_handshake(head)?;
        }
        self.setup.gate.admits_page(&self.setup.origins, head)?;
        Ok(Verdict::Read(Wanted::of(head, room.as_str().into(), since, is_poll)?))
    }

    /// A response that doesn't end, of what `joining` would join.
    fn judge_stream(
        &mut self,
        id: ConnectionId,
        head: &Head<'_>,
        joining: &str,
        listener: usize,
    ) -> Result<Verdict, HttpError> {
        if head.method == Method::Head {
            return Err(HttpError::new(405, "HEAD is not possible here: a stream has no end")
                .with_fields(&[("Allow", "GET")]));
        }
        let query = |name: &str| head.query_value(name);
        let resolved = self.setup.routes.resolve(listener, joining, query).map_err(route_error)?;
        if resolved.dialect != Dialect::Raw {
            let sentence = "this route's connections join by message, which a stream can't: take a WebSocket";
            return Err(HttpError::new(400, sentence));
        }
        let since = wish_of_one(head, &resolved.rooms)?;
        if resolved.rooms.len() != 1 {
            let found = resolved.rooms.len();
            return Err(HttpError::new(
                400,
                format!("found {found} rooms, due one: a stream is of one room"),
            ));
        }
        if resolved.key {
            self.setup.gate.admits_handshake(head)?;
        }
        self.setup.gate.admits_page(&self.setup.origins, head)?;
        // Whoever comes back together is spread over two seconds; by slot, as pings are.
        let retry_millis = 1000 + u64::from(id.slot.wrapping_mul(2_654_435_761) >> 21);
        let mut reply = Vec::with_capacity(256);
        request::event_stream(head.origin(), &mut reply);
        dialect::sse::opening(retry_millis, &mut reply);
        Ok(Verdict::Upgrade(Box::new(Upgrade {
            reply,
            rooms: resolved.rooms,
            since,
            user: Some(resolved.user).filter(|user| !user.is_empty()).map(String::into_boxed_str),
            ping: resolved.ping.unwrap_or(self.setup.bounds.ping_interval),
            publish: config::Publish::None,
            hear_self: true,
            dialect: Dialect::Sse,
            route: resolved.route_index as u16,
        })))
    }

    fn upgrade(&mut self, id: ConnectionId, upgrade: Upgrade, wire: &mut impl Wire, now: Micros) {
        let Some(connection) = self.connection(id) else { return };
        connection.user = upgrade.user;
        connection.publish = upgrade.publish;
        connection.hear_self = upgrade.hear_self;
        connection.dialect = upgrade.dialect;
        connection.route = upgrade.route;
        connection.ping = if upgrade.ping.is_zero() { 0 } else { super::ticks_in(upgrade.ping) };
        connection.pending = Some(Box::new(Pending { reply: upgrade.reply, ..Pending::default() }));
        for room in &upgrade.rooms {
            match upgrade.since {
                Some(since) => self.join_since(id, room, since),
                None => {
                    self.join(id.slot, room);
                }
            }
        }
        let Some(connection) = self.connection(id) else { return };
        if connection.joining > 0 {
            connection.phase = Phase::Joining;
            connection.paused |= PAUSED_BY_ANSWER;
            if connection.subscriptions.len() > 1 {
                self.hold_back(id, now);
            }
            return;
        }
        self.open(id, wire, now);
    }

    /// All rooms are live: the 101 goes out, and what the client sent behind its handshake is read.
    pub(crate) fn open(&mut self, id: ConnectionId, wire: &mut impl Wire, now: Micros) {
        let Some(connection) = self.connection(id) else { return };
        let half_interval = connection.ping / 2;
        let mut pending = connection.pending.take().unwrap_or_default();
        let dialect = connection.dialect;
        connection.phase = Phase::Open;
        connection.opened = now.ticks();
        // The first ping comes after a half to a whole interval, spread by slot, so that connections that came together are
        // not pinged together. 2,654,435,761 is the golden ratio in 32 bits (Knuth, multiplicative hashing).
        let spread = (u64::from(id.slot.wrapping_mul(2_654_435_761)) * u64::from(half_interval)) >> 32;
        connection.heard = now.ticks().saturating_sub(spread as u32);
        let metrics = self.metrics();
        if dialect == Dialect::Sse {
            metrics.http_requests.add(1);
            metrics.event_streams.add(1);
        } else {
            metrics.handshakes.add(1);
            metrics.websockets.add(1);
        }
        self.note_opened(id);
        let was_held_back = self.connection(id).is_some_and(|c| c.stalled.is_some());
        match (dialect, self.standing_in_head(id, pending.standing, now)) {
            (Dialect::Raw | Dialect::Meta, Some(standing)) => {
                request::add_standing(&standing, &mut pending.reply);
            }
            (Dialect::Sse, Some(standing)) => dialect::sse::standing(&standing, &mut pending.reply),
            _ => {}
        }
        self.send_private(id.slot, pending.reply.into(), wire, now);
        self.entered_all(id, pending.standing, wire, now);
        if was_held_back {
            // The 101 goes first, then what its rooms got meanwhile.
            self.go_on(id, wire, now);
        }
        let mut input = pending.input;
        if !input.is_empty() {
            self.feed(id, &mut input, wire, now);
        }
        self.book_input(id);
        self.resume(id, PAUSED_BY_ANSWER);
        if self.setup.is_draining() {
            let farewell = self.setup.farewell();
            self.close(id, farewell, wire, now);
        }
    }

    /// What the head of its answer tells a connection of where it stands: where it asked for the past of its room, or
    /// could have.
    fn standing_in_head(
        &mut self,
        id: ConnectionId,
        asked: Option<Standing>,
        now: Micros,
    ) -> Option<Standing> {
        let only = match self.connections.at(id.slot)?.subscriptions.as_slice() {
            [only] => only.room,
            _ => return None,
        };
        let class = self.setup.routes.class(self.rooms.at(only)?.class);
        let keeps = class.history.frames > 0;
        asked.or_else(|| keeps.then(|| self.standing(only, now)))
    }

    pub(crate) fn answer_publish(
        &mut self,
        id: ConnectionId,
        outcome: Outcome,
        wire: &mut impl Wire,
        now: Micros,
    ) {
        let Some((room, _)) = self.answering(id) else { return };
        let name = serde_json::Value::from(room.as_deref().map_or("", plain_name));
        let (status, body) = match outcome {
            Outcome::Placed { offset, epoch } => (
                200,
                format!("{{\"room\":{name},\"offset\":{offset},\"epoch\":\"{}\"}}\n", epoch_text(epoch)),
            ),
            Outcome::Nobody => {
                (200, format!("{{\"room\":{name},\"offset\":null,\"note\":\"nobody is in the room\"}}\n"))
            }
            Outcome::Sent { receivers } => (200, format!("{{\"room\":{name},\"receivers\":{receivers}}}\n")),
            Outcome::LocalOnly => (
                200,
                format!("{{\"room\":{name},\"local_only\":true,\"note\":\"the broker did not take it\"}}\n"),
            ),
            Outcome::Busy => {
                (503, "{\"error\":\"too much is on its way to the broker: try again later\"}\n".to_owned())
            }
            Outcome::TooBig => (
                413,
                format!(
                    "{{\"error\":\"in the broker's envelope it has more than {PAYLOAD_BYTES_MAX} bytes: send less\"}}\n"
                ),
            ),
            Outcome::Appended(id) => (200, format!("{{\"room\":{name},\"id\":\"{id}\"}}\n")),
            Outcome::Away => (
                503,
                "{\"error\":\"redis is away, and the room has only what its stream has: nothing was taken, try again \
                 later\"}\n"
                    .to_owned(),
            ),
            Outcome::Unknown => (
                504,
                "{\"error\":\"redis went away before it answered: the publication may be in the stream or not\"}\n"
                    .to_owned(),
            ),
            Outcome::Refused => (
                502,
                "{\"error\":\"the broker refused the publication; its log line says why\"}\n".to_owned(),
            ),
        };
        self.finish_answer(id, status, &body, false, wire, now);
    }

    pub(crate) fn answer_stats(
        &mut self,
        id: ConnectionId,
        report: &Report,
        wire: &mut impl Wire,
        now: Micros,
    ) {
        let Some((_, head_only)) = self.answering(id) else { return };
        let body = crate::stats::page(&self.setup, report);
        self.finish_answer(id, 200, &body, head_only, wire, now);
    }

    /// What the request named, and whether it was a HEAD; `None` when nobody waits any more.
    pub(super) fn answering(&mut self, id: ConnectionId) -> Option<(Option<Arc<str>>, bool)> {
        let connection = self.connection(id).filter(|c| c.phase == Phase::Answering)?;
        let pending = connection.pending.as_mut()?;
        Some((pending.room.take(), std::mem::take(&mut pending.head_only)))
    }

    pub(super) fn finish_answer(
        &mut self,
        id: ConnectionId,
        status: u16,
        body: &str,
        head_only: bool,
        wire: &mut impl Wire,
        now: Micros,
    ) {
        let keep_alive = self.connection(id).is_some_and(|c| c.keep_alive) && !self.setup.is_draining();
        let mut reply = Vec::with_capacity(body.len() + 160);
        request::response(status, JSON, &[NOT_CACHED], body.as_bytes(), head_only, keep_alive, &mut reply);
        if status >= 400 {
            self.metrics().http_errors.add(1);
        }
        self.reply(id, reply, keep_alive, wire, now);
        self.read_held(id, PAUSED_BY_ANSWER, wire, now);
    }

    /// A reason not to read a connection is gone: handles the requests that it had sent before, and has it read on unless
    /// one of them is another reason.
    pub(crate) fn read_held(&mut self, id: ConnectionId, reason: u8, wire: &mut impl Wire, now: Micros) {
        let Some(connection) = self.connection(id) else { return };
        if connection.paused & reason == 0 {
            return;
        }
        connection.paused &= !reason;
        if connection.phase == Phase::Head
            && connection.paused == 0
            && let Some(held) = connection.pending.take()
        {
            self.requests_held(id, held, 0, wire, now);
            self.book_input(id);
        }
        if self.connection(id).is_some_and(|c| c.paused == 0) {
            self.actions.push(Action::Resume(id));
        }
    }

    // ---- WebSocket

    fn feed(&mut self, id: ConnectionId, input: &mut [u8], wire: &mut impl Wire, now: Micros) {
        let Some(connection) = self.connection(id) else { return };
        // Whoever listens to a stream has nothing more to say.
        if connection.dialect == Dialect::Sse {
            return;
        }
        connection.heard = now.ticks();
        connection.pinged = false;
        let (echo, answers) = (connection.dialect == Dialect::Echo, connection.dialect == Dialect::Json);
        // The session leaves its slot while it is read, so that what it says can change the connection.
        let mut session = std::mem::take(&mut connection.session);
        let bounds = SessionBounds {
            message_bytes_max: if echo { PAYLOAD_BYTES_MAX } else { self.setup.bounds.message_bytes_max },
            fragments_max: self.setup.bounds.fragments_max,
        };
        let mut input = Input::new(input);
        if answers {
            self.gather_answers(id.slot);
        }
        loop {
            match session.next(&mut input, &bounds) {
                Ok(Some(event)) => self.said(id, event, wire, now),
                Ok(None) => break,
                Err(reason) => return self.close(id, reason, wire, now),
            }
        }
        self.send_answers(id.slot, wire, now);
        let backlog = self.up.len() > self.setup.engine.up_backlog_max;
        if let Some(connection) = self.connection(id)
            && connection.phase == Phase::Open
        {
            connection.session = session;
            if backlog && connection.paused & PAUSED_BY_UP == 0 {
                connection.paused |= PAUSED_BY_UP;
                self.waiting_up.push(id);
            }
        }
    }

    fn said(&mut self, id: ConnectionId, event: Event<'_>, wire: &mut impl Wire, now: Micros) {
        if self.connection(id).is_none_or(|c| c.phase != Phase::Open) {
            return;
        }
        match event {
            Event::Text(text) => self.message(id, FIRST_OCTET_TEXT, text.as_bytes(), wire, now),
            Event::Binary(octets) => self.message(id, FIRST_OCTET_BINARY, octets, wire, now),
            Event::Ping(payload) => {
                let mut pong = Vec::with_capacity(payload.len() + 2);
                encode_pong(payload, &mut pong);
                self.send_pong(id, pong.into(), wire, now);
            }
            Event::Pong(_) => {}
            Event::Close { code, .. } => {
                let mut reply = Vec::with_capacity(4);
                match code {
                    Some(code) => encode_close(code, "", &mut reply),
                    None => encode_close_without_code(&mut reply),
                }
                self.send_private(id.slot, reply.into(), wire, now);
                self.close(id, CloseReason::PeerClosed, wire, now);
            }
        }
    }

    fn message(
        &mut self,
        id: ConnectionId,
        first_octet: u8,
        payload: &[u8],
        wire: &mut impl Wire,
        now: Micros,
    ) {
        self.metrics().messages_received.add(1);
        let Some(connection) = self.connection(id) else { return };
        if connection.dialect == Dialect::Echo {
            let (header, header_bytes) = encode_header(first_octet, payload.len());
            let mut frame = Vec::with_capacity(header_bytes + payload.len());
            frame.extend_from_slice(&header[..header_bytes]);
            frame.extend_from_slice(payload);
            return self.send_private(id.slot, frame.into(), wire, now);
        }
        // Its joins are no publications, whatever becomes of those.
        if connection.dialect == Dialect::Json {
            return self.dialogue(id, payload, wire, now);
        }
        if connection.publish == config::Publish::Ignore {
            return self.metrics().messages_ignored.add(1);
        }
        // A raw message can't say which of several rooms it is for.
        let room = match (connection.publish, connection.subscriptions.as_slice()) {
            (config::Publish::Member | config::Publish::Any, [only]) => only.room,
            _ => return self.close(id, CloseReason::PublishNotAllowed, wire, now),
        };
        let (user, except_sender) = (connection.user.clone(), !connection.hear_self);
        let Some(room) = self.rooms.at(room).map(|room| room.name.clone()) else { return };
        let payload = Bytes::copy_from_slice(payload);
        let publish =
            Publish { room, payload, from: id, user, except_sender, answer: false, label: None, keep: None };
        self.up.push_back(Up::Publish(Box::new(publish)));
    }

    /// There is space on the way to the relay again: reads who waited for it, a batch of them at a time. Who was not read
    /// has something to say, so that the next call will come.
    pub fn resume_publishers(&mut self) {
        let batch = self.unread_up.len().min(RESUMED_PUBLISHERS_MAX);
        let resumed: Vec<ConnectionId> = self.unread_up.drain(..batch).collect();
        // Behind the others: who was read last time doesn't take their place.
        for id in resumed.iter().copied().chain(std::mem::take(&mut self.waiting_up)) {
            self.resume(id, PAUSED_BY_UP);
        }
        self.resumed_up = (resumed, 0);
    }

    /// Whether connections wait for space on the way to the relay.
    pub fn has_waiting_publishers(&self) -> bool {
        !self.waiting_up.is_empty() || !self.unread_up.is_empty()
    }
}

/// Tick at which a body has to be whole whose head has just come.
fn body_due(body_bytes: usize, now: Micros) -> u32 {
    now.ticks() + super::ticks_in(body_patience(body_bytes))
}

/// What a request wants of the past of the room that it joins.
fn wish_of_one(head: &Head<'_>, rooms: &[String]) -> Result<Option<Since>, HttpError> {
    match (wish::in_request(head)?, rooms.len()) {
        (since, 1) => Ok(since),
        (None, _) => Ok(None),
        (Some(_), found) => {
            let sentence = format!(
                "found {found} rooms and a place to go on at, due one room: each has numbers of its own"
            );
            Err(HttpError::new(400, sentence))
        }
    }
}

fn route_error(error: RouteError<HttpError>) -> HttpError {
    match error {
        RouteError::Query(error) => error,
        error => HttpError::new(error.status(), error.to_string()),
    }
}

/// Connections that are resumed at once: most of them find the space taken by the first.
const RESUMED_PUBLISHERS_MAX: usize = 64;
