//! Pods in guests: the handler that all pods of a run have, and what guests boot.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::node::bin_dir;

/// The runtime handler of pods that every test asks for that names no other: the same suite for every kind of pod.
pub const DEFAULT_HANDLER: &str = "HARTPOD_E2E_HANDLER";
/// The runtime handler of pods in guests.
pub const HANDLER: &str = "vm";
/// Several guests at once fit a machine of 4 GiB.
pub(crate) const SETTINGS: &str = "default_memory_mib = 320\ndefault_vcpus = 1";

/// The handler of pods whose test names none.
pub fn default_handler() -> String {
    std::env::var(DEFAULT_HANDLER).unwrap_or_default()
}

/// Whether pods are guests unless a test says otherwise.
pub fn by_default() -> bool {
    default_handler() == HANDLER
}

/// Lets a node's guests boot the machine's image. A test that wants another has put it there before its first pod.
pub fn provide_image(root: &Path) -> Result<()> {
    let own = root.join("guest");
    if fs::symlink_metadata(&own).is_ok() {
        return Ok(());
    }
    let shared = image_root()?.join("guest");
    match symlink(&shared, &own) {
        // Another pod of the test was faster.
        Err(_) if fs::symlink_metadata(&own).is_ok() => Ok(()),
        linked => linked.with_context(|| format!("link {} to {}", own.display(), shared.display())),
    }
}

/// The root that has the image of this machine's guests: made by the first test of a run, or when it is older than the agent.
pub fn image_root() -> Result<PathBuf> {
    let root = std::env::temp_dir().join("hartpod-guest");
    let agent = bin_dir().join("hartpod-pod");
    let made = |path: &Path| fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    let agent_made = made(&agent).context("look at the pod agent")?;
    if !made(&root.join("guest/current")).is_ok_and(|image| image > agent_made) {
        build_image(&root, &agent)?;
    }
    Ok(root)
}

/// What `hartpod guest build` says. Another build that is under way is waited for.
pub fn build_image(root: &Path, agent: &Path) -> Result<String> {
    let mut hartpod = Command::new(bin_dir().join("hartpod"));
    hartpod.args(["guest", "build", "--root"]).arg(root).arg("--agent").arg(agent);
    let output = hartpod.output().context("run hartpod guest build")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "hartpod guest build: {}: {stderr}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
