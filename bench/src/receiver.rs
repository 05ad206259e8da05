//! A receiver process: thousands of WebSockets, each read and checked, controlled by lines on its standard input.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};

use crate::orders::{Connect, Order, Receiving, Reply};
use crate::sys::{self, Epoll, Ready, SharedCounters, Watch};
use crate::tally::Tally;
use crate::wire::{self, Event, FrameParser};

/// Shared counters per receiver process: deliveries since the measurement began, and the first incomplete message.
pub const COUNTERS_PER_PROCESS: usize = 2;

/// One receive takes what a socket holds after a burst.
const BUFFER_BYTES: usize = 256 * 1024;
const EVENTS_MAX: usize = 1_024;
const CONTROL: u64 = u64::MAX;

/// Runs until standard input ends, which it does when the generator dies.
pub fn run(index: usize, processes: usize, counters_path: &str, receiving: Receiving) -> Result<()> {
    sys::sharpen_timers();
    sys::raise_descriptor_limit().context("raising the descriptor limit")?;
    let counters = SharedCounters::open(counters_path, processes * COUNTERS_PER_PROCESS)
        .with_context(|| format!("opening the shared counters at {counters_path}"))?;
    let epoll = Epoll::new(EVENTS_MAX)?;
    epoll.add(&io::stdin(), CONTROL, Watch::Level)?;
    let mut receiver = Receiver {
        index,
        counters,
        epoll,
        connections: Vec::new(),
        tally: None,
        buffer: vec![0; BUFFER_BYTES],
        orders: Vec::new(),
    };
    receiver.run(receiving)
}

struct Receiver {
    index: usize,
    counters: SharedCounters,
    epoll: Epoll,
    connections: Vec<Option<Connection>>,
    tally: Option<Tally>,
    buffer: Vec<u8>,
    /// The beginning of an order.
    orders: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    parser: FrameParser,
    first_room: u32,
    /// The server's Close frame came.
    close_code: Option<Option<u16>>,
}

impl Receiver {
    fn run(&mut self, receiving: Receiving) -> Result<()> {
        let mut ready: Vec<Ready> = Vec::with_capacity(EVENTS_MAX);
        let timeout_ms = match receiving {
            Receiving::Epoll => -1,
            Receiving::Poll { .. } => 0,
        };
        loop {
            ready.clear();
            self.epoll.wait(timeout_ms, &mut ready)?;
            for news in &ready {
                if news.token == CONTROL {
                    if !self.take_orders()? {
                        return Ok(());
                    }
                } else {
                    self.receive(news.token as usize, news.ended);
                }
            }
            self.show_progress();
            if let Receiving::Poll { interval_ns } = receiving
                && ready.len() < EVENTS_MAX
            {
                sys::sleep_until_ns(sys::monotonic_ns() + interval_ns);
            }
        }
    }

    fn show_progress(&self) {
        let Some(tally) = &self.tally else { return };
        let first = self.index * COUNTERS_PER_PROCESS;
        self.counters.at(first).store(tally.counts.delivered, Ordering::Release);
        self.counters.at(first + 1).store(tally.complete(), Ordering::Release);
    }

