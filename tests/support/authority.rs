//! A CA of one test's own, and certificates that it signs, right and wrong ones.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};

use super::scratch::Scratch;

/// See the module. Its files are gone when it is.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    scratch: Scratch,
}

/// PEM files of a certificate and its key.
pub struct Identity {
    pub cert: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are valid names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("keys can be made");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a CA signs itself");
        let authority = Self { issuer, scratch: Scratch::new() };
        authority.scratch.write("ca.pem", &authority.issuer.pem());
        authority
    }

    /// PEM file of its own certificate.
    pub fn ca_file(&self) -> String {
        text(self.scratch.path("ca.pem"))
    }

    /// A certificate for `names` (DNS names and addresses), in files that begin with `file`; writes over those of that
    /// name.
    pub fn issue(&self, file: &str, names: &[&str]) -> Identity {
        self.sign(file, names, |_| {})
    }

    /// One that was valid long ago.
    pub fn issue_expired(&self, file: &str, names: &[&str]) -> Identity {
        self.sign(file, names, |params| {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        })
    }

    fn sign(&self, file: &str, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("the names are valid");
        change(&mut params);
        let key = KeyPair::generate().expect("keys can be made");
        let certificate = params.signed_by(&key, &self.issuer).expect("a CA signs");
        let cert = self.scratch.write(&format!("{file}.pem"), &certificate.pem());
        let key = self.scratch.write(&format!("{file}.key"), &key.serialize_pem());
        Identity { cert: text(cert), key: text(key) }
    }
}

fn text(path: PathBuf) -> String {
    path.to_str().expect("scratch directories have names of ASCII").to_owned()
}
