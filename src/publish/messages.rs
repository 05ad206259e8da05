//! Where the messages of `corecast publish` come from: an argument, standard input, or the schema of a system's events.

use std::io::{self, BufRead, Read};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Map, Value};
use shards::limits::PAYLOAD_BYTES_MAX;

use super::PublishArgs;
use crate::exit::{self, Failure};
use crate::iso8601;
use crate::random::uuid;

/// Events of one `--demo`.
const DEMO_EVENTS: u64 = 5;

/// One message after the other.
pub enum Messages {
    /// The same one, this many times.
    Argument { message: Vec<u8>, left: u64 },
    /// Each line is one.
    Lines(io::StdinLock<'static>),
    /// Numbered from 1.
    Events { schema: Schema, sent: u64, count: u64 },
}

/// Whose events.
pub enum Schema {
    /// The broadcaster's.
    Broadcaster { event_type: String, source: String },
    /// The star's demonstration.
    Star { source: String },
}

/// What the broadcaster's publisher, server and clients agree on.
#[derive(Serialize)]
struct BroadcasterEvent<'a> {
    event_id: String,
    event_type: &'a str,
    source: &'a str,
    sequence: u64,
    published_at_ms: u64,
}

/// What the star's publishers and subscribers agree on.
#[derive(Serialize)]
struct StarEvent<'a> {
    id: String,
    #[serde(rename = "type")]
    event_type: &'a str,
    source: &'a str,
    timestamp: String,
    payload: DemoPayload,
}

#[derive(Serialize)]
struct DemoPayload {
    counter: u64,
    text: &'static str,
}

impl Messages {
    /// What `args` ask for.
    ///
    /// # Errors
    /// Exit code 2 where the flags contradict each other.
    pub fn of(args: &PublishArgs) -> Result<Self, Failure> {
        if let Some(schema) = Schema::of(args) {
            let count_default = if matches!(schema, Schema::Star { .. }) { DEMO_EVENTS } else { 1 };
            return Ok(Self::Events { schema, sent: 0, count: args.count.unwrap_or(count_default) });
        }
        match args.message.as_deref() {
            Some("-") if args.count.is_some() => Err(Failure::usage(
                "--count repeats one message, but `-` takes them from standard input: leave out one of the two",
            )),
            Some("-") => Ok(Self::Lines(io::stdin().lock())),
            message => {
                let message = message.unwrap_or_default().as_bytes().to_vec();
                Ok(Self::Argument { message, left: args.count.unwrap_or(1) })
            }
        }
    }

    /// The next one; `None` when there is no more.
    ///
    /// # Errors
    /// Exit code 1 for a line that is too long, and for standard input that can't be read.
    pub fn take(&mut self) -> Result<Option<Draft<'_>>, Failure> {
        match self {
            Self::Argument { left: 0, .. } => Ok(None),
            Self::Argument { message, left } => {
                *left -= 1;
                Ok(Some(Draft::Written(message.clone())))
            }
            Self::Lines(stdin) => Ok(take_line(stdin)?.map(Draft::Written)),
            Self::Events { sent, count, .. } if sent == count => Ok(None),
            Self::Events { schema, sent, .. } => {
                *sent += 1;
                Ok(Some(Draft::Event { schema, number: *sent }))
            }
        }
    }
}

/// A message before it is due.
pub enum Draft<'a> {
    Written(Vec<u8>),
    Event { schema: &'a Schema, number: u64 },
}

impl Draft<'_> {
    /// The message as it leaves at `now`.
    ///
    /// # Errors
    /// Exit code 1 where the kernel gives no random numbers for an id.
    pub fn written(self, now: SystemTime) -> Result<Vec<u8>, Failure> {
        match self {
            Self::Written(message) => Ok(message),
            Self::Event { schema, number } => schema.event(number, uuid()?, now),
        }
    }
}

impl Schema {
    fn of(args: &PublishArgs) -> Option<Self> {
        let source = |default: String| args.source.clone().unwrap_or(default);
        if let Some(event_type) = &args.event_type {
            let source = source("corecast-publish".to_owned());
            return Some(Self::Broadcaster { event_type: event_type.clone(), source });
        }
        let server_id = || std::env::var("SERVER_ID").ok().filter(|id| !id.is_empty());
        let star =
            || Self::Star { source: source(server_id().unwrap_or_else(|| "unknown-server".to_owned())) };
        args.demo.then(star)
    }

