//! A steady publisher that is turned away from one Redis and goes to the next: what it numbers has one order wherever it
//! was taken.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use redis_protocol::resp2::types::OwnedFrame;

use super::payload::payload;
use super::redis::{Connection, text};

/// Publishes `P:1:...`, `P:2:...` to one channel until it is stopped.
pub struct Feed {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<BTreeSet<u64>>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    started: AtomicU64,
    accepted: AtomicU64,
}

/// By what a publication reaches a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// PUBLISH at whoever is no replica.
    Publish,
    /// XADD to the stream of that name.
    Append,
    /// SPUBLISH at the node of a cluster that has the channel's slot.
    ShardPublish,
}

impl By {
    fn command<'a>(self, channel: &'a [u8], payload: &'a [u8]) -> Vec<&'a [u8]> {
        match self {
            Self::Publish => vec![b"PUBLISH", channel, payload],
            Self::ShardPublish => vec![b"SPUBLISH", channel, payload],
            Self::Append => vec![b"XADD", channel, b"*", b"data", payload],
        }
    }
}

impl Feed {
    /// `rate` publications a second of 128 bytes each.
    pub fn start(targets: &[SocketAddr], by: By, channel: &str, rate: u32) -> Self {
        let shared = Arc::new(Shared::default());
        let (progress, targets, channel) = (Arc::clone(&shared), targets.to_vec(), channel.to_owned());
        let thread = thread::spawn(move || {
            let pause = Duration::from_secs(1) / rate;
            let mut targets = targets.iter().cycle();
            let (mut connection, mut accepted) = (None::<Connection>, BTreeSet::new());
            let (mut due, mut sequence) = (Instant::now(), 0);
            while !progress.stop.load(Ordering::Acquire) {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                // What was not published during an outage is not made up for.
                due = (due + pause).max(Instant::now());
                let Some(open) = connection.as_mut() else {
                    let target = targets.next().expect("there is one");
                    connection = open_at(*target, by).ok();
                    continue;
                };
                sequence += 1;
                progress.started.store(sequence, Ordering::SeqCst);
                let bytes = payload('P', sequence, 128);
                match open.command(&by.command(channel.as_bytes(), &bytes)) {
                    Ok(_) => {
                        accepted.insert(sequence);
                        progress.accepted.store(sequence, Ordering::Release);
                    }
                    Err(_) => connection = None,
                }
            }
            accepted
        });
        Self { shared, thread: Some(thread) }
    }

    /// Highest number that somebody took.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Acquire)
    }

    /// Highest number that may be on its way: what is above it is published later.
    pub fn started(&self) -> u64 {
        self.shared.started.load(Ordering::SeqCst)
    }

    /// Ends it; returns what was taken.
    #[track_caller]
    pub fn stop(mut self) -> BTreeSet<u64> {
        self.shared.stop.store(true, Ordering::Release);
        self.thread.take().expect("stopped once").join().expect("the feed's thread does not panic")
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

fn open_at(target: SocketAddr, by: By) -> io::Result<Connection> {
    let mut connection = Connection::open(target, None)?;
    // A replica takes a PUBLISH and tells nobody above it.
    if by != By::ShardPublish
        && let OwnedFrame::Array(role) = connection.command(&[b"ROLE"])?
        && role.first().map(text).as_deref() != Some("master")
    {
        return Err(io::Error::other("a replica"));
    }
    Ok(connection)
}
