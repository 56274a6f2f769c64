//! The series of pods and containers in Prometheus' text format (exposition_formats.md), written as they come: there are thousands.

use std::collections::HashSet;
use std::fmt::Write as _;

use super::family::{COMMON_LABELS, FAMILIES, Kind};
use super::{PodMetrics, Series, Told};

/// All series, a family after the other.
pub(crate) fn render(pods: &[PodMetrics]) -> String {
    let mut bodies = vec![String::new(); FAMILIES.len()];
    // A series that is there twice makes Prometheus refuse all: pods of one name may be told to share a cgroup.
    let mut seen = HashSet::new();
    for pod in pods {
        if seen.insert(&pod.pod.labels) {
            add(&mut bodies, &pod.pod);
        }
        for container in &pod.containers {
            add(&mut bodies, container);
        }
    }
    let mut text = String::with_capacity(bodies.iter().map(|body| body.len() + 256).sum());
    for (family, body) in FAMILIES.iter().zip(&bodies).filter(|(_, body)| !body.is_empty()) {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {0} {1}\n# TYPE {0} {kind}", family.name, family.help);
        text.push_str(body);
    }
    text
}

fn add(bodies: &mut [String], told: &Told) {
    let mut common = String::new();
    for (key, value) in COMMON_LABELS.iter().zip(&told.labels) {
        label(&mut common, key, value);
    }
    for series in &told.series {
        let Ok(at) = FAMILIES.binary_search_by(|family| family.name.cmp(series.family.name)) else {
            continue;
        };
        line(&mut bodies[at], &common, series);
    }
}

fn line(body: &mut String, common: &str, series: &Series) {
    body.push_str(series.family.name);
    body.push('{');
    body.push_str(common);
    for (key, value) in series.family.labels.iter().zip(&series.labels) {
        label(body, key, value);
    }
    // The last comma is allowed.
    let _ = writeln!(body, "}} {}", series.value);
}

pub(super) fn label(text: &mut String, key: &str, value: &str) {
    text.push_str(key);
    text.push_str("=\"");
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
    text.push_str("\",");
}

#[cfg(test)]
mod tests {
    use super::super::collect::Overhead;
    use super::super::family::{CPU_USAGE, MEMORY_RSS};
    use super::*;

    fn told(id: &str, name: &str) -> Told {
        let labels = [name, id, "a\"b\\c\nd", "0f", "default", "web"].map(str::to_owned);
        let series = vec![
            Series { family: &MEMORY_RSS, labels: Vec::new(), value: 4096.0 },
            Series { family: &CPU_USAGE, labels: vec!["total".into()], value: 0.25 },
        ];
        Told { id: id.into(), labels, series }
    }

    fn pod() -> PodMetrics {
        let overhead = Overhead::default();
        PodMetrics { pod: told("/p", ""), containers: Vec::new(), overhead, is_guest: false, is_stale: false }
    }

    #[test]
    fn families_stand_together_and_labels_are_escaped() {
        let pods = [PodMetrics { containers: vec![told("/p/c", "main")], ..pod() }];
        let text = render(&pods);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "# TYPE container_cpu_usage_seconds_total counter");
        let expected = "container_cpu_usage_seconds_total{container=\"main\",id=\"/p/c\",image=\"a\\\"b\\\\c\\nd\",name=\"0f\",\
            namespace=\"default\",pod=\"web\",cpu=\"total\",} 0.25";
        assert_eq!(lines[3], expected);
        assert_eq!(lines[5], "# TYPE container_memory_rss gauge");
        assert_eq!(lines.len(), 8);
    }

    #[test]
    fn a_series_is_told_once() {
        assert_eq!(render(&[pod(), pod()]), render(&[pod()]));
        assert_eq!(render(&[]), "");
    }
}
