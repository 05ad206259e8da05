//! A Redis with two connections, each a pair of queues, that break; and the driver that the relay has for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use shards::relay::{BrokerCommand, BrokerState, Outlet, PublishFailure, Relay};
use shards::shard::Micros;

use crate::follower::Follower;
use crate::random::Random;

/// How the source of a world is subscribed, and what travels on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed {
    /// `psubscribe room:*`: payloads, and own ones are known by their return.
    Pattern,
    /// `subscribe room:{1}`: the same, by a subscription of each room's own.
    OnDemand,
    /// `subscribe events`: events of all rooms, which name their room and their origin.
    Events,
}

impl Feed {
    pub fn of(random: &mut Random) -> Self {
        [Self::Pattern, Self::OnDemand, Self::Events][random.below(3)]
    }

    /// What another node publishes to a room, and where.
    pub fn publication(self, room: &str, payload: &[u8], random: &mut Random) -> (Vec<u8>, Vec<u8>) {
        if self != Self::Events {
            return (format!("room:{room}").into_bytes(), payload.to_vec());
        }
        let text = std::str::from_utf8(payload).expect("text");
        // A namesake of this node is told from it by its run; a program of somebody's may name nothing.
        let origins = [
            "",
            r#","origin":"elsewhere""#,
            r#","origin":"elsewhere","instance_id":"elsewhere-0007""#,
            r#","origin":"0000000000000000","instance_id":"0000000000000000-0008""#,
        ];
        let origin = origins[random.below(origins.len())];
        let kind = ["message", "note"][random.below(2)];
        let event = format!(r#"{{"room":"{room}","type":"{kind}","data":"{text}"{origin}}}"#);
        (b"events".to_vec(), event.into_bytes())
    }
}

/// What the driver writes to Redis.
#[derive(Debug, Clone)]
enum Request {
    Publish { token: u64, channel: Vec<u8>, payload: Vec<u8> },
    Probe(u64),
}

#[derive(Debug, Clone)]
enum Push {
    Confirmed { channel: Vec<u8>, on: bool },
    Message { channel: Vec<u8>, payload: Vec<u8> },
    Probe(u64),
}

#[derive(Debug)]
pub struct Broker {
    local: bool,
    pub feed: Feed,
    /// Rooms whose names begin so are fed by streams.
    pub streamed: Option<&'static str>,
    /// What is in them is wrapped as events are.
    pub has_stream_events: bool,
    pub follower: Follower,
    /// The time, for what comes at once.
    pub now: Micros,
    connected: bool,
    /// On-demand channels that the relay wants.
    wanted: BTreeSet<Vec<u8>>,
    /// (UN)SUBSCRIBEs without their answer, by channel.
    outstanding: BTreeMap<Vec<u8>, usize>,
    requests: VecDeque<Request>,
    answers: VecDeque<(u64, Result<u64, PublishFailure>)>,
    subscribes: VecDeque<(Vec<u8>, bool)>,
    pushes: VecDeque<Push>,
    subscribed: BTreeSet<Vec<u8>>,
    /// Written before a break; Redis may still read it.
    late: Vec<(Vec<u8>, Vec<u8>)>,
    probe: u64,
    probe_returned: u64,
    /// A probe of this connection came back, whatever was sent before.
    proved_from: u64,
    /// Payloads that were lost on their way to us, for the oracle.
    pub lost: Vec<Vec<u8>>,
    /// Payloads of our own that Redis refused.
    pub refused: Vec<Vec<u8>>,
}

impl Broker {
    pub fn new(local: bool, feed: Feed, streamed: Option<&'static str>, random: Random) -> Self {
        Self {
            local,
            feed,
            streamed,
            has_stream_events: false,
            follower: Follower::new(random),
            now: Micros(0),
            connected: false,
            wanted: BTreeSet::new(),
            outstanding: BTreeMap::new(),
            requests: VecDeque::new(),
            answers: VecDeque::new(),
            subscribes: VecDeque::new(),
            pushes: VecDeque::new(),
            subscribed: BTreeSet::new(),
            late: Vec::new(),
            probe: 0,
            probe_returned: 0,
            proved_from: 0,
            lost: Vec::new(),
            refused: Vec::new(),
        }
    }

    pub fn is_connected(&self) -> bool {
        self.connected
    }

    pub fn is_quiet(&self) -> bool {
        self.follower.is_quiet()
            && self.requests.is_empty()
            && self.answers.is_empty()
            && self.subscribes.is_empty()
            && self.pushes.is_empty()
    }

