//! What happens in the child that a container (or an exec) starts as.
//!
//! The agent lowers the OCI spec once, into plain settings ([`settings`], [`mount_plan`]); the child works them off
//! ([`create`], [`exec`]), reports, waits at the gate, gives up its rights ([`finish`]) and executes the program.

pub(crate) mod capability;
pub(crate) mod cgroup_mount;
pub(crate) mod command;
pub(crate) mod console;
pub(crate) mod create;
pub(crate) mod devices;
pub(crate) mod disk;
pub(crate) mod exec;
pub(crate) mod finish;
pub(crate) mod hidden_paths;
pub(crate) mod hook;
pub(crate) mod hook_point;
pub(crate) mod identity;
pub(crate) mod image_volume;
pub(crate) mod limits;
pub(crate) mod locked;
pub(crate) mod mount_plan;
pub(crate) mod mounts;
pub(crate) mod own_proc;
pub(crate) mod relabel;
pub(crate) mod root;
pub(crate) mod rootfs;
pub(crate) mod settings;
pub(crate) mod streams;
pub(crate) mod user;
