use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder};
use oci_spec::runtime::{LinuxNamespaceType, LinuxSeccompAction};
use tempfile::TempDir;

use super::*;

/// A pod and a container that ask for nothing special.
pub(super) struct Fixture {
    pub(super) sandbox: cri::PodSandboxConfig,
    pub(super) container: cri::ContainerConfig,
    pub(super) image: ImageConfiguration,
    pub(super) settings: SpecSettings,
    pub(super) netns: Option<PathBuf>,
    /// The sandbox's folder.
    pub(super) dir: TempDir,
    sandbox_id: SandboxId,
    container_id: ContainerId,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let metadata = cri::PodSandboxMetadata {
            name: "web".into(),
            uid: "uid-1".into(),
            namespace: "shop".into(),
            attempt: 0,
        };
        let config = ConfigBuilder::default().cmd(vec!["sh".to_owned()]).build().unwrap();
        Self {
            sandbox: cri::PodSandboxConfig {
                metadata: Some(metadata),
                hostname: "web-0".into(),
                log_directory: "/var/log/pods/web".into(),
                ..Default::default()
            },
            container: cri::ContainerConfig {
                metadata: Some(cri::ContainerMetadata { name: "app".into(), attempt: 0 }),
                image: Some(cri::ImageSpec { image: "sha256:1".into(), ..Default::default() }),
                log_path: "app/0.log".into(),
                ..Default::default()
            },
            image: ImageConfigurationBuilder::default().config(config).build().unwrap(),
            settings: SpecSettings { seccomp: true, ..SpecSettings::default() },
            netns: Some("/var/run/netns/hartpod-1".into()),
            dir: tempfile::tempdir().unwrap(),
            sandbox_id: "1".repeat(64).parse().unwrap(),
            container_id: "2".repeat(64).parse().unwrap(),
        }
    }

    pub(super) fn input(&self) -> SpecInput<'_> {
        SpecInput {
            sandbox: &self.sandbox,
            container: &self.container,
            image: &self.image,
            image_name: "docker.io/library/busybox:latest",
            image_volumes: &[],
            selinux_level: None,
            sandbox_id: &self.sandbox_id,
            container_id: &self.container_id,
            netns: self.netns.as_deref(),
            agent_pid: Some(100),
            holder_pid: Some(101),
            target_pid: None,
            sandbox_dir: self.dir.path(),
            kind: crate::validate::Kind::Namespaces,
            cgroup_path: "/kubepods/pod1/2".into(),
            settings: &self.settings,
        }
    }

    pub(super) fn security(&mut self) -> &mut cri::LinuxContainerSecurityContext {
        self.container.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    fn pod_security(&mut self) -> &mut cri::LinuxSandboxSecurityContext {
        self.sandbox.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    fn plan(&self) -> ContainerPlan {
        container_spec_blocking(&self.input()).unwrap()
    }

    fn refusal(&self) -> String {
        container_spec_blocking(&self.input()).unwrap_err().to_string()
    }
}

fn types(plan: &ContainerPlan) -> Vec<(LinuxNamespaceType, Option<&str>)> {
    let linux = plan.spec.linux().as_ref().unwrap();
    let list = linux.namespaces().as_ref().unwrap();
    list.iter().map(|n| (n.typ(), n.path().as_ref().map(|p| p.to_str().unwrap()))).collect()
}

#[test]
fn a_plain_container() {
    let plan = Fixture::new().plan();
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    assert_eq!((plan.user.as_str(), plan.pid, plan.stop_signal), ("0", NamespaceMode::Pod, libc::SIGTERM));
    assert_eq!(plan.log_path.as_deref(), Some(Path::new("app/0.log")));
    let process = plan.spec.process().as_ref().unwrap();
    assert_eq!(process.args().as_ref().unwrap(), &["sh"]);
    assert_eq!(process.oom_score_adj(), Some(0), "never the daemon's own");
    assert_eq!(process.no_new_privileges(), Some(false));
    let [files] = &process.rlimits().as_ref().unwrap()[..] else { panic!("{:?}", process.rlimits()) };
    assert_eq!((files.soft(), files.hard()), (1024, 524_288));
    let linux = plan.spec.linux().as_ref().unwrap();
    assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/kubepods/pod1/2")));
    assert!(linux.seccomp().is_none() && linux.masked_paths().is_none() && linux.readonly_paths().is_none());
    assert_eq!(plan.spec.root().as_ref().unwrap().readonly(), Some(false));
    assert_eq!(plan.spec.hostname().as_deref(), Some("web-0"));
}

#[test]
fn namespaces_are_named_where_they_are_known() {
    let mut fixture = Fixture::new();
    fixture.settings.unified_cgroups = true;
    use LinuxNamespaceType::*;
    assert_eq!(
        types(&fixture.plan()),
        [
            (Mount, None),
            (Network, Some("/var/run/netns/hartpod-1")),
            (Ipc, Some("/proc/100/ns/ipc")),
            (Uts, Some("/proc/100/ns/uts")),
            (Pid, Some("/proc/101/ns/pid")),
            (Cgroup, None),
        ]
    );
}

#[test]
fn a_pod_on_the_nodes_namespaces_shares_them() {
    let mut fixture = Fixture::new();
    let node = cri::NamespaceMode::Node.into();
    fixture.pod_security().namespace_options =
        Some(cri::NamespaceOption { network: node, pid: node, ipc: node, ..Default::default() });
    fixture.netns = None;
    let plan = fixture.plan();
    assert_eq!(types(&plan), [(LinuxNamespaceType::Mount, None)]);
    assert_eq!(plan.spec.hostname(), &None);
    assert_eq!(pod_hostname(&fixture.sandbox), None);
}

#[test]
fn a_pod_without_a_host_name_has_the_nodes_in_a_namespace_of_its_own() {
    let mut fixture = Fixture::new();
    fixture.sandbox.hostname.clear();
    assert_eq!(pod_hostname(&fixture.sandbox), Some(node_hostname()));
    assert!(types(&fixture.plan()).iter().any(|(t, _)| *t == LinuxNamespaceType::Uts));
}

#[test]
fn annotations_are_those_that_tools_know() {
    let mut fixture = Fixture::new();
    let annotations = fixture.plan().spec.annotations().clone().unwrap();
    for (key, value) in [
        ("container-type", "container"),
        ("sandbox-id", &"1".repeat(64)),
        ("sandbox-namespace", "shop"),
        ("sandbox-uid", "uid-1"),
        ("sandbox-name", "web"),
        ("container-name", "app"),
        ("image-name", "docker.io/library/busybox:latest"),
    ] {
        assert_eq!(annotations[&format!("io.kubernetes.cri.{key}")], value);
    }
    assert_eq!(annotations.len(), 7);
    fixture.container.image.as_mut().unwrap().user_specified_image = "busybox".into();
    assert_eq!(
        fixture.plan().spec.annotations().as_ref().unwrap()["io.kubernetes.cri.image-name"],
        "busybox"
    );
}

#[test]
fn the_default_filter_is_the_backends_for_the_capabilities_held() {
    let mut fixture = Fixture::new();
    fixture.security().seccomp = Some(cri::SecurityProfile::default());
    let allows_mount = |fixture: &Fixture| {
        let plan = fixture.plan();
        let filter = plan.spec.linux().as_ref().unwrap().seccomp().clone().unwrap();
        filter.syscalls().as_ref().unwrap().iter().any(|s| {
            s.action() == LinuxSeccompAction::ScmpActAllow
                && s.names().iter().any(|n| n == "mount")
                && s.args().as_ref().is_none_or(Vec::is_empty)
        })
    };
    assert!(!allows_mount(&fixture));
    let capabilities = cri::Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() };
    fixture.security().capabilities = Some(capabilities);
    assert!(allows_mount(&fixture));
}

