//! A guest that a test starts: launched as the daemon does it, followed to its end, reaped in any case.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hartpod_tests::eventually::patient;
use hartpod_tests::{Lab, node};
use hartpod_vm::boot::Interrupts;
use hartpod_vm::command_line;
use hartpod_vm::guest_image::GuestImage;
use hartpod_vm::launcher::{
    CONSOLE_FILE, Control, Follower, GuestSpec, VmmProcess, choose_interrupts, launch,
};
use hartpod_vm::status::{Event, Exit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// Says which interrupt controller guests get, `plic` or `aia`, where a probe would say otherwise.
const INTERRUPTS: &str = "HARTPOD_VMM_INTERRUPTS";

/// From its start to its first process: seconds where guests run at the machine's speed.
const BOOT: Duration = Duration::from_secs(20);

/// The image of this machine's guests.
pub(crate) fn image() -> Result<GuestImage> {
    GuestImage::current(&hartpod_tests::guest::image_root()?).context("open the guest's image")
}

pub(crate) fn interrupts() -> Result<Interrupts> {
    match std::env::var(INTERRUPTS).as_deref() {
        Err(_) => choose_interrupts().context("try which interrupt controller works"),
        Ok("plic") => Ok(Interrupts::Plic),
        Ok("aia") => Ok(Interrupts::Aia),
        Ok(other) => bail!("{INTERRUPTS} is {other:?}: plic or aia"),
    }
}

/// A guest of this image with one vCPU and 256 MiB; fields may be changed.
pub(crate) fn spec(image: &GuestImage, initramfs: PathBuf) -> Result<GuestSpec> {
    Ok(GuestSpec {
        user: Some(free_user()),
        memory_mib: 256,
        vcpus: 1,
        interrupts: interrupts()?,
        kernel: image.kernel(),
        initramfs,
        // So that a test that fails shows the kernel's messages.
        command_line: command_line::with_messages(),
        console_limit: 1 << 20,
        net: None,
        balloon: false,
        disks: Vec::new(),
        spare_slots: 0,
    })
}

/// One that no other VMM of this run has. Threads are counted per user, and tests, each a process in a pid namespace of its own, run side by side.
pub(crate) fn free_user() -> u32 {
    use std::hash::{BuildHasher as _, RandomState};

    // Far above what a distribution gives out.
    let random = RandomState::new().hash_one(()) >> 35;
    0x4000_0000 | u32::try_from(random).unwrap_or(0)
}

/// A guest that runs, or one that did.
#[derive(Debug)]
pub(crate) struct Guest {
    dir: PathBuf,
    vmm: VmmProcess,
    follower: Follower,
    reaped: bool,
}

impl Guest {
    /// Starts one with a folder of its own in the test's.
    pub(crate) fn start(lab: &Lab, name: &str, spec: GuestSpec) -> Result<Self> {
        Self::start_in(lab.dir().join(name), spec)
    }

    /// Starts one with this folder, which is made.
    pub(crate) fn start_in(dir: PathBuf, spec: GuestSpec) -> Result<Self> {
        use std::os::fd::AsFd as _;

        fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        // Shown when the test fails.
        let stderr = File::create(dir.join("daemon.log")).context("create the log of the VMM")?;
        let vmm = launch(&node::bin_dir().join("hartpod-vmm"), &dir, spec, stderr.into())?;
        let follower = Follower::new(&dir, vmm.pidfd.as_fd())?;
        Ok(Self { dir, vmm, follower, reaped: false })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The VMM's.
    pub(crate) fn pid(&self) -> i32 {
        self.vmm.pid
    }

    pub(crate) fn control(&self) -> Result<Control> {
        Ok(Control::connect(&self.dir)?)
    }

    pub(crate) fn console(&self) -> String {
        let bytes = fs::read(self.dir.join(CONSOLE_FILE)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// The next event, within `limit` of an ordinary machine's time.
    fn event(&mut self, limit: Duration) -> Result<Event> {
        let event = self.follower.next_blocking(patient(limit))?;
        event.with_context(|| format!("the guest told nothing in {limit:?}\n{}", self.story()))
    }

    pub(crate) fn running(&mut self) -> Result<()> {
        let event = self.event(BOOT)?;
        ensure!(event == Event::Running, "{event:?} instead of running\n{}", self.story());
        Ok(())
    }

    /// Waits until the agent inside has said that it is up.
    pub(crate) fn ready(&mut self) -> Result<()> {
        let event = self.event(BOOT)?;
        ensure!(event == Event::Ready, "{event:?} instead of ready\n{}", self.story());
        Ok(())
    }

    /// Waits until the guest has ended, and its VMM too.
    pub(crate) fn exited(&mut self, limit: Duration) -> Result<Exit> {
        let Event::Exited(exit) = self.event(limit)? else {
            bail!("the guest did not end\n{}", self.story());
        };
        self.reap()?;
        Ok(exit)
    }

    /// Waits for a line of the console that contains `text`, and returns it.
    pub(crate) fn says(&self, text: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + patient(limit);
        loop {
            let console = self.console();
            // Whole lines only: the rest of the last one may be on its way.
            let whole = console.rsplit_once('\n').map_or("", |(whole, _)| whole);
            if let Some(line) = whole.lines().find(|line| line.contains(text)) {
                return Ok(line.to_owned());
            }
            ensure!(Instant::now() < deadline, "no {text:?} on the console in {limit:?}\n{}", self.story());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub(crate) fn kill(&self) -> Result<()> {
        kill(Pid::from_raw(self.pid()), Signal::SIGKILL).context("kill the VMM")
    }

    fn reap(&mut self) -> Result<()> {
        if !self.reaped {
            waitpid(Pid::from_raw(self.vmm.pid), None).context("reap the VMM")?;
            self.reaped = true;
        }
        Ok(())
    }

    /// The end of the console.
    fn story(&self) -> String {
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let from = lines.len().saturating_sub(40);
        format!(
            "--- console of {} (last {} lines)\n{}",
            self.dir.display(),
            lines.len() - from,
            lines[from..].join("\n")
        )
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.kill();
            let _ = self.reap();
        }
    }
}
