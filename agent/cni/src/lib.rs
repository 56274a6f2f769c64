//! The Container Network Interface (CNI), from the runtime's side: joins pods to the network that the node's
//! administrator configured, by running the plugins of that network.
//!
//! Spoken: spec 0.3.0 to 1.1.0, all verbs. Plugins get the environment, `CNI_ARGS` and
//! capability arguments that containerd passes, since that is what plugins are tested with. One network per pod: the
//! first valid file of the configuration folder.
//!
//! - [`Cni`]: the client.
//! - [`Attachment`]: which pod joins, and what the plugins are told about it; [`Attached`] is what came of it.
//! - [`NotReady`]: why pods cannot join at the moment, as kubelet's NetworkReady shows it.
//! - [`ConfTemplate`]: a network configuration made of the address ranges that the kubelet tells.
//! - [`netns`]: network namespace files.
//!
//! Not here: `lo`'s plugin ([`netns`] brings `lo` up itself). Other runtimes' caches are looked at before garbage is
//! collected, and never touched.
//!
//! ```no_run
//! # async fn join() -> Result<(), Box<dyn std::error::Error>> {
//! use hartpod_cni::{Attachment, Capabilities, Cni, CniConfig};
//!
//! let cni = Cni::new(CniConfig { cache_dir: "/var/lib/hartpod/cni".into(), ..CniConfig::default() });
//! let attachment = Attachment {
//!     container_id: "0f".repeat(32),
//!     netns: Some("/var/run/netns/hartpod-0f".into()),
//!     ifname: "eth0".to_owned(),
//!     pod_namespace: "default".to_owned(),
//!     pod_name: "web".to_owned(),
//!     pod_uid: String::new(),
//!     capabilities: Capabilities::default(),
//! };
//! let attached = cni.add(&attachment).await?;
//! println!("{:?}", attached.ips);
//! cni.del(&attachment).await?;
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod attachment;
mod bandwidth;
mod cache;
mod client;
mod collect;
mod conf;
mod conf_dir;
mod conf_template;
mod error;
mod file_error;
mod foreign;
mod leftovers;
pub mod netns;
mod offload;
mod outcome;
mod plan;
mod planner;
mod plugin;
mod pod_cidrs;
mod template;
mod version;

pub use attachment::{Attachment, Capabilities, Dns, InvalidAttachment, PortMapping, Protocol};
pub use bandwidth::{Bandwidth, InvalidBandwidth};
pub use cache::CacheError;
pub use client::{Checked, Cni, CniConfig};
pub use collect::{CollectError, Collected};
pub use conf_template::{ConfTemplate, GenerateError, Generated, TemplateError};
pub use error::{AddFailure, CniError, InvalidConf, NotReady};
pub use file_error::FileError;
pub use foreign::UnknownCache;
pub use outcome::{Attached, InvalidOutcome};
pub use plugin::{Failure, PluginError, Refusal, Verb};
pub use pod_cidrs::{InvalidPodCidrs, PodCidrs};
pub use template::SyntaxError;