    fn hears(&self, channel: &[u8]) -> bool {
        self.connected && (self.feed != Feed::OnDemand || self.subscribed.contains(channel))
    }

    /// Carries out what the relay asks for; after each call to it.
    pub fn drive(&mut self, relay: &mut Relay, outlet: &mut impl Outlet) {
        let mut commands = 0;
        while let Some((_, command)) = relay.broker.pop_front() {
            commands += 1;
            assert!(commands < 1000, "one thing is asked for again and again: {command:?}");
            assert!(!self.local, "a local broker has nothing to do: {command:?}");
            match command {
                BrokerCommand::Subscribe(channel) => {
                    assert!(self.wanted.insert(channel.to_vec()), "subscribed twice");
                    self.subscribe(channel.to_vec(), true);
                }
                BrokerCommand::Unsubscribe(channel) => {
                    assert!(self.wanted.remove(&*channel), "unsubscribed what was not subscribed");
                    self.subscribe(channel.to_vec(), false);
                }
                BrokerCommand::Keep { .. } | BrokerCommand::Fetch { .. } => {
                    panic!("no source of the model keeps last values: {command:?}")
                }
                BrokerCommand::Follow(stream) => self.follower.follow(&stream, relay, outlet, self.now),
                BrokerCommand::Unfollow(stream) => self.follower.unfollow(&stream),
                BrokerCommand::Recall { token, stream, after } => {
                    if let Err(error) = self.follower.recall(token, &stream, after) {
                        relay.recalled(0, token, Err(error), outlet, self.now);
                    }
                }
                BrokerCommand::Append { token, stream, payload, .. } => {
                    if let Err(failure) = self.follower.append(token, &stream, &payload) {
                        relay.appended(0, token, Err(failure), outlet);
                    }
                }
                BrokerCommand::Publish { token, channel, payload } => match self.connected {
                    true => self.requests.push_back(Request::Publish {
                        token,
                        channel: channel.to_vec(),
                        payload: payload.to_vec(),
                    }),
                    false => relay.published(0, token, Err(PublishFailure::Unsent), outlet),
                },
            }
        }
    }

    fn subscribe(&mut self, channel: Vec<u8>, on: bool) {
        if self.connected {
            *self.outstanding.entry(channel.clone()).or_default() += 1;
            self.subscribes.push_back((channel, on));
        }
    }

    /// Another node publishes to a room; Redis takes it. Returns whether it is on its way to us.
    pub fn publish(&mut self, room: &str, payload: &[u8], random: &mut Random) -> bool {
        if let Some(name) = self.streamed.and_then(|prefix| room.strip_prefix(prefix)) {
            let payload = match self.has_stream_events {
                true => Feed::Events.publication(room, payload, random).1,
                false => payload.to_vec(),
            };
            self.follower.publish(format!("s:{name}").as_bytes(), &payload);
            return true;
        }
        let (channel, payload) = self.feed.publication(room, payload, random);
        let hears = self.hears(&channel);
        if hears {
            self.pushes.push_back(Push::Message { channel, payload });
        }
        hears
    }

    /// One thing happens between the driver, Redis and the relay.
    pub fn step(&mut self, relay: &mut Relay, outlet: &mut impl Outlet, random: &mut Random, now: Micros) {
        if self.local {
            return;
        }
        if self.streamed.is_some() {
            for _ in 0..3 {
                self.follower.step(relay, outlet, now);
                self.drive(relay, outlet);
            }
        }
        match random.below(4) {
            0 => self.redis_reads_request(random),
            1 => self.redis_reads_subscribe(),
            2 => {
                if let Some((token, answer)) = self.answers.pop_front() {
                    relay.published(0, token, answer, outlet);
                }
            }
            _ => self.relay_reads_push(relay, outlet, now),
        }
        let is_proved = self.probe_returned >= self.proved_from && self.proved_from > 0;
        if self.connected
            && relay.broker_state(0) == BrokerState::Down
            && self.outstanding.is_empty()
            && is_proved
        {
            relay.broker_up(0, outlet);
        }
        self.drive(relay, outlet);
    }

