//! The device policy: v1's controller, or an eBPF program on v2.

use std::fs::OpenOptions;
use std::io::Write;

use super::Target;
use crate::cgroup::Controller;
use crate::cgroup::device_program;
use crate::cgroup::devices::DevicePolicy;
use crate::cgroup::error::{CgroupError, Warning};
use crate::cgroup::make::below;
use crate::cgroup::node::Node;
use crate::cgroup::tree::Version;

impl Target<'_> {
    pub(super) fn devices(&mut self, policy: &DevicePolicy) -> Result<(), CgroupError> {
        // A new v1 group has its parent's rules, a new v2 group its parent's programs: nothing to add.
        if policy.allows_everything() {
            return Ok(());
        }
        match self.place(Controller::Devices) {
            Some(place) if place.version == Version::V1 => self.devices_v1(policy, &place.dir),
            _ => {
                let node = Node { dir: below(&self.hierarchies.unified, self.path) };
                let cgroup = node.open()?;
                device_program::attach(&device_program::assemble(policy), &cgroup)
                    .map_err(|source| CgroupError::DeviceProgram { dir: node.dir, source })
            }
        }
    }

    /// Written here: cgroups-rs opens the file again for each of the dozen lines, at each container start.
    fn devices_v1(&mut self, policy: &DevicePolicy, dir: &std::path::Path) -> Result<(), CgroupError> {
        let (base, exceptions) = if policy.allow_by_default {
            ("devices.allow", "devices.deny")
        } else {
            ("devices.deny", "devices.allow")
        };
        // `a` resets the default and drops the exceptions. A nested runtime may not widen what its own parent denies.
        let nested = |e: &std::io::Error| policy.allow_by_default && e.raw_os_error() == Some(libc::EPERM);
        match crate::cgroup::file::put(&dir.join(base), "a") {
            Err(e) if nested(&e) => self.warnings.push(Warning::DeviceDenied { rule: "a".to_owned() }),
            Err(source) => {
                return Err(CgroupError::Write { file: dir.join(base), value: "a".to_owned(), source });
            }
            Ok(()) => {}
        }
        let file = dir.join(exceptions);
        let mut open = OpenOptions::new()
            .write(true)
            .open(&file)
            .map_err(|source| CgroupError::Open { path: file.clone(), source })?;
        for exception in &policy.exceptions {
            let rule = exception.to_string();
            match open.write_all(rule.as_bytes()) {
                Ok(()) => {}
                // Not allowed to the parent: the device stays denied, which harms only who opens it.
                Err(e) if !policy.allow_by_default && e.raw_os_error() == Some(libc::EPERM) => {
                    self.warnings.push(Warning::DeviceDenied { rule });
                }
                Err(source) => return Err(CgroupError::Write { file, value: rule, source }),
            }
        }
        Ok(())
    }
}
