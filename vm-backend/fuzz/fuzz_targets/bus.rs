#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hartpod_vm::arch::riscv64::fuzz_entry::bus(data));
