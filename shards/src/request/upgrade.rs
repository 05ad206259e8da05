//! The WebSocket handshake: every check of RFC 6455 section 4.2.1, and the 101.

use data_encoding::BASE64;
use tungstenite::handshake::derive_accept_key;

use crate::dialect::{Standing, epoch_text};

use super::{Head, HttpError, Method, Version, quoted, reply, starts_with_ignoring_case};

/// What a 101 proves that the request was understood with: the value of Sec-WebSocket-Accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptKey(String);

impl Head<'_> {
    /// Whether the request is meant as a WebSocket handshake, sound or not: it asks to upgrade to `websocket`, or has a
    /// field that only handshakes have.
    pub fn wants_upgrade(&self) -> bool {
        self.lists("upgrade", "websocket")
            || self.fields.iter().any(|(name, _)| starts_with_ignoring_case(name, "sec-websocket-"))
    }

    /// Checks that the request is a sound WebSocket handshake, and takes from it what the 101 needs.
    ///
    /// Who may connect (Origin, room, user) is not judged here.
    ///
    /// # Errors
    /// 405 for another method than GET, 505 for HTTP/1.0, 426 for another version of the protocol than 13, 400 for
    /// anything else: a body, no `websocket` in Upgrade, no `upgrade` in Connection, a key that is missing, repeated,
    /// or not 16 bytes in base64. [`parse`](super::parse) has checked Host and refused Transfer-Encoding.
    pub fn websocket_key(&self) -> Result<AcceptKey, HttpError> {
        if self.method != Method::Get {
            let message = format!("a WebSocket handshake is a GET, not a {}", self.method.name());
            return Err(HttpError::new(405, message).with_fields(&[("Allow", "GET")]));
        }
        if self.version != Version::Http11 {
            return Err(HttpError::new(505, "a WebSocket handshake needs HTTP/1.1, not HTTP/1.0"));
        }
        if self.content_length.is_some_and(|body_bytes| body_bytes > 0) {
            return Err(HttpError::new(400, "a WebSocket handshake has no body: leave Content-Length out"));
        }
        if !self.lists("upgrade", "websocket") {
            return Err(HttpError::new(400, "the field `Upgrade: websocket` is missing"));
        }
        if !self.lists("connection", "upgrade") {
            let message = "the field `Connection: Upgrade` is missing; a proxy may have removed it";
            return Err(HttpError::new(400, message));
        }
        self.check_version()?;
        self.accept_key()
    }

    /// RFC 6455 section 4.4: another version is told which one would do.
    fn check_version(&self) -> Result<(), HttpError> {
        let mut versions = self.fields("sec-websocket-version");
        match (versions.next(), versions.next()) {
            (Some("13"), None) => Ok(()),
            (_, Some(_)) => {
                Err(HttpError::new(400, "several Sec-WebSocket-Version fields: send exactly one"))
            }
            (_, None) => Err(HttpError::new(426, "only version 13 of the WebSocket protocol is spoken here")
                .with_fields(&[("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")])),
        }
    }

    fn accept_key(&self) -> Result<AcceptKey, HttpError> {
        let mut keys = self.fields("sec-websocket-key");
        match (keys.next(), keys.next()) {
            (Some(key), None) if is_key(key) => Ok(AcceptKey(derive_accept_key(key.as_bytes()))),
            (Some(key), None) => {
                let message = format!("the Sec-WebSocket-Key {} is not 16 bytes in base64", quoted(key));
                Err(HttpError::new(400, message))
            }
            (None, _) => Err(HttpError::new(400, "the Sec-WebSocket-Key field is missing")),
            (Some(_), Some(_)) => {
                Err(HttpError::new(400, "several Sec-WebSocket-Key fields: send exactly one"))
            }
        }
    }
}

