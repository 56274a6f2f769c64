//! virtio-net (VIRTIO 1.2 section 5.1) over a tap.
//!
//! Packets go between the guest's buffers and the tap without a stop in between, checksums and segmentation left to whom the guest
//! leaves them. No control queue, one pair of queues; the link is always up.

mod receive;
mod sys;
#[cfg(test)]
mod tests;
mod transmit;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;

pub use self::receive::{Received, Receiver};
pub use self::transmit::transmit;
use super::chain::QueueError;
use super::queue::RING_FEATURES;
use super::sys::borrow;
use super::worker::{Patience, Stop, Worker};
use super::{ActivateError, Activation, ActiveQueue, Device, Interrupt, read_config_space};
use crate::jail::Thread;
use crate::memory::GuestRam;

/// Features (VIRTIO 1.2 section 5.1.3). GUEST: what the driver takes in a received packet; HOST: what it may leave to us in a sent one.
pub mod feature {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const GUEST_ECN: u64 = 1 << 9;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const HOST_ECN: u64 = 1 << 13;
    pub const MERGED_BUFFERS: u64 = 1 << 15;
    pub const ALL: u64 = CSUM
        | GUEST_CSUM
        | MTU
        | MAC
        | GUEST_TSO4
        | GUEST_TSO6
        | GUEST_ECN
        | HOST_TSO4
        | HOST_TSO6
        | HOST_ECN
        | MERGED_BUFFERS;
}

/// Bytes of struct virtio_net_hdr with VERSION_1, which stands before every packet on the tap and in the guest's buffers.
pub const HEADER: usize = 12;

/// The longest packet: 64 KiB of IP that the other side will segment, an Ethernet header and a VLAN tag.
pub const MAX_FRAME: usize = 65535 + 18;

/// The least that links of IPv4 carry (RFC 791).
pub const MIN_MTU: u16 = 68;

/// Packets of one direction before the other gets its turn.
const BATCH: u16 = 64;

const QUEUE_SIZE: u16 = 256;

/// A descriptor that cannot be the guest's network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("the descriptor is no tap")]
    NoTap { source: io::Error },
    #[error("the tap has flags {0:#x}: IFF_TAP, IFF_NO_PI and IFF_VNET_HDR are needed")]
    Flags(libc::c_int),
    #[error("an MTU of {0}: at least {MIN_MTU}")]
    Mtu(u16),
    #[error("{what} of the tap")]
    Set { what: &'static str, source: io::Error },
    #[error("start the thread of the network")]
    Thread { source: io::Error },
}

/// The device.
#[derive(Debug)]
pub struct Net {
    tap: Arc<OwnedFd>,
    /// struct virtio_net_config: MAC, status and number of queue pairs (neither of which is offered), MTU.
    config: [u8; 12],
    worker: Worker,
}

impl Net {
    /// A device over a tap that was opened in the pod's network namespace with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn new(tap: OwnedFd, mac: [u8; 6], mtu: u16) -> Result<Self, NetError> {
        const NEEDED: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let flags = sys::flags(tap.as_fd()).map_err(|source| NetError::NoTap { source })?;
        if flags & NEEDED != NEEDED {
            return Err(NetError::Flags(flags));
        }
        if mtu < MIN_MTU {
            return Err(NetError::Mtu(mtu));
        }
        sys::set_header_length(tap.as_fd(), 12)
            .map_err(|source| NetError::Set { what: "set the header length", source })?;
        rustix::fs::fcntl_getfl(&tap)
            .and_then(|flags| rustix::fs::fcntl_setfl(&tap, flags | OFlags::NONBLOCK))
            .map_err(|source| NetError::Set { what: "set the flags", source: source.into() })?;
        let mut config = [0; 12];
        config[..6].copy_from_slice(&mac);
        config[10..].copy_from_slice(&mtu.to_le_bytes());
        let worker = Worker::new(Thread::Net).map_err(|source| NetError::Thread { source })?;
        Ok(Self { tap: Arc::new(tap), config, worker })
    }
}

impl Device for Net {
    fn device_type(&self) -> u32 {
        1
    }

