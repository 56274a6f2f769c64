//! What stands in folders: finding, making, removing.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Statx};
use rustix::io::Errno;

use super::super::fuse::{Answer, Args, Header};
use super::Server;
use super::identity::As;
use super::inode::Node;

/// Bytes of a link's text (PATH_MAX).
const LINK_MAX: usize = 4096;
/// Permission bits, with set-user, set-group and sticky.
const MODE: u32 = 0o7777;

impl Server {
    pub(super) fn look_up(
        &self,
        folder: &Node,
        args: &mut Args<'_>,
        answer: &mut Answer<'_>,
    ) -> Result<(), Errno> {
        if folder.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        self.tell_of(folder, args.name()?, answer)
    }

    /// Tells of what stands at a name.
    pub(super) fn tell_of(&self, folder: &Node, name: &CStr, answer: &mut Answer<'_>) -> Result<(), Errno> {
        let fd = rustix::fs::openat(
            folder,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let (node, told) = self.nodes.learn(fd, &folder.volume)?;
        self.tell_entry(&node, &told, answer);
        Ok(())
    }

    /// Tells of what was just made, by its descriptor.
    pub(super) fn tell_of_made(
        &self,
        folder: &Node,
        made: BorrowedFd<'_>,
        answer: &mut Answer<'_>,
    ) -> Result<(), Errno> {
        let fd = rustix::fs::openat(
            rustix::fs::CWD,
            self.path_of_fd(made),
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let (node, told) = self.nodes.learn(fd, &folder.volume)?;
        self.tell_entry(&node, &told, answer);
        Ok(())
    }

    /// struct fuse_entry_out. Valid for no time, as its attributes.
    pub(super) fn tell_entry(&self, node: &Node, told: &Statx, answer: &mut Answer<'_>) {
        for word in [node.id, 0, 0, 0, 0] {
            answer.u64(word);
        }
        self.attributes(told, answer);
    }

    pub(super) fn read_link(&self, node: &Node, answer: &mut Answer<'_>) -> Result<(), Errno> {
        if node.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let text = rustix::fs::readlinkat(node, c"", Vec::with_capacity(LINK_MAX))?;
        answer.bytes(text.to_bytes());
        Ok(())
    }

    pub(super) fn symlink(
        &self,
        header: Header,
        folder: &Node,
        args: &mut Args<'_>,
        answer: &mut Answer<'_>,
    ) -> Result<(), Errno> {
        let (name, text) = (args.name()?, args.text()?);
        self.make(header, folder, name, answer, || rustix::fs::symlinkat(text, folder, name))
    }

    /// Files, pipes and sockets: never devices, which would be the node's.
    pub(super) fn make_node(
        &self,
        header: Header,
        folder: &Node,
        args: &mut Args<'_>,
        answer: &mut Answer<'_>,
    ) -> Result<(), Errno> {
        let [mode, _device, _umask, _] = args.words()?;
        let name = args.name()?;
        let kind = FileType::from_raw_mode(mode);
        if !matches!(kind, FileType::RegularFile | FileType::Fifo | FileType::Socket) {
            return Err(Errno::PERM);
        }
        let mode = Mode::from_raw_mode(mode & MODE);
        self.make(header, folder, name, answer, || rustix::fs::mknodat(folder, name, kind, mode, 0))
    }

    pub(super) fn make_folder(
        &self,
        header: Header,
        folder: &Node,
        args: &mut Args<'_>,
        answer: &mut Answer<'_>,
    ) -> Result<(), Errno> {
        let [mode, _umask] = args.words()?;
        let (name, mode) = (args.name()?, Mode::from_raw_mode(mode & MODE));
        self.make(header, folder, name, answer, || rustix::fs::mkdirat(folder, name, mode))
    }

    /// Makes what is to stand at a name, as the guest's user, and tells of it.
    fn make(
        &self,
        header: Header,
        folder: &Node,
        name: &CStr,
        answer: &mut Answer<'_>,
        make: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        Self::changeable_folder(folder)?;
        {
            let _as = As::user(header.uid, header.gid)?;
            make()?;
        }
        self.tell_of(folder, name, answer)
    }

    pub(super) fn unlink(&self, folder: &Node, args: &mut Args<'_>, kind: AtFlags) -> Result<(), Errno> {
        Self::changeable_folder(folder)?;
        rustix::fs::unlinkat(folder, args.name()?, kind)
    }

    pub(super) fn rename(&self, from: &Node, args: &mut Args<'_>, with_flags: bool) -> Result<(), Errno> {
        let to = args.u64()?;
        let flags = match with_flags {
            true => args.words::<2>()?[0],
            false => 0,
        };
        let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
        let flags = RenameFlags::from_bits(flags).filter(|flags| known.contains(*flags));
        let flags = flags.ok_or(Errno::INVAL)?;
        let to = self.sibling(from, to)?;
        let (old, new) = (args.name()?, args.name()?);
        rustix::fs::renameat_with(from, old, &*to, new, flags)
    }

    pub(super) fn link(
        &self,
        folder: &Node,
        args: &mut Args<'_>,
        answer: &mut Answer<'_>,
    ) -> Result<(), Errno> {
        let linked = self.nodes.get(args.u64()?)?;
        let name = args.name()?;
        Self::changeable_folder(folder)?;
        if linked.volume.number != folder.volume.number {
            return Err(Errno::XDEV);
        }
        rustix::fs::linkat(CWD, self.path_of(&linked), folder, name, AtFlags::SYMLINK_FOLLOW)?;
        let told = linked.look()?;
        self.nodes.tell_again(linked.id)?;
        self.tell_entry(&linked, &told, answer);
        Ok(())
    }

    /// Another folder of the same volume: nothing goes from one to another, as little as between file systems.
    fn sibling(&self, folder: &Node, other: u64) -> Result<std::sync::Arc<Node>, Errno> {
        // The root is no folder of a volume.
        let other = self.nodes.get(other).map_err(|_| Errno::XDEV)?;
        Self::changeable_folder(folder)?;
        Self::changeable_folder(&other)?;
        if other.volume.number == folder.volume.number { Ok(other) } else { Err(Errno::XDEV) }
    }

    /// Makes a file that is not there yet, and opens it.
    pub(super) fn make_file(
        &self,
        header: Header,
        folder: &Node,
        name: &CStr,
        (flags, mode): (OFlags, u32),
    ) -> Result<std::os::fd::OwnedFd, Errno> {
        let flags = flags
            | OFlags::CREATE
            | OFlags::EXCL
            | OFlags::NOFOLLOW
            | OFlags::CLOEXEC
            | OFlags::NONBLOCK
            | OFlags::NOCTTY;
        let _as = As::user(header.uid, header.gid)?;
        rustix::fs::openat(folder.as_fd(), name, flags, Mode::from_raw_mode(mode & MODE))
    }
}
