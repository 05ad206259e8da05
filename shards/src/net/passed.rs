//! Listening sockets that somebody else holds and passes on: a service manager, by socket activation as in
//! sd_listen_fds(3), or a parent process that keeps several of these behind one port.
//!
//! The queue of such a socket outlives this process: whoever waits in it is served by the next one. A manager's socket is
//! one for all shards, which accept from it together, each through a descriptor of its own; a parent has one for each.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, Socket, Type};

use super::listener::Holder;
use super::socket::{adopt, forget_variables};
use crate::config::Config;

/// Number of the first passed descriptor (`SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;
/// Sockets that may be passed. Each costs a descriptor per shard, of `DESCRIPTORS_RESERVED_PER_SHARD`.
const PASSED_MAX: usize = 8;
/// `FileDescriptorName=` of the socket that serves what `--admin` serves.
const ADMIN_NAME: &str = "admin";
const VARIABLES: [&str; 3] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// Why what was passed can't be served.
#[derive(Debug, thiserror::Error)]
pub enum PassedError {
    /// LISTEN_FDS is no number of descriptors.
    #[error(
        "found LISTEN_FDS={found:?}, due the number of passed sockets, at most {PASSED_MAX}: pass fewer, or unset it"
    )]
    Count {
        /// Its value.
        found: String,
    },
    /// A descriptor that LISTEN_FDS promises.
    #[error("descriptor {number} ({name:?}) was passed, but can't be used: {error}")]
    Descriptor {
        /// Which.
        number: i32,
        /// Its name in LISTEN_FDNAMES.
        name: String,
        /// The kernel's word.
        error: io::Error,
    },
    /// It is something else.
    #[error(
        "descriptor {number} ({name:?}) was passed and is {found}, due a listening TCP socket: in the .socket unit \
         ListenStream=PORT or ADDR:PORT, and Accept=no"
    )]
    NotListening {
        /// Which.
        number: i32,
        /// Its name in LISTEN_FDNAMES.
        name: String,
        /// What it is.
        found: &'static str,
    },
    /// Two with the same task.
    #[error("two sockets named \"admin\" were passed, due one: give the other another FileDescriptorName=")]
    TwoAdmins,
}

/// Passed sockets, each with the address it listens on.
#[derive(Debug, Default)]
pub struct Passed {
    /// In the place of [`Config::listen`]; empty when none was passed.
    pub listen: Vec<Listening>,
    /// In the place of [`Config::admin`].
    pub admin: Option<AdminWay>,
    /// Which of its parent's processes this one is; `None` without a parent.
    pub process: Option<u16>,
}

/// The sockets of one address.
#[derive(Debug)]
pub struct Listening {
    /// Where they listen.
    pub address: SocketAddr,
    /// One for each shard, or one for all.
    pub sockets: Vec<OwnedFd>,
    /// Who keeps them when this process is gone.
    pub holder: Holder,
}

/// How requests for the admin address come.
#[derive(Debug)]
pub enum AdminWay {
    /// To a listening socket.
    Socket(OwnedFd, SocketAddr),
    /// Connection by connection out of this Unix socket: a parent listens on the address, and passes on what is for
    /// this process.
    Door(OwnedFd, SocketAddr),
}

impl AdminWay {
    /// What clients of it connect to.
    pub fn address(&self) -> SocketAddr {
        let (Self::Socket(_, address) | Self::Door(_, address)) = self;
        *address
    }
}

impl Passed {
    /// Takes over what LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES promise to this process, and unsets them.
    ///
    /// To be called first of all: the descriptors from 3 on must not be anybody else's, and variables can be unset only
    /// while there is one thread.
    ///
    /// # Errors
    /// [`PassedError`].
    pub fn from_environment() -> Result<Self, PassedError> {
        let [count, process, names] = VARIABLES.map(|name| std::env::var(name).unwrap_or_default());
        forget_variables(&VARIABLES);
        // Meant for a process that started this one.
        if count.is_empty() || process.parse() != Ok(std::process::id()) {
            return Ok(Self::default());
        }
        let passed = count.parse().ok().filter(|passed| *passed <= PASSED_MAX);
        let passed = passed.ok_or(PassedError::Count { found: count })?;
        let mut names = names.split(':');
        let mut this = Self::default();
        for number in (FIRST..).take(passed) {
            let name = names.next().unwrap_or_default().to_owned();
            let socket = adopt(number).map_err(|error| PassedError::Descriptor {
                number,
                name: name.clone(),
                error,
            })?;
            this.add(socket, number, name)?;
        }
        Ok(this)
    }

