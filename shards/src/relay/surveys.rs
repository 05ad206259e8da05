//! How the relay conducts [surveys](crate::survey): one after the other, each part of a shard asked for when the last has
//! been merged, names at the end.

use std::collections::VecDeque;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use super::{Outlet, Relay};
use crate::command::{ConnectionId, Down};
use crate::limits::SURVEYS_WAITING_MAX;
use crate::metrics::ShardMetrics;
use crate::survey::{Kind, Listed, Part, Place, Sum, Sums, Survey, Totals, Wanted};

/// Surveys under way and to come.
#[derive(Debug, Default)]
pub(super) struct Surveys {
    current: Option<Current>,
    waiting: VecDeque<(ConnectionId, Arc<Wanted>)>,
    /// Surveys so far; the number of the last.
    begun: u64,
}

/// The one under way.
#[derive(Debug)]
struct Current {
    number: u64,
    seed: u64,
    asker: ConnectionId,
    wanted: Arc<Wanted>,
    /// Shards whose last part, or whose names, are still to come.
    missing: u16,
    totals: Totals,
    rooms: Sums,
    users: Sums,
    /// The busiest, once all parts are there.
    chosen: Vec<Chosen>,
}

/// A room or user that will be listed.
#[derive(Debug)]
struct Chosen {
    kind: Kind,
    sum: Sum,
    name: Option<Arc<str>>,
}

impl Relay {
    /// Somebody wants a survey. With [`SURVEYS_WAITING_MAX`] before it the answer is that it must come back.
    pub(super) fn survey(&mut self, from: ConnectionId, wanted: Arc<Wanted>, outlet: &mut impl Outlet) {
        if self.surveys.waiting.len() >= SURVEYS_WAITING_MAX {
            return self.offer(from.shard, Down::Surveyed { to: from, survey: None }, outlet);
        }
        self.surveys.waiting.push_back((from, wanted));
        if self.surveys.current.is_none() {
            self.next_survey(outlet);
        }
    }

    fn next_survey(&mut self, outlet: &mut impl Outlet) {
        let Some((asker, wanted)) = self.surveys.waiting.pop_front() else { return };
        self.surveys.begun += 1;
        let number = self.surveys.begun;
        // Nobody outside can find two names of one hash.
        let seed = foldhash::fast::FixedState::with_seed(self.secret).hash_one(number);
        let names_of = |field: fn(&ShardMetrics) -> u64| self.setup.metrics.sum(field) as usize;
        let rooms = Sums::with_capacity(names_of(|shard| shard.rooms.value()));
        let users = Sums::with_capacity(names_of(|shard| shard.websockets.value()));
        self.surveys.current = Some(Current {
            number,
            seed,
            asker,
            wanted: wanted.clone(),
            missing: self.shards,
            totals: Totals::default(),
            rooms,
            users,
            chosen: Vec::new(),
        });
        for shard in 0..self.shards {
            let wanted = wanted.clone();
            self.offer(shard, Down::Survey { question: number, wanted, seed, from: 0 }, outlet);
        }
    }

    /// A shard's part.
    pub(super) fn surveyed(&mut self, shard: u16, question: u64, part: &Part, outlet: &mut impl Outlet) {
        let Some(current) = self.surveys.current.as_mut().filter(|current| current.number == question) else {
            return;
        };
        current.totals.add(&part.totals);
        current.rooms.add(&part.rooms);
        current.users.add(&part.users);
        if let Some(from) = part.next {
            let (wanted, seed) = (current.wanted.clone(), current.seed);
            return self.offer(shard, Down::Survey { question, wanted, seed, from }, outlet);
        }
        current.missing -= 1;
        if current.missing == 0 {
            self.ask_for_names(Kind::Room, outlet);
        }
    }

    /// Chooses the busiest and asks what they are called. Rooms and users one after the other: to choose from 100,000 takes
    /// 1 ms.
    fn ask_for_names(&mut self, kind: Kind, outlet: &mut impl Outlet) {
        let Some(current) = &mut self.surveys.current else { return };
        let (list_max, number) = (current.wanted.list_max, current.number);
        let sums = match kind {
            Kind::Room => &current.rooms,
            Kind::User => &current.users,
        };
        let mut questions: Vec<Vec<(Kind, Place)>> = vec![Vec::new(); usize::from(self.shards)];
        for sum in sums.busiest(list_max) {
            questions[usize::from(sum.place.shard)].push((kind, sum.place));
            current.chosen.push(Chosen { kind, sum, name: None });
        }
        current.missing = questions.iter().filter(|places| !places.is_empty()).count() as u16;
        if current.missing == 0 {
            return self.names_are_there(kind, outlet);
        }
        for (shard, places) in questions.into_iter().enumerate().filter(|(_, places)| !places.is_empty()) {
            self.offer(shard as u16, Down::Name { question: number, places: places.into() }, outlet);
        }
    }

    fn names_are_there(&mut self, kind: Kind, outlet: &mut impl Outlet) {
        match kind {
            Kind::Room => self.ask_for_names(Kind::User, outlet),
            Kind::User => self.finish_survey(outlet),
        }
    }

    /// A shard's names, in the order in which it was asked.
    pub(super) fn named(
        &mut self,
        shard: u16,
        question: u64,
        names: &[Option<Arc<str>>],
        outlet: &mut impl Outlet,
    ) {
        let Some(current) = self.surveys.current.as_mut().filter(|current| current.number == question) else {
            return;
        };
        // Users are chosen when all rooms have their names: what was chosen last is what is asked for.
        let Some(kind) = current.chosen.last().map(|last| last.kind) else { return };
        let asked = |chosen: &&mut Chosen| chosen.kind == kind && chosen.sum.place.shard == shard;
        for (chosen, name) in current.chosen.iter_mut().filter(asked).zip(names) {
            chosen.name.clone_from(name);
        }
        current.missing -= 1;
        if current.missing == 0 {
            self.names_are_there(kind, outlet);
        }
    }

    fn finish_survey(&mut self, outlet: &mut impl Outlet) {
        let Some(current) = self.surveys.current.take() else { return };
        let (mut busiest_users, mut busiest_rooms) = (Vec::new(), Vec::new());
        for Chosen { kind, sum, name } in current.chosen {
            let Some(name) = name else { continue };
            match kind {
                Kind::User => busiest_users.push(Listed { name, sum }),
                Kind::Room => busiest_rooms.push(Listed { name, sum }),
            }
        }
        let survey = Box::new(Survey {
            wanted: current.wanted,
            totals: current.totals,
            users: current.users.len() as u64,
            rooms: current.rooms.len() as u64,
            is_complete: current.users.is_complete() && current.rooms.is_complete(),
            busiest_users,
            busiest_rooms,
        });
        let to = current.asker;
        self.offer(to.shard, Down::Surveyed { to, survey: Some(survey) }, outlet);
        self.next_survey(outlet);
    }
}
