//! What is appended to a stream: the form of an entry, and the script that appends, trims and publishes in one step.
//!
//! An entry has the field [`DATA`] with the payload, byte for byte, and [`KIND`] where the payload is a JSON object with such
//! a member. Readers ask for the first and ignore what else there is.

use crate::envelope;

/// Field of an entry that holds the payload.
pub const DATA: &str = "data";
/// Field of an entry that names the payload's type; for filters and people.
pub const KIND: &str = "type";

/// The script, for SCRIPT LOAD and EVAL; see its first lines. Redis 6.2 or later.
pub const SCRIPT: &str = include_str!("append.lua");

/// How much a stream keeps. Both bounds are about: Redis trims whole nodes of its tree (100 entries by default).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trim {
    /// Entries.
    pub entries: Option<u64>,
    /// Milliseconds, by the clock of Redis.
    pub millis: Option<u64>,
}

/// One append.
#[derive(Debug, Clone, Copy)]
pub struct Append<'a> {
    /// Key of the stream.
    pub stream: &'a [u8],
    /// What is appended.
    pub payload: &'a [u8],
    /// Where the payload is published too.
    pub channel: Option<&'a [u8]>,
    /// What the stream keeps afterwards.
    pub trim: Trim,
}

impl Append<'_> {
    /// The command: EVALSHA with `sha`, or EVAL without one, which Redis then knows too.
    pub fn words(&self, sha: Option<&str>) -> [Vec<u8>; 9] {
        let number = |number: Option<u64>| number.map_or(Vec::new(), |number| number.to_string().into());
        let kind = match envelope::member_kind(self.payload) {
            Some(kind) => kind.as_bytes().to_vec(),
            None => Vec::new(),
        };
        [
            if sha.is_some() { b"EVALSHA".to_vec() } else { b"EVAL".to_vec() },
            sha.unwrap_or(SCRIPT).into(),
            b"1".to_vec(),
            self.stream.to_vec(),
            self.payload.to_vec(),
            kind,
            self.channel.unwrap_or_default().to_vec(),
            number(self.trim.entries),
            number(self.trim.millis),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(append: Append<'_>, sha: Option<&str>) -> Vec<String> {
        append.words(sha).into_iter().map(|word| String::from_utf8(word).expect("text")).collect()
    }

    #[test]
    fn a_command_says_what_is_wanted_and_leaves_the_rest_empty() {
        let append = Append { stream: b"s", payload: b"hello", channel: None, trim: Trim::default() };
        assert_eq!(words(append, None), ["EVAL", SCRIPT, "1", "s", "hello", "", "", "", ""]);
        let all = Append {
            payload: br#"{"type":"order.paid"}"#,
            channel: Some(b"c"),
            trim: Trim { entries: Some(1000), millis: Some(60_000) },
            ..append
        };
        let due =
            ["EVALSHA", "abc", "1", "s", r#"{"type":"order.paid"}"#, "order.paid", "c", "1000", "60000"];
        assert_eq!(words(all, Some("abc")), due);
    }

    #[test]
    fn the_script_and_the_form_agree() {
        for field in [DATA, KIND] {
            assert!(SCRIPT.contains(&format!("'{field}', ")), "{field}");
        }
    }
}
