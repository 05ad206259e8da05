//! A network namespace: which one it is, and work inside it.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Root;

/// A network namespace that is kept alive by this value, unless it is the caller's own.
#[derive(Debug)]
pub struct NetworkNamespace {
    /// Open where the caller is not in it.
    entrance: Option<File>,
    inode: u64,
    /// Seconds and nanoseconds since 1970, where a name keeps the namespace's inode as it was made.
    made: Option<(i64, i64)>,
}

impl NetworkNamespace {
    /// The one that this process is in.
    ///
    /// # Errors
    /// The kernel's, where `/proc` is not there.
    pub fn own(root: &Root) -> io::Result<Self> {
        Ok(Self { entrance: None, inode: inode_of(root, OWN)?, made: None })
    }

    /// The one that ip-netns(8) keeps as `name`.
    ///
    /// # Errors
    /// NotFound where there is none; InvalidInput for a name that leads elsewhere.
    pub fn named(root: &Root, name: &str) -> io::Result<Self> {
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "that is no name of a namespace"));
        }
        let mut namespace = Self::at(root, &format!("/run/netns/{name}"))?;
        let metadata = fs::metadata(root.path(&format!("/run/netns/{name}")))?;
        namespace.made =
            (metadata.ino() == namespace.inode).then(|| (metadata.ctime(), metadata.ctime_nsec()));
        Ok(namespace)
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
        Ok(Self { entrance: (!is_own).then_some(file), inode, made: None })
    }

    /// The number that tells it from every other namespace that exists now. The kernel gives the number of one that is
    /// gone to another.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// When it was made (seconds and nanoseconds since 1970), which tells it from one that is gone and had its number. Only
    /// for one that was opened by its name: of others the kernel makes the inode anew whenever somebody looks.
    pub fn made(&self) -> Option<(i64, i64)> {
        self.made
    }

    /// Whether the first process is in it: on a host the host's own, in a container the container's.
    ///
    /// Where this user may not look at that process: whether it is the caller's own, or has the number that the kernel
    /// keeps for the initial one.
    pub fn is_of_first_process(&self, root: &Root) -> bool {
        match inode_of(root, "/proc/1/ns/net") {
            Ok(inode) => inode == self.inode,
            Err(_) => self.entrance.is_none() || self.inode == INITIAL_INODE,
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

fn inode_of(root: &Root, path: &str) -> io::Result<u64> {
    Ok(fs::metadata(root.path(path))?.ino())
}

const OWN: &str = "/proc/self/ns/net";
/// `NET_NS_INIT_INO` of `linux/nsfs.h`, since Linux 6.18; before, it is a number like any other.
const INITIAL_INODE: u64 = 0xEFFF_FFF9;

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
