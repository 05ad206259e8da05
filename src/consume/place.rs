//! Where dead letters are, as text: `log`, `file:PATH` or `stream:KEY`.

use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::str::FromStr;

use corecast_consumer::{
    DeadLetterError, DeadLetters, FileLetters, LogLetters, RedisError, RedisTarget, StreamLetters,
};

use crate::exit::{FAILED, Failure, NO_PERMISSION, UNAVAILABLE};
use crate::redis::tls_exit;

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
    pub fn keeper(&self, redis: &RedisTarget) -> Result<Box<dyn DeadLetters>, Failure> {
        Ok(match self {
            Self::Log => Box::new(LogLetters),
            Self::File(path) => Box::new(FileLetters::open(path).map_err(failure)?),
            Self::Stream(key) => Box::new(StreamLetters::new(redis.clone(), key)),
        })
    }
}

/// The exit code that an error of a place ends with.
pub fn failure(error: impl Into<DeadLetterError>) -> Failure {
    let error = error.into();
    let code = match &error {
        DeadLetterError::Redis(RedisError::Absent { .. } | RedisError::Broken { .. }) => UNAVAILABLE,
        DeadLetterError::Redis(RedisError::Tls { error, .. }) => tls_exit(error),
        DeadLetterError::Redis(RedisError::Forbidden { .. }) => NO_PERMISSION,
        DeadLetterError::File { error, .. } if error.kind() == ErrorKind::PermissionDenied => NO_PERMISSION,
        DeadLetterError::File { error, .. } if error.kind() == ErrorKind::NotFound => UNAVAILABLE,
        _ => FAILED,
    };
    Failure { code, sentence: error.to_string() }
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
