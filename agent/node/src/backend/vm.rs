//! Pods in guests, each inside a VMM of its own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hartpod_container::cgroup::{CgroupError, Leaf, LimitError, Limits};
use hartpod_container::launcher::start_time;
use hartpod_vm::boot::Interrupts;
use hartpod_vm::command_line;
use hartpod_vm::guest_image::{GuestImage, OpenError};
use hartpod_vm::launcher::{
    self, FollowError, Follower, GuestSpec, LaunchError, STATUS_FILE, WaitingVmm, choose_interrupts,
};
use hartpod_vm::status::{Event, Exit, ExitReason};
use hartpod_vm::tap::{self, Tap, TapError};
use hartpod_vm::virtio::blk::BlockExtent;
use oci_spec::runtime::{LinuxMemory, LinuxResources};
use rustix::process::Pid;

use super::{Backend, LOG, NoHandler, StartError, StartedAgent, log_file};
use crate::agent_client::Door;
use crate::config::{Config, Vm};
use crate::guest::{FIRST_DISK, GuestInfo, NoUser, SLOTS, VmmUser, VmmUsers};
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

    fn spec(&self, guest: &GuestInfo, tap: &Tap) -> Result<GuestSpec, VmStartError> {
        let image = GuestImage::current(&self.root)?;
        let mut command_line = command_line::standard();
        let mut disks = Vec::new();
        if let Some(path) = image.modules() {
            let file = File::open(&path).map_err(|source| VmStartError::Open { path, source })?;
            disks.push(vec![BlockExtent { file: file.into(), read_only: true }]);
            command_line.push_str(&format!(" hartpod.modules={FIRST_DISK}"));
        }
        if !guest.plan.kernel_arguments.is_empty() {
            command_line.push(' ');
            command_line.push_str(&guest.plan.kernel_arguments);
        }
        Ok(GuestSpec {
            user: Some(guest.user.uid),
            memory_mib: guest.plan.memory_mib,
            vcpus: guest.plan.vcpus,
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

    /// The VMM and the guest's memory, which no kubelet accounts for one by one.
    fn limits(&self, guest: &GuestInfo) -> Result<Limits, VmStartError> {
        let most = (u64::from(guest.plan.memory_mib) + self.config.overhead_mib) << 20;
        let mut memory = LinuxMemory::default();
        memory.set_limit(i64::try_from(most).ok());
        let mut resources = LinuxResources::default();
        resources.set_memory(Some(memory));
        Ok(Limits::from_oci(&resources)?)
    }
}

impl Backend for VmBackend {
    fn start_blocking(&self, pod: &PodInfo, dir: &Path, leaf: &Leaf) -> Result<StartedAgent, StartError> {
        let guest = pod.guest.as_ref().ok_or(VmStartError::NoPlan)?;
        let netns = pod.netns.as_deref().ok_or(VmStartError::NoNetns)?;
        let program = self.program().map_err(VmStartError::from)?;
        let tap = open_tap(netns)?;
        let spec = self.spec(guest, &tap)?;
        for warning in leaf.create(&self.limits(guest)?)? {
            tracing::debug!(cgroup = leaf.cgroup_path(), %warning, "cgroup of a guest made");
        }
        let log = log_file(&dir.join(LOG))?;
        let waiting = launcher::start(&program, dir, spec, log.into()).map_err(VmStartError::from)?;
        let started = boot_blocking(waiting, leaf)?;
        Ok(StartedAgent { tap: Some(tap), ..started })
    }

    fn await_ready_blocking(&self, dir: &Path, process: BorrowedFd<'_>) -> Result<(), StartError> {
        let mut follower = Follower::new(dir, process).map_err(VmStartError::from)?;
        loop {
            match follower.next_blocking(BOOT).map_err(VmStartError::from)? {
                Some(Event::Running) => {}
                Some(Event::Ready) => return Ok(()),
                Some(Event::Exited(exit)) => {
                    let said = super::last_line_blocking(&dir.join(LOG));
                    return Err(VmStartError::Ended(describe(&exit, said)).into());
                }
                None => return Err(VmStartError::Silent.into()),
            }
        }
    }

    fn door(&self) -> Door {
        Door::Vsock
    }

    fn last_words_blocking(&self, dir: &Path) -> Option<String> {
        let said = super::last_line_blocking(&dir.join(LOG));
        let status = super::last_line_blocking(&dir.join(STATUS_FILE))?;
        match serde_json::from_str(&status) {
            Ok(Event::Exited(exit)) => Some(describe(&exit, said)),
            // Killed, most likely.
            Ok(_) => said.map(|said| format!("the VMM last said: {said}")),
            Err(error) => Some(format!("its status file is damaged: {error}")),
        }
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
        ExitReason::Killed => "the VMM was killed",
    };
    match (exit.detail.is_empty(), said) {
        (false, _) => format!("{what}: {}", exit.detail),
        (true, Some(said)) => format!("{what}; the VMM last said: {said}"),
        (true, None) => what.to_owned(),
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
        assert_eq!(describe(&killed, None), "the VMM was killed");
    }
}
