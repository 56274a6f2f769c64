//! Requests: a header, data, and a status byte at the end (VIRTIO 1.2 section 5.2.6).

use std::io;

use super::gpt::SECTOR;
use super::{Disk, MAX_RANGE_SECTORS, MAX_RANGES, MAX_SEGMENT, MAX_SEGMENTS, feature};
use crate::memory::GuestMemory;
use crate::virtio::chain::{Buffers, Chain, QueueError};
use crate::virtio::{ActiveQueue, Interrupt};

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// Data of one request: what the limits that the driver was told come to.
const MAX_DATA: u64 = MAX_SEGMENTS as u64 * MAX_SEGMENT as u64;

/// Requests after which the driver hears of what is done, and a reset is heard.
const BATCH: u16 = 16;

/// Bytes of the id that GET_ID tells.
const ID_LENGTH: usize = 20;

/// struct virtio_blk_discard_write_zeroes, and the one flag it knows.
const RANGE_LENGTH: u64 = 16;
const MAY_UNMAP: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// Works on at most a batch of requests. `true`: there are more.
///
/// # Errors
/// The driver broke the queue; the device cannot go on.
pub fn serve(
    disk: &Disk,
    features: u64,
    queue: &mut ActiveQueue,
    memory: &GuestMemory,
    interrupt: &Interrupt,
) -> Result<bool, QueueError> {
    queue.answer_some(memory, interrupt, BATCH, |chain| answer(disk, features, chain))
}

/// Does what a chain asks for, writes its status and says how many bytes of it were written.
fn answer(disk: &Disk, features: u64, chain: Chain<'_>) -> u32 {
    let Chain { readable, mut writable, .. } = chain;
    // The chain's length was checked to fit.
    let written = u32::try_from(writable.len()).unwrap_or(u32::MAX);
    // Without a place for the status there is nothing to do it for.
    let Ok(data) = writable.take_all_but(1) else { return 0 };
    let status = execute(disk, features, readable, data);
    match writable.write(&[status as u8]) {
        Ok(()) => written,
        Err(_) => 0,
    }
}

fn execute(disk: &Disk, features: u64, mut readable: Buffers<'_>, writable: Buffers<'_>) -> Status {
    // Copied once: the guest may change it under our eyes.
    let Ok([kind, _reserved, low, high]) = readable.read_value::<[u32; 4]>() else { return Status::IoError };
    let sector = u64::from(u32::from_le(low)) | u64::from(u32::from_le(high)) << 32;
    let done = match u32::from_le(kind) {
        READ => range(disk, sector, writable.len()).and_then(|start| disk.read(start, writable)),
        WRITE => range(disk, sector, readable.len())
            .and_then(|start| disk.write(start, readable))
            .and_then(|()| write_through(disk, features)),
        FLUSH => disk.flush(),
        GET_ID => get_id(disk, writable),
        DISCARD if features & feature::DISCARD != 0 => punch(disk, features, readable, 0),
        WRITE_ZEROES if features & feature::WRITE_ZEROES != 0 => punch(disk, features, readable, MAY_UNMAP),
        _ => return Status::Unsupported,
    };
    match done {
        Ok(()) => Status::Ok,
        Err(e) if e.kind() == io::ErrorKind::Unsupported => Status::Unsupported,
        Err(_) => Status::IoError,
    }
}

/// The byte that whole sectors of the disk begin at.
fn range(disk: &Disk, sector: u64, length: u64) -> io::Result<u64> {
    let end = sector.checked_add(length / SECTOR);
    match end {
        Some(end) if end <= disk.sectors() && length % SECTOR == 0 && length <= MAX_DATA => {
            Ok(sector * SECTOR)
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// A driver that does not flush counts on every write being on the storage below (section 5.2.6.2).
fn write_through(disk: &Disk, features: u64) -> io::Result<()> {
    match features & feature::FLUSH {
        0 => disk.flush(),
        _ => Ok(()),
    }
}

fn get_id(disk: &Disk, mut writable: Buffers<'_>) -> io::Result<()> {
    let hex = disk.id().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let id = &hex.as_bytes()[..ID_LENGTH];
    writable.write(id).map_err(io::Error::other)
}

fn punch(disk: &Disk, features: u64, mut ranges: Buffers<'_>, allowed_flags: u32) -> io::Result<()> {
    let count = ranges.len() / RANGE_LENGTH;
    if ranges.len() % RANGE_LENGTH != 0 || !(1..=u64::from(MAX_RANGES)).contains(&count) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    while !ranges.is_empty() {
        let [low, high, sectors, flags] =
            ranges.read_value::<[u32; 4]>().map_err(io::Error::other)?.map(u32::from_le);
        if flags & !allowed_flags != 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let sector = u64::from(low) | u64::from(high) << 32;
        let end = sector.checked_add(sectors.into()).filter(|end| *end <= disk.sectors());
        if end.is_none() || sectors > MAX_RANGE_SECTORS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        disk.punch(sector * SECTOR, u64::from(sectors) * SECTOR)?;
    }
    write_through(disk, features)
}
