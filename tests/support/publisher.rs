//! A publisher with a steady rate on a thread of its own, that survives a broker that comes and goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::payload::payload;
use super::redis::{Connection, Redis};

/// Publishes `NAME:1:...`, `NAME:2:...` until it is stopped; each of them to every one of its channels.
pub struct Publisher {
    progress: Arc<Progress>,
    thread: Option<JoinHandle<Vec<Accepted>>>,
}

#[derive(Default)]
struct Progress {
    stop: AtomicBool,
    started: AtomicU64,
    accepted: AtomicU64,
}

/// A publication that Redis acknowledged.
#[derive(Debug, Clone, Copy)]
pub struct Accepted {
    pub sequence: u64,
    /// Subscribers that Redis handed it to, over all channels.
    pub receivers: i64,
    /// Just before it was sent.
    pub sent: Instant,
    /// When the acknowledgement came.
    pub acknowledged: Instant,
}

impl Publisher {
    /// `rate` sequences a second of `bytes` each.
    pub fn start(redis: &Redis, channels: &[String], name: char, bytes: usize, rate: u32) -> Self {
        let progress = Arc::new(Progress::default());
        let (shared, channels) = (Arc::clone(&progress), channels.to_vec());
        let (address, password) = (redis.address(), redis.password().map(str::to_owned));
        let thread = thread::spawn(move || {
            let pause = Duration::from_secs(1) / rate;
            let (mut connection, mut accepted) = (None::<Connection>, Vec::new());
            let mut due = Instant::now();
            let mut sequence = 0;
            while !shared.stop.load(Ordering::Acquire) {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                // After an outage the rate goes on; what was not published then is not made up for.
                due = (due + pause).max(Instant::now());
                let Some(open) = connection.as_mut() else {
                    connection = Connection::open(address, password.as_deref()).ok();
                    continue;
                };
                sequence += 1;
                // Visible to joiners before Redis can have it: a sequence above this one was certainly published later.
                shared.started.store(sequence, Ordering::SeqCst);
                let sent = Instant::now();
                match open.publish_to_each(&channels, &payload(name, sequence, bytes)) {
                    Ok(receivers) => {
                        accepted.push(Accepted { sequence, receivers, sent, acknowledged: Instant::now() });
                        shared.accepted.store(sequence, Ordering::Release);
                    }
                    Err(_) => connection = None,
                }
            }
            accepted
        });
        Self { progress, thread: Some(thread) }
    }

    /// Highest sequence that Redis acknowledged.
    pub fn accepted(&self) -> u64 {
        self.progress.accepted.load(Ordering::Acquire)
    }

    /// Ends it and returns what was acknowledged, in order.
    #[track_caller]
    pub fn stop(mut self) -> Vec<Accepted> {
        self.progress.stop.store(true, Ordering::Release);
        self.thread.take().expect("stopped once").join().expect("the publisher's thread does not panic")
    }

    /// Tells the highest sequence that may be on its way, for whoever asks later.
    pub fn started_probe(&self) -> impl Fn() -> u64 + Send + 'static {
        let progress = Arc::clone(&self.progress);
        move || progress.started.load(Ordering::SeqCst)
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.progress.stop.store(true, Ordering::Release);
    }
}
