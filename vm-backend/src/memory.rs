//! The guest's RAM as devices see it.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend as _};

use crate::sys;

/// Guest RAM: every access is checked against its bounds; contents may change under the reader at any time.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// A handle of it that device threads hold.
pub type GuestRam = Arc<GuestMemory>;

/// Of all page sizes that Linux calls huge the usual one.
const HUGE_PAGE: usize = 2 << 20;

/// RAM could not be had or filled.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("map {size} bytes of guest RAM")]
    Map {
        size: u64,
        #[source]
        source: vm_memory::mmap::FromRangesError,
    },
    #[error("advise the kernel on guest RAM")]
    Advise {
        #[source]
        source: io::Error,
    },
    #[error("{len} bytes at {at:#x} are not in guest RAM")]
    Outside { at: u64, len: u64 },
    #[error("read {what} into guest RAM")]
    Read {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// `size` bytes of RAM from the guest-physical address `base` on: private to this process, and no page of it is there before somebody
/// touches it.
///
/// Not huge pages: kernels before 7.0 map guest RAM with small ones anyway (but for hugetlbfs), so they would cost memory and give nothing. Not
/// in core dumps: it is the guest's.
///
/// # Errors
/// There is no address space for it.
pub fn map(base: u64, size: u64) -> Result<GuestRam, MemoryError> {
    let bytes = usize::try_from(size).unwrap_or(usize::MAX);
    let memory = GuestMemory::from_ranges(&[(GuestAddress(base), bytes)])
        .map_err(|source| MemoryError::Map { size, source })?;
    let all = memory.get_slice(GuestAddress(base), bytes);
    let all = all.map_err(|_| MemoryError::Outside { at: base, len: size })?;
    sys::advise(&all, libc::MADV_NOHUGEPAGE)
        .and_then(|()| sys::advise(&all, libc::MADV_DONTDUMP))
        .map_err(|source| MemoryError::Advise { source })?;
    Ok(Arc::new(memory))
}

/// Reads the first `len` bytes of a file to the guest-physical address `at`. The file's own position is neither used nor moved: the
/// descriptor may be shared with other guests.
///
/// What is filled wholly gets huge pages while it is filled, if the host has them: a page fault per 2 MiB, not per 4 KiB, which halves the time.
///
/// # Errors
/// They are not all in RAM, or the file is shorter.
pub fn load(
    memory: &GuestMemory,
    at: u64,
    file: &File,
    len: u64,
    what: &'static str,
) -> Result<(), MemoryError> {
    let outside = || MemoryError::Outside { at, len };
    let bytes = usize::try_from(len).map_err(|_| outside())?;
    let slice = memory.get_slice(GuestAddress(at), bytes).map_err(|_| outside())?;
    let blocks = sys::whole_blocks(&slice, HUGE_PAGE);
    // Advice: without it, it only takes longer.
    let advise = |advice| blocks.as_ref().is_none_or(|blocks| sys::advise(blocks, advice).is_ok());
    advise(libc::MADV_HUGEPAGE);
    let read = sys::read_at(file, 0, &slice);
    // Or the kernel would put huge pages back where the guest has given memory back.
    advise(libc::MADV_NOHUGEPAGE);
    read.map_err(|source| MemoryError::Read { what, source })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use vm_memory::Bytes as _;

    use super::*;

    #[test]
    fn a_file_is_read_to_its_place_and_not_past_it() {
        let memory = map(0x8000_0000, 1 << 20).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        load(&memory, 0x8000_1000, &file, 4999, "a file").unwrap();
        let mut seen = [0; 5002];
        memory.read_slice(&mut seen, GuestAddress(0x8000_0fff)).unwrap();
        assert_eq!((seen[0], seen[1], seen[4999], seen[5000]), (0, 7, 7, 0));
        // The position was not moved: it reads the same again.
        load(&memory, 0x8000_8000, &file, 5000, "a file").unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x8000_8000 + 4999)).unwrap(), 7);
    }

    #[test]
    fn a_large_file_is_read_whole_however_its_place_is_aligned() {
        let memory = map(0x8000_0000, 16 << 20).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..7 << 20).map(|i: u32| i.to_le_bytes()[1] ^ i.to_le_bytes()[2]).collect();
        file.write_all(&bytes).unwrap();
        for at in [0x8000_0000, 0x8020_1000, 0x8010_0003, 0x8090_0000] {
            load(&memory, at, &file, 7 << 20, "a file").unwrap();
            let mut seen = vec![0; bytes.len()];
            memory.read_slice(&mut seen, GuestAddress(at)).unwrap();
            assert!(seen == bytes, "at {at:#x}");
        }
    }

    #[test]
    fn only_whole_blocks_are_meant() {
        let memory = map(0x8000_0000, 16 << 20).unwrap();
        let part = |at, len| memory.get_slice(GuestAddress(0x8000_0000 + at), len).unwrap();
        let host = part(0, 1).ptr_guard().as_ptr() as u64;
        let first = host.next_multiple_of(2 << 20) - host;
        let blocks = |at, len| {
            let slice = part(at, len);
            let blocks = sys::whole_blocks(&slice, HUGE_PAGE)?;
            Some((blocks.ptr_guard().as_ptr() as u64 - host, blocks.len()))
        };
        assert_eq!(blocks(first, 2 << 20), Some((first, 2 << 20)));
        assert_eq!(blocks(first, (4 << 20) - 1), Some((first, 2 << 20)));
        assert_eq!(blocks(first + 1, 4 << 20), Some((first + (2 << 20), 2 << 20)));
        assert_eq!(blocks(first, (2 << 20) - 1), None);
        assert_eq!(blocks(first + 1, 1 << 20), None);
    }

    #[test]
    fn nothing_is_read_outside_of_ram_and_a_short_file_is_an_error() {
        let memory = map(0x8000_0000, 1 << 20).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 100]).unwrap();
        for (at, len) in
            [(0x8000_0000 - 1, 100), (0x8010_0000 - 99, 100), (0, 1), (u64::MAX, 2), (0x8000_0000, u64::MAX)]
        {
            let refused = load(&memory, at, &file, len, "a file");
            assert!(matches!(refused, Err(MemoryError::Outside { .. })), "{len} at {at:#x}: {refused:?}");
        }
        assert!(matches!(load(&memory, 0x8000_0000, &file, 101, "a file"), Err(MemoryError::Read { .. })));
    }
}
