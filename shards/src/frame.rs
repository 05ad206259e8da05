//! What the server writes: data frames that are encoded once and shared, and the small control frames of one connection.
//!
//! Server-to-client frames are final and unmasked (RFC 6455 section 5.1). Header and payload lie in one buffer, because
//! sending two pieces costs 20 to 30 % more than one. Nothing here reads; that is [`session`](crate::session).

use bytes::Bytes;

use crate::limits::{CONTROL_PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_MAX};

/// One publication as it goes to every socket: header and payload in one shared buffer. Cloning copies a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    wire: Bytes,
    header_bytes: u8,
}

/// Why a payload became no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`PAYLOAD_BYTES_MAX`].
    #[error(
        "a payload of {found_bytes} bytes is above the bound of {PAYLOAD_BYTES_MAX}: publish it in parts"
    )]
    TooLong {
        /// Bytes of the payload.
        found_bytes: usize,
    },
}

impl Frame {
    /// Encodes `payload`, which the caller knows to be UTF-8, as one text frame.
    ///
    /// Adds 2, 4 or 10 header bytes. Copies the payload once per publication, never per socket.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] above [`PAYLOAD_BYTES_MAX`].
    pub fn text(payload: &[u8]) -> Result<Frame, FrameError> {
        debug_assert!(
            std::str::from_utf8(payload).is_ok(),
            "a text frame that is no UTF-8 ends every client"
        );
        Self::encode(FIRST_OCTET_TEXT, payload)
    }

    /// Encodes `payload` as one binary frame; costs and errors as [`Frame::text`].
    pub fn binary(payload: &[u8]) -> Result<Frame, FrameError> {
        Self::encode(FIRST_OCTET_BINARY, payload)
    }

    /// Encodes `payload` as a text frame where it is valid UTF-8, else as a binary frame.
    ///
    /// Costs and errors as [`Frame::text`], and one pass over the payload.
    pub fn data(payload: &[u8]) -> Result<Frame, FrameError> {
        match std::str::from_utf8(payload) {
            Ok(_) => Self::encode(FIRST_OCTET_TEXT, payload),
            Err(_) => Self::encode(FIRST_OCTET_BINARY, payload),
        }
    }

    fn encode(first_octet: u8, payload: &[u8]) -> Result<Frame, FrameError> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(FrameError::TooLong { found_bytes: payload.len() });
        }
        let (header, header_bytes) = encode_header(first_octet, payload.len());
        let mut wire = Vec::with_capacity(header_bytes + payload.len());
        wire.extend_from_slice(&header[..header_bytes]);
        wire.extend_from_slice(payload);
        Ok(Frame { wire: Bytes::from(wire), header_bytes: header_bytes as u8 })
    }

    /// What stands in the place of a frame that nobody will look at again.
    pub(crate) fn freed() -> Frame {
        Frame { wire: Bytes::new(), header_bytes: 0 }
    }

    /// Header and payload, as they go to a socket.
    pub fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// The shared buffer behind [`Frame::wire`].
    pub fn wire_bytes(&self) -> &Bytes {
        &self.wire
    }

    /// The same, without a reference of its own.
    pub fn into_wire(self) -> Bytes {
        self.wire
    }

    /// The publication without its header.
    pub fn payload(&self) -> &[u8] {
        &self.wire[usize::from(self.header_bytes)..]
    }

    /// Bytes on the wire, header included; never 0.
    #[expect(clippy::len_without_is_empty, reason = "a frame has at least its two header bytes")]
    pub fn len(&self) -> usize {
        self.wire.len()
    }

    /// Whether clients receive it as text.
    pub fn is_text(&self) -> bool {
        self.wire[0] == FIRST_OCTET_TEXT
    }
}

