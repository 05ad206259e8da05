//! What the kernel knows about a measured window: CPU time of processes and cores, memory of a process and its sockets.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::sys;

/// A generator process busier than this was near its own limit: its figures may be the generator's.
pub const BUSY_MAX: f64 = 0.95;

/// Reads the same processes and cores before and after a window.
pub struct Meter {
    server: RefCell<Vec<u32>>,
    generator: Vec<(String, u32)>,
    server_cores: Vec<usize>,
    generator_cores: Vec<usize>,
}

/// The CPU clock of one thread of another process.
pub struct ThreadMeter {
    schedstat: PathBuf,
}

impl ThreadMeter {
    /// Of the thread that process `pid` calls `name`.
    pub fn of(pid: u32, name: &str) -> Result<Self> {
        let tasks = PathBuf::from(format!("/proc/{pid}/task"));
        let entries = fs::read_dir(&tasks).with_context(|| format!("the server's process {pid} is gone"))?;
        let is_called =
            |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|c| c.trim_end() == name);
        let task = entries.flatten().map(|entry| entry.path()).find(is_called);
        let task = task.with_context(|| format!("no thread of process {pid} is called {name:?}"))?;
        Ok(Self { schedstat: task.join("schedstat") })
    }

    /// Nanoseconds that it has computed, user and system; what it computes at this moment is counted at the scheduler's
    /// next tick, 4 ms later at most.
    pub fn cpu_ns(&self) -> Result<u64> {
        let text = fs::read_to_string(&self.schedstat).with_context(|| {
            format!("{}: the thread has ended, or the kernel keeps no schedstat", self.schedstat.display())
        })?;
        let first = text.split_ascii_whitespace().next().and_then(|number| number.parse().ok());
        first.with_context(|| format!("{} reads {text:?}", self.schedstat.display()))
    }
}

/// One reading of a [`Meter`].
pub struct Reading {
    at_ns: u64,
    server_ns: u64,
    server_user_ticks: u64,
    server_system_ticks: u64,
    generator_ns: Vec<u64>,
    cores: BTreeMap<usize, CoreTicks>,
}

/// A core's line in `/proc/stat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct CoreTicks {
    user: u64,
    system: u64,
    irq: u64,
    idle: u64,
    softirq: u64,
    steal: u64,
    all: u64,
}

/// Whose core it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CoreOf {
    /// The server's.
    Server,
    /// The generator's and its Redis's.
    Generator,
    /// Of both: there are too few.
    Both,
}

/// What one core did, whoever ran on it; in ticks of the kernel, and so to 10 ms.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CoreUsed {
    /// Its number.
    pub core: usize,
    /// Whose it is.
    pub of: CoreOf,
    /// In programs, those of low priority too.
    pub user_seconds: f64,
    /// In the kernel for them.
    pub system_seconds: f64,
    /// In soft interrupts. Where the kernel doesn't account interrupts separately, what runs inside a `send()` is in
    /// `system_seconds`.
    pub softirq_seconds: f64,
    /// In interrupts.
    pub irq_seconds: f64,
    /// Without anything to do, waits for a disk among it.
    pub idle_seconds: f64,
    /// Taken by the host.
    pub steal_seconds: f64,
}

/// What happened between two readings.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Used {
    /// Length of the window.
    pub seconds: f64,
    /// CPU time of the server's processes, user and system, all threads.
    pub server_cpu_seconds: f64,
    /// Share of user time in it, sampled in ticks: coarse.
    pub server_user_share: f64,
    /// Time that the server's cores spent in soft interrupts, in ticks. Where the kernel doesn't account interrupts
    /// separately, what runs inside a `send()` is part of the process's CPU time as well: don't add the two.
    pub server_cores_softirq_seconds: f64,
    /// Time that the host took from the server's cores.
    pub server_cores_steal_seconds: f64,
    /// Share of the window that each process of the generator computed.
    pub generator_busy: BTreeMap<String, f64>,
    /// Share of the window that the generator's cores were not idle.
    pub generator_cores_busy: f64,
    /// Where the time of each core went: the server's cores first.
    pub cores: Vec<CoreUsed>,
}

