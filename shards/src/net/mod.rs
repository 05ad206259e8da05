//! The only folder that touches the kernel: threads, rings, sockets, Redis.
//!
//! Steps 1, 3 and 5 of a publication's path lie here: [`broker`], [`ring`], [`fanout`]. `unsafe` is allowed in two files,
//! `fanout.rs` (the fan-out ring) and `socket.rs` (descriptors by number).

mod bell;
pub mod broker;
mod connection;
mod drain;
mod fanout;
mod listener;
mod notice;
mod passed;
mod relay;
mod ring;
mod runtime;
mod server;
mod socket;
mod stages;
mod threads;
mod trial;

pub use listener::{Sharing, try_bind};
pub use passed::{Passed, PassedError};
pub use runtime::{Driver, NoIoUring};
pub use server::{Server, StartError, plan_cores};
pub use threads::LostThread;
pub use trial::Trial;
