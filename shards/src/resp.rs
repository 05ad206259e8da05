//! RESP from Redis: where one frame ends, and what it says.
//!
//! An [`Inbox`] holds received bytes and hands out complete frames, borrowed. It counts lengths only, keeps its place
//! between reads (a bulk string that arrives in small pieces costs linear work) and refuses what is over
//! [`limits`](crate::limits) before anything is kept or allocated for it. A [`Frame`] is one complete frame decoded by
//! `redis-protocol`, which re-parses an incomplete frame from its start and trusts lengths, so it sees neither.
//!
//! Nothing here is owned: who keeps a payload copies it, so that no small payload pins the buffer it came in.
//!
//! Source: the RESP2 and RESP3 specification, <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

use redis_protocol::resp2::decode::decode_range as decode_resp2;
use redis_protocol::resp2::types::RangeFrame as Resp2;
use redis_protocol::resp3::decode::complete::decode_range as decode_resp3;
use redis_protocol::resp3::types::RangeFrame as Resp3;

use crate::limits::{
    KIB, RECEIVE_BUFFER_BYTES, RESP_BULK_BYTES_MAX, RESP_DEPTH_MAX, RESP_ELEMENTS_MAX, RESP_FRAME_BYTES_MAX,
    RESP_LINE_BYTES_MAX, RESP_SKIP_BYTES_MAX,
};

mod node;
mod opening;
mod publication;

pub use node::Node;
pub use opening::Opening;
pub use publication::Publication;

/// What Redis sent is not RESP, or is more of it than we take. The connection can't be used any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RespError {
    /// A value begins with a byte that no type has.
    #[error("byte {0:#04x} where a RESP type was due: is this port a Redis server's, without TLS?")]
    Type(u8),
    /// A length is not a number that its type may have.
    #[error("{0:?} where the length of a RESP value was due")]
    Length(String),
    /// A line doesn't end.
    #[error("a RESP line of more than {RESP_LINE_BYTES_MAX} bytes")]
    Line,
    /// A frame is too long even to be skipped.
    #[error("a RESP frame of {bytes} bytes; frames of more than {RESP_SKIP_BYTES_MAX} are not even skipped")]
    TooLong {
        /// As far as it was declared.
        bytes: u64,
    },
    /// An aggregate has too many elements.
    #[error("a RESP frame of {found} elements, more than {due}")]
    Elements {
        /// As far as they were declared.
        found: u64,
        /// Its inbox's bound.
        due: u64,
    },
    /// Aggregates are nested too deep.
    #[error("RESP aggregates nested deeper than {RESP_DEPTH_MAX}")]
    Depth,
    /// A bulk string is not followed by CRLF.
    #[error("a RESP bulk string that does not end where its length says")]
    Terminator,
    /// The frame is complete but says nothing valid.
    #[error("a RESP frame that does not decode: {0}")]
    Invalid(String),
}

/// What [`Inbox::take_frame`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// One complete frame, to be decoded with [`Frame::decode`].
    Frame(&'a [u8]),
    /// A frame longer than [`RESP_FRAME_BYTES_MAX`] came by and was discarded as it arrived.
    TooBig {
        /// Its length.
        bytes: u64,
    },
}

/// Received bytes, and the frames in them.
///
/// It holds at most twice the longest frame and one read: the buffer grows with what arrived, never with what was
/// declared, and shrinks when a large frame has gone.
#[derive(Debug)]
pub struct Inbox {
    buffer: Vec<u8>,
    /// Where the frame begins that is scanned now.
    start: usize,
    scanner: Scanner,
}

impl Inbox {
    /// An empty inbox; the first read allocates.
    pub fn new() -> Self {
        Self::with_elements_max(RESP_ELEMENTS_MAX as u64)
    }

    /// One for answers that may have more elements than [`RESP_ELEMENTS_MAX`].
    pub fn with_elements_max(elements_max: u64) -> Self {
        assert!(elements_max <= u64::from(u32::MAX), "the elements of an aggregate are counted in 32 bits");
        Self { buffer: Vec::new(), start: 0, scanner: Scanner::new(elements_max) }
    }

    /// One that skips a frame of more elements like one of more bytes: whoever asked for it asks for less.
    pub fn skipping_elements(elements_max: u64) -> Self {
        let mut inbox = Self::with_elements_max(elements_max);
        inbox.scanner.skips_elements = true;
        inbox
    }

