//! What waits, what runs and what is counted: the consumer without its threads. Time and randomness are arguments.
//!
//! An event that was taken in is at any moment in one of four places: the queue, a worker's hands, the retries, or the
//! counters `processed`, `dead` and `released`. [`Work::check`] holds them to that sum.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::backoff::Backoff;
use crate::event::Event;
use crate::group::Ticket;
use crate::handler::{Handler, HandlerError};
use crate::metrics::Metrics;

/// An event on its way, with the handler that serves its type.
#[derive(Clone)]
pub(crate) struct Job {
    pub event: Arc<Event>,
    pub handler: Arc<dyn Handler>,
    /// Attempts that have failed.
    pub failures: u32,
    /// For one whose place in a stream waits to hear what became of it.
    pub ticket: Option<Ticket>,
}

/// The bounds of [`Work`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub workers: usize,
    /// Events in the queue, and as many again among the retries.
    pub queue: usize,
    pub attempts: u32,
    pub backoff: Backoff,
}

/// What a worker does next.
pub(crate) enum Next {
    Handle(Job),
    /// Nothing before this moment, unless something is offered.
    Until(Instant),
    Idle,
    End,
}

/// What became of an event that a worker had.
pub(crate) enum Verdict {
    Done(Job),
    Retry,
    /// To be put with the dead letters: the event, its attempts, the last reason. [`Work::buried`] follows.
    Dead(Job, String),
    /// The drain's deadline came first, and the event is a dead letter, or its stream's, already.
    Abandoned,
}

/// Why an event wasn't taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Full,
    Closed,
}

pub(crate) struct Work {
    bounds: Bounds,
    queue: VecDeque<Job>,
    retries: BinaryHeap<Reverse<Waiting>>,
    /// By worker.
    running: Vec<Option<Job>>,
    phase: Phase,
    /// Orders retries that are due at the same moment.
    sequence: u64,
    /// Dead letters that workers are putting away.
    burying: usize,
    pub metrics: Metrics,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Still open, until then.
    Draining(Instant),
    /// Nothing is taken any more; what is here is worked on until then.
    Closed(Instant),
}

struct Waiting {
    due: Instant,
    sequence: u64,
    job: Job,
}

impl Work {
    pub fn new(bounds: Bounds) -> Self {
        let Bounds { workers, queue, attempts, .. } = bounds;
        assert!(workers > 0 && queue > 0 && attempts > 0, "a consumer has workers, a queue and attempts");
        Self {
            bounds,
            queue: VecDeque::new(),
            retries: BinaryHeap::new(),
            running: vec![None; workers],
            phase: Phase::Open,
            sequence: 0,
            burying: 0,
            metrics: Metrics::default(),
        }
    }

    /// Whether an offer would be taken, and if not, why.
    pub fn room(&self, now: Instant) -> Result<(), Refusal> {
        match self.phase {
            Phase::Closed(_) => Err(Refusal::Closed),
            Phase::Draining(deadline) if now >= deadline => Err(Refusal::Closed),
            _ if self.queue.len() >= self.bounds.queue => Err(Refusal::Full),
            _ => Ok(()),
        }
    }

    /// Takes an event in, or gives it back.
    pub fn offer(&mut self, job: Job, now: Instant) -> Result<(), (Job, Refusal)> {
        if let Err(refusal) = self.room(now) {
            return Err((job, refusal));
        }
        self.metrics.accepted += 1;
        self.queue.push_back(job);
        self.check();
        Ok(())
    }

    /// What `worker` does at `now`. Retries that are due come first: they have waited longest.
    pub fn take(&mut self, worker: usize, now: Instant) -> Next {
        debug_assert!(self.running[worker].is_none(), "worker {worker} takes a second event");
        if self.deadline().is_some_and(|deadline| now >= deadline) {
            return Next::End;
        }
        let due = self.retries.peek().map(|Reverse(waiting)| waiting.due);
        let job = match due {
            Some(due) if due <= now => self.retries.pop().map(|Reverse(waiting)| waiting.job),
            // With the retries full, failing goes faster than waiting: new events stay in the queue, which fills, and
            // whoever offers learns of it. So the retries are bounded without a worker that sleeps or an event lost.
            Some(_) if self.retries.len() >= self.bounds.queue => None,
            _ => self.queue.pop_front(),
        };
        if let Some(job) = job {
            self.running[worker] = Some(job.clone());
            self.check();
            return Next::Handle(job);
        }
        match due {
            Some(due) => Next::Until(self.deadline().map_or(due, |deadline| due.min(deadline))),
            None if self.is_over() => Next::End,
            None => Next::Idle,
        }
    }

    /// Takes note of how `worker` fared. `random` is uniform over all of u64.
    pub fn finish(
        &mut self,
        worker: usize,
        outcome: Result<(), HandlerError>,
        now: Instant,
        random: u64,
    ) -> Verdict {
        let Some(mut job) = self.running[worker].take() else { return Verdict::Abandoned };
        let verdict = match outcome {
            Ok(()) => {
                self.metrics.processed += 1;
                Verdict::Done(job)
            }
            Err(error) => {
                job.failures += 1;
                self.metrics.failures += 1;
                self.fail(job, error, now, random)
            }
        };
        self.check();
        verdict
    }

