//! The interrupt of a device on the MMIO transport.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// A wire to the guest's interrupt controller.
///
/// A PLIC or a level-sensitive wire is kept high until the driver acknowledged; an edge-sensitive wire of an in-kernel APLIC is pulsed (an
/// irqfd on an APLIC wire never goes low again, so none is used).
pub trait Line: Send + Sync + std::fmt::Debug {
    /// Sets the level; on an edge-sensitive wire `true` is a pulse and `false` nothing.
    fn set(&self, high: bool);
}

/// InterruptStatus of a device, and the wire that follows it.
#[derive(Debug)]
pub struct Interrupt {
    status: AtomicU32,
    broken: AtomicBool,
    line: Box<dyn Line>,
}

/// The device has used a buffer (VIRTIO 1.2 section 4.2.2).
const USED_BUFFER: u32 = 1 << 0;
/// The configuration of the device has changed.
const CONFIG_CHANGE: u32 = 1 << 1;

impl Interrupt {
    #[must_use]
    pub fn new(line: Box<dyn Line>) -> Self {
        Self { status: AtomicU32::new(0), broken: AtomicBool::new(false), line }
    }

    /// A buffer was put into a used ring.
    pub fn used_buffer(&self) {
        self.raise(USED_BUFFER);
    }

    /// The configuration space changed.
    pub fn config_changed(&self) {
        self.raise(CONFIG_CHANGE);
    }

    /// The device cannot go on (the driver broke its queue, say): the transport shows DEVICE_NEEDS_RESET until the driver resets it.
    pub fn needs_reset(&self) {
        self.broken.store(true, Ordering::SeqCst);
        self.config_changed();
    }

    /// Whether [`needs_reset`](Self::needs_reset) was called since the last reset.
    pub fn reset_needed(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    /// The driver has yet to acknowledge that a buffer was used. It looks at all of its queues after that, so what was put into any of
    /// them before this is asked needs no interrupt of its own.
    pub fn used_buffer_pending(&self) -> bool {
        self.status() & USED_BUFFER != 0
    }

    /// InterruptStatus.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// InterruptACK: the driver has seen these bits.
    pub fn acknowledge(&self, bits: u32) {
        if self.status.fetch_and(!bits, Ordering::SeqCst) & !bits == 0 {
            self.line.set(false);
            // A device may have raised between the two: the wire must not stay low with a bit set.
            if self.status() != 0 {
                self.line.set(true);
            }
        }
    }

    /// Reset of the device.
    pub fn clear(&self) {
        self.broken.store(false, Ordering::SeqCst);
        self.acknowledge(u32::MAX);
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.line.set(true);
    }
}
