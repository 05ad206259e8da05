//! Numbered payloads, and what a receiver can tell from their numbers.

use std::collections::BTreeMap;

/// `PUBLISHER:SEQUENCE:` and padding up to `bytes` in all. Sequences begin at 1.
pub fn payload(publisher: char, sequence: u64, bytes: usize) -> Vec<u8> {
    let mut payload = format!("{publisher}:{sequence}:").into_bytes();
    payload.resize(bytes.max(payload.len()), b'.');
    payload
}

/// Publisher and sequence of a payload, bare or as the text `data` of the JSON dialect; `None` for any other message.
pub fn parse(payload: &[u8]) -> Option<(char, u64)> {
    let text = |part: &[u8]| std::str::from_utf8(part).ok().map(str::to_owned);
    let payload = if payload.first() == Some(&b'{') { data_of(payload)? } else { payload };
    let mut parts = payload.splitn(3, |&byte| byte == b':');
    let publisher = text(parts.next()?)?.parse().ok()?;
    let sequence = text(parts.next()?)?.parse().ok()?;
    parts.next().map(|_| (publisher, sequence))
}

/// From the first character of the text `data` on: numbered payloads have nothing to escape.
fn data_of(frame: &[u8]) -> Option<&[u8]> {
    let key = br#""data":""#;
    let at = frame.windows(key.len()).position(|window| window == key)?;
    Some(&frame[at + key.len()..])
}

/// What one receiver got of each publisher.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger(BTreeMap<char, Tally>);

/// What one receiver got of one publisher.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Sequence of the first message; 0 before it.
    pub first: u64,
    /// Highest sequence.
    pub last: u64,
    /// Messages.
    pub received: u64,
    /// Messages whose sequence was not above all before: repeated or overtaken.
    pub backwards: u64,
    /// Ranges (from, to) that were skipped after the first message, both ends missing.
    pub holes: Vec<(u64, u64)>,
}

impl Ledger {
    pub fn book(&mut self, publisher: char, sequence: u64) {
        self.0.entry(publisher).or_default().book(sequence);
    }

    /// What came of `publisher`; an empty tally when nothing did.
    pub fn of(&self, publisher: char) -> Tally {
        self.0.get(&publisher).cloned().unwrap_or_default()
    }
}

impl Tally {
    fn book(&mut self, sequence: u64) {
        self.received += 1;
        if self.received == 1 {
            self.first = sequence;
        } else if sequence <= self.last {
            self.backwards += 1;
        } else if sequence > self.last + 1 {
            self.holes.push((self.last + 1, sequence - 1));
        }
        self.last = self.last.max(sequence);
    }

    /// Messages skipped between the first and the last.
    pub fn missing(&self) -> u64 {
        self.holes.iter().map(|(from, to)| to - from + 1).sum()
    }

    /// Everything from `first` to `last`, once and in order.
    pub fn is_exactly(&self, first: u64, last: u64) -> bool {
        (self.first, self.last, self.received, self.backwards) == (first, last, last + 1 - first, 0)
    }
}
