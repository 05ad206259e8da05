//! The relay on its thread: rings, doorbells and the broker around the state machine of [`crate::relay`].

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bell::{Bell, Sleeper, Yielder};
use super::broker::{self, BrokerEvents, BrokerLink, Wants};
use super::connection::Clock;
use super::ring::RelayEnd;
use super::stages::{Sample, Stages};
use crate::command::Down;
use crate::config::{BrokerChoice, Config, RedisAddress, RedisTarget, Subscribe};
use crate::limits::TURN_COMMANDS_MAX;
use crate::metrics::Stage;
use crate::redis::{Append, PublishError, Refused, SessionError, StreamsEvent};
use crate::relay::{BrokerCommand, BrokerState, Outlet, PublishFailure, Relay};
use crate::setup::Setup;
use crate::shard::Micros;

/// How often, and how many times, Redis is waited for with the last publications of a drain: half a second in all.
const LAST_ANSWERS_POLL: Duration = Duration::from_millis(20);
const LAST_ANSWERS_POLLS: u32 = 25;
/// With `own = "origin"` a publication is with the members here before Redis is asked.
const REFUSED: &str =
    "redis refuses publications of clients: they reach nobody, or with own = \"origin\" this node alone";
/// A spell of refusals is over after this long without one.
const REFUSALS_OVER: Duration = Duration::from_secs(10);
/// How often rooms are looked after.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// Publications that Redis refuses: told once, until none has been refused for a while.
struct Refusals {
    /// What clients' publications take, as ACL rules: the refusal itself names no channel.
    rules: String,
    last_at: Option<Instant>,
}

impl Refusals {
    fn note(&mut self, error: &SessionError, now: Instant) {
        let is_news =
            self.last_at.replace(now).is_none_or(|at| now.saturating_duration_since(at) >= REFUSALS_OVER);
        if !is_news {
            return;
        }
        match error {
            SessionError::NotPermitted { text, user, .. } => {
                let cure = format!("ACL SETUSER {user} {}", self.rules);
                tracing::warn!(reason = %text, %cure, "{REFUSED}");
            }
            other => {
                tracing::warn!(reason = %other, "{REFUSED}");
            }
        }
    }
}

/// Publishing to the channels of all sources, as ACL rules.
fn publish_rules(config: &Config) -> String {
    let verb = match &config.broker {
        BrokerChoice::Redis(RedisTarget { address: RedisAddress::Cluster(_), .. }) => "+spublish",
        _ => "+publish",
    };
    let channels = config.sources.iter().map(|source| match &source.subscribe {
        Subscribe::Channel(channel) => format!("'&{channel}'"),
        Subscribe::Pattern { prefix, suffix }
        | Subscribe::OnDemand { prefix, suffix }
        | Subscribe::Stream { prefix, suffix } => {
            format!("'&{prefix}*{suffix}'")
        }
    });
    std::iter::once(verb.to_owned()).chain(channels).collect::<Vec<_>>().join(" ")
}

/// The rings to all shards.
struct Rings {
    ends: Vec<RelayEnd>,
    /// Of the publication that is being placed, where it is one.
    sample: Option<Sample>,
}

impl Rings {
    fn lap(&mut self, stage: Stage) {
        if let Some(sample) = &mut self.sample {
            sample.lap(stage);
        }
    }
}

impl Outlet for Rings {
    fn offer(&mut self, shard: u16, command: Down) -> Result<(), Down> {
        self.lap(Stage::Place);
        let offered = self.ends[shard as usize].offer(command);
        self.lap(Stage::Offer);
        offered
    }

    fn consumed_bytes(&self, shard: u16) -> u64 {
        self.ends[shard as usize].consumed_bytes()
    }

    fn parsed(&mut self) {
        self.lap(Stage::Parse);
    }
}

/// The relay and what it speaks through; entered by one task at a time, never across an await.
struct Driver {
    relay: Relay,
    rings: Rings,
    clock: Clock,
    link: Option<BrokerLink>,
    stages: Stages,
    /// When the read returned whose publications are being told.
    batch_arrived: Micros,
    refusals: Refusals,
}