    /// The buffer to read into, behind what it holds; at least [`RECEIVE_BUFFER_BYTES`] / 2 of capacity are free.
    ///
    /// Give it back with [`put_buffer`](Self::put_buffer), whatever came.
    pub fn take_buffer(&mut self) -> Vec<u8> {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            if self.buffer.capacity() > KEPT_BYTES_MAX {
                self.buffer = Vec::new();
            }
        } else if self.start > 0 {
            // What moves came with the last read, because a frame in front of it did: linear over all reads.
            self.buffer.copy_within(self.start.., 0);
            self.buffer.truncate(self.buffer.len() - self.start);
        }
        self.start = 0;
        if self.buffer.capacity() - self.buffer.len() < RECEIVE_BUFFER_BYTES / 2 {
            // Doubling, so that copies stay linear, but not beyond what the frame still needs.
            let held = self.buffer.len();
            let lacking = self.scanner.bytes_lacking(held);
            self.buffer.reserve_exact(lacking.clamp(RECEIVE_BUFFER_BYTES, held.max(RECEIVE_BUFFER_BYTES)));
        }
        std::mem::take(&mut self.buffer)
    }

    /// Takes back what [`take_buffer`](Self::take_buffer) gave, with the bytes that were received appended.
    pub fn put_buffer(&mut self, buffer: Vec<u8>) {
        debug_assert!(self.buffer.is_empty() && self.start == 0, "the buffer was not taken");
        self.buffer = buffer;
    }

    /// The next complete frame; `None` when more bytes are due.
    ///
    /// # Errors
    /// [`RespError`], after which the inbox is of no use.
    pub fn take_frame(&mut self) -> Result<Option<Received<'_>>, RespError> {
        let end = self.scanner.scan(&self.buffer[self.start..])?;
        if self.scanner.too_big {
            return Ok(self.skip(end));
        }
        let Some(length) = end else { return Ok(None) };
        let frame = self.start..self.start + length;
        self.start = frame.end;
        self.scanner = self.scanner.anew();
        Ok(Some(Received::Frame(&self.buffer[frame])))
    }

    /// The next frame, if it is a publication and complete; otherwise it is [`take_frame`](Self::take_frame)'s.
    pub fn take_publication(&mut self) -> Option<Publication<'_>> {
        if !self.scanner.is_at_start() {
            return None;
        }
        let (publication, length) = Publication::at_front(&self.buffer[self.start..])?;
        self.start += length;
        Some(publication)
    }

    /// Bytes allocated, for tests and memory accounting.
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    fn skip(&mut self, end: Option<usize>) -> Option<Received<'static>> {
        if let Some(length) = end {
            self.start += length;
            let bytes = self.scanner.skipped_bytes + length as u64;
            self.scanner = self.scanner.anew();
            return Some(Received::TooBig { bytes });
        }
        self.start += self.scanner.forget(self.buffer.len() - self.start);
        None
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

/// Finds the end of one frame, a piece at a time. All positions count from the frame's first byte that is still held.
#[derive(Debug)]
struct Scanner {
    /// Everything before this has been understood.
    at: usize,
    /// Bytes from `at` that are known to hold no end of line.
    searched_bytes: usize,
    /// End of the bulk string that is awaited, its CRLF included.
    bulk_end: Option<usize>,
    /// Values still due at each depth; depth 0 is the frame itself.
    due: [u32; RESP_DEPTH_MAX + 1],
    depth: usize,
    elements: u64,
    elements_max: u64,
    /// A frame of more elements is skipped, instead of ending the connection.
    skips_elements: bool,
    too_big: bool,
    /// Bytes of this frame that have been forgotten, when it is too big.
    skipped_bytes: u64,
}

impl Scanner {
    fn new(elements_max: u64) -> Self {
        let mut due = [0; RESP_DEPTH_MAX + 1];
        due[0] = 1;
        Self {
            at: 0,
            searched_bytes: 0,
            bulk_end: None,
            due,
            depth: 0,
            elements: 0,
            elements_max,
            skips_elements: false,
            too_big: false,
            skipped_bytes: 0,
        }
    }

    /// For the next frame.
    fn anew(&self) -> Self {
        Self { skips_elements: self.skips_elements, ..Self::new(self.elements_max) }
    }

    /// Nothing of the frame has been understood or forgotten.
    fn is_at_start(&self) -> bool {
        self.at == 0 && self.skipped_bytes == 0
    }

    /// Length of the frame that `held` begins with, `None` when it is not complete.
    fn scan(&mut self, held: &[u8]) -> Result<Option<usize>, RespError> {
        loop {
            let goes_on = match self.bulk_end {
                Some(end) => self.pass_bulk(held, end)?,
                None => self.pass_line(held)?,
            };
            if !goes_on {
                return Ok(None);
            }
            self.close_aggregates();
            if self.due[0] == 0 {
                return Ok(Some(self.at));
            }
        }
    }

    fn pass_bulk(&mut self, held: &[u8], end: usize) -> Result<bool, RespError> {
        if held.len() < end {
            return Ok(false);
        }
        if &held[end - 2..end] != b"\r\n" {
            return Err(RespError::Terminator);
        }
        self.at = end;
        self.bulk_end = None;
        self.due[self.depth] -= 1;
        Ok(true)
    }

