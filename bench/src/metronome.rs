//! A publisher that goes on by itself until it is stopped, on a thread of its own, by a timetable that receivers know.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Result, bail};

use crate::publisher::{Author, PUBLISH_BATCH_MAX, Publish, Sent};
use crate::rhythm::{Rhythm, Timetable};
use crate::sys;

/// Longest sleep: how late it may learn that it is stopped.
const LOOK_NS: u64 = 20_000_000;

/// Publishes since it was started.
pub struct Metronome {
    /// When which message is due.
    pub timetable: Timetable,
    stop: Arc<AtomicBool>,
    told: Arc<Told>,
    thread: JoinHandle<Result<Sent>>,
}

/// What it tells while it runs.
#[derive(Default)]
struct Told {
    published: AtomicU64,
    /// The longest that a message left after it was due, since somebody asked.
    late_ns: AtomicU64,
}

impl Metronome {
    /// Begins at once, with messages of `bytes` to rooms that take turns.
    pub fn start(rhythm: Rhythm, rooms: u32, bytes: usize, to: Box<dyn Publish>) -> Result<Self> {
        let timetable = Timetable { rhythm, start_ns: sys::monotonic_ns(), first: 0, rooms };
        let (stop, told) = (Arc::<AtomicBool>::default(), Arc::<Told>::default());
        let thread = std::thread::Builder::new().name("metronome".to_owned()).spawn({
            let (stop, told) = (Arc::clone(&stop), Arc::clone(&told));
            move || publish(&timetable, Author::new(rooms, bytes), to, &stop, &told)
        })?;
        Ok(Self { timetable, stop, told, thread })
    }

    /// Messages that have left so far.
    pub fn published(&self) -> u64 {
        self.told.published.load(Ordering::Acquire)
    }

    /// The longest that a message left after it was due, in microseconds, since this was asked last.
    pub fn take_late_us(&self) -> f64 {
        self.told.late_ns.swap(0, Ordering::Relaxed) as f64 / 1e3
    }

    /// Whether it has ended by itself, which only an error makes it do.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Stops it and tells what left.
    pub fn stop(self) -> Result<Sent> {
        self.stop.store(true, Ordering::Release);
        match self.thread.join() {
            Ok(sent) => sent,
            Err(_) => bail!("the publishing thread panicked"),
        }
    }
}

fn publish(
    timetable: &Timetable,
    mut author: Author,
    mut to: Box<dyn Publish>,
    stop: &AtomicBool,
    told: &Told,
) -> Result<Sent> {
    sys::sharpen_timers();
    let mut sent = Sent::default();
    while !stop.load(Ordering::Acquire) {
        let now_ns = sys::monotonic_ns();
        let next_ns = timetable.due_ns(sent.messages);
        if now_ns < next_ns {
            sys::sleep_until_ns(next_ns.min(now_ns + LOOK_NS));
            continue;
        }
        sent.late_max_us = sent.late_max_us.max((now_ns - next_ns) as f64 / 1e3);
        told.late_ns.fetch_max(now_ns - next_ns, Ordering::Relaxed);
        let due = timetable.rhythm.due_by(now_ns - timetable.start_ns);
        for index in sent.messages..due.min(sent.messages + PUBLISH_BATCH_MAX) {
            author.publish(timetable.due_ns(index), to.as_mut())?;
            sent.messages += 1;
        }
        to.flush()?;
        told.published.store(sent.messages, Ordering::Release);
    }
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stamp::{STAMP_BYTES, Stamp};
    use std::sync::Mutex;

    struct Kept(Arc<Mutex<Vec<Stamp>>>);

    impl Publish for Kept {
        fn publish(&mut self, _room: u32, payload: &[u8]) -> Result<()> {
            self.0.lock().unwrap().extend(Stamp::read(payload));
            Ok(())
        }

        fn flush(&mut self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn messages_leave_by_the_timetable_until_it_is_stopped() {
        let kept = Arc::<Mutex<Vec<Stamp>>>::default();
        let to = Box::new(Kept(Arc::clone(&kept)));
        let rhythm = Rhythm::with_bursts(1_000.0, 10_000_000, 5);
        let metronome = Metronome::start(rhythm, 2, STAMP_BYTES, to).unwrap();
        let timetable = metronome.timetable;
        while metronome.published() < 40 {
            std::thread::yield_now();
        }
        assert!(metronome.take_late_us() > 0.0, "no message leaves in the nanosecond in which it is due");
        let sent = metronome.stop().unwrap().messages;
        let stamps = kept.lock().unwrap();
        assert_eq!(stamps.len() as u64, sent);
        for (number, stamp) in stamps.iter().enumerate() {
            let place = (number as u32 % 2, number as u32 / 2);
            assert_eq!((stamp.room, stamp.sequence), place);
            assert_eq!(stamp.intended_ns, timetable.due_ns(number as u64));
        }
        assert!(timetable.due_ns(sent - 1) <= sys::monotonic_ns());
    }
}
