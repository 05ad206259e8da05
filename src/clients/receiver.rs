//! A thread that holds its share of the clients: connects them at a pace, reads all of them, stamps what comes.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{Timespec, epoll};

use super::log::{BATCH_DELIVERIES_MAX, Entry, LogSender};
use super::seat::{Seat, Step, Way};
use crate::client::ANSWER_TIMEOUT;
use crate::connection::End;
use crate::exit::Failure;
use crate::record::{Event, Note, Received};

/// Handshakes under way in one thread: below the backlog of any listener.
const HANDSHAKES_MAX: usize = 128;
/// News of one wait.
const NEWS_MAX: usize = 1_024;
/// How long a turn may wait for news: deliveries reach the log and orders are seen that soon.
const TURN: Duration = Duration::from_millis(20);
/// How long servers may take to answer our Close frames.
const LEAVE_WAIT: Duration = Duration::from_secs(5);
/// Payloads that are remembered, so that an event is parsed once and not once per client.
const EVENTS_REMEMBERED: usize = 256;
/// Longer payloads are parsed each time.
const PAYLOAD_REMEMBERED_BYTES_MAX: usize = 16 * 1024;

/// What all threads of a run tell the main one, and it them.
#[derive(Default)]
pub struct Progress {
    /// Clients that got their 101, those that have ended since included.
    pub connected: AtomicU64,
    /// Clients that ended before they were told to.
    pub lost: AtomicU64,
    /// Deliveries.
    pub received: AtomicU64,
    /// Clients that have got as many as they were to get.
    pub satisfied: AtomicU64,
    /// Tells the threads to take leave.
    pub stop: AtomicBool,
    /// The log can't be written: there is no sense in going on.
    pub log_failed: AtomicBool,
    ends: Mutex<Ends>,
}

/// Why clients ended.
#[derive(Default)]
pub struct Ends {
    /// The first client that could not connect, and why.
    pub refused: Option<(u32, Failure)>,
    /// How the others were lost, and how many so. Few different ones: codes and errors of the system.
    pub lost: HashMap<String, u64>,
}

impl Progress {
    pub fn ends(&self) -> std::sync::MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The share of one thread.
pub struct Receiver {
    pub way: Arc<Way>,
    pub progress: Arc<Progress>,
    pub log: LogSender,
    /// Numbers of its clients.
    pub clients: Vec<u32>,
    /// Between two connects.
    pub connect_interval: Duration,
    /// Per client.
    pub events: Option<u64>,
}

impl Receiver {
    /// Runs until all of its clients have ended.
    ///
    /// # Errors
    /// What the kernel says to epoll.
    pub fn run(self) -> std::io::Result<()> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let seats = Vec::with_capacity(self.clients.len());
        Turns {
            seats,
            epoll,
            began_at: Instant::now(),
            shaking: 0,
            open: 0,
            unfinished: Vec::new(),
            batch: Vec::with_capacity(BATCH_DELIVERIES_MAX),
            handed_on_at: Instant::now(),
            known: HashMap::new(),
            leave_by: None,
            receiver: self,
        }
        .run()
    }
}

struct Turns {
    receiver: Receiver,
    epoll: OwnedFd,
    /// In the order of `receiver.clients`; the index is what epoll tells.
    seats: Vec<Seat>,
    began_at: Instant,
    shaking: usize,
    open: usize,
    /// Seats whose messages did not fit into a turn.
    unfinished: Vec<usize>,
    batch: Vec<Received>,
    handed_on_at: Instant,
    known: HashMap<Vec<u8>, Arc<Event>>,
    /// Set when told to stop.
    leave_by: Option<Instant>,
}

