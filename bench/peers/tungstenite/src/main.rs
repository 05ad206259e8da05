//! `tungstenite-peer PORT REDIS`: GET /ws?room=NAME joins a room (/ws?rooms=A,B several); what is published to room:NAME goes to
//! its members. GET /echo gets back what it sends.
//!
//! What a careful author writes with tokio and tokio-tungstenite: one thread (one core is what all sides have), one task a
//! connection with a bounded queue of messages that share their bytes, and all that has come gathered before a flush. Not a
//! broadcast channel a room: it holds its whole ring even for a room of one, 2,048 places of 48 B and more.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use anyhow::{Context, Result};
use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

const PREFIX: &str = "room:";
/// Messages that a member may be behind; beyond it the connection ends.
const BEHIND_MAX: usize = 4_096;
/// Messages that are gathered before a flush.
const GATHER_MAX: usize = 256;
const BACKLOG: u32 = 16_384;

type Rooms = Rc<RefCell<HashMap<String, Vec<Sender<Utf8Bytes>>>>>;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let port = arguments.next().context("usage: tungstenite-peer PORT HOST:PORT")?;
    if port == "--version" {
        println!("tungstenite-peer {} (tokio 1, tokio-tungstenite 0.30)", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    let port = port.parse().context("PORT")?;
    let redis = arguments.next().context("usage: tungstenite-peer PORT HOST:PORT")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, serve(port, &redis))
}

async fn serve(port: u16, redis: &str) -> Result<()> {
    let rooms = Rooms::default();
    let mut subscriber = redis::Client::open(format!("redis://{redis}"))?.get_async_pubsub().await?;
    subscriber.psubscribe(format!("{PREFIX}*")).await?;
    let publishing = tokio::task::spawn_local({
        let rooms = Rc::clone(&rooms);
        async move {
            let mut messages = subscriber.into_on_message();
            while let Some(message) = messages.next().await {
                deliver(&rooms, &message);
            }
        }
    });
    let listener = listen(port)?;
    let accepting = async {
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let rooms = Rc::clone(&rooms);
            // A connection that fails ends, and nobody else hears of it.
            tokio::task::spawn_local(async move { drop(converse(stream, rooms).await) });
        }
    };
    tokio::select! {
        accepted = accepting => accepted,
        _ = publishing => anyhow::bail!("Redis ended the subscription"),
    }
}

fn listen(port: u16) -> Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(([127, 0, 0, 1], port).into())?;
    Ok(socket.listen(BACKLOG)?)
}

fn deliver(rooms: &Rooms, message: &redis::Msg) {
    let mut rooms = rooms.borrow_mut();
    let Some(room) = message.get_channel_name().strip_prefix(PREFIX) else { return };
    let Some(members) = rooms.get_mut(room) else { return };
    // Text must be UTF-8, and is checked here once for all members.
    let Ok(payload) = String::from_utf8(message.get_payload_bytes().to_vec()) else { return };
    let payload = Utf8Bytes::from(payload);
    // Who has left, or is too far behind, is no member any more.
    members.retain(|member| member.try_send(payload.clone()).is_ok());
    if members.is_empty() {
        rooms.remove(room);
    }
}

// The error's size is the handshake's, not ours.
#[expect(clippy::result_large_err)]
async fn converse(stream: TcpStream, rooms: Rooms) -> Result<()> {
    let mut route = None;
    let read_route = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        route = Route::of(request.uri().path(), request.uri().query().unwrap_or_default());
        if route.is_some() {
            return Ok(response);
        }
        let mut refused = ErrorResponse::new(None);
        *refused.status_mut() = StatusCode::NOT_FOUND;
        Err(refused)
    };
    // The defaults reserve 128 KiB to read into per connection. What is written is gathered in a buffer that grows with it;
    // `write_buffer_size` is how much it may hold before `feed` writes it, and its default of 128 KiB is left alone.
    let config = WebSocketConfig::default().read_buffer_size(4 * 1024);
    let mut socket = accept_hdr_async_with_config(stream, read_route, Some(config)).await?;
    let mut messages = match route.context("no room")? {
        Route::Rooms(names) => join(&rooms, &names),
        Route::Echo => return echo(socket).await,
    };
    loop {
        tokio::select! {
            message = messages.recv() => match message {
                Some(message) => {
                    socket.feed(Message::Text(message)).await?;
                    for _ in 1..GATHER_MAX {
                        let Ok(next) = messages.try_recv() else { break };
                        socket.feed(Message::Text(next)).await?;
                    }
                    socket.flush().await?;
                }
                None => return Ok(socket.close(None).await?),
            },
            input = socket.next() => match input {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(()),
            },
        }
    }
}

/// What a URL asks for.
enum Route {
    Rooms(Vec<String>),
    Echo,
}

impl Route {
    fn of(path: &str, query: &str) -> Option<Self> {
        let of = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        match path {
            "/echo" => Some(Self::Echo),
            "/ws" => {
                let names = of("room").map(|room| vec![room]).or_else(|| Some(of("rooms")?.split(',').collect()));
                names.map(|names| Self::Rooms(names.into_iter().map(str::to_owned).collect()))
            }
            _ => None,
        }
    }
}

async fn echo(mut socket: WebSocketStream<TcpStream>) -> Result<()> {
    while let Some(message) = socket.next().await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            socket.send(message).await?;
        }
    }
    Ok(())
}

/// One queue for all rooms of a connection.
fn join(rooms: &Rooms, names: &[String]) -> Receiver<Utf8Bytes> {
    let (member, messages) = channel(BEHIND_MAX);
    let mut rooms = rooms.borrow_mut();
    for name in names {
        let members = rooms.entry(name.clone()).or_default();
        if members.len() == members.capacity() {
            // Before the list grows: those who left a room that nothing was published to.
            members.retain(|member| !member.is_closed());
        }
        members.push(member.clone());
    }
    messages
}
