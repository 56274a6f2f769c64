//! Limits that are a process's own: rlimits and the OOM score.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::settings::ResourceLimit;
use crate::errno::Errno;
use crate::failure::Failure;

/// Sets the limits. A hard limit above this process's own needs CAP_SYS_RESOURCE; without it the limit stays at what is
/// possible, with a warning: a node that runs nested must still run pods.
pub(crate) fn set_rlimits(limits: &[ResourceLimit], warnings: &mut Vec<String>) -> Result<(), Failure> {
    for limit in limits {
        let wanted = Rlimit { current: finite(limit.soft), maximum: finite(limit.hard) };
        match setrlimit(limit.resource, wanted) {
            Ok(()) => {}
            Err(rustix::io::Errno::PERM) => clamp(limit.resource, &wanted, warnings)?,
            Err(e) => return Err(failed(limit.resource, e.into())),
        }
    }
    Ok(())
}

fn failed(resource: Resource, errno: Errno) -> Failure {
    Failure::Step { step: format!("set limit {resource:?}"), errno }
}

fn clamp(resource: Resource, wanted: &Rlimit, warnings: &mut Vec<String>) -> Result<(), Failure> {
    let lower = |a: Option<u64>, b: Option<u64>| match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let own = getrlimit(resource);
    let maximum = lower(wanted.maximum, own.maximum);
    let possible = Rlimit { current: lower(wanted.current, maximum), maximum };
    let shown = maximum.map_or("unlimited".into(), |m| m.to_string());
    setrlimit(resource, possible).map_err(|e| failed(resource, e.into()))?;
    warnings.push(format!("limit {resource:?} stays at {shown}: raising it needs CAP_SYS_RESOURCE"));
    Ok(())
}

/// RLIM_INFINITY is `None` to rustix.
fn finite(value: u64) -> Option<u64> {
    (value != u64::MAX).then_some(value)
}

/// Sets the OOM score. Lowering it below where it has been needs CAP_SYS_RESOURCE; without it the score stays, with a
/// warning.
pub(crate) fn set_oom_score_adj(wanted: i32, warnings: &mut Vec<String>) -> Result<(), Failure> {
    const FILE: &str = "/proc/self/oom_score_adj";
    match fs::write(FILE, wanted.to_string()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            let own = fs::read_to_string(FILE).unwrap_or_default();
            warnings.push(format!(
                "oom_score_adj stays at {} instead of {wanted}: lowering it needs CAP_SYS_RESOURCE",
                own.trim()
            ));
            Ok(())
        }
        Err(e) => Err(Failure::Step { step: format!("set oom_score_adj to {wanted}"), errno: e.into() }),
    }
}