/// Encodes the header of an unmasked frame: the array's first bytes, and how many of them (2, 4 or 10).
///
/// `first_octet` holds FIN, the reserved bits and the opcode. The length takes its shortest form (RFC 6455 section 5.2).
pub fn encode_header(first_octet: u8, payload_bytes: usize) -> ([u8; HEADER_BYTES_MAX], usize) {
    let mut header = [0; HEADER_BYTES_MAX];
    header[0] = first_octet;
    let header_bytes = match payload_bytes {
        0..=125 => {
            header[1] = payload_bytes as u8;
            2
        }
        126..=0xffff => {
            header[1] = LENGTH_IN_2_OCTETS;
            header[2..4].copy_from_slice(&(payload_bytes as u16).to_be_bytes());
            4
        }
        _ => {
            header[1] = LENGTH_IN_8_OCTETS;
            header[2..10].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
            10
        }
    };
    (header, header_bytes)
}

/// Appends a Close frame to `out`.
///
/// A `reason` above 123 bytes is cut at a character's boundary, not refused: a control frame carries at most 125 bytes,
/// two of them the code (RFC 6455 section 5.5).
pub fn encode_close(code: u16, reason: &str, out: &mut Vec<u8>) {
    let reason = &reason[..reason.floor_char_boundary(CONTROL_PAYLOAD_BYTES_MAX - 2)];
    out.extend_from_slice(&[FIRST_OCTET_CLOSE, (2 + reason.len()) as u8]);
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

/// Appends a Close frame without a code to `out`: the answer to a Close frame that had none (1005 may not be sent).
pub fn encode_close_without_code(out: &mut Vec<u8>) {
    out.extend_from_slice(&[FIRST_OCTET_CLOSE, 0]);
}

/// Appends a Ping frame to `out`.
///
/// # Panics
/// When `payload` is longer than [`CONTROL_PAYLOAD_BYTES_MAX`]: pings are ours.
pub fn encode_ping(payload: &[u8], out: &mut Vec<u8>) {
    encode_control(FIRST_OCTET_PING, payload, out);
}

/// Appends a Pong frame to `out`, `payload` being that of the Ping it answers (RFC 6455 section 5.5.3).
///
/// # Panics
/// When `payload` is longer than [`CONTROL_PAYLOAD_BYTES_MAX`], which no [`Event::Ping`](crate::session::Event) is.
pub fn encode_pong(payload: &[u8], out: &mut Vec<u8>) {
    encode_control(FIRST_OCTET_PONG, payload, out);
}

fn encode_control(first_octet: u8, payload: &[u8], out: &mut Vec<u8>) {
    assert!(payload.len() <= CONTROL_PAYLOAD_BYTES_MAX, "a control frame of {} bytes", payload.len());
    out.extend_from_slice(&[first_octet, payload.len() as u8]);
    out.extend_from_slice(payload);
}

/// First octet of an unfragmented text frame: FIN and opcode 1.
pub const FIRST_OCTET_TEXT: u8 = 0x81;
/// First octet of an unfragmented binary frame: FIN and opcode 2.
pub const FIRST_OCTET_BINARY: u8 = 0x82;
/// Bytes of the longest unmasked header: two octets and a length of eight.
pub const HEADER_BYTES_MAX: usize = 10;

const FIRST_OCTET_CLOSE: u8 = 0x88;
const FIRST_OCTET_PING: u8 = 0x89;
const FIRST_OCTET_PONG: u8 = 0x8a;
const LENGTH_IN_2_OCTETS: u8 = 126;
const LENGTH_IN_8_OCTETS: u8 = 127;

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;
    use tungstenite::protocol::frame::FrameHeader;
    use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

    use super::*;

    /// Header, and payload as another implementation reads it.
    fn read(wire: &[u8]) -> (FrameHeader, &[u8]) {
        let mut cursor = Cursor::new(wire);
        let (header, payload_bytes) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
        let payload = &wire[cursor.position() as usize..];
        assert_eq!(payload.len() as u64, payload_bytes, "the header declares another length than follows");
        (header, payload)
    }

    fn final_unmasked(opcode: OpCode) -> FrameHeader {
        FrameHeader { is_final: true, rsv1: false, rsv2: false, rsv3: false, opcode, mask: None }
    }

    #[test]
    fn every_length_takes_its_shortest_form_and_is_read_back() {
        for (payload_bytes, header_bytes) in
            [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10), (1_000_000, 10)]
        {
            let payload = vec![b'x'; payload_bytes];
            let frame = Frame::text(&payload).unwrap();
            assert_eq!(frame.len(), header_bytes + payload_bytes);
            assert_eq!(frame.payload(), payload);
            assert_eq!(read(frame.wire()), (final_unmasked(OpCode::Data(Data::Text)), &payload[..]));
        }
    }

    #[test]
    fn utf8_leaves_as_text_and_anything_else_as_binary() {
        assert!(Frame::data("grüß".as_bytes()).unwrap().is_text());
        assert!(Frame::data(b"").unwrap().is_text());
        let binary = Frame::data(&[0xff, 0x00]).unwrap();
        assert!(!binary.is_text());
        assert_eq!(read(binary.wire()), (final_unmasked(OpCode::Data(Data::Binary)), &[0xff, 0x00][..]));
        assert!(!Frame::binary(b"text").unwrap().is_text());
    }

    #[test]
    fn a_payload_above_the_bound_is_refused_and_one_at_it_is_not() {
        let payload = vec![0; PAYLOAD_BYTES_MAX + 1];
        assert_eq!(Frame::binary(&payload), Err(FrameError::TooLong { found_bytes: PAYLOAD_BYTES_MAX + 1 }));
        assert!(Frame::binary(&payload[1..]).is_ok());
    }

    #[test]
    fn clones_share_one_buffer() {
        let frame = Frame::text(b"shared").unwrap();
        assert_eq!(frame.clone().wire_bytes().as_ptr(), frame.wire_bytes().as_ptr());
    }

    #[test]
    fn a_close_reason_is_cut_at_a_character_so_that_the_frame_stays_a_control_frame() {
        let mut out = Vec::new();
        // 62 characters of two bytes are 124: one byte too many, so the last character goes whole.
        encode_close(1013, &"é".repeat(62), &mut out);
        let (header, payload) = read(&out);
        assert_eq!(header, final_unmasked(OpCode::Control(Control::Close)));
        assert_eq!(payload, [&1013u16.to_be_bytes()[..], "é".repeat(61).as_bytes()].concat());
    }

    #[test]
    fn a_close_without_a_code_is_empty() {
        let mut out = Vec::new();
        encode_close_without_code(&mut out);
        assert_eq!(read(&out), (final_unmasked(OpCode::Control(Control::Close)), &[][..]));
    }

    #[test]
    #[should_panic(expected = "a control frame of 126 bytes")]
    fn a_ping_of_ours_that_is_too_long_is_a_bug() {
        encode_ping(&[0; 126], &mut Vec::new());
    }

    proptest! {
        #[test]
        fn control_frames_are_appended_and_read_back(
            before in proptest::collection::vec(any::<u8>(), 0..8),
            payload in proptest::collection::vec(any::<u8>(), 0..=CONTROL_PAYLOAD_BYTES_MAX),
            code in 1000u16..5000,
            reason in ".{0,200}",
        ) {
            for (encode, control) in
                [(encode_ping as fn(&[u8], &mut Vec<u8>), Control::Ping), (encode_pong, Control::Pong)]
            {
                let mut out = before.clone();
                encode(&payload, &mut out);
                prop_assert_eq!(&out[..before.len()], &before[..]);
                prop_assert_eq!(read(&out[before.len()..]), (final_unmasked(OpCode::Control(control)), &payload[..]));
            }
            let mut out = before.clone();
            encode_close(code, &reason, &mut out);
            let (_, payload) = read(&out[before.len()..]);
            prop_assert!(payload.len() <= CONTROL_PAYLOAD_BYTES_MAX);
            prop_assert_eq!(&payload[..2], &code.to_be_bytes()[..]);
            prop_assert!(reason.starts_with(std::str::from_utf8(&payload[2..]).unwrap()));
        }
    }
}
