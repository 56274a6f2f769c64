//! The folder of network configurations: its first valid file is the network of every pod.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tracing::warn;

use crate::conf::{Network, Plugin};
use crate::error::{InvalidConf, NotReady};

/// No configuration is near this large; a file that is, is a mistake or an attack.
pub(crate) const MAX_FILE: u64 = 1024 * 1024;

/// Files changed this recently are read again next time: a second change may leave the same time stamp.
const SETTLED: Duration = Duration::from_secs(2);

const NETWORK_FILES: &[&str] = &["conf", "conflist", "json"];
const PLUGIN_FILES: &[&str] = &["conf"];

/// A configuration folder, read again only when something in it changed.
#[derive(Debug)]
pub(crate) struct ConfDir {
    dir: PathBuf,
    /// The last reading.
    last: Mutex<Option<Reading>>,
}

#[derive(Debug)]
struct Reading {
    folders: Vec<Folder>,
    outcome: Result<Arc<Network>, NotReady>,
}

/// A folder as it was when it was read.
#[derive(Debug, PartialEq)]
struct Folder {
    path: PathBuf,
    extensions: &'static [&'static str],
    files: Vec<Seen>,
}

/// What tells whether a file changed.
#[derive(Debug, PartialEq)]
struct Seen {
    path: PathBuf,
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl ConfDir {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, last: Mutex::new(None) }
    }

    /// The network for new pods. Reads the folder's listing, and files only when they changed.
    pub(crate) fn network_blocking(&self) -> Result<Arc<Network>, NotReady> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reading) =
            last.as_ref().filter(|reading| reading.folders.iter().all(Folder::is_unchanged))
        {
            return reading.outcome.clone();
        }
        let reading = self.read();
        let outcome = reading.outcome.clone();
        *last = Some(reading).filter(Reading::is_settled);
        outcome
    }

    /// The first file that would be a network were `file` not there.
    pub(crate) fn valid_but_blocking(&self, file: &Path) -> io::Result<Option<PathBuf>> {
        let others = Folder::list(&self.dir, NETWORK_FILES)?.files.into_iter().map(|seen| seen.path);
        let is_valid = |path: &PathBuf| self.read_network(path, &mut Vec::new()).is_ok();
        Ok(others.filter(|path| path != file).find(is_valid))
    }

    fn read(&self) -> Reading {
        let mut folders = Vec::new();
        let outcome = self.first_valid(&mut folders);
        Reading { folders, outcome }
    }

    fn first_valid(&self, folders: &mut Vec<Folder>) -> Result<Arc<Network>, NotReady> {
        // The listing is taken before any file is read: a change in between is seen next time.
        let listing = Folder::list(&self.dir, NETWORK_FILES)
            .map_err(|e| NotReady::Folder { dir: self.dir.clone(), problem: e.to_string() })?;
        let candidates: Vec<PathBuf> = listing.files.iter().map(|file| file.path.clone()).collect();
        folders.push(listing);
        if candidates.is_empty() {
            return Err(NotReady::NoConf { dir: self.dir.clone() });
        }
        let mut invalid = Vec::new();
        for path in candidates {
            match self.read_network(&path, folders) {
                Ok(network) => return Ok(Arc::new(network)),
                Err(why) => {
                    warn!(file = %path.display(), reason = %why, "network configuration skipped");
                    invalid.push((path, why));
                }
            }
        }
        Err(NotReady::Invalid { files: invalid })
    }

    fn read_network(&self, path: &Path, folders: &mut Vec<Folder>) -> Result<Network, InvalidConf> {
        let text = read_file(path)?;
        if path.extension().is_none_or(|extension| extension != "conflist") {
            return Network::parse_single(&text);
        }
        let file = Network::parse_list(&text)?;
        let mut network = file.network;
        if file.more_plugins {
            let dir = self.dir.join(&network.name);
            let listing = Folder::list(&dir, PLUGIN_FILES).map_err(|e| unreadable(&e))?;
            for (index, file) in listing.files.iter().enumerate() {
                let plugin = read_file(&file.path).and_then(|text| Plugin::parse(&text));
                let index = network.plugins.len() + index;
                network
                    .plugins
                    .push(plugin.map_err(|e| InvalidConf::Plugin { index, problem: Box::new(e) })?);
            }
            folders.push(listing);
        }
        if network.plugins.is_empty() {
            return Err(InvalidConf::NoPlugins);
        }
        Ok(network)
    }
}

impl Reading {
    fn is_settled(&self) -> bool {
        let Some(limit) = SystemTime::now()
            .checked_sub(SETTLED)
            .and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok())
            .and_then(|t| i64::try_from(t.as_secs()).ok())
        else {
            return false;
        };
        self.folders
            .iter()
            .flat_map(|folder| &folder.files)
            .all(|file| file.modified.0.max(file.changed.0) < limit)
    }
}

impl Folder {
    /// The files with one of these extensions, by name. A folder that does not exist is empty.
    fn list(dir: &Path, extensions: &'static [&'static str]) -> io::Result<Self> {
        let mut files = Vec::new();
        let entries = match std::fs::read_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            other => Some(other?),
        };
        for entry in entries.into_iter().flatten() {
            let path = entry?.path();
            let wanted = path.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e));
            if wanted {
                files.extend(Seen::at(path));
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { path: dir.to_owned(), extensions, files })
    }

    fn is_unchanged(&self) -> bool {
        Self::list(&self.path, self.extensions).is_ok_and(|now| now == *self)
    }
}

