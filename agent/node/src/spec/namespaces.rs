//! Which namespaces a container has: the pod's, its own, another container's or the node's.

use hartpod_container::IdMaps;
use hartpod_proto::cri::v1::{self as cri, NamespaceMode as Cri};
use hartpod_proto::pod::v1::NamespaceMode;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType as Type};

use super::{SpecError, SpecInput};
use crate::validate::user_namespace;

const FIELD: &str = "config.linux.security_context.namespace_options";

/// The namespaces of one container.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Namespaces {
    /// Ids of the pod's user namespace, if it has one.
    pub(super) users: Option<IdMaps>,
    pub(super) pid: NamespaceMode,
    /// With [`NamespaceMode::Target`]: the container.
    pub(super) pid_target: String,
    /// The node's System V IPC and /dev/shm.
    pub(super) node_ipc: bool,
}

/// The pod's network is the node's.
pub(super) fn node_network(sandbox: &cri::PodSandboxConfig) -> bool {
    pod_options(sandbox).network == Cri::Node as i32
}

fn pod_options(sandbox: &cri::PodSandboxConfig) -> cri::NamespaceOption {
    sandbox.linux.as_ref().map(super::pod_namespaces).unwrap_or_default()
}

/// Decides by the request and the pod. A container that says nothing takes what the pod has, whatever that is: only the
/// pod was made with a choice, and CRI's POD is 0, which is also what a request without options says.
pub(super) fn namespaces(
    sandbox: &cri::PodSandboxConfig,
    security: &cri::LinuxContainerSecurityContext,
    warnings: &mut Vec<String>,
) -> Result<Namespaces, SpecError> {
    let pod = pod_options(sandbox);
    let asked = security.namespace_options.clone().unwrap_or_default();
    for (name, asked, pod) in [("network", asked.network, pod.network), ("ipc", asked.ipc, pod.ipc)] {
        match mode(name, asked)? {
            Cri::Pod => {}
            Cri::Node if pod == Cri::Node as i32 => {}
            Cri::Node => return Err(not_the_pods(name)),
            Cri::Container | Cri::Target => {
                return Err(SpecError::invalid(format!("{FIELD}.{name}"), "must be POD or NODE"));
            }
        }
    }
    let users = users(&pod, security.namespace_options.as_ref())?;
    let pid = match (mode("pid", asked.pid)?, mode("pid", pod.pid)?) {
        (Cri::Target, _) if asked.target_id.is_empty() => {
            return Err(SpecError::invalid(format!("{FIELD}.target_id"), "is empty, but pid is TARGET"));
        }
        (Cri::Target, _) => NamespaceMode::Target,
        (Cri::Container, _) => NamespaceMode::Container,
        (Cri::Pod | Cri::Node, Cri::Node) => NamespaceMode::Node,
        (Cri::Node, _) => return Err(not_the_pods("pid")),
        (Cri::Pod, Cri::Pod) => NamespaceMode::Pod,
        (Cri::Pod, _) => {
            warnings.push(
                "the pod was made without a shared pid namespace: the container gets one of its own"
                    .to_owned(),
            );
            NamespaceMode::Container
        }
    };
    Ok(Namespaces {
        users,
        pid,
        pid_target: if pid == NamespaceMode::Target { asked.target_id } else { String::new() },
        node_ipc: pod.ipc == Cri::Node as i32,
    })
}

fn not_the_pods(name: &str) -> SpecError {
    SpecError::invalid(format!("{FIELD}.{name}"), "is NODE, but the pod was made with a namespace of its own")
}

fn mode(name: &str, value: i32) -> Result<Cri, SpecError> {
    Cri::try_from(value).map_err(|_| {
        SpecError::invalid(format!("{FIELD}.{name}"), format!("{value} is not a namespace mode"))
    })
}

