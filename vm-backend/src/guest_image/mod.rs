//! What a guest boots: the node's own kernel, an initramfs with the pod agent, and file systems beside it.
//!
//! What it does: find the kernel, unpack it, choose, strip and pack modules, make the file systems, keep images by the hash of what they are made
//! of. What it does not: download anything, start guests.

mod agent_program;
mod build;
mod compression;
mod cpio;
mod file_error;
mod initramfs;
mod kernel;
mod module_choice;
mod module_tree;
mod modules_disk;
mod node_kernel;
mod scratch_disk;
mod store;
mod strip;
mod tool;

pub use agent_program::AgentError;
pub use build::{BuildError, BuildRequest, Built, build_blocking};
pub use cpio::TooLarge;
pub use file_error::FileError;
pub use kernel::KernelError;
pub use module_tree::ModuleError;
pub use node_kernel::{NoKernel, NodePaths};
pub use scratch_disk::SCRATCH_BYTES;
pub use store::{GuestImage, Manifest, OpenError};
pub use tool::ToolError;
