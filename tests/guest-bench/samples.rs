//! One thing, measured some times.

use std::time::Duration;

#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn add(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    /// In seconds.
    pub(crate) fn add_time(&mut self, time: Duration) {
        self.add(time.as_secs_f64());
    }

    /// That of an even number is the mean of the two in the middle.
    pub(crate) fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        match (self.0.get(middle), self.0.len() % 2) {
            (None, _) => f64::NAN,
            (Some(value), 1) => *value,
            (Some(value), _) => (self.0[middle - 1] + value) / 2.0,
        }
    }

    /// `median (least-most) unit`
    pub(crate) fn show(&self, unit: &str) -> String {
        match (self.0.first(), self.0.last()) {
            (Some(least), Some(most)) => format!("{:.2} ({least:.2}-{most:.2}) {unit}", self.median()),
            _ => "not measured".to_owned(),
        }
    }
}
