//! The head of one HTTP/1.1 request, read strictly, and the few answers that need no more than text.
//!
//! `httparse` finds the lines; this file refuses what it tolerates (bare line feeds, several Hosts, two lengths, targets
//! that name a server), because what two readers of one request understand differently is how requests are smuggled past
//! a proxy. It reads no body and knows no path; those are the caller's.

mod authority;
mod percent;
mod reply;
mod upgrade;

use std::borrow::Cow;
use std::mem::MaybeUninit;

use crate::limits::{HEAD_BYTES_MAX, HEAD_FIELDS_MAX};
use crate::route::{is_name, name_fault};

pub use authority::Authority;
pub use reply::{event_stream, response};
pub use upgrade::{AcceptKey, add_standing, switching_protocols};

/// Request line and header fields of one request, borrowed from the buffer they arrived in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head<'a> {
    /// What is asked for.
    pub method: Method,
    /// The target up to its `?`, as it came; starts with `/`, or is `*` where OPTIONS asks for the server as a whole.
    pub path: &'a str,
    /// The target after its `?`, as it came; empty where there is none.
    pub query: &'a str,
    /// Bytes of the head, the empty line included: what follows is the body, or frames.
    pub bytes: usize,
    version: Version,
    host: &'a str,
    content_length: Option<usize>,
    fields: Vec<(&'a str, &'a str)>,
}

/// The methods that this server knows; any other is answered with 501.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
}

/// Of the request; answers are always HTTP/1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
}

/// A request that is refused: the status of the answer, and a sentence for whoever reads its body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status} {message}")]
pub struct HttpError {
    /// 4xx or 5xx.
    pub status: u16,
    /// What was found, what was due, what to do; no line end.
    pub message: Cow<'static, str>,
    /// Header fields that the status requires, for example Allow with 405 (RFC 9110 section 15.5.6).
    pub fields: &'static [(&'static str, &'static str)],
}

/// Reads the head at the start of `buf`; `None` while it isn't whole.
///
/// One empty line before it is skipped (RFC 9112 section 2.2). HTTP/1.0 is understood for plain requests, health checkers
/// among them send it. Allocates once, for the list of fields. The result is the same however the octets arrive.
///
/// # Errors
/// After any of them the connection must be closed, because where the next request starts is unknown.
/// 400: malformed, a bare line feed, a folded line, a target that isn't a path, no Host or several, a field's value that
/// is no UTF-8, a Content-Length that is repeated or no number, Transfer-Encoding beside it or on an upgrade.
/// 411: Transfer-Encoding on a plain request; bodies come with a Content-Length here. 414: no line end within
/// [`HEAD_BYTES_MAX`]. 431: longer than that, or more than [`HEAD_FIELDS_MAX`] fields. 501: a method that isn't one of
/// [`Method`]. 505: neither HTTP/1.1 nor HTTP/1.0.
pub fn parse(buf: &[u8]) -> Result<Option<Head<'_>>, HttpError> {
    let window = &buf[..buf.len().min(HEAD_BYTES_MAX)];
    let skipped_bytes = if window.starts_with(b"\r\n") { 2 } else { 0 };
    let octets = &window[skipped_bytes..];
    match octets {
        [] | [b'\r'] if skipped_bytes == 0 => return Ok(None),
        [b'\r' | b'\n', ..] => return Err(HttpError::new(400, "empty lines where a request line was due")),
        _ => {}
    }
    // httparse takes a bare line feed for a line end, so it is shown only what comes before the first one. An error in
    // there is reported in its stead, as it would have been had the line feed not arrived yet.
    let line_feed = bare_line_feed(octets);
    let lines = &octets[..line_feed.unwrap_or(octets.len())];

    let mut slots = [const { MaybeUninit::uninit() }; HEAD_FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(lines, &mut slots) {
        Ok(httparse::Status::Complete(bytes)) => Head::check(&request, skipped_bytes + bytes).map(Some),
        Ok(httparse::Status::Partial) if line_feed.is_some() => {
            Err(HttpError::new(400, "a line ends with a bare line feed: end each with CR LF"))
        }
        Ok(httparse::Status::Partial) if window.len() == HEAD_BYTES_MAX => Err(too_long(octets)),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(error) => Err(malformed(error, octets)),
    }
}

