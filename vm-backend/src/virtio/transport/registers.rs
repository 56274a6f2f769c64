//! The registers' places, the bits of the status, and the registers that each queue has.

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use crate::memory::GuestMemory;

/// Offsets in a slot's page (VIRTIO 1.2 section 4.2.2), and the values of those that do not change.
pub(crate) mod reg {
    pub(crate) const MAGIC: u64 = 0x000;
    /// "virt"
    pub(crate) const MAGIC_VALUE: u32 = 0x7472_6976;
    pub(crate) const VERSION: u64 = 0x004;
    pub(crate) const VERSION_VALUE: u32 = 2;
    pub(crate) const DEVICE_ID: u64 = 0x008;
    pub(crate) const VENDOR_ID: u64 = 0x00c;
    /// "hpod"
    pub(crate) const VENDOR_VALUE: u32 = 0x646f_7068;
    pub(crate) const DEVICE_FEATURES: u64 = 0x010;
    pub(crate) const DEVICE_FEATURES_SELECT: u64 = 0x014;
    pub(crate) const DRIVER_FEATURES: u64 = 0x020;
    pub(crate) const DRIVER_FEATURES_SELECT: u64 = 0x024;
    pub(crate) const QUEUE_SELECT: u64 = 0x030;
    pub(crate) const QUEUE_NUM_MAX: u64 = 0x034;
    pub(crate) const QUEUE_NUM: u64 = 0x038;
    pub(crate) const QUEUE_READY: u64 = 0x044;
    pub(crate) const QUEUE_NOTIFY: u64 = 0x050;
    pub(crate) const INTERRUPT_STATUS: u64 = 0x060;
    pub(crate) const INTERRUPT_ACK: u64 = 0x064;
    pub(crate) const STATUS: u64 = 0x070;
    pub(crate) const QUEUE_DESC_LOW: u64 = 0x080;
    pub(crate) const QUEUE_DESC_HIGH: u64 = 0x084;
    pub(crate) const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub(crate) const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub(crate) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub(crate) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub(crate) const SHM_LEN_LOW: u64 = 0x0b0;
    pub(crate) const SHM_LEN_HIGH: u64 = 0x0b4;
    pub(crate) const SHM_BASE_LOW: u64 = 0x0b8;
    pub(crate) const SHM_BASE_HIGH: u64 = 0x0bc;
    pub(crate) const CONFIG_GENERATION: u64 = 0x0fc;
    pub(crate) const CONFIG: u64 = 0x100;
}

/// Bits of the device status (VIRTIO 1.2 section 2.1).
pub(crate) mod status {
    pub(crate) const ACKNOWLEDGE: u32 = 1;
    pub(crate) const DRIVER: u32 = 2;
    pub(crate) const DRIVER_OK: u32 = 4;
    pub(crate) const FEATURES_OK: u32 = 8;
    pub(crate) const NEEDS_RESET: u32 = 64;
    pub(crate) const FAILED: u32 = 128;
    /// What a driver may set. Also NEEDS_RESET, which it writes back where it adds a bit to what it read.
    pub(crate) const OF_DRIVER: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | NEEDS_RESET | FAILED;
}

/// What a driver has written of one queue; not checked until it is used.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct QueueRegisters {
    pub(crate) max: u16,
    size: u32,
    pub(crate) ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl QueueRegisters {
    pub(crate) fn new(max: u16) -> Self {
        Self { max, size: max.into(), ..Self::default() }
    }

    /// Writes a register; nothing but QueueReady can be written while the queue is ready (section 4.2.2.2).
    pub(crate) fn set(&mut self, offset: u64, value: u32) {
        if self.ready {
            return;
        }
        match offset {
            reg::QUEUE_NUM => self.size = value,
            reg::QUEUE_READY => self.ready = value == 1,
            reg::QUEUE_DESC_LOW => self.descriptors = with_low(self.descriptors, value),
            reg::QUEUE_DESC_HIGH => self.descriptors = with_high(self.descriptors, value),
            reg::QUEUE_DRIVER_LOW => self.available = with_low(self.available, value),
            reg::QUEUE_DRIVER_HIGH => self.available = with_high(self.available, value),
            reg::QUEUE_DEVICE_LOW => self.used = with_low(self.used, value),
            reg::QUEUE_DEVICE_HIGH => self.used = with_high(self.used, value),
            _ => {}
        }
    }

    /// The queue, if its size is a power of two up to the largest and all of its rings are aligned and in guest RAM.
    pub(crate) fn checked(&self, memory: &GuestMemory) -> Option<Queue> {
        let mut queue = Queue::new(self.max).ok()?;
        queue.try_set_size(u16::try_from(self.size).ok()?).ok()?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptors)).ok()?;
        queue.try_set_avail_ring_address(GuestAddress(self.available)).ok()?;
        queue.try_set_used_ring_address(GuestAddress(self.used)).ok()?;
        queue.set_ready(true);
        // Address 0 is what virtio-queue takes for a ring that was never set.
        (queue.avail_ring() != 0 && queue.is_valid(memory)).then_some(queue)
    }
}

fn with_low(address: u64, low: u32) -> u64 {
    (address & !0xffff_ffff) | u64::from(low)
}

fn with_high(address: u64, high: u32) -> u64 {
    (address & 0xffff_ffff) | (u64::from(high) << 32)
}
