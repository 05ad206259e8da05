//! `corecast publish`: puts messages into a room, over HTTP or straight through Redis.
//!
//! One message at a time and in order: the next leaves when the last was answered, so that an answer is a promise about
//! everything before it. For load there is `corecast-bench`.

use std::fs;
use std::io::{self, BufRead, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Map, Value, json};
use shards::config::RedisTarget;
use shards::limits::PAYLOAD_BYTES_MAX;
use ureq::http::StatusCode;

use crate::client::{
    ANSWER_TIMEOUT, CONNECT_TIMEOUT, EXIT_FAILED, EXIT_NO_PERMISSION, EXIT_UNAVAILABLE, Failure, Preset,
    Target,
};
use crate::redis::RedisPublisher;

/// Publishes to a room and prints the server's answer, one JSON object a line.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  corecast publish --room lobby hello
  seq 1000 | corecast publish --room lobby -
  corecast publish --room lobby --stamp --count 600 --rate 10     (then: corecast subscribe --room lobby --stats)
  corecast publish --preset event-fanout --room room1 hello       (through the Redis of that system)
  corecast publish --redis redis://:secret@localhost --channel room:lobby hello

Exit codes: 0 published, 1 refused, 2 usage, 69 no server or Redis there, 77 key or password refused.")]
pub struct PublishArgs {
    /// The server, as http://HOST:PORT [default: http://127.0.0.1:8080]
    #[arg(long, value_name = "URL", conflicts_with_all = ["redis", "preset", "channel"])]
    url: Option<String>,
    /// Publish through this Redis instead: redis://[USER[:PASSWORD]@]HOST[:PORT], unix:///PATH.sock or HOST:PORT; without
    /// a password in it $REDIS_PASSWORD is used
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// Redis channel; the message goes there as it is
    #[arg(long, value_name = "CHANNEL", conflicts_with_all = ["preset", "room"], requires = "redis")]
    channel: Option<String>,
    /// Publish as this system's own programs do: its Redis ($REDIS_URL, else $REDIS_ADDR, $REDIS_PASSWORD), channel and envelope
    #[arg(long, value_name = "NAME", value_parser = Preset::parse)]
    preset: Option<Preset>,
    /// Room to publish to
    #[arg(long, value_name = "ROOM", required_unless_present = "channel")]
    room: Option<String>,
    /// The message; `-` takes one from each line of standard input
    #[arg(value_name = "MESSAGE", required_unless_present = "stamp")]
    message: Option<String>,
    /// Publish the message this many times [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Messages a second [default: each as soon as the last was answered]
    #[arg(long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,
    /// File whose trimmed content is sent as X-API-Key
    #[arg(long, value_name = "FILE", env = "CORECAST_API_KEY_FILE")]
    api_key_file: Option<PathBuf>,
    /// Send JSON with `seq` (from 1) and `ts` (microseconds since 1970), for `subscribe --stats`; a message that is a
    /// JSON object gets the two fields, any other becomes its field `data`
    #[arg(long)]
    stamp: bool,
    /// Don't print the answers
    #[arg(long)]
    quiet: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if rate > 0.0 && f64::is_finite(rate) => Ok(rate),
        _ => Err(format!("found {text:?} where messages a second were due: write 10 or 0.5")),
    }
}

/// Publishes until the messages are spent or one fails.
///
/// # Errors
/// None beyond what it reports by its exit code; the type is that of every command.
pub fn run(args: PublishArgs) -> anyhow::Result<ExitCode> {
    match publish(&args) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(failure) => Ok(failure.report("publish")),
    }
}

