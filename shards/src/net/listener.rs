//! Where connections come from: one listening socket per shard and address, all on the same port (SO_REUSEPORT), or one that
//! the service manager holds ([`super::passed`]) and all shards accept from. A parent process holds its children's sockets,
//! and passes connections of the admin address on through a door.
//!
//! Accepting is `readable()` and then `accept4` until there is nothing: no accept operation is ever in flight, because
//! monoio 0.2.4 leaks the socket of one that is dropped. Options are set on the listener; accepted sockets inherit them.

use std::cell::Cell;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown, SocketFlags, accept_with};
use socket2::{SockFilter, SockRef};

use super::bind::{open, tune};
use super::connection::{Core, REST, SharedCore, enter, read, read_on_epoll};
use super::options::SocketOptions;
use super::rights;
use super::socket::Socket;
use crate::limits::{ADMIN_CONNECTIONS_MAX, BROKER_PATIENCE};
use crate::shard::{ADMIN, Micros};

/// Connections accepted before others on the thread have their turn.
const ACCEPT_BATCH_MAX: usize = 64;
/// How long accepting pauses when there are no descriptors: long enough not to spin, short enough not to be noticed.
const PAUSE: Duration = Duration::from_millis(100);
/// How often a shard that waits for its broker looks for it.
const BROKER_POLL: Duration = Duration::from_millis(10);
/// Accepting goes on, for the log, once it has not paused for this long: who leaves a full server lets one in, and the next
/// finds it full.
const STEADY: Duration = Duration::from_secs(1);

/// Who keeps a listening socket, and with it its queue, when this process is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// Nobody.
    Nobody,
    /// The parent of this process, for its successor; until the parent ends too.
    Parent,
    /// The service manager.
    Manager,
}

/// What a [`Place`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A listening socket.
    Queue(Holder),
    /// A Unix socket; connections arrive through it as descriptors ([`super::rights`]).
    Door,
}

/// A listening socket, or a door, on its way to its shard.
pub struct Place {
    /// See [`Kind`].
    pub socket: OwnedFd,
    /// Told to the shard with each connection: which address, or [`ADMIN`].
    pub index: u8,
    /// What it is.
    pub kind: Kind,
}

/// One listening socket, or a door, on its shard's thread.
pub struct Listener {
    socket: Socket,
    index: u8,
    kind: Kind,
    options: SocketOptions,
    is_closed: Cell<bool>,
}

/// What became of an attempt to accept.
enum Accepted {
    Connection(OwnedFd),
    Nothing,
    Exhausted(Errno),
    Closed,
}

/// What accept4 means by an error (accept(2), "Errors" and "Error handling").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// The next may come: this one was interrupted, or had ended, for a reason of its network, before it was accepted.
    Again,
    /// Nobody waits.
    Nothing,
    /// Descriptors or memory.
    Exhausted,
    /// It doesn't listen any more; of a door, its other end is gone.
    Closed,
    /// No word of a socket that listens.
    Unknown,
}

fn meaning(error: Errno) -> Meaning {
    match error {
        Errno::AGAIN => Meaning::Nothing,
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => Meaning::Exhausted,
        Errno::INVAL | Errno::CONNRESET => Meaning::Closed,
        Errno::INTR
        | Errno::CONNABORTED
        | Errno::PROTO
        | Errno::PERM
        | Errno::NETDOWN
        | Errno::HOSTDOWN
        | Errno::HOSTUNREACH
        | Errno::NETUNREACH
        | Errno::NONET
        | Errno::NOPROTOOPT
        | Errno::OPNOTSUPP
        | Errno::NOSR
        | Errno::SOCKTNOSUPPORT
        | Errno::PROTONOSUPPORT
        | Errno::TIMEDOUT => Meaning::Again,
        _ => Meaning::Unknown,
    }
}

impl Listener {
    /// To be made on the shard's thread.
    ///
    /// # Errors
    /// The driver did not take the descriptor, or the kernel not the options.
    pub fn new(place: Place, options: SocketOptions) -> io::Result<Rc<Self>> {
        let Place { socket, index, kind } = place;
        if kind != Kind::Queue(Holder::Nobody) {
            // Others may hold this socket, so a connection that was there a moment ago may be theirs.
            rustix::io::ioctl_fionbio(&socket, true)?;
        }
        if let Kind::Queue(_) = kind {
            options.apply(&socket)?;
        }
        if kind == Kind::Queue(Holder::Parent) {
            open(&socket)?;
        }
        let socket = Socket::new(socket)?;
        Ok(Rc::new(Self { socket, index, kind, options, is_closed: Cell::new(false) }))
    }

    /// Whether it is that of the admin address.
    pub fn is_of_admin(&self) -> bool {
        self.index == ADMIN
    }

