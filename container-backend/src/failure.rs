//! Why a container could not be made or a program not be executed: what the child process tells the agent.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::errno::Errno;

/// Why the set-up of a container (or of an exec) failed, with what was tried.
#[derive(Debug, Clone, thiserror::Error, Serialize, Deserialize)]
pub enum Failure {
    /// A volume's source on the host cannot be used.
    #[error("mount of {} on {}: source", .source_path.display(), .destination.display())]
    MountSource {
        /// Path on the host.
        source_path: PathBuf,
        /// Path in the container.
        destination: PathBuf,
        /// `NOENT` when it does not exist.
        #[source]
        errno: Errno,
    },
    /// HostToContainer or Bidirectional propagation was asked for, but the source is not on a mount of that kind.
    #[error("mount of {} on {}: the source is not on a {wanted} mount", .source_path.display(), .destination.display())]
    Propagation {
        /// Path on the host.
        source_path: PathBuf,
        /// Path in the container.
        destination: PathBuf,
        /// `shared`, or `shared or slave`.
        wanted: String,
    },
    /// A mount that is to show its files with other ids, but cannot.
    #[error(
        "mount of {} on {}: show it with the ids of a user namespace, which its file system may be unable to do",
        .source_path.display(),
        .destination.display()
    )]
    Ids {
        /// Path on the host.
        source_path: PathBuf,
        /// Path in the container.
        destination: PathBuf,
        /// `INVAL` when the file system cannot.
        #[source]
        errno: Errno,
    },
    /// A mount's own maps of ids make no sense.
    #[error("mount on {}: {problem}", .destination.display())]
    IdMap {
        /// Path in the container.
        destination: PathBuf,
        /// What is wrong with them.
        problem: String,
    },
    /// A volume's source cannot be given a SELinux label.
    #[error("relabel {}: {what}", .source_path.display())]
    Relabel {
        /// Path on the host.
        source_path: PathBuf,
        /// What was tried, or why it is not.
        what: String,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// Where a mount should go cannot be found or made in the image.
    #[error("mount point {}", .destination.display())]
    MountPoint {
        /// Path in the container.
        destination: PathBuf,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// A mount point that would hide what the kernel tells the container, or escape what masks it.
    #[error("mount on {} is not allowed: {why}", .destination.display())]
    ForbiddenMountPoint {
        /// Path in the container.
        destination: PathBuf,
        /// The reason.
        why: String,
    },
    /// A mount option that is unknown or makes no sense for this kind of mount.
    #[error("mount on {}: option `{option}` is not supported for {fstype}", .destination.display())]
    MountOption {
        /// Path in the container.
        destination: PathBuf,
        /// The option as given.
        option: String,
        /// Kind of mount.
        fstype: String,
    },
    /// A mount type that containers cannot have.
    #[error("mount on {}: type `{fstype}` is not supported", .destination.display())]
    MountType {
        /// Path in the container.
        destination: PathBuf,
        /// The type as given.
        fstype: String,
    },
    /// A mount could not be made or attached.
    #[error("mount {fstype} on {}", .destination.display())]
    Mount {
        /// File system type, or `bind`.
        fstype: String,
        /// Path in the container.
        destination: PathBuf,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// The root file system could not be put together from the image's layers.
    #[error("root file system: {what}")]
    RootFs {
        /// What was tried, with the layer or folder.
        what: String,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// An image could not be mounted. The kubelet knows such failures by their first word (cri-api, ErrImageVolumeMountFailed).
    #[error("ImageVolumeMountFailed: {image} on {}: {what}", .destination.display())]
    ImageVolume {
        /// What the mount calls the image.
        image: String,
        /// Path in the container.
        destination: PathBuf,
        /// What was tried.
        what: String,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// A device node could not be made.
    #[error("device {}", .path.display())]
    Device {
        /// Path in the container.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// Something below the container's root could not be used.
    #[error("{what} {}", .path.display())]
    Path {
        /// What was tried, e.g. `working directory`.
        what: String,
        /// Path in the container.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// The user does not exist in the image, or its name is not one.
    #[error(transparent)]
    User(#[from] UserError),
    /// The program cannot be executed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A kernel parameter.
    #[error("sysctl {key}")]
    Sysctl {
        /// Its name.
        key: String,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// A container's pid namespace takes no more processes: the kernel says "out of memory" for both (pid_namespaces(7)).
    #[error("clone into the pid namespace: its init is exiting, or memory is short")]
    PidNamespace,
    /// Any other step.
    #[error("{step}")]
    Step {
        /// What was tried.
        step: String,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
}

/// Why `USER[:GROUP]` does not name a user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum UserError {
    /// No such name in the image's /etc/passwd.
    #[error("user `{name}` is not in the image's /etc/passwd")]
    NoUser {
        /// As given.
        name: String,
    },
    /// No such name in the image's /etc/group.
    #[error("group `{name}` is not in the image's /etc/group")]
    NoGroup {
        /// As given.
        name: String,
    },
    /// Empty parts, or a number that the kernel does not take.
    #[error("`{text}` is not USER[:GROUP]")]
    Malformed {
        /// As given.
        text: String,
    },
    /// It, or its group or one of its additional groups, is not in the pod's user namespace.
    #[error("{which} {id} has no id on the node: the pod's user namespace does not map it")]
    Unmapped {
        /// `user` or `group`.
        which: String,
        /// As it is inside.
        id: u32,
    },
    /// /etc/passwd or /etc/group of the image is not a plain file of a sane size.
    #[error("the image's {file}: {why}")]
    BadFile {
        /// Which file.
        file: String,
        /// The reason.
        why: String,
    },
}

/// Why a program cannot be executed, in the words that users know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum CommandError {
    /// Neither the image nor the pod names a command.
    #[error("no command given")]
    Empty,
    /// A bare name that no folder of $PATH has.
    #[error("exec \"{name}\": no such file in $PATH")]
    NotInPath {
        /// argv[0].
        name: String,
    },
    /// The file is missing, not executable, of the wrong format ..
    #[error("exec \"{name}\": {errno}")]
    Refused {
        /// argv[0].
        name: String,
        /// What the kernel said.
        errno: Errno,
    },
}

impl CommandError {
    /// The shell's exit code for it: 127 not found, 126 found but not executable.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Empty | Self::NotInPath { .. } | Self::Refused { errno: Errno::NOENT, .. } => 127,
            Self::Refused { .. } => 126,
        }
    }
}

/// Who is to blame for a failure, for callers that map errors to codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The request asks for something that cannot be (an unknown option, user, propagation).
    Request,
    /// Something that the request names does not exist (volume source, program).
    Missing,
    /// No room, too many of something.
    Exhausted,
    /// The node.
    Node,
}

impl Failure {
    /// Who is to blame.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::MountSource { errno: Errno::NOENT, .. } | Self::Relabel { errno: Errno::NOENT, .. } => {
                Blame::Missing
            }
            Self::Relabel { errno: Errno::PERM, .. } => Blame::Request,
            Self::Command(_) | Self::PidNamespace => Blame::Missing,
            Self::Propagation { .. }
            | Self::ForbiddenMountPoint { .. }
            | Self::IdMap { .. }
            | Self::Ids { errno: Errno::INVAL, .. }
            | Self::MountOption { .. }
            | Self::MountType { .. }
            | Self::User(_) => Blame::Request,
            // A file where a folder must be, or the other way round.
            Self::MountPoint { errno: Errno::NOTDIR | Errno::ISDIR | Errno::LOOP, .. }
            | Self::Path { errno: Errno::NOTDIR, .. }
            | Self::ImageVolume { errno: Errno::NOENT | Errno::NOTDIR | Errno::LOOP, .. } => Blame::Request,
            Self::MountSource { errno, .. }
            | Self::Ids { errno, .. }
            | Self::MountPoint { errno, .. }
            | Self::Mount { errno, .. }
            | Self::RootFs { errno, .. }
            | Self::ImageVolume { errno, .. }
            | Self::Relabel { errno, .. }
            | Self::Device { errno, .. }
            | Self::Path { errno, .. }
            | Self::Sysctl { errno, .. }
            | Self::Step { errno, .. } => match errno.raw() {
                libc::ENOSPC | libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EDQUOT | libc::EAGAIN => {
                    Blame::Exhausted
                }
                _ => Blame::Node,
            },
        }
    }
}
