//! A redis-server of one test's own, and the faults it can have.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use redis_protocol::resp2::types::{OwnedFrame, Resp2Frame};
use redis_protocol::resp2::{decode, encode};
use rustix::process::{Pid, Signal, kill_process};

use super::deadline::{SOON, eventually_ok};
use super::kernel::{Confinement, confine};
use super::program::{self, Running};
use super::scratch::Scratch;
use super::tool::free_port;

/// Listens on a free port of 127.0.0.1 and on a unix socket; keeps nothing on disk.
pub struct Redis {
    child: Running,
    program: String,
    port: u16,
    /// The port in the place of [`FREE_PORT`] among the arguments.
    second_port: u16,
    args: Vec<String>,
    scratch: Scratch,
}

impl Redis {
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more arguments, as `redis-server` takes them.
    ///
    /// # Panics
    /// When redis-server isn't installed or doesn't answer.
    #[track_caller]
    pub fn start_with(args: &[&str]) -> Self {
        let program = std::env::var("CORECAST_TEST_REDIS_SERVER");
        Self::start_program(&program.unwrap_or_else(|_| "redis-server".to_owned()), args)
    }

    /// As `start_with`, of another redis-server.
    #[track_caller]
    pub fn start_program(program: &str, args: &[&str]) -> Self {
        let mut log = String::new();
        // The ports are free only until another process takes them: then the next ones are tried.
        for _ in 0..PORTS_TRIED {
            let scratch = Scratch::new();
            let (port, second_port) = (free_port(), free_port());
            let args: Vec<String> =
                args.iter().map(|arg| arg.replace(FREE_PORT, &second_port.to_string())).collect();
            let child = spawn(program, port, &args, &scratch);
            let mut redis = Self { child, program: program.to_owned(), port, second_port, args, scratch };
            if redis.wait_answering() {
                return redis;
            }
            log = program::text(&redis.scratch.path("log"));
        }
        panic!("{program} ended {PORTS_TRIED} times with {args:?}: {log}")
    }

    /// Where it listens on the port that [`FREE_PORT`] stood for.
    pub fn second_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.second_port))
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    pub fn unix_url(&self) -> String {
        format!("unix://{}", self.unix_path().display())
    }

    /// Ends it as a crash does.
    pub fn kill9(&mut self) {
        self.child.kill();
    }

    /// Starts it again on the same port after [`Redis::kill9`]; returns when it answers.
    #[track_caller]
    pub fn restart(&mut self) {
        self.child.kill();
        eventually_ok(SOON, "redis-server gets its port back", || {
            self.child = spawn(&self.program, self.port, &self.args, &self.scratch);
            if self.wait_answering() { Ok(()) } else { Err(program::text(&self.scratch.path("log"))) }
        });
    }

    /// Connections stay open and nothing moves until [`Redis::sigcont`].
    pub fn sigstop(&self) {
        self.signal(Signal::STOP);
    }

    pub fn sigcont(&self) {
        self.signal(Signal::CONT);
    }

    /// Runs one command on a connection of its own.
    ///
    /// # Panics
    /// When it isn't answered.
    #[track_caller]
    pub fn cli(&self, command: &[&str]) -> OwnedFrame {
        let parts: Vec<&[u8]> = command.iter().map(|part| part.as_bytes()).collect();
        let answer = self.connect().and_then(|mut connection| connection.command(&parts));
        answer.unwrap_or_else(|error| panic!("redis did not answer {command:?}: {error}"))
    }

    /// Publishes once; returns how many subscribers Redis handed it to.
    #[track_caller]
    pub fn publish(&self, channel: &str, payload: impl AsRef<[u8]>) -> i64 {
        let answer = self.connect().and_then(|mut connection| connection.publish(channel, payload.as_ref()));
        answer.unwrap_or_else(|error| panic!("redis did not take a publication to {channel}: {error}"))
    }

    /// Closes every subscriber's connection; returns how many there were.
    #[track_caller]
    pub fn client_kill_pubsub(&self) -> i64 {
        match self.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]) {
            OwnedFrame::Integer(killed) => killed,
            other => panic!("CLIENT KILL answered {other:?}"),
        }
    }

    /// Clients that are subscribed to `channel` by name, patterns not counted.
    #[track_caller]
    pub fn subscribers(&self, channel: &str) -> i64 {
        count_in(&self.cli(&["PUBSUB", "NUMSUB", channel]))
    }

    /// Channels that somebody is subscribed to by name.
    #[track_caller]
    pub fn channels(&self) -> usize {
        match self.cli(&["PUBSUB", "CHANNELS"]) {
            OwnedFrame::Array(names) => names.len(),
            other => panic!("PUBSUB CHANNELS answered {other:?}"),
        }
    }

    /// The same at a node of a cluster, for sharded Pub/Sub.
    #[track_caller]
    pub fn shard_subscribers(&self, channel: &str) -> i64 {
        count_in(&self.cli(&["PUBSUB", "SHARDNUMSUB", channel]))
    }

    /// A connection for many commands.
    pub fn connect(&self) -> io::Result<Connection> {
        Connection::open(self.address(), self.password())
    }

    /// The value of `--requirepass`, if it was given.
    pub fn password(&self) -> Option<&str> {
        let flag = self.args.iter().position(|arg| arg == "--requirepass")?;
        self.args.get(flag + 1).map(String::as_str)
    }

    fn unix_path(&self) -> PathBuf {
        self.scratch.path("redis.sock")
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.pid()).expect("a child has a positive pid");
        kill_process(pid, signal).expect("a child of ours may be signalled until it is waited for");
    }

    /// False when it ended (its port was taken).
    #[track_caller]
    fn wait_answering(&mut self) -> bool {
        eventually_ok(SOON, "redis-server answers PING", || {
            if !self.child.is_running() {
                return Ok(false);
            }
            self.connect()?.command(&[b"PING"]).map(|_| true)
        } as io::Result<bool>)
    }
}

