//! Who receives what, and in which order.

use crate::support::client::Client;
use crate::support::on_every_driver;
use crate::support::payload::payload;
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server};
use crate::support::swarm::Swarm;

on_every_driver!(
    a_publication_reaches_every_member_of_its_room_once_in_order_and_nobody_else,
    what_a_client_says_reaches_its_room_through_redis_and_comes_back_to_it,
);

fn a_publication_reaches_every_member_of_its_room_once_in_order_and_nobody_else(driver: Driver) {
    let redis = Redis::start();
    let server = Server::event_fanout(&redis, driver).shards(2).start();
    let swarm = Swarm::new();
    let lobby = swarm.add_many(server.address(), "/ws?room=lobby", 100);
    let attic = swarm.add_many(server.address(), "/ws?room=attic", 20);
    swarm.wait_open();

    for sequence in 1..=100 {
        redis.publish("room:lobby", payload('L', sequence, 64));
        redis.publish("room:cellar", payload('C', sequence, 64));
    }
    redis.publish("room:attic", payload('A', 1, 64));

    swarm.wait_each(lobby, "the lobby heard all of its own", |member| member.tally('L').is_exactly(1, 100));
    swarm.wait_each(attic, "the attic heard its one", |member| member.tally('A').is_exactly(1, 1));
    let strangers = swarm.count(|member| !matches!(member.messages, 1 | 100));
    assert_eq!(
        strangers,
        0,
        "a message crossed into another room: {:?}",
        swarm.map(|member| member.messages)
    );
}

fn what_a_client_says_reaches_its_room_through_redis_and_comes_back_to_it(driver: Driver) {
    let redis = Redis::start();
    let server = Server::event_fanout(&redis, driver).start();
    let mut alice = Client::connect(server.address(), "/ws?room=lobby&client_id=alice");
    let mut bob = Client::connect(server.address(), "/ws?room=lobby&client_id=bob");

    for number in 0..20 {
        let text = format!("line {number}");
        alice.send_text(&text);
        assert_eq!(bob.next_text(), text);
        assert_eq!(alice.next_text(), text);
    }
}
