//! One value as it was given, before its setting has judged it.

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::units::{parse_duration, parse_size};

/// A value from a file, a variable or a flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// From a variable or flag: text whose type only the setting knows.
    Word(String),
    /// A TOML string.
    Text(String),
    /// A TOML integer.
    Integer(i64),
    /// A TOML boolean.
    Boolean(bool),
    /// A TOML array.
    List(Vec<Input>),
    /// Any other TOML value, described.
    Other(String),
}

/// Why a value was refused: what was found and what was due.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// The value isn't what its key takes.
    #[error("found {found}, due {due}")]
    Value {
        /// The value, described.
        found: String,
        /// What the key takes, with an example.
        due: String,
    },
    /// A whole sentence, where "found, due" would not tell enough or would show a secret.
    #[error("{0}")]
    Sentence(String),
}

impl Wrong {
    /// A refusal of the text `found`.
    pub fn text(found: &str, due: impl Into<String>) -> Self {
        Self::Value { found: quoted_short(found), due: due.into() }
    }
}

impl Input {
    /// A refusal of this value.
    pub fn wrong(&self, due: impl Into<String>) -> Wrong {
        Wrong::Value { found: self.described(), due: due.into() }
    }

    /// The text of a word or string.
    pub fn text(&self, due: &str) -> Result<&str, Wrong> {
        match self {
            Self::Word(text) | Self::Text(text) => Ok(text),
            _ => Err(self.wrong(due)),
        }
    }

    /// A text that is neither empty nor holds control characters.
    pub fn line(&self, due: &str) -> Result<&str, Wrong> {
        let text = self.text(due)?;
        if text.is_empty() || text.chars().any(char::is_control) { Err(self.wrong(due)) } else { Ok(text) }
    }

    /// One of a few words.
    pub fn one_of<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, Wrong> {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let due = format!("one of {}", names.join(", "));
        let text = self.text(&due)?;
        choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| self.wrong(due))
    }

    /// A boolean; as a word also 1 and 0.
    pub fn boolean(&self) -> Result<bool, Wrong> {
        match self {
            Self::Boolean(value) => Ok(*value),
            Self::Word(word) if word == "true" || word == "1" => Ok(true),
            Self::Word(word) if word == "false" || word == "0" => Ok(false),
            Self::Word(_) => Err(self.wrong("true or false")),
            _ => Err(self.wrong("true or false, without quotes")),
        }
    }

    /// A whole number in `range`.
    pub fn count(&self, range: RangeInclusive<usize>) -> Result<usize, Wrong> {
        let value = match self {
            Self::Integer(value) => usize::try_from(*value).ok(),
            Self::Word(word) => word.parse().ok(),
            _ => None,
        };
        value.filter(|value| range.contains(value)).ok_or_else(|| {
            let (min, max) = (range.start(), range.end());
            self.wrong(match (*max, self) {
                (usize::MAX, _) => format!("a whole number of at least {min}"),
                (_, Self::Text(_)) => format!("a whole number from {min} to {max}, without quotes"),
                _ => format!("a whole number from {min} to {max}"),
            })
        })
    }

    /// A duration with its unit, in `range`.
    pub fn duration(&self, range: RangeInclusive<Duration>) -> Result<Duration, Wrong> {
        let due = "a duration with its unit (ms, s, m, h), for example \"25s\"";
        let value = parse_duration(self.text(due)?).ok_or_else(|| self.wrong(due))?;
        let (min, max) = (super::duration_text(*range.start()), super::duration_text(*range.end()));
        if range.contains(&value) {
            Ok(value)
        } else {
            Err(self.wrong(format!("a duration from {min} to {max}")))
        }
    }

    /// A size with its unit, in `range` bytes.
    pub fn size(&self, range: RangeInclusive<usize>) -> Result<usize, Wrong> {
        let due = "a size with its unit (B, KiB, MiB, GiB), for example \"64KiB\"";
        let value = parse_size(self.text(due)?).ok_or_else(|| self.wrong(due))?;
        let (min, max) = (super::size_text(*range.start()), super::size_text(*range.end()));
        if range.contains(&value) {
            Ok(value)
        } else {
            Err(self.wrong(format!("a size from {min} to {max}")))
        }
    }

    /// Several texts: an array of strings, one string, or a word with commas.
    pub fn list(&self, due: &str) -> Result<Vec<Cow<'_, str>>, Wrong> {
        match self {
            Self::Word(word) => Ok(word.split(',').map(|part| Cow::Borrowed(part.trim())).collect()),
            Self::Text(text) => Ok(vec![Cow::Borrowed(text.as_str())]),
            Self::List(inputs) => inputs.iter().map(|input| input.text(due).map(Cow::Borrowed)).collect(),
            _ => Err(self.wrong(due)),
        }
    }

    /// The value in a sentence: `the string "x"`.
    fn described(&self) -> String {
        match self {
            Self::Word(text) => quoted_short(text),
            Self::Text(text) => format!("the string {}", quoted_short(text)),
            Self::Integer(value) => format!("the integer {value}"),
            Self::Boolean(value) => format!("the boolean {value}"),
            Self::List(_) => "an array".to_owned(),
            Self::Other(description) => description.clone(),
        }
    }
}

