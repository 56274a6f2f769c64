//! One pod's way into its network, through it, or out of it.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tracing::{debug, warn};

use crate::attachment::Attachment;
use crate::cache::{Entry, Told};
use crate::client::Checked;
use crate::conf::{Network, Plugin};
use crate::error::{AddFailure, CniError, chain};
use crate::offload::{blocking, interruptible};
use crate::outcome::{self, Attached};
use crate::planner::Planner;
use crate::plugin::{self, Failure, PluginError, Verb};

/// A pod and its network, with each plugin's executable or why there is none.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) planner: Arc<Planner>,
    pub(crate) network: Arc<Network>,
    pub(crate) executables: Vec<Result<PathBuf, Failure>>,
    pub(crate) entry: Entry,
    /// Network namespace as plugins are told; empty when it is gone.
    pub(crate) netns: String,
}

/// When a pod leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// At once, because joining failed.
    Undo,
    /// Some time after it joined or tried to.
    Later,
}

impl Entry {
    pub(crate) fn from_attachment(attachment: &Attachment) -> Self {
        Self::from(Told {
            container_id: attachment.container_id.clone(),
            netns: attachment.netns.clone(),
            ifname: attachment.ifname.clone(),
            network: Value::Null,
            args: attachment.args().map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
            capabilities: attachment.capabilities.to_args(),
        })
    }
}

impl Plan {
    pub(crate) async fn add(&mut self) -> Result<Attached, AddFailure> {
        let mut result = None;
        for index in 0..self.network.plugins.len() {
            let printed = self.run(Verb::Add, index, result.as_ref()).await?;
            let garbage = |problem: String| {
                self.error(
                    Verb::Add,
                    index,
                    Failure::Garbage { stdout: plugin::quote_bytes(&printed), problem },
                )
            };
            let value = serde_json::from_slice(&printed).map_err(|e| garbage(e.to_string()))?;
            result = Some(outcome::to_version(value, self.network.version).map_err(|e| garbage(chain(&e)))?);
        }
        self.entry.result.clone_from(&result);
        let attached = outcome::attached(result.unwrap_or_default(), &self.entry.ifname)?;
        let (planner, entry) = (Arc::clone(&self.planner), self.entry.clone());
        match blocking(move || planner.keep_blocking(&entry)).await {
            Some(written) => written?,
            // The first entry is enough to leave the network; only the result is missing from it.
            None => debug!("shutting down before the result was kept"),
        }
        Ok(attached)
    }

    /// DEL of every plugin, in reverse order and past errors. The entry goes when all are through.
    pub(crate) async fn leave(&self, attempt: Attempt) -> Result<(), CniError> {
        let previous = self.entry.result.as_ref().filter(|_| self.network.version.has_check());
        let mut errors = Vec::new();
        for index in (0..self.network.plugins.len()).rev() {
            match self.run(Verb::Del, index, previous).await {
                Ok(_) => {}
                Err(error) if self.is_nothing_left(&error.failure, attempt) => {
                    warn!(container = %self.entry.container_id, error = chain(&error), "taken for already gone");
                }
                Err(error) => errors.push(error),
            }
        }
        let mut errors = errors.into_iter();
        if let Some(first) = errors.next() {
            let (network, source) = (self.network.name.clone(), Box::new(first));
            return Err(CniError::Del { network, source, others: errors.collect() });
        }
        let (planner, id) = (Arc::clone(&self.planner), self.entry.container_id.clone());
        interruptible(blocking(move || planner.forget_blocking(&id).map_err(CniError::Cache)).await)
    }

    pub(crate) async fn check(&self) -> Result<Checked, CniError> {
        for index in 0..self.network.plugins.len() {
            self.run(Verb::Check, index, self.entry.result.as_ref()).await.map_err(|source| {
                CniError::Check { network: self.network.name.clone(), source: Box::new(source) }
            })?;
        }
        Ok(Checked::Yes)
    }

    /// Whether a plugin's error on DEL means that there is nothing to take away. A stricter rule would make pods that
    /// can never be stopped.
    fn is_nothing_left(&self, failure: &Failure, attempt: Attempt) -> bool {
        let Failure::Refused(refusal) = failure else { return false };
        // A plugin that did not accept the pod may not accept its leaving either, for instance because its
        // configuration is wrong. It had two chances to take away what it may have begun; containerd gives one.
        if attempt == Attempt::Later && self.entry.result.is_none() {
            return true;
        }
        // go-cni's rule, for plugins that fail on what is not there any more.
        let text = refusal.to_string();
        text.contains("not found") || (self.netns.is_empty() && text.contains("no such file or directory"))
    }

    async fn run(&self, verb: Verb, index: usize, previous: Option<&Value>) -> Result<Vec<u8>, PluginError> {
        let path = match &self.executables[index] {
            Ok(path) => path,
            Err(_) => {
                let searched = self.planner.searched();
                return Err(self.error(verb, index, Failure::Missing { searched }));
            }
        };
        let conf = self.stdin(&self.network.plugins[index], previous);
        let args: Vec<String> = self.entry.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let who =
            [self.entry.container_id.clone(), self.netns.clone(), self.entry.ifname.clone(), args.join(";")];
        self.planner.invoke(verb, path, conf, who).await.map_err(|failure| self.error(verb, index, failure))
    }

    /// What a plugin reads: its own configuration, the network's name and version, the result before it, and the
    /// arguments for the capabilities that it declares (spec, section 3).
    fn stdin(&self, plugin: &Plugin, previous: Option<&Value>) -> Map<String, Value> {
        let mut conf = plugin.conf.clone();
        name_network(&mut conf, &self.network);
        if let Some(previous) = previous {
            conf.insert("prevResult".to_owned(), previous.clone());
        }
        let wanted = |capability: &String| {
            Some((capability.clone(), self.entry.capabilities.get(capability)?.clone()))
        };
        let runtime: Map<String, Value> = plugin.capabilities.iter().filter_map(wanted).collect();
        if !runtime.is_empty() {
            conf.insert("runtimeConfig".to_owned(), Value::Object(runtime));
        }
        conf
    }

    fn error(&self, verb: Verb, index: usize, failure: Failure) -> PluginError {
        PluginError { plugin: self.network.plugins[index].executable.clone(), verb, failure }
    }
}

pub(crate) fn name_network(conf: &mut Map<String, Value>, network: &Network) {
    conf.insert("name".to_owned(), json!(network.name));
    conf.insert("cniVersion".to_owned(), json!(network.version.as_str()));
}
