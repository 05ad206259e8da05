//! Connecting to Redis: names, sockets, and handing them to the runtime.
//!
//! Resolving a name and connecting block, so a plain thread does both and the shard awaits it.

use std::net::{TcpStream as StdTcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};

use crate::config::RedisAddress;
use crate::limits::BROKER_HANDSHAKE_TIMEOUT;

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

/// Connects twice, on a plain thread. It is awaited however long it takes, so that a name server which doesn't answer
/// holds one thread, not one per attempt.
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
    let (done, thread_end) = StdUnixStream::pair().map_err(cannot)?;
    done.set_nonblocking(is_nonblocking).map_err(cannot)?;
    let done = monoio::net::UnixStream::from_std(done).map_err(cannot)?;
    let (sender, receiver) = mpsc::sync_channel(1);
    let target_address = target.clone();
    std::thread::Builder::new()
        .name("redis-connect".into())
        .spawn(move || {
            // Nobody receives if the link has been shut down meanwhile.
            let _ = sender.send(connect_twice(&target_address, is_nonblocking));
            // Its end becomes readable when this one is closed; also when the thread panics.
            drop(thread_end);
        })
        .map_err(cannot)?;
    let mut slow_at = Some(Instant::now() + 2 * BROKER_HANDSHAKE_TIMEOUT);
    let sockets = loop {
        match receiver.try_recv() {
            Ok(sockets) => break sockets.map_err(cannot)?,
            Err(mpsc::TryRecvError::Disconnected) => return Err("the connecting thread has died".into()),
            Err(mpsc::TryRecvError::Empty) => {}
        }
        if is_stopping() {
            return Err("the server is shutting down".into());
        }
        if slow_at.is_some_and(|at| Instant::now() >= at) {
            slow_at = None;
            tracing::warn!(%address, "connecting to redis takes long: does its name resolve, is its address reachable?");
        }
        // Dropping readable() loses nothing; a short wait lets a shutdown through.
        let _ = monoio::time::timeout(CONNECT_POLL, done.readable(false)).await;
    };
    attach(target, sockets).map_err(cannot)
}

fn attach(target: &RedisAddress, [subscriber, commander]: [Socket; 2]) -> std::io::Result<Connections> {
    match target {
        RedisAddress::Tcp { .. } => {
            let attach = |socket: Socket| {
                let stream = monoio::net::TcpStream::from_std(StdTcpStream::from(socket.try_clone()?))?;
                Ok::<_, std::io::Error>(Connection { stream, socket })
            };
            Ok(Connections::Tcp(attach(subscriber)?, attach(commander)?))
        }
        RedisAddress::Unix(_) => {
            let attach = |socket: Socket| {
                let stream = monoio::net::UnixStream::from_std(StdUnixStream::from(socket.try_clone()?))?;
                Ok::<_, std::io::Error>(Connection { stream, socket })
            };
            Ok(Connections::Unix(attach(subscriber)?, attach(commander)?))
        }
    }
}

/// Blocks. Both connections go to the same address of the name: the one that answers first in its order.
fn connect_twice(address: &RedisAddress, is_nonblocking: bool) -> std::io::Result<[Socket; 2]> {
    let (domain, addresses): (_, Vec<SockAddr>) = match address {
        RedisAddress::Tcp { host, port } => {
            (None, (host.as_str(), *port).to_socket_addrs()?.map(SockAddr::from).collect())
        }
        RedisAddress::Unix(path) => (Some(Domain::UNIX), vec![SockAddr::unix(path)?]),
    };
    let mut last_error = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for address in addresses.into_iter().take(ADDRESSES_MAX) {
        let domain = domain.unwrap_or_else(|| address.domain());
        match connect_pair(domain, &address, is_nonblocking) {
            Ok(pair) => return Ok(pair),
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}

fn connect_pair(domain: Domain, address: &SockAddr, is_nonblocking: bool) -> std::io::Result<[Socket; 2]> {
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
    Ok([connect()?, connect()?])
}

/// The address as an operator writes it.
pub(super) fn describe(address: &RedisAddress) -> String {
    match address {
        RedisAddress::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
        RedisAddress::Tcp { host, port } => format!("{host}:{port}"),
        RedisAddress::Unix(path) => path.display().to_string(),
    }
}

/// Time for one TCP handshake with one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Addresses of a name that are tried in one attempt.
const ADDRESSES_MAX: usize = 8;
/// How long a shutdown may wait for a connecting thread to be let go.
const CONNECT_POLL: Duration = Duration::from_millis(100);
/// See `connect_pair`.
const KEEPALIVE: Duration = Duration::from_secs(15);
