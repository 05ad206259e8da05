//! What a payload says about itself: when it was published, its number, its source, its id. Owns no clock.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::iso8601;

/// Fields that hold a time stamp, the first present wins.
const STAMP_FIELDS: [&str; 7] =
    ["ts", "published_at_ms", "timestamp", "sent_at", "published_at", "time", "t"];
/// Fields that hold a number which grows by one per message of a source.
const SEQUENCE_FIELDS: [&str; 2] = ["sequence", "seq"];
/// Fields under which an envelope keeps the message itself.
const ENVELOPE_FIELDS: [&str; 2] = ["data", "payload"];
/// Fields that hold an id of the event.
const ID_FIELDS: [&str; 2] = ["event_id", "id"];

/// Unit of a time stamp since 1970; the finest that was seen bounds what a latency can mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    Nanoseconds,
    Microseconds,
    Milliseconds,
    Seconds,
}

/// What a payload says about itself.
#[derive(Debug, Default, PartialEq)]
pub struct Marks {
    /// When it was published, since 1970, and how finely that is told.
    pub stamp: Option<(Duration, Unit)>,
    /// Its number among those of its source.
    pub number: Option<u64>,
    /// Who published it.
    pub source: Option<String>,
    /// What no other event is called.
    pub id: Option<String>,
}

impl Marks {
    /// Reads `payload`; one that says nothing has no marks.
    pub fn of(payload: &[u8]) -> Self {
        match payload.first() {
            Some(b'{') => match serde_json::from_slice(payload) {
                Ok(Value::Object(fields)) => Self::of_fields(&fields),
                _ => Self::default(),
            },
            Some(b'0'..=b'9') => Self { stamp: leading_stamp(payload), ..Self::default() },
            _ => Self::default(),
        }
    }

    fn of_fields(fields: &Map<String, Value>) -> Self {
        let marks = Self {
            stamp: STAMP_FIELDS.iter().find_map(|name| stamp_of(fields.get(*name)?)),
            number: SEQUENCE_FIELDS.iter().find_map(|name| fields.get(*name)?.as_u64()),
            source: fields.get("source").and_then(Value::as_str).map(str::to_owned),
            id: ID_FIELDS.iter().find_map(|name| fields.get(*name)?.as_str()).map(str::to_owned),
        };
        let is_bare = marks.stamp.is_none() && marks.number.is_none();
        let inner = ENVELOPE_FIELDS.iter().find_map(|name| fields.get(*name)?.as_object());
        match inner {
            Some(inner) if is_bare => Self::of_fields(inner),
            _ => marks,
        }
    }
}

fn stamp_of(value: &Value) -> Option<(Duration, Unit)> {
    match value {
        // The fraction tells how fine it is; without one it is seconds.
        Value::String(text) => iso8601::parse(text).map(|(since_1970, digits)| match digits {
            0 => (since_1970, Unit::Seconds),
            1..=3 => (since_1970, Unit::Milliseconds),
            4..=6 => (since_1970, Unit::Microseconds),
            _ => (since_1970, Unit::Nanoseconds),
        }),
        value => stamp(value.as_f64()?, value.as_u64()),
    }
}

fn leading_stamp(payload: &[u8]) -> Option<(Duration, Unit)> {
    let digits = payload.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number: u64 = std::str::from_utf8(&payload[..digits]).ok()?.parse().ok()?;
    stamp(number as f64, Some(number))
}

/// Tells the unit by the magnitude: between 2001 and 2286 seconds since 1970 have ten digits, and each finer unit three more.
fn stamp(value: f64, exact: Option<u64>) -> Option<(Duration, Unit)> {
    let unit = match value {
        1e9..1e10 => Unit::Seconds,
        1e12..1e13 => Unit::Milliseconds,
        1e15..1e16 => Unit::Microseconds,
        1e18..1e19 => Unit::Nanoseconds,
        _ => return None,
    };
    let units_per_second = unit.per_second();
    let since_1970 = match exact {
        Some(exact) => {
            let nanos = exact % units_per_second * (1_000_000_000 / units_per_second);
            Duration::new(exact / units_per_second, nanos as u32)
        }
        None => Duration::try_from_secs_f64(value / units_per_second as f64).ok()?,
    };
    // A fraction makes the unit finer than its name; the note in the summary may then be too modest, never too bold.
    Some((since_1970, unit))
}

impl Unit {
    const fn per_second(self) -> u64 {
        match self {
            Self::Seconds => 1,
            Self::Milliseconds => 1_000,
            Self::Microseconds => 1_000_000,
            Self::Nanoseconds => 1_000_000_000,
        }
    }

    /// As a plural.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Seconds => "seconds",
            Self::Milliseconds => "milliseconds",
            Self::Microseconds => "microseconds",
            Self::Nanoseconds => "nanoseconds",
        }
    }
}