impl Meter {
    /// For a server (with its descendants as of now, and of later [looks](Self::look_again)) and the generator's named processes.
    pub fn new(
        server_pid: u32,
        generator: Vec<(String, u32)>,
        server_cores: &[usize],
        generator_cores: &[usize],
    ) -> Self {
        Self::of_servers(&[server_pid], generator, server_cores, generator_cores)
    }

    /// The same for several servers, which count as one.
    pub fn of_servers(
        server_pids: &[u32],
        generator: Vec<(String, u32)>,
        server_cores: &[usize],
        generator_cores: &[usize],
    ) -> Self {
        Self {
            server: RefCell::new(server_pids.iter().flat_map(|pid| family(*pid)).collect()),
            generator,
            server_cores: server_cores.to_vec(),
            generator_cores: generator_cores.to_vec(),
        }
    }

    /// Counts descendants that have come since: a server may accept before it has started those that work. One that has
    /// gone stays counted, so that the next reading fails.
    pub fn look_again(&self) {
        let mut known = self.server.borrow_mut();
        for pid in known.clone() {
            let come: Vec<_> = family(pid).into_iter().filter(|pid| !known.contains(pid)).collect();
            known.extend(come);
        }
    }

    /// Reads everything.
    pub fn read(&self) -> Result<Reading> {
        let stat = fs::read_to_string("/proc/stat")?;
        let server_ns = self.server_cpu_ns()?;
        let (mut user, mut system) = (0, 0);
        for pid in self.server.borrow().iter() {
            let ticks = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            let (one_user, one_system) = process_ticks(&ticks).context("unreadable /proc/PID/stat")?;
            user += one_user;
            system += one_system;
        }
        let generator_ns = self.generator.iter().map(|(_, pid)| sys::process_cpu_ns(*pid).unwrap_or(0));
        Ok(Reading {
            at_ns: sys::monotonic_ns(),
            server_ns,
            server_user_ticks: user,
            server_system_ticks: system,
            generator_ns: generator_ns.collect(),
            cores: stat.lines().filter_map(core_ticks).collect(),
        })
    }

    /// What happened between two readings of this meter.
    pub fn between(&self, before: &Reading, after: &Reading) -> Used {
        let seconds = (after.at_ns - before.at_ns) as f64 / 1e9;
        let user = (after.server_user_ticks - before.server_user_ticks) as f64;
        let system = (after.server_system_ticks - before.server_system_ticks) as f64;
        let busy_of = |index: usize| {
            after.generator_ns[index].saturating_sub(before.generator_ns[index]) as f64 / 1e9 / seconds
        };
        let generator_busy = self.generator.iter().enumerate();
        let sum = |cores: &[usize], field: fn(&CoreTicks) -> u64| -> f64 {
            let of = |reading: &Reading, core| reading.cores.get(core).map_or(0, field);
            cores.iter().map(|core| of(after, core).saturating_sub(of(before, core)) as f64).sum()
        };
        let tick_seconds = 1.0 / sys::ticks_per_second() as f64;
        let idle = sum(&self.generator_cores, |core| core.idle);
        let all = sum(&self.generator_cores, |core| core.all);
        Used {
            seconds,
            server_cpu_seconds: (after.server_ns - before.server_ns) as f64 / 1e9,
            server_user_share: if user + system > 0.0 { user / (user + system) } else { 0.0 },
            server_cores_softirq_seconds: sum(&self.server_cores, |core| core.softirq) * tick_seconds,
            server_cores_steal_seconds: sum(&self.server_cores, |core| core.steal) * tick_seconds,
            generator_busy: generator_busy.map(|(index, (name, _))| (name.clone(), busy_of(index))).collect(),
            generator_cores_busy: if all > 0.0 { 1.0 - idle / all } else { 0.0 },
            cores: self.cores_between(before, after),
        }
    }