/// A pod has one user namespace, and its containers have that.
fn users(
    pod: &cri::NamespaceOption,
    asked: Option<&cri::NamespaceOption>,
) -> Result<Option<IdMaps>, SpecError> {
    let maps = |options| {
        let maps = user_namespace(FIELD, options);
        maps.map_err(|error| SpecError::invalid(error.field, error.problem))
    };
    let of_pod = maps(pod)?;
    match asked {
        Some(asked) if maps(asked)? != of_pod => {
            Err(SpecError::invalid(format!("{FIELD}.userns_options"), "is not the same as the pod's"))
        }
        _ => Ok(of_pod),
    }
}

/// The list for the spec, with the paths that are known. The agent is in the pod's network, ipc and uts namespaces, so its
/// own files name them.
pub(super) fn list(input: &SpecInput<'_>, namespaces: &Namespaces, own_uts: bool) -> Vec<LinuxNamespace> {
    let of = |pid: Option<u32>, name: &str| pid.map(|p| format!("/proc/{p}/ns/{name}").into());
    let mut list = vec![namespace(Type::Mount, None)];
    if namespaces.users.is_some() {
        list.push(namespace(Type::User, None));
    }
    if let Some(netns) = input.netns {
        list.push(namespace(Type::Network, Some(netns.to_owned())));
    }
    if !namespaces.node_ipc {
        list.push(namespace(Type::Ipc, of(input.agent_pid, "ipc")));
    }
    if own_uts {
        list.push(namespace(Type::Uts, of(input.agent_pid, "uts")));
    }
    match namespaces.pid {
        NamespaceMode::Container => list.push(namespace(Type::Pid, None)),
        NamespaceMode::Pod => list.push(namespace(Type::Pid, of(input.holder_pid, "pid"))),
        NamespaceMode::Target => list.push(namespace(Type::Pid, of(input.target_pid, "pid"))),
        NamespaceMode::Node => {}
    }
    // Hides the node's cgroups. On v1 and for privileged containers Kubernetes' tools expect the node's view
    // (https://github.com/kubernetes/enhancements/tree/master/keps/sig-node/2254-cgroup-v2).
    if input.settings.unified_cgroups && !super::security(input.container).privileged {
        list.push(namespace(Type::Cgroup, None));
    }
    list
}

