//! A seccomp filter like that of container engines: the three io_uring calls answer EPERM, all else is allowed.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// The filter, compiled for this machine.
pub fn without_io_uring() -> BpfProgram {
    // An empty list of rules matches the call whatever its arguments.
    let rules: BTreeMap<i64, Vec<_>> =
        [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register]
            .map(|call| (call, Vec::new()))
            .into();
    let arch = std::env::consts::ARCH.try_into().expect("seccompiler knows x86_64, aarch64 and riscv64");
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32), arch)
        .and_then(TryInto::try_into)
        .expect("the filter is constant and compiles")
}
