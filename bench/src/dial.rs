//! Opening WebSockets by the thousand: at most so many handshakes under way, from many loopback addresses.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::addresses;
use crate::latency::{Latencies, LatencyPairs};
use crate::sys::{self, Epoll, Ready, Watch};
use crate::wire::{self, Answer};

/// Without any progress for this long the rest is given up.
pub const PATIENCE_NS: u64 = 10_000_000_000;
/// What is kept of what went wrong.
const ERRORS_MAX: usize = 5;
/// Connections begun in one turn: who receives on the same thread has its turn too.
const BEGIN_BATCH_MAX: usize = 64;

/// Where and how to connect.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Dial {
    /// The server; connections take turns where it has several addresses.
    pub addresses: Vec<SocketAddrV4>,
    /// Handshakes under way at most.
    pub parallel: usize,
    /// Number of the receiver process: its own range of source addresses.
    pub process: usize,
    /// Connections that this process has opened before: they move on through the source addresses.
    pub opened_before: usize,
    /// The connections begin evenly over this time; 0: all at once.
    pub pace_ns: u64,
    /// An attempt that failed is repeated after this time; without, it has failed for good.
    pub retry_ns: Option<u64>,
    /// Who takes little that it has not read.
    pub slow: Option<Slow>,
}

/// Connections that stop reading now and then, and are not timed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Slow {
    /// Every so many-th of a process.
    pub every: usize,
    /// What the kernel keeps unread for each: little, so that it is the server that notices.
    pub receive_bytes: usize,
}

/// A connection whose 101 has arrived.
pub struct Opened {
    /// Its number, from 0.
    pub index: usize,
    /// Non-blocking.
    pub stream: TcpStream,
    /// When the 101 had been read: what is published from then on is owed to it.
    pub opened_ns: u64,
    /// Bytes behind the 101.
    pub rest: Vec<u8>,
}

/// How it went.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Dialed {
    /// Connections that got their 101 (and, if asked to, closed cleanly).
    pub done: usize,
    /// Those that failed for good.
    pub failed: usize,
    /// Attempts that nobody listened to (ECONNREFUSED).
    pub refused: u64,
    /// All other attempts that ended without a 101.
    pub broken: u64,
    /// Attempts that were repeated.
    pub retried: u64,
    /// Those that were not through when the run was interrupted.
    pub left: usize,
    /// The first things that went wrong.
    pub errors: Vec<String>,
    /// From connect to the 101, of the attempts that got one.
    pub handshakes: LatencyPairs,
}

impl Dialed {
    /// Adds another process's.
    pub fn merge(&mut self, other: Dialed) {
        self.done += other.done;
        self.failed += other.failed;
        self.refused += other.refused;
        self.broken += other.broken;
        self.retried += other.retried;
        self.left += other.left;
        self.errors.extend(other.errors);
        self.handshakes.extend(other.handshakes);
    }
}

impl Dial {
    /// To one address, all at once, each connection with one attempt.
    pub fn to(address: SocketAddrV4, process: usize, parallel: usize) -> Self {
        let addresses = vec![address];
        Self { addresses, parallel, process, opened_before: 0, pace_ns: 0, retry_ns: None, slow: None }
    }

    /// Opens `count` connections, connection n with the path `path(n)`, and hands each to `keep`.
    pub fn open(
        &self,
        count: usize,
        path: impl Fn(usize) -> String + 'static,
        mut keep: impl FnMut(Opened),
    ) -> io::Result<Dialed> {
        Dialing::new(self.clone(), Box::new(path), false)?.run(count, &mut keep, sys::interrupted)
    }

    /// Opens and closes `count` connections, unless `stop` says so: handshake, Close frame, the server's Close frame, end of
    /// TCP.
    pub fn churn(
        &self,
        count: usize,
        path: impl Fn(usize) -> String + 'static,
        stop: impl Fn() -> bool,
    ) -> io::Result<Dialed> {
        Dialing::new(self.clone(), Box::new(path), true)?.run(count, &mut |_| (), stop)
    }
}

struct Attempt {
    index: usize,
    address: SocketAddrV4,
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
    /// What went wrong, and whether nobody listened.
    Failed(String, bool),
}

/// Connections on their way, and those that wait for their time to begin.
pub struct Dialing {
    dial: Dial,
    path: Box<dyn Fn(usize) -> String>,
    closes: bool,
    epoll: Epoll,
    ready: Vec<Ready>,
    attempts: Vec<Option<Attempt>>,
    /// Slots of `attempts` without one.
    free: Vec<usize>,
    /// Of the first `count` connections, those that have not begun: they are due by the pace.
    fresh: Range<usize>,
    fresh_since_ns: u64,
    /// When to begin, and which: connections that come back, and attempts that are repeated.
    waiting: BinaryHeap<Reverse<(u64, usize)>>,
    begun: usize,
    handshakes: Latencies,
    dialed: Dialed,
    buffer: Vec<u8>,
}

