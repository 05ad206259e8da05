//! What the relay and the shards say to each other, through rings.
//!
//! Up commands that a connection causes carry its [`ConnectionId`], so that an answer that comes back after the
//! connection has gone finds nobody instead of somebody else.

use std::sync::Arc;

use bytes::Bytes;

use crate::frame::Frame;
use crate::log::Past;
use crate::metrics::GapReason;
use crate::redis::EntryId;
use crate::survey::{Kind, Part, Place, Survey, Wanted};
use crate::tcp::Slowest;

/// A connection of this process. The generation tells the tenants of a slot apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    /// Index of the shard.
    pub shard: u16,
    /// Tenancy of the slot; wraps, and an id never lives as long as 65,536 tenancies.
    pub generation: u16,
    /// Index in the shard's connections.
    pub slot: u32,
}

/// A room as its shard names it. Sent up with `Join`, it comes back with everything for that room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RoomSlot {
    /// Index in the shard's rooms.
    pub index: u32,
    /// Tenancy of the index.
    pub generation: u32,
}

/// From a shard to the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Up {
    /// The first member of a room on the shard waits for `Joined`.
    Join {
        /// The shard's name of the room.
        slot: RoomSlot,
        /// Name of the room; shared by the shard's room and the relay's log.
        name: Arc<str>,
    },
    /// The shard has given the room up; its `Join` may be unanswered yet, and then needs no answer any more.
    Leave {
        /// As in `Join`.
        slot: RoomSlot,
        /// As in `Join`.
        name: Arc<str>,
    },
    /// A connection wants publications of a live room that came before it. Answered by [`Down::Recovered`] or
    /// [`Down::Withdrawn`].
    Recover(Box<Recover>),
    /// It wants them no more: where its question still waits, it is answered by [`Down::Withdrawn`].
    Withdraw {
        /// As in the question.
        ticket: u64,
    },
    /// Somebody reads a room's log over HTTP.
    Read(Box<Read>),
    /// A client publishes.
    Publish(Box<Publish>),
    /// Answer to [`Down::Ask`].
    Answer {
        /// The question's number.
        question: u64,
        /// Of the shard. Boxed, so that a slot of the ring is not sized by a rare answer.
        report: Box<Report>,
    },
    /// A connection of an enveloped dialect has entered a live room whose source keeps a last value: what is it?
    Warm(Box<Warm>),
    /// Somebody asks for the ledger of all shards.
    Ask {
        /// Who waits for it.
        from: ConnectionId,
    },
    /// Somebody asks who is connected.
    Survey {
        /// Who waits for it.
        from: ConnectionId,
        /// What exactly.
        wanted: Arc<Wanted>,
    },
    /// Answer to [`Down::Survey`].
    Surveyed {
        /// The survey's number.
        question: u64,
        /// Some connections.
        part: Box<Part>,
    },
    /// Answer to [`Down::Name`].
    Named {
        /// The survey's number.
        question: u64,
        /// In the order of the places; `None` for what is gone.
        names: Box<[Option<Arc<str>>]>,
    },
}

/// See [`Up::Recover`]; comes back in [`Down::Recovered`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recover {
    /// Who waits.
    pub to: ConnectionId,
    /// The shard's name of the room.
    pub slot: RoomSlot,
    /// Name of the room.
    pub room: Arc<str>,
    /// What it wants.
    pub since: Since,
    /// Number of the question on its shard: who left and joined again gets no answer to its first question, which may be
    /// taken back by it.
    pub ticket: u64,
}

/// See [`Up::Read`]; comes back in [`Down::Reading`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// Who asked.
    pub to: ConnectionId,
    /// Name of the room.
    pub room: Arc<str>,
    /// From where on.
    pub since: Since,
    /// Publications at most.
    pub limit: usize,
}

/// Which publications of a room's log a newcomer wants before the live ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// Everything after the one of this number: it was here before.
    After {
        /// The run of the number; `None`: whichever there is (FIELD section 5).
        epoch: Option<u64>,
        /// The last that it has; 0 for none.
        offset: u64,
    },
    /// All that the log holds.
    Oldest,
    /// The last so many of it.
    Last(u64),
}

