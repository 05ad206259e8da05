//! What the control groups of this process allow, version 2 or 1.
//!
//! A limit of an ancestor binds as well, and others use of it: the one that leaves least is told. In a container the path in
//! `/proc/self/cgroup` may lead nowhere below what is mounted: then the mounted folder itself is the container's.

use crate::Root;

/// The limits that leave least, from this process's group up to what is mounted; `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cgroup {
    /// CPU time in a period.
    pub cpu: Option<CpuShare>,
    /// Periods in which the group had to wait for CPU time, of the group with the tightest limit.
    pub throttled_periods: u64,
    /// Bytes at which the kernel kills. Files that it would give back are not in use.
    pub memory_max: Option<Bound>,
    /// Bytes at which it slows down (version 2 only).
    pub memory_high: Option<Bound>,
    /// Threads and processes.
    pub pids: Option<Bound>,
}

/// A limit of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// The limit.
    pub max: u64,
    /// What all of the group has in use of it.
    pub used: u64,
}

impl Bound {
    /// What is not in use.
    pub fn left(self) -> u64 {
        self.max.saturating_sub(self.used)
    }

    /// Of two groups' bounds the one that leaves less.
    fn nearer(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        [one, other].into_iter().flatten().min_by_key(|bound| bound.left())
    }
}

/// `cpu.max`: so much CPU time in so much time, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuShare {
    /// CPU time.
    pub quota: u64,
    /// In this time.
    pub period: u64,
}

impl CpuShare {
    /// In cores.
    pub fn cores(self) -> f64 {
        self.quota as f64 / self.period.max(1) as f64
    }
}

impl Cgroup {
    /// No limits where nothing is mounted.
    pub fn read(root: &Root) -> Self {
        let paths = root.read("/proc/self/cgroup").unwrap_or_default();
        let mounts = root.read("/proc/self/mountinfo").unwrap_or_default();
        let mut group = Self::default();
        for folder in folders(root, &paths, &mounts, None) {
            group.take_unified(root, &folder);
        }
        for folder in folders(root, &paths, &mounts, Some("cpu")) {
            group.take_cpu_of_version_1(root, &folder);
        }
        for folder in folders(root, &paths, &mounts, Some("memory")) {
            let used = root.number(&format!("{folder}/memory.usage_in_bytes"));
            let used = used
                .map(|used| used.saturating_sub(stat(root, &folder, "memory.stat", "total_inactive_file")));
            let max = root.number(&format!("{folder}/memory.limit_in_bytes"));
            let max = max.filter(|max| *max < UNLIMITED_OF_VERSION_1);
            group.memory_max = Bound::nearer(group.memory_max, bound(max, used));
        }
        for folder in folders(root, &paths, &mounts, Some("pids")) {
            group.take_pids(root, &folder);
        }
        group
    }

    fn take_unified(&mut self, root: &Root, folder: &str) {
        if let Some(share) = root.read(&format!("{folder}/cpu.max")).ok().and_then(|text| parse_share(&text))
        {
            self.bind_cpu(share, throttled(root, folder));
        }
        let used = root.number(&format!("{folder}/memory.current"));
        let used = used.map(|used| used.saturating_sub(stat(root, folder, "memory.stat", "inactive_file")));
        let of = |name: &str| bound(root.number(&format!("{folder}/memory.{name}")), used);
        self.memory_max = Bound::nearer(self.memory_max, of("max"));
        self.memory_high = Bound::nearer(self.memory_high, of("high"));
        self.take_pids(root, folder);
    }

    fn take_cpu_of_version_1(&mut self, root: &Root, folder: &str) {
        // A quota of -1, no limit, is no number.
        let number = |name: &str| root.number(&format!("{folder}/{name}"));
        if let (Some(quota), Some(period)) = (number("cpu.cfs_quota_us"), number("cpu.cfs_period_us")) {
            self.bind_cpu(CpuShare { quota, period }, throttled(root, folder));
        }
    }

