//! A container's disk in a guest. What waits for disks does so in children of the agent; they are in the agent's cgroup, for a container's own may
//! not open devices.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use hartpod_container::{Child, DiskMounts, DiskRoot, Failure, HostMounts, Slot, fork_role, open_disk};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::time::timeout;
use tracing::warn;

use crate::children::Children;
use crate::status_code::chain;
use crate::sys::Watched;

/// What ps shows of the children.
const NAME: &str = "hartpod-disk";

/// How long the kernel may take to unmount what the container's last process has left.
const UNUSED_WAIT: Duration = Duration::from_secs(2);

/// How long a disk may take that does not answer.
const STUCK_WAIT: Duration = Duration::from_secs(30);

/// Descriptors in one message: a layer in each but one partition of a GPT, and what is written to. The kernel's limit is 253.
const FDS_MAX: usize = 128;

/// Longest answer of a child.
const ANSWER_MAX: usize = 4096;

/// Why a container's disk cannot be had, or not be let go.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("start a child that works with the disk")]
    Fork(#[source] io::Error),
    #[error("hear of the child that works with the disk")]
    Talk(#[source] io::Error),
    #[error(transparent)]
    Open(Failure),
    #[error("the guest's kernel does not let the disk go")]
    Refused,
    #[error("the disk does not answer")]
    Stuck,
}

/// Binds the driver and mounts what is on the disk, in a child, which does `prepare` first.
pub(super) async fn open(
    root: &DiskRoot,
    host: &HostMounts,
    children: &Children,
    prepare: impl FnOnce() -> Result<(), Failure>,
) -> Result<DiskMounts, DiskError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|e| DiskError::Talk(e.into()))?;
    let child = fork_role(NAME, &[host.as_fd(), theirs.as_fd()], || {
        let opened = match host.enter() {
            Ok(()) => prepare().and_then(|()| open_disk(root)),
            Err(error) => {
                Err(Failure::Step { step: "enter the mounts of the guest".into(), errno: error.into() })
            }
        };
        match tell(theirs.as_fd(), &opened) {
            Ok(()) => 0,
            Err(error) => {
                warn!(%error, "cannot hand a disk's mounts over");
                1
            }
        }
    })
    .map_err(DiskError::Fork)?;
    drop(theirs);
    tokio::spawn(children.own(&child));
    let _no_longer = Ending(child);
    let watched = Watched::new(ours, Interest::READABLE).map_err(DiskError::Talk)?;
    let heard = timeout(STUCK_WAIT, watched.io(Interest::READABLE, |socket| hear(root, socket))).await;
    heard.map_err(|_| DiskError::Stuck)?.map_err(DiskError::Talk)?.map_err(DiskError::Open)
}

/// Ends the child when it goes, as it does with a creation that is given up: the slot that a removal then unbinds must stay so.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        // It only fails for a signal that does not exist.
        let _ = self.0.signal(libc::SIGKILL);
    }
}

/// Says how it went, with the mounts.
fn tell(socket: BorrowedFd<'_>, opened: &Result<DiskMounts, Failure>) -> io::Result<()> {
    let text = serde_json::to_vec(&opened.as_ref().map(|_| ()))?;
    let fds: Vec<BorrowedFd<'_>> = opened.iter().flat_map(DiskMounts::fds).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(socket, &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn hear(root: &DiskRoot, socket: BorrowedFd<'_>) -> io::Result<Result<DiskMounts, Failure>> {
    let mut text = [0; ANSWER_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let buffers = &mut [IoSliceMut::new(&mut text)];
    let received = recvmsg(socket, buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    // The child ended without a word.
    let text = text.get(..received.bytes).filter(|text| !text.is_empty());
    let text = text.ok_or(io::ErrorKind::UnexpectedEof)?;
    let opened: Result<(), Failure> = serde_json::from_slice(text)?;
    Ok(opened.map(|()| DiskMounts::from_fds(root, fds)))
}

/// Unbinds the driver of `slot` once nothing of the disk is mounted any more, in a child.
pub(crate) async fn release(slot: Slot, host: &HostMounts, children: &Children) -> Result<(), DiskError> {
    let release = || {
        if let Err(error) = host.enter() {
            warn!(%error, "cannot enter the mount namespace of the disks");
            return 1;
        }
        match slot.release(UNUSED_WAIT) {
            Ok(()) => 0,
            Err(error) => {
                warn!(error = chain(&error), "a disk is still bound");
                1
            }
        }
    };
    let child = fork_role(NAME, &[host.as_fd()], release).map_err(DiskError::Fork)?;
    // The child stays until the disk answers, and is buried then.
    match timeout(STUCK_WAIT, tokio::spawn(children.own(&child))).await {
        Ok(Ok(exit)) if exit.code == 0 => Ok(()),
        Ok(_) => Err(DiskError::Refused),
        Err(_) => Err(DiskError::Stuck),
    }
}

#[cfg(test)]
mod tests {
    use hartpod_container::Errno;

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn mounts_come_over_in_their_order_and_failures_with_their_words() {
        let (ours, theirs) = pair();
        let files: Vec<_> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
        let inode = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
        let expected: Vec<_> = files.iter().map(|file| inode(file.as_fd())).collect();
        let root = DiskRoot { slot: Slot::new(3).unwrap(), layers: 1, volume_layers: 1 };
        let mounts = DiskMounts::from_fds(&root, files.into_iter().map(Into::into).collect());
        tell(theirs.as_fd(), &Ok(mounts)).unwrap();
        let heard = hear(&root, ours.as_fd()).unwrap().unwrap();
        assert_eq!(heard.fds().map(inode).collect::<Vec<_>>(), expected);

        let failure = Failure::RootFs { what: "slot 4 is empty".into(), errno: Errno::NODEV };
        tell(theirs.as_fd(), &Err(failure)).unwrap();
        assert_eq!(
            hear(&root, ours.as_fd()).unwrap().unwrap_err().to_string(),
            "root file system: slot 4 is empty"
        );
        drop(theirs);
        assert_eq!(hear(&root, ours.as_fd()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
