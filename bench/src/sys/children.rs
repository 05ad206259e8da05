//! Children of the generator: pinned, looked at without being lost, and ended with all they have started, also when a second
//! interrupt ends the generator in the middle of something.

use std::fs::File;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use libc::c_int;

use super::{check, core_set};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_whose_end_was_seen_keeps_its_number_until_it_is_ended() {
        for (script, due) in [("exit 3", "exit status: 3"), ("kill -9 $$", "signal: 9 (SIGKILL)")] {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            bind_child(&mut command, &super::super::usable_cores());
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
}
