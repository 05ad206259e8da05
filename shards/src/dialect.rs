//! The JSON dialect: what connections and the server say to each other in `{"type","room","data"}`.
//!
//! Writes frames; what arrives is read by [`domains::Message`]. Payloads that are JSON stand in `data` as they came, byte
//! for byte; other text is a JSON string there, and octets that are no text are base64 with `"encoding":"base64"` beside.

use domains::{RESERVED_TYPES, Refusal};
use serde_json::json;

use bytes::Bytes;

use crate::config::Dialect;
use crate::frame::Frame;
use crate::limits::KIND_BYTES_MAX;

pub mod meta;
pub mod sse;

/// Name of the JSON dialect in `Sec-WebSocket-Protocol`.
pub const PROTOCOL: &str = "corecast.v1.json";
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

/// A `type` as members are told it: a payload can't speak for the server, and one that is no name is cut.
pub fn kind(kind: &str) -> &str {
    let kind = if RESERVED_TYPES.contains(&kind) { PLAIN_KIND } else { kind };
    &kind[..kind.floor_char_boundary(KIND_BYTES_MAX)]
}

/// An epoch on the wire: short and opaque.
pub fn epoch_text(epoch: u64) -> String {
    format!("{epoch:x}")
}

/// Epoch and offset in one, for `Last-Event-ID` and its like.
pub fn id_text(epoch: u64, offset: u64) -> String {
    format!("{epoch:x}:{offset}")
}

/// Reads an epoch. What none of ours is reads as 0, which none of ours is either; an empty one is `None`: any.
pub fn epoch_of(text: &str) -> Option<u64> {
    (!text.is_empty()).then(|| u64::from_str_radix(text, 16).unwrap_or(0))
}

/// Publications of a room that members won't get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Run of the numbers that follow.
    pub epoch: u64,
    /// What is lost.
    pub lost: Lost,
    /// Why.
    pub reason: &'static str,
}

/// See [`Gap::lost`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The publications of these numbers, both included.
    Range(u64, u64),
    /// Nobody knows how many; numbers go on after this one.
    Unknown(u64),
}

impl Gap {
    /// What a client has, or has lost, once it knows of the gap.
    pub fn resumes_after(&self) -> u64 {
        match self.lost {
            Lost::Range(_, to) => to,
            Lost::Unknown(offset) => offset,
        }
    }

    fn data(&self) -> serde_json::Value {
        let (epoch, reason) = (epoch_text(self.epoch), self.reason);
        match self.lost {
            Lost::Range(from, to) => json!({ "epoch": epoch, "from": from, "to": to, "reason": reason }),
            Lost::Unknown(offset) => json!({ "epoch": epoch, "offset": offset, "reason": reason }),
        }
    }
}

/// The notice of a gap in a dialect that has words for it; no bytes in others.
pub fn gap(dialect: Dialect, room: &str, gap: &Gap) -> Bytes {
    match dialect {
        Dialect::Json => small("gap", room, &gap.data()).into_wire(),
        Dialect::Sse => sse::gap(gap),
        Dialect::Raw | Dialect::Meta | Dialect::Echo => Bytes::new(),
    }
}

/// A publication: `{"type":kind,"room":room,"data":payload}`, and its number where it has one. `None` where that is longer
/// than a frame may be.
pub fn publication(
    kind: &str,
    room: &str,
    payload: &[u8],
    is_json: bool,
    offset: Option<u64>,
) -> Option<Frame> {
    let mut text = Vec::with_capacity(payload.len() + kind.len() + room.len() + 64);
    open(&mut text, kind, room);
    write_data(&mut text, payload, is_json);
    if let Some(offset) = offset {
        text.extend_from_slice(b",\"offset\":");
        // Writing to a vector can't fail.
        let _ = serde_json::to_writer(&mut text, &offset);
    }
    text.push(b'}');
    Frame::text(&text).ok()
}

/// A payload as the value of `data`, with the member `encoding` behind it where it is octets.
pub fn data(payload: &[u8], is_json: bool) -> String {
    let mut text = Vec::with_capacity(payload.len() + 2);
    write_data(&mut text, payload, is_json);
    String::from_utf8(text).unwrap_or_default()
}

/// Bytes of what [`data`] makes, which it doesn't make: six for each control character.
pub fn data_bytes(payload: &[u8], is_json: bool) -> usize {
    let escaped = |byte: &u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 8 | 12 => 2,
        0..32 => 6,
        _ => 1,
    };
    match std::str::from_utf8(payload) {
        Ok(_) if is_json => payload.len(),
        Ok(_) => payload.iter().map(escaped).sum::<usize>() + 2,
        Err(_) => payload.len().div_ceil(3) * 4 + ",\"encoding\":\"base64\"".len() + 2,
    }
}

fn write_data(text: &mut Vec<u8>, payload: &[u8], is_json: bool) {
    match std::str::from_utf8(payload) {
        Ok(_) if is_json => text.extend_from_slice(payload),
        Ok(payload) => quoted(text, payload),
        Err(_) => {
            quoted(text, &data_encoding::BASE64.encode(payload));
            text.extend_from_slice(b",\"encoding\":\"base64\"");
        }
    }
}

/// Where a newcomer of a room stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Run of the room's numbers.
    pub epoch: u64,
    /// Publications after this one follow.
    pub offset: u64,
    /// Whether a resume got everything; `None` for who asked for none.
    pub recovered: Option<bool>,
}