/// See [`Up::Publish`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Name of the room.
    pub room: Arc<str>,
    /// What the client sent, unmasked.
    pub payload: Bytes,
    /// Who sent it.
    pub from: ConnectionId,
    /// Name of the user, for envelopes.
    pub user: Option<Box<str>>,
    /// Leave the sender out.
    pub except_sender: bool,
    /// Send [`Down::Published`] when the broker has it.
    pub answer: bool,
    /// What an envelope says beside the payload; `None` for a payload without type.
    pub label: Option<Arc<Label>>,
    /// Keep it as the last value of this key, where the room's source has such.
    pub keep: Option<Box<str>>,
}

/// What dialects and envelopes with a `type` say of a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The `type`.
    pub kind: Box<str>,
    /// The payload is JSON text, which stands in an envelope as it is; otherwise it is a string there.
    pub is_json: bool,
}

/// See [`Up::Warm`]; comes back in [`Down::Warmed`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warm {
    /// Who waits.
    pub to: ConnectionId,
    /// The shard's name of the room.
    pub slot: RoomSlot,
    /// Name of the room.
    pub room: Arc<str>,
    /// Where the connection stood in the room's window when it entered. What is older than anything it has got since must
    /// not overtake it.
    pub position: u64,
}

/// From the relay to a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Down {
    /// A publication for a room that the shard has joined.
    Publication {
        /// The shard's name of the room.
        slot: RoomSlot,
        /// Its number in the room.
        offset: u64,
        /// Microseconds after the start of the process at which it arrived.
        arrived_micros: u64,
        /// What goes out.
        frame: Frame,
        /// Connection that does not get it.
        except: Option<ConnectionId>,
        /// What dialects with an envelope say beside it.
        label: Option<Arc<Label>>,
    },
    /// Answer to [`Up::Warm`], where there is a value.
    Warmed(Box<Warmed>),
    /// Answer to [`Up::Join`]: publications from `head` on follow on this ring.
    Joined {
        /// As in the question.
        slot: RoomSlot,
        /// Run of the room's numbers.
        epoch: u64,
        /// Offset of the next publication.
        head: u64,
        /// Index of the source that feeds the room, and its run; `None` where none does.
        source: Option<(u8, u16)>,
    },
    /// Answer to [`Up::Read`].
    Reading(Box<Reading>),
    /// Answer to [`Up::Recover`]: what was wanted, up to where the ring stands.
    Recovered(Box<Recovered>),
    /// The same for a question that was taken back, or whose room is gone.
    Withdrawn {
        /// As in the question.
        ticket: u64,
    },
    /// Publications `from..to` of the room are lost to this shard.
    Gap {
        /// The shard's name of the room.
        slot: RoomSlot,
        /// First offset lost.
        from: u64,
        /// First offset not lost.
        to: u64,
        /// Why.
        reason: GapReason,
    },
    /// The source of rooms broke and is back: numbers go on in a new run.
    SourceGap {
        /// Index of the source.
        source: u8,
        /// Its run now.
        run: u64,
    },
    /// The channel of this room alone broke and is back: numbers go on in a new epoch.
    RoomGap {
        /// The shard's name of the room.
        slot: RoomSlot,
        /// Of the room from now on.
        epoch: u64,
        /// The number that its next publication's comes after.
        last: u64,
    },
    /// Answer to a [`Publish`] that asked for one; comes after its publication.
    Published {
        /// Who asked.
        to: ConnectionId,
        /// What became of it.
        outcome: Outcome,
    },
    /// What do you owe? Answered between turns.
    Ask {
        /// To be repeated in the answer.
        question: u64,
    },
    /// Answer to [`Up::Ask`].
    Answer {
        /// Who asked.
        to: ConnectionId,
        /// Of all shards.
        report: Arc<Report>,
    },
    /// Who is connected? Answered for a bounded number of connections, between turns.
    Survey {
        /// To be repeated in the answer.
        question: u64,
        /// What exactly.
        wanted: Arc<Wanted>,
        /// Of the hashes of names, the same for all shards.
        seed: u64,
        /// The slot to begin at.
        from: u32,
    },
    /// What are these called?
    Name {
        /// To be repeated in the answer.
        question: u64,
        /// Rooms and connections of the shard.
        places: Box<[(Kind, Place)]>,
    },
    /// Answer to [`Up::Survey`].
    Surveyed {
        /// Who asked.
        to: ConnectionId,
        /// `None`: too many wait for one.
        survey: Option<Box<Survey>>,
    },
}

