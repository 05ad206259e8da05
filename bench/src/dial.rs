//! Opening WebSockets by the thousand: at most so many handshakes under way, from many loopback addresses.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};

use serde::{Deserialize, Serialize};

use crate::latency::{Latencies, LatencyPairs};
use crate::sys::{self, Epoll, Ready, Watch};
use crate::wire::{self, Answer};

/// Without any progress for this long the rest is given up.
const PATIENCE_NS: u64 = 10_000_000_000;
/// Connections from one loopback address: few beside the 28,000 ephemeral ports, so that ports in TIME_WAIT don't matter.
const CONNECTIONS_PER_SOURCE: usize = 4_096;
/// What is kept of what went wrong.
const ERRORS_MAX: usize = 5;

/// Where and how to connect.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Dial {
    /// The server.
    pub address: SocketAddrV4,
    /// Handshakes under way at most.
    pub parallel: usize,
    /// Number of the receiver process: its own range of source addresses.
    pub process: usize,
    /// Connections that this process has opened before: they move on through the source addresses.
    pub opened_before: usize,
}

/// A connection whose 101 has arrived.
pub struct Opened {
    /// Its number, from 0.
    pub index: usize,
    /// Non-blocking.
    pub stream: TcpStream,
    /// Bytes behind the 101.
    pub rest: Vec<u8>,
}

/// How it went.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Dialed {
    /// Connections that got their 101 (and, if asked to, closed cleanly).
    pub done: usize,
    /// All others.
    pub failed: usize,
    /// The first things that went wrong.
    pub errors: Vec<String>,
    /// From connect to the 101.
    pub handshakes: LatencyPairs,
}

impl Dial {
    /// Opens `count` connections, connection n with the path `path(n)`, and hands each to `keep`.
    pub fn open(
        &self,
        count: usize,
        path: impl Fn(usize) -> String,
        mut keep: impl FnMut(Opened),
    ) -> io::Result<Dialed> {
        Dialing::new(self, count, path, false)?.run(&mut keep)
    }

    /// Opens and closes `count` connections: handshake, Close frame, the server's Close frame, end of TCP.
    pub fn churn(&self, count: usize, path: impl Fn(usize) -> String) -> io::Result<Dialed> {
        Dialing::new(self, count, path, true)?.run(&mut |_| ())
    }

    fn source(&self, index: usize) -> Option<Ipv4Addr> {
        let block = (self.opened_before + index) / CONNECTIONS_PER_SOURCE;
        // 127.64.b.1 and up: never 127.0.0.1, where servers and Redis have their own ports.
        let process = 64 + (self.process % 128) as u8;
        self.address.ip().is_loopback().then(|| Ipv4Addr::new(127, process, (block % 256) as u8, 1))
    }
}

struct Attempt {
    index: usize,
    stream: TcpStream,
    began_ns: u64,
    state: State,
}

enum State {
    /// The request could not be written yet.
    Connecting,
    /// Waiting for the end of the head; what came of it.
    Answering(Vec<u8>),
    /// Our Close frame is sent; waiting for the end.
    Closing,
}

enum Step {
    Wait,
    Opened(Vec<u8>),
    Closed,
    Failed(String),
}

struct Dialing<'a, P> {
    dial: &'a Dial,
    count: usize,
    path: P,
    closes: bool,
    host: String,
    epoll: Epoll,
    attempts: Vec<Option<Attempt>>,
    begun: usize,
    handshakes: Latencies,
    dialed: Dialed,
    buffer: Vec<u8>,
}

impl<'a, P: Fn(usize) -> String> Dialing<'a, P> {
    fn new(dial: &'a Dial, count: usize, path: P, closes: bool) -> io::Result<Self> {
        Ok(Self {
            dial,
            count,
            path,
            closes,
            host: dial.address.to_string(),
            epoll: Epoll::new(256)?,
            attempts: (0..dial.parallel.max(1)).map(|_| None).collect(),
            begun: 0,
            handshakes: Latencies::new(),
            dialed: Dialed::default(),
            buffer: vec![0; 64 * 1024],
        })
    }

