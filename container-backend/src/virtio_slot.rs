//! The virtio-mmio slots of a guest, by which disks come and go while it runs.
//!
//! The VMM describes all slots in the devicetree; an empty one says so (DeviceID 0) and its driver lets it be. Once the host has filled a slot, the
//! guest binds the driver to it by sysfs; unbound, it can be emptied.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

/// Numbers of the slots that disks can be in; those before have vsock, network and balloon. And where slot 0 lies: the machine's memory
/// map.
const DISKS: RangeInclusive<u8> = 3..=31;
const FIRST: u64 = 0x1000_1000;
const SIZE: u64 = 0x1000;

const DRIVER: &str = "/sys/bus/platform/drivers/virtio-mmio";
const DEVICES: &str = "/sys/bus/platform/devices";

/// Pause between looks for what the kernel is about to make. It usually is there at the first.
const PAUSE: Duration = Duration::from_millis(2);

/// A slot of the guest that this process runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(u8);

/// Why a disk cannot be had, or not be let go.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The host has not filled it.
    #[error("slot {slot} is empty")]
    Empty {
        /// Its number.
        slot: u8,
    },
    /// The driver.
    #[error("{what} the driver of slot {slot}")]
    Driver {
        /// `bind` or `unbind`.
        what: &'static str,
        /// Its number.
        slot: u8,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It holds no disk, or a disk with fewer partitions.
    #[error("{what} of slot {slot} did not appear within {} s", waited.as_secs())]
    Missing {
        /// `the disk`, `partition 3`.
        what: String,
        /// Its number.
        slot: u8,
        /// The deadline.
        waited: Duration,
    },
}

/// The disk in a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    slot: Slot,
    /// As the kernel calls it: `vda`.
    name: String,
}

impl Slot {
    /// The slot of this number, if disks can be in it: bound and unbound by request, another's would cut the guest off from its host.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        u8::try_from(number).ok().filter(|number| DISKS.contains(number)).map(Self)
    }

    /// Counted from 0.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }

    /// The slot's name in sysfs.
    fn device(self) -> String {
        format!("{:x}.virtio_mmio", FIRST + u64::from(self.0) * SIZE)
    }

    fn is_bound(self) -> bool {
        Path::new(DEVICES).join(self.device()).join("driver").exists()
    }

    /// Binds the driver; a slot that was bound before is success. Blocks while the kernel reads the disk's partitions.
    ///
    /// # Errors
    /// The slot is empty, or the device does not work.
    pub fn bind(self) -> Result<(), SlotError> {
        if self.is_bound() {
            return Ok(());
        }
        match fs::write(Path::new(DRIVER).join("bind"), self.device()) {
            Ok(()) => Ok(()),
            Err(_) if self.is_bound() => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                Err(SlotError::Empty { slot: self.0 })
            }
            Err(source) => Err(SlotError::Driver { what: "bind", slot: self.0, source }),
        }
    }

    /// Unbinds the driver; a slot that is not bound is success. Blocks while the kernel lets the device go.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn unbind(self) -> Result<(), SlotError> {
        if !self.is_bound() {
            return Ok(());
        }
        let unbound = fs::write(Path::new(DRIVER).join("unbind"), self.device());
        unbound.map_err(|source| SlotError::Driver { what: "unbind", slot: self.0, source })
    }

    /// The disk of a bound slot.
    ///
    /// # Errors
    /// It did not appear within `limit`.
    pub fn disk(self, limit: Duration) -> Result<Disk, SlotError> {
        let device = Path::new(DEVICES).join(self.device());
        let name = wait(limit, || disk_below(&device));
        let missing = || SlotError::Missing { what: "the disk".to_owned(), slot: self.0, waited: limit };
        name.map(|name| Disk { slot: self, name }).ok_or_else(missing)
    }

    /// Waits until nobody uses the disk any more, for `limit` at most, and unbinds the driver all the same: whoever still holds it then gets errors.
    /// For a process that may block.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn release(self, limit: Duration) -> Result<(), SlotError> {
        if let Ok(disk) = self.disk(Duration::ZERO) {
            wait(limit, || (!disk.is_in_use()).then_some(()));
        }
        self.unbind()
    }
}

impl Disk {
    /// The device file of a partition, counted from 1.
    ///
    /// # Errors
    /// It did not appear within `limit`.
    pub fn partition(&self, number: u32, limit: Duration) -> Result<PathBuf, SlotError> {
        let path = Path::new("/dev").join(format!("{}{number}", self.name));
        let missing =
            || SlotError::Missing { what: format!("partition {number}"), slot: self.slot.0, waited: limit };
        wait(limit, || path.exists().then_some(())).ok_or_else(missing)?;
        Ok(path)
    }

    /// Whether a file system on it is mounted. The kernel lets only one at a time open the whole disk exclusively, mounts included.
    fn is_in_use(&self) -> bool {
        let opened = rustix::fs::open(
            Path::new("/dev").join(&self.name),
            OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC,
            Mode::empty(),
        );
        matches!(opened, Err(rustix::io::Errno::BUSY))
    }
}

/// `<device>/virtio3/block/vda`
fn disk_below(device: &Path) -> Option<String> {
    let virtio = children(device).find(|name| name.starts_with("virtio"))?;
    children(&device.join(virtio).join("block")).next()
}

fn children(folder: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(io::Result::ok);
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// Asks until there is an answer, or the limit is over.
fn wait<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        let answer = ask();
        if answer.is_some() || begun.elapsed() >= limit {
            return answer;
        }
        sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_have_the_names_of_the_memory_map() {
        assert_eq!(Slot::new(3).unwrap().device(), "10004000.virtio_mmio");
        assert_eq!(Slot::new(31).unwrap().device(), "10020000.virtio_mmio");
        for none in [0, 1, 2, 32, u32::MAX] {
            assert_eq!(Slot::new(none), None, "{none}");
        }
    }

    #[test]
    fn the_disk_is_found_below_the_slot() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(disk_below(dir.path()), None);
        fs::create_dir_all(dir.path().join("virtio7/block/vdc/vdc1")).unwrap();
        fs::create_dir(dir.path().join("power")).unwrap();
        assert_eq!(disk_below(dir.path()).as_deref(), Some("vdc"));
    }

    #[test]
    fn waiting_ends_with_the_limit_or_the_answer() {
        let mut asked = 0;
        let answer = wait(Duration::from_secs(60), || {
            asked += 1;
            (asked == 3).then_some("there")
        });
        assert_eq!((answer, asked), (Some("there"), 3));
        assert_eq!(wait::<()>(Duration::from_millis(10), || None), None);
    }
}