/// Whether [`parse`] could say something new about `buf`, of which it has seen the first `bytes_before` in vain.
///
/// It starts from the beginning each time, so a head that arrives octet by octet is read once per line, not once per
/// octet.
pub fn is_worth_parsing(buf: &[u8], bytes_before: usize) -> bool {
    bytes_before == 0 || buf.len() >= HEAD_BYTES_MAX || buf[bytes_before..].contains(&b'\n')
}

/// Checks that `decoded` can name a room: 1 to [`ROOM_NAME_BYTES_MAX`](crate::limits::ROOM_NAME_BYTES_MAX) bytes, no control characters.
///
/// # Errors
/// 400.
pub fn room_name(decoded: &str) -> Result<&str, HttpError> {
    if is_name(decoded) { Ok(decoded) } else { Err(HttpError::new(400, name_fault(decoded))) }
}

impl<'a> Head<'a> {
    /// Judges what httparse has read.
    fn check(request: &httparse::Request<'_, 'a>, bytes: usize) -> Result<Head<'a>, HttpError> {
        // A complete parse has all three.
        let (method, target, version) = match (request.method, request.path, request.version) {
            (Some(method), Some(target), Some(version)) => (method, target, version),
            _ => return Err(HttpError::new(400, REQUEST_LINE_IS_DUE)),
        };
        let version = if version == 0 { Version::Http10 } else { Version::Http11 };
        let method = Method::named(method)?;
        let (authority, target) = absolute_form(target);
        let (path, query) = match (method, target) {
            // Asterisk-form, RFC 9112 section 3.2.4.
            (Method::Options, "*") => (target, ""),
            _ => origin_form(target)?,
        };
        let mut fields = Vec::with_capacity(request.headers.len());
        for field in request.headers.iter() {
            let value = std::str::from_utf8(field.value).map_err(|_| {
                HttpError::new(400, format!("the value of the field {} is no UTF-8", quoted(field.name)))
            })?;
            fields.push((field.name, value));
        }
        let mut head = Head { method, path, query, bytes, version, host: "", content_length: None, fields };
        head.host = head.checked_host()?;
        if let Some(authority) = authority {
            head.host = valid_host(authority)?;
        }
        head.content_length = head.checked_content_length()?;
        Ok(head)
    }

    /// RFC 9112 section 3.2: exactly one, and a valid one; only HTTP/1.0 may leave it out.
    fn checked_host(&self) -> Result<&'a str, HttpError> {
        let mut hosts = self.fields("host");
        match (hosts.next(), hosts.next()) {
            (Some(host), None) => valid_host(host),
            (None, _) if self.version == Version::Http10 => Ok(""),
            (None, _) => Err(HttpError::new(400, "the Host field is missing: send exactly one")),
            (Some(_), Some(_)) => Err(HttpError::new(400, "several Host fields: send exactly one")),
        }
    }

    /// RFC 9112 section 6.3: one length, told in one way.
    fn checked_content_length(&self) -> Result<Option<usize>, HttpError> {
        let mut lengths = self.fields("content-length");
        let length = lengths.next();
        if lengths.next().is_some() {
            return Err(HttpError::new(400, "several Content-Length fields: send at most one"));
        }
        if self.field("transfer-encoding").is_some() {
            return Err(match length {
                Some(_) => {
                    HttpError::new(400, "Content-Length beside Transfer-Encoding: send only Content-Length")
                }
                None if self.wants_upgrade() || self.version == Version::Http10 => {
                    HttpError::new(400, "Transfer-Encoding has no place in this request: leave the body out")
                }
                None => HttpError::new(
                    411,
                    "Transfer-Encoding is not understood: send the body with Content-Length",
                ),
            });
        }
        length.map(content_length).transpose()
    }

    /// The first field named `name`, whatever its case, without surrounding white space.
    pub fn field(&self, name: &str) -> Option<&'a str> {
        self.fields(name).next()
    }

    /// Every field named `name`, whatever its case, in the order of the request.
    pub fn fields(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.fields.iter().filter(move |(found, _)| found.eq_ignore_ascii_case(name)).map(|&(_, value)| value)
    }

    /// What EventSource sends when it comes back: the id of the last event that it got (HTML standard, section 9.2.4).
    pub fn last_event_id(&self) -> Option<&'a str> {
        self.fields("last-event-id").next().filter(|id| !id.is_empty())
    }

    /// Whether a field that is a list, such as Connection, has the member `token`, whatever its case.
    pub(crate) fn lists(&self, name: &str, token: &str) -> bool {
        self.fields(name)
            .flat_map(|value| value.split(','))
            .any(|member| member.trim_matches([' ', '\t']).eq_ignore_ascii_case(token))
    }

    /// The host that is asked, a valid `host` or `host:port`: of the Host field, or of a target in absolute-form, which
    /// counts in its place (RFC 9112 section 3.2.2). Empty only in HTTP/1.0.
    pub fn host(&self) -> &'a str {
        self.host
    }

    /// The Origin field, which browsers add to WebSockets and to requests that may change something.
    pub fn origin(&self) -> Option<&'a str> {
        self.field("origin")
    }

    /// Bytes of the body, which follows the head; `None` and 0 mean that there is none.
    pub fn content_length(&self) -> Option<usize> {
        self.content_length
    }

    /// Whether the client waits for `100 Continue` before it sends the body; curl does above 1 MiB.
    pub fn expects_continue(&self) -> bool {
        self.version == Version::Http11 && self.lists("expect", "100-continue")
    }

    /// Whether the connection stays open after the answer (RFC 9112 section 9.3).
    pub fn keep_alive(&self) -> bool {
        match self.version {
            Version::Http11 => !self.lists("connection", "close"),
            Version::Http10 => self.lists("connection", "keep-alive") && !self.lists("connection", "close"),
        }
    }

    /// Whether a proxy has passed the request on, as far as the usual fields tell.
    pub fn forwarded(&self) -> bool {
        self.fields.iter().any(|(name, _)| {
            starts_with_ignoring_case(name, "x-forwarded-")
                || FORWARDING_FIELDS.iter().any(|forwarding| name.eq_ignore_ascii_case(forwarding))
        })
    }

    /// The path, percent-decoded once; a `+` stays one.
    ///
    /// # Errors
    /// 400 for a `%` without two hexadecimal digits, and for octets that are no UTF-8.
    pub fn decoded_path(&self) -> Result<Cow<'a, str>, HttpError> {
        percent::decode(self.path, percent::Plus::IsPlus)
            .map_err(|error| HttpError::new(400, format!("the path is malformed: {error}")))
    }

    /// The query parameter `name`, percent-decoded once, `+` being a space; empty for a name without a value.
    ///
    /// # Errors
    /// 400 when it is repeated, for a `%` without two hexadecimal digits, and for octets that are no UTF-8. Other
    /// parameters are not judged.
    pub fn query_value(&self, name: &str) -> Result<Option<Cow<'a, str>>, HttpError> {
        let mut found = None;
        for parameter in self.query.split('&') {
            let (raw_name, raw_value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let is_named =
                percent::decode(raw_name, percent::Plus::IsSpace).is_ok_and(|decoded| decoded == name);
            if is_named && found.replace(raw_value).is_some() {
                let message = format!("the query parameter {} is repeated: send it once", quoted(name));
                return Err(HttpError::new(400, message));
            }
        }
        let Some(raw_value) = found else { return Ok(None) };
        match percent::decode(raw_value, percent::Plus::IsSpace) {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                let message = format!("the query parameter {} is malformed: {error}", quoted(name));
                Err(HttpError::new(400, message))
            }
        }
    }
}

