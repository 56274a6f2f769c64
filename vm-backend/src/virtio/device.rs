//! What the transport asks of a device.

use std::io;
use std::sync::Arc;

use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use super::Interrupt;
use crate::counts::DeviceCounters;
use crate::memory::GuestRam;

/// A queue that the driver has made ready.
#[derive(Debug)]
pub struct ActiveQueue {
    /// Its rings; everything in them is the guest's and hostile.
    pub queue: Queue,
    /// Signalled when the driver has put something into it.
    pub kick: EventFd,
    /// Of the devices of this kind.
    pub counters: Arc<DeviceCounters>,
}

/// What a device works with from DRIVER_OK to reset.
#[derive(Debug)]
pub struct Activation {
    pub memory: GuestRam,
    /// Features that the driver took: a subset of [`Device::features`].
    pub features: u64,
    /// In the order of [`Device::queue_sizes`]; a queue that the driver left out is `None`.
    pub queues: Vec<Option<ActiveQueue>>,
    pub interrupt: Arc<Interrupt>,
}

/// A device could not begin to work; the transport tells the driver (DEVICE_NEEDS_RESET).
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    #[error("the driver left out queue {0}, which the device needs")]
    MissingQueue(usize),
    #[error("{what}")]
    Io { what: &'static str, source: io::Error },
}

/// A virtio device. Calls come from the vCPU thread that touched a register, one at a time; none may block. The work on queues is
/// done by a thread of the device's own, from [`Device::activate`] to [`Device::reset`].
pub trait Device: Send + std::fmt::Debug {
    /// Device type (VIRTIO 1.2 section 5), e.g. 2 for a block device.
    fn device_type(&self) -> u32;

    /// Features that it offers; VIRTIO_F_VERSION_1 among them.
    fn features(&self) -> u64;

    /// The largest size of each of its queues, powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// Reads its configuration space; bytes past its end are 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver wrote to the configuration space. Most devices have nothing that can be written.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready: take up work.
    ///
    /// # Errors
    /// A queue is missing, or a thread or descriptor cannot be had.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stop work and forget everything of the driver; once this returns nothing touches guest memory any more.
    fn reset(&mut self);
}

/// Copies the part of a device's configuration space that a driver asked for; past its end there are zeros.
pub fn read_config_space(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let rest = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)).unwrap_or_default();
    let count = rest.len().min(data.len());
    data[..count].copy_from_slice(&rest[..count]);
}
