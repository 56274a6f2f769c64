//! A GUID partition table for files that lie one after another on a disk (UEFI 2.10 section 5.3).
//!
//! Nothing in it is random: the same sizes give the same table, so a saved guest finds after a restore what it read before.

use sha2::{Digest, Sha256};

/// Bytes of a sector; virtio-blk counts in these whatever the files are on.
pub const SECTOR: u64 = 512;
/// Where partitions begin: multiples of this, so that they are aligned for any host storage.
pub const ALIGNMENT: u64 = 1 << 20;
/// Entries of the table, and so the most partitions.
pub const MAX_PARTITIONS: usize = PLACES as usize;
const PLACES: u16 = 128;

/// Bytes of an entry.
const ENTRY: usize = ENTRY_LENGTH as usize;
const ENTRY_LENGTH: u16 = 128;
/// Sectors of the array of entries.
const ENTRY_SECTORS: u64 = (MAX_PARTITIONS * ENTRY) as u64 / SECTOR;
/// Bytes of the header that its checksum covers.
const HEADER: u32 = 92;
/// "Linux filesystem data", 0FC63DAF-8483-4772-8E79-3D69D8477DE4, as it lies on disk.
const LINUX_DATA: [u8; 16] =
    [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4];

/// Where a file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// Bytes from the beginning of the disk, a multiple of [`ALIGNMENT`].
    pub start: u64,
    /// Bytes, a multiple of [`SECTOR`].
    pub length: u64,
}

/// A disk's layout, and the parts of it that are no file's. Everything else reads as zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// In the order of the files.
    pub partitions: Vec<Partition>,
    /// Sectors of the disk.
    pub sectors: u64,
    /// Distinguishes the disk's layout; its GUID.
    pub id: [u8; 16],
    /// What lies on the disk at which byte: protective MBR, header and used entries, and the copies at the end.
    pub pieces: Vec<(u64, Vec<u8>)>,
}

/// Lays files of these sizes (in bytes) out. `None` where there are too many for the table or too long for a disk.
#[must_use]
pub fn lay_out(sizes: &[u64]) -> Option<Table> {
    let mut partitions = Vec::with_capacity(sizes.len());
    let mut end = ALIGNMENT;
    for size in sizes {
        let length = size.checked_next_multiple_of(SECTOR)?;
        partitions.push(Partition { start: end, length });
        end = end.checked_add(length)?.checked_next_multiple_of(ALIGNMENT)?;
    }
    // The last stretch holds the copies. File offsets are signed.
    let bytes = end.checked_add(ALIGNMENT).filter(|bytes| i64::try_from(*bytes).is_ok())?;
    if sizes.len() > MAX_PARTITIONS {
        return None;
    }
    let id = guid(&partitions, usize::MAX);
    let mut table = Table { partitions, sectors: bytes / SECTOR, id, pieces: Vec::new() };
    table.pieces = table.synthesize();
    Some(table)
}

impl Table {
    fn synthesize(&self) -> Vec<(u64, Vec<u8>)> {
        let entries = self.entries();
        // The checksum covers the unused entries too.
        let unused = MAX_PARTITIONS * ENTRY - entries.len();
        let checksum = ![0; ENTRY]
            .iter()
            .cycle()
            .take(unused)
            .fold(crc_step(!0, &entries), |crc, byte| crc_step(crc, &[*byte]));
        let last = self.sectors - 1;
        let copy = last - ENTRY_SECTORS;
        vec![
            (0, self.protective_mbr()),
            (SECTOR, self.header(Place { own: 1, other: last, entries: 2 }, checksum)),
            (2 * SECTOR, entries.clone()),
            (copy * SECTOR, entries),
            (last * SECTOR, self.header(Place { own: last, other: 1, entries: copy }, checksum)),
        ]
    }

