//! The admin address of several processes: their pages as one, and everything else passed on to one of them.
//!
//! A thread for each connection, one request on each: who asks here are scrapers, probes and people. The request's head goes
//! to the child as it came, so that its gate judges what the client sent.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use shards::config::Health;
use shards::limits::{ADMIN_CONNECTIONS_MAX, HEAD_BYTES_MAX};
use shards::request::{self, Head, HttpError, Method};

use super::ask::{self, ANSWER_TIMEOUT};
use super::board::{Board, Views};
use super::overview::{gather, metrics, readiness, stats};
use super::passing::pass_on;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const NOT_CACHED: (&str, &str) = ("Cache-Control", "no-store");
/// How long accepting pauses when there are no descriptors, or as many connections as may be.
const PAUSE: Duration = Duration::from_millis(50);

/// See the module.
pub struct Admin {
    board: Board,
    health: Health,
    /// From accept to the end of a request's head.
    head_timeout: Duration,
    /// Takes turns among the processes.
    turn: AtomicUsize,
    connections: AtomicUsize,
}

impl Admin {
    /// Answers on `socket` from what is on `board`, for as long as the process lives.
    ///
    /// # Errors
    /// No thread is left.
    pub fn start(socket: OwnedFd, board: Board, health: Health, head_timeout: Duration) -> io::Result<()> {
        let (turn, connections) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let admin = Arc::new(Self { board, health, head_timeout, turn, connections });
        let listener = TcpListener::from(socket);
        // The engine's are made not to wait.
        listener.set_nonblocking(false)?;
        thread::Builder::new().name("admin".to_owned()).spawn(move || admin.accept_all(&listener))?;
        Ok(())
    }

    fn accept_all(self: Arc<Self>, listener: &TcpListener) {
        loop {
            if self.connections.load(Relaxed) >= ADMIN_CONNECTIONS_MAX {
                thread::sleep(PAUSE);
                continue;
            }
            let Ok((stream, _)) = listener.accept() else {
                thread::sleep(PAUSE);
                continue;
            };
            let admin = self.clone();
            admin.connections.fetch_add(1, Relaxed);
            let answer = move || {
                // Whoever hung up doesn't wait for an answer.
                let _hung_up = admin.answer(stream);
                admin.connections.fetch_sub(1, Relaxed);
            };
            if thread::Builder::new().name("admin-request".to_owned()).spawn(answer).is_err() {
                self.connections.fetch_sub(1, Relaxed);
                thread::sleep(PAUSE);
            }
        }
    }

    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let mut bytes = Vec::new();
        let answer = match read_head(&stream, &mut bytes, self.head_timeout) {
            Ok(()) => match request::parse(&bytes) {
                Ok(Some(head)) => self.judge(&head, &bytes, &stream),
                Ok(None) => return Ok(()),
                Err(error) => Outcome::refused(&error, false),
            },
            Err(error) if is_timeout(&error) => {
                Outcome::refused(&HttpError::new(408, "the head of the request did not come in time"), false)
            }
            Err(error) => return Err(error),
        };
        match answer {
            Outcome::Answer(answer) => stream.write_all(&answer)?,
            Outcome::PassedOn => {}
        }
        hang_up(&stream)
    }

    fn judge(&self, head: &Head<'_>, bytes: &[u8], stream: &TcpStream) -> Outcome {
        let head_only = head.method == Method::Head;
        self.try_judge(head, bytes, stream).unwrap_or_else(|error| Outcome::refused(&error, head_only))
    }

    fn try_judge(&self, head: &Head<'_>, bytes: &[u8], stream: &TcpStream) -> Result<Outcome, HttpError> {
        let path = head.decoded_path()?;
        let views = self.board.look();
        let is_read = matches!(head.method, Method::Get | Method::Head);
        let one = chosen(head, &views)?;
        let answer = |status, kind: &str, body: &str| {
            let mut out = Vec::with_capacity(body.len() + 256);
            let head_only = head.method == Method::Head;
            request::response(status, kind, &[NOT_CACHED], body.as_bytes(), head_only, false, &mut out);
            Ok(Outcome::Answer(out))
        };
        match (&*path, one) {
            ("/livez" | "/health", None) if is_read => answer(200, TEXT, "ok\n"),
            ("/healthz", None) if is_read && self.health == Health::Alive => answer(200, TEXT, "ok\n"),
            ("/readyz", None) if is_read => {
                let (status, body) = readiness(&views, bytes);
                answer(status, JSON, &body)
            }
            ("/metrics", None) if is_read => {
                let pages = gather(&views, bytes)?;
                answer(200, PROMETHEUS, &metrics(&views, &pages))
            }
            ("/stats" | "/admin/stats", None) if is_read => {
                let pages = gather(&views, bytes)?;
                answer(200, JSON, &format!("{}\n", stats(&views, &pages)?))
            }
            (_, Some(process)) => {
                let view = &views.places[process];
                let door = view.door.as_deref().ok_or_else(|| no_answer(process, "it doesn't serve"))?;
                ask::connect(door)
                    .and_then(|child| pass_on(child, head, bytes, stream))
                    .map_err(|error| no_answer(process, &error.to_string()))?;
                Ok(Outcome::PassedOn)
            }
            (_, None) => self.pass_to_any(&views, head, bytes, stream),
        }
    }

    /// To the next process in turn that takes the connection.
    fn pass_to_any(
        &self,
        views: &Views,
        head: &Head<'_>,
        bytes: &[u8],
        stream: &TcpStream,
    ) -> Result<Outcome, HttpError> {
        let serving: Vec<_> = views
            .places
            .iter()
            .enumerate()
            .filter_map(|(index, view)| Some((index, view.door.as_deref()?)))
            .collect();
        let first = self.turn.fetch_add(1, Relaxed) % serving.len().max(1);
        let (before, from_first) = serving.split_at(first);
        let mut refused = HttpError::new(503, "no process serves at the moment: try again later");
        for (process, door) in from_first.iter().chain(before) {
            let failed = |error: io::Error| no_answer(*process, &error.to_string());
            match ask::connect(door) {
                // From here on it may have done what was asked for: another one is not to do it again.
                Ok(child) => {
                    return pass_on(child, head, bytes, stream).map(|()| Outcome::PassedOn).map_err(failed);
                }
                Err(error) => refused = failed(error),
            }
        }
        Err(refused)
    }
}

