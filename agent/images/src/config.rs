//! What the store is told at start.

use std::path::PathBuf;
use std::time::Duration;

/// Settings of an [`ImageStore`](crate::ImageStore).
#[derive(Clone, Debug)]
pub struct ImagesConfig {
    /// The store's own folder; one daemon at a time.
    pub root: PathBuf,
    /// Folder of per-registry settings in containerd's `certs.d` format. It may be missing. Read again at each pull.
    pub hosts_dir: PathBuf,
    /// The most bytes that one layer may hold unpacked.
    pub max_layer_bytes: u64,
    /// Layers of one image that are downloaded and unpacked at the same time.
    pub parallel_layers: usize,
    /// A registry that sends no byte for so long is given up.
    pub progress_timeout: Duration,
    /// References of images that the kubelet must not collect. A trailing `*` matches every name that starts so.
    pub pinned: Vec<String>,
}

impl Default for ImagesConfig {
    fn default() -> ImagesConfig {
        ImagesConfig {
            root: PathBuf::from("/var/lib/hartpod/images"),
            hosts_dir: PathBuf::from("/etc/containerd/certs.d"),
            max_layer_bytes: 8 << 30,
            // Same as containerd's max_concurrent_downloads.
            parallel_layers: 3,
            // containerd's image_pull_progress_timeout is 5 minutes; a minute without one byte is a dead connection.
            progress_timeout: Duration::from_secs(60),
            pinned: Vec::new(),
        }
    }
}
