//! From the guest to the tap.

use std::os::fd::BorrowedFd;

use vm_memory::VolatileSlice;

use super::{BATCH, HEADER, MAX_FRAME, feature};
use crate::memory::GuestMemory;
use crate::virtio::chain::{Buffers, QueueError};
use crate::virtio::sys::{self, At, MAX_BUFFERS};
use crate::virtio::{ActiveQueue, Interrupt};

/// An Ethernet header: less is no packet.
const MIN_FRAME: usize = 14;

/// Flags of a header: the receiver is to compute the checksum.
const NEEDS_CHECKSUM: u8 = 1;

/// Kinds of segmentation in a header, and the bit that goes with a TCP one.
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_ECN: u8 = 0x80;

/// Sends at most a batch of packets. `true`: there are more. What cannot be sent is dropped, as on a wire.
///
/// # Errors
/// The driver broke the queue; the device cannot go on.
pub fn transmit(
    tap: BorrowedFd<'_>,
    features: u64,
    queue: &mut ActiveQueue,
    memory: &GuestMemory,
    interrupt: &Interrupt,
) -> Result<bool, QueueError> {
    queue.answer_some(memory, interrupt, BATCH, |chain| {
        send(tap, features, chain.readable);
        0
    })
}

fn send(tap: BorrowedFd<'_>, features: u64, mut packet: Buffers<'_>) {
    // Copied once, checked, and the copy is what goes out: the guest may change its own meanwhile.
    let mut header = [0; HEADER];
    if packet.read(&mut header).is_err() || !may_send(&header, features) {
        return;
    }
    let length = usize::try_from(packet.len()).unwrap_or(usize::MAX);
    let frame = packet.slices();
    if !(MIN_FRAME..=MAX_FRAME).contains(&length) || frame.len() >= MAX_BUFFERS {
        return;
    }
    let mut pieces = Vec::with_capacity(frame.len() + 1);
    pieces.push(VolatileSlice::from(&mut header[..]));
    pieces.extend_from_slice(frame);
    // A full or refusing network drops packets; whoever sent them notices in their own protocol.
    let _ = sys::write_from(tap, &pieces, At::Packet);
}

/// Whether a header asks only for what was negotiated (section 5.1.6.2).
fn may_send(header: &[u8; HEADER], features: u64) -> bool {
    let [flags, kind, ..] = *header;
    let checksum = flags & NEEDS_CHECKSUM != 0;
    let segmentation = match kind & !GSO_ECN {
        GSO_NONE => kind == GSO_NONE,
        GSO_TCP4 => checksum && features & feature::HOST_TSO4 != 0,
        GSO_TCP6 => checksum && features & feature::HOST_TSO6 != 0,
        _ => false,
    };
    let ecn = kind & GSO_ECN == 0 || features & feature::HOST_ECN != 0;
    flags & !NEEDS_CHECKSUM == 0 && (!checksum || features & feature::CSUM != 0) && segmentation && ecn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_demand_needs_its_feature() {
        let cases = [
            (0, GSO_NONE, 0),
            (NEEDS_CHECKSUM, GSO_NONE, feature::CSUM),
            (NEEDS_CHECKSUM, GSO_TCP4, feature::CSUM | feature::HOST_TSO4),
            (NEEDS_CHECKSUM, GSO_TCP6, feature::CSUM | feature::HOST_TSO6),
            (NEEDS_CHECKSUM, GSO_TCP4 | GSO_ECN, feature::CSUM | feature::HOST_TSO4 | feature::HOST_ECN),
        ];
        for (flags, kind, needed) in cases {
            let mut header = [0; HEADER];
            header[..2].copy_from_slice(&[flags, kind]);
            assert!(may_send(&header, needed), "{flags} {kind:#x}");
            for bit in (0..64).map(|bit| 1 << bit).filter(|bit| needed & bit != 0) {
                assert!(!may_send(&header, feature::ALL & !bit), "{flags} {kind:#x} without {bit:#x}");
            }
        }
        for [flags, kind] in
            [[0, GSO_TCP4], [0, GSO_ECN], [1, GSO_ECN], [2, 0], [4, 0], [1, 3], [1, 5], [0, 0x7f]]
        {
            let mut header = [0; HEADER];
            header[..2].copy_from_slice(&[flags, kind]);
            assert!(!may_send(&header, u64::MAX), "{flags} {kind:#x}");
        }
    }
}
