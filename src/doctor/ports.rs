//! Ports: those that are listened on, and those that a proxy in front has to connect from.

use std::io;
use std::net::SocketAddr;

use host::{CAP_NET_BIND_SERVICE, Owner, Process, Root, TcpSockets, listening_on, parse_list};
use shards::net::{Sharing, try_bind};

use super::finding::{Count, Finding};
use super::need::Need;

const FREE: &str = "ports.free";
const PRIVILEGED: &str = "ports.privileged";
const EPHEMERAL: &str = "ports.ephemeral";
const UPSTREAM: &str = "ports.upstream";
const TIME_WAIT: &str = "net.time_wait";
/// TCP_TIMEWAIT_LEN of the kernel, in seconds.
const TIME_WAIT_SECONDS: u64 = 60;
/// The start of a wide range that leaves the usual ports of services alone.
const WIDE_RANGE: (u64, u64) = (10_240, 65_535);

/// What is known of them.
pub struct Ports {
    /// Of each address that is to be listened on.
    pub places: Vec<Place>,
    /// `ip_local_port_range`, both ends included.
    pub range: Option<(u64, u64)>,
    /// `ip_local_reserved_ports`, as it is written.
    pub reserved: String,
    /// `ip_unprivileged_port_start`.
    pub unprivileged_from: Option<u64>,
    /// This process may bind below that.
    pub may_bind_all: bool,
    /// Sockets of this namespace.
    pub sockets: Option<TcpSockets>,
    /// `tcp_max_tw_buckets`.
    pub time_wait_max: Option<u64>,
}

/// One address, tried.
pub struct Place {
    /// Which.
    pub address: SocketAddr,
    /// To be had alone.
    pub alone: io::Result<()>,
    /// To be had beside others of this user that share it.
    pub shared: io::Result<()>,
    /// An admin address: one process's own.
    pub is_admin: bool,
    /// Who listens on the port.
    pub owners: Vec<Owner>,
}

impl Place {
    /// Binds it twice and listens never: nobody can connect meanwhile.
    fn read(root: &Root, address: SocketAddr, is_admin: bool) -> Self {
        let (alone, shared) = (try_bind(address, Sharing::Alone), try_bind(address, Sharing::Shared));
        let owners = if alone.is_err() { listening_on(root, address.port()) } else { Vec::new() };
        Self { address, alone, shared, is_admin, owners }
    }

    fn owners(&self) -> String {
        match self.owners.as_slice() {
            [] => "somebody".to_owned(),
            owners => owners.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        }
    }
}

