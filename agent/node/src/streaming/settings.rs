//! The streaming server's settings, with the files that they name.

use std::io;
use std::path::{Path, PathBuf};

use hartpod_streaming::{Config, TlsError, tls_from_pem};

use crate::config;

/// A certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}", path.display())]
    Bad { path: PathBuf, source: TlsError },
    #[error("{} and {}", cert.display(), key.display())]
    Unfit { cert: PathBuf, key: PathBuf, source: TlsError },
}

/// Reads the certificate and the key, where TLS is asked for.
///
/// # Errors
/// When one of the two cannot be read or used, or they do not belong together.
pub(crate) fn settings_blocking(config: &config::Streaming) -> Result<Config, SettingsError> {
    let settings = Config { listen: config.listen, ..Config::default() };
    let config::Streaming { tls_cert: cert, tls_key: key, .. } = config;
    if cert.as_os_str().is_empty() {
        return Ok(settings);
    }
    let tls = tls_from_pem(&read(cert)?, &read(key)?).map_err(|source| match source {
        TlsError::Certificates(_) => SettingsError::Bad { path: cert.clone(), source },
        TlsError::Key(_) => SettingsError::Bad { path: key.clone(), source },
        TlsError::Config(_) => SettingsError::Unfit { cert: cert.clone(), key: key.clone(), source },
    })?;
    Ok(Config { tls: Some(tls), ..settings })
}

fn read(path: &Path) -> Result<Vec<u8>, SettingsError> {
    std::fs::read(path).map_err(|source| SettingsError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain;

    const CERTIFICATE: &[u8] = include_bytes!("../../../streaming/src/tests/data/cert.pem");
    const KEY: &[u8] = include_bytes!("../../../streaming/src/tests/data/key.pem");

    /// What is said of these two files, with their folder left out; nothing where they are good.
    fn told(cert: Option<&[u8]>, key: Option<&[u8]>) -> String {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: Option<&[u8]>| {
            let path = dir.path().join(name);
            if let Some(text) = text {
                std::fs::write(&path, text).unwrap();
            }
            path
        };
        let config = config::Streaming {
            tls_cert: file("c.pem", cert),
            tls_key: file("k.pem", key),
            ..config::Streaming::default()
        };
        let folder = format!("{}/", dir.path().display());
        match settings_blocking(&config) {
            Ok(settings) => settings.tls.map_or("http", |_| "").to_owned(),
            Err(error) => chain(&error).replace(&folder, ""),
        }
    }

    #[test]
    fn a_file_that_is_no_good_is_named_with_what_is_wrong_with_it() {
        assert_eq!(told(Some(CERTIFICATE), Some(KEY)), "");
        assert!(told(None, Some(KEY)).starts_with("read c.pem: No such file"));
        assert!(told(Some(CERTIFICATE), None).starts_with("read k.pem: No such file"));
        assert!(told(Some(KEY), Some(KEY)).starts_with("c.pem: read the certificates: "));
        assert!(told(Some(CERTIFICATE), Some(b"none")).starts_with("k.pem: read the private key: "));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        // Made for nothing else.
        const OTHER: &[u8] = b"-----BEGIN PRIVATE KEY-----\n\
            MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg6Yz7vju1TY3r3CTR\n\
            RGShD5Pr0CyKq5r+/LaD7uWoJBChRANCAASLcZkHKkqbBvGvxcNCOX4KCZHy9M/S\n\
            K//Qg3rm+l1eC8/Y/bZY3vY1/ywEO3k5fGwkRCxRrADylSY9DvzV2kjY\n\
            -----END PRIVATE KEY-----\n";
        let told = told(Some(CERTIFICATE), Some(OTHER));
        assert!(told.starts_with("c.pem and k.pem: use the certificates with the private key: "), "{told}");
    }

    #[test]
    fn without_files_there_is_no_tls() {
        assert!(settings_blocking(&config::Streaming::default()).unwrap().tls.is_none());
    }
}
