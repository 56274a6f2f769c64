//! Disks of containers: an image's layers as EROFS files, and a copy of the scratch file system.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hartpod_tests::skip::BUSYBOX;
use hartpod_vm::guest_image::GuestImage;
use hartpod_vm::launcher::Control;
use hartpod_vm::virtio::blk::BlockExtent;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// Two layers: busybox, and one that replaces a file of it and hides another; and what a test adds.
#[derive(Debug)]
pub(crate) struct Layers {
    dir: PathBuf,
    files: Vec<PathBuf>,
}

impl Layers {
    pub(crate) const COUNT: u32 = 2;

    /// Makes them in the test's folder.
    pub(crate) fn make(dir: &Path) -> Result<Self> {
        let lower = dir.join("lower");
        for name in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
            fs::create_dir_all(lower.join(name))?;
        }
        let busybox = lower.join("bin/busybox");
        fs::copy(BUSYBOX, &busybox).with_context(|| format!("copy {BUSYBOX}"))?;
        fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755))?;
        for name in ["cat", "dd", "ip", "md5sum", "mkdir", "sh", "sleep", "sync", "touch"] {
            symlink("busybox", lower.join("bin").join(name))?;
        }
        fs::write(lower.join("etc/layer"), "lower\n")?;
        fs::write(lower.join("etc/hidden"), "lower\n")?;

        let upper = dir.join("upper");
        fs::create_dir_all(upper.join("etc"))?;
        fs::write(upper.join("etc/layer"), "upper\n")?;
        // overlayfs's whiteout.
        mknod(&upper.join("etc/hidden"), SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).context("mknod")?;

        let files = vec![erofs(&lower)?, erofs(&upper)?];
        Ok(Self { dir: dir.to_owned(), files })
    }

    /// One more, on top, of what is in this folder.
    pub(crate) fn add(&mut self, tree: &Path) -> Result<()> {
        self.files.push(erofs(tree)?);
        Ok(())
    }

    /// Fills a slot of a running guest with a disk of them and a scratch file of its own, whose path is returned.
    pub(crate) fn fill(&self, control: &Control, image: &GuestImage, slot: u32) -> Result<PathBuf> {
        let (disk, scratch) = self.disk(image)?;
        control.fill(slot, &disk)?;
        Ok(scratch)
    }

    /// A disk of them and a scratch file of its own, whose path is returned too.
    pub(crate) fn disk(&self, image: &GuestImage) -> Result<(Vec<BlockExtent>, PathBuf)> {
        let scratch = self.scratch(image)?;
        let layer = |path| Ok(BlockExtent { file: File::open(path)?.into(), read_only: true });
        let mut disk = self.files.iter().map(layer).collect::<Result<Vec<_>>>()?;
        let file = OpenOptions::new().read(true).write(true).open(&scratch)?;
        disk.push(BlockExtent { file: file.into(), read_only: false });
        Ok((disk, scratch))
    }

    /// A sparse copy of the image's, as the daemon makes one for each container.
    fn scratch(&self, image: &GuestImage) -> Result<PathBuf> {
        let scratch = (0..).map(|n| self.dir.join(format!("scratch.{n}"))).find(|path| !path.exists());
        let scratch = scratch.context("no name is free")?;
        let copied = Command::new("cp").arg("--sparse=always").arg(image.scratch()).arg(&scratch).status()?;
        ensure!(copied.success(), "cp: {copied}");
        Ok(scratch)
    }
}

/// Bytes that a file takes.
pub(crate) fn taken(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path)?.blocks() * 512)
}

/// The disk of modules that guests load on demand.
pub(crate) fn modules(image: &GuestImage) -> Result<Vec<BlockExtent>> {
    let file = File::open(image.modules().context("the image has no disk of modules")?)?;
    Ok(vec![BlockExtent { file: file.into(), read_only: true }])
}

fn erofs(tree: &Path) -> Result<PathBuf> {
    let file = tree.with_extension("erofs");
    let made =
        Command::new("mkfs.erofs").arg("--quiet").arg(&file).arg(tree).output().context("mkfs.erofs")?;
    ensure!(made.status.success(), "mkfs.erofs: {}", String::from_utf8_lossy(&made.stderr));
    Ok(file)
}
