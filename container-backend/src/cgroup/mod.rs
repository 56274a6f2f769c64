//! Cgroups: where a pod's processes are counted, limited and killed.
//!
//! One [`Leaf`] per container, agent or VMM, below the parent that the kubelet names and never in it. v2 is home. On a hybrid
//! host a leaf also has a folder in each v1 hierarchy that carries a controller we use: v1 limits and counts, while kill,
//! emptiness and order of creation are always v2's.
//!
//! A process gets in cheaply or dearly: cloned into the v2 leaf (CLONE_INTO_CGROUP) it needs no migration at all, moving its own
//! single thread into v1 costs 0.2 ms ([`Leaf::join_v1_self`]), moving another process costs a grace period ([`Leaf::add_pid`]).
//!
//! Not here: the systemd driver's D-Bus calls (a slice's name is understood as a path, and a leaf in it must be a scope by then), delegation to a user, and moving foreign
//! processes out of the way: on v2, a runtime in a container whose visible root holds processes can set no limits, because the
//! kernel lets no controller be enabled there, and says so.
//!
//! ```no_run
//! # use hartpod_container::cgroup::{Limits, Tree};
//! # use std::time::{Duration, Instant};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let tree = Tree::detect("/sys/fs/cgroup".as_ref())?;
//! let leaf = tree.leaf("/kubepods/burstable/pod1", "4a5b")?;
//! for warning in leaf.create(&Limits::from_oci(&Default::default())?)? {
//!     eprintln!("{warning}");
//! }
//! let _into = leaf.open_unified()?;
//! leaf.destroy_blocking(Instant::now() + Duration::from_secs(2))?;
//! # Ok(())
//! # }
//! ```

mod apply;
mod bandwidth;
mod bounds;
mod device_program;
mod devices;
mod error;
mod exec;
mod file;
mod leaf;
mod limits;
mod make;
mod meter;
mod mount_table;
mod node;
mod oom;
mod oom_limit;
mod oom_score;
mod path;
mod processes;
mod remove;
mod sample;
mod sys;
mod tree;
mod unit;
mod update;

pub use bandwidth::Bandwidth;
pub use bounds::{Bound, Bounds};
pub use devices::DeviceRuleError;
pub use error::{CgroupError, DestroyError, DetectError, PathError, Warning};
pub use exec::ExecLeaf;
pub use leaf::Leaf;
pub use limits::{LimitError, Limits};
pub use meter::{Depth, Meter};
pub use node::is_populated;
pub use oom::{OomWatch, Readiness};
pub use oom_limit::{OomLimit, OomsBefore};
pub use path::{DEFAULT_PARENT, SCOPE_PREFIX, check_parent, is_slice};
pub use processes::{FileLooks, ProcessSample, open_files, open_files_limit};
pub use sample::{CpuSample, DeviceSample, HugePageSample, MemorySample, Pressure, Sample, Stall};
pub use tree::{Controller, Mode, Tree};
pub use unit::{Unit, UnitValue};
pub use update::{OomScore, Update, UpdateError, UpdateFault};

/// Where the kernel's users expect cgroups to be mounted, in pods as on the node (file-hierarchy(7)).
pub const ROOT: &str = "/sys/fs/cgroup";

#[cfg(test)]
mod tests;
