//! What goes wrong with TLS, for an operator: what was found, what was due, what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::{ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// Why there is no TLS, or no more.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("{path} can't be read ({error}): name a file that this user may read with {flag}")]
    Unreadable {
        /// As it was given.
        path: PathBuf,
        /// The flag that names it.
        flag: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// A file holds something else.
    #[error("{path} holds {found} where {due} was due: correct the file, or {flag}")]
    Content {
        /// As it was given.
        path: PathBuf,
        /// What it holds.
        found: String,
        /// What it should.
        due: &'static str,
        /// The flag that names it.
        flag: &'static str,
    },
    /// Key and certificate are two people's.
    #[error(
        "the key in {key} is not that of the certificate in {cert}: name the two that belong together, with --redis-key-file and --redis-cert-file"
    )]
    KeyMismatch {
        /// File of the certificate.
        cert: PathBuf,
        /// File of the key.
        key: PathBuf,
    },
    /// The host trusts nobody.
    #[error(
        "this system holds no CA certificates ({0}): install them (Debian: apt install ca-certificates), or name the CA's file with --redis-ca-file"
    )]
    NoRoots(String),
    /// No DNS name and no address.
    #[error("{0:?} is no name that a certificate can have: name the server's with --redis-server-name")]
    Name(String),
    /// The chain ends at somebody unknown.
    #[error(
        "the server's certificate is signed by a CA that is not trusted, due one of {trusted}: name the file of the CA that signed it with --redis-ca-file"
    )]
    UnknownCa {
        /// Whom we trust.
        trusted: String,
    },
    /// Out of date.
    #[error("the server's certificate has expired{since}: renew it{clock}")]
    Expired {
        /// " 3 days ago", as far as it is known.
        since: String,
        /// What else it may be.
        clock: &'static str,
    },
    /// Too new.
    #[error(
        "the server's certificate is not valid yet{until}: set the clocks of both hosts, or issue it anew"
    )]
    NotYet {
        /// ", for another 3 days", as far as it is known.
        until: String,
    },
    /// Another's.
    #[error(
        "the server's certificate is for {found}, due one for {due}: connect by a name that it has, or give that name with --redis-server-name"
    )]
    WrongName {
        /// Names in the certificate.
        found: String,
        /// The one that was asked for.
        due: String,
    },
    /// A CA's own certificate, or one of a kind that can't serve.
    #[error(
        "the server's certificate can't be used ({0}): issue it one for servers (X.509 version 3, subjectAltName, not a CA's own)"
    )]
    Unfit(String),
    /// Redis in plain text.
    #[error("a Redis without TLS answers there: write redis:// instead of rediss://, or name its tls-port")]
    PlainRedis,
    /// Something else.
    #[error("what answers there speaks no TLS: write redis:// instead of rediss://, or name its tls-port")]
    NotTls,
    /// The peer said nothing to our first message.
    #[error("the server did not finish the TLS handshake in {0:?}: it hangs, or speaks no TLS there")]
    Silent(Duration),
    /// The peer hung up.
    #[error(
        "the server closed the connection during the TLS handshake: is that its tls-port, and has it room for a connection?"
    )]
    Closed,
    /// It wants to know who we are.
    #[error(
        "the server wants a client certificate: give --redis-cert-file and --redis-key-file, or set tls-auth-clients no in redis.conf"
    )]
    CertificateDue,
    /// It doesn't like who we are.
    #[error("the server refused the client certificate in {path} ({alert}): {cure}")]
    CertificateRefused {
        /// File of the certificate.
        path: PathBuf,
        /// What the server said.
        alert: String,
        /// What to do.
        cure: &'static str,
    },
    /// We have nothing in common, or it gives no reason.
    #[error("the server ended TLS with the alert {alert}: {cure}")]
    Alert {
        /// What the server said.
        alert: String,
        /// What to do.
        cure: &'static str,
    },
    /// The end came without the word that it is the end.
    #[error("the TLS connection was cut (it ended without close_notify)")]
    Truncated,
    /// The rest.
    #[error("TLS failed ({0})")]
    Other(String),
    /// What the system said.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl TlsError {
    /// Whether it lies with a file that this user may not read.
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Unreadable { error, .. } if error.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Whether it lies with our own files or names, so that trying again is of no use.
    pub fn is_ours(&self) -> bool {
        matches!(
            self,
            Self::Unreadable { .. }
                | Self::Content { .. }
                | Self::KeyMismatch { .. }
                | Self::NoRoots(_)
                | Self::Name(_)
        )
    }
}

