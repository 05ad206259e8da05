//! A client: what it says, and what it makes of the octets it got.

use std::collections::{BTreeSet, VecDeque};

use serde_json::Value;
use shards::command::ConnectionId;

use crate::{ROOMS, parse_payload};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    WebSocket {
        room: usize,
        hears_itself: bool,
    },
    /// Of the JSON dialect: it joins and leaves by message.
    Speaker,
    Http,
}

/// A speaker and one room.
#[derive(Debug, Clone, Default)]
pub struct Membership {
    /// It was told that it has joined, and not that it has left.
    is_inside: bool,
    /// It has asked to join, and not to leave since.
    pub wants: bool,
    /// Leaves it has asked for that are not answered.
    leaves_asked: usize,
    /// Times it was told that it has left.
    lefts: usize,
    /// The run of numbers, and the last number that it has or knows to be lost; from the last that the server said.
    stands: Option<(String, u64)>,
    /// Where it stood when it asked for what came since: a run of numbers, if it named one, and a number.
    resumes: BTreeSet<(Option<String>, u64)>,
}

/// A publication that came.
#[derive(Debug, Clone, Copy)]
pub struct Heard {
    pub number: usize,
    pub room: usize,
    /// The number that it came under, where its dialect says one.
    pub offset: Option<u64>,
    /// The run of that number, where it says so too.
    pub epoch: Option<u64>,
    /// How often it had left the room before: a room that is forgotten meanwhile counts its publications from 0 again.
    pub stay: usize,
}

#[derive(Debug)]
pub struct Client {
    pub kind: Kind,
    pub id: ConnectionId,
    pub socket: i32,
    /// What it has written and the server hasn't read.
    pub unread: VecDeque<u8>,
    /// The server doesn't read it until told.
    pub paused: bool,
    /// The server has released it.
    pub gone: bool,
    /// Its socket was shut altogether: reading ends.
    pub shut: bool,
    /// Octets of the socket's record that have been read.
    at: usize,
    /// The whole 101 is in its socket.
    pub upgraded: bool,
    /// Publications it got, in order.
    pub heard: Vec<Heard>,
    /// Publications that must arrive.
    pub due: Vec<usize>,
    /// Publications of others that the broker lost, and of which it has to hear that something is missing before it hears
    /// any that came after them.
    pub undeclared: [Vec<usize>; ROOMS.len()],
    /// Of a speaker, by room.
    pub memberships: [Membership; ROOMS.len()],
    /// Requests it has sent whose answer counts, and answers.
    pub asked: usize,
    pub answers: usize,
    /// Publications for streams that the answers that are due are about.
    publishes: VecDeque<Option<usize>>,
    /// What it was told of those: the id of the entry, or that there is none.
    pub outcomes: Vec<(usize, Option<String>)>,
    pub closed_with: Option<u16>,
    pub pings: usize,
    /// It has sent a Close frame.
    pub has_closed: bool,
    pub answers_pings: bool,
}

impl Client {
    pub fn new(kind: Kind, id: ConnectionId, socket: i32) -> Self {
        Self {
            kind,
            id,
            socket,
            unread: VecDeque::new(),
            paused: false,
            gone: false,
            shut: false,
            at: 0,
            upgraded: false,
            heard: Vec::new(),
            due: Vec::new(),
            undeclared: Default::default(),
            memberships: Default::default(),
            asked: 0,
            answers: 0,
            publishes: VecDeque::new(),
            outcomes: Vec::new(),
            closed_with: None,
            pings: 0,
            has_closed: false,
            answers_pings: true,
        }
    }

    /// Knows what a connection before it knew.
    pub fn remember(&mut self, before: &Client) {
        for (membership, before) in self.memberships.iter_mut().zip(&before.memberships) {
            membership.stands = before.stands.clone();
        }
    }

    /// Notes a request; `publication` is one for a stream.
    pub fn ask(&mut self, publication: Option<usize>) {
        self.asked += 1;
        self.publishes.push_back(publication);
    }

    /// How often it has left a room that it is in, and would hear of a loss; `None` where it is not, or has no words for one.
    pub fn stay(&self, room: usize) -> Option<usize> {
        let is_listening = self.kind == Kind::Speaker && self.is_member(room) && !self.gone && !self.shut;
        is_listening.then(|| self.memberships[room].lefts)
    }

    /// Whether what is accepted now for the room must come.
    pub fn is_member(&self, room: usize) -> bool {
        let membership = &self.memberships[room];
        match self.kind {
            Kind::WebSocket { room: joined, .. } => self.upgraded && joined == room,
            Kind::Speaker => membership.is_inside && membership.leaves_asked == 0,
            Kind::Http => false,
        }
    }

