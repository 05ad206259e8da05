//! What a parent and a child say to each other, over a Unix socket that is the child's standard input.
//!
//! First the parent gives the child its place and then its sockets, as descriptors beside a byte; later it says when to leave.
//! The child answers in the words of sd_notify(3), because it is to its parent what a service is to its manager. The end of the
//! channel is the end of the other side, however it ended: the kernel closes it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags};
use serde::{Deserialize, Serialize};
use shards::net::rights;

/// Parent and child may be different builds after a rolling restart: raised whenever they could misunderstand each other.
pub const VERSION: u32 = 1;
/// The variable that tells a child of its channel: which of the processes it is.
pub const VARIABLE: &str = "CORECAST_PROCESS";
/// Longest message: a place with hundreds of addresses has a tenth of it.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// What the parent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "say")]
pub enum Order {
    /// The first message.
    Place(Place),
    /// Drain: to a successor, or for good.
    Leave { for_good: bool },
    /// End at once.
    Stop,
}

/// A child's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// [`VERSION`] of the parent.
    pub version: u32,
    /// Which process.
    pub process: u16,
    /// Shards to run.
    pub shards: usize,
    /// Cores: of the shards, then of the relay.
    pub cores: Vec<usize>,
    /// What the sockets are, in the order in which they follow.
    pub listen: Vec<Address>,
    /// The parent's admin address; then the last descriptor is the door through which its connections come.
    pub admin: Option<SocketAddr>,
    /// How often the child is to say that it is well.
    pub watchdog: Option<Duration>,
}

/// One address of a [`Place`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Where its sockets listen.
    pub address: SocketAddr,
    /// How many follow: one for each shard, or one for all.
    pub sockets: usize,
    /// They are a service manager's.
    pub of_manager: bool,
}

impl Place {
    /// Descriptors that follow.
    pub fn descriptors(&self) -> usize {
        let sockets: usize = self.listen.iter().map(|address| address.sockets).sum();
        sockets + usize::from(self.admin.is_some())
    }
}

/// Says `order`. Waits for nobody: a child that reads nothing is dead or hangs.
///
/// # Errors
/// EPIPE where the child is gone, EAGAIN where it doesn't listen.
pub fn say(channel: impl AsFd, order: &Order) -> io::Result<()> {
    rights::send(channel, &serde_json::to_vec(order)?, &[], SendFlags::DONTWAIT)
}

/// Sends the descriptors that belong to a place.
///
/// # Errors
/// As [`say`].
pub fn pass(channel: impl AsFd, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut messages = descriptors.chunks(rights::DESCRIPTORS_MAX);
    messages.try_for_each(|some| rights::send(&channel, b"s", some, SendFlags::empty()))
}

/// Waits for the next order; `None` at the parent's end.
///
/// # Errors
/// What the kernel says. An order that this build doesn't know is `InvalidData`.
pub fn hear(channel: impl AsFd) -> io::Result<Option<Order>> {
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    let received = rights::receive(channel, &mut buffer, RecvFlags::empty())?;
    if received.bytes == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&buffer[..received.bytes])?))
}

/// Waits for `due` descriptors.
///
/// # Errors
/// What the kernel says; `UnexpectedEof` where fewer came.
pub fn take(channel: impl AsFd, due: usize) -> io::Result<Vec<OwnedFd>> {
    let mut descriptors = Vec::new();
    while descriptors.len() < due {
        let received = rights::receive(&channel, &mut [0; 16], RecvFlags::empty())?;
        if received.descriptors.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        descriptors.extend(received.descriptors);
    }
    Ok(descriptors)
}

/// Waits for the child's next lines; `None` at its end.
///
/// # Errors
/// What the kernel says.
pub fn listen(channel: impl AsFd) -> io::Result<Option<String>> {
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    let received = rights::receive(channel, &mut buffer, RecvFlags::empty())?;
    let lines = String::from_utf8_lossy(&buffer[..received.bytes]).into_owned();
    Ok((received.bytes > 0).then_some(lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_gets_its_place_and_as_many_descriptors_as_it_says() {
        let (parent, child) = rights::pair().expect("descriptors are left");
        let address = SocketAddr::from(([127, 0, 0, 1], 8080));
        let listen = vec![Address { address, sockets: 69, of_manager: false }];
        let place = Place {
            version: VERSION,
            process: 1,
            shards: 69,
            cores: vec![3],
            listen,
            admin: Some(address),
            watchdog: Some(Duration::from_millis(1500)),
        };
        say(&parent, &Order::Place(place.clone())).expect("it listens");
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
        pass(&parent, &vec![socket.as_fd(); place.descriptors()]).expect("it listens");
        say(&parent, &Order::Leave { for_good: true }).expect("it listens");
        drop(parent);

        let heard = hear(&child).expect("an order");
        assert_eq!(heard, Some(Order::Place(place.clone())));
        assert_eq!(take(&child, place.descriptors()).expect("they come").len(), 70);
        assert_eq!(hear(&child).expect("an order"), Some(Order::Leave { for_good: true }));
        assert_eq!(hear(&child).expect("an end"), None);
    }
}