/// Reads an address as [`parse_address`] does, perhaps behind the name of the preset whose own it is: `star=:8090`.
pub fn parse_listener(text: &str) -> Result<(SocketAddr, Option<String>), Wrong> {
    match text.split_once('=') {
        Some((preset, address)) => Ok((parse_address(address)?, Some(preset.to_owned()))),
        None => Ok((parse_address(text)?, None)),
    }
}

/// Reads `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080`, and `:8080` for every interface (see
/// [`Config::listen`](super::Config::listen)).
pub fn parse_address(text: &str) -> Result<SocketAddr, Wrong> {
    let due = "ADDR:PORT with an IP address, for example \"127.0.0.1:8080\", or \":8080\" for all interfaces";
    let wrong = || Wrong::text(text, due);
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    // `parse` would take "+80".
    let port = if port.bytes().all(|byte| byte.is_ascii_digit()) { port.parse() } else { Err(wrong())? };
    let port: u16 = port.map_err(|_| wrong())?;
    match host {
        "" | "*" => Ok(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))),
        "localhost" => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        _ => Err(wrong()),
    }
}

/// The text that [`parse_address`] reads as `address`, `:8080` for every interface.
pub fn address_text(address: &SocketAddr) -> String {
    if address.ip() == Ipv6Addr::UNSPECIFIED { format!(":{}", address.port()) } else { address.to_string() }
}

/// Enough of a bad value to recognise it, never a screenful.
fn quoted_short(text: &str) -> String {
    const CHARS_MAX: usize = 80;
    if text.chars().count() <= CHARS_MAX {
        return format!("{text:?}");
    }
    format!("{:?}...", text.chars().take(CHARS_MAX).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_means_every_interface() {
        assert_eq!(parse_address(":8081").unwrap().to_string(), "[::]:8081");
        assert_eq!(parse_address("*:8081").unwrap().to_string(), "[::]:8081");
        assert_eq!(parse_address("localhost:80").unwrap().to_string(), "127.0.0.1:80");
        assert_eq!(parse_address("[::1]:80").unwrap().to_string(), "[::1]:80");
        assert_eq!(address_text(&parse_address(":8081").unwrap()), ":8081");
        assert_eq!(address_text(&parse_address("0.0.0.0:1").unwrap()), "0.0.0.0:1");
    }

    #[test]
    fn a_wrong_address_says_what_was_due() {
        for wrong in ["8080", "127.0.0.1", "example.org:80", ":", ":+80", ":65536", ""] {
            let message = parse_address(wrong).unwrap_err().to_string();
            assert!(message.starts_with(&format!("found {wrong:?}, due ADDR:PORT")), "{message}");
        }
    }

    #[test]
    fn a_long_wrong_value_is_cut() {
        let message = Wrong::text(&"x".repeat(500), "less").to_string();
        assert!(message.len() < 120, "{message}");
    }
}
