//! The series of pods and containers in Prometheus' text format (exposition_formats.md).
//!
//! There are thousands, of a quarter of a kilobyte each, so they are written as they come: each to the end of its family's, for those of a family stand together.

use std::collections::HashSet;
use std::fmt::Write as _;

use super::collect::Readings;
use super::family::{FAMILIES, Family, Kind};
use super::labels::{self, COMMON_LABELS, CommonLabels};
use super::series::{self, Sink, Value};
use crate::node::Node;

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

/// All series, a family after the other.
pub(super) fn render(node: &Node, readings: &mut Readings) -> String {
    let mut bodies = Bodies::default();
    // A series that is there twice makes Prometheus refuse all: pods of one name may be told to share a cgroup.
    let mut seen = HashSet::new();
    let Readings { pods, layers, devices } = readings;
    for pod in &*pods {
        let common = labels::of_pod(node, &pod.pod);
        let mut lines = bodies.lines(&common);
        if seen.insert(common) {
            series::of_pod(pod, devices, &mut lines);
        }
        for container in &pod.containers {
            let mut lines = bodies.lines(&labels::of_container(container));
            series::of_container(container, layers.as_ref(), devices, &mut lines);
        }
    }
    bodies.text()
}

/// What was written of each family.
#[derive(Debug)]
struct Bodies(Vec<String>);

impl Default for Bodies {
    fn default() -> Self {
        Self(vec![String::new(); FAMILIES.len()])
    }
}

impl Bodies {
    fn lines(&mut self, common: &CommonLabels<'_>) -> Lines<'_> {
        let mut text = String::new();
        for (key, value) in COMMON_LABELS.iter().zip(common) {
            label(&mut text, key, value);
        }
        Lines { bodies: self, common: text }
    }

    fn text(self) -> String {
        /// More than any head has.
        const HEAD: usize = 256;
        let told = || FAMILIES.iter().zip(&self.0).filter(|(_, body)| !body.is_empty());
        let mut text = String::with_capacity(told().map(|(_, body)| body.len() + HEAD).sum());
        for (family, body) in told() {
            let kind = match family.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
            };
            head(&mut text, family.name, kind, family.help);
            text.push_str(body);
        }
        text
    }
}

/// Takes the series of one pod or container.
#[derive(Debug)]
struct Lines<'a> {
    bodies: &'a mut Bodies,
    /// The labels that all of them have, as they are written.
    common: String,
}

impl Sink for Lines<'_> {
    fn put(&mut self, family: &'static Family, labels: &[&str], value: Value) {
        let Some(body) = self.bodies.0.get_mut(family.place) else { return };
        body.push_str(family.name);
        body.push('{');
        body.push_str(&self.common);
        for (key, value) in family.labels.iter().zip(labels) {
            label(body, key, value);
        }
        // The last comma is allowed.
        body.push_str("} ");
        number(body, value);
        body.push('\n');
    }
}

/// What stands above the lines of a family.
pub(super) fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

pub(super) fn label(text: &mut String, key: &str, value: &str) {
    text.push_str(key);
    text.push_str("=\"");
    let mut rest = value;
    while let Some((plain, escaped)) = rest.find(['\\', '"', '\n']).and_then(|at| rest.split_at_checked(at)) {
        text.push_str(plain);
        text.push('\\');
        text.push_str(if escaped.starts_with('\n') { "n" } else { &escaped[..1] });
        rest = &escaped[1..];
    }
    text.push_str(rest);
    text.push_str("\",");
}

/// Exact, where a float would lose the last digits of a large count.
pub(super) fn number(text: &mut String, value: Value) {
    let mut digits = itoa::Buffer::new();
    match value {
        Value::Count(count) => text.push_str(digits.format(count)),
        Value::Nanoseconds(time) => {
            text.push_str(digits.format(time / SECOND));
            let fraction = time % SECOND;
            if fraction > 0 {
                // A digit before it, in the point's place, keeps its zeros.
                let fraction = digits.format(SECOND + fraction).trim_end_matches('0');
                text.push('.');
                text.push_str(&fraction[1..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::family::{CPU_USAGE, MEMORY_RSS};
    use super::*;

    fn put(bodies: &mut Bodies, id: &str, name: &str) {
        let common = [name, id, "a\"b\\c\nd", "0f", "default", "web"].map(Into::into);
        let mut lines = bodies.lines(&common);
        lines.put(&MEMORY_RSS, &[], Value::Count(4096));
        lines.put(&CPU_USAGE, &["total"], Value::Nanoseconds(250_000_000));
    }

    #[test]
    fn families_stand_together_and_labels_are_escaped() {
        let mut bodies = Bodies::default();
        put(&mut bodies, "/p/c", "main");
        put(&mut bodies, "/p", "");
        let text = bodies.text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "# TYPE container_cpu_usage_seconds_total counter");
        let expected = "container_cpu_usage_seconds_total{container=\"main\",id=\"/p/c\",image=\"a\\\"b\\\\c\\nd\",name=\"0f\",\
            namespace=\"default\",pod=\"web\",cpu=\"total\",} 0.25";
        assert_eq!(lines[2], expected);
        assert_eq!(lines[5], "# TYPE container_memory_rss gauge");
        assert_eq!(lines.len(), 8);
    }

    #[test]
    fn nothing_has_no_text() {
        assert_eq!(Bodies::default().text(), "");
    }

    #[test]
    fn numbers_are_exact() {
        let told = |value| {
            let mut text = String::new();
            number(&mut text, value);
            text
        };
        assert_eq!(told(Value::Count(0)), "0");
        assert_eq!(told(Value::Count(u64::MAX)), u64::MAX.to_string());
        for (time, expected) in [
            (0, "0"),
            (1, "0.000000001"),
            (SECOND, "1"),
            (1_500_000_000, "1.5"),
            (10_000_000_010, "10.00000001"),
            (u64::MAX, "18446744073.709551615"),
        ] {
            assert_eq!(told(Value::Nanoseconds(time)), expected);
        }
    }
}
