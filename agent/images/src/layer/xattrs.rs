//! Which extended attributes of an archive reach the disk.

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::archive::Fault;
use super::entry_path::printable;
use super::error::EntryProblem;
use super::tree::{Folder, Tree};
use crate::file_error::FileError;

/// Only attributes that say something about the file to the container: file capabilities, and what programs keep under `user.`.
///
/// Not `trusted.*` and `user.overlay.*`: overlayfs would obey them (a redirect leads anywhere in the lower layers). Not security
/// labels and ACLs: they are the node's business, and image builders do not write them.
fn is_kept(name: &[u8]) -> bool {
    name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// Sets the attributes that are kept on a file or folder, and tells how many were not.
pub(super) fn set(
    tree: &Tree,
    folder: &Folder,
    name: &[u8],
    fd: impl std::os::fd::AsFd,
    xattrs: &[(Vec<u8>, Vec<u8>)],
) -> Result<u64, Fault> {
    let mut skipped = 0;
    for (key, value) in xattrs {
        if !is_kept(key) {
            skipped += 1;
            continue;
        }
        match rustix::fs::fsetxattr(&fd, key.as_slice(), value, XattrFlags::empty()) {
            Ok(()) => {}
            // A file system without attributes; containerd passes over it too.
            Err(Errno::NOTSUP) => skipped += 1,
            Err(Errno::INVAL | Errno::RANGE | Errno::TOOBIG | Errno::PERM) => {
                let problem = EntryProblem::Xattr { name: printable(key) };
                return Err(Fault::entry(&super::entry_path::join(&folder.path, name), problem));
            }
            Err(error) => {
                let path = tree.locate(&super::entry_path::join(&folder.path, name));
                let action = "set an extended attribute of";
                return Err(Fault::File(FileError { action, path, source: error.into() }));
            }
        }
    }
    Ok(skipped)
}
