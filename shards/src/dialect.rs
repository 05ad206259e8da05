//! The JSON dialect: what connections and the server say to each other in `{"type","room","data"}`.
//!
//! Writes frames; what arrives is read by [`domains::Message`]. Payloads that are JSON stand in `data` as they came, byte
//! for byte; other text is a JSON string there, and octets that are no text are base64 with `"encoding":"base64"` beside.

use domains::Refusal;
use serde_json::json;

use crate::frame::Frame;

/// The `type` of a publication that came without one.
pub const PLAIN_KIND: &str = "message";

/// Why the server did not do what a message asked for; the `code` of an error frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The message breaks a rule of its form or of its domain.
    Invalid,
    /// The connection's role doesn't do that.
    Role,
    /// The connection isn't in the room.
    NotJoined,
    /// The connection is in as many rooms as it may be.
    TooManyRooms,
    /// The route lets nobody publish.
    PublishNotAllowed,
}

impl ErrorCode {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Role => "role",
            Self::NotJoined => "not_joined",
            Self::TooManyRooms => "too_many_rooms",
            Self::PublishNotAllowed => "publish_not_allowed",
        }
    }
}

/// A publication: `{"type":kind,"room":room,"data":payload}`. `None` where that is longer than a frame may be.
pub fn publication(kind: &str, room: &str, payload: &[u8], is_json: bool) -> Option<Frame> {
    let mut text = Vec::with_capacity(payload.len() + kind.len() + room.len() + 48);
    open(&mut text, kind, room);
    match std::str::from_utf8(payload) {
        Ok(_) if is_json => text.extend_from_slice(payload),
        Ok(payload) => quoted(&mut text, payload),
        Err(_) => {
            quoted(&mut text, &data_encoding::BASE64.encode(payload));
            text.extend_from_slice(b",\"encoding\":\"base64\"");
        }
    }
    text.push(b'}');
    Frame::text(&text).ok()
}

/// The answer to a join: every publication that the broker accepts from now on will come.
pub fn joined(room: &str) -> Frame {
    note("joined", room)
}

/// The answer to a leave: nothing of the room follows.
pub fn left(room: &str) -> Frame {
    note("left", room)
}

/// A publication that is too long for this dialect's frame: the member is told, because it will not get it.
pub fn too_long(room: &str) -> Frame {
    let data = json!({ "code": "too_long", "message": "a publication is too long for the JSON dialect" });
    small("error", room, &data)
}

/// A message that went nowhere. `room` is the one it named, or empty.
pub fn error(code: ErrorCode, room: &str, refusal: &Refusal) -> Frame {
    let Refusal { field, expected, found } = refusal;
    let message = refusal.to_string();
    let code = code.name();
    let data =
        json!({ "code": code, "field": field, "expected": expected, "found": found, "message": message });
    small("error", room, &data)
}

/// So many messages of one read went nowhere beyond those that were answered one by one.
pub fn more_errors(count: u64) -> Frame {
    let found = format!("{count} more messages like these");
    let refusal = Refusal::new("", "messages that are no errors, or fewer of them at once", &found);
    error(ErrorCode::Invalid, "", &refusal)
}

fn note(kind: &str, room: &str) -> Frame {
    small(kind, room, &serde_json::Value::Null)
}

/// A frame of ours: names and refusals have bounds far below a frame's.
fn small(kind: &str, room: &str, data: &serde_json::Value) -> Frame {
    publication(kind, room, data.to_string().as_bytes(), true).unwrap_or_else(|| {
        Frame::text(br#"{"type":"error","room":"","data":{"code":"too_long"}}"#)
            .expect("half a hundred bytes")
    })
}

fn open(text: &mut Vec<u8>, kind: &str, room: &str) {
    text.extend_from_slice(b"{\"type\":");
    quoted(text, kind);
    text.extend_from_slice(b",\"room\":");
    quoted(text, room);
    text.extend_from_slice(b",\"data\":");
}

fn quoted(text: &mut Vec<u8>, value: &str) {
    // Writing to a vector can't fail, and a str has no unserialisable form.
    let _ = serde_json::to_writer(text, value);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn text(frame: &Frame) -> &str {
        std::str::from_utf8(frame.payload()).expect("text")
    }

    #[test]
    fn json_stands_as_it_came() {
        let frame = publication("price_update", "BTC_USDT", br#"{"price":60214.30,  "ts":1}"#, true).unwrap();
        assert_eq!(
            text(&frame),
            r#"{"type":"price_update","room":"BTC_USDT","data":{"price":60214.30,  "ts":1}}"#
        );
    }

    #[test]
    fn text_is_a_string_and_octets_are_base64() {
        let frame = publication("message", "a\"b", b"say \"hi\"", false).unwrap();
        assert_eq!(text(&frame), r#"{"type":"message","room":"a\"b","data":"say \"hi\""}"#);
        let frame = publication("message", "r", &[0xff, 0], true).unwrap();
        assert_eq!(text(&frame), r#"{"type":"message","room":"r","data":"/wA=","encoding":"base64"}"#);
    }

    #[test]
    fn what_grows_beyond_a_frame_is_none() {
        let payload = vec![b'"'; crate::limits::PAYLOAD_BYTES_MAX];
        assert!(publication("message", "r", &payload, false).is_none());
    }

    #[test]
    fn notes_have_the_same_three_fields() {
        assert_eq!(text(&joined("r")), r#"{"type":"joined","room":"r","data":null}"#);
        assert_eq!(text(&left("r")), r#"{"type":"left","room":"r","data":null}"#);
        let refusal = Refusal::new("price", "a number", "\"1\"");
        let error: Value = serde_json::from_str(text(&error(ErrorCode::Invalid, "r", &refusal))).unwrap();
        assert_eq!(error["data"]["field"], "price");
        assert_eq!(error["data"]["message"], "price: found \"1\", due a number");
    }

    proptest! {
        #[test]
        fn every_publication_is_an_object_with_its_payload(kind in "\\PC{1,20}", room in "\\PC{1,40}", payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let frame = publication(&kind, &room, &payload, false).unwrap();
            let value: Value = serde_json::from_slice(frame.payload()).unwrap();
            prop_assert_eq!(&value["type"], &Value::from(kind));
            prop_assert_eq!(&value["room"], &Value::from(room));
            let data = value["data"].as_str().unwrap();
            match value.get("encoding") {
                None => prop_assert_eq!(data.as_bytes(), payload.as_slice()),
                Some(_) => prop_assert_eq!(data_encoding::BASE64.decode(data.as_bytes()).unwrap(), payload),
            }
        }
    }
}
