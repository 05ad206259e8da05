//! Processes that the generator starts: pinned, watched, and ended with it.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::sys;

/// From start to readiness.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// From readiness to a confirmed subscription.
const SUBSCRIBED_TIMEOUT: Duration = Duration::from_secs(2);
/// What is shown of a process that failed.
const OUTPUT_SHOWN_BYTES: usize = 2_000;

/// Somebody asked the run to end before what was begun was through; no fault of anybody's.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// A child that doesn't outlive its owner.
pub struct Owned {
    /// For its pipes.
    pub child: Child,
}

impl Owned {
    /// Starts `command` on `cores`. Only from the main thread, because the child dies with the thread that starts it.
    pub fn start(mut command: Command, cores: &[usize]) -> Result<Self> {
        sys::bind_child(&mut command, cores);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let owned = Self { child };
        sys::note_group(&owned.child)?;
        Ok(owned)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // The kill can't be refused, so this returns; without the wait the child would stay as a zombie.
        if let Err(error) = sys::end_group(&mut self.child) {
            eprintln!("process {} could not be waited for: {error}", self.child.id());
        }
    }
}

/// A folder for ports files and output, gone at the end.
pub struct Scratch {
    folder: PathBuf,
    made: Cell<u32>,
}

impl Scratch {
    /// A new one.
    pub fn create() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("corecast-bench-{}", std::process::id()));
        if folder.exists() {
            // Of a generator that was killed and had this process id.
            fs::remove_dir_all(&folder).with_context(|| format!("emptying {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let last = folder.clone();
        sys::at_second_interrupt(move || drop(fs::remove_dir_all(last)));
        Ok(Self { folder, made: Cell::new(0) })
    }

    /// A new empty folder in it: servers that run at the same time share no file.
    fn fresh(&self) -> Result<PathBuf> {
        self.made.set(self.made.get() + 1);
        let folder = self.folder.join(self.made.get().to_string());
        fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
        Ok(folder)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{} could not be removed: {error}", self.folder.display());
        }
    }
}

/// What fills the places of a server's command.
#[derive(Debug, Clone)]
pub struct Places {
    /// `{redis}`: host and port; empty without Redis.
    pub redis: String,
    /// `{shards}`.
    pub shards: usize,
    /// `{cores}`, in this order, and where the server is pinned.
    pub cores: Vec<usize>,
    /// What the file at `{config}` holds; places in it are filled too.
    pub config: String,
}

/// The server under measurement.
pub struct Server {
    owned: Option<Owned>,
    /// The process that is measured, with its descendants.
    pub pid: u32,
    /// Where it listens.
    pub address: SocketAddrV4,
    /// As it was run, or how it was attached to.
    pub command: String,
    output_path: PathBuf,
    /// How to start it once more.
    recipe: Option<Recipe>,
}

/// What starts a server.
#[derive(Debug, Clone)]
struct Recipe {
    template: String,
    places: Places,
}

impl Server {
    /// Attaches to a server that runs already.
    pub fn attach(pid: u32, address: SocketAddrV4) -> Result<Self> {
        sys::process_cpu_ns(pid).with_context(|| format!("no process {pid} to attach to"))?;
        Ok(Self {
            owned: None,
            pid,
            address,
            command: format!("(attached to a running process on {address})"),
            output_path: PathBuf::new(),
            recipe: None,
        })
    }

    /// Runs `template` with its places filled and waits until it is ready.
    ///
    /// With `{ports_file}` in the template the server chooses its port and writes the file when it is ready; without, it
    /// is ready when it accepts on `{port}` (or `{listen}`).
    pub fn start(template: &str, places: &Places, scratch: &Scratch) -> Result<Self> {
        Self::start_at(template, places, scratch, None)
    }

    /// The same on `listen` (one port) instead of a port that is free.
    pub fn start_at(
        template: &str,
        places: &Places,
        scratch: &Scratch,
        listen: Option<&[SocketAddrV4]>,
    ) -> Result<Self> {
        let folder = scratch.fresh()?;
        let (ports_file, config) = (folder.join("ports.json"), folder.join("config.toml"));
        let output_path = folder.join("server.log");
        fs::write(&config, &places.config)?;
        let has_ports_file = template.contains("{ports_file}");
        let port = match listen.and_then(<[_]>::first) {
            Some(address) => address.port(),
            None => free_port()?,
        };
        let listen = match listen {
            Some(addresses) => addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            None if has_ports_file => "127.0.0.1:0".to_owned(),
            None => format!("127.0.0.1:{port}"),
        };
        let corecast = crate::cli::corecast_path()?;
        let cores: Vec<String> = places.cores.iter().map(ToString::to_string).collect();
        let fill = |word: &str| {
            word.replace("{corecast}", &corecast.to_string_lossy())
                .replace("{listen}", &listen)
                .replace("{port}", &port.to_string())
                .replace("{ports_file}", &ports_file.to_string_lossy())
                .replace("{config}", &config.to_string_lossy())
                .replace("{redis}", &places.redis)
                .replace("{shards}", &places.shards.to_string())
                .replace("{cores}", &cores.join(","))
                .replace("{scratch}", &folder.to_string_lossy())
        };
        fs::write(&config, fill(&places.config))?;
        let words: Vec<String> = template.split_whitespace().map(fill).collect();
        let (program, arguments) = words.split_first().context("the server's command is empty")?;
        let output = File::create(&output_path)?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let owned = Owned::start(command, &places.cores)?;
        let ready = || -> Option<SocketAddr> {
            if has_ports_file {
                let ports: Value = serde_json::from_str(&fs::read_to_string(&ports_file).ok()?).ok()?;
                return ports["listen"].as_str()?.parse().ok();
            }
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            TcpStream::connect(address).is_ok().then_some(address)
        };
        match wait_until_ready(&owned, ready) {
            Ok(SocketAddr::V4(address)) => Ok(Self {
                pid: owned.pid(),
                owned: Some(owned),
                address,
                command: words.join(" "),
                output_path: output_path.clone(),
                recipe: Some(Recipe { template: template.to_owned(), places: places.clone() }),
            }),
            Ok(address) => bail!("the server listens on {address}; the generator speaks IPv4 only"),
            Err(error) => Err(error.context(format!("{}\n{}", words.join(" "), tail(&output_path)))),
        }
    }

