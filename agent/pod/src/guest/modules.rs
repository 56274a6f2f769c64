//! The modules that a guest boots with, listed in load order by whoever built the initramfs:
//!
//! ```text
//! early 00-virtio_mmio.ko
//! late 04-virtio_blk.ko
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use hartpod_container::{Child, fork_role};
use rustix::io::Errno;
use rustix::system::finit_module;
use tracing::{debug, error};

use crate::status_code::chain;

/// In the initramfs.
const FOLDER: &str = "/modules";
const INDEX: &str = "index";

/// What ps shows of the child.
const NAME: &str = "hartpod-modules";

/// A module could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModuleError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("line `{line}` of the index of modules makes no sense")]
    Index { line: String },
    #[error("load module {}", path.display())]
    Load { path: PathBuf, source: io::Error },
}

/// When a module is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Before the host is told that the agent is ready.
    Early,
    /// While the host goes on.
    Late,
}

/// What is to be loaded.
#[derive(Debug)]
pub(super) struct Index {
    folder: PathBuf,
    modules: Vec<(Stage, String)>,
}

impl Index {
    pub(super) fn read() -> Result<Self, ModuleError> {
        let path = Path::new(FOLDER).join(INDEX);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Self { folder: FOLDER.into(), modules: parse(&text)? }),
            // A kernel that has everything built in.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(Self { folder: FOLDER.into(), modules: Vec::new() })
            }
            Err(source) => Err(ModuleError::Read { path, source }),
        }
    }

    pub(super) fn load_early(&self) -> Result<(), ModuleError> {
        self.of(Stage::Early).try_for_each(|path| load(&path, 0))
    }

    /// Loads the rest in a child: the host can go on meanwhile, and the agent with it. The exit code is the number of those that failed.
    pub(super) fn load_late_in_child(&self) -> io::Result<Child> {
        fork_role(NAME, &[], || {
            let failed = self.of(Stage::Late).filter_map(|path| load(&path, 0).err());
            let count = failed.inspect(|failed| error!(error = chain(failed), "a module is missing")).count();
            let _ = fs::remove_dir_all(&self.folder);
            i32::try_from(count).unwrap_or(i32::MAX)
        })
    }

    fn of(&self, stage: Stage) -> impl Iterator<Item = PathBuf> {
        let modules = self.modules.iter().filter(move |(of, _)| *of == stage);
        modules.map(|(_, name)| self.folder.join(name))
    }
}

fn parse(text: &str) -> Result<Vec<(Stage, String)>, ModuleError> {
    let line = |line: &str| {
        let stage = match line.split_once(' ') {
            Some(("early", name)) => Some((Stage::Early, name)),
            Some(("late", name)) => Some((Stage::Late, name)),
            _ => None,
        };
        let named = stage.filter(|(_, name)| !name.is_empty() && !name.contains('/'));
        named
            .map(|(stage, name)| (stage, name.to_owned()))
            .ok_or_else(|| ModuleError::Index { line: line.to_owned() })
    };
    text.lines().map(line).collect()
}

/// Loads a module; one that is there already is success.
pub(super) fn load(path: &Path, flags: i32) -> Result<(), ModuleError> {
    let failed = |source| ModuleError::Load { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    match finit_module(&file, c"", flags) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(failed(errno.into())),
    }
    debug!(path = %path.display(), "module loaded");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_keeps_its_order() {
        let modules = parse("early 00-virtio_mmio.ko\nlate 01-virtio_blk.ko\nearly 02-vsock.ko\n").unwrap();
        let index = Index { folder: FOLDER.into(), modules };
        let names = |stage| index.of(stage).map(|path| path.display().to_string()).collect::<Vec<_>>();
        assert_eq!(names(Stage::Early), ["/modules/00-virtio_mmio.ko", "/modules/02-vsock.ko"]);
        assert_eq!(names(Stage::Late), ["/modules/01-virtio_blk.ko"]);
    }

    #[test]
    fn lines_that_make_no_sense_are_shown() {
        for line in ["", "soon 00-a.ko", "early", "early ", "late ../../x.ko"] {
            let error = parse(&format!("early 00-a.ko\n{line}\n")).unwrap_err().to_string();
            assert!(error.contains(&format!("`{line}`")), "{error}");
        }
    }

    #[test]
    fn what_is_no_module_is_an_error_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("00-x.ko");
        fs::write(&path, "no module").unwrap();
        let error = load(&path, 0).unwrap_err();
        assert!(error.to_string().ends_with("00-x.ko"), "{error}");
    }
}
