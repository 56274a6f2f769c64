//! A container as CRI shows it.

use hartpod_images::ImageStore;
use hartpod_proto::cri::v1 as cri;

use crate::container::{ContainerInfo, ContainerSnapshot};
use crate::spec::signal_to_cri;

/// What the image is called: as the user wrote it, or by a tag that it still has, or as the request had it (the kubelet asks
/// by id).
pub(super) fn image(images: &ImageStore, container: &ContainerInfo) -> cri::ImageSpec {
    let mut spec = container.config.image.clone().unwrap_or_default();
    if !spec.user_specified_image.is_empty() {
        spec.image.clone_from(&spec.user_specified_image);
    } else if let Some(tag) = images.resolve(&container.image_id).and_then(|i| i.tags.first().cloned()) {
        spec.image = tag;
    }
    spec
}

/// Nothing while the container is being made.
pub(super) fn status(container: &ContainerSnapshot, image: cri::ImageSpec) -> Option<cri::ContainerStatus> {
    let ContainerSnapshot { info, exit, .. } = container;
    let config = &info.config;
    Some(cri::ContainerStatus {
        id: info.id.to_string(),
        metadata: config.metadata.clone(),
        state: container.state.to_cri()?.into(),
        created_at: info.created_at,
        started_at: container.started_at,
        finished_at: exit.as_ref().map_or(0, |e| e.finished_at),
        exit_code: exit.as_ref().map_or(0, |e| e.code),
        image: Some(image),
        image_ref: info.image_ref.clone(),
        reason: exit.as_ref().map(|e| e.reason.clone()).unwrap_or_default(),
        message: exit.as_ref().map(|e| e.message.clone()).unwrap_or_default(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: mounts(info),
        log_path: info.log_path.as_ref().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default(),
        resources: container
            .resources
            .as_deref()
            .or_else(|| info.resources())
            .cloned()
            .map(|linux| cri::ContainerResources { linux: Some(linux), windows: None }),
        image_id: info.image_id.clone(),
        user: container.user.as_ref().map(|user| cri::ContainerUser {
            linux: Some(cri::LinuxContainerUser {
                uid: user.uid.into(),
                gid: user.gid.into(),
                supplemental_groups: user.groups.iter().map(|g| i64::from(*g)).collect(),
            }),
        }),
        stop_signal: signal_to_cri(container.stop_signal).into(),
    })
}

/// As they were asked for, and which images they turned out to show.
fn mounts(info: &ContainerInfo) -> Vec<cri::Mount> {
    let mut mounts = info.config.mounts.clone();
    for volume in &info.image_volumes {
        let asked = mounts.get_mut(volume.mount).and_then(|mount| mount.image.as_mut());
        if let Some(image) = asked {
            image.image_ref.clone_from(&volume.image_id);
        }
    }
    mounts
}

/// Nothing while the container is being made.
pub(super) fn item(container: &ContainerSnapshot, image: cri::ImageSpec) -> Option<cri::Container> {
    let info = &container.info;
    Some(cri::Container {
        id: info.id.to_string(),
        pod_sandbox_id: info.pod.to_string(),
        metadata: info.config.metadata.clone(),
        image: Some(image),
        image_ref: info.image_ref.clone(),
        state: container.state.to_cri()?.into(),
        created_at: info.created_at,
        labels: info.config.labels.clone(),
        annotations: info.config.annotations.clone(),
        image_id: info.image_id.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{ContainerState, Exit, test_container};

    #[test]
    fn an_exit_is_told_in_all_its_fields() {
        let mut container = test_container("cd", ContainerState::Exited, &[]);
        container.exit =
            Some(Exit { finished_at: 9, code: 137, reason: "OOMKilled".into(), message: "limit".into() });
        let status = status(&container, cri::ImageSpec::default()).unwrap();
        assert_eq!(status.state, cri::ContainerState::ContainerExited as i32);
        assert_eq!((status.created_at, status.started_at, status.finished_at), (5, 6, 9));
        assert_eq!((status.exit_code, &*status.reason, &*status.message), (137, "OOMKilled", "limit"));
        assert_eq!(status.log_path, "/var/log/pods/p/c/0.log");
        assert_eq!(status.stop_signal, cri::Signal::Sigterm as i32);
    }
}
