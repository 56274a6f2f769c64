//! Bounds of the device.

use std::time::Duration;

use super::stream::Wait;

/// What one device takes on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Clients at a time, those that have not said a port yet included.
    pub(super) connections: usize,
    /// Bytes that a connection buffers for a client that does not read: what the guest may have on the way. Linux's own default
    /// (VIRTIO_VSOCK_DEFAULT_BUF_SIZE).
    pub(super) room: u32,
    /// The same once `memory` is promised away.
    pub(super) small_room: u32,
    /// Bytes that rooms of the larger size may make up in all. Memory is taken only where a client does not read.
    pub(super) memory: u32,
    /// Resets that wait to be sent for packets of no connection; above it no more packets are taken from the guest.
    pub(super) resets: usize,
    /// Time for a client to say what it wants.
    pub(super) greeting: Duration,
    /// Time for the guest to answer REQUEST. Its kernel does so by itself; the lab's emulated ones take a while.
    pub(super) answer: Duration,
    /// Time for the guest to answer the end of a connection. Linux waits 8 s for the same (VSOCK_CLOSE_TIMEOUT).
    pub(super) farewell: Duration,
    /// Time for the guest to take some of what a client left before it closed. About as long as Linux keeps a TCP connection that nobody has open
    /// any more (tcp_orphan_retries).
    pub(super) legacy: Duration,
}

impl Limits {
    /// How long `wait` may last; `None`: for ever.
    pub(super) fn of(&self, wait: Wait) -> Option<Duration> {
        match wait {
            Wait::Nothing => None,
            Wait::Answer => Some(self.answer),
            Wait::Farewell => Some(self.farewell),
            Wait::Legacy { .. } => Some(self.legacy),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            room: 256 << 10,
            small_room: 16 << 10,
            memory: 16 << 20,
            resets: 64,
            greeting: Duration::from_secs(5),
            answer: Duration::from_secs(10),
            farewell: Duration::from_secs(8),
            legacy: Duration::from_secs(100),
        }
    }
}
