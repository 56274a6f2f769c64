//! The one place where errors become gRPC codes.
//!
//! Callers look at codes in few places: the kubelet takes DeadlineExceeded of ExecSync as "the probe timed out", and NotFound
//! as "gone already". The rest is for people and other clients.

use hartpod_cni::{CniError, GenerateError};
use hartpod_container::cgroup::{UpdateError, UpdateFault};
use hartpod_images::{InvalidAuth, InvalidReference, PullError, RemoveError};
use hartpod_proto::shorten;
use hartpod_streaming::RequestError;
use tonic::{Code, Status};

use crate::agent_client::AgentError;
use crate::backend::NoHandler;
use crate::container::ExecError;
use crate::guest::{LogError, NoUser, VolumeError};
use crate::image_use::Busy;
use crate::pod::{
    CreateError, RemoveContainerError, RemovePodError, ResizeError, RunError, StartError, StopContainerError,
    StopError, UpdateContainerError,
};
use crate::registry::LookupError;
use crate::server::{NameTaken, PodCidrError, ReopenError};
use crate::spec::SpecError;
use crate::stats::ReadError;
use crate::validate::InvalidRequest;

/// An error that a caller may get to see.
pub(crate) trait Coded: std::error::Error {
    /// Its gRPC code.
    fn code(&self) -> Code;
}

