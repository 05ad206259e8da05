//! The driver's two connections to the streams of a Redis: entries come on one, answers on the other, in no common order.

use std::collections::{BTreeMap, HashMap, VecDeque};

use shards::redis::{Anchor, EntryId, HistoryError, Judgement, Past, Position};
use shards::relay::{Outlet, PublishFailure, Relay};
use shards::shard::Micros;

use crate::place_of;
use crate::random::Random;
use crate::streams::{Entry, Keys};

#[derive(Debug)]
enum Request {
    Anchor(Vec<u8>),
    Recall { token: u64, stream: Vec<u8>, after: u64, head: Position },
    Append { token: u64, stream: Vec<u8>, payload: Vec<u8> },
}

#[derive(Debug)]
enum Answer {
    /// `None`: refused.
    Anchor(Vec<u8>, Option<Anchor>),
    Recall(u64, Result<Past, HistoryError>),
    Append(u64, Result<EntryId, PublishFailure>),
}

#[derive(Debug, Default)]
struct Followed {
    position: Option<Position>,
    is_live: bool,
    is_asked: bool,
    /// Entries up to this one are on their way.
    sent: EntryId,
    /// Which reading they are of: others are ignored.
    reading: u64,
    /// An entry has been handed out since an anchor was asked for.
    has_moved: bool,
    /// An entry that is still to come, and the number that it has in Redis.
    expected: Option<(EntryId, u64)>,
}

/// What the oracle is to know.
#[derive(Debug, Default)]
pub struct Fates {
    /// Publications that are in their stream now.
    pub appended: Vec<usize>,
    /// Publications that will not come, and of which members are told before anything that is newer.
    pub lost: Vec<usize>,
    /// The same, of which they may be told late.
    pub gone: Vec<usize>,
}

#[derive(Debug)]
pub struct Follower {
    pub keys: Keys,
    random: Random,
    followed: BTreeMap<Vec<u8>, Followed>,
    is_up: bool,
    readings: u64,
    requests: VecDeque<Request>,
    answers: VecDeque<Answer>,
    /// `None`: the stream is refused.
    entries: VecDeque<(Vec<u8>, u64, Option<Entry>)>,
    /// Written before a break; Redis may still read it.
    late: Vec<(Vec<u8>, Vec<u8>)>,
    pub fates: Fates,
    /// Publications by room, epoch and number, as they were told.
    told: HashMap<(usize, u64, u64), Vec<usize>>,
    /// An entry was handed out under another number than its own: some before it was gone, and that is found out later.
    has_miscounted: bool,
}

impl Follower {
    pub fn new(random: Random) -> Self {
        Self {
            keys: Keys::default(),
            random,
            followed: BTreeMap::new(),
            is_up: false,
            readings: 0,
            requests: VecDeque::new(),
            answers: VecDeque::new(),
            entries: VecDeque::new(),
            late: Vec::new(),
            fates: Fates::default(),
            told: HashMap::new(),
            has_miscounted: false,
        }
    }

    pub fn is_up(&self) -> bool {
        self.is_up
    }

    pub fn is_quiet(&self) -> bool {
        let is_read = |(key, followed): (&Vec<u8>, &Followed)| {
            !followed.is_live
                || self.keys.all().all(|(other, stream)| {
                    other != key || stream.entries.back().is_none_or(|e| e.id <= followed.sent)
                })
        };
        self.requests.is_empty()
            && self.answers.is_empty()
            && self.entries.is_empty()
            && (!self.is_up || self.followed.iter().all(is_read))
    }

    pub fn follows_any(&self) -> bool {
        !self.followed.is_empty()
    }

    /// Whether a publication may yet come, or be declared lost.
    pub fn has_unread(&self, number: usize) -> bool {
        self.keys.all().any(|(_, stream)| stream.unread.iter().any(|entry| entry.publication() == number))
    }

