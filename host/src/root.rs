//! Where the files of the kernel are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The folder that holds `proc` and `sys`: `/` for the host, another one in tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// The running system's.
    pub fn system() -> Self {
        Self(PathBuf::from("/"))
    }

    /// Another folder.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// `path` (absolute, as everybody writes it) below this root.
    pub fn path(&self, path: &str) -> PathBuf {
        self.0.join(Path::new(path).strip_prefix("/").unwrap_or(Path::new(path)))
    }

    /// The text of a file, without the line end that the kernel closes it with.
    ///
    /// # Errors
    /// The kernel's, NotFound where this kernel doesn't have it.
    pub fn read(&self, path: &str) -> io::Result<String> {
        let mut text = fs::read_to_string(self.path(path))?;
        text.truncate(text.trim_end().len());
        Ok(text)
    }

    /// The numbers that a file holds and nothing else; `None` where it is not there, may not be read, or holds other words.
    pub fn numbers(&self, path: &str) -> Option<Vec<u64>> {
        self.read(path).ok()?.split_whitespace().map(|word| word.parse().ok()).collect()
    }

    /// The first number of a file, as [`Root::numbers`].
    pub fn number(&self, path: &str) -> Option<u64> {
        self.numbers(path)?.first().copied()
    }

    /// Names in a folder, sorted; none where it can't be listed.
    pub fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(path)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names
    }
}

impl Default for Root {
    fn default() -> Self {
        Self::system()
    }
}
