//! A kernel parameter by its name, as sysctl(8) writes it.

use std::fs;
use std::io;
use std::str::FromStr;

use crate::Root;

/// `net.ipv4.tcp_rmem`: lower-case words between dots. A name that would leave `/proc/sys` can't be made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SysctlName(String);

/// Why a kernel parameter could not be named, read or set.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// See [`SysctlName`].
    #[error("found {found:?}, due the name of a kernel parameter such as net.core.somaxconn")]
    Name {
        /// As given.
        found: String,
    },
    /// This kernel doesn't have it, or not in this namespace.
    #[error(
        "{name} is not there: this kernel is built without it, or it belongs to the host's network namespace"
    )]
    Absent {
        /// Which.
        name: SysctlName,
    },
    /// Reading failed otherwise.
    #[error("can't read {name}: {error}")]
    Read {
        /// Which.
        name: SysctlName,
        /// The kernel's word.
        error: io::Error,
    },
    /// Writing failed.
    #[error("can't set {name} to {value:?}: {error}")]
    Write {
        /// Which.
        name: SysctlName,
        /// What was to be.
        value: String,
        /// The kernel's word.
        error: io::Error,
    },
}

impl SysctlName {
    /// As sysctl(8) writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether each network namespace has its own (`net.`, but for what the kernel keeps once for all: those are absent
    /// in a namespace).
    pub fn is_of_network(&self) -> bool {
        self.0.starts_with("net.")
    }

    fn path(&self) -> String {
        format!("/proc/sys/{}", self.0.replace('.', "/"))
    }

    /// The value, its words separated by single blanks.
    ///
    /// # Errors
    /// [`SysctlError::Absent`], [`SysctlError::Read`].
    pub fn read(&self, root: &Root) -> Result<String, SysctlError> {
        let text = root.read(&self.path()).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => SysctlError::Absent { name: self.clone() },
            _ => SysctlError::Read { name: self.clone(), error },
        })?;
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Sets it.
    ///
    /// # Errors
    /// [`SysctlError::Absent`]; [`SysctlError::Write`] where the kernel refuses the value or this user may not.
    pub fn write(&self, root: &Root, value: &str) -> Result<(), SysctlError> {
        let path = root.path(&self.path());
        if !path.exists() {
            return Err(SysctlError::Absent { name: self.clone() });
        }
        // One write(2), as sysctl(8) does: the kernel takes a list of numbers only whole. The line end makes it one for the
        // empty value, too.
        fs::write(path, format!("{value}\n")).map_err(|error| SysctlError::Write {
            name: self.clone(),
            value: value.to_owned(),
            error,
        })
    }
}

impl FromStr for SysctlName {
    type Err = SysctlError;

    fn from_str(text: &str) -> Result<Self, SysctlError> {
        let is_word = |word: &str| {
            !word.is_empty()
                && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
        };
        match text.contains('.') && text.split('.').all(is_word) {
            true => Ok(Self(text.to_owned())),
            false => Err(SysctlError::Name { found: text.to_owned() }),
        }
    }
}

impl std::fmt::Display for SysctlName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_leaves_its_folder() {
        for name in ["net.core.somaxconn", "fs.nr_open", "net.ipv4.conf.eth-0.rp_filter"] {
            assert_eq!(name.parse::<SysctlName>().expect(name).as_str(), name);
        }
        for name in
            ["", "somaxconn", "net..core", "net.core.", "../etc/passwd", "net/core/somaxconn", "net.a b"]
        {
            assert!(name.parse::<SysctlName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_parameter_is_read_without_its_tabs_and_an_absent_one_is_told_apart() {
        let folder = std::env::temp_dir().join(format!("host-sysctl-{}", std::process::id()));
        let root = Root::at(&folder);
        fs::create_dir_all(folder.join("proc/sys/net/ipv4")).expect("a folder");
        fs::write(folder.join("proc/sys/net/ipv4/tcp_rmem"), "4096\t131072\t6291456\n").expect("a file");
        let name: SysctlName = "net.ipv4.tcp_rmem".parse().expect("a name");
        assert_eq!(name.read(&root).expect("it is there"), "4096 131072 6291456");
        name.write(&root, "1 2 3").expect("it is there");
        assert_eq!(name.read(&root).expect("it is there"), "1 2 3");
        let absent: SysctlName = "net.ipv4.tcp_wmem".parse().expect("a name");
        assert!(matches!(absent.read(&root), Err(SysctlError::Absent { .. })));
        assert!(matches!(absent.write(&root, "1"), Err(SysctlError::Absent { .. })));
        fs::remove_dir_all(folder).expect("it was made");
    }
}
