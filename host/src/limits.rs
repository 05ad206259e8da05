//! How many descriptors a process, and the whole system, may have.

use crate::Root;

/// Limits of one process (`RLIMIT_NOFILE`); `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles {
    /// What holds now; a process may raise it to `hard`.
    pub soft: Option<u64>,
    /// What only CAP_SYS_RESOURCE may raise.
    pub hard: Option<u64>,
}

impl OpenFiles {
    /// Those of the process that asks.
    pub fn read(root: &Root) -> Option<Self> {
        Self::parse(&root.read("/proc/self/limits").ok()?)
    }

    /// Out of `/proc/PID/limits`.
    pub fn parse(limits: &str) -> Option<Self> {
        let mut words =
            limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace();
        let mut limit = || match words.next()? {
            "unlimited" => Some(None),
            number => Some(Some(number.parse().ok()?)),
        };
        Some(Self { soft: limit()?, hard: limit()? })
    }
}

/// Descriptors of the whole system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemFiles {
    /// `fs.nr_open`: the highest hard limit that a process may be given.
    pub nr_open: u64,
    /// Open files, of all processes together.
    pub open: u64,
    /// `fs.file-max`: how many there may be.
    pub max: u64,
}

impl SystemFiles {
    /// `None` where the kernel doesn't tell.
    pub fn read(root: &Root) -> Option<Self> {
        let [allocated, free, max] = root.numbers("/proc/sys/fs/file-nr")?.try_into().ok()?;
        Some(Self {
            nr_open: root.number("/proc/sys/fs/nr_open")?,
            open: allocated.saturating_sub(free),
            max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_are_read_and_unlimited_is_told_apart() {
        let head = "Limit                     Soft Limit           Hard Limit           Units     \n";
        let parse = |line: &str| {
            OpenFiles::parse(&format!(
                "{head}Max processes 1 2 processes\n{line}Max locked memory 8 8 bytes\n"
            ))
        };
        assert_eq!(
            parse("Max open files            1024                 1048576              files     \n"),
            Some(OpenFiles { soft: Some(1024), hard: Some(1_048_576) })
        );
        assert_eq!(
            parse("Max open files            1024                 unlimited            files     \n"),
            Some(OpenFiles { soft: Some(1024), hard: None })
        );
        for broken in ["", "Max open files\n", "Max open files 1024\n", "Max open files many few files\n"] {
            assert_eq!(parse(broken), None, "{broken:?}");
        }
    }
}
