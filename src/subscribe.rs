//! `corecast subscribe`: joins rooms, prints what arrives, measures it.
//!
//! One connection and one thread per room; the main thread alone prints and counts, behind a bounded queue: when its
//! output blocks, the connections stop reading and the server sees a slow reader, as it would with any other program.

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use clap::{Args, ValueEnum};
use serde_json::json;
use tungstenite::handshake::client::Request;
use tungstenite::{Error, Message};

use crate::client::{Target, duration};
use crate::connection::{self, CLOSE_WAIT, End, RECONNECT_STEADY, STOP_CHECK, full_jitter, is_time_out};
use crate::dialect::Kind;
use crate::exit::{self, Failure};
use crate::output::complain;
use crate::preset::{self, Preset};
use crate::redis::TlsArgs;
use crate::signals;
use crate::tally::Tally;

/// Joins rooms and prints what arrives, one line each; Ctrl-C ends it with a summary on stderr.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  corecast subscribe --room lobby
  corecast subscribe --url ws://localhost:8080/ws --room a --room b --stats >/dev/null
  corecast subscribe --preset event-fanout --room room1 --count 10 --timeout 30s
  corecast subscribe --preset backbone --rooms BTC_USDT,ETH_USDT       (one connection that joins each by a message)

Exit codes: 0 ended as asked, 1 the server ended it or --timeout came first, 2 usage, 69 no server there, 77 refused.")]
pub struct SubscribeArgs {
    /// The server, as ws://HOST:PORT/ws, http://HOST:PORT or HOST:PORT [default: ws://127.0.0.1:8080/ws]
    #[arg(long, value_name = "URL", conflicts_with = "preset")]
    url: Option<String>,
    /// Find the server where this preset puts it (event-fanout: $ADDR, $PORT or localhost:8081)
    #[arg(long, value_name = "NAME", value_parser = preset::names())]
    preset: Option<String>,
    /// Room to join (workflow: user to listen as); give it several times for several rooms, one connection each. Without it
    /// --url is taken as it is
    #[arg(long, value_name = "ROOM", required_unless_present_any = ["rooms", "preset", "url"])]
    room: Vec<String>,
    /// Rooms to join through one connection, each by a message {"type":"join","room":"ROOM"}; what the server
    /// answers to that goes to stderr
    #[arg(long, value_name = "ROOM,...", value_delimiter = ',', conflicts_with = "room")]
    rooms: Vec<String>,
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

/// Runs the command until it is stopped, satisfied, or left by the server.
///
/// # Errors
/// A server that can't be found, signals that can't be installed, threads that can't be started.
pub fn run(args: SubscribeArgs) -> anyhow::Result<ExitCode> {
    let preset =
        args.preset.as_deref().map(|name| Preset::load(name, None, &TlsArgs::default())).transpose()?;
    let target = match &preset {
        Some(preset) => preset.target()?,
        None => Target::parse(args.url.as_deref().unwrap_or("127.0.0.1:8080"))?,
    };
    let joins = joins(&args, preset.as_ref())?;
    subscribe(&args, &target, joins)
}

/// What one connection joins.
struct Join {
    /// For the messages of this command.
    name: String,
    /// Of the upgrade request.
    parameters: Vec<(String, String)>,
    /// Joined by messages, once the connection is there.
    rooms: Vec<String>,
}

fn joins(args: &SubscribeArgs, preset: Option<&Preset>) -> Result<Vec<Join>, Failure> {
    let parameter = preset.map_or(Some("room"), Preset::room_parameter);
    let join = |name: String, parameters: Vec<(String, String)>, rooms: Vec<String>| {
        let id = args.client_id.iter().map(|id| ("client_id".to_owned(), id.clone()));
        Join { name, parameters: parameters.into_iter().chain(id).collect(), rooms }
    };
    match (parameter, args.rooms.as_slice(), args.room.as_slice()) {
        (_, [_, ..], _) => Ok(vec![join(args.rooms.join(","), Vec::new(), args.rooms.clone())]),
        // What a URL names is a place like any other.
        (Some(_), [], []) if preset.is_none() => {
            Ok(vec![join("(the URL's)".to_owned(), Vec::new(), Vec::new())])
        }
        (None, [], []) => Ok(vec![join("(the only one)".to_owned(), Vec::new(), Vec::new())]),
        (Some(parameter), [], [_, ..]) => {
            let one =
                |room: &String| join(room.clone(), vec![(parameter.to_owned(), room.clone())], Vec::new());
            Ok(args.room.iter().map(one).collect())
        }
        (Some(parameter), [], []) => {
            Err(Failure::usage(format!("this preset wants a {parameter}: name it with --room")))
        }
        (None, [], [_, ..]) => Err(Failure::usage(
            "this preset's address asks for no room: leave out --room, or join by messages with --rooms",
        )),
    }
}

fn subscribe(args: &SubscribeArgs, target: &Target, joins: Vec<Join>) -> anyhow::Result<ExitCode> {
    let stop = signals::stop_flag()?;
    let (sender, events) = sync_channel(QUEUE_MESSAGES);
    let mut names = Vec::with_capacity(joins.len());
    for (room_index, join) in joins.into_iter().enumerate() {
        let parameters: Vec<_> =
            join.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let line = Line {
            room_index,
            target: target.clone(),
            request: connection::request(&target.subscribe_url(&parameters), None)?,
            rooms: join.rooms,
            reconnect: args.reconnect,
            stop: Arc::clone(&stop),
            events: sender.clone(),
        };
        names.push(join.name);
        thread::Builder::new().name(format!("room-{room_index}")).spawn(move || line.run())?;
    }
    drop(sender);
    Ok(Printer::new(args, names, stop).run(&events))
}

/// What a connection tells the printer.
enum Event {
    /// The room is joined.
    Joined { room_index: usize },
    /// A message, with the time it was read.
    Received { room_index: usize, message: Message, at: SystemTime },
    /// The server answered something that was asked by a message.
    Answered { room_index: usize, text: String, is_error: bool },
    /// The connection is gone and comes back after `wait`.
    Broken { room_index: usize, end: End, wait: Duration },
    /// The connection is gone for good.
    Over { room_index: usize, end: End },
}

/// One room's connection, and its return after a break.
struct Line {
    room_index: usize,
    target: Target,
    request: Request,
    /// Joined by messages; with any, the server answers in JSON.
    rooms: Vec<String>,
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
        let mut socket = match connection::open(&self.target, self.request.clone()) {
            Ok(socket) => socket,
            Err(end) => return end,
        };
        for room in &self.rooms {
            let join = json!({ "type": "join", "room": room }).to_string();
            if let Err(error) = socket.send(Message::from(join)) {
                return End::Broken(error);
            }
        }
        if self.events.send(Event::Joined { room_index: self.room_index }).is_err() {
            return End::Stopped;
        }
        loop {
            match socket.read() {
                Ok(message @ (Message::Text(_) | Message::Binary(_))) => {
                    if self.events.send(self.event_of(message)).is_err() {
                        return End::Stopped;
                    }
                }
                // Pongs and the answer to a Close go out with the next read.
                Ok(Message::Close(frame)) => {
                    connection::finish_close(socket);
                    return End::Closed(frame);
                }
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
                Err(Error::Io(error)) if is_time_out(&error) => {}
                Err(error) => return End::Broken(error),
            }
            if self.stopped() {
                connection::leave(socket);
                return End::Stopped;
            }
        }
    }

