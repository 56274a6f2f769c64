//! Folders that a layer uses but does not list.
//!
//! Builders such as ko, jib and bazel write `app/server` without an entry for `app`. Unpacked alone, that layer has a folder `app` of
//! root's with mode 0755, and on top of a base image it would take /app from the user that it belongs to there: overlayfs shows the
//! attributes of the uppermost folder. containerd unpacks every layer on top of its parents and copies theirs; here a layer is unpacked
//! once, whatever lies below it. So an image that needs it gets one more layer on top, with nothing but such folders and the attributes
//! that they should have. Images that need the same one share it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::digest::{Algorithm, Digest, Hasher, hex};
use crate::file_error::{At, FileError};
use crate::layer::{FileList, LayerFacts, ListedKind, OPAQUE, Target, read_list};

/// Folders of one image that are looked at. Real images have a few dozen; more keep the default attributes.
const MAX_FOLDERS: usize = 10_000;
/// What a folder that nobody lists is: root's, 0755.
const DEFAULT: Attributes = Attributes { mode: 0o755, uid: 0, gid: 0, mtime: 0 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    /// Seconds since 1970.
    mtime: i64,
}

/// The folders of one image's correcting layer, every parent before what is in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Corrections {
    folders: BTreeMap<Vec<u8>, Attributes>,
}

/// A layer of a stack: its folder and its list.
pub(super) struct Place {
    pub(super) folder: PathBuf,
    pub(super) list: PathBuf,
    /// How many folders it does not list.
    pub(super) implied: u64,
}

/// What is needed on top of a stack of layers (bottom first), if anything. Blocks.
pub(super) fn needed_blocking(stack: &[Place]) -> Result<Option<Corrections>, FileError> {
    // The lowest layer has nothing below it that it could hide.
    if stack.iter().skip(1).all(|place| place.implied == 0) {
        return Ok(None);
    }
    let layers = stack.iter().rev().map(Layer::open).collect::<Result<Vec<_>, _>>()?;
    let implied: BTreeSet<&Vec<u8>> = layers.iter().flat_map(|layer| &layer.implied).collect();
    if implied.len() > MAX_FOLDERS {
        tracing::warn!(folders = implied.len(), "too many folders that no layer lists, they keep mode 0755");
        return Ok(None);
    }
    let mut folders = BTreeMap::new();
    for path in implied {
        let found = effective(&layers, path)?;
        let is_default = found.is_none_or(|found| Attributes { mtime: 0, ..found } == DEFAULT);
        if is_default {
            continue;
        }
        // The way there shows too.
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends.chain([path.len()]) {
            if let Entry::Vacant(place) = folders.entry(path[..end].to_vec()) {
                place.insert(effective(&layers, &path[..end])?.unwrap_or(DEFAULT));
            }
        }
    }
    Ok((!folders.is_empty()).then_some(Corrections { folders }))
}

impl Corrections {
    /// Names the layer by what is in it, as a diff-id does.
    pub(super) fn id(&self) -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(b"hartpod-corrections 1\n");
        for (path, Attributes { mode, uid, gid, mtime }) in &self.folders {
            hasher.update(format!("{mode:o} {uid} {gid} {mtime} {}\n", hex(path)).as_bytes());
        }
        hasher.finish()
    }

    /// Makes the layer. Blocks.
    pub(super) fn write_blocking(&self, target: &Target) -> Result<LayerFacts, FileError> {
        let mut facts = LayerFacts { bytes: 4096, inodes: 1, ..LayerFacts::default() };
        let mut list = FileList::create(&target.list)?;
        let root = File::open(&target.folder).at("open", &target.folder)?;
        for (path, Attributes { mode, uid, gid, .. }) in &self.folders {
            let at = locate(&target.folder, path);
            let bits = Mode::from_raw_mode(*mode);
            rustix::fs::mkdirat(&root, path.as_slice(), Mode::RWXU).at("make folder", &at)?;
            let (owner, group) = (Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
            rustix::fs::chownat(&root, path.as_slice(), owner, group, AtFlags::SYMLINK_NOFOLLOW)
                .at("set owner of", &at)?;
            rustix::fs::chmodat(&root, path.as_slice(), bits, AtFlags::empty()).at("set mode of", &at)?;
            list.add(path, ListedKind::Folder { mode: *mode, uid: *uid, gid: *gid })?;
            facts.add(4096);
        }
        // What is in a folder comes after it, so from the end.
        for (path, Attributes { mtime, .. }) in self.folders.iter().rev() {
            let time = Timespec { tv_sec: *mtime, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(&root, path.as_slice(), &times, AtFlags::SYMLINK_NOFOLLOW)
                .at("set time of", locate(&target.folder, path))?;
        }
        facts.add(list.finish()?);
        Ok(facts)
    }
}

/// A layer while its stack is looked at.
struct Layer {
    root: File,
    at: PathBuf,
    implied: HashSet<Vec<u8>>,
}

/// What one layer has at a path.
enum Look {
    /// Nothing; `last` if it hides what lower layers have there.
    Absent {
        last: bool,
    },
    Folder {
        attributes: Attributes,
        last: bool,
    },
    /// Something else than a folder is there or on the way.
    Other,
}

/// The attributes that a folder should have: those of the uppermost layer that lists it. None if it is no folder in the image.
fn effective(layers: &[Layer], path: &[u8]) -> Result<Option<Attributes>, FileError> {
    let mut is_there = false;
    for layer in layers {
        let last = match layer.look(path)? {
            Look::Other => break,
            Look::Absent { last } => last,
            Look::Folder { attributes, .. } if !layer.implied.contains(path) => return Ok(Some(attributes)),
            Look::Folder { last, .. } => {
                is_there = true;
                last
            }
        };
        if last {
            break;
        }
    }
    Ok(is_there.then_some(DEFAULT))
}

impl Layer {
    fn open(place: &Place) -> Result<Layer, FileError> {
        let root = File::open(&place.folder).at("open", &place.folder)?;
        let mut implied = HashSet::new();
        if place.implied > 0 {
            read_list(&place.list, |path, fields| {
                if fields == ["i"] {
                    implied.insert(path);
                }
            })?;
        }
        Ok(Layer { root, at: place.folder.clone(), implied })
    }

    fn look(&self, path: &[u8]) -> Result<Look, FileError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut here = self.root.try_clone().at("open", &self.at)?;
        let mut last = false;
        for (depth, name) in path.split(|&byte| byte == b'/').enumerate() {
            // An opaque folder hides what lower layers have in it, not what they say about itself.
            last |= depth > 0 && is_opaque(&here);
            here = match rustix::fs::openat(&here, name, flags, Mode::empty()) {
                Ok(fd) => File::from(fd),
                Err(Errno::NOENT) => return Ok(Look::Absent { last }),
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Look::Other),
                Err(error) => return Err::<Look, _>(error).at("open", locate(&self.at, path)),
            };
        }
        let stat = rustix::fs::fstat(&here).at("stat", locate(&self.at, path))?;
        let (uid, gid, mtime) = (stat.st_uid, stat.st_gid, stat.st_mtime);
        Ok(Look::Folder { attributes: Attributes { mode: stat.st_mode & 0o7777, uid, gid, mtime }, last })
    }
}

fn is_opaque(folder: &File) -> bool {
    rustix::fs::fgetxattr(folder, OPAQUE, &mut [0u8; 1][..]).is_ok_and(|length| length > 0)
}

fn locate(folder: &Path, path: &[u8]) -> PathBuf {
    folder.join(String::from_utf8_lossy(path).as_ref())
}
