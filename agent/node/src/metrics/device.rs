//! The names of block devices.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::fs::statvfs;

/// A file system, and the device that it is on.
#[derive(Debug)]
pub(crate) struct FileSystem {
    pub(crate) device: String,
    /// Bytes.
    pub(crate) size: u64,
    /// In all and free; some file systems have no fixed number.
    pub(crate) inodes: Option<(u64, u64)>,
}

impl FileSystem {
    /// Of the file system that has `path`.
    pub(crate) fn of_blocking(path: &Path, devices: &mut Devices) -> Option<Self> {
        let number = rustix::fs::stat(path).ok()?.st_dev;
        let device = devices.name(rustix::fs::major(number), rustix::fs::minor(number)).to_owned();
        let found = statvfs(path).ok()?;
        let inodes = (found.f_files > 0).then_some((found.f_files, found.f_favail));
        Some(Self { device, size: found.f_blocks.saturating_mul(found.f_frsize), inodes })
    }
}

/// Names by number, each looked up once.
#[derive(Debug, Default)]
pub(crate) struct Devices(BTreeMap<(u32, u32), String>);

impl Devices {
    /// `/dev/vda`; the numbers `0:45` of what is no block device of this host.
    pub(crate) fn name(&mut self, major: u32, minor: u32) -> &str {
        self.0.entry((major, minor)).or_insert_with(|| {
            let known = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).ok();
            let name =
                known.as_deref().and_then(|text| text.lines().find_map(|l| l.strip_prefix("DEVNAME=")));
            name.map_or_else(|| format!("{major}:{minor}"), |name| format!("/dev/{name}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_block_device_has_its_numbers() {
        assert_eq!(Devices::default().name(0, 45), "0:45");
        let root = FileSystem::of_blocking(Path::new("/"), &mut Devices::default()).unwrap();
        assert!(root.size > 0 && !root.device.is_empty());
        assert!(FileSystem::of_blocking(Path::new("/none"), &mut Devices::default()).is_none());
    }
}
