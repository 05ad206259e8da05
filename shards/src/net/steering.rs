//! Which socket of a group a new connection goes to, by the core that received it (SO_ATTACH_REUSEPORT_CBPF, socket(7)),
//! instead of by a hash of its addresses.
//!
//! The program names sockets by their place in the group, which is the order in which they began to listen. So the group
//! must be one process's (or one parent's), and none of it may be closed while others serve on.

use std::io;
use std::os::fd::BorrowedFd;

use super::server::StartError;
use super::socket::attach_reuseport_program;

/// Steers the group of `member`, whose sockets' shards are pinned to `cores`, in the order of the group. Connections that
/// arrive on another core spread over all by its number. One socket gets them all as it is.
///
/// # Errors
/// [`StartError::Steer`] where two of them share a core: one of the two would get nothing. The kernel's refusal.
pub fn by_core(member: BorrowedFd<'_>, cores: &[usize]) -> Result<(), StartError> {
    if let Some(shared) = cores.iter().enumerate().find(|(index, core)| cores[..*index].contains(core)) {
        return Err(StartError::Steer(format!(
            "found \"cpu\" and several shards on core {}: each needs a core of its own, name more cores or take fewer shards \
             or processes",
            shared.1
        )));
    }
    // Nor is it a group: it was bound alone (EINVAL, `reuseport_attach_prog`).
    if cores.len() == 1 {
        return Ok(());
    }
    attach_reuseport_program(member, &program(cores)).map_err(|error: io::Error| {
        StartError::Steer(format!("the kernel refuses to steer by core: {error}"))
    })
}

/// Returns the place of the core's socket, or the core's number modulo the group's size.
fn program(cores: &[usize]) -> Vec<libc::sock_filter> {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let current_core = (libc::SKF_AD_OFF + libc::SKF_AD_CPU) as u32;
    let mut program = vec![step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, current_core)];
    // 64 processes of 64 shards make 8,195 steps, of which the kernel takes 4,096 (BPF_MAXINSNS): it says so then.
    for (place, core) in cores.iter().enumerate() {
        program.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, *core as u32));
        program.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, place as u32));
    }
    program.push(step(libc::BPF_ALU | BPF_MOD | libc::BPF_K, 0, 0, cores.len() as u32));
    program.push(step(libc::BPF_RET | BPF_A, 0, 0, 0));
    program
}

/// linux/filter.h and linux/bpf_common.h; the crate libc 0.2 lacks these two.
const BPF_MOD: u32 = 0x90;
const BPF_A: u32 = 0x10;

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpStream};
    use std::os::fd::{AsFd, OwnedFd};

    use core_affinity::CoreId;
    use rustix::net::{SocketFlags, accept_with};

    use super::*;
    use crate::net::bind::{Sharing, bind};

    fn group(len: usize) -> (Vec<OwnedFd>, SocketAddr) {
        let (first, address) = bind(([127, 0, 0, 1], 0).into(), Sharing::Shared).expect("a free port");
        let others = (1..len).map(|_| bind(address, Sharing::Shared).expect("the port can be shared").0);
        (std::iter::once(first).chain(others).collect(), address)
    }

    fn queued(socket: &OwnedFd) -> usize {
        std::iter::from_fn(|| accept_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).ok()).count()
    }

    /// On loopback the core that receives is the client's.
    #[test]
    fn a_connection_goes_to_the_socket_of_the_core_that_received_it() {
        let usable: Vec<usize> =
            core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
        let [.., before, last] = usable[..] else {
            eprintln!("not run: one core");
            return;
        };
        // The last core's socket is the first of the group, so that its number is not its place.
        let (sockets, address) = group(2);
        by_core(sockets[0].as_fd(), &[last, before]).expect("the kernel steers");
        let client = std::thread::spawn(move || {
            assert!(core_affinity::set_for_current(CoreId { id: last }));
            (0..20).map(|_| TcpStream::connect(address).expect("it listens")).collect::<Vec<_>>()
        });
        let clients = client.join().expect("it connects");
        assert_eq!([queued(&sockets[0]), queued(&sockets[1])], [20, 0]);
        drop(clients);
    }

    #[test]
    fn cores_of_nobody_reach_some_socket_too() {
        let (sockets, address) = group(2);
        // Cores that this machine doesn't have: everybody is nobody's.
        by_core(sockets[0].as_fd(), &[4000, 4001]).expect("the kernel steers");
        let clients: Vec<_> = (0..20).map(|_| TcpStream::connect(address).expect("it listens")).collect();
        assert_eq!(queued(&sockets[0]) + queued(&sockets[1]), clients.len());
    }

    #[test]
    fn two_shards_on_one_core_are_not_steered() {
        let (sockets, _) = group(3);
        let refused = by_core(sockets[0].as_fd(), &[0, 1, 0]).expect_err("one of them would starve");
        assert!(refused.to_string().contains("several shards on core 0"), "{refused}");
    }
}
