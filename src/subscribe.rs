//! `corecast subscribe`: joins rooms, prints what arrives, measures it.
//!
//! One connection and one thread per room; the main thread alone prints and counts, behind a bounded queue: when its
//! output blocks, the connections stop reading and the server sees a slow reader, as it would with any other program.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use clap::{Args, ValueEnum};
use tungstenite::handshake::HandshakeError;
use tungstenite::http::{Response, StatusCode};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Error, Message, WebSocket};

use crate::client::{
    ANSWER_TIMEOUT, CONNECT_TIMEOUT, EXIT_FAILED, EXIT_NO_PERMISSION, EXIT_UNAVAILABLE, Failure, Preset,
    Target, duration,
};
use crate::tally::Tally;

/// Joins rooms and prints what arrives, one line each; Ctrl-C ends it with a summary on stderr.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  corecast subscribe --room lobby
  corecast subscribe --url ws://localhost:8080/ws --room a --room b --stats >/dev/null
  corecast subscribe --preset event-fanout --room room1 --count 10 --timeout 30s

Exit codes: 0 ended as asked, 1 the server ended it or --timeout came first, 2 usage, 69 no server there, 77 refused.")]
pub struct SubscribeArgs {
    /// The server, as ws://HOST:PORT/ws, http://HOST:PORT or HOST:PORT [default: ws://127.0.0.1:8080/ws]
    #[arg(long, value_name = "URL", conflicts_with = "preset")]
    url: Option<String>,
    /// Find the server where this preset puts it (event-fanout: $ADDR or localhost:8081)
    #[arg(long, value_name = "NAME", value_parser = Preset::parse)]
    preset: Option<Preset>,
    /// Room to join; give it several times for several rooms, one connection each
    #[arg(long, value_name = "ROOM", required = true)]
    room: Vec<String>,
    /// Name of this client for the server's logs
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// Say once a second on stderr what came: rate, latency percentiles, missing numbers
    #[arg(long)]
    stats: bool,
    /// Don't print the messages themselves
    #[arg(long)]
    quiet: bool,
    /// Stop after this many messages, over all rooms
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Stop after this long; if --count was not reached by then the exit code is 1
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
    /// Connect again when the server goes away, after a random wait that grows from 100 ms to 30 s
    #[arg(long)]
    reconnect: bool,
    /// How binary messages are printed
    #[arg(long, value_name = "FORM", value_enum, default_value_t = Binary::Hex)]
    binary: Binary,
}

/// See [`SubscribeArgs::binary`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Binary {
    /// One line of hexadecimal digits
    Hex,
    /// The bytes as they are, without a line end
    Raw,
}

/// Messages between the connections and the printer. Full: the connections stop reading.
const QUEUE_MESSAGES: usize = 1024;
/// How often a connection that hears nothing looks whether it should stop.
const STOP_CHECK: Duration = Duration::from_millis(100);
/// How long the server may take to answer our Close frame.
const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// First bound of the wait before connecting again; doubles up to [`RECONNECT_WAIT_MAX`].
const RECONNECT_WAIT_MIN: Duration = Duration::from_millis(100);
/// See [`RECONNECT_WAIT_MIN`].
const RECONNECT_WAIT_MAX: Duration = Duration::from_secs(30);
/// A connection that lived this long was a success: the next wait begins small again.
const RECONNECT_STEADY: Duration = Duration::from_secs(10);

/// Runs the command until it is stopped, satisfied, or left by the server.
///
/// # Errors
/// Only what cannot be blamed on the server: signals that can't be installed, threads that can't be started.
pub fn run(args: SubscribeArgs) -> anyhow::Result<ExitCode> {
    match args
        .preset
        .map_or_else(|| Target::parse(args.url.as_deref().unwrap_or("127.0.0.1:8080")), |p| p.target())
    {
        Ok(target) => Ok(subscribe(&args, &target)?),
        Err(failure) => Ok(failure.report("subscribe")),
    }
}

