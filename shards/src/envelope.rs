//! How a payload lies in what travels through the broker.
//!
//! Parsing happens here, once per publication, on the relay; never on a shard.

use std::borrow::Cow;

use bytes::Bytes;
use data_encoding::BASE64;
use serde_json::value::RawValue;

use crate::command::Label;
use crate::config::Deliver;
use crate::dialect::PLAIN_KIND;

/// What members receive of `payload`. Anything that is not the expected envelope goes out as it is.
pub fn unwrap<'a>(deliver: &Deliver, room: &str, payload: &'a [u8]) -> Cow<'a, [u8]> {
    match deliver {
        Deliver::Raw | Deliver::Event => Cow::Borrowed(payload),
        Deliver::Field(name) => match string_field(payload, name) {
            Some(Cow::Borrowed(text)) => Cow::Borrowed(text.as_bytes()),
            Some(Cow::Owned(text)) => Cow::Owned(text.into_bytes()),
            None => Cow::Borrowed(payload),
        },
        Deliver::Wrap => match std::str::from_utf8(payload) {
            Ok(text) => Cow::Owned(object(&[("room", room), ("data", text)])),
            Err(_) => Cow::Borrowed(payload),
        },
    }
}

/// What travels for a publication of our own: the inverse of [`unwrap`] for [`Deliver::Field`], which other nodes of the
/// same form can read. What is not UTF-8 travels as it is.
pub fn wrap(deliver: &Deliver, room: &str, user: Option<&str>, payload: &Bytes) -> Bytes {
    match (deliver, std::str::from_utf8(payload)) {
        (Deliver::Field(name), Ok(text)) => {
            object(&[("room", room), ("from", user.unwrap_or_default()), (name, text)]).into()
        }
        _ => payload.clone(),
    }
}

/// An envelope of [`Deliver::Event`], taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The string member that names the room, where one was asked for and is there.
    pub room: Option<Cow<'a, str>>,
    /// Its `type`.
    pub kind: Option<Cow<'a, str>>,
    /// What members receive: JSON text byte for byte, or the content of a JSON string.
    pub data: Cow<'a, [u8]>,
    /// `data` is JSON text.
    pub is_json: bool,
    /// Its `origin`.
    pub origin: Option<Cow<'a, str>>,
    /// Its `instance_id`.
    pub instance_id: Option<Cow<'a, str>>,
}

/// Takes an envelope apart, in one walk; `None` for anything that is no object with a member `data`.
///
/// `room_field` is the member that names the room.
pub fn event<'a>(payload: &'a [u8], room_field: Option<&str>) -> Option<Event<'a>> {
    let names = ["data", "type", "origin", "instance_id", "encoding", room_field.unwrap_or("room")];
    let [data, kind, origin, instance_id, encoding, room] = members(payload, names)?;
    let (raw, text) = (data?.get(), data.and_then(string));
    let data = match (text, encoding.and_then(string).as_deref()) {
        (Some(text), Some("base64")) => (Cow::Owned(BASE64.decode(text.as_bytes()).ok()?), false),
        (Some(Cow::Borrowed(text)), _) => (Cow::Borrowed(text.as_bytes()), false),
        (Some(Cow::Owned(text)), _) => (Cow::Owned(text.into_bytes()), false),
        (None, _) => (Cow::Borrowed(raw.as_bytes()), true),
    };
    Some(Event {
        room: room.filter(|_| room_field.is_some()).and_then(string),
        kind: kind.and_then(string),
        data: data.0,
        is_json: data.1,
        origin: origin.and_then(string),
        instance_id: instance_id.and_then(string),
    })
}

/// The envelope of an own publication, as [`event`] reads it back. `origin` is the node, `instance_id` this run of it.
pub fn wrap_event(
    room: &str,
    label: Option<&Label>,
    payload: &[u8],
    origin: &str,
    instance_id: &str,
) -> Bytes {
    let (kind, is_json) = label.map_or((PLAIN_KIND, false), |label| (&*label.kind, label.is_json));
    let mut out = object(&[("room", room), ("type", kind)]);
    out.pop();
    out.extend_from_slice(b",\"data\":");
    match std::str::from_utf8(payload) {
        Ok(_) if is_json => out.extend_from_slice(payload),
        // Writing to a vector can't fail, and a str has no unserialisable form.
        Ok(text) => drop(serde_json::to_writer(&mut out, text)),
        Err(_) => {
            let _ = serde_json::to_writer(&mut out, &BASE64.encode(payload));
            out.extend_from_slice(b",\"encoding\":\"base64\"");
        }
    }
    let end = object(&[("origin", origin), ("instance_id", instance_id)]);
    out.push(b',');
    out.extend_from_slice(&end[1..]);
    out.into()
}