/// The answer to a join: every publication that the broker accepts from now on will come.
pub fn joined(room: &str, standing: Standing) -> Frame {
    let Standing { epoch, offset, recovered } = standing;
    let mut data = json!({ "epoch": epoch_text(epoch), "offset": offset });
    if let Some(recovered) = recovered {
        data["recovered"] = recovered.into();
    }
    small("joined", room, &data)
}

/// The answer to a ping, with its data.
pub fn pong(data: Option<&str>) -> Frame {
    let data = data.unwrap_or("null");
    publication("pong", "", data.as_bytes(), true, None).unwrap_or_else(|| small("pong", "", &json!(null)))
}

/// The answer to a leave: nothing of the room follows.
pub fn left(room: &str) -> Frame {
    note("left", room)
}

/// A publication that is too long for a dialect's frame: the member is told, because it will not get it.
pub fn too_long(dialect: Dialect, room: &str, epoch: u64, offset: u64) -> Bytes {
    let data = json!({ "code": "too_long", "message": "a publication is too long for this dialect", "offset": offset });
    match dialect {
        Dialect::Sse => sse::notice((epoch, offset), &data),
        // It has no other words: an empty message under the publication's id.
        Dialect::Meta => {
            Frame::text(format!("id: {}\ncontent-type: text/plain\n\n", id_text(epoch, offset)).as_bytes())
                .map(Frame::into_wire)
                .unwrap_or_default()
        }
        _ => small("error", room, &data).into_wire(),
    }
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
    publication(kind, room, data.to_string().as_bytes(), true, None).unwrap_or_else(|| {
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
        let frame =
            publication("price_update", "BTC_USDT", br#"{"price":60214.30,  "ts":1}"#, true, None).unwrap();
        assert_eq!(
            text(&frame),
            r#"{"type":"price_update","room":"BTC_USDT","data":{"price":60214.30,  "ts":1}}"#
        );
    }

    #[test]
    fn text_is_a_string_and_octets_are_base64() {
        let frame = publication("message", "a\"b", b"say \"hi\"", false, None).unwrap();
        assert_eq!(text(&frame), r#"{"type":"message","room":"a\"b","data":"say \"hi\""}"#);
        let frame = publication("message", "r", &[0xff, 0], true, None).unwrap();
        assert_eq!(text(&frame), r#"{"type":"message","room":"r","data":"/wA=","encoding":"base64"}"#);
    }

    #[test]
    fn what_grows_beyond_a_frame_is_none() {
        let payload = vec![b'"'; crate::limits::PAYLOAD_BYTES_MAX];
        assert!(publication("message", "r", &payload, false, None).is_none());
    }

    #[test]
    fn notes_have_the_same_three_fields() {
        let standing = Standing { epoch: 0x1f, offset: 4, recovered: None };
        let due = r#"{"type":"joined","room":"r","data":{"epoch":"1f","offset":4}}"#;
        assert_eq!(text(&joined("r", standing)), due);
        let due = r#"{"type":"joined","room":"r","data":{"epoch":"1f","offset":4,"recovered":false}}"#;
        assert_eq!(text(&joined("r", Standing { recovered: Some(false), ..standing })), due);
        assert_eq!(text(&left("r")), r#"{"type":"left","room":"r","data":null}"#);
        let refusal = Refusal::new("price", "a number", "\"1\"");
        let error: Value = serde_json::from_str(text(&error(ErrorCode::Invalid, "r", &refusal))).unwrap();
        assert_eq!(error["data"]["field"], "price");
        assert_eq!(error["data"]["message"], "price: found \"1\", due a number");
    }

    #[test]
    fn a_publication_ends_with_its_number() {
        let frame = publication("message", "r", &[0xff], false, Some(17)).unwrap();
        assert_eq!(
            text(&frame),
            r#"{"type":"message","room":"r","data":"/w==","encoding":"base64","offset":17}"#
        );
    }

    #[test]
    fn a_gap_says_what_is_lost_and_where_numbers_go_on() {
        let said = |lost, reason| {
            let wire = gap(Dialect::Json, "r", &Gap { epoch: 0xe, lost, reason });
            String::from_utf8(wire[2..].to_vec()).unwrap()
        };
        assert_eq!(
            said(Lost::Range(3, 5), "shard_overload"),
            r#"{"type":"gap","room":"r","data":{"epoch":"e","from":3,"reason":"shard_overload","to":5}}"#
        );
        assert_eq!(
            said(Lost::Unknown(9), "broker"),
            r#"{"type":"gap","room":"r","data":{"epoch":"e","offset":9,"reason":"broker"}}"#
        );
    }

    #[test]
    fn an_epoch_that_is_none_of_ours_is_no_epoch() {
        assert_eq!((epoch_of(""), epoch_of("1f"), epoch_of("1700000000.0")), (None, Some(0x1f), Some(0)));
    }

    proptest! {
        #[test]
        fn what_data_will_be_long_is_known_before_it_is_made(payload: Vec<u8>, text: String) {
            for payload in [&payload[..], text.as_bytes(), b"\0\n\r\t\x08\x0c\x1f\x7f\"\\/"] {
                prop_assert_eq!(data_bytes(payload, false), data(payload, false).len());
            }
        }

        #[test]
        fn every_publication_is_an_object_with_its_payload(kind in "\\PC{1,20}", room in "\\PC{1,40}", payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let frame = publication(&kind, &room, &payload, false, None).unwrap();
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