    fn run(mut self, keep: &mut impl FnMut(Opened)) -> io::Result<Dialed> {
        let mut ready: Vec<Ready> = Vec::new();
        let mut progress_ns = sys::monotonic_ns();
        for slot in 0..self.attempts.len() {
            self.begin_next(slot, keep);
        }
        while self.dialed.done + self.dialed.failed < self.count {
            ready.clear();
            self.epoll.wait(100, &mut ready)?;
            if !ready.is_empty() {
                progress_ns = sys::monotonic_ns();
            } else if sys::monotonic_ns() - progress_ns > PATIENCE_NS {
                let left = self.count - self.dialed.done - self.dialed.failed;
                self.dialed.errors.push(format!("{left} connections made no progress for 10 s"));
                self.dialed.failed += left;
                break;
            }
            for news in &ready {
                let slot = news.token as usize;
                if self.advance(slot, keep) {
                    self.begin_next(slot, keep);
                }
            }
        }
        self.dialed.handshakes = self.handshakes.pairs();
        Ok(self.dialed)
    }

    /// Puts the next connection into an empty slot, and the next one if that ended at once.
    fn begin_next(&mut self, slot: usize, keep: &mut impl FnMut(Opened)) {
        while self.begun < self.count {
            let index = self.begun;
            self.begun += 1;
            let began_ns = sys::monotonic_ns();
            let stream = sys::connect(self.dial.address, self.dial.source(index)).and_then(|stream| {
                self.epoll.add(&stream, slot as u64, Watch::InputAndOutput)?;
                Ok(stream)
            });
            match stream {
                Err(error) => self.fail(format!("connect: {error}")),
                Ok(stream) => {
                    self.attempts[slot] = Some(Attempt { index, stream, began_ns, state: State::Connecting });
                    if !self.advance(slot, keep) {
                        return;
                    }
                }
            }
        }
    }

    /// Takes the connection in `slot` as far as it goes now; says whether the slot is free again.
    fn advance(&mut self, slot: usize, keep: &mut impl FnMut(Opened)) -> bool {
        let Some(mut attempt) = self.attempts[slot].take() else { return false };
        match self.step(&mut attempt) {
            Step::Wait => {
                self.attempts[slot] = Some(attempt);
                return false;
            }
            Step::Failed(error) => self.fail(error),
            Step::Closed => self.dialed.done += 1,
            Step::Opened(rest) => {
                if let Err(error) = self.epoll.remove(&attempt.stream) {
                    self.fail(format!("epoll: {error}"));
                } else {
                    self.dialed.done += 1;
                    keep(Opened { index: attempt.index, stream: attempt.stream, rest });
                }
            }
        }
        true
    }

    fn step(&mut self, attempt: &mut Attempt) -> Step {
        loop {
            match &mut attempt.state {
                State::Connecting => {
                    let request = wire::request(&self.host, &(self.path)(attempt.index));
                    match attempt.stream.write(request.as_bytes()) {
                        // An empty send buffer takes a request whole.
                        Ok(written) if written == request.len() => {
                            attempt.state = State::Answering(Vec::new());
                        }
                        Ok(written) => {
                            return Step::Failed(format!(
                                "{written} of {} bytes of a request sent",
                                request.len()
                            ));
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Step::Wait,
                        Err(error) => return Step::Failed(format!("connect: {error}")),
                    }
                }
                State::Answering(head) => {
                    match attempt.stream.read(&mut self.buffer) {
                        Ok(0) => return Step::Failed("ended instead of answering the handshake".to_owned()),
                        Ok(bytes) => head.extend_from_slice(&self.buffer[..bytes]),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Step::Wait,
                        Err(error) => return Step::Failed(format!("handshake: {error}")),
                    }
                    match wire::read_answer(head) {
                        Answer::Incomplete => {}
                        Answer::Refused(answer) => return Step::Failed(format!("handshake: {answer}")),
                        Answer::Open { head_bytes } => {
                            self.handshakes.record(sys::monotonic_ns() - attempt.began_ns);
                            if !self.closes {
                                return Step::Opened(head.split_off(head_bytes));
                            }
                            let mut frame = Vec::new();
                            wire::client_frame(wire::CLOSE, &1000u16.to_be_bytes(), &mut frame);
                            if let Err(error) = attempt.stream.write_all(&frame) {
                                return Step::Failed(format!("close: {error}"));
                            }
                            attempt.state = State::Closing;
                        }
                    }
                }
                State::Closing => match attempt.stream.read(&mut self.buffer) {
                    Ok(0) => return Step::Closed,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Step::Wait,
                    Err(error) => return Step::Failed(format!("close: {error}")),
                },
            }
        }
    }

    fn fail(&mut self, error: String) {
        self.dialed.failed += 1;
        if self.dialed.errors.len() < ERRORS_MAX {
            self.dialed.errors.push(error);
        }
    }
}
