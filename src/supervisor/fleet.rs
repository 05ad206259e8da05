//! Which processes run, which are to be started, and which are to leave: the supervisor as a state machine. It knows no
//! process, signal or clock; time and what happened are arguments, and what is to be done is the answer.
//!
//! A place has one process that serves, and for the time of a rolling restart its successor beside it and then its
//! predecessor, which leaves: all of them hold the same sockets.

mod step;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::backoff::Backoff;
pub use step::{Generation, News, Step};

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From the start of a process until it serves.
    pub start: Duration,
    /// From its order to leave until it is gone.
    pub leave: Duration,
    /// From its order to end at once until it is killed.
    pub stop: Duration,
    /// For so long a successor serves before the next place has its turn.
    pub settle: Duration,
    /// Between two signs of life of one that serves; `None`: for ever.
    pub silence: Option<Duration>,
}

/// One process.
#[derive(Debug)]
struct Member {
    generation: Generation,
    started: Instant,
    ready: Option<Instant>,
    heard: Instant,
}

/// One that leaves.
#[derive(Debug)]
struct Leaver {
    generation: Generation,
    due: Instant,
    is_killed: bool,
}

#[derive(Debug, Default)]
struct Place {
    serving: Option<Member>,
    successor: Option<Member>,
    leaving: Vec<Leaver>,
    backoff: Backoff,
    start_at: Option<Instant>,
    restarts: u64,
    has_served: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serves,
    /// All leave.
    Leaves,
    /// At once.
    Stops,
}

/// See the module.
#[derive(Debug)]
pub struct Fleet {
    places: Vec<Place>,
    patience: Patience,
    /// Places whose process is still to be replaced, the first of them under way.
    roll: VecDeque<usize>,
    /// Processes from this one on were started since the rolling restart began.
    rolled_from: Generation,
    /// Another follows: who was replaced before the word came may be of an older file than the others.
    rolls_again: bool,
    phase: Phase,
    next: Generation,
}

impl Fleet {
    /// One of `places` places, none with a process yet: [`tick`](Self::tick) starts them.
    pub fn new(places: usize, patience: Patience, now: Instant) -> Self {
        let place = || Place { start_at: Some(now), ..Place::default() };
        let places = (0..places).map(|_| place()).collect();
        let roll = VecDeque::new();
        Self { places, patience, roll, rolled_from: 0, rolls_again: false, phase: Phase::Serves, next: 0 }
    }

    // ---- what happens

    /// `generation` serves.
    pub fn handle_ready(&mut self, generation: Generation, now: Instant) -> Vec<Step> {
        let Some(index) = self.place_of(generation) else { return Vec::new() };
        let leave_due = now + self.patience.leave;
        let place = &mut self.places[index];
        let mut steps = Vec::new();
        let succeeds = place.successor.as_ref().is_some_and(|member| member.generation == generation);
        if succeeds && let Some(old) = std::mem::replace(&mut place.serving, place.successor.take()) {
            place.leaving.push(Leaver { generation: old.generation, due: leave_due, is_killed: false });
            steps.push(Step::Leave { generation: old.generation, for_good: false });
        }
        if let Some(member) = place.serving.as_mut().filter(|member| member.generation == generation) {
            member.ready = Some(now);
            member.heard = now;
            place.has_served = true;
            steps.push(Step::Tell(News::Serves { place: index, generation }));
        }
        steps.extend(self.roll_on(now));
        steps
    }

    /// `generation` says that it is well.
    pub fn handle_alive(&mut self, generation: Generation, now: Instant) {
        let members = self.places.iter_mut().flat_map(|place| [&mut place.serving, &mut place.successor]);
        for member in members.flatten().filter(|member| member.generation == generation) {
            member.heard = now;
        }
    }