    fn cores_between(&self, before: &Reading, after: &Reading) -> Vec<CoreUsed> {
        let tick_seconds = 1.0 / sys::ticks_per_second() as f64;
        let others = self.generator_cores.iter().filter(|core| !self.server_cores.contains(core));
        let used = self.server_cores.iter().chain(others).map(|core| {
            let seconds = |field: fn(&CoreTicks) -> u64| {
                let of = |reading: &Reading| reading.cores.get(core).map_or(0, field);
                of(after).saturating_sub(of(before)) as f64 * tick_seconds
            };
            let of = match (self.server_cores.contains(core), self.generator_cores.contains(core)) {
                (true, true) => CoreOf::Both,
                (true, false) => CoreOf::Server,
                (false, _) => CoreOf::Generator,
            };
            CoreUsed {
                core: *core,
                of,
                user_seconds: seconds(|ticks| ticks.user),
                system_seconds: seconds(|ticks| ticks.system),
                softirq_seconds: seconds(|ticks| ticks.softirq),
                irq_seconds: seconds(|ticks| ticks.irq),
                idle_seconds: seconds(|ticks| ticks.idle),
                steal_seconds: seconds(|ticks| ticks.steal),
            }
        });
        used.collect()
    }

    /// The server's processes, with the descendants that they had when the meter last looked.
    pub fn server_pids(&self) -> Vec<u32> {
        self.server.borrow().clone()
    }

    /// CPU time of the server's processes, user and system, since each was started.
    pub fn server_cpu_ns(&self) -> Result<u64> {
        self.server.borrow().iter().try_fold(0, |sum, pid| {
            let one = sys::process_cpu_ns(*pid);
            Ok(sum + one.with_context(|| format!("the server's process {pid} is gone"))?)
        })
    }

    /// Open descriptors of each of the server's processes, descendants and all.
    pub fn descriptors(&self) -> Result<Vec<usize>> {
        self.server.borrow().iter().map(|pid| descriptors(*pid)).collect()
    }

    /// Memory of the server's processes.
    pub fn memory(&self) -> Result<Memory> {
        memory(&self.server.borrow())
    }
}

/// Memory of these processes together, and of the machine's sockets.
pub fn memory(pids: &[u32]) -> Result<Memory> {
    let mut all = Memory::default();
    for pid in pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))
            .with_context(|| format!("the server's process {pid} is gone"))?;
        all.add_process(&status);
    }
    all.tcp_pages = tcp_pages(&fs::read_to_string("/proc/net/sockstat")?);
    all.slab_bytes = kibibytes(&fs::read_to_string("/proc/meminfo")?, "Slab:") * 1024;
    Ok(all)
}

impl Memory {
    /// Counts a process by its `/proc/PID/status`.
    fn add_process(&mut self, status: &str) {
        self.resident_bytes += kibibytes(status, "VmRSS:") * 1024;
        // Shared memory of its own making is a server's as much as what it allocates: nginx keeps messages in it. What
        // several processes share counts for each that has touched it.
        self.anonymous_bytes += (kibibytes(status, "RssAnon:") + kibibytes(status, "RssShmem:")) * 1024;
    }

    /// The larger of each, of two looks.
    pub fn peak(self, other: Self) -> Self {
        Self {
            resident_bytes: self.resident_bytes.max(other.resident_bytes),
            anonymous_bytes: self.anonymous_bytes.max(other.anonymous_bytes),
            tcp_pages: self.tcp_pages.max(other.tcp_pages),
            slab_bytes: self.slab_bytes.max(other.slab_bytes),
        }
    }
}

