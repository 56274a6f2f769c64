//! Which SELinux labels a container has.

use hartpod_proto::cri::v1 as cri;

use super::{SpecError, SpecInput};
use crate::selinux::{Labels, SeLinux, is_level};

const FIELD: &str = "config.linux.security_context.selinux_options";

/// None where SELinux is off: charts set options all the same and every runtime lets them pass; here that is told.
pub(super) fn labels_blocking(
    input: &SpecInput<'_>,
    warnings: &mut Vec<String>,
) -> Result<Option<Labels>, SpecError> {
    let security = super::security(input.container);
    let own = security.selinux_options.as_ref();
    let Some(kernel) = &input.settings.selinux else {
        if own.is_some_and(|options| *options != cri::SeLinuxOption::default()) {
            warnings.push("SELinux is not in use: selinux_options have no effect".to_owned());
        }
        return Ok(None);
    };
    pod_labels_blocking(kernel, input.sandbox, own, input.selinux_level, security.privileged).map(Some)
}

/// By the options of the pod, and a container's over them.
pub(crate) fn pod_labels_blocking(
    kernel: &SeLinux,
    sandbox: &cri::PodSandboxConfig,
    container: Option<&cri::SeLinuxOption>,
    level: Option<&str>,
    privileged: bool,
) -> Result<Labels, SpecError> {
    let pod = pod_options(sandbox);
    for options in [pod, container].into_iter().flatten() {
        check(options)?;
    }
    let labels = kernel.labels_blocking([pod, container], level, privileged);
    labels.map_err(|error| SpecError::invalid(FIELD, format!("the node's policy does not have it: {error}")))
}

/// What the pod asks for itself.
pub(crate) fn pod_options(sandbox: &cri::PodSandboxConfig) -> Option<&cri::SeLinuxOption> {
    sandbox.linux.as_ref()?.security_context.as_ref()?.selinux_options.as_ref()
}

fn check(options: &cri::SeLinuxOption) -> Result<(), SpecError> {
    let odd =
        |part: &&String| part.contains(|c: char| c == ':' || c == '"' || c.is_control() || c.is_whitespace());
    if let Some(part) = [&options.user, &options.role, &options.r#type].into_iter().find(odd) {
        return Err(SpecError::invalid(FIELD, format!("{part:?} is no part of a context")));
    }
    if !options.level.is_empty() && !is_level(&options.level) {
        return Err(SpecError::invalid(FIELD, format!("{:?} is not a level", options.level)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tests::Fixture;
    use super::*;
    use crate::selinux::tests::fake;

    #[test]
    fn options_without_selinux_are_told() {
        let mut fixture = Fixture::new();
        let mut warnings = Vec::new();
        fixture.security().selinux_options = Some(cri::SeLinuxOption::default());
        assert_eq!(labels_blocking(&fixture.input(), &mut warnings).unwrap(), None);
        assert!(warnings.is_empty());
        fixture.security().selinux_options =
            Some(cri::SeLinuxOption { r#type: "spc_t".into(), ..Default::default() });
        assert_eq!(labels_blocking(&fixture.input(), &mut warnings).unwrap(), None);
        assert_eq!(warnings.len(), 1);
    }

    #[test]
    fn the_spec_has_the_labels_and_volumes_that_are_to_be_relabelled_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let mut fixture = Fixture::new();
        fixture.settings.selinux = Some(Arc::new(fake(dir.path())));
        for (path, selinux_relabel) in [("/a", true), ("/b", false)] {
            fixture.container.mounts.push(cri::Mount {
                container_path: path.into(),
                host_path: path.into(),
                selinux_relabel,
                ..Default::default()
            });
        }
        let mut input = fixture.input();
        input.selinux_level = Some("s0:c3,c9");
        let spec = super::super::container_spec_blocking(&input).unwrap().spec;
        let process = spec.process().as_ref().unwrap().selinux_label().as_deref().unwrap();
        assert_eq!(process, "system_u:system_r:container_t:s0:c3,c9");
        let files = spec.linux().as_ref().unwrap().mount_label().as_deref().unwrap();
        assert_eq!(files, "system_u:object_r:container_file_t:s0:c3,c9");
        let marked: Vec<_> = spec
            .mounts()
            .iter()
            .flatten()
            .filter(|mount| mount.options().iter().flatten().any(|o| o == "Z"))
            .collect();
        assert_eq!(marked.len(), 1);
        assert_eq!(marked[0].destination().to_str(), Some("/a"));
    }

    #[test]
    fn options_that_are_none_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut fixture = Fixture::new();
        fixture.settings.selinux = Some(Arc::new(fake(dir.path())));
        for (options, expected) in [
            (
                cri::SeLinuxOption { level: "s0,c4,c5".into(), ..Default::default() },
                "\"s0,c4,c5\" is not a level",
            ),
            (
                cri::SeLinuxOption { r#type: "a:b".into(), ..Default::default() },
                "\"a:b\" is no part of a context",
            ),
            (
                cri::SeLinuxOption { user: "a\n".into(), ..Default::default() },
                "\"a\\n\" is no part of a context",
            ),
        ] {
            fixture.security().selinux_options = Some(options);
            let refused = labels_blocking(&fixture.input(), &mut Vec::new()).unwrap_err().to_string();
            assert!(refused.ends_with(expected), "{refused}");
        }
    }
}
