//! `hartpod check`.
use std::process::ExitCode;

use crate::config::Config;

/// Prints one line for each thing that pods need.
pub fn check(_config: &Config) -> anyhow::Result<ExitCode> {
    anyhow::bail!("this build cannot check yet")
}
