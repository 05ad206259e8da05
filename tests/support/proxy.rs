//! A TCP proxy between the server and its Redis, and an impostor in the place of Redis.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Passes bytes both ways until it is told to swallow them.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    stop: AtomicBool,
    silent: AtomicBool,
    accepted: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// A proxy to `target` on a free port.
    #[track_caller]
    pub fn to(target: SocketAddr) -> Self {
        Self::serve(move |client, shared| {
            let Ok(upstream) = TcpStream::connect(target) else { return };
            let Ok((client_twin, upstream_twin)) =
                client.try_clone().and_then(|twin| Ok((twin, upstream.try_clone()?)))
            else {
                return;
            };
            shared.remember(&upstream);
            let back = Arc::clone(shared);
            thread::spawn(move || pump(upstream_twin, client_twin, &back));
            pump(client, upstream, shared);
        })
    }

    /// In the place of Redis: says `words` to whoever connects, then listens and says no more.
    #[track_caller]
    pub fn impostor(words: Vec<u8>) -> Self {
        Self::serve(move |mut client, shared| {
            // The server may hang up in the middle of it, which is one way to pass the test.
            let _ = client.write_all(&words);
            discard(client, shared);
        })
    }

    /// In the place of Redis: answers every read with the next of `words`, over and over.
    #[track_caller]
    pub fn parrot(words: Vec<Vec<u8>>) -> Self {
        Self::serve(move |mut client, shared| {
            let mut answers = words.iter().cycle();
            let mut chunk = [0; 4096];
            while client.read(&mut chunk).is_ok_and(|read| read > 0) && !shared.stop.load(Ordering::Acquire) {
                let answer = answers.next().map_or(&[][..], Vec::as_slice);
                if client.write_all(answer).is_err() {
                    return;
                }
            }
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// From now on connections are taken and stay open, and nothing passes: a peer that is gone without a FIN.
    pub fn fall_silent(&self) {
        self.shared.silent.store(true, Ordering::Release);
    }

    /// Passes bytes again; what was swallowed stays lost.
    pub fn speak(&self) {
        self.shared.silent.store(false, Ordering::Release);
    }

    /// Breaks every connection.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Connections taken so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Acquire)
    }

    #[track_caller]
    fn serve(handle: impl Fn(TcpStream, &Arc<Shared>) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("127.0.0.1 has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            accepted: AtomicUsize::new(0),
            open: Mutex::new(Vec::new()),
        });
        let (accepting, handle) = (Arc::clone(&shared), Arc::new(handle));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.stop.load(Ordering::Acquire) {
                    return;
                }
                accepting.accepted.fetch_add(1, Ordering::AcqRel);
                accepting.remember(&client);
                let (shared, handle) = (Arc::clone(&accepting), Arc::clone(&handle));
                thread::spawn(move || handle(client, &shared));
            }
        });
        Self { address, shared }
    }
}

impl Shared {
    fn remember(&self, stream: &TcpStream) {
        if let Ok(twin) = stream.try_clone() {
            self.open.lock().expect("nobody panics with this lock").push(twin);
        }
    }

    fn cut(&self) {
        for stream in self.open.lock().expect("nobody panics with this lock").drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.cut();
        // Wakes the accepting thread, which then sees `stop`.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let mut chunk = [0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut chunk) {
        if shared.silent.load(Ordering::Acquire) {
            continue;
        }
        if to.write_all(&chunk[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

fn discard(mut client: TcpStream, shared: &Shared) {
    let mut chunk = [0; 4096];
    while !shared.stop.load(Ordering::Acquire) {
        match client.read(&mut chunk) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
