//! One connection's frames, as a client sends them.

use shards::close::CloseReason;
use shards::session::{Event, Input, Session, SessionBounds};

use crate::cut;

/// What came out of a session.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    events: Vec<Said>,
    error: Option<CloseReason>,
}

/// An [`Event`] that owns what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

/// Frames say the same however they are cut, keep to the bounds, hold no more than arrived, and what they said can be said
/// again.
pub(crate) fn session(input: &[u8]) {
    let served = SessionBounds { message_bytes_max: 64 * 1024, fragments_max: 131_072 };
    let tight = SessionBounds { message_bytes_max: 16, fragments_max: 3 };
    for bounds in [served, tight] {
        let whole = feed(&[input], &bounds);
        assert_eq!(feed(&cut::pieces(input), &bounds), whole, "another result in pieces");
        assert_eq!(feed(&cut::octets(input), &bounds), whole, "another result octet by octet");
        for said in &whole.events {
            check_bounds(said, &bounds);
        }
        let again: Vec<u8> = whole.events.iter().flat_map(encode).collect();
        let due = Outcome { events: whole.events, error: None };
        assert_eq!(feed(&[&again], &bounds), due, "what was said is not understood when said again");
    }
}

fn feed(pieces: &[&[u8]], bounds: &SessionBounds) -> Outcome {
    let mut session = Session::default();
    let mut outcome = Outcome::default();
    let mut arrived_bytes = 0;
    for piece in pieces {
        let mut octets = piece.to_vec();
        arrived_bytes += octets.len();
        let mut input = Input::new(&mut octets);
        loop {
            let had_ended = session.has_ended();
            match session.next(&mut input, bounds) {
                Ok(None) => break,
                Ok(Some(event)) => {
                    assert!(!had_ended, "an event after the last one");
                    outcome.events.push(Said::of(event));
                }
                Err(reason) => {
                    assert!(!had_ended, "an error after the last event");
                    assert!(session.has_ended(), "a session goes on after an error");
                    outcome.error = Some(reason);
                }
            }
        }
        assert!(
            session.held_bytes() <= HELD_BYTES_FREE + 2 * arrived_bytes,
            "{} bytes are held of {arrived_bytes} that arrived",
            session.held_bytes()
        );
        assert!(
            !session.has_ended() || session.held_bytes() == 0,
            "a session that has ended holds something"
        );
    }
    outcome
}

fn check_bounds(said: &Said, bounds: &SessionBounds) {
    match said {
        Said::Text(text) => assert!(text.len() <= bounds.message_bytes_max, "a text above its bound"),
        Said::Binary(octets) => {
            assert!(octets.len() <= bounds.message_bytes_max, "a message above its bound")
        }
        Said::Ping(payload) | Said::Pong(payload) => {
            assert!(payload.len() <= CONTROL_PAYLOAD_BYTES_MAX, "a control frame above its bound");
        }
        Said::Close(code, reason) => {
            assert!(code.is_some() || reason.is_empty(), "a reason without a code");
            assert!(code.is_none_or(shards::close::code_is_allowed_from_peer), "a code that nobody may send");
            assert!(reason.len() <= CONTROL_PAYLOAD_BYTES_MAX - 2, "a reason above its bound");
        }
    }
}

/// As one final frame of a client, masked.
fn encode(said: &Said) -> Vec<u8> {
    let (opcode, payload) = match said {
        Said::Text(text) => (1, text.as_bytes().to_vec()),
        Said::Binary(octets) => (2, octets.clone()),
        Said::Close(None, _) => (8, Vec::new()),
        Said::Close(Some(code), reason) => (8, [&code.to_be_bytes(), reason.as_bytes()].concat()),
        Said::Ping(payload) => (9, payload.clone()),
        Said::Pong(payload) => (10, payload.clone()),
    };
    let (mut header, header_bytes) = shards::frame::encode_header(0x80 | opcode, payload.len());
    header[1] |= 0x80;
    let masked = payload.iter().zip(MASK.iter().cycle()).map(|(octet, key)| octet ^ key);
    header[..header_bytes].iter().copied().chain(MASK).chain(masked).collect()
}

impl Said {
    fn of(event: Event<'_>) -> Self {
        match event {
            Event::Text(text) => Self::Text(text.to_owned()),
            Event::Binary(octets) => Self::Binary(octets.to_vec()),
            Event::Ping(payload) => Self::Ping(payload.to_vec()),
            Event::Pong(payload) => Self::Pong(payload.to_vec()),
            Event::Close { code, reason } => Self::Close(code, reason.to_owned()),
        }
    }
}

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
/// RFC 6455 section 5.5.
const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;
/// A box for what isn't whole, and the least that a vector takes.
const HELD_BYTES_FREE: usize = 512;
