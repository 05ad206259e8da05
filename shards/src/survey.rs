//! Who is connected: the question behind `/admin/stats`, asked of all shards in parts and put together by the relay.
//!
//! No shard stops for it: a [`Part`] is what a bounded number of connections came to, the relay asks for the next one when
//! it has merged the last, and nothing is remembered on the shard in between. So the answer is not of one moment: who came
//! or went meanwhile may be missing or still in it.
//!
//! Parts carry hashes, not names. Which rooms and users are the busiest is known at the end, and only their names are
//! asked for then: 100,000 names would be copied for the 100 that are read.

mod page;
mod sums;

use std::sync::Arc;

pub use page::page;
pub use sums::{Sum, Sums};

use crate::limits::{SURVEY_LIST_DEFAULT, SURVEY_LIST_MAX};

/// What somebody wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Only connections of this user.
    pub user: Option<Box<str>>,
    /// Only connections in a room of this plain name, in whatever space.
    pub room: Option<Box<str>>,
    /// Rooms and users that are listed, the busiest of them, at most [`SURVEY_LIST_MAX`] of each.
    pub list_max: usize,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { user: None, room: None, list_max: SURVEY_LIST_DEFAULT }
    }
}

impl Wanted {
    /// Takes `?limit=`: how many rooms and users are listed.
    ///
    /// # Errors
    /// The sentence of a 400.
    pub fn list(mut self, limit: &str) -> Result<Self, String> {
        self.list_max = limit
            .parse()
            .ok()
            .filter(|list_max| (1..=SURVEY_LIST_MAX).contains(list_max))
            .ok_or_else(|| format!("found limit={limit:?}, due a number from 1 to {SURVEY_LIST_MAX}"))?;
        Ok(self)
    }
}

/// Where a room or a connection lies; the generation tells the tenants of an index apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Whose it is.
    pub shard: u16,
    /// Tenancy of the index.
    pub generation: u16,
    /// Index among the shard's rooms or connections.
    pub index: u32,
}

/// One connection of one user, or in one room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Of the name, under the question's seed: 64 bits, so that two of a million names are one with a chance of 1 in 37
    /// million.
    pub hash: u64,
    /// Where the name can be had: the room, or a connection of the user.
    pub place: Place,
    /// Its socket takes no more for now.
    pub stalled: bool,
    /// Bytes of publications that it is owed (there, or in all its rooms).
    pub bytes_behind: u64,
}

/// Upper ends of the classes of ages, in seconds, with their names; the last class is open.
pub const AGES: [(u64, &str); 4] =
    [(60, "under_1m"), (600, "under_10m"), (3_600, "under_1h"), (86_400, "under_1d")];

/// What can be added up without names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Totals {
    /// Open WebSockets.
    pub connections: u64,
    /// Of these, sockets that take no more for now.
    pub stalled: u64,
    /// Age of the oldest, in seconds.
    pub oldest_seconds: u64,
    /// Connections by age: the classes of [`AGES`] and the open one.
    pub ages: [u64; AGES.len() + 1],
    /// Connections by index of their route.
    pub by_route: Vec<u64>,
}

impl Totals {
    /// Counts one connection.
    pub fn count(&mut self, route: usize, age_seconds: u64, stalled: bool) {
        self.connections += 1;
        self.stalled += u64::from(stalled);
        self.oldest_seconds = self.oldest_seconds.max(age_seconds);
        let class = AGES.iter().position(|(end, _)| age_seconds < *end).unwrap_or(AGES.len());
        self.ages[class] += 1;
        if self.by_route.len() <= route {
            self.by_route.resize(route + 1, 0);
        }
        self.by_route[route] += 1;
    }

    /// Adds another part's.
    pub fn add(&mut self, other: &Totals) {
        self.connections += other.connections;
        self.stalled += other.stalled;
        self.oldest_seconds = self.oldest_seconds.max(other.oldest_seconds);
        for (sum, n) in self.ages.iter_mut().zip(&other.ages) {
            *sum += n;
        }
        if self.by_route.len() < other.by_route.len() {
            self.by_route.resize(other.by_route.len(), 0);
        }
        for (sum, n) in self.by_route.iter_mut().zip(&other.by_route) {
            *sum += n;
        }
    }
}

/// What some of a shard's connections come to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Part {
    /// Where the next part begins; `None` when this was the last of the shard.
    pub next: Option<u32>,
    /// Of these connections.
    pub totals: Totals,
    /// One for each membership in a room.
    pub rooms: Vec<Row>,
    /// One for each connection that has a user.
    pub users: Vec<Row>,
}

/// Of what a name is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A room: its full name.
    Room,
    /// A connection's user.
    User,
}

/// A room or user with its sums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Full name of the room, name of the user.
    pub name: Arc<str>,
    /// See [`Sum`].
    pub sum: Sum,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// What was asked.
    pub wanted: Arc<Wanted>,
    /// Over all shards.
    pub totals: Totals,
    /// Different names of users.
    pub users: u64,
    /// Rooms with members.
    pub rooms: u64,
    /// False where there were more names than the relay remembers: then `users` or `rooms` is the least it can be.
    pub is_complete: bool,
    /// The busiest first. One that is gone when its name is asked for is left out.
    pub busiest_users: Vec<Listed>,
    /// The busiest first.
    pub busiest_rooms: Vec<Listed>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_within_the_bound() {
        assert_eq!(Wanted::default().list("1000").unwrap().list_max, 1000);
        for wrong in ["0", "1001", "-1", "ten", "", "1e2"] {
            assert_eq!(
                Wanted::default().list(wrong),
                Err(format!("found limit={wrong:?}, due a number from 1 to 1000"))
            );
        }
    }

    #[test]
    fn totals_add_up_whatever_routes_they_have_seen() {
        let (mut ours, mut theirs) = (Totals::default(), Totals::default());
        ours.count(0, 59, false);
        theirs.count(2, 60, true);
        theirs.count(0, 86_400, false);
        ours.add(&theirs);
        let ages = [1, 1, 0, 0, 1];
        let totals =
            Totals { connections: 3, stalled: 1, oldest_seconds: 86_400, ages, by_route: vec![2, 0, 1] };
        assert_eq!(ours, totals);
    }
}
