//! The engine of corecast.
//!
//! A publication takes five steps, each in a file that says "step n of 5": `net/broker` (bytes become a publication),
//! [`relay`] (its place in its room's log, one frame, who is interested), `net/ring` (to each interested shard),
//! [`shard`] (what each connection is owed), `net/fanout` (the sockets). Read them in that order.
//!
//! Everything outside `net` is pure: no sockets, clocks, threads, environment or logging; time is an argument. The crate
//! builds without its feature `net`, and that build is part of `make test`.

pub mod arena;
pub mod auth;
pub mod close;
pub mod command;
pub mod config;
pub mod dialect;
pub mod doorbell;
pub mod envelope;
pub mod frame;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod notice;
pub mod redis;
pub mod relay;
pub mod request;
pub mod resp;
pub mod room;
pub mod route;
pub mod session;
pub mod setup;
pub mod shard;
pub mod stats;
pub mod survey;
pub mod tcp;
pub mod window;

#[cfg(feature = "net")]
pub mod net;