/// Memory of a server, and of all TCP sockets of the machine (the server's and the generator's).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Resident.
    pub resident_bytes: u64,
    /// Resident and backed by no file on a disk, shared or not: what the program has allocated and touched.
    pub anonymous_bytes: u64,
    /// Pages that data in TCP buffers holds.
    pub tcp_pages: u64,
    /// The kernel's small objects, of the whole machine: sockets, files, polls.
    pub slab_bytes: u64,
}

/// Open descriptors of a process.
///
/// Since Linux 6.2 the size of the folder is their number. Listing it would give each descriptor an inode of /proc, 700 B of
/// the kernel's memory, in the middle of its measurement; that is left to older kernels, which say 0.
pub fn descriptors(pid: u32) -> Result<usize> {
    let folder = format!("/proc/{pid}/fd");
    let gone = || format!("the server's process {pid} is gone");
    match fs::metadata(&folder).with_context(gone)?.len() {
        0 => Ok(fs::read_dir(&folder).with_context(gone)?.count()),
        descriptors => Ok(descriptors as usize),
    }
}

/// A process and its descendants, but for the generator when that is one of them.
fn family(pid: u32) -> Vec<u32> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if child == std::process::id() && child != pid {
            continue;
        }
        if let Some(parent) = stat_fields(&stat).nth(1).and_then(|field| field.parse::<u32>().ok()) {
            parents.insert(child, parent);
        }
    }
    let mut found = vec![pid];
    let mut looked_at = 0;
    while let Some(&parent) = found.get(looked_at) {
        found.extend(parents.iter().filter(|(_, of)| **of == parent).map(|(child, _)| *child));
        looked_at += 1;
    }
    found
}

/// The fields of `/proc/PID/stat` behind the name, which may hold anything: state, parent, and so on (proc(5)).
fn stat_fields(stat: &str) -> impl Iterator<Item = &str> {
    stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_ascii_whitespace()
}

