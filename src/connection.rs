//! One WebSocket of a client command, blocking: how it is opened, how it ends, what its end means, when to come back.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::HandshakeError;
use tungstenite::handshake::client::{ClientHandshake, Request};
use tungstenite::http::{HeaderValue, Response, StatusCode};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Error, WebSocket};

use crate::client::{ANSWER_TIMEOUT, CONNECT_TIMEOUT, Target};
use crate::exit::{self, Failure};

/// How often a connection that hears nothing looks whether it should stop.
pub const STOP_CHECK: Duration = Duration::from_millis(100);
/// How long the server may take to answer our Close frame.
pub const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// First bound of the wait before connecting again; doubles up to [`RECONNECT_WAIT_MAX`].
const RECONNECT_WAIT_MIN: Duration = Duration::from_millis(100);
/// See [`RECONNECT_WAIT_MIN`].
const RECONNECT_WAIT_MAX: Duration = Duration::from_secs(30);
/// A connection that lived this long was a success: the next wait begins small again.
pub const RECONNECT_STEADY: Duration = Duration::from_secs(10);

/// How a connection ended.
pub enum End {
    /// We were told to stop.
    Stopped,
    /// The server sent a Close frame.
    Closed(Option<CloseFrame>),
    /// TCP ended or broke without one.
    Broken(Error),
    /// There was no connection, or no join.
    Refused { failure: Failure, retry: bool },
}

impl End {
    /// Whether connecting again can help.
    pub fn retry(&self) -> bool {
        match self {
            Self::Stopped => false,
            Self::Closed(frame) => frame.as_ref().is_none_or(|frame| Advice::of(frame.code.into()).retry),
            Self::Broken(_) => true,
            Self::Refused { retry, .. } => *retry,
        }
    }

    /// The exit code of a command whose connection ended so.
    pub fn code(&self) -> u8 {
        match self {
            Self::Stopped => 0,
            Self::Closed(Some(frame)) if u16::from(frame.code) == 1000 => 0,
            Self::Closed(_) | Self::Broken(_) => exit::FAILED,
            Self::Refused { failure, .. } => failure.code,
        }
    }

    /// What happened and what to do, for a person.
    pub fn sentence(&self) -> String {
        match self {
            Self::Stopped => "left".to_owned(),
            Self::Closed(None) => "the server closed without a code: its log says why".to_owned(),
            Self::Closed(Some(frame)) => {
                let code = u16::from(frame.code);
                let reason = if frame.reason.is_empty() {
                    String::new()
                } else {
                    format!(" ({})", frame.reason.escape_debug())
                };
                format!("closed by the server with {code}{reason}: {}", Advice::of(code).sentence)
            }
            Self::Broken(error) => format!(
                "the connection broke without a Close frame ({error}): the server was killed, or something between \
                 dropped it; its log says more, --reconnect carries on"
            ),
            Self::Refused { failure, .. } => failure.sentence.clone(),
        }
    }
}

/// What a close code means to a subscriber (RFC 6455 section 7.4.1, the IANA registry, docs/PROTOCOL.md).
struct Advice {
    sentence: &'static str,
    retry: bool,
}

impl Advice {
    const fn of(code: u16) -> Self {
        let (sentence, retry) = match code {
            1000 => ("it has nothing more to say", false),
            1001 => ("it is going away; connect again in a moment, or pass --reconnect", true),
            1002 => ("it saw a broken frame: a fault of this program or of a proxy between", false),
            1003 => ("it doesn't take this kind of data", false),
            1007 => ("it was sent text that is not UTF-8", false),
            1008 => (
                "a rule was broken, the reason in brackets names it; check the route, the key and time-outs",
                false,
            ),
            1009 => ("it was sent a message above its bound", false),
            1011 => ("it met a fault of its own; its log says more, connecting again may help", true),
            1012 => ("it restarts; connect again in a moment, or pass --reconnect", true),
            1013 => (
                "this reader was too slow or the server has too much to do: read faster (is the output piped into \
                 something slow?), then connect again, or pass --reconnect",
                true,
            ),
            3000..=4999 => ("a code of the application's own; its documentation names it", false),
            _ => ("a code without a meaning registered", true),
        };
        Self { sentence, retry }
    }
}

/// Connects and upgrades; reads wait at most [`STOP_CHECK`] from then on.
///
/// # Errors
/// The end that it came to instead.
pub fn open(target: &Target, request: Request) -> Result<WebSocket<TcpStream>, End> {
    let stream = connect(target).map_err(|failure| End::Refused { failure, retry: true })?;
    let url = request.uri().to_string();
    let (socket, _response) =
        tungstenite::client(request, stream).map_err(|error| handshake_end(target, &url, error))?;
    socket.get_ref().set_read_timeout(Some(STOP_CHECK)).map_err(|error| End::Broken(Error::Io(error)))?;
    Ok(socket)
}

/// The upgrade request for `url`, with `api_key` as `X-API-Key`.
///
/// # Errors
/// Exit code 2 for a URL that is none.
pub fn request(url: &str, api_key: Option<&str>) -> Result<Request, Failure> {
    let unusable = |error: &dyn std::fmt::Display| {
        Failure::usage(format!("{url} can't be asked for ({error}): write ws://HOST:PORT/ws"))
    };
    let mut request = url.into_client_request().map_err(|error| unusable(&error))?;
    if let Some(key) = api_key {
        let mut value = HeaderValue::from_str(key).map_err(|error| unusable(&error))?;
        value.set_sensitive(true);
        request.headers_mut().insert("X-API-Key", value);
    }
    Ok(request)
}

