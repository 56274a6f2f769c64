//! What can be wrong with a layer.

use std::io;

use crate::digest::Digest;
use crate::file_error::FileError;

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The bytes are not those that the manifest names.
    #[error("layer {expected} has the wrong digest {found}")]
    Digest {
        /// In the manifest.
        expected: Digest,
        /// Of what came.
        found: Digest,
    },
    /// The unpacked bytes are not those that the configuration names.
    #[error("layer {layer} unpacks to diff-id {found}, not {expected}")]
    DiffId {
        /// The compressed layer.
        layer: Digest,
        /// In the configuration.
        expected: Digest,
        /// Of what came.
        found: Digest,
    },
    /// Fewer bytes than the manifest says.
    #[error("layer {layer} is truncated: {found} of {expected} bytes")]
    Truncated {
        /// The compressed layer.
        layer: Digest,
        /// Bytes in the manifest.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// More bytes than the manifest says.
    #[error("layer {layer} is longer than the {expected} bytes that its manifest says")]
    TooLong {
        /// The compressed layer.
        layer: Digest,
        /// Bytes in the manifest.
        expected: u64,
    },
    /// The decompressor gave up.
    #[error("layer {layer}: decompress {method}")]
    Decompress {
        /// The compressed layer.
        layer: Digest,
        /// gzip or zstd.
        method: &'static str,
        /// What it says.
        #[source]
        source: io::Error,
    },
    /// Compressed with something that no OCI layer may be compressed with.
    #[error("layer {layer} is compressed with {method}, only gzip, zstd and plain tar are supported")]
    Compression {
        /// The compressed layer.
        layer: Digest,
        /// What the first bytes say.
        method: &'static str,
    },
    /// Not a tar archive, or a broken one.
    #[error("layer {layer}: broken tar archive: {problem}")]
    Archive {
        /// The compressed layer.
        layer: Digest,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An entry that must not be unpacked.
    #[error("layer {layer}: entry {path:?} {problem}")]
    Entry {
        /// The compressed layer.
        layer: Digest,
        /// The entry's name, shortened.
        path: String,
        /// Why not.
        problem: EntryProblem,
    },
    /// More unpacked bytes than allowed.
    #[error("layer {layer} unpacks to more than the limit of {limit} bytes")]
    TooLarge {
        /// The compressed layer.
        layer: Digest,
        /// `max_layer_bytes`.
        limit: u64,
    },
    /// More entries than allowed.
    #[error("layer {layer} has more than the limit of {limit} entries")]
    TooManyEntries {
        /// The compressed layer.
        layer: Digest,
        /// The limit.
        limit: u64,
    },
    /// Names of folders that would take too much memory.
    #[error("layer {layer} has folders whose names take more than {limit} bytes")]
    TooManyNames {
        /// The compressed layer.
        layer: Digest,
        /// The limit.
        limit: usize,
    },
    /// The store's disk.
    #[error("unpack layer {layer}")]
    File {
        /// The compressed layer.
        layer: Digest,
        /// What failed.
        #[source]
        source: FileError,
    },
}

/// What is wrong with one entry of a layer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryProblem {
    /// `..` in the name.
    #[error("has .. in its name")]
    ParentInName,
    /// `..` in the name of a hard link's target.
    #[error("is a hard link to {target:?}, which has .. in it")]
    ParentInTarget {
        /// The target.
        target: String,
    },
    /// A NUL in the name or a link's target.
    #[error("has a NUL in its name or target")]
    Nul,
    /// One component is longer than any file system takes.
    #[error("has a name of {length} bytes, the limit is {limit}")]
    NameTooLong {
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// The path is longer than the kernel takes.
    #[error("has a path of {length} bytes, the limit is {limit}")]
    PathTooLong {
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// Too many folders in each other.
    #[error("lies deeper than {limit} folders")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// No name, or that of the root for something that is no folder.
    #[error("has no name")]
    NoName,
    /// A symlink in its path climbs out of the layer.
    #[error("lies below the link {link:?}, which leads out of the layer")]
    LinkEscapes {
        /// The link's target.
        link: String,
    },
    /// Symlinks in its path that lead nowhere.
    #[error("lies below too many links")]
    LinkLoop,
    /// Something in its path is a file.
    #[error("lies below something that is no folder")]
    NotAFolder,
    /// A hard link to something that this layer does not have.
    #[error("is a hard link to {target:?}, which is not in this layer")]
    NoTarget {
        /// The target.
        target: String,
    },
    /// A hard link to a folder or a whiteout.
    #[error("is a hard link to {target:?}, which cannot be linked to")]
    BadTarget {
        /// The target.
        target: String,
    },
    /// A symlink with an empty target or one that is longer than the kernel takes.
    #[error("is a link with a target of {length} bytes")]
    TargetLength {
        /// Its length.
        length: usize,
    },
    /// A sparse file, in any of GNU tar's forms.
    #[error("is a sparse file, which is not supported")]
    Sparse,
    /// A type that has no place in a layer.
    #[error("has the unsupported type {}", char::from(*.kind).escape_default())]
    UnsupportedType {
        /// The type byte.
        kind: u8,
    },
    /// `.wh.` without a name to remove, or with `.` or `..`.
    #[error("is a whiteout of nothing")]
    Whiteout,
    /// A user or group that does not fit 32 bits.
    #[error("has an owner that is out of range")]
    Owner,
    /// An extended header with malformed records.
    #[error("has a malformed extended header")]
    ExtendedHeader,
    /// An extended header, a long name or extended attributes that take too much.
    #[error("has an extended header or long name of more than {limit} bytes")]
    ExtendedHeaderTooLong {
        /// The limit.
        limit: u64,
    },
    /// The kernel refuses an attribute's value.
    #[error("has an extended attribute {name:?} that the kernel refuses")]
    Xattr {
        /// The attribute.
        name: String,
    },
}
