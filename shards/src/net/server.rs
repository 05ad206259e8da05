//! A running server: its threads from start to end.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use domains::Registry;
use rustix::process::{Resource, getrlimit};

use super::bell::Bell;
use super::bind::{is_served_by_somebody, is_shared_by_somebody};
use super::connection::Clock;
use super::cores::{Plan, usable};
use super::drain::{Drain, Leave};
use super::group::{bind_admin, listen_all, not_steered};
use super::listener::{Holder, Kind, Place};
use super::notice::{Journal, noticed};
use super::options::SocketOptions;
use super::passed::{AdminWay, Listening, Passed};
use super::relay::RelayThread;
use super::ring::{RelayEnd, pair};
use super::runtime::{Driver, NoIoUring, ShardParts, block_on, choose, run_shard};
use super::threads::{LostThread, Pulse, Threads};
use crate::auth::Gate;
use crate::config::{Config, Steer};
use crate::limits::descriptors_reserved;
use crate::metrics::{Identity, Metrics};
use crate::setup::Setup;
use crate::shard::{ADMIN, Shard};

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// See [`NoIoUring`].
    #[error(transparent)]
    NoIoUring(#[from] NoIoUring),
    /// An address could not be bound.
    #[error("can't listen on {address}: {error}{cure}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// The kernel's word.
        error: io::Error,
        /// What to do.
        cure: &'static str,
    },
    /// `--cores` names one that this process may not use.
    #[error("found core {core}, due some of those that this process may run on: {usable:?}")]
    Core {
        /// Which.
        core: usize,
        /// Those that can.
        usable: Vec<usize>,
    },
    /// Connections can't be steered as `--steer` says; the sentence tells why.
    #[error("{0}")]
    Steer(String),
    /// A thread could not be started, or its runtime.
    #[error("thread {name} can't start: {error}")]
    Thread {
        /// Which.
        name: String,
        /// The kernel's word.
        error: io::Error,
    },
}

impl StartError {
    pub(super) fn bind(address: SocketAddr, error: io::Error, steer: Steer) -> Self {
        let cure = match error.raw_os_error() {
            Some(libc::EADDRINUSE) if steer == Steer::Cpu && is_served_by_somebody(address) => {
                ": somebody listens there, and connections are steered by core only where the port is one server's own; \
                 leave --steer out, or choose another port"
            }
            Some(libc::EADDRINUSE) if is_shared_by_somebody(address) => {
                ": a corecast serves there already, and sharing a port needs Redis, through which the processes reach \
                 each other's clients; pass --redis to each of them, or choose another port"
            }
            Some(libc::EADDRINUSE) => {
                ": another program listens there, or a corecast of another user; choose another port"
            }
            _ => cure_of(&error),
        };
        Self::Bind { address, error, cure }
    }

    pub(super) fn bind_admin(address: SocketAddr, error: io::Error) -> Self {
        let cure = match error.raw_os_error() {
            Some(libc::EADDRINUSE) => {
                ": an admin address is one process's own, and somebody listens there; choose another --admin"
            }
            _ => cure_of(&error),
        };
        Self::Bind { address, error, cure }
    }
}

fn cure_of(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EACCES) => ": ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

/// See the module.
pub struct Server {
    /// What is served, first address first, ports settled.
    pub listen: Vec<SocketAddr>,
    /// The admin address, if there is one.
    pub admin: Option<SocketAddr>,
    /// The driver in use.
    pub driver: Driver,
    /// Why it is not io_uring, where that was wanted.
    pub no_io_uring: Option<NoIoUring>,
    /// Core of each shard.
    pub cores: Vec<usize>,
    /// Core of the relay's own thread; `None` where it lives on shard 0's.
    pub relay_core: Option<usize>,
    /// Shared with its threads.
    pub setup: Arc<Setup>,
    drain: Arc<Drain>,
    threads: Threads,
    relay_bell: Arc<Bell>,
    shards_left: Arc<AtomicUsize>,
}

