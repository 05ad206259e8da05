//! The streams that feed rooms: a reader, a recorder, and of each stream the number that its newest entry has here.
//!
//! A stream that is followed is anchored first: its numbers begin with those of Redis. From then on entries are counted as
//! they come. What can go wrong with that is looked for where it can be told for certain:
//!
//! * When the connections are new, before anything is read: what was trimmed meanwhile is a gap with its numbers, another
//!   stream in its place a break with a new epoch.
//! * While reading, each [`PROVE_INTERVAL`] for a stream that had entries: the entry that was Redis' newest has one number here
//!   and there, or what is missing was gone before it could be read. It is found among those that were handed out while
//!   the question was under way, or is still to come, and is then given the number that Redis gave it.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use foldhash::{HashMap, HashMapExt};

use super::reader::{Reader, ReaderCounters, ReaderEvent};
use super::recorder::{Recorder, RecorderEvent};
use super::{
    Anchor, AnchorError, Append, EntryId, History, HistoryError, Judgement, Past, Position, PublishError,
    Refused, SessionError,
};
use crate::config::RedisTarget;
use crate::limits::{EMPTY_PROVE_INTERVAL, PROVE_BATCH_MAX, PROVE_INTERVAL};
use crate::resp::{Inbox, Received};

/// Both sessions. One value per link to Redis, for its whole life.
#[derive(Debug)]
pub struct Streams {
    reader: Reader,
    recorder: Recorder,
    followed: HashMap<Rc<[u8]>, Followed>,
    is_up: bool,
}

/// What happened. Texts are borrowed until the next call.
#[derive(Debug, PartialEq, Eq)]
pub enum StreamsEvent<'s> {
    /// A stream is followed: what comes has the numbers after this position. Said again after a break that lost nothing.
    Anchored {
        /// The stream's key.
        stream: Rc<[u8]>,
        /// The newest entry.
        position: Position,
    },
    /// An entry.
    Entry {
        /// The stream's key.
        stream: &'s [u8],
        /// Its number. Those between the one before and this were gone before they could be read.
        number: u64,
        /// What it is as a publication; `None` where that is too long.
        payload: Option<&'s [u8]>,
    },
    /// These numbers are gone; what comes has the numbers after them.
    Gap {
        /// The stream's key.
        stream: Rc<[u8]>,
        /// First number.
        from: u64,
        /// The last of them, after which it goes on.
        position: Position,
    },
    /// It is another stream, or was set back: what comes has the numbers after this position, of a new epoch.
    Broken {
        /// The stream's key.
        stream: Rc<[u8]>,
        /// Where it goes on.
        position: Position,
    },
    /// A stream can't be followed. It isn't any more.
    Refused {
        /// The stream's key.
        stream: Rc<[u8]>,
        /// Found, and what to do.
        reason: AnchorError,
    },
    /// Answer to [`Streams::recall`].
    Recalled {
        /// As it was given.
        token: u64,
        /// As much as there is.
        result: Result<Past, HistoryError>,
    },
    /// Answer to [`Streams::append`].
    Appended {
        /// As it was given.
        token: u64,
        /// The entry's id, or why there is none.
        result: Result<EntryId, PublishError>,
    },
}

#[derive(Debug, Default)]
struct Followed {
    /// The newest entry that was handed out, or where it was anchored.
    position: Option<Position>,
    /// The reader has it.
    is_live: bool,
    /// An anchor is on its way.
    is_asked: bool,
    /// When its numbers are to be compared with those of Redis.
    prove_at: Option<Instant>,
    /// What has been handed out since the anchor on its way was asked for, the position then first.
    passed: VecDeque<(EntryId, u64)>,
    /// An entry that is still to come, and the number that it has in Redis.
    expected: Option<(EntryId, u64)>,
}

