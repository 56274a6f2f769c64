//! Calls about metrics, which the kubelet tells on as they are (KEP-2371).

use hartpod_proto::cri::v1 as cri;
use tonic::Status;

use super::Server;
use crate::metrics::{self, CommonLabels, FAMILIES, Kind, Sink, Value, labels, series};
use crate::status_code::status;

impl Server {
    pub(super) async fn pod_metrics(&self) -> Result<Vec<cri::PodSandboxMetrics>, Status> {
        let told = metrics::collect(&self.node, |node, metrics::Readings { pods, layers, mut devices }| {
            let told = pods.iter().map(|pod| {
                let container_metrics = pod.containers.iter().map(|container| {
                    let mut told = Told::new(labels::of_container(container));
                    series::of_container(container, layers.as_ref(), &mut devices, &mut told);
                    cri::ContainerMetrics {
                        container_id: container.target.container.info.id.to_string(),
                        metrics: told.metrics,
                    }
                });
                let container_metrics = container_metrics.collect();
                let mut told = Told::new(labels::of_pod(node, &pod.pod));
                series::of_pod(pod, &mut devices, &mut told);
                let pod_sandbox_id = pod.pod.info.id.to_string();
                cri::PodSandboxMetrics { pod_sandbox_id, metrics: told.metrics, container_metrics }
            });
            told.collect()
        });
        told.await.map_err(|e| status(&e))
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

/// Takes the series of one pod or container.
struct Told<'a> {
    common: CommonLabels<'a>,
    /// Nanoseconds since the Unix epoch.
    at: i64,
    metrics: Vec<cri::Metric>,
}

impl<'a> Told<'a> {
    fn new(common: CommonLabels<'a>) -> Self {
        Self { common, at: crate::clock::now(), metrics: Vec::with_capacity(FAMILIES.len()) }
    }
}

impl Sink for Told<'_> {
    fn put(&mut self, family: &'static metrics::Family, labels: &[&str], value: Value) {
        let kind = match family.kind {
            Kind::Counter => cri::MetricType::Counter,
            Kind::Gauge => cri::MetricType::Gauge,
        };
        let common = self.common.iter().map(|label| &**label);
        self.metrics.push(cri::Metric {
            name: family.name.to_owned(),
            timestamp: self.at,
            metric_type: kind.into(),
            label_values: common.chain(labels.iter().copied()).map(str::to_owned).collect(),
            value: Some(cri::UInt64Value { value: whole(value) }),
        });
    }
}

/// CRI has whole numbers only, so of seconds what is behind the point is lost; `/metrics` has it.
fn whole(value: Value) -> u64 {
    match value {
        Value::Count(count) => count,
        Value::Nanoseconds(time) => time / 1_000_000_000,
    }
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
        let labels = ["main", "/kubepods/x", "busybox", "0f", "default", "web"].map(Into::into);
        let mut told = Told::new(labels);
        told.put(family, &["total"], Value::Nanoseconds(2_900_000_000));
        let metric = told.metrics.pop().unwrap();
        assert_eq!(metric.label_values, ["main", "/kubepods/x", "busybox", "0f", "default", "web", "total"]);
        assert_eq!((metric.value.unwrap().value, metric.metric_type), (2, cri::MetricType::Counter as i32));
        assert!(metric.timestamp > 0);
    }
}
