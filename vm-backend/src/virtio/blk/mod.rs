//! virtio-blk (VIRTIO 1.2 section 5.2): one disk of several files.
//!
//! The files are the partitions of a synthesized GPT, so that a pod's container is one device however many layers its image has. What
//! may be written is decided here, per file; a guest's read-only mount is its own affair.

mod disk;
pub mod gpt;
mod request;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

pub use self::disk::{BlockExtent, Disk};
pub use self::request::serve;
use super::queue::RING_FEATURES;
use super::worker::{Patience, Stop, Worker};
use super::{ActivateError, Activation, Device, read_config_space, sys};
use crate::jail::Thread;

/// Features (VIRTIO 1.2 section 5.2.3).
pub(crate) mod feature {
    pub(crate) const SIZE_MAX: u64 = 1 << 1;
    pub(crate) const SEG_MAX: u64 = 1 << 2;
    pub(crate) const READ_ONLY: u64 = 1 << 5;
    pub(crate) const BLK_SIZE: u64 = 1 << 6;
    pub(crate) const FLUSH: u64 = 1 << 9;
    pub(crate) const TOPOLOGY: u64 = 1 << 10;
    pub(crate) const DISCARD: u64 = 1 << 13;
    pub(crate) const WRITE_ZEROES: u64 = 1 << 14;
}

/// Half of what is usual: a guest has a disk per container, and keeps memory for every place of its queue.
const QUEUE_SIZE: u16 = 128;

/// A request's buffers besides its header and status, so that it fits the queue without an indirect table too.
const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;

/// Bytes of one of them. With their number it bounds a request to 15.75 MiB, and so how long a reset waits for one.
const MAX_SEGMENT: u32 = 128 << 10;

/// Ranges of one discard or write-zeroes request.
pub(crate) const MAX_RANGES: u32 = 16;

/// Sectors of one such range: 1 GiB.
pub(crate) const MAX_RANGE_SECTORS: u32 = 1 << 21;

/// A disk cannot be made of these files. `index` counts from 0.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    #[error("a disk of no files")]
    NoExtents,
    #[error("{extents} files do not fit a disk: at most {} and 8 EiB", gpt::MAX_PARTITIONS)]
    TooLarge { extents: usize },
    #[error("file {index} of the disk is empty")]
    Empty { index: usize },
    #[error("file {index} of the disk is to be written and has {size} bytes: no whole sectors of 512")]
    Unaligned { index: usize, size: u64 },
    #[error("file {index} of the disk is not open for {what}")]
    Mode { index: usize, what: &'static str },
    #[error("{what} of file {index} of the disk")]
    File { index: usize, what: &'static str, source: io::Error },
    #[error("start the thread of the disk")]
    Thread { source: io::Error },
}

/// The device.
#[derive(Debug)]
pub struct Block {
    disk: Arc<Disk>,
    config: [u8; 60],
    worker: Worker,
}

impl Block {
    /// A disk of these files, the first is partition 1.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn new(extents: Vec<BlockExtent>) -> Result<Self, BlockError> {
        let disk = Disk::new(extents)?;
        let worker = Worker::new(Thread::Block).map_err(|source| BlockError::Thread { source })?;
        Ok(Self { config: config(&disk), disk: Arc::new(disk), worker })
    }
}

/// struct virtio_blk_config, field by field at its place.
fn config(disk: &Disk) -> [u8; 60] {
    let mut config = [0; 60];
    let mut put = |at: usize, field: &[u8]| config[at..at + field.len()].copy_from_slice(field);
    put(0, &disk.sectors().to_le_bytes());
    put(8, &MAX_SEGMENT.to_le_bytes());
    put(12, &MAX_SEGMENTS.to_le_bytes());
    put(20, &512_u32.to_le_bytes());
    // 2^3 sectors are a physical block: guests align to 4 KiB, which O_DIRECT likes.
    put(24, &[3]);
    for discard_and_then_write_zeroes in [36, 48] {
        put(discard_and_then_write_zeroes, &MAX_RANGE_SECTORS.to_le_bytes());
        put(discard_and_then_write_zeroes + 4, &MAX_RANGES.to_le_bytes());
    }
    // In sectors: discards of less than a block free nothing.
    put(44, &8_u32.to_le_bytes());
    // Zeroes may be holes.
    put(56, &[1]);
    config
}

impl Device for Block {
    fn device_type(&self) -> u32 {
        2
    }

    fn features(&self) -> u64 {
        let limits = feature::SIZE_MAX | feature::SEG_MAX | feature::BLK_SIZE | feature::TOPOLOGY;
        let common = RING_FEATURES | limits;
        match self.disk.writable() {
            true => common | feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES,
            false => common | feature::READ_ONLY,
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, features, queues, interrupt } = activation;
        let mut queue = queues.into_iter().next().flatten().ok_or(ActivateError::MissingQueue(0))?;
        let disk = Arc::clone(&self.disk);
        let raise = Arc::clone(&interrupt);
        self.worker.start(interrupt, move |stop: &Stop| {
            while stop.wait([Some(sys::borrow(&queue.kick))], Patience::Forever).is_some() {
                queue.take_kick();
                while serve(&disk, features, &mut queue, &memory, &raise)? && !stop.asked() {}
            }
            Ok(())
        })
    }

    fn reset(&mut self) {
        self.worker.stop();
    }
}
