//! A Redis behind several servers as text: the URLs of Sentinel and of Cluster.

use std::fmt::{self, Write};

use super::redis_target::{
    PASSWORD_SHOWN, RedisTargetError, bare, database, decode, encode, host_and_port, split_credentials,
};
use super::{BrokerChoice, Config, RedisAddress, RedisServer, RedisTarget, Sentinels, Server, Source};
use crate::limits::{
    DESCRIPTORS_RESERVED_CLUSTER, DESCRIPTORS_RESERVED_PER_SENTINEL, DESCRIPTORS_RESERVED_PER_SERVER,
    REDIS_SERVERS_MAX,
};

/// Sentinel's own port.
const SENTINEL_PORT_DEFAULT: u16 = 26379;
/// Redis' own port.
const PORT_DEFAULT: u16 = 6379;
/// What the one server of `--redis` is called.
const SERVER_NAME_DEFAULT: &str = "redis";

/// Reads what is left of `redis+sentinel://`: credentials of the Redis, the sentinels, the name of its primary, perhaps
/// a database, and the sentinels' own credentials as parameters. Where there is TLS, it is to the sentinels too unless they say no.
pub(super) fn from_sentinel_url(rest: &str, has_tls: bool) -> Result<RedisTarget, RedisTargetError> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    if rest.contains('#') || query.contains(['#', '@']) {
        return Err(RedisTargetError::Reserved);
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (credentials, servers) = split_credentials(authority)?;
    let servers = servers_of(servers, SENTINEL_PORT_DEFAULT)?;
    let (primary, number) = path.split_once('/').unwrap_or((path, ""));
    let primary = decode(primary)?;
    // Sentinel takes these characters in a name and no others (sentinel.conf).
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if primary.is_empty() || !primary.bytes().all(known) {
        return Err(RedisTargetError::PrimaryName(primary));
    }
    let mut sentinels = Sentinels { servers, primary, username: None, password: None, tls: has_tls };
    let mut number = Some(number).filter(|number| !number.is_empty()).map(database).transpose()?;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("db", text)) => number = Some(database(text)?),
            Some(("sentinel_username", text)) => sentinels.username = Some(decode(text)?),
            Some(("sentinel_password", PASSWORD_SHOWN)) => return Err(RedisTargetError::Redacted),
            Some(("sentinel_password", text)) => sentinels.password = Some(decode(text)?),
            Some(("sentinel_tls", _)) if !has_tls => return Err(RedisTargetError::SentinelTlsAlone),
            Some(("sentinel_tls", "yes")) => sentinels.tls = true,
            Some(("sentinel_tls", "no")) => sentinels.tls = false,
            Some(("sentinel_tls", other)) => return Err(RedisTargetError::SentinelTls(other.to_owned())),
            Some((name, _)) => return Err(RedisTargetError::SentinelParameter(name.to_owned())),
            None => return Err(RedisTargetError::SentinelParameter(pair.to_owned())),
        }
    }
    let mut target = bare(RedisAddress::Sentinel(Box::new(sentinels)));
    (target.username, target.password) = credentials;
    target.database = number.unwrap_or(0);
    Ok(target)
}

