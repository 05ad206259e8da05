//! The listening sockets of one address (SO_REUSEPORT): bound once, in the order of the shards. Where connections are steered
//! by their place in it none is closed alone, because the kernel moves the last of a group into the place of one that leaves.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::{Shutdown, shutdown};
use socket2::SockRef;

use super::bind::{Sharing, bind, bind_first};
use super::listener::Holder;
use super::passed::{AdminWay, Listening, Passed};
use super::server::StartError;
use super::steering;
use crate::config::{BrokerChoice, Config, Steer};
use crate::limits::BIND_PATIENCE;

/// The sockets of every process that a parent starts; the parent keeps them for as long as it lives.
pub struct Groups {
    /// In the order of the configuration.
    pub listen: Vec<Listening>,
    /// The parent's own.
    pub admin: Option<(OwnedFd, SocketAddr)>,
    /// Shards of each process.
    shards: Vec<usize>,
}

impl Groups {
    /// Binds what `config` names, or takes what was `passed`. `cores` are those of the shards of each process.
    ///
    /// # Errors
    /// [`StartError`]: an address that can't be had, or sockets that can't be steered.
    pub fn bind(config: &Config, passed: Passed, cores: &[Vec<usize>]) -> Result<Self, StartError> {
        let config = &passed.applied_to(config);
        let all = cores.concat();
        let listen = match passed.listen.is_empty() {
            true => listen_all(config, &all, Holder::Parent)?,
            false => not_steered(config).map(|()| passed.listen)?,
        };
        let admin = match (passed.admin, config.admin) {
            (Some(AdminWay::Socket(socket, address)), _) => Some((socket, address)),
            (_, Some(address)) => Some(bind_admin(address)?),
            (_, None) => None,
        };
        Ok(Self { listen, admin, shards: cores.iter().map(Vec::len).collect() })
    }

    /// For each address the sockets of one process: those of its shards, or the one that all share.
    pub fn of(&self, process: usize) -> impl Iterator<Item = (SocketAddr, Holder, &[OwnedFd])> {
        let before: usize = self.shards[..process].iter().sum();
        let own = before..before + self.shards[process];
        self.listen.iter().map(move |listening| {
            let sockets = match listening.holder {
                Holder::Manager => &listening.sockets[..],
                _ => &listening.sockets[own.clone()],
            };
            (listening.address, listening.holder, sockets)
        })
    }

    /// Closes the queues of one process, which nobody serves: who waits there is reset, newcomers go to the other queues of
    /// the port, and where there is none the port refuses. The sockets keep their port, and a process that gets them
    /// listens anew. Those of a service manager belong to everybody and stay as they are.
    pub fn close(&self, process: usize) {
        for (address, holder, sockets) in self.of(process) {
            // A shutdown of one that is closed already would be remembered (`inet_shutdown`), and whoever is accepted after it
            // listens again would be at its end at once.
            let is_open =
                |socket: &&OwnedFd| SockRef::from(*socket).is_listener().is_ok_and(|listens| listens);
            for socket in sockets.iter().filter(|_| holder == Holder::Parent).filter(is_open) {
                match shutdown(socket, Shutdown::Both) {
                    Ok(()) => tracing::debug!(process, %address, "a queue that nobody serves is closed"),
                    Err(error) => tracing::warn!(process, %address, %error, "a queue could not be closed"),
                }
            }
        }
    }
}

/// Binds every address of `config`, a socket for each of `cores`, which are those of the shards.
///
/// # Errors
/// See [`Groups::bind`].
pub fn listen_all(config: &Config, cores: &[usize], holder: Holder) -> Result<Vec<Listening>, StartError> {
    // Without Redis two processes on one port would split its clients, and nobody would hear everybody. A steered group
    // knows its own members only.
    let is_ours_alone = config.broker == BrokerChoice::Local || config.steer == Steer::Cpu;
    let listen = |address: &SocketAddr| {
        let failed = |error| StartError::bind(*address, error, config.steer);
        let (sockets, address) = bind_group(*address, cores.len(), is_ours_alone).map_err(failed)?;
        if config.steer == Steer::Cpu {
            steering::by_core(sockets[0].as_fd(), cores)?;
        }
        Ok(Listening { address, sockets, holder })
    };
    config.listen.iter().map(listen).collect()
}

