//! The promise behind the 101: whatever the broker accepts afterwards arrives.

use std::thread;
use std::time::Duration;

use crate::support::deadline::{LONG, eventually};
use crate::support::payload::payload;
use crate::support::publisher::Publisher;
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server};
use crate::support::swarm::{Member, Swarm};
use crate::support::{heavy, on_both_drivers};

on_both_drivers!(
    five_thousand_connections_that_join_at_once_all_get_in_and_all_hear_everything,
    a_client_misses_nothing_that_is_published_after_its_101,
    a_client_of_a_server_that_has_just_started_misses_nothing_after_its_101,
    a_client_misses_nothing_while_its_rooms_channel_is_left_and_taken_again,
    rooms_of_one_that_come_and_go_leave_no_subscription_behind,
    thousands_of_rooms_that_come_and_go_in_storms_miss_nothing_and_leave_nothing_behind,
);

fn five_thousand_connections_that_join_at_once_all_get_in_and_all_hear_everything(driver: Driver) {
    let _alone = heavy();
    let redis = Redis::start();
    let server = Server::event_fanout(&redis, driver).start();
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=stadium", 5_000);
    swarm.wait_open();

    for sequence in 1..=10 {
        redis.publish("room:stadium", payload('S', sequence, 128));
    }

    swarm.wait_all("everybody heard all ten", |member| member.tally('S').is_exactly(1, 10));
    swarm.assert_all_open();
    assert_eq!(server.metrics().sum("corecast_handshakes_total"), 5_000.0);
}

fn a_client_misses_nothing_that_is_published_after_its_101(driver: Driver) {
    let redis = Redis::start();
    let server = Server::event_fanout(&redis, driver).shards(2).start();
    let publisher = Publisher::start(&redis, &channels(3), 'P', 64, 400);
    let swarm = Swarm::with_clock(publisher.started_probe());

    // Waves, so that newcomers meet rooms that are new, live, and busy.
    for wave in 0..20 {
        for member in 0..15 {
            swarm.add(server.address(), &format!("/ws?room=r{}", (wave + member) % 3));
        }
        swarm.wait_open();
    }

    assert_promise_kept(&swarm, publisher);
}

fn a_client_of_a_server_that_has_just_started_misses_nothing_after_its_101(driver: Driver) {
    let redis = Redis::start();
    let publisher = Publisher::start(&redis, &channels(1), 'P', 64, 1_000);
    let swarm = Swarm::with_clock(publisher.started_probe());
    let url = redis.url();
    let mut servers = Vec::new();
    for _ in 0..10 {
        // Started without waiting for its Redis.
        let server = Server::builder().preset("event-fanout").redis_url(&url).driver(driver).start();
        swarm.add(server.address(), "/ws?room=r0");
        servers.push(server);
    }
    swarm.wait_open();
    let joined = swarm.map(|member| member.joined_at);
    swarm.wait_all("everybody hears what comes now", |member| member.tally('P').received > 0);
    assert_eq!(joined.len(), 10);
    assert_promise_kept(&swarm, publisher);
}

fn a_client_misses_nothing_while_its_rooms_channel_is_left_and_taken_again(driver: Driver) {
    let redis = Redis::start();
    let server = Server::builder().redis(&redis).driver(driver).shards(2).config(ON_DEMAND).start();
    let publisher = Publisher::start(&redis, &channels(ROOMS), 'P', 64, 50);
    let swarm = Swarm::with_clock(publisher.started_probe());
    let join = |room: usize| swarm.add(server.address(), &format!("/ws?room=r{room}"));

    let settlers: Vec<usize> = (0..ROOMS).map(join).collect();
    swarm.wait_all("every room is heard", |member| member.tally('P').received >= 3);
    // The rooms empty one after the other, so they will be left one after the other ...
    for &member in &settlers {
        swarm.vanish(member);
        thread::sleep(STAGGER);
    }
    // ... and when the first of them is, newcomers meet the others before, during and after their UNSUBSCRIBE.
    eventually(LONG, "the first channel is left", || redis.subscribers("room:r0") == 0);
    for room in 0..ROOMS {
        join(room);
        thread::sleep(STAGGER);
    }

    swarm.wait_each(ROOMS..2 * ROOMS, "every newcomer hears its room", |member| {
        member.tally('P').received >= 3
    });
    assert_promise_kept(&swarm, publisher);
}