    /// A publication that a client or a shard has under this number is the one that the relay was told.
    pub fn check(&self, room: usize, epoch: u64, offset: u64, number: usize) {
        let told = self.told.get(&(room, epoch, offset)).map_or(&[][..], Vec::as_slice);
        assert!(
            told.contains(&number),
            "publication {number} as {offset} of {epoch:x} in {room}, not {told:?}"
        );
        assert!(told.len() == 1 || self.has_miscounted, "{told:?} are all {offset} of {epoch:x} in {room}");
    }

    // ---- what the relay asks for

    pub fn follow(&mut self, stream: &[u8], relay: &mut Relay, outlet: &mut impl Outlet, now: Micros) {
        if !self.followed.contains_key(stream) {
            self.followed.insert(stream.to_vec(), Followed::default());
            self.ask(stream);
        }
        let followed = &self.followed[stream];
        if let Some(position) = followed.position.filter(|_| followed.is_live) {
            relay.stream_anchored(0, stream, position, outlet, now);
        }
    }

    pub fn unfollow(&mut self, stream: &[u8]) {
        assert!(self.followed.remove(stream).is_some(), "unfollowed what was not followed");
    }

    /// Gives an error where it is known at once.
    pub fn recall(&mut self, token: u64, stream: &[u8], after: u64) -> Result<(), HistoryError> {
        let head =
            self.followed.get(stream).and_then(|followed| followed.position).ok_or(HistoryError::Away)?;
        if head.number < after {
            return Err(HistoryError::Beyond);
        }
        if !self.is_up {
            return Err(HistoryError::Away);
        }
        self.requests.push_back(Request::Recall { token, stream: stream.to_vec(), after, head });
        Ok(())
    }

    pub fn append(&mut self, token: u64, stream: &[u8], payload: &[u8]) -> Result<(), PublishFailure> {
        if !self.is_up {
            return Err(PublishFailure::Unsent);
        }
        if self.random.chance(2) {
            return Err(PublishFailure::Busy);
        }
        let (stream, payload) = (stream.to_vec(), payload.to_vec());
        self.requests.push_back(Request::Append { token, stream, payload });
        Ok(())
    }

    fn ask(&mut self, stream: &[u8]) {
        if self.is_up
            && let Some(followed) = self.followed.get_mut(stream)
            && !std::mem::replace(&mut followed.is_asked, true)
        {
            followed.has_moved = false;
            self.requests.push_back(Request::Anchor(stream.to_vec()));
        }
    }

    // ---- what happens

    /// Somebody else appends.
    pub fn publish(&mut self, stream: &[u8], payload: &[u8]) {
        let is_too_long = self.random.chance(2);
        self.keys.append(stream, payload, is_too_long);
    }

    pub fn disturb(&mut self) {
        let keys: Vec<Vec<u8>> = self.keys.all().map(|(key, _)| key.clone()).collect();
        if keys.is_empty() {
            return;
        }
        let key = &keys[self.random.below(keys.len())];
        if self.keys.at(key).is_refused {
            self.keys.at(key).is_refused = false;
            return;
        }
        let sent = self.followed.get(key).filter(|followed| followed.is_live).map(|followed| followed.sent);
        let gone = self.keys.disturb(key, sent, &mut self.random);
        self.fates.gone.extend(gone);
    }

    pub fn step(&mut self, relay: &mut Relay, outlet: &mut impl Outlet, now: Micros) {
        match self.random.below(8) {
            0..2 => self.redis_answers(),
            2..4 => self.take_answer(relay, outlet, now),
            4 => self.redis_sends(),
            5..7 => self.take_entry(relay, outlet, now),
            _ => self.prove(),
        }
    }

    fn one_of_live(&mut self) -> Option<Vec<u8>> {
        let live: Vec<&Vec<u8>> =
            self.followed.iter().filter(|(_, followed)| followed.is_live).map(|(key, _)| key).collect();
        (!live.is_empty()).then(|| live[self.random.below(live.len())].clone())
    }

    /// Where a stream stands is asked now and then.
    fn prove(&mut self) {
        if self.random.chance(15)
            && let Some(stream) = self.one_of_live()
        {
            self.ask(&stream);
        }
    }