    /// Ends the process with SIGKILL and runs its command again, on the address that it had. Returns when it is ready.
    ///
    /// # Errors
    /// It was attached to, or doesn't start again.
    pub fn kill_and_restart(&mut self, scratch: &Scratch) -> Result<()> {
        let Some(Recipe { template, places }) = self.recipe.take() else {
            bail!("a server that was attached to can't be started again: leave out --pid");
        };
        // Dropping kills, and waits for the end.
        self.owned = None;
        *self = Self::start_at(&template, &places, scratch, Some(&[self.address]))?;
        Ok(())
    }

    /// An error if the server has ended by itself, with the last it said.
    pub fn check_alive(&mut self) -> Result<()> {
        match &mut self.owned {
            Some(owned) => {
                if let Some(status) = sys::peek_end(&owned.child)? {
                    bail!("the server ended with {status} during the run\n{}", tail(&self.output_path));
                }
            }
            None => {
                sys::process_cpu_ns(self.pid).with_context(|| format!("process {} has ended", self.pid))?;
            }
        }
        Ok(())
    }
}

/// A Redis to publish through.
pub struct Redis {
    owned: Option<Owned>,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Redis {
    /// Uses one that runs already.
    pub fn attach(address: SocketAddr) -> Self {
        Self { owned: None, address }
    }

    /// Starts one without persistence on a free port.
    pub fn start(cores: &[usize], scratch: &Scratch) -> Result<Self> {
        let port = free_port()?;
        let folder = scratch.fresh()?;
        let output_path = folder.join("redis.log");
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"])
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(File::create(&output_path)?)
            .stderr(Stdio::null());
        let owned = Owned::start(command, cores)?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let answers_ping = || {
            let mut stream = TcpStream::connect(address).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
            stream.write_all(b"PING\r\n").ok()?;
            let mut answer = [0; 7];
            stream.read_exact(&mut answer).ok()?;
            (&answer == b"+PONG\r\n").then_some(address)
        };
        match wait_until_ready(&owned, answers_ping) {
            Ok(address) => Ok(Self { owned: Some(owned), address }),
            Err(error) => Err(error.context(format!("redis-server\n{}", tail(&output_path)))),
        }
    }

    /// Waits until somebody has subscribed to something, 2 s at most: a server that subscribes for its first member does so
    /// later. Others may accept clients before their subscription is confirmed, and lose what is published until then.
    pub fn wait_subscribed(&self) -> Result<()> {
        let mut stream = TcpStream::connect(self.address).context("asking Redis for its subscribers")?;
        stream.set_read_timeout(Some(SUBSCRIBED_TIMEOUT))?;
        let deadline = Instant::now() + SUBSCRIBED_TIMEOUT;
        loop {
            let is_subscribed = count_of(&mut stream, "NUMPAT")? + count_of(&mut stream, "CHANNELS")? > 0;
            if is_subscribed || Instant::now() > deadline || sys::interrupted() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Its process, if we started it.
    pub fn pid(&self) -> Option<u32> {
        self.owned.as_ref().map(Owned::pid)
    }
}

/// The number that begins the answer to `PUBSUB what`: of patterns, or of the channels that follow.
fn count_of(stream: &mut TcpStream, what: &str) -> Result<u64> {
    write!(stream, "PUBSUB {what}\r\n")?;
    let mut lines = BufReader::new(stream).lines();
    let head = lines.next().context("Redis ended the connection")??;
    let count: u64 = head.get(1..).and_then(|number| number.parse().ok()).context("no number")?;
    if head.starts_with('*') {
        // Each channel is two lines: its length and its name.
        for _ in 0..2 * count {
            lines.next().context("Redis ended the connection")??;
        }
    }
    Ok(count)
}

fn wait_until_ready<T>(owned: &Owned, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if let Some(found) = ready() {
            return Ok(found);
        }
        if let Some(status) = sys::peek_end(&owned.child)? {
            bail!("ended with {status} before it was ready");
        }
        if Instant::now() > deadline {
            bail!("was not ready after {START_TIMEOUT:?}");
        }
        if sys::interrupted() {
            bail!(Interrupted);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A port that nobody listens on now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn tail(path: &Path) -> String {
    let output = fs::read(path).unwrap_or_default();
    let end = &output[output.len().saturating_sub(OUTPUT_SHOWN_BYTES)..];
    match String::from_utf8_lossy(end).trim_end() {
        "" => "it said nothing".to_owned(),
        said => said.to_owned(),
    }
}

/// Host and port of `text`, resolved to an IPv4 address.
pub fn resolve(text: &str) -> Result<SocketAddrV4> {
    use std::net::ToSocketAddrs;
    text.to_socket_addrs()
        .with_context(|| format!("{text:?} is no HOST:PORT"))?
        .find_map(|address| match address {
            SocketAddr::V4(address) => Some(address),
            SocketAddr::V6(_) => None,
        })
        .ok_or_else(|| anyhow!("{text} has no IPv4 address"))
}
