//! A blocking TLS connection, for commands: as `TcpStream`, clones of it write and shut down while one reads.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::client::Client;
use crate::error::TlsError;
use crate::session::Session;

/// See the module. One clone alone may read.
pub struct Stream {
    socket: TcpStream,
    shared: Arc<Shared>,
    /// Received, and not yet opened from `opened_bytes` on.
    sealed: Vec<u8>,
    opened_bytes: usize,
    /// Opened, and not yet read from `read_bytes` on.
    plain: Vec<u8>,
    read_bytes: usize,
}

struct Shared {
    session: Mutex<Session>,
    /// Held from sealing to the end of the write, so that records go out in the order that they were sealed in. Taken
    /// before `session` where both are.
    out: Mutex<Vec<u8>>,
}

impl Stream {
    /// Speaks the handshake over `socket`, until `until`.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn connect(socket: TcpStream, client: &Client, until: Instant) -> Result<Self, TlsError> {
        let session = client.handshake(&socket, until)?;
        let shared = Shared { session: Mutex::new(session), out: Mutex::default() };
        Ok(Self::new(socket, Arc::new(shared)))
    }

    fn new(socket: TcpStream, shared: Arc<Shared>) -> Self {
        Self { socket, shared, sealed: Vec::new(), opened_bytes: 0, plain: Vec::new(), read_bytes: 0 }
    }

    /// The socket, for its time-outs.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// For another thread, which may write and shut down, not read.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self::new(self.socket.try_clone()?, Arc::clone(&self.shared)))
    }

    /// Ends reads and writes of every clone. A socket that is gone already needs no more.
    pub fn shutdown(&self) {
        self.say_goodbye();
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Without it the server takes the end for a cut. Not while another thread writes, or can't.
    fn say_goodbye(&self) {
        let Ok(mut out) = self.shared.out.try_lock() else { return };
        out.clear();
        self.shared.session().close(&mut out);
        let mut socket = &self.socket;
        // Whoever is gone already needs no goodbye.
        let _ = socket.write_all(&out);
    }
}

impl Shared {
    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if Arc::strong_count(&self.shared) == 1 {
            self.say_goodbye();
        }
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let waiting = &self.plain[self.read_bytes..];
            if !waiting.is_empty() {
                let bytes = waiting.len().min(into.len());
                into[..bytes].copy_from_slice(&waiting[..bytes]);
                self.read_bytes += bytes;
                return Ok(bytes);
            }
            self.plain.clear();
            self.read_bytes = 0;
            {
                let mut session = self.shared.session();
                let sealed = &self.sealed[self.opened_bytes..];
                self.opened_bytes += session.open(sealed, &mut self.plain, PLAIN_BYTES_MAX)?;
                if !self.plain.is_empty() {
                    continue;
                }
                if session.is_closed() {
                    return Ok(0);
                }
            }
            // Nothing opened though there was room: all of it was taken.
            self.sealed.resize(SEALED_BYTES, 0);
            self.opened_bytes = SEALED_BYTES;
            let received = self.socket.read(&mut self.sealed)?;
            if received == 0 {
                return Err(TlsError::Truncated.into());
            }
            self.sealed.truncate(received);
            self.opened_bytes = 0;
        }
    }
}

impl Write for Stream {
    fn write(&mut self, plain: &[u8]) -> io::Result<usize> {
        let mut out = self.shared.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.clear();
        let taken = self.shared.session().seal(plain, &mut out)?;
        let mut socket = &self.socket;
        socket.write_all(&out)?;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Received at once: a record of the largest kind.
const SEALED_BYTES: usize = 17 << 10;
/// Opened at once.
const PLAIN_BYTES_MAX: usize = 64 << 10;
