//! The system calls that the standard library has no words for. The only module of the generator with `unsafe`.
#![allow(unsafe_code)]

mod children;

use std::fs::File;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU64;

use libc::c_int;

pub use self::children::{
    INTERRUPTED_CODE, at_second_interrupt, bind_child, catch_interrupts, end_group, interrupted, note_group,
    peek_end,
};

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// CLOCK_MONOTONIC in nanoseconds; the same in all processes of a machine.
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC).expect("Linux has CLOCK_MONOTONIC")
}

fn clock_ns(clock: libc::clockid_t) -> io::Result<u64> {
    // SAFETY: a timespec is plain numbers, for which zeros are valid.
    let mut time: libc::timespec = unsafe { zeroed() };
    // SAFETY: `time` is a valid place for a timespec for the length of the call.
    check(unsafe { libc::clock_gettime(clock, &mut time) })?;
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// CPU time of all threads of a process, dead ones included, in nanoseconds: the sum whose ticks `/proc/PID/stat` shows.
pub fn process_cpu_ns(pid: u32) -> io::Result<u64> {
    // A clock's id has 29 bits for the process's; Linux gives out ids up to 2^22 (PID_MAX_LIMIT).
    if pid == 0 || pid > 1 << 22 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    let mut clock: libc::clockid_t = 0;
    // SAFETY: `clock` is a valid place for a clock's id for the length of the call.
    let error = unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    clock_ns(clock)
}

/// Sleeps until CLOCK_MONOTONIC reads `at_ns`; a signal ends the sleep early.
pub fn sleep_until_ns(at_ns: u64) {
    let at = timespec(at_ns);
    // SAFETY: `at` is valid for the length of the call; an absolute sleep writes no remainder.
    unsafe { libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &at, std::ptr::null_mut()) };
}

fn timespec(ns: u64) -> libc::timespec {
    libc::timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 }
}

/// Waits until `fd` has something to read or `timeout_ns` has passed; says whether it has. Finer than a socket's time-out.
pub fn wait_readable(fd: &impl AsRawFd, timeout_ns: u64) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let timeout = timespec(timeout_ns);
    // SAFETY: `poll` and `timeout` are valid for the length of the call, and the count of one is true.
    unsafe { libc::ppoll(&mut poll, 1, &timeout, std::ptr::null()) > 0 }
}

/// Sleeps end when they should, not up to 50 us later (the default slack of a timer).
pub fn sharpen_timers() {
    // SAFETY: PR_SET_TIMERSLACK takes one number and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1u64) };
}

/// The real-time class for this thread: it runs as soon as it is woken, before the receivers on its core.
pub fn run_first() -> io::Result<()> {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: `priority` is valid for the length of the call; 0 is the calling thread.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &priority) }).map(drop)
}

/// Raises the soft limit of open descriptors to the hard one and returns it.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for an rlimit for the length of both calls.
    unsafe {
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit))?;
        limit.rlim_cur = limit.rlim_max;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &limit))?;
    }
    Ok(limit.rlim_cur)
}

fn core_set(cores: &[usize]) -> libc::cpu_set_t {
    // SAFETY: a cpu_set_t is a bit mask, for which zeros are valid.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    for &core in cores.iter().filter(|core| **core < libc::CPU_SETSIZE as usize) {
        // SAFETY: the filter keeps the index inside the mask.
        unsafe { libc::CPU_SET(core, &mut set) };
    }
    set
}

/// Pins the calling thread, and the threads it starts later, to `cores`.
pub fn pin_to(cores: &[usize]) -> io::Result<()> {
    let set = core_set(cores);
    // SAFETY: `set` is valid for the length of the call and its size is given truly.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) }).map(drop)
}

