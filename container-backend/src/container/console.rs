//! Terminals: a pair of the container's own devpts, whose other side goes to the agent over a socket.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat, fstatfs, major, minor, openat};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::root::{PointKind, Root};
use crate::errno::Errno;
use crate::mount;
use crate::request::TerminalSize;

/// linux/magic.h
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;
/// Documentation/admin-guide/devices.txt
const PTMX: (u32, u32) = (5, 2);

/// The agent's end and the child's end of the socket that a terminal travels over.
pub(crate) fn socket() -> Result<(OwnedFd, OwnedFd), Errno> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Opens a terminal below `root`, which may be hostile: nothing but the multiplexer of a devpts is opened. `own_fds` is the
/// folder /proc/self/fd of the agent's procfs, not the container's.
pub(crate) fn open(
    root: &Root,
    own_fds: BorrowedFd<'_>,
    size: TerminalSize,
) -> Result<(OwnedFd, OwnedFd), Errno> {
    let reference = root.resolve_without_symlinks(Path::new("/dev/pts/ptmx"))?;
    let stat = fstat(&reference)?;
    let is_multiplexer = FileType::from_raw_mode(stat.st_mode).is_char_device()
        && (major(stat.st_rdev), minor(stat.st_rdev)) == PTMX
        && fstatfs(&reference)?.f_type as i64 == DEVPTS_SUPER_MAGIC;
    if !is_multiplexer {
        return Err(Errno::from_raw(libc::ENODEV));
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let ours = openat(own_fds, reference.as_raw_fd().to_string(), flags, Mode::empty())?;
    unlockpt(&ours)?;
    tcsetwinsize(&ours, size.into())?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let theirs = ioctl_tiocgptpeer(&ours, flags)?;
    Ok((ours, theirs))
}

impl From<TerminalSize> for Winsize {
    fn from(size: TerminalSize) -> Self {
        Self { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
    }
}

/// Opens the other side of a terminal once more, for who wants it not to end while nothing has it open.
///
/// # Errors
/// When it cannot be opened any more.
pub fn open_terminal_peer(terminal: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    Ok(ioctl_tiocgptpeer(terminal, flags)?)
}

/// Tells a terminal how large it is; what runs on it gets SIGWINCH.
///
/// # Errors
/// When it is no terminal.
pub fn resize_terminal(terminal: BorrowedFd<'_>, size: TerminalSize) -> std::io::Result<()> {
    Ok(tcsetwinsize(terminal, size.into())?)
}

/// Puts the terminal on /dev/console, where init systems look for one.
pub(crate) fn bind_console(root: &Root, terminal: BorrowedFd<'_>) -> Result<(), Errno> {
    let point = root.resolve_or_make(Path::new("/dev/console"), PointKind::File)?;
    mount::attach(mount::clone_at(terminal, "", false)?, point)
}

pub(crate) fn send(socket: BorrowedFd<'_>, terminal: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [terminal];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(socket, &[IoSlice::new(b"t")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The terminal that was sent; never waits.
pub(crate) fn receive(socket: &OwnedFd) -> Result<OwnedFd, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    let received = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    received.ok_or(Errno::from_raw(libc::EBADMSG))
}