    fn features(&self) -> u64 {
        RING_FEATURES | feature::ALL
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, features, queues, interrupt } = activation;
        let mut queues = queues.into_iter();
        let mut next = |index| queues.next().flatten().ok_or(ActivateError::MissingQueue(index));
        let (receive, transmit) = (next(0)?, next(1)?);
        sys::set_offloads(self.tap.as_fd(), offloads(features))
            .map_err(|source| ActivateError::Io { what: "set the offloads of the tap", source })?;
        let link = Link { tap: Arc::clone(&self.tap), memory, features, interrupt: Arc::clone(&interrupt) };
        self.worker.start(interrupt, move |stop| link.run(stop, receive, transmit))
    }

    fn reset(&mut self) {
        self.worker.stop();
    }
}

/// What the tap may leave to the driver. Without checksums there is no segmentation.
fn offloads(features: u64) -> libc::c_uint {
    if features & feature::GUEST_CSUM == 0 {
        return 0;
    }
    let offloads = [
        (feature::GUEST_CSUM, libc::TUN_F_CSUM),
        (feature::GUEST_TSO4, libc::TUN_F_TSO4),
        (feature::GUEST_TSO6, libc::TUN_F_TSO6),
        (feature::GUEST_ECN, libc::TUN_F_TSO_ECN),
    ];
    let taken = offloads.iter().filter(|(feature, _)| features & feature != 0);
    let taken = taken.fold(0, |all, (_, offload)| all | offload);
    // The kernel refuses ECN alone.
    match taken & (libc::TUN_F_TSO4 | libc::TUN_F_TSO6) {
        0 => taken & !libc::TUN_F_TSO_ECN,
        _ => taken,
    }
}

/// An active device: what its thread works with.
struct Link {
    tap: Arc<OwnedFd>,
    memory: GuestRam,
    features: u64,
    interrupt: Arc<Interrupt>,
}

/// What may be waiting for the thread.
struct Work {
    receive: bool,
    transmit: bool,
    /// The guest has no buffers: its kick is awaited, not the tap.
    starved: bool,
    /// The tap is gone (its namespace was taken down): it would only ever be "ready".
    gone: bool,
}

impl Link {
    fn run(&self, stop: &Stop, mut receive: ActiveQueue, mut send: ActiveQueue) -> Result<(), QueueError> {
        let mut receiver = Receiver::new(self.features);
        let mut work = Work { receive: true, transmit: true, starved: false, gone: false };
        while let Some(()) = self.wait(stop, &mut work, &receive, &send) {
            if work.transmit {
                work.transmit =
                    transmit(self.tap.as_fd(), self.features, &mut send, &self.memory, &self.interrupt)?;
            }
            if work.receive && !work.starved && !work.gone {
                receive.mute_kicks(&self.memory)?;
                let received =
                    receiver.receive(self.tap.as_fd(), &mut receive, &self.memory, &self.interrupt)?;
                work.receive = received == Received::More;
                work.gone = received == Received::Gone;
                if received == Received::NoBuffers {
                    // Buffers may have come while kicks were muted.
                    work.receive = receive.unmute_kicks(&self.memory)?;
                    work.starved = !work.receive;
                }
            }
        }
        Ok(())
    }

    fn wait(&self, stop: &Stop, work: &mut Work, receive: &ActiveQueue, send: &ActiveQueue) -> Option<()> {
        let busy = work.transmit || (work.receive && !work.starved && !work.gone);
        let patience = if busy { Patience::None } else { Patience::Forever };
        let tap = (!work.starved && !work.gone).then(|| self.tap.as_fd());
        let buffers = work.starved.then(|| borrow(&receive.kick));
        let woken = stop.wait([Some(borrow(&send.kick)), buffers, tap], patience)?;
        if woken.readable[0] {
            send.take_kick();
            work.transmit = true;
        }
        if woken.readable[1] {
            receive.take_kick();
            work.starved = false;
            work.receive = true;
        }
        work.receive |= woken.readable[2];
        work.gone |= woken.broken[2];
        Some(())
    }
}
