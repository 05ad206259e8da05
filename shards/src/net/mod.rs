//! The only folder that touches the kernel: threads, rings, sockets, Redis.
//!
//! Steps 1, 3 and 5 of a publication's path lie here: [`broker`], [`ring`], [`fanout`]. `unsafe` is allowed in two files,
//! `fanout.rs` (the fan-out ring) and `socket.rs` (descriptors by number).

mod bell;
mod bind;
pub mod broker;
mod connection;
mod cores;
mod drain;
mod fanout;
mod group;
mod listener;
mod notice;
mod options;
mod passed;
mod relay;
pub mod rights;
mod ring;
mod runtime;
mod server;
mod siblings;
mod socket;
mod stages;
mod steering;
mod threads;
mod trial;

pub use bind::{Sharing, try_bind};
pub use cores::{Plan, chosen as chosen_cores, split, usable as usable_cores};
pub use drain::Leave;
pub use group::Groups;
pub use listener::Holder;
pub use passed::{AdminWay, Listening, Passed, PassedError};
pub use runtime::{Driver, NoIoUring};
pub use server::{Server, StartError};
pub use threads::LostThread;
pub use trial::Trial;
