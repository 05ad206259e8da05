//! Who may connect from where, and who may use what publishes or names rooms and users.
//!
//! Two judges, both of a request's head alone: [`origin_allowed`] for WebSockets that browsers open, [`Gate`] for plain
//! requests that must not be everybody's.

use std::hint::black_box;

use crate::config::Origins;
use crate::request::{Authority, Head, HttpError};

/// Whether a page from `origin` may open a WebSocket to the server that the request calls `host`.
///
/// An absent Origin passes always: no browser sent it, and other clients write there what they like. Schemes, hosts and
/// ports are compared after parsing, default ports included, so that `https://example.com` is `https://EXAMPLE.com:443`
/// and never `https://example.com.evil.test`. The opaque origin `null` passes only where any does or where it is listed.
pub fn origin_allowed(origins: &Origins, origin: Option<&str>, host: &str) -> bool {
    let Some(origin) = origin else { return true };
    match origins {
        Origins::Any => true,
        Origins::SameHost => is_same_host(origin, host),
        Origins::List(allowed) => allowed.iter().any(|allowed| is_same_origin(allowed, origin)),
    }
}

/// Decides who may use `POST /publish` and whatever names rooms or users.
///
/// With a key: who sends it. Without one: who is on the same machine, which takes a server that listens on loopback only, or
/// an admin address on loopback that was asked, and a request that neither a proxy passed on nor a page of another site sent. A server that has a key demands it on
/// loopback too, because a proxy on the same machine need not say that it is one.
pub struct Gate {
    key: Option<Box<str>>,
    loopback_only: bool,
    admin_on_loopback: bool,
}

impl Gate {
    /// A gate for a server with this key, whose addresses are loopback addresses all (`loopback_only`) or not.
    ///
    /// # Panics
    /// When the key is empty: an empty file must not become a key that everybody has.
    pub fn new(key: Option<String>, loopback_only: bool) -> Self {
        assert!(key.as_deref() != Some(""), "the key of --api-key-file is empty");
        Self { key: key.map(String::into_boxed_str), loopback_only, admin_on_loopback: loopback_only }
    }

    /// The same where the admin address is a loopback address (`on_loopback`) or not, whatever the other addresses are.
    pub fn with_admin(self, on_loopback: bool) -> Self {
        Self { admin_on_loopback: on_loopback, ..self }
    }

    /// Lets a handshake in that needs the key where one is configured.
    ///
    /// # Errors
    /// 401 when there is a key and the request has none or another.
    pub fn admits_handshake(&self, head: &Head<'_>) -> Result<(), HttpError> {
        if self.key.is_some() { self.admits(head) } else { Ok(()) }
    }

    /// Lets a page open a WebSocket: by [`origin_allowed`], and where that asks for the same host, on a server that listens on
    /// loopback only, the host must be a loopback one.
    ///
    /// A page of another site whose name was made to resolve to 127.0.0.1 (DNS rebinding) is its own origin and names itself
    /// as Host. A proxy on this machine passes such a pair on in good faith, and says so by the fields that proxies add; no
    /// page can add them to a WebSocket.
    ///
    /// # Errors
    /// 403; the sentence says what to do.
    pub fn admits_page(&self, origins: &Origins, head: &Head<'_>) -> Result<(), HttpError> {
        if !origin_allowed(origins, head.origin(), head.host()) {
            return Err(HttpError::new(403, ORIGIN_IS_NOT_ALLOWED));
        }
        let is_trusted = *origins != Origins::SameHost || !self.loopback_only || head.forwarded();
        if head.origin().is_none() || is_trusted || names_loopback(head) {
            return Ok(());
        }
        Err(HttpError::new(403, PAGE_IS_NOT_LOCAL))
    }

    /// Lets the request of `head` in.
    ///
    /// # Errors
    /// 401 when there is a key and the request has none or another; 403 when there is none and the request may come from
    /// elsewhere. The sentence says what to do.
    pub fn admits(&self, head: &Head<'_>) -> Result<(), HttpError> {
        self.admits_on(self.loopback_only, head)
    }

