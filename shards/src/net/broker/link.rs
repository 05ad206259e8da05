//! What the relay holds: the link to one server, or to a cluster of them.

use std::rc::Rc;

use super::cluster::Cluster;
use super::streams::StreamLink;
use super::{BrokerCounters, OneLink};
use crate::redis::{Append, HistoryError, Position, Refused};

/// The relay's hold on the link to Redis. Clones are the same link; it ends with [`shutdown`](Self::shutdown).
#[derive(Clone)]
pub struct BrokerLink(Way);

#[derive(Clone)]
enum Way {
    One(OneLink),
    Cluster(Rc<Cluster>),
}

impl BrokerLink {
    pub(super) fn one(link: OneLink) -> Self {
        Self(Way::One(link))
    }

    pub(super) fn cluster(cluster: Rc<Cluster>) -> Self {
        Self(Way::Cluster(cluster))
    }

    /// Wants an exact channel, for as long as the link lives. True if it is confirmed already; otherwise
    /// [`confirmed`](super::BrokerEvents::confirmed) or [`refused`](super::BrokerEvents::refused) follows as soon as Redis
    /// answers. In a cluster that is up whose node for it isn't, [`lapsed`](super::BrokerEvents::lapsed) comes first.
    pub fn subscribe(&self, channel: &[u8]) -> bool {
        match &self.0 {
            Way::One(link) => link.subscribe(channel),
            Way::Cluster(cluster) => cluster.subscribe(channel),
        }
    }

    /// Doesn't want an exact channel any more.
    pub fn unsubscribe(&self, channel: &[u8]) {
        match &self.0 {
            Way::One(link) => link.unsubscribe(channel),
            Way::Cluster(cluster) => cluster.unsubscribe(channel),
        }
    }

    /// Publishes. Many publications of one turn leave in one write. `token` is answered by
    /// [`published`](super::BrokerEvents::published).
    ///
    /// # Errors
    /// [`Refused`]; then there is no answer.
    pub fn publish(&self, channel: &[u8], payload: &[u8], token: u64) -> Result<(), Refused> {
        match &self.0 {
            Way::One(link) => link.publish(channel, payload, token),
            Way::Cluster(cluster) => cluster.publish(channel, payload, token),
        }
    }

    /// Writes a value that lives for `ttl_millis`; [`kept`](super::BrokerEvents::kept) answers. No source of a cluster keeps
    /// values.
    ///
    /// # Errors
    /// [`Refused::Down`]; then there is no answer.
    pub fn keep(&self, key: &str, value: &[u8], ttl_millis: u64) -> Result<(), Refused> {
        match &self.0 {
            Way::One(link) => link.keep(key, value, ttl_millis),
            Way::Cluster(_) => Err(Refused::Down),
        }
    }

    /// Asks for a value; [`fetched`](super::BrokerEvents::fetched) answers. No source of a cluster keeps values.
    ///
    /// # Errors
    /// [`Refused::Down`]; then there is no answer.
    pub fn fetch(&self, key: &str) -> Result<(), Refused> {
        match &self.0 {
            Way::One(link) => link.fetch(key),
            Way::Cluster(_) => Err(Refused::Down),
        }
    }

    /// Follows a stream for as long as the link lives; [`stream`](super::BrokerEvents::stream) tells of it. Where it is followed
    /// already: where it has come.
    pub fn follow(&self, stream: &[u8]) -> Option<Position> {
        self.streams()?.follow(stream)
    }

    /// Follows it no more.
    pub fn unfollow(&self, stream: &[u8]) {
        if let Some(streams) = self.streams() {
            streams.unfollow(stream);
        }
    }

    /// Reads a stream back to behind the entry with the number `after`; [`stream`](super::BrokerEvents::stream) answers.
    ///
    /// # Errors
    /// [`HistoryError`]; then there is no answer.
    pub fn recall(&self, token: u64, stream: &[u8], after: u64) -> Result<(), HistoryError> {
        self.streams().ok_or(HistoryError::Away)?.recall(token, stream, after)
    }

    /// Appends to a stream; [`stream`](super::BrokerEvents::stream) answers.
    ///
    /// # Errors
    /// [`Refused`]; then there is no answer.
    pub fn append(&self, append: &Append<'_>, token: u64) -> Result<(), Refused> {
        self.streams().ok_or(Refused::Down)?.append(append, token)
    }

    fn streams(&self) -> Option<&StreamLink> {
        match &self.0 {
            Way::One(link) => link.streams(),
            Way::Cluster(_) => None,
        }
    }

    /// Whether fixed sources are subscribed and publishing is possible; of a cluster, at one node at least.
    pub fn is_up(&self) -> bool {
        match &self.0 {
            Way::One(link) => link.is_up(),
            Way::Cluster(cluster) => cluster.is_up(),
        }
    }

    /// Why the link was last down, in a sentence for the operator; empty before the first failure.
    pub fn last_reason(&self) -> String {
        match &self.0 {
            Way::One(link) => link.last_reason(),
            Way::Cluster(cluster) => cluster.last_reason(),
        }
    }

    /// Publications whose answer is due. A drain waits until there are none.
    pub fn publishes_inflight(&self) -> usize {
        match &self.0 {
            Way::One(link) => link.publishes_inflight(),
            Way::Cluster(cluster) => cluster.publishes_inflight(),
        }
    }

    /// What was counted so far.
    pub fn counters(&self) -> BrokerCounters {
        match &self.0 {
            Way::One(link) => link.counters(),
            Way::Cluster(cluster) => cluster.counters(),
        }
    }

    /// Ends the link; [`stopped`](Self::stopped) tells when it has. What is under way is answered, not awaited.
    pub fn shutdown(&self) {
        match &self.0 {
            Way::One(link) => link.shutdown(),
            Way::Cluster(cluster) => cluster.shutdown(),
        }
    }

    /// Completes when the link has ended: nothing is told to [`BrokerEvents`](super::BrokerEvents) any more, all tasks are gone.
    pub async fn stopped(&self) {
        match &self.0 {
            Way::One(link) => link.stopped().await,
            Way::Cluster(cluster) => cluster.stopped().await,
        }
    }
}
