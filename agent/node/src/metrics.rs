//! The numbers of pods and containers under the names and labels that cAdvisor gave them, which dashboards and rules know.

mod collect;
mod device;
mod door;
mod endpoint;
mod family;
mod guests;
pub(crate) mod labels;
mod node_text;
mod own;
mod scrape;
pub(crate) mod series;
mod text;

pub(crate) use collect::{Readings, collect};
pub(crate) use endpoint::Endpoint;
pub(crate) use family::{FAMILIES, Family, Kind};
pub(crate) use labels::CommonLabels;
pub(crate) use own::Own;
pub(crate) use series::{Sink, Value};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;

    const DASHBOARD: &str = include_str!("../../../deploy/grafana/hartpod.json");
    const RULES: &str = include_str!("../../../deploy/prometheus/hartpod.rules.yml");

    /// Everything in a text that is named like a metric.
    fn names(text: &str) -> BTreeSet<&str> {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        words.filter(|w| ["container_", "hartpod_", "process_"].iter().any(|p| w.starts_with(p))).collect()
    }

    #[test]
    fn the_dashboard_and_the_alerts_know_what_is_told() {
        let own = Own::new().unwrap();
        own.call("Version").end("ok");
        own.pulled(true, Duration::ZERO);
        own.network("ADD", true, Duration::ZERO);
        own.swept("pod");
        own.record_not_written();
        let mut text =
            own.render() + &node_text::process_blocking() + &node_text::read_at(0) + node_text::NAMES;
        text.push(' ');
        text.push_str(guests::NAMES);
        let mut told = names(&text);
        told.extend(FAMILIES.iter().map(|f| f.name));
        for (what, asked) in [("dashboard", names(DASHBOARD)), ("rules", names(RULES))] {
            let unknown: Vec<_> = asked.difference(&told).collect();
            assert!(asked.len() > 5 && unknown.is_empty(), "{what}: {unknown:?}");
        }
        serde_json::from_str::<serde_json::Value>(DASHBOARD).unwrap();
    }
}
