//! A shard and its sockets on one thread: what the tasks of its runtime share, and the tasks of a connection.
//!
//! A [`Core`] is entered by one task at a time and never across an await. A connection's read task owns its life: whoever
//! ends a connection shuts its socket down, which ends the reading, which releases the slot and only then closes the
//! socket. So the number in an occupied slot is always that of an open descriptor.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::Shutdown;

use super::fanout::Fanout;
use super::notice::Journal;
use super::ring::ShardEnd;
use super::socket::Socket;
use crate::command::ConnectionId;
use crate::limits::{RECEIVE_BUFFER_BYTES, TURN_BYTES_MAX, TURN_COMMANDS_MAX, UP_BACKLOG_MAX};
use crate::notice::Notice;
use crate::shard::{Action, Micros, Next, Progress, Shard};

/// The process's clock: microseconds since its start.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// The time.
    pub fn now(&self) -> Micros {
        Micros(self.start.elapsed().as_micros() as u64)
    }
}

/// See the module.
pub struct Core {
    pub shard: Shard,
    journal: Journal,
    wire: Fanout,
    clock: Clock,
    ring: ShardEnd,
    /// What `recv` fills, for whichever connection has something.
    input: Box<[u8]>,
    /// By slot, in pages: one vector would hold twice its size while it grows.
    sockets: Vec<Vec<Option<Rc<Socket>>>>,
    /// Read tasks that wait for [`Action::Resume`], by slot.
    paused: HashMap<u32, Waker, foldhash::fast::FixedState>,
    /// Something was put on the ring since the relay's bell was rung.
    offered: bool,
    /// Connections whose wait for space in their socket is to be started, once the core has been left.
    stalled: Vec<(ConnectionId, Rc<Socket>)>,
}

/// How the tasks of a thread hold it.
pub type SharedCore = Rc<RefCell<Core>>;

impl Core {
    /// A core without connections.
    pub fn new(shard: Shard, journal: Journal, wire: Fanout, clock: Clock, ring: ShardEnd) -> Self {
        Self {
            shard,
            journal,
            wire,
            clock,
            ring,
            input: vec![0; RECEIVE_BUFFER_BYTES].into_boxed_slice(),
            sockets: Vec::new(),
            paused: HashMap::default(),
            offered: false,
            stalled: Vec::new(),
        }
    }

    // ---- the turn

    /// Takes a bounded batch of commands off the ring. Returns whether there was one, or rooms to be told of a break.
    pub fn take_commands(&mut self) -> bool {
        let now = self.clock.now();
        let (mut commands, mut bytes) = (0, 0);
        while commands < TURN_COMMANDS_MAX && bytes < TURN_BYTES_MAX {
            let Some(command) = self.ring.take() else { break };
            commands += 1;
            bytes += command.backlog_bytes();
            self.shard.handle(command, &mut self.wire, now);
        }
        let settles = self.shard.is_settling();
        if settles {
            self.shard.settle_some(now);
        }
        self.ring.tell_space();
        self.carry_out();
        commands > 0 || settles
    }

    /// Sends one batch of the pass.
    pub fn step(&mut self) -> Progress {
        let now = self.clock.now();
        let progress = self.shard.step(&mut self.wire, now);
        let length = self.clock.now().0.saturating_sub(now.0);
        self.shard.note_batch(Duration::from_micros(length));
        self.carry_out();
        progress
    }

    /// Whether a turn would have something to do: commands, a pass, or space for what waits to go up.
    pub fn has_work(&self) -> bool {
        let can_go_up = !self.shard.up.is_empty() && !self.ring.up.is_full();
        !self.ring.down.is_empty() || self.shard.has_dirty_rooms() || self.shard.is_settling() || can_go_up
    }

    /// The length of a turn that began at `since`.
    pub fn turn_ended(&mut self, since: Micros) {
        let length = self.clock.now().0.saturating_sub(since.0);
        let metrics = self.shard.metrics();
        metrics.turns.add(1);
        metrics.turn_seconds.record(std::time::Duration::from_micros(length), 1);
        metrics.send_calls.add(std::mem::take(&mut self.wire.calls));
        metrics.send_fallbacks.add(std::mem::take(&mut self.wire.fallbacks));
    }

    /// The time.
    pub fn now(&self) -> Micros {
        self.clock.now()
    }

    /// What is due by the clock.
    pub fn sweep(&mut self) {
        let now = self.clock.now();
        self.shard.sweep(&mut self.wire, now);
        self.carry_out();
    }