enum Outcome {
    Answer(Vec<u8>),
    /// A child has answered.
    PassedOn,
}

impl Outcome {
    fn refused(error: &HttpError, head_only: bool) -> Self {
        let mut out = Vec::new();
        error.answer(head_only, false, &mut out);
        Self::Answer(out)
    }
}

/// A process that answers nothing of use.
pub fn no_answer(process: usize, why: &str) -> HttpError {
    HttpError::new(502, format!("process {process} did not answer ({why}): try again"))
}

/// The process that `?process=` names.
fn chosen(head: &Head<'_>, views: &Views) -> Result<Option<usize>, HttpError> {
    let Some(text) = head.query_value("process")? else { return Ok(None) };
    let known = text.parse().ok().filter(|process| *process < views.places.len());
    let due =
        || format!("found process={text:?}, due a number from 0 to {}", views.places.len().saturating_sub(1));
    known.map(Some).ok_or_else(|| HttpError::new(404, due()))
}

/// Reads until `bytes` holds a whole head, and maybe the beginning of a body.
fn read_head(stream: &TcpStream, bytes: &mut Vec<u8>, timeout: Duration) -> io::Result<()> {
    let due = Instant::now() + timeout;
    let mut buffer = [0; 4096];
    loop {
        let before = bytes.len();
        let received = read_before(stream, &mut buffer, due)?;
        bytes.extend_from_slice(&buffer[..received]);
        let is_whole = request::is_worth_parsing(bytes, before) && !matches!(request::parse(bytes), Ok(None));
        if received == 0 || is_whole || bytes.len() > HEAD_BYTES_MAX {
            return Ok(());
        }
    }
}

/// What comes before `due`: a client that sends an octet now and then would keep one of few connections for ever.
pub fn read_before(mut stream: &TcpStream, buffer: &mut [u8], due: Instant) -> io::Result<usize> {
    let left = due.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    stream.set_read_timeout(Some(left))?;
    stream.read(buffer)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// The answer is not to be lost to a reset because the client said more than was read (RFC 9112 section 9.6).
fn hang_up(stream: &TcpStream) -> io::Result<()> {
    const LINGER: Duration = Duration::from_secs(1);
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(LINGER))?;
    let (mut stream, mut rest, due) = (stream, [0; 4096], Instant::now() + LINGER);
    while Instant::now() < due && stream.read(&mut rest)? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::ask::doors::{answering, dead};
    use crate::supervisor::board::View;

    #[test]
    fn a_request_for_any_process_goes_to_one_that_lives() {
        let board = Board::default();
        let place = |door| View { door: Some(door), ..View::default() };
        let serving = answering("HTTP/1.1 204 No Content\r\n\r\n");
        let places = vec![place(dead()), place(serving), place(dead())];
        board.show(Views { places, ..Views::default() });
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        Admin::start(listener.into(), board, Health::Broker, Duration::from_secs(10)).expect("a thread");
        for _ in 0..6 {
            let mut client = TcpStream::connect(address).expect("it listens");
            client.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").expect("it listens");
            let mut answer = String::new();
            client.read_to_string(&mut answer).expect("an answer");
            assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
        }
    }
}
