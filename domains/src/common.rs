//! The envelope for events that no other domain knows: `{"type":"event","room":"r","data":{},"id":"7"}`.

use bytes::Bytes;

use crate::limits::NAME_BYTES_MAX;
use crate::{Domain, Event, Message, Refusal};

/// The domain `common`: a type, a room, any `data`, and where wanted an `id`.
///
/// Members receive the whole message as it was written, with fields beyond these, so that `id` (by which they tell an
/// event from its repetition) and whatever the sender adds reach them. There is no last value: an `id` names an event and
/// not a thing, and the keys of trading stay trading's.
#[derive(Debug, Clone)]
pub struct Common {
    event_types: Vec<String>,
}

impl Default for Common {
    /// The type `event`.
    fn default() -> Self {
        Self::new(["event"])
    }
}

impl Common {
    /// The same envelope under other types.
    pub fn new<T: Into<String>>(event_types: impl IntoIterator<Item = T>) -> Self {
        Self { event_types: event_types.into_iter().map(Into::into).collect() }
    }
}

impl Domain for Common {
    fn name(&self) -> &str {
        "common"
    }

    fn event_types(&self) -> Vec<String> {
        self.event_types.clone()
    }

    fn admit(&self, message: &Message<'_>) -> Result<Event, Refusal> {
        let room = message.name("room")?;
        message.raw("data").ok_or_else(|| message.refuse("data", "any JSON value"))?;
        check_id(message)?;
        Ok(Event {
            room,
            event_type: message.event_type().to_owned(),
            data: Bytes::copy_from_slice(message.text().as_bytes()),
            key: None,
        })
    }
}

const ID_EXPECTED: &str = "a string of 1 to 255 bytes, or no such field";

fn check_id(message: &Message<'_>) -> Result<(), Refusal> {
    if message.raw("id").is_none() {
        return Ok(());
    }
    match message.string("id", NAME_BYTES_MAX, ID_EXPECTED)?.is_empty() {
        true => Err(message.refuse("id", ID_EXPECTED)),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(text: &str) -> Result<Event, Refusal> {
        Common::default().admit(&Message::parse(text.as_bytes())?)
    }

    #[test]
    fn the_whole_envelope_goes_to_the_room_as_it_was_written() {
        let text = r#"{"type":"event", "room":"r", "data":{"a":1.0}, "id":"7", "source":"s"}"#;
        let event = admit(text).expect("it is an event");
        let data = Bytes::copy_from_slice(text.as_bytes());
        assert_eq!(event, Event { room: "r".into(), event_type: "event".into(), data, key: None });
    }

    #[test]
    fn the_id_may_be_left_out() {
        assert!(admit(r#"{"type":"event","room":"r","data":null}"#).is_ok());
    }

    #[test]
    fn an_id_that_is_none_is_refused_by_name() {
        for id in ["7", "\"\"", "null"] {
            let text = format!(r#"{{"type":"event","room":"r","data":1,"id":{id}}}"#);
            assert_eq!(
                admit(&text).expect_err(&text).to_string(),
                format!("id: found {id}, due a string of 1 to 255 bytes, or no such field")
            );
        }
        let text = format!(r#"{{"type":"event","room":"r","data":1,"id":"{}"}}"#, "a".repeat(256));
        assert_eq!(admit(&text).expect_err("256 bytes are too many").field, "id");
    }

    #[test]
    fn a_missing_room_or_data_is_refused_by_name() {
        let refusal = admit(r#"{"type":"event","data":1}"#).expect_err("no room");
        assert!(refusal.to_string().starts_with("room: found nothing, due a room's name"), "{refusal}");
        let refusal = admit(r#"{"type":"event","room":"r"}"#).expect_err("no data");
        assert_eq!(refusal.to_string(), "data: found nothing, due any JSON value");
    }

    #[test]
    fn its_types_can_be_chosen() {
        assert_eq!(Common::new(["notice", "alert"]).event_types(), ["notice", "alert"]);
    }
}
