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
    Connection, DeadLetter, DeadLetterError, LetterFile, LetterStream, LineMark, NumberedLetter, RedisError,
    RedisTarget, Replayed,
};
use serde_json::json;

use crate::consume::place::Place;
use crate::consume::settings::{pick, redis_target};
use crate::exit::{FAILED, Failure, NO_PERMISSION, UNAVAILABLE, USAGE};

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
    /// Publish their events again, each to the channel it came from, and remove what was heard
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
    /// Redis of the stream and the channels [env: CORECAST_REDIS, REDIS_URL, REDIS_ADDR, REDIS_HOST with REDIS_PORT;
    /// REDIS_PASSWORD] [default: localhost:6379]
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
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
        DeadLettersCommand::List { which, json } => list(which, *json),
        DeadLettersCommand::Replay { which, dry_run, unheard_too } => replay(which, *dry_run, *unheard_too),
    }
    .map_err(coded)?;
    Ok(ExitCode::SUCCESS)
}

/// A letter, from wherever it is.
struct Found {
    /// Line or entry.
    at: At,
    letter: Result<DeadLetter, DeadLetterError>,
}

enum At {
    Line(LineMark),
    Entry(String),
}

enum Source {
    File(LetterFile),
    Stream(LetterStream),
}

impl Source {
    fn open(which: &Which, redis: &RedisTarget, is_replay: bool) -> anyhow::Result<Self> {
        let place = pick("PLACE", &which.place, &["CORECAST_DEAD_LETTERS"], str::parse)?;
        let due = "due file:PATH or stream:KEY, where `corecast consume --dead-letters` put them";
        match place {
            Some(Place::File(path)) if is_replay => Ok(Self::File(LetterFile::open_for_replay(path)?)),
            Some(Place::File(path)) => Ok(Self::File(LetterFile::open(path)?)),
            Some(Place::Stream(key)) => Ok(Self::Stream(LetterStream::open(redis, key)?)),
            Some(Place::Log) => {
                Err(usage(format!("found log, {due}: what is in a log can only be read there")))
            }
            None => Err(usage(format!("found no place, {due}"))),
        }
    }

    /// Calls `each` for the letters that were there when the source was opened, until it returns false.
    fn each(&mut self, mut each: impl FnMut(&mut Self, Found) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        if let Self::File(file) = self {
            let letters = file.letters()?;
            for item in letters {
                let NumberedLetter { mark, letter } = item?;
                if !each(self, Found { at: At::Line(mark), letter })? {
                    return Ok(());
                }
            }
            return Ok(());
        }
        let Some(last) = self.stream()?.last_id()? else { return Ok(()) };
        let mut after: Option<String> = None;
        loop {
            let page = self.stream()?.page(after.as_deref(), &last)?;
            let Some(newest) = page.last() else { return Ok(()) };
            after = Some(newest.id.clone());
            for entry in page {
                if !each(self, Found { at: At::Entry(entry.id), letter: entry.letter })? {
                    return Ok(());
                }
            }
        }
    }

