//! Where a stream stands, and what that means for somebody who has read up to some entry of it.
//!
//! **Numbers.** `entries-added` (Redis 7.0) counts every entry that was ever added to a stream, so the n-th has the number
//! n for everybody, whatever has been trimmed or deleted since. A reader counts on from where it was anchored; it can only
//! count too few, namely entries that were gone before it could read them, and an anchor at the stream's end finds out:
//! then the numbers that are missing are a gap.
//!
//! | what happens to a stream | what it means here |
//! |---|---|
//! | XTRIM, MAXLEN, MINID | nothing for who has read it; who was overtaken has a gap with its numbers |
//! | XDEL of an entry that was read | nothing live; a resume that would need it is not possible |
//! | XDEL of one that was not | a gap of as many numbers, found at the next anchor |
//! | DEL, DEL and made again, XSETID, a replica that lacked the end | a new epoch |
//! | no such key | the same as an empty stream |
//! | Redis before 7.0 | no numbers that nodes could agree on: [`AnchorError::Old`] |

use super::SessionError;
use super::entry::{EntryId, number};
use crate::resp::{Node, Value};

/// The script, for SCRIPT LOAD and EVAL; see its first lines.
pub const ANCHOR_SCRIPT: &str = include_str!("anchor.lua");

/// How long an epoch is kept that nobody looks at: clients that come back later have to begin anew.
const EPOCH_SECONDS: &[u8] = b"2592000";
/// The same for one that nothing was ever appended to: three times [`EMPTY_PROVE_INTERVAL`](crate::limits::EMPTY_PROVE_INTERVAL).
const EMPTY_EPOCH_SECONDS: &[u8] = b"300";
const _: () = assert!(crate::limits::EMPTY_PROVE_INTERVAL.as_secs() * 3 == 300, "EMPTY_EPOCH_SECONDS");

/// An entry, or the place before the first: what somebody has read up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The run of numbers.
    pub epoch: u64,
    /// The entry's number; 0 before the first.
    pub number: u64,
    /// The entry's id.
    pub id: EntryId,
}

/// The answer of the script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    /// The run of numbers.
    pub epoch: u64,
    /// Entries that were ever added: the newest one's number.
    pub added: u64,
    /// Entries that are there.
    pub length: u64,
    /// Id of the first of them.
    pub first: EntryId,
    /// Id of the newest, deleted or not.
    pub last: EntryId,
    /// The newest of those that XDEL has removed.
    pub deleted: EntryId,
}

/// Why a stream has no numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    /// Redis counts no entries.
    #[error("redis doesn't count a stream's entries: streams as sources need Redis 7.0 or later")]
    Old,
    /// Redis refused the script.
    #[error("{0}")]
    Refused(SessionError),
}

/// What an anchor means for a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// As far as can be said, all that comes after the position is there.
    GoesOn,
    /// These numbers were gone before they were read; what follows comes after the new position.
    Overtaken {
        /// First number.
        from: u64,
        /// Last number.
        to: u64,
        /// Where to go on.
        position: Position,
    },
    /// It is another stream, or was set back. Unknown how much was lost.
    Broken {
        /// Where to go on: all that is certainly new is behind it.
        position: Position,
    },
}

/// The words of the script's call: EVALSHA with `sha`, or EVAL without one. `fresh` is random; `known` is what the caller has
/// read up to.
pub fn anchor_words(sha: Option<&str>, stream: &[u8], fresh: u64, known: Option<Position>) -> Vec<Vec<u8>> {
    let script = match sha {
        Some(sha) => [b"EVALSHA".to_vec(), sha.into()],
        None => [b"EVAL".to_vec(), ANCHOR_SCRIPT.into()],
    };
    let hex = |epoch: u64| format!("{epoch:016x}").into_bytes();
    let known = match known {
        Some(known) => [known.number.to_string().into(), known.id.to_string().into(), hex(known.epoch)],
        None => [Vec::new(), Vec::new(), Vec::new()],
    };
    let keys = [b"2".to_vec(), stream.to_vec(), epoch_key(stream)];
    script
        .into_iter()
        .chain(keys)
        .chain([hex(fresh), EPOCH_SECONDS.to_vec(), EMPTY_EPOCH_SECONDS.to_vec()])
        .chain(known)
        .collect()
}

