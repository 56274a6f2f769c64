//! Container Device Interface: what files of vendors say that a container gets with a device.
//!
//! The files are read when a container asks for a device, and only then: what they say is what holds at that moment.

mod file;
mod name;

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use file::SpecFile;
pub(crate) use file::{DeviceNode, Edits, Hook, Mount};
pub(crate) use name::DeviceName;

/// A file larger than this is no spec.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What the files in the folders say.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    /// By device; the file of the last folder that has it, or two files of one folder, which is one too many.
    devices: BTreeMap<(String, String), Found>,
    files: Vec<(PathBuf, SpecFile)>,
    /// Files that are none, and why.
    bad: Vec<String>,
}

#[derive(Debug)]
struct Found {
    folder: usize,
    /// Number of the file, and of the device in it.
    place: (usize, usize),
    /// Another file of the same folder that has it.
    conflict: Option<usize>,
}

/// A device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    #[error("no CDI device {name}{}", because(.bad))]
    Unknown { name: String, bad: Vec<String> },
    #[error("CDI device {name} is both in {} and in {}", one.display(), other.display())]
    Conflict { name: String, one: PathBuf, other: PathBuf },
}

fn because(bad: &[String]) -> String {
    if bad.is_empty() { String::new() } else { format!("; files that are no specs: {}", bad.join("; ")) }
}

impl Registry {
    /// Reads the files of all folders, of which later ones count more. A folder that is not there has none.
    pub(crate) fn read_blocking(folders: &[PathBuf]) -> Self {
        let mut registry = Self::default();
        for (number, folder) in folders.iter().enumerate() {
            let mut paths: Vec<PathBuf> = match std::fs::read_dir(folder) {
                Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    registry.bad.push(format!("{}: {error}", folder.display()));
                    continue;
                }
            };
            paths.sort();
            for path in paths {
                let kind = path.extension().and_then(|extension| extension.to_str());
                let Some(json) = kind.and_then(|kind| match kind {
                    "json" => Some(true),
                    "yaml" => Some(false),
                    _ => None,
                }) else {
                    continue;
                };
                let read = read_small(&path).map_err(|error| error.to_string());
                match read.and_then(|text| SpecFile::parse(&text, json)) {
                    Ok(file) => registry.add(number, path, file),
                    Err(why) => registry.bad.push(format!("{}: {why}", path.display())),
                }
            }
        }
        registry
    }

    fn add(&mut self, folder: usize, path: PathBuf, file: SpecFile) {
        let number = self.files.len();
        for (at, device) in file.devices.iter().enumerate() {
            let found = Found { folder, place: (number, at), conflict: None };
            let key = (file.kind.clone(), device.name.clone());
            match self.devices.get_mut(&key) {
                Some(known) if known.folder == folder => known.conflict = Some(number),
                _ => drop(self.devices.insert(key, found)),
            }
        }
        self.files.push((path, file));
    }

    /// What a container gets with these devices, in their order; what a file says for all of its devices comes before its first.
    pub(crate) fn edits(&self, names: &[DeviceName]) -> Result<Vec<&Edits>, CdiError> {
        let mut edits = Vec::new();
        let mut seen = Vec::new();
        for name in names {
            let found = self.devices.get(&(name.kind.clone(), name.device.clone()));
            let found =
                found.ok_or_else(|| CdiError::Unknown { name: name.to_string(), bad: self.bad.clone() })?;
            let (number, at) = found.place;
            let (path, file) = &self.files[number];
            if let Some(other) = found.conflict {
                let (one, other) = (path.clone(), self.files[other].0.clone());
                return Err(CdiError::Conflict { name: name.to_string(), one, other });
            }
            if !seen.contains(&number) {
                seen.push(number);
                edits.push(&file.container_edits);
            }
            edits.push(&file.devices[at].container_edits);
        }
        Ok(edits)
    }
}

/// Not waiting for a fifo's writer.
fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = std::fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut text = Vec::new();
    if file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text)? as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 4 MiB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one device, which sets one variable, and one for all.
    fn write(folder: &Path, file: &str, device: &str, value: &str) {
        std::fs::create_dir_all(folder).unwrap();
        let text = format!(
            r#"{{"cdiVersion": "0.6.0", "kind": "vendor.com/gpu", "containerEdits": {{"env": ["ALL={value}"]}},
                "devices": [{{"name": "{device}", "containerEdits": {{"env": ["ONE={value}"]}}}}]}}"#
        );
        std::fs::write(folder.join(file), text).unwrap();
    }

    fn env(registry: &Registry, names: &[&str]) -> Result<Vec<String>, String> {
        let names: Vec<DeviceName> = names.iter().map(|name| name.parse().unwrap()).collect();
        let edits = registry.edits(&names).map_err(|e| e.to_string())?;
        Ok(edits.iter().flat_map(|edits| edits.env.clone()).collect())
    }

    #[test]
    fn later_folders_count_more_and_files_are_read_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().join("etc"), dir.path().join("none"), dir.path().join("run")];
        write(&folders[0], "a.json", "0", "etc");
        write(&folders[0], "b.json", "1", "etc");
        let read = || Registry::read_blocking(&folders);
        assert_eq!(env(&read(), &["vendor.com/gpu=0"]).unwrap(), ["ALL=etc", "ONE=etc"]);
        write(&folders[2], "a.json", "0", "run");
        assert_eq!(
            env(&read(), &["vendor.com/gpu=0", "vendor.com/gpu=1"]).unwrap(),
            ["ALL=run", "ONE=run", "ALL=etc", "ONE=etc"]
        );
        std::fs::remove_file(folders[0].join("b.json")).unwrap();
        assert_eq!(env(&read(), &["vendor.com/gpu=1"]).unwrap_err(), "no CDI device vendor.com/gpu=1");
    }

    #[test]
    fn a_device_that_cannot_be_had_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().join("etc")];
        write(&folders[0], "a.json", "0", "a");
        write(&folders[0], "b.json", "0", "b");
        std::fs::write(folders[0].join("c.yaml"), "cdiVersion: 9.9.9\nkind: vendor.com/gpu\n").unwrap();
        std::fs::write(folders[0].join("note.txt"), "not looked at").unwrap();
        let registry = Registry::read_blocking(&folders);
        let conflict = env(&registry, &["vendor.com/gpu=0"]).unwrap_err();
        assert!(conflict.contains("a.json and in ") && conflict.ends_with("b.json"), "{conflict}");
        let unknown = env(&registry, &["vendor.com/gpu=7"]).unwrap_err();
        assert!(unknown.contains("no CDI device vendor.com/gpu=7; files that are no specs: "), "{unknown}");
        assert!(unknown.ends_with("c.yaml: cdiVersion \"9.9.9\" is not known"), "{unknown}");
    }
}