/// What a payload that came without a label says of itself: the `type` of a JSON object, `message` for one without and for
/// an array; `None` for anything else.
pub fn kind_of(payload: &[u8]) -> Option<Cow<'_, str>> {
    match first_of(payload) {
        Some(b'{') => {
            let [kind] = members(payload, ["type"])?;
            Some(kind.and_then(string).unwrap_or(Cow::Borrowed(PLAIN_KIND)))
        }
        Some(b'[') => {
            serde_json::from_slice::<serde::de::IgnoredAny>(payload).ok().map(|_| Cow::Borrowed(PLAIN_KIND))
        }
        _ => None,
    }
}

/// The `type` of a JSON object, where it has one that is a string.
pub fn member_kind(payload: &[u8]) -> Option<Cow<'_, str>> {
    let [kind] = members(payload, ["type"])?;
    kind.and_then(string)
}

/// The octet that a JSON text begins with, after whitespace as RFC 8259 section 2 has it.
fn first_of(payload: &[u8]) -> Option<u8> {
    payload.iter().copied().find(|octet| !matches!(octet, b' ' | b'\t' | b'\n' | b'\r'))
}

/// The JSON text of the member `name` of a JSON object, to be compared with others: a string is the same however its characters
/// are escaped, and is none of the values of another type. Numbers, and what has parts, are the same where they are written
/// alike: 1 is not 1.0, which are two numbers to those who keep digits.
pub fn comparable_member<'a>(payload: &'a [u8], name: &str) -> Option<Cow<'a, str>> {
    let [found] = members(payload, [name])?;
    let value = found?;
    match string(value) {
        // Escaped quotes stand bare in it, and so it is no text of JSON, but that of no other string either.
        Some(Cow::Owned(content)) => Some(Cow::Owned(format!("\"{content}\""))),
        _ => Some(Cow::Borrowed(value.get())),
    }
}

/// The string member `name` of a JSON object, without making a tree of the rest.
fn string_field<'a>(payload: &'a [u8], name: &str) -> Option<Cow<'a, str>> {
    let [found] = members(payload, [name])?;
    found.and_then(string)
}

/// The members of these names in a JSON object that is all of `payload`; of a repeated one the last.
fn members<'a, const N: usize>(payload: &'a [u8], names: [&str; N]) -> Option<[Option<&'a RawValue>; N]> {
    if first_of(payload) != Some(b'{') {
        return None;
    }
    struct Wanted<'n, const N: usize>([&'n str; N]);
    impl<'de, const N: usize> serde::de::Visitor<'de> for Wanted<'_, N> {
        type Value = [Option<&'de RawValue>; N];
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = [None; N];
            while let Some(at) = map.next_key_seed(Position(&self.0))? {
                let value: &'de RawValue = map.next_value()?;
                if let Some(at) = at {
                    found[at] = Some(value);
                }
            }
            Ok(found)
        }
    }
    let mut reader = serde_json::Deserializer::from_slice(payload);
    let found = serde::Deserializer::deserialize_map(&mut reader, Wanted(names)).ok()?;
    reader.end().ok()?;
    Some(found)
}

/// Reads a member's name and says where it stands among those wanted. As a `Cow` it would be a string of its own: serde
/// borrows only what a derive tells it to.
struct Position<'n>(&'n [&'n str]);

impl<'de> serde::de::DeserializeSeed<'de> for Position<'_> {
    type Value = Option<usize>;
    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_str(self)
    }
}

impl serde::de::Visitor<'_> for Position<'_> {
    type Value = Option<usize>;
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a member's name")
    }
    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|wanted| *wanted == name))
    }
}

/// The content of a JSON string.
fn string(value: &RawValue) -> Option<Cow<'_, str>> {
    let inner = value.get().strip_prefix('"')?.strip_suffix('"')?;
    // A string without escapes lies in the payload as it is.
    if !inner.contains('\\') {
        return Some(Cow::Borrowed(inner));
    }
    serde_json::from_str(value.get()).ok().map(Cow::Owned)
}

