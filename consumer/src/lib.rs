//! Handlers for the events of a Redis channel or stream: the consumer's side of a star of publishers and subscribers.
//!
//! A user of this library writes a [`Handler`] and one line that registers it. The rest is here:
//!
//! * [`Event`]: the schema, checked; what is wrong is said by field, found and due.
//! * [`Consumer`]: a pool of workers on ordinary threads around a bounded queue. [`Consumer::offer`] refuses with
//!   [`OfferError::QueueFull`] when it is full. A failed event comes again after a [`Backoff`], and waits for that outside
//!   the workers; after the last attempt it becomes a [`DeadLetter`].
//! * [`DeadLetters`]: the log, a file or a Redis stream.
//! * [`Subscription`]: the thread that reads a channel, and comes back when Redis does.
//! * [`Membership`]: the threads that read a stream as a member of a consumer group, and acknowledge what was handled.
//! * [`Metrics`]: what was processed, dropped, retried, given up, and what is where now.
//!
//! From a channel delivery is at most once up to the queue (Redis Pub/Sub keeps nothing) and at least once from there to
//! the handler; from a stream it is at least once. Events are handled concurrently, so in no particular order.
//!
//! ```
//! use corecast_consumer::{Consumer, Event, Handler, HandlerError, LogLetters, Options, Registry};
//!
//! struct Greeting;
//!
//! impl Handler for Greeting {
//!     fn handle(&self, event: &Event) -> Result<(), HandlerError> {
//!         println!("{} says {}", event.source(), event.payload()["text"]);
//!         Ok(())
//!     }
//! }
//!
//! let mut registry = Registry::new();
//! registry.register("demo.message", Greeting);
//! let consumer = Consumer::start(Options::default(), registry, LogLetters)?;
//!
//! consumer.offer(r#"{
//!     "id": "550e8400-e29b-41d4-a716-446655440000",
//!     "type": "demo.message",
//!     "source": "publisher",
//!     "timestamp": "2026-02-22T10:00:00Z",
//!     "payload": {"text": "hello"}
//! }"#.parse()?)?;
//!
//! assert_eq!(consumer.stop().processed, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `examples/consumer` is a whole program, with a subscription and signals.
//!
//! # How many workers, how long a queue
//!
//! | load | workers | queue | why |
//! |---|---|---|---|
//! | little: development, tests | 2 to 4 | 50 to 100 | idle threads cost little, and a short queue shows a slow handler early |
//! | steady, medium | 4 to 8 | 100 to 300 | a queue of about a second's events rides out a slow second |
//! | steady, high | 8 to 16 | 500 to 1,000 | handlers that compute gain up to the number of cores, those that wait beyond it |
//! | bursts | 4 to 8 | 1,000 and more | the queue takes the burst, the workers the average; it costs memory and delay |
//!
//! Workers needed are about the rate times the handler's time: 200 events/s of 30 ms keep 6 busy. When `dropped` grows,
//! lengthen the queue if the load comes in bursts; otherwise add workers, or consumers on other types. When `queued`
//! stays high, handlers are slower than events come, and a longer queue only delays that. Up to as many events again as
//! the queue holds may wait for a retry; an event has at most 1 MiB.

mod backoff;
mod dead_letter;
mod event;
mod group;
mod handler;
mod metrics;
mod options;
mod pool;
mod redis;
mod stream;
mod subscription;
mod throttle;
mod work;

pub use backoff::Backoff;
pub use dead_letter::{
    DeadLetter, DeadLetterError, DeadLetters, FileLetters, LetterFile, LetterStream, LineMark, LogLetters,
    NumberedLetter, Replayed, StreamLetters, StreamedLetter,
};
pub use event::{EVENT_BYTES_MAX, Event, EventError, TYPE_BYTES_MAX};
pub use group::{DATA_FIELD, Group, GroupStart, Membership};
pub use handler::{ANY_TYPE, Handler, HandlerError, Registry};
pub use metrics::{Metrics, UNKNOWN_TYPES_MAX};
pub use options::{Home, Options, WhenFull};
pub use pool::{Consumer, MessageError, OfferError};
pub use redis::{Connection, RedisError, cure_of};
pub use shards::config::{RedisAddress, RedisTarget};
pub use stream::{Stream, TLS_HINT};
pub use subscription::Subscription;
