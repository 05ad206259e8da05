//! Thousands of WebSocket clients on one thread, each with its own account of what it received.
//!
//! The thread waits in epoll without the lock and takes it to handle what is ready, so a test can look at members, stall
//! them or add more at any moment.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use socket2::{Domain, Socket, Type};

use super::deadline::{LONG, eventually_ok};
use super::http;
use super::kernel;
use super::payload::{self, Ledger, Tally};
use super::wire::{self, Frame, Frames};

/// A number of clients; all of them end when it is dropped.
pub struct Swarm {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    epoll: OwnedFd,
    stop: AtomicBool,
    herd: Mutex<Herd>,
}

struct Herd {
    members: Vec<Member>,
    scratch: Vec<u8>,
    /// Asked at each 101 for [`Member::joined_at`].
    clock: Box<dyn Fn() -> u64 + Send>,
}

/// One client.
pub struct Member {
    stream: Option<TcpStream>,
    phase: Phase,
    outbox: Vec<u8>,
    head: Vec<u8>,
    frames: Frames,
    stalled: bool,
    /// Numbered messages.
    pub ledger: Ledger,
    /// Text and binary messages of any kind.
    pub messages: u64,
    /// Messages without a number, the first few of them.
    pub others: Vec<Vec<u8>>,
    /// What the swarm's clock said when the 101 was read.
    pub joined_at: u64,
    /// Code of the Close frame that came.
    pub close_code: Option<u16>,
}

/// Where a client stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// TCP or the upgrade is under way.
    Joining,
    /// Upgraded.
    Open,
    /// The upgrade was answered with this status.
    Refused(u16),
    /// TCP ended without an error; [`Member::close_code`] says whether a Close frame came first.
    Ended,
    /// TCP broke.
    Broken(io::ErrorKind),
}

impl Member {
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    pub fn tally(&self, publisher: char) -> Tally {
        self.ledger.of(publisher)
    }
}

impl Swarm {
    pub fn new() -> Self {
        Self::with_clock(|| 0)
    }

