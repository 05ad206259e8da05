//! An entry of a stream: its id, and the publication that its fields are.
//!
//! The field `data` is the payload, byte for byte. An entry without one, as other programs append them, is a JSON object of
//! its fields, so that it is a publication too: the numbers of a stream have no holes then.

use std::fmt;

use super::append::DATA;
use crate::limits::PAYLOAD_BYTES_MAX;

/// An entry's id: milliseconds and a number among those of one millisecond. Ids order a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EntryId {
    /// By the clock of whoever made it.
    pub millis: u64,
    /// Among those of one millisecond.
    pub sequence: u64,
}

impl EntryId {
    /// Before every entry: `0-0` is no entry's id.
    pub const ZERO: Self = Self { millis: 0, sequence: 0 };

    /// Reads `MILLIS-SEQUENCE`.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let dash = text.iter().position(|&byte| byte == b'-')?;
        Some(Self { millis: number(&text[..dash])?, sequence: number(&text[dash + 1..])? })
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.millis, self.sequence)
    }
}

/// A number as Redis writes it: digits alone.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| is_number)?.parse().ok()
}

/// The fields of one entry become a payload. One value for all entries of a connection: its buffers are used again.
#[derive(Debug, Default)]
pub(super) struct Fields {
    data: Vec<u8>,
    has_data: bool,
    /// The others, as the inside of a JSON object, as long as there is no `data`.
    object: Vec<u8>,
    is_too_long: bool,
}

impl Fields {
    /// Begins another entry.
    pub fn clear(&mut self) {
        for buffer in [&mut self.data, &mut self.object] {
            buffer.clear();
            // One long entry must not be paid for by all that follow.
            buffer.shrink_to(FIELD_BYTES_KEPT);
        }
        (self.has_data, self.is_too_long) = (false, false);
    }

    /// Takes a field.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        if self.has_data {
            return;
        }
        if name == DATA.as_bytes() {
            (self.has_data, self.is_too_long) = (true, value.len() > PAYLOAD_BYTES_MAX);
            self.data.extend_from_slice(if self.is_too_long { b"" } else { value });
            return;
        }
        if self.is_too_long || self.object.len() + name.len() + value.len() > PAYLOAD_BYTES_MAX {
            return self.push_too_long(name);
        }
        for (text, end) in [(name, b':'), (value, b',')] {
            serde_json::to_writer(&mut self.object, &String::from_utf8_lossy(text))
                .expect("a Vec takes everything");
            self.object.push(end);
        }
    }

    /// Takes a field whose value was too long to be kept.
    pub fn push_too_long(&mut self, name: &[u8]) {
        self.is_too_long = !self.has_data || self.is_too_long;
        self.has_data |= name == DATA.as_bytes();
    }

    /// The payload; `None` where it is longer than [`PAYLOAD_BYTES_MAX`].
    pub fn payload(&mut self) -> Option<&[u8]> {
        if !self.has_data {
            // `"a":"1","b":"2",` to `{"a":"1","b":"2"}`.
            self.object.pop();
            self.data.push(b'{');
            self.data.append(&mut self.object);
            self.data.push(b'}');
            self.has_data = true;
        }
        (!self.is_too_long && self.data.len() <= PAYLOAD_BYTES_MAX).then_some(&self.data)
    }
}

/// Of a buffer between two entries.
const FIELD_BYTES_KEPT: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn payload(fields: &[(&[u8], &[u8])]) -> Option<Vec<u8>> {
        let mut all = Fields::default();
        all.push(b"of", b"the entry before");
        all.clear();
        fields.iter().for_each(|(name, value)| all.push(name, value));
        all.payload().map(<[u8]>::to_vec)
    }

    #[test]
    fn ids_are_two_numbers_in_order() {
        let id = |text: &str| EntryId::parse(text.as_bytes());
        assert_eq!(id("1700000000000-7").expect("an id").to_string(), "1700000000000-7");
        assert!(id("9-1") < id("10-0") && id("10-0") < id("10-1"));
        for text in ["", "1", "-", "1-", "-1", "+1-0", "1-0-0", "18446744073709551616-0"] {
            assert_eq!(id(text), None, "{text}");
        }
    }

    #[test]
    fn an_entry_is_its_data_or_an_object_of_its_fields() {
        assert_eq!(payload(&[(b"type", b"t"), (b"data", b"\xff\x00")]), Some(b"\xff\x00".to_vec()));
        assert_eq!(payload(&[(b"data", b""), (b"more", b"x")]), Some(Vec::new()));
        let object = payload(&[(b"price", b"5"), (b"na\"me", b"\xff")]).expect("it is short");
        assert_eq!(String::from_utf8_lossy(&object), "{\"price\":\"5\",\"na\\\"me\":\"\u{fffd}\"}");
        assert_eq!(payload(&[]), Some(b"{}".to_vec()));
    }

    #[test]
    fn an_entry_that_is_too_long_is_none_unless_its_data_is_short() {
        let long = vec![b'x'; PAYLOAD_BYTES_MAX + 1];
        assert_eq!(payload(&[(b"data", &long)]), None);
        assert_eq!(payload(&[(b"a", &long)]), None);
        assert_eq!(payload(&[(b"a", &long), (b"data", b"short")]), Some(b"short".to_vec()));
        let mut fields = Fields::default();
        fields.push_too_long(b"data");
        fields.push(b"a", b"b");
        assert_eq!(fields.payload(), None);
        fields.clear();
        fields.push(b"data", b"x");
        fields.push_too_long(b"a");
        assert_eq!(fields.payload(), Some(b"x".as_slice()));
    }
}