    /// `generation` leaves and takes `takes` at most, by its own configuration, which may be newer than the parent's. Where
    /// somebody told it to beside its parent, its queue is not to wait until it is gone.
    pub fn handle_leaving(&mut self, generation: Generation, takes: Duration, now: Instant) -> Vec<Step> {
        let Some(index) = self.place_of(generation) else { return Vec::new() };
        let due = now + takes.max(self.patience.leave);
        let place = &mut self.places[index];
        if let Some(leaver) = place.leaving.iter_mut().find(|leaver| leaver.generation == generation) {
            if self.phase != Phase::Stops {
                leaver.due = leaver.due.max(due);
            }
        } else if let Some(member) = place.serving.take_if(|member| member.generation == generation) {
            place.leaving.push(Leaver { generation: member.generation, due, is_killed: false });
            // Otherwise its successor is on the way.
            if place.successor.is_none() {
                place.start_at = Some(now);
            }
        }
        self.tick(now)
    }

    /// `generation` is gone. `jitter` is for the wait before its next start, from 0 up to 1.
    pub fn handle_gone(&mut self, generation: Generation, now: Instant, jitter: f64) -> Vec<Step> {
        let Some(index) = self.place_of(generation) else { return Vec::new() };
        let place = &mut self.places[index];
        let is = |member: &Option<Member>| member.as_ref().is_some_and(|m| m.generation == generation);
        let mut steps = Vec::new();
        if is(&place.successor) {
            place.successor = None;
            steps.extend(self.fail_successor(index, generation, now, jitter));
        } else if is(&place.serving) {
            let dead = place.serving.take();
            if self.phase == Phase::Serves && place.successor.is_none() {
                let served = dead.and_then(|member| member.ready).map_or(Duration::ZERO, |ready| now - ready);
                steps.extend(self.restart(index, generation, served, now, jitter));
                // What replaces the others would be the same.
                if self.is_rolling() && generation >= self.rolled_from {
                    steps.extend(self.break_roll(index, now));
                }
            }
        } else {
            place.leaving.retain(|leaver| leaver.generation != generation);
            steps.push(Step::Tell(News::Left { place: index, generation }));
        }
        // Whoever ends as it was told closes them itself; one that died meanwhile did not.
        if self.phase != Phase::Serves && self.places[index].leaving.is_empty() {
            steps.push(Step::Close { place: index });
        }
        steps.extend(self.tick(now));
        steps
    }

    /// Everybody is to be replaced, one after the other. While that is under way, once more after it.
    pub fn roll(&mut self, now: Instant) -> Vec<Step> {
        if self.phase != Phase::Serves {
            return Vec::new();
        }
        if !self.roll.is_empty() {
            self.rolls_again = true;
            return vec![Step::Tell(News::RollsAgain)];
        }
        self.roll = (0..self.places.len()).collect();
        self.rolled_from = self.next;
        let mut steps = vec![Step::Tell(News::RollBegins)];
        steps.extend(self.start_successor(now));
        steps
    }

    /// All leave; the second time at once.
    pub fn end(&mut self, now: Instant) -> Vec<Step> {
        self.roll.clear();
        self.rolls_again = false;
        let stops = self.phase != Phase::Serves;
        self.phase = if stops { Phase::Stops } else { Phase::Leaves };
        let (leave_due, stop_due) = (now + self.patience.leave, now + self.patience.stop);
        let mut steps = Vec::new();
        for (index, place) in self.places.iter_mut().enumerate() {
            place.start_at = None;
            let members = place.serving.take().into_iter().chain(place.successor.take());
            let leaver =
                |member: Member| Leaver { generation: member.generation, due: leave_due, is_killed: false };
            place.leaving.extend(members.map(leaver));
            for leaver in &mut place.leaving {
                let generation = leaver.generation;
                steps.push(if stops {
                    leaver.due = leaver.due.min(stop_due);
                    Step::Stop { generation }
                } else {
                    Step::Leave { generation, for_good: true }
                });
            }
            if place.leaving.is_empty() {
                steps.push(Step::Close { place: index });
            }
        }
        steps
    }

