//! What goes to stdout and stderr, whose readers may leave at any time: `corecast version | true` is no bug of ours.
//!
//! Not `print!` and `eprintln!`, which panic there. Logs of a server go their own way ([`logs`](crate::logs)).

use std::io::{self, ErrorKind, Write};

use anyhow::Context;

/// Writes `text` to stdout. A reader that has seen enough is no error.
///
/// # Errors
/// Anything else, for example a full disk.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot print"),
        _ => Ok(()),
    }
}

/// Writes a line to stderr, for whoever is there to read it.
macro_rules! complain {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        let _nobody_reads = writeln!(std::io::stderr(), $($part)*);
    }};
}

pub(crate) use complain;
