//! What every call needs: the configuration, the cache, and how a plugin is invoked.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Map, Value};
use tokio::sync::RwLock;
use tracing::{debug, warn};

use crate::attachment::{Attachment, InvalidAttachment, check_id};
use crate::cache::{Cache, CacheError, Entry};
use crate::client::CniConfig;
use crate::conf::{Network, Plugin};
use crate::conf_dir::ConfDir;
use crate::error::{CniError, NotReady, chain};
use crate::leftovers;
use crate::netns;
use crate::plan::{Plan, name_network};
use crate::plugin::{self, Failure, Invocation, PluginError, Verb};

/// How long an answer to STATUS is good for: kubelet asks every five seconds, people in between.
const STATUS_AGE: Duration = Duration::from_secs(4);

/// Interface of a pod whose cache entry is damaged: what kubelet's pods have.
const DEFAULT_IFNAME: &str = "eth0";

#[derive(Debug)]
pub(crate) struct Planner {
    config: CniConfig,
    /// `CNI_PATH`.
    path: String,
    conf: ConfDir,
    cache: Cache,
    /// Tells this client from those before it.
    life: String,
    /// Held, shared, by whoever joins or leaves, and alone by a collection of garbage (spec 1.1.0, Lifecycle & Ordering).
    pub(crate) joining: RwLock<()>,
    /// The last answer.
    status: Mutex<Option<Answer>>,
}

/// What plugins said to STATUS.
#[derive(Debug, Clone)]
struct Answer {
    at: Instant,
    network: Arc<Network>,
    verdict: Result<(), NotReady>,
}

/// Unlike that of any client before it on this node.
fn new_life() -> String {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", std::process::id(), since_epoch.as_nanos())
}

impl Planner {
    pub(crate) fn new(config: CniConfig) -> Self {
        let dirs: Vec<_> = config.bin_dirs.iter().map(|dir| dir.to_string_lossy()).collect();
        Self {
            path: dirs.join(":"),
            conf: ConfDir::new(config.conf_dir.clone()),
            cache: Cache::new(config.cache_dir.clone()),
            life: new_life(),
            joining: RwLock::new(()),
            status: Mutex::new(None),
            config,
        }
    }

    pub(crate) fn cached_ids_blocking(&self) -> Result<Vec<String>, CacheError> {
        self.cache.ids_blocking()
    }

    pub(crate) fn keep_blocking(&self, entry: &Entry) -> Result<(), CacheError> {
        self.cache.write_blocking(entry)
    }

    pub(crate) fn forget_blocking(&self, id: &str) -> Result<(), CacheError> {
        self.cache.remove_blocking(id)
    }

    pub(crate) fn foreign_caches(&self) -> &[PathBuf] {
        &self.config.foreign_caches
    }

    pub(crate) fn entry_blocking(&self, id: &str) -> Result<Option<Entry>, CacheError> {
        self.cache.read_blocking(id)
    }

    pub(crate) fn searched(&self) -> Vec<PathBuf> {
        self.config.bin_dirs.clone()
    }

    pub(crate) async fn probe(&self, network: &Arc<Network>) -> Result<(), NotReady> {
        if !network.version.has_status() {
            return Ok(());
        }
        let known = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(answer) =
            known.filter(|answer| answer.at.elapsed() < STATUS_AGE && answer.network == *network)
        {
            return answer.verdict;
        }
        let verdict = self.ask_status(network).await;
        let answer = Answer { at: Instant::now(), network: Arc::clone(network), verdict: verdict.clone() };
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        verdict
    }

    pub(crate) fn ready_blocking(&self) -> Result<Arc<Network>, NotReady> {
        let network = self.conf.network_blocking()?;
        for plugin in &network.plugins {
            if plugin::find_blocking(&plugin.executable, &self.config.bin_dirs).is_err() {
                return Err(NotReady::MissingPlugin {
                    network: network.name.clone(),
                    plugin: plugin.executable.clone(),
                    searched: self.config.bin_dirs.clone(),
                });
            }
        }
        Ok(network)
    }

    /// Everything that can fail without a plugin fails here. The cache entry is written last.
    pub(crate) fn plan_add_blocking(self: Arc<Self>, attachment: &Attachment) -> Result<Plan, CniError> {
        attachment.check().map_err(CniError::Attachment)?;
        let netns = attachment.netns.as_deref().ok_or(CniError::Attachment(InvalidAttachment::NoNetns))?;
        let netns = netns.to_string_lossy().into_owned();
        let network = self.ready_blocking().map_err(CniError::NotReady)?;
        let mut entry = Entry::from_attachment(attachment);
        entry.life.clone_from(&self.life);
        let plan = self.plan(network, entry, netns);
        plan.planner.keep_blocking(&plan.entry).map_err(CniError::Cache)?;
        Ok(plan)
    }

