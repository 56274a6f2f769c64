//! The end-to-end kit: starts the real daemon, speaks CRI to its socket with a foreign client, and compares the node before and after.
//!
//! A test (in `e2e/`) reads like this:
//!
//! ```no_run
//! # use hartpod_tests::Lab;
//! async fn a_container_says_who_it_is(lab: &Lab) -> anyhow::Result<()> {
//!     let node = lab.node().await?;
//!     let pod = node.pod("web").run().await?;
//!     let main = pod.container("main").sh("sleep 1000").run().await?;
//!     assert_eq!(main.exec(["id", "-u"]).await?.stdout, "0\n");
//!     Ok(())
//! }
//! ```
//!
//! Each test runs in pid, mount, network, IPC and UTS namespaces of its own ([`isolation`]), so nothing that it leaves can hide among
//! what others do, and nothing is left on the machine. When its body returns, the lab removes the pods over CRI, stops the daemons and
//! fails the test if a process, mount, network namespace, cgroup, firewall rule, IP reservation or folder is left ([`world`]).
//!
//! Nothing here uses hartpod's own crates: requests are made by `k8s-cri`, images by [`image`].

#![forbid(unsafe_code)]

pub mod cgroup;
pub mod client;
pub mod cni;
pub mod container;
pub mod eventually;
pub mod fake_registry;
pub mod guest;
pub mod image;
pub mod isolation;
pub mod lab;
pub mod layer;
pub mod log_file;
pub mod metrics;
pub mod node;
pub mod pod;
pub mod process;
pub mod registry;
pub mod runner;
pub mod skip;
pub mod smaps;
pub mod streaming;
pub mod tools;
pub mod world;

pub use client::{Client, Refused};
pub use container::{Container, ContainerBuilder, Output};
pub use eventually::{emulated, eventually};
pub use k8s_cri::v1 as cri;
pub use lab::Lab;
pub use node::Node;
pub use pod::{Pod, PodBuilder};
pub use runner::Test;
pub use skip::Need;
