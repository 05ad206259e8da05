//! The client's side of RFC 6455, as little as a load generator needs: the upgrade, and frames without copying bodies.

use crate::stamp::STAMP_BYTES;

/// The key of every handshake. It may be constant because no proxy stands between; then its answer is constant too and
/// checking it costs nothing. Both are the example of RFC 6455 section 1.3.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// What a server must answer to [`KEY`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// An answer whose head is longer is refused.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Opcodes of RFC 6455 section 5.2.
pub const TEXT: u8 = 0x1;
/// See [`TEXT`].
pub const CLOSE: u8 = 0x8;
/// See [`TEXT`].
pub const PONG: u8 = 0xa;
const CONTINUATION: u8 = 0x0;
const BINARY: u8 = 0x2;
const PING: u8 = 0x9;

/// RFC 6455 section 5.5.
const CONTROL_BYTES_MAX: u64 = 125;
const HEADER_BYTES_MAX: usize = 10;

/// The upgrade request for `path` (with its query).
pub fn request(host: &str, path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// The answer to [`request`], so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The head has not ended yet.
    Incomplete,
    /// 101 with the right accept value; frames begin after this many bytes.
    Open { head_bytes: usize },
    /// Anything else; the status line, or what is wrong.
    Refused(String),
}

/// Judges what a server has answered so far.
pub fn read_answer(input: &[u8]) -> Answer {
    let Some(head_bytes) = head_bytes(input) else {
        return if input.len() > HEAD_BYTES_MAX {
            Answer::Refused(format!("a head of more than {HEAD_BYTES_MAX} bytes"))
        } else {
            Answer::Incomplete
        };
    };
    let head = String::from_utf8_lossy(&input[..head_bytes]);
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("101") {
        return Answer::Refused(status.to_owned());
    }
    match field(&head, "sec-websocket-accept") {
        Some(ACCEPT) => Answer::Open { head_bytes },
        found => Answer::Refused(format!("101 with the accept value {found:?}, due was {ACCEPT:?}")),
    }
}