/// Through interfaces that know only [`io::Error`]; its text is the sentence.
impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        let kind = match error {
            TlsError::Io(error) => return error,
            TlsError::Truncated | TlsError::Closed => io::ErrorKind::UnexpectedEof,
            TlsError::Silent(_) => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// What the sentences of a connection name.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// As it was asked for.
    pub name: ServerName<'static>,
    /// `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Whether we can say who we are.
    pub cert_file: Option<PathBuf>,
}

impl Context {
    /// The sentence for what rustls found.
    pub fn explain(&self, error: Error) -> TlsError {
        match error {
            Error::InvalidCertificate(error) => self.explain_certificate(error),
            Error::AlertReceived(alert) => self.explain_alert(alert),
            Error::InvalidMessage(
                InvalidMessage::InvalidContentType
                | InvalidMessage::UnknownProtocolVersion
                | InvalidMessage::MessageTooLarge,
            ) => TlsError::NotTls,
            other => TlsError::Other(other.to_string()),
        }
    }

    fn explain_certificate(&self, error: CertificateError) -> TlsError {
        let clock = "; if it should not have, set the clocks of both hosts";
        match error {
            // The second: a trusted CA has the name of the one that signed, and another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                TlsError::UnknownCa { trusted: self.trusted() }
            }
            CertificateError::Expired => TlsError::Expired { since: String::new(), clock },
            CertificateError::ExpiredContext { time, not_after } => {
                let since = format!(" {} ago", age(between(not_after, time)));
                TlsError::Expired { since, clock }
            }
            CertificateError::NotValidYet => TlsError::NotYet { until: String::new() },
            CertificateError::NotValidYetContext { time, not_before } => {
                TlsError::NotYet { until: format!(", for another {}", age(between(time, not_before))) }
            }
            CertificateError::NotValidForName => {
                TlsError::WrongName { found: "another name".to_owned(), due: self.name() }
            }
            CertificateError::NotValidForNameContext { presented, .. } => {
                let found = match presented.as_slice() {
                    [] => "no name at all (it has no subjectAltName)".to_owned(),
                    names => names.iter().map(|name| shown(name)).collect::<Vec<_>>().join(", "),
                };
                TlsError::WrongName { found, due: self.name() }
            }
            other => TlsError::Unfit(other.to_string()),
        }
    }

    fn explain_alert(&self, alert: AlertDescription) -> TlsError {
        use AlertDescription as Alert;
        let said = format!("{alert:?}");
        let mutual = "the server supports neither TLS 1.2 nor 1.3 with a cipher of today: see tls-protocols and tls-ciphers \
                      in redis.conf";
        match (alert, &self.cert_file) {
            (Alert::CertificateRequired, _) => TlsError::CertificateDue,
            // TLS 1.2 has no word of its own for a certificate that is missing.
            (Alert::HandshakeFailure | Alert::BadCertificate, None) => TlsError::Alert {
                alert: said,
                cure: "if it wants a client certificate, give --redis-cert-file and --redis-key-file; else see \
                       tls-protocols and tls-ciphers in redis.conf",
            },
            (Alert::UnknownCA, Some(path)) => TlsError::CertificateRefused {
                path: path.clone(),
                alert: said,
                cure: "have it signed by the CA that tls-ca-cert-file in redis.conf names, or add its CA there",
            },
            (Alert::CertificateExpired, Some(path)) => {
                TlsError::CertificateRefused { path: path.clone(), alert: said, cure: "renew it" }
            }
            (
                Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateUnknown
                | Alert::DecryptError
                | Alert::AccessDenied,
                Some(path),
            ) => TlsError::CertificateRefused {
                path: path.clone(),
                alert: said,
                cure: "the log of the server says why; it must be one for clients",
            },
            (Alert::HandshakeFailure | Alert::ProtocolVersion | Alert::InsufficientSecurity, _) => {
                TlsError::Alert { alert: said, cure: mutual }
            }
            (Alert::UnrecognisedName, _) => TlsError::Alert {
                alert: said,
                cure: "the server doesn't know the name that it was asked for: give the right one with --redis-server-name",
            },
            _ => TlsError::Alert { alert: said, cure: "the log of the server says why" },
        }
    }

    fn name(&self) -> String {
        self.name.to_str().into_owned()
    }

    fn trusted(&self) -> String {
        match &self.ca_file {
            Some(path) => format!("those in {}", path.display()),
            None => "this system's".to_owned(),
        }
    }
}

