//! Server-sent events (HTML standard, section 9.2): what goes out on a response that doesn't end.
//!
//! An event's id is `EPOCH:OFFSET`; EventSource sends the last one back as `Last-Event-ID`. Events carry text: octets that
//! are no UTF-8 go as base64, as events of the type `binary`. Gaps are events of the type `gap`.

use bytes::Bytes;

use super::{Gap, Lost, Standing, id_text};
use crate::limits::PAYLOAD_BYTES_MAX;

/// A comment: it keeps proxies from taking the response for dead.
pub const PING: &[u8] = b":\n\n";

/// The start of the response; `retry_millis` is when a client that lost it comes back.
pub fn opening(retry_millis: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("retry: {retry_millis}\n\n").as_bytes());
}

/// Where a client stands, so that it can come back even if nothing comes; and that something is missing, where it is.
pub fn standing(standing: &Standing, out: &mut Vec<u8>) {
    let Standing { epoch, offset, recovered } = *standing;
    if recovered == Some(false) {
        let gap = Gap { epoch, lost: Lost::Unknown(offset), reason: NOT_RECOVERED };
        return out.extend_from_slice(&self::gap(&gap));
    }
    // An event without data is not dispatched, but its id counts (HTML standard, section 9.2.6).
    out.extend_from_slice(format!("id: {}\n\n", id_text(epoch, offset)).as_bytes());
}

/// What a client missed while it was away is not in the log any more, or never was in this run of numbers.
const NOT_RECOVERED: &str = "not_recovered";

/// A publication. `None` where that is longer than [`PAYLOAD_BYTES_MAX`]: each line of it costs six octets more.
pub fn publication(epoch: u64, offset: u64, payload: &[u8]) -> Option<Bytes> {
    let id = id_text(epoch, offset);
    let Ok(text) = std::str::from_utf8(payload) else {
        let data = data_encoding::BASE64.encode(payload);
        return (data.len() <= PAYLOAD_BYTES_MAX)
            .then(|| Bytes::from(format!("id: {id}\nevent: binary\ndata: {data}\n\n")));
    };
    let lines = text.bytes().filter(|octet| matches!(octet, b'\n' | b'\r')).count();
    if payload.len() + lines * DATA.len() > PAYLOAD_BYTES_MAX {
        return None;
    }
    let mut event = Vec::with_capacity(payload.len() + (lines + 1) * DATA.len() + id.len() + 8);
    event.extend_from_slice(format!("id: {id}\n").as_bytes());
    data_lines(text, &mut event);
    event.push(b'\n');
    Some(event.into())
}

/// A gap, or that a publication was too long; `id` is what a client resumes with after it.
pub fn notice(id: (u64, u64), data: &serde_json::Value) -> Bytes {
    Bytes::from(format!("id: {}\nevent: gap\ndata: {data}\n\n", id_text(id.0, id.1)))
}

/// See [`Gap`].
pub fn gap(gap: &Gap) -> Bytes {
    notice((gap.epoch, gap.resumes_after()), &gap.data())
}

/// A line ends with CR, LF or both; each is a `data:` line of its own, and comes back joined by LF.
fn data_lines(text: &str, event: &mut Vec<u8>) {
    let mut rest = text;
    loop {
        let end = rest.find(['\n', '\r']);
        event.extend_from_slice(DATA);
        event.extend_from_slice(&rest.as_bytes()[..end.unwrap_or(rest.len())]);
        event.push(b'\n');
        let Some(end) = end else { return };
        let ending = if rest[end..].starts_with("\r\n") { 2 } else { 1 };
        rest = &rest[end + ending..];
    }
}

const DATA: &[u8] = b"data: ";

#[cfg(test)]
mod tests {
    use super::*;

    fn text(payload: &[u8]) -> String {
        String::from_utf8(publication(0xa, 3, payload).unwrap().to_vec()).unwrap()
    }

    #[test]
    fn each_line_is_a_data_line_and_nothing_ends_an_event_early() {
        assert_eq!(text(b"one"), "id: a:3\ndata: one\n\n");
        assert_eq!(text(b""), "id: a:3\ndata: \n\n");
        assert_eq!(text(b"a\nb\r\nc\rd\n"), "id: a:3\ndata: a\ndata: b\ndata: c\ndata: d\ndata: \n\n");
        assert_eq!(text(b"a\n\nevent: x"), "id: a:3\ndata: a\ndata: \ndata: event: x\n\n");
    }

    #[test]
    fn octets_that_are_no_text_are_base64() {
        assert_eq!(text(&[0xff, 0]), "id: a:3\nevent: binary\ndata: /wA=\n\n");
    }

    #[test]
    fn what_grows_beyond_a_frame_is_none() {
        assert!(publication(1, 1, &vec![b'\n'; PAYLOAD_BYTES_MAX / 4]).is_none());
        assert!(publication(1, 1, &vec![0xff; PAYLOAD_BYTES_MAX]).is_none());
    }
}
