//! How a message gets out: by HTTP to a server, through Redis as a system's own programs do it, or into a stream of Redis.

use std::time::Duration;

use serde_json::json;
use shards::config::{RedisAddress, RedisTarget};
use shards::redis::{Append, Trim};
use ureq::http::StatusCode;

use super::PublishArgs;
use crate::client::{ANSWER_TIMEOUT, CONNECT_TIMEOUT, Target, read_api_key};
use crate::exit::{self, Failure};
use crate::preset::{self, Preset};
use crate::redis::RedisConnection;

/// An open way.
pub enum Way {
    Http { agent: ureq::Agent, url: String, server: String, api_key: Option<String> },
    Redis { publisher: RedisConnection, channel: String, envelope: Option<Envelope> },
    Stream { appender: RedisConnection, stream: Stream, envelope: Option<Envelope> },
}

/// Where messages are appended.
pub struct Stream {
    key: String,
    /// The script's name in Redis.
    sha: String,
    channel: Option<String>,
    trim: Trim,
}

/// The form in which messages travel through Redis where they don't travel bare.
pub struct Envelope {
    field: String,
    room: String,
}

impl Way {
    /// Opens what `args` ask for; without a word about it, `preset` decides.
    ///
    /// # Errors
    /// Exit code 2 where the flags don't say where to, 69 where nobody answers, 77 where the key or password is refused.
    pub fn open(args: &PublishArgs, preset: Option<&str>) -> anyhow::Result<Self> {
        let room = args.room.as_deref();
        if args.url.is_some() {
            return Ok(Self::http(args, room)?);
        }
        let Some(name) = preset else {
            return match (args.channel.as_ref().or(args.stream.as_ref()), &args.redis) {
                (Some(_), redis) => {
                    let target = preset::redis(redis.as_deref(), &args.tls)?;
                    Self::redis(args, &target, args.channel.as_deref(), None)
                }
                (None, _) if args.durable => Err(Failure::usage(
                    "--durable needs to know the stream: add --stream KEY, or --channel for one of the same name",
                )
                .into()),
                (None, Some(_)) => Err(Failure::usage(
                    "--redis needs to know the channel: add --channel room:NAME, or --preset and --room",
                )
                .into()),
                (None, None) => Ok(Self::http(args, room)?),
            };
        };
        let preset = Preset::load(name, args.redis.as_deref(), &args.tls)?;
        let channel = match &args.channel {
            Some(channel) => channel.clone(),
            None => preset.channel(room)?,
        };
        let envelope = preset.envelope_field().zip(room).filter(|_| args.channel.is_none());
        let envelope =
            envelope.map(|(field, room)| Envelope { field: field.to_owned(), room: room.to_owned() });
        Self::redis(args, preset.redis()?, Some(&channel), envelope)
    }

    fn redis(
        args: &PublishArgs,
        target: &RedisTarget,
        channel: Option<&str>,
        envelope: Option<Envelope>,
    ) -> anyhow::Result<Self> {
        let is_lacking = channel.is_none() && (args.also_publish || !args.durable);
        if is_lacking {
            let sentence =
                "--also-publish needs to know the channel: add --channel NAME, or --preset and --room";
            return Err(Failure::usage(sentence).into());
        }
        if args.durable && matches!(target.address, RedisAddress::Cluster(_)) {
            let sentence = "--durable appends at one server, and a cluster has each stream at another: name the node that has \
                            the stream's slot, --redis redis://HOST:PORT";
            return Err(Failure::usage(sentence).into());
        }
        let mut connection = RedisConnection::connect(target)?;
        let channel = channel.map(str::to_owned);
        if !args.durable {
            let channel = channel.unwrap_or_default();
            return Ok(Self::Redis { publisher: connection, channel, envelope });
        }
        connection.select(target)?;
        let millis = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let stream = Stream {
            key: args.stream.clone().or_else(|| channel.clone()).unwrap_or_default(),
            sha: connection.load_append()?,
            channel: channel.filter(|_| args.also_publish),
            trim: Trim { entries: args.maxlen, millis: args.maxage.map(millis) },
        };
        Ok(Self::Stream { appender: connection, stream, envelope })
    }

