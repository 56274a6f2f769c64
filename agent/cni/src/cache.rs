//! What is needed to take a pod from its network, kept from before its first plugin runs until the last DEL.
//!
//! One file per pod: a crash in the middle of an ADD leaves the entry behind, and with it DEL can be run. Files
//! survive a crash of the process (temporary name, then rename), not a power loss: after one, the network namespaces
//! are gone anyway, and whoever owns the folder's file system may sync it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::file_error::{At as _, FileError};

/// Version of the format. Another one is refused rather than misread.
const VERSION: u32 = 1;

const SUFFIX: &str = ".json";
const TEMPORARY: &str = ".json.tmp";

/// More than any configuration with a result of the largest size.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// Everything that plugins were told about a pod, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    version: u32,
    pub(crate) container_id: String,
    pub(crate) netns: Option<PathBuf>,
    pub(crate) ifname: String,
    /// The network's configuration as a conflist.
    pub(crate) network: Value,
    /// `CNI_ARGS`.
    pub(crate) args: Vec<(String, String)>,
    /// Capability arguments by name.
    pub(crate) capabilities: Map<String, Value>,
    /// The last plugin's result, once ADD is through.
    pub(crate) result: Option<Value>,
    /// [`Planner::life`](crate::planner::Planner) of the client that ran ADD; another one's plugins may still be running.
    #[serde(default)]
    pub(crate) life: String,
}

/// What an [`Entry`] begins with, before there is a result.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) container_id: String,
    pub(crate) netns: Option<PathBuf>,
    pub(crate) ifname: String,
    pub(crate) network: Value,
    pub(crate) args: Vec<(String, String)>,
    pub(crate) capabilities: Map<String, Value>,
}

impl From<Told> for Entry {
    fn from(told: Told) -> Self {
        let Told { container_id, netns, ifname, network, args, capabilities } = told;
        Self {
            version: VERSION,
            container_id,
            netns,
            ifname,
            network,
            args,
            capabilities,
            result: None,
            life: String::new(),
        }
    }
}

/// Why an entry cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The system refused.
    #[error(transparent)]
    Io(#[from] FileError),
    /// It would be larger than what is read back.
    #[error("{} would be larger than {MAX_FILE} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is not what was written.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Another version of hartpod wrote it.
    #[error("{} is of format {found}, this is {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
}

/// The folder of entries.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The pod's entry, if it has one. The caller has checked the id: it becomes a file name.
    pub(crate) fn read_blocking(&self, id: &str) -> Result<Option<Entry>, CacheError> {
        let path = self.path(id, SUFFIX);
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.at("open", &path)?,
        };
        let mut text = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut text).at("read", &path)?;
        let damaged = |source| CacheError::Damaged { path: path.clone(), source };
        let value: Value = serde_json::from_slice(&text).map_err(damaged)?;
        match value.get("version").and_then(Value::as_u64) {
            Some(found) if found != u64::from(VERSION) => Err(CacheError::Version { path, found }),
            _ => Entry::deserialize(value).map(Some).map_err(damaged),
        }
    }

    pub(crate) fn write_blocking(&self, entry: &Entry) -> Result<(), CacheError> {
        let path = self.path(&entry.container_id, SUFFIX);
        let temporary = self.path(&entry.container_id, TEMPORARY);
        let text =
            serde_json::to_vec(entry).map_err(|source| CacheError::Damaged { path: path.clone(), source })?;
        if text.len() as u64 > MAX_FILE {
            return Err(CacheError::TooLarge { path });
        }
        let mut file = self.create(&temporary).at("create", &temporary)?;
        file.write_all(&text).at("write", &temporary)?;
        std::fs::rename(&temporary, &path).at("rename to", &path)?;
        Ok(())
    }

    /// Forgets the pod. Not having known it is fine.
    pub(crate) fn remove_blocking(&self, id: &str) -> Result<(), CacheError> {
        for suffix in [TEMPORARY, SUFFIX] {
            let path = self.path(id, suffix);
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => other.at("remove", &path)?,
            }
        }
        Ok(())
    }

    /// Ids of the pods that have an entry, or the beginning of one. A folder that does not exist has none.
    pub(crate) fn ids_blocking(&self) -> Result<Vec<String>, CacheError> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.at("list", &self.dir)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.at("list", &self.dir)?.file_name();
            let id =
                name.to_str().and_then(|name| name.strip_suffix(TEMPORARY).or(name.strip_suffix(SUFFIX)));
            ids.extend(id.map(str::to_owned));
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        let open = || OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
        match open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
                open()
            }
            other => other,
        }
    }

    fn path(&self, id: &str, suffix: &str) -> PathBuf {
        self.dir.join(format!("{id}{suffix}"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn entry(id: &str) -> Entry {
        Entry::from(Told {
            container_id: id.to_owned(),
            netns: Some("/run/netns/x".into()),
            ifname: "eth0".to_owned(),
            network: json!({"name": "n"}),
            args: vec![("IgnoreUnknown".to_owned(), "1".to_owned())],
            capabilities: Map::new(),
        })
    }

    #[test]
    fn an_entry_comes_back_as_it_was_and_goes_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().join("not/there/yet"));
        assert_eq!(cache.read_blocking("a").unwrap(), None);
        assert_eq!(cache.ids_blocking().unwrap(), Vec::<String>::new());
        let mut written = entry("a");
        cache.write_blocking(&written).unwrap();
        written.result = Some(json!({"ips": []}));
        cache.write_blocking(&written).unwrap();
        assert_eq!(cache.read_blocking("a").unwrap(), Some(written));
        assert_eq!(cache.ids_blocking().unwrap(), ["a"]);
        cache.remove_blocking("a").unwrap();
        cache.remove_blocking("a").unwrap();
        assert_eq!(fs::read_dir(dir.path().join("not/there/yet")).unwrap().count(), 0);
    }

    #[test]
    fn a_crash_before_the_rename_leaves_nothing_to_undo_but_is_listed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().to_owned());
        fs::write(dir.path().join("b.json.tmp"), "{\"vers").unwrap();
        fs::write(dir.path().join("foreign"), "").unwrap();
        assert_eq!(cache.ids_blocking().unwrap(), ["b"]);
        assert_eq!(cache.read_blocking("b").unwrap(), None);
        cache.remove_blocking("b").unwrap();
        assert_eq!(cache.ids_blocking().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_cannot_be_understood_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().to_owned());
        fs::write(dir.path().join("c.json"), "").unwrap();
        assert!(matches!(cache.read_blocking("c"), Err(CacheError::Damaged { .. })));
        let mut newer = serde_json::to_value(entry("d")).unwrap();
        newer["version"] = json!(2);
        fs::write(dir.path().join("d.json"), newer.to_string()).unwrap();
        let error = cache.read_blocking("d").unwrap_err().to_string();
        assert!(error.ends_with("d.json is of format 2, this is 1"), "{error}");
    }
}
