//! What formulas know of this machine and of corecast.

use host::Root;
use shards::limits::{
    ADMIN_CONNECTIONS_MAX, DESCRIPTORS_RESERVED, DESCRIPTORS_RESERVED_PER_SHARD, LISTEN_BACKLOG,
};

use crate::exit::{Failure, UNAVAILABLE};
use crate::tune::formula::Facts;

/// The facts of the machine below `root`, for `connections`.
///
/// # Errors
/// 69 where `/proc` or `/sys` doesn't tell.
pub fn facts(root: &Root, connections: u64) -> Result<Facts, Failure> {
    let memory_bytes = from(root, "/proc/meminfo", memory_bytes)?;
    let cores = from(root, "/sys/devices/system/cpu/online", cores)?;
    let reserved_per_core = DESCRIPTORS_RESERVED_PER_SHARD as u64;
    let reserved = (DESCRIPTORS_RESERVED + ADMIN_CONNECTIONS_MAX) as u64;
    Ok(Facts {
        connections,
        memory_bytes,
        cores,
        page_bytes: rustix::param::page_size() as u64,
        listen_backlog: u64::from(LISTEN_BACKLOG.unsigned_abs()),
        reserved_descriptors: reserved.saturating_add(cores.saturating_mul(reserved_per_core)),
    })
}

fn from(root: &Root, path: &str, find: fn(&str) -> Option<u64>) -> Result<u64, Failure> {
    let unavailable = |found: String| Failure::new(UNAVAILABLE, format!("{path}: {found}"));
    let text = root.read(path).map_err(|error| unavailable(error.to_string()))?;
    find(&text).ok_or_else(|| {
        unavailable("it doesn't tell what was due, in the form that the kernel has for it".to_owned())
    })
}

/// Of `/proc/meminfo`.
fn memory_bytes(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Of a list like `0-3,8`.
fn cores(text: &str) -> Option<u64> {
    text.trim().split(',').try_fold(0_u64, |sum, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_cores_are_read_as_the_kernel_writes_them() {
        assert_eq!(memory_bytes("MemTotal:       24684096 kB\nMemFree: 1 kB\n"), Some(24_684_096 * 1024));
        for text in ["", "MemTotal: lots", "MemTotal: 18446744073709551615 kB"] {
            assert_eq!(memory_bytes(text), None, "{text:?}");
        }
        for (text, due) in [("0", Some(1)), ("0-3,8", Some(5)), ("0-1\n", Some(2)), ("3-1", None), ("", None)]
        {
            assert_eq!(cores(text), due, "{text:?}");
        }
    }

    #[test]
    fn this_machine_has_its_facts() {
        let facts = facts(&Root::system(), 10).expect("/proc and /sys are there");
        assert!(facts.memory_bytes > facts.page_bytes && facts.cores >= 1);
        assert_eq!(facts.reserved_descriptors, 40 + 16 * facts.cores);
    }
}
