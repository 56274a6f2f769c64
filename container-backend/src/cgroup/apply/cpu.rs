//! CPU time and CPU sets.

use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::error::Result as RsResult;

use super::{Target, failed, os_error};
use crate::cgroup::Controller;
use crate::cgroup::error::CgroupError;
use crate::cgroup::limits::{Cpu, Max};
use crate::cgroup::tree::Version;

impl Target<'_> {
    pub(super) fn cpuset(&self, cpu: &Cpu) -> Result<(), CgroupError> {
        if cpu.cpus.is_none() && cpu.mems.is_none() {
            return Ok(());
        }
        let place = self.need(Controller::Cpuset, "a cpuset")?;
        let set = CpuSetController::new(place.dir.clone(), place.dir.clone(), place.version == Version::V2);
        if let Some(cpus) = &cpu.cpus {
            set.set_cpus(cpus).map_err(|e| failed(&place.dir, e))?;
        }
        if let Some(mems) = &cpu.mems {
            set.set_mems(mems).map_err(|e| failed(&place.dir, e))?;
        }
        Ok(())
    }

    pub(super) fn cpu(&mut self, cpu: &Cpu) -> Result<(), CgroupError> {
        let limited = matches!(cpu.quota_us, Some(Max::At(_)));
        let Some(place) = self.place(Controller::Cpu) else {
            if limited {
                self.need(Controller::Cpu, "a cpu quota")?;
            } else if cpu.shares.is_some() {
                // The kubelet sends shares for every container: a node without the controller still runs them.
                self.not_enforced("a cpu weight", "cpu controller");
            }
            return Ok(());
        };
        let v2 = place.version == Version::V2;
        let controller = CpuController::new(place.dir.clone(), place.dir.clone(), v2);
        if let Some(idle) = cpu.idle {
            let value = if idle { "1" } else { "0" };
            // No setter in cgroups-rs, nor for bursts below.
            self.write_if_there(&place.dir, "cpu.idle", value, "an idle cpu class")?;
        }
        if let Some(shares) = cpu.shares {
            let shares = if v2 { weight(shares) } else { shares };
            controller.set_shares(shares).map_err(|e| failed(&place.dir, e))?;
        }
        let bandwidth = Bandwidth { controller: &controller, v2, cpu };
        bandwidth.set().map_err(|e| failed(&place.dir, e))?;
        if let Some(burst) = cpu.burst_us {
            let name = if v2 { "cpu.max.burst" } else { "cpu.cfs_burst_us" };
            self.write_if_there(&place.dir, name, &burst.to_string(), "a cpu burst")?;
        }
        Ok(())
    }
}

struct Bandwidth<'a> {
    controller: &'a CpuController,
    v2: bool,
    cpu: &'a Cpu,
}

impl Bandwidth<'_> {
    fn set(&self) -> RsResult<()> {
        let quota = self.cpu.quota_us.map(|max| match max {
            Max::Unlimited => -1,
            Max::At(us) => i64::try_from(us).unwrap_or(i64::MAX),
        });
        let period = self.cpu.period_us;
        if self.v2 {
            if quota.is_none() && period.is_none() {
                return Ok(());
            }
            return self.controller.set_cfs_quota_and_period(quota, period);
        }
        // v1 checks each write against the parent's share of the CPU: a smaller period with the old quota may exceed it for a
        // moment, and goes through once the new quota is there.
        let mut retry = None;
        if let Some(period) = period {
            match self.controller.set_cfs_period(period) {
                Err(e) if quota.is_some() && os_error(&e).raw_os_error() == Some(libc::EINVAL) => {
                    retry = Some(period);
                }
                other => other?,
            }
        }
        if let Some(quota) = quota {
            self.controller.set_cfs_quota(quota)?;
        }
        retry.map_or(Ok(()), |period| self.controller.set_cfs_period(period))
    }
}

/// v1 shares (2 to 262144, default 1024) as a v2 weight (1 to 10000, default 100).
///
/// The curve through minimum, default and maximum that runc 1.3.2 and crun 1.23 took over from the linear map of KEP-2254,
/// which gave the default share a weight of 39: <https://github.com/opencontainers/cgroups/pull/20>.
pub(in crate::cgroup) fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => return 1,
        262_144.. => return 10_000,
        _ => {}
    }
    #[expect(clippy::cast_precision_loss, reason = "below 2^18")]
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 10000")]
    let weight = 10_f64.powf(exponent).ceil() as u64;
    weight
}

#[cfg(test)]
mod tests {
    use super::weight;

    /// Points of the curve, computed with 50 decimal digits.
    #[test]
    fn shares_become_weights_on_the_agreed_curve() {
        for (shares, expected) in [
            (0, 1),
            (2, 1),
            (3, 2),
            (10, 4),
            (102, 17),
            (512, 59),
            (1024, 100),
            (1536, 138),
            (2048, 174),
            (4096, 303),
            (65_536, 3023),
            (262_143, 10_000),
        ] {
            assert_eq!(weight(shares), expected, "{shares} shares");
        }
        assert_eq!((weight(262_144), weight(u64::MAX)), (10_000, 10_000));
        let all: Vec<u64> = (0..262_200).map(weight).collect();
        assert!(all.is_sorted() && all.iter().all(|w| (1..=10_000).contains(w)));
    }
}
