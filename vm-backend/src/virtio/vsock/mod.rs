//! virtio-vsock (VIRTIO 1.2 section 5.10): stream connections from the host into the guest.
//!
//! A client connects to the VM's unix socket and sends `CONNECT <port>\n`. Once the guest has accepted, it reads `OK <port>\n`, and from
//! then on bytes are passed on both ways; shutdown(2) of either side reaches the other. Where the guest refuses or does not answer in
//! time, the socket is closed; a client that asks for too much, or nothing that makes sense, reads `ERROR <why>\n` before that.
//!
//! Clients in the VMM itself come by a [`Dialer`].
//!
//! Accept-only: what the guest itself tries to connect to is reset. The first attempt at port 1024 tells that it is ready.
//!
//! One thread does everything and never waits for a client or the guest alone. Bytes go from a socket into the guest's buffers, and out of
//! them, in one call each; only what a client's socket does not take is copied, and credit bounds that: a client that does not read
//! stops its own stream in the guest, and no other.

mod connection;
mod credit;
mod device;
mod dialer;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod greeting;
mod leftover;
mod limits;
mod mux;
mod news;
mod packet;
mod poll;
mod ready;
mod rx;
mod stream;
mod thread;
mod timers;

#[cfg(test)]
mod tests;

pub use device::Vsock;
pub use dialer::Dialer;