    fn event_of(&self, message: Message) -> Event {
        let room_index = self.room_index;
        let text = match &message {
            Message::Text(text) if !self.rooms.is_empty() => text.as_str(),
            _ => return Event::Received { room_index, message, at: SystemTime::now() },
        };
        match Kind::of(text) {
            Kind::Publication => Event::Received { room_index, message, at: SystemTime::now() },
            kind => Event::Answered { room_index, text: text.to_owned(), is_error: kind == Kind::Error },
        }
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

/// Prints and counts on the main thread.
struct Printer<'a> {
    args: &'a SubscribeArgs,
    /// What each connection joins, for people.
    names: Vec<String>,
    stop: Arc<AtomicBool>,
    tally: Tally,
    started_at: Instant,
    line_at: Instant,
    /// Connections that may still bring something.
    open: usize,
    /// Errors that the server answered.
    complaints: u64,
    exit: u8,
}

impl<'a> Printer<'a> {
    fn new(args: &'a SubscribeArgs, names: Vec<String>, stop: Arc<AtomicBool>) -> Self {
        let now = Instant::now();
        Self {
            args,
            open: names.len(),
            names,
            stop,
            tally: Tally::new(),
            started_at: now,
            line_at: now,
            complaints: 0,
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
            complain!(
                "corecast subscribe: {} of {count} messages came before --timeout",
                self.tally.messages()
            );
            self.exit = exit::FAILED;
        }
        if self.tally.messages() > 0 || self.exit == 0 {
            complain!("{}", self.tally.summary(elapsed));
        }
        if self.complaints > 0 {
            complain!("the server answered {} times with an error", self.complaints);
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
            Event::Answered { room_index, text, is_error } => {
                self.complaints += u64::from(is_error);
                self.say(room_index, &format!("the server answered {text}"));
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
                self.exit = self.exit.max(end.code());
                self.say(room_index, &end.sentence());
            }
        }
        Ok(())
    }

    fn say(&self, room_index: usize, sentence: &str) {
        complain!("corecast subscribe: room {}: {sentence}", self.names[room_index]);
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
            complain!("{}", self.tally.take_line(self.started_at.elapsed(), stretch));
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
