//! How a consumer is built: its bounds, and what it does at them.

use std::time::Duration;

use crate::backoff::Backoff;

/// How a consumer is built. The crate's page has a table of workers and queue by load.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads that call handlers. Default 4.
    pub workers: usize,
    /// Events that wait for a worker, at most; beyond it [`Consumer::offer`](crate::Consumer::offer) refuses. Default 100.
    pub queue: usize,
    /// Calls of a handler for one event, the first included. Default 3.
    pub attempts: u32,
    /// The wait between them.
    pub backoff: Backoff,
    /// How long [`Consumer::stop`](crate::Consumer::stop) works on what is left. Default 30 s.
    pub drain: Duration,
    /// Where the events come from; kept with dead letters, so that they can go back there.
    pub home: Home,
    /// Who consumes; kept with dead letters.
    pub server_id: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: 4,
            queue: 100,
            attempts: 3,
            backoff: Backoff::default(),
            drain: Duration::from_secs(30),
            home: Home::Channel("broadcast.events".to_owned()),
            server_id: "unknown-server".to_owned(),
        }
    }
}

/// Where events come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Home {
    /// A channel of Redis Pub/Sub: a [`Subscription`](crate::Subscription)'s.
    Channel(String),
    /// A Redis stream: a [`Membership`](crate::Membership)'s.
    Stream(String),
}

impl Home {
    /// The channel's name, or the stream's key.
    pub fn name(&self) -> &str {
        let (Self::Channel(name) | Self::Stream(name)) = self;
        name
    }
}

/// What [`Consumer::offer_message`](crate::Consumer::offer_message) does at a full queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// Refuses, with [`OfferError::QueueFull`](crate::OfferError::QueueFull).
    #[default]
    Drop,
    /// Waits until there is room. Who reads from Redis stops reading meanwhile; beyond its `client-output-buffer-limit
    /// pubsub` (32 MiB by default) Redis then ends the connection, and what is published until the next one is lost.
    Block,
}
