//! A guest's slots, and the devices in them.
//!
//! Slot 0 is for vsock, 1 for the network, 2 for the balloon; disks follow, then empty slots that get disks while the guest runs. The last one has
//! room for the queues of a file system, too.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::boot::{DeviceFiles, FIXED_SLOTS};
use crate::bus::MmioDevice;
use crate::control::{SlotRefused, Slots};
use crate::counts::Counters;
use crate::memory::GuestRam;
use crate::virtio::balloon::Balloon;
use crate::virtio::blk::{Block, BlockError, BlockExtent};
use crate::virtio::fs::Files;
use crate::virtio::net::{Net, NetError};
use crate::virtio::vsock::{Dialer, Vsock};
use crate::virtio::{Device, Line, QUEUES, Removal, Slot, SlotError};

/// Slots of a guest.
#[derive(Debug)]
pub struct Devices {
    slots: Vec<Arc<Mutex<Slot>>>,
    dialer: Option<Dialer>,
    counters: Counters,
}

/// Why there are no devices.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    #[error("make an event")]
    Event {
        #[source]
        source: io::Error,
    },
    #[error("vsock")]
    Vsock {
        #[source]
        source: io::Error,
    },
    #[error("the network")]
    Net {
        #[source]
        source: NetError,
    },
    #[error("the balloon")]
    Balloon {
        #[source]
        source: io::Error,
    },
    #[error("disk {index}")]
    Disk {
        index: usize,
        #[source]
        source: BlockError,
    },
    #[error("slot {slot}")]
    Slot {
        slot: usize,
        #[source]
        source: SlotError,
    },
}

/// Called when the guest's agent says that it is up.
pub type Ready = Box<dyn Fn() + Send>;

/// The guest's address on vsock. It is alone with its host there, so all guests have the same, the first that is not reserved (vsock(7)).
const GUEST_CID: u64 = 3;
/// How long the host waits for a slot. A driver that resets its disk holds it until the host's storage has done what was asked of it before,
/// and that must not keep the host from being heard.
const BUSY_WAIT: Duration = Duration::from_secs(1);
/// Queues of a disk: those that an empty slot expects. And of a file system, for the last one.
const DISK_QUEUES: usize = 1;
const FILE_QUEUES: usize = 2;

impl Devices {
    /// All slots, filled with what is there at boot. `ready` hears of the agent, `line` gives the wire of a slot.
    ///
    /// # Errors
    /// A device cannot be made of its files.
    pub fn new(
        files: DeviceFiles,
        memory: &GuestRam,
        ready: Ready,
        line: impl Fn(u32) -> Box<dyn Line>,
    ) -> Result<Self, DevicesError> {
        let counters = Counters::default();
        let slots = (0..files.slots).map(|slot| {
            let kicks = kicks().map_err(|source| DevicesError::Event { source })?;
            let slot = Slot::new(line(slot), kicks, Arc::clone(memory)).counted_by(counters.clone());
            Ok(Arc::new(Mutex::new(slot)))
        });
        let slots = slots.collect::<Result<_, _>>()?;
        let (made, dialer) = make(files, ready)?;
        let devices = Self { slots, dialer, counters };
        for (slot, device) in made.into_iter().enumerate() {
            if let (Some(device), Some(place)) = (device, devices.slots.get(slot)) {
                lock(place).fill(device).map_err(|source| DevicesError::Slot { slot, source })?;
            }
        }
        Ok(devices)
    }

    /// For streams into the guest that the VMM itself opens, if there is vsock.
    #[must_use]
    pub fn dialer(&self) -> Option<Dialer> {
        self.dialer.clone()
    }

    /// What counts for all of them.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// How many slots there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }

