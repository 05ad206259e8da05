//! What an idle connection takes of memory: the one figure that `tune plan` and `doctor` reckon with.

/// What the kernel holds for an idle connection: socket, inode, descriptor, epoll or poll entry (measured, Linux 6.18).
pub const KERNEL_BYTES: u64 = 4200;
/// What corecast holds for one at most: what its design allows where each is in a room of its own. Measured are 706 to 752 B
/// there, and less where rooms are shared (README, tuning/experiments).
pub const USER_BYTES: u64 = 800;

/// What so many take, the kernel's and corecast's own.
pub fn idle_bytes(connections: u64) -> u64 {
    connections.saturating_mul(KERNEL_BYTES + USER_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_connections_take_five_gigabytes() {
        assert_eq!(idle_bytes(1_000_000), 5_000_000_000);
        assert_eq!(idle_bytes(u64::MAX), u64::MAX);
    }
}
