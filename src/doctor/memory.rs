//! Memory: of the host, of the control group, and what TCP may use of it.

use host::{Cgroup, Memory, Root, TcpSockets};
use shards::limits::TURN_BYTES_MAX;

use super::finding::{Bytes, Count, Finding, Level};
use super::need::Need;
use crate::footprint::{KERNEL_BYTES, USER_BYTES};

const CONNECTIONS: &str = "memory.connections";
const BUDGETS: &str = "memory.budgets";
const CGROUP: &str = "cgroup.memory";
const TCP_MEM: &str = "net.tcp_mem";
const TCP_BUFFERS: &str = "net.tcp_buffers";
const HUGE_PAGES: &str = "memory.huge_pages";
const OVERCOMMIT: &str = "memory.overcommit";
const SWAP: &str = "memory.swap";

/// What there is of it.
pub struct MemoryFacts {
    /// Of the host.
    pub memory: Option<Memory>,
    /// Of the control group.
    pub cgroup: Cgroup,
    /// `tcp_mem`: low, pressure, limit, in pages; only the host's own network namespace tells.
    pub tcp_mem: Option<[u64; 3]>,
    /// `tcp_wmem`: least, first, most, in bytes.
    pub tcp_wmem: Option<[u64; 3]>,
    /// `tcp_rmem`.
    pub tcp_rmem: Option<[u64; 3]>,
    /// What buffers hold now.
    pub sockets: Option<TcpSockets>,
    /// `transparent_hugepage/enabled`, as it is written.
    pub huge_pages: Option<String>,
    /// `vm.overcommit_memory`.
    pub overcommit: Option<u64>,
    /// `vm.swappiness`.
    pub swappiness: Option<u64>,
}

impl MemoryFacts {
    /// Reads all of it.
    pub fn read(root: &Root, cgroup: Cgroup) -> Self {
        let three = |name: &str| root.numbers(&format!("/proc/sys/net/ipv4/{name}"))?.try_into().ok();
        Self {
            memory: Memory::read(root),
            cgroup,
            tcp_mem: three("tcp_mem"),
            tcp_wmem: three("tcp_wmem"),
            tcp_rmem: three("tcp_rmem"),
            sockets: TcpSockets::read(root),
            huge_pages: root.read("/sys/kernel/mm/transparent_hugepage/enabled").ok(),
            overcommit: root.number("/proc/sys/vm/overcommit_memory"),
            swappiness: root.number("/proc/sys/vm/swappiness"),
        }
    }

    /// Against what the wanted connections hold.
    pub fn judge(&self, need: &Need) -> Vec<Finding> {
        vec![
            self.judge_connections(need),
            self.judge_budgets(need),
            self.judge_cgroup(need),
            self.judge_tcp_mem(need),
            self.judge_tcp_buffers(),
            self.judge_huge_pages(need),
            self.judge_overcommit(),
            self.judge_swap(need),
        ]
    }

    fn judge_connections(&self, need: &Need) -> Finding {
        let Some(memory) = self.memory else { return Finding::untold(CONNECTIONS, "/proc/meminfo") };
        let found = format!("{} of {} are available", Bytes(memory.available), Bytes(memory.total));
        let due = format!(
            "{} for {} idle connections of {KERNEL_BYTES} B in the kernel and {USER_BYTES} B here",
            Bytes(need.idle_bytes()),
            Count(need.connections)
        );
        let fit = memory.available / 5 * 4 / (KERNEL_BYTES + USER_BYTES);
        let cure = fewer(need, fit);
        if need.idle_bytes() > memory.available {
            return Finding::bad(CONNECTIONS, found).due(due).cure(cure);
        }
        if need.idle_bytes() > memory.available / 5 * 4 {
            return Finding::warn(CONNECTIONS, found).due(format!("{due}, and a fifth left")).cure(cure);
        }
        Finding::ok(CONNECTIONS, found).due(due)
    }

