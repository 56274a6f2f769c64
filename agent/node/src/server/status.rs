//! What the runtime says of itself.

use hartpod_proto::cri::v1 as cri;
use serde_json::json;

use super::{Server, info};
use crate::backend::is_guest;
use crate::node::Node;

/// What the kubelet's generic runtime manager checks for.
const API_VERSION: &str = "v1";
/// Version of the kubelet API (kubeRuntimeAPIVersion); has been this in every runtime ever since.
const KUBELET_API_VERSION: &str = "0.1.0";

pub(super) fn version() -> cri::VersionResponse {
    cri::VersionResponse {
        version: KUBELET_API_VERSION.to_owned(),
        runtime_name: "hartpod".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: API_VERSION.to_owned(),
    }
}

pub(super) fn runtime_config(node: &Node) -> cri::RuntimeConfigResponse {
    let driver = match node.systemd {
        Some(_) => cri::CgroupDriver::Systemd,
        None => cri::CgroupDriver::Cgroupfs,
    };
    cri::RuntimeConfigResponse {
        linux: Some(cri::LinuxRuntimeConfiguration { cgroup_driver: driver.into() }),
    }
}

impl Server {
    pub(super) async fn node_status(&self, verbose: bool) -> cri::StatusResponse {
        let network = self.node.cni.probe().await;
        let (is_ready, reason, message) = match &network {
            Ok(_) => (true, String::new(), String::new()),
            Err(error) => (false, "NetworkPluginNotReady".to_owned(), error.to_string()),
        };
        let conditions = vec![
            cri::RuntimeCondition { r#type: "RuntimeReady".to_owned(), status: true, ..Default::default() },
            cri::RuntimeCondition { r#type: "NetworkReady".to_owned(), status: is_ready, reason, message },
        ];
        cri::StatusResponse {
            status: Some(cri::RuntimeStatus { conditions }),
            info: if verbose { self.node_info(network.ok()) } else { Default::default() },
            runtime_handlers: self.handlers(),
            features: Some(cri::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: self.node.user_namespaces.is_ok(),
            }),
        }
    }

    fn handlers(&self) -> Vec<cri::RuntimeHandler> {
        let handler = |name: &str| cri::RuntimeHandler {
            name: name.to_owned(),
            features: Some(cri::RuntimeHandlerFeatures {
                recursive_read_only_mounts: true,
                user_namespaces: !is_guest(name) && self.node.user_namespaces.is_ok(),
            }),
        };
        self.node.backends.handlers().into_iter().map(handler).collect()
    }

    fn node_info(&self, network: Option<String>) -> std::collections::BTreeMap<String, String> {
        let pods = self.node.registry.pods();
        info::wrap(&json!({
            "root": self.node.layout.root,
            "state": self.node.layout.state,
            "network": network,
            "cgroups": format!("{:?}", self.node.cgroups.mode()).to_lowercase(),
            "cgroupDriver": if self.node.systemd.is_some() { "systemd" } else { "cgroupfs" },
            "pods": pods.len(),
            "containers": pods.iter().map(|p| p.snapshot().containers.len()).sum::<usize>(),
            "images": self.node.images.list().len(),
            "pulls": self.node.pulls.states(),
        }))
    }
}
