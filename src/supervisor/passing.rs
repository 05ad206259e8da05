//! Requests of the admin address that one process answers: passed on through its door, and the answer back.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use shards::limits::{HEAD_BYTES_MAX, PAYLOAD_BYTES_MAX, body_patience};
use shards::request::Head;

use super::admin::read_before;

/// What a body may take beyond the child's patience, so that it is the child who says 408.
const BODY_MARGIN: Duration = Duration::from_secs(2);

/// `bytes`, a head and maybe more, with the wish that the connection ends; as GET, where only a HEAD was asked for.
pub fn ending(bytes: &[u8], method: &str) -> Vec<u8> {
    let start = bytes.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(0);
    let bytes = &bytes[start..];
    let target = bytes.iter().position(|byte| *byte == b' ').unwrap_or(0);
    let line_ends = bytes.windows(2).position(|two| two == b"\r\n").map_or(bytes.len(), |at| at + 2);
    [method.as_bytes(), &bytes[target..line_ends], b"Connection: close\r\n", &bytes[line_ends..]].concat()
}

/// Passes a request on to `child`, with its body, and the answer back.
///
/// # Errors
/// The child answers nothing.
pub fn pass_on(mut child: UnixStream, head: &Head<'_>, bytes: &[u8], stream: &TcpStream) -> io::Result<()> {
    let body_due = head.content_length().unwrap_or(0);
    let body = &bytes[head.bytes..];
    let whole = head.bytes + body.len().min(body_due);
    child.write_all(&ending(&bytes[..whole], head.method.name()))?;
    let left = body_due.saturating_sub(body.len());
    let due = Instant::now() + body_patience(body_due.min(PAYLOAD_BYTES_MAX)) + BODY_MARGIN;
    // A child that refuses early reads no more; its answer counts.
    let begun = copy_body(stream, &mut child, left, due).unwrap_or_default();
    answer_through(&begun, &mut child, stream)
}

/// Until all has come, or the child has answered because of the head alone: then how that answer begins. It is the child who
/// says that a client which waits for it (`Expect: 100-continue`) may send its body.
fn copy_body(
    mut stream: &TcpStream,
    child: &mut UnixStream,
    bytes: usize,
    due: Instant,
) -> io::Result<Vec<u8>> {
    let (mut left, mut buffer) = (bytes, [0; 16 * 1024]);
    while left > 0 {
        if answers_first(child, stream, due)? {
            let answer = read_answer_head(child)?;
            if !answer.starts_with(CONTINUE) {
                return Ok(answer);
            }
            stream.write_all(&answer)?;
            continue;
        }
        let room = left.min(buffer.len());
        let received = read_before(stream, &mut buffer[..room], due)?;
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        child.write_all(&buffer[..received])?;
        left -= received;
    }
    Ok(Vec::new())
}

/// How the status line of an answer begins that another one follows.
const CONTINUE: &[u8] = b"HTTP/1.1 100 ";

/// To its empty line and no octet further, or to the end of what the child says.
fn read_answer_head(child: &mut UnixStream) -> io::Result<Vec<u8>> {
    let (mut head, mut octet) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX && child.read(&mut octet)? > 0 {
        head.extend(octet);
    }
    Ok(head)
}

/// Waits for either side. Whether the child speaks, whatever the client does.
fn answers_first(child: &UnixStream, stream: &TcpStream, due: Instant) -> io::Result<bool> {
    loop {
        let mut ends = [PollFd::new(child, PollFlags::IN), PollFd::new(stream, PollFlags::IN)];
        let left = Timespec::try_from(due.saturating_duration_since(Instant::now())).ok();
        match poll(&mut ends, left.as_ref()) {
            Ok(_) => return Ok(!ends[0].revents().is_empty()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The rest of an answer that has `begun`.
fn answer_through(begun: &[u8], child: &mut UnixStream, stream: &TcpStream) -> io::Result<()> {
    let mut answer = begun.chain(child);
    let mut buffer = [0; 16 * 1024];
    let first = answer.read(&mut buffer)?;
    if first == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // From here on an error is told by the end of the connection: an answer has begun.
    let _hung_up = (&mut &*stream)
        .write_all(&buffer[..first])
        .and_then(|()| io::copy(&mut answer, &mut &*stream).map(drop));
    Ok(())
}

#[cfg(test)]
mod tests {
    use shards::request;

    use super::*;

    #[test]
    fn a_request_that_is_passed_on_asks_for_the_end_of_its_connection_first() {
        let asked = b"HEAD /stats HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n";
        let due = "GET /stats HTTP/1.1\r\nConnection: close\r\nHost: a\r\nConnection: keep-alive\r\n\r\n";
        let passed = ending(asked, "GET");
        assert_eq!(String::from_utf8_lossy(&passed), due);
        let head = request::parse(&passed).expect("a request").expect("a whole one");
        assert!(!head.keep_alive());
        assert_eq!(
            ending(b"\r\nGET / HTTP/1.0\r\n\r\n", "GET"),
            b"GET / HTTP/1.0\r\nConnection: close\r\n\r\n"
        );
    }
}
