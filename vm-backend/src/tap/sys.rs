//! Making a tap.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::errno::Errno;

/// Makes `tun`, an open /dev/net/tun, the descriptor of a new tap: single-queued, with a virtio header before each packet, gone with
/// the descriptor. The kernel puts a number in the place of `%d` in `name`; the name it has given is returned.
///
/// # Errors
/// Those of ioctl(2).
pub(super) fn make_tap(tun: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    // All of them fit 16 bits.
    #[allow(clippy::cast_possible_truncation)]
    const FLAGS: libc::c_short = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: FLAGS },
    };
    // The last byte stays 0.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the kernel reads and writes an ifreq, which outlives the call.
    Errno::result(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
    let name = request.ifr_name.iter().take_while(|byte| **byte != 0);
    let name = name.map(|byte| byte.to_ne_bytes()[0]).collect();
    String::from_utf8(name).map_err(io::Error::other)
}

/// Says which packets the reader of a tap can take besides plain ones (TUN_F_CSUM ..).
#[cfg(test)]
pub(super) fn set_offloads(tap: BorrowedFd<'_>, offloads: libc::c_uint) -> io::Result<()> {
    // SAFETY: this ioctl takes a number, no pointer.
    Errno::result(unsafe {
        libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(offloads))
    })?;
    Ok(())
}
