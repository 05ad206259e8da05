//! `corecast publish`: puts messages into a room, channel or stream, over HTTP, straight through Redis, or as an ingestor.
//!
//! One message at a time and in order: the next leaves when the last was answered, so that an answer is a promise about
//! everything before it (not with `--feed`, whose server answers only errors). For load there is `corecast-bench`.

mod feed;
mod messages;
mod way;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;

use crate::client::{duration, rate};
use crate::exit::Failure;
use crate::output::complain;
use crate::preset;
use crate::redis::TlsArgs;
use messages::{Messages, stamped};
use way::Way;

/// Publishes to a room, channel or stream and prints the server's answer, one JSON object a line.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  corecast publish --room lobby hello
  seq 1000 | corecast publish --room lobby -
  corecast publish --room lobby --stamp --count 600 --rate 10     (then: corecast subscribe --room lobby --stats)
  corecast publish --preset event-fanout --room room1 hello       (through the Redis of that system)
  corecast publish --redis redis://:secret@localhost --channel room:lobby hello
  REDIS_HOST=localhost corecast publish --type SERVER_DOWN --source server-a --count 10
  corecast publish --durable --stream orders --maxage 24h '{\"type\":\"order.paid\"}'
  corecast publish --durable --also-publish --channel room:lobby --maxlen 10000 hello
  corecast publish --demo                                         (5 events to broadcast.events, 2 s apart)
  corecast publish --feed --instruments BTC_USDT --rate 10        (prices to ws://localhost:8080/ws/ingest)

Exit codes: 0 published, 1 refused, 2 usage, 69 no server or Redis there, 77 key or password refused, 78 configuration.")]
pub struct PublishArgs {
    /// The server, as http://HOST:PORT [default: http://127.0.0.1:8080]; with --feed as ws://HOST:PORT/ws/ingest
    #[arg(long, value_name = "URL", conflicts_with_all = ["redis", "preset", "channel"])]
    url: Option<String>,
    /// Publish through this Redis instead: redis[s]://[USER[:PASSWORD]@]HOST[:PORT], unix:///PATH.sock or HOST:PORT, without
    /// a password in it $REDIS_PASSWORD is used; or the name of a [[redis]] in the file of $CORECAST_CONFIG
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    #[command(flatten)]
    tls: TlsArgs,
    /// Redis channel; the message goes there as it is [default with --type and --demo: their preset's, $CHANNEL_NAME]
    #[arg(long, value_name = "CHANNEL", conflicts_with = "room")]
    channel: Option<String>,
    /// Append to a Redis stream instead, which keeps it for those who come later; the answer has the entry's id. Its fields:
    /// `data`, and `type` where the message is a JSON object with one
    #[arg(long, conflicts_with_all = ["url", "feed"], help_heading = "Streams (Redis 6.2 or later)")]
    durable: bool,
    /// Key of the stream [default: the name of the channel]
    #[arg(long, value_name = "KEY", requires = "durable", help_heading = "Streams (Redis 6.2 or later)")]
    stream: Option<String>,
    /// And publish to the channel, in one step of Redis with the append: who hears it finds it in the stream
    #[arg(long, requires = "durable", help_heading = "Streams (Redis 6.2 or later)")]
    also_publish: bool,
    /// Have the stream keep about so many entries
    #[arg(long, value_name = "N", requires = "durable", help_heading = "Streams (Redis 6.2 or later)")]
    maxlen: Option<u64>,
    /// Have the stream keep entries for about this long
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "durable",
          help_heading = "Streams (Redis 6.2 or later)")]
    maxage: Option<Duration>,
    /// Publish as this system's own programs do: its Redis ($REDIS_URL, else $REDIS_ADDR, else $REDIS_HOST and $REDIS_PORT;
    /// $REDIS_PASSWORD), channel and envelope [default with --type: broadcaster, with --demo: star, with --feed: backbone]
    #[arg(long, value_name = "NAME", value_parser = preset::names())]
    preset: Option<String>,
    /// Room to publish to (workflow: user)
    #[arg(long, value_name = "ROOM")]
    room: Option<String>,
    /// The message; `-` takes one from each line of standard input
    #[arg(value_name = "MESSAGE", required_unless_present_any = ["stamp", "event_type", "demo", "feed"])]
    message: Option<String>,
    /// Publish this many [default: 1, with --demo 5, with --feed without end]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Messages a second [default: each as soon as the last was answered; with --feed 5]
    #[arg(long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,
    /// Time between messages, instead of --rate [default with --demo: 2s]
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "rate")]
    interval: Option<Duration>,
    /// File whose trimmed content is sent as X-API-Key
    #[arg(long, value_name = "FILE", env = "CORECAST_API_KEY_FILE", hide_env_values = true)]
    api_key_file: Option<PathBuf>,
    /// Send JSON with `seq` (from 1) and `ts` (microseconds since 1970), for `subscribe --stats`; a message that is a
    /// JSON object gets the two fields, any other becomes its field `data`
    #[arg(long, conflicts_with_all = ["event_type", "demo", "feed"])]
    stamp: bool,
    /// Send the broadcaster's events, of this type: event_id, event_type, source, sequence (from 1), published_at_ms
    #[arg(long = "type", value_name = "TYPE", conflicts_with_all = ["message", "demo", "feed"], help_heading = "Events")]
    event_type: Option<String>,
    /// Who the events come from [default: corecast-publish, with --demo $SERVER_ID]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["message", "stamp", "feed"], help_heading = "Events")]
    source: Option<String>,
    /// Send the star's demonstration: 5 events of type demo.message, 2 s apart
    #[arg(long, conflicts_with_all = ["message", "feed"], help_heading = "Events")]
    demo: bool,
    /// Send prices that walk at random, as an ingestor of the backbone over one WebSocket, until stopped; errors that the
    /// server answers are printed and counted, and a lost connection is opened again
    #[arg(long, conflicts_with_all = ["message", "redis", "channel", "room"], help_heading = "Events")]
    feed: bool,
    /// What the prices are of, in turn
    // Conflicts beside `requires`: clap waives what is required when something given conflicts with it.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', requires = "feed", help_heading = "Events",
          conflicts_with_all = ["message", "event_type", "demo", "stamp"], default_value = "BTC_USDT,ETH_USDT,SOL_USDT")]
    instruments: Vec<String>,
    /// Don't print the answers (with --feed: the prices)
    #[arg(long)]
    quiet: bool,
}

