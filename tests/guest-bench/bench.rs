//! What all parts share: the image, two initramfs, and how long one start takes.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hartpod_vm::command_line;
use hartpod_vm::guest_image::GuestImage;
use hartpod_vm::launcher::{CONSOLE_FILE, GuestSpec};
use hartpod_vm::virtio::blk::BlockExtent;
use nix::sys::utsname::uname;
use tempfile::TempDir;

use crate::disk::Layers;
use crate::guest::{Guest, image, interrupts, spec};
use crate::initramfs::with_bare_init;
use crate::line::wait_for_line;
use crate::pod::Pod;
use crate::qemu::{self, Board, Qemu};

/// The first thing that the first user process does; its modules and their folder are treated as the agent does it.
const INIT: &str = "#!/bin/busybox sh
echo '<0>bench: up' >/dev/kmsg
for module in /modules/*.ko; do busybox insmod $module; done
busybox rm -r /modules
echo '<0>bench: settled' >/dev/kmsg
exec busybox sleep 1000000
";
/// Said by the first user process.
pub(crate) const UP: &str = "bench: up";
/// Said when it has nothing more to do.
pub(crate) const SETTLED: &str = "bench: settled";

/// Its slot: after the three that every guest has.
const FIRST_DISK: u32 = 3;

/// RAM of each guest.
pub(crate) const MEMORY_MIB: u32 = 256;

#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) runs: u32,
    image: GuestImage,
    /// The image's, but with a shell script for its agent.
    script: PathBuf,
    layers: Layers,
    dir: TempDir,
    started: Cell<u32>,
}

impl Bench {
    pub(crate) fn new(runs: u32) -> Result<Self> {
        eprintln!("build the guest's image");
        let image = image()?;
        let dir = TempDir::new().context("make a folder")?;
        let script = with_bare_init(&image, dir.path(), INIT)?;
        let layers = Layers::make(dir.path())?;
        Ok(Self { runs, image, script, layers, dir, started: Cell::new(0) })
    }

    /// What was measured on what.
    pub(crate) fn describe(&self) -> Result<String> {
        let initramfs = fs::metadata(&self.script).context("look at the initramfs")?.len();
        Ok(format!(
            "Guests of {MEMORY_MIB} MiB with one vCPU on Linux {}, interrupts by {:?}; kernel {}, initramfs {:.1} MiB; against {}. \
             {} runs of each in turn: median (least-most).\n",
            uname().context("uname")?.release().to_string_lossy(),
            interrupts()?,
            self.image.manifest.release,
            initramfs as f64 / f64::from(1 << 20),
            qemu::version()?,
            self.runs,
        ))
    }

    /// What is done for the first time (page cache, modules of the host) is not counted.
    pub(crate) fn warm_up(&self) -> Result<()> {
        eprintln!("warm up");
        self.ready(&command_line::standard())?;
        self.qemu_up(Board::Plic)?;
        Ok(())
    }

    /// A folder for a guest, not made yet.
    fn next_dir(&self) -> PathBuf {
        self.started.set(self.started.get() + 1);
        self.dir.path().join(self.started.get().to_string())
    }

    /// A guest with its agent, that has just been started, and when.
    pub(crate) fn start_agent(&self, command_line: &str) -> Result<(Guest, Instant)> {
        self.start(&self.image.initramfs(), command_line, Vec::new())
    }

    fn start(
        &self,
        initramfs: &Path,
        command_line: &str,
        disks: Vec<Vec<BlockExtent>>,
    ) -> Result<(Guest, Instant)> {
        let spec = GuestSpec {
            memory_mib: MEMORY_MIB,
            balloon: true,
            disks,
            command_line: command_line.to_owned(),
            ..spec(&self.image, initramfs.to_owned())?
        };
        let dir = self.next_dir();
        let begun = Instant::now();
        Ok((Guest::start_in(dir, spec)?, begun))
    }

    /// A peer that boots the script, and when it was started.
    pub(crate) fn start_qemu(&self, board: Board) -> Result<(Qemu, Instant)> {
        let dir = self.next_dir();
        fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        let begun = Instant::now();
        Ok((Qemu::start(&dir, board, &self.image.kernel(), &self.script)?, begun))
    }

    /// From a VMM's start to the first user process.
    pub(crate) fn up(&self) -> Result<Duration> {
        let (guest, begun) = self.start(&self.script, &command_line::standard(), Vec::new())?;
        wait_for_line(&guest.dir().join(CONSOLE_FILE), UP)?;
        Ok(begun.elapsed())
    }

    /// The same of QEMU.
    pub(crate) fn qemu_up(&self, board: Board) -> Result<Duration> {
        let (qemu, begun) = self.start_qemu(board)?;
        wait_for_line(qemu.console(), UP)?;
        Ok(begun.elapsed())
    }

    /// From a VMM's start to the agent's word that it is ready.
    pub(crate) fn ready(&self, command_line: &str) -> Result<Duration> {
        let (mut guest, begun) = self.start_agent(command_line)?;
        guest.running()?;
        guest.ready()?;
        Ok(begun.elapsed())
    }

    /// From a VMM's start to a container that runs, on a disk that is there from the beginning.
    pub(crate) fn container(&self) -> Result<Duration> {
        let (disk, scratch) = self.layers.disk(&self.image)?;
        let (mut guest, begun) =
            self.start(&self.image.initramfs(), &command_line::standard(), vec![disk])?;
        guest.running()?;
        guest.ready()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let took = runtime.block_on(async {
            let mut pod = Pod::set_up(&guest).await?;
            let _running = pod.start(FIRST_DISK, Layers::COUNT, "sleep 100000").await?;
            Ok::<_, anyhow::Error>(begun.elapsed())
        })?;
        fs::remove_file(&scratch).with_context(|| format!("remove {}", scratch.display()))?;
        Ok(took)
    }
}
