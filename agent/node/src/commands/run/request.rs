//! What the daemon is asked to make.

use std::path::Path;

use hartpod_proto::cri::v1 as cri;

use super::super::proc_paths::confined;
use super::RunArgs;
use crate::random;

/// The container's log below the pod's.
pub(super) const LOG: &str = "0.log";

fn pid_of_its_own() -> cri::NamespaceOption {
    cri::NamespaceOption { pid: cri::NamespaceMode::Container.into(), ..Default::default() }
}

pub(super) fn sandbox(
    args: &RunArgs,
    name: &str,
    log_directory: &Path,
) -> anyhow::Result<cri::PodSandboxConfig> {
    let mut options = pid_of_its_own();
    if args.host_network {
        options.network = cri::NamespaceMode::Node.into();
    }
    let security =
        cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    Ok(cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid: random::hex::<16>()?,
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: if args.host_network { String::new() } else { name.to_owned() },
        log_directory: log_directory.to_string_lossy().into_owned(),
        linux: Some(cri::LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() }),
        ..Default::default()
    })
}

pub(super) fn container(args: &RunArgs, image: String) -> cri::ContainerConfig {
    let mut options = pid_of_its_own();
    if args.host_network {
        options.network = cri::NamespaceMode::Node.into();
    }
    let security = confined(options);
    let env = |(key, value): &(String, String)| cri::KeyValue {
        key: key.clone(),
        value: value.clone().into_bytes(),
    };
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(cri::ImageSpec { image, user_specified_image: args.image.clone(), ..Default::default() }),
        command: args.command.clone(),
        envs: args.env.iter().map(env).collect(),
        // Who is attached to a container without a log is waited for, and gets each byte as it is.
        log_path: if args.is_attached() { String::new() } else { LOG.into() },
        stdin: args.interactive,
        stdin_once: args.interactive,
        tty: args.tty,
        linux: Some(cri::LinuxContainerConfig { security_context: Some(security), ..Default::default() }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> RunArgs {
        RunArgs {
            config: None,
            socket: None,
            handler: String::new(),
            host_network: true,
            env: vec![("A".into(), "b".into())],
            interactive: false,
            tty: false,
            image: "busybox".into(),
            command: vec!["ls".into()],
        }
    }

    #[test]
    fn what_is_asked_for_passes_the_daemons_own_checks() {
        let sandbox = sandbox(&args(), "run-1", Path::new("/tmp/hartpod-run-1")).unwrap();
        crate::validate::sandbox(&sandbox, crate::validate::Kind::Namespaces).unwrap();
        for (interactive, tty) in [(false, false), (true, false), (false, true), (true, true)] {
            let container = container(&RunArgs { interactive, tty, ..args() }, "sha256:1".into());
            crate::validate::container(&container).unwrap();
            assert_eq!((container.stdin, container.stdin_once), (interactive, interactive));
            assert_eq!(container.log_path.is_empty(), interactive || tty, "attached to, or logged");
        }
    }
}