    fn accept(&self) -> Accepted {
        loop {
            if self.is_closed.get() {
                return Accepted::Closed;
            }
            let accepted = match self.kind {
                Kind::Queue(_) => {
                    accept_with(self.socket.fd(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).map(Some)
                }
                Kind::Door => take_through(self.socket.fd()),
            };
            match accepted {
                Ok(None) => return Accepted::Closed,
                Ok(Some(fd)) if self.kind == Kind::Queue(Holder::Manager) => {
                    return Accepted::Connection(tuned(fd, self.options));
                }
                Ok(Some(fd)) => return Accepted::Connection(fd),
                Err(error) => match meaning(error) {
                    Meaning::Again => {}
                    Meaning::Nothing => return Accepted::Nothing,
                    Meaning::Exhausted => return Accepted::Exhausted(error),
                    // By the parent, or by another process of its place that leaves for good.
                    Meaning::Closed => return Accepted::Closed,
                    // The kernel would send its share of newcomers to a queue that nobody reads any more.
                    Meaning::Unknown => {
                        panic!("accepting fails with {error}, which a listening socket never says")
                    }
                },
            }
        }
    }

    /// The kernel answers no newcomer here any more, and who is being answered still arrives. A client's kernel asks
    /// again after a second, and then finds whoever else listens, if this queue is closed by then.
    pub fn turn_newcomers_away(&self) {
        if let Err(error) = turn_away(self.socket.fd()) {
            tracing::warn!(%error, "who connects while the queue is closed may be reset");
        }
    }

    /// Takes what is queued and closes the queue: nothing that the kernel has accepted is reset. A queue that somebody
    /// keeps (`keeps` says who counts) stays as it is, for the next process.
    pub fn close(&self, core: &SharedCore, keeps: impl Fn(Holder) -> bool) {
        if let Kind::Queue(holder) = self.kind
            && keeps(holder)
        {
            self.is_closed.set(true);
            return;
        }
        self.is_closed.set(false);
        while let Accepted::Connection(fd) = self.accept() {
            admit(core, fd, self.index);
        }
        self.socket.shutdown(Shutdown::Both);
    }
}

/// The next connection that comes through a door; `None` at its end.
fn take_through(door: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Errno> {
    let mut buffer = [0; 16];
    loop {
        let received = rights::receive(door, &mut buffer, RecvFlags::DONTWAIT)?;
        if received.bytes == 0 {
            return Ok(None);
        }
        // A message without one is nothing we know.
        if let Some(fd) = received.descriptors.into_iter().next() {
            rustix::io::ioctl_fionbio(&fd, true)?;
            return Ok(Some(fd));
        }
    }
}

/// Has the kernel drop what opens a connection (SYN without ACK) before `listener` sees it.
///
/// The filter sees the TCP header from its first byte (`tcp_filter` in `tcp_v4_rcv`); byte 13 holds the flags (RFC 9293
/// section 3.1). Connections that are accepted inherit it, and no such segment is ever theirs.
fn turn_away(listener: BorrowedFd<'_>) -> io::Result<()> {
    const FLAGS_AT: u32 = 13;
    const SYN: u32 = 0x02;
    const ALL: u32 = u32::MAX;
    let step = |code: u32, jt, jf, k| SockFilter::new(code as u16, jt, jf, k);
    SockRef::from(&listener).attach_filter(&[
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, FLAGS_AT),
        step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, SYN),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, ALL),
    ])
}

/// Whoever came while no process of ours held the socket inherited what its holder had set.
fn tuned(fd: OwnedFd, options: SocketOptions) -> OwnedFd {
    let socket = socket2::Socket::from(fd);
    if let Err(error) = tune(&socket).and_then(|()| options.apply(&socket)) {
        tracing::debug!(%error, "an accepted socket keeps the options of the passed one");
    }
    socket.into()
}

/// What the log hears of pauses: the first of a row, and that the row is over.
#[derive(Default)]
struct Pauses {
    last: Option<Micros>,
}

impl Pauses {
    /// Notes one. Whether a row begins with it.
    fn note(&mut self, now: Micros) -> bool {
        self.last.replace(now).is_none()
    }

    /// Somebody was accepted. Whether a row is over with that.
    fn are_over(&mut self, now: Micros) -> bool {
        let is_steady = |last: Micros| u128::from(now.0.saturating_sub(last.0)) >= STEADY.as_micros();
        self.last.take_if(|last| is_steady(*last)).is_some()
    }
}