/// One RESP2 connection, commands in order.
pub struct Connection {
    stream: TcpStream,
    undecoded: Vec<u8>,
}

impl Connection {
    pub fn open(address: SocketAddr, password: Option<&str>) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, SOON)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.set_write_timeout(Some(SOON))?;
        let mut connection = Self { stream, undecoded: Vec::new() };
        if let Some(password) = password {
            connection.command(&[b"AUTH", password.as_bytes()])?;
        }
        Ok(connection)
    }

    /// # Errors
    /// What TCP says, and an error reply as `Other`.
    pub fn command(&mut self, parts: &[&[u8]]) -> io::Result<OwnedFrame> {
        self.send(parts)?;
        self.answer()
    }

    pub fn publish(&mut self, channel: &str, payload: &[u8]) -> io::Result<i64> {
        match self.command(&[b"PUBLISH", channel.as_bytes(), payload])? {
            OwnedFrame::Integer(receivers) => Ok(receivers),
            other => Err(io::Error::other(format!("PUBLISH answered {other:?}"))),
        }
    }

    /// Publishes all of it back to back and reads the answers meanwhile, so that neither side waits for the other.
    pub fn publish_all(&mut self, channel: &str, payloads: impl Iterator<Item = Vec<u8>>) -> io::Result<()> {
        let mut unanswered = 0;
        for payload in payloads {
            self.send(&[b"PUBLISH", channel.as_bytes(), &payload])?;
            unanswered += 1;
            if unanswered == UNANSWERED_MAX {
                self.answer()?;
                unanswered -= 1;
            }
        }
        (0..unanswered).try_for_each(|_| self.answer().map(drop))
    }

    /// Publishes once to each channel, back to back; returns the sum of the subscribers.
    pub fn publish_to_each(&mut self, channels: &[String], payload: &[u8]) -> io::Result<i64> {
        for channel in channels {
            self.send(&[b"PUBLISH", channel.as_bytes(), payload])?;
        }
        let mut receivers = 0;
        for _ in channels {
            match self.answer()? {
                OwnedFrame::Integer(count) => receivers += count,
                other => return Err(io::Error::other(format!("PUBLISH answered {other:?}"))),
            }
        }
        Ok(receivers)
    }

    /// Sends one command without waiting for its answer.
    pub fn send(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let parts = parts.iter().map(|part| OwnedFrame::BulkString(part.to_vec())).collect();
        let frame = OwnedFrame::Array(parts);
        let mut bytes = vec![0; frame.encode_len(false)];
        encode::encode(&mut bytes, &frame, false).map_err(io::Error::other)?;
        self.stream.write_all(&bytes)
    }

    /// Reads the next answer or push.
    pub fn answer(&mut self) -> io::Result<OwnedFrame> {
        let mut chunk = [0; 64 * 1024];
        loop {
            if let Some((frame, taken)) = decode::decode(&self.undecoded).map_err(io::Error::other)? {
                self.undecoded.drain(..taken);
                return match frame {
                    OwnedFrame::Error(error) => Err(io::Error::other(error)),
                    frame => Ok(frame),
                };
            }
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                received => self.undecoded.extend_from_slice(&chunk[..received]),
            }
        }
    }
}

/// What Redis says in words.
pub fn text(frame: &OwnedFrame) -> String {
    match frame {
        OwnedFrame::BulkString(bytes) | OwnedFrame::SimpleString(bytes) => {
            String::from_utf8_lossy(bytes).into_owned()
        }
        other => panic!("{other:?} where a text was due"),
    }
}

/// The number in the answer of PUBSUB for one channel.
#[track_caller]
fn count_in(answer: &OwnedFrame) -> i64 {
    match answer {
        OwnedFrame::Array(parts) => match parts.last() {
            Some(OwnedFrame::Integer(count)) => *count,
            other => panic!("PUBSUB answered {other:?}"),
        },
        other => panic!("PUBSUB answered {other:?}"),
    }
}

/// The server that is installed, or the one that `CORECAST_TEST_REDIS_SERVER` names.
pub fn program() -> String {
    std::env::var("CORECAST_TEST_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

#[track_caller]
fn spawn(program: &str, port: u16, args: &[String], scratch: &Scratch) -> Running {
    let log = File::create(scratch.path("log")).expect("a scratch directory takes files");
    let mut command = Command::new(program);
    command
        .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
        .args(["--save", "", "--appendonly", "no", "--daemonize", "no", "--loglevel", "warning"])
        .arg("--unixsocket")
        .arg(scratch.path("redis.sock"))
        .args(args)
        .current_dir(scratch.dir())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a descriptor is left"))
        .stderr(log);
    confine(&mut command, Confinement::default());
    let child = command.spawn().unwrap_or_else(|error| {
        panic!(
            "cannot run {program}: {error}. These tests need a real Redis: install redis-server (Debian: apt install \
             redis-server), or name one in CORECAST_TEST_REDIS_SERVER"
        )
    });
    Running(child)
}

/// In an argument: a free port, of which there is one.
pub const FREE_PORT: &str = "{free_port}";
const PORTS_TRIED: usize = 5;
/// Answers of a few bytes each: far below what the socket buffers hold.
const UNANSWERED_MAX: usize = 1000;
