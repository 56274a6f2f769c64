//! Block IO weights and throttles. Written here: cgroups-rs knows only BFQ's weight on v2 and takes it for there, and a throttle
//! is one line either way.

use super::Target;
use crate::cgroup::Controller;
use crate::cgroup::error::CgroupError;
use crate::cgroup::file;
use crate::cgroup::limits::Io;
use crate::cgroup::node::exists;
use crate::cgroup::tree::Version;

impl Target<'_> {
    pub(super) fn io(&mut self, io: &Io) -> Result<(), CgroupError> {
        if *io == Io::default() {
            return Ok(());
        }
        let Some(place) = self.place(Controller::Io) else {
            if io.throttles.is_empty() {
                self.not_enforced("a block IO weight", "io controller");
                return Ok(());
            }
            return Err(CgroupError::NoController {
                controller: Controller::Io,
                limit: "a block IO throttle",
            });
        };
        // Weights exist only with some IO schedulers: BFQ's file, or CFQ's of old (v1) and iocost's (v2).
        let names = match place.version {
            Version::V1 => ["blkio.bfq.weight", "blkio.weight"],
            Version::V2 => ["io.bfq.weight", "io.weight"],
        };
        let name = names.into_iter().find(|n| exists(&place.dir.join(n))).unwrap_or(names[1]);
        if let Some(weight) = io.weight {
            let value = if name == "io.weight" { iocost_weight(weight) } else { u64::from(weight) };
            self.write_if_there(&place.dir, name, &value.to_string(), "a block IO weight")?;
        }
        let device_name = match name {
            "blkio.bfq.weight" => "blkio.bfq.weight_device",
            "blkio.weight" => "blkio.weight_device",
            other => other,
        };
        for (device, weight) in &io.device_weights {
            let value = if name == "io.weight" { iocost_weight(*weight) } else { u64::from(*weight) };
            let line = format!("{device} {value}");
            self.write_if_there(&place.dir, device_name, &line, "a block IO weight of one device")?;
        }
        for throttle in &io.throttles {
            let (name, line) = match place.version {
                Version::V1 => (throttle.v1_file, format!("{} {}", throttle.device, throttle.rate)),
                // io.max reads 0 as an error; v1 reads it as no limit.
                Version::V2 if throttle.rate == 0 => {
                    ("io.max", format!("{} {}=max", throttle.device, throttle.v2_key))
                }
                Version::V2 => {
                    ("io.max", format!("{} {}={}", throttle.device, throttle.v2_key, throttle.rate))
                }
            };
            file::write(&place.dir.join(name), &line)?;
        }
        Ok(())
    }
}

/// 10..1000 to 1..10000, linear, as runc has it (opencontainers/cgroups, ConvertBlkIOToIOWeightValue).
fn iocost_weight(weight: u16) -> u64 {
    1 + u64::from(weight.saturating_sub(10)) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::iocost_weight;

    #[test]
    fn both_ends_and_the_middle_of_io_weights_map() {
        assert_eq!([10, 500, 1000].map(iocost_weight), [1, 4950, 10_000]);
    }
}