impl Ports {
    /// Of the public addresses `listen` and of `admin`.
    pub fn read(
        root: &Root,
        listen: &[SocketAddr],
        admin: Option<SocketAddr>,
        process: Option<&Process>,
    ) -> Self {
        let range = root.numbers("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let public = listen.iter().map(|address| Place::read(root, *address, false));
        Self {
            places: public.chain(admin.map(|address| Place::read(root, address, true))).collect(),
            range: <[u64; 2]>::try_from(range).ok().map(|[first, last]| (first, last)),
            reserved: root.read("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default(),
            unprivileged_from: root.number("/proc/sys/net/ipv4/ip_unprivileged_port_start"),
            may_bind_all: process.is_some_and(|process| process.can(CAP_NET_BIND_SERVICE)),
            sockets: TcpSockets::read(root),
            time_wait_max: root.number("/proc/sys/net/ipv4/tcp_max_tw_buckets"),
        }
    }

    /// Each address, then what concerns all of them.
    pub fn judge(&self, need: &Need) -> Vec<Finding> {
        let mut findings: Vec<Finding> = Vec::new();
        for place in &self.places {
            findings.push(judge_free(place, need));
            findings.push(self.judge_privileged(place));
            findings.push(self.judge_ephemeral(place));
        }
        findings.extend([self.judge_upstream(need), self.judge_time_wait()]);
        findings
    }

    fn judge_privileged(&self, place: &Place) -> Finding {
        let (address, port) = (place.address, u64::from(place.address.port()));
        let Some(start) = self.unprivileged_from else {
            return Finding::untold(PRIVILEGED, "net.ipv4.ip_unprivileged_port_start");
        };
        if port == 0 || port >= start {
            return Finding::ok(PRIVILEGED, format!("{address}: any user may listen from port {start} on"));
        }
        let found = format!("{address}: ports below {start} need CAP_NET_BIND_SERVICE");
        if self.may_bind_all {
            return Finding::info(
                PRIVILEGED,
                format!("{found}, which this user has; the service's user needs it too"),
            );
        }
        Finding::bad(PRIVILEGED, format!("{found}, which this user has not"))
            .due("the capability, or a lower start of the ports for all")
            .cure(lower_start(place.address))
    }

    fn judge_ephemeral(&self, place: &Place) -> Finding {
        let (address, port) = (place.address, place.address.port());
        let Some((first, last)) = self.range else {
            return Finding::untold(EPHEMERAL, "net.ipv4.ip_local_port_range");
        };
        let range = format!("{first}-{last}, the ports that this host gives its clients");
        if !(first..=last).contains(&u64::from(port)) {
            return Finding::ok(EPHEMERAL, format!("{address} is outside {range}"));
        }
        let found = format!("{address} is inside {range}");
        if self.reserved_ports().contains(&usize::from(port)) {
            return Finding::ok(EPHEMERAL, format!("{found}, and {port} is reserved"));
        }
        let all = match self.reserved.as_str() {
            "" => port.to_string(),
            others => format!("{others},{port}"),
        };
        Finding::warn(EPHEMERAL, found)
            .due(format!("{port} reserved: while the server is down a client may be given it, and the server can't start"))
            .cure(format!("sysctl -w net.ipv4.ip_local_reserved_ports={all}"))
    }

    fn judge_upstream(&self, need: &Need) -> Finding {
        let Some((first, last)) = self.range else {
            return Finding::untold(UPSTREAM, "net.ipv4.ip_local_port_range");
        };
        let is_in_range = |port: &&usize| (first..=last).contains(&(**port as u64));
        let reserved = self.reserved_ports().iter().filter(is_in_range).count() as u64;
        let ports = (last + 1).saturating_sub(first).saturating_sub(reserved);
        let found = format!(
            "a proxy on this host can hold {} connections from one address to one of ours, and open {} a second where it \
             closes first ({TIME_WAIT_SECONDS} s of TIME-WAIT)",
            Count(ports),
            Count(ports / TIME_WAIT_SECONDS),
        );
        if need.connections <= ports {
            return Finding::ok(UPSTREAM, found);
        }
        let addresses = need.connections.div_ceil(ports.max(1));
        let due = format!(
            "{} connections: {} addresses to connect to (--listen) or from (nginx: proxy_bind)",
            Count(need.connections),
            Count(addresses)
        );
        // Only who comes from this very host is bound by it; behind loopback that is everybody.
        let is_local =
            self.places.iter().filter(|place| !place.is_admin).all(|place| place.address.ip().is_loopback());
        let wide = WIDE_RANGE.1 - WIDE_RANGE.0 + 1;
        let finding = if is_local { Finding::warn(UPSTREAM, found) } else { Finding::info(UPSTREAM, found) };
        if ports >= wide {
            return finding.due(due);
        }
        let (first, last) = WIDE_RANGE;
        finding.due(due).cure(format!(
            "sysctl -w net.ipv4.ip_local_port_range=\"{first} {last}\"  # {} ports an address",
            Count(wide)
        ))
    }

    fn judge_time_wait(&self) -> Finding {
        let (Some(sockets), Some(max)) = (self.sockets, self.time_wait_max) else {
            return Finding::untold(TIME_WAIT, "/proc/net/sockstat or tcp_max_tw_buckets");
        };
        let found =
            format!("{} sockets in TIME-WAIT, tcp_max_tw_buckets {}", Count(sockets.time_wait), Count(max));
        if sockets.time_wait.saturating_mul(10) < max.saturating_mul(9) {
            return Finding::ok(TIME_WAIT, found);
        }
        Finding::warn(TIME_WAIT, found)
            .due("less than nine tenths: above the bound connections end without TIME-WAIT")
            .cure(format!("sysctl -w net.ipv4.tcp_max_tw_buckets={}", max.saturating_mul(4)))
    }

    fn reserved_ports(&self) -> Vec<usize> {
        parse_list(&self.reserved).unwrap_or_default()
    }
}

fn lower_start(address: SocketAddr) -> String {
    format!(
        "sysctl -w net.ipv4.ip_unprivileged_port_start={}  # systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE; Docker: \
         --cap-add NET_BIND_SERVICE",
        address.port()
    )
}

fn judge_free(place: &Place, need: &Need) -> Finding {
    let address = place.address;
    match (&place.alone, &place.shared) {
        (Ok(()), _) if address.port() == 0 => {
            Finding::info(FREE, format!("{address}: the kernel chooses a port"))
        }
        (Ok(()), _) => Finding::ok(FREE, format!("{address} is free")),
        (Err(error), Ok(())) if error.kind() == io::ErrorKind::AddrInUse && !place.is_admin => {
            let found = format!("{address} is served by {} already", place.owners());
            if need.has_redis {
                return Finding::info(FREE, format!("{found}, who shares it: another process may join"));
            }
            Finding::bad(FREE, found)
                .due("Redis, through which processes that share a port reach each other's clients, or another port")
                .cure(format!("corecast serve --redis redis://localhost:6379 --listen {address}"))
        }
        (Err(error), _) if error.kind() == io::ErrorKind::AddrInUse => {
            Finding::bad(FREE, format!("{address} is taken by {}", place.owners())).due("free").cure(format!(
                "ss -ltnp 'sport = :{}'  # end that program, or choose another port",
                address.port()
            ))
        }
        (Err(error), _) if error.kind() == io::ErrorKind::PermissionDenied => {
            Finding::bad(FREE, format!("{address} may not be bound: {error}"))
                .due("the right to listen there")
                .cure(lower_start(address))
        }
        (Err(error), _) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            Finding::bad(FREE, format!("{address} is no address of this host"))
                .due("one of its own")
                .cure("ip -brief address")
        }
        (Err(error), _) => Finding::bad(FREE, format!("{address} can't be bound: {error}"))
            .due("free")
            .cure("ip -brief address"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::super::need::tests::need;
    use super::*;

    fn place(address: &str, alone: Option<i32>, shared: Option<i32>) -> Place {
        let result =
            |errno: Option<i32>| errno.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)));
        let address = address.parse().unwrap();
        Place { address, alone: result(alone), shared: result(shared), is_admin: false, owners: Vec::new() }
    }

