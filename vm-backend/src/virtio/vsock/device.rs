//! The device as the transport sees it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::dialer::Dialer;
use super::limits::Limits;
use super::mux::{Mux, Outside};
use super::poll::Poller;
use super::ready::ReadySignal;
use super::thread::Session;
use crate::jail::Thread;
use crate::virtio::queue::RING_FEATURES;
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, Device, read_config_space};

/// Device type (VIRTIO 1.2 section 5).
const VSOCK: u32 = 19;

/// VIRTIO_VSOCK_F_STREAM: stream sockets. SEQPACKET is not offered.
const STREAM_SOCKETS: u64 = 1 << 0;

/// Buffers to the guest, from the guest, events. Linux fills the first with 4 KiB buffers: half a MiB of its memory.
const QUEUE_SIZES: [u16; 3] = [128, 128, 8];

/// A virtio-vsock device: clients of a unix socket reach ports of the guest through it.
#[derive(Debug)]
pub struct Vsock {
    outside: Outside,
    limits: Limits,
    /// The guest has to be told that connections of it are gone.
    lost: Arc<AtomicBool>,
    worker: Worker,
}

impl Vsock {
    /// A device of the guest with this address (3 to 2^32 - 2). Connections are accepted from `listener`, a listening unix stream socket,
    /// while the guest's driver is at work; `ready` is called when the guest first connects to port 1024 of the host.
    ///
    /// # Errors
    /// The listener cannot be made non-blocking, or there are no descriptors or threads.
    pub fn new(listener: OwnedFd, guest_cid: u64, ready: Box<dyn Fn() + Send>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        let ready = Arc::new(ReadySignal::new(ready));
        Ok(Self {
            outside: Outside { guest_cid, listener: Arc::new(listener), dialer: Dialer::new()?, ready },
            limits: Limits::default(),
            lost: Arc::default(),
            worker: Worker::new(Thread::Vsock)?,
        })
    }

    /// For clients in the VMM itself.
    #[must_use]
    pub fn dialer(&self) -> Dialer {
        self.outside.dialer.clone()
    }

    #[cfg(test)]
    pub(super) fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }
}

impl Device for Vsock {
    fn device_type(&self) -> u32 {
        VSOCK
    }

    fn features(&self) -> u64 {
        RING_FEATURES | STREAM_SOCKETS
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// The only field is the guest's address.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.outside.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, queues, interrupt, .. } = activation;
        let mut queues = queues.into_iter();
        let mut queue = |index| queues.next().flatten().ok_or(ActivateError::MissingQueue(index));
        let (rx, tx, events) = (queue(0)?, queue(1)?, queue(2)?);
        let failed = |source| ActivateError::Io { what: "watch the sockets", source };
        let poller = Poller::new().map_err(failed)?;
        let mux = Mux::new(self.outside.clone(), self.limits, poller).map_err(failed)?;
        let lost = Arc::clone(&self.lost);
        let session = Session { memory, interrupt: Arc::clone(&interrupt), mux, rx, tx, events, lost };
        self.worker.start(interrupt, move |stop| session.run(stop))
    }

    fn reset(&mut self) {
        self.worker.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_guest_reads_its_address_and_zeros_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("vsock")).unwrap();
        let vsock = Vsock::new(listener.into(), 0x0102_0304, Box::new(|| {})).unwrap();
        let mut all = [0xff; 12];
        vsock.read_config(0, &mut all);
        assert_eq!(all, [4, 3, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut end = [0xff; 4];
        vsock.read_config(u64::MAX - 1, &mut end[..1]);
        vsock.read_config(6, &mut end[1..]);
        assert_eq!(end, [0; 4]);
    }
}
