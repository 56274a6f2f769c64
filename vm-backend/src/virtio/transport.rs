//! The MMIO transport, version 2 (VIRTIO 1.2 section 4.2): a page of registers per slot, with a device behind it or none.
//!
//! An empty slot reads DeviceID 0, which drivers take for a placeholder. It can be filled while the guest runs; the guest then binds its
//! driver to it.
//!
//! The driver is not trusted. A write that the status at that moment does not allow is ignored, and rings are checked against guest RAM
//! before a device sees them.

mod registers;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use self::registers::{QueueRegisters, reg, status};
use super::queue::VERSION_1;
use super::{Activation, ActiveQueue, Device, Interrupt, Line};
use crate::counts::Counters;
use crate::memory::GuestRam;

/// The most queues of a device, and so the kicks of a slot: a balloon has five.
pub const QUEUES: usize = 5;

/// Where in a slot's page a driver writes the number of the queue that it put something into.
pub const QUEUE_NOTIFY: u64 = reg::QUEUE_NOTIFY;

/// A place for a device in the guest's address space.
#[derive(Debug)]
pub struct Slot {
    memory: GuestRam,
    interrupt: Arc<Interrupt>,
    kicks: [EventFd; QUEUES],
    counters: Counters,
    device: Option<Box<dyn Device>>,
    queues: Vec<QueueRegisters>,
    status: u32,
    /// Whether the device works on the queues: from a successful DRIVER_OK to reset.
    active: bool,
    driver_features: u64,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
    generation: u32,
}

/// Why a slot stays as it is.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SlotError {
    #[error("there is a device in the slot")]
    Taken,
    #[error("there is no device in the slot")]
    Empty,
    #[error("a driver is bound to the device")]
    Bound,
    #[error("the device has {0} queues, and a slot {QUEUES}")]
    TooManyQueues(usize),
}

/// How a device leaves its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Only if no driver is bound to it.
    Unbound,
    /// At once; a driver that uses it sees it vanish and its requests are never answered.
    Forced,
}

impl Slot {
    /// An empty slot. Each of `kicks` is what a QueueNotify of that queue signals, by an ioeventfd or, without one, by
    /// [`write`](Self::write).
    #[must_use]
    pub fn new(line: Box<dyn Line>, kicks: [EventFd; QUEUES], memory: GuestRam) -> Self {
        Self {
            memory,
            interrupt: Arc::new(Interrupt::new(line)),
            kicks,
            counters: Counters::default(),
            device: None,
            queues: Vec::new(),
            status: 0,
            active: false,
            driver_features: 0,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
            generation: 0,
        }
    }

    /// The same slot, whose devices count here.
    #[must_use]
    pub fn counted_by(mut self, counters: Counters) -> Self {
        self.counters = counters;
        self
    }

    /// The kicks, for ioeventfds.
    #[must_use]
    pub fn kicks(&self) -> &[EventFd; QUEUES] {
        &self.kicks
    }

    /// How many queues its device has; 0 for an empty slot.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Whether there is a device in it.
    #[must_use]
    pub fn is_filled(&self) -> bool {
        self.device.is_some()
    }

    /// Puts a device into an empty slot. The guest does not notice by itself.
    ///
    /// # Errors
    /// The slot is taken, or the device has more queues than it has kicks.
    pub fn fill(&mut self, device: Box<dyn Device>) -> Result<(), SlotError> {
        if self.device.is_some() {
            return Err(SlotError::Taken);
        }
        let sizes = device.queue_sizes();
        if sizes.len() > QUEUES {
            return Err(SlotError::TooManyQueues(sizes.len()));
        }
        self.queues = sizes.iter().map(|max| QueueRegisters::new(*max)).collect();
        self.generation = self.generation.wrapping_add(1);
        self.device = Some(device);
        Ok(())
    }

