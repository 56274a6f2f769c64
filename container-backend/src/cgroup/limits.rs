//! Limits in our own terms, checked once, out of the OCI runtime spec's `linux.resources`.
//!
//! Meaning of the numbers: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#control-groups>.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use super::Controller;
use super::devices::{DevicePolicy, DeviceRuleError};
use super::error::Warning;

/// The kernel's bounds for `cpu.cfs_period_us` and the smallest quota (kernel/sched/core.c).
const CPU_PERIOD_US: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;
const CPU_QUOTA_MIN_US: i64 = 1_000;

/// The OCI range of block IO weights.
const IO_WEIGHT: std::ops::RangeInclusive<u16> = 10..=1000;

/// Core files that `unified` may set; the others would move or kill processes, or change what the leaf is.
const UNIFIED_CORE_KEYS: [&str; 3] = ["cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"];

/// Why resources make no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    #[error("cpu period {0} us is not within 1000 and 1000000")]
    CpuPeriod(u64),
    #[error("cpu quota {0} us is below the kernel's minimum of 1000 and not -1")]
    CpuQuota(i64),
    #[error("{what} {value} is negative and not -1")]
    Negative { what: &'static str, value: i64 },
    #[error("memory+swap limit {swap} is below the memory limit {limit}")]
    SwapBelowMemory { swap: i64, limit: i64 },
    #[error("a memory+swap limit needs a memory limit")]
    SwapWithoutMemory,
    #[error("memory swappiness {0} is above 100")]
    Swappiness(u64),
    #[error("{what} {list:?} is not a list of numbers and ranges")]
    CpuList { what: &'static str, list: String },
    #[error("block IO weight {0} is not within 10 and 1000")]
    IoWeight(u16),
    #[error("huge page size {0:?} is not like 2MB or 64KB")]
    PageSize(String),
    #[error("device number {major}:{minor} is negative")]
    DeviceNumber { major: i64, minor: i64 },
    #[error("unified key {0:?} is not the name of a file that a container's limits may set")]
    UnifiedKey(String),
    #[error(transparent)]
    Device(#[from] DeviceRuleError),
}

/// A number or no limit at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Max {
    Unlimited,
    At(u64),
}

impl Max {
    /// OCI: 0 is unset, -1 unlimited.
    fn from_oci(what: &'static str, value: Option<i64>) -> Result<Option<Self>, LimitError> {
        match value {
            None | Some(0) => Ok(None),
            Some(-1) => Ok(Some(Self::Unlimited)),
            Some(value) => match u64::try_from(value) {
                Ok(n) => Ok(Some(Self::At(n))),
                Err(_) => Err(LimitError::Negative { what, value }),
            },
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cpu {
    pub(super) shares: Option<u64>,
    pub(super) quota_us: Option<Max>,
    pub(super) period_us: Option<u64>,
    pub(super) burst_us: Option<u64>,
    pub(super) idle: Option<bool>,
    pub(super) cpus: Option<String>,
    pub(super) mems: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) limit: Option<Max>,
    pub(super) reservation: Option<Max>,
    /// Memory and swap together, as v1 counts.
    pub(super) with_swap: Option<Max>,
    pub(super) swappiness: Option<u64>,
    pub(super) oom_killer_off: bool,
}

impl Memory {
    /// v2 counts swap by itself.
    pub(super) fn swap_alone(&self) -> Option<Max> {
        match (self.limit, self.with_swap?) {
            (_, Max::Unlimited) => Some(Max::Unlimited),
            (Some(Max::At(limit)), Max::At(both)) => Some(Max::At(both.saturating_sub(limit))),
            // With unlimited memory the sum can only mean the swap.
            (_, swap) => Some(swap),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HugePages {
    pub(super) size: String,
    pub(super) limit: u64,
}

/// `major:minor` as io files write it.
pub(super) type DeviceNumber = String;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Io {
    pub(super) weight: Option<u16>,
    pub(super) device_weights: Vec<(DeviceNumber, u16)>,
    pub(super) throttles: Vec<Throttle>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Throttle {
    /// Key of the v2 file `io.max`.
    pub(super) v2_key: &'static str,
    pub(super) v1_file: &'static str,
    pub(super) device: DeviceNumber,
    /// Bytes or operations per second.
    pub(super) rate: u64,
}

/// What a leaf may use. `Limits::default()` limits nothing and denies no device: right for the pod agent's own leaf.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    pub(super) cpu: Cpu,
    pub(super) memory: Memory,
    pub(super) pids: Option<Max>,
    pub(super) hugepages: Vec<HugePages>,
    pub(super) io: Io,
    pub(super) unified: BTreeMap<String, String>,
    pub(super) devices: DevicePolicy,
    ignored: Vec<&'static str>,
}

impl Limits {
    /// Checks `resources` and takes what cgroups can enforce.
    ///
    /// Devices: everything is denied first, then `devices` apply in order, then the default devices of the OCI runtime spec
    /// are allowed (as runc has it, so that no spec can lock a container out of `/dev/null`). Kernel memory is ignored: the
    /// kernel dropped it.
    ///
    /// # Errors
    /// When a value is outside of what the specification or the kernel can mean.
    pub fn from_oci(resources: &LinuxResources) -> Result<Self, LimitError> {
        let mut ignored = Vec::new();
        let network = resources.network().as_ref();
        if network.is_some_and(|n| n.class_id().is_some() || n.priorities().is_some()) {
            ignored.push("a network class or priority");
        }
        if resources.rdma().as_ref().is_some_and(|r| !r.is_empty()) {
            ignored.push("an RDMA limit");
        }
        let realtime = |c: &LinuxCpu| {
            c.realtime_runtime().is_some_and(|v| v != 0) || c.realtime_period().is_some_and(|v| v != 0)
        };
        if resources.cpu().as_ref().is_some_and(realtime) {
            ignored.push("a realtime cpu limit");
        }
        Ok(Self {
            cpu: resources.cpu().as_ref().map(cpu).transpose()?.unwrap_or_default(),
            memory: resources.memory().as_ref().map(memory).transpose()?.unwrap_or_default(),
            pids: resources.pids().as_ref().map(|p| match u64::try_from(p.limit()) {
                Ok(n) if n > 0 => Max::At(n),
                _ => Max::Unlimited,
            }),
            hugepages: hugepages(resources)?,
            io: resources.block_io().as_ref().map(io).transpose()?.unwrap_or_default(),
            unified: unified(resources)?,
            devices: DevicePolicy::from_oci(resources.devices().as_deref().unwrap_or_default())?,
            ignored,
        })
    }

    pub(super) fn ignored(&self) -> impl Iterator<Item = Warning> + '_ {
        self.ignored.iter().map(|what| Warning::Ignored { what })
    }

    /// Controllers without which some limit here cannot be set.
    pub(super) fn needs(&self) -> Vec<Controller> {
        let mut needs = Vec::new();
        let mut add = |needed: bool, controller| {
            if needed {
                needs.push(controller);
            }
        };
        let Cpu { cpus, mems, shares, quota_us, period_us, burst_us, idle } = &self.cpu;
        let cpu = shares.is_some()
            || quota_us.is_some()
            || period_us.is_some()
            || burst_us.is_some()
            || idle.is_some();
        add(cpu, Controller::Cpu);
        add(cpus.is_some() || mems.is_some(), Controller::Cpuset);
        add(self.memory != Memory::default(), Controller::Memory);
        add(self.pids.is_some(), Controller::Pids);
        add(self.io != Io::default(), Controller::Io);
        add(!self.hugepages.is_empty(), Controller::Hugetlb);
        needs
    }
}

fn cpu(cpu: &LinuxCpu) -> Result<Cpu, LimitError> {
    let period_us = cpu.period().filter(|p| *p != 0);
    if let Some(period) = period_us.filter(|p| !CPU_PERIOD_US.contains(p)) {
        return Err(LimitError::CpuPeriod(period));
    }
    let quota = cpu.quota();
    if let Some(quota) = quota.filter(|q| *q != 0 && *q != -1 && *q < CPU_QUOTA_MIN_US) {
        return Err(LimitError::CpuQuota(quota));
    }
    Ok(Cpu {
        shares: cpu.shares().filter(|s| *s != 0),
        quota_us: Max::from_oci("cpu quota", quota)?,
        period_us,
        burst_us: cpu.burst(),
        idle: cpu.idle().map(|i| i != 0),
        cpus: cpu_list("cpuset cpus", cpu.cpus())?,
        mems: cpu_list("cpuset mems", cpu.mems())?,
    })
}

/// Numbers and ranges with commas (cpuset(7)). Whether these CPUs exist is the kernel's to say.
fn cpu_list(what: &'static str, list: &Option<String>) -> Result<Option<String>, LimitError> {
    let Some(list) = list.as_deref().map(str::trim).filter(|l| !l.is_empty()) else { return Ok(None) };
    if list.bytes().all(|b| b.is_ascii_digit() || matches!(b, b',' | b'-' | b':' | b'/' | b' ')) {
        Ok(Some(list.to_owned()))
    } else {
        Err(LimitError::CpuList { what, list: list.to_owned() })
    }
}

fn memory(memory: &LinuxMemory) -> Result<Memory, LimitError> {
    let limit = Max::from_oci("memory limit", memory.limit())?;
    let mut with_swap = Max::from_oci("memory+swap limit", memory.swap())?;
    match (limit, with_swap) {
        (Some(Max::At(limit)), Some(Max::At(swap))) if swap < limit => {
            return Err(LimitError::SwapBelowMemory {
                swap: memory.swap().unwrap_or_default(),
                limit: memory.limit().unwrap_or_default(),
            });
        }
        (None, Some(Max::At(_))) => return Err(LimitError::SwapWithoutMemory),
        // v1 refuses a memory limit above memory+swap: lifting the one lifts both.
        (Some(Max::Unlimited), None) => with_swap = Some(Max::Unlimited),
        _ => {}
    }
    if let Some(swappiness) = memory.swappiness().filter(|s| *s > 100) {
        return Err(LimitError::Swappiness(swappiness));
    }
    Ok(Memory {
        limit,
        reservation: Max::from_oci("memory reservation", memory.reservation())?,
        with_swap,
        swappiness: memory.swappiness(),
        oom_killer_off: memory.disable_oom_killer().unwrap_or(false),
    })
}

fn hugepages(resources: &LinuxResources) -> Result<Vec<HugePages>, LimitError> {
    let limits = resources.hugepage_limits().as_deref().unwrap_or_default();
    limits
        .iter()
        .map(|h| {
            let size = h.page_size();
            let digits = size.trim_end_matches(|c: char| !c.is_ascii_digit());
            let unit = size.strip_prefix(digits).unwrap_or_default();
            if digits.is_empty()
                || !digits.bytes().all(|b| b.is_ascii_digit())
                || !matches!(unit, "KB" | "MB" | "GB")
            {
                return Err(LimitError::PageSize(size.clone()));
            }
            let limit = u64::try_from(h.limit())
                .map_err(|_| LimitError::Negative { what: "huge page limit", value: h.limit() })?;
            Ok(HugePages { size: size.clone(), limit })
        })
        .collect()
}

fn io(io: &LinuxBlockIo) -> Result<Io, LimitError> {
    let check = |weight: Option<u16>| match weight.filter(|w| *w != 0) {
        Some(weight) if !IO_WEIGHT.contains(&weight) => Err(LimitError::IoWeight(weight)),
        weight => Ok(weight),
    };
    let mut device_weights = Vec::new();
    for device in io.weight_device().as_deref().unwrap_or_default() {
        if let Some(weight) = check(device.weight())? {
            device_weights.push((device_number(device.major(), device.minor())?, weight));
        }
    }
    let mut throttles = Vec::new();
    for (list, v2_key, v1_file) in [
        (io.throttle_read_bps_device(), "rbps", "blkio.throttle.read_bps_device"),
        (io.throttle_write_bps_device(), "wbps", "blkio.throttle.write_bps_device"),
        (io.throttle_read_iops_device(), "riops", "blkio.throttle.read_iops_device"),
        (io.throttle_write_iops_device(), "wiops", "blkio.throttle.write_iops_device"),
    ] {
        for device in list.as_deref().unwrap_or_default() {
            let number = device_number(device.major(), device.minor())?;
            throttles.push(Throttle { v2_key, v1_file, device: number, rate: device.rate() });
        }
    }
    Ok(Io { weight: check(io.weight())?, device_weights, throttles })
}

fn device_number(major: i64, minor: i64) -> Result<DeviceNumber, LimitError> {
    if major < 0 || minor < 0 {
        return Err(LimitError::DeviceNumber { major, minor });
    }
    Ok(format!("{major}:{minor}"))
}

fn unified(resources: &LinuxResources) -> Result<BTreeMap<String, String>, LimitError> {
    let mut unified = BTreeMap::new();
    for (key, value) in resources.unified().iter().flatten() {
        let plain = key.contains('.')
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
            && !key.starts_with('.');
        let core = key.starts_with("cgroup.") && !UNIFIED_CORE_KEYS.contains(&key.as_str());
        if !plain || core {
            return Err(LimitError::UnifiedKey(key.clone()));
        }
        unified.insert(key.clone(), value.clone());
    }
    Ok(unified)
}

#[cfg(test)]
mod tests;
