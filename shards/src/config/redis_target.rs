//! A Redis server as text: URL, `HOST:PORT` or socket path.

use std::fmt::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;

use super::redis_servers::{from_cluster_url, from_sentinel_url, show_sentinels, show_servers};
use super::{RedisAddress, RedisTarget, RedisTls, Sentinels, Server};
use crate::limits::REDIS_SERVERS_MAX;

/// Redis' own port.
const PORT_DEFAULT: u16 = 6379;
/// What `config show` prints for a password.
pub(super) const PASSWORD_SHOWN: &str = "***";

/// Why a text names no Redis server. The text itself is never part of it: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisTargetError {
    /// Another scheme.
    #[error(
        "found the scheme {0:?}, due redis://, redis+sentinel://, redis+cluster://, the same with rediss for TLS, unix://, redis+unix://, \
         or HOST:PORT without a scheme"
    )]
    Scheme(String),
    /// Nothing at all.
    #[error("found nothing, due HOST:PORT or a URL, for example redis://localhost:6379")]
    Empty,
    /// Not a name or address.
    #[error("found the host {0:?}, due a name, an IPv4 address, or an IPv6 address in brackets")]
    Host(String),
    /// Not 1 to 65,535.
    #[error("found the port {0:?}, due a number from 1 to 65535")]
    Port(String),
    /// Not a number.
    #[error("found the database {0:?}, due a number, for example redis://localhost:6379/3")]
    Database(String),
    /// A query parameter other than `db`.
    #[error("found the parameter {0:?}, due only ?db=NUMBER")]
    Parameter(String),
    /// No path in a unix URL.
    #[error("found no socket path, due an absolute one, for example unix:///run/redis.sock")]
    SocketPath,
    /// A percent sign without two hexadecimal digits, or bytes that aren't UTF-8, in user or password.
    #[error(
        "user or password are not percent-encoded UTF-8: write '%' as %25, '@' as %40, ':' as %3A, '/' as %2F"
    )]
    Encoding,
    /// A bare `#`, or a bare `/` or `?` before the `@`.
    #[error("user or password hold a bare '#', '/' or '?': write them as %23, %2F, %3F")]
    Reserved,
    /// Not a name that Sentinel takes.
    #[error(
        "found the name {0:?} of the primary, due letters, digits, '.', '-' and '_': \
         redis+sentinel://HOST:PORT,HOST:PORT/NAME, as `sentinel monitor NAME` says it"
    )]
    PrimaryName(String),
    /// A query parameter of a Sentinel URL.
    #[error("found the parameter {0:?}, due db, sentinel_username, sentinel_password or sentinel_tls")]
    SentinelParameter(String),
    /// Neither of the two words.
    #[error("found sentinel_tls={0}, due yes or no")]
    SentinelTls(String),
    /// TLS to sentinels alone.
    #[error(
        "found sentinel_tls beside redis+sentinel://, due rediss+sentinel://, which is TLS to the Redis, and without \
         sentinel_tls=no to its sentinels too"
    )]
    SentinelTlsAlone,
    /// Two commas in a row, or none where a server is due.
    #[error("found an empty place in the list of servers, due HOST:PORT between commas")]
    Server,
    /// Too many.
    #[error("found {0} servers, due at most {REDIS_SERVERS_MAX}: name a few, they know the others")]
    Servers(usize),
    /// A database in a cluster.
    #[error("a cluster has database 0 only and takes no parameters: leave out what follows its nodes")]
    ClusterDatabase,
    /// The password is what `config show` prints instead of one.
    #[error(
        "the password is \"***\", which `corecast config show` prints instead of the real one: put that there"
    )]
    Redacted,
}

impl FromStr for RedisTarget {
    type Err = RedisTargetError;

    /// Reads the forms that [`RedisTarget`] lists; a host alone means port 6379, no host means localhost.
    fn from_str(text: &str) -> Result<Self, RedisTargetError> {
        if text.is_empty() {
            return Err(RedisTargetError::Empty);
        }
        // Before a scheme's "://" stand letters; anything else may be a password that holds one.
        let scheme = |scheme: &str| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+');
        match text.split_once("://").filter(|(before, _)| scheme(before)) {
            Some(("redis", rest)) => from_url(rest),
            Some(("rediss", rest)) => from_url(rest).map(sealed),
            Some(("unix" | "redis+unix", rest)) => from_unix_url(rest),
            Some(("redis+sentinel", rest)) => from_sentinel_url(rest, false),
            Some(("rediss+sentinel", rest)) => from_sentinel_url(rest, true).map(sealed),
            Some(("redis+cluster", rest)) => from_cluster_url(rest),
            Some(("rediss+cluster", rest)) => from_cluster_url(rest).map(sealed),
            Some((scheme, _)) => Err(RedisTargetError::Scheme(scheme.to_owned())),
            None => {
                let (host, port) = host_and_port(text, PORT_DEFAULT)?;
                Ok(bare(RedisAddress::Tcp { host, port }))
            }
        }
    }
}

