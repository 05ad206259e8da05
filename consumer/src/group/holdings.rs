//! What a member of a consumer group holds, and what it says to Redis next: the membership without its threads. Time is an
//! argument.
//!
//! An entry is *held* from the moment this member has it until Redis has taken its acknowledgement: that is what keeps an
//! entry that a new connection brings again from being handled twice here. It is acknowledged once somebody said that it is
//! settled (handled, or kept as a dead letter), and never otherwise. What is put down stays pending in Redis, whose other
//! members take it over.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use shards::redis::EntryId;

/// Entries that are asked for at once: of ordinary events about 100 KiB.
pub(crate) const PAGE_ENTRIES_MAX: usize = 100;
/// Ids in one command.
pub(crate) const IDS_MAX: usize = 100;
/// How long Redis may keep a question for new entries. Below the time-out of an answer, so that silence is still noticed.
pub(crate) const BLOCK_MAX: Duration = Duration::from_secs(2);

/// What the reading connection asks next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// What was delivered to this member before, after this entry.
    Own { after: EntryId, count: usize },
    /// What others have left lying, from this entry on.
    Claim { from: EntryId, count: usize },
    /// What nobody has had yet.
    New { count: usize, block: Duration },
}

/// What the acknowledging connection says next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Say {
    /// These are settled.
    Acknowledge(Vec<EntryId>),
    /// These are still being worked on.
    Keep(Vec<EntryId>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Working,
    /// To be acknowledged.
    Settled,
}

#[derive(Debug)]
pub(crate) struct Holdings {
    claim_idle: Duration,
    held: BTreeMap<EntryId, Held>,
    /// Settled, in order; the front of it may be on its way to Redis.
    settled: VecDeque<EntryId>,
    reading: Reading,
    /// A page was too long: one entry at a time until what this member has is through.
    is_careful: bool,
    claim_at: Instant,
    claim_from: EntryId,
    keep_at: Instant,
    /// Where the present round of keeping goes on.
    keep_from: Option<EntryId>,
    /// Put down while leaving.
    left: Vec<EntryId>,
    is_leaving: bool,
}

#[derive(Debug, Clone, Copy)]
enum Reading {
    Own { after: EntryId },
    Fresh,
}

impl Holdings {
    pub fn new(claim_idle: Duration, now: Instant) -> Self {
        Self {
            claim_idle,
            held: BTreeMap::new(),
            settled: VecDeque::new(),
            reading: Reading::Fresh,
            is_careful: false,
            claim_at: now,
            claim_from: EntryId::default(),
            keep_at: now + claim_idle / 4,
            keep_from: None,
            left: Vec::new(),
            is_leaving: false,
        }
    }

    // ---- reading

    /// On a fresh connection: whatever was delivered to this member and is not held comes first. It may have been another
    /// process of its name that had it, or an answer that broke with its connection.
    pub fn begin(&mut self, now: Instant) {
        self.reading = Reading::Own { after: EntryId::default() };
        (self.claim_at, self.claim_from) = (now, EntryId::default());
    }

    /// What to ask where `room` entries find room.
    pub fn next_read(&self, room: usize, now: Instant) -> Read {
        let count = if self.is_careful { 1 } else { room.clamp(1, PAGE_ENTRIES_MAX) };
        match self.reading {
            Reading::Own { after } => Read::Own { after, count },
            Reading::Fresh if now >= self.claim_at => Read::Claim { from: self.claim_from, count },
            Reading::Fresh => Read::New { count, block: (self.claim_at - now).min(BLOCK_MAX) },
        }
    }

    /// An answer to [`Read::Own`]: where its page ended, `None` for an empty one.
    pub fn read_own(&mut self, last: Option<EntryId>) {
        match last {
            Some(after) => self.reading = Reading::Own { after },
            None => (self.reading, self.is_careful) = (Reading::Fresh, false),
        }
    }

    /// An answer to [`Read::Claim`]: where it goes on.
    pub fn read_claimed(&mut self, next: EntryId, now: Instant) {
        self.claim_from = next;
        if next == EntryId::default() {
            self.claim_at = now + self.claim_idle / 2;
        }
    }

    /// The answer to `read` was too long to be kept. What was in it is this member's now; it is asked for again, one entry
    /// at a time.
    pub fn read_too_long(&mut self, read: Read, now: Instant) {
        self.is_careful = true;
        self.reading = match read {
            Read::Own { after, .. } => Reading::Own { after },
            Read::Claim { .. } | Read::New { .. } => Reading::Own { after: EntryId::default() },
        };
        if let Read::Claim { .. } = read {
            self.read_claimed(EntryId::default(), now);
        }
    }

