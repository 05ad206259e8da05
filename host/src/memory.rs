//! Memory of the whole machine.

use crate::Root;

/// Out of `/proc/meminfo`, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All there is.
    pub total: u64,
    /// What can be had without swapping, the kernel's own estimate.
    pub available: u64,
    /// Size of all swap space.
    pub swap_total: u64,
    /// Of that what is in use.
    pub swap_used: u64,
}

impl Memory {
    /// `None` where the kernel doesn't tell.
    pub fn read(root: &Root) -> Option<Self> {
        Self::parse(&root.read("/proc/meminfo").ok()?)
    }

    /// Out of the text of `/proc/meminfo`, whose "kB" are KiB.
    pub fn parse(meminfo: &str) -> Option<Self> {
        let bytes = |name: &str| -> Option<u64> {
            let rest = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
        };
        let swap_total = bytes("SwapTotal").unwrap_or(0);
        Some(Self {
            total: bytes("MemTotal")?,
            available: bytes("MemAvailable")?,
            swap_total,
            swap_used: swap_total.saturating_sub(bytes("SwapFree").unwrap_or(0)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:       2048 kB\nMemFree:        1 kB\nMemAvailable:   1024 kB\nSwapTotal:      64 kB\nSwapFree:       60 kB\n";
        let expected = Memory { total: 2_097_152, available: 1_048_576, swap_total: 65_536, swap_used: 4096 };
        assert_eq!(Memory::parse(text), Some(expected));
        assert_eq!(
            Memory::parse("MemTotal: 2048 kB\n"),
            None,
            "kernels before 3.14 don't say what is available"
        );
        assert_eq!(Memory::parse("MemTotal: x kB\nMemAvailable: 1 kB\n"), None);
        assert_eq!(Memory::parse(&format!("MemTotal: {0} kB\nMemAvailable: {0} kB\n", u64::MAX)), None);
    }
}