/// What a handshake with `target` for `url` came to instead of a WebSocket.
pub fn handshake_end<S: Read + Write>(
    target: &Target,
    url: &str,
    error: HandshakeError<ClientHandshake<S>>,
) -> End {
    match error {
        HandshakeError::Interrupted(_) => no_answer(target),
        HandshakeError::Failure(Error::Http(response)) => refused(url, &response),
        HandshakeError::Failure(error) => {
            let retry = matches!(error, Error::Io(_));
            let sentence =
                format!("{url} gave no WebSocket ({error}): is that a corecast, and its path right?");
            End::Refused { failure: Failure::new(exit::UNAVAILABLE, sentence), retry }
        }
    }
}

/// `target` took the connection and said nothing.
pub fn no_answer(target: &Target) -> End {
    let seconds = ANSWER_TIMEOUT.as_secs();
    let sentence = format!(
        "{target} took the connection but didn't answer within {seconds} s: is that a corecast, and is it full \
             (--connections-max, the limit of descriptors; its log says so)?"
    );
    End::Refused { failure: Failure::new(exit::UNAVAILABLE, sentence), retry: true }
}

/// The server closes: lets our answer out and waits for the end of TCP, for a moment.
pub fn finish_close(mut socket: WebSocket<TcpStream>) {
    let deadline = Instant::now() + CLOSE_WAIT;
    while Instant::now() < deadline && !socket.read().is_err_and(|error| is_the_end(&error)) {}
}

/// We close: tells the server and waits for its answer, for a moment.
pub fn leave(mut socket: WebSocket<TcpStream>) {
    if socket.close(None).is_ok() {
        finish_close(socket);
    }
}

/// Connects to the first address of `target` that answers; blocking, with time-outs.
///
/// # Errors
/// Exit code 69.
pub fn connect(target: &Target) -> Result<TcpStream, Failure> {
    let unavailable = |error: io::Error| {
        Failure::new(
            exit::UNAVAILABLE,
            format!(
                "nobody answers at {target} ({error}): start one with `corecast serve`, or name another with --url"
            ),
        )
    };
    let addresses = (target.host.as_str(), target.port).to_socket_addrs().map_err(|error| {
        Failure::new(
            exit::UNAVAILABLE,
            format!("the host name {:?} is not known here ({error})", target.host),
        )
    })?;
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                stream.set_nodelay(true).map_err(unavailable)?;
                stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(unavailable)?;
                stream.set_write_timeout(Some(ANSWER_TIMEOUT)).map_err(unavailable)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(unavailable(last))
}

/// An HTTP answer that is not a 101.
fn refused(url: &str, response: &Response<Option<Vec<u8>>>) -> End {
    let status = response.status();
    let body = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
    let body = body.trim();
    let (exit, advice, retry) = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            (exit::NO_PERMISSION, "the server wants other rights", false)
        }
        StatusCode::NOT_FOUND => {
            (exit::FAILED, "name the path that its routes serve, for example ws://HOST:PORT/ws", false)
        }
        StatusCode::TOO_MANY_REQUESTS => (exit::UNAVAILABLE, "come back later", true),
        status if status.is_server_error() => (exit::UNAVAILABLE, "come back later", true),
        _ => (exit::FAILED, "check --room and --url", false),
    };
    let said = if body.is_empty() { String::new() } else { format!(" and said {body:?}") };
    let sentence = format!("{url} answered {status}{said} where a 101 was due: {advice}");
    End::Refused { failure: Failure::new(exit, sentence), retry }
}

/// A uniformly random wait below a bound that doubles with each attempt, so that clients of a restarted server spread out.
pub fn full_jitter(attempt: u32) -> Duration {
    let bound = RECONNECT_WAIT_MIN.saturating_mul(1u32 << attempt.min(16)).min(RECONNECT_WAIT_MAX);
    // The standard library's hasher is seeded anew each time: random enough to spread clients.
    let random = RandomState::new().build_hasher().finish() >> 11;
    bound.mul_f64(random as f64 / (1u64 << 53) as f64)
}

pub fn is_time_out(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn is_the_end(error: &Error) -> bool {
    !matches!(error, Error::Io(error) if is_time_out(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_that_corecast_sends_has_its_own_advice() {
        for code in shards::close::CloseReason::ALL.iter().filter_map(|reason| reason.code()) {
            assert_ne!(Advice::of(code).sentence, Advice::of(1005).sentence, "{code} is told as unknown");
        }
    }

    #[test]
    fn codes_that_invite_back_are_followed_and_verdicts_are_not() {
        for code in [1001, 1011, 1012, 1013] {
            assert!(Advice::of(code).retry, "{code}");
        }
        for code in [1000, 1002, 1007, 1008, 1009] {
            assert!(!Advice::of(code).retry, "{code}");
        }
    }

    #[test]
    fn waits_stay_below_a_bound_that_doubles_and_are_spread() {
        for attempt in 0..40 {
            assert!(full_jitter(attempt) <= RECONNECT_WAIT_MAX, "attempt {attempt}");
        }
        assert!(full_jitter(0) <= RECONNECT_WAIT_MIN);
        let waits: std::collections::HashSet<Duration> = (0..16).map(|_| full_jitter(20)).collect();
        assert!(waits.len() > 8, "16 clients would come back at {} moments", waits.len());
    }
}
