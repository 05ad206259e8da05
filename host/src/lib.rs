//! What the kernel, the container and the machine tell of themselves, below a [`Root`].
//!
//! `corecast doctor` reads it and `corecast tune` changes it. Nothing here decides anything, and nothing of it is on the
//! path of a message. Tests take another root, a folder with the files that a story needs.

mod cgroup;
mod conntrack;
mod cpu;
mod interface;
mod limits;
mod memory;
mod netns;
mod netstat;
mod process;
mod root;
mod sockets;
mod sysctl;

pub use cgroup::{Bound, Cgroup, CpuShare};
pub use conntrack::Conntrack;
pub use cpu::{Core, Cpus, parse_list};
pub use interface::Interface;
pub use limits::{OpenFiles, SystemFiles};
pub use memory::Memory;
pub use netns::NetworkNamespace;
pub use netstat::{ListenCounters, TcpSockets};
pub use process::{CAP_NET_BIND_SERVICE, Process};
pub use root::Root;
pub use sockets::{Owner, listening_on};
pub use sysctl::{SysctlError, SysctlName};
