//! One client's message, read no further than asked.
//!
//! A message may have 16 MiB, and a tree of it a hundred times as much. So the message is split into the raw texts of its
//! top fields, borrowed, and a domain reads those it has rules for; the rest is checked to be JSON and never copied.

use std::borrow::Cow;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::Refusal;
use crate::limits::{FIELDS_MAX, NESTING_MAX, TYPE_BYTES_MAX, VALUE_BYTES_MAX, is_name};
use crate::refusal::NOTHING;
use crate::tree;

/// A JSON object with a `type`.
#[derive(Debug, Clone)]
pub struct Message<'a> {
    text: &'a str,
    fields: Vec<Field<'a>>,
    event_type: Cow<'a, str>,
}

/// Name, without escapes, and raw JSON text of the value.
type Field<'a> = (Cow<'a, str>, &'a str);

impl<'a> Message<'a> {
    /// Splits `bytes`, which may be anything.
    ///
    /// Costs two passes over the text and one allocation for the fields.
    ///
    /// # Errors
    /// What isn't a JSON object (RFC 8259) in UTF-8, repeats a field, has more than [`FIELDS_MAX`], nests deeper than
    /// [`NESTING_MAX`], or has no string of at most [`TYPE_BYTES_MAX`] bytes as `type`.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Refusal> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            Refusal::new("", "a JSON object in UTF-8", &format!("no UTF-8 at byte {}", error.valid_up_to()))
        })?;
        let text = text.trim_matches([' ', '\t', '\r', '\n']);
        if !text.starts_with('{') {
            let found = if text.is_empty() { NOTHING } else { text };
            return Err(Refusal::new("", "a JSON object", found));
        }
        if nests_deeper(text, NESTING_MAX) {
            let expected = format!("at most {NESTING_MAX} objects and arrays inside each other");
            return Err(Refusal::new("", &expected, "more"));
        }
        let mut message = Self { text, fields: split(text)?, event_type: Cow::Borrowed("") };
        let expected = format!("a string of at most {TYPE_BYTES_MAX} bytes, the type of the event");
        message.event_type = message.string("type", TYPE_BYTES_MAX, &expected)?;
        Ok(message)
    }

    /// The value of `type`.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// The whole message as the client wrote it, without whitespace around it.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// JSON text of the top field `name` as the client wrote it, without whitespace around it.
    pub fn raw(&self, name: &str) -> Option<&'a str> {
        self.fields.iter().find(|(found, _)| found == name).map(|(_, raw)| *raw)
    }

    /// The text of a top field that must be a string of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// It isn't there, is no string, is longer, or holds half a surrogate pair: `expected`, of that field.
    pub fn string(&self, name: &str, bytes_max: usize, expected: &str) -> Result<Cow<'a, str>, Refusal> {
        self.raw(name)
            .and_then(|raw| unquote(raw, bytes_max))
            .filter(|text| text.len() <= bytes_max)
            .ok_or_else(|| self.refuse(name, expected))
    }

    /// The text of a top field that must be the name of a room.
    ///
    /// # Errors
    /// See [`is_name`].
    pub fn name(&self, name: &str) -> Result<String, Refusal> {
        self.string(name, crate::limits::NAME_BYTES_MAX, NAME_EXPECTED)
            .ok()
            .filter(|text| is_name(text))
            .map(Cow::into_owned)
            .ok_or_else(|| self.refuse(name, NAME_EXPECTED))
    }

    /// The whole message as a tree.
    ///
    /// # Errors
    /// It has more than [`VALUE_BYTES_MAX`] bytes, an object in it repeats a field (of two values a receiver may take the
    /// other one), a number is beyond a double's range, or a string holds half a surrogate pair.
    pub fn value(&self) -> Result<Value, Refusal> {
        if self.text.len() > VALUE_BYTES_MAX {
            let expected =
                format!("at most {VALUE_BYTES_MAX} bytes for an event of type {}", self.event_type);
            return Err(Refusal::new("", &expected, &format!("{} bytes", self.text.len())));
        }
        tree::parse(self.text)
    }

    /// A refusal of the top field `name`, with what is found there.
    pub fn refuse(&self, name: &str, expected: &str) -> Refusal {
        Refusal::new(name, expected, self.raw(name).unwrap_or(NOTHING))
    }
}

/// What a room's name has to be.
pub(crate) const NAME_EXPECTED: &str = "a room's name: a string of 1 to 255 bytes without control characters";

/// The text of a JSON string; `None` if `raw` is none or can't have as few as `bytes_max` bytes.
fn unquote(raw: &str, bytes_max: usize) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    // The longest way to write one byte is an escape of six, `\u0041`.
    if inner.len() > bytes_max.saturating_mul(6) {
        return None;
    }
    if !inner.contains('\\') {
        return Some(Cow::Borrowed(inner));
    }
    serde_json::from_str(raw).ok().map(Cow::Owned)
}

/// Whether objects and arrays nest deeper than `nesting_max`. Only for text that is going to be parsed: brackets of either
/// kind count alike.
fn nests_deeper(text: &str, nesting_max: usize) -> bool {
    // A level takes at least one byte, so what is shorter needs no second pass.
    if text.len() <= nesting_max {
        return false;
    }
    let (mut nesting, mut in_string, mut escaped) = (0usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                nesting += 1;
                if nesting > nesting_max {
                    return true;
                }
            }
            b'}' | b']' => nesting = nesting.saturating_sub(1),
            _ => {}
        }
    }
    false
}

fn split(text: &str) -> Result<Vec<Field<'_>>, Refusal> {
    let mut fields = Fields { fields: Vec::new(), refusal: None };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let parsed = (&mut fields).deserialize(&mut deserializer).and_then(|()| deserializer.end());
    match (parsed, fields.refusal) {
        (_, Some(refusal)) => Err(refusal),
        (Ok(()), None) => Ok(fields.fields),
        (Err(error), None) => {
            let found = format!("no JSON at line {} column {}", error.line(), error.column());
            Err(Refusal::new("", "a JSON object", &found))
        }
    }
}

/// Collects fields; where a rule of ours stops the parser, `refusal` says which.
struct Fields<'a> {
    fields: Vec<Field<'a>>,
    refusal: Option<Refusal>,
}

impl<'a> Fields<'a> {
    fn offer(&mut self, name: Cow<'a, str>, raw: &'a str) -> Result<(), Refusal> {
        if self.fields.iter().any(|(other, _)| *other == name) {
            return Err(Refusal::new(&name, "one field of this name", "it again"));
        }
        if self.fields.len() == FIELDS_MAX {
            return Err(Refusal::new("", &format!("at most {FIELDS_MAX} fields"), "more"));
        }
        self.fields.push((name, raw));
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &mut Fields<'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Fields<'de> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key_seed(Name)? {
            let raw: &'de RawValue = map.next_value()?;
            if let Err(refusal) = self.offer(name, raw.get()) {
                self.refusal = Some(refusal);
                return Err(A::Error::custom("refused"));
            }
        }
        Ok(())
    }
}

/// A field's name, borrowed where it has no escapes.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(name.to_owned()))
    }
}
