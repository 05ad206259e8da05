//! The generator's hold on its receiver processes: orders to all, answers from all, progress through shared memory.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddrV4;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::dial::{Dial, Dialed};
use crate::latency::Latencies;
use crate::orders::{Connect, Order, PathTemplate, Receiving, Reply};
use crate::process::Owned;
use crate::receiver::COUNTERS_PER_PROCESS;
use crate::sys::{self, SharedCounters};
use crate::tally::{Counts, Seating};

/// Connections that one process takes, below a descriptor limit of 20,000.
const CONNECTIONS_PER_PROCESS_MAX: usize = 15_000;
/// Handshakes under way in one process.
const DIALS_PARALLEL: usize = 128;

/// How receiver processes are run.
#[derive(Debug, Clone)]
pub struct Crewing {
    /// Cores of the generator.
    pub cores: Vec<usize>,
    /// How input is learned of.
    pub receiving: Receiving,
    /// How many; by default as many as the descriptor limit asks for, and one per core.
    pub processes: Option<usize>,
}

/// Who connects to what.
#[derive(Debug, Clone)]
pub struct Audience {
    /// The server.
    pub address: SocketAddrV4,
    /// Of the upgrade requests.
    pub path: PathTemplate,
    /// Who sits where.
    pub seating: Seating,
    /// In all processes together.
    pub connections: usize,
}

/// The receiver processes of one server.
pub struct Receivers {
    processes: Vec<Process>,
    counters: SharedCounters,
    audience: Audience,
    churned: usize,
}

struct Process {
    owned: Owned,
    orders: ChildStdin,
    replies: BufReader<ChildStdout>,
    first: usize,
    connections: usize,
}