impl Followed {
    /// Counts an entry that is handed out.
    fn count(&mut self, id: EntryId, now: Instant) -> Option<u64> {
        let position = self.position.as_mut()?;
        position.number += 1;
        position.id = id;
        // Later than expected where that one was gone too.
        if let Some((_, number)) = self.expected.take_if(|(expected, _)| *expected == id) {
            position.number = position.number.max(number);
        } else if let Some((_, number)) = self.expected.take_if(|(expected, _)| *expected < id) {
            position.number = position.number.max(number + 1);
        }
        if self.is_asked && self.passed.len() < PASSED_MAX {
            self.passed.push_back((id, position.number));
        }
        let prove_at = now + PROVE_INTERVAL;
        self.prove_at = Some(self.prove_at.map_or(prove_at, |at| at.min(prove_at)));
        Some(position.number)
    }

    /// What an anchor says of a position that entries have overtaken, or that is not yet there.
    fn compare(&mut self, here: Position, anchor: &Anchor, now: Instant) -> Option<Judgement> {
        self.prove_at = Some(now + PROVE_INTERVAL);
        if anchor.last > here.id {
            self.expected = Some((anchor.last, anchor.added));
            return None;
        }
        let (_, number) = self.passed.iter().find(|(id, _)| *id == anchor.last)?;
        let missing = anchor.added.checked_sub(*number).filter(|missing| *missing > 0)?;
        let position = Position { number: here.number + missing, ..here };
        Some(Judgement::Overtaken { from: here.number + 1, to: position.number, position })
    }
}

impl Followed {
    /// Where it goes on in another stream whose first entries have been handed out already, under the old numbers: those that
    /// the anchor doesn't know yet count on from it, and none is handed out twice. `None`: too many to be known.
    fn recount(&self, here: Position, anchor: &Anchor) -> Option<Position> {
        let later = self.passed.iter().filter(|(id, _)| *id > anchor.last).count() as u64;
        let number = anchor.added + later;
        (self.passed.len() < PASSED_MAX).then_some(Position { epoch: anchor.epoch, number, id: here.id })
    }
}

/// Entries of one stream that are remembered while an anchor is on its way: as many as come in about ten milliseconds of a
/// very busy one. An answer that is later proves nothing, and the next may.
const PASSED_MAX: usize = 1024;

impl Streams {
    /// Sessions that aren't connected yet.
    pub fn new(target: &RedisTarget) -> Self {
        Self {
            reader: Reader::new(target),
            recorder: Recorder::new(target),
            followed: HashMap::new(),
            is_up: false,
        }
    }

    /// Begins on two fresh connections.
    pub fn begin(&mut self) {
        self.reader.begin();
        self.recorder.begin();
    }