impl Driver {
    /// Takes a bounded batch of what the shards say. Returns whether there was something.
    fn take_commands(&mut self) -> bool {
        let (now, since) = (self.clock.now(), Instant::now());
        let mut any = false;
        for shard in 0..self.rings.ends.len() {
            self.rings.ends[shard].unrung |= self.rings.ends[shard].is_crowded();
            for _ in 0..TURN_COMMANDS_MAX {
                let Ok(command) = self.rings.ends[shard].up.pop() else { break };
                any = true;
                self.relay.handle(shard as u16, command, &mut self.rings, now);
            }
        }
        if any {
            self.flush();
            self.stages.spent_since(since, Stage::Commands);
        }
        any
    }

    /// What the relay hears of a publication that failed.
    fn failure(&mut self, error: &PublishError) -> PublishFailure {
        match error {
            PublishError::Unsent => PublishFailure::Unsent,
            PublishError::Unknown => PublishFailure::Unknown,
            PublishError::Rejected(error) => {
                self.refusals.note(error, Instant::now());
                PublishFailure::Refused
            }
        }
    }

    /// Whether there is something to do now: a command, or space for what waits.
    fn has_work(&self) -> bool {
        let has_backlog = self.relay.has_backlog();
        self.rings.ends.iter().any(|ring| !ring.up.is_empty() || (has_backlog && ring.was_told_of_space()))
    }

    /// Moves what waits behind full rings on, and asks to be told of space for what still waits.
    fn pump(&mut self) {
        self.pump_once();
        if self.relay.has_backlog() {
            self.rings.ends.iter().for_each(RelayEnd::want_space);
            // The last look. Asking again after it would take back an answer that has come meanwhile.
            self.pump_once();
        }
    }

    fn pump_once(&mut self) {
        if !self.relay.has_backlog() {
            return;
        }
        for shard in 0..self.rings.ends.len() {
            self.relay.pump(shard as u16, &mut self.rings);
        }
        self.flush();
    }

    /// Carries out what the relay wants of the broker, and rings the shards.
    fn flush(&mut self) {
        while let Some(command) = self.relay.broker.pop_front() {
            let Some(link) = &self.link else { continue };
            match command {
                BrokerCommand::Subscribe(channel) => {
                    if link.subscribe(&channel) {
                        self.relay.confirmed(&channel, &mut self.rings);
                    }
                }
                BrokerCommand::Unsubscribe(channel) => link.unsubscribe(&channel),
                BrokerCommand::Keep { key, value, ttl_millis } => {
                    if link.keep(&key, &value, ttl_millis).is_err() {
                        self.relay.kept(&key, false, self.clock.now());
                    }
                }
                BrokerCommand::Fetch { key } => {
                    if link.fetch(&key).is_err() {
                        self.relay.fetched(&key, None, &mut self.rings);
                    }
                }
                BrokerCommand::Follow(stream) => {
                    if let Some(position) = link.follow(&stream) {
                        let now = self.clock.now();
                        self.relay.stream_anchored(&stream, position, &mut self.rings, now);
                    }
                }
                BrokerCommand::Unfollow(stream) => link.unfollow(&stream),
                BrokerCommand::Recall { token, stream, after } => {
                    if let Err(error) = link.recall(token, &stream, after) {
                        let now = self.clock.now();
                        self.relay.recalled(token, Err(error), &mut self.rings, now);
                    }
                }
                BrokerCommand::Append { token, stream, payload, trim } => {
                    let append = Append { stream: &stream, payload: &payload, channel: None, trim };
                    if let Err(refused) = link.append(&append, token) {
                        self.relay.appended(token, Err(refused.into()), &mut self.rings);
                    }
                }
                BrokerCommand::Publish { token, channel, payload } => {
                    if let Err(refused) = link.publish(&channel, &payload, token) {
                        self.relay.published(token, Err(refused.into()), &mut self.rings);
                    }
                }
            }
        }
        for ring in &mut self.rings.ends {
            ring.flush();
        }
    }
}