impl Receivers {
    /// Starts the processes; they connect when told to.
    pub fn start(crewing: &Crewing, audience: Audience) -> Result<Self> {
        let least = audience.connections.div_ceil(CONNECTIONS_PER_PROCESS_MAX);
        let wanted = crewing.processes.unwrap_or(crewing.cores.len()).max(least);
        let count = wanted.clamp(1, audience.connections.max(1));
        let counters = SharedCounters::create(count * COUNTERS_PER_PROCESS)?;
        let receiving = match crewing.receiving {
            Receiving::Epoll => 0,
            Receiving::Poll { interval_ns } => interval_ns,
        };
        let program = std::env::current_exe().context("finding this program")?;
        let mut processes = Vec::with_capacity(count);
        for index in 0..count {
            let mut command = Command::new(&program);
            command
                .args(["receiver-process", "--index", &index.to_string()])
                .args(["--processes", &count.to_string()])
                .args(["--counters", &counters.path()])
                .args(["--poll-ns", &receiving.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            let core = crewing.cores[index % crewing.cores.len()];
            let mut owned = Owned::start(command, &[core])?;
            let orders = owned.child.stdin.take().context("a child without its pipe")?;
            let replies = BufReader::new(owned.child.stdout.take().context("a child without its pipe")?);
            let first = audience.connections * index / count;
            let connections = audience.connections * (index + 1) / count - first;
            processes.push(Process { owned, orders, replies, first, connections });
        }
        Ok(Self { processes, counters, audience, churned: 0 })
    }

    /// Opens all connections. Fails unless every one got its 101.
    pub fn connect(&mut self) -> Result<()> {
        let Audience { address, path, seating, connections } = self.audience.clone();
        for (index, process) in self.processes.iter_mut().enumerate() {
            let dial = Dial { address, parallel: DIALS_PARALLEL, process: index, opened_before: 0 };
            let (first, connections) = (process.first, process.connections);
            let path = path.clone();
            process.send(&Order::Connect(Connect { dial, path, seating, first, connections }))?;
        }
        let dialed = self.dialed()?;
        if dialed.failed > 0 {
            bail!("{} of {connections} connections failed: {}", dialed.failed, dialed.errors.join("; "));
        }
        Ok(())
    }

    /// Opens and closes `count` connections, `parallel` at a time in all.
    pub fn churn(&mut self, count: usize, parallel: usize) -> Result<Dialed> {
        let Audience { address, path, seating, .. } = self.audience.clone();
        let processes = self.processes.len();
        for (index, process) in self.processes.iter_mut().enumerate() {
            let parallel = (parallel / processes).max(1);
            let dial = Dial { address, parallel, process: index, opened_before: self.churned };
            let first = count * index / processes;
            let count = count * (index + 1) / processes - first;
            process.send(&Order::Churn { dial, path: path.clone(), seating, first, count })?;
        }
        self.churned += count;
        self.dialed()
    }

    fn dialed(&mut self) -> Result<Dialed> {
        let mut all = Dialed::default();
        for process in &mut self.processes {
            match process.reply()? {
                Reply::Dialed(one) => {
                    all.done += one.done;
                    all.failed += one.failed;
                    all.errors.extend(one.errors);
                    all.handshakes.extend(one.handshakes);
                }
                other => bail!("a receiver answered {other:?} to an order to connect"),
            }
        }
        Ok(all)
    }

    /// Counts from now on; message `number` is the next one of the run.
    pub fn begin(&mut self, number: u64, track: bool) -> Result<()> {
        let seating = self.audience.seating;
        let unseated = self.processes.iter().any(|process| {
            let range = process.first..process.first + process.connections;
            seating.members(range).contains(&0)
        });
        if track && unseated {
            bail!(
                "a window needs a member of every room in every receiver process: fewer rooms, or more clients"
            );
        }
        self.all(&Order::Begin { number, track })
    }

    /// What was counted since [`begin`](Self::begin).
    pub fn end(&mut self) -> Result<(Counts, Latencies)> {
        for process in &mut self.processes {
            process.send(&Order::End)?;
        }
        let (mut counts, mut latencies) = (Counts::default(), Latencies::new());
        for process in &mut self.processes {
            match process.reply()? {
                Reply::Counted { counts: one, latencies: pairs } => {
                    counts.merge(&one);
                    latencies.merge(&pairs);
                }
                other => bail!("a receiver answered {other:?} to an order to report"),
            }
        }
        Ok((counts, latencies))
    }

    /// Every so many-th connection is no longer read. Returns the members that each room has left.
    pub fn stall(&mut self, every: usize) -> Result<Vec<u32>> {
        self.all(&Order::Stall { every })?;
        let reading = self.processes.iter().flat_map(|process| {
            let is_read = move |at: &usize| !at.is_multiple_of(every);
            (0..process.connections).filter(is_read).map(|at| process.first + at)
        });
        Ok(self.audience.seating.members(reading))
    }

    /// All connections are read again.
    pub fn resume(&mut self) -> Result<()> {
        self.all(&Order::Resume)
    }

    fn all(&mut self, order: &Order) -> Result<()> {
        for process in &mut self.processes {
            process.send(order)?;
        }
        for process in &mut self.processes {
            match process.reply()? {
                Reply::Done => {}
                other => bail!("a receiver answered {other:?} to {order:?}"),
            }
        }
        Ok(())
    }

    /// Deliveries since [`begin`](Self::begin), as the processes have shown them.
    pub fn delivered(&self) -> u64 {
        self.counters_at(0).sum()
    }

    /// Every message below this number has arrived at every member, if it is tracked.
    pub fn complete(&self) -> u64 {
        self.counters_at(1).min().unwrap_or(0)
    }

    fn counters_at(&self, offset: usize) -> impl Iterator<Item = u64> {
        (0..self.processes.len())
            .map(move |index| self.counters.at(index * COUNTERS_PER_PROCESS + offset).load(Ordering::Acquire))
    }

    /// Waits until `deliveries` have arrived; says whether they have when nothing has come for `patience`.
    pub fn wait_delivered(&self, deliveries: u64, patience: Duration) -> bool {
        let (mut seen, mut since) = (self.delivered(), Instant::now());
        while seen < deliveries && !sys::interrupted() {
            std::thread::sleep(Duration::from_millis(1));
            let now = self.delivered();
            if now != seen {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() > patience {
                return false;
            }
        }
        seen >= deliveries
    }

    /// Process ids, in order.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.processes.iter().map(|process| process.owned.pid())
    }
}

impl Process {
    fn send(&mut self, order: &Order) -> Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.orders.write_all(&line).context("a receiver process has ended")
    }

    fn reply(&mut self) -> Result<Reply> {
        let mut line = String::new();
        if self.replies.read_line(&mut line)? == 0 {
            bail!("a receiver process has ended");
        }
        match serde_json::from_str(&line)? {
            Reply::Failed(error) => bail!("a receiver process failed: {error}"),
            reply => Ok(reply),
        }
    }
}