    fn pass_line(&mut self, held: &[u8]) -> Result<bool, RespError> {
        let Some(&kind) = held.get(self.at) else { return Ok(false) };
        if !b"+-:,#_($!=*%~>|".contains(&kind) {
            return Err(RespError::Type(kind));
        }
        let body = self.at + 1;
        let Some(body_end) = self.find_line_end(held, body) else {
            // Two more: the type, and a CR whose LF is due.
            let too_long = self.searched_bytes > RESP_LINE_BYTES_MAX + 2;
            return if too_long { Err(RespError::Line) } else { Ok(false) };
        };
        if body_end - body > RESP_LINE_BYTES_MAX {
            return Err(RespError::Line);
        }
        self.at = body_end + 2;
        self.searched_bytes = 0;
        self.open(kind, &held[body..body_end])?;
        self.check_length(self.at)?;
        Ok(true)
    }

    /// Where the CRLF begins that ends the line of `body`. A lone CR or LF is part of the line.
    fn find_line_end(&mut self, held: &[u8], body: usize) -> Option<usize> {
        let mut from = body.max(self.at + self.searched_bytes);
        while let Some(found) = held[from.min(held.len())..].iter().position(|&byte| byte == b'\n') {
            let newline = from + found;
            if newline > body && held[newline - 1] == b'\r' {
                return Some(newline - 1);
            }
            from = newline + 1;
        }
        self.searched_bytes = held.len() - self.at;
        None
    }

    fn open(&mut self, kind: u8, line: &[u8]) -> Result<(), RespError> {
        match kind {
            b'$' | b'!' | b'=' => self.open_bulk(kind, line),
            b'*' | b'%' | b'~' | b'>' | b'|' => self.open_aggregate(kind, line),
            _ => {
                self.due[self.depth] -= 1;
                Ok(())
            }
        }
    }

    fn open_bulk(&mut self, kind: u8, line: &[u8]) -> Result<(), RespError> {
        if kind == b'$' && line == b"-1" {
            self.due[self.depth] -= 1;
            return Ok(());
        }
        let bytes = declared(line)?;
        if bytes > RESP_SKIP_BYTES_MAX {
            return Err(RespError::TooLong { bytes });
        }
        self.too_big |= bytes > RESP_BULK_BYTES_MAX as u64;
        // No overflow: below RESP_SKIP_BYTES_MAX, which fits a usize.
        let end = self.at + bytes as usize + 2;
        self.bulk_end = Some(end);
        self.check_length(end)
    }

    fn open_aggregate(&mut self, kind: u8, line: &[u8]) -> Result<(), RespError> {
        if kind == b'*' && line == b"-1" {
            self.due[self.depth] -= 1;
            return Ok(());
        }
        let declared = declared(line)?;
        let values = if matches!(kind, b'%' | b'|') { declared.saturating_mul(2) } else { declared };
        self.elements = self.elements.saturating_add(values);
        let is_skipped = self.skips_elements && values <= u64::from(u32::MAX);
        self.too_big |= self.elements > self.elements_max;
        if self.elements > self.elements_max && !is_skipped {
            let (found, due) = (self.elements, self.elements_max);
            return Err(RespError::Elements { found, due });
        }
        if self.depth == RESP_DEPTH_MAX {
            return Err(RespError::Depth);
        }
        // An attribute stands in front of its value: that one is still due.
        self.due[self.depth] += u32::from(kind == b'|');
        self.depth += 1;
        // No truncation: at most `elements_max`, or judged above.
        self.due[self.depth] = values as u32;
        Ok(())
    }

    fn close_aggregates(&mut self) {
        while self.depth > 0 && self.due[self.depth] == 0 && self.bulk_end.is_none() {
            self.depth -= 1;
            self.due[self.depth] -= 1;
        }
    }

    /// A frame over its bound is skipped, one over the bound of skipping ends the connection.
    fn check_length(&mut self, end: usize) -> Result<(), RespError> {
        let bytes = self.skipped_bytes + end as u64;
        self.too_big |= bytes > RESP_FRAME_BYTES_MAX as u64;
        if bytes > RESP_SKIP_BYTES_MAX { Err(RespError::TooLong { bytes }) } else { Ok(()) }
    }

    /// Bytes known to be due beyond `held_bytes`.
    fn bytes_lacking(&self, held_bytes: usize) -> usize {
        match self.bulk_end {
            Some(end) if !self.too_big => end.saturating_sub(held_bytes),
            _ => 0,
        }
    }

    /// How many of the `held_bytes` are not needed any more because the frame is too big; positions move by as many.
    fn forget(&mut self, held_bytes: usize) -> usize {
        let bytes = match self.bulk_end {
            // Its CRLF is still checked.
            Some(end) => held_bytes.min(end - 2),
            None => self.at,
        };
        self.skipped_bytes += bytes as u64;
        self.bulk_end = self.bulk_end.map(|end| end - bytes);
        self.at = self.at.saturating_sub(bytes);
        bytes
    }
}