/// Connections that the descriptor limit leaves space for.
fn connections_that_fit(shards: usize, has_admin: bool, broker: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize);
    limit.saturating_sub(descriptors_reserved(shards, has_admin, broker)).max(1)
}

impl Server {
    /// Starts every thread and returns when all of them serve. `key` is what `--api-key-file` holds; the sockets of
    /// `passed` take the place of addresses of `config`.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub fn start(
        config: &Config,
        key: Option<String>,
        domains: Registry,
        passed: Passed,
    ) -> Result<Self, StartError> {
        let config = &passed.applied_to(config);
        let (driver, no_io_uring) = choose(config.driver, config.expert.ring_setup)?;
        let Plan { shards: cores, relay: relay_core } = Plan::new(&usable(config)?, config.shards);
        let holder = passed.listen.first().map_or(Holder::Nobody, |listening| listening.holder);
        let process = passed.process;
        let (listen, admin, sockets) = place_all(config, passed, &cores)?;
        let loopback_only = listen.iter().chain(&admin).all(|address| address.ip().is_loopback());
        let metrics =
            Arc::new(Metrics::new(cores.len(), identity(config, driver, process), config.plain_metrics));
        let admin_on_loopback = admin.is_some_and(|address| address.ip().is_loopback());
        let gate = Gate::new(key, loopback_only).with_admin(admin_on_loopback);
        let mut setup = Setup::new(config, gate, metrics);
        let connections_that_fit =
            connections_that_fit(cores.len(), admin.is_some(), config.broker.descriptors());
        setup.bounds.connections_max = setup.bounds.connections_max.min(connections_that_fit);
        setup.domains = domains;
        setup.noticed = noticed(config);
        let setup = Arc::new(setup);
        let clock = Clock::start();
        let relay_bell = Bell::new().map_err(thread_error("relay"))?;
        let shards_left = Arc::new(AtomicUsize::new(cores.len()));
        let drain = Arc::new(Drain::new(config.drain, cores.len(), listen.clone(), holder));
        let mut relay_ends = Vec::new();
        let mut parts = Vec::new();
        for (index, listeners) in sockets.into_iter().enumerate() {
            let bell = Bell::new().map_err(thread_error("shard"))?;
            let (relay_end, ring) = pair(bell.clone(), relay_bell.clone());
            relay_ends.push(relay_end);
            let shard = Shard::new(index as u16, setup.clone());
            let journal = Journal { shard: index as u16, connections_at_info: config.log_connections };
            parts.push(ShardParts {
                shard,
                journal,
                driver,
                clock,
                ring,
                bell,
                listeners,
                options: SocketOptions::new(&config.expert),
                drain: drain.clone(),
            });
        }
        let relay = RelayParts {
            config: config.clone(),
            setup: setup.clone(),
            rings: relay_ends,
            bell: relay_bell.clone(),
            clock,
            shards_left: shards_left.clone(),
        };
        let mut server = Self {
            listen,
            admin,
            driver,
            no_io_uring,
            cores,
            relay_core,
            setup,
            drain,
            threads: Threads::default(),
            relay_bell,
            shards_left,
        };
        server.start_threads(parts, relay)?;
        Ok(server)
    }

    /// Nothing is accepted before every thread has its descriptors: clients that rush in may take all that are left.
    fn start_threads(&mut self, parts: Vec<ShardParts>, relay: RelayParts) -> Result<(), StartError> {
        let (ready, is_ready) = mpsc::channel();
        let mut permits = Vec::new();
        let mut start_of = |name: &str| {
            let (permit, may_serve) = mpsc::channel();
            permits.push(permit);
            Start { name: name.to_owned(), ready: Some(ready.clone()), may_serve }
        };
        let mut relay = Some(relay);
        if let Some(core) = self.relay_core
            && let Some(relay) = relay.take()
        {
            let (start, driver) = (start_of("relay"), self.driver);
            let run = move |pulse| relay.run(driver, start, pulse);
            self.threads.spawn("relay", core, run).map_err(thread_error("relay"))?;
        }
        for (index, parts) in parts.into_iter().enumerate() {
            let name = format!("shard-{index}");
            // Without a core of its own the relay lives on the first shard's thread.
            let leaving =
                Leaving { shards_left: self.shards_left.clone(), relay_bell: self.relay_bell.clone() };
            let thread = ShardThread { parts, relay: relay.take(), start: start_of(&name), leaving };
            let run = move |pulse| thread.run(pulse);
            self.threads.spawn(&name, self.cores[index], run).map_err(thread_error(&name))?;
        }
        drop(ready);
        for (name, result) in is_ready {
            result.map_err(thread_error(&name))?;
        }
        for permit in permits {
            permit
                .send(())
                .map_err(|_| thread_error("shard")(io::Error::other("it ended before it served")))?;
        }
        Ok(())
    }

    /// Begins the drain: not ready, no new connections, existing ones closed at a pace. May be called again with
    /// [`Leave::ForGood`].
    pub fn drain(&self, leave: Leave) {
        self.drain.begin(leave);
    }

    /// Whether every thread has ended.
    pub fn has_ended(&self) -> bool {
        self.threads.have_ended()
    }

    /// The names of the threads that have not ended.
    pub fn running_threads(&self) -> Vec<&str> {
        self.threads.running()
    }

    /// A thread that ended before the drain: what it did is done by nobody now.
    pub fn take_lost_thread(&mut self) -> Option<LostThread> {
        self.threads.take_lost()
    }

    /// The name of a thread that has not come round for `patience` (at least a second).
    pub fn silent_thread(&mut self, patience: Duration) -> Option<&str> {
        self.threads.silent(Instant::now(), patience)
    }

    /// Waits for the end of all threads.
    ///
    /// # Errors
    /// The first that ended badly.
    pub fn join(self) -> io::Result<()> {
        self.threads.join()
    }
}

