//! The harness: servers, brokers, clients and faults, one noun a file.

pub mod authority;
pub mod client;
pub mod cluster;
pub mod consumer;
pub mod deadline;
pub mod feed;
pub mod http;
pub mod kernel;
pub mod manager;
pub mod metrics;
pub mod netns;
pub mod payload;
pub mod peer;
pub mod program;
pub mod proxy;
pub mod publisher;
pub mod redis;
pub mod scratch;
pub mod seccomp;
pub mod sentinel;
pub mod server;
pub mod speaker;
pub mod swarm;
pub mod tls_redis;
pub mod tool;
pub mod wire;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held by stories that need much of the machine, so that no two of them run at once.
///
/// A story that failed says so by itself; the next one may go on.
pub fn heavy() -> MutexGuard<'static, ()> {
    static HEAVY: Mutex<()> = Mutex::new(());
    HEAVY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes each story (`fn(Driver)`) two tests, one for io_uring and one for epoll.
macro_rules! on_both_drivers {
    ($($story:ident),+ $(,)?) => {$(
        mod $story {
            use crate::support::server::Driver;

            #[test]
            fn on_io_uring() {
                super::$story(Driver::IoUring);
            }

            #[test]
            fn on_epoll() {
                super::$story(Driver::Epoll);
            }
        }
    )+};
}

/// [`on_both_drivers`], and a third test under a filter that denies io_uring.
macro_rules! on_every_driver {
    ($($story:ident),+ $(,)?) => {$(
        mod $story {
            use crate::support::server::Driver;

            #[test]
            fn on_io_uring() {
                super::$story(Driver::IoUring);
            }

            #[test]
            fn on_epoll() {
                super::$story(Driver::Epoll);
            }

            #[test]
            fn where_io_uring_is_denied() {
                super::$story(Driver::AutoDenied);
            }
        }
    )+};
}

pub(crate) use {on_both_drivers, on_every_driver};
