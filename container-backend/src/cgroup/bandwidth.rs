//! A leaf's CPU quota and its period, which say something only together.

use super::Controller;
use super::apply::When;
use super::error::CgroupError;
use super::file;
use super::leaf::Leaf;
use super::limits::{Limits, Max};
use super::make::below;
use super::tree::Version;

/// How much of the CPUs' time a leaf gets in each period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth {
    quota_us: Max,
    period_us: u64,
}

impl Leaf {
    /// What is in force; none without a CPU controller.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn bandwidth(&self) -> Result<Option<Bandwidth>, CgroupError> {
        let Some((version, root)) = self.hierarchies.home(Controller::Cpu) else { return Ok(None) };
        let dir = below(root, &self.path);
        let text = |name: &str| file::read_if_there(&dir.join(name)).map(Option::unwrap_or_default);
        if version == Version::V2 {
            return Ok(parse(&text("cpu.max")?));
        }
        Ok(parse(&format!("{} {}", text("cpu.cfs_quota_us")?.trim(), text("cpu.cfs_period_us")?)))
    }

    /// Sets it back to what it was.
    ///
    /// # Errors
    /// What the kernel does not take.
    pub fn set_bandwidth(&self, bandwidth: Bandwidth) -> Result<(), CgroupError> {
        self.apply(&Limits::default().with_bandwidth(bandwidth), When::Update).map(drop)
    }
}

impl Limits {
    /// With the quota or the period that these limits leave as it is, if they name the other.
    #[must_use]
    pub fn completed(&self, in_force: Option<Bandwidth>) -> Self {
        let names_it = self.cpu.quota_us.is_some() || self.cpu.period_us.is_some();
        let names_it = names_it || self.unified.contains_key("cpu.max");
        match in_force.filter(|_| names_it) {
            Some(bandwidth) => self.clone().with_bandwidth(bandwidth),
            None => self.clone(),
        }
    }

    fn with_bandwidth(mut self, bandwidth: Bandwidth) -> Self {
        self.cpu.quota_us = Some(bandwidth.quota_us);
        self.cpu.period_us = Some(bandwidth.period_us);
        self
    }
}

/// `max 100000`, `50000 100000`, or v1's `-1`.
fn parse(text: &str) -> Option<Bandwidth> {
    let (quota, period) = text.trim().split_once(' ')?;
    let quota_us = match quota {
        "max" | "-1" => Max::Unlimited,
        quota => Max::At(quota.parse().ok()?),
    };
    Some(Bandwidth { quota_us, period_us: period.trim().parse().ok()? })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::cgroup::UnitValue;
    use crate::cgroup::tree::Hierarchies;

    fn limits(json: &str) -> Limits {
        Limits::from_oci(&serde_json::from_str(json).unwrap()).unwrap()
    }

    #[test]
    fn half_a_bandwidth_is_completed_by_what_is_in_force() {
        let in_force = parse("30000 60000\n");
        let told = |json: &str| limits(json).completed(in_force).unit_properties();
        let number = UnitValue::Number;
        assert_eq!(
            told(r#"{"memory":{"limit":1}}"#),
            [("MemoryMax", number(1)), ("MemorySwapMax", number(0))][..1]
        );
        for json in [
            r#"{"cpu":{"quota":30000}}"#,
            r#"{"cpu":{"period":60000}}"#,
            r#"{"unified":{"cpu.max":"30000"}}"#,
        ] {
            let expected = [("CPUQuotaPeriodUSec", number(60_000)), ("CPUQuotaPerSecUSec", number(500_000))];
            assert_eq!(told(json), expected, "{json}");
        }
        assert_eq!(limits(r#"{"cpu":{"quota":30000}}"#).completed(None).cpu.period_us, None);
    }

    #[test]
    fn what_somebody_else_has_written_is_set_back() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("p/c")).unwrap();
        let file = dir.path().join("p/c/cpu.max");
        fs::write(&file, "12345 50000\n").unwrap();
        let hierarchies =
            Hierarchies { unified: dir.path().to_owned(), v2: [Controller::Cpu].into(), v1: Vec::new() };
        let leaf = Leaf::new(Arc::new(hierarchies), "/p/c".to_owned());
        let exact = leaf.bandwidth().unwrap().unwrap();
        fs::write(&file, "12500 50000\n").unwrap();
        leaf.set_bandwidth(exact).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap().trim(), "12345 50000");
        fs::write(&file, "max 100000\n").unwrap();
        assert_eq!(leaf.bandwidth().unwrap(), parse("-1 100000"));
        fs::remove_file(&file).unwrap();
        assert_eq!(leaf.bandwidth().unwrap(), None);
    }
}
