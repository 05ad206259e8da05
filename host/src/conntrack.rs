//! The table of tracked connections of netfilter.

use crate::Root;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conntrack {
    /// Connections that this namespace tracks now; none as long as no rule asks for tracking.
    pub count: u64,
    /// At how many the kernel drops packets of new ones.
    pub max: u64,
}

impl Conntrack {
    /// `None` where the module isn't loaded.
    pub fn read(root: &Root) -> Option<Self> {
        let number = |name: &str| root.number(&format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
        Some(Self { count: number("count")?, max: number("max")? })
    }
}