    /// Takes the device out and drops it, with all that it has open.
    ///
    /// # Errors
    /// The slot is empty, or (but for [`Removal::Forced`]) a driver is bound to the device.
    pub fn empty(&mut self, removal: Removal) -> Result<(), SlotError> {
        if self.device.is_none() {
            return Err(SlotError::Empty);
        }
        // Linux says ACKNOWLEDGE again after it unbound a driver.
        if removal == Removal::Unbound && self.status() & !status::ACKNOWLEDGE != 0 {
            return Err(SlotError::Bound);
        }
        self.reset();
        self.device = None;
        self.queues.clear();
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    /// The guest reads `data.len()` bytes at `offset` of the slot's page.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            if let Some(device) = &self.device {
                device.read_config(offset, data);
            }
            return;
        }
        // Registers are read whole (section 4.2.2.2); anything else reads as 0.
        if let (Ok(data), true) = (<&mut [u8; 4]>::try_from(data), offset % 4 == 0) {
            *data = self.register(offset).to_le_bytes();
        }
    }

    /// The guest writes `data` at `offset` of the slot's page.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(device) = &mut self.device else { return };
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            if self.status & status::DRIVER != 0 {
                device.write_config(offset, data);
            }
            return;
        }
        if let (Ok(data), true) = (<[u8; 4]>::try_from(data), offset % 4 == 0) {
            self.set_register(offset, u32::from_le_bytes(data));
        }
    }

    fn register(&self, offset: u64) -> u32 {
        let device = self.device.as_deref();
        let offered = device.map_or(0, Device::features);
        match offset {
            reg::MAGIC => reg::MAGIC_VALUE,
            reg::VERSION => reg::VERSION_VALUE,
            reg::DEVICE_ID => device.map_or(0, Device::device_type),
            reg::VENDOR_ID => reg::VENDOR_VALUE,
            reg::DEVICE_FEATURES => half(offered, self.device_features_select),
            reg::QUEUE_NUM_MAX => self.queue().map_or(0, |queue| u32::from(queue.max)),
            reg::QUEUE_READY => self.queue().map_or(0, |queue| u32::from(queue.ready)),
            reg::INTERRUPT_STATUS => self.interrupt.status(),
            reg::STATUS => self.status(),
            reg::CONFIG_GENERATION => self.generation,
            // There are no shared memory regions: their length reads as -1.
            reg::SHM_LEN_LOW | reg::SHM_LEN_HIGH | reg::SHM_BASE_LOW | reg::SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        match offset {
            reg::DEVICE_FEATURES_SELECT => self.device_features_select = value,
            reg::DRIVER_FEATURES => self.set_driver_features(value),
            reg::DRIVER_FEATURES_SELECT => self.driver_features_select = value,
            reg::QUEUE_SELECT => self.queue_select = value,
            reg::QUEUE_NOTIFY => self.notify(value),
            reg::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            reg::STATUS => self.set_status(value),
            reg::QUEUE_READY if value == 0 => self.stop_queue(),
            _ if self.may_set_queues() => {
                if let Some(queue) = self.queue_mut() {
                    queue.set(offset, value);
                }
            }
            _ => {}
        }
    }

    fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    fn queue_mut(&mut self) -> Option<&mut QueueRegisters> {
        self.queues.get_mut(usize::try_from(self.queue_select).ok()?)
    }

    fn status(&self) -> u32 {
        let needs_reset = if self.interrupt.reset_needed() { status::NEEDS_RESET } else { 0 };
        self.status | needs_reset
    }

    /// Features are the driver's to take between DRIVER and FEATURES_OK (section 3.1.1).
    fn set_driver_features(&mut self, value: u32) {
        let settled = status::FEATURES_OK | status::FAILED;
        if self.status & status::DRIVER == 0 || self.status & settled != 0 {
            return;
        }
        let value = u64::from(value);
        match self.driver_features_select {
            0 => self.driver_features = (self.driver_features & !0xffff_ffff) | value,
            1 => self.driver_features = (self.driver_features & 0xffff_ffff) | (value << 32),
            // What it claims to take there does not exist: FEATURES_OK is refused.
            _ if value != 0 => self.driver_features = u64::MAX,
            _ => {}
        }
    }

    fn may_set_queues(&self) -> bool {
        let settled = status::DRIVER_OK | status::FAILED;
        self.status & status::FEATURES_OK != 0 && self.status & settled == 0
    }

    /// Once a driver has read 0 back the queue may not be touched any more. A device stops as a whole, which no driver minds: they reset
    /// first.
    fn stop_queue(&mut self) {
        if self.queue().is_none_or(|queue| !queue.ready) {
            return;
        }
        if self.active {
            self.deactivate();
            self.interrupt.needs_reset();
        }
        if let Some(queue) = self.queue_mut() {
            queue.ready = false;
        }
    }

    fn notify(&mut self, queue: u32) {
        let kick = usize::try_from(queue).ok().and_then(|queue| self.kicks.get(queue));
        if let (Some(kick), true) = (kick, self.active) {
            signal(kick);
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let added = value & !self.status;
        // Bits are only ever added (section 2.1.1), and NEEDS_RESET is the device's to set.
        if self.status & !value != 0 || self.status & status::FAILED != 0 || added & !status::OF_DRIVER != 0 {
            return;
        }
        self.status |= added & (status::ACKNOWLEDGE | status::DRIVER | status::FAILED);
        if added & status::FEATURES_OK != 0 && self.status & status::DRIVER != 0 && self.features_acceptable()
        {
            self.status |= status::FEATURES_OK;
        }
        if added & status::DRIVER_OK != 0 && self.may_set_queues() {
            self.status |= status::DRIVER_OK;
            self.activate();
        }
    }

    fn features_acceptable(&self) -> bool {
        let offered = self.device.as_deref().map_or(0, Device::features);
        self.driver_features & !offered == 0 && self.driver_features & VERSION_1 != 0
    }

    fn activate(&mut self) {
        self.active = match (self.active_queues(), &mut self.device) {
            (Some(queues), Some(device)) => device
                .activate(Activation {
                    memory: Arc::clone(&self.memory),
                    features: self.driver_features,
                    queues,
                    interrupt: Arc::clone(&self.interrupt),
                })
                .is_ok(),
            _ => false,
        };
        if !self.active {
            self.interrupt.needs_reset();
            return;
        }
        // A driver may have filled a queue before, and its kick found nobody.
        for (kick, _) in self.kicks.iter().zip(&self.queues).filter(|(_, queue)| queue.ready) {
            signal(kick);
        }
    }

    /// The queues as the device takes them; `None` where one of them is not wholly in guest RAM.
    fn active_queues(&self) -> Option<Vec<Option<ActiveQueue>>> {
        let queues = self.queues.iter().zip(&self.kicks);
        let counters = self.counters.of_device(self.device.as_deref().map_or(0, Device::device_type));
        let active = queues.map(|(registers, kick)| {
            if !registers.ready {
                return Some(None);
            }
            let queue = registers.checked(&self.memory)?;
            Some(Some(ActiveQueue { queue, kick: kick.try_clone().ok()?, counters: Arc::clone(&counters) }))
        });
        active.collect()
    }

    fn deactivate(&mut self) {
        if let Some(device) = &mut self.device {
            device.reset();
        }
        self.active = false;
    }

    fn reset(&mut self) {
        // Also after a failed activation: it may have come half way.
        if self.status & status::DRIVER_OK != 0 {
            self.deactivate();
        }
        self.status = 0;
        self.driver_features = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
        self.queues.iter_mut().for_each(|queue| *queue = QueueRegisters::new(queue.max));
        self.interrupt.clear();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.reset();
    }
}

/// The lower (0) or upper (1) half of a feature set.
fn half(features: u64, select: u32) -> u32 {
    let shift = select.checked_mul(32).filter(|shift| *shift < 64);
    // Cut to the half that was asked for.
    #[allow(clippy::cast_possible_truncation)]
    shift.map_or(0, |shift| (features >> shift) as u32)
}

fn signal(kick: &EventFd) {
    // It can only fail where the counter is at its end, and then it is signalled.
    let _ = kick.write(1);
}
