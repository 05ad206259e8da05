//! TLS to Redis: whom we trust, who we are, and what goes wrong, in sentences.
//!
//! [`Client::load`] reads certificates and [`Client::handshake`] speaks over a blocking socket: both belong on a plain
//! thread. What they make is a [`Session`], which holds no socket: bytes go in, bytes come out, so the relay drives it on
//! io_uring or epoll with a task for each direction, and [`Stream`] drives it for commands that block.
//!
//! There is no way to leave the server's certificate unchecked: whoever has a certificate of their own making names it as
//! the CA, which costs one flag and keeps the password from whoever answers in the server's place.

mod client;
mod error;
mod files;
mod session;
mod stream;

pub use client::{Client, Options};
pub use error::TlsError;
pub use session::Session;
pub use stream::Stream;