    fn protective_mbr(&self) -> Vec<u8> {
        let mut mbr = Bytes::default();
        mbr.pad_to(446);
        // One partition of type 0xee from sector 1 on; heads and cylinders as the standard wants them.
        mbr.put(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
        mbr.put(&1_u32.to_le_bytes());
        mbr.put(&u32::try_from(self.sectors - 1).unwrap_or(u32::MAX).to_le_bytes());
        mbr.pad_to(510);
        mbr.put(&[0x55, 0xaa]);
        mbr.0
    }

    fn header(&self, place: Place, entries_checksum: u32) -> Vec<u8> {
        let mut header = Bytes::default();
        header.put(b"EFI PART");
        header.put(&0x0001_0000_u32.to_le_bytes());
        header.put(&HEADER.to_le_bytes());
        header.pad_to(24);
        header.put(&place.own.to_le_bytes());
        header.put(&place.other.to_le_bytes());
        header.put(&(2 + ENTRY_SECTORS).to_le_bytes());
        header.put(&(self.sectors - 2 - ENTRY_SECTORS).to_le_bytes());
        header.put(&self.id);
        header.put(&place.entries.to_le_bytes());
        header.put(&u32::from(PLACES).to_le_bytes());
        header.put(&u32::from(ENTRY_LENGTH).to_le_bytes());
        header.put(&entries_checksum.to_le_bytes());
        let checksum = crc32(&header.0);
        header.0[16..20].copy_from_slice(&checksum.to_le_bytes());
        header.0
    }

    fn entries(&self) -> Vec<u8> {
        let mut entries = Bytes::default();
        for (index, partition) in self.partitions.iter().enumerate() {
            entries.put(&LINUX_DATA);
            entries.put(&guid(&self.partitions, index));
            entries.put(&(partition.start / SECTOR).to_le_bytes());
            entries.put(&((partition.start + partition.length) / SECTOR - 1).to_le_bytes());
            entries.put(&0_u64.to_le_bytes());
            format!("extent {}", index + 1).encode_utf16().for_each(|unit| entries.put(&unit.to_le_bytes()));
            entries.pad_to((index + 1) * ENTRY);
        }
        entries.0
    }
}

/// Sectors at which a header, its copy and its entries lie.
#[derive(Clone, Copy)]
struct Place {
    own: u64,
    other: u64,
    entries: u64,
}

#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn pad_to(&mut self, length: usize) {
        self.0.resize(length, 0);
    }
}

/// A version 8 GUID (RFC 9562: by a rule of our own) of a layout and an index in it.
fn guid(partitions: &[Partition], index: usize) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update(b"hartpod disk 1");
    for partition in partitions {
        hash.update(partition.length.to_le_bytes());
    }
    hash.update((index as u64).to_le_bytes());
    let mut guid = [0; 16];
    guid.copy_from_slice(&hash.finalize()[..16]);
    // The first three fields lie in little-endian order.
    guid[7] = (guid[7] & 0x0f) | 0x80;
    guid[8] = (guid[8] & 0x3f) | 0x80;
    guid
}

/// The checksum of UEFI (and of zip, Ethernet ..).
pub(crate) fn crc32(data: &[u8]) -> u32 {
    !crc_step(!0, data)
}

fn crc_step(crc: u32, data: &[u8]) -> u32 {
    data.iter().fold(crc, |crc, byte| CRC_TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)] ^ (crc >> 8))
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0_u32;
    while index < 256 {
        let mut crc = index;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 };
            bit += 1;
        }
        table[index as usize] = crc;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32_has_the_check_value_of_its_catalogue() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn partitions_are_aligned_whole_sectors_in_order() {
        let table = lay_out(&[1, 512, (1 << 20) + 1]).unwrap();
        let expected = [(1 << 20, 512), (2 << 20, 512), (3 << 20, (1 << 20) + 512)];
        assert_eq!(table.partitions, expected.map(|(start, length)| Partition { start, length }));
        assert_eq!(table.sectors * SECTOR, 6 << 20);
    }

    #[test]
    fn the_same_sizes_give_the_same_table_and_others_another() {
        assert_eq!(lay_out(&[512, 1024]), lay_out(&[512, 1024]));
        assert_ne!(lay_out(&[512, 1024]).unwrap().id, lay_out(&[1024, 512]).unwrap().id);
    }

    #[test]
    fn too_many_or_too_long_files_have_no_layout() {
        assert!(lay_out(&[512; MAX_PARTITIONS]).is_some());
        assert_eq!(lay_out(&[512; MAX_PARTITIONS + 1]), None);
        assert_eq!(lay_out(&[u64::MAX]), None);
        assert_eq!(lay_out(&[i64::MAX as u64]), None);
        assert_eq!(lay_out(&[1 << 62, 1 << 62]), None);
    }
}
