//! Writable layers on their way out.
//!
//! Deleting what a container wrote may take long (ext4 takes milliseconds for a folder alone, a container may have written a
//! million files), and nobody needs to wait for it: a layer is renamed into the trash, and the trash is emptied behind the calls. The
//! folder is the queue: what a daemon that died had not come to, the next one finds.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::scratch::{self, ScratchError};

/// Layers that are deleted at the same time: more would only make calls wait for the disk.
const AT_ONCE: usize = 2;

/// The folder, and whoever empties it.
#[derive(Debug)]
pub(crate) struct Trash {
    dir: PathBuf,
    /// Names given so far.
    given: AtomicU64,
    thrown: Notify,
}

impl Trash {
    /// `dir` exists, on the file system of what is thrown away.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, given: AtomicU64::new(0), thrown: Notify::new() }
    }

    /// Takes a folder with everything in it; it is gone from its place when this returns. A missing one is fine.
    pub(crate) fn throw_blocking(&self, path: &Path) -> Result<(), ScratchError> {
        loop {
            // Not the folder's own name: who looks for what is left of a container does not find it here.
            let name = self.given.fetch_add(1, Ordering::Relaxed).to_string();
            match renameat_with(CWD, path, CWD, self.dir.join(name), RenameFlags::NOREPLACE) {
                // An earlier daemon's, which is being deleted.
                Err(Errno::EXIST) => {}
                // It is not there, or somebody has tidied the trash itself away.
                Err(Errno::NOENT) => return scratch::remove_blocking(path),
                Err(error) => return Err(ScratchError::new("throw away", path, error.into())),
                Ok(()) => {
                    self.thrown.notify_one();
                    return Ok(());
                }
            }
        }
    }

    /// Deletes what is there and what comes, until the daemon ends.
    pub(crate) async fn keep_empty(self: Arc<Self>) {
        // Told once, and left for the next daemon.
        let mut stuck = BTreeSet::new();
        loop {
            self.empty(&mut stuck).await;
            self.thrown.notified().await;
        }
    }

    async fn empty(&self, stuck: &mut BTreeSet<PathBuf>) {
        let mut left = self.entries(stuck).await.into_iter();
        let mut deletions = JoinSet::new();
        loop {
            while deletions.len() < AT_ONCE {
                let Some(path) = left.next() else { break };
                deletions.spawn_blocking(move || (scratch::remove_blocking(&path), path));
            }
            match deletions.join_next().await {
                Some(Ok((Err(error), path))) => {
                    tracing::warn!(error = %crate::chain(&error), "a removed container's files stay");
                    stuck.insert(path);
                }
                Some(Ok((Ok(()), _)) | Err(_)) => {}
                None => return,
            }
        }
    }

    async fn entries(&self, stuck: &BTreeSet<PathBuf>) -> Vec<PathBuf> {
        let dir = self.dir.clone();
        let listed = tokio::task::spawn_blocking(move || {
            let entries = std::fs::read_dir(&dir)?.flatten();
            Ok::<_, std::io::Error>(entries.map(|entry| entry.path()).collect::<Vec<_>>())
        });
        match listed.await {
            Ok(Ok(paths)) => paths.into_iter().filter(|path| !stuck.contains(path)).collect(),
            Ok(Err(error)) => {
                tracing::warn!(path = %self.dir.display(), %error, "the trash cannot be looked through");
                Vec::new()
            }
            Err(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    async fn empties(dir: &Path) {
        let begun = Instant::now();
        while std::fs::read_dir(dir).unwrap().count() > 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "the trash is never empty");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    #[tokio::test]
    async fn what_is_thrown_away_is_gone_at_once_and_deleted_behind() {
        let dir = tempfile::tempdir().unwrap();
        let trash = Arc::new(Trash::new(dir.path().join("trash")));
        std::fs::create_dir_all(dir.path().join("trash")).unwrap();
        // Of a daemon that died: the first name is taken.
        std::fs::create_dir_all(dir.path().join("trash/0/upper")).unwrap();
        for number in 0..10 {
            let layer = dir.path().join(number.to_string());
            std::fs::create_dir_all(layer.join("upper/a/b")).unwrap();
            std::fs::write(layer.join("upper/file"), "x").unwrap();
            trash.throw_blocking(&layer).unwrap();
            assert!(!layer.exists());
            trash.throw_blocking(&layer).unwrap();
        }
        assert_eq!(std::fs::read_dir(dir.path().join("trash")).unwrap().count(), 11);
        let emptying = tokio::spawn(trash.clone().keep_empty());
        empties(&dir.path().join("trash")).await;
        let late = dir.path().join("late");
        std::fs::create_dir(&late).unwrap();
        trash.throw_blocking(&late).unwrap();
        empties(&dir.path().join("trash")).await;
        emptying.abort();
    }

    #[test]
    fn without_a_trash_it_is_deleted_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("layer");
        std::fs::create_dir_all(layer.join("upper")).unwrap();
        Trash::new(dir.path().join("missing")).throw_blocking(&layer).unwrap();
        assert!(!layer.exists());
    }

    #[tokio::test]
    async fn what_cannot_be_deleted_does_not_stop_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let trash = Arc::new(Trash::new(dir.path().join("trash")));
        std::fs::create_dir(dir.path().join("trash")).unwrap();
        // Not a folder, which a layer always is.
        std::fs::write(dir.path().join("trash/odd"), "").unwrap();
        for number in 0..5 {
            let layer = dir.path().join(number.to_string());
            std::fs::create_dir(&layer).unwrap();
            trash.throw_blocking(&layer).unwrap();
        }
        let mut stuck = BTreeSet::new();
        trash.empty(&mut stuck).await;
        assert_eq!(stuck, [dir.path().join("trash/odd")].into());
        assert_eq!(std::fs::read_dir(dir.path().join("trash")).unwrap().count(), 1);
        assert!(trash.entries(&stuck).await.is_empty());
    }
}
