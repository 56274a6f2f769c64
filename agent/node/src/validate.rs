//! Pure checks on requests: what can be refused before anything is made.
//!
//! What only a container's spec depends on (command, mounts, limits ..) is checked where it is built, in [`crate::spec`].

mod cgroup_driver;
mod container;
mod sandbox;
mod sysctl;
mod user_namespace;

use std::collections::BTreeMap;
use std::path::{Component, Path};

pub(crate) use cgroup_driver::{Driver, cgroup_driver};
pub use container::container;
pub use sandbox::{Kind, sandbox};
pub(crate) use user_namespace::{id_maps, user_namespace};

/// A request that cannot be honoured; becomes InvalidArgument.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidRequest {
    /// Path of the field in the request, e.g. `config.metadata.name`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

type Checked = Result<(), InvalidRequest>;

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> InvalidRequest {
    InvalidRequest { field: field.into(), problem: problem.into() }
}

/// Longest name of an object in Kubernetes (a DNS subdomain, RFC 1123).
const NAME_MAX: usize = 253;

/// Largest sum of a label's or annotation's key and value that is not an annotation of the pod; containerd's limit too.
const LABEL_MAX: usize = 4096;

/// Largest sum of all annotations. Kubernetes allows a pod 256 KiB, to which the kubelet adds its own.
const ANNOTATIONS_MAX: usize = 1 << 20;

/// Names become parts of file names, log lines and environment variables of CNI plugins (where `;` separates).
fn name(field: &str, text: &str) -> Checked {
    if text.is_empty() {
        return Err(invalid(field, "is empty"));
    }
    if text.len() > NAME_MAX {
        return Err(invalid(field, format!("is {} bytes long, at most {NAME_MAX} are allowed", text.len())));
    }
    if text == "." || text == ".." || text.chars().any(|c| c.is_control() || matches!(c, '/' | ';' | '=')) {
        return Err(invalid(field, format!("{text:?} cannot be a name")));
    }
    Ok(())
}

fn labels(field: &str, labels: &BTreeMap<String, String>) -> Checked {
    for (key, value) in labels {
        if key.is_empty() {
            return Err(invalid(field, "has an empty key"));
        }
        if key.len() + value.len() > LABEL_MAX {
            let shown: String = key.chars().take(64).collect();
            return Err(invalid(
                format!("{field}[{shown:?}]"),
                format!("is {} bytes long, at most {LABEL_MAX} are allowed", key.len() + value.len()),
            ));
        }
    }
    Ok(())
}

fn annotations(field: &str, annotations: &BTreeMap<String, String>) -> Checked {
    if annotations.keys().any(String::is_empty) {
        return Err(invalid(field, "has an empty key"));
    }
    let total: usize = annotations.iter().map(|(k, v)| k.len() + v.len()).sum();
    if total > ANNOTATIONS_MAX {
        return Err(invalid(field, format!("are {total} bytes, at most {ANNOTATIONS_MAX} are allowed")));
    }
    Ok(())
}

/// No `..` and nothing that a file name or a log line cannot have.
fn plain_path(field: &str, text: &str) -> Checked {
    if text.chars().any(char::is_control) {
        return Err(invalid(field, format!("{text:?} contains a control character")));
    }
    if Path::new(text).components().any(|c| c == Component::ParentDir) {
        return Err(invalid(field, format!("{text} contains ..")));
    }
    Ok(())
}