    fn fail(&mut self, job: Job, error: HandlerError, now: Instant, random: u64) -> Verdict {
        match error {
            HandlerError::Retry(_) if job.failures < self.bounds.attempts => {
                self.metrics.retried += 1;
                self.sequence += 1;
                let due = now + self.bounds.backoff.wait(job.failures, random);
                self.retries.push(Reverse(Waiting { due, sequence: self.sequence, job }));
                Verdict::Retry
            }
            HandlerError::Retry(reason) | HandlerError::Permanent(reason) => {
                self.metrics.dead += 1;
                self.burying += 1;
                Verdict::Dead(job, reason)
            }
        }
    }

    /// Takes in an event that is a dead letter at once. [`Work::buried`] follows.
    pub fn give_up(&mut self) {
        self.metrics.accepted += 1;
        self.metrics.dead += 1;
        self.burying += 1;
    }

    /// Takes note that a dead letter is where it should be.
    pub fn buried(&mut self) {
        debug_assert!(self.burying > 0, "a letter was put away that nobody had");
        self.burying -= 1;
    }

    /// Whether workers still put dead letters away: the process must not end before.
    pub fn is_burying(&self) -> bool {
        self.burying > 0
    }

    /// From now on events are taken in only until `deadline`; the first call decides.
    pub fn drain_by(&mut self, deadline: Instant) {
        if self.phase == Phase::Open {
            self.phase = Phase::Draining(deadline);
        }
    }

    /// Nothing is taken in any more. What is here is worked on until `deadline`, or until that of the drain.
    pub fn close(&mut self, deadline: Instant) {
        self.phase = Phase::Closed(self.deadline().unwrap_or(deadline));
    }

