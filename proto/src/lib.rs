//! The protocols that hartpod speaks, and the identifiers that travel in them.
//!
//! - [`pod::v1`]: between the node agent and the agent of one pod.
//! - [`cri::v1`]: the Kubernetes Container Runtime Interface, in full (feature `cri`).
//! - [`id`]: checked identifiers of pods and containers.
//!
//! Nothing here does I/O: transports belong to whoever serves or calls.

#![forbid(unsafe_code)]

pub mod id;
#[cfg(feature = "cri")]
mod json;
mod message;

pub use id::{ContainerId, SandboxId};
pub use message::{MESSAGE_MAX, shorten};

/// The pod agent's protocol.
pub mod pod {
    /// Metadata of a call: the span that it is a part of (W3C Trace Context), if the daemon's caller traces it.
    pub const TRACEPARENT: &str = "traceparent";
    /// Metadata of the answer to such a call: microseconds that the agent took, from the request's headers to the answer.
    pub const TOOK: &str = "hartpod-took-us";

    /// Version 1; agents of the previous release must be understood.
    #[allow(missing_debug_implementations, unreachable_pub, clippy::all, clippy::restriction)]
    pub mod v1 {
        tonic::include_proto!("hartpod.pod.v1");
    }
}

/// Kubernetes' Container Runtime Interface.
#[cfg(feature = "cri")]
pub mod cri {
    /// The version that every supported kubelet speaks.
    #[allow(missing_debug_implementations, unreachable_pub, clippy::all, clippy::restriction)]
    pub mod v1 {
        tonic::include_proto!("runtime.v1");
    }
}
