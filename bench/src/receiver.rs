//! A receiver process: thousands of WebSockets, each read and checked, controlled by lines on its standard input.

mod connection;

use std::io::{self, Read, Write};

use anyhow::{Context, Result, bail};

use crate::board::Board;
use crate::comeback::{Comeback, Return};
use crate::dial::{Dialing, Opened, PATIENCE_NS};
use crate::orders::{Connect, Order, Receiving, Reply};
use crate::receiver::connection::{Connection, LEAVING};
use crate::sys::{self, Epoll, Ready, Watch};
use crate::tally::Tally;

/// One receive takes what a socket holds after a burst.
const BUFFER_BYTES: usize = 256 * 1024;
const EVENTS_MAX: usize = 1_024;
const CONTROL: u64 = u64::MAX;
/// Between two looks at what is being dialed, for who sleeps in epoll otherwise.
const DIAL_LOOK_MS: i32 = 1;

/// Runs until standard input ends, which it does when the generator dies.
pub fn run(index: usize, processes: usize, counters_path: &str, receiving: Receiving) -> Result<()> {
    sys::sharpen_timers();
    sys::raise_descriptor_limit().context("raising the descriptor limit")?;
    let board = Board::open(counters_path, processes)
        .with_context(|| format!("opening the shared counters at {counters_path}"))?;
    let epoll = Epoll::new(EVENTS_MAX)?;
    epoll.add(&io::stdin(), CONTROL, Watch::Level)?;
    let mut receiver = Receiver {
        index,
        board,
        epoll,
        connections: Vec::new(),
        open: 0,
        tally: None,
        dialing: None,
        connecting_since_ns: None,
        comeback: None,
        is_counting: false,
        buffer: vec![0; BUFFER_BYTES],
        orders: Vec::new(),
    };
    receiver.run(receiving)
}

struct Receiver {
    index: usize,
    board: Board,
    epoll: Epoll,
    connections: Vec<Option<Connection>>,
    /// Those of `connections` that are there.
    open: u64,
    tally: Option<Tally>,
    dialing: Option<Dialing>,
    /// The order to connect has no answer yet; when a connection last made progress.
    connecting_since_ns: Option<u64>,
    comeback: Option<Comeback>,
    /// Between `Begin` and `End`. Who is not being measured sleeps, and takes no time of the generator's cores.
    is_counting: bool,
    buffer: Vec<u8>,
    /// The beginning of an order.
    orders: Vec<u8>,
}

impl Receiver {
    fn run(&mut self, receiving: Receiving) -> Result<()> {
        let mut ready: Vec<Ready> = Vec::with_capacity(EVENTS_MAX);
        loop {
            ready.clear();
            let is_dialing = self.dialing.as_ref().is_some_and(|dialing| !dialing.is_idle());
            let polls = self.is_counting && matches!(receiving, Receiving::Poll { .. });
            let (wait_ms, dial_ms) = match (polls, is_dialing) {
                (true, _) => (0, 0),
                (false, true) => (0, DIAL_LOOK_MS),
                (false, false) => (-1, 0),
            };
            self.epoll.wait(wait_ms, &mut ready)?;
            for news in &ready {
                if news.token == CONTROL {
                    if !self.take_orders()? {
                        return Ok(());
                    }
                } else {
                    self.receive(news.token as usize, news.ended);
                }
            }
            let has_dialed = self.dial(dial_ms)?;
            self.show_progress();
            if let Receiving::Poll { interval_ns } = receiving
                && polls
                && ready.len() < EVENTS_MAX
                && !has_dialed
            {
                sys::sleep_until_ns(sys::monotonic_ns() + interval_ns);
            }
        }
    }

    fn show_progress(&self) {
        let Some(tally) = &self.tally else { return };
        let back = self.comeback.as_ref().map_or(0, Comeback::back);
        let shown = [tally.counts.delivered, tally.complete(), self.open, back, tally.heard()];
        self.board.show(self.index, shown);
    }

    /// Takes the connections that are being opened a step further; says whether anything happened.
    fn dial(&mut self, timeout_ms: i32) -> Result<bool> {
        let Some(dialing) = &mut self.dialing else { return Ok(false) };
        let mut opened = Vec::new();
        let happened = !dialing.is_idle() && dialing.turn(timeout_ms, &mut |one| opened.push(one))?;
        let is_waiting = dialing.is_waiting();
        for one in opened {
            self.admit(one)?;
        }
        if let Some(since_ns) = self.connecting_since_ns {
            let now_ns = sys::monotonic_ns();
            let is_moving = happened || is_waiting;
            self.connecting_since_ns = Some(if is_moving { now_ns } else { since_ns });
            self.finish_connecting(!is_moving && now_ns - since_ns > PATIENCE_NS)?;
        }
        Ok(happened)
    }

