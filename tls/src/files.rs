//! Certificates and keys out of PEM files, each read whole and bounded, as often as there is a connection to be made.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{TlsError, unreadable};

pub(crate) const CA_FLAG: &str = "--redis-ca-file";
pub(crate) const CERT_FLAG: &str = "--redis-cert-file";
pub(crate) const KEY_FLAG: &str = "--redis-key-file";
/// Twenty times all CAs of the web (220 KB).
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Whom to trust: the CAs in `path`, or else those that the system trusts.
///
/// The system's, not a list of the web's CAs inside the program (webpki-roots): a company's own CA is installed there,
/// and whoever is not trusted any more leaves it with an update of the system, not of corecast.
pub(crate) fn roots(path: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = path else {
        let found = rustls_native_certs::load_native_certs();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        let why = found.errors.first().map_or("none found".to_owned(), ToString::to_string);
        return if added == 0 { Err(TlsError::NoRoots(why)) } else { Ok(roots) };
    };
    for certificate in certificates(path, CA_FLAG)? {
        roots
            .add(certificate)
            .map_err(|error| content(path, error.to_string(), "a CA's certificate", CA_FLAG))?;
    }
    Ok(roots)
}

/// At least one certificate.
pub(crate) fn certificates(
    path: &Path,
    flag: &'static str,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let due = "a certificate in PEM form";
    let text = read(path, flag)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates =
        certificates.map_err(|error| content(path, format!("broken PEM ({error})"), due, flag))?;
    if certificates.is_empty() {
        return Err(content(path, described(&text), due, flag));
    }
    Ok(certificates)
}

/// The first key.
pub(crate) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let due = "a private key in PEM form without a passphrase";
    let text = read(path, KEY_FLAG)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| content(path, described(&text), due, KEY_FLAG))
}

fn read(path: &Path, flag: &'static str) -> Result<Vec<u8>, TlsError> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text));
    match read {
        Ok(bytes) if bytes as u64 > FILE_BYTES_MAX => {
            let too_long = format!("more than {FILE_BYTES_MAX} bytes");
            Err(unreadable(path, flag, io::Error::new(io::ErrorKind::FileTooLarge, too_long)))
        }
        Ok(_) => Ok(text),
        Err(error) => Err(unreadable(path, flag, error)),
    }
}

/// What a file without what was due holds. Never any of its bytes: they may be a key.
fn described(text: &[u8]) -> String {
    let has = |words: &[u8]| text.windows(words.len()).any(|window| window == words);
    let found = match () {
        () if text.is_empty() => "nothing",
        () if has(b"ENCRYPTED") => "an encrypted key",
        () if has(b"PRIVATE KEY-----") => "a private key",
        () if has(b"BEGIN CERTIFICATE-----") => "a certificate",
        () if has(b"-----BEGIN ") => "PEM of another kind",
        () => "no PEM",
    };
    found.to_owned()
}

fn content(path: &Path, found: String, due: &'static str, flag: &'static str) -> TlsError {
    TlsError::Content { path: path.to_owned(), found, due, flag }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_described_by_its_kind_and_never_quoted() {
        for (text, found) in [
            ("", "nothing"),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nsecret", "an encrypted key"),
            ("-----BEGIN RSA PRIVATE KEY-----\nsecret", "a private key"),
            ("-----BEGIN CERTIFICATE-----\nAAAA", "a certificate"),
            ("-----BEGIN DH PARAMETERS-----\nAAAA", "PEM of another kind"),
            ("\x30\x02secret", "no PEM"),
        ] {
            assert_eq!(described(text.as_bytes()), found, "{text:?}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_names_its_flag() {
        let said = certificates(Path::new("/nowhere/ca.pem"), CA_FLAG).unwrap_err().to_string();
        assert!(said.starts_with("/nowhere/ca.pem can't be read (No such file"), "{said}");
        assert!(said.ends_with("with --redis-ca-file"), "{said}");
    }
}