    fn judge_budgets(&self, need: &Need) -> Finding {
        let Some(memory) = self.memory else { return Finding::untold(BUDGETS, "/proc/meminfo") };
        let worst = worst_bytes(need);
        let found = format!("{} are available", Bytes(memory.available));
        let due = worst_text(need);
        if worst > memory.available {
            return Finding::warn(BUDGETS, found).due(due).cure(fewer_shards(need));
        }
        Finding::ok(BUDGETS, found).due(due)
    }

    /// The limit at which the kernel kills, and the one at which it slows down: each with what is left of it.
    fn judge_cgroup(&self, need: &Need) -> Finding {
        let Cgroup { memory_max, memory_high, .. } = self.cgroup;
        let limits = [
            memory_max.map(|bound| (bound, "MemoryMax", "may use", Level::Bad)),
            memory_high.map(|bound| (bound, "MemoryHigh", "is slowed down from", Level::Warn)),
        ];
        let (idle, worst) = (need.idle_bytes(), worst_bytes(need));
        let judged = limits.into_iter().flatten().map(|(bound, property, verb, level)| {
            let (max, used) = (Bytes(bound.max), Bytes(bound.used));
            let found = format!("the control group {verb} {max}, of which {used} are in use");
            let cure = || raise(property, worst.saturating_add(bound.used));
            if idle > bound.left() {
                let due = format!("{} for {} idle connections", Bytes(idle), Count(need.connections));
                return Finding::new(CGROUP, level, found).due(due).cure(cure());
            }
            if worst > bound.left() {
                return Finding::warn(CGROUP, found).due(worst_text(need)).cure(cure());
            }
            Finding::ok(CGROUP, found)
        });
        // Of equals the first: it kills.
        let none = Finding::ok(CGROUP, "the control group has no limit of memory below the host's");
        judged.rev().max_by_key(|finding| finding.level).unwrap_or(none)
    }

    /// The numbers are those that the profiles of `corecast tune` would set: `tuning/knobs.toml`.
    fn judge_tcp_mem(&self, need: &Need) -> Finding {
        let Some([low, pressure, max]) = self.tcp_mem else {
            return Finding::info(
                TCP_MEM,
                "not judged: tcp_mem is seen only in the host's own network namespace",
            );
        };
        let used = self.sockets.map_or(0, |sockets| sockets.buffer_pages);
        let found = format!(
            "pressure from {} pages on, {} at most ({}), {} in use",
            Count(pressure),
            Count(max),
            Bytes(max.saturating_mul(need.page_bytes)),
            Count(used)
        );
        // Idle sockets hold none. A message to everybody holds a page of each until it is acknowledged.
        let due = need.tcp_pages();
        let text = format!(
            "{} pages: 1 for a message on its way to each of {}, {} for each of {} whose network went away",
            Count(due),
            Count(need.connections),
            Bytes(need.stuck_bytes() / need.stuck_connections().max(1)),
            Count(need.stuck_connections())
        );
        if due <= pressure {
            return Finding::ok(TCP_MEM, found).due(text);
        }
        let finding = Finding::warn(TCP_MEM, found);
        // A limit that TCP could reach only by taking most of the machine would protect nothing.
        let pages = self.memory.map_or(u64::MAX, |memory| memory.total / need.page_bytes);
        if due > pages / 4 {
            return finding
                .due(format!("{text}; that is more than a quarter of the host's memory"))
                .cure(fewer(need, need.connections_in(pages / 4)));
        }
        let limit = max.max((pages / 3).min(due.saturating_mul(3) / 2));
        finding.due(text).cure(format!("sysctl -w net.ipv4.tcp_mem=\"{low} {due} {limit}\""))
    }

