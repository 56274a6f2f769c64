//! The file server: requests of a guest's kernel in, answers out.
//!
//! The guest is hostile. Whatever it says names a [`node`](inode::Node), by a number that it was told, and at most one component of a path below
//! it; nodes are descriptors opened with O_PATH and without following links, so there is nothing that leads out of a volume. Files and
//! folders alone are ever opened, by way of the descriptor. A volume that is read-only is so here, whatever the guest believes.
//!
//! Who may do what in a volume is for the guest's kernel to decide (`default_permissions`); files are made as the user and group that it names.
//!
//! Names and attributes are told for no time at all: the guest asks each time. So what the node, or another container, changes is seen at once, as it
//! would be without a guest between; and what nothing in the guest uses is forgotten at once, so that it pins nothing here.

mod attributes;
mod closer;
mod data;
mod folder;
mod handle;
mod identity;
mod inode;
mod names;
mod places;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, Statx};
use rustix::io::Errno;

pub use handle::MAX_HANDLES;
pub use inode::MAX_NODES;

use super::fuse::{self, Answer, Args, Header, OUT_HEADER, ROOT, finish, op};
use super::wire::MAX_DATA;
use closer::Closer;
use handle::{Handle, Handles};
use inode::{Node, Nodes, Volume};

/// Volumes at a time: more than a pod has.
pub const MAX_VOLUMES: usize = 1024;

/// Where this process finds its own descriptors by their numbers.
const OWN_FILES: &str = "/proc/self/fd";

/// The server.
#[derive(Debug)]
pub struct Server {
    nodes: Nodes,
    handles: Handles,
    volumes: Mutex<Volumes>,
    /// Devices that file systems were seen on, which tell apart what has the same inode number.
    devices: Mutex<Vec<(u32, u32)>>,
    own_files: String,
    closer: Closer<Gone>,
}

/// What is closed by somebody who may wait for it.
type Gone = (Option<Arc<Node>>, Option<Arc<Handle>>);

/// For the storage of a volume to answer when it is shared. The daemon, which has looked at it before, waits 10 s for each.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Volumes {
    by_number: BTreeMap<u64, Shared>,
    next: u64,
    /// Owners of what is being looked at, by numbers of these looks.
    looks: HashMap<u64, String>,
    next_look: u64,
}

#[derive(Debug)]
struct Shared {
    root: Arc<Node>,
    /// Two shares that are the same have the same.
    identity: String,
    /// Who uses it: containers.
    owners: BTreeSet<String>,
}

/// A folder or file to be shared.
#[derive(Debug)]
pub struct Share {
    /// Opened with O_PATH, or a mount that is attached nowhere.
    pub root: OwnedFd,
    pub read_only: bool,
    /// Of what it is: the same again is the same volume.
    pub identity: String,
    /// Who uses it.
    pub owner: String,
}

/// How much a guest may have open.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub nodes: usize,
    pub handles: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { nodes: MAX_NODES, handles: MAX_HANDLES }
    }
}

