//! One WebSocket of a receiver process: what it was sent is counted, what it owes is sent whole or later.

use std::io::{self, Write};
use std::net::TcpStream;

use crate::sys::{self, Epoll, Watch};
use crate::tally::{BROKEN, Tally};
use crate::wire::{self, Event, FrameParser};

/// Close code of a client that leaves (RFC 6455 section 7.4.1).
pub(super) const LEAVING: u16 = 1000;
/// Replies that wait for the socket to take them; pongs beyond are left out, whole, and the server's time-out finds out.
const REPLIES_BYTES_MAX: usize = 64 * 1024;

/// One socket, read and answered.
pub(super) struct Connection {
    /// Non-blocking.
    pub(super) stream: TcpStream,
    parser: FrameParser,
    first_room: u32,
    /// The server's Close frame came.
    pub(super) close_code: Option<Option<u16>>,
    /// Our Close frame was first, at this time.
    pub(super) left_ns: Option<u64>,
    /// What the socket has not taken yet: the rest of a frame, and those behind it.
    replies: Vec<u8>,
    /// The socket's space is waited for.
    is_blocked: bool,
}

impl Connection {
    /// A connection whose 101 has come.
    pub(super) fn new(stream: TcpStream, first_room: u32) -> Self {
        Self {
            stream,
            parser: FrameParser::default(),
            first_room,
            close_code: None,
            left_ns: None,
            replies: Vec::new(),
            is_blocked: false,
        }
    }

    /// What there is to wait for.
    pub(super) fn watch(&self) -> Watch {
        if self.replies.is_empty() { Watch::Input } else { Watch::InputAndOutput }
    }

    /// Has the socket's space waited for where replies wait, and no longer where none do.
    pub(super) fn wait_for_space(&mut self, index: usize, epoll: &Epoll) {
        let is_blocked = !self.replies.is_empty();
        if is_blocked != self.is_blocked {
            // Who is not read at present is not registered, and sends the rest when it is read again.
            let is_watched = epoll.modify(&self.stream, index as u64, self.watch()).is_ok();
            self.is_blocked = is_blocked && is_watched;
        }
    }

    /// Sends the Close frame of a client that leaves; its end is seen when the server has answered.
    pub(super) fn leave(&mut self) {
        if self.left_ns.is_none() && self.close_code.is_none() {
            wire::client_frame(wire::CLOSE, &LEAVING.to_be_bytes(), &mut self.replies);
            self.left_ns = Some(sys::monotonic_ns());
            self.send_replies();
        }
    }

    /// Takes received bytes: counts messages, answers pings and the Close frame. The error is the name of the end.
    pub(super) fn take(&mut self, index: usize, input: &[u8], tally: &mut Tally) -> Result<(), String> {
        let now_ns = sys::monotonic_ns();
        let Self { parser, first_room, close_code, left_ns, replies, .. } = self;
        let fed = parser.feed(input, |event| match event {
            Event::Message { prefix, bytes } => tally.take(index, *first_room, prefix, bytes, now_ns),
            Event::Ping(payload) => {
                tally.counts.pings += 1;
                // Nothing may follow a Close frame of ours, whether it was the first or the answer (RFC 6455 section 5.5.1).
                if left_ns.is_none() && close_code.is_none() && replies.len() < REPLIES_BYTES_MAX {
                    wire::client_frame(wire::PONG, payload, replies);
                }
            }
            Event::Pong => {}
            Event::Close(code) => {
                if left_ns.is_none() && close_code.is_none() {
                    wire::client_frame(wire::CLOSE, &code.unwrap_or(1000).to_be_bytes(), replies);
                }
                close_code.get_or_insert(code);
            }
        });
        self.send_replies();
        fed.map_err(|error| format!("{BROKEN}{error}"))
    }

    /// Sends what the socket takes of the replies; the rest waits, so that no frame is torn.
    pub(super) fn send_replies(&mut self) {
        while !self.replies.is_empty() {
            match self.stream.write(&self.replies) {
                Ok(written) => drop(self.replies.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It has ended: that is news of its own, behind what there still is to read.
                Err(_) => self.replies.clear(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Seating;
    use std::io::Read;
    use std::net::TcpListener;

    /// A connection, and the server's end of it.
    fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        (Connection::new(stream, 0), listener.accept().unwrap().0)
    }

    fn tally() -> Tally {
        Tally::new(Seating { rooms: 1, rooms_per_connection: 1 }, 0, 1)
    }

    const PING: [u8; 4] = [0x89, 2, b'h', b'i'];

    /// Opcodes of the whole frames that a client has sent; panics at one that is torn.
    fn opcodes(mut bytes: &[u8]) -> Vec<u8> {
        let mut found = Vec::new();
        while let [first, second, ..] = bytes {
            let frame_bytes = 2 + 4 + usize::from(second & 0x7f);
            assert!(bytes.len() >= frame_bytes, "a torn frame of {} bytes", bytes.len());
            found.push(first & 0x0f);
            bytes = &bytes[frame_bytes..];
        }
        found
    }

    #[test]
    fn nothing_follows_a_close_frame_of_ours() {
        let (mut connection, mut server) = pair();
        connection.leave();
        connection.take(0, &PING, &mut tally()).unwrap();
        connection.take(0, &[0x88, 2, 3, 0xe8], &mut tally()).unwrap();
        connection.take(0, &PING, &mut tally()).unwrap();
        drop(connection);
        let mut sent = Vec::new();
        server.read_to_end(&mut sent).unwrap();
        assert_eq!(opcodes(&sent), [wire::CLOSE]);
    }

    #[test]
    fn replies_that_a_full_socket_does_not_take_are_sent_later_and_whole() {
        let (mut connection, mut server) = pair();
        let mut tally = tally();
        let pings = PING.repeat(1_000);
        while connection.replies.is_empty() {
            connection.take(0, &pings, &mut tally).unwrap();
        }
        assert_eq!(connection.watch(), Watch::InputAndOutput);
        let reader = std::thread::spawn(move || {
            let mut sent = Vec::new();
            server.read_to_end(&mut sent).unwrap();
            sent
        });
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !connection.replies.is_empty() && std::time::Instant::now() < deadline {
            connection.send_replies();
        }
        assert_eq!(connection.watch(), Watch::Input);
        drop(connection);
        let opcodes = opcodes(&reader.join().unwrap());
        assert!(opcodes.iter().all(|opcode| *opcode == wire::PONG));
        assert!(opcodes.len() as u64 <= tally.counts.pings);
    }
}
