//! Talking to registries: which hosts to ask (`hosts.toml`), how (TLS, credentials, redirects), and what they answer.
//!
//! Speaks the pull half of the OCI distribution specification, over HTTP/1.1 and HTTP/2.

mod blob;
mod challenge;
mod client;
mod go_duration;
mod host;
mod hosts_file;
mod refusal;
mod tls;
mod token;
mod transport;

pub(crate) use blob::{Blob, BlobError};
pub(crate) use client::{Fetched, MAX_MANIFEST, Registry, RegistryOptions};
pub use hosts_file::SettingsError;
pub(crate) use refusal::{Class, Refusals};
