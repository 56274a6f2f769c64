//! What a guest has done since its start, as its VMM counts it, in numbers that only grow.
//!
//! A vCPU counts for itself, and devices of one kind together: a number is added to where a system call is made anyway. What KVM does without the VMM
//! (timers, WFI, interrupts between vCPUs, notifications of queues) leaves the guest as well, and is not counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// The answer to [`Request::Counts`](crate::control::Request::Counts).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Of all vCPUs.
    pub exits: Exits,
    pub vsock: DeviceCounts,
    pub net: DeviceCounts,
    pub balloon: DeviceCounts,
    /// Of all disks, those that are gone too.
    pub block: DeviceCounts,
    pub fs: DeviceCounts,
}

/// How often vCPUs left the guest for the VMM, by what for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exits {
    pub mmio_read: u64,
    pub mmio_write: u64,
    /// Calls of firmware that are not KVM's.
    pub sbi: u64,
    /// Registers that there are not.
    pub csr: u64,
    /// For a signal.
    pub interrupted: u64,
}

/// What devices of a kind did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceCounts {
    /// Notifications by the driver that the device has seen.
    pub kicks: u64,
    /// To the driver.
    pub interrupts: u64,
    /// Chains of buffers that were taken from the driver.
    pub requests: u64,
    /// Bytes in them for the device to read; of a balloon those of the memory that it gave back.
    pub from_guest: u64,
    /// Bytes that the device wrote into them.
    pub to_guest: u64,
}

/// A number that one thread adds to and another reads. Nothing else is ordered by it.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Of one vCPU.
#[derive(Debug, Default)]
pub struct VcpuCounters {
    pub mmio_read: Counter,
    pub mmio_write: Counter,
    pub sbi: Counter,
    pub csr: Counter,
    pub interrupted: Counter,
}

/// Of the devices of one kind.
#[derive(Debug, Default)]
pub struct DeviceCounters {
    pub kicks: Counter,
    pub interrupts: Counter,
    pub requests: Counter,
    pub from_guest: Counter,
    pub to_guest: Counter,
}

impl DeviceCounters {
    fn read(&self) -> DeviceCounts {
        DeviceCounts {
            kicks: self.kicks.read(),
            interrupts: self.interrupts.read(),
            requests: self.requests.read(),
            from_guest: self.from_guest.read(),
            to_guest: self.to_guest.read(),
        }
    }
}

/// Of all that a guest has. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    vsock: Arc<DeviceCounters>,
    net: Arc<DeviceCounters>,
    balloon: Arc<DeviceCounters>,
    block: Arc<DeviceCounters>,
    fs: Arc<DeviceCounters>,
    vcpus: Vec<Arc<VcpuCounters>>,
}

impl Counters {
    /// For devices of a type (VIRTIO 1.2 section 5).
    #[must_use]
    pub fn of_device(&self, device_type: u32) -> Arc<DeviceCounters> {
        match device_type {
            1 => Arc::clone(&self.net),
            2 => Arc::clone(&self.block),
            5 => Arc::clone(&self.balloon),
            19 => Arc::clone(&self.vsock),
            26 => Arc::clone(&self.fs),
            // There are no others.
            _ => Arc::default(),
        }
    }

    /// For one more vCPU.
    pub fn vcpu(&mut self) -> Arc<VcpuCounters> {
        let counters = Arc::<VcpuCounters>::default();
        self.vcpus.push(Arc::clone(&counters));
        counters
    }

    /// All as they are now.
    #[must_use]
    pub fn read(&self) -> Counts {
        let sum = |of: fn(&VcpuCounters) -> &Counter| {
            self.vcpus.iter().fold(0, |sum: u64, vcpu| sum.saturating_add(of(vcpu).read()))
        };
        Counts {
            exits: Exits {
                mmio_read: sum(|vcpu| &vcpu.mmio_read),
                mmio_write: sum(|vcpu| &vcpu.mmio_write),
                sbi: sum(|vcpu| &vcpu.sbi),
                csr: sum(|vcpu| &vcpu.csr),
                interrupted: sum(|vcpu| &vcpu.interrupted),
            },
            vsock: self.vsock.read(),
            net: self.net.read(),
            balloon: self.balloon.read(),
            block: self.block.read(),
            fs: self.fs.read(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_are_told_together_and_devices_by_kind() {
        let mut counters = Counters::default();
        let vcpus = [counters.vcpu(), counters.vcpu()];
        vcpus[0].sbi.add(2);
        vcpus[1].sbi.add(3);
        vcpus[1].mmio_read.add(1);
        counters.of_device(2).requests.add(7);
        counters.clone().of_device(2).requests.add(1);
        counters.of_device(99).requests.add(1);
        let told = counters.read();
        assert_eq!(told.exits, Exits { sbi: 5, mmio_read: 1, ..Exits::default() });
        assert_eq!(told.block, DeviceCounts { requests: 8, ..DeviceCounts::default() });
        assert_eq!(told.fs, DeviceCounts::default());
    }
}
