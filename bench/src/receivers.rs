//! The generator's hold on its receiver processes: orders to all, answers from all, progress through shared memory.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddrV4;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::board::{self, Board};
use crate::comeback::{Return, Returned};
use crate::dial::{Dial, Dialed, Slow};
use crate::latency::Latencies;
use crate::orders::{Connect, Order, PathTemplate, Receiving, Reply};
use crate::process::{Interrupted, Owned};
use crate::progress::Ticker;
use crate::sys;
use crate::tally::{Counts, Seating, Settled};

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
    board: Board,
    audience: Audience,
    slow: Option<Slow>,
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
        let board = Board::create(count)?;
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
                .args(["--counters", &board.path()])
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
        Ok(Self { processes, board, audience, slow: None, churned: 0 })
    }

    /// From before the first connection on: who will [`stall`](Self::stall) now and then.
    pub fn have_slow(&mut self, slow: Slow) {
        self.slow = Some(slow);
    }

    /// Opens all connections. Fails unless every one got its 101.
    pub fn connect(&mut self) -> Result<()> {
        let dialed = self.connect_over(&[self.audience.address], Duration::ZERO)?;
        let wanted = self.audience.connections;
        if dialed.left > 0 {
            let at = format!("when {} of {wanted} connections were open", dialed.done);
            return Err(anyhow::Error::new(Interrupted).context(at));
        }
        if dialed.failed > 0 {
            bail!("{} of {wanted} connections failed: {}", dialed.failed, dialed.errors.join("; "));
        }
        Ok(())
    }

    /// Opens all connections, in turn to each of `addresses`, evenly over `pace`. Tells how it went; an interrupt leaves the
    /// rest unopened.
    pub fn connect_over(&mut self, addresses: &[SocketAddrV4], pace: Duration) -> Result<Dialed> {
        let Audience { path, seating, connections, .. } = self.audience.clone();
        for (index, process) in self.processes.iter_mut().enumerate() {
            let dial = Dial {
                addresses: addresses.to_vec(),
                pace_ns: pace.as_nanos() as u64,
                slow: self.slow,
                ..Dial::to(addresses[0], index, DIALS_PARALLEL)
            };
            let (first, connections) = (process.first, process.connections);
            let path = path.clone();
            process.send(&Order::Connect(Connect { dial, path, seating, first, connections }))?;
        }
        self.dialed(|open| format!("{open} of {connections} connections are open"))
    }

    /// Connections of each process.
    pub fn connections_by_process(&self) -> Vec<usize> {
        self.processes.iter().map(|process| process.connections).collect()
    }

    /// Opens and closes `count` connections, `parallel` at a time in all.
    pub fn churn(&mut self, count: usize, parallel: usize) -> Result<Dialed> {
        let Audience { address, path, seating, .. } = self.audience.clone();
        let processes = self.processes.len();
        for (index, process) in self.processes.iter_mut().enumerate() {
            let parallel = (parallel / processes).max(1);
            let dial = Dial { opened_before: self.churned, ..Dial::to(address, index, parallel) };
            let first = count * index / processes;
            let count = count * (index + 1) / processes - first;
            process.send(&Order::Churn { dial, path: path.clone(), seating, first, count })?;
        }
        self.churned += count;
        self.dialed(|_| format!("{count} connections come and go"))
    }

    /// Waits for what becomes of connections; an interrupt makes the processes leave the rest.
    fn dialed(&mut self, line: impl Fn(u64) -> String) -> Result<Dialed> {
        let mut all = Dialed::default();
        let mut ticker = Ticker::new();
        for index in 0..self.processes.len() {
            while !self.processes[index].has_replied() {
                ticker.tick(|| line(self.open()));
                if sys::interrupted() {
                    self.board.stop();
                }
            }
            match self.processes[index].reply()? {
                Reply::Dialed(one) => all.merge(one),
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
        self.counted(&Order::End)
    }

    /// What was counted since [`begin`](Self::begin) or since it was taken last; nothing is counted twice or between.
    pub fn take(&mut self) -> Result<(Counts, Latencies)> {
        self.counted(&Order::Take)
    }

    fn counted(&mut self, order: &Order) -> Result<(Counts, Latencies)> {
        let (mut counts, mut latencies) = (Counts::default(), Latencies::new());
        self.gather(order, |reply| match reply {
            Reply::Counted { counts: one, latencies: pairs } => {
                counts.merge(&one);
                latencies.merge(&pairs);
                Ok(())
            }
            other => bail!("a receiver answered {other:?} to an order to report"),
        })?;
        Ok((counts, latencies))
    }

    /// From now on connections that end come back.
    pub fn expect_returns(&mut self, plan: Return) -> Result<()> {
        self.all(&Order::Return(plan))
    }

    /// Ends all connections at once, without a word.
    pub fn cut(&mut self) -> Result<()> {
        self.all(&Order::Cut)
    }

    /// Every so many-th connection of a process, from number `offset` on, says goodbye.
    pub fn leave(&mut self, every: usize, offset: usize) -> Result<()> {
        self.all(&Order::Leave { every, offset })
    }

    /// Who came back.
    pub fn returned(&mut self) -> Result<Returned> {
        let mut all = Returned::default();
        self.gather(&Order::Returned, |reply| match reply {
            Reply::Returned(one) => {
                all.merge(one);
                Ok(())
            }
            other => bail!("a receiver answered {other:?} to an order to report returns"),
        })?;
        Ok(all)
    }

    /// What is missing of the messages that each room has had.
    pub fn settle(&mut self, heads: &[u32]) -> Result<Settled> {
        let mut all = Settled::default();
        self.gather(&Order::Settle { heads: heads.to_vec() }, |reply| match reply {
            Reply::Settled(one) => {
                all.merge(&one);
                Ok(())
            }
            other => bail!("a receiver answered {other:?} to an order to settle"),
        })?;
        Ok(all)
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
        self.gather(order, |reply| match reply {
            Reply::Done => Ok(()),
            other => bail!("a receiver answered {other:?} to {order:?}"),
        })
    }

    fn gather(&mut self, order: &Order, mut take: impl FnMut(Reply) -> Result<()>) -> Result<()> {
        for process in &mut self.processes {
            process.send(order)?;
        }
        self.processes.iter_mut().try_for_each(|process| take(process.reply()?))
    }

    /// Deliveries since [`begin`](Self::begin), as the processes have shown them.
    pub fn delivered(&self) -> u64 {
        self.board.of_each(board::DELIVERED).sum()
    }

    /// Every message below this number has arrived at every member, if it is tracked.
    pub fn complete(&self) -> u64 {
        self.board.of_each(board::COMPLETE).min().unwrap_or(0)
    }

    /// Connections that are there.
    pub fn open(&self) -> u64 {
        self.board.of_each(board::OPEN).sum()
    }

    /// Connections that came back, each time counted.
    pub fn back(&self) -> u64 {
        self.board.of_each(board::BACK).sum()
    }

    /// Of those, the ones that have heard something since.
    pub fn heard(&self) -> u64 {
        self.board.of_each(board::HEARD).sum()
    }

    /// Waits until `deliveries` have arrived; says whether they have when nothing has come for `patience`. An interrupt
    /// doesn't end it: what is under way then would count as lost.
    pub fn wait_delivered(&self, deliveries: u64, patience: Duration) -> bool {
        let (mut seen, mut since) = (self.delivered(), Instant::now());
        while seen < deliveries {
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

    /// Waits a tenth of a second for an answer; the end of the process is one too.
    fn has_replied(&mut self) -> bool {
        !self.replies.buffer().is_empty() || sys::wait_readable(self.replies.get_ref(), 100_000_000)
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
