//! Garbage collection: a network's plugins are told which pods are in it, and give back what is anybody else's (spec 1.1.0, GC).
//!
//! DEL with the cached result is what frees a pod's address. GC is for what no cache knows of any more, after a lost disk, say. It is
//! dangerous where other runtimes have pods in the same network: their addresses would be given out again. So it is refused there.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use crate::cache::CacheError;
use crate::conf::{Network, Plugin};
use crate::error::NotReady;
use crate::foreign::{self, UnknownCache};
use crate::offload::blocking;
use crate::plan::name_network;
use crate::planner::Planner;
use crate::plugin::{self, Failure, PluginError, Verb};
use crate::version::SpecVersion;

/// Pods cannot join or leave meanwhile (spec 1.1.0, Lifecycle & Ordering), so it must not take long.
const LIMIT: Duration = Duration::from_secs(10);

/// What came of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Collected {
    /// The plugins were told of this many pods.
    Yes {
        /// The network.
        network: String,
        /// Its pods.
        pods: usize,
    },
    /// The network has no GC.
    NotOffered {
        /// The network.
        network: String,
        /// Why.
        why: &'static str,
    },
}

/// Why garbage was not collected.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// There is no usable network.
    #[error("the pod network is not ready")]
    NotReady(#[source] NotReady),
    /// Pods are joining or leaving at this moment.
    #[error("pods are joining or leaving the network")]
    Busy,
    /// Other runtimes have pods in the network, which plugins would take for garbage.
    #[error("network `{network}` has {count} attachments of other runtimes, the first {}", first.display())]
    Foreign {
        /// The network.
        network: String,
        /// How many.
        count: usize,
        /// One of them: an entry of libcni's cache.
        first: PathBuf,
    },
    /// It cannot be told whether they have.
    #[error("attachments of other runtimes")]
    Unknown(#[from] UnknownCache),
    /// It cannot be told which pods are in the network.
    #[error("CNI cache")]
    Cache(#[from] CacheError),
    /// A plugin failed; the others were told.
    #[error("collect garbage of network `{network}`")]
    Plugin {
        /// The network.
        network: String,
        /// The first that failed, and why.
        #[source]
        source: Box<PluginError>,
    },
    /// It took too long; the plugin was killed.
    #[error("the network's plugins did not end within {LIMIT:?}")]
    TimedOut,
    /// The runtime is shutting down.
    #[error("interrupted by shutdown")]
    Interrupted,
}

/// What a plugin says to VERSION.
#[derive(Debug, Deserialize)]
struct Versions {
    #[serde(rename = "supportedVersions", default)]
    supported: Vec<String>,
}

/// Tells the plugins of the network that pods join now.
pub(crate) async fn collect(planner: &Arc<Planner>) -> Result<Collected, CollectError> {
    let this = Arc::clone(planner);
    let network = blocking(move || this.ready_blocking()).await.ok_or(CollectError::Interrupted)?;
    let network = network.map_err(CollectError::NotReady)?;
    let not_offered = |why| Ok(Collected::NotOffered { network: network.name.clone(), why });
    if !network.version.has_gc() {
        return not_offered("its version is below 1.1.0");
    }
    if network.disable_gc {
        return not_offered("its configuration disables it");
    }
    // Nobody joins while this is held.
    let Ok(_alone) = planner.joining.try_write() else { return Err(CollectError::Busy) };
    let told = timeout(LIMIT, async {
        for plugin in &network.plugins {
            if !knows_gc(planner, plugin, &network).await? {
                return not_offered("one of its plugins does not know version 1.1.0");
            }
        }
        let (this, name) = (Arc::clone(planner), network.name.clone());
        let valid =
            blocking(move || valid_blocking(&this, &name)).await.ok_or(CollectError::Interrupted)??;
        tell(planner, &network, &valid).await?;
        Ok(Collected::Yes { network: network.name.clone(), pods: valid.len() })
    });
    told.await.unwrap_or(Err(CollectError::TimedOut))
}

/// The attachments of this network, all of them ours.
fn valid_blocking(planner: &Planner, network: &str) -> Result<Vec<Value>, CollectError> {
    let foreign = foreign::attachments_blocking(planner.foreign_caches(), network)?;
    if let Some(first) = foreign.first() {
        let (network, count, first) = (network.to_owned(), foreign.len(), first.clone());
        return Err(CollectError::Foreign { network, count, first });
    }
    let mut valid = Vec::new();
    for id in planner.cached_ids_blocking()? {
        // None for the beginning of an entry: no plugin ran yet.
        let Some(entry) = planner.entry_blocking(&id)? else { continue };
        if entry.network["name"] == network {
            valid.push(json!({ "containerID": entry.container_id, "ifname": entry.ifname }));
        }
    }
    Ok(valid)
}

/// One that does not would take the verb for a mistake.
async fn knows_gc(planner: &Planner, plugin: &Plugin, network: &Network) -> Result<bool, CollectError> {
    let request = [("cniVersion".to_owned(), json!(network.version.as_str()))].into_iter().collect();
    let answer = ask(planner, Verb::Version, plugin, network, request).await?;
    let versions: Versions = serde_json::from_slice(&answer).map_err(|e| {
        let garbage = Failure::Garbage { stdout: plugin::quote_bytes(&answer), problem: e.to_string() };
        failed(Verb::Version, plugin, network, garbage)
    })?;
    Ok(versions.supported.iter().filter_map(|v| SpecVersion::parse(v)).any(SpecVersion::has_gc))
}

/// All plugins, past errors.
async fn tell(planner: &Planner, network: &Network, valid: &[Value]) -> Result<(), CollectError> {
    let mut first = None;
    for plugin in &network.plugins {
        let mut conf = plugin.conf.clone();
        name_network(&mut conf, network);
        conf.insert("cni.dev/valid-attachments".to_owned(), json!(valid));
        // The spec's first text had this name, and libcni writes both (containernetworking/cni issue 1101).
        conf.insert("cni.dev/attachments".to_owned(), json!(valid));
        if let Err(error) = ask(planner, Verb::Gc, plugin, network, conf).await {
            first.get_or_insert(error);
        }
    }
    first.map_or(Ok(()), Err)
}

async fn ask(
    planner: &Planner,
    verb: Verb,
    plugin: &Plugin,
    network: &Network,
    stdin: Map<String, Value>,
) -> Result<Vec<u8>, CollectError> {
    let name = plugin.executable.clone();
    let dirs = planner.searched();
    let found =
        blocking(move || plugin::find_blocking(&name, &dirs)).await.ok_or(CollectError::Interrupted)?;
    let path = found.map_err(|failure| failed(verb, plugin, network, failure))?;
    let answer = planner.invoke(verb, &path, stdin, [const { String::new() }; 4]).await;
    answer.map_err(|failure| failed(verb, plugin, network, failure))
}

fn failed(verb: Verb, plugin: &Plugin, network: &Network, failure: Failure) -> CollectError {
    let source = Box::new(PluginError { plugin: plugin.executable.clone(), verb, failure });
    CollectError::Plugin { network: network.name.clone(), source }
}
