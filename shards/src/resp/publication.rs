//! The frames that come in numbers: publications, found and taken apart in one walk.
//!
//! A relay's subscribed connection brings little else, and the general way looks at each byte of a frame's structure three
//! times and allocates a vector for its elements. This one takes what Redis sends, byte for byte, and leaves everything
//! else (an incomplete frame, other kinds, other spellings, what is over a bound) to the general way, which judges it.

use crate::limits::{RESP_BULK_BYTES_MAX, RESP_FRAME_BYTES_MAX};

/// A `message`, `smessage` or `pmessage`, borrowed from the inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publication<'a> {
    /// The pattern that let it in, `None` for an exact subscription.
    pub pattern: Option<&'a [u8]>,
    /// Where it was published.
    pub channel: &'a [u8],
    /// What was published.
    pub payload: &'a [u8],
}

impl<'a> Publication<'a> {
    /// The publication that `held` begins with, and the length of its frame; `None` for anything else.
    pub fn at_front(held: &'a [u8]) -> Option<(Self, usize)> {
        // RESP2 has no pushes; there a publication is an array.
        let (b'>' | b'*', rest) = held.split_first()? else { return None };
        let (pattern, rest) = match rest.strip_prefix(MESSAGE).or_else(|| rest.strip_prefix(SHARD_MESSAGE)) {
            Some(rest) => (None, rest),
            None => {
                let (pattern, rest) = bulk(rest.strip_prefix(PATTERN_MESSAGE)?)?;
                (Some(pattern), rest)
            }
        };
        let (channel, rest) = bulk(rest)?;
        let (payload, rest) = bulk(rest)?;
        let length = held.len() - rest.len();
        (length <= RESP_FRAME_BYTES_MAX).then_some((Self { pattern, channel, payload }, length))
    }
}

/// What follows the type, up to the channel.
const MESSAGE: &[u8] = b"3\r\n$7\r\nmessage\r\n";
/// The same where it came by sharded Pub/Sub.
const SHARD_MESSAGE: &[u8] = b"3\r\n$8\r\nsmessage\r\n";
/// What follows the type, up to the pattern.
const PATTERN_MESSAGE: &[u8] = b"4\r\n$8\r\npmessage\r\n";
/// Digits of a length: [`RESP_BULK_BYTES_MAX`] has fewer.
const DIGITS_MAX: usize = 9;

const _: () =
    assert!(RESP_BULK_BYTES_MAX < 10usize.pow(DIGITS_MAX as u32), "a length would not fit its digits");

/// The bulk string at the front of `input`, and what follows it.
fn bulk(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let digits = input.strip_prefix(b"$")?;
    let mut bytes = 0;
    let mut at = 0;
    while let Some(digit) = digits.get(at).filter(|byte| byte.is_ascii_digit()) {
        bytes = bytes * 10 + usize::from(digit - b'0');
        at += 1;
        if at > DIGITS_MAX {
            return None;
        }
    }
    let body = digits[at..].strip_prefix(b"\r\n")?;
    if at == 0 || bytes > RESP_BULK_BYTES_MAX {
        return None;
    }
    let (text, rest) = body.split_at_checked(bytes)?;
    Some((text, rest.strip_prefix(b"\r\n")?))
}