impl Method {
    /// As it stands in the request line.
    pub const fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
            Method::Options => "OPTIONS",
        }
    }

    fn named(name: &str) -> Result<Method, HttpError> {
        const ALL: [Method; 7] = [
            Method::Get,
            Method::Head,
            Method::Post,
            Method::Put,
            Method::Patch,
            Method::Delete,
            Method::Options,
        ];
        // RFC 9110 section 9.1: methods are case-sensitive.
        ALL.into_iter()
            .find(|method| method.name() == name)
            .ok_or_else(|| HttpError::new(501, format!("the method {} is not known here", quoted(name))))
    }
}

impl HttpError {
    /// An error whose status needs no further field.
    pub fn new(status: u16, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, message: message.into(), fields: &[] }
    }

    /// The same with header `fields` in its answer.
    pub fn with_fields(self, fields: &'static [(&'static str, &'static str)]) -> Self {
        Self { fields, ..self }
    }

    /// Appends the answer, its message as plain text, to `out`.
    pub fn answer(&self, head_only: bool, keep_alive: bool, out: &mut Vec<u8>) {
        let body = format!("{}\n", self.message);
        let content_type = "text/plain; charset=utf-8";
        response(self.status, content_type, self.fields, body.as_bytes(), head_only, keep_alive, out);
    }
}

