//! Messages over HTTP: POST, one after the other or pipelined.

use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::orders::PathTemplate;
use crate::publisher::{OUT_BYTES_MAX, Publish, wait_for_space};
use crate::sys;
use crate::wire;

/// What an HTTP answer may be long.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// POST, one request after the other; on one connection for as long as the server keeps it.
pub struct HttpPublisher {
    address: SocketAddrV4,
    path: PathTemplate,
    stream: Option<TcpStream>,
}

impl HttpPublisher {
    /// Posts to `path` with its room filled in.
    pub fn new(address: SocketAddrV4, path: PathTemplate) -> Self {
        Self { address, path, stream: None }
    }

    fn read_answer(stream: &mut TcpStream) -> Result<bool> {
        let mut answers = Answers::default();
        let mut input = [0; 4_096];
        loop {
            if let Some(Answered { keeps }) = answers.take()? {
                return Ok(keeps);
            }
            match stream.read(&mut input)? {
                0 => bail!("the server ended the connection instead of answering POST"),
                bytes => answers.bytes.extend_from_slice(&input[..bytes]),
            }
        }
    }
}

/// The answers to POST on one connection, as far as they have come.
#[derive(Default)]
struct Answers {
    bytes: Vec<u8>,
}

struct Answered {
    /// The connection may be used again.
    keeps: bool,
}

impl Answers {
    /// Takes the first answer, if it is whole.
    fn take(&mut self) -> Result<Option<Answered>> {
        if let Some(head_bytes) = wire::head_bytes(&self.bytes) {
            let head = String::from_utf8_lossy(&self.bytes[..head_bytes]);
            let status = head.split(' ').nth(1).unwrap_or_default();
            if !status.starts_with('2') {
                bail!("POST was answered {:?}", head.lines().next().unwrap_or_default());
            }
            let body_bytes: usize = match wire::field(&head, "content-length") {
                Some(length) => length.parse().with_context(|| format!("Content-Length {length:?}"))?,
                None => 0,
            };
            let whole = head_bytes.saturating_add(body_bytes);
            if self.bytes.len() >= whole {
                let keeps =
                    wire::field(&head, "connection").is_none_or(|value| !value.eq_ignore_ascii_case("close"));
                self.bytes.drain(..whole);
                return Ok(Some(Answered { keeps }));
            }
        }
        if self.bytes.len() > ANSWER_BYTES_MAX {
            bail!("POST was answered with more than {ANSWER_BYTES_MAX} bytes");
        }
        Ok(None)
    }
}

impl Publish for HttpPublisher {
    fn publish(&mut self, room: u32, payload: &[u8]) -> Result<()> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(self.address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                stream
            }
        };
        let mut request = Vec::new();
        write_post(&mut request, self.address, &self.path, room, payload)?;
        stream.write_all(&request).context("POST")?;
        if Self::read_answer(&mut stream)? {
            self.stream = Some(stream);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

fn write_post(
    out: &mut Vec<u8>,
    host: SocketAddrV4,
    path: &PathTemplate,
    room: u32,
    payload: &[u8],
) -> io::Result<()> {
    let (path, length) = (path.fill(std::iter::once(room)), payload.len());
    write!(out, "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n")?;
    out.write_all(payload)
}

/// POST, pipelined on one connection: no message waits for the answer to the one before it (RFC 9112 section 9.3.2).
pub struct HttpPipeline {
    address: SocketAddrV4,
    path: PathTemplate,
    stream: TcpStream,
    out: Vec<u8>,
    answers: Answers,
}

impl HttpPipeline {
    /// Posts to `path` with its room filled in.
    pub fn connect(address: SocketAddrV4, path: PathTemplate) -> Result<Self> {
        let stream =
            TcpStream::connect(address).with_context(|| format!("connecting to {address} for POST"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { address, path, stream, out: Vec::new(), answers: Answers::default() })
    }

    fn read_answers(&mut self) -> Result<()> {
        let mut input = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut input) {
                Ok(0) => bail!("the server ended the connection for POST"),
                Ok(bytes) => self.answers.bytes.extend_from_slice(&input[..bytes]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("reading answers to POST"),
            }
            while let Some(Answered { keeps }) = self.answers.take()? {
                if !keeps {
                    bail!("the server closes the connection after a POST, so that none can follow");
                }
            }
        }
    }
}

impl Publish for HttpPipeline {
    fn publish(&mut self, room: u32, payload: &[u8]) -> Result<()> {
        write_post(&mut self.out, self.address, &self.path, room, payload)?;
        if self.out.len() >= OUT_BYTES_MAX { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let mut written = 0;
        let mut moved_ns = sys::monotonic_ns();
        while written < self.out.len() {
            match self.stream.write(&self.out[written..]) {
                Ok(bytes) => (written, moved_ns) = (written + bytes, sys::monotonic_ns()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.read_answers()?;
                    wait_for_space(moved_ns).context("the server reads no POST")?;
                }
                Err(error) => return Err(error).context("POST"),
            }
        }
        self.out.clear();
        self.read_answers()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_one_by_one_however_they_are_cut() {
        let bytes = b"HTTP/1.1 201 Created\r\nContent-Length: 3\r\n\r\nok\nHTTP/1.1 200 OK\r\nconnection: Close\r\n\r\n";
        let mut answers = Answers::default();
        let mut taken = Vec::new();
        for byte in bytes {
            answers.bytes.push(*byte);
            taken.extend(answers.take().unwrap().map(|answered| answered.keeps));
        }
        assert_eq!(taken, [true, false]);
        assert!(answers.bytes.is_empty());
    }

    #[test]
    fn what_is_no_success_or_has_no_end_is_an_error() {
        let refused =
            |bytes: &[u8]| Answers { bytes: bytes.to_vec() }.take().err().map(|error| error.to_string());
        assert!(refused(b"HTTP/1.1 404 Not Found\r\n\r\n").unwrap().contains("404"));
        assert!(refused(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n").unwrap().contains("Content-Length"));
        assert!(refused(&vec![b'a'; ANSWER_BYTES_MAX + 1]).is_some());
        assert_eq!(refused(b"HTTP/1.1 200 OK\r\n"), None);
    }
}
