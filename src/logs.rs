//! Log lines: text for people or one JSON object a line, on stderr, from a thread of their own.
//!
//! A full pipe never stops a shard: lines beyond [`LINES_MAX`] are lost, counted by [`lost_lines`], and told at the end.
//! Where no shard runs, [`start_lossless`] waits instead.

use std::fmt;
use std::sync::OnceLock;

use serde_json::Value;
use shards::config::LogFormat;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::output::complain;

/// Lines that wait for a slow stderr: 4,096 of about 200 bytes are less than 1 MiB.
const LINES_MAX: usize = 4096;

static LOST: OnceLock<ErrorCounter> = OnceLock::new();

/// Keeps the logs' thread; dropping it writes what is left and says how much was lost.
pub struct Logs {
    guard: Option<WorkerGuard>,
}

/// Sends everything that `filter` passes to stderr. Every line has `constants`: JSON before its own fields, text behind them.
///
/// # Errors
/// Logs were started before.
pub fn start(format: LogFormat, filter: EnvFilter, constants: Constants) -> anyhow::Result<Logs> {
    start_with(format, filter, true, constants)
}

/// As [`start`], but a slow stderr slows whoever logs instead of losing lines.
///
/// # Errors
/// As [`start`].
pub fn start_lossless(format: LogFormat, filter: EnvFilter, constants: Constants) -> anyhow::Result<Logs> {
    start_with(format, filter, false, constants)
}

fn start_with(
    format: LogFormat,
    filter: EnvFilter,
    is_lossy: bool,
    constants: Constants,
) -> anyhow::Result<Logs> {
    let builder =
        NonBlockingBuilder::default().lossy(is_lossy).buffered_lines_limit(LINES_MAX).thread_name("logs");
    let (writer, guard) = builder.finish(std::io::stderr());
    LOST.get_or_init(|| writer.error_counter());
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(false)
        .with_target(false);
    let started = match format {
        LogFormat::Text => {
            let format = TextLines::new(&constants);
            tracing::subscriber::set_global_default(subscriber.event_format(format).finish())
        }
        LogFormat::Json => {
            tracing::subscriber::set_global_default(subscriber.event_format(JsonLines { constants }).finish())
        }
    };
    started.map_err(|error| anyhow::anyhow!("logs were started twice: {error}"))?;
    Ok(Logs { guard: Some(guard) })
}

/// Reads a level such as `info` or `info,shards=debug`.
///
/// # Errors
/// What was found and what was due.
pub fn parse_level(level: &str) -> Result<EnvFilter, String> {
    let wrong = || {
        let due = "error, warn, info, debug, trace or off, or by module, for example \"info,shards=debug\"";
        format!("found {level:?}, due {due}")
    };
    // The filter would take a misspelt level for the name of a module, and stay silent.
    let levels = ["error", "warn", "info", "debug", "trace", "off"];
    if !level.split(',').all(|part| part.contains('=') || levels.contains(&part)) {
        return Err(wrong());
    }
    EnvFilter::builder().parse(level).map_err(|_| wrong())
}

/// Log lines lost so far, because stderr was slower than they came.
pub fn lost_lines() -> usize {
    LOST.get().map_or(0, ErrorCounter::dropped_lines)
}

impl Drop for Logs {
    fn drop(&mut self) {
        drop(self.guard.take());
        let lost = lost_lines();
        if lost > 0 {
            complain!("corecast: {lost} log lines were lost, because stderr was slower than they came");
        }
    }
}

/// Fields that every line has.
pub type Constants = Vec<(&'static str, Value)>;

/// Lines for people, as the crate writes them: time, level, message and fields, `NAME=VALUE` each. Constants follow.
struct TextLines {
    format: Format,
    /// With a space before each.
    constants: String,
}

impl TextLines {
    fn new(constants: &Constants) -> Self {
        let told = |(name, value): &(&str, Value)| format!(" {name}={value}");
        Self { format: Format::default().with_target(false), constants: constants.iter().map(told).collect() }
    }
}

impl<S, N> FormatEvent<S, N> for TextLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        writeln!(writer, "{}{}", line.trim_end_matches('\n'), self.constants)
    }
}