fn namespace(typ: Type, path: Option<std::path::PathBuf>) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(typ);
    namespace.set_path(path);
    namespace
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(network: Cri, pid: Cri, ipc: Cri) -> cri::NamespaceOption {
        cri::NamespaceOption {
            network: network.into(),
            pid: pid.into(),
            ipc: ipc.into(),
            ..Default::default()
        }
    }

    fn pod(options: cri::NamespaceOption) -> cri::PodSandboxConfig {
        let security_context =
            Some(cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() });
        let linux = Some(cri::LinuxPodSandboxConfig { security_context, ..Default::default() });
        cri::PodSandboxConfig { linux, ..Default::default() }
    }

    fn container(options: cri::NamespaceOption) -> cri::LinuxContainerSecurityContext {
        cri::LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() }
    }

    #[test]
    fn the_pid_namespace_by_what_pod_and_container_say() {
        for (pod_pid, own_pid, expected) in [
            (Cri::Pod, Cri::Pod, Some(NamespaceMode::Pod)),
            (Cri::Pod, Cri::Container, Some(NamespaceMode::Container)),
            (Cri::Pod, Cri::Node, None),
            (Cri::Container, Cri::Container, Some(NamespaceMode::Container)),
            (Cri::Container, Cri::Pod, Some(NamespaceMode::Container)),
            (Cri::Container, Cri::Node, None),
            (Cri::Node, Cri::Node, Some(NamespaceMode::Node)),
            (Cri::Node, Cri::Pod, Some(NamespaceMode::Node)),
            (Cri::Node, Cri::Container, Some(NamespaceMode::Container)),
        ] {
            let mut warnings = vec![];
            let found = namespaces(
                &pod(option(Cri::Pod, pod_pid, Cri::Pod)),
                &container(option(Cri::Pod, own_pid, Cri::Pod)),
                &mut warnings,
            );
            assert_eq!(found.ok().map(|n| n.pid), expected, "pod {pod_pid:?}, container {own_pid:?}");
            assert_eq!(warnings.len(), usize::from((pod_pid, own_pid) == (Cri::Container, Cri::Pod)));
        }
    }

    #[test]
    fn a_container_without_options_takes_the_pods() {
        let security = cri::LinuxContainerSecurityContext::default();
        let found =
            namespaces(&pod(option(Cri::Node, Cri::Node, Cri::Node)), &security, &mut vec![]).unwrap();
        assert_eq!(found.pid, NamespaceMode::Node);
        assert!(found.node_ipc);
    }

    #[test]
    fn a_container_cannot_take_more_of_the_node_than_its_pod_has() {
        let own = pod(option(Cri::Pod, Cri::Pod, Cri::Pod));
        for (options, field) in [
            (option(Cri::Node, Cri::Pod, Cri::Pod), "network"),
            (option(Cri::Pod, Cri::Node, Cri::Pod), "pid"),
            (option(Cri::Pod, Cri::Pod, Cri::Node), "ipc"),
        ] {
            let error = namespaces(&own, &container(options), &mut vec![]).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("{FIELD}.{field}: is NODE, but the pod was made with a namespace of its own")
            );
        }
    }

    #[test]
    fn a_target_is_named() {
        let own = pod(option(Cri::Pod, Cri::Pod, Cri::Pod));
        let mut options = option(Cri::Pod, Cri::Target, Cri::Pod);
        let error = namespaces(&own, &container(options.clone()), &mut vec![]).unwrap_err();
        assert_eq!(error.to_string(), format!("{FIELD}.target_id: is empty, but pid is TARGET"));
        options.target_id = "abc".into();
        let found = namespaces(&own, &container(options), &mut vec![]).unwrap();
        assert_eq!((found.pid, found.pid_target.as_str()), (NamespaceMode::Target, "abc"));
    }

    #[test]
    fn a_container_has_its_pods_user_namespace() {
        let with = |users| cri::NamespaceOption { userns_options: users, ..Default::default() };
        let users = |host_id| {
            let ids = vec![cri::IdMapping { host_id, container_id: 0, length: 65536 }];
            Some(cri::UserNamespace { mode: Cri::Pod.into(), uids: ids.clone(), gids: ids })
        };
        let node = Some(cri::UserNamespace { mode: Cri::Node.into(), ..Default::default() });
        let of = |pod_users, own: Option<cri::NamespaceOption>| {
            let own = cri::LinuxContainerSecurityContext { namespace_options: own, ..Default::default() };
            let found = namespaces(&pod(with(pod_users)), &own, &mut vec![]);
            found
                .map(|found| found.users.and_then(|maps| maps.host_uid(0)))
                .map_err(|error| error.to_string())
        };
        let differs = Err(format!("{FIELD}.userns_options: is not the same as the pod's"));
        for (pod_users, own, expected) in [
            (users(7), Some(with(users(7))), Ok(Some(7))),
            (users(7), None, Ok(Some(7))),
            (users(7), Some(with(users(8))), differs.clone()),
            (users(7), Some(with(None)), differs.clone()),
            (None, Some(with(users(8))), differs),
            (None, Some(with(node.clone())), Ok(None)),
            (node, Some(with(None)), Ok(None)),
        ] {
            assert_eq!(of(pod_users, own), expected);
        }
    }

    #[test]
    fn unknown_modes_are_refused() {
        let own = pod(option(Cri::Pod, Cri::Pod, Cri::Pod));
        let odd = cri::NamespaceOption { pid: 9, ..Default::default() };
        assert!(namespaces(&own, &container(odd), &mut vec![]).is_err());
        let odd = cri::NamespaceOption { network: Cri::Container.into(), ..Default::default() };
        assert!(namespaces(&own, &container(odd), &mut vec![]).is_err());
    }
}
