//! Limits: from CRI's numbers, where 0 mostly means unset, to the spec's.

use hartpod_proto::cri::v1 as cri;
use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use super::{SpecError, SpecSettings};

const FIELD: &str = "config.linux.resources";

/// Bounds of the kernel for oom_score_adj (proc(5)).
const OOM_SCORE_ADJ: std::ops::RangeInclusive<i64> = -1000..=1000;

/// Bounds of the kernel for cpu.cfs_period_us (Documentation/scheduler/sched-bwc.rst), in microseconds.
const CPU_PERIOD_US: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;

/// The limits of one container, as CreateContainer and UpdateContainerResources ask for them. An unset limit is absent.
pub fn resources(
    asked: &cri::LinuxContainerResources,
    settings: &SpecSettings,
    warnings: &mut Vec<String>,
) -> Result<LinuxResources, SpecError> {
    let mut resources = LinuxResources::default();
    resources.set_cpu(Some(cpu(asked)?));
    resources.set_memory(Some(memory(asked, settings, warnings)?));
    resources.set_hugepage_limits(hugepages(asked, settings, warnings)?);
    if !asked.unified.is_empty() {
        if !settings.unified_cgroups {
            return Err(SpecError::unsupported(
                format!("{FIELD}.unified"),
                "this node's cgroups are not all v2",
            ));
        }
        for key in asked.unified.keys() {
            check_unified_key(key)?;
        }
        resources.set_unified(Some(asked.unified.clone().into_iter().collect()));
    }
    Ok(resources)
}

/// The score that the kernel's memory killer chooses by; 0 when nothing is asked, so that a container never has the daemon's.
pub(super) fn oom_score_adj(asked: &cri::LinuxContainerResources) -> Result<i32, SpecError> {
    i32::try_from(asked.oom_score_adj)
        .ok()
        .filter(|_| OOM_SCORE_ADJ.contains(&asked.oom_score_adj))
        .ok_or_else(|| out_of_range("oom_score_adj", asked.oom_score_adj, &OOM_SCORE_ADJ))
}

fn out_of_range(name: &str, value: i64, range: &std::ops::RangeInclusive<i64>) -> SpecError {
    SpecError::invalid(
        format!("{FIELD}.{name}"),
        format!("{value} is not in {} to {}", range.start(), range.end()),
    )
}

fn cpu(asked: &cri::LinuxContainerResources) -> Result<LinuxCpu, SpecError> {
    let mut cpu = LinuxCpu::default();
    if asked.cpu_period != 0 && !CPU_PERIOD_US.contains(&asked.cpu_period) {
        return Err(out_of_range("cpu_period", asked.cpu_period, &CPU_PERIOD_US));
    }
    cpu.set_period(positive("cpu_period", asked.cpu_period)?);
    cpu.set_shares(positive("cpu_shares", asked.cpu_shares)?);
    if asked.cpu_quota < -1 {
        return Err(SpecError::invalid(
            format!("{FIELD}.cpu_quota"),
            format!("{} is negative", asked.cpu_quota),
        ));
    }
    cpu.set_quota(Some(asked.cpu_quota).filter(|q| *q != 0));
    cpu.set_cpus(list("cpuset_cpus", &asked.cpuset_cpus)?);
    cpu.set_mems(list("cpuset_mems", &asked.cpuset_mems)?);
    Ok(cpu)
}

fn positive(name: &str, value: i64) -> Result<Option<u64>, SpecError> {
    match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(SpecError::invalid(format!("{FIELD}.{name}"), format!("{value} is negative"))),
    }
}

/// A list such as 0-3,7 (cpuset(7)); written into a kernel file as it is, so nothing else may be in it.
fn list(name: &str, text: &str) -> Result<Option<String>, SpecError> {
    if text.chars().all(|c| c.is_ascii_digit() || c == ',' || c == '-') {
        Ok(Some(text.to_owned()).filter(|t| !t.is_empty()))
    } else {
        Err(SpecError::invalid(format!("{FIELD}.{name}"), format!("{text:?} is not a list such as 0-3,7")))
    }
}

