//! The client: joins pods to the network, and takes them from it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use crate::attachment::Attachment;
use crate::collect::{CollectError, Collected, collect};
use crate::error::{CniError, NotReady, chain};
use crate::offload::{blocking, interruptible};
use crate::outcome::Attached;
use crate::plan::{Attempt, Plan};
use crate::planner::Planner;

/// Where things are.
#[derive(Debug, Clone)]
pub struct CniConfig {
    /// Folder of network configurations.
    pub conf_dir: PathBuf,
    /// Folders of plugins, in the order in which they are searched.
    pub bin_dirs: Vec<PathBuf>,
    /// Folder for our own cache; made when needed. It must outlive a reboot: DEL after one frees addresses.
    pub cache_dir: PathBuf,
    /// How long one run of one plugin may take.
    pub plugin_timeout: Duration,
    /// Where other runtimes keep what libcni remembers of their pods.
    pub foreign_caches: Vec<PathBuf>,
}

impl Default for CniConfig {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cache_dir: "/var/lib/hartpod/cni".into(),
            plugin_timeout: Duration::from_secs(60),
            foreign_caches: vec!["/var/lib/cni/results".into(), "/var/lib/cni/cache".into()],
        }
    }
}

/// Whether a network's plugins looked after a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// All plugins are content.
    Yes,
    /// The network's version has no CHECK, or its configuration turns it off, or the pod has not joined.
    NotOffered,
}

/// The client. Clones share everything. Calls for different pods run side by side; calls for one pod are the
/// caller's to keep apart.
#[derive(Debug, Clone)]
pub struct Cni {
    planner: Arc<Planner>,
}

impl Cni {
    /// A client. Reads nothing yet.
    #[must_use]
    pub fn new(config: CniConfig) -> Self {
        Self { planner: Arc::new(Planner::new(config)) }
    }

    /// Name of the network that new pods would join. Looks at the configuration folder and for the plugins' files,
    /// and runs nothing.
    ///
    /// # Errors
    /// Why pods cannot join.
    pub fn status(&self) -> Result<String, NotReady> {
        self.planner.ready_blocking().map(|network| network.name.clone())
    }

    /// As [`status`](Self::status), and where the network's version is 1.1.0 or later its plugins are asked too.
    /// Their answer is kept for a few seconds.
    ///
    /// # Errors
    /// Why pods cannot join.
    pub async fn probe(&self) -> Result<String, NotReady> {
        let planner = Arc::clone(&self.planner);
        let network =
            blocking(move || planner.ready_blocking()).await.unwrap_or(Err(NotReady::ShuttingDown))?;
        self.planner.probe(&network).await.map(|()| network.name.clone())
    }

    /// Joins a pod to the network: every plugin's ADD, in order. When one fails, or the pod got no address, DEL of
    /// all of them undoes it. Dropped half way, it leaves a cache entry with which [`del`](Self::del) undoes it.
    ///
    /// # Errors
    /// See [`CniError`].
    pub async fn add(&self, attachment: &Attachment) -> Result<Attached, CniError> {
        let _joining = self.planner.joining.read().await;
        let (planner, attachment) = (Arc::clone(&self.planner), attachment.clone());
        let mut plan = interruptible(blocking(move || planner.plan_add_blocking(&attachment)).await)?;
        match plan.add().await {
            Ok(attached) => Ok(attached),
            Err(source) => {
                let undo = plan.leave(Attempt::Undo).await.err().map(|e| chain(&e));
                Err(CniError::Add { network: plan.network.name.clone(), source: Box::new(source), undo })
            }
        }
    }

    /// Takes a pod from the network it joined: every plugin's DEL, in reverse order and past errors, with the
    /// configuration, arguments and result of its ADD. Idempotent: a pod without a cache entry has nothing to leave.
    /// When the pod joined through an earlier client, plugins that this one left running are waited for first.
    ///
    /// A pod that never finished joining leaves even when plugins refuse DEL, so that a wrong configuration cannot
    /// keep it for ever; a plugin that hangs, dies or is missing still keeps it.
    ///
    /// # Errors
    /// The plugins that failed; the entry stays, so that a retry runs all of them again.
    pub async fn del(&self, attachment: &Attachment) -> Result<(), CniError> {
        let (planner, attachment) = (Arc::clone(&self.planner), attachment.clone());
        self.leave(move || planner.plan_del_blocking(&attachment.container_id, Some(&attachment))).await
    }

    /// As [`del`](Self::del), for a pod of which nothing but the id is left.
    ///
    /// # Errors
    /// As [`del`](Self::del).
    pub async fn del_cached(&self, container_id: &str) -> Result<(), CniError> {
        let (planner, id) = (Arc::clone(&self.planner), container_id.to_owned());
        self.leave(move || planner.plan_del_blocking(&id, None)).await
    }

    async fn leave<F>(&self, plan: F) -> Result<(), CniError>
    where
        F: FnOnce() -> Result<Option<Plan>, CniError> + Send + 'static,
    {
        let _leaving = self.planner.joining.read().await;
        match interruptible(blocking(plan).await)? {
            Some(plan) => plan.leave(Attempt::Later).await,
            None => Ok(()),
        }
    }

    /// Asks the plugins whether the network of a pod that joined is as they left it. Dropped half way, it kills the plugin.
    ///
    /// # Errors
    /// The first plugin that is not content.
    pub async fn check(&self, container_id: &str) -> Result<Checked, CniError> {
        let (planner, id) = (Arc::clone(&self.planner), container_id.to_owned());
        let plan = interruptible(blocking(move || planner.plan_check_blocking(&id)).await)?;
        match plan {
            Some(plan) if plan.network.version.has_check() && !plan.network.disable_check => {
                plan.check().await
            }
            _ => Ok(Checked::NotOffered),
        }
    }

    /// Tells the plugins of the network that pods join now which pods are in it, so that they give back what is of no other (GC). Runs alone:
    /// while somebody joins or leaves it is refused, and who wants to meanwhile waits, for ten seconds at most.
    ///
    /// # Errors
    /// See [`CollectError`]: above all, other runtimes have pods in the network.
    pub async fn collect_garbage(&self) -> Result<Collected, CollectError> {
        collect(&self.planner).await
    }

    /// Ids of all pods that joined and have not left, or may have: what to go through after a crash.
    #[must_use]
    pub fn cached_ids(&self) -> Vec<String> {
        self.planner.cached_ids_blocking().unwrap_or_else(|e| {
            warn!(error = chain(&e), "CNI cache cannot be listed");
            Vec::new()
        })
    }
}
