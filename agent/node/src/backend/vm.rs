//! Pods in guests, each inside a VMM of its own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hartpod_container::cgroup::{CgroupError, Leaf, LimitError, Limits};
use hartpod_container::launcher::start_time;
use hartpod_vm::boot::Interrupts;
use hartpod_vm::command_line;
use hartpod_vm::guest_image::{GuestImage, OpenError};
use hartpod_vm::launcher::{
    self, FollowError, Follower, GuestSpec, LaunchError, MAX_STATUS_LINE, STATUS_FILE, WaitingVmm,
    choose_interrupts,
};
use hartpod_vm::status::{Event, Exit, ExitReason};
use hartpod_vm::tap::{self, Tap, TapError};
use hartpod_vm::virtio::blk::BlockExtent;
use oci_spec::runtime::{LinuxMemory, LinuxResources};
use rustix::process::Pid;

use super::{Backend, LOG, NoHandler, StartError, StartedAgent, log_file, printable};
use crate::agent_client::Door;
use crate::config::{Config, Vm};
use crate::guest::{FIRST_DISK, GuestPlan, NoUser, SLOTS, VmmUser, VmmUsers};
use crate::pod::PodInfo;
use crate::records::AgentRecord;

/// Says which interrupt controller guests get, `plic` or `aia`, where a trial would say otherwise.
const INTERRUPTS: &str = "HARTPOD_VMM_INTERRUPTS";
/// For a guest to boot up to its agent: a second, or many on a board that starts many guests at once. The kubelet gives RunPodSandbox four
/// minutes.
const BOOT: Duration = Duration::from_secs(150);

