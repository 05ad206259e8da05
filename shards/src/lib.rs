//! The engine of corecast.
//!
//! A publication takes five steps, each in a file that says "step n of 5": `net/broker` (bytes become a publication),
//! [`relay`] (its place in its room's log, one frame, who is interested), `net/ring` (to each interested shard),
//! [`shard`] (what each connection is owed), `net/fanout` (the sockets). Read them in that order.
//!
//! Everything outside `net` is pure: no sockets, clocks, threads, environment or logging; time is an argument. The crate
//! builds without its feature `net`, and that build is part of `make test`.

pub mod auth;
pub mod close;
pub mod config;
pub mod frame;
pub mod limits;
pub mod request;
pub mod session;
pub mod redis;
pub mod resp;
pub mod route;

#[cfg(feature = "net")]
pub mod net;