/// Where the epoch of `stream` lies: in a cluster in the same slot. (A key with `{}` or a lone `}` in it has no other keys in
/// its slot that a name could reach; a cluster refuses the script then.)
pub fn epoch_key(stream: &[u8]) -> Vec<u8> {
    // The slot is that of what stands in the first pair of braces, if anything does.
    let open = stream.iter().position(|&byte| byte == b'{');
    let tag = open.and_then(|open| stream[open + 1..].iter().position(|&byte| byte == b'}'));
    match tag {
        Some(1..) => [EPOCH_PREFIX, stream].concat(),
        _ => [EPOCH_PREFIX, b"{", stream, b"}"].concat(),
    }
}

impl Anchor {
    /// Reads the script's answer. `user` is for the ACL rule that an error names.
    ///
    /// # Errors
    /// [`AnchorError`]; `Ok(Err)` of a [`SessionError`] where the connection is of no use any more.
    pub fn read(
        answer: Node<'_, '_>,
        stream: &[u8],
        user: &str,
    ) -> Result<Result<Self, AnchorError>, SessionError> {
        if let Value::Error(text) = answer.value() {
            let name = String::from_utf8_lossy(stream).into_owned();
            let key = String::from_utf8_lossy(&epoch_key(stream)).into_owned();
            let rule = format!("~{name} ~{key} and +eval +evalsha +exists +get +set +ttl +xinfo");
            let error =
                SessionError::from_reply(&format!("the anchor of the stream {name}"), text, user, &rule);
            return match error {
                SessionError::NotPermitted { .. }
                | SessionError::Rejected { .. }
                | SessionError::Moved { .. } => Ok(Err(AnchorError::Refused(error))),
                error => Err(error),
            };
        }
        let anchor = || {
            let id = |at: usize| answer.item(at).and_then(|item| EntryId::parse(item.text()?));
            let count = |at: usize| match answer.item(at)?.value() {
                Value::Integer(count) => Some(count),
                Value::Text(text) => number(text).and_then(|count| i64::try_from(count).ok()),
                _ => None,
            };
            let epoch = answer.item(0)?.text().and_then(|text| std::str::from_utf8(text).ok())?;
            let added = count(1)?;
            if added < 0 {
                return Some(Err(AnchorError::Old));
            }
            Some(Ok(Self {
                epoch: u64::from_str_radix(epoch, 16).ok()?,
                added: added as u64,
                length: u64::try_from(count(2)?).ok()?,
                first: id(3)?,
                last: id(4)?,
                deleted: id(5)?,
            }))
        };
        anchor().ok_or_else(|| SessionError::WrongReply {
            what: "the anchor of a stream".into(),
            found: answer.value().describe(),
            expected: "an epoch, three numbers and three ids",
        })
    }

    /// Its newest entry.
    pub fn head(&self) -> Position {
        Position { epoch: self.epoch, number: self.added, id: self.last }
    }

    /// The place before the first entry that is left, where nothing was deleted behind that.
    pub fn start(&self) -> Option<Position> {
        if self.length == 0 {
            return Some(self.head());
        }
        let number = self.added.checked_sub(self.length)?;
        (self.deleted < self.first).then(|| {
            let EntryId { millis, sequence } = self.first;
            let id = match sequence.checked_sub(1) {
                Some(sequence) => EntryId { millis, sequence },
                None => EntryId { millis: millis.saturating_sub(1), sequence: u64::MAX },
            };
            Position { epoch: self.epoch, number, id }
        })
    }

    /// What it means for who has read up to `position`.
    pub fn judge(&self, position: Position) -> Judgement {
        let is_same =
            self.epoch == position.epoch && self.added >= position.number && self.last >= position.id;
        if !is_same {
            // A stream that was made anew has only entries that nobody has had.
            let start = self.start().filter(|start| self.length > 0 && start.id >= position.id);
            return Judgement::Broken { position: start.unwrap_or(self.head()) };
        }
        let overtaken = |to: Position| match to.number > position.number {
            true => Judgement::Overtaken { from: position.number + 1, to: to.number, position: to },
            false => Judgement::GoesOn,
        };
        if self.last == position.id {
            return overtaken(self.head());
        }
        match self.start() {
            Some(start) if start.id >= position.id => overtaken(start),
            // In the middle, or with deletions: at the end it will be seen.
            _ => Judgement::GoesOn,
        }
    }
}

