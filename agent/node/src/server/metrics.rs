//! Calls about metrics, which the kubelet tells on as they are (KEP-2371).

use hartpod_proto::cri::v1 as cri;

use super::Server;
use crate::metrics::{self, CommonLabels, FAMILIES, Kind, PodMetrics, Series};

impl Server {
    pub(super) async fn pod_metrics(&self) -> Vec<cri::PodSandboxMetrics> {
        metrics::collect(&self.node).await.into_iter().map(pod).collect()
    }
}

/// What [`Server::pod_metrics`] may have.
pub(super) fn descriptors() -> Vec<cri::MetricDescriptor> {
    let descriptor = |family: &&metrics::Family| cri::MetricDescriptor {
        name: family.name.to_owned(),
        help: family.help.to_owned(),
        label_keys: family.label_keys().map(str::to_owned).collect(),
    };
    FAMILIES.iter().map(descriptor).collect()
}

fn pod(told: PodMetrics) -> cri::PodSandboxMetrics {
    let container = |told: metrics::Told| cri::ContainerMetrics {
        container_id: told.id,
        metrics: told.series.into_iter().map(|s| metric(s, &told.labels)).collect(),
    };
    cri::PodSandboxMetrics {
        pod_sandbox_id: told.pod.id,
        metrics: told.pod.series.into_iter().map(|s| metric(s, &told.pod.labels)).collect(),
        container_metrics: told.containers.into_iter().map(container).collect(),
    }
}

fn metric(series: Series, common: &CommonLabels) -> cri::Metric {
    let kind = match series.family.kind {
        Kind::Counter => cri::MetricType::Counter,
        Kind::Gauge => cri::MetricType::Gauge,
    };
    cri::Metric {
        name: series.family.name.to_owned(),
        timestamp: crate::clock::now(),
        metric_type: kind.into(),
        label_values: common.iter().cloned().chain(series.labels).collect(),
        value: Some(cri::UInt64Value { value: whole(series.value) }),
    }
}

/// CRI has whole numbers only, so of seconds what is behind the point is lost; `/metrics` has it.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_in_the_order_of_the_descriptors_labels() {
        let descriptors = descriptors();
        let descriptor = descriptors.iter().find(|d| d.name == "container_cpu_usage_seconds_total").unwrap();
        assert_eq!(descriptor.label_keys, ["container", "id", "image", "name", "namespace", "pod", "cpu"]);
        let family = FAMILIES.iter().find(|f| f.name == descriptor.name).unwrap();
        let series = Series { family, labels: vec!["total".into()], value: 2.9 };
        let labels = ["main", "/kubepods/x", "busybox", "0f", "default", "web"].map(str::to_owned);
        let metric = metric(series, &labels);
        assert_eq!(metric.label_values, ["main", "/kubepods/x", "busybox", "0f", "default", "web", "total"]);
        assert_eq!((metric.value.unwrap().value, metric.metric_type), (2, cri::MetricType::Counter as i32));
        assert!(metric.timestamp > 0);
    }
}
