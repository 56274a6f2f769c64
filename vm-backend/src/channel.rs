//! Packets with descriptors over `SOCK_SEQPACKET` sockets.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Descriptors in a packet at most: SCM_MAX_FD of the kernel.
pub const MAX_FDS: usize = 253;
/// Bytes of a packet at most. A message that names all descriptors has some 10 KiB.
pub const MAX_BYTES: usize = 64 << 10;

/// What came.
#[derive(Debug)]
pub struct Packet {
    pub bytes: Vec<u8>,
    /// Close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Sends one packet.
///
/// # Errors
/// There are more than [`MAX_FDS`] descriptors, or the kernel refuses.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if fds.len() > MAX_FDS || (!fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds))) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::io::retry_on_intr(|| sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Receives one packet; `None` when the other side has closed.
///
/// # Errors
/// The packet is larger than [`MAX_BYTES`] or has more descriptors than [`MAX_FDS`] or than this process may have
/// (`InvalidData`), or the kernel refuses. Descriptors of a refused packet are closed.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Packet>> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; MAX_BYTES];
    let got = rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let refused = |why| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    if got.flags.contains(ReturnFlags::TRUNC) {
        return refused("the packet is too large");
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return refused("descriptors were lost: there are too many in the packet, or open already");
    }
    // An empty packet is nothing that anybody sends; on a closed socket the kernel says 0 as well.
    if got.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(got.bytes);
    Ok(Some(Packet { bytes, fds }))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::fd::AsFd as _;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    pub(crate) fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn bytes_and_descriptors_arrive_together() {
        let (a, b) = pair();
        let file = tempfile::tempfile().unwrap();
        send(a.as_fd(), b"hello", &[file.as_fd(), a.as_fd()]).unwrap();
        let packet = receive(b.as_fd()).unwrap().unwrap();
        assert_eq!((packet.bytes.as_slice(), packet.fds.len()), (b"hello".as_slice(), 2));
        let sent = rustix::fs::fstat(&file).unwrap();
        assert_eq!(rustix::fs::fstat(&packet.fds[0]).unwrap().st_ino, sent.st_ino);
        drop((a, packet));
        assert!(receive(b.as_fd()).unwrap().is_none());
    }

    #[test]
    fn a_packet_that_is_too_large_is_refused_and_the_next_one_is_not() {
        let (a, b) = pair();
        send(a.as_fd(), &vec![1; MAX_BYTES + 1], &[]).unwrap();
        send(a.as_fd(), &vec![2; MAX_BYTES], &[]).unwrap();
        assert_eq!(receive(b.as_fd()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(receive(b.as_fd()).unwrap().unwrap().bytes.len(), MAX_BYTES);
    }

    #[test]
    fn as_many_descriptors_as_the_kernel_takes() {
        let (a, b) = pair();
        send(a.as_fd(), b"x", &vec![a.as_fd(); MAX_FDS]).unwrap();
        assert_eq!(receive(b.as_fd()).unwrap().unwrap().fds.len(), MAX_FDS);
        assert!(send(a.as_fd(), b"x", &vec![a.as_fd(); MAX_FDS + 1]).is_err());
    }
}
