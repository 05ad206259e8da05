//! The one trait between the routing core and what events mean.

use bytes::Bytes;

use crate::{Message, Refusal};

/// Turns messages of its types into events, or refuses them.
///
/// A domain is asked on the thread of a shard, between two other connections' messages: it reads the message and its own
/// configuration, keeps no state between messages, and never blocks. How to add one: the [crate's page](crate).
pub trait Domain: Send + Sync {
    /// What configuration and documentation call it: 1 to [`TYPE_BYTES_MAX`](crate::limits::TYPE_BYTES_MAX) bytes.
    fn name(&self) -> &str;

    /// Values of the field `type` that it speaks for. Asked once, when it is registered.
    fn event_types(&self) -> Vec<String>;

    /// The event in `message`, whose type is one of its own.
    ///
    /// # Errors
    /// The first rule that the message breaks. [`Message::refuse`] builds it.
    fn admit(&self, message: &Message<'_>) -> Result<Event, Refusal>;
}

/// JSON text, valid UTF-8, without whitespace around it.
pub type Data = Bytes;

/// What the routing core gets to see of a message: where it goes, and bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Plain name of the room it goes to, see [`is_name`](crate::limits::is_name).
    pub room: String,
    /// The message's `type`.
    pub event_type: String,
    /// What members receive as `data`: the client's own bytes, so that a price of `60214.30` stays `60214.30`.
    pub data: Data,
    /// What the event's last value is kept under, if it is kept.
    pub key: Option<String>,
}
