//! One connection's WebSocket protocol state, the server's receiving side: octets in, events out (RFC 6455).
//!
//! A frame that arrived whole is unmasked where it lies and never copied. What arrived in part (half a header, half a
//! frame, a message in fragments) is kept in a box that is freed when it is whole, so that an idle connection keeps
//! nothing. Buffers grow with what arrived, never with what a header declares. Nothing here writes; the answers are
//! encoded by [`frame`](crate::frame).

use std::io::Cursor;
use std::ops::Range;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::close::{CloseReason, code_is_allowed_from_peer};
use crate::limits::{Bounds, CONTROL_PAYLOAD_BYTES_MAX, FRAGMENT_BYTES_MEAN_MIN, FRAGMENTS_FREE};

/// Where the protocol of one connection stands. Its default is the moment after the 101.
#[derive(Debug, Default)]
pub struct Session {
    /// What arrived and isn't whole, and what the last event borrows.
    partial: Option<Box<Partial>>,
    /// A Close frame came or the protocol was broken: what follows is ignored.
    ended: bool,
}

/// What one `recv` brought. Payloads are unmasked in it, and events borrow from it.
#[derive(Debug)]
pub struct Input<'b> {
    octets: &'b mut [u8],
    taken: usize,
}

/// The bounds that a session keeps its peer to; see the fields of the same names in [`Bounds`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionBounds {
    /// Bytes of one message over all its fragments.
    pub message_bytes_max: usize,
    /// Frames of one message.
    pub fragments_max: u32,
}