    fn redis_answers(&mut self) {
        let answer = match self.requests.pop_front() {
            None => return,
            Some(Request::Anchor(key)) => {
                let stream = self.keys.at(&key);
                let anchor = (!stream.is_refused).then(|| stream.anchor());
                Answer::Anchor(key, anchor)
            }
            Some(Request::Recall { token, stream, after, head }) => {
                Answer::Recall(token, self.keys.at(&stream).past(after, head, &mut self.random))
            }
            Some(Request::Append { token, stream, payload }) => {
                let is_refused = self.keys.at(&stream).is_refused || self.random.chance(2);
                let result = match () {
                    () if is_refused => Err(PublishFailure::Refused),
                    // It was told to forget its scripts.
                    () if self.random.chance(3) => Err(PublishFailure::Unsent),
                    () => Ok(self.redis_appends(&stream, &payload)),
                };
                Answer::Append(token, result)
            }
        };
        self.answers.push_back(answer);
    }

    fn redis_appends(&mut self, stream: &[u8], payload: &[u8]) -> EntryId {
        self.fates.appended.push(place_of(payload).0);
        self.keys.append(stream, payload, false)
    }

    fn redis_sends(&mut self) {
        let Some(key) = self.one_of_live() else { return };
        let Some(followed) = self.followed.get_mut(&key) else { return };
        let stream = self.keys.at(&key);
        if stream.is_refused {
            self.entries.push_back((key, followed.reading, None));
            return;
        }
        let most = 1 + self.random.below(6);
        for entry in stream.entries.iter().filter(|entry| entry.id > followed.sent).take(most) {
            self.entries.push_back((key.clone(), followed.reading, Some(entry.clone())));
        }
        if let Some((_, _, Some(entry))) = self.entries.back().filter(|(last, ..)| *last == key) {
            followed.sent = followed.sent.max(entry.id);
        }
    }

    fn take_entry(&mut self, relay: &mut Relay, outlet: &mut impl Outlet, now: Micros) {
        let Some((key, reading, entry)) = self.entries.pop_front() else { return };
        let is_that = |followed: &&mut Followed| followed.is_live && followed.reading == reading;
        let Some(followed) = self.followed.get_mut(&key).filter(is_that) else { return };
        let Some(entry) = entry else {
            return self.refused(&key, relay, outlet, now);
        };
        let position = followed.position.as_mut().expect("what is read has been anchored");
        position.number += 1;
        position.id = entry.id;
        if let Some((id, number)) = followed.expected.take_if(|(id, _)| *id <= entry.id) {
            position.number = position.number.max(number + u64::from(id < entry.id));
        }
        followed.has_moved = true;
        let position = *position;
        let stream = self.keys.at(&key);
        while let Some(unread) = stream.unread.pop_front_if(|unread| unread.id <= entry.id) {
            if unread.id < entry.id {
                self.fates.gone.push(unread.publication());
            }
        }
        self.has_miscounted |= (position.epoch, position.number) != (entry.epoch, entry.number);
        match entry.is_too_long {
            true => self.fates.lost.push(entry.publication()),
            false => self.note_told(position, &entry.payload),
        }
        let payload = (!entry.is_too_long).then_some(&*entry.payload);
        relay.stream_entry(0, &key, position.number, payload, outlet, now);
    }

    fn note_told(&mut self, Position { epoch, number, .. }: Position, payload: &[u8]) {
        let (publication, room) = place_of(payload);
        let told = self.told.entry((room, epoch, number)).or_default();
        if !told.contains(&publication) {
            told.push(publication);
        }
    }

    fn refused(&mut self, key: &[u8], relay: &mut Relay, outlet: &mut impl Outlet, now: Micros) {
        self.followed.remove(key);
        relay.stream_refused(0, key, outlet, now);
    }