/// Publishes until the messages are spent or one fails.
///
/// # Errors
/// A [`Failure`] that says whose fault it is by its exit code.
pub fn run(args: PublishArgs) -> anyhow::Result<ExitCode> {
    if args.feed {
        return feed::run(&args);
    }
    if args.source.is_some() && args.event_type.is_none() && !args.demo {
        return Err(Failure::usage("--source names who events come from: add --type TYPE or --demo").into());
    }
    let mut messages = Messages::of(&args)?;
    let mut way = Way::open(&args, args.preset_name())?;
    let interval = args.interval();
    let started_at = Instant::now();
    let mut count: u64 = 0;
    while let Some(draft) = messages.take()? {
        // From the start, not from the last message: a late one doesn't slow the rest down.
        thread::sleep(due(interval, count).saturating_sub(started_at.elapsed()));
        count += 1;
        let message = draft.written(SystemTime::now())?;
        let message = if args.stamp { stamped(&message, count, SystemTime::now()) } else { message };
        let answer = way.publish(&message).map_err(|failure| match count {
            1 => failure,
            _ => Failure::new(failure.code, format!("message {count}: {failure}")),
        })?;
        if !args.quiet && writeln!(io::stdout(), "{answer}").is_err() {
            // The reader of our output is gone; what was asked for was to publish.
            break;
        }
    }
    let elapsed = started_at.elapsed().as_secs_f64();
    if count != 1 {
        complain!("published {count} messages in {elapsed:.2} s: {:.0}/s", count as f64 / elapsed.max(0.001));
    }
    Ok(ExitCode::SUCCESS)
}

/// When message `index` (from 0) is due, counted from the start.
fn due(interval: Duration, index: u64) -> Duration {
    Duration::try_from_secs_f64(interval.as_secs_f64() * index as f64).unwrap_or(Duration::MAX)
}

impl PublishArgs {
    /// The preset that was named, else the one whose events are asked for; with `--url` none.
    fn preset_name(&self) -> Option<&str> {
        let of_events = match (&self.event_type, self.demo, self.feed) {
            _ if self.url.is_some() => None,
            (Some(_), ..) => Some("broadcaster"),
            (_, true, _) => Some("star"),
            (.., true) => Some("backbone"),
            _ => None,
        };
        self.preset.as_deref().or(of_events)
    }

    /// The time between messages; zero is as soon as may be.
    fn interval(&self) -> Duration {
        let by_rate = || Some(Duration::try_from_secs_f64(1.0 / self.rate?).unwrap_or(Duration::MAX));
        let by_kind = || match (self.demo, self.feed) {
            (true, _) => Duration::from_secs(2),
            (_, true) => Duration::from_millis(200),
            _ => Duration::ZERO,
        };
        self.interval.or_else(by_rate).unwrap_or_else(by_kind)
    }
}