fn bind_group(
    address: SocketAddr,
    count: usize,
    is_ours_alone: bool,
) -> io::Result<(Vec<OwnedFd>, SocketAddr)> {
    let (first, settled) = patiently(address, || match is_ours_alone {
        true => bind_first(address),
        false => bind(address, Sharing::Shared),
    })?;
    // The kernel takes a port that it chose itself back when the queue is closed (`tcp_set_state`, SOCK_BINDPORT_LOCK), and
    // [`Groups::close`] wants it kept.
    let first = match address.port() == 0 && !is_ours_alone {
        true => bind(settled, Sharing::Shared)?.0,
        false => first,
    };
    let mut sockets = vec![first];
    for _ in 1..count {
        sockets.push(bind(settled, Sharing::Shared)?.0);
    }
    Ok((sockets, settled))
}

/// The admin address is one process's, or one parent's: whoever asks it wants the numbers of that one.
///
/// # Errors
/// [`StartError::Bind`].
pub fn bind_admin(address: SocketAddr) -> Result<(OwnedFd, SocketAddr), StartError> {
    patiently(address, || bind(address, Sharing::Alone))
        .map_err(|error| StartError::bind_admin(address, error))
}

/// Binds again and again while `address` is in use, for [`BIND_PATIENCE`]: by a process that was killed, perhaps, and whose
/// sockets outlive it a moment.
fn patiently<T>(address: SocketAddr, bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let until = Instant::now() + BIND_PATIENCE;
    let mut is_first = true;
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                if std::mem::take(&mut is_first) {
                    tracing::debug!(%address, "the address is in use: it is tried again for {BIND_PATIENCE:?}");
                }
                std::thread::sleep(BIND_POLL);
            }
            bound => return bound,
        }
    }
}

const BIND_POLL: Duration = Duration::from_millis(10);

