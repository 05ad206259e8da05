//! The binary under test: where it is, its clean environment, and runs that end by themselves.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::deadline::{SOON, eventually_ok};
use super::kernel::{Confinement, confine};
use super::scratch::Scratch;

/// The binary that cargo built, or the one that `CORECAST_TEST_BINARY` names (a release build, for example).
pub fn path() -> PathBuf {
    std::env::var_os("CORECAST_TEST_BINARY")
        .map_or_else(|| Path::new(env!("CARGO_BIN_EXE_corecast")).to_owned(), PathBuf::from)
}

/// Puts a copy of an executable at `to`. Another process writes it: a child that another story starts meanwhile would inherit
/// our descriptor, and nobody may execute what somebody has open for writing (ETXTBSY).
#[track_caller]
pub fn install(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg(from).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()), "no copy of {} at {}", from.display(), to.display());
}

/// A command in an environment that holds nothing the server reads.
pub fn command() -> Command {
    clean(Command::new(path()))
}

/// The same for a copy of the binary.
pub fn command_at(path: &Path) -> Command {
    clean(Command::new(path))
}

fn clean(mut command: Command) -> Command {
    command.env_clear().env("RUST_BACKTRACE", "1").stdin(Stdio::null());
    for kept in ["PATH", "HOME", "TMPDIR", "LLVM_PROFILE_FILE"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    command
}

/// The same for a server that finds passed sockets from descriptor 3 on: its process id is known only to itself.
pub fn activated_command(names: &[&str]) -> Command {
    let mut command = clean(Command::new("/bin/sh"));
    command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(path());
    command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
    command
}

/// What a finished run left behind.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// The exit code; a signal is none.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

/// Runs the binary with `args` to its end.
#[track_caller]
pub fn run(args: &[&str]) -> Finished {
    let mut command = command();
    command.args(args);
    finish(command, Confinement::default())
}

/// Runs `command` to its end, confined.
///
/// # Panics
/// When it doesn't end within [`SOON`]; it is killed then.
#[track_caller]
pub fn finish(mut command: Command, confinement: Confinement) -> Finished {
    let scratch = Scratch::new();
    let [stdout, stderr] = ["stdout", "stderr"].map(|name| scratch.path(name));
    let file = |path: &Path| File::create(path).expect("a scratch directory takes files");
    command.stdin(Stdio::null()).stdout(file(&stdout)).stderr(file(&stderr));
    confine(&mut command, confinement);
    let mut child =
        Running(command.spawn().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}")));
    let status = child.wait(SOON, &format!("{command:?} ends"));
    Finished { status, stdout: text(&stdout), stderr: text(&stderr) }
}

/// A child that does not outlive its owner.
pub struct Running(pub Child);

impl Running {
    /// The exit status, once there is one.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration, what: &str) -> ExitStatus {
        eventually_ok(deadline, what, || match self.0.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it is still running".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).expect("a pid is a small positive number")
    }

    /// Ends it at once; nothing happens if it has ended.
    pub fn kill(&mut self) {
        // Both fail only for a child that has ended and been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A file as text, whatever its bytes; empty when it isn't there.
pub fn text(path: &Path) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
