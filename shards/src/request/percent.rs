//! Percent-decoding of paths and queries, once and strictly.

use std::borrow::Cow;

/// What a `+` stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plus {
    /// Itself, as in paths (RFC 3986).
    IsPlus,
    /// A space, as in queries that forms made (WHATWG URL, application/x-www-form-urlencoded).
    IsSpace,
}

/// Why a text has no decoded form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecodeError {
    /// `%` and something else.
    #[error("a % is followed by anything but two hexadecimal digits (a % itself is %25)")]
    HexDigitsAreDue,
    /// The octets are no text.
    #[error("the decoded octets are no UTF-8")]
    InvalidUtf8,
}

/// Decodes `text`; borrows it when there is nothing to decode. Characters beyond ASCII stand for themselves.
pub(super) fn decode(text: &str, plus: Plus) -> Result<Cow<'_, str>, DecodeError> {
    let is_literal = |octet| octet != b'%' && (plus == Plus::IsPlus || octet != b'+');
    if text.bytes().all(is_literal) {
        return Ok(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut octets = text.bytes();
    while let Some(octet) = octets.next() {
        decoded.push(match octet {
            b'%' => {
                let (high, low) = (hex_digit(octets.next())?, hex_digit(octets.next())?);
                high << 4 | low
            }
            b'+' if plus == Plus::IsSpace => b' ',
            _ => octet,
        });
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| DecodeError::InvalidUtf8)
}

fn hex_digit(octet: Option<u8>) -> Result<u8, DecodeError> {
    let digit = octet.and_then(|octet| char::from(octet).to_digit(16)).ok_or(DecodeError::HexDigitsAreDue)?;
    Ok(digit as u8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_text_is_decoded_exactly_once() {
        assert_eq!(decode("a%2520b", Plus::IsSpace).unwrap(), "a%20b");
        assert_eq!(decode("gr%C3%BC%c3%9fe", Plus::IsSpace).unwrap(), "grüße");
        assert_eq!(decode("grüße%21", Plus::IsSpace).unwrap(), "grüße!");
        assert_eq!(decode("a+b%2B", Plus::IsSpace).unwrap(), "a b+");
        assert_eq!(decode("a+b%2B", Plus::IsPlus).unwrap(), "a+b+");
    }

    #[test]
    fn what_needs_no_decoding_is_borrowed() {
        assert!(matches!(decode("lobby", Plus::IsSpace), Ok(Cow::Borrowed("lobby"))));
        assert!(matches!(decode("a+b", Plus::IsPlus), Ok(Cow::Borrowed("a+b"))));
    }

    #[test]
    fn half_an_escape_and_octets_that_are_no_text_are_refused() {
        for text in ["%", "a%2", "%zz", "%+1", "%2ü"] {
            assert_eq!(decode(text, Plus::IsSpace), Err(DecodeError::HexDigitsAreDue), "{text}");
        }
        for text in ["%ff", "%C3", "%ED%A0%80", "%C0%80"] {
            assert_eq!(decode(text, Plus::IsSpace), Err(DecodeError::InvalidUtf8), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back(text in any::<String>()) {
            let encoded: String = text.bytes().map(|octet| format!("%{octet:02X}")).collect();
            prop_assert_eq!(decode(&encoded, Plus::IsSpace).unwrap(), text);
        }

        #[test]
        fn any_text_is_decoded_or_refused(text in "[%+a-fü0-9]{0,20}") {
            if let Ok(decoded) = decode(&text, Plus::IsSpace) {
                prop_assert!(decoded.len() <= text.len());
            }
        }
    }
}
