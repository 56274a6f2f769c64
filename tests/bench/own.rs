//! What the bench starts for itself: a registry with the test image, and a hartpod.

use std::net::TcpListener;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use hartpod_tests::node::NodeBuilder;
use hartpod_tests::registry::Registry;
use hartpod_tests::{Node, cgroup, cni, guest, metrics};
use serde_json::Value;
use tokio::process::Command;

/// What is to be started.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) daemon: bool,
    pub(crate) registry: bool,
    /// The daemon's pods may be guests, whose image is made for it.
    pub(crate) guests: bool,
    /// The daemon's network, instead of the one that tests have.
    pub(crate) conflist: Option<Value>,
}

/// The parts that were started, and where they keep their files.
#[derive(Debug)]
pub(crate) struct Own {
    dir: PathBuf,
    cgroup: String,
    registry: Option<(Registry, String)>,
    node: Option<Node>,
}

impl Own {
    /// Starts what is asked for.
    pub(crate) async fn start(parts: Parts) -> Result<Self> {
        let id = std::process::id();
        let dir = std::env::temp_dir().join(format!("hartpod-bench-{id}"));
        std::fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        let mut own = Self { dir, cgroup: format!("/hartpod-bench-{id}"), registry: None, node: None };
        if let Err(error) = own.fill(parts).await {
            own.stop().await?;
            return Err(error);
        }
        Ok(own)
    }

    async fn fill(&mut self, parts: Parts) -> Result<()> {
        if parts.registry {
            // A port that is free now; nothing else on a bench machine takes ports meanwhile.
            let free = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
            let address = free.local_addr().context("find a free port")?.to_string();
            drop(free);
            let registry = Registry::start(&self.dir.join("registry"), &address).await?;
            registry.push_busybox().await?;
            self.registry = Some((registry, address));
        }
        if parts.daemon {
            let mut node = NodeBuilder::new(&self.dir.join("node"), &self.cgroup)?;
            if let Some(conflist) = parts.conflist {
                node = node.network(|_| Some(conflist));
            }
            let node = self.node.insert(node.start().await?);
            if parts.guests {
                guest::provide_image(&node.root())?;
            }
        }
        Ok(())
    }

    /// The image in the registry; any runtime pulls from loopback without TLS.
    pub(crate) fn image(&self) -> String {
        self.registry.as_ref().map(|(_, address)| format!("{address}/busybox:1")).unwrap_or_default()
    }

    pub(crate) fn socket(&self) -> Option<PathBuf> {
        self.node.as_ref().map(Node::socket)
    }

    pub(crate) fn metrics(&self) -> Option<String> {
        self.node.as_ref().and_then(|node| metrics::address(node).ok())
    }

    /// Removes pods, processes, the bridge, cgroups and files.
    pub(crate) async fn stop(mut self) -> Result<()> {
        if let Some(node) = &self.node {
            node.remove_all_pods().await?;
            node.stop().await?;
            // The bridge plugin leaves its bridge.
            let gone =
                Command::new("ip").args(["link", "delete", cni::BRIDGE]).output().await.context("run ip")?;
            let missing = String::from_utf8_lossy(&gone.stderr).contains("Cannot find device");
            ensure!(gone.status.success() || missing, "ip link delete {}: {gone:?}", cni::BRIDGE);
            cgroup::remove_tree(&self.cgroup)?;
        }
        if let Some((registry, _)) = &mut self.registry {
            registry.stop().await?;
        }
        std::fs::remove_dir_all(&self.dir).with_context(|| format!("remove {}", self.dir.display()))
    }
}