    fn redis_reads_request(&mut self, random: &mut Random) {
        match self.requests.pop_front() {
            Some(Request::Publish { token, payload, .. }) if random.chance(2) => {
                self.refused.push(payload);
                self.answers.push_back((token, Err(PublishFailure::Refused)));
            }
            Some(Request::Publish { token, channel, payload }) => {
                let receivers = u64::from(self.hears(&channel)) + random.below(2) as u64;
                if self.hears(&channel) {
                    self.pushes.push_back(Push::Message { channel, payload });
                }
                self.answers.push_back((token, Ok(receivers)));
            }
            Some(Request::Probe(number)) => self.pushes.push_back(Push::Probe(number)),
            None => {}
        }
    }

    fn redis_reads_subscribe(&mut self) {
        let Some((channel, on)) = self.subscribes.pop_front() else { return };
        match on {
            true => self.subscribed.insert(channel.clone()),
            false => self.subscribed.remove(&channel),
        };
        self.pushes.push_back(Push::Confirmed { channel, on });
    }

    fn relay_reads_push(&mut self, relay: &mut Relay, outlet: &mut impl Outlet, now: Micros) {
        match self.pushes.pop_front() {
            Some(Push::Confirmed { channel, on }) => {
                let outstanding = self.outstanding.get_mut(&channel).expect("an answer unasked for");
                *outstanding -= 1;
                if *outstanding == 0 {
                    self.outstanding.remove(&channel);
                    if on {
                        relay.confirmed(0, &channel, outlet);
                    }
                }
            }
            Some(Push::Message { channel, payload }) => {
                let pattern = (self.feed == Feed::Pattern).then_some(b"room:*".as_slice());
                relay.message(0, pattern, &channel, &payload, outlet, now);
            }
            Some(Push::Probe(number)) => {
                self.probe_returned = number;
                relay.probe_returned(0, number, outlet);
            }
            None => {}
        }
    }

    pub fn probe(&mut self, relay: &mut Relay) {
        if self.connected {
            self.probe += 1;
            self.requests.push_back(Request::Probe(self.probe));
            relay.probe_sent(0, self.probe);
        }
    }

    /// Both connections end; what was on its way is lost, or, where it was a PUBLISH, perhaps not.
    pub fn break_down(&mut self, relay: &mut Relay, outlet: &mut impl Outlet, random: &mut Random) {
        if !self.connected {
            return;
        }
        self.connected = false;
        let mut failed: Vec<(u64, PublishFailure)> = Vec::new();
        for (token, answer) in std::mem::take(&mut self.answers) {
            match answer {
                // The answer had been read already, or never will be.
                answer if random.chance(30) => relay.published(0, token, answer, outlet),
                _ => failed.push((token, PublishFailure::Unknown)),
            }
        }
        for request in std::mem::take(&mut self.requests) {
            let Request::Publish { token, channel, payload } = request else { continue };
            match random.below(3) {
                0 => failed.push((token, PublishFailure::Unsent)),
                1 => failed.push((token, PublishFailure::Unknown)),
                _ => {
                    failed.push((token, PublishFailure::Unknown));
                    self.late.push((channel, payload));
                }
            }
        }
        self.lost.extend(std::mem::take(&mut self.pushes).into_iter().filter_map(|push| match push {
            Push::Message { payload, .. } => Some(payload),
            _ => None,
        }));
        self.subscribes.clear();
        self.subscribed.clear();
        self.outstanding.clear();
        let fails_first = random.chance(50);
        if !fails_first {
            self.tell_break(relay, outlet);
        }
        for (token, failure) in failed {
            relay.published(0, token, Err(failure), outlet);
        }
        if fails_first {
            self.tell_break(relay, outlet);
        }
        self.drive(relay, outlet);
    }

    /// A link that was up says that it is down; one that was not, that it broke early.
    fn tell_break(&self, relay: &mut Relay, outlet: &mut impl Outlet) {
        match relay.broker_state(0) {
            BrokerState::Up => relay.broker_down(0, outlet),
            _ => relay.broker_broke_early(0),
        }
    }

    pub fn connect(&mut self, relay: &mut Relay, random: &mut Random) {
        if self.local || self.connected {
            return;
        }
        // Some of what was written before the break is read before we are back, some after, all before the probe.
        for _ in 0..random.below(self.late.len() + 1) {
            self.late.remove(0);
        }
        self.connected = true;
        for channel in self.wanted.clone() {
            self.subscribe(channel, true);
        }
        while random.chance(70) {
            self.redis_reads_subscribe();
        }
        for (channel, payload) in std::mem::take(&mut self.late) {
            if self.hears(&channel) {
                self.pushes.push_back(Push::Message { channel, payload });
            }
        }
        self.proved_from = self.probe + 1;
        self.probe(relay);
    }
}