/// The answer that tells an error, with its causes.
pub(crate) fn status(error: &(impl Coded + 'static)) -> Status {
    let text = shorten(crate::chain(error));
    let code = match error.code() {
        Code::Internal if is_shortage(error) => Code::ResourceExhausted,
        code => code,
    };
    if matches!(code, Code::Internal | Code::Unavailable) {
        tracing::error!(error = text, "request failed");
    } else {
        tracing::debug!(error = text, ?code, "request refused");
    }
    Status::new(code, text)
}

/// Whether disk space or descriptors ran out on the node: no fault of the request, but one that passes.
fn is_shortage(error: &(dyn std::error::Error + 'static)) -> bool {
    let shortage = |errno: i32| matches!(errno, libc::ENOSPC | libc::EDQUOT | libc::EMFILE | libc::ENFILE);
    std::iter::successors(Some(error), |error| error.source()).any(|error| {
        let io = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        let errno = error.downcast_ref::<rustix::io::Errno>().map(|errno| errno.raw_os_error());
        io.or(errno).is_some_and(shortage)
    })
}

impl Coded for LookupError {
    fn code(&self) -> Code {
        match self {
            Self::Empty { .. } | Self::Ambiguous { .. } => Code::InvalidArgument,
            Self::NotFound { .. } => Code::NotFound,
        }
    }
}

impl Coded for InvalidRequest {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }
}

impl Coded for NameTaken {
    fn code(&self) -> Code {
        Code::AlreadyExists
    }
}

impl Coded for NoHandler {
    fn code(&self) -> Code {
        match self {
            Self::Architecture => Code::Unimplemented,
            Self::NoVmm(_) => Code::FailedPrecondition,
            Self::Unknown { .. } => Code::InvalidArgument,
        }
    }
}

impl Coded for AgentError {
    fn code(&self) -> Code {
        match self {
            // The agent's word on what was asked; but a thing that it does not know is no answer to what our caller named.
            Self::Answered { code, .. } => match code {
                Code::InvalidArgument
                | Code::FailedPrecondition
                | Code::AlreadyExists
                | Code::PermissionDenied
                | Code::ResourceExhausted
                | Code::DeadlineExceeded
                | Code::Unimplemented => *code,
                Code::NotFound | Code::OutOfRange => Code::InvalidArgument,
                // It was removed meanwhile, at somebody's request: no fault of the node.
                Code::Aborted => Code::FailedPrecondition,
                Code::Ok
                | Code::Cancelled
                | Code::Unknown
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
                | Code::Unauthenticated => Code::Internal,
            },
            Self::TimedOut { .. } | Self::Silent { .. } => Code::DeadlineExceeded,
            Self::Unreachable { .. } => Code::Unavailable,
        }
    }
}

impl Coded for NoUser {
    fn code(&self) -> Code {
        Code::ResourceExhausted
    }
}

fn log(error: &LogError) -> Code {
    match error {
        LogError::Place(_) => Code::InvalidArgument,
        LogError::Open { .. } | LogError::Vmm(_) | LogError::Token(_) | LogError::BrokenOff(_) => {
            Code::Internal
        }
    }
}

fn cni(error: &CniError) -> Code {
    match error {
        CniError::NotReady(_) => Code::FailedPrecondition,
        CniError::Attachment(_) => Code::InvalidArgument,
        CniError::Cache(_) | CniError::Add { .. } | CniError::Del { .. } | CniError::Check { .. } => {
            Code::Internal
        }
        CniError::Interrupted => Code::Unavailable,
    }
}

impl Coded for RunError {
    fn code(&self) -> Code {
        match self {
            Self::Handler(source) => source.code(),
            Self::CgroupParent(_) | Self::InvalidNetwork(_) => Code::InvalidArgument,
            Self::Network { source, .. } => cni(source),
            Self::SetUp(source) => source.code(),
            Self::Label(source) => spec(source),
            Self::Left { error, .. } => error.code(),
            Self::NotUp { .. } | Self::NoUserNamespaces(_) | Self::UserNamespace { .. } => {
                Code::FailedPrecondition
            }
            Self::OutOfMemory { .. } => Code::ResourceExhausted,
            Self::Files { source, .. } if source.is_the_requests_fault() => Code::InvalidArgument,
            Self::NoId(_)
            | Self::Record { .. }
            | Self::StateDir { .. }
            | Self::Files { .. }
            | Self::LabelFile { .. }
            | Self::Netns { .. }
            | Self::Start { .. }
            | Self::Scope { .. }
            | Self::GuestEnded { .. }
            | Self::Watch { .. }
            | Self::Thread { .. }
            | Self::Tap { .. }
            | Self::BrokenOff { .. } => Code::Internal,
        }
    }
}

impl Coded for StopError {
    fn code(&self) -> Code {
        match self {
            Self::Refused { .. } => Code::FailedPrecondition,
            Self::TearDown { .. } => Code::Internal,
        }
    }
}

impl Coded for RemovePodError {
    fn code(&self) -> Code {
        match self {
            Self::Refused { .. } => Code::FailedPrecondition,
            Self::Stop(source) => source.code(),
            Self::Container(source) => source.code(),
            Self::Record { .. } | Self::BrokenOff { .. } => Code::Internal,
        }
    }
}

impl Coded for CreateError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid(source) => source.code(),
            Self::PodNotReady { .. } | Self::NoTarget { .. } => Code::FailedPrecondition,
            Self::NameTaken { .. } => Code::AlreadyExists,
            Self::NoImage { .. } | Self::NoVolumeImage { .. } => Code::NotFound,
            Self::ImageBusy(source) => source.code(),
            Self::NoSlot => Code::ResourceExhausted,
            Self::Log { source, .. } => log(source),
            Self::Volume { source, .. } => volume(source),
            Self::Spec(source) => spec(source),
            Self::Agent(source) => source.code(),
            Self::NoId(_)
            | Self::Cgroup { .. }
            | Self::Scope { .. }
            | Self::Limits { .. }
            | Self::Encode { .. }
            | Self::Record { .. }
            | Self::Scratch { .. }
            | Self::Disk { .. }
            | Self::BrokenOff { .. } => Code::Internal,
        }
    }
}

fn volume(error: &VolumeError) -> Code {
    match error {
        VolumeError::Missing => Code::FailedPrecondition,
        VolumeError::Kind(_) => Code::InvalidArgument,
        VolumeError::Stuck => Code::DeadlineExceeded,
        VolumeError::Open(_)
        | VolumeError::Busy
        | VolumeError::Thread(_)
        | VolumeError::BrokenOff
        | VolumeError::Start(_)
        | VolumeError::Attach(_)
        | VolumeError::Server(_) => Code::Internal,
    }
}

