//! nginx in front of several processes: as a proxy of bytes (`stream`) and of WebSockets (`http`).

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::PathBuf;

use rustix::process::Signal;

use super::parent::start;
use crate::support::client::Client;
use crate::support::deadline::{LONG, eventually};
use crate::support::heavy;
use crate::support::http;
use crate::support::publisher::Publisher;
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server};
use crate::support::swarm::{Member, Phase, Swarm};
use crate::support::tool::{self, Tool};

#[test]
fn behind_nginx_a_rolling_restart_tells_everybody_to_come_back_and_loses_nothing() {
    let _alone = heavy();
    let redis = Redis::start();
    let server = start(&redis, Driver::IoUring);
    let (nginx, streamed) = nginx(&server);
    let load = Publisher::start(&redis, &["room:lobby".to_owned()], 'P', 128, 200);
    let swarm = Swarm::with_clock(load.started_probe());
    let ways = [nginx.address(), streamed];
    for way in ways {
        swarm.add_many(way, "/ws?room=lobby", CLIENTS);
    }
    swarm.wait_open();

    server.signal(Signal::USR2);
    let mut returned = 0;
    eventually(LONG, "the rolling restart ends", || {
        let told: Vec<bool> = swarm.map(|member| member.close_code.is_some());
        for (index, _) in told.iter().enumerate().filter(|(_, told)| **told).skip(returned) {
            // By the way by which he came first.
            swarm.add(ways[usize::from(index >= CLIENTS)], "/ws?room=lobby");
            returned += 1;
        }
        server.log().contains("all processes have been replaced")
    });
    swarm.wait_all("whoever connected was let in", |member| member.phase() != &Phase::Joining);
    let seen = load.accepted();
    eventually(LONG, "the load goes on", || load.accepted() >= seen + 100);
    let last = load.stop().last().expect("publications were accepted").sequence;

    let open = swarm.map(Member::is_open);
    let listening = (0..swarm.len()).filter(|index| open[*index]);
    swarm.wait_each(listening, "who is there hears the end of it", |m| m.tally('P').last == last);
    for (index, (phase, code, tally, joined_at)) in
        swarm.map(|m| (m.phase().clone(), m.close_code, m.tally('P'), m.joined_at)).into_iter().enumerate()
    {
        assert!(phase == Phase::Open || code == Some(1012), "{index}: {phase:?} {code:?}");
        let is_whole = tally.holes.is_empty() && tally.backwards == 0;
        assert!(is_whole && tally.first <= joined_at + 1, "{index}: {tally:?} since {joined_at}");
    }
    assert_eq!(swarm.map(|m| m.close_code)[..2 * CLIENTS], [Some(1012); 2 * CLIENTS]);
}

#[test]
fn behind_nginx_clients_publish_and_pages_are_served() {
    let redis = Redis::start();
    let server = start(&redis, Driver::Epoll);
    let (nginx, streamed) = nginx(&server);
    let mut clients = [nginx.address(), streamed].map(|way| Client::connect(way, "/ws?room=lobby"));
    clients[0].send_text("through http");
    clients[1].send_text("through stream");
    for client in &mut clients {
        let mut heard = [client.next_text(), client.next_text()];
        heard.sort();
        assert_eq!(heard, ["through http", "through stream"]);
    }
    for way in [nginx.address(), streamed] {
        let status = http::request(way, "GET", "/readyz", &[]).expect("nginx answers").status;
        assert_eq!(status, 200);
    }
}

/// nginx with both proxies in one process that dies with the test, and the address of `stream`.
#[track_caller]
fn nginx(server: &Server) -> (Tool, SocketAddr) {
    let streamed = Cell::new(0);
    let tool =
        Tool::start("install Debian's packages nginx-light and libnginx-mod-stream", |port, scratch| {
            // Another attempt tries another pair of ports.
            streamed.set(tool::free_port());
            let config = CONFIG
                .replace(
                    "LOAD",
                    &stream_module().map_or_else(String::new, |path| format!("load_module {path};")),
                )
                .replace("STREAM_PORT", &streamed.get().to_string())
                .replace("HTTP_PORT", &port.to_string())
                .replace("SERVER", &server.address().to_string());
            scratch.write("nginx.conf", &config);
            let mut command = tool::command("nginx");
            command.arg("-p").arg(scratch.dir()).arg("-c").arg(scratch.path("nginx.conf"));
            command
        });
    let streamed = SocketAddr::from(([127, 0, 0, 1], streamed.get()));
    (tool, streamed)
}

/// Debian's nginx loads `stream` from beside itself; others have it inside.
fn stream_module() -> Option<String> {
    let path = std::env::var_os("PATH")?;
    let nginx =
        std::env::split_paths(&path).map(|folder| folder.join("nginx")).find(|file| file.is_file())?;
    let module: PathBuf = nginx.parent()?.parent()?.join("lib/nginx/modules/ngx_stream_module.so");
    module.is_file().then(|| module.to_string_lossy().into_owned())
}

const CONFIG: &str = "
LOAD
daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
worker_rlimit_nofile 4096;
events { worker_connections 2048; }
stream {
    server {
        listen 127.0.0.1:STREAM_PORT;
        proxy_pass SERVER;
        proxy_timeout 120s;
        proxy_socket_keepalive on;
    }
}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    map $http_upgrade $connection_of_corecast {
        default upgrade;
        ''      '';
    }
    server {
        listen 127.0.0.1:HTTP_PORT;
        location / {
            proxy_pass http://SERVER;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_of_corecast;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_read_timeout 120s;
            proxy_buffering off;
        }
    }
}
";
const CLIENTS: usize = 100;