/// What a peer said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// To be answered by a Pong with the same payload, at most 125 bytes.
    Ping(&'a [u8]),
    /// An answer to a Ping, or unasked.
    Pong(&'a [u8]),
    /// To be answered by a Close frame; the last event of the session.
    Close {
        /// A code that a peer may send; `None` where the frame was empty.
        code: Option<u16>,
        /// At most 123 bytes.
        reason: &'a str,
    },
}

impl Session {
    /// The next event of `input`; `None` when all of it is consumed.
    ///
    /// Call it until it says `None` before the buffer behind `input` is used again: that call also frees what the last
    /// event borrowed. The work is linear in the octets that arrive, however they are cut. After an event
    /// [`Event::Close`] or an error everything is consumed and ignored.
    ///
    /// # Errors
    /// [`CloseReason::ProtocolError`] for a frame that breaks RFC 6455: not masked (section 5.1), reserved bits or
    /// opcode, a length above 2^63 or not in its shortest form (5.2), a fragmented control frame or one above 125 bytes
    /// (5.5), a continuation without a start or a start inside a message (5.4), a Close frame with half a code or one that
    /// a peer may not send (7.4). [`CloseReason::InvalidUtf8`] for a text or a close reason that is no UTF-8 (8.1), as
    /// soon as no further octet could mend it. [`CloseReason::MessageTooBig`] and [`CloseReason::TooManyFragments`]
    /// from the header of the frame that exceeds `bounds`.
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut Input<'_>,
        bounds: &SessionBounds,
    ) -> Result<Option<Event<'a>>, CloseReason> {
        self.release();
        if self.ended {
            // A message that the peer began and closed over: up to its whole bound, for as long as the socket lingers.
            self.partial = None;
            input.take(usize::MAX);
            return Ok(None);
        }
        let (kind, place) = match self.receive(input, bounds) {
            Ok(Some(whole)) => whole,
            Ok(None) => return Ok(None),
            Err(reason) => {
                self.ended = true;
                self.partial = None;
                return Err(reason);
            }
        };
        let payload = match place {
            Place::Input(range) => &input.octets[range],
            Place::Held => self.partial.as_deref().map_or(&[][..], |partial| partial.payload(kind)),
        };
        let event = kind.event(payload);
        self.ended = kind == Kind::Close || event.is_err();
        event.map(Some)
    }

    /// Whether the session has yielded its last event or error.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Heap bytes kept for what has arrived in part; 0 for an idle connection.
    pub fn held_bytes(&self) -> usize {
        self.partial.as_deref().map_or(0, |partial| {
            let message_bytes = partial.message.as_ref().map_or(0, |message| message.payload.capacity());
            size_of::<Partial>() + partial.control.capacity() + message_bytes
        })
    }

    /// Takes frames out of `input` until one completes an event, and says where its payload lies.
    fn receive(
        &mut self,
        input: &mut Input<'_>,
        bounds: &SessionBounds,
    ) -> Result<Option<(Kind, Place)>, CloseReason> {
        loop {
            let (mut frame, resumed) =
                match self.partial.as_deref_mut().and_then(|partial| partial.frame.take()) {
                    Some(frame) => (frame, true),
                    None => match self.take_header(input)? {
                        Some(header) => (self.admit(&header, bounds)?, false),
                        None => return Ok(None),
                    },
                };
            let range = input.take(frame.due_bytes);
            let payload = &mut input.octets[range.clone()];
            unmask(payload, frame.mask);
            // The key is rotated instead of remembering how far it was used.
            frame.mask.rotate_left(payload.len() % 4);
            frame.due_bytes -= payload.len();

            let whole = frame.due_bytes == 0;
            if whole && !resumed && frame.stands_alone() {
                return Ok(Some((frame.kind, Place::Input(range))));
            }
            let partial = self.partial.get_or_insert_default();
            partial.hold(&frame, payload)?;
            if !whole {
                partial.frame = Some(frame);
                partial.check();
                return Ok(None);
            }
            if frame.last {
                partial.delivered = Some(frame.kind);
                partial.check();
                return Ok(Some((frame.kind, Place::Held)));
            }
        }
    }

    /// Takes a frame's header, or keeps the part of it that is there.
    fn take_header(&mut self, input: &mut Input<'_>) -> Result<Option<Header>, CloseReason> {
        let mut octets = [0; HEADER_BYTES_MAX];
        let held_bytes = self.partial.as_deref().map_or(0, |partial| {
            octets = partial.header;
            usize::from(partial.header_bytes)
        });
        let rest = &input.octets[input.taken..];
        let fresh_bytes = rest.len().min(HEADER_BYTES_MAX - held_bytes);
        let header_bytes = held_bytes + fresh_bytes;
        octets[held_bytes..header_bytes].copy_from_slice(&rest[..fresh_bytes]);

        let header = Header::parse(&octets[..header_bytes])?;
        match &header {
            Some(header) => {
                input.take(header.bytes - held_bytes);
                if let Some(partial) = &mut self.partial {
                    partial.header_bytes = 0;
                }
            }
            None if header_bytes > 0 => {
                input.take(fresh_bytes);
                let partial = self.partial.get_or_insert_default();
                partial.header = octets;
                partial.header_bytes = header_bytes as u8;
                partial.check();
            }
            None => {}
        }
        Ok(header)
    }

    /// Judges by its header whether a frame may come now, before a byte of it is kept.
    fn admit(&mut self, header: &Header, bounds: &SessionBounds) -> Result<Incoming, CloseReason> {
        let message = self.partial.as_deref_mut().and_then(|partial| partial.message.as_mut());
        let message_bytes = message.as_ref().map_or(0, |message| message.payload.len());
        let (kind, first) = match (header.opcode, &message) {
            (OpCode::Control(control), _) => (Kind::of_control(control)?, true),
            (OpCode::Data(Data::Text), None) => (Kind::Text, true),
            (OpCode::Data(Data::Binary), None) => (Kind::Binary, true),
            (OpCode::Data(Data::Continue), Some(message)) => (message.kind, false),
            (OpCode::Data(_), _) => return Err(CloseReason::ProtocolError),
        };
        if kind.is_control() {
            if !header.last || header.payload_bytes > CONTROL_PAYLOAD_BYTES_MAX as u64 {
                return Err(CloseReason::ProtocolError);
            }
        } else if header.payload_bytes > bounds.message_bytes_max.saturating_sub(message_bytes) as u64 {
            return Err(CloseReason::MessageTooBig);
        }
        // What passed above fits a usize.
        let due_bytes = header.payload_bytes as usize;
        if let Some(message) = message.filter(|_| !first) {
            message.admit_fragment(due_bytes, bounds)?;
        }
        Ok(Incoming { kind, first, last: header.last, mask: header.mask, due_bytes })
    }

    /// Frees what the last event borrowed, and the box when nothing else is in it.
    fn release(&mut self) {
        let Some(partial) = self.partial.as_deref_mut() else { return };
        match partial.delivered.take() {
            Some(kind) if kind.is_control() => partial.control = Vec::new(),
            Some(_) => partial.message = None,
            None => {}
        }
        if partial.is_empty() {
            self.partial = None;
        }
    }
}

impl<'b> Input<'b> {
    /// Wraps what one `recv` brought; the octets are changed in place.
    pub fn new(octets: &'b mut [u8]) -> Self {
        Self { octets, taken: 0 }
    }

    /// Takes up to `bytes_max` of what is left.
    fn take(&mut self, bytes_max: usize) -> Range<usize> {
        let start = self.taken;
        self.taken += bytes_max.min(self.octets.len() - start);
        start..self.taken
    }
}

