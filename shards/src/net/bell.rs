//! What wakes the consumer of a ring: an eventfd that it waits on, and the flag that keeps the producer from writing it for
//! nobody ([`crate::doorbell`]). And how a task gives way to everything else on its thread.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use rustix::event::{EventfdFlags, eventfd};

use super::socket::Socket;
use crate::doorbell::Doorbell;

/// A doorbell and its eventfd; shared by its consumer and all its producers.
pub struct Bell {
    doorbell: Doorbell,
    eventfd: OwnedFd,
}

impl Bell {
    /// A bell that nobody has rung.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> io::Result<Arc<Self>> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self { doorbell: Doorbell::default(), eventfd }))
    }

    /// Wakes the consumer if it sleeps. To be called after a whole batch has been pushed.
    pub fn ring(&self) {
        if self.doorbell.must_ring() {
            self.write();
        }
    }

    /// Wakes the consumer whatever it does.
    pub fn write(&self) {
        // EAGAIN: the counter is at its top, so it is readable already.
        let _full_is_rung = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
    }
}

/// The consumer's end of a bell, on the runtime of its thread.
pub struct Sleeper {
    bell: Arc<Bell>,
    socket: Socket,
}

impl Sleeper {
    /// To be made on the consumer's thread.
    ///
    /// # Errors
    /// Out of descriptors, or the driver did not take it.
    pub fn new(bell: Arc<Bell>) -> io::Result<Self> {
        let socket = Socket::new(bell.eventfd.try_clone()?)?;
        Ok(Self { bell, socket })
    }

    /// Waits until the bell is rung, unless `has_work` says that there is something to do already. Asked after the flag is
    /// up, so that nothing that is pushed meanwhile is slept through.
    pub async fn wait(&self, has_work: impl FnOnce() -> bool) {
        self.bell.doorbell.before_waiting();
        if !has_work() {
            // An error means that the runtime is going down; the caller looks for work once more.
            let _going_down = self.socket.readable().await;
            self.clear();
        }
        self.bell.doorbell.woken();
    }

    fn clear(&self) {
        let mut count = [0; 8];
        // EAGAIN: rung by nobody.
        let _nothing = rustix::io::read(self.socket.fd(), &mut count);
    }
}

/// Gives way to everything else on the thread: the runtime parks once and looks at all sockets.
///
/// By an eventfd of its own: a task that wakes itself is run again before anything is looked at, for ever (monoio 0.2.4).
pub struct Yielder {
    socket: Socket,
}

impl Yielder {
    /// To be made on the thread that yields.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { socket: Socket::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)? })
    }

    /// See the type.
    pub async fn give_way(&self) {
        // The wait begins before the eventfd is written: on epoll the runtime remembers that a descriptor was readable,
        // and a wait for one that still is returns at once, with nothing looked at.
        let mut readable = pin!(self.socket.readable());
        let waits = poll_fn(|context| Poll::Ready(readable.as_mut().poll(context).is_pending())).await;
        let _full_is_rung = rustix::io::write(self.socket.fd(), &1u64.to_ne_bytes());
        if waits {
            let _going_down = readable.await;
        }
        let mut count = [0; 8];
        let _nothing = rustix::io::read(self.socket.fd(), &mut count);
    }
}

#[cfg(test)]
impl Bell {
    /// As its consumer does before it waits.
    pub fn fall_asleep(&self) {
        self.doorbell.before_waiting();
    }

    /// How often it was written since it was last asked.
    pub fn times_written(&self) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(&self.eventfd, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::rc::Rc;

    use super::*;
    use crate::net::runtime::{Driver, block_on};

    #[test]
    fn giving_way_lets_others_run_every_time_on_either_driver() {
        for driver in [Driver::Epoll, Driver::IoUring] {
            let ran = Rc::new(Cell::new(0));
            let (theirs, ours) = (ran.clone(), ran.clone());
            let result = block_on(driver, async move {
                let (waker, waited) = UnixStream::pair().expect("a pair of sockets");
                waited.set_nonblocking(true).expect("an option");
                let waited = Socket::new(waited.into()).expect("the driver takes it");
                monoio::spawn(async move {
                    loop {
                        let _going_down = waited.readable().await;
                        waited.receive(&mut [0; 8]).expect("a byte");
                        theirs.set(theirs.get() + 1);
                    }
                });
                let yielder = Yielder::new().expect("a descriptor");
                yielder.give_way().await;
                for round in 1..=100 {
                    (&waker).write_all(b"x").expect("the other end lives");
                    // The first park sees the byte, the second at the latest has run whom it woke.
                    yielder.give_way().await;
                    yielder.give_way().await;
                    assert_eq!(ours.get(), round, "{driver:?}: somebody who has work was not run");
                }
            });
            match result {
                Ok(()) => assert_eq!(ran.get(), 100),
                Err(error) => println!("{driver:?} is not to be had here: {error}"),
            }
        }
    }
}