    /// Answers the order to connect once all is done, given up or called off.
    fn finish_connecting(&mut self, is_hopeless: bool) -> Result<()> {
        let Some(dialing) = &mut self.dialing else { return Ok(()) };
        if is_hopeless {
            dialing.give_up("made no progress for 10 s");
        }
        if !dialing.is_idle() && !self.board.is_stopped() {
            return Ok(());
        }
        self.connecting_since_ns = None;
        let dialed = dialing.dialed();
        if !dialing.is_idle() {
            self.dialing = None;
        }
        answer(&Reply::Dialed(dialed))
    }

    /// Takes in a connection whose 101 has come.
    fn admit(&mut self, one: Opened) -> Result<()> {
        let Some(tally) = &mut self.tally else { return Ok(()) };
        let Opened { index, stream, opened_ns, rest } = one;
        let first_room = tally.first_room(index);
        let mut connection = Connection::new(stream, first_room);
        if let Some(comeback) = &mut self.comeback {
            comeback.open(index, opened_ns);
            tally.rejoin(index, opened_ns);
        }
        if !rest.is_empty()
            && let Err(error) = connection.take(index, &rest, tally)
        {
            bail!("connection {index}: {error}");
        }
        self.epoll.add(&connection.stream, index as u64, connection.watch())?;
        self.connections[index] = Some(connection);
        self.open += 1;
        Ok(())
    }

    /// A connection is gone; it comes back if that was ordered.
    fn part_with(&mut self, index: usize) -> Option<Connection> {
        let connection = self.connections[index].take()?;
        self.open -= 1;
        let now_ns = sys::monotonic_ns();
        if let Some(tally) = &mut self.tally {
            let was_told = connection.close_code.is_some() && connection.left_ns.is_none();
            tally.part(index, connection.left_ns.unwrap_or(now_ns), was_told);
        }
        if let (Some(comeback), Some(dialing)) = (&mut self.comeback, &mut self.dialing) {
            dialing.push(index, comeback.end(index, now_ns));
        }
        Some(connection)
    }

