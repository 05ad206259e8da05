//! The threads of a server: started by name, pinned, watched, and waited for.
//!
//! Each thread has a pulse, beaten by a task on its runtime: a thread that hangs in a call or a loop is alive for the kernel
//! and still serves nobody.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use core_affinity::CoreId;

/// How often a pulse beats.
const BEAT_INTERVAL: Duration = Duration::from_millis(250);
/// A thread that is silent for less than this may only be waiting for its core: four beats.
const SILENCE_MIN: Duration = Duration::from_secs(1);

/// A thread that ended although nobody told it to.
#[derive(Debug, thiserror::Error)]
#[error("thread {name} ended while the server was serving: {error}")]
pub struct LostThread {
    /// Which.
    pub name: String,
    /// Why.
    pub error: io::Error,
}

/// Counts how often the runtime of a thread came round.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// Beats for as long as the runtime runs that this is spawned on.
    pub async fn beat(self) {
        loop {
            self.0.fetch_add(1, Relaxed);
            monoio::time::sleep(BEAT_INTERVAL).await;
        }
    }
}

struct Thread {
    name: String,
    handle: JoinHandle<io::Result<()>>,
    pulse: Pulse,
    /// The pulse at the last look that found it changed, and when that was.
    heard: (u64, Instant),
}

/// See the module.
#[derive(Default)]
pub struct Threads(Vec<Thread>);

impl Threads {
    /// Starts `run` on a thread of its own, pinned to `core`; it spawns [`Pulse::beat`] on its runtime.
    ///
    /// # Errors
    /// The kernel has no thread left.
    pub fn spawn(
        &mut self,
        name: &str,
        core: usize,
        run: impl FnOnce(Pulse) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let pulse = Pulse::default();
        let beaten = pulse.clone();
        let handle = thread::Builder::new().name(name.to_owned()).spawn(move || {
            pin(core);
            run(beaten)
        })?;
        self.0.push(Thread { name: name.to_owned(), handle, pulse, heard: (0, Instant::now()) });
        Ok(())
    }

    /// Whether all have ended.
    pub fn have_ended(&self) -> bool {
        self.0.iter().all(|thread| thread.handle.is_finished())
    }

    /// The names of those that have not ended.
    pub fn running(&self) -> Vec<&str> {
        let running = self.0.iter().filter(|thread| !thread.handle.is_finished());
        running.map(|thread| thread.name.as_str()).collect()
    }

    /// A thread that has ended, where all are to run.
    pub fn take_lost(&mut self) -> Option<LostThread> {
        let index = self.0.iter().position(|thread| thread.handle.is_finished())?;
        let thread = self.0.remove(index);
        let name = thread.name.clone();
        let error = thread.join().err().unwrap_or_else(|| io::Error::other("it had nothing left to do"));
        Some(LostThread { name, error })
    }

    /// The name of a thread whose pulse has been still for `patience` (at least a second) before `now`.
    pub fn silent(&mut self, now: Instant, patience: Duration) -> Option<&str> {
        let patience = patience.max(SILENCE_MIN);
        for thread in &mut self.0 {
            let beats = thread.pulse.0.load(Relaxed);
            if beats != thread.heard.0 {
                thread.heard = (beats, now);
            }
        }
        let is_silent = |thread: &&Thread| now.saturating_duration_since(thread.heard.1) >= patience;
        self.0.iter().find(is_silent).map(|thread| thread.name.as_str())
    }

    /// Waits for the end of all.
    ///
    /// # Errors
    /// The first that ended badly.
    pub fn join(self) -> io::Result<()> {
        self.0.into_iter().try_for_each(Thread::join)
    }
}

impl Thread {
    fn join(self) -> io::Result<()> {
        self.handle.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")))
    }
}

fn pin(core: usize) {
    if !core_affinity::set_for_current(CoreId { id: core }) {
        tracing::warn!(core, "a thread could not be pinned; it runs wherever the scheduler puts it");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A thread that ends as it is told, and who tells it.
    fn thread(threads: &mut Threads, name: &str) -> mpsc::Sender<io::Result<()>> {
        let (tell, told) = mpsc::channel();
        threads.spawn(name, 0, move |_| told.recv().expect("the test tells it")).expect("a thread is left");
        tell
    }

    fn wait_lost(threads: &mut Threads) -> LostThread {
        let began = Instant::now();
        loop {
            if let Some(lost) = threads.take_lost() {
                return lost;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "nobody noticed that a thread is gone");
            thread::yield_now();
        }
    }

    #[test]
    fn a_thread_that_ends_is_lost_with_its_name_and_error() {
        let mut threads = Threads::default();
        let (first, second) = (thread(&mut threads, "shard-0"), thread(&mut threads, "relay"));
        assert!(threads.take_lost().is_none());
        second.send(Err(io::Error::other("its ring broke"))).expect("it waits");
        let lost = wait_lost(&mut threads).to_string();
        assert_eq!(lost, "thread relay ended while the server was serving: its ring broke");
        assert!(!threads.have_ended(), "the other one runs");
        first.send(Ok(())).expect("it waits");
        assert!(wait_lost(&mut threads).to_string().contains("nothing left to do"));
        assert!(threads.have_ended());
    }

    #[test]
    fn a_thread_that_panics_is_lost() {
        let mut threads = Threads::default();
        drop(thread(&mut threads, "shard-0"));
        assert!(wait_lost(&mut threads).to_string().ends_with("it panicked"));
    }

    #[test]
    fn a_thread_is_silent_when_its_pulse_stands_still_for_as_long_as_is_borne() {
        let mut threads = Threads::default();
        let tells = ["shard-0", "shard-1"].map(|name| thread(&mut threads, name));
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let patience = Duration::from_secs(4);
        assert_eq!(threads.silent(after(1), patience), None, "it may yet begin");
        for thread in &threads.0 {
            thread.pulse.0.fetch_add(1, Relaxed);
        }
        assert_eq!(threads.silent(after(3), patience), None);
        threads.0[0].pulse.0.fetch_add(1, Relaxed);
        assert_eq!(threads.silent(after(6), patience), None);
        assert_eq!(threads.silent(after(7), patience), Some("shard-1"));
        threads.0[1].pulse.0.fetch_add(1, Relaxed);
        assert_eq!(threads.silent(after(8), patience), None, "it has come back");
        assert_eq!(threads.silent(after(8), Duration::ZERO), Some("shard-0"), "two seconds may be too long");
        assert_eq!(threads.silent(after(6), Duration::ZERO), None, "a second is always borne");
        for tell in tells {
            tell.send(Ok(())).expect("it waits");
        }
        threads.join().expect("they end well");
    }
}
