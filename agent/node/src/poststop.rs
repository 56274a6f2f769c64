//! Hooks that run when a container is gone. The daemon runs them, since there may be no agent any more.
//!
//! They have run once the container's bundle is gone, so a daemon that dies in between, or a removal that failed after them,
//! makes them run again: at least once.

use std::path::Path;

use hartpod_container::hooks::{Budget, HookError, HookState, Launcher, Moment, hooks_of, run_blocking};
use hartpod_proto::{ContainerId, SandboxId};
use oci_spec::runtime::Spec;

use crate::records::Records;

/// What this program is called with to become a hook.
pub(crate) const ROLE: &str = "hook";

/// Runs the hooks of a container that is gone, if they are due, and deletes its bundle. What fails is warned about: the
/// container goes in any case.
pub(crate) fn poststop_blocking(records: &Records, pod: &SandboxId, id: &ContainerId, budget: Budget) {
    let json = match records.read_bundle_blocking(pod, id) {
        Ok(None) => return,
        Ok(Some(json)) => json,
        Err(error) => {
            return tracing::warn!(container = %id, error = %crate::chain(&error), "poststop hooks are not run");
        }
    };
    match serde_json::from_slice::<Spec>(&json) {
        Ok(spec) => run_all_blocking(records, pod, id, &spec, budget),
        Err(error) => {
            tracing::warn!(container = %id, %error, "poststop hooks are not run: no spec in the bundle")
        }
    }
    if let Err(error) = records.remove_bundle_blocking(pod, id) {
        tracing::warn!(container = %id, error = %crate::chain(&error), "bundle of a container stays");
    }
}

fn run_all_blocking(records: &Records, pod: &SandboxId, id: &ContainerId, spec: &Spec, budget: Budget) {
    let Some(hooks) = hooks_of(spec) else { return };
    let bundle = records.bundle_dir(pod, id);
    // Also when the file was replaced by another version.
    let launcher = Launcher { program: Path::new("/proc/self/exe"), role: ROLE };
    let state = HookState::new(id.as_str(), &bundle, spec);
    for hook in Moment::Poststop.of(hooks) {
        let state = state.file(Moment::Poststop, None);
        let run = state.and_then(|state| run_blocking(hook, &bundle, state, launcher, budget));
        match run.map_err(|failure| HookError::new(Moment::Poststop, hook.path(), failure)) {
            Ok(()) => {
                tracing::debug!(container = %id, hook = %hook.path().display(), "poststop hook has run")
            }
            Err(error) => {
                tracing::warn!(container = %id, error = %crate::chain(&error), "a hook failed, the container goes");
            }
        }
    }
}