    /// Every member notes what `clock` says at the moment its 101 is read.
    pub fn with_clock(clock: impl Fn() -> u64 + Send + 'static) -> Self {
        kernel::raise_descriptor_limit();
        let herd = Herd { members: Vec::new(), scratch: vec![0; 256 * 1024], clock: Box::new(clock) };
        let shared = Arc::new(Shared {
            epoll: epoll::create(CreateFlags::CLOEXEC).expect("a descriptor is left"),
            stop: AtomicBool::new(false),
            herd: Mutex::new(herd),
        });
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.run()
        });
        Self { shared, thread: Some(thread) }
    }

    /// Begins one upgrade at `target`; returns the member's index.
    #[track_caller]
    pub fn add(&self, address: SocketAddr, target: &str) -> usize {
        self.add_with(address, target, None)
    }

    /// [`Swarm::add`] for `count` members at once.
    #[track_caller]
    pub fn add_many(&self, address: SocketAddr, target: &str, count: usize) -> std::ops::Range<usize> {
        let first = self.lock().members.len();
        for _ in 0..count {
            self.add(address, target);
        }
        first..first + count
    }

    /// [`Swarm::add`] with a receive buffer of `receive_bytes` (the kernel doubles it).
    ///
    /// # Panics
    /// When this process may not open another socket.
    #[track_caller]
    pub fn add_with(&self, address: SocketAddr, target: &str, receive_bytes: Option<usize>) -> usize {
        let stream = connect(address, receive_bytes).unwrap_or_else(|error| {
            let max = kernel::descriptors_max();
            panic!("no further client socket: {error} (this process may hold {max} descriptors; raise `ulimit -n`)")
        });
        let mut herd = self.lock();
        let index = herd.members.len();
        let flags = EventFlags::IN | EventFlags::OUT;
        epoll::add(&self.shared.epoll, &stream, EventData::new_u64(index as u64), flags)
            .expect("a fresh socket can be watched");
        herd.members.push(Member {
            stream: Some(stream),
            phase: Phase::Joining,
            outbox: wire::upgrade(address, target).into_bytes(),
            head: Vec::new(),
            frames: Frames::default(),
            stalled: false,
            ledger: Ledger::default(),
            messages: 0,
            others: Vec::new(),
            joined_at: 0,
            close_code: None,
        });
        index
    }

    /// Stops reading: the member's receive buffer fills, then the server's send buffer.
    pub fn stall(&self, index: usize) {
        self.change(index, |member| member.stalled = true);
    }

    /// Reads on.
    pub fn resume(&self, index: usize) {
        self.change(index, |member| member.stalled = false);
    }

    /// Sends a text message.
    pub fn send_text(&self, index: usize, payload: &[u8]) {
        self.change(index, |member| member.outbox.extend(wire::masked(wire::TEXT, payload)));
    }

    /// Sends a Close frame with 1000; the member ends when the server has answered.
    pub fn close(&self, index: usize) {
        self.change(index, |member| member.outbox.extend(wire::close(1000)));
    }

    /// Ends TCP without a word.
    pub fn vanish(&self, index: usize) {
        let mut herd = self.lock();
        let member = &mut herd.members[index];
        // Closing the descriptor takes it out of epoll too.
        member.stream = None;
        if matches!(member.phase, Phase::Joining | Phase::Open) {
            member.phase = Phase::Ended;
        }
    }

    /// Looks at one member.
    pub fn look<T>(&self, index: usize, view: impl FnOnce(&Member) -> T) -> T {
        view(&self.lock().members[index])
    }

    /// How many members satisfy `wanted`.
    pub fn count(&self, wanted: impl Fn(&Member) -> bool) -> usize {
        self.lock().members.iter().filter(|member| wanted(member)).count()
    }

    /// What `view` says of each member, in order.
    pub fn map<T>(&self, view: impl Fn(&Member) -> T) -> Vec<T> {
        self.lock().members.iter().map(view).collect()
    }

    pub fn len(&self) -> usize {
        self.lock().members.len()
    }

    /// Waits until every member is open.
    ///
    /// # Panics
    /// When one is refused or ends, or the last isn't open within [`LONG`].
    #[track_caller]
    pub fn wait_open(&self) {
        self.wait_all("every member is upgraded", |member| {
            let failed = !matches!(member.phase, Phase::Joining | Phase::Open);
            assert!(!failed, "a member that was to join is {:?}", member.phase);
            member.is_open()
        });
    }

    /// Waits until every member satisfies `wanted`.
    #[track_caller]
    pub fn wait_all(&self, what: &str, wanted: impl Fn(&Member) -> bool) {
        let all = 0..self.len();
        self.wait_each(all, what, wanted);
    }

    /// Waits until each member of `indices` satisfies `wanted`.
    #[track_caller]
    pub fn wait_each(
        &self,
        indices: impl IntoIterator<Item = usize> + Clone,
        what: &str,
        wanted: impl Fn(&Member) -> bool,
    ) {
        eventually_ok(LONG, what, || {
            let herd = self.lock();
            let mut failing = indices.clone().into_iter().filter(|&index| !wanted(&herd.members[index]));
            let Some(first) = failing.next() else { return Ok(()) };
            let member = &herd.members[first];
            Err(format!(
                "{} members do not, the first of them {first}: {:?}, close code {:?}, {} messages, {:?}",
                failing.count() + 1,
                member.phase,
                member.close_code,
                member.messages,
                member.ledger,
            ))
        });
    }

    /// Waits until fewer than a hundred members are still joining: as many as a client may start at once.
    #[track_caller]
    pub fn wait_some_joined(&self) {
        eventually_ok(LONG, "newcomers are let in", || {
            let joining = self.count(|member| member.phase == Phase::Joining);
            if joining < JOINING_MAX { Ok(()) } else { Err(format!("{joining} are still joining")) }
        });
    }

    /// # Panics
    /// When a member isn't open, or has been sent a Close frame.
    #[track_caller]
    pub fn assert_all_open(&self) {
        let view = |member: &Member| (!member.is_open()).then(|| (member.phase.clone(), member.close_code));
        let ended: Vec<_> = self.map(view).into_iter().enumerate().filter(|(_, end)| end.is_some()).collect();
        assert!(ended.is_empty(), "{} connections were closed: {ended:?}", ended.len());
    }

    fn change(&self, index: usize, change: impl FnOnce(&mut Member)) {
        let mut herd = self.lock();
        let member = &mut herd.members[index];
        change(member);
        member.watch(&self.shared.epoll, index);
    }

    #[track_caller]
    fn lock(&self) -> MutexGuard<'_, Herd> {
        self.shared.herd.lock().expect("the swarm's thread found a broken frame (see above)")
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(
                ended.is_ok() || thread::panicking(),
                "the swarm's thread found a broken frame (see above)"
            );
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        // How late the thread may see `stop`.
        let patience = Duration::from_millis(20).try_into().expect("20 ms fit a timespec");
        while !self.stop.load(Ordering::Acquire) {
            events.clear();
            let buffer = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, buffer, Some(&patience)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("epoll_wait: {error}"),
            }
            if events.is_empty() {
                continue;
            }
            let mut herd = self.herd.lock().expect("a test does not panic while it holds the lock");
            let Herd { members, scratch, clock } = &mut *herd;
            for event in &events {
                let index = event.data.u64() as usize;
                let member = &mut members[index];
                member.handle_ready(event.flags, scratch, clock);
                member.watch(&self.epoll, index);
            }
        }
    }
}

