//! Images as volumes (KEP-4639). The rules are containerd's (internal/cri/server, container_image_mount.go).

use std::path::{Component, Path};

use hartpod_container::IdMaps;
use hartpod_proto::cri::v1 as cri;
use oci_spec::runtime::Mount;

use super::SpecError;
use super::mounts::{destination, maps, mount};
use crate::container::ImageVolume;

/// The mount of an image, if that is what is asked for. What it shows is of type `image`, with the image's id as its source, for the pod agent to
/// make.
pub(super) fn image_volume(
    index: usize,
    asked: &cri::Mount,
    images: &[ImageVolume],
    users: Option<&IdMaps>,
) -> Result<Option<Mount>, SpecError> {
    let field = |name: &str| format!("config.mounts[{index}].{name}");
    if asked.image.is_none() {
        return match asked.image_sub_path.as_str() {
            "" => Ok(None),
            _ => Err(SpecError::invalid(field("image_sub_path"), "is set, but there is no image")),
        };
    }
    let image = images.iter().find(|image| image.mount == index);
    let image = image.ok_or_else(|| SpecError::invalid(field("image"), "names no image"))?;
    if !asked.host_path.is_empty() {
        return Err(SpecError::invalid(field("host_path"), "must be empty with an image"));
    }
    if !asked.readonly {
        return Err(SpecError::invalid(field("readonly"), "must be set with an image"));
    }
    // Nothing is ever mounted there on the node: with HostToContainer, nothing is to arrive.
    if asked.propagation == cri::MountPropagation::PropagationBidirectional as i32 {
        return Err(SpecError::invalid(field("propagation"), "cannot be bidirectional with an image"));
    }
    if cri::MountPropagation::try_from(asked.propagation).is_err() {
        return Err(SpecError::invalid(field("propagation"), format!("{} is not known", asked.propagation)));
    }
    // The layers of a pod with a user namespace all have its ids.
    if maps(&field("uidMappings"), asked)?.is_some_and(|maps| Some(&maps) != users) {
        return Err(SpecError::unsupported(field("uidMappings"), "an image has the ids of the pod"));
    }
    let mut options = vec!["ro".to_owned(), "rprivate".to_owned()];
    if !asked.image_sub_path.is_empty() {
        options.push(format!("subpath={}", sub_path(&field("image_sub_path"), &asked.image_sub_path)?));
    }
    let mut made = mount("", "image", &image.image_id, &[]);
    made.set_destination(destination(&field("container_path"), asked)?).set_options(Some(options));
    Ok(Some(made))
}

/// A folder of the image; links in it are followed within the image by the pod agent.
fn sub_path<'a>(field: &str, asked: &'a str) -> Result<&'a str, SpecError> {
    let plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if asked.contains('\0') || !Path::new(asked).components().all(plain) {
        return Err(SpecError::invalid(field, format!("{asked:?} is not a relative path without ..")));
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks() -> cri::Mount {
        cri::Mount {
            container_path: "/data".into(),
            readonly: true,
            image: Some(cri::ImageSpec { image: "web:1".into(), ..Default::default() }),
            ..Default::default()
        }
    }

    fn images() -> [ImageVolume; 1] {
        [ImageVolume { mount: 3, image_id: "sha256:1".into() }]
    }

    #[test]
    fn an_image_is_named_by_its_id() {
        let asked = cri::Mount { image_sub_path: "etc/web".into(), ..asks() };
        let mount = image_volume(3, &asked, &images(), None).unwrap().unwrap();
        assert_eq!(
            (mount.typ().as_deref(), mount.destination().as_path()),
            (Some("image"), Path::new("/data"))
        );
        assert_eq!(mount.source().as_deref(), Some(Path::new("sha256:1")));
        assert_eq!(mount.options().as_ref().unwrap(), &["ro", "rprivate", "subpath=etc/web"]);
        assert!(image_volume(3, &cri::Mount::default(), &images(), None).unwrap().is_none());
    }

    #[test]
    fn what_an_image_cannot_be_is_refused_by_its_field() {
        use cri::MountPropagation::PropagationBidirectional;

        for (asked, expected) in [
            (cri::Mount { readonly: false, ..asks() }, "readonly: must be set"),
            (cri::Mount { host_path: "/x".into(), ..asks() }, "host_path: must be empty"),
            (cri::Mount { container_path: "x".into(), ..asks() }, "container_path: "),
            (cri::Mount { container_path: "/proc/x".into(), ..asks() }, "container_path: "),
            (cri::Mount { image: None, image_sub_path: "x".into(), ..asks() }, "image_sub_path: is set, but"),
            (cri::Mount { image_sub_path: "/etc".into(), ..asks() }, "image_sub_path: \"/etc\" is not"),
            (cri::Mount { image_sub_path: "a/../b".into(), ..asks() }, "image_sub_path: \"a/../b\" is not"),
            (cri::Mount { propagation: PropagationBidirectional.into(), ..asks() }, "propagation: cannot be"),
            (cri::Mount { propagation: 9, ..asks() }, "propagation: 9 is not known"),
        ] {
            let refused = image_volume(3, &asked, &images(), None).unwrap_err().to_string();
            assert!(refused.starts_with(&format!("config.mounts[3].{expected}")), "{refused}");
        }
        assert!(image_volume(2, &asks(), &images(), None).is_err());
    }

    #[test]
    fn an_image_has_no_ids_but_the_pods() {
        let ids = |host_id| vec![cri::IdMapping { host_id, container_id: 0, length: 1 }];
        let asked = cri::Mount { uid_mappings: ids(7), gid_mappings: ids(7), ..asks() };
        let maps = maps("", &asked).unwrap();
        assert!(image_volume(3, &asked, &images(), maps.as_ref()).is_ok());
        assert!(image_volume(3, &asks(), &images(), maps.as_ref()).is_ok());
        let other = cri::Mount { uid_mappings: ids(8), ..asked.clone() };
        for (asked, pod) in [(&asked, None), (&other, maps.as_ref())] {
            let refused = image_volume(3, asked, &images(), pod).unwrap_err().to_string();
            let expected = "config.mounts[3].uidMappings cannot be honoured: an image has the ids of the pod";
            assert_eq!(refused, expected);
        }
    }
}