    fn stream(&mut self) -> anyhow::Result<&mut LetterStream> {
        match self {
            Self::Stream(stream) => Ok(stream),
            Self::File(_) => Err(anyhow::anyhow!("a file was asked for the entries of a stream")),
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

impl At {
    fn text(&self) -> String {
        match self {
            Self::Line(mark) => format!("line {}", mark.line),
            Self::Entry(id) => id.clone(),
        }
    }
}

fn list(which: &Which, is_json: bool) -> anyhow::Result<()> {
    let redis = redis_of(which)?;
    let now = SystemTime::now();
    let (mut count, mut unreadable) = (0, 0);
    let mut out = io::stdout().lock();
    let listed = Source::open(which, &redis, false)?.each(|_, found| {
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
                eprintln!("corecast: {}: {error}", found.at.text());
            }
        }
        Ok(true)
    });
    // The reader of our output has seen enough.
    match listed {
        Err(error) if is_broken_pipe(&error) => return Ok(()),
        listed => listed?,
    }
    eprintln!("{}", counted(count, unreadable));
    Ok(())
}

fn replay(which: &Which, is_dry: bool, unheard_too: bool) -> anyhow::Result<()> {
    let redis = redis_of(which)?;
    let mut source = Source::open(which, &redis, true)?;
    let mut publisher = match (&source, is_dry) {
        (Source::File(_), false) => Some(Connection::open(&redis)?),
        _ => None,
    };
    let (mut replayed, mut unheard, mut unreadable) = (0, 0, 0);
    let outcome = source.each(|source, found| {
        if which.is_enough(replayed + unheard) {
            return Ok(false);
        }
        let letter = match found.letter {
            Ok(letter) if which.fits(&letter) => letter,
            Ok(_) => return Ok(true),
            Err(error) => {
                unreadable += 1;
                eprintln!("corecast: {} stays: {error}", found.at.text());
                return Ok(true);
            }
        };
        if is_dry {
            println!("{}", row(&found.at, &letter, SystemTime::now()));
            replayed += 1;
            return Ok(true);
        }
        match publish(source, publisher.as_mut(), &found.at, &letter, unheard_too)? {
            Replayed::Gone => {}
            Replayed::Heard(0) if !unheard_too => unheard += 1,
            Replayed::Heard(_) => replayed += 1,
        }
        Ok(true)
    });
    if let (Source::File(file), false) = (source, is_dry) {
        file.compact()?;
    }
    let done = if is_dry { "would be replayed" } else { "replayed" };
    let stopped = outcome.as_ref().err().map_or("", |_| "; the rest stays");
    eprintln!("{replayed} {done}, {unheard} unheard and kept, {unreadable} unreadable{stopped}");
    outcome?;
    if unheard > 0 {
        let sentence = format!(
            "nobody is subscribed to the channel of {unheard} letters at {redis}: start `corecast consume`, or name its \
             Redis with --redis; in a cluster, --unheard-too"
        );
        return Err(Failure { code: FAILED, sentence }.into());
    }
    Ok(())
}

fn publish(
    source: &mut Source,
    publisher: Option<&mut Connection>,
    at: &At,
    letter: &DeadLetter,
    unheard_too: bool,
) -> anyhow::Result<Replayed> {
    match (source, at, publisher) {
        (Source::Stream(stream), At::Entry(id), _) => Ok(stream.replay(id, letter, unheard_too)?),
        (Source::File(file), At::Line(mark), Some(publisher)) => {
            let heard = publisher.publish(&letter.channel, letter.event.text().as_bytes())?;
            if heard > 0 || unheard_too {
                file.mark(mark)?;
            }
            Ok(Replayed::Heard(heard))
        }
        _ => Err(anyhow::anyhow!("a line is of a file and an entry of a stream")),
    }
}

fn redis_of(which: &Which) -> anyhow::Result<RedisTarget> {
    let (target, warnings) = redis_target(which.redis.as_deref())?;
    for warning in warnings {
        eprintln!("corecast: warning: {warning}");
    }
    Ok(target)
}

fn row(at: &At, letter: &DeadLetter, now: SystemTime) -> String {
    let age = age_text(letter.age(now));
    let attempts = match letter.attempts {
        1 => "1 attempt".to_owned(),
        attempts => format!("{attempts} attempts"),
    };
    let reason: String = letter.reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let (kind, id) = (letter.event.kind(), letter.event.id());
    format!("{}  {age} ago  {kind}  {id}  {attempts}  {reason}", at.text())
}

fn json_line(at: &At, letter: &DeadLetter) -> anyhow::Result<String> {
    let mut line: serde_json::Value =
        serde_json::from_str(&letter.to_json()).context("a letter that was read can't be written")?;
    line["at"] = json!(at.text());
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

fn usage(sentence: String) -> anyhow::Error {
    Failure { code: USAGE, sentence }.into()
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Gives Redis' refusals their exit codes; files have them by their kind.
fn coded(error: anyhow::Error) -> anyhow::Error {
    let redis = error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(DeadLetterError::Redis(error)) => Some(error),
        _ => cause.downcast_ref::<RedisError>(),
    });
    let code = match redis {
        None => return error,
        Some(RedisError::Absent { .. } | RedisError::Broken { .. }) => UNAVAILABLE,
        Some(RedisError::Forbidden { .. }) => NO_PERMISSION,
        Some(RedisError::Refused { .. } | RedisError::Unexpected { .. }) => FAILED,
    };
    Failure { code, sentence: format!("{error:#}") }.into()
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
