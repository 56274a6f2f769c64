//! The peer: Debian's QEMU with KVM.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use hartpod_vm::command_line;

use crate::bench::MEMORY_MIB;

const PROGRAM: &str = "qemu-system-riscv64";

/// Its interrupt controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Board {
    /// What `-M virt` has.
    Plic,
    /// KVM's AIA.
    Aia,
}

impl Board {
    fn name(self) -> &'static str {
        match self {
            Self::Plic => "virt",
            Self::Aia => "virt,aia=aplic-imsic",
        }
    }
}

/// Name and version.
pub(crate) fn version() -> Result<String> {
    let output = Command::new(PROGRAM).arg("--version").output().with_context(|| format!("run {PROGRAM}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// One that runs; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Qemu {
    child: Child,
    console: PathBuf,
}

impl Qemu {
    /// Starts one with a balloon that takes back what the guest reports as free, and nothing else that is not on the board. Calls of
    /// the SBI's debug console come to its first serial port, as to hartpod-vmm's console.
    pub(crate) fn start(dir: &Path, board: Board, kernel: &Path, initramfs: &Path) -> Result<Self> {
        let console = dir.join("console");
        File::create(&console).context("create the console's file")?;
        let mut command = Command::new(PROGRAM);
        command
            .args(["-M", board.name(), "-enable-kvm", "-cpu", "host", "-nodefaults", "-display", "none"])
            .args(["-no-reboot", "-m", &MEMORY_MIB.to_string()])
            .args(["-device", "virtio-balloon-device,free-page-reporting=on"])
            .arg("-chardev")
            .arg(format!("file,id=console,append=on,path={}", console.display()))
            .args(["-serial", "chardev:console"])
            .args([Path::new("-kernel"), kernel, Path::new("-initrd"), initramfs])
            .args(["-append", &command_line::standard()])
            .stdin(Stdio::null());
        let child = command.spawn().with_context(|| format!("start {PROGRAM}"))?;
        Ok(Self { child, console })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn console(&self) -> &Path {
        &self.console
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