    fn judge_tcp_buffers(&self) -> Finding {
        let (Some([_, _, send]), Some([_, _, receive])) = (self.tcp_wmem, self.tcp_rmem) else {
            return Finding::untold(TCP_BUFFERS, "net.ipv4.tcp_wmem or tcp_rmem");
        };
        let found = format!("tcp_wmem up to {}, tcp_rmem up to {} a socket", Bytes(send), Bytes(receive));
        let due = TURN_BYTES_MAX as u64;
        if send < due {
            return Finding::warn(TCP_BUFFERS, found)
                .due(format!(
                    "{} to send: what a turn gathers for a connection leaves in one piece",
                    Bytes(due)
                ))
                .cure("sysctl -w net.ipv4.tcp_wmem=\"4096 16384 4194304\"");
        }
        Finding::ok(TCP_BUFFERS, format!("{found}; idle sockets hold none of it"))
    }

    fn judge_huge_pages(&self, need: &Need) -> Finding {
        let Some(text) = &self.huge_pages else {
            return Finding::info(HUGE_PAGES, "this kernel has no transparent huge pages");
        };
        let chosen = text.split_once('[').and_then(|(_, rest)| rest.split(']').next()).unwrap_or(text);
        match (chosen, need.takes_huge_pages) {
            ("always", true) => Finding::warn(HUGE_PAGES, "transparent huge pages: always; the server takes them")
                .due("none: small objects of many connections hold twice the memory on them")
                .cure("corecast serve --huge-pages=false  # or: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"),
            ("always", false) => Finding::info(
                HUGE_PAGES,
                "transparent huge pages: always; the server refuses them, but a Redis on this host would fork slowly",
            )
            .cure("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"),
            _ => Finding::ok(HUGE_PAGES, format!("transparent huge pages: {chosen}; the server takes none")),
        }
    }

    fn judge_overcommit(&self) -> Finding {
        match self.overcommit {
            None => Finding::untold(OVERCOMMIT, "vm.overcommit_memory"),
            Some(2) => Finding::warn(OVERCOMMIT, "vm.overcommit_memory 2: address space counts as memory")
                .due("0 or 1: the allocator reserves more than it touches, and a Redis here can't fork")
                .cure("sysctl -w vm.overcommit_memory=0"),
            Some(mode) => Finding::ok(OVERCOMMIT, format!("vm.overcommit_memory {mode}")),
        }
    }

    fn judge_swap(&self, need: &Need) -> Finding {
        let Some(memory) = self.memory else { return Finding::untold(SWAP, "/proc/meminfo") };
        if memory.swap_total == 0 {
            return Finding::ok(SWAP, "no swap");
        }
        let swappiness = self.swappiness.map_or("unknown".to_owned(), |value| value.to_string());
        let found = format!(
            "{} of {} of swap are in use, vm.swappiness {swappiness}",
            Bytes(memory.swap_used),
            Bytes(memory.swap_total)
        );
        if memory.swap_used > memory.swap_total / 2 {
            return Finding::warn(SWAP, found)
                .due("less than half: a connection whose state was swapped out waits for the disk")
                // Half as much again, so that it doesn't come back at once.
                .cure(match memory.available / 3 * 2 >= memory.swap_used {
                    true => "swapoff -a && swapon -a  # brings it back; systemd keeps the server out: MemorySwapMax=0".to_owned(),
                    false => fewer(need, need.connections / 2),
                });
        }
        Finding::info(SWAP, found)
    }
}

/// Idle connections, stuck ones, and every budget used up.
fn worst_bytes(need: &Need) -> u64 {
    let stuck = need.stuck_bytes();
    need.idle_bytes().saturating_add(stuck).saturating_add(need.budget_bytes())
}

fn worst_text(need: &Need) -> String {
    format!(
        "{} at worst: {} idle, {} pinned by {} whose network went away, {} of budgets of {} shards (windows, messages, rings, logs)",
        Bytes(worst_bytes(need)),
        Bytes(need.idle_bytes()),
        Bytes(need.stuck_bytes()),
        Count(need.stuck_connections()),
        Bytes(need.budget_bytes()),
        need.shards()
    )
}

/// So many of all processes.
fn fewer(need: &Need, connections: u64) -> String {
    let each = connections / need.processes.len() as u64;
    format!("corecast serve{} --connections-max {}  # or more memory", need.several(), each.max(1))
}

