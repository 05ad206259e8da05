//! The place of one sample: a thread in a network namespace of its own, and what is started there.
//!
//! A namespace belongs to a thread, and what the thread starts is born into it. So a sample needs no name below
//! `/run/netns` and no clearing up: when the thread and its processes have ended, the kernel drops the namespace with
//! everything that was set in it, however they ended.

#![expect(unsafe_code, reason = "unshare, ioctl and pre_exec have no safe form")]

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use host::Root;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Signal, getppid, set_parent_process_death_signal, setpgid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Where samples run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enclosure {
    /// Each in a fresh network namespace whose loopback interface is up.
    Fresh {
        /// With a mount of sysfs that shows the devices of that namespace.
        with_devices: bool,
    },
    /// Where this process is.
    Current,
}

/// What the kernel is for whoever works inside.
pub struct Inside {
    /// Its `/proc/sys/net` is the namespace's.
    pub proc: Root,
    /// Its `/sys/class/net` is the namespace's.
    pub devices: Root,
}

/// A namespace could not be made.
#[derive(Debug, thiserror::Error)]
#[error("can't {step}: {error}")]
pub struct EnclosureError {
    step: &'static str,
    /// The kernel's word.
    pub error: io::Error,
}

impl Enclosure {
    /// Runs `work` inside, on a thread of its own. What is the same inside and outside is below `root`; `scratch` is a folder
    /// that lives longer.
    ///
    /// # Errors
    /// [`EnclosureError`]; EPERM where this user has no CAP_SYS_ADMIN.
    ///
    /// # Panics
    /// As `work` does.
    pub fn run<T: Send>(
        self,
        root: &Root,
        scratch: &Path,
        work: impl FnOnce(&Inside) -> T + Send,
    ) -> Result<T, EnclosureError> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| Ok(work(&self.enter(root, scratch)?)));
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread, and no other one.
    fn enter(self, root: &Root, scratch: &Path) -> Result<Inside, EnclosureError> {
        let Self::Fresh { with_devices } = self else {
            return Ok(Inside { proc: root.clone(), devices: root.clone() });
        };
        let mounts = if with_devices { UnshareFlags::NEWNS } else { UnshareFlags::empty() };
        // SAFETY: only FILES takes descriptors from other threads, and it is not among the flags.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET | mounts) }.map_err(at("make a network namespace"))?;
        bring_up_loopback()
            .map_err(|error| EnclosureError { step: "bring up the loopback interface", error })?;
        let devices = if with_devices { Root::at(mount_sysfs(scratch)?) } else { root.clone() };
        Ok(Inside { proc: root.clone(), devices })
    }
}

fn at(step: &'static str) -> impl Fn(Errno) -> EnclosureError {
    move |error| EnclosureError { step, error: error.into() }
}

/// Mounts a sysfs of this thread's namespace below `scratch` and returns the folder that holds it as `sys`. `/sys` keeps
/// what else is mounted there, and no other process sees the mount.
fn mount_sysfs(scratch: &Path) -> Result<PathBuf, EnclosureError> {
    let folder = scratch.join("devices");
    let sys = folder.join("sys");
    std::fs::create_dir_all(&sys)
        .map_err(|error| EnclosureError { step: "make a folder for the namespace's /sys", error })?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(at("make the mounts of the sample private"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("sysfs", &sys, "sysfs", flags, None).map_err(at("mount the namespace's /sys"))?;
    Ok(folder)
}

/// A new namespace has a loopback interface that is down.
fn bring_up_loopback() -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // SAFETY: an ifreq is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = *byte as libc::c_char;
    }
    // SAFETY: `request` is a valid ifreq with a terminated name for the length of the call, which writes its flags.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) })?;
    // SAFETY: the call above has set the flags, so that this member of the union is the one in use.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    // SAFETY: as above; the call only reads it.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The child of `command` dies with the thread that spawns it, and doesn't hear a terminal's Ctrl-C: it is told to end by
/// whoever hears it. It leads a process group of its own.
pub fn bind(command: &mut Command) {
    let parent = rustix::process::getpid();
    // SAFETY: the closure runs between fork and exec and makes only system calls, on data that it owns.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            setpgid(None, None)?;
            // The parent may have died before the death signal was asked for.
            if getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH.into()) }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;
    use crate::tune::scratch::Scratch;

    /// None of this is allowed to everybody; the first test says so where it isn't.
    fn try_fresh<T: Send>(with_devices: bool, work: impl FnOnce(&Inside) -> T + Send) -> Option<T> {
        let scratch = Scratch::new(&format!("enclosure-{with_devices}"));
        match (Enclosure::Fresh { with_devices }).run(&Root::system(), &scratch.path(""), work) {
            Ok(done) => Some(done),
            Err(error) => {
                assert_eq!(error.error.kind(), io::ErrorKind::PermissionDenied, "{error}");
                crate::output::complain!("no namespaces here ({error}): this was not tested");
                None
            }
        }
    }

    #[test]
    fn a_fresh_namespace_has_a_loopback_that_is_up_and_none_of_our_ports() {
        let ours = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = ours.local_addr().expect("it is bound");
        let _ = try_fresh(false, |_| {
            let refused = TcpStream::connect(address).expect_err("that is another namespace's");
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            let inner = TcpListener::bind(address).expect("the port is free here");
            TcpStream::connect(address).expect("the loopback interface is up");
            drop(inner);
        });
        TcpStream::connect(address).expect("this thread is where it was");
    }

    #[test]
    fn what_is_set_inside_is_not_set_outside() {
        let somaxconn = "/proc/sys/net/core/somaxconn";
        let rps = "/sys/class/net/lo/queues/rx-0/rps_cpus";
        let root = Root::system();
        let before = (root.read(somaxconn).expect("Linux has it"), root.read(rps).ok());
        let _ = try_fresh(true, |inside| {
            std::fs::write(inside.proc.path(somaxconn), "77").expect("it is ours");
            assert_eq!(inside.proc.read(somaxconn).expect("it is there"), "77");
            // Not every kernel is built with RPS.
            if before.1.is_some() {
                std::fs::write(inside.devices.path(rps), "1").expect("it is ours");
                assert_ne!(inside.devices.read(rps).ok(), before.1);
            }
        });
        assert_eq!((root.read(somaxconn).expect("Linux has it"), root.read(rps).ok()), before);
    }
}