/// See [`Down::Recovered`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The question.
    pub recover: Recover,
    /// Run of the room's numbers.
    pub epoch: u64,
    /// The publications begin after this one; without any, it is the newest.
    pub offset: u64,
    /// Nothing is missing between what the newcomer has and what follows. False for who asked for a resume and can't have it.
    pub is_whole: bool,
    /// In their order, the last being the newest of the room.
    pub past: Past,
}

/// See [`Down::Reading`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The question.
    pub read: Read,
    /// Run of the room's numbers; 0 where nobody knows the room.
    pub epoch: u64,
    /// The publications begin after this one; without any, it is the newest.
    pub offset: u64,
    /// Number of the newest publication.
    pub newest: u64,
    /// As in [`Recovered`].
    pub is_whole: bool,
    /// In their order; the oldest of those wanted, where the limit leaves some out.
    pub records: Vec<Recorded>,
}

/// A publication out of a room's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Its number.
    pub offset: u64,
    /// It is the first after a break of the broker.
    pub after_break: bool,
    /// What goes out.
    pub frame: Frame,
    /// What dialects with an envelope say beside it.
    pub label: Option<Arc<Label>>,
}

/// See [`Down::Warmed`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warmed {
    /// The question.
    pub warm: Warm,
    /// What Redis holds.
    pub payload: Bytes,
    /// Its type.
    pub label: Arc<Label>,
}

impl Down {
    /// Bytes that count against the backlog of a shard; of the past, bookkeeping included: it is more than small publications.
    pub fn backlog_bytes(&self) -> usize {
        match self {
            Down::Publication { frame, .. } => frame.len(),
            Down::Warmed(warmed) => warmed.payload.len(),
            Down::Reading(reading) => {
                let frames: usize = reading.records.iter().map(|record| record.frame.len()).sum();
                frames + reading.records.len() * size_of::<Recorded>()
            }
            // Its pages, though the log and other answers may hold them too.
            Down::Recovered(recovered) => recovered.past.bytes() as usize,
            _ => 0,
        }
    }
}

/// What became of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It has a place in the room's log here.
    Placed {
        /// Its number.
        offset: u64,
        /// The run of the number.
        epoch: u64,
    },
    /// Nobody is in the room and its class keeps no history.
    Nobody,
    /// Redis took it.
    Sent {
        /// Subscribers that Redis counted, over all nodes.
        receivers: u64,
    },
    /// Redis is away or did not take it; it was delivered to this node's members only.
    LocalOnly,
    /// Too much is on its way to Redis.
    Busy,
    /// It is longer than a publication may be, bare or in its source's envelope.
    TooBig,
    /// Redis answered with an error.
    Refused,
    /// It is in its room's stream.
    Appended(EntryId),
    /// Redis is away, and its room has nothing that isn't in the stream.
    Away,
    /// The connection to Redis broke before the answer: it may be in the stream.
    Unknown,
}

/// What shards tell whoever asks for `/stats`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Sums over the shards.
    pub ledger: Ledger,
    /// Of each shard, those that are stuck for the longest time.
    pub slowest: Vec<Slowest>,
}

impl Report {
    /// Adds another shard's.
    pub fn add(&mut self, other: Report) {
        self.ledger.add(&other.ledger);
        self.slowest.extend(other.slowest);
    }
}

/// Deliveries owed and what became of them: `owed = delivered + filtered + conflated + dropped + pending` at any quiet
/// moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ledger {
    /// Members of the room, summed over publications.
    pub owed: u64,
    /// Taken whole by a socket.
    pub delivered: u64,
    /// Left out on purpose.
    pub filtered: u64,
    /// Superseded by a newer one of the same key.
    pub conflated: u64,
    /// Not made.
    pub dropped: u64,
    /// Not made yet.
    pub pending: u64,
}

impl Ledger {
    /// Adds another shard's sums.
    pub fn add(&mut self, other: &Ledger) {
        self.owed += other.owed;
        self.delivered += other.delivered;
        self.filtered += other.filtered;
        self.conflated += other.conflated;
        self.dropped += other.dropped;
        self.pending += other.pending;
    }

    /// Whether nothing is missing and nothing was counted twice.
    pub fn balances(&self) -> bool {
        self.owed == self.delivered + self.filtered + self.conflated + self.dropped + self.pending
    }
}
