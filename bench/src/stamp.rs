//! The stamp at the front of every payload: which room, which number in it, when it was due to be sent.
//!
//! Fixed-width lower-case hexadecimal text, so that it survives any dialect that carries text, also inside a JSON string.

/// `cast`, 8 digits of room, 8 of sequence, 16 of time.
pub const STAMP_BYTES: usize = 4 + 8 + 8 + 16;
const MAGIC: &[u8; 4] = b"cast";

/// What a receiver checks a delivery against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Index of the room within the run.
    pub room: u32,
    /// Number of the message within its room, from 0.
    pub sequence: u32,
    /// CLOCK_MONOTONIC at which the schedule wanted the message sent, in nanoseconds: a generator that falls behind
    /// lengthens the measured latency instead of hiding it.
    pub intended_ns: u64,
}

impl Stamp {
    /// Writes the stamp over the first [`STAMP_BYTES`] of `payload`, which must be at least as long.
    pub fn write(&self, payload: &mut [u8]) {
        payload[..4].copy_from_slice(MAGIC);
        write_digits(u64::from(self.room), &mut payload[4..12]);
        write_digits(u64::from(self.sequence), &mut payload[12..20]);
        write_digits(self.intended_ns, &mut payload[20..36]);
    }

    /// Reads the stamp at the front of `payload`; `None` if there is none.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (stamp, _) = payload.split_first_chunk::<STAMP_BYTES>()?;
        if stamp[..4] != *MAGIC {
            return None;
        }
        let word = |at: usize| stamp[at..].first_chunk::<8>().and_then(|digits| read_digits(*digits));
        Some(Self {
            room: word(4)?,
            sequence: word(12)?,
            intended_ns: u64::from(word(20)?) << 32 | u64::from(word(28)?),
        })
    }
}

/// A payload of `bytes` (at least [`STAMP_BYTES`]) with room for a stamp and filler behind it.
pub fn blank_payload(bytes: usize) -> Vec<u8> {
    vec![b'x'; bytes.max(STAMP_BYTES)]
}

fn write_digits(value: u64, digits: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (place, digit) in digits.iter_mut().rev().enumerate() {
        *digit = DIGITS[(value >> (4 * place) & 0xf) as usize];
    }
}

/// Eight digits at once: a receiver on one core does this millions of times a second, and its share of the core is what
/// bounds the load it can take.
fn read_digits(digits: [u8; 8]) -> Option<u32> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let text = u64::from_be_bytes(digits);
    let is_letter = text >> 6 & ONES;
    let nibbles = (text & (0x0f * ONES)) + 9 * is_letter;
    // '0'..'9' are 0x30 + n, 'a'..'f' are 0x60 + n - 9: anything else does not survive the way back.
    if nibbles & (0xf0 * ONES) != 0 || nibbles + 0x30 * ONES + (0x57 - 0x30) * is_letter != text {
        return None;
    }
    let pairs = (nibbles | nibbles >> 4) & 0x00ff_00ff_00ff_00ff;
    let quads = (pairs | pairs >> 8) & 0x0000_ffff_0000_ffff;
    Some((quads | quads >> 16) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(room: u32, sequence: u32, intended_ns: u64, filler in 0usize..100) {
            let stamp = Stamp { room, sequence, intended_ns };
            let mut payload = blank_payload(STAMP_BYTES + filler);
            stamp.write(&mut payload);
            prop_assert_eq!(Stamp::read(&payload), Some(stamp));
        }

        #[test]
        fn digits_are_read_as_the_standard_library_reads_them(digits in proptest::array::uniform8(any::<u8>())) {
            let lower_hex = digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
            let expected = std::str::from_utf8(&digits)
                .ok()
                .filter(|_| lower_hex)
                .and_then(|text| u32::from_str_radix(text, 16).ok());
            prop_assert_eq!(read_digits(digits), expected);
        }
    }

    #[test]
    fn a_payload_without_a_stamp_is_told_apart() {
        assert_eq!(Stamp::read(b"hello"), None);
        assert_eq!(Stamp::read(&[b'0'; 64]), None);
        assert_eq!(Stamp::read(b"cast0000000g000000000000000000000000"), None);
        assert_eq!(Stamp::read(b"cast0000000A000000000000000000000000"), None);
    }

    #[test]
    fn a_stamp_needs_no_escape_in_a_json_string() {
        let mut payload = blank_payload(64);
        Stamp { room: 1, sequence: 2, intended_ns: 3 }.write(&mut payload);
        assert!(payload.iter().all(|byte| byte.is_ascii_alphanumeric()));
    }
}