impl Turns {
    fn run(mut self) -> std::io::Result<()> {
        let mut news = Vec::with_capacity(NEWS_MAX);
        while !self.is_over() {
            if self.leave_by.is_none() {
                self.connect_due()?;
            }
            news.clear();
            let timeout = Timespec::try_from(self.timeout()).ok();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut news), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for index in std::mem::take(&mut self.unfinished) {
                self.advance(index);
            }
            for one in &news {
                self.advance(one.data.u64() as usize);
            }
            self.expire_handshakes();
            // While there is much, batches grow: the queue to the log holds so many batches, not so many deliveries.
            if news.is_empty() || self.handed_on_at.elapsed() >= TURN {
                self.hand_on();
            }
            self.leave_if_told();
        }
        self.hand_on();
        Ok(())
    }

    fn is_over(&self) -> bool {
        let all_begun = self.leave_by.is_some() || self.seats.len() == self.receiver.clients.len();
        all_begun && self.shaking + self.open == 0
    }

    fn timeout(&self) -> Duration {
        if !self.unfinished.is_empty() {
            return Duration::ZERO;
        }
        if self.seats.len() == self.receiver.clients.len() || self.shaking >= HANDSHAKES_MAX {
            return TURN;
        }
        self.connect_at().saturating_duration_since(Instant::now()).min(TURN)
    }

    /// When the next client is due to connect.
    fn connect_at(&self) -> Instant {
        self.began_at + self.receiver.connect_interval.mul_f64(self.seats.len() as f64)
    }

    fn connect_due(&mut self) -> std::io::Result<()> {
        while self.shaking < HANDSHAKES_MAX && self.connect_at() <= Instant::now() {
            let Some(&client) = self.receiver.clients.get(self.seats.len()) else { return Ok(()) };
            let index = self.seats.len();
            match Seat::connect(client, &self.receiver.way, Instant::now() + ANSWER_TIMEOUT) {
                Err(failure) => {
                    self.receiver.progress.ends().refused.get_or_insert((client, failure));
                    self.receiver.progress.lost.fetch_add(1, Ordering::Relaxed);
                    self.leave_by = Some(Instant::now());
                    return Ok(());
                }
                Ok((seat, step)) => {
                    if let Some(stream) = seat.stream() {
                        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
                        epoll::add(&self.epoll, stream, epoll::EventData::new_u64(index as u64), flags)?;
                    }
                    self.seats.push(seat);
                    self.shaking += 1;
                    self.note(index, step);
                }
            }
        }
        Ok(())
    }

    fn advance(&mut self, index: usize) {
        let Self { seats, receiver, batch, known, .. } = self;
        let seat = &mut seats[index];
        let client = seat.client;
        let before = seat.received;
        let step = seat.advance(&receiver.way, |payload| {
            let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            batch.push(Received { client, event: event_of(known, payload), at });
        });
        let now = seat.received;
        if now > before {
            receiver.progress.received.fetch_add(now - before, Ordering::Relaxed);
            if receiver.events.is_some_and(|events| before < events && now >= events) {
                receiver.progress.satisfied.fetch_add(1, Ordering::Relaxed);
            }
        }
        if self.batch.len() >= BATCH_DELIVERIES_MAX {
            self.hand_on();
        }
        self.note(index, step);
    }

    fn note(&mut self, index: usize, step: Step) {
        match step {
            Step::Waiting => {}
            Step::Unfinished => self.unfinished.push(index),
            Step::Opened => {
                self.shaking -= 1;
                self.open += 1;
                self.receiver.progress.connected.fetch_add(1, Ordering::Relaxed);
                // The first messages may have come with the 101, and then epoll has nothing to tell.
                self.unfinished.push(index);
            }
            Step::Ended(end) => self.note_end(index, end),
        }
    }

    fn note_end(&mut self, index: usize, end: End) {
        match &end {
            End::Refused { .. } => self.shaking -= 1,
            _ => self.open -= 1,
        }
        let seat = &self.seats[index];
        let (client, received) = (seat.client, seat.received);
        let progress = &self.receiver.progress;
        // Once we take leave the server may as well just hang up.
        let label = if self.leave_by.is_some() { "stopped".to_owned() } else { label(&end) };
        if self.leave_by.is_none() {
            progress.lost.fetch_add(1, Ordering::Relaxed);
            let mut ends = progress.ends();
            match end {
                End::Refused { failure, .. } => {
                    ends.refused.get_or_insert((client, failure));
                }
                _ => *ends.lost.entry(label.clone()).or_default() += 1,
            }
        }
        self.log_note(Note::Client { client, received, end: label });
    }

    fn expire_handshakes(&mut self) {
        if self.shaking == 0 {
            return;
        }
        let now = Instant::now();
        for index in 0..self.seats.len() {
            if let Some(end) = self.seats[index].expire(&self.receiver.way, now) {
                self.note_end(index, end);
            }
        }
    }

    /// Deliveries first, then notes: a client's end stands behind what it received.
    fn log_note(&mut self, note: Note) {
        self.hand_on();
        self.send(Entry::Note(note));
    }

    fn hand_on(&mut self) {
        self.handed_on_at = Instant::now();
        if !self.batch.is_empty() {
            let next = Vec::with_capacity(self.batch.len());
            let batch = std::mem::replace(&mut self.batch, next);
            self.send(Entry::Deliveries(batch));
        }
    }

    fn send(&self, entry: Entry) {
        if !self.receiver.log.send(entry) {
            self.receiver.progress.log_failed.store(true, Ordering::Relaxed);
        }
    }

    /// A full server lets them in as soon as the others leave; they would count as clients that received nothing.
    fn abandon_unconnected(&mut self) {
        for index in 0..self.seats.len() {
            if !self.seats[index].is_shaking() {
                continue;
            }
            // The 101 may have come by now.
            self.advance(index);
            let seat = &mut self.seats[index];
            if seat.is_shaking() {
                seat.abandon();
                self.shaking -= 1;
                let client = seat.client;
                self.log_note(Note::Client { client, received: 0, end: NOT_CONNECTED.to_owned() });
            }
        }
        for client in self.receiver.clients.split_off(self.seats.len()) {
            self.log_note(Note::Client { client, received: 0, end: NOT_CONNECTED.to_owned() });
        }
    }

    fn leave_if_told(&mut self) {
        if self.leave_by.is_none() && self.receiver.progress.stop.load(Ordering::Relaxed) {
            self.abandon_unconnected();
            self.leave_by = Some(Instant::now() + LEAVE_WAIT);
            self.seats.iter_mut().for_each(Seat::leave);
        }
        if self.leave_by.is_some_and(|by| Instant::now() >= by) {
            for index in 0..self.seats.len() {
                let seat = &mut self.seats[index];
                if !seat.is_over() {
                    seat.abandon();
                    let (client, received) = (seat.client, seat.received);
                    self.log_note(Note::Client { client, received, end: "stopped".to_owned() });
                }
            }
            (self.shaking, self.open) = (0, 0);
        }
    }
}

/// The end of a client that was never connected.
const NOT_CONNECTED: &str = "not connected";

/// Short, so that equal ends count as one.
fn label(end: &End) -> String {
    match end {
        End::Stopped => "the server ended TCP".to_owned(),
        End::Closed(None) => "closed by the server without a code".to_owned(),
        End::Closed(Some(frame)) => {
            format!("closed by the server with {} {}", u16::from(frame.code), frame.reason)
        }
        End::Broken(error) => format!("broke without a Close frame ({error})"),
        End::Refused { failure, .. } => failure.sentence.clone(),
    }
}

/// What `payload` says, parsed once for all clients that get it.
fn event_of(known: &mut HashMap<Vec<u8>, Arc<Event>>, payload: &[u8]) -> Arc<Event> {
    if let Some(event) = known.get(payload) {
        return Arc::clone(event);
    }
    let event = Arc::new(Event::of(payload));
    if payload.len() <= PAYLOAD_REMEMBERED_BYTES_MAX {
        if known.len() >= EVENTS_REMEMBERED {
            known.clear();
        }
        known.insert(payload.to_vec(), Arc::clone(&event));
    }
    event
}
