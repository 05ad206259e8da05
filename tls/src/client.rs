//! What all sessions with one server have in common, read anew for each attempt to connect; and the handshake.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use crate::error::{Context, TlsError};
use crate::files;
use crate::session::Session;

/// What [`Client::load`] is to read.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// PEM file of the CAs to trust; `None` trusts those of the system.
    pub ca_file: Option<&'a Path>,
    /// PEM files of our certificate, its intermediate CAs after it, and of its key.
    pub identity: Option<(&'a Path, &'a Path)>,
    /// DNS name or address that the server's certificate must have.
    pub server_name: &'a str,
}

/// Whom we trust, who we are and whom we ask for.
#[derive(Debug, Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
    context: Arc<Context>,
}

impl Client {
    /// Reads the files. Blocks; to be called for each attempt to connect, so that certificates which were replaced are
    /// taken without a restart.
    ///
    /// # Errors
    /// [`TlsError`]; all that [`TlsError::is_ours`].
    pub fn load(options: &Options<'_>) -> Result<Self, TlsError> {
        let name = ServerName::try_from(options.server_name.to_owned())
            .map_err(|_| TlsError::Name(options.server_name.to_owned()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Other(error.to_string()))?
            .with_root_certificates(files::roots(options.ca_file)?);
        let mut config = match options.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = files::certificates(cert, files::CERT_FLAG)?;
                let private = files::key(key)?;
                builder.with_client_auth_cert(chain, private).map_err(|error| match error {
                    rustls::Error::InconsistentKeys(_) => {
                        TlsError::KeyMismatch { cert: cert.to_owned(), key: key.to_owned() }
                    }
                    other => TlsError::Content {
                        path: cert.to_owned(),
                        found: other.to_string(),
                        due: "a certificate and a key that TLS can use",
                        flag: files::CERT_FLAG,
                    },
                })?
            }
        };
        // Two connections now and then, with certificates read anew each time: tickets would only be memory.
        config.resumption = Resumption::disabled();
        let context = Context {
            name,
            ca_file: options.ca_file.map(Path::to_owned),
            cert_file: options.identity.map(|(cert, _)| cert.to_owned()),
        };
        Ok(Self { config: Arc::new(config), context: Arc::new(context) })
    }

    /// Speaks the handshake over a connected socket, which blocks, until the session stands or `until`. The socket's
    /// time-outs are gone afterwards.
    ///
    /// A server that wants a client certificate may say so only afterwards (TLS 1.3): then the first read does.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn handshake(&self, socket: &TcpStream, until: Instant) -> Result<Session, TlsError> {
        let began = Instant::now();
        let connection = ClientConnection::new(Arc::clone(&self.config), self.context.name.clone());
        let connection = connection.map_err(|error| self.context.explain(error))?;
        let mut session = Session::new(connection, Arc::clone(&self.context));
        let shaken = shake(&mut session, socket, until);
        socket.set_read_timeout(None)?;
        socket.set_write_timeout(None)?;
        match shaken {
            Ok(()) => Ok(session),
            Err(TlsError::Io(error)) => Err(match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => TlsError::Silent(began.elapsed()),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => TlsError::Closed,
                _ => TlsError::Io(error),
            }),
            Err(error) => Err(error),
        }
    }
}

fn shake(session: &mut Session, mut socket: &TcpStream, until: Instant) -> Result<(), TlsError> {
    let mut sealed = Vec::new();
    let mut received = vec![0; RECEIVE_BYTES];
    // A Redis without TLS waits for the end of the line that it takes our first message for.
    let mut suspicious_at = Some((Instant::now() + SUSPICIOUS_AFTER).min(until));
    loop {
        session.take_output(&mut sealed);
        socket.set_write_timeout(Some(left(until)?))?;
        socket.write_all(&sealed)?;
        sealed.clear();
        if !session.is_handshaking() {
            return Ok(());
        }
        let wait = left(suspicious_at.unwrap_or(until)).unwrap_or(Duration::from_millis(1));
        socket.set_read_timeout(Some(wait))?;
        match socket.read(&mut received) {
            Ok(0) => return Err(TlsError::Closed),
            Ok(bytes) => {
                suspicious_at = None;
                if let Err(error) = session.shake(&received[..bytes]) {
                    // So that the server's log says why; whoever is gone already needs no reason.
                    session.take_output(&mut sealed);
                    let _ = socket.write_all(&sealed);
                    return Err(error);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_late(&error) && suspicious_at.take().is_some() => {
                if socket.peer_addr().is_ok_and(is_plain_redis) {
                    return Err(TlsError::PlainRedis);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Asks what Redis answers to anybody; no name, no password goes there.
fn is_plain_redis(address: SocketAddr) -> bool {
    let ask = || -> io::Result<bool> {
        let mut socket = TcpStream::connect_timeout(&address, SUSPICIOUS_AFTER)?;
        socket.set_read_timeout(Some(SUSPICIOUS_AFTER))?;
        socket.set_write_timeout(Some(SUSPICIOUS_AFTER))?;
        socket.write_all(b"PING\r\n")?;
        let mut answer = [0; 5];
        socket.read_exact(&mut answer)?;
        // `+PONG`, or an error: `-NOAUTH`, `-DENIED`, `-ERR`, `-NOPERM`, `-LOADING`.
        Ok(answer == *b"+PONG" || (answer[0] == b'-' && answer[1..].iter().all(u8::is_ascii_uppercase)))
    };
    ask().unwrap_or(false)
}

/// No server needs so long for its first message, unless it is far overloaded; then it is waited for as before.
const SUSPICIOUS_AFTER: Duration = Duration::from_secs(1);
/// A server's first flight with its certificates is 2 to 6 KiB.
const RECEIVE_BYTES: usize = 16 << 10;
