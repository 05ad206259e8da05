//! `corecast dead-letters`: what `corecast consume` gave up, listed, and published again.
//!
//! A letter is removed only after Redis has taken its event, and only if somebody heard it: Pub/Sub keeps nothing for
//! those who come later. Interrupting a replay leaves the rest where it was.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::{Args, Subcommand};
use corecast_consumer::{
    Connection, DeadLetter, DeadLetterError, Home, LetterFile, LetterStream, NumberedLetter, RedisTarget,
    Replayed, StreamedLetter,
};
use serde_json::json;

use crate::consume::place::{Place, failure};
use crate::consume::settings::{pick, redis_target};
use crate::exit::{FAILED, Failure, USAGE};
use crate::output::{complain, print};
use crate::redis::TlsArgs;

/// What to do with them.
#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// Print them, oldest first: where, age, type, attempts and reason of each, and how many there are
    List {
        #[command(flatten)]
        which: Which,
        /// One JSON object a line, with the whole event
        #[arg(long)]
        json: bool,
    },
    /// Publish their events again, each to the channel or stream it came from, and remove what was heard
    Replay {
        #[command(flatten)]
        which: Which,
        /// Say what would be published, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Remove also what no subscriber of this Redis node heard; in a cluster they may be on another node
        #[arg(long)]
        unheard_too: bool,
    },
}