/// A thread's start: it tells that it holds every descriptor it needs, or why not, and waits for the others.
struct Start {
    name: String,
    /// Told once.
    ready: Option<mpsc::Sender<(String, io::Result<()>)>>,
    may_serve: mpsc::Receiver<()>,
}

impl Start {
    fn tell(&mut self, result: io::Result<()>) {
        if let Some(ready) = self.ready.take() {
            let _starter_gone = ready.send((std::mem::take(&mut self.name), result));
        }
    }

    /// Blocks until all threads are ready. False where one of them can't be: then this one is to end.
    fn may_serve(&mut self) -> bool {
        self.tell(Ok(()));
        self.may_serve.recv().is_ok()
    }

    /// Passes the result of a thread on, and tells of an error that came before it was ready.
    fn end(mut self, result: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &result {
            self.tell(Err(io::Error::new(error.kind(), error.to_string())));
        }
        result
    }
}

impl Drop for Start {
    /// Of a thread that panicked.
    fn drop(&mut self) {
        self.tell(Err(io::Error::other("it ended before it was ready")));
    }
}

/// Tells the relay that a shard's thread is leaving, however it leaves: the relay ends with the last of them.
struct Leaving {
    shards_left: Arc<AtomicUsize>,
    relay_bell: Arc<Bell>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.shards_left.fetch_sub(1, Ordering::Release);
        self.relay_bell.write();
    }
}

/// What a shard's thread does.
struct ShardThread {
    parts: ShardParts,
    relay: Option<RelayParts>,
    start: Start,
    leaving: Leaving,
}

impl ShardThread {
    fn run(self, pulse: Pulse) -> io::Result<()> {
        let Self { parts, relay, mut start, leaving } = self;
        let result = block_on(parts.driver, async {
            monoio::spawn(pulse.beat());
            let relay = match relay {
                Some(relay) => Some(monoio::spawn(relay.start_on(false)?)),
                None => None,
            };
            let result = run_shard(parts, || start.may_serve()).await;
            drop(leaving);
            if let Some(relay) = relay {
                relay.await;
            }
            result
        });
        start.end(result.and_then(|inner| inner))
    }
}

fn thread_error(name: &str) -> impl FnOnce(io::Error) -> StartError + use<> {
    let name = name.to_owned();
    move |error| StartError::Thread { name, error }
}