    fn event(&self, number: u64, id: String, now: SystemTime) -> Result<Vec<u8>, Failure> {
        let since_1970 = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let written = match self {
            Self::Broadcaster { event_type, source } => serde_json::to_vec(&BroadcasterEvent {
                event_id: id,
                event_type,
                source,
                sequence: number,
                published_at_ms: millis(since_1970),
            }),
            Self::Star { source } => serde_json::to_vec(&StarEvent {
                id,
                event_type: "demo.message",
                source,
                timestamp: iso8601::text(since_1970),
                payload: DemoPayload { counter: number, text: "hello from publisher" },
            }),
        };
        written.map_err(|error| Failure::new(exit::FAILED, format!("an event can't be written ({error})")))
    }
}

fn millis(since_1970: Duration) -> u64 {
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

/// The next line without its end, `None` at the end of the input.
fn take_line(input: &mut impl BufRead) -> Result<Option<Vec<u8>>, Failure> {
    let mut line = Vec::new();
    let line_bytes_max = PAYLOAD_BYTES_MAX as u64 + 1;
    let count = input
        .take(line_bytes_max)
        .read_until(b'\n', &mut line)
        .map_err(|error| Failure::new(exit::FAILED, format!("standard input can't be read ({error})")))?;
    if line.last() == Some(&b'\n') {
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
    } else if count as u64 == line_bytes_max {
        return Err(Failure::new(
            exit::FAILED,
            format!(
                "a line of standard input is longer than a message may be ({PAYLOAD_BYTES_MAX} bytes): split it"
            ),
        ));
    }
    Ok((count > 0).then_some(line))
}

/// Puts `seq` and `ts` into a JSON object, or `message` beside them.
///
/// Microseconds are the finest unit that a JavaScript number (53 bits) still holds exactly.
pub fn stamped(message: &[u8], seq: u64, now: SystemTime) -> Vec<u8> {
    let mut fields = match serde_json::from_slice(message) {
        Ok(Value::Object(fields)) => fields,
        _ if message.is_empty() => Map::new(),
        _ => Map::from_iter([("data".to_owned(), Value::from(String::from_utf8_lossy(message)))]),
    };
    let micros = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    fields.insert("seq".to_owned(), Value::from(seq));
    fields.insert("ts".to_owned(), Value::from(micros));
    Value::Object(fields).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stamped_json(message: &str) -> Value {
        let now = UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_001);
        serde_json::from_slice(&stamped(message.as_bytes(), 7, now)).unwrap()
    }

    #[test]
    fn a_stamp_joins_an_object_and_wraps_anything_else() {
        let ts = 1_700_000_000_000_001_u64;
        assert_eq!(stamped_json(r#"{"price":1}"#), json!({"price":1,"seq":7,"ts":ts}));
        assert_eq!(stamped_json("hello"), json!({"data":"hello","seq":7,"ts":ts}));
        assert_eq!(stamped_json(""), json!({"seq":7,"ts":ts}));
    }

    #[test]
    fn each_line_is_a_message_with_or_without_a_last_line_end() {
        let mut input = &b"a\n\nb\r\nc"[..];
        let lines: Vec<_> = std::iter::from_fn(|| take_line(&mut input).unwrap()).collect();
        assert_eq!(lines, [b"a".to_vec(), b"".to_vec(), b"b".to_vec(), b"c".to_vec()]);
    }

    #[test]
    fn a_line_longer_than_a_message_is_refused_instead_of_cut() {
        let mut longest = vec![b'x'; PAYLOAD_BYTES_MAX];
        longest.push(b'\n');
        assert_eq!(take_line(&mut longest.as_slice()).unwrap().unwrap().len(), PAYLOAD_BYTES_MAX);
        assert!(take_line(&mut vec![b'x'; PAYLOAD_BYTES_MAX + 1].as_slice()).is_err());
    }

    #[test]
    fn events_have_the_fields_of_their_system_in_its_order() {
        let now = UNIX_EPOCH + Duration::from_micros(1_771_754_400_000_500);
        let text =
            |schema: Schema| String::from_utf8(schema.event(3, "ID".to_owned(), now).unwrap()).unwrap();
        let source = "server-a".to_owned();
        assert_eq!(
            text(Schema::Broadcaster { event_type: "SERVER_DOWN".to_owned(), source: source.clone() }),
            r#"{"event_id":"ID","event_type":"SERVER_DOWN","source":"server-a","sequence":3,"published_at_ms":1771754400000}"#
        );
        assert_eq!(
            text(Schema::Star { source }),
            r#"{"id":"ID","type":"demo.message","source":"server-a","timestamp":"2026-02-22T10:00:00.000500Z","payload":{"counter":3,"text":"hello from publisher"}}"#
        );
    }
}
