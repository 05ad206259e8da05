//! Sockets that listen: bound to an address, shared or alone, with the options that accepted connections inherit.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use socket2::{Domain, Protocol, SockAddr, Type};

use crate::limits::{LISTEN_BACKLOG, NOTSENT_LOWAT_BYTES};

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

/// What every connection has.
///
/// # Errors
/// The kernel's refusal.
pub fn tune(socket: &socket2::Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::net::TcpStream;

    use rustix::io::Errno;
    use rustix::net::{SocketFlags, accept_with};

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
