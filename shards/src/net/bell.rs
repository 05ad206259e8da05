//! What wakes the consumer of a ring: an eventfd that it waits on, and the flag that keeps the producer from writing it for
//! nobody ([`crate::doorbell`]). A producer on the consumer's own thread, as the relay is where it has no core to itself,
//! wakes the task and leaves the eventfd alone. And how a task gives way to everything else on its thread.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use rustix::event::{EventfdFlags, eventfd};

use super::connection::REST;
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
        if self.doorbell.must_ring() && !wake_here(self) {
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
    sleep: Rc<Sleep>,
}

/// What wakes a sleeper, on its own thread.
#[derive(Default)]
struct Sleep {
    is_over: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Sleep {
    fn end(&self) {
        self.is_over.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

thread_local! {
    /// The sleepers of this thread, each with the address of its bell: the relay's and a shard's at most.
    static SLEEPERS: RefCell<Vec<(*const Bell, Rc<Sleep>)>> = const { RefCell::new(Vec::new()) };
}

/// Wakes the sleeper of `bell` if it is one of this thread: a waker is enough, where the eventfd costs four system calls
/// (write, park, read, and the poll armed anew) with a turn of the runtime between.
fn wake_here(bell: &Bell) -> bool {
    SLEEPERS.with_borrow(|sleepers| {
        let found = sleepers.iter().find(|(known, _)| std::ptr::eq(*known, bell));
        found.inspect(|(_, sleep)| sleep.end()).is_some()
    })
}

impl Sleeper {
    /// To be made on the consumer's thread.
    ///
    /// # Errors
    /// Out of descriptors, or the driver did not take it.
    pub fn new(bell: Arc<Bell>) -> io::Result<Self> {
        let socket = Socket::new(bell.eventfd.try_clone()?)?;
        let sleep = Rc::new(Sleep::default());
        monoio::spawn(hear(socket, sleep.clone()));
        SLEEPERS.with_borrow_mut(|sleepers| sleepers.push((Arc::as_ptr(&bell), sleep.clone())));
        Ok(Self { bell, sleep })
    }

    /// Waits until the bell is rung, unless `has_work` says that there is something to do already. Asked after the flag is
    /// up, so that nothing that is pushed meanwhile is slept through.
    pub async fn wait(&self, has_work: impl FnOnce() -> bool) {
        self.bell.doorbell.before_waiting();
        if !has_work() {
            poll_fn(|context| {
                if self.sleep.is_over.take() {
                    return Poll::Ready(());
                }
                *self.sleep.waker.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            })
            .await;
        }
        self.bell.doorbell.woken();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        SLEEPERS.with_borrow_mut(|sleepers| sleepers.retain(|(_, sleep)| !Rc::ptr_eq(sleep, &self.sleep)));
    }
}

/// Ends the sleep when another thread writes the eventfd; for as long as the runtime lives.
async fn hear(socket: Socket, sleep: Rc<Sleep>) {
    loop {
        if socket.readable().await.is_err() {
            // The driver is short of something, or going down: whoever sleeps looks for work each time.
            monoio::time::sleep(REST).await;
        }
        let mut count = [0; 8];
        // EAGAIN: written by nobody.
        let _nothing = rustix::io::read(socket.fd(), &mut count);
        sleep.end();
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
    use crate::config::RingSetup;
    use crate::net::runtime::{Driver, block_on};

    fn on_both_drivers(story: impl AsyncFn(Driver)) {
        for driver in [Driver::Epoll, Driver::IoUring(RingSetup::Defer)] {
            if let Err(error) = block_on(driver, story(driver)) {
                println!("{driver:?} is not to be had here: {error}");
            }
        }
    }

    #[test]
    fn a_sleeper_is_woken_from_its_own_thread_without_the_eventfd() {
        on_both_drivers(async |driver| {
            let bell = Bell::new().expect("a descriptor");
            let sleeper = Sleeper::new(bell.clone()).expect("a descriptor");
            let theirs = bell.clone();
            for _ in 0..3 {
                let ringing = theirs.clone();
                monoio::spawn(async move { ringing.ring() });
                sleeper.wait(|| false).await;
                assert_eq!(bell.times_written(), 0, "{driver:?}");
            }
        });
    }

    #[test]
    fn a_sleeper_is_woken_from_another_thread_each_time() {
        on_both_drivers(async |_| {
            let bell = Bell::new().expect("a descriptor");
            let sleeper = Sleeper::new(bell.clone()).expect("a descriptor");
            let (done, is_done) = std::sync::mpsc::channel();
            let ringing = bell.clone();
            let other = std::thread::spawn(move || {
                for _ in 0..100 {
                    while !ringing.doorbell.must_ring() {
                        std::thread::yield_now();
                    }
                    ringing.write();
                    is_done.recv().expect("the sleeper lives");
                }
            });
            for _ in 0..100 {
                sleeper.wait(|| false).await;
                done.send(()).expect("the other thread lives");
            }
            other.join().expect("it panicked");
        });
    }

    #[test]
    fn whoever_was_rung_while_awake_does_not_sleep_through_it() {
        on_both_drivers(async |_| {
            let bell = Bell::new().expect("a descriptor");
            let sleeper = Sleeper::new(bell.clone()).expect("a descriptor");
            // Rung between the flag and the last look: the work is found, and the ring is left for the next wait.
            sleeper
                .wait(|| {
                    bell.ring();
                    true
                })
                .await;
            sleeper.wait(|| false).await;
        });
    }

    #[test]
    fn a_sleeper_that_is_gone_is_no_longer_of_its_thread() {
        on_both_drivers(async |_| {
            let bell = Bell::new().expect("a descriptor");
            drop(Sleeper::new(bell.clone()).expect("a descriptor"));
            bell.fall_asleep();
            bell.ring();
            assert_eq!(SLEEPERS.with_borrow(Vec::len), 0);
        });
    }

    #[test]
    fn giving_way_lets_others_run_every_time_on_either_driver() {
        for driver in [Driver::Epoll, Driver::IoUring(RingSetup::Defer)] {
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
