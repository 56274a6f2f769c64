//! Waiting for something that happens soon, without sleeping for luck.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long [`eventually`] waits: far more than anything here takes on a busy two-core machine.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How much longer everything may take on a machine that is emulated itself.
const EMULATED: u32 = 6;

/// Whether this machine is one of the lab's (`HARTPOD_LAB`): right, but slow.
pub fn emulated() -> bool {
    std::env::var_os("HARTPOD_LAB").is_some()
}

/// What a limit for an ordinary machine is on this one.
pub fn patient(limit: Duration) -> Duration {
    if emulated() { limit * EMULATED } else { limit }
}

/// Asks again until `accept` likes the answer; fails with the last answer after [`PATIENCE`].
pub async fn eventually<T: Debug>(
    what: &str,
    ask: impl AsyncFnMut() -> Result<T>,
    accept: impl Fn(&T) -> bool,
) -> Result<T> {
    within(PATIENCE, what, ask, accept).await
}

/// [`eventually`] with a limit of its own; an emulated machine gets more.
pub async fn within<T: Debug>(
    limit: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<T>,
    accept: impl Fn(&T) -> bool,
) -> Result<T> {
    let patience = patient(limit);
    let start = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        let answer = ask().await?;
        if accept(&answer) {
            return Ok(answer);
        }
        if start.elapsed() > patience {
            bail!("{what} did not happen within {patience:?}; last seen: {answer:#?}");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_answer_is_in_the_error() {
        let error =
            within(Duration::from_millis(5), "a miracle", async || Ok(41), |n| *n == 42).await.unwrap_err();
        assert!(error.to_string().contains("a miracle") && error.to_string().contains("41"), "{error}");
    }
}
