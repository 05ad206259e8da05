//! A stand-in for Redis that answers a relay's handshake and pushes publications as fast as they are taken.
//!
//! redis-server shares the generator's core and pays for each PUBLISH what the relay pays for its push, so a relay behind it
//! idles. The stand-in only copies bytes: RESP3 pushes, encoded beforehand by the publisher, onto the relay's subscribed
//! connection. It knows just the commands that a relay sends, and its probes come back in their place among the pushes.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::orders::room_name;
use crate::publisher::{Publish, body};
use crate::sys;

/// Bytes that are gathered before they are written.
const OUT_BYTES_MAX: usize = 64 * 1024;
/// Longest argument of a command.
const ARGUMENT_BYTES_MAX: usize = 64 * 1024;
/// From the first connection to the subscription of what is published to.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(10);

/// The stand-in; it answers until the process ends or its connections do.
pub struct Replay {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    /// The connection that subscribed last, and what on it.
    subscriber: Option<TcpStream>,
    topics: BTreeSet<Vec<u8>>,
}

impl Replay {
    /// One on a free port of the loopback, on threads of this process.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("a port for the stand-in of Redis")?;
        let address = listener.local_addr()?;
        let shared = Arc::<Mutex<Shared>>::default();
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&theirs);
                // A connection that ends in the middle of something ends its thread, and nothing else.
                std::thread::spawn(move || converse(stream, &shared));
            }
        });
        Ok(Self { address, shared })
    }

    /// Pushes to `channel_prefix` + room, by way of `pattern` where there is one.
    pub fn publisher(
        &self,
        channel_prefix: &str,
        pattern: Option<&str>,
        field: Option<&str>,
    ) -> ReplayPublisher {
        ReplayPublisher {
            shared: Arc::clone(&self.shared),
            channel_prefix: channel_prefix.to_owned(),
            pattern: pattern.map(str::to_owned),
            field: field.map(str::to_owned),
            out: Vec::with_capacity(2 * OUT_BYTES_MAX),
        }
    }

    /// Waits until `topics` are subscribed.
    pub fn wait_subscribed(&self, topics: usize) -> Result<()> {
        let deadline = Instant::now() + SUBSCRIBE_TIMEOUT;
        // The probe's channel is one of them.
        while lock(&self.shared).topics.len() < topics + 1 {
            if Instant::now() > deadline || sys::interrupted() {
                let found = lock(&self.shared).topics.len();
                bail!(
                    "the server subscribed {found} of {topics} topics and its probe in {SUBSCRIBE_TIMEOUT:?}"
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Nothing here can be left half done by a thread that panics.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn converse(stream: TcpStream, shared: &Mutex<Shared>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let command = read_command(&mut input)?;
        let (verb, arguments) = command.split_first().context("a command without a name")?;
        match (verb.to_ascii_uppercase().as_slice(), arguments) {
            (b"HELLO", _) => stream.write_all(b"%1\r\n+server\r\n+stand-in\r\n")?,
            (b"PING", _) => stream.write_all(b"+PONG\r\n")?,
            (b"SUBSCRIBE" | b"PSUBSCRIBE" | b"UNSUBSCRIBE", [topic]) => {
                let kind = verb.to_ascii_lowercase();
                let mut shared = lock(shared);
                if kind == b"unsubscribe" {
                    shared.topics.remove(topic);
                } else {
                    shared.topics.insert(topic.clone());
                }
                let mut answer = Vec::new();
                push(&[&kind, topic], Some(1), &mut answer);
                stream.write_all(&answer)?;
                shared.subscriber = Some(stream.try_clone()?);
            }
            (b"PUBLISH", [channel, payload]) => {
                let mut shared = lock(shared);
                let is_wanted = shared.topics.contains(channel);
                if let Some(subscriber) = shared.subscriber.as_mut().filter(|_| is_wanted) {
                    let mut out = Vec::new();
                    push(&[b"message", channel, payload], None, &mut out);
                    subscriber.write_all(&out)?;
                }
                drop(shared);
                stream.write_all(format!(":{}\r\n", u8::from(is_wanted)).as_bytes())?;
            }
            _ => stream.write_all(b"+OK\r\n")?,
        }
    }
}

/// One command, an array of bulk strings.
fn read_command(input: &mut impl BufRead) -> Result<Vec<Vec<u8>>> {
    let arguments = read_length(input, b'*')?;
    (0..arguments)
        .map(|_| {
            let bytes = read_length(input, b'$')?;
            if bytes > ARGUMENT_BYTES_MAX {
                bail!("an argument of {bytes} bytes");
            }
            let mut argument = vec![0; bytes + 2];
            input.read_exact(&mut argument)?;
            argument.truncate(bytes);
            Ok(argument)
        })
        .collect()
}

fn read_length(input: &mut impl BufRead, kind: u8) -> Result<usize> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        bail!("the connection has ended");
    }
    let digits = line.strip_prefix(char::from(kind)).with_context(|| format!("{line:?} in a command"))?;
    digits.trim_end().parse().with_context(|| format!("{line:?} in a command"))
}

/// Appends a push of strings, and of a number where there is one.
fn push(strings: &[&[u8]], number: Option<u32>, out: &mut Vec<u8>) {
    // Writing to a vector can't fail.
    let _ = write!(out, ">{}\r\n", strings.len() + usize::from(number.is_some()));
    for string in strings {
        let _ = write!(out, "${}\r\n", string.len());
        out.extend_from_slice(string);
        out.extend_from_slice(b"\r\n");
    }
    if let Some(number) = number {
        let _ = write!(out, ":{number}\r\n");
    }
}

/// See [`Replay::publisher`].
pub struct ReplayPublisher {
    shared: Arc<Mutex<Shared>>,
    channel_prefix: String,
    pattern: Option<String>,
    field: Option<String>,
    out: Vec<u8>,
}

impl Publish for ReplayPublisher {
    fn publish(&mut self, room: u32, payload: &[u8]) -> Result<()> {
        let name = room_name(room);
        let channel = format!("{}{name}", self.channel_prefix);
        let body = body(&name, self.field.as_deref(), payload);
        match &self.pattern {
            Some(pattern) => {
                push(&[b"pmessage", pattern.as_bytes(), channel.as_bytes(), &body], None, &mut self.out);
            }
            None => push(&[b"message", channel.as_bytes(), &body], None, &mut self.out),
        }
        if self.out.len() >= OUT_BYTES_MAX { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        let mut shared = lock(&self.shared);
        let subscriber =
            shared.subscriber.as_mut().context("nobody has subscribed at the stand-in of Redis")?;
        subscriber.write_all(&self.out).context("pushing to the server")?;
        self.out.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_subscriber_is_pushed_to_and_probes_keep_their_place() {
        let replay = Replay::start().unwrap();
        let mut subscriber = TcpStream::connect(replay.address).unwrap();
        let mut commander = TcpStream::connect(replay.address).unwrap();
        subscriber
            .write_all(b"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\np\r\n*2\r\n$10\r\nPSUBSCRIBE\r\n$2\r\nr*\r\n")
            .unwrap();
        replay.wait_subscribed(1).unwrap();
        let mut publisher = replay.publisher("r", Some("r*"), Some("data"));
        publisher.publish(3, b"cast").unwrap();
        publisher.flush().unwrap();
        commander.write_all(b"*3\r\n$7\r\nPUBLISH\r\n$1\r\np\r\n$1\r\n7\r\n").unwrap();
        let mut answer = [0; 4];
        commander.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b":1\r\n");
        let due = ">3\r\n$9\r\nsubscribe\r\n$1\r\np\r\n:1\r\n>3\r\n$10\r\npsubscribe\r\n$2\r\nr*\r\n:1\r\n\
                   >4\r\n$8\r\npmessage\r\n$2\r\nr*\r\n$7\r\nrbench3\r\n$46\r\n\
                   {\"room\":\"bench3\",\"from\":\"bench\",\"data\":\"cast\"}\r\n\
                   >3\r\n$7\r\nmessage\r\n$1\r\np\r\n$1\r\n7\r\n";
        let mut found = vec![0; due.len()];
        subscriber.read_exact(&mut found).unwrap();
        assert_eq!(String::from_utf8_lossy(&found), due);
    }
}
