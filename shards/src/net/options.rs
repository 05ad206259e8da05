//! Socket options that the configuration decides. They are set on listening sockets; accepted ones inherit them.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::SockRef;

use crate::config::Expert;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOptions {
    notsent_lowat: u32,
    receive_bytes: Option<usize>,
    send_bytes: Option<usize>,
    busy_poll: Duration,
}

impl SocketOptions {
    /// Those of `expert`.
    pub fn new(expert: &Expert) -> Self {
        Self {
            notsent_lowat: u32::try_from(expert.notsent_lowat).unwrap_or(u32::MAX),
            receive_bytes: expert.socket_receive_bytes,
            send_bytes: expert.socket_send_bytes,
            busy_poll: expert.busy_poll,
        }
    }

    /// Sets them.
    ///
    /// # Errors
    /// The kernel's, with the name of the setting that it refuses: EPERM for busy polling without CAP_NET_ADMIN.
    pub fn apply(self, socket: &impl AsFd) -> io::Result<()> {
        let socket = SockRef::from(socket);
        socket.set_tcp_notsent_lowat(self.notsent_lowat).map_err(named("notsent_lowat"))?;
        if let Some(bytes) = self.receive_bytes {
            socket.set_recv_buffer_size(bytes).map_err(named("socket_receive_bytes"))?;
        }
        if let Some(bytes) = self.send_bytes {
            socket.set_send_buffer_size(bytes).map_err(named("socket_send_bytes"))?;
        }
        if !self.busy_poll.is_zero() {
            let micros = u32::try_from(self.busy_poll.as_micros()).unwrap_or(u32::MAX);
            socket.set_busy_poll(micros).map_err(named("busy_poll (CAP_NET_ADMIN is due)"))?;
        }
        Ok(())
    }
}

fn named(setting: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("the kernel refuses {setting}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    #[test]
    fn accepted_sockets_have_what_the_listening_one_was_given() {
        let expert = Expert {
            notsent_lowat: 4096,
            socket_receive_bytes: Some(20_000),
            socket_send_bytes: Some(30_000),
            busy_poll: Duration::from_micros(50),
            ..Expert::default()
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let is_allowed = match SocketOptions::new(&expert).apply(&listener) {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
                assert!(error.to_string().contains("busy_poll"), "{error}");
                false
            }
        };
        let _client = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
        let (accepted, _) = listener.accept().expect("a connection is queued");
        let socket = SockRef::from(&accepted);
        assert_eq!(socket.tcp_notsent_lowat().expect("an option"), 4096);
        // socket(7): the kernel doubles these.
        assert_eq!(socket.recv_buffer_size().expect("an option"), 40_000);
        assert_eq!(socket.send_buffer_size().expect("an option"), 60_000);
        assert_eq!(socket.busy_poll().expect("an option"), if is_allowed { 50 } else { 0 });
    }

    #[test]
    fn without_a_word_the_kernel_keeps_its_own_buffers() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let buffers = |listener: &TcpListener| {
            let socket = SockRef::from(listener);
            (socket.recv_buffer_size().expect("an option"), socket.send_buffer_size().expect("an option"))
        };
        let before = buffers(&listener);
        SocketOptions::new(&Expert::default()).apply(&listener).expect("nothing that is forbidden");
        assert_eq!(buffers(&listener), before);
    }
}