impl fmt::Display for RedisTarget {
    /// The URL, its password as `***`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (&self.address, &self.tls) {
            (RedisAddress::Tcp { .. }, None) => "redis://",
            (RedisAddress::Tcp { .. }, Some(_)) => "rediss://",
            (RedisAddress::Unix(_), _) => "unix://",
            (RedisAddress::Sentinel(_), None) => "redis+sentinel://",
            (RedisAddress::Sentinel(_), Some(_)) => "rediss+sentinel://",
            (RedisAddress::Cluster(_), None) => "redis+cluster://",
            (RedisAddress::Cluster(_), Some(_)) => "rediss+cluster://",
        })?;
        if self.username.is_some() || self.password.is_some() {
            encode(f, self.username.as_deref().unwrap_or_default())?;
            if self.password.is_some() {
                write!(f, ":{PASSWORD_SHOWN}")?;
            }
            f.write_char('@')?;
        }
        match &self.address {
            RedisAddress::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}")?,
            RedisAddress::Tcp { host, port } => write!(f, "{host}:{port}")?,
            RedisAddress::Unix(path) => write!(f, "{}", path.display())?,
            RedisAddress::Sentinel(sentinels) => return show_sentinels(f, sentinels, self),
            RedisAddress::Cluster(nodes) => return show_servers(f, nodes),
        }
        match (&self.address, self.database) {
            (_, 0) => Ok(()),
            (RedisAddress::Unix(_), database) => write!(f, "?db={database}"),
            (_, database) => write!(f, "/{database}"),
        }
    }
}

/// Reads what is left of `redis://`.
fn from_url(rest: &str) -> Result<RedisTarget, RedisTargetError> {
    let (rest, query) = split_query(rest)?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if path.contains('@') {
        return Err(RedisTargetError::Reserved);
    }
    let (credentials, address) = split_credentials(authority)?;
    let (host, port) = host_and_port(address, PORT_DEFAULT)?;
    let mut target = bare(RedisAddress::Tcp { host, port });
    (target.username, target.password) = credentials;
    if !path.is_empty() {
        target.database = database(path)?;
    }
    if let Some(number) = query {
        target.database = number;
    }
    Ok(target)
}

/// Reads what is left of `unix://`: perhaps credentials, then an absolute path.
fn from_unix_url(rest: &str) -> Result<RedisTarget, RedisTargetError> {
    let (rest, query) = split_query(rest)?;
    let slash = rest.find('/').ok_or(RedisTargetError::SocketPath)?;
    let (authority, path) = rest.split_at(slash);
    if path.len() < 2 || !(authority.is_empty() || authority.ends_with('@')) {
        return Err(RedisTargetError::SocketPath);
    }
    let mut target = bare(RedisAddress::Unix(PathBuf::from(path)));
    (target.username, target.password) = split_credentials(authority)?.0;
    target.database = query.unwrap_or(0);
    Ok(target)
}

pub(super) fn bare(address: RedisAddress) -> RedisTarget {
    RedisTarget { address, username: None, password: None, database: 0, tls: None }
}

fn sealed(target: RedisTarget) -> RedisTarget {
    RedisTarget { tls: Some(RedisTls::default()), ..target }
}

impl From<RedisAddress> for RedisTarget {
    /// Without user, password, database and TLS.
    fn from(address: RedisAddress) -> Self {
        bare(address)
    }
}

impl RedisTarget {
    /// The name that its certificate must have; `None` without TLS. Of several servers the first one's.
    pub fn tls_name(&self) -> Option<&str> {
        let RedisTls { server_name, .. } = self.tls.as_ref()?;
        let host = match &self.address {
            RedisAddress::Tcp { host, .. } => Some(host),
            RedisAddress::Unix(_) => None,
            RedisAddress::Sentinel(sentinels) => sentinels.servers.first().map(|server| &server.host),
            RedisAddress::Cluster(nodes) => nodes.first().map(|node| &node.host),
        };
        server_name.as_ref().or(host).map(String::as_str)
    }

