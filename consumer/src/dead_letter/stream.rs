//! Dead letters in a Redis stream: an entry each, with its parts as fields.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redis_protocol::resp2::types::OwnedFrame;
use shards::config::RedisTarget;

use super::{DeadLetter, DeadLetterError, DeadLetters, unreadable};
use crate::event::Event;
use crate::options::Home;
use crate::redis::{Connection, RedisError, described};

/// Entries of the stream beyond which nothing is added: what nobody replays must not fill Redis' memory.
pub const STREAM_ENTRIES_MAX: i64 = 100_000;
/// Entries that are asked for at once: ten of the longest events fit a frame of RESP as we bound it.
const PAGE_ENTRIES: &[u8] = b"10";
/// After a failure letters go to the log for so long before Redis is tried again: a drain of hundreds of letters must not
/// wait for as many time-outs.
const AWAY: Duration = Duration::from_secs(5);

/// Publishes the entry and removes it in one step, so that neither an interruption nor a second replay publishes it
/// twice. KEYS[1] stream, ARGV: id, channel, event, whether to remove what nobody heard. With KEYS[2] it is appended to that
/// stream instead, as type ARGV[2].
/// Returns -1 when the entry has gone.
const REPLAY: &[u8] = b"if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return -1 end
if KEYS[2] then
  redis.call('XADD', KEYS[2], '*', 'data', ARGV[3], 'type', ARGV[2])
  redis.call('XDEL', KEYS[1], ARGV[1])
  return 1
end
local heard = redis.call('PUBLISH', ARGV[2], ARGV[3])
if heard > 0 or ARGV[4] == '1' then redis.call('XDEL', KEYS[1], ARGV[1]) end
return heard";

/// Keeps dead letters in a Redis stream, over a connection of their own that is opened again after a failure.
pub struct StreamLetters {
    target: RedisTarget,
    key: String,
    link: Mutex<Link>,
}

#[derive(Default)]
struct Link {
    connection: Option<Connection>,
    failed_at: Option<Instant>,
}

impl StreamLetters {
    /// Adds to the stream `key`; connects with the first letter.
    pub fn new(target: RedisTarget, key: impl Into<String>) -> Self {
        Self { target, key: key.into(), link: Mutex::default() }
    }

    fn add(&self, connection: &mut Connection, letter: &DeadLetter) -> Result<(), DeadLetterError> {
        let key = self.key.as_bytes();
        let entries = connection.ask_number(&[b"XLEN", key])?;
        if entries >= STREAM_ENTRIES_MAX {
            return Err(DeadLetterError::Full {
                place: format!("the stream {}", self.key),
                held: format!("{entries} entries"),
            });
        }
        let died_at = letter.died_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis().to_string();
        let attempts = letter.attempts.to_string();
        let home = match letter.home {
            Home::Channel(_) => "channel",
            Home::Stream(_) => "stream",
        };
        let mut command: Vec<&[u8]> = vec![b"XADD", key, b"*"];
        for (name, value) in [
            ("event", letter.event.text()),
            ("type", letter.event.kind()),
            ("reason", letter.reason_cut()),
            ("attempts", &attempts),
            (home, letter.home.name()),
            ("server_id", &letter.server_id),
            ("died_at_ms", &died_at),
        ] {
            command.extend([name.as_bytes(), value.as_bytes()]);
        }
        Ok(connection.ask(&command).map(drop)?)
    }
}

impl DeadLetters for StreamLetters {
    fn keep(&self, letter: &DeadLetter) -> Result<(), DeadLetterError> {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        // A connection that Redis has closed meanwhile is found out by using it: then a new one is tried once.
        if let Some(connection) = link.connection.as_mut() {
            match self.add(connection, letter) {
                Err(DeadLetterError::Redis(RedisError::Broken { .. })) => link.connection = None,
                kept => return kept,
            }
        }
        if let Some(failed_at) = link.failed_at.filter(|failed_at| failed_at.elapsed() < AWAY) {
            let error = std::io::Error::other(format!("it failed {:?} ago", failed_at.elapsed()));
            return Err(RedisError::Absent { place: self.target.to_string(), error }.into());
        }
        let added =
            Connection::open(&self.target).map_err(DeadLetterError::from).and_then(|mut connection| {
                self.add(&mut connection, letter)?;
                Ok(connection)
            });
        link.failed_at = added.is_err().then(Instant::now);
        link.connection = Some(added?);
        Ok(())
    }
}

/// A stream of dead letters, to be read and replayed.
pub struct LetterStream {
    connection: Connection,
    key: String,
}

/// An entry of the stream.
#[derive(Debug)]
pub struct StreamedLetter {
    /// The entry's id.
    pub id: String,
    /// What it says.
    pub letter: Result<DeadLetter, DeadLetterError>,
}

/// What became of a replayed entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replayed {
    /// So many subscribers of this Redis node heard it; it is removed if they were any, or if that doesn't matter.
    Heard(i64),
    /// It has gone: somebody else replayed it.
    Gone,
}

impl LetterStream {
    /// Connects; a stream that isn't there is an empty one.
    ///
    /// # Errors
    /// [`DeadLetterError::Redis`].
    pub fn open(target: &RedisTarget, key: impl Into<String>) -> Result<Self, DeadLetterError> {
        Ok(Self { connection: Connection::open(target)?, key: key.into() })
    }

