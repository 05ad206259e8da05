//! workflow's set-up of several instances behind nginx: `deploy/nginx/workflow.conf` as it stands, but for its ports.

use std::process::Command;

use crate::support::client::Client;
use crate::support::deadline::{LONG, SOON, eventually};
use crate::support::heavy;
use crate::support::http;
use crate::support::payload::payload;
use crate::support::publisher::Publisher;
use crate::support::redis::Redis;
use crate::support::scratch::Scratch;
use crate::support::server::Server;
use crate::support::swarm::{Member, Swarm};
use crate::support::tool::{self, Tool};

#[test]
fn behind_nginx_each_user_hears_exactly_what_is_his_and_a_killed_instance_costs_only_its_own_clients() {
    let _alone = heavy();
    let redis = Redis::start();
    let mut instances =
        [(); 3].map(|()| Server::builder().preset("workflow").redis(&redis).shards(1).start());
    let nginx = nginx(&instances);
    let channels: Vec<String> = (0..USERS).map(|user| format!("workflow:events:{}", name(user))).collect();
    // Its numbers are what a member must not miss, whatever happens to the instances of others.
    let load = Publisher::start(&redis, &channels, 'L', 64, RATE);
    let swarm = Swarm::with_clock(load.started_probe());
    for user in 0..USERS {
        swarm.add(nginx.address(), &format!("/ws?username={}", name(user)));
    }
    swarm.wait_open();

    // least_conn: a third each.
    let members = instances.each_ref().map(|instance| instance.metrics().sum("corecast_subscriptions"));
    assert_eq!(members, [USERS as f64 / 3.0; 3]);

    // One publication for each user, numbered as he is: a stray one would be a second one somewhere.
    for (number, channel) in (1..).zip(&channels) {
        redis.publish(channel, payload('U', number, 64));
    }
    for (number, user) in (1..).zip(0..USERS) {
        swarm.wait_each([user], "he heard his own", |member| member.tally('U').is_exactly(number, number));
    }
    let heard: u64 = swarm.map(|member| member.tally('U').received).iter().sum();
    assert_eq!(heard, USERS as u64, "each publication reached one connection");

    instances[1].kill9();
    eventually(SOON, "its clients lose their connection", || {
        swarm.count(|member| !member.is_open()) >= USERS / 3
    });
    let opens = swarm.map(Member::is_open);
    let lost: Vec<usize> = (0..USERS).filter(|&user| !opens[user]).collect();
    assert_eq!(lost.len(), USERS / 3, "and nobody else does");

    // They come back as clients do: by the same address, as the same user.
    for &user in &lost {
        swarm.add(nginx.address(), &format!("/ws?username={}", name(user)));
    }
    let returned = USERS..USERS + lost.len();
    swarm.wait_each(returned.clone(), "nginx lets them in elsewhere", Member::is_open);
    let seen = load.accepted();
    eventually(LONG, "the load goes on", || load.accepted() >= seen + u64::from(RATE));
    let last = load.stop().last().expect("publications were accepted").sequence;

    let listening: Vec<usize> = (0..USERS).filter(|&user| opens[user]).chain(returned).collect();
    swarm.wait_each(listening.iter().copied(), "everybody who is there hears the end of it", |member| {
        member.tally('L').last == last
    });
    // Those who lost their connection count too: until then nothing was missing.
    for (index, (tally, joined_at)) in swarm.map(|m| (m.tally('L'), m.joined_at)).into_iter().enumerate() {
        let is_whole = tally.holes.is_empty() && tally.backwards == 0;
        assert!(is_whole && tally.first <= joined_at + 1, "{index}: {tally:?} since {joined_at}");
    }
    let members = [0, 2].map(|left| instances[left].metrics().sum("corecast_subscriptions"));
    assert_eq!(members, [USERS as f64 / 2.0; 2]);

    let back = Server::builder().preset("workflow").redis(&redis).listen(instances[1].address()).start();
    eventually(SOON, "an instance that came back is given newcomers", || {
        drop(Client::connect(nginx.address(), "/ws?username=newcomer"));
        back.metrics().sum("corecast_handshakes_total") > 0.0
    });
}

#[test]
fn nginx_passes_what_is_for_the_outside_and_nothing_else() {
    let redis = Redis::start();
    let instances = [(); 3].map(|()| Server::builder().preset("workflow").redis(&redis).shards(1).start());
    let nginx = nginx(&instances);
    let status =
        |target: &str| http::request(nginx.address(), "GET", target, &[]).expect("nginx answers").status;
    assert_eq!(status("/health"), 200);
    assert_eq!(status("/ws"), 400, "corecast's own answer: a username is missing");
    for inside in ["/metrics", "/stats", "/admin/stats", "/publish?room=a", "/"] {
        assert_eq!(status(inside), 404, "{inside}");
    }
}

/// nginx with our file and as little as possible around it, in one process that dies with the test.
#[track_caller]
fn nginx(instances: &[Server; 3]) -> Tool {
    Tool::start("install Debian's package nginx-light", |port, scratch| {
        let mut site =
            std::fs::read_to_string(tool::repository("deploy/nginx/workflow.conf")).expect("our file");
        let mut replace = |from: &str, to: String| {
            assert_eq!(site.matches(from).count(), 1, "{from:?} stands in workflow.conf once");
            site = site.replace(from, &to);
        };
        replace("listen 80;", format!("listen 127.0.0.1:{port};"));
        for (instance, was) in instances.iter().zip(["127.0.0.1:8084", "127.0.0.1:8085", "127.0.0.1:8086"]) {
            replace(was, instance.address().to_string());
        }
        scratch.write("workflow.conf", &site);
        scratch.write("nginx.conf", AROUND);
        let prefix = |command: &mut Command| {
            command.arg("-p").arg(scratch.dir()).arg("-c").arg(scratch.path("nginx.conf"));
        };
        check(scratch, prefix);
        let mut command = tool::command("nginx");
        prefix(&mut command);
        command
    })
}

/// `nginx -t` has nothing to say.
#[track_caller]
fn check(scratch: &Scratch, prefix: impl Fn(&mut Command)) {
    let mut command = tool::command("nginx");
    prefix(&mut command);
    let output = command.arg("-t").current_dir(scratch.dir()).output().unwrap_or_else(|error| {
        panic!("cannot run nginx: {error}; install Debian's package nginx-light, as `make test` does")
    });
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.contains("[warn]"), "{said}");
}

fn name(user: usize) -> String {
    format!("user-{user}")
}

const AROUND: &str = "
daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
worker_rlimit_nofile 4096;
events { worker_connections 2048; }
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include workflow.conf;
}
";
const USERS: usize = 300;
/// Publications a second for each user: 3,000 in all, which each instance hears.
const RATE: u32 = 10;
