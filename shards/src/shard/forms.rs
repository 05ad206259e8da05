//! An entry as the members of a room get it: in the dialects that are spoken there, each made once per shard, or a notice
//! where that would be longer than a frame may be.

use std::borrow::Cow;

use bytes::Bytes;

use crate::command::Label;
use crate::config::Dialect;
use crate::dialect::{self, Gap, meta, sse};
use crate::envelope;
use crate::frame::Frame;
use crate::limits::PAYLOAD_BYTES_MAX;
use crate::room::Room;
use crate::window::Forms;

/// JSON writes an octet as `\u001f` at most.
const ESCAPED_BYTES_MAX: usize = 6;

/// A publication as it came down, before it is an entry.
pub(super) struct Told<'p> {
    pub frame: Frame,
    pub epoch: u64,
    pub offset: u64,
    pub label: Option<&'p Label>,
}

impl Forms {
    /// What goes out for a publication to who is in `room` now.
    pub(super) fn of(told: Told<'_>, room: &Room) -> Self {
        if !room.has_others() {
            return Self { wire: told.frame.into_wire(), ..Self::default() };
        }
        let spoken = |dialect: &Dialect| room.speakers_len(*dialect) > 0;
        let mut forms = Self::default();
        let mut first = true;
        for dialect in Dialect::ALL.into_iter().filter(spoken) {
            let (wire, is_replaced) = told.form(dialect, room.plain_name());
            forms.replaced |= if is_replaced { dialect.bit() } else { 0 };
            match std::mem::take(&mut first) {
                true => forms.wire = wire,
                false => forms.others.push((dialect, wire)),
            }
        }
        forms
    }

    /// A gap notice for who is in `room` now; the dialects without words for it get no bytes.
    pub(super) fn gap(gap: &Gap, room: &Room) -> Self {
        let mut forms = Self { is_gap: true, ..Self::default() };
        for dialect in [Dialect::Json, Dialect::Sse] {
            if room.speakers_len(dialect) > 0 {
                forms.others.push((dialect, dialect::gap(dialect, room.plain_name(), gap)));
            }
        }
        forms
    }
}

impl Told<'_> {
    /// The publication in that dialect, and whether it is a notice in its place.
    pub(super) fn form(&self, dialect: Dialect, room: &str) -> (Bytes, bool) {
        let rendered = match dialect {
            Dialect::Raw | Dialect::Echo => Some(self.frame.wire_bytes().clone()),
            Dialect::Json => self.json(room).map(Frame::into_wire),
            Dialect::Meta => meta::publication(self.epoch, self.offset, &self.frame),
            Dialect::Sse => sse::publication(self.epoch, self.offset, self.frame.payload()),
        };
        match rendered {
            Some(wire) => (wire, false),
            None => (dialect::too_long(dialect, room, self.epoch, self.offset), true),
        }
    }

    /// The publication in the JSON dialect, `None` where that is longer than a frame. Nothing is built that would be: 16 MiB
    /// of control characters are 96 MiB of JSON.
    fn json(&self, room: &str) -> Option<Frame> {
        let payload = self.frame.payload();
        let (kind, is_json) = said(self.label, payload);
        let may_be_too_long = payload.len() > PAYLOAD_BYTES_MAX / ESCAPED_BYTES_MAX;
        if may_be_too_long && data_len(payload, is_json) > PAYLOAD_BYTES_MAX {
            return None;
        }
        dialect::publication(&kind, room, payload, is_json, Some(self.offset))
    }
}

/// What a publication is: what its label says, or else what its payload says of itself; and whether that is JSON.
pub(super) fn said<'p>(label: Option<&'p Label>, payload: &'p [u8]) -> (Cow<'p, str>, bool) {
    match label {
        Some(label) => (Cow::Borrowed(&*label.kind), label.is_json),
        None => match envelope::kind_of(payload) {
            Some(Cow::Borrowed(kind)) => (Cow::Borrowed(dialect::kind(kind)), true),
            Some(Cow::Owned(kind)) => (Cow::Owned(dialect::kind(&kind).to_owned()), true),
            None => (Cow::Borrowed(dialect::PLAIN_KIND), false),
        },
    }
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
        let frame = dialect::publication(dialect::PLAIN_KIND, "r", payload, is_json, None).expect("short");
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
