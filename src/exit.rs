//! Exit codes, and errors as the last lines on stderr.

use std::fmt;
use std::io::ErrorKind;
use std::process::ExitCode;

use crate::output::complain;

/// Anything at run time that has no code of its own.
pub const FAILED: u8 = 1;
/// The command line is wrong; the code that clap uses.
pub const USAGE: u8 = 2;
/// Something that was needed is not there (`EX_UNAVAILABLE`).
pub const UNAVAILABLE: u8 = 69;
/// An address can't be bound (`EX_CANTCREAT`).
pub const CANT_BIND: u8 = 73;
/// The kernel, a file's mode, or a server that wants a key forbids it (`EX_NOPERM`).
pub const NO_PERMISSION: u8 = 77;
/// The configuration is wrong (`EX_CONFIG`).
pub const CONFIG: u8 = 78;

/// An error that knows its exit code.
#[derive(Debug)]
pub struct Failure {
    /// One of this module's codes.
    pub code: u8,
    /// What was found, what was due, what to do; one fault a line.
    pub sentence: String,
}

impl Failure {
    /// One with `code`.
    pub fn new(code: u8, sentence: impl Into<String>) -> Self {
        Self { code, sentence: sentence.into() }
    }

    /// A fault of the configuration.
    pub fn config(sentence: impl Into<String>) -> Self {
        Self::new(CONFIG, sentence)
    }

    /// A file of the configuration that can't be used: `sentence` and what the kernel said. 77 where its mode is to blame.
    pub fn file(sentence: impl fmt::Display, error: &std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::PermissionDenied => {
                Self::new(NO_PERMISSION, format!("{sentence}: {error}; change its mode or its owner"))
            }
            _ => Self::config(format!("{sentence}: {error}")),
        }
    }

    /// A fault of the command line.
    pub fn usage(sentence: impl Into<String>) -> Self {
        Self::new(USAGE, sentence)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Failure {}

/// Says `error` on stderr, each line after the program's name, and returns its code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    for line in format!("{error:#}").lines() {
        complain!("corecast: {line}");
    }
    ExitCode::from(code_of(error))
}

/// The code that a [`Failure`] in the chain names, or that the kind of its I/O error means.
pub fn code_of(error: &anyhow::Error) -> u8 {
    if let Some(failure) = error.chain().find_map(|cause| cause.downcast_ref::<Failure>()) {
        return failure.code;
    }
    match error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind) {
        Some(ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable) => CANT_BIND,
        Some(ErrorKind::PermissionDenied) => NO_PERMISSION,
        Some(ErrorKind::ConnectionRefused | ErrorKind::NotFound) => UNAVAILABLE,
        _ => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn an_error_ends_with_the_code_of_its_kind() {
        let io =
            |kind| Err::<(), _>(std::io::Error::from(kind)).context("cannot bind 127.0.0.1:80").unwrap_err();
        assert_eq!(code_of(&io(ErrorKind::AddrInUse)), 73);
        assert_eq!(code_of(&io(ErrorKind::PermissionDenied)), 77);
        assert_eq!(code_of(&io(ErrorKind::ConnectionRefused)), 69);
        assert_eq!(code_of(&io(ErrorKind::BrokenPipe)), 1);
        assert_eq!(code_of(&anyhow::Error::new(Failure::config("x")).context("y")), 78);
        assert_eq!(code_of(&anyhow::anyhow!("x")), 1);
    }
}
