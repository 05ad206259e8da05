//! Requests to one child, through the door that only its parent has: no port, no name in the file system.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::SendFlags;
use shards::net::rights;

/// How long a child may take for an answer: longer than its own wait for its broker (5 s), so that it speaks first.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The same where all are asked: half of what Prometheus waits by default (10 s), so that one that hangs doesn't hide the others.
pub const GATHER_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for readiness: half of what the probe of deploy/kubernetes waits (`timeoutSeconds: 2`).
pub const READINESS_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest answer: a survey of a thousand rooms has less than a tenth of it.
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// A child's answer, as it stood on the wire.
#[derive(Debug)]
pub struct Answer {
    /// Of its status line.
    pub status: u16,
    /// Head and body.
    pub bytes: Vec<u8>,
    body: usize,
}

impl Answer {
    /// What follows the head.
    pub fn body(&self) -> &[u8] {
        &self.bytes[self.body..]
    }

    /// The same as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.body()).into_owned()
    }
}

/// A new connection to the child behind `door`.
///
/// # Errors
/// EPIPE where it is gone, EAGAIN where so many wait that it must hang.
pub fn connect(door: &OwnedFd) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    rights::send(door, b"c", &[theirs.as_fd()], SendFlags::DONTWAIT)?;
    ours.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    ours.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(ours)
}

/// Sends `request`, which asks for the end of the connection, and reads the answer to its end, waiting for `patience` at most
/// where nothing comes.
///
/// # Errors
/// As [`connect`]; a time-out; `InvalidData` for what is no answer, or none of this length.
pub fn ask(door: &OwnedFd, request: &[u8], patience: Duration) -> io::Result<Answer> {
    let mut stream = connect(door)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(request)?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes)?;
    let invalid = |sentence: &str| io::Error::new(io::ErrorKind::InvalidData, sentence.to_owned());
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut fields);
    let parsed = head.parse(&bytes).map_err(|error| invalid(&error.to_string()))?;
    let httparse::Status::Complete(body) = parsed else { return Err(invalid("the answer is cut short")) };
    let status = head.code.unwrap_or_default();
    let length = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let due = length.and_then(|field| std::str::from_utf8(field.value).ok()?.parse::<usize>().ok());
    if due.is_some_and(|due| bytes.len() - body < due) {
        return Err(invalid("the answer is cut short"));
    }
    Ok(Answer { status, bytes, body })
}

/// Processes for tests, seen from their parent.
#[cfg(test)]
pub mod doors {
    use std::sync::Arc;
    use std::thread;

    use rustix::net::RecvFlags;

    use super::*;

    /// The door of one that says `answer` to each request.
    pub fn answering(answer: &'static str) -> Arc<OwnedFd> {
        let (ours, theirs) = rights::pair().expect("descriptors are left");
        thread::spawn(move || {
            while let Ok(received) = rights::receive(&theirs, &mut [0; 16], RecvFlags::empty()) {
                let Some(connection) = received.descriptors.into_iter().next() else { return };
                let mut connection = UnixStream::from(connection);
                let mut head = [0; 512];
                let bytes = connection.read(&mut head).expect("a request");
                assert!(head[..bytes].ends_with(b"\r\n\r\n"), "it comes in one piece");
                connection.write_all(answer.as_bytes()).expect("who asked waits");
            }
        });
        Arc::new(ours)
    }

    /// The door of one that has died, of which its parent has not heard.
    pub fn dead() -> Arc<OwnedFd> {
        Arc::new(rights::pair().expect("descriptors are left").0)
    }
}