    fn take_pids(&mut self, root: &Root, folder: &str) {
        let number = |name: &str| root.number(&format!("{folder}/pids.{name}"));
        self.pids = Bound::nearer(self.pids, bound(number("max"), number("current")));
    }

    fn bind_cpu(&mut self, share: CpuShare, throttled_periods: u64) {
        if self.cpu.is_none_or(|bound| share.cores() < bound.cores()) {
            self.cpu = Some(share);
            self.throttled_periods = throttled_periods;
        }
    }
}

/// Version 1 says "unlimited" as the highest multiple of a page: 2^63 - 4,096 with pages of 4 KiB, less with larger ones.
const UNLIMITED_OF_VERSION_1: u64 = 1 << 62;

fn bound(max: Option<u64>, used: Option<u64>) -> Option<Bound> {
    Some(Bound { max: max?, used: used.unwrap_or(0) })
}

/// `cpu.max`: "QUOTA PERIOD", or "max PERIOD" for no limit.
fn parse_share(text: &str) -> Option<CpuShare> {
    let (quota, period) = text.split_once(' ')?;
    Some(CpuShare { quota: quota.parse().ok()?, period: period.trim().parse().ok()? })
}

fn throttled(root: &Root, folder: &str) -> u64 {
    stat(root, folder, "cpu.stat", "nr_throttled")
}

/// A value of a file of names and values; 0 where it is not told.
fn stat(root: &Root, folder: &str, file: &str, name: &str) -> u64 {
    let text = root.read(&format!("{folder}/{file}")).unwrap_or_default();
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
    text.lines().find_map(value).unwrap_or(0)
}

/// Folders of this process's group under `controller` (`None`: of version 2) and of its ancestors, as far as mounted.
fn folders(root: &Root, paths: &str, mounts: &str, controller: Option<&str>) -> Vec<String> {
    let Some((shown, mounted)) = mount(mounts, controller) else { return Vec::new() };
    let path = path(paths, controller).unwrap_or_default();
    // What is mounted may itself be a part of the tree (a container's): the path begins with it then.
    let below = path.strip_prefix(shown.trim_end_matches('/')).unwrap_or(&path).trim_matches('/');
    let mut folders = vec![mounted.clone()];
    for part in below.split('/').filter(|part| !part.is_empty() && *part != "..") {
        let next = format!("{}/{part}", folders.last().unwrap_or(&mounted));
        if !root.path(&next).is_dir() {
            break;
        }
        folders.push(next);
    }
    folders
}

/// The group's path in `/proc/self/cgroup`: lines of "ID:CONTROLLERS:PATH".
fn path(paths: &str, controller: Option<&str>) -> Option<String> {
    paths.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let is_it = match controller {
            None => controllers.is_empty(),
            Some(name) => controllers.split(',').any(|found| found == name),
        };
        is_it.then(|| path.to_owned())
    })
}

