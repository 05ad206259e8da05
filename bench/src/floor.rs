//! The floor: a process that does nothing but `send()` to every socket, on the server's core, to the same receivers.
//!
//! What a delivery costs here is the kernel's price of it; a server's figure beside it says what the server adds.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::process::{Owned, resolve};
use crate::publisher::{Author, Sent};
use crate::schedule::Schedule;
use crate::sys::{self, Epoll, Ready, Watch};
use crate::wire;

/// A load for the floor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FloorLoad {
    /// Messages a second.
    pub rate: f64,
    /// Messages in one `send()`.
    pub gather: u64,
    /// Payload of a message.
    pub bytes: usize,
    /// Rooms that messages go to in turn, each to the sockets of that room alone.
    pub rooms: u32,
    /// How long.
    pub duration_ns: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Listening {
    address: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct FloorSent {
    messages: u64,
    late_max_us: f64,
    sockets: usize,
}

/// The generator's hold on the floor's process.
pub struct Floor {
    owned: Owned,
    orders: ChildStdin,
    replies: BufReader<ChildStdout>,
    /// Where it listens.
    pub address: SocketAddrV4,
    /// Messages it has sent since it started.
    pub sent: u64,
}

impl Floor {
    /// Starts it on the first of the server's cores: it is one thread.
    pub fn start(cores: &[usize]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("finding this program")?);
        command.arg("floor-process").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut owned = Owned::start(command, &cores[..1])?;
        let orders = owned.child.stdin.take().context("a child without its pipe")?;
        let mut replies = BufReader::new(owned.child.stdout.take().context("a child without its pipe")?);
        let Listening { address } = read_reply(&mut replies)?;
        Ok(Self { owned, orders, replies, address: resolve(&address)?, sent: 0 })
    }

    /// Sends a whole load to all sockets.
    pub fn send(&mut self, load: FloorLoad) -> Result<Sent> {
        let mut line = serde_json::to_vec(&load)?;
        line.push(b'\n');
        self.orders.write_all(&line).context("the floor's process has ended")?;
        let FloorSent { messages, late_max_us, .. } = read_reply(&mut self.replies)?;
        self.sent += messages;
        Ok(Sent { messages, late_max_us, stuck: false })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.owned.pid()
    }
}

fn read_reply<T: for<'a> Deserialize<'a>>(replies: &mut impl BufRead) -> Result<T> {
    let mut line = String::new();
    if replies.read_line(&mut line)? == 0 {
        bail!("the floor's process has ended");
    }
    Ok(serde_json::from_str(&line)?)
}

/// Of the requests to it, without the number of the room.
const PATH_ROOM: &str = "/?room=bench";
/// Of the requests to it, as a template.
pub const PATH: &str = "/?room={room}";

const LISTENER: u64 = u64::MAX;
const CONTROL: u64 = u64::MAX - 1;

/// The floor's process: accepts, shakes hands, and sends when told to. Runs until standard input ends.
pub fn run() -> Result<()> {
    sys::sharpen_timers();
    sys::raise_descriptor_limit().context("raising the descriptor limit")?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    reply(&Listening { address: listener.local_addr()?.to_string() })?;
    let epoll = Epoll::new(256)?;
    epoll.add(&listener, LISTENER, Watch::Level)?;
    epoll.add(&io::stdin(), CONTROL, Watch::Level)?;
    let mut members = Members { epoll, shaking: Vec::new(), rooms: Vec::new() };
    let mut author: Option<Author> = None;
    let mut orders = BufReader::new(io::stdin());
    let mut ready: Vec<Ready> = Vec::new();
    loop {
        ready.clear();
        members.epoll.wait(-1, &mut ready)?;
        for news in &ready {
            match news.token {
                LISTENER => members.accept(&listener)?,
                CONTROL => {
                    let mut line = String::new();
                    if orders.read_line(&mut line)? == 0 {
                        return Ok(());
                    }
                    let load: FloorLoad = serde_json::from_str(&line)?;
                    let author = author.get_or_insert_with(|| Author::new(load.rooms, load.bytes));
                    members.rooms.resize_with(load.rooms as usize, Vec::new);
                    reply(&send(load, author, &mut members.rooms)?)?;
                }
                index => members.shake_hands(index as usize)?,
            }
        }
    }
}

