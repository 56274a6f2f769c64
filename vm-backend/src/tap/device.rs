//! The tap itself.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{TapError, step, sys};

const NODE: &str = "/dev/net/tun";

/// The first that is free: tap0, unless a plugin has made one.
const NAME: &str = "tap%d";

/// The greatest MTU of a tap (drivers/net/tun.c: packets have at most 65535 bytes with their Ethernet header).
pub(super) const MAX_MTU: u32 = 65535 - 14;

/// Opens a tap in this thread's network namespace; also gives its name. The VMM's device sets the header's length and the offloads.
pub(super) fn open() -> Result<(OwnedFd, String), TapError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let tun = rustix::fs::open(NODE, flags, Mode::empty()).map_err(|errno| match errno {
        // No node, or one without a driver.
        Errno::NOENT | Errno::NODEV | Errno::NXIO => {
            TapError::Module { what: "a guest's network", module: "tun", source: errno.into() }
        }
        _ => step("open /dev/net/tun")(errno),
    })?;
    let name = sys::make_tap(tun.as_fd(), NAME).map_err(step("make a tap"))?;
    Ok((tun, name))
}
