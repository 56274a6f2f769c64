#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hartpod_streaming::fuzz_entry::websocket(data));