fn rooms_of_one_that_come_and_go_leave_no_subscription_behind(driver: Driver) {
    let redis = Redis::start();
    let server = Server::builder().redis(&redis).driver(driver).config(ON_DEMAND).start();
    let swarm = Swarm::new();
    for room in 0..ROOMS {
        swarm.add(server.address(), &format!("/ws?room=r{room}"));
    }
    swarm.wait_open();
    let subscribed = || (0..ROOMS).filter(|room| redis.subscribers(&format!("room:r{room}")) == 1).count();
    assert_eq!(subscribed(), ROOMS, "a 101 came before its room's channel was subscribed");

    (0..ROOMS).for_each(|member| swarm.close(member));

    eventually(LONG, "every channel is left", || subscribed() == 0);
    let (page, _) = server.wait_metrics("no room is left", |page| page.sum("corecast_rooms") == 0.0);
    assert_eq!(page.closed("peer_closed"), ROOMS as f64);
}

fn thousands_of_rooms_that_come_and_go_in_storms_miss_nothing_and_leave_nothing_behind(driver: Driver) {
    let _alone = heavy();
    let redis = Redis::start();
    let server = Server::builder().redis(&redis).driver(driver).shards(2).config(ON_DEMAND).start();
    let before = redis.channels();
    let publisher = Publisher::start(&redis, &channels(STORM_ROOMS), 'P', 64, 1);
    let swarm = Swarm::with_clock(publisher.started_probe());
    let mut memory_bytes = Vec::new();
    for storm in 1..=STORMS {
        let first = swarm.len();
        for room in 0..STORM_ROOMS {
            swarm.wait_some_joined();
            swarm.add(server.address(), &format!("/ws?room=r{room}"));
            // Each third room loses its member again while the others come, and gets another.
            if room % 3 == 2 {
                swarm.vanish(swarm.len() - 2);
                swarm.add(server.address(), &format!("/ws?room=r{}", room - 1));
            }
        }
        let here = first..swarm.len();
        swarm.wait_each(here.clone(), "everybody is in and hears the room", |member| {
            !member.is_open() || member.tally('P').received >= 2
        });
        here.for_each(|member| swarm.vanish(member));
        // The next storm meets rooms before, during and after their UNSUBSCRIBE.
        let most = before + STORM_ROOMS / 2;
        eventually(LONG, "channels of rooms without members are left", || redis.channels() < most);
        if storm == 1 || storm == STORMS {
            eventually(LONG, "every channel is left", || redis.channels() == before);
            server.wait_metrics("no room is left", |page| page.sum("corecast_rooms") == 0.0);
            memory_bytes.push(server.user_memory_bytes());
        }
    }

    publisher.stop();
    (0..swarm.len()).for_each(|member| assert_owed_came(&swarm, member));
    let page = server.metrics();
    assert_eq!(page.sum("corecast_gaps_total"), 0.0, "{page:?}");
    assert_eq!(redis.subscribers("room:r0"), 0);
    let [first, last] = memory_bytes[..] else { panic!("two measurements: {memory_bytes:?}") };
    assert!(last < first + (8 << 20), "memory grows with the storms: {memory_bytes:?}");
}

/// Everybody who is still there heard all that was published after its 101, once and in order.
#[track_caller]
fn assert_promise_kept(swarm: &Swarm, publisher: Publisher) {
    let last = publisher.stop().last().expect("something was published").sequence;
    let open: Vec<usize> = swarm
        .map(Member::is_open)
        .iter()
        .enumerate()
        .filter_map(|(index, open)| open.then_some(index))
        .collect();
    // A member's last may be a publication that was accepted before it joined: then it is owed none.
    swarm.wait_each(open.clone(), "everybody heard the last", |member| {
        member.tally('P').last == last || member.joined_at >= last
    });
    open.into_iter().for_each(|index| assert_owed_came(swarm, index));
}

/// What a member heard began with what was published next after its 101, and has no hole.
#[track_caller]
fn assert_owed_came(swarm: &Swarm, index: usize) {
    swarm.look(index, |member| {
        let tally = member.tally('P');
        let told = format!("member {index} joined at {} and got {tally:?}", member.joined_at);
        assert!(
            tally.received == 0 || tally.first <= member.joined_at + 1,
            "publications are missing: {told}"
        );
        assert!(tally.holes.is_empty(), "publications are missing: {told}");
        assert_eq!(tally.backwards, 0, "repeated or out of order: {told}");
    });
}

fn channels(rooms: usize) -> Vec<String> {
    (0..rooms).map(|room| format!("room:r{room}")).collect()
}

const ROOMS: usize = 40;
/// Rooms of one that come and go, and how often.
const STORM_ROOMS: usize = 5_000;
const STORMS: usize = 3;
/// Between two stimuli of a race: long enough that they don't fall into one batch, short enough to meet each other.
const STAGGER: Duration = Duration::from_millis(4);

/// Each room's channel is subscribed for its first member and left after its last.
const ON_DEMAND: &str = r#"
[[route]]
path = "/ws"
when_query = "room"
room = "{query.room}"
publish = "any"

[[source]]
redis = "subscribe room:{1}"
room = "{1}"
deliver = "raw"
"#;