    /// What is due by `now`.
    pub fn tick(&mut self, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        let patience = self.patience;
        for (index, place) in self.places.iter_mut().enumerate() {
            if place.start_at.is_some_and(|due| due <= now) {
                place.start_at = None;
                let generation = take_next(&mut self.next);
                place.serving = Some(Member { generation, started: now, ready: None, heard: now });
                steps.push(Step::Start { place: index, generation });
            }
            let hanging = place.serving.as_mut().filter(|member| member.is_silent(now, patience));
            if let Some(member) = hanging {
                let generation = member.generation;
                // It is gone soon; until then it is not told again.
                member.heard = now;
                member.started = now;
                steps.extend([
                    Step::Tell(News::Hangs { place: index, generation }),
                    Step::Kill { generation },
                ]);
            }
            for leaver in place.leaving.iter_mut().filter(|leaver| leaver.due <= now && !leaver.is_killed) {
                leaver.is_killed = true;
                let generation = leaver.generation;
                steps.extend([
                    Step::Tell(News::Overdue { place: index, generation }),
                    Step::Kill { generation },
                ]);
            }
        }
        let late = self.roll.front().copied().filter(|index| {
            let successor = self.places[*index].successor.as_ref();
            successor.is_some_and(|member| member.is_silent(now, patience))
        });
        if let Some(index) = late
            && let Some(Member { generation, .. }) = self.places[index].successor.take()
        {
            self.places[index].leaving.push(Leaver { generation, due: now, is_killed: true });
            steps.push(Step::Kill { generation });
            steps.extend(self.fail_successor(index, generation, now, 0.0));
        }
        steps.extend(self.roll_on(now));
        steps
    }

    // ---- what is asked

    /// When [`tick`](Self::tick) has something to do next, if nothing happens before.
    pub fn next_due(&self) -> Option<Instant> {
        let of_place = |place: &Place| {
            let members = [&place.serving, &place.successor].into_iter().flatten();
            let members = members.filter_map(|member| member.silent_at(self.patience));
            let leavers = place.leaving.iter().filter(|leaver| !leaver.is_killed).map(|leaver| leaver.due);
            members.chain(leavers).chain(place.start_at).min()
        };
        self.places.iter().filter_map(of_place).chain(self.settled_at()).min()
    }

    /// Whether all have left.
    pub fn has_ended(&self) -> bool {
        let is_empty = |place: &Place| place.serving.is_none() && place.leaving.is_empty();
        self.phase != Phase::Serves && self.places.iter().all(is_empty)
    }

    /// Whether each place has had a process that served.
    pub fn has_served(&self) -> bool {
        self.places.iter().all(|place| place.has_served)
    }

    /// Whether no process of this place has ever served.
    pub fn never_served(&self, place: usize) -> bool {
        !self.places[place].has_served
    }

    /// Whether it leaves.
    pub fn is_leaving(&self) -> bool {
        self.phase != Phase::Serves
    }

    /// When the last of those that leave for good is killed, if it isn't gone before.
    pub fn leave_due(&self) -> Option<Instant> {
        let leavers = self.places.iter().flat_map(|place| &place.leaving);
        leavers.map(|leaver| leaver.due).max().filter(|_| self.phase == Phase::Leaves)
    }

    /// Whether a rolling restart is under way.
    pub fn is_rolling(&self) -> bool {
        !self.roll.is_empty()
    }

    /// The process that serves at a place.
    pub fn serving(&self, place: usize) -> Option<Generation> {
        self.places[place].serving.as_ref().filter(|member| member.ready.is_some()).map(|m| m.generation)
    }

    /// Processes that leave a place.
    pub fn leaving(&self, place: usize) -> impl Iterator<Item = Generation> {
        self.places[place].leaving.iter().map(|leaver| leaver.generation)
    }

    /// Starts of a place beyond the first and beyond rolling restarts.
    pub fn restarts(&self, place: usize) -> u64 {
        self.places[place].restarts
    }

    /// Places.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// The place of a process.
    pub fn place_of(&self, generation: Generation) -> Option<usize> {
        let is = |member: &Option<Member>| member.as_ref().is_some_and(|m| m.generation == generation);
        self.places.iter().position(|place| {
            let leaves = place.leaving.iter().any(|leaver| leaver.generation == generation);
            leaves || is(&place.serving) || is(&place.successor)
        })
    }

