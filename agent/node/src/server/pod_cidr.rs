//! UpdateRuntimeConfig: the kubelet tells the ranges of pod addresses.

use hartpod_cni::{GenerateError, Generated, InvalidPodCidrs, PodCidrs};
use hartpod_proto::cri::v1 as cri;
use tonic::Status;

use super::Server;
use crate::status_code::status;

/// The kubelet's ranges did not become a network configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PodCidrError {
    #[error("runtime_config.network_config.pod_cidr")]
    Invalid(#[from] InvalidPodCidrs),
    #[error("network configuration of the kubelet's pod address ranges")]
    Generate(#[from] GenerateError),
    #[error("network configuration of the kubelet's pod address ranges: broken off")]
    BrokenOff(#[from] tokio::task::JoinError),
}

impl Server {
    /// Makes the network's configuration where there is a template for it; else it is for others to bring.
    pub(super) async fn update_config(&self, request: cri::UpdateRuntimeConfigRequest) -> Result<(), Status> {
        let network = request.runtime_config.and_then(|c| c.network_config);
        let Some(told) = network.map(|n| n.pod_cidr).filter(|c| !c.is_empty()) else { return Ok(()) };
        self.take_pod_cidr(&told).await.map_err(|e| status(&e))
    }

    async fn take_pod_cidr(&self, told: &str) -> Result<(), PodCidrError> {
        let cidrs = PodCidrs::parse(told)?;
        let ranges = cidrs.ranges().join(", ");
        let Some(template) = self.node.conf_template.clone() else {
            tracing::info!(ranges, "the kubelet's pod address ranges are left to the network configuration");
            return Ok(());
        };
        match tokio::task::spawn_blocking(move || template.write_blocking(&cidrs)).await?? {
            Generated::Written(file) => {
                tracing::info!(ranges, file = %file.display(), "network configuration made");
            }
            Generated::Unchanged(file) => {
                tracing::debug!(ranges, file = %file.display(), "network configuration as it was");
            }
            Generated::Other(file) => {
                tracing::info!(ranges, file = %file.display(), "none is made of the template: there is a network configuration");
            }
        }
        Ok(())
    }
}