    /// When a drain ends, if there is one.
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Open => None,
            Phase::Draining(deadline) | Phase::Closed(deadline) => Some(deadline),
        }
    }

    /// Events that the queue takes before it is full.
    pub fn free(&self) -> usize {
        self.bounds.queue.saturating_sub(self.queue.len())
    }

    /// Everything that is left when the deadline has come, with what it was doing. What came from a stream is released to
    /// it, the rest is dead.
    pub fn abandon(&mut self) -> Vec<(Job, &'static str)> {
        let running =
            self.running.iter_mut().filter_map(|job| Some((job.take()?, "its handler was still running")));
        let mut left: Vec<_> = running.collect();
        left.extend(self.queue.drain(..).map(|job| (job, "it was still in the queue")));
        left.extend(
            self.retries.drain().map(|Reverse(waiting)| (waiting.job, "its next attempt was not yet due")),
        );
        let released = left.iter().filter(|(job, _)| job.ticket.is_some()).count();
        self.metrics.released += released as u64;
        self.metrics.dead += (left.len() - released) as u64;
        self.check();
        left
    }

    /// The counters, and what is where at this moment.
    pub fn metrics(&self) -> Metrics {
        Metrics {
            queued: self.queue.len() as u64,
            waiting: self.retries.len() as u64,
            running: self.running.iter().flatten().count() as u64,
            ..self.metrics.clone()
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Closed(_))
            && self.queue.is_empty()
            && self.running.iter().all(Option::is_none)
    }

    fn check(&self) {
        let metrics = &self.metrics;
        debug_assert!(self.queue.len() <= self.bounds.queue, "the queue is over its bound");
        // Each worker may still fail the event that it had when the retries became full.
        let retries_max = self.bounds.queue + self.bounds.workers;
        debug_assert!(self.retries.len() <= retries_max, "the retries are over their bound");
        debug_assert_eq!(
            metrics.accepted,
            metrics.processed + metrics.dead + metrics.released + {
                let running = self.running.iter().flatten().count();
                (self.queue.len() + self.retries.len() + running) as u64
            },
            "an event is nowhere"
        );
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.due, self.sequence).cmp(&(other.due, other.sequence))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pool::tests::event;

    const SECOND: Duration = Duration::from_secs(1);

    fn work(workers: usize, queue: usize) -> (Work, Instant) {
        let backoff = Backoff { first: SECOND, max: 8 * SECOND };
        (Work::new(Bounds { workers, queue, attempts: 3, backoff }), Instant::now())
    }

    fn job(number: u32) -> Job {
        let handler = |_: &Event| Ok(());
        Job { event: Arc::new(event("a", number)), handler: Arc::new(handler), failures: 0, ticket: None }
    }

    fn number(job: &Job) -> u64 {
        job.event.payload()["number"].as_u64().unwrap()
    }

    fn failed() -> Result<(), HandlerError> {
        Err(HandlerError::Retry("no".to_owned()))
    }

    #[track_caller]
    fn handled(next: Next) -> u64 {
        match next {
            Next::Handle(job) => number(&job),
            _ => panic!("nothing to handle"),
        }
    }

    #[test]
    fn a_full_queue_gives_the_event_back() {
        let (mut work, now) = work(1, 2);
        assert!(work.offer(job(1), now).is_ok() && work.offer(job(2), now).is_ok());
        let (back, refusal) = work.offer(job(3), now).err().unwrap();
        assert_eq!((number(&back), refusal), (3, Refusal::Full));
        assert_eq!(handled(work.take(0, now)), 1);
        assert!(work.offer(job(3), now).is_ok());
    }

    #[test]
    fn a_retry_waits_without_a_worker_and_comes_before_new_events() {
        let (mut work, now) = work(1, 10);
        work.offer(job(1), now).ok().unwrap();
        work.offer(job(2), now).ok().unwrap();
        work.offer(job(3), now).ok().unwrap();
        assert_eq!(handled(work.take(0, now)), 1);
        assert!(matches!(work.finish(0, failed(), now, u64::MAX), Verdict::Retry));
        assert_eq!(handled(work.take(0, now)), 2, "the worker goes on meanwhile");
        work.finish(0, Ok(()), now, 0);
        assert_eq!(handled(work.take(0, now + SECOND)), 1, "due after its backoff");
        work.finish(0, Ok(()), now, 0);
        assert_eq!(handled(work.take(0, now + SECOND)), 3);
    }

    #[test]
    fn the_third_failure_is_the_last_and_a_permanent_one_the_first() {
        let (mut work, now) = work(1, 10);
        work.offer(job(1), now).ok().unwrap();
        for _ in 0..2 {
            handled(work.take(0, now));
            assert!(matches!(work.finish(0, failed(), now, 0), Verdict::Retry));
        }
        handled(work.take(0, now));
        match work.finish(0, failed(), now, 0) {
            Verdict::Dead(job, reason) => assert_eq!((job.failures, reason.as_str()), (3, "no")),
            _ => panic!("a fourth attempt"),
        }
        assert!(work.is_burying());
        work.buried();
        assert!(!work.is_burying());
        work.offer(job(2), now).ok().unwrap();
        handled(work.take(0, now));
        let verdict = work.finish(0, Err(HandlerError::Permanent("never".to_owned())), now, 0);
        assert!(matches!(verdict, Verdict::Dead(job, _) if job.failures == 1));
        let metrics = work.metrics();
        assert_eq!((metrics.retried, metrics.failures, metrics.dead), (2, 4, 2));
    }

    #[test]
    fn when_everything_fails_the_retries_are_bounded_and_the_queue_fills() {
        let (mut work, now) = work(2, 3);
        let mut offered = 0;
        for _ in 0..20 {
            while work.offer(job(offered), now).is_ok() {
                offered += 1;
            }
            for worker in 0..2 {
                if let Next::Handle(_) = work.take(worker, now) {
                    work.finish(worker, failed(), now, u64::MAX);
                }
            }
        }
        let metrics = work.metrics();
        assert_eq!((metrics.waiting, metrics.queued), (3, 3));
        assert!(matches!(work.take(0, now), Next::Until(due) if due == now + SECOND));
    }

    #[test]
    fn a_drain_ends_when_nothing_is_left_anywhere() {
        let (mut work, now) = work(2, 10);
        work.offer(job(1), now).ok().unwrap();
        handled(work.take(0, now));
        work.drain_by(now + 9 * SECOND);
        assert!(work.offer(job(2), now).is_ok(), "what is at hand is still taken in");
        work.close(now + SECOND);
        assert!(matches!(work.offer(job(3), now), Err((_, Refusal::Closed))));
        assert_eq!(handled(work.take(1, now)), 2);
        work.finish(1, Ok(()), now, 0);
        assert!(matches!(work.take(1, now), Next::Idle), "the other worker's event may still fail");
        work.finish(0, failed(), now, u64::MAX);
        assert!(matches!(work.take(1, now), Next::Until(_)));
        assert_eq!(handled(work.take(1, now + SECOND)), 1);
        work.finish(1, Ok(()), now, 0);
        assert!(matches!((work.take(0, now), work.take(1, now)), (Next::End, Next::End)));
    }

    #[test]
    fn at_the_deadline_everything_left_is_handed_out_once() {
        let (mut work, now) = work(2, 10);
        for number in 1..=4 {
            work.offer(job(number), now).ok().unwrap();
        }
        handled(work.take(0, now));
        handled(work.take(1, now));
        work.finish(1, failed(), now, u64::MAX);
        work.close(now + SECOND);
        assert!(matches!(work.take(1, now + SECOND), Next::End), "no new attempt after the deadline");
        let mut left: Vec<_> = work.abandon().iter().map(|(job, why)| (number(job), *why)).collect();
        left.sort_unstable();
        assert_eq!(left.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(left[0].1, "its handler was still running");
        assert!(matches!(work.finish(0, Ok(()), now, 0), Verdict::Abandoned));
        assert_eq!((work.metrics().dead, work.metrics().processed), (4, 0));
    }
}
