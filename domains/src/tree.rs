//! JSON text as a tree in which no object repeats a field.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::Refusal;

/// Reads `text`, whose size and nesting the caller has bounded.
///
/// # Errors
/// See [`Message::value`](crate::Message::value).
pub(crate) fn parse(text: &str) -> Result<Value, Refusal> {
    serde_json::from_str::<Tree>(text)
        .map(|tree| tree.0)
        .map_err(|error| Refusal::new("", "JSON that every reader takes alike", &error.to_string()))
}

/// A tree as a field of something else.
pub(crate) struct Tree(pub(crate) Value);

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Node).map(Tree)
    }
}

struct Node;

impl<'de> DeserializeSeed<'de> for Node {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(Node)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(Node)?;
            if fields.contains_key(&name) {
                return Err(A::Error::custom("a field twice in one object"));
            }
            fields.insert(name, value);
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_what_serde_json_reads() {
        let text = r#"{"a":[1,-2,3.5,18446744073709551615,null,true,"ä\n"],"b":{"c":{}}}"#;
        let expected: Value = serde_json::from_str(text).expect("it is JSON");
        assert_eq!(parse(text), Ok(expected));
    }

    #[test]
    fn a_field_twice_is_refused_at_any_depth_and_however_it_is_written() {
        for text in [r#"{"a":1,"a":2}"#, r#"{"x":[{"a":1,"\u0061":2}]}"#] {
            let refusal = parse(text).expect_err("a field is there twice");
            assert!(refusal.found.starts_with("a field twice in one object at line 1"), "{refusal}");
        }
    }

    #[test]
    fn a_number_beyond_a_double_and_half_a_surrogate_pair_are_refused() {
        for text in [r#"{"a":1e999}"#, r#"{"a":"\ud800"}"#] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
