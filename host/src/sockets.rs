//! Who listens on a TCP port.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use crate::Root;

/// A process that holds a listening socket; one that this user may not look into is known by its user only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Where it listens.
    pub address: SocketAddr,
    /// The user who made the socket.
    pub user: u32,
    /// Number and name.
    pub process: Option<(u32, String)>,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some((pid, name)) => write!(f, "{name}, pid {pid}"),
            None => write!(f, "a process of user {}", self.user),
        }
    }
}

/// One socket of `/proc/net/tcp` or `tcp6`.
struct Listener {
    address: SocketAddr,
    user: u32,
    inode: u64,
}

/// Everybody who listens on `port` in this network namespace, each process once.
///
/// Looks through the descriptors of every process that this user may look into, once.
pub fn listening_on(root: &Root, port: u16) -> Vec<Owner> {
    let listeners = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().flat_map(|file| listeners(root, file));
    let mut unknown: Vec<Listener> = listeners.filter(|listener| listener.address.port() == port).collect();
    let mut owners = Vec::new();
    if unknown.is_empty() {
        return owners;
    }
    for pid in root.names("/proc").iter().filter_map(|name| name.parse::<u32>().ok()) {
        let held = sockets_of(root, pid, |inode| unknown.iter().any(|listener| listener.inode == inode));
        if let Some(first) = unknown.iter().find(|listener| held.contains(&listener.inode)) {
            let name = root.read(&format!("/proc/{pid}/comm")).unwrap_or_default();
            owners.push(Owner { address: first.address, user: first.user, process: Some((pid, name)) });
            unknown.retain(|listener| !held.contains(&listener.inode));
        }
    }
    unknown.dedup_by_key(|listener| listener.user);
    owners.extend(unknown.into_iter().map(|listener| Owner {
        address: listener.address,
        user: listener.user,
        process: None,
    }));
    owners
}

/// Those of a file. The kernel lists listeners first (`tcp_seq_start` in net/ipv4/tcp_ipv4.c), and on a busy server a hundred
/// thousand connections after them, for which it goes through its whole table under locks: they are not asked for.
fn listeners(root: &Root, file: &str) -> Vec<Listener> {
    let Ok(file) = File::open(root.path(file)) else { return Vec::new() };
    // Below the head. A line has some 150 bytes.
    let lines = BufReader::with_capacity(1024, file).lines().map_while(Result::ok).skip(1);
    lines.map_while(|line| parse(&line)).collect()
}

/// A line of `/proc/net/tcp`; `None` for the head and for sockets that don't listen.
fn parse(line: &str) -> Option<Listener> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let address = parse_address(fields.get(1)?)?;
    if *fields.get(3)? != LISTEN {
        return None;
    }
    Some(Listener { address, user: fields.get(7)?.parse().ok()?, inode: fields.get(9)?.parse().ok()? })
}

/// `0100007F:1F90`: words of 32 bits in the machine's byte order, and the port.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |from: usize| -> Option<[u8; 4]> {
        Some(u32::from_str_radix(address.get(from..from + 8)?, 16).ok()?.to_ne_bytes())
    };
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (index, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(index * 8)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// Inodes of those sockets of process `pid` that are wanted; none where this user may not look.
fn sockets_of(root: &Root, pid: u32, is_wanted: impl Fn(u64) -> bool) -> Vec<u64> {
    let Ok(descriptors) = fs::read_dir(root.path(&format!("/proc/{pid}/fd"))) else { return Vec::new() };
    let inode = |path: PathBuf| -> Option<u64> {
        let target = fs::read_link(path).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    descriptors.filter_map(|entry| inode(entry.ok()?.path())).filter(|inode| is_wanted(*inode)).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn lines_of_the_kernel_are_read_and_only_listeners_taken() {
        let line = |address: &str, state: &str| {
            format!(
                "   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000   33        0 4711 1 0 100 0 0 10 0"
            )
        };
        let local = u32::from_ne_bytes([127, 0, 0, 1]);
        let listener = parse(&line(&format!("{local:08X}:1F90"), "0A")).expect("it listens");
        assert_eq!(
            (listener.address, listener.user, listener.inode),
            ("127.0.0.1:8080".parse().unwrap(), 33, 4711)
        );
        let six = parse(&line("00000000000000000000000000000000:0050", "0A")).expect("it listens");
        assert_eq!(six.address, "[::]:80".parse().unwrap());
        assert!(parse(&line(&format!("{local:08X}:1F90"), "01")).is_none(), "it is connected");
        for broken in ["", "sl local_address rem_address st", "0: xyz 0 0A", "0: 0100007F:1F90 0 0A 1"] {
            assert!(parse(broken).is_none(), "{broken:?}");
        }
        assert_eq!(parse_address("0100007é:1F90"), None, "not cut inside a character");
    }

    #[test]
    fn what_comes_after_the_first_connection_is_not_read() {
        let folder = std::env::temp_dir().join(format!("host-sockets-{}", std::process::id()));
        fs::create_dir_all(folder.join("proc/net")).expect("a folder");
        let line = |port: u16, state: &str| {
            format!("   0: 00000000:{port:04X} 00000000:0000 {state} 0:0 00:0 0 33 0 4711 1 0 100 0 0 10 0\n")
        };
        let head = "  sl  local_address rem_address   st\n".to_owned();
        let text = [head, line(1, "0A"), line(2, "0A"), line(3, "01"), line(4, "0A")].concat();
        fs::write(folder.join("proc/net/tcp"), text).expect("a file");
        let ports: Vec<u16> =
            listeners(&Root::at(&folder), "/proc/net/tcp").iter().map(|found| found.address.port()).collect();
        fs::remove_dir_all(&folder).expect("it was made");
        assert_eq!(ports, [1, 2]);
    }

    #[test]
    fn a_listener_of_this_process_is_found_with_its_name() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let owners = listening_on(&Root::system(), address.port());
        let own = owners.iter().find(|owner| owner.address == address).expect("it is there");
        let (pid, name) = own.process.as_ref().expect("a process may look into itself");
        assert_eq!(*pid, std::process::id());
        assert!(!name.is_empty());
    }
}
