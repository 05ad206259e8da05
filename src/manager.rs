//! The service manager (systemd): told what the server does, as in sd_notify(3), where NOTIFY_SOCKET names it.
//!
//! Where this process has a parent, that is its manager. The protocol is a datagram of lines to a Unix socket. It is written here because the crate sd-notify 0.5 does not know
//! abstract sockets ("@..."), which is what container engines pass.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::SendFlags;
use shards::net::rights;

/// See the module.
pub struct ServiceManager {
    to: Option<Ear>,
    watchdog: Option<Watchdog>,
    /// The last STATUS.
    status: String,
}

enum Ear {
    Manager(UnixDatagram, SocketAddr),
    Parent(Arc<OwnedFd>),
}

struct Watchdog {
    /// Half of the time after which the manager gives up.
    interval: Duration,
    told: Option<Instant>,
}

impl ServiceManager {
    /// The one that the environment names; nobody where it names none.
    pub fn from_environment() -> Self {
        let to = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()).and_then(|name| {
            let found =
                address(&name).and_then(|address| Ok(Ear::Manager(UnixDatagram::unbound()?, address)));
            found
                .inspect_err(
                    |error| tracing::warn!(%error, ?name, "NOTIFY_SOCKET names no socket; nobody is told"),
                )
                .ok()
        });
        let number = |name| env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
        let is_ours = number("WATCHDOG_PID").is_none_or(|process| process == u64::from(std::process::id()));
        let micros = number("WATCHDOG_USEC").filter(|micros| *micros > 0 && is_ours && to.is_some());
        let watchdog =
            micros.map(|micros| Watchdog { interval: Duration::from_micros(micros) / 2, told: None });
        Self { to, watchdog, status: String::new() }
    }

    /// A parent at the other end of `channel`, which wants a sign of life each `interval`.
    pub fn of_parent(channel: Arc<OwnedFd>, interval: Option<Duration>) -> Self {
        let watchdog = interval.map(|interval| Watchdog { interval, told: None });
        Self { to: Some(Ear::Parent(channel)), watchdog, status: String::new() }
    }

    /// Everything listens.
    pub fn ready(&mut self, status: &str) {
        self.status = status.to_owned();
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// What `systemctl status` shows; told when it is another than before.
    pub fn status(&mut self, status: &str) {
        if self.status != status {
            self.status = status.to_owned();
            self.tell(&format!("STATUS={status}"));
        }
    }

    /// The drain begins, and all is over within `limit`: the manager's own is lifted to that.
    pub fn stopping(&mut self, limit: Duration, status: &str) {
        self.status = status.to_owned();
        let micros = limit.as_micros();
        self.tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}\nSTATUS={status}"));
    }

    /// The drain takes longer: all is over within `limit` from now.
    pub fn stopping_later(&self, limit: Duration) {
        self.tell(&format!("EXTEND_TIMEOUT_USEC={}", limit.as_micros()));
    }

    /// How often the watchdog wants to be told that all is well.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.as_ref().map(|watchdog| watchdog.interval)
    }

    /// All is well at `now`. Told when half of the watchdog's time has passed since it was told last.
    pub fn alive(&mut self, now: Instant) {
        let Some(watchdog) = &mut self.watchdog else { return };
        if watchdog.told.is_none_or(|told| now.saturating_duration_since(told) >= watchdog.interval) {
            watchdog.told = Some(now);
            self.tell("WATCHDOG=1");
        }
    }

    fn tell(&self, lines: &str) {
        let told = match &self.to {
            None => return,
            Some(Ear::Manager(socket, address)) => socket.send_to_addr(lines.as_bytes(), address).map(drop),
            Some(Ear::Parent(channel)) => {
                rights::send(&**channel, lines.as_bytes(), &[], SendFlags::DONTWAIT)
            }
        };
        if let Err(error) = told {
            tracing::warn!(%error, lines, "the service manager could not be told");
        }
    }
}

/// Of a path, or of an abstract name after "@".
fn address(name: &OsString) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "a path or @NAME is due")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manager that waits for a sign of life every two seconds, and what it hears.
    fn heard_by(name: &str) -> (ServiceManager, UnixDatagram) {
        let to = address(&OsString::from(name)).expect("a name");
        let ears = UnixDatagram::bind_addr(&to).expect("nobody else has the name");
        ears.set_nonblocking(true).expect("a socket can be asked");
        let watchdog = Some(Watchdog { interval: Duration::from_secs(1), told: None });
        let mouth = UnixDatagram::unbound().expect("a descriptor is left");
        (ServiceManager { to: Some(Ear::Manager(mouth, to)), watchdog, status: String::new() }, ears)
    }

    fn next(ears: &UnixDatagram) -> Option<String> {
        let mut buffer = [0; 1024];
        let bytes = ears.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..bytes]).into_owned())
    }

    #[test]
    fn a_manager_with_an_abstract_name_hears_each_change_once() {
        let (mut manager, ears) = heard_by(&format!("@corecast-manager-{}", std::process::id()));
        manager.ready("serves");
        manager.status("serves");
        manager.status("serves without Redis");
        manager.stopping(Duration::from_secs(10), "drains");
        manager.stopping_later(Duration::from_secs(60));
        let due = [
            "READY=1\nSTATUS=serves",
            "STATUS=serves without Redis",
            "STOPPING=1\nEXTEND_TIMEOUT_USEC=10000000\nSTATUS=drains",
            "EXTEND_TIMEOUT_USEC=60000000",
        ];
        for due in due {
            assert_eq!(next(&ears).as_deref(), Some(due));
        }
        assert_eq!(next(&ears), None);
    }

    #[test]
    fn the_watchdog_is_told_at_half_of_its_time() {
        let (mut manager, ears) = heard_by(&format!("@corecast-watchdog-{}", std::process::id()));
        let began = Instant::now();
        for millis in [0, 500, 999, 1000, 1500, 2100] {
            manager.alive(began + Duration::from_millis(millis));
        }
        let told = std::iter::from_fn(|| next(&ears)).collect::<Vec<_>>();
        assert_eq!(told, ["WATCHDOG=1"; 3]);
    }

    #[test]
    fn a_name_that_is_no_socket_is_refused() {
        assert!(address(&OsString::from("run/notify")).is_err());
        assert!(address(&OsString::from("/run/notify")).is_ok());
    }
}
