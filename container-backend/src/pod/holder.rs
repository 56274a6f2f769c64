//! The holder: init of a pod's shared pid namespace.
//!
//! It is the one process of ours that containers can see, touch and, with SYS_PTRACE, drive. So it holds nothing: no
//! capability, an empty read-only root, a seccomp filter that allows it to wait, no descriptors, and no memory but its code
//! (see [`crate::sys::scrub`]). Before all that, alone in its namespace, it makes the procfs that the pod's containers get
//! copies of: only a process inside can. In a pod with a user namespace it hands that procfs to the agent, whose mounts are out of its reach.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use libc::sock_filter as Instruction;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{chdir, pivot_root};
use rustix::thread::UnshareFlags;

use super::private_root::{EMPTY, POD_PROC};
use super::{SetUpError, open_namespace, step};
use crate::child::Child;
use crate::container::capability::CapabilitySets;
use crate::container::own_proc::OwnProc;
use crate::container::{console, identity};
use crate::errno::Errno;
use crate::failure::Failure;
use crate::id_maps::{IdMaps, IdRange};
use crate::mount;
use crate::report::{Reporter, Told};
use crate::request::ResolvedUser;
use crate::sys::clone::{self, Birth};
use crate::sys::mailbox::Mailbox;
use crate::sys::{exec, process, scrub};
use crate::user_namespace::UserNamespace;

/// nobody; any number but root's, so that root in a container is no owner of it.
const NOBODY: u32 = 65534;
/// What ps shows.
const NAME: &std::ffi::CStr = c"hartpod-holder";

/// The running holder and what it holds.
#[derive(Debug)]
pub(crate) struct Holder {
    pub(crate) child: Child,
    pub(crate) pid_namespace: Arc<OwnedFd>,
}

/// Starts the holder; returns once it is harmless.
pub(super) fn start(users: Option<&UserNamespace>) -> Result<Holder, SetUpError> {
    let failed = |what| move |source| SetUpError::Step { what, source };
    let (listen, report) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| failed("make a pipe for the holder")(e.into()))?;
    let child = match users {
        None => {
            let birth = Birth { new_pid: true, cgroup: None };
            clone::fork(&birth, move || main(report, None)).map_err(failed("start the holder"))?
        }
        Some(users) => return start_owned(users, listen, report),
    };
    ready(child, listen)
}

/// The pid namespace belongs to the user namespace if a process in that clones its init, which is done by a child that ends then.
fn start_owned(users: &UserNamespace, listen: OwnedFd, report: OwnedFd) -> Result<Holder, SetUpError> {
    let failed = |what| move |source| SetUpError::Step { what, source };
    let mailbox = Mailbox::new().map_err(failed("make a mailbox"))?;
    let (ours, theirs) = console::socket().map_err(step("make a socket for the pod's /proc"))?;
    let address = mailbox.address();
    clone::fork(&Birth::default(), move || {
        let mut reporter = Reporter::new(report);
        let cloned = users.enter().map_err(io::Error::from).and_then(|()| {
            let report = reporter.pipe().try_clone()?;
            clone::fork_init_sibling(address, || {
                main(report.into(), Some(Owned { users: users.maps(), socket: theirs }))
            })
        });
        let Err(error) = cloned else { return 0 };
        let failure = Failure::Step { step: "clone the holder".into(), errno: error.into() };
        // An error means that the agent is gone.
        let _ = reporter.failed(&failure);
        1
    })
    .map_err(failed("start the holder"))?;
    let told = wait_until_ready(listen);
    let child = mailbox.get().map(Child::adopt).transpose().map_err(failed("take over the holder"))?;
    let child = match (told, child) {
        (Ok(()), Some(child)) => child,
        (Ok(()), None) => return Err(failed("take over the holder")(io::ErrorKind::NotFound.into())),
        (Err(failure), child) => {
            // It is on its way out anyway.
            child.map(|child| child.signal(libc::SIGKILL));
            return Err(SetUpError::Holder { failure });
        }
    };
    let attach = || {
        let point = rustix::fs::open(Path::new(POD_PROC), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        mount::attach(console::receive(&ours)?, point)
    };
    attach().map_err(step("attach the pod's /proc"))?;
    held(child)
}

fn ready(child: Child, listen: OwnedFd) -> Result<Holder, SetUpError> {
    match wait_until_ready(listen) {
        Ok(()) => {}
        Err(failure) => {
            // It is on its way out anyway.
            let _ = child.signal(libc::SIGKILL);
            return Err(SetUpError::Holder { failure });
        }
    }
    held(child)
}

fn held(child: Child) -> Result<Holder, SetUpError> {
    let namespace =
        open_namespace(&child.pid().to_string(), "pid").map_err(step("open the pid namespace"))?;
    Ok(Holder { child, pid_namespace: Arc::new(namespace) })
}

/// It says that it is done when all is dropped and the filter is loaded; then it closes the pipe.
fn wait_until_ready(listen: OwnedFd) -> Result<(), Failure> {
    let strange = |errno| Failure::Step { step: "wait for the holder".into(), errno };
    let mut text = Vec::new();
    File::from(listen).read_to_end(&mut text).map_err(|e| strange(e.into()))?;
    match crate::report::decode_all(text) {
        Ok(Some(Told::HandedOver)) => Ok(()),
        Ok(Some(Told::Failed(failure))) => Err(failure),
        Ok(Some(Told::LastStage(step, errno))) => Err(Failure::Step { step: step.into(), errno }),
        _ => Err(strange(Errno::from_raw(libc::EPROTO))),
    }
}

/// What a holder in a user namespace has besides.
struct Owned<'a> {
    users: &'a IdMaps,
    /// Where the pod's /proc goes.
    socket: OwnedFd,
}

