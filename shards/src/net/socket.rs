//! One descriptor that the runtime waits on and the shard reads, writes and shuts down without waiting.
//!
//! monoio's `UnixStream` serves as the waiting half for every kind of descriptor: it is nothing but the descriptor and its
//! readiness (8 B), where its `TcpStream` carries 72 B of cached addresses per connection. Only `readable` and `writable`
//! are used, which may be dropped at any time; no operation that carries data is ever in flight.

#![allow(unsafe_code)]

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::pin;

use monoio::net::UnixStream;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use crate::tcp::Tcp;

/// See the module.
pub struct Socket {
    stream: UnixStream,
}

impl Socket {
    /// Takes a descriptor over, on the thread whose runtime will wait for it.
    ///
    /// # Errors
    /// On the epoll driver: the descriptor could not be registered.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { stream: UnixStream::from_std(StdUnixStream::from(fd))? })
    }

    /// The descriptor's number, valid as long as this lives.
    pub fn number(&self) -> i32 {
        self.stream.as_raw_fd()
    }

    /// Completes when there is something to read, the peer has ended, or the socket is broken.
    // Not `async`: a future around a future costs each waiting connection 16 B.
    pub fn readable(&self) -> impl Future<Output = io::Result<()>> + '_ {
        self.stream.readable(false)
    }

    /// As [`readable`](Self::readable). True if it was so already and nothing else on the thread has run meanwhile: on
    /// epoll, where the runtime remembers that a descriptor was readable. On io_uring every wait gives way.
    pub async fn readable_at_once(&self) -> bool {
        let mut polls = 0u32;
        let mut readable = pin!(self.readable());
        poll_fn(|context| {
            polls = polls.saturating_add(1);
            // An error is the socket's; the next call on it names it.
            readable.as_mut().poll(context).map(|_named_by_the_next_call| polls == 1)
        })
        .await
    }

    /// Completes when the socket takes bytes or is broken.
    pub fn writable(&self) -> impl Future<Output = io::Result<()>> + '_ {
        self.stream.writable(false)
    }

    /// The descriptor, for one call.
    pub fn fd(&self) -> BorrowedFd<'_> {
        borrow(self, self.number())
    }

    /// The address of the other end: one system call. `None` where the connection is gone, or is none of TCP.
    pub fn peer(&self) -> Option<SocketAddr> {
        SocketAddr::try_from(rustix::net::getpeername(self.fd()).ok()??).ok()
    }

    /// Shuts one or both directions down. A socket that is gone already is no error.
    pub fn shutdown(&self, how: Shutdown) {
        let _gone_already = rustix::net::shutdown(self.fd(), how);
    }

    /// Receives what is there now. `Ok(0)` is the end.
    pub fn receive(&self, into: &mut [u8]) -> Result<usize, Errno> {
        loop {
            match rustix::net::recv(self.fd(), &mut *into, RecvFlags::DONTWAIT) {
                Ok((_, bytes)) => return Ok(bytes),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Sends what `socket` takes now. Returns the bytes taken, 0 when it is full, -1 when it is broken.
///
/// `socket` is the number of a descriptor whose slot is occupied: the shard frees a slot before its socket is closed.
pub fn send(socket: i32, bytes: &[u8]) -> isize {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        match rustix::net::send(borrow(&(), socket), bytes, flags) {
            Ok(taken) => return taken as isize,
            Err(Errno::INTR) => {}
            Err(error) => return refused(error),
        }
    }
}

/// The same for several buffers that follow each other.
pub fn send_vectored(socket: i32, buffers: &[io::IoSlice<'_>]) -> isize {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        match rustix::net::sendmsg(borrow(&(), socket), buffers, &mut Default::default(), flags) {
            Ok(taken) => return taken as isize,
            Err(Errno::INTR) => {}
            Err(error) => return refused(error),
        }
    }
}

/// What the kernel says of the TCP of `socket`, whose slot is occupied as for [`send`]. `None` where it is none of TCP.
pub fn tcp(socket: i32) -> Option<Tcp> {
    let mut info = [0u8; TCP_INFO_BYTES];
    let mut written = TCP_INFO_BYTES as libc::socklen_t;
    // SAFETY: the kernel writes at most `written` bytes to `info`, which is so long and outlives the call, and how many
    // they are to `written`; it keeps neither pointer. Any octets are octets. A number that is no socket is an error.
    let result = unsafe {
        libc::getsockopt(
            socket,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            std::ptr::from_mut(&mut written),
        )
    };
    if result == -1 { None } else { Tcp::read(info.get(..written as usize)?) }
}

/// Linux 6.18 writes 280 bytes, of which what is read here are the first 232.
const TCP_INFO_BYTES: usize = 280;

/// What an error of a send means: the socket is full (it will take more later), or broken.
///
/// ENOBUFS and ENOMEM are the kernel's own shortage: later, not never. EINTR comes from a ring only, which can't try again.
pub fn refused(error: Errno) -> isize {
    match error {
        Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::INTR => 0,
        _ => -1,
    }
}

/// Takes over descriptor `number`, which whoever started this process left open for it, and keeps it from children.
///
/// # Errors
/// EBADF where there is none.
pub fn adopt(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: it takes any number, touches no memory, and changes nothing but the flag of a descriptor that is there.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, or fcntl had failed, and it has no other owner: it was open before this process began,
    // and whoever calls this does so once for a number, before anything is opened (keeper: `net/passed.rs`, called first
    // in `main`, forgets the variables that name it).
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Has `program` choose the socket for each new connection to the SO_REUSEPORT group of `member` (socket(7)).
///
/// # Errors
/// EINVAL for a program that the kernel's checker refuses, or a socket without a group.
pub fn attach_reuseport_program(member: BorrowedFd<'_>, program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let described = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel reads `described` and the `len` steps that it points to during the call and keeps a copy; both
    // outlive it, being borrowed here, and nothing is written through the pointer (`sk_reuseport_attach_filter`).
    let result = unsafe {
        libc::setsockopt(
            member.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            std::ptr::from_ref(&described).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Unsets variables, so that children don't take them for theirs. Where there are threads already they stay.
pub fn forget_variables(names: &[&str]) {
    let threads = std::fs::read_dir("/proc/self/task").map_or(usize::MAX, |tasks| tasks.count());
    if threads == 1 {
        for name in names {
            // SAFETY: the environment may be changed while no other thread reads it, and this is the only thread: it was
            // counted just now, and nobody but itself could start another.
            unsafe { std::env::remove_var(name) };
        }
    }
}

/// A descriptor by its number, for as long as `_owner` lives.
fn borrow<T: ?Sized>(_owner: &T, number: i32) -> BorrowedFd<'_> {
    // SAFETY: the number is that of an open descriptor for the duration of the borrow. A `Socket` owns its descriptor;
    // for the numbers that a shard sends to, the runtime releases the connection's slot before it drops its `Socket`, and
    // sends only to numbers of occupied slots (keeper: `net/connection.rs`, `close_socket`).
    unsafe { BorrowedFd::borrow_raw(number) }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::time::Instant;

    use super::*;
    use crate::metrics::Cause;

    #[test]
    fn the_kernel_says_of_a_peer_that_reads_nothing_that_its_window_is_closed() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let ours = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
        let (_theirs, _) = listener.accept().expect("somebody came");
        let number = ours.as_raw_fd();
        assert_eq!(tcp(number).expect("it is of TCP").cause(), Cause::Unknown);
        while send(number, &[b'x'; 65_536]) > 0 {}
        let began = Instant::now();
        let told = loop {
            let told = tcp(number).expect("it is of TCP");
            if told.cause() == Cause::Reader {
                break told;
            }
            // What is under way arrives first.
            assert!(began.elapsed().as_secs() < 20, "{told:?}");
            std::thread::yield_now();
        };
        assert!(told.unsent_bytes > 0 && told.segment_bytes > 0, "{told:?}");
    }

    #[test]
    fn of_what_is_no_tcp_the_kernel_says_nothing() {
        let (ours, _theirs) = StdUnixStream::pair().expect("a pair of sockets");
        assert_eq!(tcp(ours.as_raw_fd()), None);
        assert_eq!(tcp(1_000_000), None);
    }
}