fn fewer_shards(need: &Need) -> String {
    let most = need.processes.iter().map(|plan| plan.shards.len()).max().unwrap_or(1);
    match most {
        1 => fewer(need, need.connections / 2),
        shards => format!(
            "corecast serve{} --shards {}  # or fewer connections, or more memory",
            need.several(),
            shards / 2
        ),
    }
}

fn raise(property: &str, bytes: u64) -> String {
    let mib = bytes.div_ceil(1 << 20);
    let systemd = format!("systemctl set-property corecast.service {property}={mib}M");
    match property {
        // Docker sets no memory.high. Of a container with a limit of memory it refuses one above that of memory and swap.
        "MemoryMax" => {
            format!("{systemd}  # Docker: docker update --memory {mib}m --memory-swap {mib}m NAME")
        }
        _ => systemd,
    }
}

#[cfg(test)]
mod tests {
    use host::Bound;
    use shards::config::Config;

    use super::super::need::tests::need;
    use super::*;

    const GIB: u64 = 1 << 30;

    fn facts(available: u64) -> MemoryFacts {
        MemoryFacts {
            memory: Some(Memory { total: 24 * GIB, available, swap_total: 0, swap_used: 0 }),
            cgroup: Cgroup::default(),
            tcp_mem: Some([287_901, 383_869, 575_802]),
            tcp_wmem: Some([4096, 16_384, 4_194_304]),
            tcp_rmem: Some([4096, 131_072, 6_291_456]),
            sockets: Some(TcpSockets::default()),
            huge_pages: Some("always [madvise] never".to_owned()),
            overcommit: Some(0),
            swappiness: Some(60),
        }
    }

    #[test]
    fn idle_connections_are_compared_with_the_memory_that_is_available() {
        // 5,000 B each.
        let judged = |available| facts(available).judge_connections(&need(1_000_000)).level;
        assert_eq!(judged(6_300_000_000), Level::Ok);
        assert_eq!(judged(6_000_000_000), Level::Warn);
        assert_eq!(judged(4_900_000_000), Level::Bad);
        let cure = facts(5_000_000_000).judge_connections(&need(1_000_000)).cure;
        assert!(cure.is_some_and(|cure| cure.contains("--connections-max 800000")), "four fifths of it");
    }

    #[test]
    fn budgets_count_beside_the_connections() {
        // Three shards of 160 MiB, and 304 MiB of the node.
        assert_eq!(need(0).budget_bytes(), 784 << 20);
        assert_eq!(facts(784 << 20).judge_budgets(&need(0)).level, Level::Ok);
        assert_eq!(facts((784 << 20) - 1).judge_budgets(&need(0)).level, Level::Warn);
    }

    #[test]
    fn the_limit_of_the_control_group_binds_what_it_has_left() {
        let judged = |max: Option<u64>, used, connections| {
            let memory_max = max.map(|max| Bound { max, used });
            let cgroup = Cgroup { memory_max, ..Cgroup::default() };
            MemoryFacts { cgroup, ..facts(24 * GIB) }.judge_cgroup(&need(connections))
        };
        assert_eq!(judged(None, 0, 1_000_000).level, Level::Ok);
        assert_eq!(judged(Some(GIB), 0, 1000).level, Level::Ok);
        assert_eq!(judged(Some(GIB), GIB / 2, 1000).level, Level::Warn);
        let bad = judged(Some(GIB), 0, 1_000_000);
        assert_eq!(bad.level, Level::Bad);
        assert!(
            bad.cure.is_some_and(|cure| cure.contains("MemoryMax=10631M")),
            "idle 5 GB, lost 5.3 GB, budgets"
        );
        // 784 MiB of budgets.
        let high = |max, used| {
            let roomy = Some(Bound { max: 64 * GIB, used: 0 });
            let cgroup =
                Cgroup { memory_max: roomy, memory_high: Some(Bound { max, used }), ..Cgroup::default() };
            MemoryFacts { cgroup, ..facts(24 * GIB) }.judge_cgroup(&need(1))
        };
        assert_eq!(high(GIB, 0).level, Level::Ok);
        let slow = high(GIB, GIB / 2);
        assert!(slow.level == Level::Warn && slow.found.contains("slowed down from 1 GiB"), "{slow:?}");
        assert!(slow.cure.is_some_and(|cure| cure.contains(" MemoryHigh=")));
    }

