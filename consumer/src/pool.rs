//! The consumer: workers on threads of their own around a bounded queue.

use std::any::Any;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use crate::dead_letter::{DeadLetter, DeadLetters};
use crate::event::{Event, EventError};
use crate::group::Ticket;
use crate::handler::{Handler, HandlerError, Registry};
use crate::metrics::Metrics;
use crate::options::{Options, WhenFull};
use crate::work::{Bounds, Job, Next, Refusal, Verdict, Work};

/// Why an event was not taken. It has been counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// The bound of the queue.
    #[error("the queue is full ({queue} events wait): add workers, lengthen the queue, or offer less")]
    QueueFull {
        /// Its bound.
        queue: usize,
    },
    /// Nobody asked for this type.
    #[error(
        "found an event of type {kind:?}, due one of a type with a handler: register one, or one for \"*\""
    )]
    UnknownType {
        /// The type.
        kind: String,
        /// Whether it is the first of this type: to be said once, not each time.
        is_new: bool,
    },
    /// The consumer is ending.
    #[error("the consumer has been stopped and takes no more events")]
    Stopped,
}

/// Why [`Consumer::offer_message`] took nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It is no event.
    #[error("invalid event: {0}")]
    Invalid(#[from] EventError),
    /// It is one, but was not taken.
    #[error(transparent)]
    Refused(#[from] OfferError),
}

/// Takes events and has them handled, until it is stopped.
pub struct Consumer {
    shared: Arc<Shared>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    options: Options,
    registry: Registry,
    dead_letters: Box<dyn DeadLetters>,
    work: Mutex<Work>,
    /// Something was offered, failed or is over: workers look again.
    due: Condvar,
    /// There may be room in the queue.
    room: Condvar,
    /// A worker has ended, or has put a dead letter away.
    ended: Condvar,
}

impl Consumer {
    /// Starts the workers; events of the types in `registry` may be offered.
    ///
    /// # Errors
    /// When the system gives no more threads; those that were started have ended then.
    ///
    /// # Panics
    /// When `options` has no workers, no queue or no attempts.
    pub fn start(
        options: Options,
        registry: Registry,
        dead_letters: impl DeadLetters + 'static,
    ) -> io::Result<Self> {
        let Options { workers, queue, attempts, backoff, .. } = options;
        let work = Work::new(Bounds { workers, queue, attempts, backoff });
        let shared = Arc::new(Shared {
            options,
            registry,
            dead_letters: Box::new(dead_letters),
            work: Mutex::new(work),
            due: Condvar::new(),
            room: Condvar::new(),
            ended: Condvar::new(),
        });
        let consumer = Self { shared, workers: Mutex::new(Vec::new()) };
        for worker in 0..workers {
            let shared = Arc::clone(&consumer.shared);
            let name = format!("worker-{worker}");
            // On an error the consumer is dropped, which ends the workers before this one.
            let thread = thread::Builder::new().name(name).spawn(move || shared.serve(worker))?;
            locked(&consumer.workers).push(thread);
        }
        Ok(consumer)
    }

    /// Puts `event` into the queue.
    ///
    /// # Errors
    /// [`OfferError`]; the event is gone, and counted as dropped or unknown.
    pub fn offer(&self, event: Event) -> Result<(), OfferError> {
        self.shared.offer(event, WhenFull::Drop, None)
    }

    /// Puts `event` into the queue as soon as there is room; while the consumer drains, until its deadline.
    ///
    /// # Errors
    /// [`OfferError`], but never `QueueFull`.
    pub fn offer_wait(&self, event: Event) -> Result<(), OfferError> {
        self.shared.offer(event, WhenFull::Block, None)
    }

    /// Reads an event out of `message` and offers it.
    ///
    /// # Errors
    /// [`MessageError`]; counted as invalid, dropped or unknown.
    pub fn offer_message(&self, message: &[u8], when_full: WhenFull) -> Result<(), MessageError> {
        Ok(self.shared.offer(self.parsed(message)?, when_full, None)?)
    }

    /// As [`offer_message`](Self::offer_message), for an entry of a stream: once it is taken the ticket hears what became of
    /// it. Waits for room; what is refused because the consumer ends is not counted, as it is not lost.
    pub(crate) fn offer_delivery(&self, data: &[u8], ticket: &Ticket) -> Result<(), MessageError> {
        Ok(self.shared.offer(self.parsed(data)?, WhenFull::Block, Some(ticket.clone()))?)
    }

    /// Makes an entry of a stream a dead letter, without an attempt. The ticket hears of it before this returns.
    pub(crate) fn give_up(&self, data: &[u8], ticket: &Ticket, reason: String) -> Result<(), MessageError> {
        let event = self.parsed(data)?;
        let handler = self.shared.handler_of(&event)?;
        let job = Job { event: Arc::new(event), handler, failures: 0, ticket: Some(ticket.clone()) };
        self.shared.lock().give_up();
        self.shared.end_with_letter(&job, reason);
        Ok(())
    }

    fn parsed(&self, message: &[u8]) -> Result<Event, EventError> {
        Event::parse(message).inspect_err(|_| self.note_invalid())
    }

    /// Counts a message that never became bytes of ours, because it was too long.
    pub(crate) fn note_invalid(&self) {
        self.shared.lock().metrics.invalid += 1;
    }

    /// Counts an entry that its stream no longer had when it was to be handled.
    pub(crate) fn note_missing(&self) {
        self.shared.lock().metrics.missing += 1;
    }

    /// Counts an entry that had been delivered before.
    pub(crate) fn note_redelivered(&self) {
        self.shared.lock().metrics.redelivered += 1;
    }

    /// How many events the queue has room for, once it has any; `None` when the consumer drains.
    pub(crate) fn wait_for_room(&self) -> Option<usize> {
        let mut work = self.shared.lock();
        while work.deadline().is_none() && work.free() == 0 {
            work = self.shared.room.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
        work.deadline().is_none().then(|| work.free())
    }

    /// All counters, read at one moment.
    pub fn metrics(&self) -> Metrics {
        self.shared.lock().metrics()
    }

    /// How the consumer was built.
    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// Begins the time that [`stop`](Self::stop) has, while whoever feeds the consumer still hands over what it has.
    /// Returns when that time ends.
    pub fn begin_drain(&self) -> Instant {
        let deadline = Instant::now() + self.shared.options.drain;
        let mut work = self.shared.lock();
        work.drain_by(deadline);
        let deadline = work.deadline().unwrap_or(deadline);
        drop(work);
        self.shared.due.notify_all();
        self.shared.room.notify_all();
        deadline
    }

    /// Takes no more events, has the queue and all pending retries handled, and ends the workers.
    ///
    /// What is not done after [`Options::drain`] becomes dead letters, events in handlers that don't return included; such
    /// a handler's thread is left behind. Events of a stream are the stream's again instead: others in the group get them.
    /// A second call returns the same counters.
    pub fn stop(&self) -> Metrics {
        let deadline = self.begin_drain();
        self.shared.lock().close(deadline);
        self.shared.due.notify_all();
        self.shared.room.notify_all();
        self.wait_for_workers(deadline);
        let left = self.shared.lock().abandon();
        // Idle workers slept until another one would be done; now there is nothing to wait for.
        self.shared.due.notify_all();
        for (job, what) in left {
            match &job.ticket {
                Some(ticket) => ticket.put_down(),
                None => drop(self.shared.bury(&job, format!("the drain's deadline came while {what}"))),
            }
        }
        self.wait_for_letters();
        let (ended, _stuck): (Vec<_>, Vec<_>) =
            locked(&self.workers).drain(..).partition(JoinHandle::is_finished);
        for worker in ended {
            worker.join().expect("a worker contains its handlers' panics");
        }
        self.metrics()
    }

    /// A worker may have begun to put a letter away just before the deadline.
    fn wait_for_letters(&self) {
        let work = self.shared.lock();
        let waited = self.shared.ended.wait_timeout_while(work, LETTER_WAIT, |work| work.is_burying());
        if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            tracing::error!("a dead letter was still on its way to its place: it may be missing there");
        }
    }

    fn wait_for_workers(&self, deadline: Instant) {
        let workers = locked(&self.workers);
        let mut work = self.shared.lock();
        while !workers.iter().all(JoinHandle::is_finished) {
            let now = Instant::now();
            if now >= deadline {
                return;
            }
            // A thread is finished a moment after its last word, so that word alone isn't waited for.
            let wait = (deadline - now).min(WORKER_END_POLL);
            work = self.shared.ended.wait_timeout(work, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// As [`Consumer::stop`], for a consumer that its owner forgot.
impl Drop for Consumer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Work> {
        locked(&self.work)
    }

    fn handler_of(&self, event: &Event) -> Result<Arc<dyn Handler>, OfferError> {
        self.registry.handler(event.kind()).ok_or_else(|| {
            let is_new = self.lock().metrics.note_unknown(event.kind());
            OfferError::UnknownType { kind: event.kind().to_owned(), is_new }
        })
    }

    fn offer(&self, event: Event, when_full: WhenFull, ticket: Option<Ticket>) -> Result<(), OfferError> {
        let handler = self.handler_of(&event)?;
        let job = Job { event: Arc::new(event), handler, failures: 0, ticket };
        let mut work = self.lock();
        if when_full == WhenFull::Block {
            work = self.wait_for_room(work);
        }
        match work.offer(job, Instant::now()) {
            Ok(()) => {
                self.due.notify_one();
                Ok(())
            }
            Err((job, refusal)) => {
                work.metrics.dropped += u64::from(job.ticket.is_none());
                Err(match refusal {
                    Refusal::Full => OfferError::QueueFull { queue: self.options.queue },
                    Refusal::Closed => OfferError::Stopped,
                })
            }
        }
    }

    fn wait_for_room<'w>(&self, mut work: MutexGuard<'w, Work>) -> MutexGuard<'w, Work> {
        loop {
            let now = Instant::now();
            if work.room(now) != Err(Refusal::Full) {
                return work;
            }
            work = match work.deadline() {
                None => self.room.wait(work).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let wait = deadline.saturating_duration_since(now);
                    self.room.wait_timeout(work, wait).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn serve(&self, worker: usize) {
        while let Some(job) = self.next_job(worker) {
            let outcome = self.call(&job);
            if let Err(error) = &outcome {
                let (id, attempt) = (job.event.id(), job.failures + 1);
                tracing::debug!(id, r#type = job.event.kind(), attempt, %error, "attempt failed");
            }
            let verdict = self.lock().finish(worker, outcome, Instant::now(), random());
            match verdict {
                Verdict::Done(job) => {
                    if let Some(ticket) = &job.ticket {
                        ticket.settle();
                    }
                }
                Verdict::Abandoned => {}
                // Another worker may sleep past the moment when this retry is due.
                Verdict::Retry => self.due.notify_one(),
                Verdict::Dead(job, reason) => self.end_with_letter(&job, reason),
            }
        }
        // Those who wait see that nothing is left either.
        self.due.notify_all();
        self.room.notify_all();
        self.ended.notify_all();
    }

    fn next_job(&self, worker: usize) -> Option<Job> {
        let mut work = self.lock();
        loop {
            let now = Instant::now();
            work = match work.take(worker, now) {
                Next::Handle(job) => {
                    self.room.notify_one();
                    return Some(job);
                }
                Next::End => return None,
                Next::Idle => self.due.wait(work).unwrap_or_else(PoisonError::into_inner),
                Next::Until(due) => {
                    let wait = due.saturating_duration_since(now);
                    self.due.wait_timeout(work, wait).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn call(&self, job: &Job) -> Result<(), HandlerError> {
        // A handler that panicked is called again with whatever state it left; what that means is its author's business,
        // as with any lock it poisoned.
        catch_unwind(AssertUnwindSafe(|| job.handler.handle(&job.event))).unwrap_or_else(|panic| {
            self.lock().metrics.panics += 1;
            Err(HandlerError::Retry(format!("the handler panicked: {}", panic_text(panic.as_ref()))))
        })
    }

    /// A dead letter whose event has been counted. One of a stream that can't be kept where it should be is not settled:
    /// it stays pending and is tried again.
    fn end_with_letter(&self, job: &Job, reason: String) {
        let is_kept = self.bury(job, reason);
        if let Some(ticket) = &job.ticket {
            if is_kept { ticket.settle() } else { ticket.put_down() }
        }
        self.lock().buried();
        self.ended.notify_all();
    }

    /// Keeps a dead letter, if nowhere else then in the log. Returns whether it is where it should be.
    fn bury(&self, job: &Job, reason: String) -> bool {
        let letter = DeadLetter {
            event: Arc::clone(&job.event),
            reason,
            attempts: job.failures,
            home: self.options.home.clone(),
            server_id: self.options.server_id.clone(),
            died_at: SystemTime::now(),
        };
        let kept = catch_unwind(AssertUnwindSafe(|| self.dead_letters.keep(&letter)));
        let error = match kept {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic_text(panic.as_ref()).to_owned(),
        };
        self.lock().metrics.dead_unkept += 1;
        tracing::error!(%error, "a dead letter can't be kept where it should be: it follows in the log");
        letter.log();
        false
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it said nothing")
}

/// Uniform: the keys of the standard hasher are the process's own randomness, new for each.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A panic can only have come from an assertion of ours, in another thread; the counters are still worth reading.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const WORKER_END_POLL: Duration = Duration::from_millis(10);
/// Longer than the time-outs of a stream's letter: a connect, and three answers of 5 s.
const LETTER_WAIT: Duration = Duration::from_secs(25);

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};

    use serde_json::json;

    use super::*;
    use crate::backoff::Backoff;
    use crate::dead_letter::DeadLetterError;

    /// An event of type `kind` whose payload holds `number`.
    pub(crate) fn event(kind: &str, number: u32) -> Event {
        json!({
            "id": "550e8400-e29b-41d4-a716-446655440000", "type": kind, "source": "test",
            "timestamp": "2026-02-22T10:00:00Z", "payload": {"number": number},
        })
        .to_string()
        .parse()
        .unwrap()
    }

    /// Longer than anything here takes.
    const NEVER: Duration = Duration::from_secs(60);

    struct Kept(Mutex<Sender<DeadLetter>>);

    impl DeadLetters for Kept {
        fn keep(&self, letter: &DeadLetter) -> Result<(), DeadLetterError> {
            self.0.lock().unwrap().send(letter.clone()).unwrap();
            Ok(())
        }
    }

    fn start(options: Options, registry: Registry) -> (Consumer, Receiver<DeadLetter>) {
        let (sender, letters) = channel();
        (Consumer::start(options, registry, Kept(Mutex::new(sender))).unwrap(), letters)
    }

    fn at_once() -> Options {
        let backoff = Backoff { first: Duration::ZERO, max: Duration::ZERO };
        Options { backoff, drain: NEVER, ..Options::default() }
    }

    /// A handler that tells that it was called and goes on when it is told to.
    fn gated() -> (Registry, Receiver<()>, Sender<()>) {
        let (called, calls) = channel();
        let (go, gate) = channel::<()>();
        let (called, gate) = (Mutex::new(called), Mutex::new(gate));
        let mut registry = Registry::new();
        registry.register("a", move |_: &Event| {
            called.lock().unwrap().send(())?;
            Ok(gate.lock().unwrap().recv()?)
        });
        (registry, calls, go)
    }

    #[test]
    fn a_full_queue_is_an_error_that_the_caller_sees_and_is_counted() {
        let (registry, calls, go) = gated();
        let (consumer, _letters) = start(Options { workers: 1, queue: 2, ..at_once() }, registry);
        consumer.offer(event("a", 1)).unwrap();
        calls.recv_timeout(NEVER).unwrap();
        consumer.offer(event("a", 2)).unwrap();
        consumer.offer(event("a", 3)).unwrap();
        assert_eq!(consumer.offer(event("a", 4)), Err(OfferError::QueueFull { queue: 2 }));
        let metrics = consumer.metrics();
        assert_eq!((metrics.dropped, metrics.queued, metrics.running), (1, 2, 1));
        (0..3).for_each(|_| go.send(()).unwrap());
        assert_eq!(consumer.stop().processed, 3);
    }

    #[test]
    fn whoever_blocks_gets_in_as_soon_as_there_is_room() {
        let (registry, calls, go) = gated();
        let (consumer, _letters) = start(Options { workers: 1, queue: 1, ..at_once() }, registry);
        consumer.offer(event("a", 1)).unwrap();
        calls.recv_timeout(NEVER).unwrap();
        consumer.offer(event("a", 2)).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| consumer.offer_wait(event("a", 3)));
            (0..3).for_each(|_| go.send(()).unwrap());
            waiting.join().unwrap().unwrap();
        });
        let metrics = consumer.stop();
        assert_eq!((metrics.processed, metrics.dropped), (3, 0));
    }

    #[test]
    fn stopping_handles_the_whole_queue_and_all_retries() {
        let mut registry = Registry::new();
        registry.register("a", |event: &Event| match event.payload()["number"].as_u64() {
            Some(number) if number % 10 == 0 => Err(HandlerError::Retry("tenth".to_owned())),
            _ => Ok(()),
        });
        let (consumer, letters) = start(at_once(), registry);
        (1..=100).for_each(|number| consumer.offer_wait(event("a", number)).unwrap());
        let metrics = consumer.stop();
        assert_eq!((metrics.accepted, metrics.processed, metrics.dead, metrics.retried), (100, 90, 10, 20));
        assert_eq!((metrics.queued, metrics.waiting, metrics.running), (0, 0, 0));
        assert_eq!(letters.try_iter().filter(|letter| letter.attempts == 3).count(), 10);
        assert_eq!(consumer.offer(event("a", 1)), Err(OfferError::Stopped));
    }

    #[test]
    fn what_the_drain_has_no_time_for_becomes_dead_letters() {
        let (registry, calls, go) = gated();
        let options = Options { workers: 1, drain: Duration::ZERO, ..at_once() };
        let (consumer, letters) = start(options, registry);
        consumer.offer(event("a", 1)).unwrap();
        calls.recv_timeout(NEVER).unwrap();
        consumer.offer(event("a", 2)).unwrap();
        let metrics = consumer.stop();
        assert_eq!((metrics.dead, metrics.processed), (2, 0));
        let reasons: Vec<String> = letters.try_iter().map(|letter| letter.reason).collect();
        assert!(reasons[0].contains("handler was still running"), "{reasons:?}");
        assert!(reasons[1].contains("still in the queue"), "{reasons:?}");
        drop(go);
    }

    #[test]
    fn a_handler_that_panics_costs_its_event_and_nothing_else() {
        let mut registry = Registry::new();
        registry.register("bad", |_: &Event| panic!("oh no")).register("good", |_: &Event| Ok(()));
        let (consumer, letters) = start(Options { workers: 1, ..at_once() }, registry);
        consumer.offer(event("bad", 1)).unwrap();
        consumer.offer(event("good", 2)).unwrap();
        let metrics = consumer.stop();
        assert_eq!((metrics.processed, metrics.dead, metrics.panics), (1, 1, 3));
        assert_eq!(letters.recv().unwrap().reason, "the handler panicked: oh no");
    }

    #[test]
    fn unknown_types_and_invalid_messages_are_counted_and_never_queued() {
        let (consumer, _letters) = start(at_once(), Registry::new());
        let refused = |is_new| Err(OfferError::UnknownType { kind: "x".to_owned(), is_new });
        assert_eq!(consumer.offer(event("x", 1)), refused(true));
        assert_eq!(consumer.offer(event("x", 2)), refused(false));
        let invalid = consumer.offer_message(b"{}", WhenFull::Drop).unwrap_err();
        assert!(invalid.to_string().starts_with("invalid event: field id: found nothing"), "{invalid}");
        let metrics = consumer.stop();
        assert_eq!((metrics.unknown["x"], metrics.invalid, metrics.accepted), (2, 1, 0));
    }

    /// Keeps a letter when it is told to.
    struct Slow {
        called: Mutex<Sender<()>>,
        gate: Mutex<Receiver<()>>,
        kept: Arc<AtomicBool>,
    }

    impl DeadLetters for Slow {
        fn keep(&self, letter: &DeadLetter) -> Result<(), DeadLetterError> {
            if letter.event.kind() != "a" {
                return Ok(());
            }
            self.called.lock().unwrap().send(()).unwrap();
            self.gate.lock().unwrap().recv().unwrap();
            self.kept.store(true, Ordering::Release);
            Ok(())
        }
    }

    #[test]
    fn a_letter_that_is_being_put_away_at_the_deadline_is_waited_for() {
        let mut registry = Registry::new();
        registry.register("a", |_: &Event| Err(HandlerError::Permanent("never".to_owned())));
        registry.register("b", |_: &Event| Ok(()));
        let ((called, calls), (go, gate)) = (channel(), channel());
        let kept = Arc::new(AtomicBool::new(false));
        let slow = Slow { called: Mutex::new(called), gate: Mutex::new(gate), kept: Arc::clone(&kept) };
        let consumer =
            Consumer::start(Options { drain: Duration::ZERO, ..at_once() }, registry, slow).unwrap();
        consumer.offer(event("a", 1)).unwrap();
        calls.recv_timeout(NEVER).unwrap();
        thread::scope(|scope| {
            let stopped = scope.spawn(|| {
                consumer.stop();
                kept.load(Ordering::Acquire)
            });
            while !stopped.is_finished() && consumer.offer(event("b", 2)) != Err(OfferError::Stopped) {
                thread::yield_now();
            }
            go.send(()).unwrap();
            assert!(stopped.join().unwrap(), "stopped before the letter was kept");
        });
    }

    struct Broken;

    impl DeadLetters for Broken {
        fn keep(&self, _: &DeadLetter) -> Result<(), DeadLetterError> {
            panic!("no place at all")
        }
    }

    #[test]
    fn a_dead_letter_that_has_no_place_is_counted() {
        let mut registry = Registry::new();
        registry.register("a", |_: &Event| Err(HandlerError::Permanent("never".to_owned())));
        let consumer = Consumer::start(at_once(), registry, Broken).unwrap();
        consumer.offer(event("a", 1)).unwrap();
        let metrics = consumer.stop();
        assert_eq!((metrics.dead, metrics.dead_unkept), (1, 1));
    }
}
