//! Which capabilities a container has.

use std::str::FromStr as _;

use hartpod_proto::cri::v1 as cri;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

use super::SpecError;
use Capability::*;

/// Every capability in the kernel's order (linux/capability.h): the bit of each in a mask is its index.
const BY_NUMBER: [Capability; 41] = [
    Chown,
    DacOverride,
    DacReadSearch,
    Fowner,
    Fsetid,
    Kill,
    Setgid,
    Setuid,
    Setpcap,
    LinuxImmutable,
    NetBindService,
    NetBroadcast,
    NetAdmin,
    NetRaw,
    IpcLock,
    IpcOwner,
    SysModule,
    SysRawio,
    SysChroot,
    SysPtrace,
    SysPacct,
    SysAdmin,
    SysBoot,
    SysNice,
    SysResource,
    SysTime,
    SysTtyConfig,
    Mknod,
    Lease,
    AuditWrite,
    AuditControl,
    Setfcap,
    MacOverride,
    MacAdmin,
    Syslog,
    WakeAlarm,
    BlockSuspend,
    AuditRead,
    Perfmon,
    Bpf,
    CheckpointRestore,
];

/// What a container has that asks for nothing. Same as containerd's (pkg/oci, defaultUnixCaps).
const DEFAULT: [Capability; 14] = [
    Chown,
    DacOverride,
    Fsetid,
    Fowner,
    Mknod,
    NetRaw,
    Setgid,
    Setuid,
    Setfcap,
    Setpcap,
    NetBindService,
    SysChroot,
    Kill,
    AuditWrite,
];

/// The capabilities of a mask as in /proc/PID/status.
pub(super) fn from_mask(mask: u64) -> Capabilities {
    BY_NUMBER.into_iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1).map(|(_, c)| c).collect()
}

/// The sets of a container's first process, and what of the request this node does not have.
pub(super) fn capabilities(
    security: &cri::LinuxContainerSecurityContext,
    available: &Capabilities,
    warnings: &mut Vec<String>,
) -> Result<LinuxCapabilities, SpecError> {
    let none = cri::Capability::default();
    let asked = security.capabilities.as_ref().unwrap_or(&none);
    let mut held = if security.privileged { available.clone() } else { chosen(asked, available)? };
    let mut ambient = Capabilities::new();
    if !security.privileged {
        for name in &asked.add_ambient_capabilities {
            ambient.insert(parse("add_ambient_capabilities", name)?);
        }
        held.extend(&ambient);
    }
    let mut missing: Vec<String> = held.difference(available).map(|c| format!("CAP_{c}")).collect();
    if !missing.is_empty() {
        missing.sort_unstable();
        warnings.push(format!("hartpod itself lacks {}: the container does not get it", missing.join(", ")));
    }
    held.retain(|c| available.contains(c));
    ambient.retain(|c| available.contains(c));

    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(held.clone()));
    sets.set_permitted(Some(held.clone()));
    sets.set_effective(Some(held));
    // Empty but for ambient ones, which need it: see CVE-2022-24769.
    sets.set_inheritable(Some(ambient.clone()));
    sets.set_ambient(Some(ambient));
    Ok(sets)
}

/// ALL counts first, so that `add: [ALL], drop: [CHOWN]` is all but one and `drop: [ALL], add: [CHOWN]` is one.
fn chosen(asked: &cri::Capability, available: &Capabilities) -> Result<Capabilities, SpecError> {
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let mut held: Capabilities = DEFAULT.into();
    if asked.add_capabilities.iter().any(is_all) {
        held.clone_from(available);
    }
    if asked.drop_capabilities.iter().any(is_all) {
        held.clear();
    }
    for name in asked.add_capabilities.iter().filter(|n| !is_all(n)) {
        held.insert(parse("add_capabilities", name)?);
    }
    for name in asked.drop_capabilities.iter().filter(|n| !is_all(n)) {
        held.remove(&parse("drop_capabilities", name)?);
    }
    Ok(held)
}