    #[test]
    fn tcp_mem_is_worked_out_and_never_beyond_what_a_profile_would_set() {
        // A page for each of 166,900 and 13 for a tenth of them are 383,870.
        assert_eq!(facts(GIB).judge_tcp_mem(&need(166_890)).level, Level::Ok);
        assert_eq!(facts(GIB).judge_tcp_mem(&need(166_900)).level, Level::Warn);
        let cure = |connections| facts(GIB).judge_tcp_mem(&need(connections)).cure.expect("it warns");
        assert_eq!(cure(300_000), "sysctl -w net.ipv4.tcp_mem=\"287901 690000 1035000\"");
        // A quarter of 24 GiB are 1,572,864 pages, a third 2,097,152.
        assert_eq!(cure(680_000), "sysctl -w net.ipv4.tcp_mem=\"287901 1564000 2097152\"");
        assert!(cure(700_000).starts_with("corecast serve --connections-max 683853 "), "{}", cure(700_000));
        let two = Need::of(&Config { processes: 2, ..Config::default() }, Some(700_000), &[0, 1], None);
        let cure = facts(GIB).judge_tcp_mem(&Need { page_bytes: 4096, ..two }).cure.expect("it warns");
        assert!(cure.starts_with("corecast serve --processes 2 --connections-max 341926 "), "{cure}");
        let nested = MemoryFacts { tcp_mem: None, ..facts(GIB) };
        assert_eq!(nested.judge_tcp_mem(&need(2_000_000)).level, Level::Info);
    }

    #[test]
    fn send_buffers_take_what_a_turn_gathers() {
        let judged = |most| {
            MemoryFacts { tcp_wmem: Some([4096, 16_384, most]), ..facts(GIB) }.judge_tcp_buffers().level
        };
        assert_eq!((judged(49_152), judged(49_151)), (Level::Ok, Level::Warn));
    }

    #[test]
    fn pages_overcommit_and_swap() {
        let huge = |text: &str, takes_huge_pages| {
            let need = Need { takes_huge_pages, ..need(1) };
            MemoryFacts { huge_pages: Some(text.to_owned()), ..facts(GIB) }.judge_huge_pages(&need).level
        };
        assert_eq!(huge("[always] madvise never", false), Level::Info);
        assert_eq!(huge("[always] madvise never", true), Level::Warn);
        assert_eq!(huge("always madvise [never]", true), Level::Ok);
        let overcommit = |mode| MemoryFacts { overcommit: Some(mode), ..facts(GIB) }.judge_overcommit().level;
        assert_eq!((overcommit(0), overcommit(1), overcommit(2)), (Level::Ok, Level::Ok, Level::Warn));
        let swap = |swap_total, swap_used| {
            let memory = Some(Memory { total: 4 * GIB, available: 2 * GIB, swap_total, swap_used });
            MemoryFacts { memory, ..facts(GIB) }.judge_swap(&need(1000))
        };
        assert_eq!(
            [swap(0, 0).level, swap(GIB, 0).level, swap(GIB, GIB).level],
            [Level::Ok, Level::Info, Level::Warn]
        );
        let cure = |swap_used| swap(2 * swap_used - 1, swap_used).cure.expect("it warns");
        assert!(cure(GIB).starts_with("swapoff -a && swapon -a "), "{}", cure(GIB));
        assert!(cure(3 * GIB).starts_with("corecast serve --connections-max 500 "), "{}", cure(3 * GIB));
    }
}