fn subscribe(args: &SubscribeArgs, target: &Target) -> anyhow::Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // In this order a second signal ends the process at once.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let (sender, events) = sync_channel(QUEUE_MESSAGES);
    for (room_index, room) in args.room.iter().enumerate() {
        let mut parameters = vec![("room", room.as_str())];
        parameters.extend(args.client_id.as_deref().map(|id| ("client_id", id)));
        let line = Line {
            room_index,
            target: target.clone(),
            url: target.subscribe_url(&parameters),
            reconnect: args.reconnect,
            stop: Arc::clone(&stop),
            events: sender.clone(),
        };
        thread::Builder::new().name(format!("room-{room_index}")).spawn(move || line.run())?;
    }
    drop(sender);
    Ok(Printer::new(args, stop).run(&events))
}

/// What a connection tells the printer.
enum Event {
    /// The room is joined.
    Joined { room_index: usize },
    /// A message, with the time it was read.
    Received { room_index: usize, message: Message, at: SystemTime },
    /// The connection is gone and comes back after `wait`.
    Broken { room_index: usize, end: End, wait: Duration },
    /// The connection is gone for good.
    Over { room_index: usize, end: End },
}

/// How a connection ended.
enum End {
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
    fn retry(&self) -> bool {
        match self {
            Self::Stopped => false,
            Self::Closed(frame) => frame.as_ref().is_none_or(|frame| Advice::of(frame.code.into()).retry),
            Self::Broken(_) => true,
            Self::Refused { retry, .. } => *retry,
        }
    }

    fn exit(&self) -> u8 {
        match self {
            Self::Stopped => 0,
            Self::Closed(Some(frame)) if u16::from(frame.code) == 1000 => 0,
            Self::Closed(_) | Self::Broken(_) => EXIT_FAILED,
            Self::Refused { failure, .. } => failure.exit,
        }
    }