impl Member {
    fn handle_ready(&mut self, ready: EventFlags, scratch: &mut [u8], clock: &dyn Fn() -> u64) {
        let outcome = self.write_out().and_then(|()| {
            let readable = ready.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR);
            if readable && !self.stalled { self.read_in(scratch, clock) } else { Ok(()) }
        });
        if let Err(error) = outcome {
            // After a Close frame our answer may meet a socket that is gone; what counts is what was read before.
            self.end(Phase::Broken(error.kind()));
        }
    }

    fn write_out(&mut self) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        while !self.outbox.is_empty() {
            match stream.write(&self.outbox) {
                Ok(written) => drop(self.outbox.drain(..written)),
                Err(error) if is_pending(&error) => return Ok(()),
                // What the server said before it hung up is still to be read.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    self.outbox.clear();
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads once: a member with much to read must not starve the others.
    fn read_in(&mut self, scratch: &mut [u8], clock: &dyn Fn() -> u64) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let received = match stream.read(scratch) {
            Ok(received) => received,
            Err(error) if is_pending(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        if received == 0 {
            self.end(Phase::Ended);
            return Ok(());
        }
        if self.phase == Phase::Joining {
            self.handle_head(&scratch[..received], clock);
        } else {
            self.frames.feed(&scratch[..received]);
        }
        self.handle_frames();
        self.write_out()
    }

    fn handle_head(&mut self, bytes: &[u8], clock: &dyn Fn() -> u64) {
        self.head.extend_from_slice(bytes);
        let Some(end) = self.head.windows(4).position(|window| window == b"\r\n\r\n") else { return };
        let head = std::mem::take(&mut self.head);
        let (head, rest) = head.split_at(end + 4);
        let response = http::parse_head(head).expect("the server writes a valid head");
        if response.status != 101 {
            return self.end(Phase::Refused(response.status));
        }
        assert_eq!(response.header("sec-websocket-accept"), Some(wire::ACCEPT));
        self.phase = Phase::Open;
        self.joined_at = clock();
        self.frames.feed(rest);
    }

    fn handle_frames(&mut self) {
        while let Some(frame) = self.frames.take() {
            match frame {
                Frame::Text(payload) | Frame::Binary(payload) => self.book(payload),
                Frame::Ping(payload) => self.outbox.extend(wire::masked(wire::PONG, &payload)),
                Frame::Pong(_) => {}
                Frame::Close(body) => {
                    self.close_code = body.map(|(code, _)| code);
                    self.outbox.extend(wire::close(self.close_code.unwrap_or(1000)));
                }
            }
        }
    }

    fn book(&mut self, message: Vec<u8>) {
        assert!(self.close_code.is_none(), "a message came after the Close frame");
        self.messages += 1;
        match payload::parse(&message) {
            Some((publisher, sequence)) => self.ledger.book(publisher, sequence),
            None if self.others.len() < OTHERS_KEPT => self.others.push(message),
            None => {}
        }
    }

    fn end(&mut self, phase: Phase) {
        self.stream = None;
        self.phase = phase;
    }

    fn watch(&self, epoll: &OwnedFd, index: usize) {
        let Some(stream) = &self.stream else { return };
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, !self.stalled);
        flags.set(EventFlags::OUT, !self.outbox.is_empty());
        epoll::modify(epoll, stream, EventData::new_u64(index as u64), flags)
            .expect("an open socket is watched");
    }
}

fn connect(address: SocketAddr, receive_bytes: Option<usize>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(bytes) = receive_bytes {
        // Before connect(): the window's scale is agreed on in the handshake.
        socket.set_recv_buffer_size(bytes)?;
    }
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// Not an error but "later": the socket is full or empty, or TCP is not connected yet.
fn is_pending(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::NotConnected
    )
}

const EVENTS_MAX: usize = 1024;
const JOINING_MAX: usize = 100;
const OTHERS_KEPT: usize = 16;
