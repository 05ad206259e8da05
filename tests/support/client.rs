//! One WebSocket client that waits: a whole one on tungstenite, and one that writes whatever bytes it is told.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tungstenite::client::IntoClientRequest as _;
use tungstenite::{Message, WebSocket};

use super::deadline::SOON;
use super::http::{self, Response};
use super::server::Server;
use super::wire::{self, Frame, Frames};

/// A member of a room, with tungstenite's view of the protocol.
pub struct Client(WebSocket<TcpStream>);

impl Client {
    /// Joins `/ws?room=ROOM`.
    #[track_caller]
    pub fn join(server: &Server, room: &str) -> Self {
        Self::connect(server.address(), &format!("/ws?room={room}"))
    }

    /// # Panics
    /// When the upgrade is refused.
    #[track_caller]
    pub fn connect(address: SocketAddr, target: &str) -> Self {
        let stream =
            http::connect(address).unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"));
        match tungstenite::client(format!("ws://{address}{target}"), stream) {
            Ok((socket, _)) => Self(socket),
            Err(error) => panic!("{target} was refused: {error}"),
        }
    }

    /// The same, offering a subprotocol that the server has to choose.
    #[track_caller]
    pub fn offering(address: SocketAddr, target: &str, protocol: &str) -> Self {
        let stream = http::connect(address).expect("it listens");
        let mut request = format!("ws://{address}{target}").into_client_request().expect("a URL");
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().expect("a token"));
        match tungstenite::client(request, stream) {
            Ok((socket, response)) => {
                assert_eq!(response.headers()["Sec-WebSocket-Protocol"], protocol);
                Self(socket)
            }
            Err(error) => panic!("{target} was refused: {error}"),
        }
    }

    #[track_caller]
    pub fn send(&mut self, message: Message) {
        self.0.send(message).unwrap_or_else(|error| panic!("cannot send: {error}"));
    }

    #[track_caller]
    pub fn send_text(&mut self, text: &str) {
        self.send(Message::text(text));
    }

    /// The next text or binary message; pings are answered on the way.
    ///
    /// # Panics
    /// When none comes within [`SOON`] or the connection ends.
    #[track_caller]
    pub fn next(&mut self) -> Message {
        loop {
            match self.0.read() {
                Ok(message @ (Message::Text(_) | Message::Binary(_))) => return message,
                Ok(Message::Close(close)) => panic!("closed with {close:?} where a message was due"),
                Ok(_) => {}
                Err(error) => panic!("{error} where a message was due"),
            }
        }
    }

    #[track_caller]
    pub fn next_text(&mut self) -> String {
        match self.next() {
            Message::Text(text) => text.to_string(),
            other => panic!("{other:?} where text was due"),
        }
    }

    /// Closes with 1000 and returns when the server has answered and ended TCP.
    #[track_caller]
    pub fn leave(mut self) {
        self.0.close(None).unwrap_or_else(|error| panic!("cannot close: {error}"));
        loop {
            match self.0.read() {
                Ok(_) => {}
                Err(tungstenite::Error::ConnectionClosed) => return,
                Err(error) => panic!("{error} where the answer to a Close was due"),
            }
        }
    }
}

/// A connection that says what it is told, byte for byte.
pub struct RawClient {
    stream: TcpStream,
    frames: Frames,
}

/// How a connection ended, with the frames that came before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    pub frames: Vec<Frame>,
    /// False when it was reset.
    pub clean: bool,
}

impl Ending {
    /// The code of the Close frame; `None` when there was no Close frame or no code in it.
    pub fn code(&self) -> Option<u16> {
        self.frames.iter().find_map(|frame| match frame {
            Frame::Close(body) => body.as_ref().map(|(code, _)| *code),
            _ => None,
        })
    }
}

impl RawClient {
    #[track_caller]
    pub fn open(address: SocketAddr) -> Self {
        let stream =
            http::connect(address).unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"));
        Self { stream, frames: Frames::default() }
    }

    /// Upgraded at `target`.
    #[track_caller]
    pub fn upgraded(address: SocketAddr, target: &str) -> Self {
        let mut client = Self::open(address);
        client.send(wire::upgrade(address, target).as_bytes());
        let response = client.response();
        assert_eq!(response.status, 101, "{target}: {response:?}");
        assert_eq!(response.header("sec-websocket-accept"), Some(wire::ACCEPT));
        client
    }

    /// Writes; a server that has already ended the connection is no failure here.
    pub fn send(&mut self, bytes: &[u8]) {
        // Whether the server took it shows in what it answers.
        let _ = self.stream.write_all(bytes);
    }

    #[track_caller]
    pub fn response(&mut self) -> Response {
        http::read_response(&mut self.stream, false).unwrap_or_else(|error| panic!("no HTTP answer: {error}"))
    }

    /// The next text message.
    #[track_caller]
    pub fn next_text(&mut self) -> String {
        loop {
            match self.next() {
                Frame::Text(text) => return String::from_utf8(text).expect("UTF-8"),
                Frame::Ping(_) => {}
                other => panic!("{other:?} where text was due"),
            }
        }
    }

    /// The next frame, pings included.
    #[track_caller]
    pub fn next(&mut self) -> Frame {
        let mut chunk = [0; 16 * 1024];
        loop {
            if let Some(frame) = self.frames.take() {
                return frame;
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => panic!("TCP ended where a frame was due"),
                Ok(received) => self.frames.feed(&chunk[..received]),
                Err(error) => panic!("{error} where a frame was due"),
            }
        }
    }

    /// Reads to the end of the connection.
    ///
    /// # Panics
    /// When it doesn't end within [`SOON`].
    #[track_caller]
    pub fn ending(&mut self) -> Ending {
        let mut frames = Vec::new();
        let mut chunk = [0; 16 * 1024];
        loop {
            frames.extend(std::iter::from_fn(|| self.frames.take()));
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ending { frames, clean: !self.frames.is_mid_frame() },
                Ok(received) => self.frames.feed(&chunk[..received]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Ending { frames, clean: false };
                }
                Err(error) => panic!("{error} where the end of the connection was due, after {frames:?}"),
            }
        }
    }

    /// Whether the connection ended, by reading for at most `patience`; what comes meanwhile is dropped.
    #[track_caller]
    pub fn has_ended_within(&mut self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let mut chunk = [0; 1024];
        let ended = loop {
            // Zero would mean "for ever".
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left)).expect("a positive timeout is accepted");
            match self.stream.read(&mut chunk) {
                Ok(0) => break true,
                Ok(_) if Instant::now() < end => {}
                Ok(_) => break false,
                Err(error) => break error.kind() == io::ErrorKind::ConnectionReset,
            }
        };
        self.stream.set_read_timeout(Some(SOON)).expect("a positive timeout is accepted");
        ended
    }
}
