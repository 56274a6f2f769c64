//! What a hostile client can send, played from a string of bytes: shared by the fuzz targets in `fuzz/` and a bounded number of random inputs in
//! the unit tests. What would be a fault panics.

mod spdy;
#[cfg(test)]
mod test_random;
mod websocket;

pub use spdy::{spdy, spdy_frames};
pub use websocket::websocket;
