//! Sending messages to the server by a schedule: through Redis or as a client (over HTTP: `post`).

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::dial::Dial;
use crate::orders::{PathTemplate, room_name};
use crate::schedule::{self, Load, Schedule};
use crate::stamp::{Stamp, blank_payload};
use crate::sys;
use crate::wire;

/// A closed loop that gets no message through for this long is stuck, and ends; so does a server that takes none.
const STUCK_NS: u64 = 5_000_000_000;
/// Between two looks of a closed loop at its window: short beside a delivery to a thousand sockets.
const WINDOW_LOOK_NS: u64 = 20_000;
/// Overdue messages that are published before the clock is looked at again.
pub const PUBLISH_BATCH_MAX: u64 = 4_096;
/// Bytes that are gathered before they are sent.
pub const OUT_BYTES_MAX: usize = 64 * 1024;

/// A way to the server.
pub trait Publish: Send {
    /// Takes one message; it leaves by the next [`flush`](Self::flush) at the latest.
    fn publish(&mut self, room: u32, payload: &[u8]) -> Result<()>;
    /// Sends all that was taken.
    fn flush(&mut self) -> Result<()>;
}

/// Numbers and fills the messages of a run, whatever way they take.
pub struct Author {
    rooms: u32,
    payload: Vec<u8>,
    next: u64,
}

/// How a load went.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Sent {
    /// Messages that left.
    pub messages: u64,
    /// The longest that one left after it was due, in microseconds.
    pub late_max_us: f64,
    /// A closed loop waited in vain: messages were lost.
    pub stuck: bool,
}

impl Author {
    /// Messages of `bytes` for rooms that take turns.
    pub fn new(rooms: u32, bytes: usize) -> Self {
        Self { rooms, payload: blank_payload(bytes), next: 0 }
    }

    /// Number of the next message.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The next message and its room.
    pub fn write(&mut self, intended_ns: u64) -> (u32, &[u8]) {
        let (room, sequence) = schedule::place(self.next, self.rooms);
        self.next += 1;
        Stamp { room, sequence, intended_ns }.write(&mut self.payload);
        (room, &self.payload)
    }

    /// Publishes a whole load; `complete` tells the number below which all messages have arrived everywhere.
    pub fn run(&mut self, load: Load, to: &mut dyn Publish, complete: impl Fn() -> u64) -> Result<Sent> {
        let start_ns = sys::monotonic_ns();
        let mut sent = Sent::default();
        match load {
            Load::Open { rate, burst, duration_ns } => {
                let schedule = Schedule::open(rate, burst, duration_ns);
                // What can't be published in twice the time is left out, or an absurd rate would run for hours.
                let end_ns = start_ns + 2 * duration_ns;
                while sent.messages < schedule.messages() && !sys::interrupted() {
                    if sys::monotonic_ns() >= end_ns {
                        break;
                    }
                    let due_ns = start_ns + schedule.due_ns(sent.messages);
                    sys::sleep_until_ns(due_ns);
                    let now_ns = sys::monotonic_ns();
                    sent.late_max_us = sent.late_max_us.max(now_ns.saturating_sub(due_ns) as f64 / 1_000.0);
                    let due = schedule.due_by(now_ns.saturating_sub(start_ns));
                    for index in sent.messages..due.min(sent.messages + PUBLISH_BATCH_MAX) {
                        self.publish(start_ns + schedule.due_ns(index), to)?;
                        sent.messages += 1;
                    }
                    to.flush()?;
                }
            }
            Load::Burst { messages } => {
                for _ in 0..messages {
                    self.publish(start_ns, to)?;
                }
                to.flush()?;
                sent.messages = messages;
            }
            Load::Closed { window, duration_ns } => {
                let first = self.next;
                let mut progress = (complete(), start_ns);
                while !sys::interrupted() {
                    let (now_ns, done) = (sys::monotonic_ns(), complete());
                    if now_ns >= start_ns + duration_ns {
                        break;
                    }
                    if done != progress.0 {
                        progress = (done, now_ns);
                    } else if now_ns - progress.1 > STUCK_NS {
                        sent.stuck = true;
                        break;
                    }
                    let free = window.saturating_sub(self.next - done);
                    if free == 0 {
                        sys::sleep_until_ns(now_ns + WINDOW_LOOK_NS);
                        continue;
                    }
                    for _ in 0..free {
                        self.publish(now_ns, to)?;
                    }
                    to.flush()?;
                }
                sent.messages = self.next - first;
            }
        }
        Ok(sent)
    }

    /// Writes and publishes the next message.
    pub fn publish(&mut self, intended_ns: u64, to: &mut dyn Publish) -> Result<()> {
        let (room, payload) = self.write(intended_ns);
        to.publish(room, payload)
    }
}

/// PUBLISH, pipelined on one connection.
pub struct RedisPublisher {
    stream: TcpStream,
    channel_prefix: String,
    envelope: Option<String>,
    out: Vec<u8>,
    /// The answer being read; whole answers are only looked at for errors.
    answer: Vec<u8>,
}

