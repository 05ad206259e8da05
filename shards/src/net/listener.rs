//! Where connections come from: one listening socket per shard and address, all on the same port (SO_REUSEPORT), or one that
//! the service manager holds ([`super::passed`]) and all shards accept from. A parent process holds its children's sockets,
//! and passes connections of the admin address on through a door.
//!
//! Accepting is `readable()` and then `accept4` until there is nothing: no accept operation is ever in flight, because
//! monoio 0.2.4 leaks the socket of one that is dropped. Options are set on the listener; accepted sockets inherit them.

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown, SocketFlags, accept_with};
use socket2::{Domain, Protocol, SockAddr, SockFilter, SockRef, Type};

use super::connection::{Core, REST, SharedCore, enter, read, read_on_epoll};
use super::options::SocketOptions;
use super::rights;
use super::socket::Socket;
use crate::limits::{ADMIN_CONNECTIONS_MAX, BROKER_PATIENCE, LISTEN_BACKLOG, NOTSENT_LOWAT_BYTES};
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

/// Who may listen on the same address and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Every socket of this user that wants to (SO_REUSEPORT): other shards, other processes.
    Shared,
    /// Nobody.
    Alone,
}

/// Binds and listens. Port 0 takes a free one; the sockets of the other shards then bind the port it got.
///
/// `[::]` means every address of the machine: where the kernel has no IPv6, `0.0.0.0`.
///
/// # Errors
/// EADDRINUSE where somebody listens alone or as another user, or at all if this is to be alone; EACCES, EADDRNOTAVAIL.
pub fn bind(address: SocketAddr, sharing: Sharing) -> io::Result<(OwnedFd, SocketAddr)> {
    on_what_there_is(address, |address| bind_exactly(address, sharing))
}

fn on_what_there_is<T>(address: SocketAddr, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    let is_every_address = address.ip() == Ipv6Addr::UNSPECIFIED;
    match bind(address) {
        Err(error) if is_every_address && error.raw_os_error().is_some_and(is_lack_of_ipv6) => {
            bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
        }
        bound => bound,
    }
}

