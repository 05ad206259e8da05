//! One event: its schema, and what is wrong with what doesn't keep to it.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Iso8601;

/// Bytes of one event. A queue of 100 events holds at most 100 MiB of text.
pub const EVENT_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of an event's type: it becomes a name in logs and a label of metrics.
pub const TYPE_BYTES_MAX: usize = 128;

/// An event that keeps to the schema.
///
/// ```
/// let event: corecast_consumer::Event = r#"{
///     "id": "550e8400-e29b-41d4-a716-446655440000",
///     "type": "demo.message",
///     "source": "publisher",
///     "timestamp": "2026-02-22T10:00:00Z",
///     "payload": {"counter": 1}
/// }"#.parse()?;
/// assert_eq!((event.kind(), event.payload()["counter"].as_u64()), ("demo.message", Some(1)));
/// # Ok::<(), corecast_consumer::EventError>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct Event {
    id: String,
    kind: String,
    source: String,
    timestamp: String,
    payload: Map<String, Value>,
    text: String,
}

/// Why a message is no event: which field, what was found, what was due.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Longer than [`EVENT_BYTES_MAX`].
    #[error(
        "found an event of {bytes} bytes, due at most {EVENT_BYTES_MAX}: keep large data elsewhere and send its name"
    )]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Not JSON at all.
    #[error("found {found:?}, due a JSON object ({error})")]
    NotJson {
        /// The message's beginning.
        found: String,
        /// Where and why.
        error: String,
    },
    /// JSON, but no object.
    #[error("found {found}, due a JSON object with id, type, source, timestamp and payload")]
    NotObject {
        /// The message's beginning.
        found: String,
    },
    /// A field is absent.
    #[error("field {field}: found nothing, due {due}")]
    Missing {
        /// Its name.
        field: &'static str,
        /// What it holds in an event.
        due: &'static str,
    },
    /// A field holds something else.
    #[error("field {field}: found {found}, due {due}")]
    Wrong {
        /// Its name.
        field: &'static str,
        /// Its value as JSON, cut to 80 characters.
        found: String,
        /// What it holds in an event.
        due: &'static str,
    },
}

impl Event {
    /// Reads one event; fields beyond the schema's five are kept in [`text`](Self::text) and otherwise ignored.
    ///
    /// # Errors
    /// [`EventError`] for the first field, in the schema's order, that isn't as it should be.
    pub fn parse(message: &[u8]) -> Result<Self, EventError> {
        if message.len() > EVENT_BYTES_MAX {
            return Err(EventError::TooLong { bytes: message.len() });
        }
        let not_json =
            |error: String| EventError::NotJson { found: cut(&String::from_utf8_lossy(message)), error };
        let text = std::str::from_utf8(message).map_err(|error| not_json(error.to_string()))?;
        let mut fields = match serde_json::from_str(text).map_err(|error| not_json(error.to_string()))? {
            Value::Object(fields) => fields,
            other => return Err(EventError::NotObject { found: cut(&other.to_string()) }),
        };
        let id = string(&mut fields, "id", ID_DUE, is_uuid)?;
        let kind = string(&mut fields, "type", TYPE_DUE, is_type)?;
        let source = string(&mut fields, "source", SOURCE_DUE, |source| !source.is_empty())?;
        let timestamp = string(&mut fields, "timestamp", TIMESTAMP_DUE, is_timestamp)?;
        let payload = match fields.remove("payload") {
            Some(Value::Object(payload)) => payload,
            Some(other) => return Err(wrong("payload", PAYLOAD_DUE, &other)),
            None => return Err(EventError::Missing { field: "payload", due: PAYLOAD_DUE }),
        };
        Ok(Self { id, kind, source, timestamp, payload, text: text.to_owned() })
    }

    /// The UUID, as it was written.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The type, by which the handler is chosen.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Who published it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// When it was published: ISO 8601 with an offset, as it was written.
    pub fn timestamp(&self) -> &str {
        &self.timestamp
    }

    /// What it says.
    pub fn payload(&self) -> &Map<String, Value> {
        &self.payload
    }

    /// The whole event as it was published, byte for byte.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// [`text`](Self::text) on one line. In JSON a bare line end can only stand between values, where a space does as well.
    pub fn line(&self) -> String {
        self.text.replace(['\n', '\r'], " ")
    }
}

impl FromStr for Event {
    type Err = EventError;

    fn from_str(text: &str) -> Result<Self, EventError> {
        Self::parse(text.as_bytes())
    }
}

/// Without the payload, which may be long or private.
impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("id", &self.id).field("type", &self.kind).finish_non_exhaustive()
    }
}

fn string(
    fields: &mut Map<String, Value>,
    field: &'static str,
    due: &'static str,
    fits: impl Fn(&str) -> bool,
) -> Result<String, EventError> {
    match fields.remove(field) {
        Some(Value::String(text)) if fits(&text) => Ok(text),
        Some(other) => Err(wrong(field, due, &other)),
        None => Err(EventError::Missing { field, due }),
    }
}