    /// See [`Shard::open_ids`].
    pub fn open_ids(&self) -> Vec<ConnectionId> {
        self.shard.open_ids(self.clock.now())
    }

    /// Ends a connection with a reason.
    pub fn close(&mut self, id: ConnectionId, reason: crate::close::CloseReason) {
        let now = self.clock.now();
        self.shard.close(id, reason, &mut self.wire, now);
        self.carry_out();
    }

    // ---- connections

    /// See [`Shard::may_accept_admin`].
    pub fn may_accept_admin(&mut self) -> bool {
        let now = self.clock.now();
        let may = self.shard.may_accept_admin(&mut self.wire, now);
        self.carry_out();
        may
    }

    /// Takes an accepted socket in. Its read task is to be started.
    pub fn accept(&mut self, socket: Socket, listener: u8) -> (ConnectionId, Rc<Socket>) {
        let id = self.shard.accept(socket.number(), listener, self.clock.now());
        let (page, at) = place(id);
        while self.sockets.len() <= page {
            self.sockets.push(vec![None; SOCKETS_PER_PAGE]);
        }
        let socket = Rc::new(socket);
        self.sockets[page][at] = Some(socket.clone());
        (id, socket)
    }

    fn read(&mut self, id: ConnectionId, socket: &Socket) -> Next {
        if !self.shard.may_be_read(id) {
            self.carry_out();
            return Next::Pause;
        }
        let next = match socket.receive(&mut self.input) {
            Ok(0) => None,
            Ok(bytes) => {
                let now = self.clock.now();
                Some(self.shard.receive(id, &mut self.input[..bytes], &mut self.wire, now))
            }
            Err(Errno::AGAIN) => Some(Next::Read),
            Err(_) => None,
        };
        self.carry_out();
        next.unwrap_or(Next::Done)
    }

    /// The read task is over: the slot is given up, and then the socket.
    fn close_socket(&mut self, id: ConnectionId, socket: &Socket) {
        let now = self.clock.now();
        self.shard.release(id, now);
        self.paused.remove(&id.slot);
        let (page, at) = place(id);
        self.sockets[page][at] = None;
        // A task that waits for the socket to take bytes holds it too, and with it open; this lets it go.
        socket.shutdown(Shutdown::Both);
        self.carry_out();
    }

    fn writable(&mut self, id: ConnectionId) {
        let now = self.clock.now();
        self.shard.writable(id, &mut self.wire, now);
        self.carry_out();
    }

    /// Does what the shard asked for, and passes on what it has for the relay.
    fn carry_out(&mut self) {
        let mut resumed = false;
        if !self.shard.notices.is_empty() {
            self.log_notices();
        }
        loop {
            for action in std::mem::take(&mut self.shard.actions) {
                match action {
                    Action::AwaitWritable(id) => {
                        let waiting = self.socket(id).map(|socket| (id, socket));
                        self.stalled.extend(waiting);
                    }
                    Action::Resume(id) => {
                        if let Some(waker) = self.paused.remove(&id.slot) {
                            waker.wake();
                        }
                    }
                    Action::ShutdownWrite(id) => {
                        if let Some(socket) = self.socket(id) {
                            socket.shutdown(Shutdown::Write);
                        }
                    }
                    Action::Shutdown(id) => {
                        if let Some(socket) = self.socket(id) {
                            socket.shutdown(Shutdown::Both);
                        }
                    }
                }
            }
            self.pass_up();
            if resumed || self.shard.up.len() > UP_BACKLOG_MAX / 2 || !self.shard.has_waiting_publishers() {
                return;
            }
            self.shard.resume_publishers();
            resumed = true;
        }
    }

    fn log_notices(&mut self) {
        for notice in std::mem::take(&mut self.shard.notices) {
            let socket = match &notice {
                Notice::Opened { id, .. } => self.socket(*id),
                _ => None,
            };
            self.journal.write(&notice, socket.as_deref());
        }
    }

    /// Moves commands for the relay onto the ring; what it has no space for waits.
    pub fn pass_up(&mut self) {
        while let Some(command) = self.shard.up.pop_front() {
            match self.ring.offer(command) {
                Ok(()) => self.offered = true,
                Err(command) => {
                    self.shard.up.push_front(command);
                    break;
                }
            }
        }
        if std::mem::take(&mut self.offered) {
            self.ring.relay_bell.ring();
        }
    }