/// `{"time":..,"level":..,"msg":..,CONSTANTS..,FIELDS..,"component":..}`: the keys that log collectors of Go's slog know.
///
/// `component` is the last part of the event's module, unless the event has such a field itself. A field `NAME_json`
/// that holds JSON becomes the value of `NAME`, not a string.
struct JsonLines {
    constants: Constants,
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let metadata = event.metadata();
        let mut fields = JsonFields::default();
        event.record(&mut fields);
        let target = metadata.target();
        let component = target.rsplit("::").next().unwrap_or(target);
        write!(writer, "{{\"time\":{},\"level\":\"{}\"", Value::from(time), metadata.level())?;
        write!(writer, ",\"msg\":{}", Value::from(fields.message))?;
        let has_component = fields.others.iter().any(|(name, _)| *name == "component");
        for (name, value) in self.constants.iter().chain(&fields.others) {
            write!(writer, ",{}:{value}", Value::from(*name))?;
        }
        if !has_component {
            write!(writer, ",\"component\":{}", Value::from(component))?;
        }
        writeln!(writer, "}}")
    }
}

#[derive(Default)]
struct JsonFields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl JsonFields {
    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            ("message", value) => self.message = value.to_string(),
            (name, value) => self.others.push((name, value)),
        }
    }
}

impl Visit for JsonFields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Value::from(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let parsed = field.name().strip_suffix("_json").zip(serde_json::from_str(value).ok());
        match parsed {
            Some((name, value)) => self.others.push((name, value)),
            None => self.add(field, Value::from(value)),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, Value::from(format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_json_line_has_the_keys_of_slog_and_its_fields_beside_them() {
        let lines = Lines::default();
        let writer = lines.clone();
        let format = JsonLines { constants: vec![("server_id", Value::from("s-1"))] };
        let subscriber =
            tracing_subscriber::fmt().with_writer(move || writer.clone()).event_format(format).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(channel = "a\"b", clients = 3_u64, up = true, error = ?Some(1), "subscribed to {}", "redis");
            tracing::warn!(component = "hub", payload_json = "{\"n\":[1]}", text_json = "{", "x");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let parsed: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
        assert!(text.starts_with("{\"time\":\"20"), "{text}");
        assert!(parsed[0]["time"].as_str().unwrap().ends_with('Z'));
        assert_eq!(
            (&parsed[0]["level"], &parsed[0]["msg"]),
            (&Value::from("INFO"), &Value::from("subscribed to redis"))
        );
        assert_eq!((&parsed[0]["channel"], &parsed[0]["clients"]), (&Value::from("a\"b"), &Value::from(3)));
        assert_eq!((&parsed[0]["up"], &parsed[0]["error"]), (&Value::from(true), &Value::from("Some(1)")));
        assert_eq!(parsed[0]["component"], "tests");
        assert_eq!(
            (&parsed[0]["server_id"], &parsed[1]["server_id"]),
            (&Value::from("s-1"), &Value::from("s-1"))
        );
        assert_eq!(
            (&parsed[1]["payload"]["n"][0], &parsed[1]["text_json"]),
            (&Value::from(1), &Value::from("{"))
        );
        assert_eq!(text.lines().nth(1).unwrap().matches("component").count(), 1);
    }

    #[test]
    fn a_line_of_text_ends_with_the_constants() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .event_format(TextLines::new(&vec![("process", Value::from(1))]))
            .finish();
        tracing::subscriber::with_default(subscriber, || tracing::warn!(clients = 3, "full"));
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(text.ends_with(" WARN full clients=3 process=1\n"), "{text}");
    }

    #[test]
    fn a_misspelt_level_is_refused_not_silent() {
        assert!(parse_level("info").is_ok() && parse_level("warn,shards=debug").is_ok());
        for wrong in ["inof", "", "info,", "shards=loud"] {
            let message = parse_level(wrong).unwrap_err();
            assert!(message.starts_with(&format!("found {wrong:?}, due error, warn")), "{message}");
        }
    }
}