fn spec(error: &SpecError) -> Code {
    match error {
        SpecError::Invalid { .. }
        | SpecError::Unsupported { .. }
        | SpecError::ReadProfile { .. }
        | SpecError::ParseProfile { .. }
        | SpecError::Cdi(_)
        | SpecError::Device { .. } => Code::InvalidArgument,
        SpecError::AppArmor(_) => Code::FailedPrecondition,
    }
}

impl Coded for StartError {
    fn code(&self) -> Code {
        match self {
            Self::Refused { .. } | Self::PodNotReady { .. } => Code::FailedPrecondition,
            Self::Agent(source) => source.code(),
        }
    }
}

fn update(error: &UpdateError) -> Code {
    match error.fault() {
        UpdateFault::Value => Code::InvalidArgument,
        UpdateFault::State => Code::FailedPrecondition,
        UpdateFault::Node => Code::Internal,
    }
}

impl Coded for ResizeError {
    fn code(&self) -> Code {
        match self {
            Self::NotReady { .. } | Self::UnderWay { .. } | Self::NoRoom { .. } => Code::FailedPrecondition,
            Self::Leaf { source, .. } => update(source),
            Self::Handler(source) => source.code(),
            Self::Agent { source, .. } => source.code(),
            Self::Limit { .. } | Self::Path(_) | Self::BrokenOff { .. } => Code::Internal,
        }
    }
}

impl Coded for UpdateContainerError {
    fn code(&self) -> Code {
        match self {
            Self::NotAlive { .. } | Self::PodNotReady { .. } | Self::NoRoom { .. } => {
                Code::FailedPrecondition
            }
            Self::TooMany { .. } => Code::ResourceExhausted,
            Self::Spec(source) => spec(source),
            Self::Limit { .. } => Code::InvalidArgument,
            Self::Leaf { source, .. } => update(source),
            Self::Agent(source) => source.code(),
            Self::BrokenOff { .. } => Code::Internal,
        }
    }
}

impl Coded for StopContainerError {
    fn code(&self) -> Code {
        match self {
            Self::Refused { .. } => Code::FailedPrecondition,
            Self::StillAlive { .. } => Code::DeadlineExceeded,
            Self::Kill { .. } | Self::Removal { .. } => Code::Internal,
        }
    }
}

impl Coded for RemoveContainerError {
    fn code(&self) -> Code {
        match self {
            Self::Refused { .. } => Code::FailedPrecondition,
            Self::Agent { source, .. } => source.code(),
            Self::Disk { .. }
            | Self::Leaf { .. }
            | Self::Scratch { .. }
            | Self::Record { .. }
            | Self::BrokenOff { .. } => Code::Internal,
        }
    }
}

impl Coded for ExecError {
    fn code(&self) -> Code {
        match self {
            Self::NoCommand { .. } => Code::InvalidArgument,
            Self::NotRunning { .. } => Code::FailedPrecondition,
            Self::Agent(source) => source.code(),
            Self::TimedOut { .. } => Code::DeadlineExceeded,
            Self::CutOff { .. } => Code::Unavailable,
            Self::Cgroup { .. } | Self::Stream { .. } | Self::Random { .. } => Code::Internal,
        }
    }
}

impl Coded for RequestError {
    fn code(&self) -> Code {
        match self {
            Self::ManyPending(_) => Code::ResourceExhausted,
            Self::Random(_) => Code::Internal,
            Self::NoId | Self::NoStreams | Self::TtyWithStderr | Self::Port(_) | Self::ManyPorts(_) => {
                Code::InvalidArgument
            }
        }
    }
}

impl Coded for ReopenError {
    fn code(&self) -> Code {
        match self {
            Self::NotRunning { .. } => Code::FailedPrecondition,
            Self::Agent(source) => source.code(),
            Self::Log(source) => log(source),
        }
    }
}

impl Coded for PodCidrError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            // It was tried at the start: it is the ranges that it does not fit.
            Self::Generate(GenerateError::Template(_)) => Code::FailedPrecondition,
            Self::Generate(GenerateError::Io(_)) | Self::BrokenOff(_) => Code::Internal,
        }
    }
}

impl Coded for ReadError {
    fn code(&self) -> Code {
        Code::Internal
    }
}

