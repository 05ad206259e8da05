//! Whose values a journal holds: those of one start of the kernel, in one network namespace.

use std::io;

use host::{NetworkNamespace, Root};
use serde::{Deserialize, Serialize};

/// The kernel and the namespace whose values a journal holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Another one after each start of the kernel.
    pub boot_id: String,
    /// The network namespace's.
    pub namespace_inode: u64,
    /// Another one for each namespace of this start of the kernel, where it is known: numbers are used again.
    pub namespace_cookie: Option<u64>,
}

/// How the identity of a journal is to that of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kinship {
    /// The same.
    Same,
    /// The kernel was started again since.
    OtherBoot,
    /// Its namespace is gone, and this one has its number.
    Gone,
    /// Its namespace is another one.
    OtherNamespace,
}

impl Identity {
    /// This kernel's, with `namespace`.
    ///
    /// # Errors
    /// Where `/proc` is not there.
    pub fn of(root: &Root, namespace: &NetworkNamespace) -> io::Result<Self> {
        Ok(Self {
            boot_id: root.read("/proc/sys/kernel/random/boot_id")?,
            namespace_inode: namespace.inode(),
            namespace_cookie: namespace.cookie(),
        })
    }

    /// How this one, a journal's, is to that of a place.
    pub fn kinship(&self, place: &Self) -> Kinship {
        let is_one = || match (self.namespace_cookie, place.namespace_cookie) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => true,
        };
        match () {
            () if self.boot_id != place.boot_id => Kinship::OtherBoot,
            () if self.namespace_inode != place.namespace_inode => Kinship::OtherNamespace,
            () if !is_one() => Kinship::Gone,
            () => Kinship::Same,
        }
    }

    /// Whether the namespace of a journal of this start of the kernel is gone. Never where this user sees too little to tell.
    pub fn is_gone(&self, root: &Root) -> bool {
        match NetworkNamespace::find(root, self.namespace_inode) {
            Some(found) => Self::of(root, &found).is_ok_and(|found| self.kinship(&found) == Kinship::Gone),
            // Others may not look into every process.
            None => rustix::process::geteuid().is_root(),
        }
    }
}
