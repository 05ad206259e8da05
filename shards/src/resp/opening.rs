//! Aggregates that are taken value by value.

use super::{Inbox, RespError, declared, excerpt};

/// What [`Inbox::take_opening`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// An aggregate of so many values (of a map: pairs) begins; its opening has been taken.
    Aggregate {
        /// The values are pairs.
        is_map: bool,
        /// As declared; nothing has been allocated for them.
        values: u64,
    },
    /// Something else, a null or a push among it; nothing has been taken.
    Other,
}

impl Inbox {
    /// Takes the opening of the aggregate that comes next, so that its values follow as frames of their own: an answer of
    /// any length is then read without being held.
    ///
    /// # Errors
    /// [`RespError`], after which the inbox is of no use.
    pub fn take_opening(&mut self) -> Result<Option<Opening>, RespError> {
        assert!(self.scanner.is_at_start(), "an aggregate is opened in the middle of another frame");
        let held = &self.buffer[self.start..];
        let Some(&kind) = held.first() else { return Ok(None) };
        if !b"*%~".contains(&kind) {
            return Ok(Some(Opening::Other));
        }
        let line = held.iter().take(OPENING_BYTES_MAX).position(|&byte| byte == b'\n');
        let Some(end) = line else {
            return if held.len() < OPENING_BYTES_MAX { Ok(None) } else { Err(RespError::Line) };
        };
        let text =
            held[1..end].strip_suffix(b"\r").ok_or_else(|| RespError::Length(excerpt(&held[1..end])))?;
        if text == b"-1" {
            return Ok(Some(Opening::Other));
        }
        let values = declared(text)?;
        self.start += end + 1;
        Ok(Some(Opening::Aggregate { is_map: kind == b'%', values }))
    }
}

/// Type, 18 digits and CRLF.
const OPENING_BYTES_MAX: usize = 21;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::Received;

    fn inbox(bytes: &[u8]) -> Inbox {
        let mut inbox = Inbox::new();
        let mut buffer = inbox.take_buffer();
        buffer.extend_from_slice(bytes);
        inbox.put_buffer(buffer);
        inbox
    }

    #[test]
    fn an_aggregate_is_opened_and_its_values_follow() {
        let mut inbox = inbox(b"*999999999\r\n$1\r\nx\r\n%1\r\n");
        let opened = |is_map, values| Ok(Some(Opening::Aggregate { is_map, values }));
        assert_eq!(inbox.take_opening(), opened(false, 999_999_999), "whatever it declares");
        assert_eq!(inbox.take_opening(), Ok(Some(Opening::Other)));
        assert_eq!(inbox.take_frame(), Ok(Some(Received::Frame(b"$1\r\nx\r\n"))));
        assert_eq!(inbox.take_opening(), opened(true, 1));
        assert_eq!(inbox.take_opening(), Ok(None));
    }

    #[test]
    fn half_an_opening_waits_and_a_wrong_one_is_an_error() {
        for half in [b"".as_slice(), b"*", b"*12", b"*12\r"] {
            assert_eq!(inbox(half).take_opening(), Ok(None), "{half:?}");
        }
        for other in [b"*-1\r\n".as_slice(), b"_\r\n", b"-ERR\r\n", b">1\r\n"] {
            assert_eq!(inbox(other).take_opening(), Ok(Some(Opening::Other)), "{other:?}");
        }
        for wrong in
            [b"*x\r\n".as_slice(), b"*1\n", b"*9999999999999999999999\r\n", b"*1111111111111111111111"]
        {
            assert!(inbox(wrong).take_opening().is_err(), "{wrong:?}");
        }
    }
}
