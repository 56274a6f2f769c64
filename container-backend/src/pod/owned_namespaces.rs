//! UTS and IPC namespaces that the pod's user namespace owns. Only a process in that can make them, and it could never come back: so a child does,
//! and the agent follows.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::{SetUpError, open_namespace, step, sysctl};
use crate::failure::Failure;
use crate::report::{RawFrame, Reporter, Told};
use crate::request::PodSetup;
use crate::sys::clone::{self, Birth};
use crate::sys::{exec, process};
use crate::user_namespace::UserNamespace;

/// Moves this process into new namespaces of these kinds, with the pod's kernel parameters set that only their owner may set.
pub(super) fn enter(users: &UserNamespace, flags: UnshareFlags, setup: &PodSetup) -> Result<(), SetUpError> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(step("make a pipe for the namespaces' maker"));
    let ((listen, report), (gate, lifeline)) = (pipe()?, pipe()?);
    let child = clone::fork(&Birth::default(), move || main(users, flags, setup, report, &gate))
        .map_err(step("start the namespaces' maker"))?;
    let mut said = Vec::new();
    File::from(listen).read_to_end(&mut said).map_err(step("wait for the namespaces' maker"))?;
    match crate::report::decode_all(said) {
        Ok(Some(Told::HandedOver)) => {}
        Ok(Some(Told::Failed(Failure::Sysctl { key, errno }))) => {
            return Err(sysctl::refused(setup, &key, errno.into()));
        }
        Ok(Some(Told::Failed(failure))) => return Err(SetUpError::Namespaces { failure }),
        _ => {
            return Err(SetUpError::Step {
                what: "wait for the namespaces' maker",
                source: std::io::ErrorKind::UnexpectedEof.into(),
            });
        }
    }
    let pid = child.pid().to_string();
    for (flag, kind, name) in [
        (UnshareFlags::NEWUTS, LinkNameSpaceType::HostNameAndNISDomainName, "uts"),
        (UnshareFlags::NEWIPC, LinkNameSpaceType::InterProcessCommunication, "ipc"),
    ] {
        if flags.contains(flag) {
            let namespace = open_namespace(&pid, name).map_err(step("open the pod's namespaces"))?;
            move_into_link_name_space(namespace.as_fd(), Some(kind))
                .map_err(step("enter the pod's namespaces"))?;
        }
    }
    // It ends by itself, and is reaped as an orphan.
    drop(lifeline);
    Ok(())
}

fn main(
    users: &UserNamespace,
    flags: UnshareFlags,
    setup: &PodSetup,
    report: OwnedFd,
    gate: &OwnedFd,
) -> i32 {
    let mut reporter = Reporter::new(report);
    if let Err(failure) = make(users, flags, setup, &reporter, gate) {
        // An error means that the agent is gone.
        let _ = reporter.failed(&failure);
        return 1;
    }
    let done = RawFrame::handed_over();
    if reporter.pipe().write_all(&done.bytes[..done.len]).is_err() {
        return 1;
    }
    drop(reporter);
    // Until the agent has opened the namespaces, or is gone.
    let _ = rustix::io::read(gate, &mut [0]);
    0
}

fn make(
    users: &UserNamespace,
    flags: UnshareFlags,
    setup: &PodSetup,
    reporter: &Reporter,
    gate: &OwnedFd,
) -> Result<(), Failure> {
    let step = |step: &'static str| move |errno| Failure::Step { step: step.into(), errno };
    let mut keep: Vec<BorrowedFd<'_>> = (0..3).map(process::standard_stream).collect();
    keep.extend([reporter.pipe().as_fd(), gate.as_fd(), users.as_fd()]);
    process::close_all_except(&keep).map_err(|e| step("close descriptors")(e.into()))?;
    users.enter().map_err(step("enter the user namespace"))?;
    exec::unshare(flags).map_err(step("make namespaces"))?;
    sysctl::set_owned(setup)
}