    /// Reads one connection until it is drained.
    fn receive(&mut self, index: usize, ended: bool) {
        let Some(connection) = self.connections.get_mut(index).and_then(Option::as_mut) else { return };
        let Some(tally) = &mut self.tally else { return };
        connection.send_replies();
        let end = loop {
            match connection.stream.read(&mut self.buffer) {
                Ok(0) => break Some("none".to_owned()),
                Ok(bytes) => {
                    if let Err(error) = connection.take(index, &self.buffer[..bytes], tally) {
                        break Some(error);
                    }
                    // A short read has emptied the socket: the next input is news (edge-triggered), and an end that came
                    // before this wait has been told with it.
                    if bytes < self.buffer.len() && !ended {
                        break None;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break Some("none".to_owned()),
            }
        };
        connection.wait_for_space(index, &self.epoll);
        if let Some(end) = end {
            let end = match connection.close_code {
                Some(Some(LEAVING)) if connection.left_ns.is_some() => None,
                Some(Some(code)) => Some(code.to_string()),
                Some(None) => Some("1005".to_owned()),
                None => Some(end),
            };
            if let Some(end) = end {
                tally.count_close(index, end);
            }
            self.part_with(index);
        }
    }

    /// Obeys what has come on standard input; `false` at its end.
    fn take_orders(&mut self) -> Result<bool> {
        let mut input = [0; 4_096];
        let bytes = io::stdin().read(&mut input)?;
        if bytes == 0 {
            return Ok(false);
        }
        self.orders.extend_from_slice(&input[..bytes]);
        while let Some(end) = self.orders.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.orders.drain(..=end).collect();
            let order = serde_json::from_slice(&line).context("an order that is no order")?;
            match self.obey(order) {
                Ok(None) => {}
                Ok(Some(reply)) => answer(&reply)?,
                Err(error) => answer(&Reply::Failed(format!("{error:#}")))?,
            }
        }
        Ok(true)
    }

    /// Obeys an order; `None` where the answer comes later.
    fn obey(&mut self, order: Order) -> Result<Option<Reply>> {
        Ok(Some(match order {
            Order::Connect(connect) => {
                self.connect(connect)?;
                return Ok(None);
            }
            Order::Churn { dial, path, seating, first, count } => {
                let path = move |index| path.fill(seating.rooms_of(first + index));
                Reply::Dialed(dial.churn(count, path, || self.board.is_stopped())?)
            }
            Order::Begin { number, track } => {
                self.tally_mut()?.begin(number, track);
                self.is_counting = true;
                self.show_progress();
                Reply::Done
            }
            Order::End => {
                self.is_counting = false;
                let tally = self.tally_mut()?;
                Reply::Counted { counts: tally.counts.clone(), latencies: tally.latencies.pairs() }
            }
            Order::Take => {
                let (counts, latencies) = self.tally_mut()?.take_counted();
                Reply::Counted { counts, latencies }
            }
            Order::Stall { every } => {
                for connection in self.connections.iter().step_by(every.max(1)).flatten() {
                    // Who is stalled already is not registered; for it everything is as ordered.
                    if let Err(error) = self.epoll.remove(&connection.stream)
                        && error.kind() != io::ErrorKind::NotFound
                    {
                        return Err(error.into());
                    }
                }
                Reply::Done
            }
            Order::Resume => {
                for (index, connection) in self.connections.iter().enumerate() {
                    let Some(connection) = connection else { continue };
                    // Those that were read all along are registered already; for them it is the same as before.
                    if self.epoll.add(&connection.stream, index as u64, connection.watch()).is_err() {
                        self.epoll.modify(&connection.stream, index as u64, connection.watch())?;
                    }
                }
                Reply::Done
            }
            Order::Return(plan) => {
                self.expect_returns(&plan)?;
                Reply::Done
            }
            Order::Cut => {
                for index in 0..self.connections.len() {
                    // What has arrived was delivered, whoever has not looked yet.
                    self.receive(index, false);
                    if let Some(connection) = self.part_with(index) {
                        sys::abort(connection.stream)?;
                    }
                }
                Reply::Done
            }
            Order::Leave { every, offset } => {
                let all = self.connections.iter_mut().enumerate().skip(offset).step_by(every.max(1));
                for (index, connection) in all {
                    if let Some(connection) = connection {
                        connection.leave();
                        connection.wait_for_space(index, &self.epoll);
                    }
                }
                Reply::Done
            }
            Order::Returned => {
                let tally = self.tally_mut()?;
                let (heard, firsts) = (tally.heard(), tally.firsts());
                let dialed = self.dialing.as_ref().map(Dialing::dialed).unwrap_or_default();
                let comeback = self.comeback.as_ref().context("nobody was told to come back")?;
                Reply::Returned(comeback.returned(dialed, heard, firsts))
            }
            Order::Settle { heads } => {
                let connections = &self.connections;
                let tally = self.tally.as_ref().context("an order to settle before the order to connect")?;
                Reply::Settled(tally.settle(&heads, |index| connections[index].is_some()))
            }
        }))
    }

    /// From now on who ends comes back.
    fn expect_returns(&mut self, plan: &Return) -> Result<()> {
        let connections = self.connections.len();
        self.tally_mut()?.expect_returns(plan.timetable);
        let dialing = self.dialing.as_mut().context("an order to return before the order to connect")?;
        // All at once means all: nobody waits for a place.
        dialing.come_back(plan.retry_ns, connections);
        self.comeback = Some(Comeback::new(plan, connections));
        Ok(())
    }

    fn tally_mut(&mut self) -> Result<&mut Tally> {
        self.tally.as_mut().context("an order to count before the order to connect")
    }

    /// Begins to open connections; the answer comes when all have their 101 or have failed.
    fn connect(&mut self, connect: Connect) -> Result<()> {
        let Connect { dial, path, seating, first, connections } = connect;
        if self.tally.is_some() {
            bail!("a second order to connect");
        }
        let mut tally = Tally::new(seating, first, connections);
        if let Some(slow) = dial.slow {
            tally.leave_untimed(slow.every);
        }
        self.tally = Some(tally);
        self.connections = (0..connections).map(|_| None).collect();
        let path = move |index| path.fill(seating.rooms_of(first + index));
        let mut dialing = Dialing::new(dial, Box::new(path), false)?;
        dialing.push_all(connections);
        self.dialing = Some(dialing);
        self.connecting_since_ns = Some(sys::monotonic_ns());
        self.finish_connecting(false)
    }
}

/// Answers an order: one line on standard output.
fn answer(reply: &Reply) -> Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, reply)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}
