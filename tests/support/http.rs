//! Plain HTTP/1.1, one request a connection, answers read strictly.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::deadline::SOON;

/// An answer as it stood on the wire.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// The only value of a header; `None` when absent.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values =
            self.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str());
        let value = values.next();
        assert!(values.next().is_none(), "two {name} headers in {self:?}");
        value
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or_else(|error| panic!("{error} in the body of {self:?}"))
    }
}

/// Sends `request` as it is and reads one answer.
///
/// # Errors
/// Whatever TCP says, and `InvalidData` for an answer that is none.
pub fn exchange(address: SocketAddr, request: &[u8]) -> io::Result<Response> {
    let mut stream = connect(address)?;
    // A server that refuses early may close before it has read everything; its answer counts.
    let sent = stream.write_all(request);
    let answered = read_response(&mut stream, request.starts_with(b"HEAD "));
    if answered.is_err() { sent.and(answered) } else { answered }
}

/// GET or another method without a body.
pub fn request(address: SocketAddr, method: &str, target: &str, headers: &[&str]) -> io::Result<Response> {
    send(address, method, target, headers, b"")
}

/// POST with a body.
pub fn post(address: SocketAddr, target: &str, headers: &[&str], body: &[u8]) -> io::Result<Response> {
    let length = format!("Content-Length: {}", body.len());
    send(address, "POST", target, &[headers, &[&length]].concat(), body)
}

fn send(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[&str],
    body: &[u8],
) -> io::Result<Response> {
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for header in headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    exchange(address, &[head.as_bytes(), body].concat())
}

/// A connection whose reads and writes end after [`SOON`].
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Reads one answer and nothing after it. `without_body`: what the headers announce does not follow (HEAD).
pub fn read_response(stream: &mut impl Read, without_body: bool) -> io::Result<Response> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("TCP ended {} bytes into an answer's head", head.len()),
            ));
        }
        head.push(byte[0]);
    }
    let mut response =
        parse_head(&head).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let length = response.header("content-length").map(|value| value.parse::<usize>());
    match length {
        _ if without_body || response.status < 200 => {}
        Some(length) => {
            let length = length.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            response.body.resize(length, 0);
            stream.read_exact(&mut response.body)?;
        }
        None => drop(stream.read_to_end(&mut response.body)?),
    }
    Ok(response)
}

/// Parses a head that ends with an empty line.
pub fn parse_head(head: &[u8]) -> Result<Response, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Response::new(&mut headers);
    parsed.parse(head)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Response {
        status: parsed.code.unwrap_or(0),
        headers: parsed.headers.iter().map(|h| (h.name.to_ascii_lowercase(), text(h.value))).collect(),
        body: Vec::new(),
    })
}
