//! Programs of others that a story needs beside the server, found on PATH.

use std::io;
use std::process::{Command, Stdio};

/// `name`, with our PATH and nothing else of our environment.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env_clear().stdin(Stdio::null());
    for kept in ["PATH", "HOME", "TMPDIR"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    command
}

/// # Panics
/// With the way to get it, when it can't be run.
#[track_caller]
pub fn found<T>(name: &str, install: &str, result: io::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("cannot run {name}: {error}; {install} (`make test` does it)"))
}
