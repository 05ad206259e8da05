//! Publications of this node's clients, between their way to Redis and their return.
//!
//! They carry no name of their origin, so an echo is known by its channel and payload: Redis returns what one connection
//! publishes in order, so the echo is one of the first that have not returned. While the subscription is broken, what has
//! not returned is delivered here, once, and its echo, should it come after all, is swallowed.
//!
//! An entry ends when it has both returned and been answered; or at a fence: a probe published after it has returned, so
//! it will not any more.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::{BrokerCommand, BrokerState, Outlet, Relay};
use crate::command::{ConnectionId, Down, Outcome, Publish};
use crate::envelope;
use crate::limits::{PAYLOAD_BYTES_MAX, PUBLISH_INFLIGHT_BYTES_MAX, PUBLISH_INFLIGHT_MAX};
use crate::metrics::RefuseReason;
use crate::route::plain_name;
use crate::shard::Micros;

/// Echoes may overtake only what Redis lost, so the search for one is short.
const SEARCH_MAX: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// Oldest first; tokens are consecutive.
    entries: VecDeque<Entry>,
    first_token: u64,
    bytes: usize,
    /// Number of the last probe that was published.
    probe: u64,
}

#[derive(Debug)]
struct Entry {
    room: Arc<str>,
    source: usize,
    channel: Box<[u8]>,
    /// As published; the payload for members is unwrapped from it.
    payload: Bytes,
    except: Option<ConnectionId>,
    answer_to: Option<ConnectionId>,
    /// What Redis said.
    answer: Option<Outcome>,
    returned: bool,
    /// Delivered here without Redis.
    delivered: bool,
    /// The last probe before it.
    after_probe: u64,
}

/// An echo that was recognised.
pub(super) struct Returned {
    /// It has been delivered already.
    pub delivered: bool,
    /// Who does not get it.
    pub except: Option<ConnectionId>,
}

impl Own {
    /// Recognises an echo. What stands before it in the queue is passed over, not given up: its fence will come.
    pub(super) fn returned(&mut self, channel: &[u8], payload: &[u8]) -> Option<Returned> {
        let waiting = self.entries.iter_mut().filter(|entry| !entry.returned).take(SEARCH_MAX);
        for entry in waiting {
            if *entry.channel == *channel && *entry.payload == *payload {
                entry.returned = true;
                return Some(Returned { delivered: entry.delivered, except: entry.except });
            }
        }
        None
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= PUBLISH_INFLIGHT_MAX || self.bytes >= PUBLISH_INFLIGHT_BYTES_MAX
    }

    fn at(&mut self, token: u64) -> Option<&mut Entry> {
        let index = token.checked_sub(self.first_token)?;
        self.entries.get_mut(index as usize)
    }
}

impl Relay {
    /// A client publishes: through the broker, or at once where there is none.
    pub(super) fn publish(&mut self, publish: Publish, outlet: &mut impl Outlet, now: Micros) {
        let Publish { room, payload, from, user, except_sender, answer } = publish;
        let except = except_sender.then_some(from);
        let setup = Arc::clone(&self.setup);
        let answer_to = answer.then_some(from);
        let source = setup.routes.channel_of_room(&room);
        let Some((source, channel)) = source.filter(|_| self.broker_state != BrokerState::Local) else {
            let outcome = self.place(&room, &payload, except, outlet, now);
            return self.answer_publish(answer_to, outcome, outlet);
        };
        if payload.len() > PAYLOAD_BYTES_MAX {
            self.metrics().refused.add(RefuseReason::TooBig, 1);
            return self.answer_publish(answer_to, Outcome::Refused, outlet);
        }
        if self.broker_state == BrokerState::Down {
            self.metrics().publishes_local.add(1);
            self.place(&room, &payload, except, outlet, now);
            return self.answer_publish(answer_to, Outcome::LocalOnly, outlet);
        }
        if self.own.is_full() {
            self.metrics().refused.add(RefuseReason::BrokerBacklog, 1);
            return self.answer_publish(answer_to, Outcome::Busy, outlet);
        }
        let payload =
            envelope::wrap(setup.routes.deliver(source), plain_name(&room), user.as_deref(), &payload);
        let channel: Box<[u8]> = channel.as_bytes().into();
        let token = self.own.first_token + self.own.entries.len() as u64;
        self.own.bytes += payload.len() + channel.len();
        self.own.entries.push_back(Entry {
            room,
            source,
            channel: channel.clone(),
            payload: payload.clone(),
            except,
            answer_to,
            answer: None,
            returned: false,
            delivered: false,
            after_probe: self.own.probe,
        });
        self.metrics().publishes_sent.add(1);
        self.broker.push_back(BrokerCommand::Publish { token, channel, payload });
    }

