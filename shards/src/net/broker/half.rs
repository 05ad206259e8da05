//! The two directions of a connection to Redis, in plain text or sealed, as tasks of their own drive them.
//!
//! In plain text both are the runtime's halves and nothing else. Under TLS they share the session, which neither holds
//! across an await: a read never waits for a write, nor a write for a read.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use bytes::{Buf, BytesMut};
use monoio::buf::{IoBufMut, SliceMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt};
use rustix::net::SendFlags;
use socket2::Socket;
use tls::{Session, TlsError};

use crate::limits::RECEIVE_BUFFER_BYTES;

/// What is read from.
pub(super) trait ReadHalf {
    /// Under TLS.
    const IS_SEALED: bool;
    /// Appends to `buffer` what comes, at most to its end; 0 where nothing comes any more.
    fn read(
        &mut self,
        buffer: SliceMut<Vec<u8>>,
    ) -> impl Future<Output = (io::Result<usize>, SliceMut<Vec<u8>>)>;
}

/// What is written to.
pub(super) trait WriteHalf {
    /// Writes all of `chunk`.
    fn write_all(&mut self, chunk: BytesMut) -> impl Future<Output = io::Result<()>>;
}

/// In plain text.
pub(super) struct Plain<H>(pub H);

impl<H: AsyncReadRent> ReadHalf for Plain<H> {
    const IS_SEALED: bool = false;

    async fn read(&mut self, buffer: SliceMut<Vec<u8>>) -> (io::Result<usize>, SliceMut<Vec<u8>>) {
        self.0.read(buffer).await
    }
}

impl<H: AsyncWriteRent> WriteHalf for Plain<H> {
    async fn write_all(&mut self, chunk: BytesMut) -> io::Result<()> {
        self.0.write_all(chunk).await.0.map(drop)
    }
}

/// One connection's TLS, shared by its two halves and by who ends it.
pub(super) struct Seal {
    session: RefCell<Session>,
    /// Whether a part of what was sealed may not be on its way yet: nothing else may be written between.
    is_writing: Cell<bool>,
}

impl Seal {
    pub(super) fn new(session: Session) -> Rc<Self> {
        Rc::new(Self { session: RefCell::new(session), is_writing: Cell::new(false) })
    }

    /// Says that nothing follows, if that can be said at once: without it the server takes the end for a cut.
    pub(super) fn say_goodbye(&self, socket: &Socket) {
        if self.is_writing.get() {
            return;
        }
        let mut sealed = Vec::new();
        self.session.borrow_mut().close(&mut sealed);
        // Whoever is gone already needs no goodbye, and whoever takes nothing gets none.
        let _ = rustix::net::send(socket, &sealed, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}

/// Under TLS.
pub(super) struct SealedRead<H> {
    half: H,
    seal: Rc<Seal>,
    /// Received, and opened up to `opened_bytes`.
    sealed: Vec<u8>,
    opened_bytes: usize,
}

impl<H> SealedRead<H> {
    pub(super) fn new(half: H, seal: Rc<Seal>) -> Self {
        Self { half, seal, sealed: Vec::with_capacity(RECEIVE_BUFFER_BYTES), opened_bytes: 0 }
    }

    /// Opens what was received until `plain` is `plain_bytes_max` long; `None` where more has to come first.
    fn open(&mut self, plain: &mut Vec<u8>, plain_bytes_max: usize) -> Option<io::Result<usize>> {
        let held_bytes = plain.len();
        let mut session = self.seal.session.borrow_mut();
        match session.open(&self.sealed[self.opened_bytes..], plain, plain_bytes_max) {
            Ok(taken) => self.opened_bytes += taken,
            Err(error) => return Some(Err(error.into())),
        }
        let opened = plain.len() - held_bytes;
        (opened > 0 || session.is_closed()).then_some(Ok(opened))
    }
}

impl<H: AsyncReadRent> ReadHalf for SealedRead<H> {
    const IS_SEALED: bool = true;

    async fn read(&mut self, buffer: SliceMut<Vec<u8>>) -> (io::Result<usize>, SliceMut<Vec<u8>>) {
        let (begin, end) = (buffer.begin(), buffer.end());
        let mut plain = buffer.into_inner();
        debug_assert_eq!(plain.len(), begin, "what is read is appended");
        let result = loop {
            if let Some(result) = self.open(&mut plain, end) {
                break result;
            }
            debug_assert_eq!(self.opened_bytes, self.sealed.len(), "with room for it, all is opened");
            let mut sealed = std::mem::take(&mut self.sealed);
            sealed.clear();
            let received = sealed.slice_mut(0..RECEIVE_BUFFER_BYTES);
            let (result, received) = self.half.read(received).await;
            (self.sealed, self.opened_bytes) = (received.into_inner(), 0);
            match result {
                Ok(0) => break Err(TlsError::Truncated.into()),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        (result, plain.slice_mut(begin..end))
    }
}

/// Under TLS.
pub(super) struct SealedWrite<H> {
    half: H,
    seal: Rc<Seal>,
    /// Kept between writes; 64 KiB and the headers of their records at most.
    sealed: Vec<u8>,
}

impl<H> SealedWrite<H> {
    pub(super) fn new(half: H, seal: Rc<Seal>) -> Self {
        Self { half, seal, sealed: Vec::new() }
    }
}

impl<H: AsyncWriteRent> WriteHalf for SealedWrite<H> {
    async fn write_all(&mut self, mut chunk: BytesMut) -> io::Result<()> {
        while !chunk.is_empty() {
            let mut sealed = std::mem::take(&mut self.sealed);
            let taken = self.seal.session.borrow_mut().seal(&chunk, &mut sealed)?;
            chunk.advance(taken);
            // A failed write leaves it true: then the connection is of no use.
            self.seal.is_writing.set(true);
            let (result, mut sealed) = self.half.write_all(sealed).await;
            result?;
            self.seal.is_writing.set(false);
            sealed.clear();
            self.sealed = sealed;
        }
        Ok(())
    }
}
