//! The admin address of several processes: their pages as one, and everything else passed on to one of them.
//!
//! A thread for each connection, one request on each: who asks here are scrapers, probes and people. The request's head goes
//! to the child as it came, so that its gate judges what the client sent.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::{Map, Value, json};
use shards::config::Health;
use shards::limits::{ADMIN_CONNECTIONS_MAX, HEAD_BYTES_MAX};
use shards::request::{self, Head, HttpError, Method};

use super::ask::{self, ANSWER_TIMEOUT, Answer};
use super::board::{Board, View, Views};
use super::page;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const NOT_CACHED: (&str, &str) = ("Cache-Control", "no-store");
/// How long a body may take in all.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
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
                answer(200, JSON, &format!("{}\n", stats(&views, &pages)))
            }
            (_, Some(process)) => {
                let view = &views.places[process];
                let door = view.door.as_deref().ok_or_else(|| no_answer(process, "it doesn't serve"))?;
                pass_on(door, head, bytes, stream).map_err(|error| no_answer(process, &error.to_string()))?;
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
        if serving.is_empty() {
            return Err(HttpError::new(503, "no process serves at the moment: try again later"));
        }
        let (process, door) = serving[self.turn.fetch_add(1, Relaxed) % serving.len()];
        pass_on(door, head, bytes, stream).map_err(|error| no_answer(process, &error.to_string()))?;
        Ok(Outcome::PassedOn)
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

fn no_answer(process: usize, why: &str) -> HttpError {
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
fn read_before(mut stream: &TcpStream, buffer: &mut [u8], due: Instant) -> io::Result<usize> {
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

/// `bytes`, a head and maybe more, with the wish that the connection ends; as GET, where only a HEAD was asked for.
fn ending(bytes: &[u8], method: &str) -> Vec<u8> {
    let start = bytes.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(0);
    let bytes = &bytes[start..];
    let target = bytes.iter().position(|byte| *byte == b' ').unwrap_or(0);
    let line_ends = bytes.windows(2).position(|two| two == b"\r\n").map_or(bytes.len(), |at| at + 2);
    [method.as_bytes(), &bytes[target..line_ends], b"Connection: close\r\n", &bytes[line_ends..]].concat()
}

/// Passes a request on to the child behind `door`, with its body, and the answer back.
fn pass_on(door: &OwnedFd, head: &Head<'_>, bytes: &[u8], stream: &TcpStream) -> io::Result<()> {
    let mut child = ask::connect(door)?;
    let body_due = head.content_length().unwrap_or(0);
    let body = &bytes[head.bytes..];
    let whole = head.bytes + body.len().min(body_due);
    child.write_all(&ending(&bytes[..whole], head.method.name()))?;
    if head.expects_continue() && body.is_empty() && body_due > 0 {
        (&mut &*stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let left = body_due.saturating_sub(body.len());
    // A child that refuses early reads no more; its answer counts.
    let _refused_early = copy_body(stream, &mut child, left);
    answer_through(&mut child, stream)
}

/// Until all has come, or the child has said what it thinks of the head: a client may wait for that before it sends more.
fn copy_body(stream: &TcpStream, child: &mut UnixStream, bytes: usize) -> io::Result<()> {
    let (mut left, due) = (bytes, Instant::now() + BODY_TIMEOUT);
    let mut buffer = [0; 16 * 1024];
    while left > 0 && !answers_first(child, stream, due)? {
        let room = left.min(buffer.len());
        let received = read_before(stream, &mut buffer[..room], due)?;
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        child.write_all(&buffer[..received])?;
        left -= received;
    }
    Ok(())
}

/// Waits for either side. Whether the child speaks, whatever the client does.
fn answers_first(child: &UnixStream, stream: &TcpStream, due: Instant) -> io::Result<bool> {
    loop {
        let mut ends = [PollFd::new(child, PollFlags::IN), PollFd::new(stream, PollFlags::IN)];
        let left = Timespec::try_from(due.saturating_duration_since(Instant::now())).ok();
        match poll(&mut ends, left.as_ref()) {
            Ok(_) => return Ok(!ends[0].revents().is_empty()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn answer_through(child: &mut UnixStream, stream: &TcpStream) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    let first = child.read(&mut buffer)?;
    if first == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // From here on an error is told by the end of the connection: an answer has begun.
    let _hung_up =
        (&mut &*stream).write_all(&buffer[..first]).and_then(|()| io::copy(child, &mut &*stream).map(drop));
    Ok(())
}

// ---- the pages of all

/// Each serving process's answer to the same request; a process that is dying has none.
///
/// # Errors
/// What the first refuses, all refuse.
fn gather(views: &Views, bytes: &[u8]) -> Result<Vec<(usize, Answer)>, HttpError> {
    let request = ending(bytes, "GET");
    let mut answers = ask_all(views, &request);
    if answers.iter().all(|(_, answer)| answer.status == 200) {
        return Ok(answers);
    }
    answers.retain(|(_, answer)| answer.status != 200);
    let (process, answer) = answers.swap_remove(0);
    Err(match answer.status {
        401 => HttpError::new(401, answer.text().trim_end().to_owned())
            .with_fields(&[("WWW-Authenticate", "Bearer realm=\"corecast\"")]),
        400..500 => HttpError::new(answer.status, answer.text().trim_end().to_owned()),
        status => no_answer(process, &format!("status {status}: {}", answer.text().trim_end())),
    })
}

/// All at once: the slowest decides how long it takes.
fn ask_all(views: &Views, request: &[u8]) -> Vec<(usize, Answer)> {
    thread::scope(|scope| {
        let asked: Vec<_> = views
            .places
            .iter()
            .enumerate()
            .filter_map(|(process, view)| Some((process, view.door.as_deref()?)))
            .filter_map(|(process, door)| {
                let ask = move || ask::ask(door, request);
                Some((process, thread::Builder::new().name("ask".to_owned()).spawn_scoped(scope, ask).ok()?))
            })
            .collect();
        let answer = |(process, asked): (usize, thread::ScopedJoinHandle<'_, io::Result<Answer>>)| match asked
            .join()
        {
            Ok(Ok(answer)) => Some((process, answer)),
            Ok(Err(error)) => {
                tracing::warn!(process, %error, "a process did not answer a question on the admin address");
                None
            }
            Err(panic) => std::panic::resume_unwind(panic),
        };
        asked.into_iter().filter_map(answer).collect()
    })
}

/// Ready with one process that is: it takes clients on the port of all.
fn readiness(views: &Views, bytes: &[u8]) -> (u16, String) {
    let answers = if views.is_leaving { Vec::new() } else { ask_all(views, &ending(bytes, "GET")) };
    let is_ready =
        |process: usize| answers.iter().any(|(found, answer)| *found == process && answer.status == 200);
    let told: Vec<Value> = (0..views.places.len())
        .map(|process| json!({"process": process, "ready": is_ready(process)}))
        .collect();
    let ready = (0..views.places.len()).filter(|process| is_ready(*process)).count();
    let page = json!({"ready": ready, "processes": told, "draining": views.is_leaving});
    (if ready > 0 { 200 } else { 503 }, format!("{page}\n"))
}

fn metrics(views: &Views, answers: &[(usize, Answer)]) -> String {
    let pages: Vec<_> = answers.iter().map(|(process, answer)| (*process, answer.text())).collect();
    let mut page = page::merge(&pages);
    let serving = views.places.iter().filter(|view| view.door.is_some()).count();
    let mut family = |name: &str, kind: &str, help: &str, samples: &[String]| {
        page.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        page.extend(samples.iter().map(|sample| format!("{name}{sample}\n")));
    };
    family("corecast_processes", "gauge", "Processes that serve.", &[format!(" {serving}")]);
    let wanted = [format!(" {}", views.places.len())];
    family("corecast_processes_wanted", "gauge", "Processes that are to serve (--processes).", &wanted);
    let restarts: Vec<String> = views
        .places
        .iter()
        .enumerate()
        .map(|(process, view)| format!("{{process=\"{process}\"}} {}", view.restarts))
        .collect();
    let help = "Starts after a death; those of a rolling restart are not counted unless they fail.";
    family("corecast_process_restarts_total", "counter", help, &restarts);
    let rolling = [format!(" {}", u8::from(views.is_rolling))];
    family("corecast_rolling_restart", "gauge", "1 while a rolling restart is under way.", &rolling);
    page
}

fn stats(views: &Views, answers: &[(usize, Answer)]) -> Value {
    let of = |process: usize| {
        let answer = answers.iter().find(|(found, _)| *found == process)?;
        serde_json::from_slice::<Map<String, Value>>(answer.1.body()).ok()
    };
    let processes: Vec<Value> = views
        .places
        .iter()
        .enumerate()
        .map(|(process, view)| {
            let mut page = told(process, view);
            page.extend(of(process).unwrap_or_default());
            Value::Object(page)
        })
        .collect();
    let total = page::total(processes.iter());
    json!({"rolling": views.is_rolling, "total": total, "processes": processes})
}

/// What the parent knows of a process.
fn told(process: usize, view: &View) -> Map<String, Value> {
    Map::from_iter([
        ("process".to_owned(), process.into()),
        ("pid".to_owned(), view.pid.into()),
        ("serves".to_owned(), view.door.is_some().into()),
        ("leaving".to_owned(), view.leaving.clone().into()),
        ("restarts".to_owned(), view.restarts.into()),
        ("status".to_owned(), view.status.clone().into()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_passed_on_asks_for_the_end_of_its_connection_first() {
        let asked = b"HEAD /stats HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n";
        let due = "GET /stats HTTP/1.1\r\nConnection: close\r\nHost: a\r\nConnection: keep-alive\r\n\r\n";
        let passed = ending(asked, "GET");
        assert_eq!(String::from_utf8_lossy(&passed), due);
        let head = request::parse(&passed).expect("a request").expect("a whole one");
        assert!(!head.keep_alive());
        assert_eq!(
            ending(b"\r\nGET / HTTP/1.0\r\n\r\n", "GET"),
            b"GET / HTTP/1.0\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn nobody_who_serves_is_not_ready_and_all_of_the_places_are_told() {
        let places = vec![View::default(), View { restarts: 3, ..View::default() }];
        let views = Views { places, ..Views::default() };
        let (status, body) = readiness(&views, b"GET /readyz HTTP/1.1\r\n\r\n");
        assert_eq!(status, 503);
        assert!(body.contains("\"ready\":0"), "{body}");
        let page = metrics(&views, &[]);
        assert!(page.contains("\ncorecast_process_restarts_total{process=\"1\"} 3\n"), "{page}");
        assert_eq!(stats(&views, &[])["processes"][1]["restarts"], 3);
    }
}