impl Coded for Busy {
    fn code(&self) -> Code {
        match self {
            Self::InUse { .. } | Self::BeingRemoved { .. } => Code::FailedPrecondition,
        }
    }
}

impl Coded for InvalidReference {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }
}

impl Coded for InvalidAuth {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }
}

impl Coded for PullError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::Unauthorized { .. } => Code::PermissionDenied,
            Self::Unavailable { .. } => Code::Unavailable,
            // Another try will not help.
            Self::Invalid { .. } | Self::NoPlatform { .. } => Code::FailedPrecondition,
            Self::Settings { .. } | Self::Io { .. } => Code::Internal,
            Self::Cancelled { .. } => Code::Cancelled,
        }
    }
}

impl Coded for RemoveError {
    fn code(&self) -> Code {
        Code::Internal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_keeps_what_was_tried_and_the_cause() {
        let error =
            LookupError::NotFound { what: "container", id: format!("é{}the end", "é".repeat(5000)) };
        let message = status(&error).message().to_owned();
        assert!(message.len() < hartpod_proto::MESSAGE_MAX + 40, "{}", message.len());
        assert!(message.starts_with("no container") && message.contains("bytes left out"), "{message}");
        assert!(message.contains("the end"), "{message}");
    }

    #[test]
    fn a_full_disk_is_no_bug() {
        let full = std::io::Error::from_raw_os_error(libc::ENOSPC);
        let error = RunError::StateDir { path: "/x".into(), source: full };
        assert_eq!(status(&error).code(), Code::ResourceExhausted);
        let other =
            RunError::StateDir { path: "/x".into(), source: std::io::Error::from_raw_os_error(libc::EIO) };
        assert_eq!(status(&other).code(), Code::Internal);
    }

    #[test]
    fn what_callers_look_at() {
        let container = || "c".repeat(64).parse().unwrap();
        let answered = |code| AgentError::Answered { code, message: "m".into() };
        let table: Vec<(Box<dyn Coded>, Code)> = vec![
            (Box::new(LookupError::NotFound { what: "container", id: "x".into() }), Code::NotFound),
            (Box::new(LookupError::Empty { what: "container" }), Code::InvalidArgument),
            (Box::new(NoHandler::Architecture), Code::Unimplemented),
            (Box::new(NoHandler::Unknown { name: "k".into() }), Code::InvalidArgument),
            (
                Box::new(ExecError::TimedOut { command: "sleep".into(), after: std::time::Duration::ZERO }),
                Code::DeadlineExceeded,
            ),
            (Box::new(StartError::Agent(answered(Code::NotFound))), Code::InvalidArgument),
            (Box::new(answered(Code::Internal)), Code::Internal),
            (Box::new(answered(Code::Unknown)), Code::Internal),
            (Box::new(StartError::Agent(answered(Code::Aborted))), Code::FailedPrecondition),
            (Box::new(AgentError::Unreachable { call: "x", why: "y".into() }), Code::Unavailable),
            (Box::new(CreateError::NoImage { reference: "x".into() }), Code::NotFound),
            (Box::new(Busy::BeingRemoved { image: "i".into() }), Code::FailedPrecondition),
            (
                Box::new(RemovePodError::Container(RemoveContainerError::Refused {
                    id: container(),
                    source: crate::container::ContainerState::Creating
                        .on(crate::container::ContainerEvent::RemoveAsked)
                        .unwrap_err(),
                })),
                Code::FailedPrecondition,
            ),
        ];
        for (error, code) in table {
            assert_eq!(error.code(), code, "{error}");
        }
    }

    #[test]
    fn the_message_tells_the_causes_once() {
        let image = "sha256:1".to_owned();
        let error = CreateError::ImageBusy(Busy::BeingRemoved { image });
        assert_eq!(status(&error).message(), "image sha256:1 is being removed");
        let error = RemovePodError::Refused {
            id: "p".into(),
            source: crate::pod::SandboxState::Starting.on(crate::pod::SandboxEvent::RemoveAsked).unwrap_err(),
        };
        assert_eq!(status(&error).message(), "pod sandbox p: a sandbox that is starting cannot be removed");
    }
}