    /// Lets the request of `head`, which came to the admin address, in.
    ///
    /// # Errors
    /// As [`admits`](Self::admits). Without a key it is enough that the admin address itself is one of loopback: who
    /// reaches it is on this machine.
    pub fn admits_on_admin(&self, head: &Head<'_>) -> Result<(), HttpError> {
        self.admits_on(self.admin_on_loopback, head)
    }

    fn admits_on(&self, loopback: bool, head: &Head<'_>) -> Result<(), HttpError> {
        match &self.key {
            Some(key) if presented_keys(head).any(|presented| is_equal_in_constant_time(presented, key)) => {
                Ok(())
            }
            Some(_) => Err(HttpError::new(401, KEY_IS_DUE)
                .with_fields(&[("WWW-Authenticate", "Bearer realm=\"corecast\"")])),
            None if !loopback => Err(HttpError::new(403, NO_KEY_IS_CONFIGURED)),
            None => comes_from_this_machine(head),
        }
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = self.key.as_ref().map(|_| "***");
        f.debug_struct("Gate")
            .field("key", &key)
            .field("loopback_only", &self.loopback_only)
            .field("admin_on_loopback", &self.admin_on_loopback)
            .finish()
    }
}

/// What the request offers as its key: `Authorization: Bearer KEY`, `X-API-Key: KEY`.
fn presented_keys<'h>(head: &'h Head<'_>) -> impl Iterator<Item = &'h str> {
    let bearers = head.fields("authorization").filter_map(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim_start_matches(' '))
    });
    bearers.chain(head.fields("x-api-key"))
}

/// Compares without telling by its duration where the two differ; that their lengths differ it may tell.
fn is_equal_in_constant_time(presented: &str, key: &str) -> bool {
    let pairs = presented.bytes().zip(key.bytes());
    let difference = pairs.fold(0, |difference, (ours, theirs)| black_box(difference | (ours ^ theirs)));
    presented.len() == key.len() && difference == 0
}

/// The peer is on this machine, as the server listens nowhere else; the question is for whom it speaks.
fn comes_from_this_machine(head: &Head<'_>) -> Result<(), HttpError> {
    if head.forwarded() {
        return Err(HttpError::new(403, FORWARDED_WITHOUT_KEY));
    }
    // A page of another site whose name was made to resolve to 127.0.0.1 (DNS rebinding) is its own origin, so Origin
    // proves nothing; but then Host is that site's name.
    if !names_loopback(head) {
        return Err(HttpError::new(403, HOST_IS_NOT_LOCAL));
    }
    // Browsers send Origin with every POST, and Sec-Fetch-Site with every request to a trustworthy address. "same-site" is
    // another port of this machine.
    let is_other_origin = head.fields("origin").any(|origin| !is_same_host(origin, head.host()));
    let is_other_site = head.fields("sec-fetch-site").any(|site| !matches!(site, "same-origin" | "none"));
    if is_other_origin || is_other_site {
        return Err(HttpError::new(403, PAGE_OF_ANOTHER_ORIGIN));
    }
    Ok(())
}

/// Whether the Host field is a name or address of this machine's loopback.
fn names_loopback(head: &Head<'_>) -> bool {
    Authority::parse(head.host()).is_some_and(|host| host.is_loopback())
}

/// Whether host and port of `origin`, an http or https one, are those of the Host field.
///
/// A Host without a port has the default one of the origin's scheme: behind a proxy that ends TLS, Host is `example.com`
/// and Origin `https://example.com`.
fn is_same_host(origin: &str, host: &str) -> bool {
    let (Some(origin), Some(host)) = (Origin::parse(origin), Authority::parse(host)) else { return false };
    let Some(default_port) = origin.default_port() else { return false };
    origin.authority.has_host_of(&host)
        && origin.authority.port.unwrap_or(default_port) == host.port.unwrap_or(default_port)
}

/// Whether an entry of the list is `origin`. Entries that are no `scheme://host` (`null`, `file://`) match by their text.
fn is_same_origin(allowed: &str, origin: &str) -> bool {
    let parsed = Origin::parse(allowed.strip_suffix('/').unwrap_or(allowed)).zip(Origin::parse(origin));
    parsed.map_or(allowed == origin, |(allowed, origin)| allowed.is(&origin))
}

