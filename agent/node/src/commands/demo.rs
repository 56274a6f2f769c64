//! `hartpod demo`.
use std::process::ExitCode;

/// Runs a whole pod in a temporary folder.
pub async fn demo() -> anyhow::Result<ExitCode> {
    anyhow::bail!("this build has no demo yet")
}
