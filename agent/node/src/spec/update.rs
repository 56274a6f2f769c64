//! New limits for a container that has some: what changes, and what it has then.

use std::collections::BTreeMap;

use hartpod_proto::cri::v1 as cri;
use oci_spec::runtime::LinuxResources;

use super::resources::{oom_score_adj, resources};
use super::{SpecError, SpecSettings};

/// What UpdateContainerResources comes to.
#[derive(Debug, Clone)]
pub struct ResourceChange {
    /// What the container has afterwards.
    pub merged: cri::LinuxContainerResources,
    /// What is to be set: nothing that the request leaves open.
    pub limits: LinuxResources,
    pub oom_score_adj: Option<i32>,
}

/// Puts what is asked over what the container has. 0 and empty mean "as it is", as for containerd.
///
/// Memory and its sum with swap are one limit: where the request names one of them, both are set. A container that was given no word about swap
/// gets none on top of its new limit either.
pub fn change(
    have: &cri::LinuxContainerResources,
    asked: &cri::LinuxContainerResources,
    settings: &SpecSettings,
    warnings: &mut Vec<String>,
) -> Result<ResourceChange, SpecError> {
    let merged = merge(have, asked);
    let mut delta = asked.clone();
    if asked.memory_limit_in_bytes != 0 || asked.memory_swap_limit_in_bytes != 0 {
        delta.memory_limit_in_bytes = merged.memory_limit_in_bytes;
        delta.memory_swap_limit_in_bytes = merged.memory_swap_limit_in_bytes;
    }
    let limits = resources(&delta, settings, warnings)?;
    let oom_score_adj = match asked.oom_score_adj {
        0 => None,
        _ => Some(oom_score_adj(asked)?).filter(|_| asked.oom_score_adj != have.oom_score_adj),
    };
    Ok(ResourceChange { merged, limits, oom_score_adj })
}

fn merge(
    have: &cri::LinuxContainerResources,
    asked: &cri::LinuxContainerResources,
) -> cri::LinuxContainerResources {
    let number = |asked: i64, have: i64| if asked == 0 { have } else { asked };
    let text = |asked: &str, have: &str| if asked.is_empty() { have.to_owned() } else { asked.to_owned() };
    let mut pages: BTreeMap<&str, u64> =
        have.hugepage_limits.iter().map(|pages| (pages.page_size.as_str(), pages.limit)).collect();
    pages.extend(asked.hugepage_limits.iter().map(|pages| (pages.page_size.as_str(), pages.limit)));
    let mut unified = have.unified.clone();
    unified.extend(asked.unified.clone());
    cri::LinuxContainerResources {
        cpu_period: number(asked.cpu_period, have.cpu_period),
        cpu_quota: number(asked.cpu_quota, have.cpu_quota),
        cpu_shares: number(asked.cpu_shares, have.cpu_shares),
        memory_limit_in_bytes: number(asked.memory_limit_in_bytes, have.memory_limit_in_bytes),
        oom_score_adj: number(asked.oom_score_adj, have.oom_score_adj),
        cpuset_cpus: text(&asked.cpuset_cpus, &have.cpuset_cpus),
        cpuset_mems: text(&asked.cpuset_mems, &have.cpuset_mems),
        hugepage_limits: pages
            .into_iter()
            .map(|(size, limit)| cri::HugepageLimit { page_size: size.to_owned(), limit })
            .collect(),
        unified,
        memory_swap_limit_in_bytes: number(asked.memory_swap_limit_in_bytes, have.memory_swap_limit_in_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> SpecSettings {
        SpecSettings { unified_cgroups: true, swap_controller: true, ..SpecSettings::default() }
    }

    fn changed(
        have: &cri::LinuxContainerResources,
        asked: &cri::LinuxContainerResources,
    ) -> Result<ResourceChange, SpecError> {
        let mut warnings = vec![];
        change(have, asked, &settings(), &mut warnings)
    }

    fn memory(limit: i64, swap: i64) -> cri::LinuxContainerResources {
        cri::LinuxContainerResources {
            memory_limit_in_bytes: limit,
            memory_swap_limit_in_bytes: swap,
            ..Default::default()
        }
    }

    #[test]
    fn what_is_left_open_stays_and_is_not_set_again() {
        let have = cri::LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            cpuset_cpus: "0".into(),
            unified: [("memory.high".into(), "5".into()), ("memory.min".into(), "1".into())].into(),
            oom_score_adj: 100,
            ..memory(64, 0)
        };
        let asked = cri::LinuxContainerResources {
            cpu_quota: 20_000,
            unified: [("memory.high".into(), "7".into())].into(),
            oom_score_adj: 100,
            ..Default::default()
        };
        let change = changed(&have, &asked).unwrap();
        assert_eq!(
            change.merged,
            cri::LinuxContainerResources {
                cpu_quota: 20_000,
                unified: [("memory.high".into(), "7".into()), ("memory.min".into(), "1".into())].into(),
                ..have.clone()
            }
        );
        let cpu = change.limits.cpu().as_ref().unwrap();
        assert_eq!((cpu.quota(), cpu.period(), cpu.shares()), (Some(20_000), None, None));
        assert_eq!(change.limits.memory().as_ref().unwrap().limit(), None);
        assert_eq!(change.limits.unified().as_ref().unwrap().len(), 1);
        assert_eq!(change.oom_score_adj, None, "it has that");
        assert_eq!(changed(&have, &Default::default()).unwrap().merged, have);
    }

    #[test]
    fn memory_and_swap_go_together() {
        for (have, asked, limit, swap) in [
            (memory(64, 0), memory(128, 0), Some(128), Some(128)),
            (memory(64, 256), memory(128, 0), Some(128), Some(256)),
            (memory(64, -1), memory(128, 0), Some(128), Some(-1)),
            (memory(64, 64), memory(0, 96), Some(64), Some(96)),
            (memory(0, 0), memory(128, 0), Some(128), Some(128)),
        ] {
            let change = changed(&have, &asked).unwrap();
            let found = change.limits.memory().as_ref().unwrap();
            assert_eq!((found.limit(), found.swap()), (limit, swap), "{have:?} {asked:?}");
        }
        let error = changed(&memory(64, 96), &memory(128, 0)).unwrap_err().to_string();
        assert!(error.contains("memory_swap_limit_in_bytes: 96 counts memory and swap"), "{error}");
    }

    #[test]
    fn a_score_is_changed_when_another_one_is_named() {
        let score = |oom_score_adj| cri::LinuxContainerResources { oom_score_adj, ..Default::default() };
        for (have, asked, expected) in [(0, 0, None), (5, 0, None), (5, 5, None), (5, -997, Some(-997))] {
            assert_eq!(changed(&score(have), &score(asked)).unwrap().oom_score_adj, expected);
        }
        assert!(changed(&score(0), &score(1001)).is_err());
    }
}