/// A parsed Origin (RFC 6454 section 6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Origin<'a> {
    scheme: &'a str,
    authority: Authority<'a>,
}

impl<'a> Origin<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        Some(Self { scheme, authority: Authority::parse(authority)? })
    }

    fn is(&self, other: &Origin<'_>) -> bool {
        let port = |origin: &Origin<'_>| origin.authority.port.or(origin.default_port());
        self.scheme.eq_ignore_ascii_case(other.scheme)
            && self.authority.has_host_of(&other.authority)
            && port(self) == port(other)
    }

    fn default_port(&self) -> Option<u16> {
        if self.scheme.eq_ignore_ascii_case("https") {
            Some(443)
        } else if self.scheme.eq_ignore_ascii_case("http") {
            Some(80)
        } else {
            None
        }
    }
}

const ORIGIN_IS_NOT_ALLOWED: &str = "this origin may not connect: add it to `origins` in the configuration";
const PAGE_IS_NOT_LOCAL: &str = "the Host field names another machine, and this server listens on its own only: ask for \
     localhost or 127.0.0.1, add the page's origin to `origins` in the configuration, or let the proxy before it send \
     X-Forwarded-For";
const KEY_IS_DUE: &str =
    "the key of --api-key-file is missing or wrong: send `Authorization: Bearer KEY` or `X-API-Key: KEY`";
const NO_KEY_IS_CONFIGURED: &str = "this needs a key, as the server can be reached from other machines, and none is \
     configured: start it with --api-key-file FILE and send `X-API-Key: KEY`, or with --admin 127.0.0.1:PORT and ask \
     there, or let it --listen on 127.0.0.1 only";
const FORWARDED_WITHOUT_KEY: &str = "a proxy passed this request on, and without a key only this machine is served: \
     start the server with --api-key-file FILE";
const HOST_IS_NOT_LOCAL: &str = "the Host field names another machine, and without a key only this one is served: \
     ask for localhost or 127.0.0.1, or start the server with --api-key-file FILE";
