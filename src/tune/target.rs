//! A value of the running kernel that can be read and set: a sysctl, or a file below `/sys`.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::str::FromStr;

use host::{Root, SysctlError, SysctlName};
use serde::{Deserialize, Serialize};

/// Which value. As text `net.core.somaxconn` or `/sys/kernel/mm/transparent_hugepage/enabled`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// By name.
    Sysctl(SysctlName),
    /// By path.
    File(SysFile),
}

/// An absolute path below `/sys`, without `..`. A part may be a pattern where [`SysFile::matching`] is asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SysFile(String);

/// A mount of sysfs shows here the devices of the namespace it was made in.
pub const NETWORK_DEVICES: &str = "/sys/class/net/";

/// Why a value could not be named, read or set.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Of a sysctl.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// Neither name nor path.
    #[error("found {found:?}, due the name of a kernel parameter, or a path below /sys")]
    Name {
        /// As given.
        found: String,
    },
    /// This machine has no such file.
    #[error("{path} is not there: this kernel or this machine doesn't have it")]
    Absent {
        /// Which.
        path: String,
    },
    /// Reading or writing failed otherwise.
    #[error("can't {verb} {path}: {error}")]
    File {
        /// Read or set.
        verb: &'static str,
        /// Which.
        path: String,
        /// The kernel's word.
        error: io::Error,
    },
}

impl TargetError {
    /// Whether this kernel, machine or namespace doesn't have the value at all.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Absent { .. } | Self::Sysctl(SysctlError::Absent { .. }))
    }

    /// What the kernel said, where it was asked.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::File { error, .. }
            | Self::Sysctl(SysctlError::Read { error, .. } | SysctlError::Write { error, .. }) => Some(error),
            _ => None,
        }
    }
}

impl Target {
    /// Whether each network namespace may have its own.
    pub fn is_of_network(&self) -> bool {
        match self {
            Self::Sysctl(name) => name.is_of_network(),
            Self::File(file) => file.0.starts_with(NETWORK_DEVICES),
        }
    }

    /// The value, its words separated by single blanks; of a choice (`always [madvise] never`) the chosen word.
    ///
    /// # Errors
    /// [`TargetError`], see [`TargetError::is_absence`].
    pub fn read(&self, root: &Root) -> Result<String, TargetError> {
        match self {
            Self::Sysctl(name) => Ok(name.read(root)?),
            Self::File(file) => {
                let text = root.read(&file.0).map_err(|error| file.error("read", error))?;
                Ok(chosen(&text).map_or_else(|| single_spaced(&text), str::to_owned))
            }
        }
    }

    /// Sets it, by one write, with a line end behind it: without it the empty value would be none.
    ///
    /// # Errors
    /// [`TargetError`], where the kernel refuses the value, too.
    pub fn write(&self, root: &Root, value: &str) -> Result<(), TargetError> {
        match self {
            Self::Sysctl(name) => Ok(name.write(root, value)?),
            Self::File(file) => {
                let opened = OpenOptions::new().write(true).truncate(true).open(root.path(&file.0));
                let written = opened.and_then(|mut opened| opened.write_all(format!("{value}\n").as_bytes()));
                written.map_err(|error| file.error("set", error))
            }
        }
    }
}

impl SysFile {
    /// The files that this pattern means: `*` stands for any characters within one part of the path. In order.
    pub fn matching(&self, root: &Root) -> Vec<Self> {
        let mut found = vec![String::new()];
        for part in self.0.split('/').skip(1) {
            found = match part.contains('*') {
                false => found.into_iter().map(|folder| format!("{folder}/{part}")).collect(),
                true => found.iter().flat_map(|folder| entries(root, folder, part)).collect(),
            };
        }
        found.retain(|path| root.path(path).exists());
        found.sort();
        found.into_iter().map(Self).collect()
    }

