//! A client: what it says, and what it makes of the octets it got.

use std::collections::VecDeque;

use shards::command::ConnectionId;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    WebSocket { room: usize, hears_itself: bool },
    Http,
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
    /// Publications it got, by number.
    pub heard: Vec<usize>,
    /// Publications that must arrive.
    pub due: Vec<usize>,
    /// Requests it has sent whose answer counts, and answers.
    pub asked: usize,
    pub answers: usize,
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
            asked: 0,
            answers: 0,
            closed_with: None,
            pings: 0,
            has_closed: false,
            answers_pings: true,
        }
    }

    pub fn room(&self) -> Option<usize> {
        match self.kind {
            Kind::WebSocket { room, .. } => Some(room),
            Kind::Http => None,
        }
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
    pub fn read(&mut self, taken: &[u8]) {
        loop {
            let rest = &taken[self.at..];
            let used = if self.upgraded { self.read_frame(rest) } else { self.read_answer(rest) };
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
            assert!(self.room().is_some(), "a 101 that nobody asked for");
            self.upgraded = true;
            return Some(end);
        }
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("a length");
        let whole = end + length.parse::<usize>().expect("a length");
        if rest.len() < whole {
            return None;
        }
        assert!(matches!(status, 200 | 502 | 503), "{head}{}", String::from_utf8_lossy(&rest[end..whole]));
        self.answers += 1;
        Some(whole)
    }

    fn read_frame(&mut self, rest: &[u8]) -> Option<usize> {
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
                let mut parts = text.split(':');
                let number = parts.next().and_then(|n| n.strip_prefix('p')?.parse().ok());
                let number: usize = number.unwrap_or_else(|| panic!("a torn frame: {text:?}"));
                let room: usize = parts.next().and_then(|room| room.parse().ok()).expect("a room");
                assert!(text.ends_with('.'), "a torn frame: {text:?}");
                assert_eq!(Some(room), self.room(), "publication {number} of another room");
                self.heard.push(number);
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
}
