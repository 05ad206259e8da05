//! Step 5 of 5: the sockets. 256 sends in one system call.
//!
//! The fan-out ring is an io_uring of the shard's own, beside that of its runtime and used only synchronously: up to
//! [`BATCH_SENDS_MAX`](crate::limits::BATCH_SENDS_MAX) sends with `MSG_DONTWAIT`, one enter, and all completions are taken before the call returns. So no
//! buffer outlives the call, and the runtime need not know of it. On the epoll driver the same interface is a loop of
//! `send()`; both bodies run under the same tests.

#![allow(unsafe_code)]

use std::io;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;

use super::socket;
use crate::shard::{Batch, SendOp, Wire};
use crate::tcp::Tcp;

/// How a shard's sends reach the kernel.
pub struct Fanout {
    ring: Option<Ring>,
    /// System calls that carried sends.
    pub calls: u64,
    /// Sends that the ring did not take.
    pub fallbacks: u64,
}

/// The fan-out ring and the memory its operations point to, kept so that it is allocated once.
struct Ring {
    ring: IoUring,
    /// Buffers of the operations that have several.
    buffers: Vec<libc::iovec>,
    messages: Vec<libc::msghdr>,
    results: Vec<isize>,
    /// Sends of the largest batch.
    batch_sends_max: usize,
    /// The kernel takes nothing more, and something stands in its queue.
    is_stuck: bool,
}

/// A result that has not come.
const MISSING: isize = isize::MIN;
const FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

impl Fanout {
    /// By `send()`, one call each.
    pub fn plain() -> Self {
        Self { ring: None, calls: 0, fallbacks: 0 }
    }

    /// By a ring of its own, for batches of up to so many sends. The thread that makes it is the only one that may use it.
    ///
    /// # Errors
    /// Those of `io_uring_setup`: EPERM where it is forbidden, ENOSYS or EINVAL where the kernel is too old (6.1).
    pub fn ring(batch_sends_max: usize) -> io::Result<Self> {
        Ok(Self { ring: Some(Ring::new(batch_sends_max)?), calls: 0, fallbacks: 0 })
    }
}

impl Wire for Fanout {
    fn send(&mut self, socket: i32, bytes: &[u8]) -> isize {
        self.calls += 1;
        socket::send(socket, bytes)
    }

    fn tcp(&mut self, socket: i32) -> Option<Tcp> {
        socket::tcp(socket)
    }

    fn send_batch(&mut self, batch: &Batch, taken: &mut Vec<isize>) {
        let from = taken.len();
        let had_ring = self.ring.is_some();
        if let Some(ring) = &mut self.ring {
            self.calls += ring.send_batch(batch, taken);
            if ring.is_stuck {
                // A new ring forgets what the old one did not take. Out of descriptors: from now on without.
                self.ring = Ring::new(ring.batch_sends_max)
                    .inspect_err(
                        |error| tracing::warn!(%error, "the fan-out ring is lost; sends go by send()"),
                    )
                    .ok();
            }
        } else {
            taken.resize(from + batch.ops().len(), MISSING);
        }
        for (op, result) in batch.ops().iter().zip(&mut taken[from..]) {
            if *result == MISSING {
                *result = send_op(batch, op);
                self.calls += 1;
                self.fallbacks += u64::from(had_ring);
            }
        }
    }
}

/// One operation without a ring.
fn send_op(batch: &Batch, op: &SendOp) -> isize {
    let mut slices = batch.slices(op);
    if slices.len() == 1 {
        return slices.next().map_or(0, |bytes| socket::send(op.socket, bytes));
    }
    let buffers: Vec<io::IoSlice<'_>> = slices.map(io::IoSlice::new).collect();
    socket::send_vectored(op.socket, &buffers)
}

