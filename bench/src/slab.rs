//! Which of the kernel's object caches grew: what a connection costs the kernel, by kind.
//!
//! `/proc/slabinfo` is for root; without it there is only the sum in `/proc/meminfo`. SLUB merges caches of like objects, so
//! a name may stand for others too.

use std::collections::BTreeMap;
use std::fs;

const PATH: &str = "/proc/slabinfo";
const PAGE_BYTES: u64 = 4096;
/// Caches that grew most and are told.
const TOLD_MAX: usize = 16;

/// Bytes of each cache, whole slabs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slab(BTreeMap<String, u64>);

impl Slab {
    /// As of now; nothing where it may not be read.
    pub fn read() -> Option<Self> {
        fs::read_to_string(PATH).ok().map(|text| Self::parse(&text))
    }

    /// Lines of `name active objects size objects_per_slab pages_per_slab : tunables ... : slabdata active slabs shared`.
    fn parse(text: &str) -> Self {
        let of_line = |line: &str| {
            let (head, tail) = line.split_once(':')?;
            let mut head = head.split_ascii_whitespace();
            let name = head.next()?;
            let pages: u64 = head.nth(4)?.parse().ok()?;
            let slabs: u64 = tail.split_once("slabdata")?.1.split_ascii_whitespace().nth(1)?.parse().ok()?;
            Some((name.to_owned(), slabs * pages * PAGE_BYTES))
        };
        Self(text.lines().filter_map(of_line).collect())
    }

    /// The caches that grew most since `before`, in bytes for each of `connections`.
    pub fn grown_since(&self, before: &Self, connections: usize) -> BTreeMap<String, f64> {
        let mut grown: Vec<(&String, u64)> = self
            .0
            .iter()
            .map(|(name, bytes)| (name, bytes.saturating_sub(before.0.get(name).copied().unwrap_or(0))))
            .filter(|(_, bytes)| *bytes > 0)
            .collect();
        grown.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let each = |bytes: u64| bytes as f64 / connections.max(1) as f64;
        grown.into_iter().take(TOLD_MAX).map(|(name, bytes)| (name.clone(), each(bytes))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "slabinfo - version: 2.1\n# name <active_objs> : tunables <limit> : slabdata <active_slabs>\n";

    fn slab(tcp_slabs: u64) -> Slab {
        Slab::parse(&format!(
            "{HEAD}TCP 10 12 2368 13 8 : tunables 0 0 0 : slabdata {tcp_slabs} {tcp_slabs} 0\n\
             filp 10 12 192 21 1 : tunables 0 0 0 : slabdata 5 5 0\nbroken 1 2\n"
        ))
    }

    #[test]
    fn a_cache_has_the_pages_of_its_slabs() {
        assert_eq!(
            slab(3).0,
            BTreeMap::from([("TCP".to_owned(), 3 * 8 * 4096), ("filp".to_owned(), 5 * 4096)])
        );
    }

    #[test]
    fn growth_is_told_for_each_connection_of_the_caches_that_grew() {
        assert_eq!(slab(7).grown_since(&slab(3), 8), BTreeMap::from([("TCP".to_owned(), 4.0 * 4096.0)]));
        assert_eq!(slab(3).grown_since(&slab(7), 8), BTreeMap::new());
        assert_eq!(slab(7).grown_since(&slab(3), 0)["TCP"], f64::from(4 * 8 * 4096));
    }
}
