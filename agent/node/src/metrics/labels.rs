//! The labels that all series of a pod or container have.

use std::borrow::Cow;

use crate::node::Node;
use crate::pod::{PodSnapshot, own_leaf};
use crate::stats::ContainerReading;

/// Their names, in their order; those of a family of its own come after.
pub(crate) const COMMON_LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// Values of [`COMMON_LABELS`].
pub(crate) type CommonLabels<'a> = [Cow<'a, str>; 6];

pub(crate) fn of_container(read: &ContainerReading) -> CommonLabels<'_> {
    let (pod, info) = (&read.target.pod.info, &read.target.container.info);
    let image = info.config.image.as_ref();
    let written =
        image.map(|i| if i.user_specified_image.is_empty() { &i.image } else { &i.user_specified_image });
    let written = written.map_or("", String::as_str);
    let name = &pod.name;
    [&info.name.name, &info.cgroup_path, written, info.id.as_str(), &name.namespace, &name.name]
        .map(Cow::Borrowed)
}

/// Without the name of a container, as cAdvisor tells what it reads from the cgroup of a pod.
pub(crate) fn of_pod<'a>(node: &Node, pod: &'a PodSnapshot) -> CommonLabels<'a> {
    let leaf = own_leaf(node, &pod.info).map(|leaf| leaf.cgroup_path().to_owned()).unwrap_or_default();
    let id = match pod.info.cgroup_parent() {
        "" => leaf,
        _ => leaf.rsplit_once('/').map(|(parent, _)| parent.to_owned()).unwrap_or_default(),
    };
    let name = &pod.info.name;
    let [none, namespace, name] = ["", &name.namespace, &name.name].map(Cow::Borrowed);
    [none.clone(), Cow::Owned(id), none.clone(), none, namespace, name]
}
