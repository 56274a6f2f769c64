//! When two moments belong to the same life of this node.
//!
//! A process id in a record means something only until the machine reboots, or, where the node is itself a container, until
//! that one is made anew. So records carry the epoch that they were written in: the kernel's boot id and a random number kept
//! in the state folder, which lives no longer than the processes.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::random;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Name of the file below the state folder.
const FILE: &str = "epoch";

/// One life of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Epoch(String);

/// The epoch could not be found out.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}", path.display())]
pub(crate) struct EpochError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Epoch {
    /// The epoch of now; the state folder's part of it is made if there is none.
    pub(crate) fn read_blocking(state: &Path) -> Result<Self, EpochError> {
        let fail = |what, path: &Path| {
            let path = path.to_owned();
            move |source| EpochError { what, path, source }
        };
        let boot = std::fs::read_to_string(BOOT_ID).map_err(fail("read", Path::new(BOOT_ID)))?;
        let file = state.join(FILE);
        let random = match std::fs::read_to_string(&file) {
            Ok(text) if !text.trim().is_empty() => text,
            Ok(_) => make_blocking(&file).map_err(fail("write", &file))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                make_blocking(&file).map_err(fail("write", &file))?
            }
            Err(e) => return Err(fail("read", &file)(e)),
        };
        Ok(Self(format!("{} {}", boot.trim(), random.trim())))
    }
}

/// An empty file is one that a crash left: the rename below makes that impossible on our side.
fn make_blocking(file: &Path) -> io::Result<String> {
    let text = random::hex::<16>()?;
    let temp = file.with_extension("new");
    std::fs::write(&temp, format!("{text}\n"))?;
    std::fs::rename(&temp, file)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_lasts_as_long_as_the_state_folder() {
        let dir = tempfile::tempdir().unwrap();
        let first = Epoch::read_blocking(dir.path()).unwrap();
        assert_eq!(Epoch::read_blocking(dir.path()).unwrap(), first);
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        assert_ne!(Epoch::read_blocking(dir.path()).unwrap(), first);
    }

    #[test]
    fn an_empty_file_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "").unwrap();
        let first = Epoch::read_blocking(dir.path()).unwrap();
        assert_eq!(Epoch::read_blocking(dir.path()).unwrap(), first);
    }
}