    /// The id of the newest entry: what comes after it was not there yet.
    ///
    /// # Errors
    /// [`DeadLetterError::Redis`].
    pub fn last_id(&mut self) -> Result<Option<String>, DeadLetterError> {
        let command: [&[u8]; 6] = [b"XREVRANGE", self.key.as_bytes(), b"+", b"-", b"COUNT", b"1"];
        let page = self.connection.ask(&command)?;
        Ok(self.entries(page)?.pop().map(|entry| entry.id))
    }

    /// Up to ten entries after the id `after` (`None`: from the first), up to the id `last`.
    ///
    /// # Errors
    /// [`DeadLetterError::Redis`]; an entry that is no letter is an item instead.
    pub fn page(&mut self, after: Option<&str>, last: &str) -> Result<Vec<StreamedLetter>, DeadLetterError> {
        let from = after.map_or("-".to_owned(), |id| format!("({id}"));
        let command: [&[u8]; 6] =
            [b"XRANGE", self.key.as_bytes(), from.as_bytes(), last.as_bytes(), b"COUNT", PAGE_ENTRIES];
        let page = self.connection.ask(&command)?;
        self.entries(page)
    }

    /// Publishes the event of entry `id` to its channel, or appends it to its stream, and removes the entry, in one step of
    /// Redis; one that nobody heard stays, unless `unheard_too`.
    ///
    /// # Errors
    /// [`DeadLetterError::Redis`]; the entry is there then, unless the connection broke after Redis had taken the command.
    pub fn replay(
        &mut self,
        id: &str,
        letter: &DeadLetter,
        unheard_too: bool,
    ) -> Result<Replayed, DeadLetterError> {
        let unheard_too: &[u8] = if unheard_too { b"1" } else { b"0" };
        let mut command: Vec<&[u8]> = vec![b"EVAL", REPLAY];
        match &letter.home {
            Home::Channel(channel) => {
                command.extend([b"1", self.key.as_bytes(), id.as_bytes(), channel.as_bytes()]);
            }
            Home::Stream(stream) => {
                let kind = letter.event.kind().as_bytes();
                command.extend([b"2", self.key.as_bytes(), stream.as_bytes(), id.as_bytes(), kind]);
            }
        }
        command.extend([letter.event.text().as_bytes(), unheard_too]);
        Ok(match self.connection.ask_number(&command)? {
            -1 => Replayed::Gone,
            heard => Replayed::Heard(heard),
        })
    }

    fn entries(&self, page: OwnedFrame) -> Result<Vec<StreamedLetter>, DeadLetterError> {
        let wrong = |found: &OwnedFrame| self.connection.unexpected(described(found), "entries of a stream");
        let OwnedFrame::Array(entries) = page else { return Err(wrong(&page).into()) };
        entries.into_iter().map(|entry| entry_of(&entry).ok_or_else(|| wrong(&entry).into())).collect()
    }
}

/// `[id, [name, value, ...]]`.
fn entry_of(entry: &OwnedFrame) -> Option<StreamedLetter> {
    let OwnedFrame::Array(parts) = entry else { return None };
    let [id, OwnedFrame::Array(fields)] = parts.as_slice() else { return None };
    let id = String::from_utf8(bytes_of(id)?.to_vec()).ok()?;
    let fields: Option<Vec<&[u8]>> = fields.iter().map(bytes_of).collect();
    Some(StreamedLetter { id, letter: letter_of(&fields?) })
}

fn bytes_of(frame: &OwnedFrame) -> Option<&[u8]> {
    match frame {
        OwnedFrame::BulkString(bytes) | OwnedFrame::SimpleString(bytes) => Some(bytes),
        _ => None,
    }
}

fn letter_of(fields: &[&[u8]]) -> Result<DeadLetter, DeadLetterError> {
    let field = |name: &str| {
        let pair = fields.chunks_exact(2).find(|pair| pair[0] == name.as_bytes());
        let text = pair.map(|pair| String::from_utf8_lossy(pair[1]).into_owned());
        text.ok_or_else(|| unreadable(format!("field {name} is missing")))
    };
    let number = |name: &str| field(name)?.parse::<u64>().map_err(unreadable);
    Ok(DeadLetter {
        event: std::sync::Arc::new(field("event")?.parse::<Event>().map_err(unreadable)?),
        reason: field("reason")?,
        attempts: u32::try_from(number("attempts")?).map_err(unreadable)?,
        home: match field("stream") {
            Ok(stream) => Home::Stream(stream),
            Err(_) => Home::Channel(field("channel")?),
        },
        server_id: field("server_id")?,
        died_at: SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_millis(number("died_at_ms")?))
            .ok_or_else(|| unreadable("field died_at_ms is no time"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> OwnedFrame {
        OwnedFrame::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn an_entry_without_a_field_is_kept_apart_with_the_fields_name() {
        let entry = OwnedFrame::Array(vec![bulk("1-1"), OwnedFrame::Array(vec![bulk("event"), bulk("{}")])]);
        let read = entry_of(&entry).unwrap();
        assert!(read.id == "1-1" && read.letter.unwrap_err().to_string().contains("field id"));
        let empty = OwnedFrame::Array(vec![bulk("1-2"), OwnedFrame::Array(vec![])]);
        let error = entry_of(&empty).unwrap().letter.unwrap_err().to_string();
        assert!(error.contains("field event is missing"), "{error}");
        assert!(entry_of(&OwnedFrame::Integer(1)).is_none());
    }
}