impl RedisPublisher {
    /// Publishes to `channel_prefix` + room; with `envelope` as that string field of a JSON object.
    pub fn connect(address: SocketAddr, channel_prefix: &str, envelope: Option<&str>) -> Result<Self> {
        let stream =
            TcpStream::connect(address).with_context(|| format!("connecting to Redis at {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let envelope = envelope.map(str::to_owned);
        let (out, answer) = (Vec::new(), Vec::new());
        Ok(Self { stream, channel_prefix: channel_prefix.to_owned(), envelope, out, answer })
    }

    fn read_answers(&mut self) -> Result<()> {
        let mut input = [0; 16 * 1024];
        loop {
            let bytes = match self.stream.read(&mut input) {
                Ok(0) => bail!("Redis ended the connection"),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("reading from Redis"),
            };
            for byte in &input[..bytes] {
                if *byte != b'\n' {
                    self.answer.push(*byte);
                    continue;
                }
                if self.answer.first() != Some(&b':') {
                    bail!("Redis answered {:?} to PUBLISH", String::from_utf8_lossy(&self.answer));
                }
                self.answer.clear();
            }
        }
    }
}

impl Publish for RedisPublisher {
    fn publish(&mut self, room: u32, payload: &[u8]) -> Result<()> {
        let name = room_name(room);
        let channel = format!("{}{name}", self.channel_prefix);
        let body = body(&name, self.envelope.as_deref(), payload);
        write!(self.out, "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{channel}\r\n${}\r\n", channel.len(), body.len())?;
        self.out.extend_from_slice(&body);
        self.out.extend_from_slice(b"\r\n");
        if self.out.len() >= OUT_BYTES_MAX { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let mut written = 0;
        let mut moved_ns = sys::monotonic_ns();
        while written < self.out.len() {
            match self.stream.write(&self.out[written..]) {
                Ok(bytes) => (written, moved_ns) = (written + bytes, sys::monotonic_ns()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.read_answers()?;
                    wait_for_space(moved_ns).context("Redis reads nothing")?;
                }
                Err(error) => return Err(error).context("writing to Redis"),
            }
        }
        self.out.clear();
        self.read_answers()
    }
}

/// What travels through Redis: the payload, or an object with it as the string `field`.
pub fn body<'a>(room: &str, field: Option<&str>, payload: &'a [u8]) -> Cow<'a, [u8]> {
    let Some(field) = field else { return Cow::Borrowed(payload) };
    // A payload is letters and digits (see the stamp), so nothing in it needs an escape.
    let text = String::from_utf8_lossy(payload);
    Cow::Owned(format!(r#"{{"room":"{room}","from":"bench","{field}":"{text}"}}"#).into_bytes())
}

/// A short wait for somebody who has taken nothing since `moved_ns`.
pub fn wait_for_space(moved_ns: u64) -> Result<()> {
    if sys::monotonic_ns() - moved_ns > STUCK_NS {
        bail!("nothing was taken for {} s", STUCK_NS / 1_000_000_000);
    }
    std::thread::sleep(Duration::from_micros(50));
    Ok(())
}

/// A client in each room that sends. It is a member like any other, so its own copies are one delivery more per message.
pub struct WebSocketPublisher {
    streams: Vec<TcpStream>,
    out: Vec<u8>,
    input: Vec<u8>,
}

impl WebSocketPublisher {
    /// Joins every room.
    pub fn connect(address: SocketAddrV4, path: &PathTemplate, rooms: u32) -> Result<Self> {
        let dial = Dial::to(address, 127, 16);
        let mut opened: Vec<_> = (0..rooms).map(|_| None).collect();
        let path = path.clone();
        let dialed = dial.open(
            rooms as usize,
            move |index| path.fill(std::iter::once(index as u32)),
            |one| opened[one.index] = Some(one.stream),
        )?;
        if dialed.done < rooms as usize {
            bail!("{} of {rooms} publishers connected: {}", dialed.done, dialed.errors.join("; "));
        }
        Ok(Self {
            streams: opened.into_iter().flatten().collect(),
            out: Vec::new(),
            input: vec![0; 256 * 1024],
        })
    }

    fn drain(&mut self, index: usize) -> Result<()> {
        loop {
            match self.streams[index].read(&mut self.input) {
                Ok(0) => bail!("the server closed a publisher"),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("reading a publisher's socket"),
            }
        }
    }
}

impl Publish for WebSocketPublisher {
    fn publish(&mut self, room: u32, payload: &[u8]) -> Result<()> {
        let index = room as usize;
        self.out.clear();
        wire::client_frame(wire::TEXT, payload, &mut self.out);
        let mut written = 0;
        let mut moved_ns = sys::monotonic_ns();
        while written < self.out.len() {
            match self.streams[index].write(&self.out[written..]) {
                Ok(bytes) => (written, moved_ns) = (written + bytes, sys::monotonic_ns()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.drain(index)?;
                    wait_for_space(moved_ns).context("the server doesn't read a publisher's socket")?;
                }
                Err(error) => return Err(error).context("writing to a publisher's socket"),
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        (0..self.streams.len()).try_for_each(|index| self.drain(index))
    }
}