/// A TCP connection under way: non-blocking, without delay, from `source` if given.
///
/// The source's port is chosen at connect, so that one source address reaches as many sockets per destination as there
/// are ephemeral ports. With `receive_bytes` the kernel keeps at most twice that unread (it doubles it for its own accounts,
/// socket(7)). Bounded before the connect, because the window scale is agreed on there: a window that shrinks later has the
/// sender's segments no longer fit it, and leaves them to its probe timer, which doubles each time.
pub fn connect(
    address: SocketAddrV4,
    source: Option<Ipv4Addr>,
    receive_bytes: Option<usize>,
) -> io::Result<TcpStream> {
    // SAFETY: socket touches no memory; a descriptor that it returns is new and owned by nobody else.
    let socket = unsafe {
        let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        OwnedFd::from_raw_fd(check(libc::socket(libc::AF_INET, kind, 0))?)
    };
    if let Some(bytes) = receive_bytes {
        let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX);
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes)?;
    }
    if let Some(source) = source {
        set_option(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
        let from = socket_address(SocketAddrV4::new(source, 0));
        // SAFETY: `from` is valid for the length of the call and its size is given truly.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const from).cast(), ADDRESS_BYTES) })?;
    }
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    let to = socket_address(address);
    // SAFETY: `to` is valid for the length of the call and its size is given truly.
    match check(unsafe { libc::connect(stream.as_raw_fd(), (&raw const to).cast(), ADDRESS_BYTES) }) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(stream),
    }
}

/// Ends a connection as the death of its owner's machine would: what is under way is forgotten, the peer gets a reset, and no
/// port stays behind in TIME_WAIT.
pub fn abort(stream: TcpStream) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let bytes = size_of::<libc::linger>() as libc::socklen_t;
    let (fd, value) = (stream.as_raw_fd(), (&raw const linger).cast());
    // SAFETY: `linger` is valid for the length of the call and its size is given truly.
    check(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, value, bytes) })?;
    drop(stream);
    Ok(())
}

const ADDRESS_BYTES: libc::socklen_t = size_of::<libc::sockaddr_in>() as libc::socklen_t;

fn socket_address(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    }
}

fn set_option(socket: &impl AsRawFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let bytes = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: `value` is valid for the length of the call and its size is given truly.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), bytes) })
        .map(drop)
}

/// Which descriptors have news.
pub struct Epoll {
    epoll: OwnedFd,
    events: Vec<libc::epoll_event>,
}

/// News of one descriptor.
#[derive(Debug, Clone, Copy)]
pub struct Ready {
    /// What it was registered under.
    pub token: u64,
    /// The peer has ended or the connection broke: an end of input is due after the data.
    pub ended: bool,
}

/// What a descriptor is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// New input, told once per arrival (edge).
    Input,
    /// The same, and the end of a connect.
    InputAndOutput,
    /// Input for as long as there is some (level).
    Level,
}

impl Epoll {
    /// Takes at most `events_max` events a wait.
    pub fn new(events_max: usize) -> io::Result<Self> {
        // SAFETY: epoll_create1 touches no memory; a descriptor that it returns is new and owned by nobody else.
        let epoll = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        Ok(Self { epoll, events: vec![libc::epoll_event { events: 0, u64: 0 }; events_max] })
    }

    /// Begins to watch; closing the descriptor ends it.
    pub fn add(&self, fd: &impl AsRawFd, token: u64, watch: Watch) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd.as_raw_fd(), token, watch)
    }

    /// Changes what is watched; what is ready already is told again.
    pub fn modify(&self, fd: &impl AsRawFd, token: u64, watch: Watch) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd.as_raw_fd(), token, watch)
    }

    /// No longer watches.
    pub fn remove(&self, fd: &impl AsRawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd.as_raw_fd(), 0, Watch::Input)
    }

    fn control(&self, operation: c_int, fd: RawFd, token: u64, watch: Watch) -> io::Result<()> {
        let input = libc::EPOLLIN | libc::EPOLLRDHUP;
        let events = match watch {
            Watch::Input => input | libc::EPOLLET,
            Watch::InputAndOutput => input | libc::EPOLLOUT | libc::EPOLLET,
            Watch::Level => input,
        };
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        // SAFETY: `event` is valid for the length of the call.
        check(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd, &mut event) }).map(drop)
    }

    /// Waits for news for at most `timeout_ms` (-1: for ever) and appends them to `ready`; a signal is no news.
    pub fn wait(&mut self, timeout_ms: i32, ready: &mut Vec<Ready>) -> io::Result<()> {
        let (events, events_max) = (self.events.as_mut_ptr(), self.events.len() as c_int);
        // SAFETY: `events` points to `events_max` events that nobody else uses during the call.
        let found =
            check(unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events, events_max, timeout_ms) });
        let found = match found {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other? as usize,
        };
        let ends = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32;
        ready.extend(
            self.events[..found]
                .iter()
                .map(|event| Ready { token: event.u64, ended: event.events & ends != 0 }),
        );
        Ok(())
    }
}