    /// Forgets the connections; what is followed stays, and is anchored anew before it is read on. Returns what has no
    /// answer now.
    pub fn end(&mut self) -> Vec<StreamsEvent<'static>> {
        self.is_up = false;
        for (stream, followed) in &mut self.followed {
            (followed.is_live, followed.is_asked, followed.prove_at) = (false, false, None);
            (followed.passed, followed.expected) = (VecDeque::new(), None);
            self.reader.unfollow(stream);
        }
        self.reader.end();
        self.recorder.end().into_iter().filter_map(answered).collect()
    }

    /// Whether something is under way whose deadline [`poll`](Self::poll) has not seen yet.
    pub fn is_unwatched(&self) -> bool {
        self.recorder.is_unwatched()
    }

    /// Appends whose answer is due.
    pub fn appends_inflight(&self) -> usize {
        self.recorder.appends_inflight()
    }

    /// What the reader has met with.
    pub fn counters(&self) -> ReaderCounters {
        self.reader.counters()
    }

    /// Whether streams are anchored and read, as far as they have been asked for.
    pub fn is_up(&self) -> bool {
        self.is_up
    }

    /// The reader's session, for its output.
    pub fn take_reader_output(&mut self) -> bytes::BytesMut {
        self.reader.take_output()
    }

    /// The recorder's.
    pub fn take_recorder_output(&mut self) -> bytes::BytesMut {
        self.recorder.take_output()
    }

    /// Follows a stream; [`Anchored`](StreamsEvent::Anchored) or [`Refused`](StreamsEvent::Refused) follows, now or on a later
    /// connection. `fresh` is random.
    pub fn follow(&mut self, stream: &[u8], fresh: u64) {
        if !self.followed.contains_key(stream) {
            self.followed.insert(stream.into(), Followed::default());
            self.ask(stream, fresh);
        }
    }

    /// Doesn't follow a stream any more.
    pub fn unfollow(&mut self, stream: &[u8]) {
        self.followed.remove(stream);
        self.reader.unfollow(stream);
    }

    /// The newest entry of a stream that was handed out.
    pub fn position(&self, stream: &[u8]) -> Option<Position> {
        self.followed.get(stream)?.position
    }

    /// The same, if what is handed out next comes after it for certain.
    pub fn anchored_at(&self, stream: &[u8]) -> Option<Position> {
        self.followed.get(stream).filter(|followed| followed.is_live)?.position
    }

    /// Reads what comes after the number `after` up to the newest that was handed out;
    /// [`Recalled`](StreamsEvent::Recalled) answers.
    ///
    /// # Errors
    /// [`HistoryError`], where it is known at once that it can't be given; then there is no answer.
    pub fn recall(
        &mut self,
        token: u64,
        stream: &[u8],
        after: u64,
        entries_max: u64,
        bytes_max: usize,
        fresh: u64,
    ) -> Result<(), HistoryError> {
        let head = self.position(stream).ok_or(HistoryError::Away)?;
        let history = History::new(after, head, entries_max, bytes_max)?;
        self.recorder.recall(token, stream, history, fresh).map_err(|_| HistoryError::Away)
    }

    /// Appends an entry; [`Appended`](StreamsEvent::Appended) answers. It comes as an entry too where its stream is followed.
    ///
    /// # Errors
    /// [`Refused`]; then there is no answer.
    pub fn append(&mut self, append: &Append<'_>, token: u64) -> Result<(), Refused> {
        self.recorder.append(append, token)
    }

    /// Asks for what is due. To be called after each batch of bytes, and at [`next_deadline`](Self::next_deadline).
    ///
    /// # Errors
    /// The connections are of no use any more.
    pub fn poll(&mut self, now: Instant, fresh: u64) -> Result<(), SessionError> {
        self.reader.poll(now)?;
        self.recorder.poll(now)?;
        if !self.is_up && self.reader.is_ready() && self.recorder.is_ready() {
            self.is_up = true;
            let streams: Vec<Rc<[u8]>> = self.followed.keys().cloned().collect();
            streams.iter().for_each(|stream| self.ask(stream, fresh));
        }
        if let Some(client) = self.reader.take_unblock(now) {
            self.recorder.unblock(client);
        }
        let is_due = |followed: &Followed| {
            followed.is_live && !followed.is_asked && followed.prove_at.is_some_and(|at| at <= now)
        };
        let due = self.followed.iter().filter(|(_, followed)| is_due(followed));
        let due: Vec<Rc<[u8]>> = due.map(|(stream, _)| stream.clone()).take(PROVE_BATCH_MAX).collect();
        due.iter().for_each(|stream| self.ask(stream, fresh));
        Ok(())
    }

    /// When [`poll`](Self::poll) has something to do without anything that came.
    pub fn next_deadline(&self) -> Option<Instant> {
        // Whose answer is on its way is not due again before it has come.
        let due = self.followed.values().filter(|followed| followed.is_live && !followed.is_asked);
        let proofs = due.filter_map(|followed| followed.prove_at);
        let late =
            [self.reader.next_deadline(), self.recorder.next_deadline(), self.reader.unblock_deadline()];
        late.into_iter().flatten().chain(proofs).min()
    }

    /// The next thing that the reader's connection brought; `None` when more bytes are due.
    ///
    /// # Errors
    /// The connections are of no use any more.
    pub fn take_entry(
        &mut self,
        inbox: &mut Inbox,
        now: Instant,
    ) -> Result<Option<StreamsEvent<'_>>, SessionError> {
        // In turns: what the reader lends can't be given away from inside of a loop that may call it again.
        let stream = loop {
            match self.reader.take_event(inbox, now)? {
                None => return Ok(None),
                Some(ReaderEvent::Answered) => {}
                Some(ReaderEvent::Entry { .. }) => break None,
                Some(ReaderEvent::Refused { stream, reason }) => break Some((stream, reason)),
            }
        };
        if let Some((stream, reason)) = stream {
            self.followed.remove(&stream);
            return Ok(Some(StreamsEvent::Refused { stream, reason: AnchorError::Refused(reason) }));
        }
        let ReaderEvent::Entry { stream, id, payload } = self.reader.last_entry() else { return Ok(None) };
        let followed = self.followed.get_mut(stream).expect("the reader follows what is followed");
        let number = followed.count(id, now).expect("what is read has been anchored");
        Ok(Some(StreamsEvent::Entry { stream, number, payload }))
    }

    /// Takes a frame of the recorder's connection.
    ///
    /// # Errors
    /// The connections are of no use any more.
    pub fn handle_record(
        &mut self,
        received: Received<'_>,
        now: Instant,
        fresh: u64,
    ) -> Result<Option<StreamsEvent<'static>>, SessionError> {
        let event = match received {
            Received::Frame(bytes) => self.recorder.handle_frame(bytes, fresh)?,
            Received::TooBig { bytes } => self.recorder.handle_too_big(bytes, fresh)?,
        };
        match event {
            None => Ok(None),
            Some(RecorderEvent::Anchored { stream, result }) => Ok(self.anchored(&stream, result, now)),
            Some(event) => Ok(answered(event)),
        }
    }

    /// Asks where a stream stands, unless that is being asked.
    fn ask(&mut self, stream: &[u8], fresh: u64) {
        let Some(followed) = self.followed.get_mut(stream).filter(|followed| !followed.is_asked) else {
            return;
        };
        followed.is_asked = self.is_up && self.recorder.anchor(stream, fresh, followed.position).is_ok();
        followed.passed = followed.position.iter().map(|at| (at.id, at.number)).collect();
    }

    fn anchored(
        &mut self,
        stream: &[u8],
        result: Result<Anchor, AnchorError>,
        now: Instant,
    ) -> Option<StreamsEvent<'static>> {
        let followed = self.followed.get_mut(stream)?;
        followed.is_asked = false;
        let stream: Rc<[u8]> = stream.into();
        let anchor = match result {
            Ok(anchor) => anchor,
            Err(reason) => {
                self.unfollow(&stream);
                return Some(StreamsEvent::Refused { stream, reason });
            }
        };
        let was_live = std::mem::replace(&mut followed.is_live, true);
        let here = followed.position;
        let judgement = match here {
            None => Judgement::GoesOn,
            Some(here) if was_live && here.epoch == anchor.epoch && here.id != anchor.last => {
                let Some(judgement) = followed.compare(here, &anchor, now) else {
                    followed.passed.clear();
                    return None;
                };
                judgement
            }
            Some(here) if was_live && here.epoch != anchor.epoch && here.id > anchor.last => {
                match followed.recount(here, &anchor) {
                    Some(position) => Judgement::Broken { position },
                    None => {
                        followed.prove_at = Some(now);
                        return None;
                    }
                }
            }
            Some(here) => anchor.judge(here),
        };
        let is_at_end = here.is_none_or(|here| here.id == anchor.last);
        (followed.passed, followed.expected) = (VecDeque::new(), None);
        let (position, event) = match judgement {
            Judgement::GoesOn => {
                let position = here.unwrap_or(anchor.head());
                (position, (!was_live).then_some(StreamsEvent::Anchored { stream: stream.clone(), position }))
            }
            Judgement::Overtaken { from, position, .. } => {
                (position, Some(StreamsEvent::Gap { stream: stream.clone(), from, position }))
            }
            Judgement::Broken { position } => {
                (position, Some(StreamsEvent::Broken { stream: stream.clone(), position }))
            }
        };
        followed.position = Some(position);
        followed.prove_at = match position.number {
            0 => Some(now + EMPTY_PROVE_INTERVAL),
            _ => followed.prove_at.filter(|_| !is_at_end),
        };
        self.reader.follow(&stream, position.id);
        event
    }
}

