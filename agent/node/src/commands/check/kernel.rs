//! What the kernel offers.

use std::path::Path;

use hartpod_container::cgroup::{Controller, Tree};
use oci_spec::runtime::Capability;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use super::Finding::{self, Fail, Ok as Fine, Warn};
use crate::config::Config;
use crate::spec::SpecSettings;

/// The oldest kernel that hartpod is written for, and the oldest that has cgroup.kill, without which no pod ends.
const WRITTEN_FOR: (u32, u32) = (6, 1);
const OLDEST: (u32, u32) = (5, 14);

pub(super) fn version() -> Finding {
    judge_version(&rustix::system::uname().release().to_string_lossy())
}

fn judge_version(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().ok());
    let (Some(Some(major)), Some(Some(minor))) = (numbers.next(), numbers.next()) else {
        return Warn(format!("{release} is not a version that is understood"));
    };
    let (wanted, least) =
        (format!("{}.{}", WRITTEN_FOR.0, WRITTEN_FOR.1), format!("{}.{}", OLDEST.0, OLDEST.1));
    match (major, minor) {
        v if v >= WRITTEN_FOR => Fine(release.to_owned()),
        v if v >= OLDEST => Warn(format!("{release} is older than {wanted}, which hartpod is written for")),
        _ => Fail(format!("{release} is older than {least}")),
    }
}

/// Asked in ways that change nothing: a filter around this machine (a container's, say) may hide calls that the kernel has.
pub(super) fn system_calls() -> Finding {
    let own = rustix::process::getpid();
    let answers: [(&str, Result<(), Errno>); 3] = [
        ("pidfd_open", rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).map(drop)),
        (
            "openat2",
            rustix::fs::openat2(CWD, "/", OFlags::PATH, Mode::empty(), ResolveFlags::NO_SYMLINKS).map(drop),
        ),
        ("open_tree", rustix::mount::open_tree(CWD, "/", OpenTreeFlags::empty()).map(drop)),
    ];
    let missing: Vec<&str> = answers.iter().filter(|(_, a)| a.is_err()).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        let names: Vec<&str> = answers.iter().map(|(name, _)| *name).collect();
        Fine(names.join(", "))
    } else {
        Fail(format!("not available: {}", missing.join(", ")))
    }
}

pub(super) fn namespaces() -> Finding {
    const NEEDED: [&str; 6] = ["mnt", "pid", "net", "ipc", "uts", "cgroup"];
    let missing: Vec<&str> =
        NEEDED.into_iter().filter(|n| !Path::new("/proc/self/ns").join(n).exists()).collect();
    if missing.is_empty() {
        Fine(NEEDED.join(", "))
    } else {
        Fail(format!("the kernel has no namespaces for: {}", missing.join(", ")))
    }
}

/// What hartpod itself uses; what it merely hands on is not asked.
pub(super) fn capabilities() -> Finding {
    use Capability::*;
    const NEEDED: [Capability; 11] =
        [SysAdmin, NetAdmin, SysChroot, Setuid, Setgid, Setpcap, Chown, DacOverride, Fowner, Kill, Mknod];
    let held = SpecSettings::detect(&Config::default()).capabilities;
    let missing: Vec<String> =
        NEEDED.iter().filter(|c| !held.contains(c)).map(|c| format!("CAP_{c}")).collect();
    if !rustix::process::geteuid().is_root() {
        return Fail("not root".to_owned());
    }
    if !missing.is_empty() {
        return Fail(format!("missing: {}", missing.join(", ")));
    }
    if !held.contains(&SysResource) {
        return Warn(
            "no CAP_SYS_RESOURCE: oom_score_adj of containers is not lowered below hartpod's".to_owned(),
        );
    }
    Fine("all that are needed".to_owned())
}

pub(super) fn seccomp() -> Finding {
    match std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) if actions.split_whitespace().any(|a| a == "errno") => Fine("filters".to_owned()),
        _ => Warn("the kernel has no filters: containers that ask for a profile are refused".to_owned()),
    }
}

pub(super) fn security_modules() -> Finding {
    let settings = SpecSettings::detect(&Config::default());
    match (&settings.apparmor, &settings.selinux) {
        (None, Some(_)) => Fine("SELinux".to_owned()),
        (None, None) if Path::new("/sys/fs/selinux/enforce").exists() => {
            Warn("SELinux is on, but there is no policy for containers (container-selinux): they are not labelled".to_owned())
        }
        (None, None) => Fine("neither AppArmor nor SELinux is on".to_owned()),
        (Some(kernel), _) if kernel.has_parser() => Fine("AppArmor".to_owned()),
        (Some(_), _) => Warn("AppArmor is on, but there is no apparmor_parser: containers are not confined by it, and those that ask for RuntimeDefault are refused".to_owned()),
    }
}

pub(super) fn cgroups(root: &Path) -> Finding {
    let tree = match Tree::detect(root) {
        Ok(tree) => tree,
        Err(error) => return Fail(super::place::in_one_line(&error)),
    };
    let known = [
        ("cpu", Controller::Cpu),
        ("memory", Controller::Memory),
        ("pids", Controller::Pids),
        ("cpuset", Controller::Cpuset),
        ("io", Controller::Io),
        ("hugetlb", Controller::Hugetlb),
    ];
    let names = |wanted: bool| {
        let found = known.iter().filter(|(_, c)| tree.has(*c) == wanted);
        found.map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    };
    let essential = known[..3].iter().all(|(_, c)| tree.has(*c));
    if essential {
        Fine(format!("{}: {}", tree.mode(), names(true)))
    } else {
        Warn(format!("{}: no limits for {}", tree.mode(), names(false)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_judged_by_their_first_two_numbers() {
        let word = |release: &str| match judge_version(release) {
            Fine(_) => "ok",
            Warn(_) => "warn",
            Fail(_) => "fail",
            Finding::Note(_) => "-",
        };
        for (release, expected) in [
            ("6.12.43+deb13-riscv64", "ok"),
            ("6.1.0", "ok"),
            ("10.0-rc1", "ok"),
            ("5.15.0-91-generic", "warn"),
            ("5.14", "warn"),
            ("5.10.0", "fail"),
            ("4.19.1", "fail"),
            ("mainline", "warn"),
        ] {
            assert_eq!(word(release), expected, "{release}");
        }
    }
}
