#![no_main]
//! What a guest boots from: a header that may lie, a message that may be anything, a devicetree of any size.

use hartpod_vm::arch::riscv64::fdt::{self, Controller, Cpus, Platform, SEED};
use hartpod_vm::arch::riscv64::image::{HEADER_SIZE, ImageHeader};
use hartpod_vm::arch::riscv64::isa::{Aia, Isa, Mmu};
use hartpod_vm::arch::riscv64::layout::{FDT_BASE, FDT_MAX, RAM_BASE, place};
use hartpod_vm::boot::Guest;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    assert!(Guest::parse(data, Vec::new()).is_err(), "a guest without descriptors");
    let Some((header, rest)) = data.split_first_chunk::<HEADER_SIZE>() else { return };
    let Some((numbers, rest)) = rest.split_first_chunk::<32>() else { return };
    let number = |at: usize| u64::from_le_bytes(numbers[at..at + 8].try_into().unwrap());
    let (ram, initramfs) = ((number(8) & 0xfff_ffff) << 12, number(16));
    let Ok(header) = ImageHeader::parse(header, number(0)) else { return };
    let Ok(at) = place(ram, &header, initramfs) else { return };
    assert!(at.kernel.start >= FDT_BASE + FDT_MAX && at.kernel.end <= at.initramfs.start);
    assert!(at.initramfs.end <= RAM_BASE + ram && at.initramfs.end - at.initramfs.start == initramfs);
    let isa = Isa::new(rest.iter().map(|n| u64::from(*n)), Aia::Hidden);
    let platform = Platform {
        ram,
        cpus: Cpus {
            count: (number(24) & 0xff) as u32,
            isa: &isa,
            mmu: Mmu::Sv48,
            timebase: 1,
            cbom: None,
            cboz: Some(64),
        },
        slots: (number(24) >> 8 & 0xff) as u32,
        controller: Controller::Plic,
        initramfs: at.initramfs,
        command_line: &String::from_utf8_lossy(rest),
        seed: &[0; SEED],
    };
    if let Ok(tree) = fdt::build(&platform) {
        assert!(tree.len() as u64 <= FDT_MAX);
    }
});
