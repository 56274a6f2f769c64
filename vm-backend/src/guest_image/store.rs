//! Where guest images are kept.
//!
//! ```text
//! <root>/guest/lock                held while an image is built
//! <root>/guest/current             a link to the image that new guests boot
//! <root>/guest/<hash>/manifest.json, kernel, initramfs, modules.erofs, scratch.ext4
//! <root>/guest/.new-<hash>/        being built; what a crash left goes at the next build
//! ```
//!
//! An image is complete once its folder has its name, and never changes. Whoever uses one holds a shared lock on its folder; without one, an
//! image that is not the current one goes at the next build.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::file_error::{At as _, FileError};

pub(super) const KERNEL: &str = "kernel";
pub(super) const INITRAMFS: &str = "initramfs";
pub(super) const MODULES: &str = "modules.erofs";
pub(super) const SCRATCH: &str = "scratch.ext4";
const MANIFEST: &str = "manifest.json";
const CURRENT: &str = "current";
const LOCK: &str = "lock";
const NEW: &str = ".new-";

/// Of the manifest; an image of another format is built again.
pub(super) const FORMAT: u32 = 1;

/// Hexadecimal digits of an image's name: 128 bits of its hash.
pub(super) const NAME_DIGITS: usize = 32;

/// Tries to open the current image while builds replace it.
const TRIES: usize = 8;

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`]
    pub format: u32,
    /// Of the kernel, as `uname -r` says it inside.
    pub release: String,
    /// The files that kernel and modules came from.
    pub kernel_from: PathBuf,
    pub modules_from: PathBuf,
    /// Modules in the initramfs.
    pub boot_modules: usize,
    /// The modules in the initramfs are without what loading does not need.
    pub stripped: bool,
    /// Modules that a guest may load on demand; none without `modules.erofs`.
    pub on_demand_modules: usize,
    /// Size of each file in bytes.
    pub files: BTreeMap<String, u64>,
}

/// An image that can be booted. While this lives the image stays.
#[derive(Debug)]
pub struct GuestImage {
    /// Hexadecimal digits.
    pub name: String,
    pub dir: PathBuf,
    pub manifest: Manifest,
    _in_use: File,
}

/// Why the current image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("no guest image in {}: `hartpod guest build` makes one", store.display())]
    None { store: PathBuf },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} is broken: {problem}; remove the folder and build it again", dir.display())]
    Broken { dir: PathBuf, problem: String },
}

impl GuestImage {
    /// The image that new guests boot.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn current(root: &Path) -> Result<Self, OpenError> {
        let store = Store::at(root);
        for _ in 0..TRIES {
            let name = match fs::read_link(store.dir.join(CURRENT)) {
                Ok(name) => name.to_string_lossy().into_owned(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error).at("read the link", store.dir.join(CURRENT))?,
            };
            // Nothing when a build has replaced it meanwhile.
            if let Some(image) = store.open(&name)? {
                return Ok(image);
            }
        }
        Err(OpenError::None { store: store.dir })
    }

    /// An uncompressed riscv64 Image.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.dir.join(KERNEL)
    }

    #[must_use]
    pub fn initramfs(&self) -> PathBuf {
        self.dir.join(INITRAMFS)
    }

    /// An EROFS file system with the modules that the guest may load on demand; nothing where none could be made.
    #[must_use]
    pub fn modules(&self) -> Option<PathBuf> {
        self.manifest.files.contains_key(MODULES).then(|| self.dir.join(MODULES))
    }

    /// An empty ext4 file system in a sparse file, to be copied for each container.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.dir.join(SCRATCH)
    }
}

/// The folder of all images.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
}

/// Held by the one build that is under way.
#[derive(Debug)]
pub(super) struct BuildLock {
    _file: File,
}

impl Store {
    pub(super) fn at(root: &Path) -> Self {
        Self { dir: root.join("guest") }
    }

    /// Makes the folder, and waits for a build that is under way; `waiting` is called when there is one.
    pub(super) fn lock(&self, waiting: impl FnOnce()) -> Result<BuildLock, FileError> {
        let mut folder = fs::DirBuilder::new();
        folder.recursive(true).mode(0o700).create(&self.dir).at("make", &self.dir)?;
        let path = self.dir.join(LOCK);
        let file = File::options().write(true).create(true).truncate(false).open(&path).at("open", &path)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            waiting();
            flock(&file, FlockOperation::LockExclusive).at("lock", &path)?;
        }
        Ok(BuildLock { _file: file })
    }

    /// The image of this name, if it exists.
    pub(super) fn open(&self, name: &str) -> Result<Option<GuestImage>, OpenError> {
        let dir = self.dir.join(name);
        let in_use = match File::open(&dir) {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).at("open", &dir)?,
        };
        flock(&in_use, FlockOperation::LockShared).at("lock", &dir)?;
        // A removal may have had the lock before us.
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let there = fs::metadata(&dir).ok().map(identity);
        if there.is_none() || there != in_use.metadata().ok().map(identity) {
            return Ok(None);
        }
        let manifest = read_manifest(&dir)?;
        Ok(Some(GuestImage { name: name.to_owned(), dir, manifest, _in_use: in_use }))
    }

    /// A new folder to build the image of this name in.
    pub(super) fn begin(&self, name: &str) -> Result<PathBuf, FileError> {
        let dir = self.dir.join(format!("{NEW}{name}"));
        if dir.exists() {
            fs::remove_dir_all(&dir).at("remove", &dir)?;
        }
        fs::DirBuilder::new().mode(0o700).create(&dir).at("make", &dir)?;
        Ok(dir)
    }

    /// Gives a finished folder its name. It survives a loss of power from then on.
    pub(super) fn commit(&self, dir: &Path, name: &str, manifest: &Manifest) -> Result<(), FileError> {
        let path = dir.join(MANIFEST);
        let text = serde_json::to_vec_pretty(manifest).map_err(io::Error::from).at("write", &path)?;
        fs::write(&path, text).at("write", &path)?;
        let folder = File::open(dir).at("open", dir)?;
        rustix::fs::syncfs(&folder).at("sync", dir)?;
        let to = self.dir.join(name);
        if to.exists() {
            // Damaged, or of another format: a good one would not have been built again.
            fs::remove_dir_all(&to).at("remove", &to)?;
        }
        fs::rename(dir, &to).at("rename to", &to)?;
        self.sync()
    }

    /// Makes an image the one that new guests boot.
    pub(super) fn make_current(&self, name: &str) -> Result<(), FileError> {
        let (new, current) = (self.dir.join(format!("{NEW}current")), self.dir.join(CURRENT));
        if fs::read_link(&current).is_ok_and(|now| now == Path::new(name)) {
            return Ok(());
        }
        let _ = fs::remove_file(&new);
        symlink(name, &new).at("make the link", &new)?;
        fs::rename(&new, &current).at("rename to", &current)?;
        self.sync()
    }

    fn sync(&self) -> Result<(), FileError> {
        File::open(&self.dir).and_then(|dir| dir.sync_all()).at("sync", &self.dir)
    }

    /// Removes what crashed builds left, and images but `keep` that nobody uses; their names.
    pub(super) fn prune(&self, keep: &str, _lock: &BuildLock) -> Result<Vec<String>, FileError> {
        let mut removed = Vec::new();
        for entry in fs::read_dir(&self.dir).at("list", &self.dir)? {
            let entry = entry.at("list", &self.dir)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = entry.path();
            let is_left_over = name.starts_with(NEW);
            // Held until the image is gone: who opens it meanwhile waits for that, and looks again.
            let unused = if name != keep && is_image_name(&name) { lock_unused(&path) } else { None };
            if (is_left_over || unused.is_some()) && path.is_dir() {
                fs::remove_dir_all(&path).at("remove", path)?;
                removed.push(name);
            }
        }
        Ok(removed)
    }
}

fn is_image_name(name: &str) -> bool {
    name.len() == NAME_DIGITS && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Nothing for an image that somebody uses.
fn lock_unused(dir: &Path) -> Option<File> {
    let folder = File::open(dir).ok()?;
    flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok().then_some(folder)
}

fn read_manifest(dir: &Path) -> Result<Manifest, OpenError> {
    let broken = |problem: String| OpenError::Broken { dir: dir.to_owned(), problem };
    let path = dir.join(MANIFEST);
    let text = fs::read(&path).at("read", &path)?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| broken(format!("{MANIFEST}: {error}")))?;
    for (name, size) in &manifest.files {
        match fs::metadata(dir.join(name)) {
            Ok(metadata) if metadata.len() == *size => {}
            Ok(metadata) => {
                return Err(broken(format!("{name} has {} bytes instead of {size}", metadata.len())));
            }
            Err(error) => return Err(broken(format!("{name}: {error}"))),
        }
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn manifest(files: &[(&str, u64)]) -> Manifest {
        Manifest {
            format: FORMAT,
            release: "6.12.1".to_owned(),
            kernel_from: "/boot/vmlinux".into(),
            modules_from: "/lib/modules/6.12.1".into(),
            boot_modules: 1,
            stripped: false,
            on_demand_modules: 0,
            files: files.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect(),
        }
    }

    fn add(store: &Store, digit: char) -> String {
        let name = digit.to_string().repeat(NAME_DIGITS);
        let dir = store.begin(&name).unwrap();
        fs::write(dir.join(KERNEL), "kernel").unwrap();
        store.commit(&dir, &name, &manifest(&[(KERNEL, 6)])).unwrap();
        store.make_current(&name).unwrap();
        name
    }

    #[test]
    fn old_images_stay_while_somebody_uses_them() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::at(root.path());
        let lock = store.lock(|| panic!("nobody else builds")).unwrap();
        assert!(matches!(GuestImage::current(root.path()), Err(OpenError::None { .. })));
        add(&store, 'a');
        let in_use = GuestImage::current(root.path()).unwrap();
        let newest = add(&store, 'b');
        fs::create_dir(root.path().join("guest/.new-crashed")).unwrap();
        fs::create_dir(root.path().join("guest/of-somebody-else")).unwrap();
        assert_eq!(store.prune(&newest, &lock).unwrap(), [".new-crashed"]);
        drop(in_use);
        // A child of another test holds it, too, until it calls exec.
        let deadline = Instant::now() + Duration::from_secs(10);
        let removed = loop {
            let removed = store.prune(&newest, &lock).unwrap();
            if !removed.is_empty() || Instant::now() >= deadline {
                break removed;
            }
            std::thread::yield_now();
        };
        assert_eq!(removed, ["a".repeat(NAME_DIGITS)]);
        assert_eq!(GuestImage::current(root.path()).unwrap().name, newest);
        assert!(root.path().join("guest/of-somebody-else").exists());
    }

    #[test]
    fn an_image_that_is_being_removed_is_not_opened() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::at(root.path());
        let _lock = store.lock(|| ()).unwrap();
        let name = add(&store, 'd');
        let dir = root.path().join("guest").join(&name);
        std::thread::scope(|scope| {
            let removal = lock_unused(&dir).unwrap();
            let opened = scope.spawn(|| store.open(&name));
            fs::remove_dir_all(&dir).unwrap();
            drop(removal);
            assert!(opened.join().unwrap().unwrap().is_none());
        });
    }

    #[test]
    fn a_damaged_image_is_told_apart_from_none() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::at(root.path());
        let _lock = store.lock(|| ()).unwrap();
        let name = add(&store, 'c');
        fs::write(root.path().join("guest").join(&name).join(KERNEL), "ker").unwrap();
        let error = GuestImage::current(root.path()).unwrap_err().to_string();
        assert!(error.contains("kernel has 3 bytes instead of 6"), "{error}");
    }

    #[test]
    fn one_build_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::at(root.path());
        let first = store.lock(|| ()).unwrap();
        let (told, waits) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| store.lock(|| told.send(()).unwrap()).map(drop));
            waits.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
            assert!(!second.is_finished());
            drop(first);
            second.join().unwrap().unwrap();
        });
    }
}
