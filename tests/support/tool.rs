//! Programs of others that a story needs beside the server: found on PATH, dead when the test is.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use socket2::{Domain, Socket, Type};

use super::deadline::{SOON, eventually_ok};
use super::kernel::{Confinement, confine};
use super::program::{self, Running};
use super::scratch::Scratch;

/// A program that serves on a port of 127.0.0.1.
pub struct Tool {
    child: Running,
    address: SocketAddr,
    scratch: Scratch,
}

impl Tool {
    /// Starts what `build` says for a free port and a scratch directory; returns when the port is taken.
    ///
    /// # Panics
    /// When it isn't installed (then with `install`), or ends.
    #[track_caller]
    pub fn start(install: &str, build: impl Fn(u16, &Scratch) -> Command) -> Self {
        // The port is free only until another process takes it: then the next one is tried.
        for _ in 0..PORTS_TRIED {
            let (port, scratch) = (free_port(), Scratch::new());
            let mut command = build(port, &scratch);
            let log = File::create(scratch.path("log")).expect("a scratch directory takes files");
            command.stdout(log.try_clone().expect("a descriptor is left")).stderr(log);
            confine(&mut command, Confinement::default());
            let child = command.spawn().unwrap_or_else(|error| {
                panic!("cannot run {:?}: {error}; {install}, as `make test` does", command.get_program())
            });
            let mut tool = Self {
                child: Running(child),
                address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
                scratch,
            };
            if tool.wait_listening() {
                return tool;
            }
            assert!(tool.log().contains("ddress already in use"), "{command:?} ended: {}", tool.log());
        }
        panic!("no free port in {PORTS_TRIED} attempts; {install}")
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has written to stdout and stderr.
    pub fn log(&self) -> String {
        program::text(&self.scratch.path("log"))
    }

    /// False when it ended.
    #[track_caller]
    fn wait_listening(&mut self) -> bool {
        eventually_ok(SOON, "the port is taken", || {
            if !self.child.is_running() {
                return Ok(false);
            }
            std::net::TcpStream::connect_timeout(&self.address, SOON).map(|_| true)
        })
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the program at {} ---\n{}", self.address, self.log());
        }
    }
}

/// `name` in an environment that holds PATH and little else.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env_clear().stdin(Stdio::null());
    for kept in ["PATH", "HOME", "TMPDIR"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    command
}

/// A file of this repository.
pub fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A port of 127.0.0.1 on which nobody listens, and that nobody else gets while this lives.
pub struct ClosedPort(Socket);

impl ClosedPort {
    #[track_caller]
    pub fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a descriptor is left");
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("127.0.0.1 has a free port");
        Self(socket)
    }

    /// Where it refuses.
    pub fn address(&self) -> SocketAddr {
        let address = self.0.local_addr().expect("a bound socket has an address");
        address.as_socket().expect("an internet socket")
    }
}

/// A port of 127.0.0.1 that nobody has at the moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("127.0.0.1 has a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

const PORTS_TRIED: usize = 5;