    /// The next start of a place whose process is dead, which had served for so long.
    fn restart(
        &mut self,
        index: usize,
        generation: Generation,
        served: Duration,
        now: Instant,
        jitter: f64,
    ) -> Vec<Step> {
        let place = &mut self.places[index];
        let was_told = place.backoff.is_crash_loop();
        let wait = place.backoff.wait(served, jitter);
        let is_crash_loop = place.backoff.is_crash_loop();
        place.start_at = Some(now + wait);
        place.restarts += 1;
        let mut steps = vec![Step::Tell(match was_told && is_crash_loop {
            true => News::DiedAgain { place: index },
            false => News::Died { place: index, generation, restarts_in: wait },
        })];
        if is_crash_loop {
            steps.push(Step::Close { place: index });
        }
        steps
    }

    // ---- rolling

    /// Goes on to the next place once this one has been replaced.
    fn roll_on(&mut self, now: Instant) -> Vec<Step> {
        if self.settled_at().is_none_or(|settled| now < settled) {
            return Vec::new();
        }
        self.roll.pop_front();
        match self.roll.is_empty() {
            true => self.end_roll(News::Rolled, now),
            false => self.start_successor(now),
        }
    }

    /// When the place whose turn it is has been replaced; `None` before its predecessor has left and its successor serves. One
    /// that died meanwhile comes back by itself, from the same file.
    fn settled_at(&self) -> Option<Instant> {
        let place = &self.places[*self.roll.front()?];
        let is_replaced = place.successor.is_none() && place.leaving.is_empty();
        let ready = place.serving.as_ref().filter(|_| is_replaced)?.ready?;
        Some(ready + self.patience.settle)
    }

    fn start_successor(&mut self, now: Instant) -> Vec<Step> {
        let Some(&index) = self.roll.front() else { return Vec::new() };
        let place = &mut self.places[index];
        // Without a predecessor the next start is that of a successor already.
        if place.serving.is_none() {
            return Vec::new();
        }
        let generation = take_next(&mut self.next);
        place.successor = Some(Member { generation, started: now, ready: None, heard: now });
        vec![Step::Start { place: index, generation }]
    }

    /// The successor of a place did not come to serve. Where its predecessor is gone too, the place has nobody.
    fn fail_successor(
        &mut self,
        index: usize,
        generation: Generation,
        now: Instant,
        jitter: f64,
    ) -> Vec<Step> {
        let mut steps = Vec::new();
        match self.places[index].serving {
            Some(_) => self.places[index].restarts += 1,
            None => steps.extend(self.restart(index, generation, Duration::ZERO, now, jitter)),
        }
        steps.extend(self.end_roll(News::RollFailed { place: index }, now));
        steps
    }

    /// A process that this rolling restart started died, at `index`: the successor that is on the way goes too.
    fn break_roll(&mut self, index: usize, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        for place in &mut self.places {
            if let Some(Member { generation, .. }) = place.successor.take() {
                place.leaving.push(Leaver { generation, due: now, is_killed: true });
                steps.push(Step::Kill { generation });
                // Its predecessor may have gone.
                if place.serving.is_none() {
                    place.start_at = Some(now);
                }
            }
        }
        steps.extend(self.end_roll(News::RollBroken { place: index }, now));
        steps
    }

    fn end_roll(&mut self, how: News, now: Instant) -> Vec<Step> {
        self.roll.clear();
        let mut steps = vec![Step::Tell(how)];
        if std::mem::take(&mut self.rolls_again) {
            steps.extend(self.roll(now));
        }
        steps
    }
}

impl Member {
    fn silent_at(&self, patience: Patience) -> Option<Instant> {
        match self.ready {
            None => Some(self.started + patience.start),
            Some(_) => patience.silence.map(|silence| self.heard + silence),
        }
    }

    fn is_silent(&self, now: Instant, patience: Patience) -> bool {
        self.silent_at(patience).is_some_and(|due| due <= now)
    }
}

fn take_next(next: &mut Generation) -> Generation {
    *next += 1;
    *next - 1
}