fn declared(line: &[u8]) -> Result<u64, RespError> {
    // 18 digits can't overflow; signs and spaces are no lengths.
    let is_number = (1..=18).contains(&line.len()) && line.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(line).ok().filter(|_| is_number).and_then(|text| text.parse().ok());
    number.ok_or_else(|| RespError::Length(excerpt(line)))
}

/// At most 200 characters of what the other side said, without control characters: fit for a log line.
pub fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(800)]);
    text.chars().take(200).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The two forms of RESP, which disagree on nulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Before HELLO 3, and with servers that don't know it.
    Resp2,
    /// After HELLO 3.
    Resp3,
}

/// One decoded frame, borrowed from the bytes it was decoded from.
#[derive(Debug)]
pub struct Frame<'a> {
    bytes: &'a [u8],
    root: Root,
}

#[derive(Debug)]
enum Root {
    Resp2(Resp2),
    Resp3(Resp3),
}

/// A value of a frame. Only what sessions with Redis ask about is told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// A bulk, simple or verbatim string.
    Text(&'a [u8]),
    /// A simple or bulk error, without its `-`.
    Error(&'a [u8]),
    /// An integer.
    Integer(i64),
    /// A null of either protocol.
    Null,
    /// An array of so many values.
    Array(usize),
    /// A push of so many values.
    Push(usize),
    /// A map, as HELLO returns.
    Map,
    /// Anything else, by its name.
    Other(&'static str),
}

impl<'a> Frame<'a> {
    /// Decodes `bytes`, one complete frame out of an [`Inbox`].
    ///
    /// Allocates one vector per aggregate; strings stay where they are.
    ///
    /// # Errors
    /// [`RespError::Invalid`] when a number is no number, a null is of the other protocol, and the like.
    pub fn decode(protocol: Protocol, bytes: &'a [u8]) -> Result<Self, RespError> {
        let decoded = match protocol {
            Protocol::Resp2 => decode_resp2(bytes).map(|found| found.map(|(root, n)| (Root::Resp2(root), n))),
            Protocol::Resp3 => decode_resp3(bytes).map(|found| found.map(|(root, n)| (Root::Resp3(root), n))),
        };
        match decoded {
            Ok(Some((root, length))) if length == bytes.len() => Ok(Self { bytes, root }),
            Ok(_) => Err(RespError::Invalid("its parts do not add up to its length".into())),
            Err(error) => Err(RespError::Invalid(excerpt(error.details().as_bytes()))),
        }
    }

    /// The value that the frame is.
    pub fn value(&self) -> Value<'a> {
        match &self.root {
            Root::Resp2(value) => self.resp2(value),
            Root::Resp3(value) => self.resp3(value),
        }
    }

    /// The value at `index` of an array or a push; `None` where there is none.
    pub fn item(&self, index: usize) -> Option<Value<'a>> {
        match &self.root {
            Root::Resp2(Resp2::Array(items)) => items.get(index).map(|item| self.resp2(item)),
            Root::Resp3(Resp3::Array { data, .. } | Resp3::Push { data, .. }) => {
                data.get(index).map(|item| self.resp3(item))
            }
            _ => None,
        }
    }

    /// The frame as a place to go down from, where its values have values.
    pub fn node(&self) -> Node<'_, 'a> {
        match &self.root {
            Root::Resp2(value) => Node::resp2(self, value),
            Root::Resp3(value) => Node::resp3(self, value),
        }
    }

    fn resp2(&self, value: &Resp2) -> Value<'a> {
        match value {
            Resp2::SimpleString(range) | Resp2::BulkString(range) => Value::Text(self.slice(*range)),
            Resp2::Error(range) => Value::Error(self.slice(*range)),
            Resp2::Integer(number) => Value::Integer(*number),
            Resp2::Array(items) => Value::Array(items.len()),
            Resp2::Null => Value::Null,
        }
    }

    fn resp3(&self, value: &Resp3) -> Value<'a> {
        match value {
            Resp3::BlobString { data, .. }
            | Resp3::SimpleString { data, .. }
            | Resp3::VerbatimString { data, .. } => Value::Text(self.slice(*data)),
            Resp3::BlobError { data, .. } | Resp3::SimpleError { data, .. } => {
                Value::Error(self.slice(*data))
            }
            Resp3::Number { data, .. } => Value::Integer(*data),
            Resp3::Null => Value::Null,
            Resp3::Array { data, .. } => Value::Array(data.len()),
            Resp3::Push { data, .. } => Value::Push(data.len()),
            Resp3::Map { .. } => Value::Map,
            Resp3::Set { .. } => Value::Other("set"),
            Resp3::Boolean { .. } => Value::Other("boolean"),
            Resp3::Double { .. } => Value::Other("double"),
            Resp3::BigNumber { .. } => Value::Other("big number"),
            _ => Value::Other("streamed value"),
        }
    }

    fn slice(&self, (from, to): (usize, usize)) -> &'a [u8] {
        &self.bytes[from..to]
    }
}

