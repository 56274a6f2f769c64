//! A tap and a packet socket on it, as a pod's network would have them.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// Opens a tap named `tap0` in the network namespace of this thread and brings it up. Also gives its index.
pub(super) fn open_tap() -> io::Result<(OwnedFd, libc::c_int)> {
    let tap: OwnedFd = std::fs::File::options().read(true).write(true).open("/dev/net/tun")?.into();
    // SAFETY: all fields of an ifreq are plain numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(*b"tap0") {
        *place = libc::c_char::try_from(byte).unwrap();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap();
    // SAFETY: the kernel reads and writes an ifreq, which outlives the call.
    Errno::result(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).unwrap();
    // SAFETY: the kernel reads an ifreq, which outlives the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })?;
    // SAFETY: the kernel reads and writes an ifreq, which outlives the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request) })?;
    // SAFETY: SIOCGIFINDEX fills in the index.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    Ok((tap, index))
}

/// A socket for whole packets on the interface `index`, each after a struct virtio_net_hdr of 10 bytes.
pub(super) fn packet_socket(index: libc::c_int) -> io::Result<OwnedFd> {
    const EVERYTHING: u16 = 3;
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is passed.
    let socket = Errno::result(unsafe { libc::socket(libc::AF_PACKET, kind, EVERYTHING.to_be().into()) })?;
    // SAFETY: the descriptor was made just now and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all fields of a sockaddr_ll are plain numbers.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::c_ushort::try_from(libc::AF_PACKET).unwrap();
    address.sll_protocol = EVERYTHING.to_be();
    address.sll_ifindex = index;
    let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
    // SAFETY: the kernel reads a sockaddr_ll of this length.
    Errno::result(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    let on: libc::c_int = 1;
    // PACKET_VNET_HDR of linux/if_packet.h.
    let option = (libc::SOL_PACKET, 15);
    // SAFETY: the kernel reads an int.
    Errno::result(unsafe {
        libc::setsockopt(socket.as_raw_fd(), option.0, option.1, (&raw const on).cast(), 4)
    })?;
    rustix::net::sockopt::set_socket_timeout(
        socket.as_fd(),
        rustix::net::sockopt::Timeout::Recv,
        Some(std::time::Duration::from_secs(10)),
    )?;
    Ok(socket)
}
