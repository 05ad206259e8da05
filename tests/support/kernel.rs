//! The few calls that have no safe wrapper: what happens between fork and exec, and stopping one thread.
#![expect(unsafe_code, reason = "pre_exec, ptrace and waitpid of one thread have no safe form")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, Signal, getppid, getrlimit, setrlimit};
use seccompiler::BpfProgram;

use super::deadline::{SOON, eventually};

/// What a child gets before it becomes the program.
#[derive(Default)]
pub struct Confinement {
    /// Hard limit of descriptors, and the soft one where that is not given.
    pub descriptors_max: Option<u64>,
    /// Soft limit of descriptors.
    pub descriptors_soft: Option<u64>,
    /// System call filter.
    pub filter: Option<BpfProgram>,
    /// Its descriptors from 3 on, as a service manager passes sockets.
    pub passed: Vec<OwnedFd>,
}

/// Has `command`'s child confined, and killed when the thread that spawned it ends.
pub fn confine(command: &mut Command, confinement: Confinement) {
    let parent = rustix::process::getpid();
    let before_exec = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the line above.
        if getppid() != Some(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        pass(&confinement.passed)?;
        if let Some(max) = confinement.descriptors_max {
            let current = confinement.descriptors_soft.unwrap_or(max);
            setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: Some(max) })?;
        }
        if let Some(filter) = &confinement.filter {
            seccompiler::apply_filter(filter).map_err(|_| io::Error::from_raw_os_error(libc::EPERM))?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. `before_exec` makes bare system calls
    // (prctl, getppid, fcntl, dup2, setrlimit, seccomp) on memory that was built before the fork, and neither allocates nor locks.
    unsafe { command.pre_exec(before_exec) };
}

/// Puts `descriptors` to 3, 4 and so on, open in the program to come. First all of them go out of each other's way.
fn pass(descriptors: &[OwnedFd]) -> io::Result<()> {
    const FIRST: i32 = 3;
    const OUT_OF_THE_WAY: i32 = 32;
    let mut numbers = [-1; 16];
    for (number, descriptor) in numbers.iter_mut().zip(descriptors) {
        // SAFETY: it duplicates an open descriptor and touches no memory.
        *number =
            check(unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, OUT_OF_THE_WAY) })?;
    }
    for (target, number) in (FIRST..).zip(&numbers[..descriptors.len()]) {
        // SAFETY: whoever had the target has no use for it between fork and exec, but for the pipe over which std
        // would tell of a failed exec; that is lost then, and the server's absence tells.
        check(unsafe { libc::dup2(*number, target) })?;
    }
    Ok(())
}

fn check(result: i32) -> io::Result<i32> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Sends `signal` to a process that need not be a child of this one.
pub fn signal(pid: i32, signal: Signal) {
    let pid = Pid::from_raw(pid).expect("a process has a positive id");
    // One that is gone already has nothing to be told.
    let _gone = rustix::process::kill_process(pid, signal);
}

/// Has a process stand still; returns when it does.
#[track_caller]
pub fn stop(pid: i32) {
    signal(pid, Signal::STOP);
    eventually(SOON, "the process stands still", || state(pid) == Some('T'));
}

/// Whether a process runs; one that has ended and that nobody has waited for does not.
pub fn is_running(pid: i32) -> bool {
    state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// The third field of `/proc/PID/stat`, after the program's name in parentheses (proc_pid_stat(5)).
fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Lets this process hold as many descriptors as the host allows: a swarm needs one for each member.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("the soft limit may rise to the hard one");
}

/// Descriptors this process may hold.
pub fn descriptors_max() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Cores that this process may run on.
pub fn usable_cores() -> Vec<usize> {
    let cores = rustix::thread::sched_getaffinity(None).expect("the kernel tells where this runs");
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| cores.is_set(*core)).collect()
}

/// Keeps the calling thread on `core`.
pub fn pin(core: usize) {
    let mut cores = rustix::thread::CpuSet::new();
    cores.set(core);
    rustix::thread::sched_setaffinity(None, &cores).expect("a usable core");
}

/// Clock ticks in a second, the unit of CPU time in `/proc/PID/stat`.
pub fn ticks_per_second() -> f64 {
    // SAFETY: sysconf reads a constant of the system and touches no memory of ours.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    assert!(ticks > 0, "sysconf(_SC_CLK_TCK) answered {ticks}, a positive number was due");
    ticks as f64
}

/// One stopped thread of a child; dropped, it goes on.
///
/// SIGSTOP stops a whole process; this is how one shard is made to fall behind while its siblings run.
pub struct StoppedThread {
    tid: libc::pid_t,
    /// ptrace obeys only the thread that attached, so this must not move to another one.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl StoppedThread {
    /// Stops thread `tid` of a child of this process; returns when it stands still.
    pub fn stop(tid: i32) -> io::Result<Self> {
        trace(libc::PTRACE_SEIZE, tid)?;
        let stopped = Self { tid, _not_send: std::marker::PhantomData };
        trace(libc::PTRACE_INTERRUPT, tid)?;
        let mut status = 0;
        // SAFETY: `status` is an integer of ours that outlives the call; __WALL waits for a thread that is no child.
        match unsafe { libc::waitpid(tid, &mut status, libc::__WALL) } {
            waited if waited == tid && libc::WIFSTOPPED(status) => Ok(stopped),
            -1 => Err(io::Error::last_os_error()),
            _ => Err(io::Error::other(format!("thread {tid} did not stop, its status is {status:#x}"))),
        }
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        if trace(libc::PTRACE_DETACH, self.tid).is_err() {
            // It was killed with its process, which is not gone before its tracer has looked at every thread.
            let mut status = 0;
            // SAFETY: as in `stop`. It fails where somebody else was waited for already.
            unsafe { libc::waitpid(self.tid, &mut status, libc::__WALL) };
        }
    }
}

fn trace(request: libc::c_uint, tid: libc::pid_t) -> io::Result<()> {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: SEIZE, INTERRUPT and DETACH read and write no memory of the tracer; both pointers are null.
    match unsafe { libc::ptrace(request, tid, nothing, nothing) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
