//! One connection's TLS, without its socket: sealed bytes in and plain bytes out, and the other way round.
//!
//! Bounded by construction: rustls holds one record (16 KiB) of what came in half, and [`Session::seal`] takes 64 KiB at
//! once of what is to go out.

use std::io::{self, BufRead, Write};
use std::sync::Arc;

use rustls::ClientConnection;

use crate::error::{Context, TlsError};

/// See the module.
#[derive(Debug)]
pub struct Session {
    connection: ClientConnection,
    context: Arc<Context>,
    is_closed: bool,
}

impl Session {
    pub(crate) fn new(connection: ClientConnection, context: Arc<Context>) -> Self {
        Self { connection, context, is_closed: false }
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Takes what came during the handshake, all of it: what follows the handshake is kept for [`open`](Self::open).
    pub(crate) fn shake(&mut self, mut sealed: &[u8]) -> Result<(), TlsError> {
        while !sealed.is_empty() {
            self.connection.read_tls(&mut sealed)?;
            self.connection.process_new_packets().map_err(|error| self.context.explain(error))?;
        }
        Ok(())
    }

    /// Opens what has come in `sealed` and appends it to `plain`, at most until `plain` is `plain_bytes_max` long.
    ///
    /// Returns how many bytes of `sealed` were taken; the rest is to be given again, first. All of it is taken unless
    /// `plain` is full.
    ///
    /// # Errors
    /// [`TlsError`]: the connection is of no use any more. What was appended before is genuine.
    pub fn open(
        &mut self,
        sealed: &[u8],
        plain: &mut Vec<u8>,
        plain_bytes_max: usize,
    ) -> Result<usize, TlsError> {
        let mut taken = 0;
        loop {
            self.drain(plain, plain_bytes_max)?;
            if plain.len() >= plain_bytes_max || taken == sealed.len() || self.is_closed {
                return Ok(taken);
            }
            taken += self.connection.read_tls(&mut &sealed[taken..])?;
            self.connection.process_new_packets().map_err(|error| self.context.explain(error))?;
        }
    }

    fn drain(&mut self, plain: &mut Vec<u8>, plain_bytes_max: usize) -> Result<(), TlsError> {
        let mut reader = self.connection.reader();
        while plain.len() < plain_bytes_max {
            let chunk = match reader.fill_buf() {
                Ok([]) => {
                    self.is_closed = true;
                    break;
                }
                Ok(chunk) => chunk,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            };
            let bytes = chunk.len().min(plain_bytes_max - plain.len());
            plain.extend_from_slice(&chunk[..bytes]);
            reader.consume(bytes);
        }
        Ok(())
    }

    /// Whether the server has said that nothing comes any more (close_notify). An end without it is a cut:
    /// [`TlsError::Truncated`].
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Seals from `plain` as much as is taken at once, at most 64 KiB, and appends it to `sealed`, behind whatever the
    /// session itself has to say. Returns how many bytes were taken.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn seal(&mut self, plain: &[u8], sealed: &mut Vec<u8>) -> Result<usize, TlsError> {
        let taken = self.connection.writer().write(plain)?;
        self.take_output(sealed);
        Ok(taken)
    }

    /// Says that nothing follows; appends the record to `sealed`.
    pub fn close(&mut self, sealed: &mut Vec<u8>) {
        self.connection.send_close_notify();
        self.take_output(sealed);
    }

    /// Appends what waits to be sent.
    pub(crate) fn take_output(&mut self, sealed: &mut Vec<u8>) {
        while self.connection.wants_write() {
            self.connection.write_tls(sealed).expect("a vector takes all that is written to it");
        }
    }
}
