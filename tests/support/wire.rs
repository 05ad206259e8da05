//! WebSocket bytes as a client writes and reads them, right or wrong on purpose.

use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Opcodes of RFC 6455 section 5.2 with the FIN bit set.
pub const TEXT: u8 = 0x81;
pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8A;

/// The key of every upgrade in these tests (the one of RFC 6455 section 1.3).
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// What a server must answer to [`KEY`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A correct upgrade request.
pub fn upgrade(host: impl std::fmt::Display, target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// A masked frame with `first` as its first byte and the shortest length.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(first, payload.len() as u64);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The header of a masked frame that declares `payload_bytes`, with its masking key.
pub fn header(first: u8, payload_bytes: u64) -> Vec<u8> {
    let mut header = vec![first];
    match payload_bytes {
        0..=125 => header.push(0x80 | payload_bytes as u8),
        126..=0xFFFF => {
            header.push(0x80 | 126);
            header.extend((payload_bytes as u16).to_be_bytes());
        }
        _ => {
            header.push(0x80 | 127);
            header.extend(payload_bytes.to_be_bytes());
        }
    }
    header.extend(MASK);
    header
}

/// A Close frame from a client.
pub fn close(code: u16) -> Vec<u8> {
    masked(CLOSE, &code.to_be_bytes())
}

/// A frame from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// Code and reason; `None` without a body.
    Close(Option<(u16, String)>),
}

/// Collects bytes and gives whole frames.
#[derive(Default)]
pub struct Frames {
    bytes: Vec<u8>,
    taken: usize,
}

impl Frames {
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame.
    ///
    /// # Panics
    /// When the server masked, fragmented, set a reserved bit or used a length that isn't the shortest: it never may.
    pub fn take(&mut self) -> Option<Frame> {
        let rest = &self.bytes[self.taken..];
        let mut cursor = Cursor::new(rest);
        let (header, length) = FrameHeader::parse(&mut cursor).expect("the server writes valid headers")?;
        let start = cursor.position() as usize;
        let payload = rest.get(start..start + length as usize)?.to_vec();
        assert!(header.mask.is_none(), "the server masked a frame: {header:?}");
        assert!(header.is_final, "the server fragmented a message: {header:?}");
        assert!(!(header.rsv1 || header.rsv2 || header.rsv3), "a reserved bit is set: {header:?}");
        let shortest = header.len(length) - usize::from(header.mask.is_some()) * 4;
        assert_eq!(start, shortest, "the length of a frame of {length} bytes is not the shortest form");
        self.taken += start + payload.len();
        Some(match header.opcode {
            OpCode::Data(Data::Text) => {
                assert!(std::str::from_utf8(&payload).is_ok(), "a text frame is not UTF-8: {payload:?}");
                Frame::Text(payload)
            }
            OpCode::Data(Data::Binary) => Frame::Binary(payload),
            OpCode::Control(Control::Ping) => Frame::Ping(payload),
            OpCode::Control(Control::Pong) => Frame::Pong(payload),
            OpCode::Control(Control::Close) => Frame::Close(close_body(&payload)),
            opcode => panic!("the server sent {opcode:?}"),
        })
    }

    /// Whether bytes of an unfinished frame wait.
    pub fn is_mid_frame(&self) -> bool {
        self.taken < self.bytes.len()
    }
}

fn close_body(payload: &[u8]) -> Option<(u16, String)> {
    let (code, reason) = payload.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*code), String::from_utf8_lossy(reason).into_owned()))
}

const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
