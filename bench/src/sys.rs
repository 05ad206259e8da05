//! The system calls that the standard library has no words for. The only file of the generator with `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use libc::c_int;

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

/// The child will be pinned to `cores`, die with the thread that spawns it, and not hear a terminal's Ctrl-C itself (the
/// generator hears it and still needs the child to end the measurement).
pub fn bind_child(command: &mut Command, cores: &[usize]) {
    let set = core_set(cores);
    let parent = std::process::id();
    // SAFETY: the closure runs between fork and exec and makes only async-signal-safe calls on data that it owns.
    unsafe {
        command.pre_exec(move || {
            check(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set))?;
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64))?;
            check(libc::setpgid(0, 0))?;
            // The parent may have died before the death signal was asked for.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

/// How a child has ended, if it has. It stays unreaped, so that its id, and that of its group, is nobody else's until
/// [`end_group`].
pub fn peek_end(child: &Child) -> io::Result<Option<ExitStatus>> {
    // SAFETY: a siginfo_t is plain data, for which zeros are valid.
    let mut info: libc::siginfo_t = unsafe { zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is a valid place for a siginfo_t for the length of the call.
    check(unsafe { libc::waitid(libc::P_PID, child.id(), &mut info, flags) })?;
    // SAFETY: waitid fills in what SIGCHLD brings, or leaves the zeros where nobody has ended (wait(2)).
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    // As wait(2) packs it: what it exited with, or the signal and whether there was a dump.
    let packed = match info.si_code {
        libc::CLD_EXITED => (status & 0xff) << 8,
        libc::CLD_DUMPED => status | 0x80,
        _ => status,
    };
    Ok(Some(ExitStatus::from_raw(packed)))
}

/// Ends a child that [`bind_child`] bound, and what it has started in its process group, and waits for the child's end.
pub fn end_group(child: &mut Child) -> io::Result<()> {
    let group = child.id() as libc::pid_t;
    // SAFETY: kill touches no memory; the child has not been reaped yet, so the id is still its own.
    unsafe { libc::kill(-group, libc::SIGKILL) };
    // Before the wait: what follows may be another's of the same number.
    for place in &GROUPS {
        if place.compare_exchange(group, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            break;
        }
    }
    child.wait().map(drop)
}

/// Process groups that end with the generator, however it ends; 0 is a free place. In a static, because a signal's handler
/// ends them.
static GROUPS: [AtomicI32; GROUPS_MAX] = [const { AtomicI32::new(0) }; GROUPS_MAX];
/// Servers, their Redis and receivers of all sides of a scenario: some fifty with ten sides.
const GROUPS_MAX: usize = 1_024;

/// A child that [`bind_child`] bound ends when a second interrupt ends the generator.
pub fn note_group(child: &Child) -> io::Result<()> {
    let group = child.id() as i32;
    let is_taken =
        |place: &AtomicI32| place.compare_exchange(0, group, Ordering::SeqCst, Ordering::SeqCst).is_ok();
    match GROUPS.iter().any(is_taken) {
        true => Ok(()),
        false => Err(io::Error::other(format!("more than {GROUPS_MAX} processes at once"))),
    }
}

/// How often somebody asked the run to end.
static INTERRUPTS: AtomicU32 = AtomicU32::new(0);
/// Where the thread that clears up after a second interrupt listens.
static CLEARING: AtomicI32 = AtomicI32::new(-1);
/// What is to be done before the end, whatever the rest of the program is doing.
static LAST_WORK: Mutex<Option<Box<dyn FnOnce() + Send>>> = Mutex::new(None);

extern "C" fn note_interrupt(_signal: c_int) {
    if INTERRUPTS.fetch_add(1, Ordering::SeqCst) == 0 {
        return;
    }
    for place in &GROUPS {
        let group = place.load(Ordering::SeqCst);
        if group > 0 {
            // SAFETY: kill touches no memory, and is async-signal-safe. The group is in its place for as long as its first
            // process has not been reaped, so the number is its own.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
    }
    let one = 1u64;
    // SAFETY: write is async-signal-safe and reads eight bytes of `one`, which lives as long.
    unsafe { libc::write(CLEARING.load(Ordering::SeqCst), (&raw const one).cast(), size_of::<u64>()) };
}

/// From now on SIGINT and SIGTERM are noted instead of ending the process; a second one ends it and all processes that it has
/// started, and then with them [what is to be done last](at_second_interrupt), with exit code 130.
pub fn catch_interrupts() -> io::Result<()> {
    // SAFETY: eventfd touches no memory; a descriptor that it returns is new and owned by nobody else.
    let mut clearing = unsafe { File::from_raw_fd(check(libc::eventfd(0, libc::EFD_CLOEXEC))?) };
    CLEARING.store(clearing.as_raw_fd(), Ordering::SeqCst);
    std::thread::Builder::new().name("last-work".to_owned()).spawn(move || {
        let read = io::Read::read_exact(&mut clearing, &mut [0; size_of::<u64>()]);
        let work = LAST_WORK.lock().ok().and_then(|mut work| work.take());
        if let (Ok(()), Some(work)) = (read, work) {
            work();
        }
        // SAFETY: _exit ends the process; nothing that it leaves undone is needed by anybody.
        unsafe { libc::_exit(INTERRUPTED_CODE) };
    })?;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler makes only async-signal-safe calls; the struct is zeroed plain data with a valid function in
        // it.
        unsafe {
            let mut action: libc::sigaction = zeroed();
            action.sa_sigaction = note_interrupt as *const () as usize;
            check(libc::sigaction(signal, &action, std::ptr::null_mut()))?;
        }
    }
    Ok(())
}

/// Exit code of a run that somebody interrupted, as shells have it: 128 + SIGINT.
pub const INTERRUPTED_CODE: c_int = 130;

/// What is done when a second interrupt ends the process at once, on a thread of its own.
pub fn at_second_interrupt(work: impl FnOnce() + Send + 'static) {
    if let Ok(mut place) = LAST_WORK.lock() {
        *place = Some(Box::new(work));
    }
}

/// Whether somebody asked the run to end.
pub fn interrupted() -> bool {
    INTERRUPTS.load(Ordering::Relaxed) > 0
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
    fn a_child_whose_end_was_seen_keeps_its_number_until_it_is_ended() {
        for (script, due) in [("exit 3", "exit status: 3"), ("kill -9 $$", "signal: 9 (SIGKILL)")] {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            bind_child(&mut command, &usable_cores());
            let mut child = command.spawn().unwrap();
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
            let status = loop {
                assert!(std::time::Instant::now() < deadline, "{script} never ends");
                if let Some(status) = peek_end(&child).unwrap() {
                    break status;
                }
            };
            assert_eq!(status.to_string(), due);
            assert_eq!(peek_end(&child).unwrap(), Some(status), "it is seen as often as one looks");
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
            assert!(stat.contains(") Z "), "{stat}");
            end_group(&mut child).unwrap();
            assert!(!std::path::Path::new(&format!("/proc/{}", child.id())).exists());
        }
    }

    #[test]
    fn a_process_that_cannot_be_has_no_clock() {
        assert!(process_cpu_ns((1 << 22) + 1).is_err());
        assert!(process_cpu_ns(u32::MAX).is_err());
    }
}