    fn add(&mut self, socket: OwnedFd, number: i32, name: String) -> Result<(), PassedError> {
        let is_admin = name == ADMIN_NAME;
        let address = address(&socket).map_err(|found| PassedError::NotListening { number, name, found })?;
        match (is_admin, &self.admin) {
            (true, Some(_)) => return Err(PassedError::TwoAdmins),
            (true, None) => self.admin = Some(AdminWay::Socket(socket, address)),
            (false, _) => {
                let sockets = vec![socket];
                self.listen.push(Listening { address, sockets, holder: Holder::Manager });
            }
        }
        Ok(())
    }

    /// `config` with these addresses. A socket belongs to the preset that an address of the same port belonged to.
    pub fn applied_to(&self, config: &Config) -> Config {
        let mut applied = config.clone();
        if !self.listen.is_empty() {
            applied.listen = self.listen.iter().map(|listening| listening.address).collect();
            let owner = |address: &SocketAddr| {
                let place = config.listen.iter().position(|known| known.port() == address.port())?;
                config.listen_presets.get(place).cloned().flatten()
            };
            applied.listen_presets = applied.listen.iter().map(owner).collect();
        }
        applied.admin = self.admin.as_ref().map(AdminWay::address).or(config.admin);
        applied
    }
}

/// The address that `socket` listens on, or what it is instead.
fn address(socket: &OwnedFd) -> Result<SocketAddr, &'static str> {
    let socket = socket2::SockRef::from(socket);
    let kind = |socket: &Socket| Ok::<_, io::Error>((socket.domain()?, socket.r#type()?, socket.protocol()?));
    let tcp = Some(Protocol::TCP);
    match kind(&socket) {
        Ok((Domain::IPV4 | Domain::IPV6, Type::STREAM, protocol)) if protocol == tcp => {}
        Ok((Domain::UNIX, ..)) => return Err("a Unix socket"),
        Ok((_, Type::DGRAM, _)) => return Err("a datagram socket"),
        Ok(_) => return Err("a socket of another kind"),
        Err(_) => return Err("no socket"),
    }
    match (socket.is_listener(), socket.local_addr().ok().and_then(|address| address.as_socket())) {
        (Ok(true), Some(address)) => Ok(address),
        _ => Err("a TCP socket that doesn't listen"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn passed(ports: &[u16]) -> Passed {
        let listening = |port: &u16| Listening {
            address: SocketAddr::from(([127, 0, 0, 1], *port)),
            sockets: vec![TcpListener::bind("127.0.0.1:0").expect("a free port").into()],
            holder: Holder::Manager,
        };
        Passed { listen: ports.iter().map(listening).collect(), ..Passed::default() }
    }

    #[test]
    fn a_passed_socket_belongs_to_the_preset_with_its_port() {
        let address = |port| SocketAddr::from(([0, 0, 0, 0], port));
        let presets = vec![Some("a".to_owned()), Some("b".to_owned())];
        let config =
            Config { listen: vec![address(1), address(2)], listen_presets: presets, ..Config::default() };
        let applied = passed(&[2, 3, 2]).applied_to(&config);
        assert_eq!(applied.listen_presets, [Some("b".to_owned()), None, Some("b".to_owned())]);
        assert_eq!(applied.listen.len(), 3);
        assert_eq!(passed(&[]).applied_to(&config), config, "nothing passed, nothing changed");
    }

    #[test]
    fn what_is_no_listening_tcp_socket_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let there = listener.local_addr().expect("it is bound");
        let connected = TcpStream::connect(there).expect("it listens");
        let datagram = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let directory = std::env::temp_dir().join(format!("corecast-passed-{}", std::process::id()));
        let unix = UnixListener::bind(&directory).expect("a free path");
        std::fs::remove_file(&directory).expect("it was made");
        let file = std::fs::File::open("/dev/null").expect("it is everywhere");
        assert_eq!(address(&listener.into()), Ok(there));
        assert_eq!(address(&connected.into()), Err("a TCP socket that doesn't listen"));
        assert_eq!(address(&datagram.into()), Err("a datagram socket"));
        assert_eq!(address(&unix.into()), Err("a Unix socket"));
        assert_eq!(address(&file.into()), Err("no socket"));
    }

    #[test]
    fn one_admin_socket_is_enough() {
        let socket = || TcpListener::bind("127.0.0.1:0").expect("a free port").into();
        let mut passed = Passed::default();
        assert!(passed.add(socket(), 3, "corecast.socket".to_owned()).is_ok());
        assert!(passed.add(socket(), 4, "admin".to_owned()).is_ok());
        assert_eq!((passed.listen.len(), passed.admin.is_some()), (1, true));
        let second = passed.add(socket(), 5, "admin".to_owned());
        assert!(matches!(second, Err(PassedError::TwoAdmins)), "{second:?}");
    }
}