/// A JSON object of string members, in this order.
fn object(members: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(32 + members.iter().map(|(k, v)| k.len() + v.len() + 8).sum::<usize>());
    out.push(b'{');
    for (index, (name, value)) in members.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        for (text, after) in [(name, b":".as_slice()), (value, b"")] {
            // Writing to a vector can't fail, and a str has no unserialisable form.
            let _ = serde_json::to_writer(&mut out, text);
            out.extend_from_slice(after);
        }
    }
    out.push(b'}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn field() -> Deliver {
        Deliver::Field("data".to_owned())
    }

    #[test]
    fn the_named_string_of_an_object_goes_out_and_anything_else_as_it_is() {
        let cases: [(&str, &str); 8] = [
            (r#"{"room":"r","from":"a","data":"hi"}"#, "hi"),
            (r#"{"data":"a\n\u00e9\"b"}"#, "a\né\"b"),
            ("\u{b}{\"data\":\"x\"}", "\u{b}{\"data\":\"x\"}"),
            (r#"{"data":5}"#, r#"{"data":5}"#),
            (r#"{"data":"x"} trailing"#, r#"{"data":"x"} trailing"#),
            (r#"{"data":"unclosed"#, r#"{"data":"unclosed"#),
            ("plain", "plain"),
            ("", ""),
        ];
        for (payload, due) in cases {
            assert_eq!(unwrap(&field(), "r", payload.as_bytes()), due.as_bytes(), "{payload}");
        }
    }

    #[test]
    fn whitespace_around_an_object_is_part_of_no_form() {
        for (before, after) in [(" ", ""), ("\n", ""), ("\r\n\t ", "\n"), ("", " ")] {
            let around = |text: &str| format!("{before}{text}{after}").into_bytes();
            assert_eq!(unwrap(&field(), "r", &around(r#"{"data":"x"}"#)), b"x".as_slice(), "{before:?}");
            let payload = around(r#"{"room":"W","type":"t","data":1}"#);
            let event = event(&payload, Some("room")).expect("it is an object with data");
            assert_eq!((event.room.as_deref(), &*event.data), (Some("W"), &b"1"[..]), "{before:?}");
            assert_eq!(kind_of(&payload).as_deref(), Some("t"), "{before:?}");
            assert_eq!(kind_of(&around("[1]")).as_deref(), Some("message"), "{before:?}");
        }
    }

    #[test]
    fn an_event_is_taken_apart_and_json_stays_as_it_was_written() {
        let payload =
            br#"{"room":"BTC","type":"price_update","data":{"price": 60214.30},"origin":"n1","instance_id":"i"}"#;
        let event = event(payload, Some("room")).unwrap();
        assert_eq!(event.room.as_deref(), Some("BTC"));
        assert_eq!(
            (event.kind.as_deref(), &*event.data),
            (Some("price_update"), &br#"{"price": 60214.30}"#[..])
        );
        assert!(event.is_json);
        assert_eq!((event.origin.as_deref(), event.instance_id.as_deref()), (Some("n1"), Some("i")));
    }

    #[test]
    fn what_is_no_event_is_none() {
        for payload in
            ["", "x", "[]", "{}", r#"{"room":"a"}"#, r#"{"data":1} x"#, r#"{"data":"\ud800","room":"a"}"#]
        {
            let found = event(payload.as_bytes(), Some("room"));
            assert!(found.as_ref().is_none_or(|found| found.is_json), "{payload}: {found:?}");
        }
        assert!(event(br#"{"data":"?","encoding":"base64"}"#, None).is_none());
    }

    #[test]
    fn a_bare_payload_says_its_kind_only_as_json() {
        let kinds = [r#"{"type":"t"}"#, "{}", "[1]", r#"{"type":5}"#, "{", "[", "5", "\"x\"", "t", ""];
        let found: Vec<_> = kinds.iter().map(|payload| kind_of(payload.as_bytes())).collect();
        let due = [
            Some("t"),
            Some("message"),
            Some("message"),
            Some("message"),
            None,
            None,
            None,
            None,
            None,
            None,
        ];
        assert_eq!(found.iter().map(|kind| kind.as_deref()).collect::<Vec<_>>(), due);
    }

    proptest! {
        #[test]
        fn an_event_comes_out_as_it_was_wrapped(payload in prop::collection::vec(any::<u8>(), 0..200), room in "\\PC{1,20}", kind in "\\PC{1,9}") {
            let label = Label { kind: kind.as_str().into(), is_json: false };
            let wrapped = wrap_event(&room, Some(&label), &payload, "n", "n-1");
            let found = event(&wrapped, Some("room")).expect("it is one");
            prop_assert_eq!(found.room.as_deref(), Some(room.as_str()));
            prop_assert_eq!(found.kind.as_deref(), Some(kind.as_str()));
            prop_assert_eq!(found.data.as_ref(), payload.as_slice());
            prop_assert_eq!(found.instance_id.as_deref(), Some("n-1"));
        }

        #[test]
        fn what_was_wrapped_comes_out_unchanged(payload in prop::collection::vec(any::<u8>(), 0..200), room in ".{1,20}", user in ".{0,9}") {
            let wrapped = wrap(&field(), &room, Some(&user), &Bytes::from(payload.clone()));
            let unwrapped = unwrap(&field(), &room, &wrapped);
            prop_assert_eq!(unwrapped.as_ref(), payload.as_slice());
        }

        #[test]
        fn text_comes_out_unchanged(text in "\\PC*", room in ".{1,20}") {
            let wrapped = wrap(&field(), &room, None, &Bytes::from(text.clone()));
            let unwrapped = unwrap(&field(), &room, &wrapped);
            prop_assert_eq!(unwrapped.as_ref(), text.as_bytes());
        }
    }
}
