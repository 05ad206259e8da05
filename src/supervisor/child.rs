//! One child process, seen from its parent: started, told, watched, and ended.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{self, PathBuf};
use std::process::{Child as Process, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use shards::net::rights;

use super::channel::{self, Order, Place};
use super::fleet::Generation;

/// What the service manager set for the parent and is none of a child's business.
const VARIABLES_OF_THE_PARENT: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// What a child did.
#[derive(Debug)]
pub enum Word {
    /// It said these lines.
    Said(String),
    /// It is gone, and has been waited for.
    Gone(io::Result<ExitStatus>),
}

/// See the module.
#[derive(Debug)]
pub struct Child {
    /// Process id, valid while the parent has not waited for it.
    pub pid: u32,
    channel: Arc<OwnedFd>,
    /// Names the process even when its number has been used again.
    handle: OwnedFd,
    /// Takes connections of the admin address; shared with whoever asks.
    pub door: Option<Arc<OwnedFd>>,
}

impl Child {
    /// Starts `program` with the arguments of this process, at `place`. `sockets` are those that
    /// `place` tells of. What it does goes to `words`, its end last.
    ///
    /// # Errors
    /// No memory, process or descriptor is left, or the program is gone.
    pub fn start(
        program: &Program,
        generation: Generation,
        place: Place,
        sockets: &[&OwnedFd],
        words: impl Fn(Generation, Word) + Send + 'static,
    ) -> io::Result<Self> {
        let (channel, theirs) = rights::pair()?;
        let channel = Arc::new(channel);
        // First of all: a child that nobody can wait for must not begin, for with the channel its parent seems gone to it, and
        // it would close the queue that is its successor's.
        let (hand, handed) = mpsc::channel::<(Process, Arc<OwnedFd>)>();
        let listen = move || {
            // Without one its start has failed.
            if let Ok((process, channel)) = handed.recv() {
                watch(process, &channel, |word| words(generation, word));
            }
        };
        thread::Builder::new().name(format!("child-{generation}")).spawn(listen)?;
        let doors = place.admin.is_some().then(rights::pair).transpose()?;
        let (door, their_door) = doors.unzip();
        let mut command = Command::new(program.path()?);
        command.args(env::args_os().skip(1)).env(channel::VARIABLE, place.process.to_string());
        for variable in VARIABLES_OF_THE_PARENT {
            command.env_remove(variable);
        }
        // A Ctrl-C in the terminal is the parent's, who tells its children what it means.
        command.process_group(0).stdin(Stdio::from(theirs));
        let mut process = command.spawn()?;
        drop(command);
        let prepared = prepare(&process, &channel, place, sockets, their_door);
        let handle = match prepared {
            Ok(handle) => handle,
            Err(error) => {
                // It may have ended by itself, and is waited for in either case.
                let _ended_already = process.kill();
                process.wait()?;
                return Err(error);
            }
        };
        let pid = process.id();
        hand.send((process, channel.clone())).expect("its thread waits for it");
        Ok(Self { pid, channel, handle, door: door.map(Arc::new) })
    }

    /// Says `order`; a child that is gone or doesn't listen is found by other means.
    pub fn say(&self, order: &Order) {
        if let Err(error) = channel::say(&*self.channel, order) {
            tracing::debug!(pid = self.pid, %error, ?order, "a process could not be told");
        }
    }

    /// Ends it, whatever it does.
    pub fn kill(&self) {
        if let Err(error) = pidfd_send_signal(&self.handle, Signal::KILL) {
            tracing::debug!(pid = self.pid, %error, "a process could not be killed");
        }
    }
}

fn prepare(
    process: &Process,
    channel: &OwnedFd,
    place: Place,
    sockets: &[&OwnedFd],
    door: Option<OwnedFd>,
) -> io::Result<OwnedFd> {
    let pid = Pid::from_child(process);
    let handle = pidfd_open(pid, PidfdFlags::empty())?;
    let mut descriptors: Vec<_> = sockets.iter().map(|socket| socket.as_fd()).collect();
    descriptors.extend(door.as_ref().map(AsFd::as_fd));
    assert_eq!(descriptors.len(), place.descriptors(), "the place tells of its sockets");
    channel::say(channel, &Order::Place(place))?;
    channel::pass(channel, &descriptors)?;
    Ok(handle)
}

/// Passes on what the child says, until it is gone.
fn watch(mut process: Process, channel: &OwnedFd, word: impl Fn(Word)) {
    loop {
        match channel::listen(channel) {
            Ok(Some(lines)) => word(Word::Said(lines)),
            Ok(None) => break,
            // A reset: it died with orders unread.
            Err(_) => break,
        }
    }
    word(Word::Gone(process.wait()));
}

/// The program that this process runs, by the name that it was started by: an upgrade puts another file there.
#[derive(Debug)]
pub struct Program {
    /// Where that name was a path. It may be a link that an upgrade points to the next version's folder, which
    /// `/proc/self/exe` has gone through already.
    started: Option<PathBuf>,
}

impl Program {
    /// To be asked at the start, while the name still leads here.
    pub fn of_this_process() -> Self {
        Self { started: env::args_os().next().and_then(|name| named(&name)) }
    }

    /// What stands there now. Where nothing does, the file that this process was started from, and where that is gone too, what
    /// runs.
    fn path(&self) -> io::Result<PathBuf> {
        const DELETED: &[u8] = b" (deleted)";
        if let Some(started) = self.started.as_ref().filter(|path| path.exists()) {
            return Ok(started.clone());
        }
        let path = env::current_exe()?;
        let bytes = path.as_os_str().as_bytes();
        // proc_pid_exe(5): the link's text of a file that is gone, also where another has its name now.
        let path = match bytes.strip_suffix(DELETED) {
            Some(bytes) if !path.exists() => PathBuf::from(OsString::from_vec(bytes.to_vec())),
            _ => path,
        };
        if path.exists() { Ok(path) } else { Ok(PathBuf::from("/proc/self/exe")) }
    }
}

/// `name` as a whole path, where it is one that leads to the file of this process. A shell finds bare names by PATH, and a
/// name may be anything at all (execve(2)).
fn named(name: &OsStr) -> Option<PathBuf> {
    let path = name.as_bytes().contains(&b'/').then(|| path::absolute(name).ok())??;
    let is_ours = path.canonicalize().ok()? == env::current_exe().ok()?;
    is_ours.then_some(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_child_runs_the_file_that_this_program_was_started_from() {
        let path = Program { started: None }.path().expect("this program has a file");
        assert_eq!(path, env::current_exe().expect("it has a file"));
    }

    #[test]
    fn a_link_by_which_this_program_was_started_is_followed_anew_each_time() {
        let exe = env::current_exe().expect("it has a file");
        let link = env::temp_dir().join(format!("corecast-link-{}", std::process::id()));
        symlink(&exe, &link).expect("a free name");
        let program = Program { started: named(link.as_os_str()) };
        assert_eq!(program.path().expect("it leads somewhere"), link);
        std::fs::remove_file(&link).expect("it was made");
        assert_eq!(program.path().expect("there is a file"), exe, "the link is gone");
        for other in ["corecast", "/bin/sh", "./no-such-file"] {
            assert_eq!(named(OsStr::new(other)), None, "{other}");
        }
    }
}
