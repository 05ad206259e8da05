//! A folder that stands for the `/` of a machine: what is written there reaches no kernel.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::support::program::{Finished, run};
use crate::support::scratch::Scratch;

/// A machine of 8 GiB and 2 cores, at the kernel's defaults but for two words that have more than one form.
pub struct Machine(Scratch);

const FILES: [(&str, &str); 16] = [
    ("proc/meminfo", "MemTotal:        8388608 kB\nMemFree:         1000000 kB\n"),
    ("proc/self/limits", "Limit  Soft Limit  Hard Limit  Units\nMax open files  1024  524288  files\n"),
    ("proc/self/ns/net", ""),
    ("proc/sys/kernel/random/boot_id", "6c7b0b5e-0000-4000-8000-000000000001\n"),
    ("proc/sys/kernel/numa_balancing", "1\n"),
    ("proc/sys/fs/nr_open", "1048576\n"),
    ("proc/sys/fs/file-max", "805306\n"),
    ("proc/sys/net/core/somaxconn", "4096\n"),
    ("proc/sys/net/ipv4/tcp_mem", "94212\t125616\t188424\n"),
    ("proc/sys/net/ipv4/tcp_slow_start_after_idle", "1\n"),
    ("proc/sys/net/ipv4/tcp_tw_reuse", "2\n"),
    ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
    ("proc/sys/net/netfilter/nf_conntrack_max", "262144\n"),
    ("sys/devices/system/cpu/online", "0-1\n"),
    ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "schedutil\n"),
    ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "schedutil\n"),
];

impl Machine {
    pub fn new() -> Self {
        let machine = Self(Scratch::new());
        for (path, text) in FILES {
            machine.write(path, text);
        }
        // The first process is in the same network namespace.
        std::fs::create_dir_all(machine.path("proc/1/ns")).expect("a folder");
        std::fs::hard_link(machine.path("proc/self/ns/net"), machine.path("proc/1/ns/net")).expect("a link");
        machine
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.0.path(path)
    }

    pub fn write(&self, path: &str, text: &str) {
        std::fs::create_dir_all(self.path(path).parent().expect("a file has a folder")).expect("a folder");
        self.0.write(path, text);
    }

    /// Its values, each without white space at its end.
    pub fn values(&self) -> BTreeMap<&'static str, String> {
        let value =
            |path: &str| std::fs::read_to_string(self.path(path)).expect(path).trim_end().replace('\t', " ");
        FILES.iter().map(|(path, _)| (*path, value(path))).collect()
    }

    /// Runs `corecast tune` on it.
    #[track_caller]
    pub fn tune(&self, args: &[&str]) -> Finished {
        let root = self.0.dir().to_string_lossy().into_owned();
        run(&[&["tune"], args, &["--root", &root]].concat())
    }

    pub fn root(&self) -> &Path {
        self.0.dir()
    }
}