    /// For the bus, in the order of their places.
    pub fn on_bus(&self) -> impl Iterator<Item = Arc<dyn MmioDevice>> + '_ {
        self.slots.iter().map(|slot| Arc::clone(slot) as Arc<dyn MmioDevice>)
    }

    /// Calls `register` with each slot, queue and kick that a driver may notify: of empty slots those of a disk, of the
    /// last one those of a file system.
    ///
    /// # Errors
    /// The first of `register`.
    pub fn each_kick<E>(
        &self,
        mut register: impl FnMut(u32, u32, &EventFd) -> Result<(), E>,
    ) -> Result<(), E> {
        for (n, slot) in (0..).zip(&self.slots) {
            let slot = lock(slot);
            let queues = match slot.queues() {
                0 if n < FIXED_SLOTS => 0,
                0 if n + 1 == self.count() => FILE_QUEUES,
                0 => DISK_QUEUES,
                queues => queues,
            };
            for (queue, kick) in (0..).zip(&slot.kicks()[..queues]) {
                register(n, queue, kick)?;
            }
        }
        Ok(())
    }

    /// A slot whose disk comes and goes.
    fn disk_slot(&self, slot: u32) -> Result<MutexGuard<'_, Slot>, SlotRefused> {
        let place = usize::try_from(slot).ok().filter(|_| slot >= FIXED_SLOTS);
        let found = place.and_then(|place| self.slots.get(place));
        let found = found.ok_or_else(|| refused(slot, "there is no such slot for disks"))?;
        lock_soon(found).ok_or_else(|| refused(slot, "its disk is busy"))
    }
}

impl Slots for Devices {
    fn fill(&mut self, slot: u32, disk: Vec<BlockExtent>) -> Result<(), SlotRefused> {
        let mut place = self.disk_slot(slot)?;
        let block = Block::new(disk).map_err(|e| refused(slot, e))?;
        place.fill(Box::new(block)).map_err(|e| refused(slot, e))
    }

    fn fill_files(&mut self, slot: u32, server: OwnedFd) -> Result<(), SlotRefused> {
        let mut place = self.disk_slot(slot)?;
        let files = Files::new(server).map_err(|e| refused(slot, e))?;
        place.fill(Box::new(files)).map_err(|e| refused(slot, e))
    }

    fn empty(&mut self, slot: u32) -> Result<(), SlotRefused> {
        match self.disk_slot(slot)?.empty(Removal::Unbound) {
            // A daemon may repeat itself.
            Ok(()) | Err(SlotError::Empty) => Ok(()),
            Err(error) => Err(refused(slot, error)),
        }
    }
}

fn refused(slot: u32, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> SlotRefused {
    SlotRefused { slot, source: source.into() }
}

type Made = (Vec<Option<Box<dyn Device>>>, Option<Dialer>);

/// Devices in the order of their slots.
fn make(files: DeviceFiles, ready: Ready) -> Result<Made, DevicesError> {
    let vsock = files.vsock.map(|listener| Vsock::new(listener, GUEST_CID, ready));
    let vsock = vsock.transpose().map_err(|source| DevicesError::Vsock { source })?;
    let dialer = vsock.as_ref().map(Vsock::dialer);
    let net = files.net.map(|net| Net::new(net.tap, net.mac, net.mtu));
    let net = net.transpose().map_err(|source| DevicesError::Net { source })?;
    let balloon = files.balloon.then(Balloon::new);
    let balloon = balloon.transpose().map_err(|source| DevicesError::Balloon { source })?;
    let mut devices = vec![boxed(vsock), boxed(net), boxed(balloon)];
    for (index, disk) in files.disks.into_iter().enumerate() {
        let block = Block::new(disk).map_err(|source| DevicesError::Disk { index, source })?;
        devices.push(boxed(Some(block)));
    }
    Ok((devices, dialer))
}

fn boxed(device: Option<impl Device + 'static>) -> Option<Box<dyn Device>> {
    device.map(|device| Box::new(device) as Box<dyn Device>)
}

fn kicks() -> io::Result<[EventFd; QUEUES]> {
    let kicks: Vec<EventFd> =
        (0..QUEUES).map(|_| EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)).collect::<Result<_, _>>()?;
    kicks.try_into().map_err(|_| io::ErrorKind::InvalidData.into())
}

fn lock(slot: &Arc<Mutex<Slot>>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `None` where it stays locked.
fn lock_soon(slot: &Mutex<Slot>) -> Option<MutexGuard<'_, Slot>> {
    let deadline = Instant::now() + BUSY_WAIT;
    loop {
        match slot.try_lock() {
            Ok(slot) => return Some(slot),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(TryLockError::WouldBlock) => return None,
        }
    }
}

