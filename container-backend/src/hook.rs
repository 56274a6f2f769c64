//! The agent starts a hook: outside of the container, before the container has entered its root, or in it.

use std::ffi::CString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use oci_spec::runtime::Hook;
use rustix::process::getpid;

use crate::begin::report;
use crate::cgroup::ExecLeaf;
use crate::channel::{Channel, Successor};
use crate::child::Child;
use crate::container::create::StreamPlan;
use crate::container::exec::{self, ExecPlan};
use crate::container::hook::{self, HookPlan, HookProgram};
use crate::container::settings::text;
use crate::container::streams::Streams;
use crate::container_process::ContainerProcess;
use crate::launch::{Creating, Execing, LaunchError, OVER, agent, failure_of};
use crate::pod::Pod;
use crate::report::Told;
use crate::sys::clone::{self, Birth};
use crate::sys::mailbox::Mailbox;

/// One hook to run.
#[derive(Debug)]
pub struct HookRequest<'a> {
    /// Its path, arguments and environment.
    pub hook: &'a Hook,
    /// Where it runs.
    pub place: HookPlace<'a>,
    /// A cgroup of its own, below the agent's or, for one that runs in the container, the container's; made by this request.
    pub leaf: &'a ExecLeaf,
    /// stdin, stdout and stderr.
    pub stdio: [OwnedFd; 3],
}

/// Where a hook runs.
#[derive(Debug, Clone, Copy)]
pub enum HookPlace<'a> {
    /// On the host, as if the daemon ran it.
    Runtime {
        /// Folder of the container's spec, and the hook's working folder.
        bundle: &'a Path,
    },
    /// On the host, but among the container's mounts.
    HookPoint {
        /// As above.
        bundle: &'a Path,
        /// The container.
        point: &'a HookPoint,
    },
    /// In the container, as an exec: with its user, capabilities, filter and limits, in its working folder.
    Container(&'a ContainerProcess),
}

/// A container before pivot_root, waiting for its hooks.
#[derive(Debug)]
pub struct HookPoint {
    pid: i32,
    mounts: OwnedFd,
    cgroups: Option<OwnedFd>,
}

impl HookPoint {
    /// The container's process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }
}

impl Creating {
    /// As [`Creating::poll`], once before it, for a container with a bundle: it stops where hooks can see it.
    ///
    /// # Errors
    /// As there.
    pub fn poll_hook_point(&mut self) -> Result<Option<HookPoint>, LaunchError> {
        let channel = self.channel.as_mut().ok_or(OVER)?;
        match channel.next()? {
            None => return Ok(None),
            Some(Told::AtHooks) => {}
            Some(Told::End) => return Err(LaunchError::Died),
            Some(other) => return Err(failure_of(other, "")),
        }
        let draft = self.draft.as_ref().ok_or(OVER)?;
        let pid = channel.child().map_or(0, Child::pid);
        let namespace = |kind| {
            crate::pod::open_namespace(&pid.to_string(), kind)
                .map_err(agent("open the container's namespaces"))
        };
        Ok(Some(HookPoint {
            pid,
            mounts: namespace("mnt")?,
            cgroups: draft.own_cgroup_namespace.then(|| namespace("cgroup")).transpose()?,
        }))
    }

    /// Its hooks have run: lets it go on.
    ///
    /// # Errors
    /// It is dead.
    pub fn pass_hook_point(&mut self) -> Result<(), LaunchError> {
        let gate = self.draft.as_ref().ok_or(OVER)?.gate.try_clone().map_err(agent("open the gate"))?;
        File::from(gate).write_all(b"h").map_err(|_| LaunchError::Died)
    }
}

impl Pod {
    /// Starts a hook, whose sub-leaf is there when this returns: destroy it when the hook is over.
    ///
    /// # Errors
    /// The hook holds NUL bytes, or the sub-leaf or the child could not be made.
    pub fn begin_hook(&self, request: HookRequest<'_>) -> Result<Execing, LaunchError> {
        let program = program(request.hook)?;
        let name = request.hook.path().to_string_lossy().into_owned();
        request.leaf.create()?;
        let cgroup = request.leaf.open_unified()?;
        let birth = Birth { new_pid: false, cgroup: Some(cgroup.as_fd()) };
        let (listener, report) = report()?;
        let mut mailbox = None;
        let child = match request.place {
            HookPlace::Runtime { bundle } => {
                let namespaces: Vec<BorrowedFd<'_>> =
                    self.left.iter().map(AsFd::as_fd).chain([self.host.as_fd()]).collect();
                let streams = Streams::Three(request.stdio);
                let plan = HookPlan { agent: getpid(), namespaces, program, bundle, streams };
                clone::fork(&birth, || hook::main(&plan, report))
            }
            HookPlace::HookPoint { bundle, point } => {
                let namespaces =
                    point.cgroups.iter().map(AsFd::as_fd).chain([point.mounts.as_fd()]).collect();
                let streams = Streams::Three(request.stdio);
                let plan = HookPlan { agent: getpid(), namespaces, program, bundle, streams };
                clone::fork(&birth, || hook::main(&plan, report))
            }
            HookPlace::Container(container) => {
                let made = container.pid_namespace.is_some().then(Mailbox::new).transpose();
                mailbox = made.map_err(agent("make a mailbox"))?;
                let plan = ExecPlan {
                    container,
                    keyring: text("id", &format!("hartpod-{}", container.id))?,
                    argv: program.argv.clone(),
                    hook: Some(program),
                    streams: StreamPlan::Three(request.stdio),
                    mailbox: mailbox.as_ref().map(Mailbox::address),
                };
                clone::fork(&birth, || exec::main(plan, report))
            }
        };
        let child = child.map_err(agent("clone the hook's process"))?;
        let successor = mailbox.map_or(Successor::Nobody, Successor::Program);
        Ok(Execing::new(Channel::new(listener, child, None, successor), name))
    }
}

fn program(hook: &Hook) -> Result<HookProgram, LaunchError> {
    let path = CString::new(hook.path().as_os_str().as_bytes())
        .map_err(|_| LaunchError::Spec { why: "hooks.path holds a NUL byte".into() })?;
    let texts = |what: &str, list: &Option<Vec<String>>| -> Result<Vec<CString>, LaunchError> {
        list.iter().flatten().map(|item| text(what, item)).collect()
    };
    let mut argv = texts("hooks.args", hook.args())?;
    if argv.is_empty() {
        argv.push(path.clone());
    }
    Ok(HookProgram { path, argv, env: texts("hooks.env", hook.env())? })
}