impl Seen {
    /// Follows links, as installers that write through `..data` links need. Folders do not count; a link to nothing
    /// does, so that it is told.
    fn at(path: PathBuf) -> Option<Self> {
        let metadata = std::fs::metadata(&path).or_else(|_| std::fs::symlink_metadata(&path)).ok()?;
        if metadata.is_dir() {
            return None;
        }
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            path,
        })
    }
}

/// The whole of a configuration file or template.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, InvalidConf> {
    // Not blocking: a pipe without a writer must not hold us.
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|e| unreadable(&e))?;
    if !file.metadata().map_err(|e| unreadable(&e))?.is_file() {
        return Err(InvalidConf::NotRegular);
    }
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(|e| unreadable(&e))?;
    if text.len() as u64 > MAX_FILE {
        return Err(InvalidConf::TooLarge { limit: MAX_FILE });
    }
    Ok(text)
}

fn unreadable(error: &io::Error) -> InvalidConf {
    InvalidConf::Unreadable { problem: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn conflist(name: &str) -> String {
        format!(r#"{{"cniVersion": "1.0.0", "name": "{name}", "plugins": [{{"type": "bridge"}}]}}"#)
    }

    fn name(dir: &ConfDir) -> Result<String, String> {
        dir.network_blocking().map(|network| network.name.clone()).map_err(|e| e.to_string())
    }

    #[test]
    fn the_first_valid_file_by_name_is_the_network() {
        let dir = tempfile::tempdir().unwrap();
        let conf = ConfDir::new(dir.path().to_owned());
        assert!(name(&conf).unwrap_err().starts_with("no network configuration"));
        fs::write(dir.path().join("20-b.conflist"), conflist("b")).unwrap();
        fs::write(dir.path().join("00-notes.txt"), "not ours").unwrap();
        fs::create_dir(dir.path().join("00-folder.conf")).unwrap();
        assert_eq!(name(&conf), Ok("b".to_owned()));
        fs::write(dir.path().join("10-a.json"), r#"{"cniVersion": "0.4.0", "name": "a", "type": "ptp"}"#)
            .unwrap();
        assert_eq!(name(&conf), Ok("a".to_owned()));
        fs::write(dir.path().join("10-a.json"), r#"{"cniVersion": "0.4.0", "na"#).unwrap();
        assert_eq!(name(&conf), Ok("b".to_owned()));
        fs::remove_file(dir.path().join("20-b.conflist")).unwrap();
        let error = name(&conf).unwrap_err();
        assert!(error.contains("10-a.json: not JSON"), "{error}");
    }

    #[test]
    fn a_pipe_a_dangling_link_and_a_huge_file_are_named_and_do_not_hold_us() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&dir.path().join("1.conf"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/nowhere", dir.path().join("2.conf")).unwrap();
        fs::write(dir.path().join("3.conf"), vec![b' '; 1024 * 1024 + 1]).unwrap();
        let error = name(&ConfDir::new(dir.path().to_owned())).unwrap_err();
        for part in
            ["1.conf: not a regular file", "2.conf: No such file", "3.conf: larger than 1048576 bytes"]
        {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn plugins_in_the_networks_own_folder_follow_the_inlined_ones() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.conflist"), conflist("net")).unwrap();
        fs::create_dir(dir.path().join("net")).unwrap();
        fs::write(dir.path().join("net/2.conf"), r#"{"type": "two"}"#).unwrap();
        fs::write(dir.path().join("net/1.conf"), r#"{"type": "one"}"#).unwrap();
        let conf = ConfDir::new(dir.path().to_owned());
        let plugins = |conf: &ConfDir| {
            let network = conf.network_blocking().unwrap();
            network.plugins.iter().map(|plugin| plugin.executable.clone()).collect::<Vec<_>>()
        };
        assert_eq!(plugins(&conf), ["bridge", "one", "two"]);
        fs::remove_file(dir.path().join("net/1.conf")).unwrap();
        assert_eq!(plugins(&conf), ["bridge", "two"]);
        fs::write(dir.path().join("net/2.conf"), "{").unwrap();
        assert!(name(&conf).unwrap_err().contains("a.conflist: plugin 1: not JSON"));
    }

    #[test]
    fn an_unchanged_folder_is_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.conflist");
        fs::write(&path, conflist("one")).unwrap();
        let conf = ConfDir::new(dir.path().to_owned());
        let first = conf.network_blocking().unwrap();
        assert!(!Arc::ptr_eq(&first, &conf.network_blocking().unwrap()), "just written: read again");

        // ctime cannot be set back, so the reading is made to look as if it had been taken later.
        let mut reading = conf.read();
        let kept = reading.outcome.clone().unwrap();
        assert!(!reading.is_settled());
        for file in reading.folders.iter_mut().flat_map(|folder| &mut folder.files) {
            file.changed.0 -= 60;
            file.modified.0 -= 60;
        }
        assert!(reading.is_settled());
        *conf.last.lock().unwrap() = Some(conf.read());
        let cached = conf.network_blocking().unwrap();
        assert!(Arc::ptr_eq(&cached, &conf.network_blocking().unwrap()), "unchanged: not read again");
        assert_eq!(*cached, *kept);
        fs::write(&path, conflist("three")).unwrap();
        assert_eq!(name(&conf), Ok("three".to_owned()));
    }
}
