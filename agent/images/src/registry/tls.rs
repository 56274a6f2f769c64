//! TLS towards registries: the system's authorities and what `hosts.toml` adds.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tracing::warn;

use super::host::TlsSettings;
use super::hosts_file::SettingsError;

/// Reads certificates and makes a client's configuration of them. Blocks: the system's authorities are some hundred files.
///
/// Of several client certificates the first is used.
pub(super) fn config_blocking(settings: &TlsSettings) -> Result<ClientConfig, SettingsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(Path::new(""), &error))?;
    let builder = match settings.skip_verify {
        true => builder.dangerous().with_custom_certificate_verifier(Arc::new(BelieveAnybody { provider })),
        false => builder.with_root_certificates(authorities(settings)?),
    };
    let Some((certificate, private)) = settings.identities.first() else {
        return Ok(builder.with_no_client_auth());
    };
    let private = private.as_deref().unwrap_or(certificate);
    let key = PrivateKeyDer::from_pem_file(private).map_err(|error| bad(private, &error))?;
    builder.with_client_auth_cert(certificates(certificate)?, key).map_err(|error| bad(certificate, &error))
}

fn authorities(settings: &TlsSettings) -> Result<RootCertStore, SettingsError> {
    let mut store = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        warn!(%error, "a system certificate cannot be read");
    }
    // Systems carry certificates that rustls refuses; they cannot vouch for anybody, that is all.
    store.add_parsable_certificates(system.certs);
    for path in &settings.authorities {
        for certificate in certificates(path)? {
            store.add(certificate).map_err(|error| bad(path, &error))?;
        }
    }
    Ok(store)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match all.map_err(|error| bad(path, &error))? {
        none if none.is_empty() => Err(SettingsError::Certificate {
            path: path.to_owned(),
            problem: "no certificate in it".to_owned(),
        }),
        some => Ok(some),
    }
}

fn bad(path: &Path, error: &dyn std::error::Error) -> SettingsError {
    SettingsError::Certificate { path: path.to_owned(), problem: super::refusal::chain(error) }
}

/// `skip_verify = true`: the administrator said so. Signatures are checked all the same, which costs nothing.
#[derive(Debug)]
struct BelieveAnybody {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for BelieveAnybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
