//! Reading the configuration: file, then command line, then all problems at once.

use std::io;
use std::path::{Path, PathBuf};

use super::{Config, DEFAULT_FILE, Problem, default_socket};

/// What the command line says over the file.
#[derive(Debug, Default)]
pub struct Overrides {
    pub root: Option<PathBuf>,
    pub state: Option<PathBuf>,
    pub socket: Option<PathBuf>,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not a hartpod configuration:\n{}", path.display(), error.to_string().trim_end())]
    Parse { path: PathBuf, error: Box<toml::de::Error> },
    #[error("{}", numbered(.path.as_deref(), .problems))]
    Invalid { path: Option<PathBuf>, problems: Vec<Problem> },
}

fn numbered(path: Option<&Path>, problems: &[Problem]) -> String {
    let origin = path.map_or_else(|| "the command line".to_owned(), |p| p.display().to_string());
    let lines: Vec<String> = problems.iter().map(|p| format!("\n  {p}")).collect();
    let plural = if problems.len() == 1 { "problem" } else { "problems" };
    format!("{} {plural} in the configuration from {origin}:{}", problems.len(), lines.concat())
}

impl Config {
    /// Reads `file`, or the default file when it exists; applies `overrides`; refuses what cannot work.
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, LoadError> {
        let (path, text) = match file {
            Some(path) => (Some(path), read(path)?),
            None => match read(Path::new(DEFAULT_FILE)) {
                Ok(text) => (Some(Path::new(DEFAULT_FILE)), text),
                Err(LoadError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    (None, String::new())
                }
                Err(other) => return Err(other),
            },
        };
        let config = Self::parse(&text, overrides).map_err(|error| LoadError::Parse {
            path: path.unwrap_or(Path::new(DEFAULT_FILE)).to_owned(),
            error: Box::new(error),
        })?;
        match config.validate() {
            problems if problems.is_empty() => Ok(config),
            problems => Err(LoadError::Invalid { path: path.map(Path::to_owned), problems }),
        }
    }

    /// A socket that nobody names follows the state folder, so that a second daemon with a state folder of its own
    /// never takes the first one's socket.
    fn parse(text: &str, overrides: Overrides) -> Result<Self, toml::de::Error> {
        let mut config: Self = toml::from_str(text)?;
        let socket_named = text.parse::<toml::Table>()?.contains_key("socket");
        config.root = overrides.root.unwrap_or(config.root);
        config.state = overrides.state.unwrap_or(config.state);
        config.socket = match overrides.socket {
            Some(socket) => socket,
            None if socket_named => config.socket,
            None => default_socket(&config.state),
        };
        Ok(config)
    }
}

fn read(path: &Path) -> Result<String, LoadError> {
    std::fs::read_to_string(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overrides(state: &str) -> Overrides {
        Overrides { state: Some(state.into()), ..Overrides::default() }
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        assert_eq!(Config::parse("", Overrides::default()).unwrap(), Config::default());
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        for (text, key) in [("rooot = '/x'", "rooot"), ("[images]\npined = []", "pined"), ("[vmm]\n", "vmm")]
        {
            let error = Config::parse(text, Overrides::default()).unwrap_err().to_string();
            assert!(error.contains(&format!("unknown field `{key}`")), "{error}");
        }
    }

    #[test]
    fn a_socket_that_nobody_names_follows_the_state_folder() {
        let socket = |text, overrides| Config::parse(text, overrides).unwrap().socket;
        assert_eq!(socket("", overrides("/tmp/s")), Path::new("/tmp/s/hartpod.sock"));
        assert_eq!(socket("state = '/run/a'", Overrides::default()), Path::new("/run/a/hartpod.sock"));
        assert_eq!(socket("socket = '/run/b.sock'", overrides("/tmp/s")), Path::new("/run/b.sock"));
        let named = Overrides { socket: Some("/run/c.sock".into()), ..overrides("/tmp/s") };
        assert_eq!(socket("socket = '/run/b.sock'", named), Path::new("/run/c.sock"));
    }

    #[test]
    fn all_problems_are_reported_at_once_with_their_keys() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(&file, "root = 'var'\n[images]\nparallel_layers = 0\n").unwrap();
        let error = Config::load(Some(&file), Overrides::default()).unwrap_err().to_string();
        assert!(error.starts_with("2 problems in the configuration from "), "{error}");
        assert!(error.contains("\n  root: "), "{error}");
        assert!(error.contains("\n  images.parallel_layers: "), "{error}");
    }

    #[test]
    fn a_named_file_must_exist() {
        let error = Config::load(Some(Path::new("/nonexistent/c.toml")), Overrides::default()).unwrap_err();
        assert!(matches!(error, LoadError::Read { .. }), "{error}");
    }
}
