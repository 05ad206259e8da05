//! The real binary against a real Redis, on ports that the kernel chooses: one file for each promise.
//!
//! A test is a story of a few lines; whatever it takes to run it is in `support/`. Stories that depend on the kernel
//! interface run on io_uring and on epoll. `CORECAST_TEST_BINARY` names another build of the binary (release),
//! `CORECAST_TEST_REDIS_SERVER` another Redis, and `CORECAST_TEST_CHROMIUM` the browser for stories told in one.

mod support;

mod anchors;
mod backbone;
mod broadcaster;
mod cli;
mod clients;
mod consume;
mod dashboards;
mod dead_letters;
mod deploy;
mod descriptors;
mod docs;
mod doctor;
mod drain;
mod drivers;
mod durable;
mod event_fanout;
mod event_source;
mod experiment;
mod expert;
mod fanout;
mod faults;
mod groups;
mod http;
mod javascript;
mod join;
mod k6;
mod nginx;
mod overload;
mod presets;
mod processes;
mod publish_durable;
mod redis_acl;
mod redis_cluster;
mod redis_faults;
mod redis_sentinel;
mod redis_several;
mod redis_tls;
mod redis_tls_servers;
mod resume;
mod slow;
mod slow_cause;
mod streams;
mod systemd;
mod tune;
mod websocket;
mod workflow;
