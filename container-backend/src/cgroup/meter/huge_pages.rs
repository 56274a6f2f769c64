//! Huge pages in use, by size. The files have the size in the name, and are few.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};

use super::numbers::one;
use super::read_whole;
use crate::cgroup::sample::HugePageSample;
use crate::cgroup::tree::Version;

/// The open files of one size.
#[derive(Debug)]
pub(super) struct HugePageFiles {
    size: String,
    usage: OwnedFd,
    /// v2 does not tell it.
    peak: Option<OwnedFd>,
}

/// Those of a cgroup; none where it is gone.
pub(super) fn open_all(version: Version, dir: &Path) -> Vec<HugePageFiles> {
    let usage_file = if version == Version::V1 { ".usage_in_bytes" } else { ".current" };
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let opened = |name: &str| open(dir.join(name), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok();
    let sizes = entries.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(usage_file)?;
        if size.contains('.') {
            // hugetlb.2MB.rsvd.current: what is reserved.
            return None;
        }
        let peak = opened(&format!("hugetlb.{size}.max_usage_in_bytes"));
        Some(HugePageFiles { size: size.to_owned(), usage: opened(&name)?, peak })
    });
    let mut sizes: Vec<_> = sizes.collect();
    sizes.sort_by(|a, b| a.size.cmp(&b.size));
    sizes
}

impl HugePageFiles {
    /// Nothing if the cgroup is gone.
    pub(super) fn read(&self, buffer: &mut Vec<u8>) -> Option<HugePageSample> {
        let mut number = |file: &OwnedFd| {
            read_whole(file, buffer).ok()?;
            one(std::str::from_utf8(buffer).ok()?)
        };
        let usage = number(&self.usage)?;
        Some(HugePageSample { size: self.size.clone(), usage, peak: self.peak.as_ref().and_then(number) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_size_is_read_anew_and_reservations_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("hugetlb.2MB.usage_in_bytes", "0\n");
        write("hugetlb.2MB.max_usage_in_bytes", "4194304\n");
        write("hugetlb.2MB.rsvd.usage_in_bytes", "7\n");
        write("hugetlb.1GB.usage_in_bytes", "0\n");
        write("memory.usage_in_bytes", "1\n");
        let files = open_all(Version::V1, dir.path());
        write("hugetlb.2MB.usage_in_bytes", "2097152\n");
        let read: Vec<_> = files.iter().filter_map(|files| files.read(&mut Vec::new())).collect();
        let expected = [
            HugePageSample { size: "1GB".into(), usage: 0, peak: None },
            HugePageSample { size: "2MB".into(), usage: 2 << 20, peak: Some(4 << 20) },
        ];
        assert_eq!(read, expected);
        assert!(open_all(Version::V2, dir.path()).is_empty());
    }
}
