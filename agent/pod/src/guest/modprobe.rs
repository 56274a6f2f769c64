//! `/sbin/modprobe` of a guest: the kernel calls it when something asks for a module that is not loaded, e.g. iptables in a
//! container.
//!
//! Modules come from a disk of the host, mounted at the first request; what is on it is what may be loaded. The kernel's command line
//! names its slot: `hartpod.modules=3`. The disk's `index` has a line for each name: it, and the files to load, in order.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path};
use std::process::ExitCode;
use std::time::Duration;

use hartpod_container::{Slot, SlotError};
use rustix::mount::{MountFlags, mount};
use tracing::{info, warn};

use super::modules::{self, ModuleError};
use crate::status_code::chain;

/// As the kernel calls it (CONFIG_MODPROBE_PATH), with `-q -- NAME`.
pub(super) const PROGRAM: &str = "/sbin/modprobe";

/// Where the disk is mounted.
const FOLDER: &str = "/lib/modules";
const FSTYPE: &str = "erofs";
const COMMAND_LINE: &str = "/proc/cmdline";
const PARAMETER: &str = "hartpod.modules=";

/// How long the disk may take to appear.
const DISK_WAIT: Duration = Duration::from_secs(5);

/// linux/module.h: the kernel unpacks it.
const MODULE_INIT_COMPRESSED_FILE: i32 = 4;

/// Why no module was loaded.
#[derive(Debug, thiserror::Error)]
enum ModprobeError {
    #[error("this guest has no disk of modules")]
    NoDisk,
    #[error("`{PARAMETER}{value}` names no slot")]
    SlotNumber { value: String },
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error("the guest has just begun to load {FSTYPE}")]
    TooEarly,
    #[error("mount the disk of modules")]
    Mount(#[source] io::Error),
    #[error("read {path}")]
    Read { path: &'static str, source: io::Error },
    #[error("the index names {path}")]
    Path { path: String },
    #[error(transparent)]
    Module(#[from] ModuleError),
}

/// Lets the kernel find it. It is not in the initramfs: the kernel asks for ciphers while it starts, and would run this program for each of them.
pub(super) fn install() -> io::Result<()> {
    match std::os::unix::fs::symlink(super::INIT, PROGRAM) {
        // An initramfs of a previous version.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

pub(super) fn main(arguments: &[OsString]) -> ExitCode {
    let Some(name) = arguments.last().filter(|_| arguments.len() > 1) else { return ExitCode::FAILURE };
    let name = name.to_string_lossy().replace('-', "_");
    match load(&name) {
        Ok(true) => {
            info!(name, "loaded on demand");
            ExitCode::SUCCESS
        }
        // The kernel asks for much that does not exist, such as a file system's name that somebody made up.
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            warn!(name, error = chain(&error), "cannot load a module that was asked for");
            ExitCode::FAILURE
        }
    }
}

/// Modules that the kernel does not ask for when they are missed: the tool that needs them calls modprobe, and a container has none.
const UNASKED: [&str; 2] = ["ip_tables", "ip6_tables"];

/// Loads what a container needs that may set up its network with the older iptables. For a child of the agent, in the guest's own
/// mounts. What does not work is missed by the container, and told here.
pub(crate) fn load_unasked() {
    for name in UNASKED {
        if Path::new("/sys/module").join(name).exists() {
            continue;
        }
        match load(name) {
            Ok(true) => info!(name, "loaded for a container that may set up its network"),
            Ok(false) | Err(ModprobeError::NoDisk) => {}
            Err(error) => {
                warn!(name, error = chain(&error), "cannot load a module that a container may need")
            }
        }
    }
}

/// False when guests have no module of this name.
fn load(name: &str) -> Result<bool, ModprobeError> {
    let index = Path::new(FOLDER).join("index");
    if !index.exists() {
        mount_disk()?;
    }
    let index = fs::read_to_string(index)
        .map_err(|source| ModprobeError::Read { path: "the index of modules", source })?;
    let Some(files) = files(&index, name)? else { return Ok(false) };
    for file in files {
        let flags = if file.ends_with(".ko") { 0 } else { MODULE_INIT_COMPRESSED_FILE };
        modules::load(&Path::new(FOLDER).join(file), flags)?;
    }
    Ok(true)
}

/// Two requests at one time may both mount it, one on the other: that does no harm.
fn mount_disk() -> Result<(), ModprobeError> {
    let read = |path| fs::read_to_string(path).map_err(|source| ModprobeError::Read { path, source });
    let slot = slot(&read(COMMAND_LINE)?)?.ok_or(ModprobeError::NoDisk)?;
    // Else the mount would ask for the module, and that request for the mount.
    if !read("/proc/filesystems")?.split_ascii_whitespace().any(|word| word == FSTYPE) {
        return Err(ModprobeError::TooEarly);
    }
    slot.bind()?;
    let device = slot.disk(DISK_WAIT)?.partition(1, DISK_WAIT)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(&device, FOLDER, FSTYPE, flags, c"").map_err(|errno| ModprobeError::Mount(errno.into()))
}

fn slot(command_line: &str) -> Result<Option<Slot>, ModprobeError> {
    let value = command_line.split_ascii_whitespace().find_map(|word| word.strip_prefix(PARAMETER));
    let slot = |value: &str| {
        let wrong = || ModprobeError::SlotNumber { value: value.to_owned() };
        value.parse().ok().and_then(Slot::new).ok_or_else(wrong)
    };
    value.map(slot).transpose()
}

/// The files to load for a name, in order.
fn files<'a>(index: &'a str, name: &str) -> Result<Option<Vec<&'a str>>, ModprobeError> {
    let mut lines = index.lines().map(str::split_ascii_whitespace);
    let Some(line) = lines.find_map(|mut words| (words.next() == Some(name)).then_some(words)) else {
        return Ok(None);
    };
    let inside = |path: &&str| Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    let check = |path: &'a str| {
        let wrong = || ModprobeError::Path { path: path.to_owned() };
        Some(path).filter(inside).ok_or_else(wrong)
    };
    line.map(check).collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "nf_tables kernel/lib/libcrc32c.ko.xz kernel/net/netfilter/nf_tables.ko.xz\n\
        nft_chain_2_nat kernel/net/netfilter/nft_chain_nat.ko.xz\n\
        evil kernel/../../etc/x.ko\n";

    #[test]
    fn a_name_gives_its_files_in_order() {
        let expected = ["kernel/lib/libcrc32c.ko.xz", "kernel/net/netfilter/nf_tables.ko.xz"];
        assert_eq!(files(INDEX, "nf_tables").unwrap().unwrap(), expected);
        assert_eq!(files(INDEX, "nf").unwrap(), None);
        assert_eq!(files(INDEX, "").unwrap(), None);
        assert!(matches!(files(INDEX, "evil"), Err(ModprobeError::Path { .. })));
    }

    #[test]
    fn the_slot_is_on_the_command_line() {
        let told = |line| slot(line).map(|slot| slot.map(Slot::number));
        assert_eq!(told("quiet hartpod.modules=3 rdinit=/init\n").unwrap(), Some(3));
        assert_eq!(told("quiet\n").unwrap(), None);
        for line in ["hartpod.modules=", "hartpod.modules=x", "hartpod.modules=32", "hartpod.modules=-1"] {
            assert!(matches!(told(line), Err(ModprobeError::SlotNumber { .. })), "{line}");
        }
    }
}