fn publish(args: &PublishArgs) -> Result<(), Failure> {
    let mut messages = Messages::of(args)?;
    let mut way = Way::open(args)?;
    let started_at = Instant::now();
    let mut count = 0;
    while let Some(message) = messages.take()? {
        if let Some(rate) = args.rate {
            // From the start, not from the last message: a late one doesn't slow the rest down.
            let due = Duration::try_from_secs_f64(count as f64 / rate).unwrap_or(Duration::MAX);
            thread::sleep(due.saturating_sub(started_at.elapsed()));
        }
        count += 1;
        let message = if args.stamp { stamped(&message, count, SystemTime::now()) } else { message };
        let answer = way.publish(&message).map_err(|failure| match count {
            1 => failure,
            _ => Failure::new(failure.exit, format!("message {count}: {failure}")),
        })?;
        if !args.quiet && writeln!(io::stdout(), "{answer}").is_err() {
            // The reader of our output is gone; what was asked for was to publish.
            break;
        }
    }
    let elapsed = started_at.elapsed().as_secs_f64();
    if count != 1 {
        eprintln!("published {count} messages in {elapsed:.2} s: {:.0}/s", count as f64 / elapsed.max(0.001));
    }
    Ok(())
}

/// Where the messages come from.
enum Messages {
    Argument { message: Vec<u8>, left: u64 },
    Lines(io::StdinLock<'static>),
}

impl Messages {
    fn of(args: &PublishArgs) -> Result<Self, Failure> {
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

    fn take(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        match self {
            Self::Argument { left: 0, .. } => Ok(None),
            Self::Argument { message, left } => {
                *left -= 1;
                Ok(Some(message.clone()))
            }
            Self::Lines(stdin) => take_line(stdin),
        }
    }
}

/// The next line without its end, `None` at the end of the input.
fn take_line(input: &mut impl BufRead) -> Result<Option<Vec<u8>>, Failure> {
    let mut line = Vec::new();
    let line_bytes_max = PAYLOAD_BYTES_MAX as u64 + 1;
    let count = input
        .take(line_bytes_max)
        .read_until(b'\n', &mut line)
        .map_err(|error| Failure::new(EXIT_FAILED, format!("standard input can't be read ({error})")))?;
    if line.last() == Some(&b'\n') {
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
    } else if count as u64 == line_bytes_max {
        return Err(Failure::new(
            EXIT_FAILED,
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
fn stamped(message: &[u8], seq: u64, now: SystemTime) -> Vec<u8> {
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

/// How a message gets out.
enum Way {
    Http { agent: ureq::Agent, url: String, server: String, api_key: Option<String> },
    Redis { publisher: RedisPublisher, channel: String, envelope_room: Option<String> },
}

impl Way {
    fn open(args: &PublishArgs) -> Result<Self, Failure> {
        let room = args.room.as_deref().unwrap_or_default();
        match (&args.redis, &args.preset, &args.channel) {
            (Some(_), None, None) => Err(Failure::usage(
                "--redis needs to know the channel: add --channel room:NAME, or --preset and --room",
            )),
            (None, None, _) => Self::http(args, room),
            (redis, preset, channel) => {
                let target = redis_target(redis.as_deref())?;
                let channel = match (channel, preset) {
                    (Some(channel), _) => channel.clone(),
                    (None, Some(preset)) => format!("{}{room}", preset.channel_prefix),
                    (None, None) => unreachable!("the first arm took --redis without a channel"),
                };
                let envelope_room = preset.is_some().then(|| room.to_owned());
                Ok(Self::Redis { publisher: RedisPublisher::connect(&target)?, channel, envelope_room })
            }
        }
    }

    fn http(args: &PublishArgs, room: &str) -> Result<Self, Failure> {
        let target = Target::parse(args.url.as_deref().unwrap_or("http://127.0.0.1:8080"))?;
        let api_key = args.api_key_file.as_ref().map(|path| {
            let unreadable = |found| {
                let path = path.display();
                Failure::new(
                    EXIT_NO_PERMISSION,
                    format!("the key file {path} {found}: name the server's --api-key-file"),
                )
            };
            let key =
                fs::read_to_string(path).map_err(|error| unreadable(format!("can't be read ({error})")))?;
            let key = key.trim();
            let is_header_text = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
            is_header_text
                .then(|| key.to_owned())
                .ok_or_else(|| unreadable("holds no printable key".to_owned()))
        });
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .user_agent(concat!("corecast/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(ANSWER_TIMEOUT))
            .build();
        Ok(Self::Http {
            agent: config.new_agent(),
            url: target.publish_url(&[("room", room)]),
            server: target.to_string(),
            api_key: api_key.transpose()?,
        })
    }

    /// Returns the answer, one line.
    fn publish(&mut self, message: &[u8]) -> Result<String, Failure> {
        match self {
            Self::Http { agent, url, server, api_key } => {
                let content_type = match std::str::from_utf8(message) {
                    Ok(_) => "text/plain; charset=utf-8",
                    Err(_) => "application/octet-stream",
                };
                let mut request = agent.post(url.as_str()).header("Content-Type", content_type);
                if let Some(key) = api_key {
                    request = request.header("X-API-Key", key.as_str());
                }
                let mut response = request.send(message).map_err(|error| no_answer(server, &error))?;
                let status = response.status();
                let body = response.body_mut().read_to_string().map_err(|error| no_answer(server, &error))?;
                let body = body.trim().replace(['\r', '\n'], " ");
                if status.is_success() { Ok(body) } else { Err(refused(url, status, &body)) }
            }
            Self::Redis { publisher, channel, envelope_room } => {
                let receivers = match envelope_room {
                    Some(room) => publisher.publish(channel, &enveloped(room, message))?,
                    None => publisher.publish(channel, message)?,
                };
                Ok(json!({ "channel": channel, "receivers": receivers }).to_string())
            }
        }
    }
}

/// The form in which event-fanout's own programs publish; what is no UTF-8 travels bare, as corecast sends it too.
fn enveloped(room: &str, message: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(message) {
        Ok(data) => {
            json!({ "room": room, "from": "corecast-publish", "data": data }).to_string().into_bytes()
        }
        Err(_) => message.to_vec(),
    }
}

/// What was asked for, else what the variables of these systems name; the password may come from its variable either way.
fn redis_target(asked: Option<&str>) -> Result<RedisTarget, Failure> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let text = asked.map(str::to_owned).or_else(|| set("REDIS_URL")).or_else(|| set("REDIS_ADDR"));
    let text = text.as_deref().unwrap_or("localhost:6379");
    let mut target: RedisTarget =
        text.parse().map_err(|error| Failure::usage(format!("the Redis address: {error}")))?;
    target.password = target.password.or_else(|| set("REDIS_PASSWORD"));
    Ok(target)
}

fn no_answer(server: &str, error: &ureq::Error) -> Failure {
    let sentence = match error {
        ureq::Error::Timeout(_) => format!(
            "{server} didn't answer in time ({error}): the message may or may not have gone out; is the server overloaded?"
        ),
        ureq::Error::HostNotFound => format!("the host of {server} is not known here: check --url"),
        ureq::Error::Protocol(_) => format!("{server} doesn't speak HTTP ({error}): is that a corecast?"),
        _ => format!(
            "no corecast answers at {server} ({error}): start one with `corecast serve`, or name another with --url"
        ),
    };
    Failure::new(EXIT_UNAVAILABLE, sentence)
}

fn refused(url: &str, status: StatusCode, body: &str) -> Failure {
    let (exit, advice) = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            (EXIT_NO_PERMISSION, "pass the server's key with --api-key-file")
        }
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => (
            EXIT_FAILED,
            "publishing may have been moved to the server's --admin address; name that with --url",
        ),
        StatusCode::PAYLOAD_TOO_LARGE => (EXIT_FAILED, "split the message, or raise the server's bound"),
        StatusCode::TOO_MANY_REQUESTS => (EXIT_UNAVAILABLE, "publish slower, with --rate"),
        status if status.is_server_error() => {
            (EXIT_UNAVAILABLE, "try again when the server and its broker are well")
        }
        _ => (EXIT_FAILED, "check --room and --url"),
    };
    let said = if body.is_empty() { String::new() } else { format!(" and said {body:?}") };
    Failure::new(exit, format!("{url} answered {status}{said} where a 200 was due: {advice}"))
}

#[cfg(test)]
mod tests {
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
    fn what_is_no_utf8_travels_without_the_envelope() {
        assert_eq!(enveloped("r", b"\xff\x00"), b"\xff\x00");
        let sent: Value = serde_json::from_slice(&enveloped("r", "ü\"".as_bytes())).unwrap();
        assert_eq!((&sent["room"], &sent["data"]), (&json!("r"), &json!("ü\"")));
    }
}
