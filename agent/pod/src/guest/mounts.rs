//! The mounts of a guest.

use std::fs;
use std::io;

use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::process::{chdir, chroot};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

/// A mount could not be made.
#[derive(Debug, thiserror::Error)]
#[error("mount {what} on {target}")]
pub(crate) struct MountError {
    what: &'static str,
    target: &'static str,
    source: io::Error,
}

struct Mount {
    fstype: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: &'static std::ffi::CStr,
}

const QUIET: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// In order; the same options as systemd's, so that containers find what they find on a node.
const MOUNTS: [Mount; 7] = [
    Mount { fstype: "devtmpfs", target: "/dev", flags: MountFlags::NOSUID, options: c"mode=755" },
    Mount { fstype: "devpts", target: "/dev/pts", flags: QUIET, options: c"gid=5,mode=620,ptmxmode=666" },
    Mount { fstype: "tmpfs", target: "/dev/shm", flags: QUIET, options: c"mode=1777" },
    Mount { fstype: "proc", target: "/proc", flags: QUIET, options: c"" },
    Mount { fstype: "sysfs", target: "/sys", flags: QUIET, options: c"" },
    Mount {
        fstype: "cgroup2",
        target: "/sys/fs/cgroup",
        flags: QUIET,
        options: c"nsdelegate,memory_recursiveprot",
    },
    Mount {
        fstype: "tmpfs",
        target: "/run",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=755",
    },
];

/// The first root has no parent, so the kernel refuses to pivot away from it. A bind mount of itself moved onto it has one, and is the
/// root of this process and of the kernel's own from then on.
pub(super) fn make_root_movable() -> Result<(), MountError> {
    // Any folder will do; it is where the copy stands for a moment.
    const ASIDE: &str = "/run";
    let failed = |error: rustix::io::Errno| MountError {
        what: "a copy of the root",
        target: "/",
        source: error.into(),
    };
    mount_bind("/", ASIDE).map_err(failed)?;
    chdir(ASIDE).map_err(failed)?;
    mount_move(".", "/").map_err(failed)?;
    chroot(".").map_err(failed)?;
    chdir("/").map_err(failed)
}

pub(super) fn mount_all() -> Result<(), MountError> {
    for Mount { fstype, target, flags, options } in MOUNTS {
        let failed = |source| MountError { what: fstype, target, source };
        match fs::create_dir(target) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        mount(fstype, target, fstype, flags, options).map_err(|errno| failed(errno.into()))?;
    }
    Ok(())
}

/// Makes the kernel's log this process's stderr: in a guest there is no other place that outlives it. stdin and stdout are nothing.
pub(super) fn log_to_kernel() -> Result<(), MountError> {
    // Else it takes ten lines in five seconds. Where the command line has decided it stays as it is.
    let _ = fs::write("/proc/sys/kernel/printk_devkmsg", "on\n");
    let device = |path: &'static str, flags| {
        open(path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| MountError {
            what: "devices",
            target: path,
            source: errno.into(),
        })
    };
    let null = device("/dev/null", OFlags::RDWR)?;
    let log = device("/dev/kmsg", OFlags::WRONLY)?;
    let failed =
        |errno: rustix::io::Errno| MountError { what: "devices", target: "/dev", source: errno.into() };
    dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).and_then(|()| dup2_stderr(&log)).map_err(failed)
}