    fn error(&self, verb: &'static str, error: io::Error) -> TargetError {
        let path = self.0.clone();
        match error.kind() {
            io::ErrorKind::NotFound => TargetError::Absent { path },
            _ => TargetError::File { verb, path, error },
        }
    }
}

/// What in `folder` fits `pattern`; nothing where the folder is not there.
fn entries(root: &Root, folder: &str, pattern: &str) -> Vec<String> {
    let listed = fs::read_dir(root.path(folder)).into_iter().flatten().flatten();
    let names = listed.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| fits(pattern, name)).map(|name| format!("{folder}/{name}")).collect()
}

fn fits(pattern: &str, name: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(before) else { return false };
    rest.char_indices().map(|(at, _)| at).chain([rest.len()]).any(|at| fits(after, &rest[at..]))
}

/// The word in brackets.
fn chosen(text: &str) -> Option<&str> {
    text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
}

fn single_spaced(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl FromStr for SysFile {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let is_part = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(char::is_whitespace);
        match text.strip_prefix("/sys/") {
            Some(rest) if rest.split('/').all(is_part) => Ok(Self(text.to_owned())),
            _ => Err(TargetError::Name { found: text.to_owned() }),
        }
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        match text.starts_with('/') {
            true => text.parse().map(Self::File),
            false => text.parse().map(Self::Sysctl).map_err(|_| TargetError::Name { found: text.to_owned() }),
        }
    }
}

impl TryFrom<String> for Target {
    type Error = TargetError;

    fn try_from(text: String) -> Result<Self, TargetError> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl(name) => name.fmt(f),
            Self::File(file) => file.fmt(f),
        }
    }
}

impl fmt::Display for SysFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::scratch::Scratch;

    #[test]
    fn a_path_never_leaves_sys() {
        for text in
            ["/sys/../etc/passwd", "/etc/passwd", "/sys/", "/sys//kernel", "sys/kernel", "", "somaxconn"]
        {
            assert!(text.parse::<Target>().is_err(), "{text:?}");
        }
        for text in ["/sys/kernel/mm/transparent_hugepage/enabled", "net.core.somaxconn"] {
            assert_eq!(text.parse::<Target>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn of_a_choice_the_chosen_word_is_the_value() {
        let scratch = Scratch::new("target-choice");
        let target: Target = "/sys/kernel/mm/transparent_hugepage/enabled".parse().expect("a path");
        let read = || target.read(scratch.root());
        assert!(read().expect_err("it is not there").is_absence());
        assert!(target.write(scratch.root(), "x").expect_err("it is not there").is_absence());
        scratch.write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
        assert_eq!(read().expect("it is there"), "madvise");
        target.write(scratch.root(), "never").expect("it is there");
        assert_eq!(read().expect("it is there"), "never");
    }

    #[test]
    fn a_pattern_means_every_file_that_is_there() {
        let scratch = Scratch::new("target-pattern");
        for core in ["cpu0", "cpu1", "cpu10"] {
            scratch.write(&format!("sys/devices/system/cpu/{core}/cpufreq/scaling_governor"), "powersave\n");
        }
        // No governor below it.
        scratch.write("sys/devices/system/cpu/cpuidle/current_driver", "none\n");
        let pattern: SysFile =
            "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor".parse().expect("a path");
        let found = pattern.matching(scratch.root());
        let due = ["cpu0", "cpu1", "cpu10"]
            .map(|core| format!("/sys/devices/system/cpu/{core}/cpufreq/scaling_governor"));
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), due);
        let nowhere: SysFile = "/sys/class/net/*/queues/rx-*/rps_cpus".parse().expect("a path");
        assert!(nowhere.matching(scratch.root()).is_empty());
    }

    #[test]
    fn stars_stand_for_any_characters() {
        for (pattern, name, due) in [
            ("rx-*", "rx-0", true),
            ("rx-*", "tx-0", false),
            ("*", "", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b", "ac", false),
        ] {
            assert_eq!(fits(pattern, name), due, "{pattern} {name}");
        }
    }
}