    fn http(args: &PublishArgs, room: Option<&str>) -> Result<Self, Failure> {
        let room =
            room.ok_or_else(|| Failure::usage("a message over HTTP goes to a room: name it with --room"))?;
        let target = Target::parse(args.url.as_deref().unwrap_or("http://127.0.0.1:8080"))?;
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
            api_key: args.api_key_file.as_deref().map(read_api_key).transpose()?,
        })
    }

    /// Sends `message` and returns the answer, one line.
    ///
    /// # Errors
    /// Exit code 1 where it was refused, 69 where nobody answered, 77 where the key or user may not.
    pub fn publish(&mut self, message: &[u8]) -> Result<String, Failure> {
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
            Self::Redis { publisher, channel, envelope } => {
                let receivers = match envelope {
                    Some(envelope) => publisher.publish(channel, &envelope.around(message))?,
                    None => publisher.publish(channel, message)?,
                };
                Ok(json!({ "channel": channel, "receivers": receivers }).to_string())
            }
            Self::Stream { appender, stream, envelope } => {
                let wrapped = envelope.as_ref().map(|envelope| envelope.around(message));
                let Stream { key, sha, channel, trim } = stream;
                let append = Append {
                    stream: key.as_bytes(),
                    payload: wrapped.as_deref().unwrap_or(message),
                    channel: channel.as_ref().map(String::as_bytes),
                    trim: *trim,
                };
                let (id, receivers) = appender.append(&append, sha)?;
                let mut answer = json!({ "stream": key, "id": id });
                if let Some(channel) = channel {
                    answer["channel"] = json!(channel);
                    answer["receivers"] = json!(receivers);
                }
                Ok(answer.to_string())
            }
        }
    }
}

impl Envelope {
    /// As the system's own programs write it; what is no UTF-8 travels bare, as corecast sends it too.
    fn around(&self, message: &[u8]) -> Vec<u8> {
        match std::str::from_utf8(message) {
            Ok(text) => {
                let field = self.field.as_str();
                json!({ "room": self.room, "from": "corecast-publish", field: text }).to_string().into_bytes()
            }
            Err(_) => message.to_vec(),
        }
    }
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
    Failure::new(exit::UNAVAILABLE, sentence)
}

fn refused(url: &str, status: StatusCode, body: &str) -> Failure {
    let (exit, advice) = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            (exit::NO_PERMISSION, "pass the server's key with --api-key-file")
        }
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => (
            exit::FAILED,
            "publishing may have been moved to the server's --admin address; name that with --url",
        ),
        StatusCode::PAYLOAD_TOO_LARGE => (exit::FAILED, "split the message, or raise the server's bound"),
        StatusCode::TOO_MANY_REQUESTS => (exit::UNAVAILABLE, "publish slower, with --rate"),
        status if status.is_server_error() => {
            (exit::UNAVAILABLE, "try again when the server and its broker are well")
        }
        _ => (exit::FAILED, "check --room and --url"),
    };
    let said = if body.is_empty() { String::new() } else { format!(" and said {body:?}") };
    Failure::new(exit, format!("{url} answered {status}{said} where a 200 was due: {advice}"))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_is_no_utf8_travels_without_the_envelope() {
        let envelope = Envelope { field: "data".to_owned(), room: "r".to_owned() };
        assert_eq!(envelope.around(b"\xff\x00"), b"\xff\x00");
        let sent: Value = serde_json::from_slice(&envelope.around("ü\"".as_bytes())).unwrap();
        assert_eq!((&sent["room"], &sent["data"]), (&json!("r"), &json!("ü\"")));
    }
}
