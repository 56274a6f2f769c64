//! The one place where errors become gRPC status codes.
//!
//! The message is the whole chain of causes, each said once.

use std::error::Error;

use hartpod_container::cgroup::UpdateFault;
use hartpod_container::{Blame, CommandError, Errno, Failure, LaunchError, SetUpError};
use hartpod_proto::shorten;
use tonic::{Code, Status};

use crate::call::CallError;
use crate::container::{CreateError, DiskError, StartError, UpdateError};
use crate::guest::NetworkError;
use crate::log_writer::LogError;

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        Status::new(code(&error), shorten(chain(&error)))
    }
}

/// An error and its causes, as one sentence.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn code(error: &CallError) -> Code {
    match error {
        CallError::Invalid(_) | CallError::Signal { .. } | CallError::Leaf(_) => Code::InvalidArgument,
        CallError::NotSetUp
        | CallError::Refused { .. }
        | CallError::NotUpdatable { .. }
        | CallError::SlotTaken { .. }
        | CallError::NoInput(_)
        | CallError::NoTerminal { .. }
        | CallError::Connect { .. } => Code::FailedPrecondition,
        CallError::SetUpDiffers | CallError::ContainerDiffers(_) | CallError::ExecDiffers(_) => {
            Code::AlreadyExists
        }
        CallError::ShuttingDown => Code::Unavailable,
        CallError::UnknownContainer(_) | CallError::UnknownExec(_) => Code::NotFound,
        CallError::Removed(_) | CallError::ExecKilled | CallError::Updating(_) | CallError::UpdatingPod => {
            Code::Aborted
        }
        CallError::ExecTimedOut => Code::DeadlineExceeded,
        CallError::TooMany { .. } => Code::ResourceExhausted,
        CallError::SetUp(source) => set_up_code(source),
        CallError::Create { source, .. } | CallError::Exec { source, .. } => create_code(source),
        CallError::Start { source, .. } => start_code(source),
        CallError::Update { source, .. } | CallError::UpdatePod(source) => update_code(source),
        CallError::Reopen { source, .. } => log_code(source),
        CallError::Network(source) => network_code(source),
        CallError::Remove { .. }
        | CallError::KillExec { .. }
        | CallError::Resize { .. }
        | CallError::Attach { .. }
        | CallError::Clock(_)
        | CallError::Files(_) => Code::Internal,
    }
}

fn set_up_code(error: &SetUpError) -> Code {
    match error {
        SetUpError::ForeignSysctl { .. } | SetUpError::CgroupName(_) => Code::InvalidArgument,
        SetUpError::NetworkNamespace { .. }
        | SetUpError::Folder { .. }
        | SetUpError::Ids { .. }
        | SetUpError::UserNamespace(_)
        | SetUpError::Sysctl { .. } => Code::FailedPrecondition,
        SetUpError::Threads { .. }
        | SetUpError::Cgroups(_)
        | SetUpError::Cgroup(_)
        | SetUpError::Holder { .. }
        | SetUpError::Namespaces { .. }
        | SetUpError::Step { .. } => Code::Internal,
    }
}

fn network_code(error: &NetworkError) -> Code {
    match error {
        // The caller's addresses and routes do not fit together.
        NetworkError::Netlink { source, .. } if source.refused().is_some() => Code::FailedPrecondition,
        NetworkError::NoCard => Code::FailedPrecondition,
        NetworkError::Look(_) | NetworkError::Setting { .. } | NetworkError::Netlink { .. } => Code::Internal,
    }
}

fn create_code(error: &CreateError) -> Code {
    match error {
        CreateError::Launch(source) => launch_code(source),
        CreateError::Log(source) => log_code(source),
        CreateError::OutOfMemory => Code::ResourceExhausted,
        CreateError::Disk(source) => disk_code(source),
        CreateError::Hook(_) | CreateError::Stdio(_) | CreateError::Watch(_) | CreateError::LogWriter(_) => {
            Code::Internal
        }
    }
}

fn start_code(error: &StartError) -> Code {
    match error {
        StartError::Launch(source) => launch_code(source),
        StartError::Hook(_) => Code::Internal,
    }
}

fn update_code(error: &UpdateError) -> Code {
    match error {
        UpdateError::Refused { fault: UpdateFault::Value, .. } => Code::InvalidArgument,
        UpdateError::Refused { fault: UpdateFault::State, .. } => Code::FailedPrecondition,
        UpdateError::Refused { fault: UpdateFault::Node, .. }
        | UpdateError::Fork(_)
        | UpdateError::Talk(_) => Code::Internal,
    }
}

fn disk_code(error: &DiskError) -> Code {
    match error {
        DiskError::Open(failure) => failure_code(failure),
        DiskError::Fork(_) | DiskError::Talk(_) | DiskError::Refused | DiskError::Stuck => Code::Internal,
    }
}

