//! An initramfs whose init is a test's own script, for what the VMM does whatever runs inside.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use hartpod_tests::skip::BUSYBOX;
use hartpod_vm::guest_image::GuestImage;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// An init that has mounted what it needs when `script` begins, and powers off after it.
pub(crate) fn with_init(image: &GuestImage, dir: &Path, script: &str) -> Result<PathBuf> {
    with_bare_init(image, dir, &format!("{PRELUDE}{script}\npoweroff -f\n"))
}

/// The script replaces the image's agent and has its modules, a busybox and /dev/kmsg.
pub(crate) fn with_bare_init(image: &GuestImage, dir: &Path, script: &str) -> Result<PathBuf> {
    let tree = dir.join("initramfs.d");
    fs::create_dir_all(tree.join("bin"))?;
    fs::copy(BUSYBOX, tree.join("bin/busybox")).with_context(|| format!("copy {BUSYBOX}"))?;
    let init = tree.join("init");
    fs::write(&init, script)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    fs::create_dir_all(tree.join("dev"))?;
    // Documentation/admin-guide/devices.txt
    mknod(&tree.join("dev/kmsg"), SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, makedev(1, 11))
        .context("make /dev/kmsg")?;
    with_tree(image, dir, &tree, "bin\nbin/busybox\ndev\ndev/kmsg\ninit\n")
}

/// The agent, with this in place of what the image tells it of its modules.
pub(crate) fn with_index(image: &GuestImage, dir: &Path, index: &str) -> Result<PathBuf> {
    let tree = dir.join("initramfs.d");
    fs::create_dir_all(tree.join("modules"))?;
    fs::write(tree.join("modules/index"), index)?;
    with_tree(image, dir, &tree, "modules/index\n")
}

/// The kernel unpacks one archive after the other: the image's first, then these files.
fn with_tree(image: &GuestImage, dir: &Path, tree: &Path, names: &str) -> Result<PathBuf> {
    let mut archive = fs::read(image.initramfs()).context("read the image's initramfs")?;
    // An archive begins at a multiple of 4 bytes.
    archive.resize(archive.len().next_multiple_of(4), 0);
    let mut cpio = Command::new(BUSYBOX);
    cpio.args(["cpio", "-o", "-H", "newc"]).current_dir(tree).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut cpio = cpio.stderr(Stdio::null()).spawn().context("run busybox cpio")?;
    cpio.stdin.take().context("no stdin")?.write_all(names.as_bytes())?;
    let output = cpio.wait_with_output().context("wait for busybox cpio")?;
    ensure!(output.status.success(), "busybox cpio: {}", output.status);
    archive.extend(output.stdout);
    let path = dir.join("initramfs");
    fs::write(&path, archive).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// What a script says is on the kernel's console, as messages of the emergency level: they come however quiet the kernel is.
const PRELUDE: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /sys /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
say() { echo "<0>test: $*" >/dev/kmsg; }
modules() { for module in /modules/*.ko; do insmod $module || say "no $module"; done; }
"#;
