//! A publication as the members of a room get it: in the dialects that are spoken there, each made once per shard, or a
//! notice where that would be longer than a frame may be.

use crate::command::Label;
use crate::dialect;
use crate::frame::Frame;
use crate::limits::PAYLOAD_BYTES_MAX;
use crate::room::{Frames, Room};

/// JSON writes an octet as `\u001f` at most.
const ESCAPED_BYTES_MAX: usize = 6;

impl Frames {
    /// What goes out for the publication in `frame` to who is in `room` now.
    pub(super) fn of(frame: Frame, room: &Room, label: Option<&Label>) -> Self {
        if room.enveloped_len() == 0 {
            return Self { frame, enveloped: None, is_replaced: false };
        }
        let rendered = render(room.plain_name(), &frame, label);
        let is_replaced = rendered.is_none();
        let envelope = rendered.unwrap_or_else(|| dialect::too_long(room.plain_name()));
        match room.enveloped_len() == room.members_len() {
            true => Self { frame: envelope, enveloped: None, is_replaced },
            false => Self { frame, enveloped: Some(envelope), is_replaced },
        }
    }
}

/// The publication in the JSON dialect, `None` where that is longer than a frame. Nothing is built that would be: 16 MiB
/// of control characters are 96 MiB of JSON.
fn render(room: &str, frame: &Frame, label: Option<&Label>) -> Option<Frame> {
    let (kind, is_json) = label.map_or((dialect::PLAIN_KIND, false), |label| (&*label.kind, label.is_json));
    let payload = frame.payload();
    let may_be_too_long = payload.len() > PAYLOAD_BYTES_MAX / ESCAPED_BYTES_MAX;
    if may_be_too_long && data_len(payload, is_json) > PAYLOAD_BYTES_MAX {
        return None;
    }
    dialect::publication(kind, room, payload, is_json)
}

/// Bytes that a payload takes in `data`: as it is, as a string, or as a string of base64.
fn data_len(payload: &[u8], is_json: bool) -> usize {
    match std::str::from_utf8(payload) {
        Ok(_) if is_json => payload.len(),
        Ok(_) => 2 + payload.iter().map(|octet| escaped_len(*octet)).sum::<usize>(),
        Err(_) => 2 + payload.len().div_ceil(3) * 4,
    }
}

/// RFC 8259 section 7: quote, backslash and control characters are escaped, five of these in two characters.
fn escaped_len(octet: u8) -> usize {
    match octet {
        b'"' | b'\\' | 0x08 | b'\t' | b'\n' | 0x0c | b'\r' => 2,
        0..0x20 => ESCAPED_BYTES_MAX,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn len_of(payload: &[u8], is_json: bool) -> usize {
        let around = r#"{"type":"message","room":"r","data":}"#.len();
        let frame = dialect::publication(dialect::PLAIN_KIND, "r", payload, is_json).expect("short");
        let text = frame.payload();
        let encoding =
            if text.ends_with(br#","encoding":"base64"}"#) { r#","encoding":"base64""#.len() } else { 0 };
        text.len() - around - encoding
    }

    #[test]
    fn the_length_is_known_before_the_text_is_made() {
        let every_ascii: Vec<u8> = (0..0x80).collect();
        let texts = ["".as_bytes(), &every_ascii, "zażółć \u{7f}\u{2028}😀".as_bytes(), b"1", b"[1,2]"];
        for payload in texts {
            assert_eq!(data_len(payload, false), len_of(payload, false), "{payload:?}");
        }
        assert_eq!(data_len(b"[1, 2]", true), len_of(b"[1, 2]", true));
        for octets in 1..8 {
            let payload = vec![0xff; octets];
            assert_eq!(data_len(&payload, true), len_of(&payload, true), "{octets}");
        }
    }
}
