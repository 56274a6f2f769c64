#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hartpod_vm::virtio::fuzz_entry::files(data));