impl Dialing {
    /// Nothing is to be opened yet. With `closes` each is closed as soon as it is open.
    pub fn new(dial: Dial, path: Box<dyn Fn(usize) -> String>, closes: bool) -> io::Result<Self> {
        if dial.addresses.is_empty() {
            return Err(io::Error::other("no address to connect to"));
        }
        let parallel = dial.parallel.max(1);
        Ok(Self {
            dial,
            path,
            closes,
            epoll: Epoll::new(256)?,
            ready: Vec::new(),
            attempts: (0..parallel).map(|_| None).collect(),
            free: (0..parallel).rev().collect(),
            fresh: 0..0,
            fresh_since_ns: 0,
            waiting: BinaryHeap::new(),
            begun: 0,
            handshakes: Latencies::new(),
            dialed: Dialed::default(),
            buffer: vec![0; 64 * 1024],
        })
    }

    /// From now on failed attempts are repeated after `retry_ns`, and `parallel` may be under way at once. The counts begin again.
    pub fn come_back(&mut self, retry_ns: u64, parallel: usize) {
        self.dial.retry_ns = Some(retry_ns);
        let slots = self.attempts.len();
        for slot in slots..parallel.max(slots) {
            self.attempts.push(None);
            self.free.push(slot);
        }
        self.handshakes.clear();
        self.dialed = Dialed::default();
    }

    /// Opens connection `index` at `due_ns` or as soon after it as a place is free.
    pub fn push(&mut self, index: usize, due_ns: u64) {
        self.waiting.push(Reverse((due_ns, index)));
    }

    /// Opens the connections `0..count` at the pace from now on.
    pub fn push_all(&mut self, count: usize) {
        (self.fresh, self.fresh_since_ns) = (0..count, sys::monotonic_ns());
    }

    /// The next connection that is due by `now_ns`.
    fn take_due(&mut self, now_ns: u64) -> Option<usize> {
        if self.waiting.peek().is_some_and(|Reverse((due_ns, _))| *due_ns <= now_ns) {
            return self.waiting.pop().map(|Reverse((_, index))| index);
        }
        // In 128 bits: an hour in nanoseconds times a million connections is beyond 64.
        let after_ns =
            u128::from(self.dial.pace_ns) * self.fresh.start as u128 / self.fresh.end.max(1) as u128;
        let is_due = self.fresh_since_ns + after_ns as u64 <= now_ns;
        if is_due { self.fresh.next() } else { None }
    }

    /// Connections that wait for their time or for a place.
    fn unbegun(&self) -> usize {
        self.waiting.len() + self.fresh.len()
    }

    /// All that was pushed is done or has failed for good.
    pub fn is_idle(&self) -> bool {
        self.unbegun() == 0 && self.is_waiting()
    }

    /// No handshake is under way: those that are left wait for their time.
    pub fn is_waiting(&self) -> bool {
        self.free.len() == self.attempts.len()
    }

    /// How it went until now, with those that are not through as `left`.
    pub fn dialed(&self) -> Dialed {
        let left = self.unbegun() + self.attempts.len() - self.free.len();
        Dialed { left, handshakes: self.handshakes.pairs(), ..self.dialed.clone() }
    }

    /// Gives up what is not through.
    pub fn give_up(&mut self, why: &str) {
        let left = self.dialed().left;
        if left > 0 {
            self.dialed.errors.push(format!("{left} connections {why}"));
        }
        self.dialed.failed += left;
        self.waiting.clear();
        self.fresh = 0..0;
        self.free.clear();
        for (slot, attempt) in self.attempts.iter_mut().enumerate() {
            *attempt = None;
            self.free.push(slot);
        }
    }

    fn run(
        mut self,
        count: usize,
        keep: &mut impl FnMut(Opened),
        stop: impl Fn() -> bool,
    ) -> io::Result<Dialed> {
        self.push_all(count);
        let mut progress_ns = sys::monotonic_ns();
        while !self.is_idle() && !stop() {
            if self.turn(10, keep)? || self.is_waiting() {
                progress_ns = sys::monotonic_ns();
            } else if sys::monotonic_ns() - progress_ns > PATIENCE_NS {
                self.give_up("made no progress for 10 s");
            }
        }
        Ok(self.dialed())
    }

    /// Begins what is due, waits for news for `timeout_ms` at most, and takes each as far as it goes; says whether
    /// anything happened.
    pub fn turn(&mut self, timeout_ms: i32, keep: &mut impl FnMut(Opened)) -> io::Result<bool> {
        let begun = self.begin_due(keep);
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        self.epoll.wait(if begun { 0 } else { timeout_ms }, &mut ready)?;
        for news in &ready {
            self.advance(news.token as usize, keep);
        }
        let happened = begun || !ready.is_empty();
        self.ready = ready;
        Ok(happened)
    }

    fn begin_due(&mut self, keep: &mut impl FnMut(Opened)) -> bool {
        let now_ns = sys::monotonic_ns();
        for begun in 0..BEGIN_BATCH_MAX {
            let Some(slot) = self.free.pop() else { return begun > 0 };
            let Some(index) = self.take_due(now_ns) else {
                self.free.push(slot);
                return begun > 0;
            };
            self.begin(index, slot, keep);
        }
        true
    }