    /// Takes the entry up; false where it is held already.
    pub fn take(&mut self, id: EntryId) -> bool {
        let is_new = !self.held.contains_key(&id);
        if is_new {
            self.held.insert(id, Held::Working);
        }
        is_new
    }

    // ---- settling

    /// The entry has been handled, or is kept as a dead letter: it is to be acknowledged.
    pub fn settle(&mut self, id: EntryId) {
        // Where it is not held it was handed back, and is another's business.
        if let Some(held @ Held::Working) = self.held.get_mut(&id) {
            *held = Held::Settled;
            self.settled.push_back(id);
        }
        self.check();
    }

    /// The entry was not handled and won't be here: it stays pending, and comes again when it has lain idle.
    pub fn put_down(&mut self, id: EntryId) {
        if self.held.get(&id) != Some(&Held::Working) {
            return;
        }
        self.held.remove(&id);
        if self.is_leaving {
            self.left.push(id);
        }
    }

    /// What is due to be said, at `now`.
    pub fn next_say(&mut self, now: Instant) -> Option<Say> {
        if !self.settled.is_empty() {
            return Some(Say::Acknowledge(self.settled.iter().take(IDS_MAX).copied().collect()));
        }
        if now < self.keep_at {
            return None;
        }
        let from = self.keep_from.unwrap_or_default();
        let working = |(id, held): (&EntryId, &Held)| (*held == Held::Working).then_some(*id);
        let ids: Vec<_> = self.held.range(from..).filter_map(working).take(IDS_MAX).collect();
        // A round of more than one command goes on at once behind its last id.
        self.keep_from = ids.last().filter(|_| ids.len() == IDS_MAX).copied();
        if self.keep_from.is_none() {
            self.keep_at = now + self.claim_idle / 4;
        }
        (!ids.is_empty()).then_some(Say::Keep(ids))
    }

    /// When [`next_say`](Self::next_say) has something to say without anybody's doing.
    pub fn keep_at(&self) -> Instant {
        self.keep_at
    }

    /// Redis has taken these acknowledgements.
    pub fn acknowledged(&mut self, ids: &[EntryId]) {
        for id in ids {
            let settled = self.settled.pop_front();
            assert_eq!(settled, Some(*id), "acknowledgements are taken in their order");
            self.held.remove(id);
        }
        self.check();
    }

    // ---- leaving

    /// From now on what is put down is remembered, to be handed back.
    pub fn leave(&mut self) {
        self.is_leaving = true;
    }

    /// Whether nothing is left to be acknowledged.
    pub fn is_settled(&self) -> bool {
        self.settled.is_empty()
    }

    /// All that was not settled, each once: for the others in the group, at once.
    pub fn hand_back(&mut self) -> Vec<EntryId> {
        let mut ids = std::mem::take(&mut self.left);
        ids.extend(self.held.iter().filter(|(_, held)| **held == Held::Working).map(|(id, _)| *id));
        self.held.retain(|_, held| *held == Held::Settled);
        ids
    }

