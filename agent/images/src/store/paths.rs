//! Where the store keeps what.
//!
//! ```text
//! <root>/lock                 held by the one daemon that uses the store
//! <root>/images/<hex>.json    one record per image, by id
//! <root>/layers/<hex>/        one folder per layer, by diff-id: an overlay lower
//! <root>/lists/<hex>.zst      the layer's list of files
//! <root>/erofs/<hex>.erofs    the layer as a file, if a guest ever needed it
//! <root>/tmp/<number>/        a layer that is being unpacked, or removed
//! ```

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::Mode;

use crate::digest::Digest;
use crate::file_error::{At, FileError};
use crate::layer::Target;

/// The store's folders. None of them can be entered by anybody but root: a layer has setuid programs, and files that only the
/// users inside of a container should read.
#[derive(Debug)]
pub(crate) struct Paths {
    pub(crate) root: PathBuf,
    pub(crate) images: PathBuf,
    pub(crate) layers: PathBuf,
    pub(crate) lists: PathBuf,
    pub(crate) erofs: PathBuf,
    pub(crate) tmp: PathBuf,
    next_temp: AtomicU64,
}

impl Paths {
    /// Makes what is missing.
    pub(crate) fn create_blocking(root: &Path) -> Result<Paths, FileError> {
        std::fs::create_dir_all(root).at("make folder", root)?;
        let folder = |name: &str| {
            let path = root.join(name);
            match std::fs::create_dir(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                other => other.at("make folder", &path)?,
            }
            rustix::fs::chmod(&path, Mode::RWXU).at("set mode of", &path)?;
            Ok(path)
        };
        Ok(Paths {
            root: root.to_owned(),
            images: folder("images")?,
            layers: folder("layers")?,
            lists: folder("lists")?,
            erofs: folder("erofs")?,
            tmp: folder("tmp")?,
            next_temp: AtomicU64::new(0),
        })
    }

    pub(crate) fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.layers.join(diff_id.hex())
    }

    pub(crate) fn list(&self, diff_id: &Digest) -> PathBuf {
        self.lists.join(format!("{}.zst", diff_id.hex()))
    }

    pub(crate) fn erofs(&self, diff_id: &Digest) -> PathBuf {
        self.erofs.join(format!("{}.erofs", diff_id.hex()))
    }

    pub(crate) fn record(&self, id: &Digest) -> PathBuf {
        self.images.join(format!("{}.json", id.hex()))
    }

    /// A name in `tmp` that nothing has: `tmp` is emptied when the store is opened.
    pub(crate) fn temp(&self) -> PathBuf {
        self.tmp.join(self.next_temp.fetch_add(1, Ordering::Relaxed).to_string())
    }
}

/// A layer on its way into the store or out of it.
pub(crate) struct TempLayer {
    dir: PathBuf,
    target: Target,
}

impl TempLayer {
    pub(crate) fn create_blocking(paths: &Paths) -> Result<TempLayer, FileError> {
        let dir = paths.temp();
        let target = Target { folder: dir.join("layer"), list: dir.join("list") };
        std::fs::create_dir(&dir).at("make folder", &dir)?;
        std::fs::create_dir(&target.folder).at("make folder", &target.folder)?;
        // An archive without an entry for its root gets what every root folder has.
        rustix::fs::chmod(&target.folder, Mode::from_raw_mode(0o755)).at("set mode of", &target.folder)?;
        Ok(TempLayer { dir, target })
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Moves the layer to its place; the folder last, because a layer counts from then on.
    pub(crate) fn place_blocking(&self, paths: &Paths, diff_id: &Digest) -> Result<(), FileError> {
        let (list, layer) = (paths.list(diff_id), paths.layer(diff_id));
        std::fs::rename(&self.target.list, &list).at("rename to", &list)?;
        match std::fs::rename(&self.target.folder, &layer) {
            // Left by a store whose records could not be read; nobody uses it.
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
                std::fs::rename(&layer, self.dir.join("stale")).at("rename", &layer)?;
                std::fs::rename(&self.target.folder, &layer).at("rename to", &layer)
            }
            other => other.at("rename to", &layer),
        }
    }

    /// Takes a layer out of its place, to be discarded.
    pub(crate) fn take_out_blocking(paths: &Paths, diff_id: &Digest) -> Result<TempLayer, FileError> {
        let dir = paths.temp();
        let target = Target { folder: dir.join("layer"), list: dir.join("list") };
        std::fs::create_dir(&dir).at("make folder", &dir)?;
        let (list, layer) = (paths.list(diff_id), paths.layer(diff_id));
        let files =
            [(layer, &target.folder), (list, &target.list), (paths.erofs(diff_id), &dir.join("erofs"))];
        for (from, to) in files {
            match std::fs::rename(&from, to) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                other => other.at("rename", &from)?,
            }
        }
        Ok(TempLayer { dir, target })
    }

    /// Deletes what is left of it. What cannot be deleted now goes when the store is opened again.
    pub(crate) fn discard_blocking(self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!(path = %self.dir.display(), %error, "a temporary folder could not be removed");
        }
    }
}