fn wrong(field: &'static str, due: &'static str, found: &Value) -> EventError {
    EventError::Wrong { field, found: cut(&found.to_string()), due }
}

/// The form with hyphens only: RFC 9562 section 4.
fn is_uuid(text: &str) -> bool {
    let is_hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    text.split('-').map(str::len).eq([8, 4, 4, 4, 12]) && text.split('-').all(is_hex)
}

fn is_type(text: &str) -> bool {
    !text.is_empty() && text.len() <= TYPE_BYTES_MAX && !text.contains(char::is_control)
}

fn is_timestamp(text: &str) -> bool {
    OffsetDateTime::parse(text, &Iso8601::PARSING).is_ok()
}

fn cut(text: &str) -> String {
    let mut cut: String = text.chars().take(FOUND_CHARS_MAX).collect();
    if cut.len() < text.len() {
        cut.push_str("...");
    }
    cut
}

/// Enough to recognise a value, too little to flood a log.
const FOUND_CHARS_MAX: usize = 80;
const ID_DUE: &str = "a UUID such as \"550e8400-e29b-41d4-a716-446655440000\"";
const TYPE_DUE: &str = "a type of 1 to 128 bytes such as \"demo.message\"";
const SOURCE_DUE: &str = "the publisher's name as a string that is not empty";
const TIMESTAMP_DUE: &str = "an ISO 8601 time with its offset such as \"2026-02-22T10:00:00Z\"";
const PAYLOAD_DUE: &str = "an object";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good() -> Value {
        json!({
            "id": "550e8400-e29b-41d4-a716-446655440000", "type": "demo.message", "source": "publisher",
            "timestamp": "2026-02-22T10:00:00Z", "payload": {"counter": 1, "text": "hello"},
        })
    }

    fn with(field: &str, value: Value) -> Result<Event, EventError> {
        let mut event = good();
        event[field] = value;
        event.to_string().parse()
    }

    #[test]
    fn an_event_keeps_its_text_byte_for_byte() {
        let text = format!(" {}\n", good());
        let event: Event = text.parse().unwrap();
        assert_eq!(event.text(), text);
        assert_eq!((event.kind(), event.source()), ("demo.message", "publisher"));
        assert_eq!(event.payload()["text"], "hello");
        assert!(!event.line().contains('\n'));
        assert_eq!(event.line().parse::<Event>().unwrap().payload(), event.payload());
    }

    #[test]
    fn times_as_common_publishers_write_them_are_taken() {
        for time in [
            "2026-02-22T10:00:00.123456789+01:00",
            "2026-02-22T10:00:00.5Z",
            "2026-02-22T10:00:00-05:30",
            "20260222T100000Z",
        ] {
            assert!(with("timestamp", json!(time)).is_ok(), "{time}");
        }
        for time in ["yesterday", "", "2026-02-30T10:00:00Z", "2026-02-22T10:00:00", "1771754400"] {
            assert!(with("timestamp", json!(time)).is_err(), "{time}");
        }
    }

    #[test]
    fn each_field_is_named_with_what_was_found_and_what_was_due() {
        for (field, value, found) in [
            ("id", json!("42"), "found \"42\", due a UUID"),
            ("id", json!("550e8400e29b41d4a716446655440000"), "due a UUID"),
            ("id", json!("550e8400-e29b-41d4-a716-44665544000g"), "due a UUID"),
            ("type", json!(7), "found 7, due a type"),
            ("type", json!("a\nb"), "due a type"),
            ("source", json!(""), "found \"\", due the publisher"),
            ("timestamp", json!(1_771_754_400), "found 1771754400, due an ISO 8601"),
            ("payload", json!([1]), "found [1], due an object"),
            ("payload", json!(null), "found null, due an object"),
        ] {
            let error = with(field, value).unwrap_err().to_string();
            assert!(error.starts_with(&format!("field {field}: ")) && error.contains(found), "{error}");
        }
    }

    #[test]
    fn an_absent_field_is_named() {
        for field in ["id", "type", "source", "timestamp", "payload"] {
            let mut event = good();
            event.as_object_mut().unwrap().remove(field);
            let error = event.to_string().parse::<Event>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("field {field}: found nothing, due ")), "{error}");
        }
    }

    #[test]
    fn what_is_no_object_is_shown_cut() {
        assert!(matches!("[1]".parse::<Event>(), Err(EventError::NotObject { found }) if found == "[1]"));
        let long = "x".repeat(1000);
        let error = long.parse::<Event>().unwrap_err().to_string();
        assert!(
            error.len() < 300 && error.contains("xxx...") && error.contains("due a JSON object"),
            "{error}"
        );
        assert!(matches!(Event::parse(b"\xff"), Err(EventError::NotJson { .. })));
        let huge = vec![b' '; EVENT_BYTES_MAX + 1];
        assert_eq!(Event::parse(&huge), Err(EventError::TooLong { bytes: EVENT_BYTES_MAX + 1 }));
    }
}
