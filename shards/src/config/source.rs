//! Sources' subscriptions and unwrappings as text.

use std::fmt;

use super::input::Wrong;
use super::{Deliver, Subscribe};
use crate::limits::CHANNEL_BYTES_MAX;

impl Subscribe {
    /// Reads `psubscribe room:*`, `subscribe events.critical`, `subscribe room:{1}` or `stream orders:*`.
    pub fn parse(text: &str) -> Result<Self, Wrong> {
        let due =
            "\"psubscribe PREFIX*\", \"subscribe CHANNEL\", \"subscribe PREFIX{1}\" or \"stream PREFIX*\"";
        let (command, name) = text.split_once(' ').ok_or_else(|| Wrong::text(text, due))?;
        let plain = |c: char| !c.is_control() && !c.is_whitespace();
        if name.is_empty() || name.len() > CHANNEL_BYTES_MAX || !name.chars().all(plain) {
            return Err(Wrong::text(text, format!("{due}, the name without spaces")));
        }
        match command {
            "psubscribe" => {
                let (prefix, suffix) = parse_pattern(name, "subscribe")?;
                Ok(Self::Pattern { prefix, suffix })
            }
            "stream" => {
                let (prefix, suffix) = parse_pattern(name, "stream")?;
                Ok(Self::Stream { prefix, suffix })
            }
            "subscribe" => parse_channel(name),
            _ => Err(Wrong::text(text, due)),
        }
    }

    /// Whether each publication comes with a part of its channel's name, which `{1}` stands for.
    pub fn has_wildcard(&self) -> bool {
        !matches!(self, Self::Channel(_))
    }
}

/// What stands around the one `*` of `name`.
fn parse_pattern(name: &str, command: &str) -> Result<(String, String), Wrong> {
    if let Some(special) = name.chars().find(|c| "?[]\\".contains(*c)) {
        return Err(Wrong::Sentence(format!(
            "found {special:?} in the pattern {name:?}: only one '*' is understood, the rest must be literal"
        )));
    }
    match name.split('*').collect::<Vec<_>>().as_slice() {
        [prefix, suffix] => Ok(((*prefix).to_owned(), (*suffix).to_owned())),
        [_] if command == "stream" => Err(Wrong::Sentence(format!(
            "found no '*' in the streams {name:?}, due exactly one, which {{1}} stands for in the room"
        ))),
        [_] => Err(Wrong::Sentence(format!(
            "found no '*' in the pattern {name:?}: write \"subscribe {name}\" for one channel"
        ))),
        parts => Err(Wrong::Sentence(format!(
            "found {} '*' in the pattern {name:?}, due exactly one, which {{1}} stands for in the room",
            parts.len() - 1
        ))),
    }
}

fn parse_channel(name: &str) -> Result<Subscribe, Wrong> {
    if name.contains('*') {
        return Err(Wrong::Sentence(format!(
            "found '*' in the channel {name:?}: write \"psubscribe {name}\" for a pattern"
        )));
    }
    match name.split("{1}").collect::<Vec<_>>().as_slice() {
        [channel] if !channel.contains(['{', '}']) => Ok(Subscribe::Channel((*channel).to_owned())),
        [prefix, suffix] if !name.replacen("{1}", "", 1).contains(['{', '}']) => {
            Ok(Subscribe::OnDemand { prefix: (*prefix).to_owned(), suffix: (*suffix).to_owned() })
        }
        _ => Err(Wrong::Sentence(format!(
            "found the channel {name:?}, due at most one place in it, {{1}}, which stands for part of the room's name"
        ))),
    }
}

impl fmt::Display for Subscribe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pattern { prefix, suffix } => write!(f, "psubscribe {prefix}*{suffix}"),
            Self::Channel(channel) => write!(f, "subscribe {channel}"),
            Self::OnDemand { prefix, suffix } => write!(f, "subscribe {prefix}{{1}}{suffix}"),
            Self::Stream { prefix, suffix } => write!(f, "stream {prefix}*{suffix}"),
        }
    }
}

impl Deliver {
    /// Reads `raw`, `field:NAME` or `wrap`.
    pub fn parse(text: &str) -> Result<Self, Wrong> {
        match (text, text.strip_prefix("field:")) {
            ("raw", _) => Ok(Self::Raw),
            ("wrap", _) => Ok(Self::Wrap),
            ("event", _) => Ok(Self::Event),
            (_, Some(name)) if !name.is_empty() && !name.chars().any(char::is_control) => {
                Ok(Self::Field(name.to_owned()))
            }
            _ => Err(Wrong::text(text, "\"raw\", \"field:NAME\", \"wrap\" or \"event\"")),
        }
    }
}

impl fmt::Display for Deliver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raw => f.write_str("raw"),
            Self::Field(name) => write!(f, "field:{name}"),
            Self::Wrap => f.write_str("wrap"),
            Self::Event => f.write_str("event"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subscriptions_are_read_and_shown() {
        for text in [
            "psubscribe room:*",
            "psubscribe a*b",
            "psubscribe *",
            "subscribe events.critical",
            "subscribe room:{1}:x",
            "stream orders:*",
            "stream *:log",
        ] {
            assert_eq!(Subscribe::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn patterns_hold_exactly_one_star() {
        let refused = |text: &str| Subscribe::parse(text).unwrap_err().to_string();
        assert!(refused("psubscribe a*b*").contains("found 2 '*'"));
        assert!(refused("psubscribe room").contains("write \"subscribe room\""));
        for special in ["?", "[", "]", "\\"] {
            assert!(refused(&format!("psubscribe a{special}*")).contains("must be literal"), "{special}");
        }
        assert!(refused("subscribe room:*").contains("write \"psubscribe room:*\""));
        assert!(refused("stream orders").contains("found no '*' in the streams \"orders\""));
        assert!(refused("stream a*b*").contains("found 2 '*'"));
        assert!(refused("subscribe {1}{1}").contains("at most one place"));
        assert!(refused("subscribe {room}").contains("at most one place"));
        assert!(refused("ssubscribe x").contains("due \"psubscribe"));
        assert!(refused("subscribe a b").contains("without spaces"));
        assert!(refused("room:*").contains("due \"psubscribe"));
    }

    #[test]
    fn the_deliveries_are_read_and_shown() {
        for text in ["raw", "wrap", "event", "field:data"] {
            assert_eq!(Deliver::parse(text).unwrap().to_string(), text);
        }
        assert!(Deliver::parse("field:").unwrap_err().to_string().contains("due \"raw\""));
    }
}
