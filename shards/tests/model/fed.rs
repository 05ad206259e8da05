//! Rooms that are fed by streams, in the world of the model: what happens to them, and what must hold for them.

use shards::config::{Deliver, Source, Subscribe, Template, TemplatePart};
use shards::limits::STREAM_PATIENCE;
use shards::shard::TICK_MICROS;

use crate::random::Random;
use crate::{ROOMS, World};

/// A source of the streams of rooms whose names begin with `prefix`.
pub fn stream_source(random: &mut Random, prefix: &str) -> Source {
    let field = Deliver::Field("data".to_owned());
    Source {
        subscribe: Subscribe::Stream { prefix: "s:".to_owned(), suffix: String::new() },
        room: Template { parts: vec![TemplatePart::Literal(prefix.to_owned()), TemplatePart::Wildcard] },
        deliver: [Deliver::Raw, field, Deliver::Event][random.below(3)].clone(),
        ..Source::default()
    }
}

impl World {
    /// Something happens to the streams, or to the connections to them.
    pub fn streams_act(&mut self) {
        match self.random.below(20) {
            0..8 => self.broker.follower.disturb(),
            8..10 => {
                self.broker.follower.break_down(&mut self.relay, &mut self.rings, self.now);
                self.broker.drive(&mut self.relay, &mut self.rings);
            }
            _ => self.connect_streams(),
        }
    }

    pub fn connect_streams(&mut self) {
        if self.broker.streamed.is_some() {
            self.broker.follower.connect(&mut self.relay);
            self.broker.drive(&mut self.relay, &mut self.rings);
        }
    }

    /// What is in a stream is due to all members; what has gone from it unread, to nobody.
    pub fn gather_fates_of_streams(&mut self) {
        let fates = std::mem::take(&mut self.broker.follower.fates);
        for number in fates.appended {
            self.note_due(number, self.publications[number], self.excepts.get(&number).copied().flatten());
        }
        for number in fates.lost {
            self.note_undeclared(number);
            self.forgive(number);
        }
        fates.gone.into_iter().for_each(|number| self.forgive(number));
        for (room, epoch, offset, number) in std::mem::take(&mut self.rings.offered) {
            self.broker.follower.check(room, epoch, offset, number);
        }
    }

    /// Nobody waits for streams that are away for ever.
    pub fn lose_patience(&mut self) {
        for _ in 0..STREAM_PATIENCE.as_micros() as u64 / TICK_MICROS + 2 {
            self.pass_time(TICK_MICROS);
            for at in 0..self.runtimes.len() {
                self.turn(at);
                self.writable(at);
            }
            for at in 0..self.clients.len() {
                self.receive(at);
            }
            self.gather_fates();
        }
    }

    /// What a client heard of such a room came once, in the order of the stream, and under the number that it was read with.
    pub fn check_streamed_order(&self, at: usize, room: usize) {
        let of_room = || self.clients[at].heard.iter().filter(move |heard| heard.room == room);
        let follower = &self.broker.follower;
        let ids: Vec<_> =
            of_room().map(|heard| (heard.stay, follower.keys.appended[&heard.number])).collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "client {at} in {}: {ids:?}", ROOMS[room]);
        for heard in of_room() {
            if let Some((epoch, offset)) = heard.epoch.zip(heard.offset) {
                follower.check(room, epoch, offset, heard.number);
            }
        }
    }
}
