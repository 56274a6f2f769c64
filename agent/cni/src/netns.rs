//! Network namespace files: what keeps a pod's network namespace alive while nothing runs in it.
//!
//! As with `ip netns`, such a file is an empty regular file onto which the namespace is bind-mounted. Its folder is
//! left as it is: under systemd /run is a shared mount, so the mount reaches other mount namespaces, and removing the
//! file detaches it everywhere.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// Type of the file system of namespaces (linux/magic.h, NSFS_MAGIC).
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// More mounts than this on top of each other are not ours.
const MAX_STACKED: usize = 16;

/// Why a network namespace could not be made, removed or listed.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}", path.display())]
pub struct NetnsError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Makes a network namespace with `lo` up and keeps it at `path`, making the folder when it is missing. A file left
/// by an earlier try is used; a namespace that is there already stays, and that is success.
///
/// Runs on a thread of its own, since a thread cannot leave a network namespace behind it safely.
///
/// # Errors
/// The step that failed. The file is removed again then.
pub fn create_blocking(path: &Path) -> Result<(), NetnsError> {
    if is_netns_blocking(path) {
        return Ok(());
    }
    keep_blocking(path, || {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|e| NetnsError::new("make a network namespace for", path, e.into()))
    })
}

/// As [`create_blocking`], for a network namespace that the caller has made: `lo` is brought up, and it is kept at `path`.
///
/// # Errors
/// The step that failed. The file is removed again then.
pub fn pin_blocking(path: &Path, namespace: BorrowedFd<'_>) -> Result<(), NetnsError> {
    keep_blocking(path, || {
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|e| NetnsError::new("enter the network namespace for", path, e.into()))
    })
}

/// Keeps the network namespace that `enter` takes a thread into.
fn keep_blocking(
    path: &Path,
    enter: impl FnOnce() -> Result<(), NetnsError> + Send,
) -> Result<(), NetnsError> {
    create_file(path)?;
    let made = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || enter().and_then(|()| bind(path)));
        let thread = thread.map_err(|source| NetnsError::new("start a thread for", path, source))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    made.inspect_err(|_| {
        // The error that led here says more than one about a left-over empty file could.
        let _ = remove_blocking(path);
    })
}

/// Removes a network namespace file; the namespace goes when nothing runs in it. One that is not there is success.
///
/// # Errors
/// The step that failed.
pub fn remove_blocking(path: &Path) -> Result<(), NetnsError> {
    for _ in 0..MAX_STACKED {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // Not, or no longer, a mount point.
            Err(Errno::EINVAL) => break,
            Err(Errno::ENOENT) => return Ok(()),
            Err(e) => return Err(NetnsError::new("unmount", path, e.into())),
        }
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(NetnsError::new("remove", path, e)),
        _ => Ok(()),
    }
}

/// The files in `dir` whose name begins with `prefix`, namespaces or not. A folder that does not exist has none.
///
/// # Errors
/// The folder cannot be read.
pub fn list_blocking(dir: &Path, prefix: &str) -> Result<Vec<PathBuf>, NetnsError> {
    let fail = |source| NetnsError::new("list", dir, source);
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(fail)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(fail)?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)) {
            found.push(entry.path());
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Whether there is a namespace at `path`, rather than nothing or the empty file that a reboot leaves.
#[must_use]
pub fn is_netns_blocking(path: &Path) -> bool {
    rustix::fs::statfs(path)
        .is_ok_and(|found| u64::try_from(found.f_type).is_ok_and(|kind| kind == NSFS_MAGIC))
}

impl NetnsError {
    fn new(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self { doing, path: path.to_owned(), source }
    }
}

fn create_file(path: &Path) -> Result<(), NetnsError> {
    let open =
        || OpenOptions::new().write(true).create(true).mode(0o644).custom_flags(libc::O_NOFOLLOW).open(path);
    let opened = match (open(), path.parent()) {
        (Err(e), Some(dir)) if e.kind() == io::ErrorKind::NotFound => {
            let made = DirBuilder::new().recursive(true).mode(0o755).create(dir);
            made.map_err(|e| NetnsError::new("create", dir, e))?;
            open()
        }
        (opened, _) => opened,
    };
    opened.map(drop).map_err(|e| NetnsError::new("create", path, e))
}

/// Binds the calling thread's network namespace to `path`.
fn bind(path: &Path) -> Result<(), NetnsError> {
    loopback_up().map_err(|e| NetnsError::new("bring lo up for", path, e))?;
    let none: Option<&str> = None;
    mount(Some("/proc/thread-self/ns/net"), path, none, MsFlags::MS_BIND, none)
        .map_err(|e| NetnsError::new("bind the network namespace to", path, e.into()))
}

/// Sets IFF_UP on `lo`, which is interface 1 of every network namespace, with one netlink message (rtnetlink(7)).
fn loopback_up() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_ACK: u16 = 0x1 | 0x4;
    const NLMSG_ERROR: u16 = 2;
    const LEN: u32 = 32;
    let up = (libc::IFF_UP as u32).to_ne_bytes();
    let mut message = Vec::with_capacity(LEN as usize);
    // nlmsghdr: length, type, flags, sequence, sender
    message.extend(LEN.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend([1u32.to_ne_bytes(), 0u32.to_ne_bytes()].concat());
    // ifinfomsg: family and padding, type; index, flags, which flags to change
    message.extend([0u32.to_ne_bytes(), 1u32.to_ne_bytes(), up, up].concat());

    let family = (AddressFamily::Netlink, SockType::Raw, SockProtocol::NetlinkRoute);
    let socket: OwnedFd = socket(family.0, family.1, SockFlag::SOCK_CLOEXEC, family.2)?;
    sendto(socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0u8; 256];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // nlmsghdr again, then the error number, negative, or 0
    match answer.get(..length) {
        Some([_, _, _, _, kind0, kind1, _, _, _, _, _, _, _, _, _, _, e0, e1, e2, e3, ..])
            if u16::from_ne_bytes([*kind0, *kind1]) == NLMSG_ERROR =>
        {
            match i32::from_ne_bytes([*e0, *e1, *e2, *e3]) {
                0 => Ok(()),
                code => Err(io::Error::from_raw_os_error(-code)),
            }
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "unexpected answer from rtnetlink")),
    }
}