/// What the recorder says to whoever asked.
fn answered(event: RecorderEvent) -> Option<StreamsEvent<'static>> {
    match event {
        RecorderEvent::Anchored { .. } => None,
        RecorderEvent::Recalled { token, result } => Some(StreamsEvent::Recalled { token, result }),
        RecorderEvent::Appended { token, result } => Some(StreamsEvent::Appended { token, result }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::tests::{commands, target};

    /// Both sessions, shaken hands, and what is received on their connections.
    struct Link {
        streams: Streams,
        entries: Inbox,
        now: Instant,
    }

    impl Link {
        fn up() -> Self {
            let (streams, now) = (Streams::new(&target(None, None, 0)), Instant::now());
            let mut link = Self { streams, entries: Inbox::new(), now };
            link.connect();
            link
        }

        fn connect(&mut self) {
            self.entries = Inbox::new();
            self.streams.begin();
            assert_eq!(self.read(b"%1\r\n+proto\r\n:3\r\n:77\r\n"), None);
            for reply in ["%1\r\n+proto\r\n:3\r\n", "+aaaa\r\n", "+bbbb\r\n"] {
                assert_eq!(self.record(reply), None);
            }
            self.said();
            self.poll();
            assert!(self.streams.is_up());
        }

        fn poll(&mut self) {
            self.streams.poll(self.now, 1).expect("nothing is late");
        }

        /// What both sessions say, the recorder's by their first words.
        fn said(&mut self) -> Vec<String> {
            let mut all = commands(&self.streams.take_reader_output());
            let records = commands(&self.streams.take_recorder_output());
            all.extend(records.iter().map(|words| words.split(' ').take(4).collect::<Vec<_>>().join(" ")));
            all
        }

        /// An entry's number, if that is what comes.
        fn read(&mut self, bytes: &[u8]) -> Option<u64> {
            let mut buffer = self.entries.take_buffer();
            buffer.extend_from_slice(bytes);
            self.entries.put_buffer(buffer);
            match self.streams.take_entry(&mut self.entries, self.now).expect("the session goes on")? {
                StreamsEvent::Entry { number, .. } => Some(number),
                other => panic!("{other:?}"),
            }
        }

        fn record(&mut self, reply: &str) -> Option<StreamsEvent<'static>> {
            let received = Received::Frame(reply.as_bytes());
            self.streams.handle_record(received, self.now, 1).expect("the session goes on")
        }

        /// The answer to a question where the stream stands: its newest entry's number and id.
        fn stands(&mut self, epoch: u64, added: u64, last: u64) -> Option<StreamsEvent<'static>> {
            let id = |id: u64| format!("+{id}-0\r\n");
            let ids = [id(1), id(last), id(0)].concat();
            self.record(&format!("*6\r\n+{epoch:016x}\r\n:{added}\r\n:{added}\r\n{ids}"))
        }
    }

    fn entry(id: u64) -> Vec<u8> {
        format!("%1\r\n+s\r\n*1\r\n*2\r\n+{id}-0\r\n*2\r\n+data\r\n+x\r\n").into_bytes()
    }

    fn anchored(number: u64, id: u64) -> Option<StreamsEvent<'static>> {
        let id = EntryId { millis: id, sequence: 0 };
        let position = Position { epoch: 1, number, id };
        Some(StreamsEvent::Anchored { stream: b"s".as_slice().into(), position })
    }

    #[test]
    fn a_stream_is_anchored_before_it_is_read_on_every_connection() {
        let mut link = Link::up();
        link.streams.follow(b"s", 1);
        assert_eq!(link.said(), ["EVALSHA aaaa 2 s"]);
        assert_eq!(link.stands(1, 5, 50), anchored(5, 50));
        link.poll();
        assert_eq!(link.said(), ["XREAD COUNT 128 BLOCK 1000 STREAMS s 50-0"]);
        assert_eq!(link.read(&entry(60)), Some(6));
        assert_eq!(link.streams.end(), []);
        link.connect();
        assert_eq!(link.said(), ["EVALSHA aaaa 2 s"], "nothing is read yet");
        assert_eq!(link.stands(1, 6, 60), anchored(6, 60));
        link.poll();
        assert_eq!(link.said(), ["XREAD COUNT 128 BLOCK 1000 STREAMS s 60-0"]);
    }

    #[test]
    fn numbers_are_compared_where_redis_counted_whatever_is_on_its_way() {
        let mut link = Link::up();
        link.streams.follow(b"s", 1);
        link.stands(1, 5, 50);
        link.poll();
        assert_eq!(link.read(&entry(60)), Some(6));
        link.said();
        link.now += PROVE_INTERVAL;
        link.poll();
        assert_eq!(link.said(), ["EVALSHA aaaa 2 s"]);
        // Redis answered before this entry, which came on the other connection; or has one more, which is on its way.
        assert_eq!((link.read(&entry(70)), link.stands(1, 6, 60)), (Some(7), None));
        link.now += PROVE_INTERVAL;
        link.poll();
        assert_eq!((link.stands(1, 9, 80), link.read(&entry(80))), (None, Some(9)), "one was gone");
        link.now += PROVE_INTERVAL;
        link.poll();
        assert_eq!((link.stands(1, 11, 85), link.read(&entry(90))), (None, Some(12)), "two, and the newest");
        link.now += PROVE_INTERVAL;
        link.poll();
        assert_eq!(link.read(&entry(95)), Some(13));
        let gap = |from, number, millis| {
            let position = Position { epoch: 1, number, id: EntryId { millis, sequence: 0 } };
            Some(StreamsEvent::Gap { stream: b"s".as_slice().into(), from, position })
        };
        assert_eq!(link.stands(1, 13, 90), gap(14, 14, 95), "it was one more then already");
        link.now += PROVE_INTERVAL;
        link.poll();
        assert_eq!(link.stands(1, 15, 95), gap(15, 15, 95), "at the end too");
        assert_eq!(link.read(&entry(96)), Some(16));
        link.now += PROVE_INTERVAL;
        link.poll();
        link.said();
        assert!(link.streams.next_deadline().is_some_and(|at| at > link.now), "what is asked is not due");
        assert_eq!(link.stands(1, 16, 96), None);
        link.now += PROVE_INTERVAL * 9;
        link.streams.reader.poll(link.now - PROVE_INTERVAL * 9).expect("nothing is late");
        assert_eq!(link.said(), [""; 0], "what has been proved is not asked again");
    }

    #[test]
    fn another_epoch_is_a_break_whatever_is_on_its_way() {
        let mut link = Link::up();
        link.streams.follow(b"s", 1);
        link.stands(1, 5, 50);
        link.poll();
        assert_eq!(link.read(&entry(60)), Some(6));
        link.now += PROVE_INTERVAL;
        link.poll();
        let Some(StreamsEvent::Broken { position, .. }) = link.stands(2, 3, 70) else { panic!("it goes on") };
        assert_eq!((position.epoch, position.number), (2, 3), "how many of them are new nobody knows");
        assert_eq!(link.streams.position(b"s"), Some(position));
    }

    #[test]
    fn what_was_handed_out_of_a_stream_made_anew_is_not_handed_out_again() {
        let mut link = Link::up();
        link.streams.follow(b"s", 1);
        link.stands(1, 5, 50);
        link.poll();
        assert_eq!(link.read(&entry(60)), Some(6));
        link.now += PROVE_INTERVAL;
        link.poll();
        // It was made anew with the entry 70, which is its first, and has 80 and 90 since Redis answered.
        assert_eq!(link.read(&entry(70)), Some(7));
        assert_eq!(link.read(&entry(80)), Some(8));
        assert_eq!(link.read(&entry(90)), Some(9));
        let Some(StreamsEvent::Broken { position, .. }) = link.stands(2, 1, 70) else { panic!("it goes on") };
        assert_eq!((position.epoch, position.number, position.id.millis), (2, 3, 90));
        assert_eq!(link.read(&entry(100)), Some(4));
    }

    #[test]
    fn a_stream_that_is_refused_or_left_is_forgotten() {
        let mut link = Link::up();
        link.streams.follow(b"s", 1);
        let refused = link.record("-WRONGTYPE Operation against a key\r\n");
        assert!(matches!(refused, Some(StreamsEvent::Refused { .. })), "{refused:?}");
        link.streams.follow(b"s", 1);
        link.streams.unfollow(b"s");
        link.said();
        assert_eq!(link.stands(1, 5, 50), None, "nobody wants it any more");
        link.poll();
        assert_eq!((link.said(), link.streams.position(b"s")), (vec![], None));
        assert_eq!(link.streams.recall(1, b"s", 3, 9, 9, 1), Err(HistoryError::Away));
    }
}
