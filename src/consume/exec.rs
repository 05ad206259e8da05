//! The handler `exec`: a shell's command for each event, which comes as JSON on standard input.

use std::fs::File;
use std::io::{self, PipeReader, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use corecast_consumer::{Event, Handler, HandlerError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, fcntl_setfl, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// The last bytes of a command's output, which become the reason when it fails. What comes before is read and forgotten.
const OUTPUT_BYTES_MAX: usize = 1024;
/// What a command that has ended may have left in its pipe: the kernel's own bound of one.
const PIPE_BYTES_MAX: usize = 64 * 1024;

/// Runs `sh -c COMMAND` for each event; exit status 0 is success.
pub struct Exec {
    command: String,
    timeout: Duration,
}

impl Exec {
    /// A command that may take `timeout`; then it and its children are killed.
    pub fn new(command: String, timeout: Duration) -> Self {
        Self { command, timeout }
    }

    fn spawn(&self, event: &Event) -> io::Result<(Child, PipeReader)> {
        let (output, errors) = io::pipe()?;
        let child = Command::new("/bin/sh")
            .args(["-c", &self.command])
            .env("CORECAST_EVENT_ID", event.id())
            .env("CORECAST_EVENT_TYPE", event.kind())
            .stdin(input(event)?)
            .stdout(errors.try_clone()?)
            .stderr(errors)
            // Of its own, so that a time-out ends the command's children too, and Ctrl-C leaves it to the drain.
            .process_group(0)
            .spawn()?;
        fcntl_setfl(&output, fcntl_getfl(&output)? | OFlags::NONBLOCK)?;
        Ok((child, output))
    }

    /// Waits for the end; false when the time is over.
    fn watch(&self, child: &Child, output: &mut PipeReader, said: &mut Tail) -> io::Result<bool> {
        let deadline = Instant::now() + self.timeout;
        let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        let mut is_output_open = true;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let mut watched = vec![PollFd::new(&process, PollFlags::IN)];
            if is_output_open {
                watched.push(PollFd::new(output, PollFlags::IN));
            }
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut watched, Some(&left)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let has_ended = !watched[0].revents().is_empty();
            if is_output_open {
                is_output_open = said.read(output)?;
            }
            if has_ended {
                return Ok(true);
            }
        }
    }
}

impl Handler for Exec {
    fn handle(&self, event: &Event) -> Result<(), HandlerError> {
        let (child, mut output) =
            self.spawn(event).map_err(|error| failed(format!("the command can't be run ({error})")))?;
        let mut child = Running::of(child);
        let mut said = Tail::default();
        if !self.watch(&child.0, &mut output, &mut said)? {
            return Err(failed(format!(
                "the command was still running after {:?} and was killed",
                self.timeout
            )));
        }
        let status = child.wait()?;
        let said = said.text();
        match status.success() {
            true => {
                tracing::debug!(id = event.id(), output = said, "command done");
                Ok(())
            }
            false if said.is_empty() => {
                Err(failed(format!("the command ended with {status} and said nothing")))
            }
            false => Err(failed(format!("the command ended with {status}: {said}"))),
        }
    }
}

fn failed(reason: String) -> HandlerError {
    HandlerError::Retry(reason)
}

/// The event as a file in memory: a command that doesn't read its input can't make anybody wait.
fn input(event: &Event) -> io::Result<File> {
    let mut file = File::from(memfd_create("event", MemfdFlags::CLOEXEC)?);
    file.write_all(event.line().as_bytes())?;
    file.write_all(b"\n")?;
    file.rewind()?;
    Ok(file)
}

/// Process groups of the commands that run now, for [`kill_all`]. A group is taken out before its leader is waited for,
/// so a number in here is never another process's.
static GROUPS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Ends all commands that are still running: whoever ends the process leaves none behind.
pub fn kill_all() {
    for group in &*groups() {
        // Fails only where all of the group has ended.
        let _ = kill_process_group(*group, Signal::KILL);
    }
}

fn groups() -> MutexGuard<'static, Vec<Pid>> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A command that does not outlive its owner, nor do the processes of its group, unless it has ended by itself.
struct Running(Child);

impl Running {
    fn of(child: Child) -> Self {
        groups().push(Pid::from_child(&child));
        Self(child)
    }

    /// To be called once it has ended.
    fn wait(&mut self) -> io::Result<ExitStatus> {
        self.forget(|_| {});
        self.0.wait()
    }

    /// Takes the group out of the list, after `last` was called if it was still there; returns whether it was.
    fn forget(&self, last: impl FnOnce(Pid)) -> bool {
        let group = Pid::from_child(&self.0);
        let mut groups = groups();
        let Some(index) = groups.iter().position(|&listed| listed == group) else { return false };
        last(group);
        groups.swap_remove(index);
        true
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Neither fails for a child that nobody has waited for.
        let was_running = self.forget(|group| {
            let _ = kill_process_group(group, Signal::KILL);
        });
        if was_running {
            let _ = self.0.wait();
        }
    }
}

/// The end of what was read.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    /// Takes what is there, at most a pipe's worth; false at the end of the output.
    fn read(&mut self, output: &mut PipeReader) -> io::Result<bool> {
        let mut chunk = [0; 4096];
        for _ in 0..PIPE_BYTES_MAX / chunk.len() {
            match output.read(&mut chunk) {
                Ok(0) => return Ok(false),
                Ok(count) => self.push(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let surplus = self.0.len().saturating_sub(OUTPUT_BYTES_MAX);
        self.0.drain(..surplus);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(command: &str, timeout: Duration) -> Result<(), HandlerError> {
        let event = r#"{"id":"550e8400-e29b-41d4-a716-446655440000","type":"a","source":"s",
            "timestamp":"2026-02-22T10:00:00Z","payload":{"n":1}}"#;
        Exec::new(command.to_owned(), timeout).handle(&event.parse().unwrap())
    }

    /// Longer than any of these commands takes.
    const NEVER: Duration = Duration::from_secs(60);

    #[test]
    fn a_command_has_the_event_on_one_line_and_its_type_in_a_variable() {
        let command = "read -r line; [ \"$CORECAST_EVENT_TYPE\" = a ] && echo \"$line\" | grep -q '\"payload\":{\"n\":1}'";
        assert_eq!(run(command, NEVER), Ok(()));
    }

    #[test]
    fn a_failing_command_says_how_it_ended_and_its_last_words() {
        let reason = run("seq 1 100000; echo oh no >&2; exit 3", NEVER).unwrap_err().to_string();
        assert!(reason.contains("exit status: 3") && reason.ends_with("oh no"), "{reason}");
        assert!(reason.len() < OUTPUT_BYTES_MAX + 100, "{}", reason.len());
    }

    #[test]
    fn a_command_that_takes_too_long_is_killed_with_its_children() {
        let began = Instant::now();
        let reason = run("sleep 1000 & sleep 1000", Duration::from_millis(50)).unwrap_err().to_string();
        assert!(reason.contains("still running after 50ms and was killed"), "{reason}");
        assert!(began.elapsed() < NEVER);
    }

    #[test]
    fn a_command_that_never_reads_or_leaves_a_child_behind_is_not_waited_for() {
        assert_eq!(run("exec 0<&-; (exec sleep 5) & exit 0", Duration::from_secs(4)), Ok(()));
    }
}
