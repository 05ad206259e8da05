//! Where dead letters are, as text: `log`, `file:PATH` or `stream:KEY`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context;
use corecast_consumer::{DeadLetters, FileLetters, LogLetters, RedisTarget, StreamLetters};

/// A place of dead letters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Place {
    #[default]
    Log,
    File(PathBuf),
    /// A stream of the Redis in use.
    Stream(String),
}

impl Place {
    /// What keeps letters there.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn keeper(&self, redis: &RedisTarget) -> anyhow::Result<Box<dyn DeadLetters>> {
        Ok(match self {
            Self::Log => Box::new(LogLetters),
            Self::File(path) => Box::new(FileLetters::open(path).context("--dead-letters")?),
            Self::Stream(key) => Box::new(StreamLetters::new(redis.clone(), key)),
        })
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "log" => Ok(Self::Log),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("stream", key)) if !key.is_empty() => Ok(Self::Stream(key.to_owned())),
            _ => Err(format!("found {text:?}, due log, file:PATH or stream:KEY")),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log => f.write_str("log"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Stream(key) => write!(f, "stream:{key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_as_it_is_shown() {
        for text in ["log", "file:/var/lib/dead.jsonl", "file:a:b", "stream:dead:letters"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for text in ["", "file:", "stream:", "logs", "/var/lib/dead.jsonl", "log:x"] {
            assert!(
                text.parse::<Place>().unwrap_err().contains("due log, file:PATH or stream:KEY"),
                "{text}"
            );
        }
    }
}