/// Without a word about swap a container that has a memory limit gets no swap on top of it, as containerd does.
fn memory(
    asked: &cri::LinuxContainerResources,
    settings: &SpecSettings,
    warnings: &mut Vec<String>,
) -> Result<LinuxMemory, SpecError> {
    let limit = asked.memory_limit_in_bytes;
    let swap = asked.memory_swap_limit_in_bytes;
    let field = |name: &str| format!("{FIELD}.{name}");
    if limit < 0 {
        return Err(SpecError::invalid(field("memory_limit_in_bytes"), format!("{limit} is negative")));
    }
    if swap < -1 {
        return Err(SpecError::invalid(field("memory_swap_limit_in_bytes"), format!("{swap} is negative")));
    }
    if swap > 0 && swap < limit {
        return Err(SpecError::invalid(
            field("memory_swap_limit_in_bytes"),
            format!("{swap} counts memory and swap, so it cannot be below the memory limit of {limit}"),
        ));
    }
    let mut memory = LinuxMemory::default();
    memory.set_limit(Some(limit).filter(|l| *l != 0));
    let wanted = if swap == 0 { limit } else { swap };
    if settings.swap_controller {
        memory.set_swap(Some(wanted).filter(|s| *s != 0));
    } else if swap > limit {
        warnings.push(
            "the kernel does not account for swap: memory_swap_limit_in_bytes has no effect".to_owned(),
        );
    }
    Ok(memory)
}

/// The kubelet names every page size of the machine, mostly with limit 0.
fn hugepages(
    asked: &cri::LinuxContainerResources,
    settings: &SpecSettings,
    warnings: &mut Vec<String>,
) -> Result<Option<Vec<LinuxHugepageLimit>>, SpecError> {
    let mut limits = Vec::new();
    for cri::HugepageLimit { page_size, limit } in &asked.hugepage_limits {
        let number = page_size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = &page_size[number.len()..];
        if number.parse::<u64>().is_err() || !["KB", "MB", "GB"].contains(&unit) {
            return Err(SpecError::invalid(
                format!("{FIELD}.hugepage_limits"),
                format!("{page_size:?} is not a page size such as 2MB"),
            ));
        }
        if !settings.hugetlb_controller {
            if *limit > 0 {
                warnings.push(format!(
                    "the hugetlb cgroup controller is missing: no limit for {page_size} pages"
                ));
            }
            continue;
        }
        let mut entry = LinuxHugepageLimit::default();
        entry.set_page_size(page_size.clone());
        entry.set_limit(i64::try_from(*limit).unwrap_or(i64::MAX));
        limits.push(entry);
    }
    Ok(Some(limits).filter(|l| !l.is_empty()))
}

