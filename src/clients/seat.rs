//! One client of many: a non-blocking WebSocket from its connect to its end.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use socket2::{Domain, Socket, Type};
use tungstenite::handshake::client::{ClientHandshake, Request};
use tungstenite::handshake::{HandshakeError, MidHandshake};
use tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

use crate::client::Target;
use crate::connection::{End, handshake_end, no_answer};
use crate::exit::{self, Failure};

/// Bytes of a connection's receive buffer: the events of these systems are smaller, and 10,000 such buffers are 40 MiB.
const READ_BUFFER_BYTES: usize = 4_096;
/// Messages that one connection may bring in a turn, so that none starves the others.
const MESSAGES_BATCH_MAX: usize = 256;

/// Where to, for every client.
pub struct Way {
    pub address: SocketAddr,
    pub target: Target,
    pub url: String,
    pub request: Request,
}

/// A client.
pub struct Seat {
    pub client: u32,
    pub received: u64,
    state: State,
}

enum State {
    Shaking { handshake: Box<MidHandshake<ClientHandshake<TcpStream>>>, deadline: Instant },
    Open { socket: Box<WebSocket<TcpStream>>, close: Option<Option<CloseFrame>> },
    Over,
}

/// How far a turn took a client.
pub enum Step {
    /// Its socket has nothing more for now.
    Waiting,
    /// The 101 has come; there may be messages behind it.
    Opened,
    /// It may have more, and others wait.
    Unfinished,
    /// It has ended.
    Ended(End),
}

impl Seat {
    /// Begins to connect; the socket is returned once, to be watched.
    ///
    /// # Errors
    /// A socket that can't be made or has no way to go.
    pub fn connect(client: u32, way: &Way, deadline: Instant) -> Result<(Self, Step), Failure> {
        let stream = begin(way.address).map_err(|error| {
            Failure::new(exit::UNAVAILABLE, format!("can't connect to {} ({error})", way.target))
        })?;
        let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES).write_buffer_size(0);
        let mut seat = Self { client, received: 0, state: State::Over };
        let shaken = tungstenite::client::client_with_config(way.request.clone(), stream, Some(config));
        let step = seat.shaken(shaken.map(|(socket, _)| socket), way, deadline);
        Ok((seat, step))
    }

    /// The socket, while there is one.
    pub fn stream(&self) -> Option<&TcpStream> {
        match &self.state {
            State::Shaking { handshake, .. } => Some(handshake.get_ref().get_ref()),
            State::Open { socket, .. } => Some(socket.get_ref()),
            State::Over => None,
        }
    }

    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    pub fn is_shaking(&self) -> bool {
        matches!(self.state, State::Shaking { .. })
    }

    /// Gives up a handshake that takes too long.
    pub fn expire(&mut self, way: &Way, now: Instant) -> Option<End> {
        match self.state {
            State::Shaking { deadline, .. } if now >= deadline => Some(self.end(no_answer(&way.target))),
            _ => None,
        }
    }

    /// Takes what has come, and hands each message to `take`.
    pub fn advance(&mut self, way: &Way, mut take: impl FnMut(&[u8])) -> Step {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Shaking { handshake, deadline } => {
                let shaken = handshake.handshake().map(|(socket, _)| socket);
                self.shaken(shaken, way, deadline)
            }
            open @ State::Open { .. } => {
                self.state = open;
                self.read(&mut take)
            }
            State::Over => Step::Waiting,
        }
    }

    /// Says goodbye; the end comes when the server has answered.
    pub fn leave(&mut self) {
        if let State::Open { socket, .. } = &mut self.state {
            // What can't be sent now goes out with a later read, or never: the server learns it from the end of TCP.
            let _closing = socket.close(None);
        }
    }

    /// Drops the connection as it is.
    pub fn abandon(&mut self) {
        self.state = State::Over;
    }

    fn shaken(
        &mut self,
        shaken: Result<WebSocket<TcpStream>, HandshakeError<ClientHandshake<TcpStream>>>,
        way: &Way,
        deadline: Instant,
    ) -> Step {
        match shaken {
            Ok(socket) => {
                self.state = State::Open { socket: Box::new(socket), close: None };
                Step::Opened
            }
            Err(HandshakeError::Interrupted(handshake)) => {
                self.state = State::Shaking { handshake: Box::new(handshake), deadline };
                Step::Waiting
            }
            Err(error) => Step::Ended(handshake_end(&way.target, &way.url, error)),
        }
    }

    fn read(&mut self, take: &mut impl FnMut(&[u8])) -> Step {
        let State::Open { socket, close } = &mut self.state else { return Step::Waiting };
        for _ in 0..MESSAGES_BATCH_MAX {
            match socket.read() {
                Ok(Message::Text(text)) => {
                    self.received += 1;
                    take(text.as_bytes());
                }
                Ok(Message::Binary(bytes)) => {
                    self.received += 1;
                    take(&bytes);
                }
                Ok(Message::Close(frame)) => *close = Some(frame),
                // Answers to pings and to a Close go out with the next read.
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => return Step::Waiting,
                Err(Error::Io(error)) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    let end = match (close.take(), error) {
                        (Some(frame), _) => End::Closed(frame),
                        (None, Error::ConnectionClosed) => End::Stopped,
                        (None, error) => End::Broken(error),
                    };
                    return Step::Ended(self.end(end));
                }
            }
        }
        Step::Unfinished
    }

    fn end(&mut self, end: End) -> End {
        self.state = State::Over;
        end
    }
}

/// A TCP connection under way: non-blocking, without delay.
fn begin(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
            Err(error)
        }
        _ => Ok(socket.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::connection::request;

    #[test]
    fn a_server_that_takes_the_connection_and_says_nothing_is_given_up_at_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let url = format!("ws://{address}/ws");
        let way =
            Way { address, target: Target::parse(&url).unwrap(), request: request(&url, None).unwrap(), url };
        let deadline = Instant::now();
        let (mut seat, step) = Seat::connect(0, &way, deadline).unwrap();
        assert!(matches!(step, Step::Waiting) && seat.stream().is_some());
        assert!(seat.expire(&way, deadline - std::time::Duration::from_secs(1)).is_none());
        let end = seat.expire(&way, deadline).unwrap();
        assert!(
            end.sentence().contains("didn't answer within 10 s: is that a corecast, and is it full")
                && end.code() == exit::UNAVAILABLE,
            "{}",
            end.sentence()
        );
        assert!(seat.is_over() && seat.expire(&way, deadline).is_none());
    }
}