    /// What DEL needs; none when there is nothing to leave.
    pub(crate) fn plan_del_blocking(
        self: Arc<Self>,
        id: &str,
        attachment: Option<&Attachment>,
    ) -> Result<Option<Plan>, CniError> {
        check_id(id).map_err(CniError::Attachment)?;
        let (network, entry) = match self.cache.read_blocking(id) {
            Ok(Some(entry)) => match Network::from_value(&entry.network) {
                Ok(network) => (Arc::new(network), entry),
                Err(_) => self.stand_in_blocking(id, attachment)?,
            },
            Ok(None) => {
                // The beginning of an entry may be left; no plugin ran yet then.
                self.cache.remove_blocking(id).map_err(CniError::Cache)?;
                return Ok(None);
            }
            Err(error @ CacheError::Damaged { .. }) => {
                warn!(container = id, error = chain(&error), "leaving the network as it is configured now");
                self.stand_in_blocking(id, attachment)?
            }
            Err(error) => return Err(CniError::Cache(error)),
        };
        if entry.life != self.life {
            leftovers::wait_blocking(id, self.config.plugin_timeout);
        }
        let netns = attachment.and_then(|a| a.netns.clone()).or_else(|| entry.netns.clone());
        // Plugins take an empty name for "gone" (spec, DEL); many fail on a file that is not a namespace any more.
        let netns = netns.filter(|path| netns::is_netns_blocking(path));
        let netns = netns.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Some(self.plan(network, entry, netns)))
    }

    /// What CHECK needs; none for a pod that never finished joining. It joined while its daemon lived, so no plugin of an earlier one is at work.
    pub(crate) fn plan_check_blocking(self: Arc<Self>, id: &str) -> Result<Option<Plan>, CniError> {
        check_id(id).map_err(CniError::Attachment)?;
        let entry = self.cache.read_blocking(id).map_err(CniError::Cache)?;
        let Some(entry) = entry.filter(|entry| entry.result.is_some()) else { return Ok(None) };
        let Ok(network) = Network::from_value(&entry.network) else { return Ok(None) };
        let netns = entry.netns.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Some(self.plan(Arc::new(network), entry, netns)))
    }

    /// For a damaged entry: the best guess is the network that pods join now.
    fn stand_in_blocking(
        &self,
        id: &str,
        attachment: Option<&Attachment>,
    ) -> Result<(Arc<Network>, Entry), CniError> {
        let network = self.conf.network_blocking().map_err(CniError::NotReady)?;
        let unknown = || Attachment {
            container_id: id.to_owned(),
            netns: None,
            ifname: DEFAULT_IFNAME.to_owned(),
            pod_namespace: String::new(),
            pod_name: String::new(),
            pod_uid: String::new(),
            capabilities: crate::Capabilities::default(),
        };
        let entry = Entry::from_attachment(&attachment.cloned().unwrap_or_else(unknown));
        Ok((network, entry))
    }

    fn plan(self: Arc<Self>, network: Arc<Network>, mut entry: Entry, netns: String) -> Plan {
        entry.network = network.to_value();
        let find = |plugin: &Plugin| plugin::find_blocking(&plugin.executable, &self.config.bin_dirs);
        let executables = network.plugins.iter().map(find).collect();
        Plan { planner: self, network, executables, entry, netns }
    }

    async fn ask_status(&self, network: &Arc<Network>) -> Result<(), NotReady> {
        for plugin in &network.plugins {
            let mut conf = plugin.conf.clone();
            name_network(&mut conf, network);
            let asked = async {
                let path = plugin::find_blocking(&plugin.executable, &self.config.bin_dirs)?;
                self.invoke(Verb::Status, &path, conf, [const { String::new() }; 4]).await
            };
            asked.await.map_err(|failure| {
                let error = PluginError { plugin: plugin.executable.clone(), verb: Verb::Status, failure };
                NotReady::Status { network: network.name.clone(), problem: chain(&error) }
            })?;
        }
        Ok(())
    }

    /// `who`: container id, network namespace, interface, arguments.
    pub(crate) async fn invoke(
        &self,
        verb: Verb,
        path: &Path,
        conf: Map<String, Value>,
        [id, netns, ifname, args]: [String; 4],
    ) -> Result<Vec<u8>, Failure> {
        let env = vec![
            ("CNI_COMMAND", verb.to_string()),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", ifname),
            ("CNI_ARGS", args),
            ("CNI_PATH", self.path.clone()),
        ];
        let stdin = Value::Object(conf).to_string().into_bytes();
        let started = Instant::now();
        let done = Invocation { verb, path, env, stdin, limit: self.config.plugin_timeout }.run().await;
        debug!(plugin = %path.display(), %verb, took = ?started.elapsed(), ok = done.is_ok(), "plugin ran");
        done
    }
}
