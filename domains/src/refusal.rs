//! Why a message is no event: the field, what was expected of it, what was found.

use std::borrow::Cow;
use std::fmt;

use crate::limits::{EXPECTED_CHARS_MAX, FIELD_CHARS_MAX, FOUND_CHARS_MAX};

/// What [`Refusal::found`] says of a field that isn't there.
pub const NOTHING: &str = "nothing";

/// A message that goes nowhere, and why. Its `Display` is one sentence, `price: found "1", due a finite number above 0`.
///
/// Each part is shortened to its bound in [`limits`](crate::limits), so a refusal never repeats a message of megabytes,
/// and holds no control characters, so it can stand in a line of a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Refusal {
    /// Path of the field, `price` or `payload.values[2]`; empty for the message as a whole.
    pub field: String,
    /// What is due there.
    pub expected: String,
    /// JSON text of what is there, or [`NOTHING`].
    pub found: String,
}

impl Refusal {
    /// Shortens each part to its bound without copying the rest.
    pub fn new(field: &str, expected: &str, found: &str) -> Self {
        Self {
            field: printable(field, FIELD_CHARS_MAX).into_owned(),
            expected: printable(expected, EXPECTED_CHARS_MAX).into_owned(),
            found: printable(found, FOUND_CHARS_MAX).into_owned(),
        }
    }

    /// The same within the bounds, whoever filled in the fields.
    pub(crate) fn bounded(self) -> Self {
        Self::new(&self.field, &self.expected, &self.found)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "found {}, due {}", self.found, self.expected)
    }
}

/// At most `chars_max` characters of `text`, the last one `…` where some are left out; U+FFFD for control characters.
fn printable(text: &str, chars_max: usize) -> Cow<'_, str> {
    let cut = text.char_indices().nth(chars_max).map(|_| {
        let kept = text.char_indices().nth(chars_max - 1).map_or(0, |(at, _)| at);
        &text[..kept]
    });
    let kept = cut.unwrap_or(text);
    if cut.is_none() && !kept.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut shown: String = kept
        .chars()
        .map(|found| if found.is_control() { char::REPLACEMENT_CHARACTER } else { found })
        .collect();
    if cut.is_some() {
        shown.push('…');
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_one_sentence_with_field_found_and_due() {
        let refusal = Refusal::new("price", "a number", "\"1\"");
        assert_eq!(refusal.to_string(), "price: found \"1\", due a number");
    }

    #[test]
    fn a_refusal_of_the_whole_message_names_no_field() {
        assert_eq!(Refusal::new("", "a JSON object", "[]").to_string(), "found [], due a JSON object");
    }

    #[test]
    fn every_part_is_cut_at_a_character_and_says_so() {
        let long = "ä".repeat(1 << 20);
        let refusal = Refusal::new(&long, &long, &long);
        assert_eq!(refusal.field.chars().count(), FIELD_CHARS_MAX);
        assert_eq!(refusal.expected.chars().count(), EXPECTED_CHARS_MAX);
        assert_eq!(refusal.found, format!("{}…", "ä".repeat(FOUND_CHARS_MAX - 1)));
    }

    #[test]
    fn a_part_that_just_fits_is_whole() {
        let found = "x".repeat(FOUND_CHARS_MAX);
        assert_eq!(Refusal::new("", "", &found).found, found);
    }

    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(
            Refusal::new("a\nb", "", "[\r\n1]").to_string(),
            "a\u{fffd}b: found [\u{fffd}\u{fffd}1], due "
        );
    }
}
