//! `hartpod run`.
use std::process::ExitCode;

use clap::Args;

/// One pod by hand.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The image, e.g. busybox or registry.example/app:1
    pub image: String,
    /// The command in place of the image's own
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Runs it and gives its exit code.
pub async fn run(_args: RunArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("this build cannot run a pod yet")
}
