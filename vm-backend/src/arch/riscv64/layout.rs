//! The guest's physical address space.
//!
//! RAM stands where QEMU's `virt` machine has it, the place that every distribution's kernel is tested with; devices stand below, so that
//! their addresses fit 32 bits.

use std::ops::Range;

use super::image::ImageHeader;

/// The PLIC, where there is one. Same as on QEMU's `virt` machine.
pub const PLIC_BASE: u64 = 0x0c00_0000;
/// Registers of 64 contexts end at 0x24_0000; a power of two lets the guest map it with large pages.
pub const PLIC_SIZE: u64 = 0x0040_0000;

/// The S-mode APLIC, where KVM emulates an AIA. Same as on QEMU's `virt` machine.
pub const APLIC_BASE: u64 = 0x0d00_0000;
/// KVM_DEV_RISCV_APLIC_SIZE.
pub const APLIC_SIZE: u64 = 0x4000;

/// One page per vCPU: its S-mode interrupt file. All bits that tell harts apart are 0 in the base.
pub const IMSIC_BASE: u64 = 0x2800_0000;
/// KVM_DEV_RISCV_IMSIC_SIZE.
pub const IMSIC_SIZE: u64 = 0x1000;

/// The first slot for a virtio device; same as on QEMU's `virt` machine.
pub const SLOT_BASE: u64 = 0x1000_1000;
/// A page per slot, so that nothing but the device stands in it.
pub const SLOT_SIZE: u64 = 0x1000;
/// Slots that a guest has at most.
pub const MAX_SLOTS: u32 = 32;
/// Interrupt source of the first slot; the others follow.
pub const SLOT_SOURCE: u32 = 8;
/// Highest number of an interrupt source, of PLIC and APLIC alike. At most the number of interrupt identities, which is at least 63.
pub const SOURCES: u32 = 63;

/// RAM begins here and goes up in one piece.
pub const RAM_BASE: u64 = 0x8000_0000;
/// The devicetree is the first thing in RAM, 8-byte aligned, and ends before the kernel.
pub const FDT_BASE: u64 = RAM_BASE;
/// That of the largest guest (64 vCPUs, 32 slots) stays below.
pub const FDT_MAX: u64 = 256 << 10;

/// vCPUs of a guest at most: the bits for harts in an IMSIC page's address are chosen for it.
pub const MAX_VCPUS: u32 = 64;
/// RAM of a guest at least, in MiB: a distribution's kernel needs some 80 before anything runs.
pub const MIN_MEMORY_MIB: u32 = 32;
/// RAM of a guest at most, in MiB: the smallest guest-physical space (Sv39x4) has 41 bits.
pub const MAX_MEMORY_MIB: u32 = 1 << 20;

/// Linux is loaded `text_offset` above a multiple of this (Documentation/arch/riscv/boot.rst).
const KERNEL_ALIGNMENT: u64 = 2 << 20;
/// An initramfs ends below: inside what the smallest linear mapping covers, however much RAM follows.
const INITRAMFS_CEILING: u64 = 0x1_0000_0000;
const PAGE: u64 = 4096;

/// COMMAND_LINE_SIZE of riscv less its terminator.
pub const MAX_COMMAND_LINE: usize = 1023;

/// Where the boot files are put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The kernel's first byte, which is its entry, to the end of its BSS.
    pub kernel: Range<u64>,
    /// The initramfs; page aligned at its start.
    pub initramfs: Range<u64>,
}

/// Why the boot files do not fit.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlacementError {
    #[error("the kernel needs RAM up to {end:#x}, there is RAM up to {ram_end:#x}")]
    Kernel { end: u64, ram_end: u64 },
    #[error(
        "the initramfs of {size} bytes does not fit between the kernel's end at {kernel_end:#x} and {ceiling:#x}"
    )]
    Initramfs { size: u64, kernel_end: u64, ceiling: u64 },
}