/// What part of the tree is mounted where, out of `/proc/self/mountinfo` (proc_pid_mountinfo(5)): fields 4 and 5, and after
/// the " - " the file system's type and, of version 1, its controllers among the options.
fn mount(mounts: &str, controller: Option<&str>) -> Option<(String, String)> {
    mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let is_it = match (kind.next()?, controller) {
            ("cgroup2", None) => true,
            ("cgroup", Some(name)) => kind.nth(1)?.split(',').any(|option| option == name),
            _ => false,
        };
        let mut place = place.split(' ').skip(3);
        is_it.then_some((place.next()?.to_owned(), place.next()?.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A root with `files`, gone with the value.
    struct Story(std::path::PathBuf);

    impl Story {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let folder = std::env::temp_dir().join(format!("host-cgroup-{}-{name}", std::process::id()));
            for (path, text) in files {
                let path = folder.join(path.trim_start_matches('/'));
                fs::create_dir_all(path.parent().expect("it has a folder")).expect("a folder");
                fs::write(path, text).expect("a file");
            }
            Self(folder)
        }

        fn group(&self) -> Cgroup {
            Cgroup::read(&Root::at(&self.0))
        }
    }

    impl Drop for Story {
        fn drop(&mut self) {
            // Left behind it is no reason to fail a test that has spoken.
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_limit_that_leaves_least_on_the_way_up_binds() {
        let story = Story::new(
            "tightest",
            &[
                ("/proc/self/cgroup", "0::/system.slice/corecast.service\n"),
                ("/proc/self/mountinfo", UNIFIED),
                ("/sys/fs/cgroup/system.slice/cpu.max", "400000 100000\n"),
                ("/sys/fs/cgroup/system.slice/memory.max", "1000\n"),
                ("/sys/fs/cgroup/system.slice/memory.current", "900\n"),
                (
                    "/sys/fs/cgroup/system.slice/memory.stat",
                    "anon 500\ninactive_file_x 9\ninactive_file 300\n",
                ),
                ("/sys/fs/cgroup/system.slice/corecast.service/cpu.max", "150000 100000\n"),
                ("/sys/fs/cgroup/system.slice/corecast.service/cpu.stat", "usage_usec 5\nnr_throttled 12\n"),
                // Less than the slice's, and more is left of it.
                ("/sys/fs/cgroup/system.slice/corecast.service/memory.max", "950\n"),
                ("/sys/fs/cgroup/system.slice/corecast.service/memory.high", "800\n"),
                ("/sys/fs/cgroup/system.slice/corecast.service/memory.current", "100\n"),
                ("/sys/fs/cgroup/system.slice/pids.max", "100\n"),
                ("/sys/fs/cgroup/system.slice/pids.current", "90\n"),
                ("/sys/fs/cgroup/system.slice/corecast.service/pids.max", "64\n"),
                ("/sys/fs/cgroup/system.slice/corecast.service/pids.current", "3\n"),
            ],
        );
        let group = story.group();
        assert_eq!(group.cpu, Some(CpuShare { quota: 150_000, period: 100_000 }));
        assert_eq!(group.throttled_periods, 12);
        assert_eq!(group.pids, Some(Bound { max: 100, used: 90 }));
        assert_eq!(group.memory_max, Some(Bound { max: 1000, used: 600 }));
        assert_eq!(group.memory_high, Some(Bound { max: 800, used: 100 }));
    }

    #[test]
    fn a_container_sees_its_own_group_where_the_tree_is_mounted() {
        let story = Story::new(
            "container",
            &[
                ("/proc/self/cgroup", "0::/docker/abc\n"),
                ("/proc/self/mountinfo", &UNIFIED.replace(" / ", " /docker/abc ")),
                ("/sys/fs/cgroup/memory.max", "2048\n"),
                ("/sys/fs/cgroup/cpu.max", "max 100000\n"),
            ],
        );
        assert_eq!(story.group(), Cgroup { memory_max: bound(Some(2048), None), ..Cgroup::default() });
    }

    #[test]
    fn version_1_has_a_folder_for_each_controller_and_large_numbers_for_no_limit() {
        let mounts = "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpuacct,cpu\n\
                      34 31 0:35 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let story = Story::new(
            "version-1",
            &[
                ("/proc/self/cgroup", "4:memory:/job\n2:cpu,cpuacct:/\n0::/\n"),
                ("/proc/self/mountinfo", mounts),
                ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
                ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
                ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "4096\n"),
                ("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "96\n"),
            ],
        );
        assert_eq!(story.group(), Cgroup { memory_max: bound(Some(4096), Some(96)), ..Cgroup::default() });
    }

    #[test]
    fn nothing_mounted_is_no_limit() {
        assert_eq!(Story::new("nothing", &[("/proc/self/cgroup", "0::/../x\n")]).group(), Cgroup::default());
    }
}