/// User and system ticks of a process.
fn process_ticks(stat: &str) -> Option<(u64, u64)> {
    let mut fields = stat_fields(stat).skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// `cpuN user nice system idle iowait irq softirq steal guest guest_nice`; guest time is part of user time.
fn core_ticks(line: &str) -> Option<(usize, CoreTicks)> {
    let (name, fields) = line.split_once(' ')?;
    let core = name.strip_prefix("cpu")?.parse().ok()?;
    let fields: Vec<u64> =
        fields.split_ascii_whitespace().take(8).filter_map(|field| field.parse().ok()).collect();
    let at = |index: usize| fields.get(index).copied().unwrap_or(0);
    Some((
        core,
        CoreTicks {
            user: at(0) + at(1),
            system: at(2),
            irq: at(5),
            idle: at(3) + at(4),
            softirq: at(6),
            steal: at(7),
            all: fields.iter().sum(),
        },
    ))
}

fn kibibytes(status: &str, name: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_ascii_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

fn tcp_pages(sockstat: &str) -> u64 {
    let fields = sockstat.lines().find_map(|line| line.strip_prefix("TCP:")).unwrap_or_default();
    let mut fields = fields.split_ascii_whitespace();
    fields.find(|field| *field == "mem");
    fields.next().and_then(|pages| pages.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_spaces_and_parentheses_moves_no_field() {
        let stat = "12 (a) b (c)) S 7 12 12 0 -1 4194560 1 2 3 4 55 66 0 0 20 0 1 0 1 1 1";
        assert_eq!(process_ticks(stat), Some((55, 66)));
        assert_eq!(stat_fields(stat).nth(1), Some("7"));
    }

    #[test]
    fn lines_of_the_kernel_are_read() {
        let ticks = CoreTicks { user: 3, system: 3, irq: 6, idle: 9, softirq: 7, steal: 8, all: 36 };
        assert_eq!(core_ticks("cpu1 1 2 3 4 5 6 7 8 9 10"), Some((1, ticks)));
        assert_eq!(core_ticks("cpu  1 2 3 4 5 6 7 8 9 10"), None);
        let mut memory = Memory::default();
        memory.add_process("VmRSS:\t  120 kB\nRssAnon:\t 7 kB\nRssFile:\t 109 kB\nRssShmem:\t 4 kB\n");
        assert_eq!((memory.resident_bytes, memory.anonymous_bytes), (120 << 10, 11 << 10));
        assert_eq!(tcp_pages("sockets: used 5\nTCP: inuse 3 orphan 0 tw 4 alloc 9 mem 21\n"), 21);
    }

    #[test]
    fn a_thread_is_found_by_its_name_and_its_clock_runs() {
        let worker = std::thread::Builder::new().name("counted".to_owned()).spawn(|| {
            let meter = ThreadMeter::of(std::process::id(), "counted").unwrap();
            let before = meter.cpu_ns().unwrap();
            let mut sum = 0u64;
            while meter.cpu_ns().unwrap() < before + 1_000_000 {
                sum = std::hint::black_box(sum + 1);
            }
        });
        worker.unwrap().join().unwrap();
        assert!(ThreadMeter::of(std::process::id(), "nobody").is_err());
    }

    #[test]
    fn each_core_is_told_with_whose_it_is_and_where_its_time_went() {
        let meter = Meter {
            server: RefCell::default(),
            generator: vec![],
            server_cores: vec![0, 1],
            generator_cores: vec![1, 2],
        };
        let reading = |times: u64| Reading {
            at_ns: times * 1_000_000_000,
            server_ns: 0,
            server_user_ticks: 0,
            server_system_ticks: 0,
            generator_ns: vec![],
            cores: (0..4)
                .filter_map(|core| {
                    core_ticks(&format!("cpu{core} {} 0 {times} 0 0 0 {} 0", 10 * times, 2 * times))
                })
                .collect(),
        };
        let used = meter.between(&reading(1), &reading(101));
        let of: Vec<_> = used.cores.iter().map(|one| (one.core, one.of)).collect();
        assert_eq!(of, [(0, CoreOf::Server), (1, CoreOf::Both), (2, CoreOf::Generator)]);
        let ticks_per_second = sys::ticks_per_second() as f64;
        for core in &used.cores {
            assert_eq!(core.user_seconds, 1_000.0 / ticks_per_second);
            assert_eq!(core.softirq_seconds, 200.0 / ticks_per_second);
            assert_eq!(core.idle_seconds, 0.0);
        }
    }

    #[test]
    fn this_process_has_descriptors() {
        let open: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let found = descriptors(std::process::id()).unwrap();
        assert!(found >= 3 + open.len(), "{found}");
        assert!(descriptors((1 << 22) + 1).is_err());
    }

    #[test]
    fn a_child_that_comes_later_is_counted_from_the_next_look_on() {
        let mut mother = std::process::Command::new("sh");
        // Waits for a line before it has its child.
        mother.args(["-c", "read line; sleep 60 & wait"]).stdin(std::process::Stdio::piped());
        let mut mother = mother.spawn().unwrap();
        let meter = Meter::new(mother.id(), Vec::new(), &[], &[]);
        assert_eq!(*meter.server.borrow(), [mother.id()]);
        std::io::Write::write_all(&mut mother.stdin.take().unwrap(), b"go\n").unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while meter.server.borrow().len() < 2 && std::time::Instant::now() < deadline {
            meter.look_again();
        }
        let known = meter.server.borrow().clone();
        if let Some(child) = known.get(1) {
            // Not by name, and before its mother: nobody else ends it.
            std::process::Command::new("kill").arg(child.to_string()).status().unwrap();
        }
        mother.kill().unwrap();
        mother.wait().unwrap();
        assert_eq!(known.len(), 2, "{known:?}");
        assert!(meter.read().is_err(), "a part of the server is gone");
    }

    #[test]
    fn a_process_is_a_member_of_its_family() {
        assert!(family(std::process::id()).contains(&std::process::id()));
    }
}
