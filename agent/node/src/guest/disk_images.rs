//! Which layers a container's disk in a guest has, and in which partitions.

use std::path::PathBuf;
use std::sync::Arc;

use hartpod_images::{Image, LayerFileError};

use crate::node::Node;

/// The layers of a container's image, and those of images that it mounts, each once.
#[derive(Debug)]
pub(crate) struct DiskImages {
    /// The container's own, and those that are mounted.
    images: Vec<Arc<Image>>,
    /// Names of layers; the first one is partition 1.
    pub(super) partitions: Vec<String>,
    /// How many of them are of the container's own image.
    own: usize,
}

impl DiskImages {
    pub(crate) fn new(own: &Arc<Image>, volumes: &[Arc<Image>]) -> Self {
        let mut partitions = own.layers.clone();
        for layer in volumes.iter().flat_map(|image| &image.layers) {
            if !partitions.contains(layer) {
                partitions.push(layer.clone());
            }
        }
        let images = std::iter::once(own).chain(volumes).cloned().collect();
        Self { images, partitions, own: own.layers.len() }
    }

    /// Layers of the container's own image.
    pub(crate) fn layers(&self) -> u32 {
        number(self.own)
    }

    /// Layers that only images have that are mounted.
    pub(crate) fn volume_layers(&self) -> u32 {
        number(self.partitions.len() - self.own)
    }

    /// Where an image's layers are, the bottom one first.
    pub(crate) fn partitions(&self, image: &Image) -> Vec<u32> {
        let place = |layer: &String| self.partitions.iter().position(|known| known == layer);
        image.layers.iter().filter_map(place).map(|at| number(at + 1)).collect()
    }

    /// The file of each partition.
    pub(super) async fn files(&self, node: &Node) -> Result<Vec<PathBuf>, LayerFileError> {
        let mut files = vec![PathBuf::new(); self.partitions.len()];
        for image in &self.images {
            let made = node.images.layer_files(image).await?;
            for (partition, file) in self.partitions(image).into_iter().zip(made) {
                files[partition as usize - 1] = file;
            }
        }
        Ok(files)
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, layers: &[&str]) -> Arc<Image> {
        Arc::new(Image {
            id: format!("sha256:{}", id.repeat(64)).parse().unwrap(),
            tags: Vec::new(),
            digests: Vec::new(),
            size: 0,
            layers: layers.iter().map(ToString::to_string).collect(),
            config: oci_spec::image::ImageConfiguration::default(),
            pinned: false,
        })
    }

    #[test]
    fn a_layer_is_on_the_disk_once() {
        let own = image("1", &["base", "web"]);
        let (same_base, other) = (image("2", &["base", "data"]), image("3", &["other"]));
        let disk = DiskImages::new(&own, &[same_base.clone(), own.clone(), other.clone(), other.clone()]);
        assert_eq!((disk.layers(), disk.volume_layers()), (2, 2));
        assert_eq!(disk.partitions, ["base", "web", "data", "other"]);
        assert_eq!(disk.partitions(&same_base), [1, 3]);
        assert_eq!(disk.partitions(&own), [1, 2]);
        assert_eq!(disk.partitions(&other), [4]);
    }
}