    fn answer_publish(&mut self, to: Option<ConnectionId>, outcome: Outcome, outlet: &mut impl Outlet) {
        if let Some(to) = to {
            self.offer(to.shard, Down::Published { to, outcome }, outlet);
        }
    }

    /// Redis has answered a publication, or it never will.
    ///
    /// After a break its driver says [`PublishFailure::Unsent`] or `Unknown` of each, before or after `broker_down`.
    pub fn published(
        &mut self,
        token: u64,
        receivers: Result<u64, PublishFailure>,
        outlet: &mut impl Outlet,
    ) {
        let up = self.broker_state == BrokerState::Up;
        let Some(entry) = self.own.at(token) else { return };
        match receivers {
            Ok(receivers) => {
                entry.answer = Some(Outcome::Sent { receivers });
                // Nobody subscribes to it, so not this node either: nothing will return.
                entry.returned |= receivers == 0;
            }
            Err(PublishFailure::Refused) => {
                entry.answer = Some(Outcome::Refused);
                entry.returned = true;
                self.metrics().refused.add(RefuseReason::BrokerError, 1);
            }
            Err(PublishFailure::Busy) => {
                entry.answer = Some(Outcome::Busy);
                entry.returned = true;
                self.metrics().refused.add(RefuseReason::BrokerBacklog, 1);
            }
            // Delivered by `broker_down`, which comes with these.
            Err(PublishFailure::Unsent) => {
                entry.answer = Some(Outcome::LocalOnly);
                entry.returned |= entry.delivered || up;
            }
            Err(PublishFailure::Unknown) => entry.answer = Some(Outcome::LocalOnly),
        }
        self.settle(outlet);
    }

    /// A probe was published: what comes back before it was published before it.
    pub fn probe_sent(&mut self, number: u64) {
        self.own.probe = number;
    }

    /// A probe returned: what was published before it and has not returned never will.
    pub fn probe_returned(&mut self, number: u64, outlet: &mut impl Outlet) {
        let mut missing = 0;
        for entry in &mut self.own.entries {
            if entry.after_probe >= number {
                break;
            }
            missing += u64::from(!entry.returned && !entry.delivered);
            entry.returned = true;
            entry.answer = entry.answer.or(Some(Outcome::LocalOnly));
        }
        self.metrics().echoes_missing.add(missing);
        self.settle(outlet);
    }

    /// The subscription is broken: own publications that have not returned are delivered here.
    pub(super) fn deliver_unreturned(&mut self, outlet: &mut impl Outlet, now: Micros) {
        let setup = Arc::clone(&self.setup);
        for at in 0..self.own.entries.len() {
            let entry = &mut self.own.entries[at];
            if entry.returned || entry.delivered {
                continue;
            }
            entry.delivered = true;
            // Never sent, so there is no echo to wait for.
            entry.returned |= entry.answer.is_some_and(|answer| answer == Outcome::LocalOnly);
            let (room, source) = (entry.room.clone(), entry.source);
            let (payload, except) = (entry.payload.clone(), entry.except);
            let payload = envelope::unwrap(setup.routes.deliver(source), plain_name(&room), &payload);
            self.metrics().publishes_local.add(1);
            self.place(&room, &payload, except, outlet, now);
        }
        self.settle(outlet);
    }

    /// Answers and forgets, from the oldest on, what has both returned (or been delivered) and been answered by Redis.
    pub(super) fn settle(&mut self, outlet: &mut impl Outlet) {
        while let Some(entry) = self.own.entries.front_mut() {
            if let Some(answer) = entry.answer
                && (entry.returned || entry.delivered)
                && let Some(to) = entry.answer_to.take()
            {
                self.offer(to.shard, Down::Published { to, outcome: answer }, outlet);
                continue;
            }
            if !(entry.returned && entry.answer.is_some()) {
                return;
            }
            if let Some(entry) = self.own.entries.pop_front() {
                self.own.bytes -= entry.payload.len() + entry.channel.len();
                self.own.first_token += 1;
            }
        }
    }
}

/// Why Redis did not take a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishFailure {
    /// The connection broke before it was written.
    Unsent,
    /// The connection broke after it was written and before it was answered.
    Unknown,
    /// Redis answered with an error.
    Refused,
    /// Too much is on its way already.
    Busy,
}