impl Value<'_> {
    /// What the value is, for errors: a type's name, or what an error or a string says.
    pub fn describe(&self) -> String {
        match self {
            Self::Text(text) => format!("the string {:?}", excerpt(text)),
            Self::Error(text) => format!("the error {:?}", excerpt(text)),
            Self::Integer(number) => format!("the integer {number}"),
            Self::Null => "null".into(),
            Self::Array(length) => format!("an array of {length}"),
            Self::Push(length) => format!("a push of {length}"),
            Self::Map => "a map".into(),
            Self::Other(name) => format!("a {name}"),
        }
    }
}

/// A buffer that grew beyond this for one large frame is given back once the frame has gone.
const KEPT_BYTES_MAX: usize = 256 * KIB;

const _: () =
    assert!(KEPT_BYTES_MAX >= 2 * RECEIVE_BUFFER_BYTES, "a usual buffer would be freed on every read");
const _: () = assert!(RESP_SKIP_BYTES_MAX < usize::MAX as u64 / 2, "positions are usize");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::MIB;

    /// What came out of an inbox that was given `pieces`, at most `RECEIVE_BUFFER_BYTES` at a time.
    #[derive(Debug, Default, PartialEq)]
    struct Outcome {
        frames: Vec<Vec<u8>>,
        too_big: Vec<u64>,
        error: Option<RespError>,
    }

    fn feed<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> (Outcome, usize) {
        let mut inbox = Inbox::new();
        let mut outcome = Outcome::default();
        let mut capacity_max = 0;
        for piece in pieces.into_iter().flat_map(|piece| piece.chunks(RECEIVE_BUFFER_BYTES / 2)) {
            let mut buffer = inbox.take_buffer();
            assert!(buffer.capacity() - buffer.len() >= piece.len(), "too little room to read into");
            buffer.extend_from_slice(piece);
            capacity_max = capacity_max.max(buffer.capacity());
            inbox.put_buffer(buffer);
            loop {
                match inbox.take_frame() {
                    Ok(Some(Received::Frame(frame))) => outcome.frames.push(frame.to_vec()),
                    Ok(Some(Received::TooBig { bytes })) => outcome.too_big.push(bytes),
                    Ok(None) => break,
                    Err(error) => {
                        outcome.error = Some(error);
                        return (outcome, capacity_max);
                    }
                }
            }
        }
        (outcome, capacity_max)
    }

    #[test]
    fn a_publication_over_a_bound_or_misspelt_is_left_to_the_general_way() {
        let payload = vec![b'x'; RESP_BULK_BYTES_MAX + 1];
        let head = b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n";
        let too_big = [head.as_slice(), &bulk(&payload)].concat();
        assert_eq!(Publication::at_front(&too_big), None);
        for wrong in
            ["$\r\n\r\n", "$-1\r\n", "$+1\r\na\r\n", "$1\na\r\n", "$1\r\nab\r\n", "$99999999999999999999\r\n"]
        {
            let frame = [head.as_slice(), wrong.as_bytes()].concat();
            assert_eq!(Publication::at_front(&frame), None, "{wrong:?}");
        }
    }

    fn whole(bytes: &[u8]) -> Outcome {
        feed([bytes]).0
    }

    fn split_at(bytes: &[u8], cuts: &[usize]) -> Outcome {
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        feed(cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]])).0
    }

    fn bulk(payload: &[u8]) -> Vec<u8> {
        [format!("${}\r\n", payload.len()).as_bytes(), payload, b"\r\n"].concat()
    }

    /// Valid RESP of any type that Redis sends, nested at most three deep.
    fn value() -> impl Strategy<Value = Vec<u8>> {
        // A lone CR or LF is part of a line.
        let line = "([ -~\n]|\r[ -~]){0,12}";
        let scalar = prop_oneof![
            line.prop_map(|text| format!("+{text}\r\n").into_bytes()),
            line.prop_map(|text| format!("-{text}\r\n").into_bytes()),
            any::<i64>().prop_map(|number| format!(":{number}\r\n").into_bytes()),
            any::<bool>().prop_map(|b| if b { b"#t\r\n".to_vec() } else { b"#f\r\n".to_vec() }),
            Just(b"_\r\n".to_vec()),
            Just(b",3.25\r\n".to_vec()),
            Just(b"(34928903284092385094\r\n".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..300).prop_map(|payload| bulk(&payload)),
            Just(b"!5\r\nERR x\r\n".to_vec()),
            Just(b"=7\r\ntxt:abc\r\n".to_vec()),
        ];
        scalar.prop_recursive(3, 24, 5, |inner| {
            prop_oneof![
                (prop_oneof![Just('*'), Just('>')], proptest::collection::vec(inner.clone(), 0..5)).prop_map(
                    |(kind, items)| {
                        [format!("{kind}{}\r\n", items.len()).into_bytes(), items.concat()].concat()
                    }
                ),
                (inner.clone(), inner).prop_map(|(key, value)| {
                    [b"|1\r\n+k\r\n".as_slice(), &key, b"%1\r\n+k\r\n", &value].concat()
                }),
            ]
        })
    }

    /// Pattern, channel, payload.
    type Read = (Option<Vec<u8>>, Vec<u8>, Vec<u8>);

    /// A frame as the general way reads it, if it is a publication.
    fn read_generally(frame: &[u8]) -> Option<Read> {
        let frame = Frame::decode(Protocol::Resp3, frame).ok()?;
        let text = |index| match frame.item(index) {
            Some(Value::Text(text)) => Some(text.to_vec()),
            _ => None,
        };
        match (frame.value(), text(0)?.as_slice()) {
            (Value::Push(3) | Value::Array(3), b"message") => Some((None, text(1)?, text(2)?)),
            (Value::Push(4) | Value::Array(4), b"pmessage") => Some((Some(text(1)?), text(2)?, text(3)?)),
            _ => None,
        }
    }

    fn publication() -> impl Strategy<Value = Vec<u8>> {
        let text = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(|text| bulk(&text));
        (any::<bool>(), any::<bool>(), text(), text(), text()).prop_map(
            |(is_push, is_pattern, pattern, channel, payload)| {
                let kind = if is_push { b">" } else { b"*" };
                let head = match is_pattern {
                    true => [b"4\r\n".as_slice(), &bulk(b"pmessage"), &pattern].concat(),
                    false => [b"3\r\n".as_slice(), &bulk(b"message")].concat(),
                };
                [kind.as_slice(), &head, &channel, &payload].concat()
            },
        )
    }

    proptest! {
        #[test]
        fn publications_are_the_same_both_ways_however_the_input_is_cut(
            values in proptest::collection::vec(prop_oneof![3 => publication(), 1 => value()], 1..12),
            cuts in proptest::collection::vec(any::<usize>(), 0..6),
        ) {
            let bytes = values.concat();
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut inbox = Inbox::new();
            let mut found = Vec::new();
            for piece in cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]) {
                let mut buffer = inbox.take_buffer();
                buffer.extend_from_slice(piece);
                inbox.put_buffer(buffer);
                loop {
                    while let Some(Publication { pattern, channel, payload }) = inbox.take_publication() {
                        found.push(Some((pattern.map(<[u8]>::to_vec), channel.to_vec(), payload.to_vec())));
                    }
                    match inbox.take_frame() {
                        Ok(Some(Received::Frame(frame))) => found.push(read_generally(frame)),
                        Ok(None) => break,
                        other => panic!("{other:?}"),
                    }
                }
            }
            let due: Vec<_> = values.iter().map(|frame| read_generally(frame)).collect();
            prop_assert_eq!(found, due);
        }

        #[test]
        fn whole_publications_never_need_the_general_way(frame in publication()) {
            let (_, length) = Publication::at_front(&frame).expect("a publication");
            prop_assert_eq!(length, frame.len());
            for cut in 0..frame.len() {
                prop_assert_eq!(Publication::at_front(&frame[..cut]), None, "cut at {}", cut);
            }
        }

        #[test]
        fn any_split_of_the_input_gives_the_same_frames(
            values in proptest::collection::vec(value(), 1..8),
            cuts in proptest::collection::vec(any::<usize>(), 0..12),
        ) {
            let bytes = values.concat();
            let outcome = split_at(&bytes, &cuts);
            prop_assert_eq!(&outcome.error, &None);
            prop_assert_eq!(&outcome.frames, &values);
            let one_by_one: Vec<_> = (0..bytes.len()).collect();
            prop_assert_eq!(split_at(&bytes, &one_by_one), outcome);
        }

        #[test]
        fn a_truncated_input_is_a_prefix_of_the_frames_and_no_error(
            values in proptest::collection::vec(value(), 1..6),
            cut in any::<usize>(),
        ) {
            let bytes = values.concat();
            let outcome = whole(&bytes[..cut % bytes.len()]);
            prop_assert_eq!(&outcome.error, &None);
            prop_assert!(outcome.frames.len() < values.len());
            prop_assert_eq!(&outcome.frames[..], &values[..outcome.frames.len()]);
        }

        #[test]
        fn random_bytes_neither_panic_nor_grow_and_any_split_gives_the_same(
            bytes in proptest::collection::vec(
                prop_oneof![4 => proptest::sample::select(b"+-:,#_($!=*%~>|0123456789\r\nab-?".to_vec()), 1 => any::<u8>()],
                0..600,
            ),
            cuts in proptest::collection::vec(any::<usize>(), 0..8),
        ) {
            let (outcome, capacity_max) = feed([bytes.as_slice()]);
            prop_assert!(capacity_max <= 3 * RECEIVE_BUFFER_BYTES);
            prop_assert_eq!(&split_at(&bytes, &cuts), &outcome);
            for frame in &outcome.frames {
                // Whatever passes the scanner decodes or is refused; it never panics, and never reads beyond its end.
                for protocol in [Protocol::Resp2, Protocol::Resp3] {
                    if let Ok(frame) = Frame::decode(protocol, frame) {
                        let described = frame.value().describe();
                        prop_assert!(!described.is_empty());
                        let _ = (frame.item(0), frame.item(usize::MAX));
                    }
                }
            }
        }

        #[test]
        fn what_the_decoder_takes_the_scanner_takes_with_the_same_length(value in value()) {
            let followed = [value.as_slice(), b"+next\r\n"].concat();
            if let Ok(Some((_, length))) = decode_resp3(&followed) {
                prop_assert_eq!(length, value.len());
                prop_assert_eq!(&whole(&followed).frames[0], &value);
            }
        }
    }

    #[test]
    fn absurd_lengths_end_the_connection_before_anything_is_allocated() {
        let cases: [(&[u8], RespError); 12] = [
            (b"*2147483647\r\n", RespError::Elements { found: 2_147_483_647, due: 1024 }),
            (b"%999999999999999999\r\n", RespError::Elements { found: 1_999_999_999_999_999_998, due: 1024 }),
            (b"$99999999999\r\n", RespError::TooLong { bytes: 99_999_999_999 }),
            (b"$99999999999999999999\r\n", RespError::Length("99999999999999999999".into())),
            (b"$-2\r\n", RespError::Length("-2".into())),
            (b"*-2\r\n", RespError::Length("-2".into())),
            (b">-1\r\n", RespError::Length("-1".into())),
            (b"$+5\r\n", RespError::Length("+5".into())),
            (b"$\r\n", RespError::Length(String::new())),
            (b"$?\r\n", RespError::Length("?".into())),
            (b"$3\r\nabcde", RespError::Terminator),
            (b"HTTP/1.1 400 Bad Request\r\n", RespError::Type(b'H')),
        ];
        for (bytes, error) in cases {
            let (outcome, capacity_max) = feed([bytes]);
            assert_eq!(outcome.error, Some(error), "{:?}", excerpt(bytes));
            assert!(capacity_max <= RECEIVE_BUFFER_BYTES, "{:?} allocated {capacity_max}", excerpt(bytes));
        }
    }

    #[test]
    fn elements_and_depth_are_bounded_over_the_whole_frame() {
        let rows = [b"*200\r\n".as_slice(), &b"*1\r\n:1\r\n".repeat(200)].concat();
        assert_eq!(whole(&rows).error, None);
        let nested = b"*100\r\n".repeat(11);
        assert_eq!(whole(&nested).error, Some(RespError::Depth));
        let wide = [b"*1000\r\n".as_slice(), b"*25\r\n"].concat();
        assert_eq!(whole(&wide).error, Some(RespError::Elements { found: 1025, due: 1024 }));
        let deepest = [b"*1\r\n".repeat(RESP_DEPTH_MAX), b":1\r\n".to_vec()].concat();
        assert_eq!(whole(&deepest).frames.len(), 1);
    }

    #[test]
    fn a_frame_of_too_many_elements_is_skipped_where_that_is_wanted() {
        let mut inbox = Inbox::skipping_elements(8);
        let wide =
            [b"*2\r\n*9\r\n".as_slice(), &b":1\r\n".repeat(9), b"*0\r\n", b"*8\r\n", &b":1\r\n".repeat(8)];
        let mut buffer = inbox.take_buffer();
        buffer.extend_from_slice(&wide.concat());
        inbox.put_buffer(buffer);
        assert!(matches!(inbox.take_frame(), Ok(Some(Received::TooBig { .. }))));
        assert!(matches!(inbox.take_frame(), Ok(Some(Received::Frame(_)))), "the next one is none the worse");
        let mut buffer = inbox.take_buffer();
        buffer.extend_from_slice(b"*99999999999\r\n");
        inbox.put_buffer(buffer);
        assert!(matches!(inbox.take_frame(), Err(RespError::Elements { due: 8, .. })), "but nothing absurd");
    }

    #[test]
    fn a_line_without_end_is_refused_after_its_bound() {
        let endless = vec![b'a'; 64 * MIB];
        let (outcome, capacity_max) = feed([b"+".as_slice(), &endless]);
        assert_eq!(outcome.error, Some(RespError::Line));
        assert!(capacity_max <= 4 * RECEIVE_BUFFER_BYTES, "{capacity_max} bytes were kept of a line");
        let longest = [b"+", &endless[..RESP_LINE_BYTES_MAX], b"\r\n"].concat();
        assert_eq!(whole(&longest).frames.len(), 1);
        let longer = [b"+", &endless[..RESP_LINE_BYTES_MAX + 1], b"\r\n"].concat();
        assert_eq!(whole(&longer).error, Some(RespError::Line));
    }

    #[test]
    fn memory_follows_what_arrives_and_not_what_is_declared() {
        let declared = format!("${}\r\nabc", RESP_BULK_BYTES_MAX);
        let (outcome, capacity_max) = feed([declared.as_bytes()]);
        assert_eq!(outcome, Outcome::default());
        assert!(capacity_max <= RECEIVE_BUFFER_BYTES);
    }

    #[test]
    fn the_longest_bulk_passes_and_its_buffer_is_given_back() {
        let large = bulk(&vec![b'x'; RESP_BULK_BYTES_MAX]);
        let mut inbox = Inbox::new();
        let mut capacity_max = 0;
        for piece in large.chunks(RECEIVE_BUFFER_BYTES / 2) {
            let mut buffer = inbox.take_buffer();
            buffer.extend_from_slice(piece);
            capacity_max = capacity_max.max(buffer.capacity());
            inbox.put_buffer(buffer);
            let is_last = piece.as_ptr_range().end == large.as_ptr_range().end;
            let found = inbox.take_frame().expect("it is valid");
            assert_eq!(found, is_last.then_some(Received::Frame(&large)));
        }
        assert!(capacity_max <= 2 * RESP_FRAME_BYTES_MAX + 2 * RECEIVE_BUFFER_BYTES, "{capacity_max}");
        let kept = inbox.take_buffer().capacity();
        assert!(kept <= KEPT_BYTES_MAX, "{kept} bytes are kept after the large frame has gone");
    }

    #[test]
    fn a_frame_that_is_too_big_is_skipped_without_being_kept() {
        let payload = vec![b'x'; RESP_BULK_BYTES_MAX + 1];
        let too_big = [b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n".as_slice(), &bulk(&payload)].concat();
        for piece_bytes in [7_919, RECEIVE_BUFFER_BYTES] {
            let pieces = [too_big.as_slice(), b"+next\r\n"].concat();
            let (outcome, capacity_max) = feed(pieces.chunks(piece_bytes));
            assert_eq!(outcome.error, None);
            assert_eq!(outcome.too_big, [too_big.len() as u64]);
            assert_eq!(outcome.frames, [b"+next\r\n"]);
            assert!(
                capacity_max <= 3 * RECEIVE_BUFFER_BYTES,
                "{capacity_max} bytes were kept of a skipped frame"
            );
        }
        // Many bulks that are each within their bound make a frame that is not.
        let halves = [b"*2\r\n".as_slice(), &bulk(&payload[..RESP_BULK_BYTES_MAX]).repeat(2)].concat();
        let outcome = whole(&halves);
        assert_eq!((outcome.too_big, outcome.error), (vec![halves.len() as u64], None));
    }

    #[test]
    fn a_bulk_in_small_pieces_costs_linear_work() {
        // 8 MiB in pieces of 16 bytes: if each piece cost a scan of what is held, this would take hours.
        let large = bulk(&vec![b'\r'; 8 * MIB]);
        assert_eq!(feed(large.chunks(16)).0.frames.len(), 1);
    }

    #[test]
    fn frames_say_the_same_in_both_protocols() {
        let array = b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n";
        let push = b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n";
        for (protocol, bytes, value) in [
            (Protocol::Resp2, array, Value::Array(3)),
            (Protocol::Resp3, array, Value::Array(3)),
            (Protocol::Resp3, push, Value::Push(3)),
        ] {
            let frame = Frame::decode(protocol, bytes).expect("it is valid");
            assert_eq!(frame.value(), value);
            assert_eq!(frame.item(2), Some(Value::Text(b"hi")));
            assert_eq!(frame.item(3), None);
        }
        for (protocol, null) in
            [(Protocol::Resp2, "$-1\r\n"), (Protocol::Resp2, "*-1\r\n"), (Protocol::Resp3, "_\r\n")]
        {
            let value = Frame::decode(protocol, null.as_bytes()).map(|frame| frame.value());
            assert_eq!(value, Ok(Value::Null), "{null:?}");
        }
        assert!(Frame::decode(Protocol::Resp3, b"$-1\r\n").is_err(), "RESP3 has a null of its own");
        assert!(Frame::decode(Protocol::Resp2, push).is_err(), "RESP2 has no pushes");
        assert_eq!(Frame::decode(Protocol::Resp3, b"%1\r\n+a\r\n:1\r\n").map(|f| f.value()), Ok(Value::Map));
    }

    #[test]
    fn what_the_other_side_said_is_fit_for_a_log_line() {
        assert_eq!(excerpt(b"a\r\nb\x1b[31m"), "a\u{fffd}\u{fffd}b\u{fffd}[31m");
        assert_eq!(excerpt(&[b'x'; 5000]).len(), 200);
    }
}