/// The index of the first line feed without a carriage return before it.
fn bare_line_feed(octets: &[u8]) -> Option<usize> {
    octets
        .iter()
        .enumerate()
        .find(|&(index, &octet)| octet == b'\n' && (index == 0 || octets[index - 1] != b'\r'))
        .map(|(index, _)| index)
}

fn valid_host(host: &str) -> Result<&str, HttpError> {
    match Authority::parse(host) {
        Some(_) => Ok(host),
        None => Err(HttpError::new(400, format!("the Host {} is no `host` or `host:port`", quoted(host)))),
    }
}

/// Takes the authority off a target in absolute-form, which every server must accept (RFC 9112 section 3.2.2). What is left is
/// a target in origin-form.
fn absolute_form(target: &str) -> (Option<&str>, &str) {
    let scheme = ["http://", "https://"].into_iter().find(|scheme| starts_with_ignoring_case(target, scheme));
    let Some(rest) = scheme.and_then(|scheme| target.get(scheme.len()..)) else { return (None, target) };
    match rest.find('/') {
        Some(at) => (Some(&rest[..at]), &rest[at..]),
        None => (Some(rest), "/"),
    }
}

/// Splits a target in origin-form (RFC 9112 section 3.2.1).
fn origin_form(target: &str) -> Result<(&str, &str), HttpError> {
    if !target.starts_with('/') {
        let message =
            format!("the target {} is no path: ask for `/...` or `http://HOST/...`", quoted(target));
        return Err(HttpError::new(400, message));
    }
    if target.contains('#') {
        return Err(HttpError::new(400, "the target holds a fragment: leave `#...` out, or write %23"));
    }
    Ok(target.split_once('?').unwrap_or((target, "")))
}

/// RFC 9110 section 8.6: digits and nothing else; no sign, no list.
fn content_length(value: &str) -> Result<usize, HttpError> {
    let is_number = !value.is_empty() && value.bytes().all(|octet| octet.is_ascii_digit());
    let length = if is_number { value.parse().ok() } else { None };
    length.ok_or_else(|| {
        HttpError::new(400, format!("the Content-Length {} is no number of bytes", quoted(value)))
    })
}

fn malformed(error: httparse::Error, octets: &[u8]) -> HttpError {
    match error {
        httparse::Error::TooManyHeaders => {
            HttpError::new(431, format!("more than {HEAD_FIELDS_MAX} header fields: send fewer"))
        }
        httparse::Error::Version if third_word(octets).starts_with(b"HTTP/") => {
            HttpError::new(505, "this version of HTTP is not spoken here: use HTTP/1.1")
        }
        httparse::Error::HeaderName => HttpError::new(
            400,
            "a header field is malformed: `Name: value`, no space before the colon, no folded lines",
        ),
        httparse::Error::HeaderValue => {
            HttpError::new(400, "a header field's value holds a control character")
        }
        httparse::Error::NewLine => HttpError::new(400, "a line ends without CR LF"),
        httparse::Error::Status | httparse::Error::Token | httparse::Error::Version => {
            HttpError::new(400, REQUEST_LINE_IS_DUE)
        }
    }
}

/// What stands where a request line has its version.
fn third_word(octets: &[u8]) -> &[u8] {
    octets.split(|&octet| octet == b' ').nth(2).unwrap_or(&[])
}

fn too_long(octets: &[u8]) -> HttpError {
    if octets.contains(&b'\n') {
        HttpError::new(
            431,
            format!("the head of the request is above {HEAD_BYTES_MAX} bytes: send fewer fields"),
        )
    } else {
        HttpError::new(
            414,
            format!("the request line is above {HEAD_BYTES_MAX} bytes: send a shorter target"),
        )
    }
}

fn starts_with_ignoring_case(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// A client's text for a message: escaped, and cut to a length that a terminal shows.
fn quoted(text: &str) -> String {
    const BYTES_MAX: usize = 64;
    let shown = &text[..text.floor_char_boundary(BYTES_MAX)];
    if shown.len() == text.len() { format!("{shown:?}") } else { format!("{shown:?}...") }
}

const REQUEST_LINE_IS_DUE: &str = "the request line is malformed: `METHOD /path HTTP/1.1` was due";

/// Beside X-Forwarded-*: what proxies, tunnels and load balancers add.
const FORWARDING_FIELDS: [&str; 8] = [
    "forwarded",
    "via",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "x-original-forwarded-for",
];

#[cfg(test)]
mod tests;