const EPOCH_PREFIX: &[u8] = b"corecast:epoch:";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::{Frame, Protocol};

    fn id(millis: u64) -> EntryId {
        EntryId { millis, sequence: 0 }
    }

    fn at(number: u64, millis: u64) -> Position {
        Position { epoch: 1, number, id: id(millis) }
    }

    /// Ten entries with ids 1 to 10, of which all but the last `length` are trimmed.
    fn anchor(length: u64) -> Anchor {
        let first = if length == 0 { EntryId::ZERO } else { id(11 - length) };
        Anchor { epoch: 1, added: 10, length, first, last: id(10), deleted: EntryId::ZERO }
    }

    #[test]
    fn a_reader_goes_on_where_all_that_it_lacks_is_there() {
        for (length, position) in
            [(10, at(0, 0)), (10, at(4, 4)), (10, at(10, 10)), (6, at(4, 4)), (0, at(10, 10))]
        {
            assert_eq!(anchor(length).judge(position), Judgement::GoesOn, "{length} {position:?}");
        }
    }

    #[test]
    fn who_was_overtaken_by_a_trim_has_a_gap_with_numbers() {
        let Judgement::Overtaken { from, to, position } = anchor(3).judge(at(4, 4)) else {
            panic!("nothing is said")
        };
        assert_eq!((from, to, position.number), (5, 7, 7));
        assert!(position.id < id(8) && position.id > id(7), "the next is the first that is left");
        let all = Judgement::Overtaken { from: 5, to: 10, position: at(10, 10) };
        assert_eq!(anchor(0).judge(at(4, 4)), all, "everything was trimmed");
    }

    #[test]
    fn who_counted_too_few_learns_it_at_the_end() {
        let gap = Judgement::Overtaken { from: 9, to: 10, position: at(10, 10) };
        assert_eq!(anchor(10).judge(at(8, 10)), gap, "two were deleted before they were read");
        let with_deletion = Anchor { deleted: id(9), ..anchor(5) };
        assert_eq!(with_deletion.judge(at(4, 5)), Judgement::GoesOn, "it is seen at the end");
    }

    #[test]
    fn another_stream_is_a_break_and_its_entries_are_new() {
        let again =
            Anchor { epoch: 2, added: 3, length: 3, first: id(20), last: id(22), deleted: EntryId::ZERO };
        let Judgement::Broken { position } = again.judge(at(10, 10)) else { panic!("it goes on") };
        assert_eq!((position.epoch, position.number), (2, 0));
        assert!(position.id >= id(10) && position.id < id(20), "all three are read");
        let set_back =
            Anchor { epoch: 2, added: 8, length: 8, first: id(1), last: id(8), deleted: EntryId::ZERO };
        let broken = Judgement::Broken { position: Position { epoch: 2, number: 8, id: id(8) } };
        assert_eq!(set_back.judge(at(10, 10)), broken, "what is behind its end is new");
        let gone = Anchor { epoch: 2, added: 0, length: 0, first: id(0), last: id(0), deleted: id(0) };
        let broken = Judgement::Broken { position: Position { epoch: 2, number: 0, id: EntryId::ZERO } };
        assert_eq!(gone.judge(at(10, 10)), broken);
    }

    #[test]
    fn epochs_lie_in_the_slot_of_their_stream() {
        let key = |stream: &str| String::from_utf8(epoch_key(stream.as_bytes())).expect("text");
        assert_eq!(key("orders"), "corecast:epoch:{orders}");
        assert_eq!(key("a{tag}b"), "corecast:epoch:a{tag}b");
        assert_eq!(key("a{b"), "corecast:epoch:{a{b}");
    }

    fn read(answer: &str) -> Result<Result<Anchor, AnchorError>, SessionError> {
        let frame = Frame::decode(Protocol::Resp3, answer.as_bytes()).expect("a frame");
        Anchor::read(frame.node(), b"s", "default")
    }

    #[test]
    fn answers_are_read_and_errors_say_what_to_do() {
        let answer = "*6\r\n$16\r\n00000000000000ff\r\n:10\r\n:3\r\n$3\r\n8-0\r\n$4\r\n10-0\r\n$3\r\n0-0\r\n";
        let due = Anchor { epoch: 255, ..anchor(3) };
        assert_eq!(read(answer), Ok(Ok(due)));
        assert_eq!(read(&answer.replace(":10", ":-1")), Ok(Err(AnchorError::Old)));
        let refused = read("-NOPERM this user has no permissions\r\n").expect("the connection is well");
        let text = refused.expect_err("it is refused").to_string();
        assert!(text.contains("~s ~corecast:epoch:{s} and +eval"), "{text}");
        let refused = read("-WRONGTYPE Operation against a key\r\n").expect("the connection is well");
        assert!(refused.expect_err("it is refused").to_string().contains("the stream s"));
        assert!(matches!(read("-LOADING Redis is loading\r\n"), Err(SessionError::NotNow(_))));
        for nonsense in ["+OK\r\n", "*1\r\n:1\r\n", &answer.replace("10-0", "10_0")] {
            assert!(matches!(read(nonsense), Err(SessionError::WrongReply { .. })), "{nonsense}");
        }
    }
}
