//! Connecting to Redis: names, sockets, and handing them to the runtime.
//!
//! Resolving a name and connecting block, so a plain thread does both and the shard awaits it.

use std::net::{TcpStream as StdTcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};

use super::blocking::blocking;
use crate::config::{RedisAddress, Server};

/// The subscriber's and the commander's connection, in this order.
pub(super) enum Connections {
    Tcp(Connection<monoio::net::TcpStream>, Connection<monoio::net::TcpStream>),
    Unix(Connection<monoio::net::UnixStream>, Connection<monoio::net::UnixStream>),
}

/// A stream of the runtime.
pub(super) struct Connection<S> {
    pub(super) stream: S,
    /// The same socket, to shut it down while the runtime reads and writes.
    pub(super) socket: Socket,
}

/// Connects twice, on a plain thread.
///
/// # Errors
/// A sentence for the operator; also when `is_stopping` says so.
pub(super) async fn connect(
    target: &RedisAddress,
    is_stopping: impl Fn() -> bool,
) -> Result<Connections, String> {
    let address = describe(target);
    let cannot = |error: std::io::Error| format!("can't connect to redis at {address}: {error}");
    let is_nonblocking = monoio::utils::is_legacy();
    let target_address = target.clone();
    let work = move || connect_all::<2>(&target_address, is_nonblocking);
    let sockets = blocking(work, is_stopping, || note_slow(&address)).await?;
    attach(target, sockets.map_err(cannot)?).map_err(cannot)
}

/// Connects once to a server of several, on a plain thread.
///
/// # Errors
/// As [`connect`].
pub(super) async fn connect_to(
    server: &Server,
    is_stopping: impl Fn() -> bool,
) -> Result<Connection<monoio::net::TcpStream>, String> {
    let cannot = |error: std::io::Error| format!("can't connect to {server}: {error}");
    let is_nonblocking = monoio::utils::is_legacy();
    let address = RedisAddress::Tcp { host: server.host.clone(), port: server.port };
    let work = move || connect_all::<1>(&address, is_nonblocking);
    let sockets = blocking(work, is_stopping, || note_slow(&server.to_string())).await?;
    let [socket] = sockets.map_err(cannot)?;
    attach_tcp(socket).map_err(cannot)
}

fn note_slow(address: &str) {
    tracing::warn!(%address, "connecting to redis takes long: does its name resolve, is its address reachable?");
}

fn attach_tcp(socket: Socket) -> std::io::Result<Connection<monoio::net::TcpStream>> {
    let stream = monoio::net::TcpStream::from_std(StdTcpStream::from(socket.try_clone()?))?;
    Ok(Connection { stream, socket })
}

fn attach(target: &RedisAddress, [subscriber, commander]: [Socket; 2]) -> std::io::Result<Connections> {
    match target {
        RedisAddress::Tcp { .. } => Ok(Connections::Tcp(attach_tcp(subscriber)?, attach_tcp(commander)?)),
        RedisAddress::Sentinel(_) | RedisAddress::Cluster(_) => Err(not_one()),
        RedisAddress::Unix(_) => {
            let attach = |socket: Socket| {
                let stream = monoio::net::UnixStream::from_std(StdUnixStream::from(socket.try_clone()?))?;
                Ok::<_, std::io::Error>(Connection { stream, socket })
            };
            Ok(Connections::Unix(attach(subscriber)?, attach(commander)?))
        }
    }
}

/// Blocks. All connections go to the same address of the name: the one that answers first in its order.
fn connect_all<const N: usize>(address: &RedisAddress, is_nonblocking: bool) -> std::io::Result<[Socket; N]> {
    let (domain, addresses): (_, Vec<SockAddr>) = match address {
        RedisAddress::Tcp { host, port } => {
            (None, (host.as_str(), *port).to_socket_addrs()?.map(SockAddr::from).collect())
        }
        RedisAddress::Unix(path) => (Some(Domain::UNIX), vec![SockAddr::unix(path)?]),
        RedisAddress::Sentinel(_) | RedisAddress::Cluster(_) => return Err(not_one()),
    };
    let mut last_error = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for address in addresses.into_iter().take(ADDRESSES_MAX) {
        let domain = domain.unwrap_or_else(|| address.domain());
        match connect_each(domain, &address, is_nonblocking) {
            Ok(sockets) => return Ok(sockets),
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}

fn connect_each<const N: usize>(
    domain: Domain,
    address: &SockAddr,
    is_nonblocking: bool,
) -> std::io::Result<[Socket; N]> {
    let connect = || {
        let socket = Socket::new(domain, Type::STREAM, None)?;
        socket.connect_timeout(address, CONNECT_TIMEOUT)?;
        if domain != Domain::UNIX {
            socket.set_tcp_nodelay(true)?;
            // The probe notices sooner; this is for the handshake and for middleboxes that forget idle connections.
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
        }
        // io_uring wants a blocking descriptor (it would answer EAGAIN instead of waiting), epoll the other kind.
        socket.set_nonblocking(is_nonblocking)?;
        Ok::<_, std::io::Error>(socket)
    };
    let sockets = (0..N).map(|_| connect()).collect::<std::io::Result<Vec<_>>>()?;
    Ok(sockets.try_into().expect("as many sockets as were connected"))
}

/// Who the servers are is asked before anybody connects.
fn not_one() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidInput, "several servers where one was due")
}

/// The address as an operator writes it.
pub(super) fn describe(address: &RedisAddress) -> String {
    match address {
        RedisAddress::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
        RedisAddress::Tcp { host, port } => format!("{host}:{port}"),
        RedisAddress::Unix(path) => path.display().to_string(),
        RedisAddress::Sentinel(sentinels) => format!("{}, by its sentinels", sentinels.primary),
        RedisAddress::Cluster(nodes) => nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    }
}

/// Time for one TCP handshake with one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Addresses of a name that are tried in one attempt.
const ADDRESSES_MAX: usize = 8;
/// See `connect_each`.
const KEEPALIVE: Duration = Duration::from_secs(15);
