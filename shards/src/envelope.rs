//! How a payload lies in what travels through the broker.
//!
//! Parsing happens here, once per publication, on the relay; never on a shard.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::config::Deliver;

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

/// The string member `name` of a JSON object, without making a tree of the rest.
fn string_field<'a>(payload: &'a [u8], name: &str) -> Option<Cow<'a, str>> {
    if payload.first() != Some(&b'{') {
        return None;
    }
    struct Wanted<'n>(&'n str);
    impl<'de> serde::de::Visitor<'de> for Wanted<'_> {
        type Value = Option<&'de RawValue>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                let value: &'de RawValue = map.next_value()?;
                if key == self.0 {
                    found = Some(value);
                }
            }
            Ok(found)
        }
    }
    let mut reader = serde_json::Deserializer::from_slice(payload);
    let found = serde::Deserializer::deserialize_map(&mut reader, Wanted(name)).ok()??;
    reader.end().ok()?;
    let text = found.get().as_bytes();
    if text.first() != Some(&b'"') {
        return None;
    }
    // A string without escapes lies in the payload as it is.
    let inner = &text[1..text.len() - 1];
    if !inner.contains(&b'\\') {
        return std::str::from_utf8(inner).ok().map(Cow::Borrowed);
    }
    serde_json::from_str(found.get()).ok().map(Cow::Owned)
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
            (r#" {"data":"x"}"#, r#" {"data":"x"}"#),
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

    proptest! {
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