    /// What happened and what to do, for a person.
    fn sentence(&self) -> String {
        match self {
            Self::Stopped => "left".to_owned(),
            Self::Closed(None) => "the server closed without a code: its log says why".to_owned(),
            Self::Closed(Some(frame)) => {
                let code = u16::from(frame.code);
                let reason =
                    if frame.reason.is_empty() { String::new() } else { format!(" ({:?})", frame.reason) };
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

/// One room's connection, and its return after a break.
struct Line {
    room_index: usize,
    target: Target,
    url: String,
    reconnect: bool,
    stop: Arc<AtomicBool>,
    events: SyncSender<Event>,
}

impl Line {
    /// Ends when the server does (without `reconnect`), when stopped, or when nobody listens any more.
    fn run(self) {
        let mut attempt = 0;
        loop {
            let started_at = Instant::now();
            let end = self.connect_and_read();
            if started_at.elapsed() >= RECONNECT_STEADY {
                attempt = 0;
            }
            if !(self.reconnect && end.retry()) || self.stopped() {
                let _printer_may_be_gone = self.events.send(Event::Over { room_index: self.room_index, end });
                return;
            }
            let wait = full_jitter(attempt);
            attempt = attempt.saturating_add(1);
            if self.events.send(Event::Broken { room_index: self.room_index, end, wait }).is_err() {
                return;
            }
            self.pause(wait);
        }
    }

    fn connect_and_read(&self) -> End {
        let mut socket = match self.join() {
            Ok(socket) => socket,
            Err(end) => return end,
        };
        if self.events.send(Event::Joined { room_index: self.room_index }).is_err() {
            return End::Stopped;
        }
        loop {
            match socket.read() {
                Ok(message @ (Message::Text(_) | Message::Binary(_))) => {
                    let at = SystemTime::now();
                    if self.events.send(Event::Received { room_index: self.room_index, message, at }).is_err()
                    {
                        return End::Stopped;
                    }
                }
                // Pongs and the answer to a Close go out with the next read.
                Ok(Message::Close(frame)) => return self.finish_close(socket, frame),
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
                Err(Error::Io(error)) if is_time_out(&error) => {}
                Err(error) => return End::Broken(error),
            }
            if self.stopped() {
                return self.leave(socket);
            }
        }
    }

    fn join(&self) -> Result<WebSocket<TcpStream>, End> {
        let stream = connect(&self.target).map_err(|failure| End::Refused { failure, retry: true })?;
        let socket = match tungstenite::client(self.url.as_str(), stream) {
            Ok((socket, _response)) => socket,
            Err(HandshakeError::Interrupted(_)) => {
                return Err(End::Refused {
                    failure: Failure::new(
                        EXIT_UNAVAILABLE,
                        format!(
                            "{} took the connection but didn't answer within {} s: is that a corecast?",
                            self.target,
                            ANSWER_TIMEOUT.as_secs()
                        ),
                    ),
                    retry: true,
                });
            }
            Err(HandshakeError::Failure(Error::Http(response))) => return Err(refused(&self.url, &response)),
            Err(HandshakeError::Failure(error)) => {
                return Err(End::Refused {
                    failure: Failure::new(
                        EXIT_UNAVAILABLE,
                        format!(
                            "{} gave no WebSocket ({error}): is that a corecast, and its path right?",
                            self.url
                        ),
                    ),
                    retry: matches!(error, Error::Io(_)),
                });
            }
        };
        socket.get_ref().set_read_timeout(Some(STOP_CHECK)).map_err(|error| End::Broken(Error::Io(error)))?;
        Ok(socket)
    }

    /// The server closes: lets its answer out and waits for the end of TCP, for a moment.
    fn finish_close(&self, mut socket: WebSocket<TcpStream>, frame: Option<CloseFrame>) -> End {
        let deadline = Instant::now() + CLOSE_WAIT;
        while Instant::now() < deadline {
            match socket.read() {
                Err(Error::Io(error)) if is_time_out(&error) => {}
                Ok(_) => {}
                Err(_) => break,
            }
        }
        End::Closed(frame)
    }

    /// We close: tells the server and waits for its answer, for a moment.
    fn leave(&self, mut socket: WebSocket<TcpStream>) -> End {
        let deadline = Instant::now() + CLOSE_WAIT;
        if socket.close(None).is_ok() {
            while Instant::now() < deadline && !socket.read().is_err_and(|error| is_the_end(&error)) {}
        }
        End::Stopped
    }

    fn pause(&self, wait: Duration) {
        let deadline = Instant::now() + wait;
        while !self.stopped() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(STOP_CHECK));
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn connect(target: &Target) -> Result<TcpStream, Failure> {
    let unavailable = |error: io::Error| {
        Failure::new(
            EXIT_UNAVAILABLE,
            format!(
                "nobody answers at {target} ({error}): start one with `corecast serve`, or name another with --url"
            ),
        )
    };
    let addresses = (target.host.as_str(), target.port).to_socket_addrs().map_err(|error| {
        Failure::new(EXIT_UNAVAILABLE, format!("the host name {:?} is not known here ({error})", target.host))
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
            (EXIT_NO_PERMISSION, "the server wants other rights", false)
        }
        StatusCode::NOT_FOUND => {
            (EXIT_FAILED, "name the path that its routes serve, for example ws://HOST:PORT/ws", false)
        }
        StatusCode::TOO_MANY_REQUESTS => (EXIT_UNAVAILABLE, "come back later", true),
        status if status.is_server_error() => (EXIT_UNAVAILABLE, "come back later", true),
        _ => (EXIT_FAILED, "check --room and --url", false),
    };
    let said = if body.is_empty() { String::new() } else { format!(" and said {body:?}") };
    let sentence = format!("{url} answered {status}{said} where a 101 was due: {advice}");
    End::Refused { failure: Failure::new(exit, sentence), retry }
}

/// A uniformly random wait below a bound that doubles with each attempt, so that clients of a restarted server spread out.
fn full_jitter(attempt: u32) -> Duration {
    let bound = RECONNECT_WAIT_MIN.saturating_mul(1u32 << attempt.min(16)).min(RECONNECT_WAIT_MAX);
    // The standard library's hasher is seeded anew each time: random enough to spread clients.
    let random = RandomState::new().build_hasher().finish() >> 11;
    bound.mul_f64(random as f64 / (1u64 << 53) as f64)
}

fn is_time_out(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn is_the_end(error: &Error) -> bool {
    !matches!(error, Error::Io(error) if is_time_out(error))
}

/// Prints and counts on the main thread.
struct Printer<'a> {
    args: &'a SubscribeArgs,
    stop: Arc<AtomicBool>,
    tally: Tally,
    started_at: Instant,
    line_at: Instant,
    /// Connections that may still bring something.
    open: usize,
    exit: u8,
}

impl<'a> Printer<'a> {
    fn new(args: &'a SubscribeArgs, stop: Arc<AtomicBool>) -> Self {
        let now = Instant::now();
        Self {
            args,
            stop,
            tally: Tally::new(),
            started_at: now,
            line_at: now,
            open: args.room.len(),
            exit: 0,
        }
    }

    fn run(mut self, events: &Receiver<Event>) -> ExitCode {
        let mut out = BufWriter::with_capacity(64 * 1024, io::stdout().lock());
        while self.open > 0 && !self.satisfied() && !self.stop.load(Ordering::Relaxed) {
            let event = match events.try_recv() {
                Ok(event) => Ok(event),
                Err(_) => {
                    if out.flush().is_err() {
                        break;
                    }
                    events.recv_timeout(self.next_wait())
                }
            };
            match event {
                Ok(event) => {
                    if self.take(event, &mut out).is_err() {
                        // The reader of our output is gone: nothing is left to do, and nothing is wrong.
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.say_line_if_due();
            if self.timed_out() {
                break;
            }
        }
        let _reader_may_be_gone = out.flush();
        let elapsed = self.started_at.elapsed();
        self.stop.store(true, Ordering::Relaxed);
        self.close_connections(events);
        if let (Some(count), true) = (self.args.count, self.timed_out() && !self.satisfied()) {
            eprintln!(
                "corecast subscribe: {} of {count} messages came before --timeout",
                self.tally.messages()
            );
            self.exit = EXIT_FAILED;
        }
        if self.tally.messages() > 0 || self.exit == 0 {
            eprintln!("{}", self.tally.summary(elapsed));
        }
        ExitCode::from(if self.satisfied() { 0 } else { self.exit })
    }

    fn take(&mut self, event: Event, out: &mut impl Write) -> io::Result<()> {
        match event {
            Event::Joined { room_index } => self.say(room_index, "joined"),
            Event::Received { room_index, message, at } => {
                match &message {
                    Message::Text(text) => self.tally.note(room_index, text.as_bytes(), at),
                    Message::Binary(bytes) => self.tally.note(room_index, bytes, at),
                    _ => {}
                }
                if !self.args.quiet {
                    print(&message, self.args.binary, out)?;
                }
            }
            Event::Broken { room_index, end, wait } => {
                let sentence = end.sentence();
                self.say(
                    room_index,
                    &format!("{sentence} [connecting again in {:.1} s]", wait.as_secs_f64()),
                );
            }
            Event::Over { room_index, end } => {
                self.open -= 1;
                self.exit = self.exit.max(end.exit());
                self.say(room_index, &end.sentence());
            }
        }
        Ok(())
    }

    fn say(&self, room_index: usize, sentence: &str) {
        eprintln!("corecast subscribe: room {}: {sentence}", self.args.room[room_index]);
    }

    fn satisfied(&self) -> bool {
        self.args.count.is_some_and(|count| self.tally.messages() >= count)
    }

    fn timed_out(&self) -> bool {
        self.args.timeout.is_some_and(|timeout| self.started_at.elapsed() >= timeout)
    }

    /// Short enough for the next line, the time-out and a signal.
    fn next_wait(&self) -> Duration {
        let timeout =
            self.args.timeout.map_or(STOP_CHECK, |timeout| timeout.saturating_sub(self.started_at.elapsed()));
        timeout.min(STOP_CHECK)
    }

    fn say_line_if_due(&mut self) {
        let stretch = self.line_at.elapsed();
        if self.args.stats && stretch >= Duration::from_secs(1) {
            self.line_at = Instant::now();
            eprintln!("{}", self.tally.take_line(self.started_at.elapsed(), stretch));
        }
    }

    /// Discards what still comes, so that every connection can say goodbye.
    fn close_connections(&self, events: &Receiver<Event>) {
        let deadline = Instant::now() + CLOSE_WAIT + 2 * STOP_CHECK;
        let mut open = self.open;
        while open > 0 {
            match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::Over { .. }) => open -= 1,
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}

fn print(message: &Message, binary: Binary, out: &mut impl Write) -> io::Result<()> {
    match (message, binary) {
        (Message::Text(text), _) => {
            out.write_all(text.as_bytes())?;
            out.write_all(b"\n")
        }
        (Message::Binary(bytes), Binary::Raw) => out.write_all(bytes),
        (Message::Binary(bytes), Binary::Hex) => {
            for byte in bytes {
                write!(out, "{byte:02x}")?;
            }
            out.write_all(b"\n")
        }
        _ => Ok(()),
    }
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
