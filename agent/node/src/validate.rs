//! Pure checks on requests: what can be refused before anything is made.

use hartpod_proto::cri::v1 as cri;

/// A request that cannot be honoured; becomes InvalidArgument.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidRequest {
    /// Path of the field in the request, e.g. `config.metadata.name`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Checks a sandbox's configuration. `handlers` are the names of runtime handlers that exist; "" is always one.
pub fn sandbox(
    config: &cri::PodSandboxConfig,
    handler: &str,
    handlers: &[&str],
) -> Result<(), InvalidRequest> {
    let _ = (config, handler, handlers);
    Ok(())
}

/// Checks a container's configuration against the sandbox's it is made in.
pub fn container(
    config: &cri::ContainerConfig,
    sandbox: &cri::PodSandboxConfig,
) -> Result<(), InvalidRequest> {
    let _ = (config, sandbox);
    Ok(())
}
