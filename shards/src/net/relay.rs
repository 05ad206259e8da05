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
use crate::config::{BrokerChoice, Config, RedisAddress, RedisServer, Subscribe};
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
    /// One of those that [`note`](Self::note) is told, whose sentence says what is due.
    fn note_append(&mut self, error: &SessionError, now: Instant) {
        if self.is_news(now) {
            tracing::warn!(reason = %error, "redis refuses to append publications of clients: they reach nobody");
        }
    }

    fn is_news(&mut self, now: Instant) -> bool {
        self.last_at.replace(now).is_none_or(|at| now.saturating_duration_since(at) >= REFUSALS_OVER)
    }

    fn note(&mut self, error: &SessionError, now: Instant) {
        if !self.is_news(now) {
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

/// Publishing to the channels of all sources of the server with this index, as ACL rules.
fn publish_rules(config: &Config, index: usize, server: &RedisServer) -> String {
    let verb = match &server.target.address {
        RedisAddress::Cluster(_) => "+spublish",
        _ => "+publish",
    };
    let sources = config.sources.iter().filter(|source| config.server_of(source) == index);
    let channels = sources.map(|source| match &source.subscribe {
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
    /// To each server; none with the local broker.
    links: Vec<Link>,
    stages: Stages,
    /// When the read returned whose publications are being told.
    batch_arrived: Micros,
}

/// The way to one server.
struct Link {
    broker: BrokerLink,
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

    /// What a stream of a server says.
    fn stream(&mut self, server: usize, event: StreamsEvent<'_>) {
        let Self { relay, rings, clock, batch_arrived, .. } = self;
        match event {
            StreamsEvent::Entry { stream, number, payload } => {
                rings.sample = self.stages.publication_begins();
                relay.stream_entry(server, stream, number, payload, rings, *batch_arrived);
                self.stages.publication_ends(rings.sample.take());
            }
            StreamsEvent::Anchored { stream, position } => {
                relay.stream_anchored(server, &stream, position, rings, clock.now());
            }
            StreamsEvent::Gap { stream, position, .. } => {
                relay.stream_gap(server, &stream, position, rings, clock.now());
            }
            StreamsEvent::Broken { stream, position } => {
                relay.stream_broken(server, &stream, position, rings, clock.now());
            }
            StreamsEvent::Refused { stream, .. } => {
                relay.stream_refused(server, &stream, rings, clock.now());
            }
            StreamsEvent::Recalled { token, result } => {
                relay.recalled(server, token, result, rings, clock.now());
            }
            StreamsEvent::Appended { token, result } => {
                let result = result.map_err(|error| match &error {
                    PublishError::Rejected(error) => {
                        self.links[server].refusals.note_append(error, Instant::now());
                        PublishFailure::Refused
                    }
                    _ => self.failure(server, &error),
                });
                self.relay.appended(server, token, result, &mut self.rings);
            }
        }
    }

    /// What the relay hears of a publication that failed.
    fn failure(&mut self, server: usize, error: &PublishError) -> PublishFailure {
        match error {
            PublishError::Unsent => PublishFailure::Unsent,
            PublishError::Unknown => PublishFailure::Unknown,
            PublishError::Rejected(error) => {
                self.links[server].refusals.note(error, Instant::now());
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
        while let Some((server, command)) = self.relay.broker.pop_front() {
            let Some(Link { broker: link, .. }) = self.links.get(server) else { continue };
            match command {
                BrokerCommand::Subscribe(channel) => {
                    if link.subscribe(&channel) {
                        self.relay.confirmed(server, &channel, &mut self.rings);
                    }
                }
                BrokerCommand::Unsubscribe(channel) => link.unsubscribe(&channel),
                BrokerCommand::Keep { key, value, ttl_millis } => {
                    if link.keep(&key, &value, ttl_millis).is_err() {
                        self.relay.kept(server, &key, false, self.clock.now());
                    }
                }
                BrokerCommand::Fetch { key } => {
                    if link.fetch(&key).is_err() {
                        self.relay.fetched(server, &key, None, &mut self.rings);
                    }
                }
                BrokerCommand::Follow(stream) => {
                    if let Some(position) = link.follow(&stream) {
                        let now = self.clock.now();
                        self.relay.stream_anchored(server, &stream, position, &mut self.rings, now);
                    }
                }
                BrokerCommand::Unfollow(stream) => link.unfollow(&stream),
                BrokerCommand::Recall { token, stream, after } => {
                    if let Err(error) = link.recall(token, &stream, after) {
                        let now = self.clock.now();
                        self.relay.recalled(server, token, Err(error), &mut self.rings, now);
                    }
                }
                BrokerCommand::Append { token, stream, payload, trim } => {
                    let append = Append { stream: &stream, payload: &payload, channel: None, trim };
                    if let Err(refused) = link.append(&append, token) {
                        self.relay.appended(server, token, Err(refused.into()), &mut self.rings);
                    }
                }
                BrokerCommand::Publish { token, channel, payload } => {
                    if let Err(refused) = link.publish(&channel, &payload, token) {
                        self.relay.published(server, token, Err(refused.into()), &mut self.rings);
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

/// What one server says, on its way to the relay.
struct ServerEvents {
    server: usize,
    driver: Rc<RefCell<Driver>>,
}

impl ServerEvents {
    /// Enters the driver: its parts are at hand one by one.
    fn tell(&self, act: impl FnOnce(&mut Driver, usize)) {
        act(&mut self.driver.borrow_mut(), self.server);
    }
}

impl BrokerEvents for ServerEvents {
    fn up(&mut self) {
        self.tell(|driver, server| driver.relay.broker_up(server, &mut driver.rings));
    }

    fn down(&mut self, _reason: &str) {
        self.tell(|driver, server| driver.relay.broker_down(server, &mut driver.rings));
    }

    fn broke_early(&mut self) {
        self.tell(|driver, server| driver.relay.broker_broke_early(server));
    }

    fn confirmed(&mut self, channel: &[u8]) {
        self.tell(|driver, server| driver.relay.confirmed(server, channel, &mut driver.rings));
    }

    fn lapsed(&mut self, channel: &[u8]) {
        self.tell(|driver, server| driver.relay.lapsed(server, channel, &mut driver.rings));
    }

    fn refused(&mut self, channel: &[u8], _reason: &str) {
        self.tell(|driver, server| driver.relay.channel_refused(server, channel, &mut driver.rings));
    }

    fn message(&mut self, pattern: Option<&[u8]>, channel: &[u8], payload: &[u8]) {
        self.tell(|driver, server| {
            driver.rings.sample = driver.stages.publication_begins();
            let arrived = driver.batch_arrived;
            driver.relay.message(server, pattern, channel, payload, &mut driver.rings, arrived);
            driver.stages.publication_ends(driver.rings.sample.take());
        });
    }

    fn published(&mut self, token: u64, result: Result<u64, PublishError>) {
        self.tell(|driver, server| {
            let result = result.map_err(|error| driver.failure(server, &error));
            driver.relay.published(server, token, result, &mut driver.rings);
        });
    }

    fn streams_up(&mut self) {
        self.tell(|driver, server| driver.relay.streams_up(server));
    }

    fn streams_down(&mut self) {
        self.tell(|driver, server| driver.relay.streams_down(server, driver.clock.now()));
    }

    fn stream(&mut self, event: StreamsEvent<'_>) {
        self.tell(|driver, server| driver.stream(server, event));
    }

    fn kept(&mut self, key: &str, is_kept: bool) {
        self.tell(|driver, server| {
            let now = driver.clock.now();
            driver.relay.kept(server, key, is_kept, now);
        });
    }

    fn fetched(&mut self, key: &str, value: Option<&[u8]>) {
        self.tell(|driver, server| driver.relay.fetched(server, key, value, &mut driver.rings));
    }

    fn probe_sent(&mut self, number: u64) {
        self.tell(|driver, server| driver.relay.probe_sent(server, number));
    }

    fn probe_returned(&mut self, number: u64) {
        self.tell(|driver, server| driver.relay.probe_returned(server, number, &mut driver.rings));
    }

    fn batch_begin(&mut self) {
        self.tell(|driver, _| {
            // Everything a read brings had arrived by then, so one look at the clock serves all of it.
            driver.batch_arrived = driver.clock.now();
            driver.stages.batch_begins();
        });
    }

    fn batch_end(&mut self) {
        self.tell(|driver, _| {
            let since = driver.stages.batch_handled();
            driver.flush();
            driver.pump();
            driver.stages.spent_since(since, Stage::Offer);
        });
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
        links: Vec::new(),
        stages,
        batch_arrived: clock.now(),
    }));
    for (index, server) in config.broker.servers().iter().enumerate() {
        let events = Rc::new(RefCell::new(ServerEvents { server: index, driver: driver.clone() }));
        let broker = broker::start(server.target.clone(), &config.node_id, &wants(config, index), events);
        let refusals = Refusals { rules: publish_rules(config, index, server), last_at: None };
        driver.borrow_mut().links.push(Link { broker, refusals });
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
    let links: Vec<BrokerLink> = driver.borrow().links.iter().map(|link| link.broker.clone()).collect();
    for _ in 0..LAST_ANSWERS_POLLS {
        if links.iter().all(|link| link.publishes_inflight() == 0) {
            break;
        }
        monoio::time::sleep(LAST_ANSWERS_POLL).await;
    }
    links.iter().for_each(BrokerLink::shutdown);
    for link in links {
        link.stopped().await;
    }
}

/// What is due by the clock. Rings the relay's own bell, so that it sees its end.
async fn tick(driver: Rc<RefCell<Driver>>, bell: Arc<Bell>) {
    loop {
        monoio::time::sleep(SWEEP_INTERVAL).await;
        let mut driver = driver.borrow_mut();
        let now = driver.clock.now();
        let Driver { relay, rings, links, stages, .. } = &mut *driver;
        relay.sweep(rings, now);
        relay.note_ring_depth(rings.ends.iter().map(RelayEnd::depth).sum());
        for (server, link) in links.iter().enumerate() {
            let counters = link.broker.counters();
            relay.note_skipped(server, counters.subscriber.too_big);
            relay.note_attempts_failed(server, counters.attempts_failed);
        }
        stages.settle();
        driver.flush();
        driver.pump();
        bell.ring();
    }
}

/// What of the Redis with this index is subscribed for as long as we run, and whether there are streams.
fn wants(config: &Config, index: usize) -> Wants {
    let Wants { mut patterns, mut channels, mut streams } = Wants::default();
    for source in config.sources.iter().filter(|source| config.server_of(source) == index) {
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