impl From<&Bounds> for SessionBounds {
    fn from(bounds: &Bounds) -> Self {
        Self { message_bytes_max: bounds.message_bytes_max, fragments_max: bounds.fragments_max }
    }
}

/// A frame's header, with all that can be judged without knowing what came before it.
struct Header {
    opcode: OpCode,
    last: bool,
    mask: [u8; 4],
    payload_bytes: u64,
    /// Bytes of the header itself.
    bytes: usize,
}

impl Header {
    /// Reads a header; `None` while it isn't whole.
    fn parse(octets: &[u8]) -> Result<Option<Header>, CloseReason> {
        let mut cursor = Cursor::new(octets);
        // Its only error is a reserved opcode. It checks neither the reserved bits nor the mask nor the length's form.
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_| CloseReason::ProtocolError)?;
        let Some((header, payload_bytes)) = parsed else { return Ok(None) };
        let bytes = cursor.position() as usize;
        let length_is_shortest = header.len(payload_bytes) == bytes;
        let length_is_signed = payload_bytes > i64::MAX as u64;
        let Some(mask) = header.mask else { return Err(CloseReason::ProtocolError) };
        if header.rsv1 || header.rsv2 || header.rsv3 || length_is_signed || !length_is_shortest {
            return Err(CloseReason::ProtocolError);
        }
        Ok(Some(Header { opcode: header.opcode, last: header.is_final, mask, payload_bytes, bytes }))
    }
}

/// A frame whose payload is on its way.
#[derive(Debug)]
struct Incoming {
    kind: Kind,
    /// It starts its message; true for control frames.
    first: bool,
    /// It ends its message; true for control frames.
    last: bool,
    /// The key, rotated to the next octet.
    mask: [u8; 4],
    /// Payload still to come.
    due_bytes: usize,
}

impl Incoming {
    fn stands_alone(&self) -> bool {
        self.first && self.last
    }
}

/// What an event will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Binary,
    Ping,
    Pong,
    Close,
}

impl Kind {
    fn of_control(control: Control) -> Result<Kind, CloseReason> {
        match control {
            Control::Ping => Ok(Kind::Ping),
            Control::Pong => Ok(Kind::Pong),
            Control::Close => Ok(Kind::Close),
            Control::Reserved(_) => Err(CloseReason::ProtocolError),
        }
    }

    fn is_control(self) -> bool {
        !matches!(self, Kind::Text | Kind::Binary)
    }

    fn event(self, payload: &[u8]) -> Result<Event<'_>, CloseReason> {
        match self {
            Kind::Text => Ok(Event::Text(utf8(payload)?)),
            Kind::Binary => Ok(Event::Binary(payload)),
            Kind::Ping => Ok(Event::Ping(payload)),
            Kind::Pong => Ok(Event::Pong(payload)),
            Kind::Close => close_event(payload),
        }
    }
}

/// RFC 6455 section 5.5.1: an empty body, or a code and a reason.
fn close_event(body: &[u8]) -> Result<Event<'_>, CloseReason> {
    let Some((code, reason)) = body.split_first_chunk::<2>() else {
        return match body {
            [] => Ok(Event::Close { code: None, reason: "" }),
            _ => Err(CloseReason::ProtocolError),
        };
    };
    let code = u16::from_be_bytes(*code);
    if !code_is_allowed_from_peer(code) {
        return Err(CloseReason::ProtocolError);
    }
    Ok(Event::Close { code: Some(code), reason: utf8(reason)? })
}

fn utf8(octets: &[u8]) -> Result<&str, CloseReason> {
    std::str::from_utf8(octets).map_err(|_| CloseReason::InvalidUtf8)
}

/// Where the payload of an event lies.
enum Place {
    Input(Range<usize>),
    Held,
}

/// What is kept between two `recv`s. Control frames have a buffer of their own: they come inside fragmented messages.
#[derive(Debug, Default)]
struct Partial {
    header: [u8; HEADER_BYTES_MAX],
    /// Octets of `header` that arrived; 0 when none is awaited.
    header_bytes: u8,
    /// The frame whose payload is on its way.
    frame: Option<Incoming>,
    /// Payload of a control frame.
    control: Vec<u8>,
    /// A message in fragments, or in one frame that came in pieces.
    message: Option<Message>,
    /// What the last event borrowed from here.
    delivered: Option<Kind>,
}

