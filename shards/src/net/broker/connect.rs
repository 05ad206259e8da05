//! Connecting to Redis: names, sockets, TLS, and handing them to the runtime.
//!
//! Resolving a name, connecting, reading certificates and shaking hands block or take milliseconds of CPU, so a plain
//! thread does all of it and the shard awaits it.

use std::net::{TcpStream as StdTcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use monoio::io::{AsyncWriteRent, OwnedReadHalf, OwnedWriteHalf, Splitable};
use monoio::net::{TcpStream, UnixStream};
use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};
use tls::{Client, Options, Session, TlsError};

use super::blocking::blocking;
use super::half::{Plain, Seal, SealedRead, SealedWrite};
use crate::config::{RedisAddress, RedisTarget, RedisTls};
use crate::limits::BROKER_HANDSHAKE_TIMEOUT;

/// The subscriber's and the commander's connection, in this order.
pub(super) enum Connections {
    Tcp(PlainConnection<TcpStream>, PlainConnection<TcpStream>),
    Tls(SealedConnection, SealedConnection),
    Unix(PlainConnection<UnixStream>, PlainConnection<UnixStream>),
}

/// One connection.
pub(super) enum OneConnection {
    Tcp(PlainConnection<TcpStream>),
    Tls(SealedConnection),
}

/// The directions of a stream of the runtime.
pub(super) struct Connection<R, W> {
    pub(super) read: R,
    pub(super) write: W,
    pub(super) end: End,
}

pub(super) type PlainConnection<S> = Connection<Plain<OwnedReadHalf<S>>, Plain<OwnedWriteHalf<S>>>;
pub(super) type SealedConnection =
    Connection<SealedRead<OwnedReadHalf<TcpStream>>, SealedWrite<OwnedWriteHalf<TcpStream>>>;

/// The same socket, to shut it down while the runtime reads and writes.
pub(super) struct End {
    socket: Socket,
    seal: Option<Rc<Seal>>,
}

