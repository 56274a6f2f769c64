//! One layer: from a stream of compressed bytes to a folder that overlayfs can take as a lower layer.
//!
//! Everything here blocks and belongs on a blocking thread. All of it happens in one pass: bytes are hashed as they come (the
//! digest), decompressed, hashed again (the diff-id), read as tar and written. Nothing is believed before both hashes fit, and the
//! caller moves the folder to its place only then.

mod archive;
mod dir_times;
mod entries;
mod entry_path;
mod error;
mod file_list;
mod pax;
mod source;
mod tree;
mod unpack;
mod xattrs;

pub use error::{EntryProblem, LayerError};
pub(crate) use file_list::{FileList, ListedKind, read_list};
pub(crate) use source::StreamFacts;
pub(crate) use tree::OPAQUE;
pub(crate) use unpack::{LayerFacts, Limits, Target, unpack_blocking};
