//! A pod as CRI shows it.

use hartpod_proto::cri::v1 as cri;

use crate::pod::PodSnapshot;

/// Nothing while the pod is brought up.
pub(super) fn status(pod: &PodSnapshot) -> Option<cri::PodSandboxStatus> {
    let config = &pod.info.config;
    let mut ips = pod.ips.iter().map(ToString::to_string);
    let network = cri::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| cri::PodIp { ip }).collect(),
    };
    Some(cri::PodSandboxStatus {
        id: pod.info.id.to_string(),
        metadata: config.metadata.clone(),
        state: pod.cri_state()?.into(),
        created_at: pod.info.created_at,
        network: Some(network),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace { options: Some(pod.info.namespaces()) }),
        }),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: pod.info.handler.clone(),
    })
}

/// Nothing while the pod is brought up.
pub(super) fn item(pod: &PodSnapshot) -> Option<cri::PodSandbox> {
    let config = &pod.info.config;
    Some(cri::PodSandbox {
        id: pod.info.id.to_string(),
        metadata: config.metadata.clone(),
        state: pod.cri_state()?.into(),
        created_at: pod.info.created_at,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: pod.info.handler.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::{SandboxState, test_pod};

    #[test]
    fn the_first_address_is_the_pods_and_the_rest_are_additional() {
        let status = status(&test_pod("ab", SandboxState::Ready, &[])).unwrap();
        let network = status.network.unwrap();
        assert_eq!(network.ip, "10.0.0.2");
        assert_eq!(network.additional_ips, [cri::PodIp { ip: "fd00::2".into() }]);
        assert_eq!(status.state, cri::PodSandboxState::SandboxReady as i32);
    }

    #[test]
    fn a_pod_that_is_brought_up_is_not_shown() {
        let pod = test_pod("ab", SandboxState::Starting, &[]);
        assert!(status(&pod).is_none() && item(&pod).is_none());
    }
}
