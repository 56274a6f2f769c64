//! A leaf as systemd knows it: the unit that it belongs to, and limits as the unit's properties.
//!
//! systemd writes the limits of its units into their cgroups again whenever it is told to reload: what it has not been told is lost then.

use super::apply::weight;
use super::leaf::Leaf;
use super::limits::{Limits, Max};

/// systemd's infinity.
const INFINITY: u64 = u64::MAX;

/// systemd keeps a CPU quota as a share of a second, in whole percents.
const QUOTA_STEP_US: u64 = 10_000;

/// Keys of `unified` that are properties too.
const BY_KEY: [(&str, &str); 4] = [
    ("memory.min", "MemoryMin"),
    ("memory.low", "MemoryLow"),
    ("memory.high", "MemoryHigh"),
    ("memory.max", "MemoryMax"),
];

/// The scope of a leaf and the slice that it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit<'a> {
    pub scope: &'a str,
    pub slice: &'a str,
}

/// A property's value (org.freedesktop.systemd1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnitValue {
    Number(u64),
    /// A bit for each CPU or memory node, the lowest first.
    Bits(Vec<u8>),
}

impl Leaf {
    /// Its unit; none below a parent that is a path.
    #[must_use]
    pub fn unit(&self) -> Option<Unit<'_>> {
        let (slices, scope) = self.path.rsplit_once('/')?;
        scope.ends_with(".scope").then(|| {
            let slice = slices.rsplit('/').next().filter(|slice| !slice.is_empty());
            Unit { scope, slice: slice.unwrap_or("-.slice") }
        })
    }
}

impl Limits {
    /// Those of the limits that systemd has properties for, as runc gives them to it on cgroup v2.
    #[must_use]
    pub fn unit_properties(&self) -> Vec<(&'static str, UnitValue)> {
        let mut found = Vec::new();
        let mut number =
            |name, value: Option<u64>| found.extend(value.map(|value| (name, UnitValue::Number(value))));
        number("CPUWeight", self.cpu.shares.map(weight));
        number("CPUQuotaPeriodUSec", self.cpu.period_us);
        number(
            "CPUQuotaPerSecUSec",
            self.cpu.quota_us.map(|quota| match quota {
                Max::Unlimited => INFINITY,
                Max::At(us) => {
                    let period = self.cpu.period_us.unwrap_or(100_000).max(1);
                    us.saturating_mul(1_000_000).div_ceil(period).next_multiple_of(QUOTA_STEP_US)
                }
            }),
        );
        number("MemoryMax", self.memory.limit.map(plain));
        number("MemoryLow", self.memory.reservation.map(plain));
        number("MemorySwapMax", self.memory.swap_alone().map(plain));
        number("TasksMax", self.pids.map(plain));
        for (key, property) in BY_KEY {
            let value = self.unified.get(key).map(|text| text.trim());
            number(
                property,
                value.and_then(|text| if text == "max" { Some(INFINITY) } else { text.parse().ok() }),
            );
        }
        for (name, list) in [("AllowedCPUs", &self.cpu.cpus), ("AllowedMemoryNodes", &self.cpu.mems)] {
            found.extend(list.as_deref().and_then(bits).map(|bits| (name, UnitValue::Bits(bits))));
        }
        found
    }
}

fn plain(max: Max) -> u64 {
    match max {
        Max::Unlimited => INFINITY,
        Max::At(value) => value,
    }
}

/// `0-2,5` as bits; a list that the kernel may understand and this does not is none.
fn bits(list: &str) -> Option<Vec<u8>> {
    /// Far beyond the kernel's NR_CPUS.
    const MOST: usize = 65_536;
    let mut bits = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        if last >= MOST {
            return None;
        }
        for bit in first..=last {
            if bits.len() <= bit / 8 {
                bits.resize(bit / 8 + 1, 0);
            }
            if let Some(byte) = bits.get_mut(bit / 8) {
                *byte |= 1_u8 << (bit % 8);
            }
        }
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::tree::Tree;
    use super::*;

    fn properties(json: &str) -> Vec<(&'static str, UnitValue)> {
        Limits::from_oci(&serde_json::from_str(json).unwrap()).unwrap().unit_properties()
    }

    #[test]
    fn limits_are_told_as_runc_tells_them() {
        let found = properties(
            r#"{"cpu":{"shares":1024,"quota":150000,"period":100000,"cpus":"0-1,9"},"memory":{"limit":1000,"swap":1500},
                "pids":{"limit":7},"unified":{"memory.high":"900","memory.min":"max","memory.oom.group":"1"}}"#,
        );
        let number = UnitValue::Number;
        assert_eq!(
            found,
            [
                ("CPUWeight", number(100)),
                ("CPUQuotaPeriodUSec", number(100_000)),
                ("CPUQuotaPerSecUSec", number(1_500_000)),
                ("MemoryMax", number(1000)),
                ("MemorySwapMax", number(500)),
                ("TasksMax", number(7)),
                ("MemoryMin", number(INFINITY)),
                ("MemoryHigh", number(900)),
                ("AllowedCPUs", UnitValue::Bits(vec![0b11, 0b10])),
            ]
        );
        let odd = properties(r#"{"cpu":{"quota":12345},"memory":{"limit":-1}}"#);
        assert_eq!(odd[0], ("CPUQuotaPerSecUSec", UnitValue::Number(130_000)), "whole percents, upwards");
        assert_eq!(odd[1], ("MemoryMax", UnitValue::Number(INFINITY)));
        assert_eq!(properties("{}"), []);
    }

    #[test]
    fn a_leaf_in_a_slice_is_a_scope() {
        let tree = Tree::new(Path::new("/x").to_owned(), Vec::new(), Vec::new());
        let unit = |parent: &str| {
            tree.leaf(parent, "ab").unwrap().unit().map(|u| (u.scope.to_owned(), u.slice.to_owned()))
        };
        let expected = |slice: &str| Some(("cri-hartpod-ab.scope".to_owned(), slice.to_owned()));
        assert_eq!(unit("kubepods-pod1.slice"), expected("kubepods-pod1.slice"));
        assert_eq!(unit("-.slice"), expected("-.slice"));
        assert_eq!(unit("/kubepods/pod1"), None);
    }

    #[test]
    fn odd_lists_are_left_to_the_kernel() {
        assert_eq!(bits("3"), Some(vec![8]));
        assert_eq!(bits("0-6:2/4"), None);
        assert_eq!(bits("0-99999999"), None);
    }
}