/// # Errors
/// [`StartError::Steer`] where sockets that somebody else made are to be steered.
pub fn not_steered(config: &Config) -> Result<(), StartError> {
    match config.steer {
        Steer::Hash => Ok(()),
        Steer::Cpu => Err(StartError::Steer(
            "found \"cpu\" and sockets of a service manager, which are one for all shards: nothing is left to steer between; leave \
             it out, or stop the socket unit"
                .to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::TcpStream;

    use rustix::net::{SocketFlags, accept_with};

    use super::*;
    use crate::config::RedisTarget;
    use crate::net::bind::open;

    fn config() -> Config {
        let redis: RedisTarget = "localhost:6379".parse().expect("a target");
        let listen = ["127.0.0.1:0", "[::1]:0"].map(|text| text.parse().expect("an address")).to_vec();
        Config { listen, broker: BrokerChoice::redis(redis), ..Config::default() }
    }

    #[test]
    fn each_process_has_a_socket_for_each_shard_on_every_address() {
        let groups = Groups::bind(&config(), Passed::default(), &[vec![0, 1], vec![2]]).expect("free ports");
        let counts = |process| groups.of(process).map(|(.., sockets)| sockets.len()).collect::<Vec<_>>();
        assert_eq!((counts(0), counts(1)), (vec![2, 2], vec![1, 1]));
        for (address, _, sockets) in groups.of(1) {
            let bound = socket2::SockRef::from(&sockets[0]).local_addr().expect("it is bound");
            assert_eq!(bound.as_socket(), Some(address));
        }
        assert!(groups.listen.iter().all(|listening| listening.address.port() != 0));
    }

    #[test]
    fn newcomers_go_to_the_other_queues_while_one_is_closed_and_to_it_again_once_it_is_opened() {
        let config = Config { listen: vec![([127, 0, 0, 1], 0).into()], ..config() };
        let groups = Groups::bind(&config, Passed::default(), &[vec![0], vec![1]]).expect("a free port");
        let address = groups.listen[0].address;
        let mut clients = Vec::new();
        let mut queued = || {
            clients.extend((0..64).map(|_| TcpStream::connect(address).expect("somebody listens")));
            let accept = |socket: &OwnedFd| {
                accept_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
                    .ok()
                    .map(socket2::Socket::from)
            };
            [0, 1].map(|process| {
                let of = |(.., sockets): (_, _, &[OwnedFd])| -> Vec<socket2::Socket> {
                    sockets.iter().flat_map(|socket| std::iter::from_fn(|| accept(socket))).collect()
                };
                groups.of(process).flat_map(of).collect::<Vec<_>>()
            })
        };
        let [first, second] = queued();
        assert!(!first.is_empty() && !second.is_empty(), "{} {}", first.len(), second.len());
        for process in [0, 1] {
            // Again with each death.
            groups.close(process);
            groups.close(process);
            let accepted = queued();
            assert_eq!((accepted[process].len(), accepted[1 - process].len()), (0, 64));
            for (.., sockets) in groups.of(process) {
                sockets.iter().for_each(|socket| open(socket).expect("its port is its own"));
            }
            let accepted = queued();
            assert!(accepted.iter().all(|some| !some.is_empty()), "the port was lost, or the queue");
            for socket in accepted.iter().flatten() {
                assert!(socket.tcp_nodelay().expect("an option"));
                let nothing =
                    socket.recv(&mut [std::mem::MaybeUninit::uninit()]).map_err(|error| error.kind());
                assert!(matches!(nothing, Err(io::ErrorKind::WouldBlock)), "it is at its end: {nothing:?}");
            }
        }
        groups.close(0);
        groups.close(1);
        TcpStream::connect(address).expect_err("nobody listens");
    }

    #[test]
    fn a_passed_socket_is_everybodys_and_is_not_steered() {
        let passed = || {
            let (socket, address) = bind(([127, 0, 0, 1], 0).into(), Sharing::Alone).expect("a port is free");
            let listening = Listening { address, sockets: vec![socket], holder: Holder::Manager };
            Passed { listen: vec![listening], ..Passed::default() }
        };
        let cores = [vec![0, 1], vec![2]];
        let groups = Groups::bind(&config(), passed(), &cores).expect("nothing is bound");
        for process in 0..2 {
            assert!(
                groups
                    .of(process)
                    .all(|(_, holder, sockets)| (holder, sockets.len()) == (Holder::Manager, 1))
            );
        }
        let steered = Config { steer: Steer::Cpu, ..config() };
        assert!(matches!(Groups::bind(&steered, passed(), &cores), Err(StartError::Steer(_))));
    }

    #[test]
    fn an_address_that_is_left_a_moment_later_is_had_and_one_that_is_not_is_refused() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (socket, address) = bind(any, Sharing::Alone).expect("a port is free");
        let holder = Cell::new(Some(socket));
        let tries = Cell::new(0);
        let bound = patiently(address, || {
            tries.set(tries.get() + 1);
            if tries.get() == 3 {
                holder.take();
            }
            bind_first(address)
        });
        let (_socket, settled) = bound.expect("its holder has left");
        assert_eq!((settled, tries.get()), (address, 3));
        let refused = patiently(address, || bind(address, Sharing::Alone)).expect_err("it is in use");
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn one_shard_is_steered_to_as_it_is() {
        let steered = Config { steer: Steer::Cpu, listen: vec![([127, 0, 0, 1], 0).into()], ..config() };
        assert!(Groups::bind(&steered, Passed::default(), &[vec![0]]).is_ok());
    }

    #[test]
    fn a_steered_group_has_its_port_to_itself() {
        let steered = Config { steer: Steer::Cpu, listen: vec![([127, 0, 0, 1], 0).into()], ..config() };
        let groups = Groups::bind(&steered, Passed::default(), &[vec![0], vec![1]]).expect("a free port");
        let again = Config { listen: vec![groups.listen[0].address], ..steered };
        let Err(refused) = Groups::bind(&again, Passed::default(), &[vec![0]]) else {
            panic!("two groups of one port were steered");
        };
        assert!(refused.to_string().contains("--steer"), "{refused}");
    }
}