/// Names in certificates come as rustls prints them for debugging: `DnsName("redis.example")`, `IpAddress(127.0.0.1)`.
fn shown(name: &str) -> String {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    inner.trim_matches('"').chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn between(from: UnixTime, to: UnixTime) -> Duration {
    Duration::from_secs(to.as_secs().saturating_sub(from.as_secs()))
}

fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (count, unit) = match seconds {
        0..120 => (seconds, "seconds"),
        120..7200 => (seconds / 60, "minutes"),
        7200..172_800 => (seconds / 3600, "hours"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{count} {unit}")
}

/// As the flag of `path` calls a file that can't be read.
pub(crate) fn unreadable(path: &Path, flag: &'static str, error: io::Error) -> TlsError {
    TlsError::Unreadable { path: path.to_owned(), flag, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(cert_file: Option<&str>) -> Context {
        Context {
            name: ServerName::try_from("redis.example").unwrap(),
            ca_file: Some("/ca.pem".into()),
            cert_file: cert_file.map(Into::into),
        }
    }

    #[test]
    fn each_alert_has_its_cure() {
        let said = |cert, alert| context(cert).explain(Error::AlertReceived(alert)).to_string();
        assert!(said(None, AlertDescription::CertificateRequired).contains("give --redis-cert-file"));
        assert!(said(None, AlertDescription::HandshakeFailure).contains("--redis-key-file"));
        let ours = Some("/me.pem");
        assert!(
            said(ours, AlertDescription::UnknownCA).contains("/me.pem (UnknownCA): have it signed by the CA")
        );
        assert!(said(ours, AlertDescription::CertificateExpired).ends_with("renew it"));
        assert!(said(ours, AlertDescription::ProtocolVersion).contains("tls-protocols"));
        assert!(said(None, AlertDescription::UnrecognisedName).contains("--redis-server-name"));
        assert!(said(None, AlertDescription::InternalError).contains("log of the server"));
    }

    #[test]
    fn a_certificate_says_since_when_and_for_whom() {
        let said = |error| context(None).explain(Error::InvalidCertificate(error)).to_string();
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let expired = CertificateError::ExpiredContext { time: at(300_000), not_after: at(0) };
        assert!(said(expired).starts_with("the server's certificate has expired 3 days ago: renew it"));
        let early = CertificateError::NotValidYetContext { time: at(0), not_before: at(7200) };
        assert!(said(early).contains("not valid yet, for another 2 hours"));
        assert!(said(CertificateError::UnknownIssuer).contains("due one of those in /ca.pem"));
        let presented = vec!["DnsName(\"other.example\")".to_owned(), "IpAddress(127.0.0.1)".to_owned()];
        let expected = ServerName::try_from("redis.example").unwrap();
        let wrong = CertificateError::NotValidForNameContext { expected, presented };
        assert!(said(wrong).contains("is for other.example, 127.0.0.1, due one for redis.example"));
    }
}