impl Partial {
    /// Keeps a piece of `frame`'s payload, of which `frame.due_bytes` are still to come.
    fn hold(&mut self, frame: &Incoming, piece: &[u8]) -> Result<(), CloseReason> {
        if frame.kind.is_control() {
            self.control.extend_from_slice(piece);
            return Ok(());
        }
        let message = self.message.get_or_insert_with(|| Message::new(frame.kind));
        message.append(piece, frame.last.then_some(frame.due_bytes));
        // A message that is whole is checked whole when it becomes an event.
        if frame.last && frame.due_bytes == 0 { Ok(()) } else { message.check_text() }
    }

    fn payload(&self, kind: Kind) -> &[u8] {
        if kind.is_control() {
            &self.control
        } else {
            self.message.as_ref().map_or(&[], |message| &message.payload)
        }
    }

    fn is_empty(&self) -> bool {
        self.header_bytes == 0 && self.frame.is_none() && self.message.is_none() && self.control.is_empty()
    }

    fn check(&self) {
        debug_assert!(
            self.header_bytes == 0 || self.frame.is_none(),
            "a header inside another frame's payload"
        );
        debug_assert!(usize::from(self.header_bytes) < HEADER_BYTES_MAX, "a whole header was not read");
        debug_assert!(
            self.control.len() <= CONTROL_PAYLOAD_BYTES_MAX,
            "a control frame above its bound was kept"
        );
        debug_assert!(self.delivered.is_none() || self.frame.is_none(), "an event was made of half a frame");
    }
}

/// The payload of a data message so far.
#[derive(Debug)]
struct Message {
    kind: Kind,
    payload: Vec<u8>,
    /// Bytes of `payload` known to be UTF-8; short of its length by at most 3, a character that isn't whole.
    checked_bytes: usize,
    fragments: u32,
}

impl Message {
    fn new(kind: Kind) -> Self {
        Self { kind, payload: Vec::new(), checked_bytes: 0, fragments: 1 }
    }

    /// Counts a continuation of `fragment_bytes`, all of them declared and none arrived.
    fn admit_fragment(&mut self, fragment_bytes: usize, bounds: &SessionBounds) -> Result<(), CloseReason> {
        self.fragments += 1;
        let mean_is_due = self.fragments > FRAGMENTS_FREE;
        let bytes_min = self.fragments as usize * FRAGMENT_BYTES_MEAN_MIN;
        if self.fragments > bounds.fragments_max
            || mean_is_due && self.payload.len() + fragment_bytes < bytes_min
        {
            return Err(CloseReason::TooManyFragments);
        }
        Ok(())
    }

    /// Appends `piece`; `end_bytes` are what the message still lacks after it, where that is known.
    ///
    /// The buffer doubles, so that a message is moved a bounded number of times however it arrives. It is cut to the known
    /// end only where that is nearer than the doubling, so a declared length alone reserves nothing.
    fn append(&mut self, piece: &[u8], end_bytes: Option<usize>) {
        let spare_bytes = self.payload.capacity() - self.payload.len();
        if piece.len() > spare_bytes {
            let due_bytes = end_bytes.map(|end_bytes| piece.len() + end_bytes);
            match due_bytes.filter(|&due_bytes| due_bytes <= self.payload.len().max(piece.len())) {
                Some(due_bytes) => self.payload.reserve_exact(due_bytes),
                None => self.payload.reserve(piece.len()),
            }
        }
        self.payload.extend_from_slice(piece);
    }

    /// Refuses a text as soon as no further octet could make it UTF-8.
    fn check_text(&mut self) -> Result<(), CloseReason> {
        if self.kind != Kind::Text {
            return Ok(());
        }
        match std::str::from_utf8(&self.payload[self.checked_bytes..]) {
            Ok(text) => self.checked_bytes += text.len(),
            // No length: the text ends inside a character that may yet become whole.
            Err(error) if error.error_len().is_none() => self.checked_bytes += error.valid_up_to(),
            Err(_) => return Err(CloseReason::InvalidUtf8),
        }
        debug_assert!(
            self.payload.len() - self.checked_bytes <= 3,
            "more octets than a character are unchecked"
        );
        Ok(())
    }
}

/// RFC 6455 section 5.3: octet i is XORed with octet i modulo 4 of the key. Eight at a time, which vectorises.
fn unmask(octets: &mut [u8], mask: [u8; 4]) {
    let key = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let (words, tail) = octets.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ key).to_ne_bytes();
    }
    for (octet, key) in tail.iter_mut().zip(mask.iter().cycle()) {
        *octet ^= key;
    }
}

/// Two octets, a length of eight, and the masking key (RFC 6455 section 5.2).
const HEADER_BYTES_MAX: usize = 14;

const _: () = assert!(size_of::<Session>() <= 16, "every idle connection pays for a session");

#[cfg(test)]
mod tests;
