//! HTTP/1.1 answers that are small enough to be written in one piece.

/// Appends an answer to `out`: status line, fields, an empty line, and `body` unless `head_only` (the request was a HEAD).
///
/// `extra` are further header fields, the caller's own text. 204 and 304 have neither body nor length
/// (RFC 9110 section 8.6).
pub fn response(
    status: u16,
    content_type: &str,
    extra: &[(&str, &str)],
    body: &[u8],
    head_only: bool,
    keep_alive: bool,
    out: &mut Vec<u8>,
) {
    debug_assert!((200..600).contains(&status), "{status} is no final status");
    status_line(status, out);
    let has_body = !matches!(status, 204 | 304);
    if has_body {
        field("Content-Type", content_type, out);
        field("Content-Length", &body.len().to_string(), out);
    }
    for (name, value) in extra {
        field(name, value, out);
    }
    // HTTP/1.1 implies keep-alive; HTTP/1.0 clients, which asked for it, need the word.
    field("Connection", if keep_alive { "keep-alive" } else { "close" }, out);
    out.extend_from_slice(b"\r\n");
    if has_body && !head_only {
        out.extend_from_slice(body);
    }
}

/// Appends the head of a response of server-sent events, which ends with its connection. `origin` is that of the page that
/// asked, where it may read the answer.
pub fn event_stream(origin: Option<&str>, out: &mut Vec<u8>) {
    status_line(200, out);
    field("Content-Type", "text/event-stream", out);
    field("Cache-Control", "no-store", out);
    // nginx and its like would collect events until a buffer is full.
    field("X-Accel-Buffering", "no", out);
    if let Some(origin) = origin {
        field("Access-Control-Allow-Origin", origin, out);
        field("Vary", "Origin", out);
    }
    field("Connection", "close", out);
    out.extend_from_slice(b"\r\n");
}

/// Appends `HTTP/1.1 200 OK` and its like.
pub(super) fn status_line(status: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("HTTP/1.1 {status} {}\r\n", phrase(status)).as_bytes());
}

/// Appends one header field.
pub(super) fn field(name: &str, value: &str, out: &mut Vec<u8>) {
    debug_assert!(!value.contains(['\r', '\n']), "the field {name} would start another one");
    for piece in [name, ": ", value, "\r\n"] {
        out.extend_from_slice(piece.as_bytes());
    }
}

/// RFC 9110 section 15; the phrase may be empty, and is for the statuses that nobody here sends.
fn phrase(status: u16) -> &'static str {
    match status {
        101 => "Switching Protocols",
        200 => "OK",
        202 => "Accepted",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Status, fields and body, as another parser reads them.
    fn read(octets: &[u8]) -> (u16, Vec<(String, String)>, Vec<u8>) {
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut fields);
        let head_bytes = response.parse(octets).unwrap().unwrap();
        let fields = response
            .headers
            .iter()
            .map(|field| (field.name.to_owned(), String::from_utf8(field.value.to_vec()).unwrap()))
            .collect();
        (response.code.unwrap(), fields, octets[head_bytes..].to_vec())
    }

    fn owned(fields: &[(&str, &str)]) -> Vec<(String, String)> {
        fields.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn an_answer_carries_its_length_and_its_body() {
        let mut out = Vec::new();
        response(200, "text/plain", &[("Cache-Control", "no-store")], b"ok\n", false, true, &mut out);
        let fields = [
            ("Content-Type", "text/plain"),
            ("Content-Length", "3"),
            ("Cache-Control", "no-store"),
            ("Connection", "keep-alive"),
        ];
        assert_eq!(read(&out), (200, owned(&fields), b"ok\n".to_vec()));
    }

    #[test]
    fn head_is_answered_with_the_length_of_what_get_would_bring() {
        let mut out = Vec::new();
        response(200, "text/plain", &[], b"ok\n", true, false, &mut out);
        let (_, fields, body) = read(&out);
        assert!(fields.contains(&("Content-Length".into(), "3".into())));
        assert!(fields.contains(&("Connection".into(), "close".into())));
        assert!(body.is_empty());
    }

    #[test]
    fn no_content_has_no_length() {
        let mut out = Vec::new();
        response(204, "text/plain", &[], b"", false, true, &mut out);
        assert_eq!(read(&out), (204, owned(&[("Connection", "keep-alive")]), vec![]));
    }
}
