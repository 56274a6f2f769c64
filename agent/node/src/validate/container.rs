//! Checks on CreateContainer.

use std::path::Path;

use hartpod_proto::cri::v1 as cri;

use super::{Checked, annotations, invalid, labels, name, plain_path};

/// Checks a container's configuration.
pub fn container(config: &cri::ContainerConfig) -> Checked {
    let Some(metadata) = &config.metadata else {
        return Err(invalid("config.metadata", "is missing"));
    };
    name("config.metadata.name", &metadata.name)?;
    if config.image.as_ref().is_none_or(|i| i.image.is_empty()) {
        return Err(invalid("config.image.image", "is empty"));
    }
    labels("config.labels", &config.labels)?;
    annotations("config.annotations", &config.annotations)?;
    log_path(&config.log_path)
}

/// A file below the pod's log directory. (Links on the way are the log writer's to refuse.)
fn log_path(text: &str) -> Checked {
    const FIELD: &str = "config.log_path";
    if text.is_empty() {
        return Ok(());
    }
    plain_path(FIELD, text)?;
    let path = Path::new(text);
    if path.is_absolute() {
        return Err(invalid(FIELD, format!("{text} is not relative to the pod's log directory")));
    }
    if path.file_name().is_none() || text.ends_with('/') {
        return Err(invalid(FIELD, format!("{text:?} does not name a file")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> cri::ContainerConfig {
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "app".into(), attempt: 1 }),
            image: Some(cri::ImageSpec { image: "busybox".into(), ..Default::default() }),
            log_path: "app/1.log".into(),
            ..Default::default()
        }
    }

    #[test]
    fn refusals_name_the_field() {
        container(&good()).unwrap();
        let log = |path: &str| cri::ContainerConfig { log_path: path.into(), ..good() };
        let named = |name: &str| cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: name.into(), attempt: 0 }),
            ..good()
        };
        let label = [("k".to_owned(), "v".repeat(4096))].into();
        for (config, expected) in [
            (cri::ContainerConfig { metadata: None, ..good() }, "config.metadata: is missing"),
            (named(""), "config.metadata.name: is empty"),
            (named("a/b"), "config.metadata.name: \"a/b\" cannot be a name"),
            (named(".."), "config.metadata.name: \"..\" cannot be a name"),
            (named(&"x".repeat(254)), "config.metadata.name: is 254 bytes long, at most 253 are allowed"),
            (cri::ContainerConfig { image: None, ..good() }, "config.image.image: is empty"),
            (log("../other/0.log"), "config.log_path: ../other/0.log contains .."),
            (log("a/../../x"), "config.log_path: a/../../x contains .."),
            (log("/etc/passwd"), "config.log_path: /etc/passwd is not relative to the pod's log directory"),
            (log("a/"), "config.log_path: \"a/\" does not name a file"),
            (log("."), "config.log_path: \".\" does not name a file"),
            (log("a\nb"), "config.log_path: \"a\\nb\" contains a control character"),
            (
                cri::ContainerConfig { labels: label, ..good() },
                "config.labels[\"k\"]: is 4097 bytes long, at most 4096 are allowed",
            ),
        ] {
            assert_eq!(container(&config).unwrap_err().to_string(), expected);
        }
    }
}