    fn socket(&self, id: ConnectionId) -> Option<Rc<Socket>> {
        let (page, at) = place(id);
        self.sockets.get(page)?.get(at)?.clone()
    }
}

/// 512 x 8 B = 4 KiB.
const SOCKETS_PER_PAGE: usize = 512;

/// Page and place in it of a connection's socket.
fn place(id: ConnectionId) -> (usize, usize) {
    (id.slot as usize / SOCKETS_PER_PAGE, id.slot as usize % SOCKETS_PER_PAGE)
}

/// Enters the core, and then starts the waits that it asked for.
pub fn enter<R>(core: &SharedCore, visit: impl FnOnce(&mut Core) -> R) -> R {
    let (result, stalled) = {
        let mut core = core.borrow_mut();
        let result = visit(&mut core);
        (result, std::mem::take(&mut core.stalled))
    };
    for (id, socket) in stalled {
        monoio::spawn(await_writable(core.clone(), id, socket));
    }
    result
}

/// Reads a connection until its end, on io_uring.
#[expect(clippy::manual_async_fn, reason = "an async fn keeps its arguments twice")]
pub fn read(core: SharedCore, id: ConnectionId, socket: Rc<Socket>) -> impl Future<Output = ()> {
    async move {
        loop {
            // An error is the socket's; `recv` names it.
            let _named_below = socket.readable().await;
            match enter(&core, |core| core.read(id, &socket)) {
                Next::Read => {}
                Next::Pause => resumed(&core, id).await,
                // Boxed: few connections wait so, and all have a task of this size.
                Next::Watch => Box::pin(resumed_or_readable(&core, id, &socket)).await,
                Next::Done => break,
            }
        }
        enter(&core, |core| core.close_socket(id, &socket));
    }
}

/// The same on epoll, where a wait for a socket that has more returns at once: whoever sends faster than we read would
/// hold the thread, its timers and everybody else on it. (Waking oneself would starve the timers all the same.)
pub async fn read_on_epoll(core: SharedCore, id: ConnectionId, socket: Rc<Socket>) {
    let mut reads_at_once = 0;
    loop {
        reads_at_once = if socket.readable_at_once().await { reads_at_once + 1 } else { 0 };
        if reads_at_once == READS_AT_ONCE_MAX {
            reads_at_once = 0;
            monoio::time::sleep(REST).await;
        }
        match enter(&core, |core| core.read(id, &socket)) {
            Next::Read => {}
            Next::Pause => resumed(&core, id).await,
            Next::Watch => Box::pin(resumed_or_readable(&core, id, &socket)).await,
            Next::Done => break,
        }
    }
    enter(&core, |core| core.close_socket(id, &socket));
}

/// Reads of one connection that may find data at once before everybody else on the thread has a turn.
const READS_AT_ONCE_MAX: u32 = 2;
/// The shortest sleep of the runtime.
pub const REST: Duration = Duration::from_millis(1);

/// Waits until the shard wants the connection read again.
async fn resumed(core: &SharedCore, id: ConnectionId) {
    poll_fn(|context| poll_resumed(core, id, context)).await;
}

/// The same, or until its client has said more, or has hung up.
async fn resumed_or_readable(core: &SharedCore, id: ConnectionId, socket: &Socket) {
    let mut readable = pin!(socket.readable());
    poll_fn(|context| {
        // An error is the socket's; `recv` names it.
        match readable.as_mut().poll(context).map(|_named_below| ()) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => poll_resumed(core, id, context),
        }
    })
    .await;
}

fn poll_resumed(core: &SharedCore, id: ConnectionId, context: &mut Context<'_>) -> Poll<()> {
    let mut core = core.borrow_mut();
    if !core.shard.is_paused(id) {
        return Poll::Ready(());
    }
    core.paused.insert(id.slot, context.waker().clone());
    Poll::Pending
}

async fn await_writable(core: SharedCore, id: ConnectionId, socket: Rc<Socket>) {
    // An error is the socket's; the send names it.
    let _named_below = socket.writable().await;
    drop(socket);
    enter(&core, |core| core.writable(id));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_connection_costs_a_small_future() {
        fn future_bytes<F: Future>(_: impl FnOnce(SharedCore, ConnectionId, Rc<Socket>) -> F) -> usize {
            size_of::<F>()
        }
        // With the 40 B of a task's header and trailer it fits the allocator's class of 192 B.
        let bytes = future_bytes(read);
        assert!(bytes <= 152, "{bytes} B");
    }
}
