//! Images that a container mounts.

use hartpod_container::{VolumeImage, VolumeLayers};
use hartpod_proto::pod::v1;

use super::{InvalidRequest, Place, RootPlan, folder_name, only_at};

/// Images of a request, whose layers are where those of the container's own image are.
pub(super) fn volume_images(
    images: Vec<v1::VolumeImage>,
    rootfs: &RootPlan,
) -> Result<Vec<VolumeImage>, InvalidRequest> {
    images.into_iter().map(|image| volume_image(image, rootfs)).collect()
}

fn volume_image(image: v1::VolumeImage, rootfs: &RootPlan) -> Result<VolumeImage, InvalidRequest> {
    let v1::VolumeImage { name, layers, partitions } = image;
    let layers = match rootfs {
        RootPlan::Overlay(_) => {
            only_at(Place::Guest, "images.partitions", partitions.is_empty())?;
            for layer in &layers {
                folder_name("images.layers", layer)?;
            }
            VolumeLayers::Folders(layers)
        }
        RootPlan::Disk(disk) => {
            only_at(Place::Host, "images.layers", layers.is_empty())?;
            let last = disk.layers + disk.volume_layers;
            if let Some(partition) = partitions.iter().copied().find(|number| !(1..=last).contains(number)) {
                return Err(InvalidRequest::Partition { name, partition, last });
            }
            VolumeLayers::Partitions(partitions)
        }
    };
    Ok(VolumeImage { name, layers })
}

#[cfg(test)]
mod tests {
    use hartpod_container::{DiskRoot, Overlay, Slot};

    use super::*;

    fn image(layers: &[&str], partitions: &[u32]) -> Vec<v1::VolumeImage> {
        let layers = layers.iter().map(ToString::to_string).collect();
        vec![v1::VolumeImage { name: "i".into(), layers, partitions: partitions.to_vec() }]
    }

    #[test]
    fn layers_are_where_the_containers_own_are() {
        let host = RootPlan::Overlay(Overlay { layers: vec!["a".into()], scratch: "s".into() });
        let root = DiskRoot { slot: Slot::new(3).unwrap(), layers: 2, volume_layers: 1 };
        let guest = RootPlan::Disk(root);
        assert_eq!(
            volume_images(image(&["a", "b"], &[]), &host).unwrap()[0].layers,
            VolumeLayers::Folders(vec!["a".into(), "b".into()])
        );
        assert_eq!(
            volume_images(image(&[], &[1, 3]), &guest).unwrap()[0].layers,
            VolumeLayers::Partitions(vec![1, 3])
        );
        for (request, rootfs) in [
            (image(&["../x"], &[]), &host),
            (image(&[], &[1]), &host),
            (image(&["a"], &[]), &guest),
            // The last partition is what the container writes to.
            (image(&[], &[4]), &guest),
            (image(&[], &[0]), &guest),
        ] {
            volume_images(request, rootfs).unwrap_err();
        }
    }
}
