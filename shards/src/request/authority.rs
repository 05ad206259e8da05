//! `host` or `host:port`, as Host and Origin fields carry it.

use std::net::{IpAddr, Ipv6Addr};

/// A parsed authority without user information (RFC 3986 section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Authority<'a> {
    /// A name, an IPv4 address, or an IPv6 address without its brackets; not empty.
    pub host: &'a str,
    /// `None` where it is left out or empty: the scheme's default.
    pub port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Parses `text`; `None` when it is anything but a host and perhaps a port.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (host, rest) = match text.strip_prefix('[') {
            Some(bracketed) => {
                let (host, rest) = bracketed.split_once(']')?;
                host.parse::<Ipv6Addr>().ok()?;
                (host, rest)
            }
            None => {
                let (host, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
                if host.is_empty() || !host.bytes().all(is_name_octet) {
                    return None;
                }
                (host, rest)
            }
        };
        Some(Self { host, port: port(rest)? })
    }

    /// Whether both name the same host: names whatever their case, addresses by value.
    pub fn has_host_of(&self, other: &Authority<'_>) -> bool {
        match (self.address(), other.address()) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => self.host.eq_ignore_ascii_case(other.host),
        }
    }

    /// Whether the host can only be this machine: `localhost`, a name below it (RFC 6761 section 6.3), or a loopback
    /// address.
    pub fn is_loopback(&self) -> bool {
        match self.address() {
            Some(IpAddr::V4(address)) => address.is_loopback(),
            Some(IpAddr::V6(address)) => address.to_canonical().is_loopback(),
            None => {
                let top = self.host.rsplit('.').next().unwrap_or(self.host);
                top.eq_ignore_ascii_case("localhost")
            }
        }
    }

    fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

/// What follows the host: nothing, or a colon and digits (RFC 3986 section 3.2.3 lets them be none).
fn port(rest: &str) -> Option<Option<u16>> {
    let Some(digits) = rest.strip_prefix(':') else { return rest.is_empty().then_some(None) };
    if digits.is_empty() {
        return Some(None);
    }
    // `parse` alone would take a sign.
    digits.bytes().all(|octet| octet.is_ascii_digit()).then(|| digits.parse().ok().map(Some))?
}

/// Letters, digits, `-`, `.`, and `_`, which service names in containers have.
fn is_name_octet(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'.' | b'_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_host_and_its_port_are_told_apart() {
        for (text, host, port) in [
            ("example.com", "example.com", None),
            ("example.com:", "example.com", None),
            ("event_fanout:8081", "event_fanout", Some(8081)),
            ("127.0.0.1:80", "127.0.0.1", Some(80)),
            ("[::1]", "::1", None),
            ("[2001:db8::1]:65535", "2001:db8::1", Some(65535)),
        ] {
            assert_eq!(Authority::parse(text), Some(Authority { host, port }), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "", ":80", "a b", "a:b", "a:65536", "a:+80", "a:80:80", "user@a", "a/b", "a,b", "::1", "[::1",
            "[]", "[::1]x", "[a]", "[::1]:x", "ü", "a\t",
        ] {
            assert_eq!(Authority::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn only_names_and_addresses_of_this_machine_are_loopback() {
        let is_loopback = |text| Authority::parse(text).unwrap().is_loopback();
        for text in ["localhost", "LocalHost:8080", "app.localhost", "127.0.0.1", "127.9.9.9:1", "[::1]:8080"]
        {
            assert!(is_loopback(text), "{text}");
        }
        assert!(is_loopback("[::ffff:127.0.0.1]"));
        for text in
            ["example.com", "localhost.example.com", "127.0.0.1.example.com", "10.0.0.1", "[::2]", "0.0.0.0"]
        {
            assert!(!is_loopback(text), "{text}");
        }
    }

    #[test]
    fn hosts_are_the_same_by_value() {
        let same = |a, b| Authority::parse(a).unwrap().has_host_of(&Authority::parse(b).unwrap());
        assert!(same("Example.com:1", "example.COM:2"));
        assert!(same("[::1]", "[0:0:0:0:0:0:0:1]"));
        assert!(!same("example.com", "example.com.evil.test"));
        assert!(!same("127.0.0.1", "localhost"));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_and_what_is_parsed_is_part_of_it(text in "\\PC{0,30}|[a.:0-9\\[\\]]{0,12}") {
            if let Some(authority) = Authority::parse(&text) {
                prop_assert!(text.contains(authority.host));
                prop_assert!(!authority.host.is_empty());
            }
        }
    }
}