/// A file of a controller in the container's cgroup, never one of the cgroup core that moves or freezes processes.
fn check_unified_key(key: &str) -> Result<(), SpecError> {
    let plain = key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    let controller = key.split_once('.').map(|(controller, file)| (controller, file.is_empty()));
    match controller {
        Some((controller, false)) if plain && !controller.is_empty() && controller != "cgroup" => Ok(()),
        _ => Err(SpecError::invalid(
            format!("{FIELD}.unified[{key:?}]"),
            "is not a file of a controller such as memory.high",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2() -> SpecSettings {
        SpecSettings {
            unified_cgroups: true,
            swap_controller: true,
            hugetlb_controller: true,
            ..SpecSettings::default()
        }
    }

    fn built(asked: &cri::LinuxContainerResources) -> LinuxResources {
        let mut warnings = vec![];
        let resources = resources(asked, &v2(), &mut warnings).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        resources
    }

    #[test]
    fn zero_means_unset() {
        let resources = built(&cri::LinuxContainerResources::default());
        assert_eq!(resources.cpu().as_ref().unwrap(), &LinuxCpu::default());
        assert_eq!(resources.memory().as_ref().unwrap(), &LinuxMemory::default());
        assert!(resources.hugepage_limits().is_none() && resources.unified().is_none());
    }

    #[test]
    fn numbers_carry_over() {
        let resources = built(&cri::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            cpuset_cpus: "0-1,3".into(),
            memory_limit_in_bytes: 64 << 20,
            hugepage_limits: vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }],
            unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        });
        let cpu = resources.cpu().as_ref().unwrap();
        assert_eq!((cpu.period(), cpu.quota(), cpu.shares()), (Some(100_000), Some(50_000), Some(512)));
        assert_eq!(cpu.cpus().as_deref(), Some("0-1,3"));
        let memory = resources.memory().as_ref().unwrap();
        assert_eq!((memory.limit(), memory.swap()), (Some(64 << 20), Some(64 << 20)), "no swap unless asked");
        let hugepages = resources.hugepage_limits().as_ref().unwrap();
        assert_eq!((hugepages[0].page_size().as_str(), hugepages[0].limit()), ("2MB", 4 << 20));
        assert_eq!(resources.unified().as_ref().unwrap()["memory.oom.group"], "1");
    }

    #[test]
    fn swap_by_what_is_asked_and_what_the_kernel_counts() {
        let asks = |limit, swap| cri::LinuxContainerResources {
            memory_limit_in_bytes: limit,
            memory_swap_limit_in_bytes: swap,
            ..Default::default()
        };
        let uncounted = SpecSettings { swap_controller: false, ..v2() };
        for (limit, swap, settings, expected, told) in [
            (10, 0, v2(), Some(10), false),
            (10, 30, v2(), Some(30), false),
            (0, -1, v2(), Some(-1), false),
            (10, -1, v2(), Some(-1), false),
            (10, 0, uncounted.clone(), None, false),
            (10, 30, uncounted, None, true),
        ] {
            let mut warnings = vec![];
            let found = resources(&asks(limit, swap), &settings, &mut warnings).unwrap();
            assert_eq!(found.memory().as_ref().unwrap().swap(), expected, "limit {limit} swap {swap}");
            assert_eq!(!warnings.is_empty(), told);
        }
    }

    #[test]
    fn without_hugetlb_a_limit_is_told_and_none_is_not() {
        let settings = SpecSettings { hugetlb_controller: false, ..v2() };
        for (limit, told) in [(0, 0), (1 << 21, 1)] {
            let page = cri::HugepageLimit { page_size: "2MB".into(), limit };
            let asked = cri::LinuxContainerResources { hugepage_limits: vec![page], ..Default::default() };
            let mut warnings = vec![];
            assert!(resources(&asked, &settings, &mut warnings).unwrap().hugepage_limits().is_none());
            assert_eq!(warnings.len(), told);
        }
    }

    #[test]
    fn numbers_out_of_range_name_their_field() {
        let base = cri::LinuxContainerResources::default;
        let unified =
            |key: &str| cri::LinuxContainerResources { unified: [(key.into(), "1".into())].into(), ..base() };
        let page = cri::HugepageLimit { page_size: "2M/B".into(), limit: 1 };
        for (asked, expected) in [
            (
                cri::LinuxContainerResources { cpu_period: 10, ..base() },
                "cpu_period: 10 is not in 1000 to 1000000",
            ),
            (cri::LinuxContainerResources { cpu_shares: -1, ..base() }, "cpu_shares: -1 is negative"),
            (cri::LinuxContainerResources { cpu_quota: -2, ..base() }, "cpu_quota: -2 is negative"),
            (
                cri::LinuxContainerResources { cpuset_cpus: "0\n1".into(), ..base() },
                "cpuset_cpus: \"0\\n1\" is not",
            ),
            (
                cri::LinuxContainerResources { memory_limit_in_bytes: -1, ..base() },
                "memory_limit_in_bytes: -1 is negative",
            ),
            (
                cri::LinuxContainerResources {
                    memory_limit_in_bytes: 20,
                    memory_swap_limit_in_bytes: 10,
                    ..base()
                },
                "memory_swap_limit_in_bytes: 10 counts memory and swap",
            ),
            (
                cri::LinuxContainerResources { hugepage_limits: vec![page], ..base() },
                "hugepage_limits: \"2M/B\" is",
            ),
            (unified("cgroup.procs"), "unified[\"cgroup.procs\"]: is not a file of a controller"),
            (unified("../memory.max"), "unified[\"../memory.max\"]: is not a file of a controller"),
            (unified("memory."), "unified[\"memory.\"]: is not a file of a controller"),
        ] {
            let error = resources(&asked, &v2(), &mut vec![]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{FIELD}.{expected}")), "{error}");
        }
    }

    #[test]
    fn unified_keys_need_v2() {
        let asked = cri::LinuxContainerResources {
            unified: [("memory.high".into(), "1".into())].into(),
            ..Default::default()
        };
        let v1 = SpecSettings { unified_cgroups: false, ..v2() };
        assert!(matches!(resources(&asked, &v1, &mut vec![]), Err(SpecError::Unsupported { .. })));
    }

    #[test]
    fn the_oom_score_is_in_the_kernels_bounds() {
        let asks = |oom_score_adj| cri::LinuxContainerResources { oom_score_adj, ..Default::default() };
        assert_eq!(oom_score_adj(&asks(-997)).unwrap(), -997);
        assert_eq!(oom_score_adj(&asks(0)).unwrap(), 0);
        assert!(oom_score_adj(&asks(1001)).is_err());
        assert!(oom_score_adj(&asks(i64::MIN)).is_err());
    }
}
