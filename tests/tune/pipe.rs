//! A value whose reader and writer wait for the test: a named pipe in the place of the kernel's file.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::support::deadline::{SOON, eventually_ok};
use crate::support::tool;

/// See the module.
pub struct Pipe(PathBuf);

impl Pipe {
    /// In the place of `path`.
    #[track_caller]
    pub fn in_place_of(path: &Path) -> Self {
        let pipe = Self(path.to_owned());
        pipe.renew();
        pipe
    }

    /// Another pipe under the same name; who has the old one open keeps it.
    #[track_caller]
    fn renew(&self) {
        let next = self.0.with_extension("next");
        let made = tool::command("mkfifo").arg(&next).status().expect("coreutils are there");
        assert!(made.success(), "mkfifo {}", next.display());
        std::fs::rename(next, &self.0).expect("a folder of the test's own");
    }

    /// Waits until somebody reads, and is `value` for them.
    #[track_caller]
    pub fn is_read_as(&self, value: &str) {
        // Refused (ENXIO) until somebody has it open for reading.
        let mut pipe = eventually_ok(SOON, "it is read", || self.open(OpenOptions::new().write(true)));
        // Or this reader would also get what is meant for the next one.
        self.renew();
        pipe.write_all(value.as_bytes()).expect("its reader is there");
    }

    /// Waits until somebody writes; what they wrote.
    #[track_caller]
    pub fn written(&self) -> String {
        let mut pipe = self.open(OpenOptions::new().read(true)).expect("it is there");
        let mut text = String::new();
        eventually_ok(SOON, "it is written", || match pipe.read_to_string(&mut text) {
            // Nobody has opened it yet.
            Ok(_) if text.is_empty() => Err("nothing".to_owned()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        });
        text
    }

    fn open(&self, options: &mut OpenOptions) -> std::io::Result<File> {
        options.custom_flags(libc::O_NONBLOCK).open(&self.0)
    }
}
