//! nchan's `ws+meta.nchan`: raw WebSocket messages that say who they are, so that a client can resume without an SDK.
//!
//! A message is `id: EPOCH:OFFSET`, `content-type: TYPE`, an empty line, and the payload (nchan's README, "Websocket").

use bytes::Bytes;

use super::id_text;
use crate::frame::Frame;

/// Its name in `Sec-WebSocket-Protocol`.
pub const PROTOCOL: &str = "ws+meta.nchan";

/// A publication. `None` where that is longer than a frame may be.
pub fn publication(epoch: u64, offset: u64, frame: &Frame) -> Option<Bytes> {
    let content_type = if frame.is_text() { "text/plain" } else { "application/octet-stream" };
    let head = format!("id: {}\ncontent-type: {content_type}\n\n", id_text(epoch, offset));
    let message = [head.as_bytes(), frame.payload()].concat();
    let encoded = if frame.is_text() { Frame::text(&message) } else { Frame::binary(&message) };
    encoded.ok().map(Frame::into_wire)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_its_id_and_its_type_before_its_payload() {
        let text = publication(0x2f, 7, &Frame::data(b"hi").unwrap()).unwrap();
        assert_eq!(&text[2..], b"id: 2f:7\ncontent-type: text/plain\n\nhi");
        let octets = publication(1, 1, &Frame::data(&[0xff]).unwrap()).unwrap();
        assert_eq!(octets[0], crate::frame::FIRST_OCTET_BINARY);
        assert!(octets.ends_with(b"content-type: application/octet-stream\n\n\xff"));
    }
}
