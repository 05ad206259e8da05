//! System call filters: what a kernel or a container engine may deny.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// The three io_uring calls answer EPERM, as under the default profiles of container engines; all else is allowed.
pub fn without_io_uring() -> BpfProgram {
    // An empty list of rules matches the call whatever its arguments.
    let rules = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register]
        .map(|call| (call, Vec::new()));
    denying(rules.into(), libc::EPERM)
}

/// Of the three only `io_uring_enter` answers EPERM: a ring can be had, and nothing done with it.
pub fn without_io_uring_enter() -> BpfProgram {
    denying([(libc::SYS_io_uring_enter, Vec::new())].into(), libc::EPERM)
}

/// `socket(AF_INET6, ..)` answers EAFNOSUPPORT, as with `ipv6.disable=1` on the kernel's command line.
pub fn without_ipv6() -> BpfProgram {
    let is_ipv6 = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::AF_INET6 as u64)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .expect("the first argument can be compared");
    denying([(libc::SYS_socket, vec![is_ipv6])].into(), libc::EAFNOSUPPORT)
}

/// Compiled for this machine.
fn denying(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> BpfProgram {
    let arch = std::env::consts::ARCH.try_into().expect("seccompiler knows x86_64, aarch64 and riscv64");
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), arch)
        .and_then(TryInto::try_into)
        .expect("the filter is constant and compiles")
}