/// Accepts NET_ADMIN, CAP_NET_ADMIN and either in any case.
fn parse(field: &str, name: &str) -> Result<Capability, SpecError> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    Capability::from_str(bare).map_err(|_| {
        SpecError::invalid(
            format!("config.linux.security_context.capabilities.{field}"),
            format!("{name:?} is not a capability"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Capabilities {
        BY_NUMBER.into()
    }

    fn asks(add: &[&str], drop: &[&str]) -> cri::LinuxContainerSecurityContext {
        let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let capabilities = cri::Capability {
            add_capabilities: own(add),
            drop_capabilities: own(drop),
            ..Default::default()
        };
        cri::LinuxContainerSecurityContext { capabilities: Some(capabilities), ..Default::default() }
    }

    fn held(security: &cri::LinuxContainerSecurityContext) -> Capabilities {
        let mut warnings = vec![];
        let sets = capabilities(security, &all(), &mut warnings).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(sets.bounding(), sets.effective());
        assert_eq!(sets.bounding(), sets.permitted());
        assert_eq!(sets.inheritable(), sets.ambient());
        sets.bounding().clone().unwrap()
    }

    #[test]
    fn adding_and_dropping_by_table() {
        let default: Capabilities = DEFAULT.into();
        let but = |c: Capability| default.iter().copied().filter(|d| *d != c).collect::<Capabilities>();
        let table: [(&[&str], &[&str], Capabilities); 8] = [
            (&[], &[], default.clone()),
            (&["NET_ADMIN"], &[], default.iter().copied().chain([NetAdmin]).collect()),
            (&["cap_net_admin"], &["ALL"], [NetAdmin].into()),
            (&[], &["CHOWN"], but(Chown)),
            (&[], &["CAP_CHOWN"], but(Chown)),
            (&[], &["all"], [].into()),
            (&["ALL"], &["CHOWN"], BY_NUMBER.into_iter().filter(|c| *c != Chown).collect()),
            (&["SYS_TIME"], &["SYS_TIME"], default.clone()),
        ];
        for (add, drop, expected) in table {
            assert_eq!(held(&asks(add, drop)), expected, "add {add:?} drop {drop:?}");
        }
    }

    #[test]
    fn a_privileged_container_has_all_whatever_it_drops() {
        let security = cri::LinuxContainerSecurityContext { privileged: true, ..asks(&[], &["ALL"]) };
        assert_eq!(held(&security), all());
    }

    #[test]
    fn an_ambient_capability_is_in_every_set() {
        let mut security = asks(&[], &["ALL"]);
        security.capabilities.as_mut().unwrap().add_ambient_capabilities = vec!["NET_BIND_SERVICE".into()];
        let sets = capabilities(&security, &all(), &mut vec![]).unwrap();
        for set in [sets.ambient(), sets.inheritable(), sets.permitted(), sets.effective(), sets.bounding()] {
            assert_eq!(set.as_ref().unwrap(), &[NetBindService].into());
        }
    }

    #[test]
    fn what_the_daemon_lacks_is_left_out_and_told() {
        let available: Capabilities = BY_NUMBER.into_iter().filter(|c| *c != SysResource).collect();
        let mut warnings = vec![];
        let sets = capabilities(&asks(&["SYS_RESOURCE"], &["ALL"]), &available, &mut warnings).unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap(), &Capabilities::new());
        assert_eq!(warnings, ["hartpod itself lacks CAP_SYS_RESOURCE: the container does not get it"]);
        warnings.clear();
        capabilities(&asks(&["ALL"], &[]), &available, &mut warnings).unwrap();
        assert!(warnings.is_empty(), "ALL means all there are: {warnings:?}");
    }

    #[test]
    fn an_unknown_capability_is_an_error_that_names_it() {
        let error = capabilities(&asks(&["FLY"], &[]), &all(), &mut vec![]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "config.linux.security_context.capabilities.add_capabilities: \"FLY\" is not a capability"
        );
    }

    #[test]
    fn a_mask_has_the_kernels_bits() {
        assert_eq!(from_mask(1 << 21 | 1), [Chown, SysAdmin].into());
        assert_eq!(from_mask(1 << 40), [CheckpointRestore].into());
        assert_eq!(from_mask(u64::MAX).len(), 41);
    }
}
