//! Turns an OCI runtime spec into a running container, and a pod's request into the place where its containers live.
//!
//! What it does: namespaces, cgroups, mounts, root file systems, identities, seccomp, exec, and starting pod agents.
//! What it does not: images, networks, logs, anything CRI. Most of it is called by the agent of a pod, which has one
//! thread (so children that it clones may run ordinary Rust) and must never block; only [`launcher`] is for the daemon.
//!
//! ```no_run
//! # fn f(setup: hartpod_container::PodSetup, request: hartpod_container::ContainerRequest<'_>)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! use hartpod_container::Pod;
//!
//! let (pod, warnings) = Pod::set_up(setup)?;
//! let mut creating = pod.begin_create(request)?;
//! // Once `creating` is readable:
//! if let Some(created) = creating.poll()? {
//!     let mut starting = created.waiting.open_gate()?;
//!     // Once `starting` is readable:
//!     if let Some(child) = starting.poll()? {
//!         println!("runs as {}, {warnings:?}", child.pid());
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod begin;
pub mod cgroup;
mod channel;
mod child;
mod container;
mod container_process;
mod errno;
mod failure;
mod hook;
pub mod hooks;
mod host_mounts;
mod id_maps;
mod launch;
pub mod launcher;
mod mount;
mod mount_info;
pub mod net_dev;
mod pod;
mod report;
mod request;
mod role;
pub mod seccomp;
mod sys;
mod user_namespace;
mod virtio_slot;
mod volume_device;
mod volume_tree;

pub use child::{Child, Exit, reap_orphans};
pub use container::console::{open_terminal_peer, resize_terminal};
pub use container::disk::{DiskMounts, DiskRoot, open_disk};
pub use container::mounts::may_cover_proc;
pub use container_process::ContainerProcess;
pub use errno::Errno;
pub use failure::{Blame, CommandError, Failure, UserError};
pub use hook::{HookPlace, HookPoint, HookRequest};
pub use host_mounts::HostMounts;
pub use id_maps::{IdMapError, IdMaps, IdRange};
pub use launch::{Created, Creating, Execing, Executed, LaunchError, Starting, Waiting};
pub use pod::{Pod, SetUpError};
pub use request::{
    ContainerRequest, DEFAULT_SHM_SIZE, ExecRequest, GroupPolicy, IpcMode, Overlay, PidNamespace, PodPid,
    PodSetup, ResolvedUser, RootFs, Stdio, TerminalSize, VolumeImage, VolumeLayers,
};
pub use role::fork_role;
pub use user_namespace::{UserNamespace, UserNamespaceError};
pub use virtio_slot::{Disk, Slot, SlotError};
pub use volume_device::mount_volumes;
pub use volume_tree::{VolumeAccess, VolumeTree};