fn reply(what: &impl Serialize) -> Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, what)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

struct Members {
    epoll: Epoll,
    shaking: Vec<Option<(TcpStream, Vec<u8>)>>,
    /// The sockets of each room.
    rooms: Vec<Vec<TcpStream>>,
}

impl Members {
    fn accept(&mut self, listener: &TcpListener) -> Result<()> {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("accept"),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            self.epoll.add(&stream, self.shaking.len() as u64, Watch::Level)?;
            self.shaking.push(Some((stream, Vec::new())));
        }
    }

    fn shake_hands(&mut self, index: usize) -> Result<()> {
        let Some((mut stream, mut head)) = self.shaking[index].take() else { return Ok(()) };
        let mut input = [0; 1_024];
        match stream.read(&mut input) {
            Ok(bytes) if bytes > 0 => head.extend_from_slice(&input[..bytes]),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Ok(()),
        }
        if wire::head_bytes(&head).is_none() {
            if head.len() <= wire::HEAD_BYTES_MAX {
                self.shaking[index] = Some((stream, head));
            }
            return Ok(());
        }
        // Every client of the generator sends the same key.
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            wire::ACCEPT
        );
        stream.write_all(answer.as_bytes()).context("handshake")?;
        self.epoll.remove(&stream)?;
        let room = room_of(&head).context("a request without a room")?;
        if self.rooms.len() <= room {
            self.rooms.resize_with(room + 1, Vec::new);
        }
        self.rooms[room].push(stream);
        Ok(())
    }
}

/// The room of a request by [`PATH`].
fn room_of(head: &[u8]) -> Option<usize> {
    let target = std::str::from_utf8(head).ok()?.split(' ').nth(1)?;
    target.strip_prefix(PATH_ROOM)?.parse().ok()
}

fn send(load: FloorLoad, author: &mut Author, rooms: &mut [Vec<TcpStream>]) -> Result<FloorSent> {
    let schedule = Schedule::open(load.rate, load.gather, load.duration_ns);
    let start_ns = sys::monotonic_ns();
    let mut sent = FloorSent { messages: 0, late_max_us: 0.0, sockets: rooms.iter().map(Vec::len).sum() };
    // What a group has for each room that it has something for.
    let mut outs: Vec<(u32, Vec<u8>)> = Vec::new();
    // What the core can't do in twice the time is left out: a load beyond it would otherwise run for hours.
    let end_ns = start_ns + 2 * load.duration_ns;
    while sent.messages < schedule.messages() && sys::monotonic_ns() < end_ns {
        let due_ns = start_ns + schedule.due_ns(sent.messages);
        sys::sleep_until_ns(due_ns);
        sent.late_max_us = sent.late_max_us.max(sys::monotonic_ns().saturating_sub(due_ns) as f64 / 1_000.0);
        outs.clear();
        for _ in 0..load.gather {
            let (room, payload) = author.write(due_ns);
            let at = match outs.iter().position(|(known, _)| *known == room) {
                Some(at) => at,
                None => {
                    outs.push((room, Vec::new()));
                    outs.len() - 1
                }
            };
            wire::server_text(payload, &mut outs[at].1);
        }
        sent.messages += load.gather;
        for (room, out) in &outs {
            rooms[*room as usize].retain_mut(|socket| send_whole(socket, out).is_ok());
        }
    }
    Ok(sent)
}

/// One `send()`, as a rule: a socket that takes only a part is waited for, because the next frame must not tear this one.
fn send_whole(socket: &mut TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_micros(50));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orders::PathTemplate;

    #[test]
    fn a_request_names_its_room_by_number() {
        let target = PathTemplate(PATH.to_owned()).fill(std::iter::once(17));
        assert_eq!(room_of(wire::request("h", &target).as_bytes()), Some(17));
        assert_eq!(room_of(wire::request("h", "/").as_bytes()), None);
    }
}
