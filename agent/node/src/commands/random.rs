//! Names that nobody else has.

/// Eight hexadecimal digits from the kernel.
pub(super) fn short_id() -> std::io::Result<String> {
    Ok(uuid()?[..8].to_owned())
}

/// A random UUID, as Kubernetes gives to pods.
pub(super) fn uuid() -> std::io::Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(text.trim_end().to_owned())
}
