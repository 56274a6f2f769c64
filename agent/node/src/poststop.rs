//! Hooks that run when a container is gone. The daemon runs them, since there may be no agent any more.
//!
//! They have run once the container's bundle is gone, so a daemon that dies in between, or a removal that failed after them,
//! makes them run again: at least once.

use std::time::{Duration, Instant};

use hartpod_container::hooks::{HookError, HookState, Moment, hooks_of, run_blocking};
use hartpod_proto::{ContainerId, SandboxId};
use oci_spec::runtime::Spec;

use crate::records::Records;

/// Runs the hooks of a container that is gone, if they are due, and deletes its bundle. What fails is warned about: the
/// container goes in any case. All of them have `limit` together.
pub(crate) fn poststop_blocking(records: &Records, pod: &SandboxId, id: &ContainerId, limit: Duration) {
    let json = match records.read_bundle_blocking(pod, id) {
        Ok(None) => return,
        Ok(Some(json)) => json,
        Err(error) => {
            return tracing::warn!(container = %id, error = %crate::chain(&error), "poststop hooks are not run");
        }
    };
    match serde_json::from_slice::<Spec>(&json) {
        Ok(spec) => run_all_blocking(records, pod, id, &spec, limit),
        Err(error) => {
            tracing::warn!(container = %id, %error, "poststop hooks are not run: no spec in the bundle")
        }
    }
    if let Err(error) = records.remove_bundle_blocking(pod, id) {
        tracing::warn!(container = %id, error = %crate::chain(&error), "bundle of a container stays");
    }
}

fn run_all_blocking(records: &Records, pod: &SandboxId, id: &ContainerId, spec: &Spec, limit: Duration) {
    let Some(hooks) = hooks_of(spec) else { return };
    let (until, bundle) = (Instant::now() + limit, records.bundle_dir(pod, id));
    let state = HookState::new(id.as_str(), &bundle, spec);
    for hook in Moment::Poststop.of(hooks) {
        let left = until.saturating_duration_since(Instant::now());
        let run =
            state.file(Moment::Poststop, None).and_then(|state| run_blocking(hook, &bundle, state, left));
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