/// socket(2) says EAFNOSUPPORT where IPv6 is not built or loaded (`ipv6.disable=1`), bind(2) EADDRNOTAVAIL where no
/// interface has it.
fn is_lack_of_ipv6(errno: i32) -> bool {
    matches!(errno, libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
}

fn bind_exactly(address: SocketAddr, sharing: Sharing) -> io::Result<(OwnedFd, SocketAddr)> {
    let socket = unbound(address, sharing)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(LISTEN_BACKLOG)?;
    let bound = socket.local_addr()?.as_socket().unwrap_or(address);
    Ok((socket.into(), bound))
}

fn unbound(address: SocketAddr, sharing: Sharing) -> io::Result<socket2::Socket> {
    let socket =
        socket2::Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // `[::]` serves IPv4 too, as `:8081` does in Go.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    // Linux keeps both in the listener and copies them to every accepted socket.
    tune(&socket)?;
    // The kernel never chooses a port for port 0 that somebody else shares (`inet_csk_find_open_port`, Linux 4.9 on).
    socket.set_reuse_port(sharing == Sharing::Shared)?;
    Ok(socket)
}

/// The same for whom nobody may have joined yet, but this process's other shards may join afterwards: as
/// [`Sharing::Alone`], and shared from then on. There is no moment at which two could both find the address free: listening
/// asks again (`inet_csk_listen_start`).
///
/// # Errors
/// As [`bind`]: EADDRINUSE where anybody listens.
pub fn bind_first(address: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let (socket, bound) = bind(address, Sharing::Alone)?;
    socket2::SockRef::from(&socket).set_reuse_port(true)?;
    Ok((socket, bound))
}

/// Whether somebody listens on `address` who lets this user listen there too.
pub fn is_shared_by_somebody(address: SocketAddr) -> bool {
    is_served_by_somebody(address) && !is_taken(address, Sharing::Shared)
}

/// Whether somebody listens on `address`, shared or not.
pub fn is_served_by_somebody(address: SocketAddr) -> bool {
    is_taken(address, Sharing::Alone)
}

/// Whether `address` can't be had on these terms now.
fn is_taken(address: SocketAddr, sharing: Sharing) -> bool {
    try_bind(address, sharing).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// Whether `address` can be had on these terms now, the socket closed again. Nothing listens meanwhile: no connection is taken
/// from anybody.
///
/// # Errors
/// As [`bind`].
pub fn try_bind(address: SocketAddr, sharing: Sharing) -> io::Result<()> {
    on_what_there_is(address, |address| unbound(address, sharing)?.bind(&SockAddr::from(address)))
}

/// Begins to listen on a bound socket whose queue its holder may have closed. An open one stays as it is.
///
/// # Errors
/// EADDRINUSE where somebody else took the address alone.
pub fn open(socket: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::listen(socket, LISTEN_BACKLOG)?)
}

fn tune(socket: &socket2::Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)
}

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
    use std::collections::HashSet;
    use std::net::TcpStream;

    const ANY_PORT: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));

    #[test]
    fn a_chosen_port_is_nobody_elses_and_can_be_shared_afterwards() {
        let chosen: Vec<_> =
            (0..500).map(|_| bind(ANY_PORT, Sharing::Shared).expect("a free port")).collect();
        let ports: HashSet<u16> = chosen.iter().map(|(_, address)| address.port()).collect();
        assert_eq!(ports.len(), chosen.len(), "two servers that asked for a free port share one");
        for (_, address) in chosen.iter().take(20) {
            let (_second, shared) = bind(*address, Sharing::Shared).expect("the port can be shared");
            assert_eq!(shared, *address);
        }
    }

    #[test]
    fn an_address_of_ones_own_is_refused_to_everybody_else() {
        let (_first, address) = bind(ANY_PORT, Sharing::Alone).expect("a free port");
        for sharing in [Sharing::Alone, Sharing::Shared] {
            let refused = bind(address, sharing).expect_err("somebody has it");
            assert_eq!(refused.kind(), io::ErrorKind::AddrInUse, "{sharing:?}");
        }
    }

    #[test]
    fn who_came_first_alone_shares_with_its_own_shards_and_not_with_a_second_first() {
        let (first, address) = bind_first(ANY_PORT).expect("a free port");
        let (second, _) = bind(address, Sharing::Shared).expect("the first lets others join");
        let refused = bind_first(address).expect_err("somebody was first");
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        assert!(is_shared_by_somebody(address));
        let clients: Vec<_> =
            (0..64).map(|_| TcpStream::connect(address).expect("somebody listens")).collect();
        // Both sockets' queues hold some: the kernel spreads connections over both.
        for socket in [&first, &second] {
            accept_with(socket, SocketFlags::CLOEXEC).expect("a connection is queued");
        }
        drop((clients, first, second));
        assert!(!is_shared_by_somebody(address));
    }

    #[test]
    fn a_socket_that_listens_no_more_and_one_that_never_did_are_told_apart() {
        let any = || bind(ANY_PORT, Sharing::Alone).expect("a free port").0;
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

    #[test]
    fn accepted_sockets_inherit_what_the_listener_was_told() {
        let (fd, address) = bind(ANY_PORT, Sharing::Shared).expect("a free port");
        let _client = TcpStream::connect(address).expect("it listens");
        let accepted = loop {
            match accept_with(&fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Err(Errno::AGAIN) => std::thread::yield_now(),
                accepted => break socket2::Socket::from(accepted.expect("a connection is queued")),
            }
        };
        assert!(accepted.tcp_nodelay().expect("an option"));
        assert_eq!(accepted.tcp_notsent_lowat().expect("an option"), NOTSENT_LOWAT_BYTES);
    }
}