/// Counters of 64 bits in memory that several processes share, each in a cache line of its own.
pub struct SharedCounters {
    file: File,
    base: *const AtomicU64,
    counters: usize,
}

const COUNTER_STRIDE: usize = 128 / size_of::<AtomicU64>();

impl SharedCounters {
    /// `counters` new ones, all zero.
    pub fn create(counters: usize) -> io::Result<Self> {
        // SAFETY: the name is a string with its zero; a descriptor that is returned is new and owned by nobody else.
        let file =
            unsafe { File::from_raw_fd(check(libc::memfd_create(c"counters".as_ptr(), libc::MFD_CLOEXEC))?) };
        file.set_len((counters * COUNTER_STRIDE * size_of::<AtomicU64>()) as u64)?;
        Self::map(file, counters)
    }

    /// Those of another process, at the [`path`](Self::path) that it tells.
    pub fn open(path: &str, counters: usize) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let bytes_due = (counters * COUNTER_STRIDE * size_of::<AtomicU64>()) as u64;
        if file.metadata()?.len() < bytes_due {
            return Err(io::Error::other(format!("{path} is shorter than the {bytes_due} bytes due")));
        }
        Self::map(file, counters)
    }

    fn map(file: File, counters: usize) -> io::Result<Self> {
        let bytes = counters * COUNTER_STRIDE * size_of::<AtomicU64>();
        // SAFETY: a new mapping at a place of the kernel's choice aliases nothing; its result is checked below.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { file, base: base.cast(), counters })
    }

    /// Where another process of the same user can open them while this one lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// The counter at `index`.
    pub fn at(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.counters, "counter {index} of {}", self.counters);
        // SAFETY: the mapping is page-aligned, holds `counters` strides (the file is at least as long: both
        // constructors see to it), lives as long as `self`, and is only ever used through atomics.
        unsafe { &*self.base.add(index * COUNTER_STRIDE) }
    }
}

impl Drop for SharedCounters {
    fn drop(&mut self) {
        let bytes = self.counters * COUNTER_STRIDE * size_of::<AtomicU64>();
        // SAFETY: `base` is our mapping of so many bytes, and every reference into it borrows `self`.
        unsafe { libc::munmap(self.base.cast_mut().cast(), bytes) };
    }
}

/// Ticks a second in `/proc/stat` and `/proc/PID/stat`.
pub fn ticks_per_second() -> u64 {
    // SAFETY: sysconf touches no memory.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100)
}

/// The cores that this process may use.
pub fn usable_cores() -> Vec<usize> {
    let mut set = core_set(&[]);
    // SAFETY: `set` is valid for the length of the call and its size is given truly.
    unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
    // SAFETY: every index is inside the mask.
    (0..libc::CPU_SETSIZE as usize).filter(|core| unsafe { libc::CPU_ISSET(*core, &set) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn counters_are_shared_by_all_who_map_them() {
        let ours = SharedCounters::create(3).unwrap();
        let theirs = SharedCounters::open(&ours.path(), 3).unwrap();
        theirs.at(2).store(7, Ordering::Relaxed);
        assert_eq!(ours.at(2).load(Ordering::Relaxed), 7);
        assert_eq!(ours.at(1).load(Ordering::Relaxed), 0);
        assert!(SharedCounters::open(&ours.path(), 4).is_err());
    }

    #[test]
    fn the_cpu_clock_of_a_process_runs_while_it_works() {
        let before = process_cpu_ns(std::process::id()).unwrap();
        let mut sum = 0u64;
        while process_cpu_ns(std::process::id()).unwrap() < before + 1_000_000 {
            sum = std::hint::black_box(sum + 1);
        }
    }

    #[test]
    fn a_process_that_cannot_be_has_no_clock() {
        assert!(process_cpu_ns((1 << 22) + 1).is_err());
        assert!(process_cpu_ns(u32::MAX).is_err());
    }
}
