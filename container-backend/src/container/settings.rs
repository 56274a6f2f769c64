//! The process part of an OCI spec, lowered once and kept for execs.

use std::ffi::CString;
use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::runtime::{PosixRlimitType, Process, Spec};
use rustix::process::Resource;

use super::capability::CapabilitySets;
use crate::launch::LaunchError;
use crate::seccomp::Program;

/// What a container's init and every exec in it have in common.
#[derive(Debug, Clone)]
pub(crate) struct ProcessSettings {
    pub(crate) env: Vec<CString>,
    pub(crate) cwd: PathBuf,
    pub(crate) capabilities: CapabilitySets,
    pub(crate) no_new_privileges: bool,
    pub(crate) rlimits: Vec<ResourceLimit>,
    pub(crate) oom_score_adj: i32,
    pub(crate) umask: u32,
    /// Security label that execve changes to.
    pub(crate) label: Option<ExecLabel>,
    pub(crate) seccomp: Option<Arc<Program>>,
}

/// A limit of setrlimit(2).
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResourceLimit {
    pub(crate) resource: Resource,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// For /proc/self/attr: what the Linux security module in use is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ExecLabel {
    AppArmor(String),
    SeLinux(String),
}

/// Usual for programs that do not care.
const DEFAULT_UMASK: u32 = 0o022;

impl ProcessSettings {
    /// # Errors
    /// The spec has no process, or asks for what is not supported; nothing is ignored silently.
    pub(crate) fn from_oci(spec: &Spec) -> Result<Self, LaunchError> {
        let process = spec.process().as_ref().ok_or(LaunchError::Spec { why: "it has no process".into() })?;
        refuse_unsupported(spec, process)?;
        let env = process.env().iter().flatten().map(|v| text("process.env", v)).collect::<Result<_, _>>()?;
        let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        Ok(Self {
            env,
            cwd: process.cwd().clone(),
            capabilities: CapabilitySets::from_oci(process.capabilities().as_ref()),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            rlimits: rlimits(process),
            oom_score_adj: process.oom_score_adj().unwrap_or(0),
            umask: process.user().umask().unwrap_or(DEFAULT_UMASK),
            label: label(process),
            seccomp: seccomp.map(Program::compile).transpose()?.map(Arc::new),
        })
    }
}

fn refuse_unsupported(spec: &Spec, process: &Process) -> Result<(), LaunchError> {
    let linux = spec.linux().as_ref();
    let unsupported = [
        (linux.is_some_and(|l| l.intel_rdt().is_some()), "linux.intelRdt"),
        (linux.is_some_and(|l| l.personality().is_some()), "linux.personality"),
        (linux.is_some_and(|l| l.memory_policy().is_some()), "linux.memoryPolicy"),
        (linux.is_some_and(|l| l.net_devices().is_some()), "linux.netDevices"),
        (linux.is_some_and(|l| l.time_offsets().is_some()), "linux.timeOffsets"),
        (process.io_priority().is_some(), "process.ioPriority"),
        (process.scheduler().is_some(), "process.scheduler"),
    ];
    match unsupported.iter().find(|(asked, _)| *asked) {
        Some((_, what)) => Err(LaunchError::Spec { why: format!("{what} are not supported") }),
        None => Ok(()),
    }
}

fn label(process: &Process) -> Option<ExecLabel> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let apparmor = given(process.apparmor_profile()).map(ExecLabel::AppArmor);
    apparmor.or_else(|| given(process.selinux_label()).map(ExecLabel::SeLinux))
}

/// A string that goes to the kernel.
pub(crate) fn text(what: &str, value: &str) -> Result<CString, LaunchError> {
    CString::new(value).map_err(|_| LaunchError::Spec { why: format!("{what} holds a NUL byte") })
}

fn rlimits(process: &Process) -> Vec<ResourceLimit> {
    let limits = process.rlimits().iter().flatten();
    limits.map(|l| ResourceLimit { resource: resource(l.typ()), soft: l.soft(), hard: l.hard() }).collect()
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}
