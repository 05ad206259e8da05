//! A network namespace: which one it is, and work inside it.

#![expect(unsafe_code, reason = "SO_NETNS_COOKIE has no safe form")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::thread;

use rustix::net::{AddressFamily, SocketType, socket};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Root;

/// A network namespace that is kept alive by this value, unless it is the caller's own.
#[derive(Debug)]
pub struct NetworkNamespace {
    /// Open where the caller is not in it.
    entrance: Option<File>,
    inode: u64,
}

impl NetworkNamespace {
    /// The one that this process is in.
    ///
    /// # Errors
    /// The kernel's, where `/proc` is not there.
    pub fn own(root: &Root) -> io::Result<Self> {
        Ok(Self { entrance: None, inode: inode_of(root, OWN)? })
    }

    /// The one that ip-netns(8) keeps as `name`.
    ///
    /// # Errors
    /// NotFound where there is none; InvalidInput for a name that leads elsewhere.
    pub fn named(root: &Root, name: &str) -> io::Result<Self> {
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "that is no name of a namespace"));
        }
        Self::at(root, &format!("/run/netns/{name}"))
    }

    /// The one that the process `pid` is in.
    ///
    /// # Errors
    /// NotFound where there is no such process, PermissionDenied for another user's.
    pub fn of_process(root: &Root, pid: u32) -> io::Result<Self> {
        Self::at(root, &format!("/proc/{pid}/ns/net"))
    }

    fn at(root: &Root, path: &str) -> io::Result<Self> {
        let file = File::open(root.path(path))?;
        let inode = file.metadata()?.ino();
        let is_own = inode == inode_of(root, OWN)?;
        Ok(Self { entrance: (!is_own).then_some(file), inode })
    }

    /// The number that tells it from every other namespace that exists now. The kernel gives the number of one that is
    /// gone to another.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// The number that no other namespace has before the kernel is started again. `None` before Linux 5.14, and where this
    /// user may not enter.
    pub fn cookie(&self) -> Option<u64> {
        self.run(own_cookie).ok()?.ok()
    }

    /// The one with this number, as far as this user sees: by its mounts, as ip-netns(8) and Docker make them, and by the
    /// processes in it.
    pub fn find(root: &Root, inode: u64) -> Option<Self> {
        let link = format!("net:[{inode}]");
        let mounts = root.read("/proc/self/mountinfo").unwrap_or_default();
        // proc_pid_mountinfo(5): the root of the mount, which names the namespace, and where it is.
        let mounted = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(3);
            (fields.next() == Some(&link)).then(|| fields.next().map(str::to_owned)).flatten()
        });
        let pids =
            root.names("/proc").into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        let lived_in = pids.map(|pid| format!("/proc/{pid}/ns/net"));
        let is_it = |path: &String| inode_of(root, path).is_ok_and(|found| found == inode);
        let path = [OWN.to_owned()].into_iter().chain(mounted).chain(lived_in).find(is_it)?;
        Self::at(root, &path).ok()
    }

    /// Whether the first process is in it: on a host the host's own, in a container the container's.
    ///
    /// Where this user may not look at that process: whether it has the number that the kernel keeps for the initial one, or,
    /// on kernels that keep none, whether it is the caller's own.
    pub fn is_of_first_process(&self, root: &Root) -> bool {
        match inode_of(root, "/proc/1/ns/net") {
            Ok(inode) => inode == self.inode,
            Err(_) if keeps_initial_inode(root) => self.inode == INITIAL_INODE,
            Err(_) => self.entrance.is_none(),
        }
    }

    /// Runs `work` inside, on a thread of its own where the caller is elsewhere. `/proc/sys/net` is the namespace's there;
    /// `/sys/class/net` stays the caller's, since it belongs to a mount.
    ///
    /// # Errors
    /// The kernel's, where this user may not enter (it takes CAP_SYS_ADMIN).
    ///
    /// # Panics
    /// As `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let Some(entrance) = &self.entrance else { return Ok(work()) };
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(entrance.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Of the namespace that the calling thread is in.
fn own_cookie() -> io::Result<u64> {
    let socket = socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    let mut cookie = 0_u64;
    let mut bytes = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: both pointers are to values of this frame, and `bytes` is the size of the first; the kernel writes no more.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut bytes,
        )
    };
    match result {
        0 if bytes as usize == size_of_val(&cookie) => Ok(cookie),
        0 => Err(io::ErrorKind::InvalidData.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn inode_of(root: &Root, path: &str) -> io::Result<u64> {
    Ok(fs::metadata(root.path(path))?.ino())
}

const OWN: &str = "/proc/self/ns/net";
/// `NET_NS_INIT_INO` of `linux/nsfs.h`, since Linux 6.18; before, it is a number like any other.
const INITIAL_INODE: u64 = 0xEFFF_FFF9;

fn keeps_initial_inode(root: &Root) -> bool {
    let release = root.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(18))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_in_the_own_namespace_stays_on_its_thread() {
        let root = Root::system();
        let own = NetworkNamespace::own(&root).expect("/proc is there");
        let same = NetworkNamespace::of_process(&root, std::process::id()).expect("we live");
        assert_eq!(own.inode(), same.inode());
        let caller = thread::current().id();
        for namespace in [own, same] {
            assert_eq!(namespace.run(|| thread::current().id()).expect("it is entered already"), caller);
        }
    }

    #[test]
    fn the_own_namespace_is_found_by_its_number_and_another_number_is_nowhere() {
        let root = Root::system();
        let own = NetworkNamespace::own(&root).expect("/proc is there");
        let found = NetworkNamespace::find(&root, own.inode()).expect("this process is in it");
        assert_eq!((found.inode(), found.cookie()), (own.inode(), own.cookie()));
        assert!(NetworkNamespace::find(&root, 1).is_none());
    }

    #[test]
    fn since_linux_6_18_the_initial_namespace_is_known_by_its_number() {
        let folder = std::env::temp_dir().join(format!("host-netns-{}", std::process::id()));
        let root = Root::at(&folder);
        fs::create_dir_all(folder.join("proc/sys/kernel")).expect("a folder");
        for (release, due) in
            [("6.18.0-rc1", true), ("7.0", true), ("6.17.9", false), ("5.18.1-generic", false), ("", false)]
        {
            fs::write(folder.join("proc/sys/kernel/osrelease"), release).expect("a file");
            assert_eq!(keeps_initial_inode(&root), due, "{release:?}");
        }
        fs::remove_dir_all(&folder).expect("it was made");
    }

    #[test]
    fn a_name_never_leaves_its_folder() {
        for name in ["", ".", "..", "../../proc/1/ns/net", "a/b"] {
            let error = NetworkNamespace::named(&Root::system(), name).expect_err(name);
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
        let error =
            NetworkNamespace::named(&Root::system(), "no-such-namespace").expect_err("it is not there");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