impl From<Refused> for PublishFailure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Backlog => Self::Busy,
            Refused::TooBig => Self::TooBig,
            // The relay has not heard of it yet.
            Refused::Down => Self::Unsent,
        }
    }
}

impl BrokerEvents for Driver {
    fn up(&mut self) {
        self.relay.broker_up(&mut self.rings);
    }

    fn down(&mut self, _reason: &str) {
        let now = self.clock.now();
        self.relay.broker_down(&mut self.rings, now);
    }

    fn confirmed(&mut self, channel: &[u8]) {
        self.relay.confirmed(channel, &mut self.rings);
    }

    fn lapsed(&mut self, channel: &[u8]) {
        self.relay.lapsed(channel, &mut self.rings);
    }

    fn refused(&mut self, channel: &[u8], _reason: &str) {
        self.relay.channel_refused(channel, &mut self.rings);
    }

    fn message(&mut self, pattern: Option<&[u8]>, channel: &[u8], payload: &[u8]) {
        self.rings.sample = self.stages.publication_begins();
        self.relay.message(pattern, channel, payload, &mut self.rings, self.batch_arrived);
        self.stages.publication_ends(self.rings.sample.take());
    }

    fn published(&mut self, token: u64, result: Result<u64, PublishError>) {
        let result = result.map_err(|error| self.failure(&error));
        self.relay.published(token, result, &mut self.rings);
    }

    fn streams_up(&mut self) {
        self.relay.streams_up();
    }

    fn streams_down(&mut self) {
        let now = self.clock.now();
        self.relay.streams_down(now);
    }

    fn stream(&mut self, event: StreamsEvent<'_>) {
        let Self { relay, rings, clock, batch_arrived, .. } = self;
        match event {
            StreamsEvent::Entry { stream, number, payload } => {
                rings.sample = self.stages.publication_begins();
                relay.stream_entry(stream, number, payload, rings, *batch_arrived);
                self.stages.publication_ends(rings.sample.take());
            }
            StreamsEvent::Anchored { stream, position } => {
                relay.stream_anchored(&stream, position, rings, clock.now());
            }
            StreamsEvent::Gap { stream, to, .. } => relay.stream_gap(&stream, to, rings),
            StreamsEvent::Broken { stream, position } => {
                relay.stream_broken(&stream, position, rings, clock.now());
            }
            StreamsEvent::Refused { stream, .. } => relay.stream_refused(&stream, rings, clock.now()),
            StreamsEvent::Recalled { token, result } => relay.recalled(token, result, rings, clock.now()),
            StreamsEvent::Appended { token, result } => {
                let result = result.map_err(|error| self.failure(&error));
                self.relay.appended(token, result, &mut self.rings);
            }
        }
    }

    fn kept(&mut self, key: &str, is_kept: bool) {
        let now = self.clock.now();
        self.relay.kept(key, is_kept, now);
    }

    fn fetched(&mut self, key: &str, value: Option<&[u8]>) {
        self.relay.fetched(key, value, &mut self.rings);
    }

    fn probe_sent(&mut self, number: u64) {
        self.relay.probe_sent(number);
    }

    fn probe_returned(&mut self, number: u64) {
        self.relay.probe_returned(number, &mut self.rings);
    }

    fn batch_begin(&mut self) {
        // Everything a read brings had arrived by then, so one look at the clock serves all of it.
        self.batch_arrived = self.clock.now();
        self.stages.batch_begins();
    }

    fn batch_end(&mut self) {
        let since = self.stages.batch_handled();
        self.flush();
        self.pump();
        self.stages.spent_since(since, Stage::Offer);
    }
}

/// What the relay lives on.
pub struct RelayThread {
    /// Of the process.
    pub clock: Clock,
    /// What wakes it.
    pub bell: Arc<Bell>,
    /// Nothing else runs there.
    pub is_own: bool,
}