    /// Times it left a room that it was in.
    pub fn lefts(&self) -> usize {
        self.memberships.iter().map(|membership| membership.lefts).sum()
    }

    /// Rooms in which a speaker is without wanting to, or is not although it wants to; none when all is answered.
    pub fn misplaced(&self) -> Vec<usize> {
        (0..ROOMS.len())
            .filter(|room| {
                let membership = &self.memberships[*room];
                membership.wants != membership.is_inside || membership.leaves_asked > 0
            })
            .collect()
    }

    /// Joins, and asks for the past in one of several ways, or not.
    pub fn join(&mut self, room: usize, wish: usize) {
        let membership = &mut self.memberships[room];
        membership.wants = true;
        let wish = match (&membership.stands, wish) {
            (Some((epoch, offset)), 0 | 1) => {
                membership.resumes.insert((Some(epoch.clone()), *offset));
                format!(r#","resume":{{"epoch":"{epoch}","offset":{offset}}}"#)
            }
            (Some((_, offset)), 2) => {
                membership.resumes.insert((None, *offset));
                format!(r#","resume":{{"offset":{offset}}}"#)
            }
            (_, 3) => r#","first":"oldest""#.to_owned(),
            _ => String::new(),
        };
        self.say(1, format!(r#"{{"type":"join","room":"{}"{wish}}}"#, ROOMS[room]).as_bytes());
    }

    /// Leaves, wherever it is; `forgotten` says which publications are of the room, and nobody owes them any more.
    pub fn leave(&mut self, room: usize, forgotten: &BTreeSet<usize>) {
        self.memberships[room].wants = false;
        self.memberships[room].leaves_asked += 1;
        self.undeclared[room].clear();
        self.due.retain(|number| !forgotten.contains(number));
        self.say(1, format!(r#"{{"type":"leave","room":"{}"}}"#, ROOMS[room]).as_bytes());
    }

    /// Writes a masked frame.
    pub fn say(&mut self, opcode: u8, payload: &[u8]) {
        let mask = [0x5a, 0x11, 0xc3, 0x7e];
        assert!(payload.len() < 126);
        self.unread.extend([0x80 | opcode, 0x80 | payload.len() as u8]);
        self.unread.extend(mask);
        self.unread.extend(payload.iter().enumerate().map(|(at, octet)| octet ^ mask[at % 4]));
    }

    /// Reads what has arrived since the last time; panics at anything that isn't a whole answer or frame of its own.
    /// Publications in `foreign` are others', whose order Redis made.
    pub fn read(&mut self, taken: &[u8], foreign: &BTreeSet<usize>) {
        loop {
            let rest = &taken[self.at..];
            let used = if self.upgraded { self.read_frame(rest, foreign) } else { self.read_answer(rest) };
            match used {
                Some(used) => self.at += used,
                None => return,
            }
        }
    }

    fn read_answer(&mut self, rest: &[u8]) -> Option<usize> {
        let end = rest.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
        let head = std::str::from_utf8(&rest[..end]).expect("an answer's head is text");
        assert!(head.starts_with("HTTP/1.1 "), "no answer: {head:?}");
        let status: u16 = head[9..12].parse().expect("a status");
        if status == 101 {
            assert!(self.kind != Kind::Http, "a 101 that nobody asked for");
            self.upgraded = true;
            return Some(end);
        }
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("a length");
        let whole = end + length.parse::<usize>().expect("a length");
        if rest.len() < whole {
            return None;
        }
        let body = String::from_utf8_lossy(&rest[end..whole]);
        assert!(matches!(status, 200 | 502 | 503 | 504), "{head}{body}");
        self.answers += 1;
        let publication = self.publishes.pop_front().expect("an answer that nobody asked for");
        // Of one that may be in its stream or not, nothing is said.
        if let Some(number) = publication.filter(|_| status != 504) {
            let id = (status == 200).then(|| {
                let answer: Value =
                    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
                answer["id"].as_str().unwrap_or_else(|| panic!("no id: {body}")).to_owned()
            });
            self.outcomes.push((number, id));
        }
        Some(whole)
    }

    fn read_frame(&mut self, rest: &[u8], foreign: &BTreeSet<usize>) -> Option<usize> {
        let [first, length, ..] = rest else { return None };
        let (header, length) = match length {
            126 => (4, usize::from(u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]))),
            0..126 => (2, usize::from(*length)),
            _ => panic!("a torn frame: {rest:?}"),
        };
        assert!(self.closed_with.is_none(), "a frame after the Close frame");
        let payload = rest.get(header..header + length)?;
        match first {
            0x81 => {
                let text = std::str::from_utf8(payload).expect("a torn frame");
                match self.kind {
                    Kind::Speaker => self.hear_message(text, foreign),
                    _ => self.hear(text, None, foreign),
                }
            }
            0x88 => {
                let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                self.closed_with = Some(code);
            }
            0x89 => {
                self.pings += 1;
                if self.answers_pings {
                    self.say(0xa, payload);
                }
            }
            0x8a => assert!(payload.starts_with(b"ping"), "a pong to no ping"),
            _ => panic!("a torn frame: {rest:?}"),
        }
        Some(header + length)
    }

    /// A message of the JSON dialect: the answer to a join or a leave, or a publication of a room that it is in.
    fn hear_message(&mut self, text: &str, foreign: &BTreeSet<usize>) {
        let message: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text:?}"));
        let room = ROOMS.iter().position(|room| message["room"] == *room);
        let room = room.unwrap_or_else(|| panic!("no room: {text}"));
        let membership = &mut self.memberships[room];
        match message["type"].as_str() {
            Some("joined") => {
                let offset = message["data"]["offset"].as_u64().expect("where it stands");
                if message["data"]["recovered"] == true {
                    let has_asked = membership.resumes.iter().any(|(wanted, from)| {
                        *from == offset && wanted.as_ref().is_none_or(|wanted| *wanted == epoch(&message))
                    });
                    assert!(has_asked, "recovered from where it was not: {text}, {:?}", membership.resumes);
                }
                // Whoever is in already is told where the room is, not where its reading is.
                if !membership.is_inside {
                    membership.stands = Some((epoch(&message), offset));
                }
                membership.is_inside = true;
            }
            Some("gap") => {
                assert!(membership.is_inside, "a gap of a room that it isn't in: {text}");
                self.undeclared[room].clear();
                let (run, last) = membership.stands.clone().expect("it has joined");
                let is_same = run == epoch(&message);
                let (from, to) = (message["data"]["from"].as_u64(), message["data"]["to"].as_u64());
                let to = to.or(message["data"]["offset"].as_u64()).expect("where numbers go on");
                let goes_on = from.is_none_or(|from| from == last + 1) && (to >= last || !is_same);
                assert!(goes_on, "after {last} of {run}: {text}");
                membership.stands = Some((epoch(&message), to));
            }
            Some("left") => {
                membership.is_inside = false;
                membership.lefts += 1;
                membership.leaves_asked -= 1;
            }
            // It leaves at random, and speaks only where it is.
            Some("error") => {
                assert_eq!(message["data"]["code"], "not_joined", "{text}");
                assert!(!membership.is_inside, "told to be inside, and not to be: {text}");
                membership.leaves_asked -= 1;
            }
            Some("message" | "note") => {
                assert!(membership.is_inside, "before its join was answered, or after its leave: {text}");
                let offset = message["offset"].as_u64().expect("a number");
                let (run, last) = membership.stands.as_mut().expect("it has joined");
                let run = u64::from_str_radix(run, 16).expect("an epoch");
                let is_next = offset == *last + 1 || ROOMS[room].starts_with("new") && offset > *last;
                assert!(is_next, "after {last} and without a word of what is between: {text}");
                *last = offset;
                self.hear(message["data"].as_str().expect("a string"), Some((room, run, offset)), foreign);
            }
            _ => panic!("unknown: {text}"),
        }
    }

    /// A publication; `named` is the room that stood beside it, the run of its numbers, and its number there.
    fn hear(&mut self, text: &str, named: Option<(usize, u64, u64)>, foreign: &BTreeSet<usize>) {
        assert!(text.ends_with('.'), "a torn frame: {text:?}");
        let (number, room) = parse_payload(text.as_bytes());
        assert!(
            named.is_none_or(|(named, ..)| named == room),
            "publication {number} under another room's name"
        );
        if let Kind::WebSocket { room: joined, .. } = self.kind {
            assert_eq!(room, joined, "publication {number} of another room");
        }
        if foreign.contains(&number) {
            let lost = self.undeclared[room].iter().find(|lost| **lost < number);
            assert_eq!(lost, None, "publication {number}, before any word of one that was lost");
        }
        let (epoch, offset) = (named.map(|(_, epoch, _)| epoch), named.map(|(.., offset)| offset));
        self.heard.push(Heard { number, room, offset, epoch, stay: self.memberships[room].lefts });
    }
}

fn epoch(message: &Value) -> String {
    message["data"]["epoch"].as_str().expect("an epoch").to_owned()
}