impl Ring {
    fn new(batch_sends_max: usize) -> io::Result<Self> {
        // The kernel makes a power of two of it.
        let entries = u32::try_from(batch_sends_max).unwrap_or(u32::MAX);
        let ring = IoUring::builder()
            .setup_single_issuer()
            // An operation that can't be started ends with an error of its own instead of ending the batch.
            .setup_submit_all()
            .setup_cqsize(entries.saturating_mul(2))
            .build(entries)?;
        let (buffers, messages, results) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { ring, buffers, messages, results, batch_sends_max, is_stuck: false })
    }

    /// Sends a batch; appends one result per operation, [`MISSING`] for those that the ring did not take. Returns the
    /// system calls it made.
    fn send_batch(&mut self, batch: &Batch, taken: &mut Vec<isize>) -> u64 {
        let ops = batch.ops();
        assert!(
            ops.len() <= self.batch_sends_max,
            "a batch of {} sends, the ring has {}",
            ops.len(),
            self.batch_sends_max
        );
        self.describe(batch);
        let mut message = 0;
        for (index, op) in ops.iter().enumerate() {
            let mut slices = batch.slices(op);
            let entry = match (slices.len(), slices.next()) {
                (1, Some(bytes)) => {
                    opcode::Send::new(types::Fd(op.socket), bytes.as_ptr(), bytes.len() as u32)
                        .flags(FLAGS)
                        .build()
                }
                _ => {
                    message += 1;
                    let message: *const libc::msghdr = &self.messages[message - 1];
                    opcode::SendMsg::new(types::Fd(op.socket), message).flags(FLAGS as u32).build()
                }
            };
            self.push(&entry.user_data(index as u64));
        }
        self.results.clear();
        self.results.resize(ops.len(), MISSING);
        let calls = self.enter(ops.len());
        taken.extend_from_slice(&self.results);
        calls
    }

    /// Writes down the buffers of the operations that have several. Done first, because growing moves them.
    fn describe(&mut self, batch: &Batch) {
        self.buffers.clear();
        self.messages.clear();
        for op in batch.ops() {
            let slices = batch.slices(op);
            if slices.len() > 1 {
                let pointers =
                    slices.map(|s| libc::iovec { iov_base: s.as_ptr() as *mut _, iov_len: s.len() });
                self.buffers.extend(pointers);
            }
        }
        let mut from = 0;
        for op in batch.ops() {
            let count = batch.slices(op).len();
            if count > 1 {
                // SAFETY: all zeros is a valid msghdr: no name, no buffers, no control data.
                let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
                message.msg_iov = self.buffers[from..].as_mut_ptr();
                message.msg_iovlen = count as _;
                self.messages.push(message);
                from += count;
            }
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the entry points into `batch` (borrowed until `send_batch` returns) or into `self.messages` and
        // `self.buffers` (not changed until then), and `enter` does not return before every operation that was submitted
        // has completed.
        let pushed = unsafe { self.ring.submission().push(entry) };
        assert!(pushed.is_ok(), "the ring had fewer entries than a batch has sends");
    }

    /// Submits what was pushed and takes every completion. With `MSG_DONTWAIT` each operation completes inside the enter.
    fn enter(&mut self, pushed: usize) -> u64 {
        let (mut submitted, mut completed, mut calls, mut idle) = (0, 0, 0, 0);
        while completed < pushed {
            calls += 1;
            let wanted = usize::from(submitted == pushed);
            match self.ring.submit_and_wait(wanted) {
                Ok(count) if count > 0 || wanted > 0 => {
                    submitted += count;
                    idle = 0;
                }
                // Interrupted, or short of memory: try again, but not for ever.
                _ => idle += 1,
            }
            completed += self.reap();
            if idle >= 2 && submitted == completed {
                self.is_stuck = true;
                return calls;
            }
        }
        calls
    }

    fn reap(&mut self) -> usize {
        let mut completions = 0;
        for completion in self.ring.completion() {
            completions += 1;
            let result = completion.result();
            let taken = match result {
                0.. => result as isize,
                error => socket::refused(Errno::from_raw_os_error(-error)),
            };
            self.results[completion.user_data() as usize] = taken;
        }
        completions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::BATCH_SENDS_MAX;
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    fn both(test: impl Fn(Fanout)) {
        test(Fanout::plain());
        match Fanout::ring(BATCH_SENDS_MAX) {
            Ok(fanout) => test(fanout),
            Err(error) => {
                println!("io_uring is not to be had here ({error}): only the plain body was tested")
            }
        }
    }

    #[test]
    fn one_and_several_buffers_arrive_in_order() {
        both(|mut fanout| {
            let pairs: Vec<_> = (0..300).map(|_| UnixStream::pair().expect("a pair of sockets")).collect();
            for chunk in pairs.chunks(BATCH_SENDS_MAX) {
                let mut batch = Batch::default();
                for (index, (ours, _)) in chunk.iter().enumerate() {
                    let parts: &[&[u8]] = if index % 2 == 0 { &[b"abc"] } else { &[b"a", b"", b"bc"] };
                    batch.push(ours.as_raw_fd(), parts);
                }
                let mut taken = Vec::new();
                fanout.send_batch(&batch, &mut taken);
                assert_eq!(taken, vec![3; chunk.len()]);
            }
            for (_, theirs) in &pairs {
                let mut theirs = theirs;
                let mut bytes = [0; 3];
                theirs.read_exact(&mut bytes).expect("three bytes");
                assert_eq!(&bytes, b"abc");
            }
        });
    }

    #[test]
    fn a_full_a_closed_and_a_bad_socket_are_told_apart_and_hurt_nobody() {
        both(|mut fanout| {
            let full = UnixStream::pair().expect("a pair of sockets");
            while socket::send(full.0.as_raw_fd(), &[0; 65_536]) > 0 {}
            let closed = UnixStream::pair().expect("a pair of sockets");
            drop(closed.1);
            let sound = UnixStream::pair().expect("a pair of sockets");
            let mut batch = Batch::default();
            for number in [full.0.as_raw_fd(), closed.0.as_raw_fd(), 1_000_000, sound.0.as_raw_fd()] {
                batch.push(number, &[b"x"]);
            }
            let mut taken = Vec::new();
            fanout.send_batch(&batch, &mut taken);
            assert_eq!(taken, [0, -1, -1, 1]);
        });
    }
}