    fn check(&self) {
        let settled = self.held.values().filter(|held| **held == Held::Settled);
        debug_assert_eq!(settled.count(), self.settled.len(), "an acknowledgement is nowhere");
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::tests::id;
    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    fn holdings() -> (Holdings, Instant) {
        let now = Instant::now();
        let mut holdings = Holdings::new(IDLE, now);
        holdings.begin(now);
        (holdings, now)
    }

    fn fresh() -> (Holdings, Instant) {
        let (mut holdings, now) = holdings();
        holdings.read_own(None);
        holdings.read_claimed(EntryId::default(), now);
        (holdings, now)
    }

    fn number(number: u64) -> EntryId {
        EntryId { millis: number, sequence: 0 }
    }

    #[test]
    fn what_was_ones_own_comes_first_then_what_others_left_then_what_is_new() {
        let (mut holdings, now) = holdings();
        assert_eq!(holdings.next_read(7, now), Read::Own { after: EntryId::default(), count: 7 });
        holdings.read_own(Some(id("5-0")));
        assert_eq!(holdings.next_read(999, now), Read::Own { after: id("5-0"), count: PAGE_ENTRIES_MAX });
        holdings.read_own(None);
        assert_eq!(holdings.next_read(1, now), Read::Claim { from: EntryId::default(), count: 1 });
        holdings.read_claimed(id("9-0"), now);
        assert_eq!(holdings.next_read(1, now), Read::Claim { from: id("9-0"), count: 1 });
        holdings.read_claimed(EntryId::default(), now);
        assert_eq!(holdings.next_read(1, now), Read::New { count: 1, block: BLOCK_MAX });
        let late = now + IDLE / 2 - BLOCK_MAX / 4;
        assert_eq!(holdings.next_read(1, late), Read::New { count: 1, block: BLOCK_MAX / 4 });
        let due = now + IDLE / 2;
        assert_eq!(holdings.next_read(1, due), Read::Claim { from: EntryId::default(), count: 1 });
    }

    #[test]
    fn an_answer_that_is_too_long_is_asked_for_again_one_entry_at_a_time() {
        let (mut holdings, now) = fresh();
        let read = holdings.next_read(50, now);
        holdings.read_too_long(read, now);
        assert_eq!(holdings.next_read(50, now), Read::Own { after: EntryId::default(), count: 1 });
        holdings.read_own(Some(id("3-0")));
        let read = holdings.next_read(50, now);
        holdings.read_too_long(read, now);
        assert_eq!(holdings.next_read(50, now), Read::Own { after: id("3-0"), count: 1 });
        holdings.read_own(None);
        assert_eq!(holdings.next_read(50, now), Read::New { count: 50, block: BLOCK_MAX });
    }

    #[test]
    fn an_entry_is_taken_once_until_its_acknowledgement_is_taken() {
        let (mut holdings, now) = fresh();
        assert!(holdings.take(id("1-0")) && !holdings.take(id("1-0")));
        assert_eq!(holdings.next_say(now), None, "it is being worked on");
        holdings.settle(id("1-0"));
        assert!(!holdings.take(id("1-0")), "a new connection brings it again before its acknowledgement");
        let say = Say::Acknowledge(vec![id("1-0")]);
        assert_eq!(holdings.next_say(now), Some(say.clone()));
        assert_eq!(holdings.next_say(now), Some(say), "said again until it is taken");
        holdings.acknowledged(&[id("1-0")]);
        assert_eq!((holdings.next_say(now), holdings.is_settled()), (None, true));
        assert!(holdings.take(id("1-0")), "Redis delivers it again only if it wants it handled again");
    }

    #[test]
    fn what_is_put_down_is_not_acknowledged_and_may_be_taken_again() {
        let (mut holdings, now) = fresh();
        holdings.take(id("1-0"));
        holdings.put_down(id("1-0"));
        holdings.settle(id("1-0"));
        assert_eq!(holdings.next_say(now), None);
        assert!(holdings.take(id("1-0")));
        holdings.settle(id("1-0"));
        holdings.put_down(id("1-0"));
        assert_eq!(
            holdings.next_say(now),
            Some(Say::Acknowledge(vec![id("1-0")])),
            "what is settled is settled"
        );
    }

    #[test]
    fn acknowledgements_and_signs_of_life_go_in_commands_of_bounded_length() {
        let (mut holdings, now) = fresh();
        let count = IDS_MAX as u64 + 50;
        (1..=count).for_each(|n| assert!(holdings.take(number(n))));
        let kept = now + IDLE / 4;
        assert_eq!(holdings.next_say(now), None);
        let Some(Say::Keep(first)) = holdings.next_say(kept) else { panic!("nothing is kept") };
        let Some(Say::Keep(second)) = holdings.next_say(kept) else { panic!("the rest is not kept") };
        assert_eq!((first.len(), second.len(), second.last()), (IDS_MAX, 51, Some(&number(count))));
        assert_eq!((holdings.next_say(kept), holdings.keep_at()), (None, kept + IDLE / 4));
        (1..=count).for_each(|n| holdings.settle(number(n)));
        let mut said = Vec::new();
        while let Some(Say::Acknowledge(ids)) = holdings.next_say(kept) {
            assert!(ids.len() <= IDS_MAX);
            holdings.acknowledged(&ids);
            said.extend(ids);
        }
        assert_eq!(said, (1..=count).map(number).collect::<Vec<_>>());
    }

    #[test]
    fn who_leaves_hands_back_what_is_not_settled() {
        let (mut holdings, now) = fresh();
        (1..=4).for_each(|n| assert!(holdings.take(number(n))));
        holdings.put_down(number(1));
        holdings.leave();
        holdings.put_down(number(2));
        holdings.settle(number(3));
        assert_eq!(holdings.hand_back(), [number(2), number(4)], "what was put down before has its own time");
        assert_eq!(holdings.hand_back(), []);
        holdings.settle(number(4));
        assert_eq!(
            holdings.next_say(now),
            Some(Say::Acknowledge(vec![number(3)])),
            "what was handed back is not ours"
        );
    }
}
