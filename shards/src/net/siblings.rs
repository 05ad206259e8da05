//! Whether other processes share the port of this one: the kernel's table of listening sockets, `/proc/net/tcp` and `tcp6`
//! (proc_pid_net(5)).
//!
//! Asking by binding, as [`super::bind::is_served_by_somebody`] does, finds one's own sockets too.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};

/// State of a listening socket in the table.
const LISTENS: &str = "0A";

/// Whether more than `own` sockets listen at each of `addresses`. False where the table can't be read.
pub fn listen_at(addresses: &[SocketAddr], own: usize) -> bool {
    addresses.iter().all(|address| {
        let path = if address.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
        File::open(path).is_ok_and(|table| listening(BufReader::new(table), *address) > own)
    })
}

/// Sockets of `table` that listen at `address`.
fn listening(table: impl BufRead, address: SocketAddr) -> usize {
    let due = in_table(address);
    // Those that listen come first (`tcp_get_idx`), so a hundred thousand connections are not read.
    table
        .lines()
        .skip(1)
        .map_while(|line| {
            let line = line.ok()?;
            let mut fields = line.split_whitespace().skip(1);
            let (local, _remote, state) = (fields.next()?, fields.next()?, fields.next()?);
            (state == LISTENS).then(|| usize::from(local == due))
        })
        .sum()
}

/// The address in words of 32 bits, each as this machine stores it, and the port.
fn in_table(address: SocketAddr) -> String {
    let octets = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let word = |octets: &[u8]| {
        octets
            .try_into()
            .map_or_else(|_| String::new(), |octets| format!("{:08X}", u32::from_ne_bytes(octets)))
    };
    let words: String = octets.chunks(4).map(word).collect();
    format!("{words}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::bind::{Sharing, bind};

    #[test]
    fn a_process_tells_its_own_sockets_from_anothers() {
        for ip in ["127.0.0.1", "::1"] {
            let any = SocketAddr::new(ip.parse().expect("an address"), 0);
            let Ok((_first, address)) = bind(any, Sharing::Shared) else {
                eprintln!("not run: {ip} is not there");
                continue;
            };
            assert!(!listen_at(&[address], 1), "{address} is only ours");
            let second = bind(address, Sharing::Shared).expect("the port can be shared");
            assert!(listen_at(&[address], 1), "{address} is another's too");
            drop(second);
            assert!(!listen_at(&[address], 1));
        }
    }

    #[test]
    fn only_sockets_that_listen_are_counted() {
        let table = "  sl  local_address rem_address   st tx_queue\n   0: 0100007F:1F90 00000000:0000 0A 0:0\n   \
                     1: 00000000:1F90 00000000:0000 0A 0:0\n   2: 0100007F:1F90 0100007F:9C40 01 0:0\n";
        assert_eq!(listening(table.as_bytes(), SocketAddr::from(([127, 0, 0, 1], 8080))), 1);
        assert_eq!(listening(table.as_bytes(), SocketAddr::from(([127, 0, 0, 1], 8081))), 0);
    }
}
