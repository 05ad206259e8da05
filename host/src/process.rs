//! What the kernel says of the process that asks.

use crate::Root;
use crate::cpu::parse_list;

/// Number of the capability that ports below 1,024 need.
pub const CAP_NET_BIND_SERVICE: u32 = 10;

/// Out of `/proc/self/status`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Process {
    /// A system call filter is in force (seccomp mode 2).
    pub is_filtered: bool,
    /// Bits of the effective capabilities.
    pub capabilities: u64,
    /// Cores that it may run on, ascending.
    pub cores: Vec<usize>,
    /// Effective user id.
    pub user: u32,
}

impl Process {
    /// `None` where the kernel doesn't tell.
    pub fn read(root: &Root) -> Option<Self> {
        Self::parse(&root.read("/proc/self/status").ok()?)
    }

    /// Out of the text of `/proc/PID/status`.
    pub fn parse(status: &str) -> Option<Self> {
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        Some(Self {
            is_filtered: field("Seccomp") == Some("2"),
            capabilities: u64::from_str_radix(field("CapEff")?, 16).ok()?,
            cores: parse_list(field("Cpus_allowed_list")?)?,
            user: field("Uid")?.split_whitespace().nth(1)?.parse().ok()?,
        })
    }

    /// Whether it has the capability of this number.
    pub fn can(&self, capability: u32) -> bool {
        self.capabilities.checked_shr(capability).is_some_and(|bits| bits & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_capabilities_and_cores_are_read() {
        let text = "Name:\tx\nUid:\t0\t33\t0\t0\nCapEff:\t0000000000000400\nSeccomp:\t2\nSeccomp_filters:\t1\nCpus_allowed:\td\nCpus_allowed_list:\t0,2-3\n";
        let process = Process::parse(text).expect("it is whole");
        assert_eq!(
            process,
            Process { is_filtered: true, capabilities: 0x400, cores: vec![0, 2, 3], user: 33 }
        );
        assert!(process.can(CAP_NET_BIND_SERVICE) && !process.can(9) && !process.can(64));
        assert_eq!(Process::parse("CapEff:\tzz\nCpus_allowed_list:\t0\nUid:\t0\t0\n"), None);
        assert_eq!(Process::parse(""), None);
    }
}
