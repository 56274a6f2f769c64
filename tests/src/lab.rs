//! Where one test runs: its folder, its registry, its nodes, and the check that nothing of it is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;
use tokio::sync::{OnceCell, RwLock};

use crate::cgroup::PodCgroup;
use crate::cni::BRIDGE;
use crate::image::Image;
use crate::node::{self, Node, NodeBuilder};
use crate::registry::{self, Registry};
use crate::world::{self, Scope, World};

/// A folder, a registry and nodes, in namespaces that nothing else is in.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    /// Cgroup that all of the test's pods are below, `/hartpod-e2e-<id>`.
    cgroup: String,
    registry: OnceCell<RwLock<Registry>>,
    /// Guards the list of nodes that were started.
    nodes: Mutex<Vec<Node>>,
    before: World,
}

impl Lab {
    /// `dir` is empty and the test's own; its name makes the cgroup's.
    pub fn open(dir: &Path) -> Result<Self> {
        let id = dir.file_name().context("the test's folder has no name")?.to_string_lossy();
        let cgroup = cgroup_root(&id);
        PodCgroup::create(&cgroup)?;
        let before = World::look(&scope(&cgroup, &[]))?;
        Ok(Self { dir: dir.to_owned(), cgroup, registry: OnceCell::new(), nodes: Mutex::default(), before })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A running node that has pulled the test image.
    pub async fn node(&self) -> Result<Node> {
        self.node_with("").await
    }

    /// The same with more lines of config.toml.
    pub async fn node_with(&self, settings: &str) -> Result<Node> {
        let node = self.start(self.node_builder()?.settings(settings)).await?;
        self.registry().await?;
        node.client().pull(node.image()).await.context("pull the test image")?;
        Ok(node)
    }

    /// A node that is to differ.
    pub fn node_builder(&self) -> Result<NodeBuilder> {
        let number = self.nodes().len();
        NodeBuilder::new(&self.dir.join(format!("node{number}")), &self.cgroup)
    }

    /// Starts a node and remembers to clean up after it.
    pub async fn start(&self, builder: NodeBuilder) -> Result<Node> {
        let node = builder.start().await?;
        self.nodes().push(node.clone());
        Ok(node)
    }

    /// The registry, started at the first call and holding the test image.
    pub async fn registry(&self) -> Result<&RwLock<Registry>> {
        self.registry
            .get_or_try_init(async || {
                let registry = Registry::start(&self.dir.join("registry"), registry::ADDRESS).await?;
                registry.push_busybox().await?;
                Ok(RwLock::new(registry))
            })
            .await
    }

    /// Pushes an image and returns the reference to pull it by.
    pub async fn push(&self, name: &str, tag: &str, image: &Image) -> Result<String> {
        self.registry().await?.read().await.push(name, tag, image).await?;
        Ok(format!("{}/{name}:{tag}", registry::NAME))
    }

    /// A look at the node as it is now, with the pods and folders of `node` in view.
    pub fn look(&self, node: &Node) -> Result<World> {
        let mut scope = scope(&self.cgroup, &node.client().ids());
        scope.daemon = node.daemon_pid().ok();
        scope.folders.extend([node.root(), node.state(), node.cni().reservations.clone()]);
        scope.shallow = vec![node.root().join("images/layers")];
        // Made with the first network that a pod joins.
        scope.unlisted = vec![node.root().join("cni")];
        // Emptied in its own time: a look before may find more in it than a look after.
        scope.ignored.push(node.trash());
        // The kit's own link to what guests boot, made with the first of them.
        scope.ignored.push(node.root().join("guest"));
        // Made with the first container of an image in a guest, kept for as long as the image.
        scope.ignored.push(node.root().join("images/erofs"));
        // host-local's lock and its note of the last address it gave.
        scope.ignored.extend(
            ["lock", "last_reserved_ip.0", "last_reserved_ip.1"]
                .map(|name| node.cni().reservations.join("pods").join(name)),
        );
        World::look(&scope)
    }

    /// Removes all pods over CRI, ends daemons and registry, and fails if anything is left.
    pub async fn close(self) -> Result<()> {
        let nodes: Vec<Node> = self.nodes().clone();
        let mut ids = Vec::new();
        for node in &nodes {
            if !node.is_running() {
                node.start().await.context("start the daemon to clean up")?;
            }
            node.remove_all_pods().await?;
            node.trash_is_empty().await?;
            let status = node.stop().await?;
            ensure!(status.success(), "the daemon ended with {status} when it was asked to");
            ids.extend(node.client().ids());
            let left = mentions(&[node.root(), node.state()], &ids);
            ensure!(left.is_empty(), "files of removed pods are left: {left:#?}");
            ensure!(
                node.cni().reserved()?.is_empty(),
                "addresses are still reserved: {:?}",
                node.cni().reserved()?
            );
        }
        for cgroup in PodCgroup::all_below(&self.cgroup)? {
            cgroup.remove().context("a pod's cgroup is in use after its removal")?;
        }
        if let Some(registry) = self.registry.get() {
            registry.write().await.stop().await?;
        }
        remove_bridge().await?;
        let scope = scope(&self.cgroup, &ids);
        if std::env::var_os(node::DAEMON).is_some() {
            // Somebody else's daemon may keep folders of its own in /run.
            let look = || Ok(World::look(&scope)?.without("file"));
            return world::must_return_to(&self.before.clone().without("file"), look).await;
        }
        world::must_return_to(&self.before, || World::look(&scope)).await
    }

    /// Logs of all daemons, for a failed test.
    pub fn logs(dir: &Path) -> String {
        let mut text = String::new();
        let nodes =
            fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path().join("daemon.log"));
        for path in nodes {
            let Ok(log) = fs::read_to_string(&path) else { continue };
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(200);
            text +=
                &format!("--- {} (last {} of {} lines)\n", path.display(), lines.len() - from, lines.len());
            text += &lines[from..].join("\n");
            text.push('\n');
        }
        text
    }

    fn nodes(&self) -> MutexGuard<'_, Vec<Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The cgroup of the test whose folder has this name.
pub fn cgroup_root(id: &str) -> String {
    format!("/hartpod-e2e-{id}")
}

fn scope(cgroup: &str, ids: &[String]) -> Scope {
    let mut cgroups = vec![cgroup.trim_start_matches('/').to_owned()];
    cgroups.extend_from_slice(ids);
    Scope {
        // A tmpfs of the test's own.
        folders: vec!["/run".into()],
        // The network namespaces are a list of their own; iptables and mount(8) make files at their first call.
        ignored: vec!["/run/netns".into(), "/run/xtables.lock".into(), "/run/mount".into()],
        cgroups,
        ..Scope::default()
    }
}

/// The bridge plugin leaves its bridge for the next pod.
async fn remove_bridge() -> Result<()> {
    let output = Command::new("ip").args(["link", "delete", BRIDGE]).output().await.context("run ip")?;
    let missing = String::from_utf8_lossy(&output.stderr).contains("Cannot find device");
    ensure!(output.status.success() || missing, "ip link delete {BRIDGE}: {output:?}");
    Ok(())
}

/// Files whose path names one of the ids.
fn mentions(folders: &[PathBuf], ids: &[String]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut queue = folders.to_vec();
    while let Some(dir) = queue.pop() {
        for path in fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if ids.iter().any(|id| name.contains(id.as_str())) {
                found.push(path);
            } else if path.is_dir() && !path.is_symlink() && name != "layers" {
                queue.push(path);
            }
        }
    }
    found
}