/// Finds a place for the kernel and an initramfs of `initramfs` bytes in `ram` bytes of RAM.
///
/// # Errors
/// There is too little RAM.
pub fn place(ram: u64, kernel: &ImageHeader, initramfs: u64) -> Result<Placement, PlacementError> {
    let ram_end = RAM_BASE.saturating_add(ram);
    // text_offset is bounded by the header's checks, so this ends within two steps.
    let mut base = RAM_BASE;
    while base + kernel.text_offset < FDT_BASE + FDT_MAX {
        base += KERNEL_ALIGNMENT;
    }
    let start = base + kernel.text_offset;
    let end = start + kernel.image_size;
    if end > ram_end {
        return Err(PlacementError::Kernel { end, ram_end });
    }
    let ceiling = ram_end.min(INITRAMFS_CEILING);
    let too_large = PlacementError::Initramfs { size: initramfs, kernel_end: end, ceiling };
    let initrd = match ceiling.checked_sub(initramfs) {
        Some(start) if start & !(PAGE - 1) >= end => start & !(PAGE - 1),
        _ => return Err(too_large),
    };
    Ok(Placement { kernel: start..end, initramfs: initrd..initrd + initramfs })
}

/// Guest-physical address of slot `n`.
#[must_use]
pub const fn slot_base(n: u32) -> u64 {
    SLOT_BASE + n as u64 * SLOT_SIZE
}

/// Interrupt source of slot `n`.
#[must_use]
pub const fn slot_source(n: u32) -> u32 {
    SLOT_SOURCE + n
}

const _: () = {
    assert!(slot_source(MAX_SLOTS - 1) <= SOURCES);
    assert!(slot_base(MAX_SLOTS) <= IMSIC_BASE);
    assert!(IMSIC_BASE % (MAX_VCPUS as u64 * IMSIC_SIZE) == 0);
    assert!(IMSIC_BASE + MAX_VCPUS as u64 * IMSIC_SIZE <= RAM_BASE);
};

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    /// Debian 13's.
    const DEBIAN: ImageHeader = ImageHeader { text_offset: 0x20_0000, image_size: 0x1e6_b000 };

    #[test]
    fn the_stock_kernel_stands_two_mib_into_ram_and_its_initramfs_at_the_end() {
        let at = place(256 * MIB, &DEBIAN, 5_000_001).unwrap();
        assert_eq!(at.kernel, 0x8020_0000..0x8020_0000 + 0x1e6_b000);
        assert_eq!(at.initramfs.start % PAGE, 0);
        assert_eq!(at.initramfs.end - at.initramfs.start, 5_000_001);
        let end = RAM_BASE + 256 * MIB;
        assert!(at.initramfs.end <= end && end - at.initramfs.end < PAGE);
    }

    #[test]
    fn a_kernel_without_text_offset_leaves_room_for_the_devicetree() {
        let at = place(64 * MIB, &ImageHeader { text_offset: 0, image_size: MIB }, 0).unwrap();
        assert_eq!(at.kernel.start, RAM_BASE + KERNEL_ALIGNMENT);
    }

    #[test]
    fn the_initramfs_never_overlaps_the_kernels_bss() {
        // Whole image_size, not the file's size: the last byte that fits, and one more.
        let free = 64 * MIB - 2 * MIB - DEBIAN.image_size;
        let at = place(64 * MIB, &DEBIAN, free).unwrap();
        assert_eq!(at.initramfs.start, at.kernel.end);
        assert!(matches!(place(64 * MIB, &DEBIAN, free + 1), Err(PlacementError::Initramfs { .. })));
        assert!(matches!(place(64 * MIB, &DEBIAN, u64::MAX), Err(PlacementError::Initramfs { .. })));
        assert!(matches!(place(32 * MIB, &DEBIAN, 0), Err(PlacementError::Kernel { .. })));
    }

    #[test]
    fn much_ram_does_not_move_the_initramfs_out_of_reach() {
        let at = place(1 << 40, &DEBIAN, MIB).unwrap();
        assert_eq!(at.initramfs.end, INITRAMFS_CEILING);
    }
}
