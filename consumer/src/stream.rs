//! The bytes of a blocking connection to Redis: TCP, TLS or a unix socket.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use shards::config::{RedisAddress, RedisTarget, RedisTls};
use tls::{Client, Options};

/// How long a connect may take, per address of the name, and the TLS handshake after it.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// To one who hangs up before it has said anything.
pub const TLS_HINT: &str =
    "before it answered anything: if that is its tls-port, write rediss:// instead of redis://";

/// See the module.
pub struct Stream(Kind);

enum Kind {
    Tcp(TcpStream),
    Tls(Box<tls::Stream>),
    Unix(UnixStream),
}

impl Stream {
    /// Connects, and reads the files that TLS takes first.
    ///
    /// # Errors
    /// What the system said, or a [`tls::TlsError`] inside.
    pub fn open(target: &RedisTarget) -> io::Result<Self> {
        let (host, port) = match &target.address {
            RedisAddress::Unix(path) => {
                return UnixStream::connect(path).map(|stream| Self(Kind::Unix(stream)));
            }
            RedisAddress::Tcp { host, port } => (host.as_str(), *port),
            RedisAddress::Sentinel(_) | RedisAddress::Cluster(_) => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "several servers where one is due"));
            }
        };
        let client = tls_client(target)?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in (host, port).to_socket_addrs()? {
            let connected = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).and_then(|stream| {
                stream.set_nodelay(true)?;
                Ok(Self(match &client {
                    None => Kind::Tcp(stream),
                    Some(client) => {
                        let until = Instant::now() + CONNECT_TIMEOUT;
                        Kind::Tls(Box::new(tls::Stream::connect(stream, client, until)?))
                    }
                }))
            });
            match connected {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Whether a server that expects TLS would hang up on this.
    pub fn is_plain_tcp(&self) -> bool {
        matches!(self.0, Kind::Tcp(_))
    }

    /// The same socket, for another thread to write to or to shut down.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(match &self.0 {
            Kind::Tcp(stream) => Kind::Tcp(stream.try_clone()?),
            Kind::Tls(stream) => Kind::Tls(Box::new(stream.try_clone()?)),
            Kind::Unix(stream) => Kind::Unix(stream.try_clone()?),
        }))
    }

    /// How long a read may wait.
    ///
    /// # Errors
    /// For a time of zero.
    pub fn set_read_timeout(&self, wait: Duration) -> io::Result<()> {
        match &self.0 {
            Kind::Tcp(stream) => stream.set_read_timeout(Some(wait)),
            Kind::Tls(stream) => stream.socket().set_read_timeout(Some(wait)),
            Kind::Unix(stream) => stream.set_read_timeout(Some(wait)),
        }
    }

    /// How long a write may wait.
    ///
    /// # Errors
    /// For a time of zero.
    pub fn set_write_timeout(&self, wait: Duration) -> io::Result<()> {
        match &self.0 {
            Kind::Tcp(stream) => stream.set_write_timeout(Some(wait)),
            Kind::Tls(stream) => stream.socket().set_write_timeout(Some(wait)),
            Kind::Unix(stream) => stream.set_write_timeout(Some(wait)),
        }
    }

    /// Ends reads and writes on every clone. A socket that is gone already needs no more.
    pub fn shutdown(&self) {
        match &self.0 {
            Kind::Tcp(stream) => drop(stream.shutdown(Shutdown::Both)),
            Kind::Tls(stream) => stream.shutdown(),
            Kind::Unix(stream) => drop(stream.shutdown(Shutdown::Both)),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Kind::Tcp(stream) => stream.read(buffer),
            Kind::Tls(stream) => stream.read(buffer),
            Kind::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Kind::Tcp(stream) => stream.write(bytes),
            Kind::Tls(stream) => stream.write(bytes),
            Kind::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The engine has the same few lines, which this crate takes without its sockets.
fn tls_client(target: &RedisTarget) -> io::Result<Option<Client>> {
    let (Some(tls), Some(server_name)) = (&target.tls, target.tls_name()) else { return Ok(None) };
    let RedisTls { ca_file, cert_file, key_file, .. } = tls;
    let identity = cert_file.as_deref().zip(key_file.as_deref());
    Ok(Some(Client::load(&Options { ca_file: ca_file.as_deref(), identity, server_name })?))
}
