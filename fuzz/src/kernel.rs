//! What the kernel tells of itself, as text.

use std::fs;
use std::path::PathBuf;

use host::{
    Cgroup, Cpus, ListenCounters, Memory, OpenFiles, Process, Root, SysctlName, TcpSockets, listening_on,
};

/// Tables, lists and names: read or not, never a panic, and lists as `/sys` has them are the numbers they stand for.
pub(crate) fn proc(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let _ = (ListenCounters::parse(text), TcpSockets::parse(text), Memory::parse(text));
    let _ = (OpenFiles::parse(text), Process::parse(text));
    if let Some(numbers) = host::parse_list(text) {
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?} is not ascending");
        let spelled: Vec<String> = numbers.iter().map(ToString::to_string).collect();
        assert_eq!(host::parse_list(&spelled.join(",")), Some(numbers), "{text:?} is not read back");
    }
    if let Ok(name) = text.parse::<SysctlName>() {
        assert_eq!(name.to_string(), text, "another name");
        assert!(!text.contains('/') && !text.contains(".."), "{text:?} leaves /proc/sys");
    }
}

/// The same where files are looked up below a root: a line `@PATH` in the input begins the file of that path.
pub(crate) fn proc_files(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let folder = Folder::with(text);
    let root = Root::at(&folder.0);
    let cgroup = Cgroup::read(&root);
    assert!(cgroup.cpu.is_none_or(|share| share.cores() >= 0.0), "less than no core");
    let cpus = Cpus::read(&root);
    for core in &cpus.cores {
        assert!(cpus.core(core.id).is_some(), "a core that isn't found");
    }
    for owner in listening_on(&root, PORT) {
        assert_eq!(owner.address.port(), PORT, "another port");
    }
}

/// A root of a few files; gone with the value.
struct Folder(PathBuf);

impl Folder {
    fn with(text: &str) -> Self {
        let thread = std::thread::current().id();
        let folder = std::env::temp_dir().join(format!("corecast-fuzz-{}-{thread:?}", std::process::id()));
        fs::create_dir_all(&folder).expect("a temporary folder");
        let sections = text.split('@').filter_map(|section| section.split_once('\n'));
        for (path, content) in sections.filter(|(path, _)| FILES.contains(path)) {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("a temporary folder");
            fs::write(path, content).expect("a temporary file");
        }
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("a temporary folder");
    }
}

const PORT: u16 = 8080;
const FILES: [&str; 13] = [
    "proc/self/cgroup",
    "proc/self/mountinfo",
    "proc/net/tcp",
    "proc/net/tcp6",
    "proc/7/comm",
    "sys/fs/cgroup/cpu.max",
    "sys/fs/cgroup/cpu.stat",
    "sys/fs/cgroup/memory.max",
    "sys/fs/cgroup/memory.stat",
    "sys/fs/cgroup/pids.max",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us",
    "sys/devices/system/cpu/online",
    "sys/devices/system/node/node0/cpulist",
];
