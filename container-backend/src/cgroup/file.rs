//! Reading and writing interface files. They exist or they do not: nothing here creates one.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use super::error::CgroupError;

/// Writes `value` with one write(2), as interface files want it.
pub(super) fn write(file: &Path, value: &str) -> Result<(), CgroupError> {
    put(file, value).map_err(|source| CgroupError::Write {
        file: file.to_owned(),
        value: value.to_owned(),
        source,
    })
}

/// The same, for callers that look at the kernel's answer themselves.
pub(super) fn put(file: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

pub(super) fn read(file: &Path) -> Result<String, CgroupError> {
    std::fs::read_to_string(file).map_err(|source| CgroupError::Read { file: file.to_owned(), source })
}

/// A file's text, or nothing where the kernel has no such file.
pub(super) fn read_if_there(file: &Path) -> Result<Option<String>, CgroupError> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        // ENODEV: the cgroup was removed after the file was opened.
        Err(e) if is_gone(&e) => Ok(None),
        Err(source) => Err(CgroupError::Read { file: file.to_owned(), source }),
    }
}

pub(super) fn is_gone(error: &io::Error) -> bool {
    // What has too long a path was never made.
    error.kind() == io::ErrorKind::NotFound
        || matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENAMETOOLONG))
}

/// The value of `key` in a file of `key value` lines.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_matched_whole() {
        let text = "oom_kill 5\noom 3\noom_group_kill 0\nbad\n";
        assert_eq!(keyed(text, "oom_kill"), Some(5));
        assert_eq!(keyed(text, "oom"), Some(3));
        assert_eq!(keyed(text, "bad"), None);
        assert_eq!(keyed(text, "populated"), None);
    }

    #[test]
    fn writing_creates_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("memory.max");
        assert!(write(&file, "1").is_err());
        assert!(!file.exists());
        assert!(read_if_there(&file).expect("absent is no error").is_none());
    }
}