    fn take_answer(&mut self, relay: &mut Relay, outlet: &mut impl Outlet, now: Micros) {
        match self.answers.pop_front() {
            None => {}
            Some(Answer::Append(token, result)) => relay.appended(0, token, result, outlet),
            Some(Answer::Recall(token, result)) => {
                if let Ok(past) = &result {
                    for (back, payload) in past.payloads.iter().rev().enumerate() {
                        self.note_told(
                            Position { number: past.head.number - back as u64, ..past.head },
                            payload,
                        );
                    }
                }
                relay.recalled(0, token, result, outlet, now);
            }
            Some(Answer::Anchor(key, anchor)) => self.anchored(&key, anchor, relay, outlet, now),
        }
    }

    fn anchored(
        &mut self,
        key: &[u8],
        anchor: Option<Anchor>,
        relay: &mut Relay,
        outlet: &mut impl Outlet,
        now: Micros,
    ) {
        let Some(followed) = self.followed.get_mut(key) else { return };
        followed.is_asked = false;
        let Some(anchor) = anchor else { return self.refused(key, relay, outlet, now) };
        let was_live = std::mem::replace(&mut followed.is_live, true);
        let here = followed.position;
        let judgement = match here {
            None => Judgement::GoesOn,
            Some(here) if was_live && here.epoch == anchor.epoch && here.id != anchor.last => {
                followed.expected = (anchor.last > here.id).then_some((anchor.last, anchor.added));
                return;
            }
            // What was read since may be behind the anchor.
            Some(here)
                if was_live && here.epoch != anchor.epoch && followed.has_moved && here.id > anchor.last =>
            {
                return self.ask(key);
            }
            Some(here) => anchor.judge(here),
        };
        followed.expected = None;
        let position = match judgement {
            Judgement::GoesOn => here.unwrap_or(anchor.head()),
            Judgement::Overtaken { position, .. } | Judgement::Broken { position } => position,
        };
        if !was_live || here.is_none_or(|here| here.id != position.id) {
            self.readings += 1;
            (followed.reading, followed.sent) = (self.readings, position.id);
        }
        followed.position = Some(position);
        if here.is_none() || judgement != Judgement::GoesOn {
            let skipped = self.keys.at(key).skip_to(position);
            self.fates.lost.extend(skipped);
        }
        match judgement {
            Judgement::GoesOn if was_live => {}
            Judgement::GoesOn => relay.stream_anchored(0, key, position, outlet, now),
            Judgement::Overtaken { .. } => relay.stream_gap(0, key, position, outlet, now),
            Judgement::Broken { .. } => relay.stream_broken(0, key, position, outlet, now),
        }
    }

    pub fn break_down(&mut self, relay: &mut Relay, outlet: &mut impl Outlet, now: Micros) {
        if !std::mem::replace(&mut self.is_up, false) {
            return;
        }
        self.entries.clear();
        for followed in self.followed.values_mut() {
            (followed.is_live, followed.is_asked, followed.expected) = (false, false, None);
        }
        relay.streams_down(0, now);
        for answer in std::mem::take(&mut self.answers) {
            match answer {
                Answer::Anchor(..) => {}
                Answer::Recall(token, _) => relay.recalled(0, token, Err(HistoryError::Away), outlet, now),
                Answer::Append(token, _) => relay.appended(0, token, Err(PublishFailure::Unknown), outlet),
            }
        }
        for request in std::mem::take(&mut self.requests) {
            match request {
                Request::Anchor(_) => {}
                Request::Recall { token, .. } => {
                    relay.recalled(0, token, Err(HistoryError::Away), outlet, now);
                }
                Request::Append { token, stream, payload } => {
                    let failure = match self.random.below(3) {
                        0 => PublishFailure::Unsent,
                        1 => PublishFailure::Unknown,
                        _ => {
                            self.late.push((stream, payload));
                            PublishFailure::Unknown
                        }
                    };
                    relay.appended(0, token, Err(failure), outlet);
                }
            }
        }
    }

    pub fn connect(&mut self, relay: &mut Relay) {
        if std::mem::replace(&mut self.is_up, true) {
            return;
        }
        for (stream, payload) in std::mem::take(&mut self.late) {
            self.redis_appends(&stream, &payload);
        }
        for stream in self.followed.keys().cloned().collect::<Vec<_>>() {
            self.ask(&stream);
        }
        relay.streams_up(0);
    }
}
