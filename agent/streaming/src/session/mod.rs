//! What happens between a client and a pod, whatever carries it.

mod forward;
mod outbound;
mod relay;
mod resize;
mod status;

pub(crate) use forward::{PortStreams, forward};
pub(crate) use outbound::Outbound;
pub(crate) use relay::{Client, run};
pub(crate) use resize::Sizes;
pub(crate) use status::{StatusFormat, StatusStream, Verb, Verdict};
