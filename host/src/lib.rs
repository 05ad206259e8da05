//! What the kernel, the container and the machine tell of themselves, below a [`Root`].
//!
//! `corecast doctor` reads it and `corecast tune` changes it. Nothing here decides anything, and nothing of it is on the
//! path of a message. Tests take another root, a folder with the files that a story needs.

mod root;
mod sysctl;

pub use root::Root;
pub use sysctl::{SysctlError, SysctlName};
