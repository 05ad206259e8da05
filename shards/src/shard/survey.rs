//! [Surveys](crate::survey) on a shard: who may ask, the parts (a bounded number of connections each, between two turns), and
//! the page.

use std::borrow::Cow;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::{Connection, Micros, Phase, Shard, Wire};
use crate::command::{ConnectionId, Up};
use crate::request::{Head, HttpError};
use crate::route::plain_name;
use crate::survey::{self, Kind, Part, Place, Row, Survey, Wanted};

impl Shard {
    /// Decides about `GET /admin/stats`: the question, for the relay.
    pub(super) fn judge_survey(&mut self, id: ConnectionId, head: &Head<'_>) -> Result<Up, HttpError> {
        self.admitted(id, head)?;
        let named = |name| Ok(head.query_value(name)?.filter(|value| !value.is_empty()));
        let of = |value: Option<Cow<'_, str>>| value.map(|value| value.into_owned().into_boxed_str());
        let mut wanted =
            Wanted { user: of(named("username")?), room: of(named("room")?), ..Wanted::default() };
        if let Some(limit) = named("limit")? {
            wanted = wanted.list(&limit).map_err(|sentence| HttpError::new(400, sentence))?;
        }
        Ok(Up::Survey { from: id, wanted: Arc::new(wanted) })
    }

    /// Answers whoever asked, if it is still there.
    pub(super) fn answer_survey(
        &mut self,
        id: ConnectionId,
        survey: Option<&Survey>,
        wire: &mut impl Wire,
        now: Micros,
    ) {
        let Some((_, head_only)) = self.answering(id) else { return };
        let uptime_seconds = now.0 / 1_000_000;
        let (status, body) = match survey {
            Some(survey) => (200, survey::page(&self.setup, survey, uptime_seconds)),
            None => (503, "{\"error\":\"too many ask for this at once: try again later\"}\n".to_owned()),
        };
        self.finish_answer(id, status, &body, head_only, wire, now);
    }

    /// Answers [`Down::Survey`](crate::command::Down::Survey).
    pub(super) fn survey(&mut self, question: u64, wanted: &Wanted, seed: u64, from: u32, now: Micros) {
        let part = Box::new(self.part(wanted, seed, from, now));
        self.up.push_back(Up::Surveyed { question, part });
    }

    fn part(&self, wanted: &Wanted, seed: u64, from: u32, now: Micros) -> Part {
        let hasher = FixedState::with_seed(seed);
        let span = self.connections.span();
        let mut part = Part::default();
        let (mut slot, mut units) = (from, 0);
        while slot < span && units < self.setup.engine.survey_units_max {
            units += 1;
            if let Some(connection) = self.connections.at(slot).filter(|c| c.phase == Phase::Open) {
                units += connection.subscriptions.len();
                if self.is_wanted(connection, wanted) {
                    self.count(&mut part, slot, connection, &hasher, now);
                }
            }
            slot += 1;
        }
        part.next = (slot < span).then_some(slot);
        part
    }

    fn is_wanted(&self, connection: &Connection, wanted: &Wanted) -> bool {
        let is_of_user = wanted.user.as_deref().is_none_or(|user| connection.user.as_deref() == Some(user));
        let is_in = |room: &str| {
            let rooms = connection.subscriptions.iter().filter_map(|s| self.rooms.at(s.room));
            rooms.map(|found| plain_name(&found.name)).any(|found| found == room)
        };
        is_of_user && wanted.room.as_deref().is_none_or(is_in)
    }

    fn count(&self, part: &mut Part, slot: u32, connection: &Connection, hasher: &FixedState, now: Micros) {
        let stalled = connection.stalled.is_some();
        let age = u64::from(now.ticks().saturating_sub(connection.opened)) * super::TICK_MICROS / 1_000_000;
        part.totals.count(usize::from(connection.route), age, stalled);
        let mut bytes_behind = 0;
        for subscription in &connection.subscriptions {
            let generation = self.rooms.generation(subscription.room);
            let Some((room, generation)) = self.rooms.at(subscription.room).zip(generation) else { continue };
            let cursor = room.members.get(subscription.member as usize).map_or(room.head, |m| m.cursor);
            let behind = if stalled { room.bytes_from(cursor, connection.dialect) } else { 0 };
            bytes_behind += behind;
            part.rooms.push(Row {
                hash: hasher.hash_one(&*room.name),
                place: Place { shard: self.index, generation, index: subscription.room },
                stalled,
                bytes_behind: behind,
            });
        }
        let generation = self.connections.generation(slot);
        if let Some((user, generation)) = connection.user.as_deref().zip(generation) {
            let place = Place { shard: self.index, generation, index: slot };
            part.users.push(Row { hash: hasher.hash_one(user), place, stalled, bytes_behind });
        }
    }

    /// Answers [`Down::Name`](crate::command::Down::Name): names in the order of their places, `None` for what is gone.
    pub(super) fn name(&mut self, question: u64, places: &[(Kind, Place)]) {
        let name = |(kind, place): &(Kind, Place)| -> Option<Arc<str>> {
            let (index, generation) = (place.index, place.generation);
            match kind {
                Kind::Room if self.rooms.holds(index, generation) => {
                    self.rooms.at(index).map(|room| room.name.clone())
                }
                Kind::User if self.connections.holds(index, generation) => {
                    self.connections.at(index).and_then(|c| c.user.as_deref()).map(Arc::from)
                }
                _ => None,
            }
        };
        let names = places.iter().map(name).collect();
        self.up.push_back(Up::Named { question, names });
    }
}