/// A guest could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmStartError {
    #[error("pod has no network namespace")]
    NoNetns,
    #[error("pod is not planned as a guest")]
    NoPlan,
    #[error(transparent)]
    Handler(#[from] NoHandler),
    #[error(transparent)]
    Image(#[from] OpenError),
    #[error("open {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("network of the guest")]
    Tap(#[from] TapError),
    #[error("network card of the guest")]
    TapDevice(#[source] io::Error),
    #[error("memory limit of the VMM")]
    Limit(#[from] LimitError),
    #[error("start the VMM")]
    Launch(#[from] LaunchError),
    #[error("put the VMM into its cgroup")]
    Join(#[source] CgroupError),
    #[error("look at the VMM")]
    Look(#[source] io::Error),
    #[error("follow the guest")]
    Follow(#[from] FollowError),
    #[error("the guest ended while it was booting: {0}")]
    Ended(String),
    #[error("the guest did not boot within {} s", BOOT.as_secs())]
    Silent,
}

impl From<VmStartError> for StartError {
    fn from(error: VmStartError) -> Self {
        Self::Vm(Box::new(error))
    }
}

#[derive(Debug)]
pub(crate) struct VmBackend {
    config: Vm,
    /// Where guest images are.
    root: PathBuf,
    users: VmmUsers,
    /// Guards the choice while it is made.
    interrupts: Mutex<Option<Interrupts>>,
}

impl VmBackend {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            root: config.root.clone(),
            users: VmmUsers::new(config.vm.uid_range),
            config: config.vm.clone(),
            interrupts: Mutex::default(),
        }
    }

    /// The VMM for guests to come. Those that run do not need it: it may be away for a moment, as while it is replaced.
    pub(crate) fn program(&self) -> Result<PathBuf, NoHandler> {
        self.config.vmm_path().map_err(NoHandler::NoVmm)
    }

    pub(crate) fn config(&self) -> &Vm {
        &self.config
    }

    /// The user of a VMM that an earlier daemon started.
    pub(crate) fn retake_user(&self, uid: u32) -> VmmUser {
        self.users.retake(uid)
    }

    /// A user for one more VMM.
    pub(crate) fn user(&self) -> Result<VmmUser, NoUser> {
        self.users.take()
    }

    fn interrupts(&self) -> Result<Interrupts, LaunchError> {
        let mut known = self.interrupts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = *known {
            return Ok(known);
        }
        let chosen = match std::env::var(INTERRUPTS).as_deref() {
            Ok("plic") => Interrupts::Plic,
            Ok("aia") => Interrupts::Aia,
            _ => choose_interrupts()?,
        };
        tracing::info!(interrupts = ?chosen, "guests' interrupt controller");
        *known = Some(chosen);
        Ok(chosen)
    }

    fn spec(
        &self,
        (user, plan): (u32, &GuestPlan),
        tap: &Tap,
        image: &GuestImage,
    ) -> Result<GuestSpec, VmStartError> {
        let mut command_line = command_line::standard();
        let mut disks = Vec::new();
        if let Some(path) = image.modules() {
            let file = File::open(&path).map_err(|source| VmStartError::Open { path, source })?;
            disks.push(vec![BlockExtent { file: file.into(), read_only: true }]);
            command_line.push_str(&format!(" hartpod.modules={FIRST_DISK}"));
        }
        if !plan.kernel_arguments.is_empty() {
            command_line.push(' ');
            command_line.push_str(&plan.kernel_arguments);
        }
        Ok(GuestSpec {
            user: Some(user),
            memory_mib: plan.ceiling.memory_mib,
            vcpus: plan.ceiling.vcpus,
            interrupts: self.interrupts()?,
            kernel: image.kernel(),
            initramfs: image.initramfs(),
            command_line,
            console_limit: self.config.console_kib << 10,
            net: Some(tap.device().map_err(VmStartError::TapDevice)?),
            balloon: true,
            spare_slots: SLOTS - FIRST_DISK - u32::try_from(disks.len()).unwrap_or(0),
            disks,
        })
    }

    /// Limits of a VMM's leaf.
    pub(crate) fn leaf_limits(&self, pod: &PodInfo) -> Result<Limits, StartError> {
        let plan = pod.guest.as_ref().and_then(|guest| guest.plan.as_ref()).ok_or(VmStartError::NoPlan)?;
        Ok(self.limits(plan.memory_mib.into()).map_err(VmStartError::from)?)
    }

    /// The VMM and what its guest may use, which no kubelet accounts for one by one.
    pub(crate) fn limits(&self, memory_mib: u64) -> Result<Limits, LimitError> {
        let most = (memory_mib + self.config.overhead_mib) << 20;
        let mut memory = LinuxMemory::default();
        memory.set_limit(i64::try_from(most).ok());
        let mut resources = LinuxResources::default();
        resources.set_memory(Some(memory));
        Limits::from_oci(&resources)
    }
}

impl Backend for VmBackend {
    fn start_blocking(&self, pod: &PodInfo, dir: &Path, leaf: &Leaf) -> Result<StartedAgent, StartError> {
        let guest = pod.guest.as_ref().ok_or(VmStartError::NoPlan)?;
        let netns = pod.netns.as_deref().ok_or(VmStartError::NoNetns)?;
        let program = self.program().map_err(VmStartError::from)?;
        let tap = open_tap(netns)?;
        let plan = guest.plan.as_ref().ok_or(VmStartError::NoPlan)?;
        // Held until the launcher has opened its files: a build removes what nobody uses.
        let image = GuestImage::current(&self.root).map_err(VmStartError::from)?;
        let spec = self.spec((guest.user.uid, plan), &tap, &image)?;
        for warning in leaf.create(&self.leaf_limits(pod)?)? {
            tracing::debug!(cgroup = leaf.cgroup_path(), %warning, "cgroup of a guest made");
        }
        let log = log_file(&dir.join(LOG))?;
        let waiting = launcher::start(&program, dir, spec, log.into()).map_err(VmStartError::from)?;
        drop(image);
        let started = boot_blocking(waiting, leaf)?;
        Ok(StartedAgent { tap: Some(tap), ..started })
    }

    fn await_ready_blocking(&self, dir: &Path, process: BorrowedFd<'_>) -> Result<(), StartError> {
        Ok(await_ready_blocking(dir, process, BOOT)?)
    }

    fn door(&self) -> Door {
        Door::Vsock
    }
}

/// Until the guest's agent has said so. However much else the VMM says, `patience` is for all of it.
fn await_ready_blocking(dir: &Path, process: BorrowedFd<'_>, patience: Duration) -> Result<(), VmStartError> {
    let deadline = Instant::now() + patience;
    let mut follower = Follower::new(dir, process)?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match follower.next_blocking(left)? {
            Some(Event::Exited(exit)) => {
                return Err(VmStartError::Ended(describe(&exit, super::last_said_blocking(dir))));
            }
            Some(_) | None if left.is_zero() => return Err(VmStartError::Silent),
            Some(Event::Ready) => return Ok(()),
            Some(Event::Running) | None => {}
        }
    }
}

/// Why a guest ended, as its VMM wrote it down.
pub(super) fn last_words_blocking(dir: &Path) -> Option<String> {
    // A line, and the end of the one before.
    const TAIL: u64 = MAX_STATUS_LINE as u64 + 2;
    let path = dir.join(STATUS_FILE);
    if !path.exists() {
        return None;
    }
    let said = super::last_said_blocking(dir);
    let killed = Exit { reason: ExitReason::Killed, detail: String::new() };
    match super::last_line_blocking(&path, TAIL).map(|line| serde_json::from_str(&line)) {
        // As the VMM cuts it, if the guest has not taken it over.
        Some(Ok(Event::Exited(exit))) => Some(describe(&Exit::new(exit.reason, &exit.detail), said)),
        // It is the last thing that a VMM writes.
        Some(Ok(Event::Running | Event::Ready)) | None => Some(describe(&killed, said)),
        Some(Err(_)) => Some("its status file is damaged".to_owned()),
    }
}

fn open_tap(netns: &Path) -> Result<Tap, VmStartError> {
    let file = File::open(netns).map_err(|source| VmStartError::Open { path: netns.to_owned(), source })?;
    Ok(tap::open_blocking(file.as_fd())?)
}

/// From now on it is in the leaf, and what it takes is counted there.
fn boot_blocking(waiting: WaitingVmm, leaf: &Leaf) -> Result<StartedAgent, VmStartError> {
    let pid = waiting.process().pid;
    let joined = match Pid::from_raw(pid) {
        Some(pid) => leaf.add_pid(pid).map_err(VmStartError::Join),
        None => Ok(()),
    };
    match joined.and_then(|()| start_time(pid).map_err(VmStartError::Look)) {
        Ok(start_time) => {
            let process = waiting.boot()?;
            Ok(StartedAgent { record: AgentRecord { pid, start_time }, pidfd: process.pidfd, tap: None })
        }
        Err(error) => {
            waiting.cancel();
            Err(error)
        }
    }
}

/// In words; the detail of a panic is the guest's own.
fn describe(exit: &Exit, said: Option<String>) -> String {
    let what = match exit.reason {
        ExitReason::PowerOff => "the guest powered off",
        ExitReason::Reset => "the guest asked for a reboot",
        ExitReason::Panic => "the guest's kernel panicked",
        ExitReason::KvmFailure => "KVM or the VMM could not go on",
        ExitReason::SetUpFailure => "the guest could not be set up",
        ExitReason::Killed => "the VMM ended without a word: it was killed",
    };
    match (exit.detail.is_empty(), said) {
        (false, _) if exit.reason != ExitReason::Killed => format!("{what}: {}", printable(&exit.detail)),
        (_, Some(said)) => format!("{what}; the VMM last said: {said}"),
        (_, None) => what.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_with_its_detail() {
        let panic = Exit::new(ExitReason::Panic, "Kernel panic - not syncing: sysrq triggered crash");
        assert_eq!(
            describe(&panic, Some("noise".into())),
            "the guest's kernel panicked: Kernel panic - not syncing: sysrq triggered crash"
        );
        let killed = Exit::new(ExitReason::Killed, "");
        assert_eq!(describe(&killed, None), "the VMM ended without a word: it was killed");
    }

    /// A folder with this status file.
    fn folder(status: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(STATUS_FILE), status).unwrap();
        dir
    }

    #[test]
    fn what_a_vmm_wrote_down_is_the_reason_even_if_it_is_long() {
        let words = |status: &str| last_words_blocking(folder(status).path());
        // The longest there can be: every byte is six in the file.
        let exit = Event::Exited(Exit::new(ExitReason::Panic, &"\u{1}".repeat(2000)));
        let status = format!("{{\"event\":\"running\"}}\n{}\n", serde_json::to_string(&exit).unwrap());
        assert_eq!(words(&status).unwrap(), format!("the guest's kernel panicked: {}", " ".repeat(1024)));
        let killed = Some("the VMM ended without a word: it was killed".to_owned());
        assert_eq!(words("{\"event\":\"ready\"}\n"), killed);
        assert_eq!(words(""), killed);
        assert_eq!(words("{\"event\":\"\u{1b}[2J\"}\n").unwrap(), "its status file is damaged");
        assert_eq!(last_words_blocking(tempfile::tempdir().unwrap().path()), None);
    }

    #[test]
    fn a_vmm_that_says_much_is_not_waited_for_any_longer() {
        let pid = rustix::process::getpid();
        let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        let ready = "{\"event\":\"running\"}\n".repeat(3) + "{\"event\":\"ready\"}\n";
        let dir = folder(&ready);
        let late = await_ready_blocking(dir.path(), process.as_fd(), Duration::ZERO).unwrap_err();
        assert!(matches!(late, VmStartError::Silent), "{late}");
        await_ready_blocking(dir.path(), process.as_fd(), Duration::from_secs(60)).unwrap();
    }
}