    /// One of its servers, reached as it is: the primary that its sentinels name, or a node of its cluster.
    pub fn at(&self, address: RedisAddress) -> Self {
        Self { address, ..self.clone() }
    }

    /// One of `sentinels`, which are this target's: without user, password and database, which are the Redis' own.
    pub fn of_sentinel(&self, sentinels: &Sentinels, server: &Server) -> Self {
        let address = RedisAddress::Tcp { host: server.host.clone(), port: server.port };
        let tls = self.tls.clone().filter(|_| sentinels.tls);
        Self { tls, ..bare(address) }
    }
}

/// Takes `?db=N` off the end.
fn split_query(text: &str) -> Result<(&str, Option<u32>), RedisTargetError> {
    if text.contains('#') {
        return Err(RedisTargetError::Reserved);
    }
    let Some((rest, query)) = text.split_once('?') else { return Ok((text, None)) };
    if query.contains('@') {
        return Err(RedisTargetError::Reserved);
    }
    match query.split_once('=') {
        Some(("db", number)) => Ok((rest, Some(database(number)?))),
        Some((name, _)) => Err(RedisTargetError::Parameter(name.to_owned())),
        None => Err(RedisTargetError::Parameter(query.to_owned())),
    }
}

type Credentials = (Option<String>, Option<String>);

/// Takes `user:password@` off the front, up to the last `@`.
pub(super) fn split_credentials(authority: &str) -> Result<(Credentials, &str), RedisTargetError> {
    let Some((credentials, address)) = authority.rsplit_once('@') else {
        return Ok(((None, None), authority));
    };
    let (user, password) = match credentials.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (credentials, None),
    };
    if password == Some(PASSWORD_SHOWN) {
        return Err(RedisTargetError::Redacted);
    }
    let user = decode(user)?;
    let password = password.map(decode).transpose()?;
    let given = |text: &String| !text.is_empty();
    Ok(((Some(user).filter(given), password.filter(given)), address))
}

pub(super) fn host_and_port(text: &str, port_default: u16) -> Result<(String, u16), RedisTargetError> {
    let bad_host = |host: &str| RedisTargetError::Host(host.to_owned());
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or_else(|| bad_host(text))?;
        host.parse::<std::net::Ipv6Addr>().map_err(|_| bad_host(text))?;
        (host, after.strip_prefix(':').or(after.is_empty().then_some("")).ok_or_else(|| bad_host(text))?)
    } else if text.parse::<std::net::Ipv6Addr>().is_ok() {
        (text, "")
    } else {
        let (host, port) = text.split_once(':').unwrap_or((text, ""));
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if !host.bytes().all(known) {
            // The text before a bare '@' may be a password.
            return Err(bad_host(host.rsplit_once('@').map_or(host, |(_, host)| host)));
        }
        (if host.is_empty() { "localhost" } else { host }, port)
    };
    if port.is_empty() {
        return Ok((host.to_owned(), port_default));
    }
    let number = port.parse().ok().filter(|port| *port > 0 && !text.contains(":+"));
    // Of `redis.example:pass@host` without a scheme only the end is safe to show.
    let shown = port.rsplit_once('@').map_or(port, |(_, rest)| rest);
    number.map(|number| (host.to_owned(), number)).ok_or_else(|| RedisTargetError::Port(shown.to_owned()))
}

pub(super) fn database(text: &str) -> Result<u32, RedisTargetError> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| RedisTargetError::Database(text.to_owned()))
}

pub(super) fn decode(text: &str) -> Result<String, RedisTargetError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    let hex = |digit: Option<u8>| digit.and_then(|digit| char::from(digit).to_digit(16));
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (Some(high), Some(low)) = (hex(rest.next()), hex(rest.next())) else {
            return Err(RedisTargetError::Encoding);
        };
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| RedisTargetError::Encoding)?);
    }
    String::from_utf8(bytes).map_err(|_| RedisTargetError::Encoding)
}