/// Which letters.
#[derive(Debug, Args)]
pub struct Which {
    /// file:PATH or stream:KEY, as `corecast consume --dead-letters` has it [env: CORECAST_DEAD_LETTERS]
    #[arg(value_name = "PLACE")]
    place: Option<String>,
    /// Redis of the streams and the channels [env: CORECAST_REDIS, REDIS_URL, REDIS_ADDR, REDIS_HOST with REDIS_PORT;
    /// REDIS_PASSWORD] [default: localhost:6379]
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    #[command(flatten)]
    tls: TlsArgs,
    /// Only events of this type
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// At most so many, oldest first
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

/// Help's last part.
pub const EXAMPLES: &str = "\
Examples:
  corecast dead-letters list file:dead.jsonl
  corecast dead-letters replay stream:dead-letters --type order.paid --limit 100 --dry-run
  corecast dead-letters list file:dead.jsonl --json | jq .event

An event that fails again becomes a dead letter again; a replay reads only those that were there when it began. Killed
between Redis' answer and the mark in a file, it publishes one event twice; from a stream never.

Exit codes: 0 done, 1 failed or nobody listens, 2 usage, 69 no Redis, 77 refused, 78 a variable makes no sense.";

/// Lists or replays.
///
/// # Errors
/// A [`Failure`] with its exit code; what was replayed before it is removed.
pub fn run(command: &DeadLettersCommand) -> anyhow::Result<ExitCode> {
    match command {
        DeadLettersCommand::List { which, json } => list(which, *json)?,
        DeadLettersCommand::Replay { which, dry_run, unheard_too } => replay(which, *dry_run, *unheard_too)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A letter, from wherever it is.
struct Found<'s> {
    /// Line or entry.
    at: String,
    letter: Result<DeadLetter, DeadLetterError>,
    /// Publishes it and removes it, if somebody heard it or the argument says that this doesn't matter.
    replay: &'s mut dyn FnMut(&DeadLetter, bool) -> Result<Replayed, Failure>,
}

/// What is done with each letter; false ends it.
type Each<'e> = &'e mut dyn FnMut(Found<'_>) -> anyhow::Result<bool>;

/// Where the letters are, and how those of a file are published: a stream's go where the stream is.
enum Source {
    File { file: LetterFile, redis: RedisTarget },
    Stream(LetterStream),
}

impl Source {
    fn open(which: &Which, redis: &RedisTarget, is_replay: bool) -> Result<Self, Failure> {
        let place = pick("PLACE", &which.place, &["CORECAST_DEAD_LETTERS"], str::parse)?;
        let due = "due file:PATH or stream:KEY, where `corecast consume --dead-letters` put them";
        let usage = |sentence| Failure { code: USAGE, sentence };
        let file = match place {
            Some(Place::File(path)) if is_replay => LetterFile::open_for_replay(path),
            Some(Place::File(path)) => LetterFile::open(path),
            Some(Place::Stream(key)) => {
                return LetterStream::open(redis, key).map(Self::Stream).map_err(failure);
            }
            Some(Place::Log) => {
                return Err(usage(format!("found log, {due}: what is in a log can only be read there")));
            }
            None => return Err(usage(format!("found no place, {due}"))),
        };
        Ok(Self::File { file: file.map_err(failure)?, redis: redis.clone() })
    }

    /// Calls `each` for the letters that were there when it began.
    fn each(&mut self, each: Each<'_>) -> anyhow::Result<()> {
        match self {
            Self::File { file, redis } => each_of_file(file, redis, each),
            Self::Stream(stream) => each_of_stream(stream, each),
        }
    }

    /// Tidies up after a replay.
    fn finish(self) -> Result<(), Failure> {
        match self {
            Self::File { file, .. } => file.compact().map_err(failure),
            Self::Stream(_) => Ok(()),
        }
    }
}

fn each_of_file(file: &LetterFile, redis: &RedisTarget, each: Each<'_>) -> anyhow::Result<()> {
    let mut publisher: Option<Connection> = None;
    for item in file.letters().map_err(failure)? {
        let NumberedLetter { mark, letter } = item.map_err(failure)?;
        let mut replay = |letter: &DeadLetter, unheard_too: bool| {
            let connection = match &mut publisher {
                Some(connection) => connection,
                none => none.insert(Connection::open(redis).map_err(failure)?),
            };
            let heard = match &letter.home {
                Home::Channel(channel) => connection.publish(channel, letter.event.text().as_bytes()),
                Home::Stream(stream) => connection.append(stream, &letter.event).map(|()| 1),
            };
            let heard = heard.map_err(failure)?;
            if heard > 0 || unheard_too {
                file.mark(&mark).map_err(failure)?;
            }
            Ok(Replayed::Heard(heard))
        };
        if !each(Found { at: format!("line {}", mark.line), letter, replay: &mut replay })? {
            break;
        }
    }
    Ok(())
}

fn each_of_stream(stream: &mut LetterStream, each: Each<'_>) -> anyhow::Result<()> {
    let Some(last) = stream.last_id().map_err(failure)? else { return Ok(()) };
    let mut after: Option<String> = None;
    loop {
        let page = stream.page(after.as_deref(), &last).map_err(failure)?;
        let Some(newest) = page.last() else { return Ok(()) };
        after = Some(newest.id.clone());
        for StreamedLetter { id, letter } in page {
            let mut replay =
                |letter: &DeadLetter, unheard_too| stream.replay(&id, letter, unheard_too).map_err(failure);
            if !each(Found { at: id.clone(), letter, replay: &mut replay })? {
                return Ok(());
            }
        }
    }
}

impl Which {
    fn fits(&self, letter: &DeadLetter) -> bool {
        self.r#type.as_ref().is_none_or(|kind| kind == letter.event.kind())
    }

    fn is_enough(&self, count: u64) -> bool {
        self.limit.is_some_and(|limit| count >= limit)
    }
}

fn list(which: &Which, is_json: bool) -> anyhow::Result<()> {
    let redis = redis_of(which)?;
    let now = SystemTime::now();
    let (mut count, mut unreadable) = (0, 0);
    let mut out = io::stdout().lock();
    let listed = Source::open(which, &redis, false)?.each(&mut |found| {
        if which.is_enough(count) {
            return Ok(false);
        }
        match found.letter {
            Ok(letter) if which.fits(&letter) => {
                count += 1;
                let line =
                    if is_json { json_line(&found.at, &letter)? } else { row(&found.at, &letter, now) };
                writeln!(out, "{line}")?;
            }
            Ok(_) => {}
            Err(error) => {
                unreadable += 1;
                complain!("corecast: {}: {error}", found.at);
            }
        }
        Ok(true)
    });
    match listed {
        // The reader of our output has seen enough.
        Err(error) if is_broken_pipe(&error) => return Ok(()),
        listed => listed?,
    }
    complain!("{}", counted(count, unreadable));
    Ok(())
}

/// What became of the letters of a replay.
#[derive(Default)]
struct Tally {
    replayed: u64,
    unheard: u64,
    unreadable: u64,
}

fn replay(which: &Which, is_dry: bool, unheard_too: bool) -> anyhow::Result<()> {
    let redis = redis_of(which)?;
    let mut source = Source::open(which, &redis, true)?;
    let mut tally = Tally::default();
    let outcome = source.each(&mut |found| {
        if which.is_enough(tally.replayed + tally.unheard) {
            return Ok(false);
        }
        match found.letter {
            Ok(letter) if !which.fits(&letter) => {}
            Ok(letter) if is_dry => {
                print(&format!("{}\n", row(&found.at, &letter, SystemTime::now())))?;
                tally.replayed += 1;
            }
            Ok(letter) => match (found.replay)(&letter, unheard_too)? {
                Replayed::Gone => {}
                Replayed::Heard(0) if !unheard_too => tally.unheard += 1,
                Replayed::Heard(_) => tally.replayed += 1,
            },
            Err(error) => {
                tally.unreadable += 1;
                complain!("corecast: {} stays: {error}", found.at);
            }
        }
        Ok(true)
    });
    let finished = if is_dry { Ok(()) } else { source.finish() };
    let Tally { replayed, unheard, unreadable } = tally;
    let done = if is_dry { "would be replayed" } else { "replayed" };
    let stopped = if outcome.is_err() { "; the rest stays" } else { "" };
    complain!("{replayed} {done}, {unheard} unheard and kept, {unreadable} unreadable{stopped}");
    outcome?;
    finished?;
    if unheard > 0 {
        let sentence = format!(
            "nobody is subscribed to the channel of {unheard} letters at {redis}: start `corecast consume`, or name its \
             Redis with --redis; in a cluster, --unheard-too"
        );
        return Err(Failure { code: FAILED, sentence }.into());
    }
    Ok(())
}

fn redis_of(which: &Which) -> anyhow::Result<RedisTarget> {
    let (target, warnings) = redis_target(which.redis.as_deref(), &which.tls)?;
    for warning in warnings {
        complain!("corecast: warning: {warning}");
    }
    Ok(target)
}

fn row(at: &str, letter: &DeadLetter, now: SystemTime) -> String {
    let age = age_text(letter.age(now));
    let attempts = match letter.attempts {
        1 => "1 attempt".to_owned(),
        attempts => format!("{attempts} attempts"),
    };
    let reason: String = letter.reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let (kind, id) = (letter.event.kind(), letter.event.id());
    format!("{at}  {age} ago  {kind}  {id}  {attempts}  {reason}")
}

fn json_line(at: &str, letter: &DeadLetter) -> anyhow::Result<String> {
    let mut line: serde_json::Value =
        serde_json::from_str(&letter.to_json()).context("a letter that was read can't be written")?;
    line["at"] = json!(at);
    Ok(line.to_string())
}

fn counted(count: u64, unreadable: u64) -> String {
    let letters = if count == 1 { "dead letter" } else { "dead letters" };
    match unreadable {
        0 => format!("{count} {letters}"),
        _ => format!("{count} {letters}, {unreadable} unreadable"),
    }
}

/// The two largest units: `3d4h`, `12m5s`, `0s`.
fn age_text(age: Duration) -> String {
    let seconds = age.as_secs();
    let parts =
        [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let first = parts.iter().position(|(count, _)| *count > 0).unwrap_or(parts.len() - 1);
    parts[first..].iter().take(2).map(|(count, unit)| format!("{count}{unit}")).collect()
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_its_two_largest_units() {
        let text = |seconds| age_text(Duration::from_secs(seconds));
        assert_eq!([text(0), text(59), text(61), text(7200)], ["0s", "59s", "1m1s", "2h0m"]);
        assert_eq!(text(3 * 86_400 + 4 * 3600 + 5), "3d4h");
    }
}