impl MmioDevice for Mutex<Slot> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::memory;

    #[derive(Debug)]
    struct Nowhere;

    impl Line for Nowhere {
        fn set(&self, _high: bool) {}
    }

    fn extent(bytes: u64) -> BlockExtent {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        BlockExtent { file: file.into(), read_only: false }
    }

    fn listener(dir: &std::path::Path) -> OwnedFd {
        std::os::unix::net::UnixListener::bind(dir.join("vsock")).unwrap().into()
    }

    /// vsock, no network, a balloon, one disk, two empty slots.
    fn devices() -> Devices {
        let dir = tempfile::tempdir().unwrap();
        let files = DeviceFiles {
            vsock: Some(listener(dir.path())),
            net: None,
            balloon: true,
            disks: vec![vec![extent(4096)]],
            slots: 6,
        };
        let ram = memory::map(0x8000_0000, 1 << 20).unwrap();
        Devices::new(files, &ram, Box::new(|| {}), |_| Box::new(Nowhere)).unwrap()
    }

    /// DeviceID of each slot, as the guest reads it (VIRTIO 1.2 section 4.2.2).
    fn ids(devices: &Devices) -> Vec<u32> {
        let id = |device: Arc<dyn MmioDevice>| {
            let mut id = [0; 4];
            device.read(8, &mut id);
            u32::from_le_bytes(id)
        };
        devices.on_bus().map(id).collect()
    }

    #[test]
    fn each_device_stands_in_its_slot() {
        let devices = devices();
        assert_eq!(devices.count(), 6);
        assert_eq!(ids(&devices), [19, 0, 5, 2, 0, 0]);
    }

    #[test]
    fn a_driver_may_notify_every_queue_and_that_of_a_disk_to_come() {
        let mut seen = Vec::new();
        let all = devices().each_kick(|slot, queue, _| {
            seen.push((slot, queue));
            Ok::<_, ()>(())
        });
        assert_eq!(all, Ok(()));
        let of = |slot: u32| seen.iter().filter(|(s, _)| *s == slot).map(|(_, q)| *q).collect::<Vec<_>>();
        assert_eq!(
            (of(0), of(1), of(3), of(4), of(5)),
            (vec![0, 1, 2], vec![], vec![0], vec![0], vec![0, 1])
        );
        assert!(!of(2).is_empty());
        assert_eq!(devices().each_kick(|slot, _, _| if slot == 3 { Err(slot) } else { Ok(()) }), Err(3));
    }

    /// As while a vCPU resets a disk that writes back to slow storage.
    #[test]
    fn a_slot_that_a_driver_holds_does_not_hold_the_host() {
        let mut devices = devices();
        let slot = Arc::clone(&devices.slots[4]);
        let held = lock(&slot);
        for refused in [devices.fill(4, vec![extent(4096)]), devices.empty(4)] {
            assert_eq!(refused.unwrap_err().source.to_string(), "its disk is busy");
        }
        devices.fill(5, vec![extent(4096)]).unwrap();
        drop(held);
        devices.fill(4, vec![extent(4096)]).unwrap();
    }

    #[test]
    fn disks_come_and_go_in_slots_for_disks_only() {
        let mut devices = devices();
        devices.fill(4, vec![extent(4096), extent(512)]).unwrap();
        assert_eq!(ids(&devices), [19, 0, 5, 2, 2, 0]);
        devices.empty(4).unwrap();
        devices.empty(3).unwrap();
        devices.empty(3).unwrap();
        assert_eq!(ids(&devices), [19, 0, 5, 0, 0, 0]);
        for slot in [0, 1, 2, 6, u32::MAX] {
            assert_eq!(devices.fill(slot, vec![extent(4096)]).unwrap_err().slot, slot);
            assert_eq!(devices.empty(slot).unwrap_err().slot, slot);
        }
        assert!(devices.fill(5, vec![extent(0)]).is_err(), "an empty file is no disk");
        devices.fill(5, vec![extent(4096)]).unwrap();
        assert!(devices.fill(5, vec![extent(4096)]).is_err(), "it is taken");
    }
}
