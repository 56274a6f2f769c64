//! Hooks that run when a container is gone. The daemon runs them, since there may be no agent any more.
//!
//! They have run once the container's bundle is gone, so a daemon that dies in between, or a removal that failed after them,
//! makes them run again: at least once. So that this is true of the last as well, however slow those before are, none has less than [`LEAST`].

use std::path::Path;
use std::time::Duration;

use hartpod_container::hooks::{Budget, HookError, HookState, Launcher, Moment, hooks_of, run_blocking};
use hartpod_proto::{ContainerId, SandboxId};
use oci_spec::runtime::Spec;

use crate::records::Records;

/// What this program is called with to become a hook.
pub(crate) const ROLE: &str = "hook";

/// For a hook to do its work when those before it have used up the time of all. The caller may have given up then; asked again, it finds the
/// removal under way.
const LEAST: Duration = Duration::from_secs(10);

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
        Ok(spec) => {
            // Also when the file was replaced by another version.
            let launcher = Launcher { program: Path::new("/proc/self/exe"), role: ROLE };
            run_all_blocking(&records.bundle_dir(pod, id), id, &spec, launcher, budget);
        }
        Err(error) => {
            tracing::warn!(container = %id, %error, "poststop hooks are not run: no spec in the bundle")
        }
    }
    if let Err(error) = records.remove_bundle_blocking(pod, id) {
        tracing::warn!(container = %id, error = %crate::chain(&error), "bundle of a container stays");
    }
}

fn run_all_blocking(bundle: &Path, id: &ContainerId, spec: &Spec, launcher: Launcher<'_>, budget: Budget) {
    let Some(hooks) = hooks_of(spec) else { return };
    let state = HookState::new(id.as_str(), bundle, spec);
    for hook in Moment::Poststop.of(hooks) {
        let state = state.file(Moment::Poststop, None);
        let budget = budget.or_at_least(LEAST);
        let run = state.and_then(|state| run_blocking(hook, bundle, state, launcher, budget));
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

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{HookBuilder, Hooks};

    use super::*;

    #[test]
    fn a_hook_runs_when_those_before_it_took_all_the_time() {
        let dir = tempfile::tempdir().unwrap();
        // In the place of this program; what it is called with ends with the hook's name for itself.
        let program = dir.path().join("program");
        std::fs::write(&program, "#!/bin/sh\nsleep 0.2; shift 5; echo \"$@\" >>ran\n").unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let launcher = Launcher { program: &program, role: ROLE };
        let (mut spec, mut hooks) = (Spec::default(), Hooks::default());
        for name in ["one", "two"] {
            let hook = HookBuilder::default().path("/none").args([name.to_owned()]).build().unwrap();
            Moment::Poststop.add(&mut hooks, hook);
        }
        spec.set_hooks(Some(hooks));
        let id = ContainerId::from_bytes([7; 32]);
        run_all_blocking(dir.path(), &id, &spec, launcher, Budget::of(Duration::ZERO));
        assert_eq!(std::fs::read_to_string(dir.path().join("ran")).unwrap(), "one\ntwo\n");
    }
}