struct RelayParts {
    config: Config,
    setup: Arc<Setup>,
    rings: Vec<RelayEnd>,
    bell: Arc<Bell>,
    clock: Clock,
    shards_left: Arc<AtomicUsize>,
}

impl RelayParts {
    /// On a thread of its own.
    fn run(self, driver: Driver, mut start: Start, pulse: Pulse) -> io::Result<()> {
        let result = block_on(driver, async {
            monoio::spawn(pulse.beat());
            let relay = self.start_on(true)?;
            if start.may_serve() {
                relay.await;
            }
            Ok(())
        });
        start.end(result.and_then(|inner| inner))
    }

    /// `is_own`: this thread is the relay's alone.
    fn start_on(self, is_own: bool) -> io::Result<impl Future<Output = ()>> {
        let Self { config, setup, rings, bell, clock, shards_left } = self;
        // A random number without a dependency: std seeds its hasher from the kernel.
        let epoch_base = RandomState::new().hash_one(SystemTime::now());
        let is_over = move || shards_left.load(Ordering::Acquire) == 0;
        let thread = RelayThread { clock, bell, is_own };
        super::relay::start(&config, setup, rings, thread, epoch_base, is_over)
    }
}

/// For each shard what it listens on.
type Places = Vec<Vec<Place>>;

/// One socket per shard and address. The admin address is served by shard 0.
fn place_all(
    config: &Config,
    passed: Passed,
    cores: &[usize],
) -> Result<(Vec<SocketAddr>, Option<SocketAddr>, Places), StartError> {
    let listen = match passed.listen.is_empty() {
        true => listen_all(config, cores, Holder::Nobody)?,
        // What a parent made it has steered itself.
        false if passed.process.is_none() => not_steered(config).map(|()| passed.listen)?,
        false => passed.listen,
    };
    let addresses = listen.iter().map(|listening| listening.address).collect();
    let mut places: Places = cores.iter().map(|_| Vec::new()).collect();
    for (index, Listening { address, sockets, holder }) in listen.into_iter().enumerate() {
        for (shard, socket) in spread(sockets, cores.len(), address)?.into_iter().enumerate() {
            places[shard].push(Place { socket, index: index as u8, kind: Kind::Queue(holder) });
        }
    }
    let (admin, kind) = match (passed.admin, config.admin) {
        (Some(AdminWay::Socket(socket, address)), _) => {
            (Some((socket, address)), Kind::Queue(Holder::Manager))
        }
        (Some(AdminWay::Door(socket, address)), _) => (Some((socket, address)), Kind::Door),
        (None, Some(address)) => (Some(bind_admin(address)?), Kind::Queue(Holder::Nobody)),
        (None, None) => (None, Kind::Door),
    };
    let address = admin.as_ref().map(|(_, address)| *address);
    if let Some((socket, _)) = admin {
        places[0].push(Place { socket, index: ADMIN, kind });
    }
    Ok((addresses, address, places))
}

/// A socket for each of `shards` shards: as passed, or further descriptors of the only one.
fn spread(sockets: Vec<OwnedFd>, shards: usize, address: SocketAddr) -> Result<Vec<OwnedFd>, StartError> {
    let failed = |error| StartError::bind(address, error, Steer::Hash);
    match <[OwnedFd; 1]>::try_from(sockets) {
        Ok([socket]) => {
            let mut all =
                (1..shards).map(|_| socket.try_clone().map_err(failed)).collect::<Result<Vec<_>, _>>()?;
            all.insert(0, socket);
            Ok(all)
        }
        Err(sockets) => {
            assert_eq!(sockets.len(), shards, "sockets of {address} for so many shards");
            Ok(sockets)
        }
    }
}

fn identity(config: &Config, driver: Driver, process: Option<u16>) -> Identity {
    Identity {
        process,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        driver: driver.name().to_owned(),
        node_id: config.node_id.clone(),
        presets: config.presets.join(","),
        started_unix_seconds: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_secs_f64(),
    }
}