const PAGE_OF_ANOTHER_ORIGIN: &str = "a page of another origin sent this request, and without a key only this server's \
     own page may: start the server with --api-key-file FILE and send the key";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::request::parse;

    /// The gate's answer to a `POST /publish` with these fields: a status, or `None` for yes.
    fn refusal(gate: &Gate, fields: &str) -> Option<u16> {
        let octets = format!("POST /publish HTTP/1.1\r\n{fields}\r\n\r\n");
        let head = parse(octets.as_bytes()).unwrap().expect("a whole head");
        gate.admits(&head).err().map(|error| error.status)
    }

    fn list(allowed: &[&str]) -> Origins {
        Origins::List(allowed.iter().map(|&origin| origin.to_owned()).collect())
    }

    #[test]
    fn a_request_without_origin_may_connect() {
        for origins in [Origins::SameHost, Origins::Any, list(&[])] {
            assert!(origin_allowed(&origins, None, "localhost:8080"), "{origins:?}");
        }
    }

    #[test]
    fn any_origin_means_any() {
        for origin in ["https://evil.test", "null", "", "garbage"] {
            assert!(origin_allowed(&Origins::Any, Some(origin), "localhost"));
        }
    }

    #[test]
    fn the_same_host_is_host_and_port_after_parsing() {
        let allowed = |origin, host| origin_allowed(&Origins::SameHost, Some(origin), host);
        for (origin, host) in [
            ("http://localhost:8080", "localhost:8080"),
            ("HTTP://LocalHost:8080", "localhost:8080"),
            ("http://example.com", "example.com:80"),
            ("http://example.com:80", "example.com"),
            ("https://example.com", "example.com"),
            ("https://example.com", "example.com:443"),
            ("http://[::1]:8080", "[0:0:0:0:0:0:0:1]:8080"),
        ] {
            assert!(allowed(origin, host), "{origin} to {host}");
        }
        for (origin, host) in [
            ("http://localhost:3000", "localhost:8080"),
            ("http://localhost", "localhost:8080"),
            ("https://example.com", "example.com:80"),
            ("http://example.com.evil.test", "example.com"),
            ("http://evil.test?example.com", "example.com"),
            ("http://example.com@evil.test", "example.com"),
            ("http://evil.test#example.com", "example.com"),
            ("http://example.com/", "example.com"),
            ("ftp://example.com", "example.com"),
            ("app://example.com", "example.com"),
            ("example.com", "example.com"),
            ("null", "null"),
            ("", ""),
            ("http://", ""),
        ] {
            assert!(!allowed(origin, host), "{origin} to {host}");
        }
    }

    #[test]
    fn a_list_is_compared_by_scheme_host_and_port() {
        let origins =
            list(&["https://app.example.com/", "http://localhost:3000", "capacitor://localhost", "null"]);
        let allowed = |origin| origin_allowed(&origins, Some(origin), "api.example.com");
        for origin in [
            "https://app.example.com",
            "https://APP.example.com:443",
            "http://localhost:3000",
            "capacitor://localhost",
            "null",
        ] {
            assert!(allowed(origin), "{origin}");
        }
        for origin in [
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://app.example.com.evil.test",
            "https://xapp.example.com",
            "https://api.example.com",
            "http://localhost",
            "app://localhost",
            "NULL",
            "",
        ] {
            assert!(!allowed(origin), "{origin}");
        }
    }

    #[test]
    fn who_sends_the_key_is_let_in_from_anywhere() {
        for loopback_only in [true, false] {
            let gate = Gate::new(Some("s3cret".into()), loopback_only);
            for fields in [
                "Host: a\r\nAuthorization: Bearer s3cret",
                "Host: a\r\nauthorization: bearer  s3cret",
                "Host: a\r\nX-API-Key: s3cret",
                "Host: a\r\nX-API-Key: s3cret\r\nOrigin: https://evil.test\r\nX-Forwarded-For: 1.2.3.4",
            ] {
                assert_eq!(refusal(&gate, fields), None, "{fields:?}");
            }
            for fields in [
                "Host: localhost",
                "Host: localhost\r\nX-API-Key: s3cre",
                "Host: localhost\r\nX-API-Key: s3cret2",
                "Host: localhost\r\nX-API-Key: S3CRET",
                "Host: localhost\r\nX-API-Key:",
                "Host: localhost\r\nAuthorization: s3cret",
                "Host: localhost\r\nAuthorization: Basic s3cret",
                "Host: localhost\r\nAuthorization: Bearer",
            ] {
                assert_eq!(refusal(&gate, fields), Some(401), "{fields:?}");
            }
        }
    }

    #[test]
    fn a_refusal_names_the_scheme_that_would_do() {
        let head = parse(b"POST /publish HTTP/1.1\r\nHost: a\r\n\r\n").unwrap().expect("a whole head");
        let error = Gate::new(Some("k".into()), false).admits(&head).unwrap_err();
        assert!(error.fields.iter().any(|(name, _)| *name == "WWW-Authenticate"));
    }

    #[test]
    fn without_a_key_only_a_loopback_server_lets_anybody_in() {
        assert_eq!(refusal(&Gate::new(None, false), "Host: localhost:8080"), Some(403));
        for host in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080"] {
            assert_eq!(refusal(&Gate::new(None, true), &format!("Host: {host}")), None, "{host}");
        }
    }

    #[test]
    fn an_admin_address_on_loopback_is_enough_for_itself_and_for_no_other() {
        let refusal = |gate: &Gate, on_admin: bool, fields: &str| {
            let octets = format!("GET /admin/stats HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
            let head = parse(octets.as_bytes()).unwrap().expect("a whole head");
            let judged = if on_admin { gate.admits_on_admin(&head) } else { gate.admits(&head) };
            judged.err().map(|error| error.status)
        };
        let gate = Gate::new(None, false).with_admin(true);
        assert_eq!((refusal(&gate, true, ""), refusal(&gate, false, "")), (None, Some(403)));
        assert_eq!(refusal(&gate, true, "X-Forwarded-For: 1.2.3.4\r\n"), Some(403));
        assert_eq!(refusal(&Gate::new(None, false).with_admin(false), true, ""), Some(403));
        assert_eq!(refusal(&Gate::new(Some("s3cret".into()), false).with_admin(true), true, ""), Some(401));
    }

    #[test]
    fn without_a_key_a_proxys_request_is_refused() {
        for field in
            ["X-Forwarded-For: 1.2.3.4", "Forwarded: for=1.2.3.4", "Via: 1.1 a", "X-Real-IP: 1.2.3.4"]
        {
            let fields = format!("Host: localhost\r\n{field}");
            assert_eq!(refusal(&Gate::new(None, true), &fields), Some(403), "{field}");
        }
    }

    #[test]
    fn without_a_key_a_page_of_another_site_is_refused() {
        let gate = Gate::new(None, true);
        for fields in [
            "Host: localhost:8080\r\nOrigin: https://evil.test",
            "Host: localhost:8080\r\nOrigin: http://localhost:3000",
            "Host: localhost:8080\r\nOrigin: null",
            "Host: localhost:8080\r\nOrigin: http://localhost:8080\r\nOrigin: https://evil.test",
            "Host: localhost:8080\r\nSec-Fetch-Site: cross-site",
            "Host: localhost:8080\r\nSec-Fetch-Site: same-site",
            // DNS rebinding: the page's own name resolves to 127.0.0.1.
            "Host: evil.test:8080\r\nOrigin: http://evil.test:8080\r\nSec-Fetch-Site: same-origin",
            "Host: evil.test:8080",
        ] {
            assert_eq!(refusal(&gate, fields), Some(403), "{fields:?}");
        }
        let own_page = "Host: localhost:8080\r\nOrigin: http://localhost:8080\r\nSec-Fetch-Site: same-origin";
        assert_eq!(refusal(&gate, own_page), None);
    }

    #[test]
    fn a_page_whose_name_was_made_to_resolve_to_loopback_may_not_connect() {
        let refusal = |gate: &Gate, origins: &Origins, fields: &str| {
            let octets = format!("GET /ws?room=a HTTP/1.1\r\n{fields}\r\n\r\n");
            let head = parse(octets.as_bytes()).unwrap().expect("a whole head");
            gate.admits_page(origins, &head).err().map(|error| error.status)
        };
        let (local, public) = (Gate::new(None, true), Gate::new(None, false));
        let rebound = "Host: evil.test:8080\r\nOrigin: http://evil.test:8080";
        for origins in [Origins::SameHost, list(&["http://app.test"])] {
            assert_eq!(refusal(&local, &origins, rebound), Some(403), "{origins:?}");
        }
        for (gate, origins, fields) in [
            (&local, Origins::SameHost, "Host: localhost:8080\r\nOrigin: http://localhost:8080"),
            (&local, Origins::SameHost, "Host: [::1]:8080\r\nOrigin: http://[::1]:8080"),
            (&local, Origins::SameHost, "Host: evil.test"),
            (&local, Origins::SameHost, "Host: a.test\r\nOrigin: https://a.test\r\nX-Forwarded-For: 1.2.3.4"),
            (&local, list(&["http://evil.test:8080"]), rebound),
            (&local, Origins::Any, rebound),
            (&public, Origins::SameHost, rebound),
        ] {
            assert_eq!(refusal(gate, &origins, fields), None, "{fields:?}");
        }
    }

    #[test]
    fn the_key_is_never_printed() {
        assert!(!format!("{:?}", Gate::new(Some("s3cret".into()), true)).contains("s3cret"));
    }

    #[test]
    #[should_panic(expected = "is empty")]
    fn an_empty_key_is_a_bug() {
        Gate::new(Some(String::new()), true);
    }

    proptest! {
        #[test]
        fn keys_are_equal_exactly_if_their_texts_are(a in "[ab]{0,4}", b in "[ab]{0,4}") {
            prop_assert_eq!(is_equal_in_constant_time(&a, &b), a == b);
        }

        #[test]
        fn any_origin_text_is_judged(origin in "\\PC{0,30}|https?://[a.:\\[\\]@/]{0,9}", host in "[a.:0-9]{0,6}") {
            origin_allowed(&Origins::SameHost, Some(&origin), &host);
            prop_assert!(origin_allowed(&Origins::List(vec![origin.clone()]), Some(&origin), &host));
        }
    }
}
