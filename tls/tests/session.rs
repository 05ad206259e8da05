//! Sessions with a TLS server of this process: what is trusted, what is said, and that bytes come through however they are
//! cut.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tls::{Client, Options, Stream, TlsError};

const SOON: Duration = Duration::from_secs(20);

/// A CA, and the folder with its certificate.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Authority {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("corecast-tls-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(folder.join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    fn ca_file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// A server's configuration with a certificate for `name`; `change` makes it another.
    fn server(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Arc<ServerConfig> {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        self.config(vec![certificate.der().clone()], &key)
    }

    fn config(&self, chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Arc::new(builder.with_single_cert(chain, key).unwrap())
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

type ServerStream = StreamOwned<ServerConnection, TcpStream>;

/// Accepts once, and has `serve` speak.
fn serve_raw(serve: impl FnOnce(TcpStream) + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (address, thread::spawn(move || serve(listener.accept().unwrap().0)))
}

fn serve(
    config: Arc<ServerConfig>,
    serve: impl FnOnce(ServerStream) + Send + 'static,
) -> (SocketAddr, JoinHandle<()>) {
    serve_raw(move |socket| serve(StreamOwned::new(ServerConnection::new(config).unwrap(), socket)))
}

fn connect(address: SocketAddr, ca_file: &Path, server_name: &str) -> Result<Stream, TlsError> {
    let client = Client::load(&Options { ca_file: Some(ca_file), identity: None, server_name })?;
    let socket = TcpStream::connect(address)?;
    Stream::connect(socket, &client, Instant::now() + SOON)
}

/// The sentence of a handshake that fails.
fn refused(config: Arc<ServerConfig>, ca_file: &Path, server_name: &str) -> String {
    let (address, server) = serve(config, |mut stream| {
        // It fails in the middle of the handshake.
        let _ = stream.read(&mut [0; 16]);
    });
    let Err(error) = connect(address, ca_file, server_name) else { panic!("it was trusted") };
    server.join().unwrap();
    error.to_string()
}

#[test]
fn what_is_sent_comes_through_both_ways_in_any_size() {
    let authority = Authority::new();
    let (address, server) = serve(authority.server("redis.example", |_| {}), |mut stream| {
        // An echo of as much as was said, then the end.
        let mut all = vec![0; TOTAL];
        stream.read_exact(&mut all).unwrap();
        all.chunks(40_000).for_each(|chunk| stream.write_all(chunk).unwrap());
        stream.conn.send_close_notify();
        stream.flush().unwrap();
    });
    const TOTAL: usize = 1_000_003;
    let mut stream = connect(address, &authority.ca_file(), "redis.example").unwrap();
    let said: Vec<u8> = (0..TOTAL).map(|index| (index * 7 % 251) as u8).collect();
    stream.write_all(&said[..1]).unwrap();
    stream.try_clone().unwrap().write_all(&said[1..]).unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).expect("the end is told");
    assert!(heard == said, "{} bytes came of {TOTAL}", heard.len());
    server.join().unwrap();
}

#[test]
fn an_end_that_was_not_told_is_a_cut() {
    let authority = Authority::new();
    let (address, server) = serve(authority.server("redis.example", |_| {}), |mut stream| {
        stream.write_all(b"+OK\r\n").unwrap();
        stream.sock.shutdown(Shutdown::Both).unwrap();
    });
    let mut stream = connect(address, &authority.ca_file(), "redis.example").unwrap();
    let mut heard = Vec::new();
    let error = stream.read_to_end(&mut heard).expect_err("it was cut");
    assert_eq!((heard.as_slice(), error.kind()), (b"+OK\r\n".as_slice(), io::ErrorKind::UnexpectedEof));
    assert!(error.to_string().contains("without close_notify"), "{error}");
    server.join().unwrap();
}

#[test]
fn whoever_drops_a_stream_has_said_so() {
    let authority = Authority::new();
    let (address, server) = serve(authority.server("redis.example", |_| {}), |mut stream| {
        let mut heard = [0; 3];
        stream.read_exact(&mut heard).unwrap();
        stream.write_all(b"+OK").unwrap();
        assert_eq!(stream.read(&mut heard).expect("an end with close_notify"), 0);
    });
    let mut stream = connect(address, &authority.ca_file(), "redis.example").unwrap();
    stream.write_all(b"bye").unwrap();
    // After the session tickets: a socket that is closed with anything unread resets the connection.
    stream.read_exact(&mut [0; 3]).unwrap();
    drop(stream);
    server.join().unwrap();
}

#[test]
fn a_certificate_that_does_not_hold_is_told_with_its_cure() {
    let (authority, other) = (Authority::new(), Authority::new());
    let ca_file = authority.ca_file();
    let said = refused(other.server("redis.example", |_| {}), &ca_file, "redis.example");
    assert!(said.contains("signed by a CA that is not trusted, due one of those in"), "{said}");
    let old = authority.server("redis.example", |params| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    });
    let said = refused(old, &ca_file, "redis.example");
    assert!(said.contains("has expired") && said.contains("days ago: renew it"), "{said}");
    let young = authority.server("redis.example", |params| {
        params.not_before = date_time_ymd(3000, 1, 1);
        params.not_after = date_time_ymd(3001, 1, 1);
    });
    let said = refused(young, &ca_file, "redis.example");
    assert!(said.contains("not valid yet, for another"), "{said}");
    let said = refused(authority.server("other.example", |_| {}), &ca_file, "redis.example");
    assert!(said.contains("is for other.example, due one for redis.example"), "{said}");
    let said = refused(authority.server("other.example", |_| {}), &ca_file, "127.0.0.1");
    assert!(said.contains("due one for 127.0.0.1"), "{said}");
    let own = authority.config(vec![authority.issuer.der().clone()], authority.issuer.key());
    let said = refused(own, &ca_file, "redis.example");
    assert!(said.contains("can't be used") && said.contains("not a CA's own"), "{said}");
}