fn launch_code(error: &LaunchError) -> Code {
    match error {
        LaunchError::Failed(failure) => failure_code(failure),
        LaunchError::Spec { .. }
        | LaunchError::CgroupName(_)
        | LaunchError::Limit(_)
        | LaunchError::Seccomp(_) => Code::InvalidArgument,
        LaunchError::Cgroup(error) if error.refuses_value() => Code::InvalidArgument,
        LaunchError::Cgroup(_) | LaunchError::Died | LaunchError::Garbled | LaunchError::Agent { .. } => {
            Code::Internal
        }
    }
}

fn failure_code(failure: &Failure) -> Code {
    if let Failure::Command(CommandError::Refused { errno: Errno::ACCES | Errno::PERM, .. }) = failure {
        return Code::PermissionDenied;
    }
    match failure.blame() {
        Blame::Request => Code::InvalidArgument,
        Blame::Missing => Code::FailedPrecondition,
        Blame::Exhausted => Code::ResourceExhausted,
        Blame::Node => Code::Internal,
    }
}

fn log_code(error: &LogError) -> Code {
    match error {
        // A link, a folder, a fifo, a name too long: the caller named a place that no log can be in.
        LogError::Open(
            Errno::LOOP | Errno::ISDIR | Errno::NOTDIR | Errno::INVAL | Errno::NXIO | Errno::NAMETOOLONG,
        ) => Code::InvalidArgument,
        LogError::EnterHostMounts(_) | LogError::Execute(_) | LogError::Open(_) => Code::Internal,
        LogError::Gone => Code::FailedPrecondition,
        LogError::Stuck => Code::DeadlineExceeded,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hartpod_container::cgroup::CgroupError;
    use hartpod_proto::ContainerId;

    use super::*;

    fn id() -> ContainerId {
        ContainerId::from_bytes([0xab; 32])
    }

    fn started(failure: Failure) -> Status {
        CallError::Start { id: id(), source: Arc::new(LaunchError::Failed(failure).into()) }.into()
    }

    #[test]
    fn a_missing_command_is_named_with_its_chain_once() {
        let status = started(CommandError::NotInPath { name: "foo".to_owned() }.into());
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(
            status.message(),
            format!("start container {}: exec \"foo\": no such file in $PATH", id())
        );
    }

    #[test]
    fn a_file_that_may_not_be_executed_is_permission_denied() {
        let refused = CommandError::Refused { name: "/etc/passwd".to_owned(), errno: Errno::ACCES };
        assert_eq!(started(refused.into()).code(), Code::PermissionDenied);
    }

    #[test]
    fn a_path_of_the_wrong_kind_is_the_requests_fault() {
        let log = |errno| CreateError::Log(LogError::Open(errno));
        let launch = |failure| CreateError::Launch(LaunchError::Failed(failure));
        let mount = |errno| launch(Failure::MountPoint { destination: "/etc".into(), errno });
        let folder =
            |errno| launch(Failure::Path { what: "working directory".into(), path: "/x".into(), errno });
        let cpuset = |errno| {
            let source = std::io::Error::from_raw_os_error(errno);
            let (file, value) = ("/c/cpuset.cpus".into(), "0-999".to_owned());
            CreateError::Launch(LaunchError::Cgroup(CgroupError::Write { file, value, source }))
        };
        for (error, code) in [
            (log(Errno::LOOP), Code::InvalidArgument),
            (log(Errno::ISDIR), Code::InvalidArgument),
            (log(Errno::ACCES), Code::Internal),
            (mount(Errno::ISDIR), Code::InvalidArgument),
            (mount(Errno::NOTDIR), Code::InvalidArgument),
            (mount(Errno::NOSPC), Code::ResourceExhausted),
            (mount(Errno::PERM), Code::Internal),
            (folder(Errno::NOTDIR), Code::InvalidArgument),
            (folder(Errno::ACCES), Code::Internal),
            (cpuset(libc::ERANGE), Code::InvalidArgument),
            (cpuset(libc::EACCES), Code::InvalidArgument),
            (cpuset(libc::ENOSPC), Code::Internal),
            (CreateError::OutOfMemory, Code::ResourceExhausted),
        ] {
            assert_eq!(create_code(&error), code, "{error:?}");
        }
    }

    #[test]
    fn codes_that_the_protocol_promises() {
        for (error, code) in [
            (CallError::UnknownContainer(id()), Code::NotFound),
            (CallError::UnknownExec("e".to_owned()), Code::NotFound),
            (CallError::ContainerDiffers(id()), Code::AlreadyExists),
            (CallError::NotSetUp, Code::FailedPrecondition),
            (CallError::TooMany { what: "containers", limit: 1 }, Code::ResourceExhausted),
            (CallError::Reopen { id: id(), source: Arc::new(LogError::Stuck) }, Code::DeadlineExceeded),
            (CallError::ShuttingDown, Code::Unavailable),
        ] {
            assert_eq!(Status::from(error.clone()).code(), code, "{error:?}");
        }
    }
}