    fn ports(places: Vec<Place>) -> Ports {
        Ports {
            places,
            range: Some((32_768, 60_999)),
            reserved: String::new(),
            unprivileged_from: Some(1024),
            may_bind_all: false,
            sockets: Some(TcpSockets { time_wait: 42, ..TcpSockets::default() }),
            time_wait_max: Some(1000),
        }
    }

    #[test]
    fn an_address_is_free_or_shared_or_taken_or_none_of_ours() {
        let in_use = Some(libc::EADDRINUSE);
        for (address, alone, shared, has_redis, level) in [
            ("127.0.0.1:8080", None, None, false, Level::Ok),
            ("127.0.0.1:0", None, None, false, Level::Info),
            ("127.0.0.1:8080", in_use, None, true, Level::Info),
            ("127.0.0.1:8080", in_use, None, false, Level::Bad),
            ("127.0.0.1:8080", in_use, in_use, true, Level::Bad),
            ("127.0.0.1:80", Some(libc::EACCES), Some(libc::EACCES), true, Level::Bad),
            ("192.0.2.1:8080", Some(libc::EADDRNOTAVAIL), Some(libc::EADDRNOTAVAIL), true, Level::Bad),
        ] {
            let need = Need { has_redis, ..need(1) };
            let finding = judge_free(&place(address, alone, shared), &need);
            assert_eq!(finding.level, level, "{finding:?}");
        }
        let admin = Place { is_admin: true, ..place("127.0.0.1:9090", in_use, None) };
        assert_eq!(
            judge_free(&admin, &Need { has_redis: true, ..need(1) }).level,
            Level::Bad,
            "it is never shared"
        );
    }

    #[test]
    fn a_port_that_clients_may_be_given_is_to_be_reserved_beside_those_that_are() {
        let judged = |address: &str, reserved: &str| {
            let mut ports = ports(vec![place(address, None, None)]);
            ports.reserved = reserved.to_owned();
            ports.judge_ephemeral(&ports.places[0])
        };
        assert_eq!(judged("0.0.0.0:8080", "").level, Level::Ok);
        assert_eq!(judged("0.0.0.0:40000", "39000-41000").level, Level::Ok);
        let cure = |address, reserved| judged(address, reserved).cure.expect("it warns");
        assert_eq!(cure("0.0.0.0:40000", ""), "sysctl -w net.ipv4.ip_local_reserved_ports=40000");
        assert_eq!(
            cure("0.0.0.0:32768", "9000,9100-9110"),
            "sysctl -w net.ipv4.ip_local_reserved_ports=9000,9100-9110,32768"
        );
        assert_eq!(cure("0.0.0.0:60999", ""), "sysctl -w net.ipv4.ip_local_reserved_ports=60999");
    }

    #[test]
    fn ports_below_the_start_need_a_capability() {
        let judged = |address: &str, may_bind_all| {
            let ports = Ports { may_bind_all, ..ports(vec![place(address, None, None)]) };
            ports.judge_privileged(&ports.places[0]).level
        };
        assert_eq!(judged("0.0.0.0:80", false), Level::Bad);
        assert_eq!(judged("0.0.0.0:80", true), Level::Info);
        assert_eq!(judged("0.0.0.0:1024", false), Level::Ok);
        assert_eq!(judged("0.0.0.0:0", false), Level::Ok);
    }

    #[test]
    fn more_connections_than_ports_are_a_warning_only_where_everybody_comes_from_this_host() {
        let judged = |address: &str, connections| {
            ports(vec![place(address, None, None)]).judge_upstream(&need(connections))
        };
        assert_eq!(judged("127.0.0.1:8080", 28_232).level, Level::Ok);
        let local = judged("127.0.0.1:8080", 28_233);
        assert_eq!(local.level, Level::Warn);
        assert!(local.due.is_some_and(|due| due.contains("2 addresses")));
        assert_eq!(judged("0.0.0.0:8080", 1_000_000).level, Level::Info);
    }

    #[test]
    fn nearly_all_time_wait_places_taken_is_a_warning() {
        let judged = |time_wait| {
            let sockets = Some(TcpSockets { time_wait, ..TcpSockets::default() });
            Ports { sockets, ..ports(Vec::new()) }.judge_time_wait().level
        };
        assert_eq!((judged(899), judged(900)), (Level::Ok, Level::Warn));
    }
}