/// Reads what is left of `redis+cluster://`: credentials, which every node takes, and the nodes to ask first.
pub(super) fn from_cluster_url(rest: &str) -> Result<RedisTarget, RedisTargetError> {
    if rest.contains(['#', '?']) {
        return Err(match rest.split_once('?') {
            Some((before, query)) if !before.contains('#') && !query.contains(['#', '@']) => {
                RedisTargetError::ClusterDatabase
            }
            _ => RedisTargetError::Reserved,
        });
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if path.contains('@') {
        return Err(RedisTargetError::Reserved);
    }
    if !matches!(path, "" | "0") {
        return Err(RedisTargetError::ClusterDatabase);
    }
    let (credentials, servers) = split_credentials(authority)?;
    let mut target = bare(RedisAddress::Cluster(servers_of(servers, PORT_DEFAULT)?));
    (target.username, target.password) = credentials;
    Ok(target)
}

fn servers_of(text: &str, port_default: u16) -> Result<Vec<Server>, RedisTargetError> {
    let server = |text: &str| match text {
        "" => Err(RedisTargetError::Server),
        text => host_and_port(text, port_default).map(|(host, port)| Server { host, port }),
    };
    let servers = text.split(',').map(server).collect::<Result<Vec<_>, _>>()?;
    match servers.len() {
        1..=REDIS_SERVERS_MAX => Ok(servers),
        count => Err(RedisTargetError::Servers(count)),
    }
}

/// The part of a URL behind the credentials.
pub(super) fn show_sentinels(
    f: &mut fmt::Formatter<'_>,
    sentinels: &Sentinels,
    target: &RedisTarget,
) -> fmt::Result {
    show_servers(f, &sentinels.servers)?;
    write!(f, "/{}", sentinels.primary)?;
    if target.database != 0 {
        write!(f, "/{}", target.database)?;
    }
    let mut mark = '?';
    if let Some(username) = &sentinels.username {
        write!(f, "{mark}sentinel_username=")?;
        encode(f, username)?;
        mark = '&';
    }
    if sentinels.password.is_some() {
        write!(f, "{mark}sentinel_password={PASSWORD_SHOWN}")?;
        mark = '&';
    }
    if target.tls.is_some() && !sentinels.tls {
        write!(f, "{mark}sentinel_tls=no")?;
    }
    Ok(())
}

/// As a URL lists them.
pub(super) fn show_servers(f: &mut fmt::Formatter<'_>, servers: &[Server]) -> fmt::Result {
    for (index, server) in servers.iter().enumerate() {
        if index > 0 {
            f.write_char(',')?;
        }
        write!(f, "{server}")?;
    }
    Ok(())
}

impl BrokerChoice {
    /// One server, under the name that it has where nobody gives it one.
    pub fn redis(target: RedisTarget) -> Self {
        let name = SERVER_NAME_DEFAULT.to_owned();
        Self::Redis(vec![RedisServer { name, target, password_variable: None }])
    }

    /// The servers; none with the local broker.
    pub fn servers(&self) -> &[RedisServer] {
        match self {
            Self::Local => &[],
            Self::Redis(servers) => servers,
        }
    }

    /// The one server, where the setting `redis` says all that there is to say of it.
    pub(super) fn single(&self) -> Option<&RedisServer> {
        match self.servers() {
            [server] if server.name == SERVER_NAME_DEFAULT => Some(server),
            _ => None,
        }
    }

    /// Descriptors that it needs beside those of one server.
    pub fn descriptors(&self) -> usize {
        let of_server = |server: &RedisServer| match &server.target.address {
            RedisAddress::Sentinel(sentinels) => sentinels.servers.len() * DESCRIPTORS_RESERVED_PER_SENTINEL,
            RedisAddress::Cluster(_) => DESCRIPTORS_RESERVED_CLUSTER,
            RedisAddress::Tcp { .. } | RedisAddress::Unix(_) => 0,
        };
        let others = self.servers().len().saturating_sub(1) * DESCRIPTORS_RESERVED_PER_SERVER;
        self.servers().iter().map(of_server).sum::<usize>() + others
    }
}

impl Config {
    /// Index of the Redis that `source` is of; with the local broker 0.
    pub fn server_of(&self, source: &Source) -> usize {
        let Some(name) = &source.server else { return 0 };
        self.broker.servers().iter().position(|server| server.name == *name).unwrap_or(0)
    }

    /// What it would be with this server alone, and with the sources that are of it.
    pub fn of_server(&self, index: usize) -> Self {
        let mut alone = self.clone();
        alone.broker = BrokerChoice::Redis(vec![self.broker.servers()[index].clone()]);
        alone.sources.retain(|source| self.server_of(source) == index);
        alone
    }
}

impl fmt::Display for Server {
    /// `host:port`, an IPv6 address in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl fmt::Debug for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sentinels")
            .field("servers", &self.servers)
            .field("primary", &self.primary)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| PASSWORD_SHOWN))
            .field("tls", &self.tls)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> RedisTarget {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn refused(text: &str) -> String {
        text.parse::<RedisTarget>().expect_err(text).to_string()
    }

    fn server(host: &str, port: u16) -> Server {
        Server { host: host.to_owned(), port }
    }

    fn sentinels(target: &RedisTarget) -> &Sentinels {
        match &target.address {
            RedisAddress::Sentinel(sentinels) => sentinels,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sentinels_are_read_with_both_pairs_of_credentials() {
        let target = read("redis+sentinel://app:pa%40ss@a,b:1,[::1],10.0.0.1:26380/orders/3");
        assert_eq!(
            sentinels(&target).servers,
            [server("a", 26379), server("b", 1), server("::1", 26379), server("10.0.0.1", 26380)]
        );
        assert_eq!(sentinels(&target).primary, "orders");
        assert_eq!((target.username.as_deref(), target.password.as_deref()), (Some("app"), Some("pa@ss")));
        assert_eq!((target.database, sentinels(&target).password.as_deref()), (3, None));

        let target =
            read("redis+sentinel://s/mymaster?sentinel_username=watch&sentinel_password=se%26c&db=2");
        assert_eq!(sentinels(&target).username.as_deref(), Some("watch"));
        assert_eq!(sentinels(&target).password.as_deref(), Some("se&c"));
        assert_eq!((target.database, target.password), (2, None));
    }

    #[test]
    fn a_cluster_is_read_with_the_nodes_to_ask_first() {
        let target = read("redis+cluster://:secret@one:7000,two:7001,[fe80::1]/");
        let nodes = vec![server("one", 7000), server("two", 7001), server("fe80::1", 6379)];
        assert_eq!(target.address, RedisAddress::Cluster(nodes));
        assert_eq!(target.password.as_deref(), Some("secret"));
        assert_eq!(read("redis+cluster://one/0"), read("redis+cluster://one:6379"));
    }

    #[test]
    fn tls_is_to_the_sentinels_too_unless_the_url_says_no() {
        let tls_of = |text: &str| {
            let target = read(text);
            let sentinels = sentinels(&target);
            let sentinel = target.of_sentinel(sentinels, &sentinels.servers[0]);
            (target.tls.is_some(), sentinel.tls_name().map(str::to_owned))
        };
        assert_eq!(tls_of("redis+sentinel://a/m"), (false, None));
        assert_eq!(tls_of("rediss+sentinel://a,b/m"), (true, Some("a".to_owned())));
        assert_eq!(tls_of("rediss+sentinel://a/m?sentinel_tls=no"), (true, None));
        let cluster = read("rediss+cluster://ann:secret@one,two");
        let node = cluster.at(RedisAddress::Tcp { host: "10.0.0.1".to_owned(), port: 1 });
        assert_eq!((cluster.tls_name(), node.tls_name()), (Some("one"), Some("10.0.0.1")));
        assert_eq!(node.to_string(), "rediss://ann:***@10.0.0.1:1");
    }

    #[test]
    fn what_is_shown_is_read_as_the_same_and_shows_no_password() {
        for text in [
            "redis+sentinel://a:26379/m",
            "redis+sentinel://ann@a:1,[::1]:2/m.1-x_y/4?sentinel_username=u%2Fx",
            "redis+cluster://ann@a:1,b:2",
            "rediss+sentinel://a:26379/m",
            "rediss+sentinel://a:26379/m?sentinel_username=u&sentinel_tls=no",
            "rediss+cluster://ann@a:1,b:2",
        ] {
            assert_eq!(read(text).to_string(), text);
        }
        let target = read("redis+sentinel://ann:hunter2@a/m?sentinel_password=hunter3");
        assert_eq!(target.to_string(), "redis+sentinel://ann:***@a:26379/m?sentinel_password=***");
        assert!(!format!("{target:?}").contains("hunter"), "{target:?}");
    }

    #[test]
    fn each_fault_has_its_sentence() {
        assert!(refused("redis+sentinel://a:1,b:2").contains("redis+sentinel://HOST:PORT,HOST:PORT/NAME"));
        assert!(refused("redis+sentinel://a/my%20master").contains("found the name \"my master\""));
        assert!(refused("redis+sentinel://a/m/x").contains("found the database \"x\""));
        assert!(refused("redis+sentinel://a/m?quorum=2").contains("found the parameter \"quorum\""));
        assert!(refused("redis+sentinel://a/m?sentinel_password=***").contains("config show"));
        assert!(refused("redis+sentinel://a,,b/m").contains("an empty place in the list of servers"));
        assert!(refused("redis+sentinel://a:0/m").contains("found the port \"0\""));
        assert!(refused("redis+sentinel://a/m?sentinel_tls=yes").contains("due rediss+sentinel://"));
        assert!(refused("rediss+sentinel://a/m?sentinel_tls=on").contains("due yes or no"));
        assert!(refused("redis+cluster://a/1").contains("a cluster has database 0 only"));
        assert!(refused("redis+cluster://a?db=1").contains("a cluster has database 0 only"));
        let many = vec!["h"; REDIS_SERVERS_MAX + 1].join(",");
        assert!(refused(&format!("redis+cluster://{many}")).contains("found 17 servers, due at most 16"));
    }
}
