//! What the client commands share: where a server is, how a name goes into a URL, how long they wait. Knows no sockets.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::exit::{self, Failure};

/// How long a connect may take, per address of the name.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take. Longer than the server's own wait for its broker (5 s), so that the server speaks first.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A server as a person names it: `HOST:PORT`, `http://HOST:PORT`, `ws://HOST:PORT/ws?token=x`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Host without brackets, for the resolver.
    pub host: String,
    /// 80 when the text named none.
    pub port: u16,
    /// Empty or beginning with `/`; no query.
    path: String,
    /// Without its `?`.
    query: String,
}

impl Target {
    /// The root of the server at `host` (without brackets) and `port`.
    pub fn new(host: String, port: u16) -> Self {
        Self { host, port, path: String::new(), query: String::new() }
    }

    /// Reads `text`; either scheme fits either command, so that one address serves both.
    ///
    /// # Errors
    /// Exit code 2 for schemes with TLS, for an empty host and for a port that is no number.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let rest = match text.split_once("://") {
            None | Some(("http" | "ws", _)) => text.split_once("://").map_or(text, |(_, rest)| rest),
            Some(("https" | "wss", _)) => {
                return Err(Failure::usage(format!(
                    "{text} asks for TLS, which this client doesn't speak: name the plain address behind the proxy \
                     (http://HOST:PORT or ws://HOST:PORT/ws)"
                )));
            }
            Some((scheme, _)) => {
                return Err(Failure::usage(format!(
                    "{text} has the scheme {scheme:?} where http or ws was due: write http://HOST:PORT or \
                     ws://HOST:PORT/ws"
                )));
            }
        };
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let tail = tail.split('#').next().unwrap_or_default();
        let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
        let (host, port) = host_and_port(authority, 80).ok_or_else(|| {
            Failure::usage(format!(
                "{text} names no HOST:PORT (found {authority:?}): write http://127.0.0.1:8080"
            ))
        })?;
        Ok(Self { host, port, path: path.to_owned(), query: query.to_owned() })
    }

    /// `ws://HOST:PORT/ws?room=..`, with the path and query that the text named.
    pub fn subscribe_url(&self, parameters: &[(&str, &str)]) -> String {
        self.socket_url("/ws", parameters)
    }

    /// `ws://HOST:PORT` with `path_default` where the text named no path.
    pub fn socket_url(&self, path_default: &str, parameters: &[(&str, &str)]) -> String {
        let path = if matches!(self.path.as_str(), "" | "/") { path_default } else { &self.path };
        self.url("ws", path, parameters)
    }

    /// `http://HOST:PORT/publish?room=..`; the path of a WebSocket URL stands for the server's root.
    pub fn publish_url(&self, parameters: &[(&str, &str)]) -> String {
        let path = if matches!(self.path.as_str(), "" | "/" | "/ws") { "/publish" } else { &self.path };
        self.url("http", path, parameters)
    }

    fn url(&self, scheme: &str, path: &str, parameters: &[(&str, &str)]) -> String {
        let mut query = self.query.clone();
        for (name, value) in parameters {
            let separator = if query.is_empty() { "" } else { "&" };
            query.push_str(&format!("{separator}{name}={}", percent_encode(value)));
        }
        let mark = if query.is_empty() { "" } else { "?" };
        format!("{scheme}://{self}{path}{mark}{query}")
    }
}

/// `HOST:PORT` as it stands in a URL, with brackets around an IPv6 address.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Splits `HOST`, `HOST:PORT`, `:PORT` (localhost), `[V6]` or `[V6]:PORT`; `None` where host or port make no sense.
pub fn host_and_port(authority: &str, port_default: u16) -> Option<(String, u16)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => match authority.rsplit_once(':') {
            Some(("", port)) => ("localhost", Some(port)),
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = port.map_or(Some(port_default), |port| port.parse().ok())?;
    let host_is_named = !host.is_empty() && !host.contains(['@', ' ', '[', ']']);
    host_is_named.then(|| (host.to_owned(), port))
}

/// Encodes all but the unreserved characters of RFC 3986 section 2.3, so that any room name survives a query.
pub fn percent_encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte as char),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
        encoded
    })
}

/// A duration as the configuration writes it: `10s`, `250ms`.
///
/// # Errors
/// A sentence.
pub fn duration(text: &str) -> Result<Duration, String> {
    shards::config::parse_duration(text)
        .ok_or_else(|| format!("found {text:?}, due a duration such as 10s or 250ms"))
}

/// Messages a second, for clap.
///
/// # Errors
/// A sentence.
pub fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if rate > 0.0 && f64::is_finite(rate) => Ok(rate),
        _ => Err(format!("found {text:?} where messages a second were due: write 10 or 0.5")),
    }
}

/// The trimmed content of `path`, fit for a header.
///
/// # Errors
/// Exit code 77 for a file that can't be read or holds no printable key.
pub fn read_api_key(path: &Path) -> Result<String, Failure> {
    let unusable = |found: String| {
        let path = path.display();
        let sentence = format!("the key file {path} {found}: name the server's --api-key-file");
        Failure::new(exit::NO_PERMISSION, sentence)
    };
    let key = fs::read_to_string(path).map_err(|error| unusable(format!("can't be read ({error})")))?;
    let key = key.trim();
    let is_header_text = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
    is_header_text.then(|| key.to_owned()).ok_or_else(|| unusable("holds no printable key".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Target {
        Target::parse(text).unwrap()
    }

    #[test]
    fn one_address_serves_both_commands() {
        for text in ["http://h:8080", "ws://h:8080/ws", "h:8080", "http://h:8080/"] {
            assert_eq!(parse(text).subscribe_url(&[("room", "a")]), "ws://h:8080/ws?room=a", "{text}");
            assert_eq!(parse(text).publish_url(&[("room", "a")]), "http://h:8080/publish?room=a", "{text}");
        }
    }

    #[test]
    fn any_room_name_survives_the_query() {
        let url = parse("h:1").subscribe_url(&[("room", "a b&c=d/ü#%"), ("client_id", "+")]);
        assert_eq!(url, "ws://h:1/ws?room=a%20b%26c%3Dd%2F%C3%BC%23%25&client_id=%2B");
    }

    #[test]
    fn a_path_and_a_query_of_the_users_stay() {
        let target = parse("ws://h:1/event-fanout/ws?token=t");
        assert_eq!(target.subscribe_url(&[("room", "a")]), "ws://h:1/event-fanout/ws?token=t&room=a");
    }

    #[test]
    fn ipv6_addresses_keep_their_brackets_in_the_url() {
        let target = parse("http://[::1]:8080");
        assert_eq!((target.host.as_str(), target.port), ("::1", 8080));
        assert_eq!(target.to_string(), "[::1]:8080");
    }

    #[test]
    fn addresses_without_sense_are_refused_with_the_form_that_is_due() {
        for text in [
            "wss://h/ws",
            "redis://h",
            "http://",
            "h:port",
            "http://[::1",
            "http://user@h:1",
            "h:99999",
            "]:h:1",
        ] {
            let failure = Target::parse(text).expect_err(text);
            assert_eq!(failure.code, crate::exit::USAGE);
            assert!(
                failure.sentence.contains("://HOST") || failure.sentence.contains("127.0.0.1"),
                "{failure}"
            );
        }
    }

    #[test]
    fn durations_carry_their_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for text in ["5", "s", "1y", "-1s", "1..2s", "99999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
