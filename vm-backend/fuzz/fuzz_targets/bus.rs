#![no_main]
//! What a guest can do to the VMM without any device: accesses to its address space, calls to its firmware.

use std::sync::Arc;

use hartpod_vm::arch::riscv64::layout::{PLIC_BASE, PLIC_SIZE, RAM_BASE};
use hartpod_vm::arch::riscv64::plic::{Outputs, PlicDevice};
use hartpod_vm::arch::riscv64::sbi::{self, Call};
use hartpod_vm::bus::Bus;
use hartpod_vm::console::Console;
use hartpod_vm::memory;

#[derive(Debug)]
struct Harts([bool; 3]);

impl Outputs for Harts {
    fn set(&mut self, context: usize, high: bool) {
        assert_ne!(self.0[context], high, "driven without a change");
        self.0[context] = high;
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let plic = PlicDevice::new(3, Box::new(Harts([false; 3])));
    let lines: Vec<_> = [0, 1, 31, 63, 64].map(|source| plic.line(source)).into();
    let mut bus = Bus::default();
    bus.insert(PLIC_BASE, PLIC_SIZE, Arc::clone(&plic) as _).unwrap();
    let ram = memory::map(RAM_BASE, 1 << 16).unwrap();
    let console = Console::new(std::fs::File::create("/dev/null").unwrap(), 100);
    for step in data.chunks_exact(16) {
        let word = |at: usize| u64::from_le_bytes(step[at..at + 8].try_into().unwrap());
        let (kind, low, high) = (step[0], word(0) >> 8, word(8));
        // Mostly where there is something.
        let address = if kind & 0x80 == 0 { PLIC_BASE + (low & 0x3f_ffff) } else { low };
        let mut bytes = high.to_le_bytes();
        let length = [1, 2, 4, 8][usize::from(kind >> 3 & 3)];
        match kind & 7 {
            0 | 1 => bus.read(address, &mut bytes[..length]),
            2 | 3 => bus.write(address, &bytes[..length]),
            4 | 5 => lines[usize::from(kind >> 4 & 7) % lines.len()].set(kind & 8 != 0),
            _ => {
                let address = RAM_BASE + (low & 0x1_ffff);
                let arguments = [high & 0x1_ffff, address, high >> 60, 0, 0, 0];
                let extension = if kind & 0x10 == 0 { sbi::DEBUG_CONSOLE } else { low };
                let call = Call { extension, function: high >> 56 & 3, arguments };
                let answer = sbi::answer(&call, &ram, &console);
                assert!(answer.value <= 4096 && (answer.error == 0 || answer.value == 0));
            }
        }
    }
    let _ = console.panic_line();
});