impl AcceptKey {
    /// The value of Sec-WebSocket-Accept.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Appends the 101 to `out`: no Content-Length, and no Sec-WebSocket-Protocol unless one was chosen among those offered.
pub fn switching_protocols(key: &AcceptKey, protocol: Option<&str>, out: &mut Vec<u8>) {
    reply::status_line(101, out);
    reply::field("Upgrade", "websocket", out);
    reply::field("Connection", "Upgrade", out);
    reply::field("Sec-WebSocket-Accept", key.as_str(), out);
    if let Some(protocol) = protocol.filter(|protocol| !protocol.is_empty()) {
        reply::field("Sec-WebSocket-Protocol", protocol, out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Tells in a head that ends `out` where its client stands in the room, so that it can come back to that place.
pub fn add_standing(standing: &Standing, out: &mut Vec<u8>) {
    debug_assert!(out.ends_with(b"\r\n\r\n"), "no head");
    out.truncate(out.len() - 2);
    reply::field("Corecast-Epoch", &epoch_text(standing.epoch), out);
    reply::field("Corecast-Offset", &standing.offset.to_string(), out);
    if let Some(recovered) = standing.recovered {
        reply::field("Corecast-Recovered", if recovered { "true" } else { "false" }, out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Whether `key` decodes to 16 bytes. Its length is looked at first, so that nothing longer is decoded.
fn is_key(key: &str) -> bool {
    const KEY_BYTES: usize = 16;
    let mut decoded = [0; KEY_BYTES.div_ceil(3) * 3];
    key.len() == KEY_BYTES.div_ceil(3) * 4
        && BASE64.decode_mut(key.as_bytes(), &mut decoded).is_ok_and(|bytes| bytes == KEY_BYTES)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::{self, Read, Write};

    use proptest::prelude::*;

    use super::super::parse;
    use super::*;

    const HANDSHAKE: [&str; 6] = [
        "GET /ws?room=lobby HTTP/1.1",
        "Host: localhost:8080",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ];

    fn judge(lines: &[&str]) -> Result<AcceptKey, HttpError> {
        let octets = format!("{}\r\n\r\n", lines.join("\r\n"));
        let head = parse(octets.as_bytes())?.expect("a whole head");
        assert!(head.wants_upgrade());
        head.websocket_key()
    }

    /// The status for the handshake with its line `index` replaced.
    fn status_with(index: usize, lines: &[&str]) -> Option<u16> {
        let mut all = HANDSHAKE.to_vec();
        all.splice(index..=index, lines.iter().copied());
        judge(&all).err().map(|error| error.status)
    }

    #[test]
    fn the_handshake_of_the_rfc_is_accepted_with_the_key_of_the_rfc() {
        let key = judge(&HANDSHAKE).unwrap();
        assert_eq!(key.as_str(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let mut out = Vec::new();
        switching_protocols(&key, Some(""), &mut out);
        let expected = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_chosen_protocol_is_told() {
        let mut out = Vec::new();
        switching_protocols(&judge(&HANDSHAKE).unwrap(), Some("ws+meta.nchan"), &mut out);
        assert!(String::from_utf8(out).unwrap().ends_with("Sec-WebSocket-Protocol: ws+meta.nchan\r\n\r\n"));
    }

    /// A stream whose other end answers one handshake.
    #[derive(Debug, Default)]
    struct Wire {
        sent: Vec<u8>,
        answer: VecDeque<u8>,
    }

    impl Write for Wire {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            self.sent.write(octets)
        }

        fn flush(&mut self) -> io::Result<()> {
            let head = parse(&self.sent).unwrap().expect("a whole head");
            let mut answer = Vec::new();
            switching_protocols(&head.websocket_key().unwrap(), None, &mut answer);
            self.answer.extend(answer);
            Ok(())
        }
    }

    impl Read for Wire {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            self.answer.read(out)
        }
    }

    #[test]
    fn tungstenites_client_is_understood_and_understands_the_answer() {
        let (_, answer) = tungstenite::client("ws://localhost:8080/ws?room=lobby", Wire::default()).unwrap();
        assert_eq!(answer.status(), 101);
        assert!(answer.headers().get("content-length").is_none());
    }

    #[test]
    fn upgrade_and_connection_are_lists_whatever_their_case() {
        assert_eq!(status_with(2, &["upgrade: h2c, WebSocket"]), None);
        assert_eq!(status_with(3, &["CONNECTION: keep-alive,\tupgrade"]), None);
        assert_eq!(status_with(3, &["Connection: keep-alive", "Connection: UPGRADE"]), None);
        assert_eq!(status_with(2, &[]), Some(400));
        assert_eq!(status_with(2, &["Upgrade: websockets"]), Some(400));
        assert_eq!(status_with(3, &[]), Some(400));
        assert_eq!(status_with(3, &["Connection: upgraded"]), Some(400));
    }

    #[test]
    fn only_get_and_http_1_1_upgrade() {
        let error = judge(&[&["POST /ws HTTP/1.1"], &HANDSHAKE[1..]].concat()).unwrap_err();
        assert_eq!((error.status, error.fields), (405, &[("Allow", "GET")][..]));
        assert_eq!(status_with(0, &["HEAD /ws HTTP/1.1"]), Some(405));
        assert_eq!(status_with(0, &["GET /ws HTTP/1.0"]), Some(505));
    }

    #[test]
    fn exactly_one_host_is_due() {
        assert_eq!(status_with(1, &[]), Some(400));
        assert_eq!(status_with(1, &["Host: a", "Host: a"]), Some(400));
        assert_eq!(status_with(1, &["Host: a, b"]), Some(400));
        assert_eq!(status_with(1, &["Host:"]), Some(400));
    }

    #[test]
    fn exactly_one_key_of_16_bytes_is_due() {
        assert_eq!(status_with(4, &[]), Some(400));
        assert_eq!(status_with(4, &[HANDSHAKE[4], HANDSHAKE[4]]), Some(400));
        for key in ["", "dGhlIHNhbXBsZSBub25jZQ", "AAAA", "SGVsbG8sIHdvcmxkIQ==", "dGhlIHNhbXBsZSBub25j!Q=="]
        {
            assert_eq!(status_with(4, &[&format!("Sec-WebSocket-Key: {key}")]), Some(400), "{key}");
        }
        // 17 and 18 bytes take as many characters as 16.
        for bytes in [15, 17, 18] {
            let key = BASE64.encode(&vec![7; bytes]);
            assert_eq!(status_with(4, &[&format!("Sec-WebSocket-Key: {key}")]), Some(400), "{bytes} bytes");
        }
    }

    #[test]
    fn another_version_is_told_which_one_would_do() {
        for lines in [&[][..], &["Sec-WebSocket-Version: 8"], &["Sec-WebSocket-Version: 13, 8"]] {
            let mut all = HANDSHAKE[..5].to_vec();
            all.extend(lines);
            let error = judge(&all).unwrap_err();
            assert_eq!(error.status, 426, "{lines:?}");
            assert!(error.fields.contains(&("Sec-WebSocket-Version", "13")));
        }
        assert_eq!(status_with(5, &[HANDSHAKE[5], HANDSHAKE[5]]), Some(400));
    }

    #[test]
    fn a_handshake_has_no_body() {
        assert_eq!(status_with(5, &[HANDSHAKE[5], "Content-Length: 0"]), None);
        assert_eq!(status_with(5, &[HANDSHAKE[5], "Content-Length: 1"]), Some(400));
        assert_eq!(status_with(5, &[HANDSHAKE[5], "Transfer-Encoding: chunked"]), Some(400));
    }

    #[test]
    fn a_plain_request_wants_no_upgrade() {
        for fields in ["", "Upgrade: h2c\r\nConnection: Upgrade\r\n", "X-Sec-WebSocket-Key: x\r\n"] {
            let octets = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            assert!(!parse(octets.as_bytes()).unwrap().unwrap().wants_upgrade(), "{fields}");
        }
    }

    proptest! {
        #[test]
        fn a_key_is_one_exactly_if_it_encodes_16_bytes(octets in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(is_key(&BASE64.encode(&octets)), octets.len() == 16);
            prop_assert!(!is_key(&String::from_utf8_lossy(&octets)) || octets.len() == 24);
        }
    }
}