/// Accepts until the listener is closed. Clients are not taken before the broker has answered or failed to, or
/// [`BROKER_PATIENCE`] is over: with the broker away a room admits at once, and what is published until it comes would be
/// missed. Until then they wait in a queue that another process may serve meanwhile.
pub async fn accept_all(core: SharedCore, listener: Rc<Listener>) {
    if !listener.is_of_admin() {
        wait_for_broker(&core).await;
    }
    let mut pauses = Pauses::default();
    loop {
        // On epoll more of a queue that a batch did not empty is there at once: everybody else has a turn first.
        if listener.socket.readable_at_once().await {
            monoio::time::sleep(REST).await;
        }
        for _ in 0..ACCEPT_BATCH_MAX {
            if let Some(bound) = bound_reached(&core, listener.index) {
                core.borrow().shard.metrics().accept_pauses.add(1);
                if pauses.note(core.borrow().now()) {
                    tracing::warn!("accepting pauses: {bound}");
                }
                monoio::time::sleep(PAUSE).await;
                continue;
            }
            match listener.accept() {
                Accepted::Connection(fd) => {
                    if pauses.are_over(core.borrow().now()) {
                        tracing::info!("accepting again");
                    }
                    admit(&core, fd, listener.index);
                }
                Accepted::Nothing => break,
                Accepted::Closed => return,
                Accepted::Exhausted(error) => {
                    core.borrow().shard.metrics().accept_pauses.add(1);
                    if pauses.note(core.borrow().now()) {
                        tracing::warn!(%error, "accepting pauses: raise the descriptor limit (LimitNOFILE, ulimit -n)");
                    }
                    monoio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

async fn wait_for_broker(core: &SharedCore) {
    let mut waited = Duration::ZERO;
    while waited < BROKER_PATIENCE && !core.borrow().shard.setup().broker_is_known() {
        monoio::time::sleep(BROKER_POLL).await;
        waited += BROKER_POLL;
    }
}

/// At a bound the kernel's queue holds newcomers. That of connections is the process's; its shards look at each other's
/// numbers, because SO_REUSEPORT doesn't spread evenly. The admin address has a small one of its own, so that a full server
/// can still be asked how it is. What was found at the bound, and what to do, as text.
fn bound_reached(core: &SharedCore, listener: u8) -> Option<&'static str> {
    if listener == ADMIN {
        return (!enter(core, Core::may_accept_admin)).then_some(ADMIN_IS_FULL);
    }
    core.borrow().shard.is_process_full().then_some(PROCESS_IS_FULL)
}

const PROCESS_IS_FULL: &str = "the bound of connections is reached; raise connections_max or the descriptor limit \
     (LimitNOFILE, ulimit -n)";
const ADMIN_IS_FULL: &str = "the admin address has its 16 connections, and the next waits until one ends; who asks it \
     should close the connection afterwards or keep using the same";
const _: () = assert!(ADMIN_CONNECTIONS_MAX == 16, "the sentence above names the bound");

fn admit(core: &SharedCore, fd: OwnedFd, listener: u8) {
    match Socket::new(fd) {
        Ok(socket) => {
            let (id, socket) = core.borrow_mut().accept(socket, listener);
            if monoio::utils::is_legacy() {
                monoio::spawn(read_on_epoll(core.clone(), id, socket));
            } else {
                monoio::spawn(read(core.clone(), id, socket));
            }
        }
        Err(error) => {
            core.borrow().shard.metrics().accept_failures.add(1);
            tracing::warn!(%error, "an accepted socket could not be registered and was closed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::bind::{Sharing, bind};

    #[test]
    fn a_socket_that_listens_no_more_and_one_that_never_did_are_told_apart() {
        let any = || bind(([127, 0, 0, 1], 0).into(), Sharing::Alone).expect("a free port").0;
        let accept = |socket: &OwnedFd| accept_with(socket, SocketFlags::NONBLOCK).map(drop).map_err(meaning);
        let closed = any();
        rustix::net::shutdown(&closed, Shutdown::Both).expect("it listens");
        let file = OwnedFd::from(std::fs::File::open("/dev/null").expect("it is everywhere"));
        let due = [Meaning::Nothing, Meaning::Closed, Meaning::Unknown].map(Err);
        assert_eq!([any(), closed, file].each_ref().map(accept), due);
    }

    #[test]
    fn pauses_that_follow_each_other_are_told_once_and_their_end_after_a_second_of_quiet() {
        let mut pauses = Pauses::default();
        let millis = |millis: u64| Micros(millis * 1000);
        let told: Vec<bool> = (0..50)
            .map(|tenth| {
                assert!(!pauses.are_over(millis(tenth * 100 + 50)), "no quiet yet");
                pauses.note(millis(tenth * 100))
            })
            .collect();
        assert!(told[0] && told[1..].iter().all(|told| !told), "{told:?}");
        assert!(!pauses.are_over(millis(4900 + 999)));
        assert!(pauses.are_over(millis(4900 + 1000)));
        assert!(!pauses.are_over(millis(60_000)), "told once");
        assert!(pauses.note(millis(60_001)));
    }
}
