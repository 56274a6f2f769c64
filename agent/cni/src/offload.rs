//! File work, kept off the threads that serve.

use crate::error::CniError;

/// Runs file work where it may block; none when the runtime shuts down first.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Some(done),
        Err(e) => match e.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => None,
        },
    }
}

pub(crate) fn interruptible<T>(done: Option<Result<T, CniError>>) -> Result<T, CniError> {
    done.unwrap_or(Err(CniError::Interrupted))
}