#[test]
fn who_speaks_no_tls_is_told_from_who_hangs_up_or_says_nothing() {
    let authority = Authority::new();
    let said = |patience: Duration, serve: fn(TcpStream)| {
        let (address, server) = serve_raw(serve);
        let client = Client::load(&Options {
            ca_file: Some(&authority.ca_file()),
            identity: None,
            server_name: "redis.example",
        });
        let socket = TcpStream::connect(address).unwrap();
        let until = Instant::now() + patience;
        let Err(error) = Stream::connect(socket, &client.unwrap(), until) else { panic!("that was no TLS") };
        server.join().unwrap();
        error.to_string()
    };
    let http = said(SOON, |mut socket| {
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        // What was written would be lost with a reset.
        let _ = socket.read_to_end(&mut Vec::new());
    });
    assert!(http.starts_with("what answers there speaks no TLS"), "{http}");
    let gone = said(SOON, |mut socket| drop(socket.read(&mut [0; 4096])));
    assert!(gone.contains("closed the connection during the TLS handshake"), "{gone}");
    let silent = said(Duration::from_secs(2), |mut socket| drop(socket.read_to_end(&mut Vec::new())));
    assert!(silent.contains("did not finish the TLS handshake in 2"), "{silent}");
}

#[test]
fn files_that_do_not_fit_are_told_by_their_flags() {
    let authority = Authority::new();
    let file = |name: &str, text: &str| {
        let path = authority.folder.join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["me".to_owned()]).unwrap();
    let cert = file("me.pem", &params.signed_by(&key, &authority.issuer).unwrap().pem());
    let key_file = file("me.key", &key.serialize_pem());
    let other_key = file("other.key", &KeyPair::generate().unwrap().serialize_pem());
    let empty = file("empty.pem", "");
    let load = |ca: &Path, cert: &Path, key: &Path| {
        let options = Options { ca_file: Some(ca), identity: Some((cert, key)), server_name: "h" };
        Client::load(&options).map(drop).map_err(|error| {
            assert!(error.is_ours(), "{error:?}");
            error.to_string()
        })
    };
    let ca = authority.ca_file();
    assert_eq!(load(&ca, &cert, &key_file), Ok(()));
    let said = load(&ca, &cert, &other_key).unwrap_err();
    assert!(said.contains("is not that of the certificate in"), "{said}");
    let said = load(&empty, &cert, &key_file).unwrap_err();
    assert!(
        said.contains("holds nothing where a certificate in PEM form was due")
            && said.contains("--redis-ca-file")
    );
    let said = load(&ca, &key_file, &key_file).unwrap_err();
    assert!(
        said.contains("holds a private key where a certificate") && said.contains("--redis-cert-file"),
        "{said}"
    );
    let said = load(&ca, &cert, &cert).unwrap_err();
    assert!(
        said.contains("holds a certificate where a private key") && said.contains("--redis-key-file"),
        "{said}"
    );
    let name = Client::load(&Options { ca_file: Some(&ca), identity: None, server_name: "a b" }).unwrap_err();
    assert!(name.to_string().contains("--redis-server-name"), "{name}");
}
