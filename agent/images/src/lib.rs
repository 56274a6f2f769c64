//! Container images of a node: references, a registry client, and a store of unpacked layers.
//!
//! [`ImageStore`] pulls images from registries (or takes them from an OCI layout folder), checks every byte against its digest
//! while it unpacks, and keeps one folder per layer, shared by all images that have it. A folder is an overlayfs lower layer.
//! It does not mount anything and knows no CRI types.
//!
//! Limits: one layer has at most [`ImagesConfig::max_layer_bytes`] unpacked, a million entries and 256 folders in each other, an image
//! 500 layers, a manifest or configuration 8 MiB. Sparse files are refused. Device nodes are passed over and counted, and so are
//! extended attributes other than `user.*` and `security.capability`. Registries are reached directly, not through a proxy.
//!
//! ```no_run
//! # async fn pull() -> Result<(), Box<dyn std::error::Error>> {
//! use hartpod_images::{ImageStore, ImagesConfig, Reference};
//!
//! let config = ImagesConfig::default();
//! let store = tokio::task::spawn_blocking(|| ImageStore::open_blocking(config)).await??;
//! let reference: Reference = "busybox:1.36".parse()?;
//! let image = store.pull(&reference, None, None).await?;
//! println!("{} has {} layers", image.id, image.layers.len());
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod auth;
mod config;
mod digest;
mod file_error;
mod image;
mod layer;
mod pull;
mod reference;
mod registry;
mod store;
#[cfg(test)]
mod testing;

pub use auth::{Auth, AuthFields, InvalidAuth};
pub use config::ImagesConfig;
pub use digest::{Algorithm, Digest, InvalidDigest};
pub use file_error::FileError;
pub use image::{Image, ImageId, LayerProgress, LayerState, Progress, Usage};
pub use layer::{EntryProblem, LayerError};
pub use pull::error::{Attempt, Attempts, PullError};
pub use pull::invalid::InvalidImage;
pub use reference::{InvalidReference, Reference, ReferenceProblem};
pub use registry::SettingsError;
pub use store::{ImageStore, LayerFileError, OpenError, RemoveError};