impl Server {
    /// A server without volumes.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self::with_own_files(limits, OWN_FILES)
    }

    /// As [`new`](Self::new), where the process finds its own descriptors in another folder; `""` is the root.
    #[must_use]
    pub fn with_own_files(limits: Limits, own_files: &str) -> Self {
        Self {
            nodes: Nodes::new(limits.nodes),
            handles: Handles::new(limits.handles),
            volumes: Mutex::default(),
            devices: Mutex::default(),
            own_files: own_files.to_owned(),
            closer: Closer::default(),
        }
    }

    /// Shows a volume to the guest, as the entry of this number in the root. The same share again is the same number, with one more owner.
    ///
    /// # Errors
    /// ENFILE where there are too many, ETIMEDOUT where the storage does not answer, ECANCELED where the owner is gone meanwhile, and those of
    /// statx(2).
    pub fn share(&self, share: Share) -> Result<u64, Errno> {
        let Share { root, read_only, identity, owner } = share;
        let mut volumes = self.volumes();
        if let Some(number) = volumes.share_again(&identity, &owner)? {
            return Ok(number);
        }
        let look = volumes.begin(&owner);
        drop(volumes);
        // Nothing is locked while this waits for the storage.
        let looked = in_time(PATIENCE, move || inode::look(root.as_fd()).map(|told| (root, told)));
        let mut volumes = self.volumes();
        volumes.finish(look)?;
        let root = looked?;
        if let Some(number) = volumes.share_again(&identity, &owner)? {
            return Ok(number);
        }
        let number = volumes.next;
        let volume = Arc::new(Volume::new(number, read_only));
        let root = self.nodes.pin(root, &volume)?;
        volumes.next += 1;
        volumes.by_number.insert(number, Shared { root, identity, owners: BTreeSet::from([owner]) });
        Ok(number)
    }

    /// An owner is gone, and what it alone used: nothing of that can be reached from then on. The numbers of those volumes.
    pub fn release(&self, owner: &str) -> Vec<u64> {
        let mut volumes = self.volumes();
        let mut gone = Vec::new();
        volumes.looks.retain(|_, other| other != owner);
        volumes.by_number.retain(|number, shared| {
            let stays = !shared.owners.remove(owner) || !shared.owners.is_empty();
            if !stays {
                shared.root.volume.set_gone();
                gone.push(*number);
            }
            stays
        });
        drop(volumes);
        for number in &gone {
            self.close(
                self.nodes.drop_all(|node, _| node.volume.number == *number),
                self.handles.drop_of(Some(*number)),
            );
        }
        gone
    }

    /// Which volume a request is about; none where it can be answered without looking at any.
    #[must_use]
    pub fn volume_of(&self, request: &[u8]) -> Option<u64> {
        let (header, mut args) = Header::parse(request)?;
        match (header.node, header.opcode) {
            (_, op::FORGET | op::BATCH_FORGET | op::INTERRUPT | op::INIT | op::DESTROY) => None,
            (ROOT, op::LOOKUP) => {
                let number = number(args.name().ok()?.to_bytes())?;
                self.volumes().by_number.contains_key(&number).then_some(number)
            }
            (ROOT, _) => None,
            (node, _) => self.nodes.get(node).ok().map(|node| node.volume.number),
        }
    }

    /// Does what a request asks for, and puts the answer, of at most `room` bytes, at the end of `answer`: nothing, where none is awaited.
    pub fn handle(&self, request: &[u8], room: usize, answer: &mut Vec<u8>) {
        let Some((header, args)) = Header::parse(request) else { return };
        match header.opcode {
            op::FORGET => return self.forget(header.node, args),
            op::BATCH_FORGET => return self.forget_many(args),
            op::INTERRUPT => return,
            _ => {}
        }
        let Some(room) = room.checked_sub(OUT_HEADER) else { return };
        let start = answer.len();
        answer.resize(start + OUT_HEADER, 0);
        let outcome = self.dispatch(header, args, room.min(MAX_DATA), &mut Answer(answer));
        let outcome = match answer.len() - start - OUT_HEADER > room {
            // What was to be told does not fit what the guest left for it.
            true => outcome.and(Err(Errno::INVAL)),
            false => outcome,
        };
        finish(answer, start, header.unique, outcome);
    }

    fn dispatch(
        &self,
        header: Header,
        mut args: Args<'_>,
        room: usize,
        answer: &mut Answer<'_>,
    ) -> Result<(), Errno> {
        let args = &mut args;
        match header.opcode {
            op::INIT => return self.init(args, answer),
            op::DESTROY => {
                self.close(self.nodes.begin_anew(), self.handles.drop_of(None));
                return Ok(());
            }
            _ if header.node == ROOT => return self.at_root(header, args, answer),
            _ => {}
        }
        let node = self.nodes.get(header.node)?;
        match header.opcode {
            op::LOOKUP => self.look_up(&node, args, answer),
            op::GETATTR => self.tell_attributes(&node.look()?, answer),
            op::SETATTR => self.set_attributes(&node, args, answer),
            op::READLINK => self.read_link(&node, answer),
            op::SYMLINK => self.symlink(header, &node, args, answer),
            op::MKNOD => self.make_node(header, &node, args, answer),
            op::MKDIR => self.make_folder(header, &node, args, answer),
            op::UNLINK => self.unlink(&node, args, rustix::fs::AtFlags::empty()),
            op::RMDIR => self.unlink(&node, args, rustix::fs::AtFlags::REMOVEDIR),
            op::RENAME => self.rename(&node, args, false),
            op::RENAME2 => self.rename(&node, args, true),
            op::LINK => self.link(&node, args, answer),
            op::OPEN => self.open(&node, args, answer),
            op::CREATE => self.create(header, &node, args, answer),
            op::READ => self.read(args, room, answer),
            op::WRITE => self.write(args, answer),
            op::STATFS => Self::tell_space(Some(&node), answer),
            op::RELEASE | op::RELEASEDIR => self.handles.remove(args.u64()?).map(drop),
            op::FLUSH => self.flush(args),
            op::FSYNC | op::FSYNCDIR => self.sync(args),
            op::SETXATTR => self.set_xattr(&node, args),
            op::GETXATTR => self.get_xattr(&node, args, room, answer),
            op::LISTXATTR => self.list_xattrs(&node, args, room, answer),
            op::REMOVEXATTR => self.remove_xattr(&node, args),
            op::OPENDIR => self.open_folder(&node, answer),
            op::READDIR => self.read_folder(args, room, answer),
            op::FALLOCATE => self.allocate(args),
            op::LSEEK => self.seek(args, answer),
            op::COPY_FILE_RANGE => self.copy(args, answer),
            _ => Err(Errno::NOSYS),
        }
    }

    /// A driver begins: whatever an earlier one knew is forgotten.
    fn init(&self, args: &mut Args<'_>, answer: &mut Answer<'_>) -> Result<(), Errno> {
        use fuse::init::*;

        let [major, minor, readahead, offered] = args.words()?;
        if major != fuse::MAJOR || minor < fuse::OLDEST_MINOR {
            return Err(Errno::PROTO);
        }
        self.close(self.nodes.begin_anew(), self.handles.drop_of(None));
        let wanted = ASYNC_READ
            | ATOMIC_O_TRUNC
            | BIG_WRITES
            | AUTO_INVAL_DATA
            | ASYNC_DIO
            | PARALLEL_DIROPS
            | MAX_PAGES
            | HANDLE_KILLPRIV_V2;
        let data = u32::try_from(MAX_DATA).unwrap_or(u32::MAX);
        for word in [fuse::MAJOR, fuse::MINOR, readahead.min(2 * data), offered & wanted] {
            answer.u32(word);
        }
        // Requests that nobody waits for, at a time, and when to hold them back.
        answer.u16(12);
        answer.u16(9);
        answer.u32(data);
        // Times are exact to a nanosecond.
        answer.u32(1);
        answer.u16(u16::try_from(MAX_DATA / 4096).unwrap_or(1));
        answer.u16(0);
        answer.bytes(&[0; 32]);
        Ok(())
    }

    /// The root, which holds the volumes by their numbers, and is nobody's to look around in.
    fn at_root(&self, header: Header, args: &mut Args<'_>, answer: &mut Answer<'_>) -> Result<(), Errno> {
        match header.opcode {
            op::LOOKUP => {
                let number = number(args.name()?.to_bytes()).ok_or(Errno::NOENT)?;
                let root = self.volumes().by_number.get(&number).map(|shared| shared.root.clone());
                let root = root.ok_or(Errno::NOENT)?;
                let told = root.look()?;
                self.nodes.tell_again(root.id)?;
                self.tell_entry(&root, &told, answer);
                Ok(())
            }
            op::GETATTR => {
                Self::tell_root(answer);
                Ok(())
            }
            op::STATFS => Self::tell_space(None, answer),
            op::OPENDIR | op::OPEN => Err(Errno::ACCESS),
            _ => Err(Errno::ROFS),
        }
    }

    fn forget(&self, node: u64, mut args: Args<'_>) {
        if let Ok(count) = args.u64() {
            self.close(self.nodes.forget(node, count).into_iter().collect(), Vec::new());
        }
    }

    fn forget_many(&self, mut args: Args<'_>) {
        let Ok([count, _]) = args.words() else { return };
        for _ in 0..count {
            let (Ok(node), Ok(lookups)) = (args.u64(), args.u64()) else { return };
            self.close(self.nodes.forget(node, lookups).into_iter().collect(), Vec::new());
        }
    }

    fn close(&self, nodes: Vec<Arc<Node>>, handles: Vec<Arc<Handle>>) {
        for node in nodes {
            self.closer.close(node.volume.number, (Some(node), None));
        }
        for handle in handles {
            self.closer.close(handle.volume.number, (None, Some(handle)));
        }
    }

    /// A node that a request is about to change something of.
    fn changeable(node: &Node) -> Result<(), Errno> {
        if node.volume.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// A folder in which a request is about to change something.
    fn changeable_folder(node: &Node) -> Result<(), Errno> {
        Self::changeable(node)?;
        if node.kind == FileType::Directory { Ok(()) } else { Err(Errno::NOTDIR) }
    }

    /// A path that means a descriptor of this process, whatever it is of: the kernel goes there without looking at names.
    fn path_of(&self, node: &Node) -> String {
        format!("{}/{}", self.own_files, node.number())
    }

    fn path_of_fd(&self, fd: BorrowedFd<'_>) -> String {
        format!("{}/{}", self.own_files, fd.as_raw_fd())
    }

    /// Opens what a node names, which cannot be anything else by now.
    fn reopen(&self, node: &Node, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        rustix::fs::openat(rustix::fs::CWD, self.path_of(node), flags, Mode::empty())
    }

    /// A number for programs in the guest, for which all volumes are one device: of the first file system seen it is the host's own.
    fn inode_number(&self, told: &Statx) -> u64 {
        const BITS: u32 = 48;
        const DEVICES: usize = 1 << 14;
        let device = (told.stx_dev_major, told.stx_dev_minor);
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let place = devices.iter().position(|known| *known == device).or_else(|| {
            (devices.len() < DEVICES).then(|| {
                devices.push(device);
                devices.len() - 1
            })
        });
        drop(devices);
        match place.and_then(|place| u64::try_from(place).ok()) {
            Some(place) if told.stx_ino >> BITS == 0 => place << BITS | told.stx_ino,
            _ => identity::mixed(device, told.stx_ino) | 1 << 63,
        }
    }

    fn volumes(&self) -> MutexGuard<'_, Volumes> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many nodes, and how many files and folders, a guest has.
    #[must_use]
    pub fn open_now(&self) -> (usize, usize) {
        (self.nodes.count(), self.handles.count())
    }
}

