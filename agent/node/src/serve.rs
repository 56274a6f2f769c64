//! The daemon's life from an empty process to the last answered call.

use crate::config::Config;

/// Serves until a signal ends it.
pub async fn serve(_config: Config) -> anyhow::Result<()> {
    anyhow::bail!("this build has no daemon yet")
}