#[test]
fn a_privileged_container_needs_a_privileged_pod() {
    let mut fixture = Fixture::new();
    fixture.security().privileged = true;
    assert_eq!(
        fixture.refusal(),
        "config.linux.security_context.privileged: is set, but the pod was not made privileged"
    );
    fixture.pod_security().privileged = true;
    fixture.security().masked_paths = vec!["/proc/kcore".into()];
    fixture.security().seccomp = Some(cri::SecurityProfile::default());
    let plan = fixture.plan();
    let linux = plan.spec.linux().as_ref().unwrap();
    assert!(linux.seccomp().is_none() && linux.masked_paths().is_none());
    assert!(!linux.devices().as_ref().unwrap().is_empty());
}

#[test]
fn limits_reach_the_spec_with_the_device_rules() {
    let mut fixture = Fixture::new();
    fixture.container.linux.get_or_insert_default().resources = Some(cri::LinuxContainerResources {
        memory_limit_in_bytes: 1 << 26,
        oom_score_adj: 999,
        ..Default::default()
    });
    let plan = fixture.plan();
    let resources = plan.spec.linux().as_ref().unwrap().resources().clone().unwrap();
    assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(1 << 26));
    assert!(!resources.devices().as_ref().unwrap().is_empty());
    assert_eq!(plan.spec.process().as_ref().unwrap().oom_score_adj(), Some(999));
}

#[test]
fn a_read_only_root_tells_of_volumes_that_the_image_wants_writable() {
    let mut fixture = Fixture::new();
    let config = ConfigBuilder::default()
        .cmd(vec!["sh".to_owned()])
        .volumes(vec!["/data".to_owned(), "/logs/".to_owned()])
        .build()
        .unwrap();
    fixture.image.set_config(Some(config));
    assert!(fixture.plan().warnings.is_empty());
    fixture.security().readonly_rootfs = true;
    fixture.container.mounts.push(cri::Mount {
        container_path: "/logs".into(),
        host_path: "/tmp".into(),
        ..Default::default()
    });
    let plan = fixture.plan();
    assert_eq!(
        plan.warnings,
        ["the image's volumes /data are read-only, as the root is: mount something there"]
    );
    assert_eq!(plan.spec.root().as_ref().unwrap().readonly(), Some(true));
}

#[test]
fn a_log_without_a_log_directory_is_told() {
    let mut fixture = Fixture::new();
    fixture.sandbox.log_directory.clear();
    let plan = fixture.plan();
    assert_eq!((plan.log_path, plan.warnings.len()), (None, 1));
}

#[test]
fn the_plan_survives_the_wire() {
    let mut fixture = Fixture::new();
    fixture.security().seccomp = Some(cri::SecurityProfile::default());
    let spec = fixture.plan().spec;
    let json = serde_json::to_vec(&spec).unwrap();
    assert_eq!(serde_json::from_slice::<Spec>(&json).unwrap(), spec);
}