impl Volumes {
    /// Something is about to be looked at for this owner.
    fn begin(&mut self, owner: &str) -> u64 {
        let look = self.next_look;
        self.next_look += 1;
        self.looks.insert(look, owner.to_owned());
        look
    }

    /// # Errors
    /// ECANCELED where the owner is gone since.
    fn finish(&mut self, look: u64) -> Result<(), Errno> {
        self.looks.remove(&look).map(drop).ok_or(Errno::CANCELED)
    }

    /// One more owner of what is shared already; nothing where it is not, and may be.
    fn share_again(&mut self, identity: &str, owner: &str) -> Result<Option<u64>, Errno> {
        let same = self.by_number.iter_mut().find(|(_, shared)| shared.identity == identity);
        if let Some((number, shared)) = same {
            shared.owners.insert(owner.to_owned());
            return Ok(Some(*number));
        }
        if self.by_number.len() >= MAX_VOLUMES { Err(Errno::NFILE) } else { Ok(None) }
    }
}

/// Does what may hang in a thread of its own, which is left behind when it takes too long.
fn in_time<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> Result<T, Errno> + Send + 'static,
) -> Result<T, Errno> {
    let (sender, done) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("look".to_owned()).stack_size(64 << 10);
    let begun = thread.spawn(move || {
        // Whoever has stopped waiting does not want it.
        let _ = sender.send(work());
    });
    begun.map_err(|_| Errno::AGAIN)?;
    done.recv_timeout(patience).unwrap_or(Err(Errno::TIMEDOUT))
}

/// An entry of the root.
fn number(name: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(name).ok()?;
    text.parse().ok().filter(|number: &u64| number.to_string() == text)
}