fn main(report: OwnedFd, owned: Option<Owned<'_>>) -> i32 {
    let mut reporter = Reporter::new(report);
    match become_holder(&reporter, owned.as_ref()) {
        Ok(never) => match never {},
        Err(failure) => {
            // An error means that the agent is gone.
            let _ = reporter.failed(&failure);
            1
        }
    }
}

fn become_holder(reporter: &Reporter, owned: Option<&Owned<'_>>) -> Result<Infallible, Failure> {
    fn step<E: Into<Errno>>(step: &'static str) -> impl FnOnce(E) -> Failure {
        move |e| Failure::Step { step: step.into(), errno: e.into() }
    }
    let mut keep: Vec<BorrowedFd<'_>> = (0..3).map(process::standard_stream).collect();
    keep.push(reporter.pipe().as_fd());
    keep.extend(owned.map(|owned| owned.socket.as_fd()));
    process::close_all_except(&keep).map_err(step("close descriptors"))?;
    rustix::process::setsid().map_err(step("start a session"))?;
    rustix::thread::set_name(NAME).map_err(step("take a name"))?;
    process::ignore_children_and_block_signals().map_err(step("block signals"))?;
    if owned.is_none() {
        make_pod_proc().map_err(step("mount the pod's /proc"))?;
    }
    let own_proc = OwnProc::open(None)?;
    let maps = own_proc.open_maps().map_err(step("open the memory map"))?;
    exec::unshare(UnshareFlags::NEWNS).map_err(step("make a mount namespace"))?;
    let nobody = match owned {
        Some(owned) => {
            hand_over_pod_proc(owned).map_err(step("mount the pod's /proc"))?;
            nobody_of(owned.users)
        }
        None => (NOBODY, NOBODY),
    };
    enter_empty_root().map_err(step("enter the empty root"))?;
    let nobody = ResolvedUser { uid: nobody.0, gid: nobody.1, additional_gids: Vec::new() };
    identity::assume(&nobody, CapabilitySets::default())?;
    rustix::thread::set_no_new_privs(true).map_err(step("set no_new_privs"))?;
    let pipes = scrub::Pipes { maps: maps.as_fd(), report: reporter.pipe().as_fd() };
    scrub::hold(&filter(), pipes).map_err(step("make room"))
}

/// In the agent's mount namespace, in which this process still is, so that containers find it in their copies.
fn make_pod_proc() -> Result<(), Errno> {
    let proc = mount::new("proc", "proc", &[])?;
    let point = rustix::fs::open(Path::new(POD_PROC), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    mount::attach(proc, point)
}

/// From the user namespace's own mount namespace: in the agent's it may not mount anything.
fn hand_over_pod_proc(owned: &Owned<'_>) -> Result<(), Errno> {
    let proc = mount::new("proc", "proc", &[])?;
    console::send(owned.socket.as_fd(), proc.as_fd())
}

/// Ids that the namespace has, root's only if it has no others.
fn nobody_of(users: &IdMaps) -> (u32, u32) {
    let one = |ranges: &[IdRange]| {
        let has = |id: u32| ranges.iter().any(|r| id >= r.container && id - r.container < r.length);
        if has(NOBODY) {
            NOBODY
        } else {
            ranges.iter().map(|r| r.container + (r.length - 1)).max().unwrap_or(0)
        }
    };
    (one(users.uids()), one(users.gids()))
}

fn enter_empty_root() -> Result<(), Errno> {
    // A mount of this namespace's own: one that came with a copy for another user namespace cannot become the root.
    let point = rustix::fs::open(Path::new(EMPTY), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    mount::attach(mount::clone_of(EMPTY, false)?, point)?;
    chdir(EMPTY)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(chdir("/")?)
}

/// Allows what a waiting process needs (and the last word of one that starts to wait; later there is nothing to write to), and kills it for anything else, whoever made it call that.
fn filter() -> Vec<Instruction> {
    // linux/audit.h
    #[cfg(target_arch = "x86_64")]
    const ARCHITECTURE: u32 = 0xc000_003e;
    #[cfg(target_arch = "riscv64")]
    const ARCHITECTURE: u32 = 0xc000_00f3;
    #[cfg(target_arch = "aarch64")]
    const ARCHITECTURE: u32 = 0xc000_00b7;
    const ALLOWED: [libc::c_long; 7] = [
        libc::SYS_ppoll,
        libc::SYS_write,
        libc::SYS_rt_sigreturn,
        libc::SYS_restart_syscall,
        libc::SYS_close_range,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    // linux/bpf_common.h, linux/seccomp.h
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const KILL_PROCESS: u32 = 0x8000_0000;
    let op = |code, k| Instruction { code, jt: 0, jf: 0, k };
    let mut program = vec![
        // Offsets in struct seccomp_data: the architecture is at 4, the call's number at 0.
        op(LOAD, 4),
        Instruction { jt: 1, ..op(JUMP_IF_EQUAL, ARCHITECTURE) },
        op(RETURN, KILL_PROCESS),
        op(LOAD, 0),
    ];
    for (call, left) in ALLOWED.iter().zip((0..7).rev()) {
        // Over the calls that are left and the kill.
        let number = u32::try_from(*call).unwrap_or(u32::MAX);
        program.push(Instruction { jt: left + 1, ..op(JUMP_IF_EQUAL, number) });
    }
    program.extend([op(RETURN, KILL_PROCESS), op(RETURN, ALLOW)]);
    program
}
