//! The ioctls of a tap.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// The flags that the tap was opened with (IFF_TAP, IFF_VNET_HDR ..).
///
/// # Errors
/// ENOTTY, EINVAL: it is no tap.
pub(super) fn flags(tap: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    // SAFETY: all fields of an ifreq are plain numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes an ifreq to `request`, which outlives the call.
    Errno::result(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: TUNGETIFF fills in the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    // The bits are those of an unsigned 16 bit number.
    Ok(libc::c_int::from(flags) & 0xffff)
}

/// Sets how many bytes stand before each packet.
///
/// # Errors
/// Those of ioctl(2).
pub(super) fn set_header_length(tap: BorrowedFd<'_>, length: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads an int from `length`, which outlives the call.
    Errno::result(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const length) })?;
    Ok(())
}

/// Says which packets the reader can take besides plain ones (TUN_F_CSUM ..).
///
/// # Errors
/// Those of ioctl(2).
pub(super) fn set_offloads(tap: BorrowedFd<'_>, offloads: libc::c_uint) -> io::Result<()> {
    // SAFETY: this ioctl takes a number, no pointer.
    Errno::result(unsafe {
        libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads))
    })?;
    Ok(())
}
