//! The writer of a measurement's log: formats and writes on a thread of its own, so that receivers only read and stamp.
//!
//! The queue to it is bounded. Full, the receivers wait and count it: latencies measured then contain the wait for the
//! disk, and the summary says so.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::record::{Note, Received};

/// Deliveries that a receiver gathers before it hands them on.
pub const BATCH_DELIVERIES_MAX: usize = 4_096;
/// Batches on their way: at 32 B a delivery 32 MiB.
const QUEUE_BATCHES: usize = 256;
/// Nothing stays unwritten for longer: a killed process loses little.
const FLUSH_INTERVAL: Duration = Duration::from_millis(200);
/// Longest latency that is told apart; one hour.
const LATENCY_MICROS_MAX: u64 = 3_600_000_000;

/// What goes into the log.
pub enum Entry {
    Deliveries(Vec<Received>),
    Note(Note),
}

/// A receiver's way to the log.
#[derive(Clone)]
pub struct LogSender {
    entries: SyncSender<Entry>,
    waits: Arc<AtomicU64>,
}

/// The open log.
pub struct Log {
    /// Name of the run.
    pub run: String,
    pub path: PathBuf,
    pub sender: LogSender,
    writer: JoinHandle<io::Result<Histogram<u64>>>,
}

impl LogSender {
    /// Hands `entry` over and waits while the queue is full. `false` when the log can't be written any more.
    ///
    /// Waits of deliveries are counted; notes come in thousands at the end, when nothing is measured any more.
    pub fn send(&self, entry: Entry) -> bool {
        match self.entries.try_send(entry) {
            Ok(()) => true,
            Err(TrySendError::Disconnected(_)) => false,
            Err(TrySendError::Full(entry)) => {
                if matches!(entry, Entry::Deliveries(_)) {
                    self.waits.fetch_add(1, Ordering::Relaxed);
                }
                self.entries.send(entry).is_ok()
            }
        }
    }
}

impl Log {
    /// Creates `dir` and in it a new file named for `run`, which begins with `head`.
    ///
    /// # Errors
    /// A folder or file that can't be written, a thread that can't be started.
    pub fn create(dir: &Path, run: &str, head: Note) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let path = dir.join(format!("clients-{run}.jsonl"));
        let mut out =
            BufWriter::with_capacity(256 * 1024, File::options().write(true).create_new(true).open(&path)?);
        write_note(&mut out, &head)?;
        out.flush()?;
        let (entries, queue) = sync_channel(QUEUE_BATCHES);
        let writer =
            thread::Builder::new().name("log".to_owned()).spawn(move || write_all(&mut out, &queue))?;
        Ok(Self { run: run.to_owned(), path, sender: LogSender { entries, waits: Arc::default() }, writer })
    }

    /// How often a receiver had to wait for the disk.
    pub fn waits(&self) -> u64 {
        self.sender.waits.load(Ordering::Relaxed)
    }

    /// Writes what is left and `end`; returns the latencies in microseconds.
    ///
    /// Every other sender must be gone, or this waits for it.
    ///
    /// # Errors
    /// The first error of writing.
    pub fn finish(self, end: Note) -> io::Result<Histogram<u64>> {
        self.sender.send(Entry::Note(end));
        drop(self.sender);
        self.writer.join().unwrap_or_else(|_| Err(io::Error::other("the log's thread panicked")))
    }
}

fn write_all(out: &mut impl Write, queue: &Receiver<Entry>) -> io::Result<Histogram<u64>> {
    let mut latencies =
        Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, 3).expect("3 digits of an hour are a valid range");
    let mut lines = String::new();
    loop {
        match queue.recv_timeout(FLUSH_INTERVAL) {
            Ok(Entry::Note(note)) => write_note(out, &note)?,
            Ok(Entry::Deliveries(deliveries)) => {
                lines.clear();
                for delivery in &deliveries {
                    delivery.write(&mut lines);
                    if let Some(latency) = delivery.latency_ms().filter(|latency| *latency >= 0.0) {
                        latencies.saturating_record((latency * 1e3) as u64);
                    }
                }
                out.write_all(lines.as_bytes())?;
            }
            Err(RecvTimeoutError::Timeout) => out.flush()?,
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    out.flush()?;
    Ok(latencies)
}

fn write_note(out: &mut impl Write, note: &Note) -> io::Result<()> {
    serde_json::to_writer(&mut *out, note)?;
    out.write_all(b"\n")
}
