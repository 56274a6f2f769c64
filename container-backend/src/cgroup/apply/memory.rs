//! Memory and swap.

use std::path::Path;

use cgroups_rs::fs::memory::MemController;

use super::{Target, failed};
use crate::cgroup::Controller;
use crate::cgroup::error::CgroupError;
use crate::cgroup::file;
use crate::cgroup::limits::{Max, Memory};
use crate::cgroup::node::exists;
use crate::cgroup::tree::Version;

const V1_LIMIT: &str = "memory.limit_in_bytes";
const V1_WITH_SWAP: &str = "memory.memsw.limit_in_bytes";

impl Target<'_> {
    pub(super) fn memory(&mut self, memory: &Memory) -> Result<(), CgroupError> {
        if *memory == Memory::default() {
            return Ok(());
        }
        let place = self.need(Controller::Memory, "a memory limit")?;
        let v2 = place.version == Version::V2;
        let controller = MemController::new(place.dir.clone(), place.dir.clone(), v2);
        if v2 {
            self.memory_v2(memory, &controller, &place.dir)
        } else {
            self.memory_v1(memory, &controller, &place.dir)
        }
    }

    fn memory_v2(
        &mut self,
        memory: &Memory,
        controller: &MemController,
        dir: &Path,
    ) -> Result<(), CgroupError> {
        if let Some(swap) = memory.swap_alone() {
            // Absent where the kernel counts no swap. Then there is nothing to limit unless swap is on.
            if exists(&dir.join("memory.swap.max")) {
                controller.set_memswap_limit(signed(swap)).map_err(|e| failed(dir, e))?;
            } else if swap != Max::Unlimited {
                self.not_enforced("a swap limit", "memory.swap.max");
            }
        }
        if let Some(limit) = memory.limit {
            controller.set_limit(signed(limit)).map_err(|e| failed(dir, e))?;
        }
        match memory.reservation {
            Some(Max::At(bytes)) => {
                controller.set_soft_limit(signed(Max::At(bytes))).map_err(|e| failed(dir, e))?;
            }
            // cgroups-rs would write -1, which v2 does not take.
            Some(Max::Unlimited) => file::write(&dir.join("memory.low"), "max")?,
            None => {}
        }
        // cgroups-rs writes swappiness to memory.swap.max on v2, which means something else.
        if memory.swappiness.is_some() {
            self.not_enforced("memory swappiness", "memory.swappiness on cgroup v2");
        }
        if memory.oom_killer_off {
            self.not_enforced("running without the OOM killer", "memory.oom_control on cgroup v2");
        }
        Ok(())
    }

    fn memory_v1(
        &mut self,
        memory: &Memory,
        controller: &MemController,
        dir: &Path,
    ) -> Result<(), CgroupError> {
        let mut with_swap = memory.with_swap;
        if with_swap.is_some() && !exists(&dir.join(V1_WITH_SWAP)) {
            // swapaccount=0, or a kernel without CONFIG_SWAP.
            if with_swap != Some(Max::Unlimited) {
                self.not_enforced("a swap limit", V1_WITH_SWAP);
            }
            with_swap = None;
        }
        let set_limit = || memory.limit.map_or(Ok(()), |l| controller.set_limit(signed(l)));
        let set_swap = || with_swap.map_or(Ok(()), |s| controller.set_memswap_limit(signed(s)));
        // memory may at no moment exceed memory+swap.
        if swap_first(memory.limit, with_swap, dir)? {
            set_swap().and_then(|()| set_limit())
        } else {
            set_limit().and_then(|()| set_swap())
        }
        .map_err(|e| failed(dir, e))?;
        if let Some(reservation) = memory.reservation {
            controller.set_soft_limit(signed(reservation)).map_err(|e| failed(dir, e))?;
        }
        if let Some(swappiness) = memory.swappiness {
            controller.set_swappiness(swappiness).map_err(|e| failed(dir, e))?;
        }
        if memory.oom_killer_off {
            controller.disable_oom_killer().map_err(|e| failed(dir, e))?;
        }
        Ok(())
    }
}

/// A raised memory+swap limit goes before the memory limit, a lowered one after it.
fn swap_first(limit: Option<Max>, with_swap: Option<Max>, dir: &Path) -> Result<bool, CgroupError> {
    let (Some(_), Some(with_swap)) = (limit, with_swap) else { return Ok(false) };
    let Max::At(with_swap) = with_swap else { return Ok(true) };
    let file = dir.join(V1_LIMIT);
    let now: u64 =
        file::read(&file)?.trim().parse().map_err(|_| CgroupError::Malformed { file, what: "number" })?;
    Ok(now < with_swap)
}

/// -1 stands for no limit in cgroups-rs as in v1.
fn signed(max: Max) -> i64 {
    match max {
        Max::Unlimited => -1,
        Max::At(bytes) => i64::try_from(bytes).unwrap_or(i64::MAX),
    }
}
