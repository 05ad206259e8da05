//! A service manager's ear: the socket that NOTIFY_SOCKET names, and what was said to it.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Instant;

use super::deadline::SOON;
use super::scratch::Scratch;

/// See the module.
pub struct Manager {
    socket: UnixDatagram,
    scratch: Scratch,
}

impl Manager {
    pub fn new() -> Self {
        let scratch = Scratch::new();
        let socket = UnixDatagram::bind(scratch.path("notify")).expect("a scratch directory takes sockets");
        Self { socket, scratch }
    }

    pub fn path(&self) -> PathBuf {
        self.scratch.path("notify")
    }

    /// The next message, as its lines; they wait in order until they are asked for.
    ///
    /// # Panics
    /// When none comes within [`SOON`].
    #[track_caller]
    pub fn next(&self) -> Vec<String> {
        self.socket.set_nonblocking(false).expect("a socket can be told to wait");
        self.socket.set_read_timeout(Some(SOON)).expect("a positive timeout is accepted");
        let mut buffer = [0; 4096];
        let bytes = self
            .socket
            .recv(&mut buffer)
            .unwrap_or_else(|error| panic!("{error}: nothing was said within {SOON:?}"));
        String::from_utf8_lossy(&buffer[..bytes]).lines().map(str::to_owned).collect()
    }

    /// Whether nothing waits to be heard.
    pub fn is_silent(&self) -> bool {
        self.socket.set_nonblocking(true).expect("a socket can be told not to wait");
        self.socket.recv(&mut [0; 4096]).is_err()
    }

    /// All messages up to the first with a line that is `wanted`, that one included.
    ///
    /// # Panics
    /// When none comes within [`SOON`].
    #[track_caller]
    pub fn until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Vec<Vec<String>> {
        let (began, mut heard) = (Instant::now(), Vec::new());
        loop {
            heard.push(self.next());
            let last = heard.last().expect("one was heard");
            if last.iter().any(|line| wanted(line)) {
                return heard;
            }
            assert!(began.elapsed() < SOON, "not within {SOON:?}: {what}; heard: {heard:?}");
        }
    }
}
