//! What can be wrong, by operation.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use crate::attachment::InvalidAttachment;
use crate::cache::CacheError;
use crate::outcome::InvalidOutcome;
use crate::plugin::PluginError;

/// Why pods cannot join the network at the moment. The text is a sentence for kubelet's NetworkReady condition.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum NotReady {
    /// Nobody has configured a network yet.
    #[error("no network configuration (*.conf, *.conflist or *.json) in {}", dir.display())]
    NoConf {
        /// The configuration folder.
        dir: PathBuf,
    },
    /// The folder exists and cannot be read.
    #[error("cannot read the network configuration folder {}: {problem}", dir.display())]
    Folder {
        /// The configuration folder.
        dir: PathBuf,
        /// What the system said.
        problem: String,
    },
    /// There are files, and none is usable.
    #[error("no valid network configuration: {}", join(files.iter().map(|(path, why)| format!("{}: {why}", path.display()))))]
    Invalid {
        /// Each file and what is wrong with it.
        files: Vec<(PathBuf, InvalidConf)>,
    },
    /// The configuration names a plugin that is not installed.
    #[error("plugin `{plugin}` of network `{network}` is in none of {}", paths(searched))]
    MissingPlugin {
        /// The network.
        network: String,
        /// Its plugin.
        plugin: String,
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },
    /// A plugin answered STATUS with an error.
    #[error("network `{network}`: {problem}")]
    Status {
        /// The network.
        network: String,
        /// Which plugin said what.
        problem: String,
    },
    /// hartpod itself is shutting down.
    #[error("hartpod is shutting down")]
    ShuttingDown,
}

/// What is wrong with a configuration file.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum InvalidConf {
    /// It cannot be read.
    #[error("{problem}")]
    Unreadable {
        /// What the system said.
        problem: String,
    },
    /// It is a device, a pipe or the like.
    #[error("not a regular file")]
    NotRegular,
    /// It is larger than any configuration can be.
    #[error("larger than {limit} bytes")]
    TooLarge {
        /// The limit, bytes.
        limit: u64,
    },
    /// It is not JSON, for instance because it is half written.
    #[error("not JSON: {problem}")]
    NotJson {
        /// What the parser said, with line and column.
        problem: String,
    },
    /// It is some other JSON value.
    #[error("not a JSON object")]
    NotAnObject,
    /// It has no `name`.
    #[error("no `name`")]
    NoName,
    /// It has no `type`.
    #[error("no `type`")]
    NoType,
    /// It has no plugins.
    #[error("no plugins")]
    NoPlugins,
    /// It is a list of plugins in a file for one.
    #[error("a list of plugins belongs into a file named *.conflist")]
    ListInSingleFile,
    /// It offers no version that is understood.
    #[error("{} (0.3.0 to 1.1.0 are understood)", describe(offered))]
    Version {
        /// What it offers.
        offered: Vec<String>,
    },
    /// A field has the wrong type.
    #[error("`{key}` is not {wanted}")]
    Field {
        /// The field.
        key: &'static str,
        /// What it must be.
        wanted: &'static str,
    },
    /// One of the list's plugins is wrong.
    #[error("plugin {index}: {problem}")]
    Plugin {
        /// Its place, from 0.
        index: usize,
        /// What is wrong.
        problem: Box<InvalidConf>,
    },
}

/// Why a pod could not join, be checked, or leave.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// There is no usable network.
    #[error("the pod network is not ready")]
    NotReady(#[source] NotReady),
    /// The request makes no sense.
    #[error("invalid network attachment")]
    Attachment(#[source] InvalidAttachment),
    /// Our own cache failed; nothing was run.
    #[error("CNI cache")]
    Cache(#[source] CacheError),
    /// A plugin failed to add the pod. What was done is undone, unless `undo` says otherwise.
    #[error("join network `{network}`{}", undo.as_ref().map(|why| format!(" (undoing it failed too: {why})")).unwrap_or_default())]
    Add {
        /// The network.
        network: String,
        /// What went wrong.
        #[source]
        source: Box<AddFailure>,
        /// Why undoing it did not work: the cache keeps the entry, and `del` tries again.
        undo: Option<String>,
    },
    /// Plugins failed to remove the pod. The cache keeps the entry, so calling again tries again.
    #[error("leave network `{network}`{}", others.iter().map(|e| format!(" (also: {})", chain(e))).collect::<String>())]
    Del {
        /// The network.
        network: String,
        /// The first that failed, and why.
        #[source]
        source: Box<PluginError>,
        /// The others.
        others: Vec<PluginError>,
    },
    /// A plugin found the pod's network not as it should be.
    #[error("check network `{network}`")]
    Check {
        /// The network.
        network: String,
        /// Which plugin, and why.
        #[source]
        source: Box<PluginError>,
    },
    /// The runtime is shutting down.
    #[error("interrupted by shutdown")]
    Interrupted,
}

/// What went wrong in an ADD.
#[derive(Debug, thiserror::Error)]
pub enum AddFailure {
    /// A plugin failed.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The plugins' result cannot be used.
    #[error("the plugins' result is unusable")]
    Outcome(#[from] InvalidOutcome),
    /// The result could not be kept.
    #[error("keep the result")]
    Cache(#[from] CacheError),
}

/// Paths as a list for people.
pub(crate) fn paths(paths: &[PathBuf]) -> String {
    join(paths.iter().map(|path: &PathBuf| Path::display(path)))
}

fn join<T: Display>(items: impl Iterator<Item = T>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

fn describe(offered: &[String]) -> String {
    match offered {
        [] => "no `cniVersion`".to_owned(),
        [one] => format!("version {one:?}"),
        many => format!("versions {many:?}"),
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
