//! Descriptors that travel over a Unix socket beside a few bytes (SCM_RIGHTS, unix(7)): sockets from a parent to its
//! children, and connections that one process accepted and another answers.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Descriptors in one message. The kernel takes 253 (`SCM_MAX_FD`); more go in several.
pub const DESCRIPTORS_MAX: usize = 64;

/// What one message brought.
#[derive(Debug)]
pub struct Received {
    /// Bytes of the buffer that were filled; 0 at the end of the other side.
    pub bytes: usize,
    /// At most [`DESCRIPTORS_MAX`], closed in children of this process.
    pub descriptors: Vec<OwnedFd>,
}

/// Two ends that keep the bounds of messages, closed in children of this process.
///
/// # Errors
/// Out of descriptors.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends `bytes`, at least one, and `descriptors` in one message.
///
/// # Errors
/// EPIPE where nobody is left to read it; EAGAIN where `flags` say not to wait and the other side is behind.
///
/// # Panics
/// Above [`DESCRIPTORS_MAX`].
pub fn send(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    assert!(descriptors.len() <= DESCRIPTORS_MAX, "{} descriptors in one message", descriptors.len());
    assert!(!bytes.is_empty(), "a message without bytes reads as the end");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        let pushed = beside.push(SendAncillaryMessage::ScmRights(descriptors));
        assert!(pushed, "the space is that of the most descriptors");
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(bytes)], &mut beside, flags | SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives one message into `buffer`; what is longer is cut.
///
/// # Errors
/// EAGAIN where `flags` say not to wait and there is none.
pub fn receive(socket: impl AsFd, buffer: &mut [u8], flags: RecvFlags) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let into = &mut [IoSliceMut::new(buffer)];
        match recvmsg(&socket, into, &mut beside, flags | RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            received => break received?,
        }
    };
    let descriptors = beside.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(Received { bytes: received.bytes, descriptors: descriptors.flatten().collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_arrives_beside_its_bytes_and_the_end_is_no_message() {
        let (ours, theirs) = pair().expect("descriptors are left");
        let (mut kept, sent) = UnixStream::pair().expect("descriptors are left");
        send(&ours, b"one", &[sent.as_fd()], SendFlags::empty()).expect("there is a reader");
        send(&ours, b"none", &[], SendFlags::empty()).expect("there is a reader");
        drop((ours, sent));

        let mut buffer = [0; 16];
        let mut next = || receive(&theirs, &mut buffer, RecvFlags::empty()).expect("a message or the end");
        let first = next();
        assert_eq!((first.bytes, first.descriptors.len()), (3, 1));
        let mut passed = UnixStream::from(first.descriptors.into_iter().next().expect("one"));
        let second = next();
        assert_eq!((second.bytes, second.descriptors.len()), (4, 0));
        assert_eq!(next().bytes, 0);
        passed.write_all(b"heard").expect("its other end is open");
        drop(passed);
        let mut heard = String::new();
        kept.read_to_string(&mut heard).expect("it was closed in order");
        assert_eq!(heard, "heard");
    }
}
