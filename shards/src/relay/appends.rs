//! Own publications of rooms that are fed by streams: appended, and then an entry of the stream like anybody's.
//!
//! Nobody gets one before it is in the stream, so it has one number on all nodes and is never had twice. While Redis is away
//! none is taken. Which entry is an own one is known by stream and payload, for the sake of the sender that is left out of it:
//! Redis has what one connection appends in order, so it is one of the first that have not returned.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::streamed::OwnEntry;
use super::{BrokerCommand, Outlet, PublishFailure, Relay};
use crate::command::{ConnectionId, Label, Outcome};
use crate::limits::{APPEND_RETURN_MAX, PUBLISH_INFLIGHT_BYTES_MAX, PUBLISH_INFLIGHT_MAX};
use crate::metrics::{AppendFate, RefuseReason};
use crate::redis::{EntryId, Trim};
use crate::shard::Micros;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Appends {
    /// Oldest first; tokens are consecutive.
    entries: VecDeque<Append>,
    first_token: u64,
    bytes: usize,
}

/// One on its way.
#[derive(Debug)]
pub(super) struct Append {
    pub stream: Box<[u8]>,
    pub payload: Bytes,
    pub trim: Trim,
    pub label: Option<Arc<Label>>,
    pub except: Option<ConnectionId>,
    pub answer_to: Option<ConnectionId>,
    pub arrived: Micros,
    is_answered: bool,
    has_returned: bool,
    was_sent_again: bool,
}

/// Entries that are looked through for one that has returned.
const SEARCH_MAX: usize = 64;

impl Append {
    pub(super) fn new(
        stream: &[u8],
        payload: Bytes,
        trim: Trim,
        answer_to: Option<ConnectionId>,
        arrived: Micros,
    ) -> Self {
        Self {
            stream: stream.into(),
            payload,
            trim,
            label: None,
            except: None,
            answer_to,
            arrived,
            is_answered: false,
            has_returned: false,
            was_sent_again: false,
        }
    }

    fn bytes(&self) -> usize {
        self.stream.len() + self.payload.len()
    }

    fn command(&self, token: u64) -> BrokerCommand {
        let (stream, payload) = (self.stream.clone(), self.payload.clone());
        BrokerCommand::Append { token, stream, payload, trim: self.trim }
    }
}

impl Appends {
    /// An entry of a stream: what is known of it where it is an own one.
    pub(super) fn returned(&mut self, stream: &[u8], payload: &[u8]) -> Option<OwnEntry> {
        let waiting = self.entries.iter().enumerate().filter(|(_, append)| !append.has_returned);
        let found = waiting.take(SEARCH_MAX).find(|(_, a)| *a.stream == *stream && a.payload == payload);
        let (index, append) = found?;
        let own = OwnEntry { label: append.label.clone(), except: append.except };
        // Those before it in the same stream have returned unrecognised, or never were appended.
        let earlier = self.entries.iter_mut().take(index + 1).filter(|append| *append.stream == *stream);
        earlier.for_each(|append| append.has_returned = true);
        self.forget_settled();
        Some(own)
    }

    /// Publications that are on their way.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.entries.len()
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= PUBLISH_INFLIGHT_MAX || self.bytes >= PUBLISH_INFLIGHT_BYTES_MAX
    }

    /// Waits no longer for entries that should have come.
    pub(super) fn forget_late(&mut self, now: Micros) {
        let oldest = now.0.saturating_sub(APPEND_RETURN_MAX.as_micros() as u64);
        let late = self.entries.iter_mut().take_while(|append| append.arrived.0 < oldest);
        late.for_each(|append| append.has_returned |= append.is_answered);
        self.forget_settled();
    }

    fn forget_settled(&mut self) {
        while let Some(append) = self.entries.pop_front_if(|a| a.is_answered && a.has_returned) {
            self.bytes -= append.bytes();
            self.first_token += 1;
        }
    }
}

impl Relay {
    /// A client publishes to a room that a stream feeds.
    pub(super) fn append(&mut self, server: usize, append: Append, outlet: &mut impl Outlet) {
        let answer_to = append.answer_to;
        let streamed = &mut self.servers[server].streamed;
        let refused = match () {
            () if !streamed.is_up() => Some((RefuseReason::BrokerAway, Outcome::Away)),
            () if streamed.appends.is_full() => Some((RefuseReason::BrokerBacklog, Outcome::Busy)),
            () => None,
        };
        if let Some((reason, outcome)) = refused {
            self.metrics().refused.add(reason, 1);
            self.metrics().appends.add(AppendFate::Refused, 1);
            return self.answer_publish(answer_to, outcome, outlet);
        }
        let appends = &mut self.servers[server].streamed.appends;
        let token = appends.first_token + appends.entries.len() as u64;
        self.broker.push_back((server, append.command(token)));
        appends.bytes += append.bytes();
        appends.entries.push_back(append);
        self.metrics().publishes_sent.of(server).add(1);
    }

    /// Answer to [`BrokerCommand::Append`].
    pub fn appended(
        &mut self,
        server: usize,
        token: u64,
        result: Result<EntryId, PublishFailure>,
        outlet: &mut impl Outlet,
    ) {
        let appends = &self.servers[server].streamed.appends;
        let index = token.checked_sub(appends.first_token).map(|index| index as usize);
        let Some(append) = index.and_then(|index| appends.entries.get(index)) else { return };
        // Of what is in no stream, or has nobody to be left out of it, nothing is waited for; nor where no entries come.
        let is_of_interest = append.except.is_some() || append.label.is_some();
        let is_awaited = is_of_interest && self.is_followed(server, &append.stream);
        let streamed = &mut self.servers[server].streamed;
        let is_up = streamed.is_up();
        let appends = &mut streamed.appends;
        let Some(append) = index.and_then(|index| appends.entries.get_mut(index)) else { return };
        if result == Err(PublishFailure::Unsent) && is_up && !append.was_sent_again {
            // Redis had been told to forget the script, and knows it again.
            append.was_sent_again = true;
            return self.broker.push_back((server, append.command(token)));
        }
        let refused = |reason| (Some(reason), AppendFate::Refused);
        let (outcome, (reason, fate)) = match result {
            Ok(id) => (Outcome::Appended(id), (None, AppendFate::Appended)),
            Err(PublishFailure::Unknown) => (Outcome::Unknown, (None, AppendFate::Unknown)),
            Err(PublishFailure::Unsent) => (Outcome::Away, refused(RefuseReason::BrokerAway)),
            Err(PublishFailure::Refused) => (Outcome::Refused, refused(RefuseReason::BrokerError)),
            Err(PublishFailure::Busy) => (Outcome::Busy, refused(RefuseReason::BrokerBacklog)),
            Err(PublishFailure::TooBig) => (Outcome::TooBig, refused(RefuseReason::TooBig)),
        };
        append.is_answered = true;
        append.has_returned |= !is_awaited || fate == AppendFate::Refused;
        let answer_to = append.answer_to.take();
        appends.forget_settled();
        let metrics = self.metrics();
        metrics.appends.add(fate, 1);
        if let Some(reason) = reason {
            metrics.refused.add(reason, 1);
        }
        self.answer_publish(answer_to, outcome, outlet);
    }
}
