//! Capability sets as bits.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

/// One set; bit n is capability n of linux/capability.h.
pub(crate) type Bits = u64;

/// The five sets of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CapabilitySets {
    pub(crate) bounding: Bits,
    pub(crate) effective: Bits,
    pub(crate) permitted: Bits,
    pub(crate) inheritable: Bits,
    pub(crate) ambient: Bits,
}

/// CAP_SYS_PTRACE (include/uapi/linux/capability.h).
const SYS_PTRACE: u32 = 19;

impl CapabilitySets {
    /// What the spec says; without `process.capabilities` a container has none.
    pub(crate) fn from_oci(capabilities: Option<&LinuxCapabilities>) -> Self {
        let Some(sets) = capabilities else { return Self::default() };
        Self {
            bounding: bits(sets.bounding().as_ref()),
            effective: bits(sets.effective().as_ref()),
            permitted: bits(sets.permitted().as_ref()),
            inheritable: bits(sets.inheritable().as_ref()),
            ambient: bits(sets.ambient().as_ref()),
        }
    }

    /// Without the right to trace others. A hook that runs in a container's pid namespace has company there: the process that is to become the
    /// container, which has all rights until it is told to go on.
    pub(crate) fn without_tracing(self) -> Self {
        self.limited_to(!(1 << SYS_PTRACE)).0
    }

    /// Only what this process itself may pass on, and the names of what had to go.
    pub(crate) fn limited_to(self, permitted: Bits) -> (Self, Vec<String>) {
        let all = self.bounding | self.effective | self.permitted | self.inheritable | self.ambient;
        let missing = all & !permitted;
        let names = (0..u64::BITS).filter(|n| missing & 1 << n != 0).map(name).collect();
        let limited = Self {
            bounding: self.bounding & permitted,
            effective: self.effective & permitted,
            permitted: self.permitted & permitted,
            inheritable: self.inheritable & permitted,
            ambient: self.ambient & permitted,
        };
        (limited, names)
    }
}

fn bits(set: Option<&Capabilities>) -> Bits {
    set.into_iter().flatten().fold(0, |bits, capability| bits | 1 << number(*capability))
}

fn name(number: u32) -> String {
    let known = |c: &caps::Capability| u32::from(c.index()) == number;
    caps::all().into_iter().find(known).map_or_else(|| format!("CAP_{number}"), |c| c.to_string())
}

/// linux/capability.h.
fn number(capability: Capability) -> u32 {
    match capability {
        Capability::Chown => 0,
        Capability::DacOverride => 1,
        Capability::DacReadSearch => 2,
        Capability::Fowner => 3,
        Capability::Fsetid => 4,
        Capability::Kill => 5,
        Capability::Setgid => 6,
        Capability::Setuid => 7,
        Capability::Setpcap => 8,
        Capability::LinuxImmutable => 9,
        Capability::NetBindService => 10,
        Capability::NetBroadcast => 11,
        Capability::NetAdmin => 12,
        Capability::NetRaw => 13,
        Capability::IpcLock => 14,
        Capability::IpcOwner => 15,
        Capability::SysModule => 16,
        Capability::SysRawio => 17,
        Capability::SysChroot => 18,
        Capability::SysPtrace => 19,
        Capability::SysPacct => 20,
        Capability::SysAdmin => 21,
        Capability::SysBoot => 22,
        Capability::SysNice => 23,
        Capability::SysResource => 24,
        Capability::SysTime => 25,
        Capability::SysTtyConfig => 26,
        Capability::Mknod => 27,
        Capability::Lease => 28,
        Capability::AuditWrite => 29,
        Capability::AuditControl => 30,
        Capability::Setfcap => 31,
        Capability::MacOverride => 32,
        Capability::MacAdmin => 33,
        Capability::Syslog => 34,
        Capability::WakeAlarm => 35,
        Capability::BlockSuspend => 36,
        Capability::AuditRead => 37,
        Capability::Perfmon => 38,
        Capability::Bpf => 39,
        Capability::CheckpointRestore => 40,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_agree_with_the_names_of_the_caps_crate() {
        for capability in caps::all() {
            let ours: Capability =
                serde_json::from_value(serde_json::Value::String(capability.to_string())).unwrap();
            assert_eq!(number(ours), u32::from(capability.index()), "{capability}");
        }
    }

    #[test]
    fn what_the_agent_lacks_is_left_out_and_named() {
        let all = CapabilitySets { bounding: 0b11 | 1 << 24, effective: 0b11, ..CapabilitySets::default() };
        let (limited, missing) = all.limited_to(0b1);
        assert_eq!((limited.bounding, limited.effective), (1, 1));
        assert_eq!(missing, ["CAP_DAC_OVERRIDE", "CAP_SYS_RESOURCE"]);
    }

    #[test]
    fn without_tracing_all_else_stays() {
        let all =
            CapabilitySets { bounding: 0b11 | 1 << 19, effective: 1 << 19, ..CapabilitySets::default() };
        let (bounding, effective) = (0b11, 0);
        assert_eq!(
            all.without_tracing(),
            CapabilitySets { bounding, effective, ..CapabilitySets::default() }
        );
    }
}