    /// Reads one connection until it is drained.
    fn receive(&mut self, index: usize, ended: bool) {
        let Some(connection) = self.connections.get_mut(index).and_then(Option::as_mut) else { return };
        let Some(tally) = &mut self.tally else { return };
        let end = loop {
            match connection.stream.read(&mut self.buffer) {
                Ok(0) => break Some("none".to_owned()),
                Ok(bytes) => {
                    if let Err(error) = connection.take(index, &self.buffer[..bytes], tally) {
                        break Some(error);
                    }
                    // A short read has emptied the socket: the next input is news (edge-triggered), and an end that came
                    // before this wait has been told with it.
                    if bytes < self.buffer.len() && !ended {
                        break None;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break Some("none".to_owned()),
            }
        };
        if let Some(end) = end {
            let end = match connection.close_code {
                Some(Some(code)) => code.to_string(),
                Some(None) => "1005".to_owned(),
                None => end,
            };
            *tally.counts.closes.entry(end).or_default() += 1;
            self.connections[index] = None;
        }
    }

    /// Obeys what has come on standard input; `false` at its end.
    fn take_orders(&mut self) -> Result<bool> {
        let mut input = [0; 4_096];
        let bytes = io::stdin().read(&mut input)?;
        if bytes == 0 {
            return Ok(false);
        }
        self.orders.extend_from_slice(&input[..bytes]);
        while let Some(end) = self.orders.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.orders.drain(..=end).collect();
            let order = serde_json::from_slice(&line).context("an order that is no order")?;
            let reply = self.obey(order).unwrap_or_else(|error| Reply::Failed(format!("{error:#}")));
            let mut out = io::stdout().lock();
            serde_json::to_writer(&mut out, &reply)?;
            out.write_all(b"\n")?;
            out.flush()?;
        }
        Ok(true)
    }

    fn obey(&mut self, order: Order) -> Result<Reply> {
        match order {
            Order::Connect(connect) => self.connect(connect),
            Order::Churn { dial, path, seating, first, count } => {
                let dialed = dial.churn(count, |index| path.fill(seating.rooms_of(first + index)))?;
                Ok(Reply::Dialed(dialed))
            }
            Order::Begin { number, track } => {
                self.tally_mut()?.begin(number, track);
                self.show_progress();
                Ok(Reply::Done)
            }
            Order::End => {
                let tally = self.tally_mut()?;
                Ok(Reply::Counted { counts: tally.counts.clone(), latencies: tally.latencies.pairs() })
            }
            Order::Stall { every } => {
                for connection in self.connections.iter().step_by(every.max(1)).flatten() {
                    self.epoll.remove(&connection.stream)?;
                }
                Ok(Reply::Done)
            }
            Order::Resume => {
                for (index, connection) in self.connections.iter().enumerate() {
                    let Some(connection) = connection else { continue };
                    // Those that were read all along are registered already; for them it is the same as before.
                    if self.epoll.add(&connection.stream, index as u64, Watch::Input).is_err() {
                        self.epoll.modify(&connection.stream, index as u64, Watch::Input)?;
                    }
                }
                Ok(Reply::Done)
            }
        }
    }

    fn tally_mut(&mut self) -> Result<&mut Tally> {
        self.tally.as_mut().context("an order to count before the order to connect")
    }

    fn connect(&mut self, connect: Connect) -> Result<Reply> {
        let Connect { dial, path, seating, first, connections } = connect;
        if self.tally.is_some() {
            bail!("a second order to connect");
        }
        let mut tally = Tally::new(seating, first, connections);
        let mut opened: Vec<_> = (0..connections).map(|_| None).collect();
        let mut rests = Vec::new();
        let dialed = dial.open(
            connections,
            |index| path.fill(seating.rooms_of(first + index)),
            |one| {
                let first_room = seating.first_room(first + one.index);
                let parser = FrameParser::default();
                let connection = Connection { stream: one.stream, parser, first_room, close_code: None };
                opened[one.index] = Some(connection);
                if !one.rest.is_empty() {
                    rests.push((one.index, one.rest));
                }
            },
        )?;
        for (index, rest) in rests {
            if let Some(connection) = &mut opened[index]
                && let Err(error) = connection.take(index, &rest, &mut tally)
            {
                bail!("connection {index}: {error}");
            }
        }
        for (index, connection) in opened.iter().enumerate() {
            if let Some(connection) = connection {
                self.epoll.add(&connection.stream, index as u64, Watch::Input)?;
            }
        }
        self.connections = opened;
        self.tally = Some(tally);
        Ok(Reply::Dialed(dialed))
    }
}

impl Connection {
    /// Takes received bytes: counts messages, answers pings and the Close frame. The error is the name of the end.
    fn take(&mut self, index: usize, input: &[u8], tally: &mut Tally) -> Result<(), String> {
        let now_ns = sys::monotonic_ns();
        let Self { stream, parser, first_room, close_code } = self;
        let mut replies = Vec::new();
        let fed = parser.feed(input, |event| match event {
            Event::Message { prefix, bytes } => tally.take(index, *first_room, prefix, bytes, now_ns),
            Event::Ping(payload) => {
                tally.counts.pings += 1;
                wire::client_frame(wire::PONG, payload, &mut replies);
            }
            Event::Pong => {}
            Event::Close(code) => {
                *close_code = Some(code);
                wire::client_frame(wire::CLOSE, &code.unwrap_or(1000).to_be_bytes(), &mut replies);
            }
        });
        // A reply that doesn't fit the socket's buffer is left out: the server that never reads finds out by its time-out.
        if !replies.is_empty() && stream.write(&replies).is_err() {
            return Err("none".to_owned());
        }
        fed.map_err(|error| format!("broken: {error}"))
    }
}
