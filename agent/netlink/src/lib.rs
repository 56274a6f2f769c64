//! rtnetlink(7), as much of it as a pod's network takes: links, addresses, routes, neighbours, and requests of the caller's own making.
//!
//! What it does: one request at a time over a blocking socket, answers parsed with care. What it does not: threads, async, notifications,
//! other netlink families. The pod agent in a guest uses it, where each KiB counts and there is one thread; so no library stands behind it.
//!
//! ```no_run
//! let mut socket = hartpod_netlink::Socket::open()?;
//! let link = socket.link("eth0")?.ok_or("no eth0")?;
//! println!("{:?}", socket.addresses(link.index)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod address;
mod attribute;
mod interface;
mod link;
mod message;
mod neighbour;
mod route;
mod socket;
mod sys;
#[cfg(test)]
mod tests;

pub use address::Address;
pub use attribute::Attributes;
pub use interface::Interface;
pub use link::{Link, LinkChange};
pub use message::{Request, flag};
pub use neighbour::Neighbour;
pub use route::Route;
pub use socket::{NetlinkError, Socket};