/// Bytes up to and with the empty line that ends an HTTP head.
pub fn head_bytes(input: &[u8]) -> Option<usize> {
    input.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// The trimmed value of the first field called `name` (lower case) in an HTTP head.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .find(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

/// Appends one masked frame, as clients send them.
pub fn client_frame(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    // Fixed, because nobody between could be confused by it; not zero, so that the server's unmasking does its work.
    const MASK: [u8; 4] = [0x5a, 0xa5, 0x3c, 0xc3];
    header(opcode, payload.len(), 0x80, out);
    out.extend_from_slice(&MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// Appends one unmasked text frame, as the floor's sender sends them.
pub fn server_text(payload: &[u8], out: &mut Vec<u8>) {
    header(TEXT, payload.len(), 0, out);
    out.extend_from_slice(payload);
}

fn header(opcode: u8, payload_bytes: usize, mask_bit: u8, out: &mut Vec<u8>) {
    out.push(0x80 | opcode);
    match payload_bytes {
        0..=125 => out.push(mask_bit | payload_bytes as u8),
        126..=0xffff => {
            out.push(mask_bit | 126);
            out.extend_from_slice(&(payload_bytes as u16).to_be_bytes());
        }
        _ => {
            out.push(mask_bit | 127);
            out.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
        }
    }
}

/// What a server sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole message has arrived: its first bytes (at most [`STAMP_BYTES`]) and its length.
    Message { prefix: &'a [u8], bytes: u64 },
    /// To be answered with the same bytes.
    Ping(&'a [u8]),
    /// Unasked for, and ignored.
    Pong,
    /// The server's Close frame, with its code if it carries one.
    Close(Option<u16>),
}

/// A server broke RFC 6455.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// Section 5.1.
    #[error("the server masked a frame; servers must not")]
    Masked,
    /// Section 5.2: no extension was negotiated.
    #[error("reserved bits are set in the frame header {0:#04x}")]
    Reserved(u8),
    /// Section 5.2.
    #[error("unknown opcode {0:#x}")]
    Opcode(u8),
    /// Section 5.5.
    #[error("a fragmented or overlong control frame (opcode {0:#x})")]
    Control(u8),
    /// Section 5.4.
    #[error("opcode {0:#x} where a message was {1}")]
    Fragment(u8, &'static str),
}

/// Cuts a server's bytes into events, however they were split on the way; keeps the stamp of a message, never its body.
#[derive(Debug)]
pub struct FrameParser {
    /// The beginning of a frame that was cut before its header and stamp (or its control payload) were complete.
    partial: Vec<u8>,
    /// Bytes of the current data frame that are still to come and only counted.
    body_left: u64,
    frame_is_final: bool,
    message_is_open: bool,
    message_bytes: u64,
    prefix: [u8; STAMP_BYTES],
    prefix_bytes: usize,
}

impl Default for FrameParser {
    fn default() -> Self {
        Self {
            partial: Vec::new(),
            body_left: 0,
            frame_is_final: true,
            message_is_open: false,
            message_bytes: 0,
            prefix: [0; STAMP_BYTES],
            prefix_bytes: 0,
        }
    }
}

impl FrameParser {
    /// Takes all of `input` and reports what it completes, in order.
    pub fn feed(&mut self, mut input: &[u8], mut on: impl FnMut(Event<'_>)) -> Result<(), FrameError> {
        loop {
            if self.body_left > 0 {
                let taken = self.body_left.min(input.len() as u64);
                input = &input[taken as usize..];
                self.body_left -= taken;
                if self.body_left > 0 {
                    return Ok(());
                }
                self.end_frame(&mut on);
            }
            if input.is_empty() {
                return Ok(());
            }
            if !self.partial.is_empty() {
                let before = self.partial.len();
                let taken = input.len().min(Lead::BYTES_MAX - before);
                self.partial.extend_from_slice(&input[..taken]);
                let Some(lead) = Lead::read(&self.partial)? else { return Ok(()) };
                let mut bytes = std::mem::take(&mut self.partial);
                input = &input[lead.bytes - before..];
                self.take_lead(&lead, &bytes[..lead.bytes], &mut on)?;
                bytes.clear();
                self.partial = bytes;
                continue;
            }
            let Some(lead) = Lead::read(input)? else {
                self.partial.extend_from_slice(input);
                return Ok(());
            };
            let frame_bytes = lead.payload_bytes.saturating_add(lead.header_bytes as u64);
            if lead.is_final
                && matches!(lead.opcode, TEXT | BINARY)
                && !self.message_is_open
                && frame_bytes <= input.len() as u64
            {
                on(Event::Message {
                    prefix: &input[lead.header_bytes..lead.bytes],
                    bytes: lead.payload_bytes,
                });
                input = &input[frame_bytes as usize..];
                continue;
            }
            self.take_lead(&lead, &input[..lead.bytes], &mut on)?;
            input = &input[lead.bytes..];
        }
    }

    fn take_lead(
        &mut self,
        lead: &Lead,
        bytes: &[u8],
        on: &mut impl FnMut(Event<'_>),
    ) -> Result<(), FrameError> {
        let payload = &bytes[lead.header_bytes..];
        match lead.opcode {
            CLOSE => on(Event::Close(payload.first_chunk().map(|code| u16::from_be_bytes(*code)))),
            PING => on(Event::Ping(payload)),
            PONG => on(Event::Pong),
            opcode => {
                match (opcode == CONTINUATION, self.message_is_open) {
                    (true, false) => return Err(FrameError::Fragment(opcode, "due to begin")),
                    (false, true) => return Err(FrameError::Fragment(opcode, "due to go on")),
                    _ => {}
                }
                if !self.message_is_open {
                    self.message_is_open = true;
                    self.message_bytes = 0;
                    self.prefix_bytes = 0;
                }
                let taken = payload.len().min(STAMP_BYTES - self.prefix_bytes);
                self.prefix[self.prefix_bytes..self.prefix_bytes + taken].copy_from_slice(&payload[..taken]);
                self.prefix_bytes += taken;
                self.message_bytes = self.message_bytes.saturating_add(lead.payload_bytes);
                self.frame_is_final = lead.is_final;
                self.body_left = lead.payload_bytes - payload.len() as u64;
                if self.body_left == 0 {
                    self.end_frame(on);
                }
            }
        }
        Ok(())
    }

    fn end_frame(&mut self, on: &mut impl FnMut(Event<'_>)) {
        if self.frame_is_final {
            self.message_is_open = false;
            on(Event::Message { prefix: &self.prefix[..self.prefix_bytes], bytes: self.message_bytes });
        }
    }
}

/// The part of a frame that is looked at: its header, and all of a control frame or the stamp's worth of a data frame.
struct Lead {
    opcode: u8,
    is_final: bool,
    header_bytes: usize,
    payload_bytes: u64,
    bytes: usize,
}

impl Lead {
    const BYTES_MAX: usize = HEADER_BYTES_MAX + CONTROL_BYTES_MAX as usize;

    fn read(input: &[u8]) -> Result<Option<Self>, FrameError> {
        let [first, second, rest @ ..] = input else { return Ok(None) };
        let (opcode, is_final) = (first & 0x0f, first & 0x80 != 0);
        if first & 0x70 != 0 {
            return Err(FrameError::Reserved(*first));
        }
        if second & 0x80 != 0 {
            return Err(FrameError::Masked);
        }
        let length = match second {
            126 => rest.first_chunk().map(|bytes| (4, u64::from(u16::from_be_bytes(*bytes)))),
            127 => rest.first_chunk().map(|bytes| (10, u64::from_be_bytes(*bytes))),
            short => Some((2, u64::from(*short))),
        };
        let is_control = match opcode {
            CONTINUATION | TEXT | BINARY => false,
            CLOSE | PING | PONG => true,
            unknown => return Err(FrameError::Opcode(unknown)),
        };
        if is_control && (!is_final || u64::from(*second) > CONTROL_BYTES_MAX) {
            return Err(FrameError::Control(opcode));
        }
        let Some((header_bytes, payload_bytes)) = length else { return Ok(None) };
        let looked_at = if is_control { payload_bytes } else { payload_bytes.min(STAMP_BYTES as u64) };
        let bytes = header_bytes + looked_at as usize;
        Ok((input.len() >= bytes).then_some(Self { opcode, is_final, header_bytes, payload_bytes, bytes }))
    }
}

const _: () = assert!(STAMP_BYTES <= CONTROL_BYTES_MAX as usize, "a lead of Lead::BYTES_MAX holds any stamp");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Sent {
        Message(Vec<Vec<u8>>),
        Ping(Vec<u8>),
        Close(u16),
    }

    fn sent() -> impl Strategy<Value = Sent> {
        let body = prop_oneof![
            4 => vec(any::<u8>(), 0..200),
            1 => vec(any::<u8>(), 120..130),
            1 => Just(vec![7; 70_000]),
        ];
        prop_oneof![
            6 => vec(body, 1..4).prop_map(Sent::Message),
            1 => vec(any::<u8>(), 0..126).prop_map(Sent::Ping),
            1 => (1000u16..5000).prop_map(Sent::Close),
        ]
    }

    fn encode(all: &[Sent]) -> (Vec<u8>, Vec<String>) {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for one in all {
            match one {
                Sent::Message(fragments) => {
                    for (index, fragment) in fragments.iter().enumerate() {
                        let at = bytes.len();
                        header(if index == 0 { TEXT } else { CONTINUATION }, fragment.len(), 0, &mut bytes);
                        if index + 1 < fragments.len() {
                            bytes[at] &= 0x7f;
                        }
                        bytes.extend_from_slice(fragment);
                    }
                    let whole = fragments.concat();
                    // What a fragment's own lead doesn't hold of the prefix is not looked for in its body.
                    let prefix: Vec<u8> = fragments
                        .iter()
                        .flat_map(|fragment| fragment.iter().take(STAMP_BYTES))
                        .take(STAMP_BYTES)
                        .copied()
                        .collect();
                    expected
                        .push(format!("{:?}", Event::Message { prefix: &prefix, bytes: whole.len() as u64 }));
                }
                Sent::Ping(payload) => {
                    header(PING, payload.len(), 0, &mut bytes);
                    bytes.extend_from_slice(payload);
                    expected.push(format!("{:?}", Event::Ping(payload)));
                }
                Sent::Close(code) => {
                    header(CLOSE, 2, 0, &mut bytes);
                    bytes.extend_from_slice(&code.to_be_bytes());
                    expected.push(format!("{:?}", Event::Close(Some(*code))));
                }
            }
        }
        (bytes, expected)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn any_split_of_the_input_gives_the_same_events(all in vec(sent(), 0..8), cuts in vec(1usize..400, 1..50)) {
            let (bytes, expected) = encode(&all);
            let mut parser = FrameParser::default();
            let mut found = Vec::new();
            let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                // The cuts are small to fall into headers; the long bodies are passed in larger steps.
                let step = cuts.next().map_or(1, |cut| cut * (1 + rest.len() / 2_000)).min(rest.len());
                parser.feed(&rest[..step], |event| found.push(format!("{event:?}"))).unwrap();
                rest = &rest[step..];
            }
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn bytes_of_chance_never_panic(input in vec(any::<u8>(), 0..300)) {
            let _ = FrameParser::default().feed(&input, |_| {});
        }
    }

    #[test]
    fn what_servers_must_not_send_is_refused() {
        let refused = |bytes: &[u8]| FrameParser::default().feed(bytes, |_| {}).unwrap_err();
        assert_eq!(refused(&[0x81, 0x80, 0, 0, 0, 0]), FrameError::Masked);
        assert_eq!(refused(&[0xc1, 0]), FrameError::Reserved(0xc1));
        assert_eq!(refused(&[0x83, 0]), FrameError::Opcode(3));
        assert_eq!(refused(&[0x88, 126, 0, 200]), FrameError::Control(CLOSE));
        assert_eq!(refused(&[0x80, 0]), FrameError::Fragment(CONTINUATION, "due to begin"));
    }

    #[test]
    fn only_a_101_with_the_right_accept_value_opens() {
        let good = format!("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n");
        assert_eq!(read_answer(good.as_bytes()), Answer::Open { head_bytes: good.len() });
        assert_eq!(read_answer(&good.as_bytes()[..good.len() - 1]), Answer::Incomplete);
        let refused = |text: &str| matches!(read_answer(text.as_bytes()), Answer::Refused(_));
        assert!(refused("HTTP/1.1 400 Bad Request\r\n\r\n"));
        assert!(refused("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\n\r\n"));
    }
}
