//! Messages between members of a room: `{"type":"message","room":"lobby","data":"hello"}`.

use bytes::Bytes;

use crate::{Domain, Event, Message, Refusal};

/// The domain `chat`.
///
/// `data` is any JSON value, and members receive it, and only it, as it was written. Whether the sender is in the room is
/// the session's question, not the domain's.
#[derive(Debug, Clone, Copy, Default)]
pub struct Chat;

impl Domain for Chat {
    fn name(&self) -> &str {
        "chat"
    }

    fn event_types(&self) -> Vec<String> {
        vec!["message".to_owned()]
    }

    fn admit(&self, message: &Message<'_>) -> Result<Event, Refusal> {
        let room = message.name("room")?;
        let data = message.raw("data").ok_or_else(|| message.refuse("data", "any JSON value"))?;
        Ok(Event {
            room,
            event_type: message.event_type().to_owned(),
            data: Bytes::copy_from_slice(data.as_bytes()),
            key: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(text: &str) -> Result<Event, Refusal> {
        Chat.admit(&Message::parse(text.as_bytes())?)
    }

    #[test]
    fn any_value_goes_to_the_room_as_it_was_written() {
        for data in ["\"hello\"", "\"h\\u00e9\"", "1.50", "null", "[ 1, 2 ]", "{\"a\" : {}}", "false"] {
            let text = format!("{{\"type\":\"message\",\"room\":\"lobby\",\"data\" : {data} }}");
            let event = admit(&text).expect(&text);
            let expected = Event {
                room: "lobby".into(),
                event_type: "message".into(),
                data: Bytes::copy_from_slice(data.as_bytes()),
                key: None,
            };
            assert_eq!(event, expected);
        }
    }

    #[test]
    fn a_room_is_named_by_any_text_without_control_characters() {
        let longest = "ä".repeat(127) + "x";
        for room in ["a", "raum für alle", "a:b/c*?[", &longest] {
            let text = format!(r#"{{"type":"message","room":"{room}","data":1}}"#);
            assert_eq!(admit(&text).expect(&text).room, room);
        }
    }

    #[test]
    fn a_room_that_has_no_name_is_refused_by_field() {
        for room in
            ["\"\"", "7", "null", "[\"a\"]", "\"a\\u001fb\"", "\"a\\nb\"", "\"\\u0085\"", "\"\\udc00\""]
        {
            let text = format!(r#"{{"type":"message","room":{room},"data":1}}"#);
            assert_eq!(
                admit(&text).expect_err(&text).to_string(),
                format!(
                    "room: found {room}, due a room's name: a string of 1 to 255 bytes without control characters"
                )
            );
        }
        let text = format!(r#"{{"type":"message","room":"{}","data":1}}"#, "a".repeat(256));
        assert_eq!(admit(&text).expect_err("256 bytes are too many").field, "room");
    }

    #[test]
    fn a_missing_field_is_refused_by_name() {
        let refusal = admit(r#"{"type":"message","data":1}"#).expect_err("no room");
        assert_eq!(
            refusal.to_string(),
            "room: found nothing, due a room's name: a string of 1 to 255 bytes without control characters"
        );
        let refusal = admit(r#"{"type":"message","room":"a"}"#).expect_err("no data");
        assert_eq!(refusal.to_string(), "data: found nothing, due any JSON value");
    }
}
