//! What Redis sends: frames, and the publications among them by their shorter way.

use shards::limits::{RECEIVE_BUFFER_BYTES, RESP_FRAME_BYTES_MAX};
use shards::resp::{Frame, Inbox, Protocol, Publication, Received, RespError, Value};

use crate::cut;

/// What came out of an inbox.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    frames: Vec<Vec<u8>>,
    too_big: Vec<u64>,
    error: Option<RespError>,
}

/// Frames are the same however they are cut and whichever way is asked first, never longer than their bound, and cost no
/// more memory than arrived; decoding one never fails by a panic.
pub(crate) fn resp(input: &[u8]) {
    let whole = feed(&[input], false);
    assert_eq!(feed(&cut::pieces(input), false), whole, "another result in pieces");
    assert_eq!(feed(&cut::octets(input), false), whole, "another result octet by octet");
    for pieces in [vec![input], cut::pieces(input)] {
        assert_eq!(feed(&pieces, true), whole, "another result where publications are asked for first");
    }
    for frame in &whole.frames {
        for protocol in [Protocol::Resp2, Protocol::Resp3] {
            if let Ok(frame) = Frame::decode(protocol, frame) {
                look_at(&frame);
            }
        }
    }
}

fn feed(pieces: &[&[u8]], with_publications: bool) -> Outcome {
    let mut inbox = Inbox::new();
    let mut outcome = Outcome::default();
    let mut arrived_bytes = 0;
    'pieces: for piece in pieces {
        let mut buffer = inbox.take_buffer();
        buffer.extend_from_slice(piece);
        arrived_bytes += piece.len();
        inbox.put_buffer(buffer);
        assert!(
            inbox.capacity() <= 2 * arrived_bytes + 2 * RECEIVE_BUFFER_BYTES,
            "memory beyond what arrived"
        );
        loop {
            if with_publications && let Some(publication) = inbox.take_publication() {
                outcome.frames.push(spelled(&publication));
                continue;
            }
            match inbox.take_frame() {
                Ok(Some(Received::Frame(frame))) => {
                    assert!(frame.len() <= RESP_FRAME_BYTES_MAX, "a frame above its bound");
                    // A publication is compared by what it says: it may be an array or a push.
                    let said = Publication::at_front(frame).filter(|(_, bytes)| *bytes == frame.len());
                    outcome.frames.push(said.map_or_else(|| frame.to_vec(), |(said, _)| spelled(&said)));
                }
                Ok(Some(Received::TooBig { bytes })) => outcome.too_big.push(bytes),
                Ok(None) => break,
                Err(error) => {
                    assert!(
                        !error.to_string().chars().any(char::is_control),
                        "an error unfit for a log line"
                    );
                    outcome.error = Some(error);
                    break 'pieces;
                }
            }
        }
    }
    outcome
}

/// As Redis sends it in RESP3.
fn spelled(publication: &Publication<'_>) -> Vec<u8> {
    let Publication { pattern, channel, payload } = publication;
    let words = match pattern {
        None => vec![b"message".as_slice(), channel, payload],
        Some(pattern) => vec![b"pmessage".as_slice(), pattern, channel, payload],
    };
    let spelled = crate::script::push(&words);
    let found = Publication::at_front(&spelled);
    assert_eq!(found, Some((*publication, spelled.len())), "a publication that is not read back");
    spelled
}

fn look_at(frame: &Frame<'_>) {
    let values = match frame.value() {
        Value::Array(values) | Value::Push(values) => values,
        _ => 0,
    };
    assert!(!frame.value().describe().is_empty(), "a value without a description");
    for index in 0..values {
        let item = frame.item(index).expect("as many values as it says");
        assert!(!item.describe().is_empty(), "a value without a description");
    }
    assert_eq!(frame.item(values), None, "more values than it says");
}