impl End {
    /// Ends both directions.
    pub(super) fn shutdown(&self) {
        if let Some(seal) = &self.seal {
            seal.say_goodbye(&self.socket);
        }
        // Fails only where the other side was faster.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

/// A socket, and the session on it where there is TLS.
struct Connected {
    socket: Socket,
    session: Option<Session>,
}

/// Connects twice, on a plain thread.
///
/// # Errors
/// A sentence for the operator; also when `is_stopping` says so.
pub(super) async fn connect(
    target: &RedisTarget,
    is_stopping: impl Fn() -> bool,
) -> Result<Connections, String> {
    let address = describe(&target.address);
    let cannot = |error: std::io::Error| format!("can't connect to redis at {address}: {error}");
    let is_nonblocking = monoio::utils::is_legacy();
    let thread_target = target.clone();
    let work = move || connect_all::<2>(&thread_target, is_nonblocking);
    let connected = blocking(work, is_stopping, || note_slow(&address)).await?;
    attach(&target.address, connected.map_err(cannot)?).map_err(cannot)
}

/// Connects once to a server of several, on a plain thread.
///
/// # Errors
/// As [`connect`].
pub(super) async fn connect_to(
    target: RedisTarget,
    is_stopping: impl Fn() -> bool,
) -> Result<OneConnection, String> {
    let address = describe(&target.address);
    let cannot = |error: std::io::Error| format!("can't connect to {address}: {error}");
    let is_nonblocking = monoio::utils::is_legacy();
    let work = move || connect_all::<1>(&target, is_nonblocking);
    let connected = blocking(work, is_stopping, || note_slow(&address)).await?;
    let [Connected { socket, session }] = connected.map_err(cannot)?;
    let stream = attach_tcp(&socket).map_err(cannot)?;
    Ok(match session {
        Some(session) => OneConnection::Tls(sealed(stream, socket, session)),
        None => OneConnection::Tcp(plain(stream, socket)),
    })
}

fn note_slow(address: &str) {
    tracing::warn!(%address, "connecting to redis takes long: does its name resolve, is its address reachable?");
}

fn attach_tcp(socket: &Socket) -> std::io::Result<TcpStream> {
    TcpStream::from_std(StdTcpStream::from(socket.try_clone()?))
}

fn attach(address: &RedisAddress, [subscriber, commander]: [Connected; 2]) -> std::io::Result<Connections> {
    let unix = |socket: &Socket| UnixStream::from_std(StdUnixStream::from(socket.try_clone()?));
    Ok(match (address, subscriber.session, commander.session) {
        (RedisAddress::Tcp { .. }, Some(subscriber_session), Some(commander_session)) => {
            let subscriber_stream = attach_tcp(&subscriber.socket)?;
            let commander_stream = attach_tcp(&commander.socket)?;
            Connections::Tls(
                sealed(subscriber_stream, subscriber.socket, subscriber_session),
                sealed(commander_stream, commander.socket, commander_session),
            )
        }
        (RedisAddress::Tcp { .. }, ..) => Connections::Tcp(
            plain(attach_tcp(&subscriber.socket)?, subscriber.socket),
            plain(attach_tcp(&commander.socket)?, commander.socket),
        ),
        (RedisAddress::Unix(_), ..) => Connections::Unix(
            plain(unix(&subscriber.socket)?, subscriber.socket),
            plain(unix(&commander.socket)?, commander.socket),
        ),
        (RedisAddress::Sentinel(_) | RedisAddress::Cluster(_), ..) => return Err(not_one()),
    })
}

fn plain<S>(stream: S, socket: Socket) -> PlainConnection<S>
where
    S: Splitable<OwnedRead = OwnedReadHalf<S>, OwnedWrite = OwnedWriteHalf<S>> + AsyncWriteRent,
{
    let (read, write) = stream.into_split();
    Connection { read: Plain(read), write: Plain(write), end: End { socket, seal: None } }
}

fn sealed(stream: TcpStream, socket: Socket, session: Session) -> SealedConnection {
    let (read, write) = stream.into_split();
    let seal = Seal::new(session);
    Connection {
        read: SealedRead::new(read, seal.clone()),
        write: SealedWrite::new(write, seal.clone()),
        end: End { socket, seal: Some(seal) },
    }
}

/// Reads the files that TLS to `target` takes, and blocks; `None` where it takes no TLS.
///
/// # Errors
/// Those of [`Client::load`].
pub fn tls_client(target: &RedisTarget) -> Result<Option<Client>, TlsError> {
    let (Some(tls), Some(server_name)) = (&target.tls, target.tls_name()) else { return Ok(None) };
    let RedisTls { ca_file, cert_file, key_file, .. } = tls;
    let identity = cert_file.as_deref().zip(key_file.as_deref());
    Client::load(&Options { ca_file: ca_file.as_deref(), identity, server_name }).map(Some)
}

/// Blocks. All connections go to the same address of the name: the one that answers first in its order.
fn connect_all<const N: usize>(
    target: &RedisTarget,
    is_nonblocking: bool,
) -> std::io::Result<[Connected; N]> {
    // Anew for each attempt, so that files which were replaced are taken.
    let client = tls_client(target)?;
    let (domain, addresses): (_, Vec<SockAddr>) = match &target.address {
        RedisAddress::Tcp { host, port } => {
            (None, (host.as_str(), *port).to_socket_addrs()?.map(SockAddr::from).collect())
        }
        RedisAddress::Unix(path) => (Some(Domain::UNIX), vec![SockAddr::unix(path)?]),
        RedisAddress::Sentinel(_) | RedisAddress::Cluster(_) => return Err(not_one()),
    };
    let mut last_error = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for address in addresses.into_iter().take(ADDRESSES_MAX) {
        let domain = domain.unwrap_or_else(|| address.domain());
        let connect = || connect_one(domain, &address, client.as_ref(), is_nonblocking);
        match (0..N).map(|_| connect()).collect::<std::io::Result<Vec<_>>>() {
            Ok(connected) => {
                let all = <[Connected; N]>::try_from(connected).ok();
                return Ok(all.expect("as many connections as were made"));
            }
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}

fn connect_one(
    domain: Domain,
    address: &SockAddr,
    client: Option<&Client>,
    is_nonblocking: bool,
) -> std::io::Result<Connected> {
    let socket = Socket::new(domain, Type::STREAM, None)?;
    socket.connect_timeout(address, CONNECT_TIMEOUT)?;
    if domain != Domain::UNIX {
        socket.set_tcp_nodelay(true)?;
        // The probe notices sooner; this is for the handshake and for middleboxes that forget idle connections.
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    }
    let session = match client {
        Some(client) => {
            let stream = StdTcpStream::from(socket.try_clone()?);
            Some(client.handshake(&stream, Instant::now() + BROKER_HANDSHAKE_TIMEOUT)?)
        }
        None => None,
    };
    // io_uring wants a blocking descriptor (it would answer EAGAIN instead of waiting), epoll the other kind.
    socket.set_nonblocking(is_nonblocking)?;
    Ok(Connected { socket, session })
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
/// See `connect_one`.
const KEEPALIVE: Duration = Duration::from_secs(15);
