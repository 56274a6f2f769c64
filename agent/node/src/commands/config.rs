//! `hartpod config`: the configuration in effect, the sample file, or what is wrong with a file.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::{self, Config, Overrides};

/// What is wanted.
#[derive(Debug)]
pub enum Ask {
    /// The sample file with every default.
    Sample,
    /// All problems of this file.
    Check(PathBuf),
    /// What `serve` would use with this file (the default file when none).
    InEffect(Option<PathBuf>),
}

/// Prints the answer; a file with problems is an error that lists them.
pub fn config(ask: &Ask) -> anyhow::Result<ExitCode> {
    match ask {
        Ask::Sample => print!("{}", config::sample()?),
        Ask::Check(file) => {
            Config::load(Some(file), Overrides::default())?;
            println!("{}: ok", file.display());
        }
        Ask::InEffect(file) => {
            let config = Config::load(file.as_deref(), Overrides::default())?;
            print!("{}", toml::to_string(&config)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}