/// Makes the relay on this thread's runtime, with every descriptor it needs but those to Redis. The future runs it until
/// `is_over`.
///
/// # Errors
/// Out of descriptors.
pub fn start<F: Fn() -> bool>(
    config: &Config,
    setup: Arc<Setup>,
    rings: Vec<RelayEnd>,
    thread: RelayThread,
    epoch_base: u64,
    is_over: F,
) -> io::Result<impl Future<Output = ()> + use<F>> {
    let RelayThread { clock, bell, is_own } = thread;
    let sleeper = Sleeper::new(bell.clone())?;
    let yielder = Yielder::new()?;
    let state = match config.broker {
        BrokerChoice::Local => BrokerState::Local,
        BrokerChoice::Redis(_) => BrokerState::Down,
    };
    let stages = Stages::new(setup.metrics.clone(), is_own);
    let driver = Rc::new(RefCell::new(Driver {
        relay: Relay::new(setup, state, epoch_base),
        rings: Rings { ends: rings, sample: None },
        clock,
        link: None,
        stages,
        batch_arrived: clock.now(),
        refusals: Refusals { rules: publish_rules(config), last_at: None },
    }));
    if let BrokerChoice::Redis(target) = &config.broker {
        let link = broker::start(target.clone(), &config.node_id, &wants(config), driver.clone());
        driver.borrow_mut().link = Some(link);
    }
    monoio::spawn(tick(driver.clone(), bell));
    Ok(run(driver, sleeper, yielder, is_over))
}

async fn run(driver: Rc<RefCell<Driver>>, sleeper: Sleeper, yielder: Yielder, is_over: impl Fn() -> bool) {
    while !is_over() {
        let worked = driver.borrow_mut().take_commands();
        driver.borrow_mut().pump();
        if worked {
            yielder.give_way().await;
            continue;
        }
        sleeper.wait(|| driver.borrow().has_work() || is_over()).await;
    }
    // What the shards said last still goes out, and is waited for a little.
    while driver.borrow_mut().take_commands() {}
    let link = driver.borrow().link.clone();
    if let Some(link) = link {
        for _ in 0..LAST_ANSWERS_POLLS {
            if link.publishes_inflight() == 0 {
                break;
            }
            monoio::time::sleep(LAST_ANSWERS_POLL).await;
        }
        link.shutdown();
        link.stopped().await;
    }
}

/// What is due by the clock. Rings the relay's own bell, so that it sees its end.
async fn tick(driver: Rc<RefCell<Driver>>, bell: Arc<Bell>) {
    loop {
        monoio::time::sleep(SWEEP_INTERVAL).await;
        let mut driver = driver.borrow_mut();
        let now = driver.clock.now();
        let Driver { relay, rings, link, stages, .. } = &mut *driver;
        relay.sweep(rings, now);
        relay.note_ring_depth(rings.ends.iter().map(RelayEnd::depth).sum());
        if let Some(link) = link {
            let counters = link.counters();
            relay.note_skipped(counters.subscriber.too_big);
            relay.note_attempts_failed(counters.attempts_failed);
        }
        stages.settle();
        driver.flush();
        driver.pump();
        bell.ring();
    }
}

/// What is subscribed for as long as the server runs, and whether there are streams.
fn wants(config: &Config) -> Wants {
    let Wants { mut patterns, mut channels, mut streams } = Wants::default();
    for source in &config.sources {
        match &source.subscribe {
            Subscribe::Pattern { prefix, suffix } => patterns.push(format!("{prefix}*{suffix}")),
            Subscribe::Channel(channel) => channels.push(channel.clone()),
            Subscribe::OnDemand { .. } => {}
            Subscribe::Stream { .. } => streams = true,
        }
    }
    for list in [&mut patterns, &mut channels] {
        list.sort_unstable();
        list.dedup();
    }
    Wants { patterns, channels, streams }
}
