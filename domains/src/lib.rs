//! What the events of corecast's clients may say.
//!
//! A client's message passes a [`Domain`] before the routing core sees it: the domain of its `type` turns it into an
//! [`Event`] (a room and bytes) or refuses it with a [`Refusal`] that names the field and what is due there. The core
//! routes bytes and knows nothing else. Begin with [`Registry::admit`].
//!
//! Everything here is pure: no sockets, clocks, threads, environment or files; whoever calls reads the files. A message is
//! untrusted and may have megabytes; what is kept or said of it is bounded in [`limits`].
//!
//! | domain | type | room | members receive | last value under |
//! |---|---|---|---|---|
//! | [`Trading`] | `price_update` | `instrument` | the message | `instrument` |
//! | [`Chat`] | `message` | `room` | `data` | |
//! | [`Common`] | `event` | `room` | the message | |
//!
//! | [`SchemaDomain`] | its file's | its file's pointer | the message | its file's pointer |
//!
//! # A domain in a file
//!
//! A JSON Schema with a name and a room: see [`schema`]. Examples are in `deploy/domains`.
//!
//! # A domain in code
//!
//! One trait and one line of registration:
//!
//! ```
//! use domains::{Data, Domain, Event, Message, Refusal, Registry};
//!
//! /// `{"type":"alarm","site":"plant-7","level":3}`
//! struct Alarms;
//!
//! impl Domain for Alarms {
//!     fn name(&self) -> &str {
//!         "alarms"
//!     }
//!
//!     fn event_types(&self) -> Vec<String> {
//!         vec!["alarm".to_owned()]
//!     }
//!
//!     fn admit(&self, message: &Message<'_>) -> Result<Event, Refusal> {
//!         let site = message.name("site")?;
//!         if !matches!(message.raw("level"), Some("1" | "2" | "3")) {
//!             return Err(message.refuse("level", "1, 2 or 3"));
//!         }
//!         Ok(Event {
//!             room: site.clone(),
//!             event_type: message.event_type().to_owned(),
//!             data: Data::copy_from_slice(message.text().as_bytes()),
//!             key: Some(site),
//!         })
//!     }
//! }
//!
//! let mut registry = Registry::built_in(&["trading", "chat"])?;
//! registry.register(Box::new(Alarms))?;
//!
//! let event = registry.admit(br#"{"type":"alarm","site":"plant-7","level":3}"#).expect("it is an alarm");
//! assert_eq!(event.room, "plant-7");
//! let refusal = registry.admit(br#"{"type":"alarm","site":"plant-7","level":9}"#).expect_err("no such level");
//! assert_eq!(refusal.to_string(), "level: found 9, due 1, 2 or 3");
//! # Ok::<(), domains::Conflict>(())
//! ```

pub mod limits;

mod chat;
mod common;
mod domain;
mod message;
mod refusal;
mod registry;
#[cfg(feature = "schema")]
pub mod schema;
#[cfg(test)]
mod tests;
mod trading;
mod tree;

pub use chat::Chat;
pub use common::Common;
pub use domain::{Data, Domain, Event};
pub use message::Message;
pub use refusal::{NOTHING, Refusal};
pub use registry::{BUILT_IN, Conflict, RESERVED_TYPES, Registry};
#[cfg(feature = "schema")]
pub use schema::{SchemaDomain, SchemaError};
pub use trading::Trading;
