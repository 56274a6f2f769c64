#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hartpod_vm::share::fuzz_entry::requests(data));