    fn begin(&mut self, index: usize, slot: usize, keep: &mut impl FnMut(Opened)) {
        let began_ns = sys::monotonic_ns();
        let address = self.dial.addresses[index % self.dial.addresses.len()];
        let place = self.dial.opened_before + self.begun;
        let source = address.ip().is_loopback().then(|| addresses::source(self.dial.process, place));
        self.begun += 1;
        let slow = self.dial.slow.filter(|slow| index.is_multiple_of(slow.every));
        let stream = sys::connect(address, source, slow.map(|slow| slow.receive_bytes)).and_then(|stream| {
            self.epoll.add(&stream, slot as u64, Watch::InputAndOutput)?;
            Ok(stream)
        });
        match stream {
            Err(error) => {
                self.free.push(slot);
                let is_refused = error.kind() == io::ErrorKind::ConnectionRefused;
                self.fail(index, format!("connect: {error}"), is_refused);
            }
            Ok(stream) => {
                let state = State::Connecting;
                self.attempts[slot] = Some(Attempt { index, address, stream, began_ns, state });
                self.advance(slot, keep);
            }
        }
    }

    /// Takes the connection in `slot` as far as it goes now.
    fn advance(&mut self, slot: usize, keep: &mut impl FnMut(Opened)) {
        let Some(mut attempt) = self.attempts.get_mut(slot).and_then(Option::take) else { return };
        match self.step(&mut attempt) {
            Step::Wait => {
                self.attempts[slot] = Some(attempt);
                return;
            }
            Step::Failed(error, is_refused) => self.fail(attempt.index, error, is_refused),
            Step::Closed => self.dialed.done += 1,
            Step::Opened(rest) => {
                if let Err(error) = self.epoll.remove(&attempt.stream) {
                    self.fail(attempt.index, format!("epoll: {error}"), false);
                } else {
                    self.dialed.done += 1;
                    let Attempt { index, stream, .. } = attempt;
                    keep(Opened { index, stream, opened_ns: sys::monotonic_ns(), rest });
                }
            }
        }
        self.free.push(slot);
    }

    fn step(&mut self, attempt: &mut Attempt) -> Step {
        loop {
            match &mut attempt.state {
                State::Connecting => {
                    let request = wire::request(&attempt.address.to_string(), &(self.path)(attempt.index));
                    match attempt.stream.write(request.as_bytes()) {
                        // An empty send buffer takes a request whole.
                        Ok(written) if written == request.len() => {
                            attempt.state = State::Answering(Vec::new());
                        }
                        Ok(written) => {
                            let whole = request.len();
                            return Step::failed(format!("{written} of {whole} bytes of a request sent"));
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Step::Wait,
                        Err(error) => {
                            let is_refused = error.kind() == io::ErrorKind::ConnectionRefused;
                            return Step::Failed(format!("connect: {error}"), is_refused);
                        }
                    }
                }
                State::Answering(head) => {
                    match attempt.stream.read(&mut self.buffer) {
                        Ok(0) => return Step::failed("ended instead of answering the handshake".to_owned()),
                        Ok(bytes) => head.extend_from_slice(&self.buffer[..bytes]),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Step::Wait,
                        Err(error) => return Step::failed(format!("handshake: {error}")),
                    }
                    match wire::read_answer(head) {
                        Answer::Incomplete => {}
                        Answer::Refused(answer) => return Step::failed(format!("handshake: {answer}")),
                        Answer::Open { head_bytes } => {
                            self.handshakes.record(sys::monotonic_ns() - attempt.began_ns);
                            if !self.closes {
                                return Step::Opened(head.split_off(head_bytes));
                            }
                            let mut frame = Vec::new();
                            wire::client_frame(wire::CLOSE, &1000u16.to_be_bytes(), &mut frame);
                            if let Err(error) = attempt.stream.write_all(&frame) {
                                return Step::failed(format!("close: {error}"));
                            }
                            attempt.state = State::Closing;
                        }
                    }
                }
                State::Closing => match attempt.stream.read(&mut self.buffer) {
                    Ok(0) => return Step::Closed,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Step::Wait,
                    Err(error) => return Step::failed(format!("close: {error}")),
                },
            }
        }
    }

    fn fail(&mut self, index: usize, error: String, is_refused: bool) {
        if is_refused {
            self.dialed.refused += 1;
        } else {
            self.dialed.broken += 1;
        }
        if self.dialed.errors.len() < ERRORS_MAX && !self.dialed.errors.contains(&error) {
            self.dialed.errors.push(error);
        }
        match self.dial.retry_ns {
            None => self.dialed.failed += 1,
            Some(pause_ns) => {
                self.dialed.retried += 1;
                self.push(index, sys::monotonic_ns() + pause_ns);
            }
        }
    }
}

impl Step {
    fn failed(error: String) -> Self {
        Self::Failed(error, false)
    }
}