pub(super) fn encode(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            f.write_char(char::from(byte))?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp(host: &str, port: u16) -> RedisTarget {
        bare(RedisAddress::Tcp { host: host.to_owned(), port })
    }

    fn read(text: &str) -> RedisTarget {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn refused(text: &str) -> String {
        text.parse::<RedisTarget>().expect_err(text).to_string()
    }

    #[test]
    fn every_form_is_read() {
        assert_eq!(read("localhost:6379"), tcp("localhost", 6379));
        assert_eq!(read("redis"), tcp("redis", 6379));
        assert_eq!(read(":7000"), tcp("localhost", 7000));
        assert_eq!(read("[::1]:7000"), tcp("::1", 7000));
        assert_eq!(read("::1"), tcp("::1", 6379));
        assert_eq!(read("redis://"), tcp("localhost", 6379));
        assert_eq!(read("redis://[fe80::1]"), tcp("fe80::1", 6379));
        assert_eq!(read("redis://10.0.0.1:7000/"), tcp("10.0.0.1", 7000));
        assert_eq!(read("redis://h/3"), RedisTarget { database: 3, ..tcp("h", 6379) });
        assert_eq!(read("redis://h?db=4"), RedisTarget { database: 4, ..tcp("h", 6379) });
        let sealed = RedisTarget { tls: Some(RedisTls::default()), ..tcp("h", 6380) };
        assert_eq!(read("rediss://h:6380"), sealed);
        assert_eq!(sealed.to_string(), "rediss://h:6380");
        assert_eq!((sealed.tls_name(), tcp("h", 6379).tls_name()), (Some("h"), None));
        let unix = bare(RedisAddress::Unix("/run/redis.sock".into()));
        assert_eq!(read("unix:///run/redis.sock"), unix);
        assert_eq!(read("redis+unix:///run/redis.sock?db=2"), RedisTarget { database: 2, ..unix.clone() });
        assert_eq!(
            read("unix://:pw@/run/redis.sock"),
            RedisTarget { password: Some("pw".to_owned()), ..unix }
        );
    }

    #[test]
    fn user_and_password_are_percent_decoded() {
        let target = read("redis://us%3Aer:pa%40ss%2F%25@host:6380/3");
        assert_eq!(target.username.as_deref(), Some("us:er"));
        assert_eq!(target.password.as_deref(), Some("pa@ss/%"));
        assert_eq!(target.database, 3);
        assert_eq!(
            read("redis://:p@ss@host").password.as_deref(),
            Some("p@ss"),
            "the last @ ends the password"
        );
        assert_eq!(read("redis://app@host").username.as_deref(), Some("app"));
        assert_eq!(read("redis://:@host"), tcp("host", 6379));
    }

    #[test]
    fn each_fault_has_its_sentence() {
        assert!(refused("http://h").contains("found the scheme \"http\", due redis://"));
        assert!(refused("tcp://10.0.0.1:6379").contains("found the scheme \"tcp\""));
        assert!(refused("").contains("due HOST:PORT or a URL"));
        assert!(refused("redis://h:0").contains("found the port \"0\", due a number from 1 to 65535"));
        assert!(refused("h:port").contains("found the port \"port\""));
        assert!(refused("redis://h/x").contains("found the database \"x\", due a number"));
        assert!(refused("redis://h?timeout=3").contains("found the parameter \"timeout\", due only ?db="));
        assert!(refused("unix://run/redis.sock").contains("due an absolute one"));
        assert!(refused("redis://u:%zz@h").contains("write '%' as %25"));
        assert!(refused("redis://u:a/b@h").contains("write them as"));
        assert!(refused("redis://u:a#b@h").contains("%23"));
        assert!(refused("redis://u:***@h").contains("config show"));
        assert!(refused("a b").contains("found the host \"a b\""));
    }

    #[test]
    fn a_password_never_shows() {
        let target = read("redis://app:hunter2@host/1");
        assert_eq!(target.to_string(), "redis://app:***@host:6379/1");
        assert!(!format!("{target:?}").contains("hunter2"));
        for wrong in [
            "redis://app:hunter2@host:x",
            "app:hunter2@host:1",
            "hunter2@host",
            "redis://:hunter2@h/x",
            "redis://:hunter2/@h",
            "app:hunter2://x@h",
        ] {
            assert!(!refused(wrong).contains("hunter2"), "{}", refused(wrong));
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in "(redis://|rediss://|unix://|)[a-z0-9:@/%?=#.\\[\\]]{0,40}") {
            if let Ok(target) = text.parse::<RedisTarget>() {
                let shown = RedisTarget { password: None, ..target };
                prop_assert_eq!(shown.to_string().parse::<RedisTarget>(), Ok(shown));
            }
        }
    }
}
