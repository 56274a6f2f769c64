//! How a container ended.

use hartpod_proto::pod::v1 as pod;

use crate::clock;

/// 128 + SIGKILL.
const KILLED: i32 = 137;
/// What containerd reports when nobody saw the end.
const UNKNOWN: i32 = 255;
/// What containerd reports when the process never ran.
const START_FAILED: i32 = 128;
/// The reason of those.
const START_ERROR: &str = "StartError";

/// The end of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Nanoseconds since the Unix epoch.
    pub(crate) finished_at: i64,
    pub(crate) code: i32,
    /// One word for status, as the kubelet and kubectl know it.
    pub(crate) reason: String,
    /// More than the word, or empty.
    pub(crate) message: String,
}

impl Exit {
    /// As the pod agent reported it.
    pub(crate) fn reported(state: &pod::ContainerState) -> Self {
        let reason = match (state.oom_killed, state.exit_code) {
            (true, _) => "OOMKilled",
            (false, 0) => "Completed",
            // The answer to its start says so too, and may come later or, to a daemon that is killed, never.
            (false, START_FAILED) if state.started_at == 0 => START_ERROR,
            (false, _) => "Error",
        };
        Self {
            finished_at: if state.finished_at == 0 { clock::now() } else { state.finished_at },
            code: state.exit_code,
            reason: reason.to_owned(),
            message: state.message.clone(),
        }
    }

    /// Its process could not be started.
    pub(crate) fn start_failed(message: String) -> Self {
        Self { finished_at: clock::now(), code: START_FAILED, reason: START_ERROR.to_owned(), message }
    }

    /// Whether its process could not be started.
    pub(crate) fn is_start_failure(&self) -> bool {
        self.reason == START_ERROR
    }

    /// The daemon killed it.
    pub(crate) fn killed(message: &str) -> Self {
        Self {
            finished_at: clock::now(),
            code: KILLED,
            reason: "Error".to_owned(),
            message: message.to_owned(),
        }
    }

    /// It ended while nobody watched.
    pub(crate) fn unseen(message: &str) -> Self {
        Self {
            finished_at: clock::now(),
            code: UNKNOWN,
            reason: "Unknown".to_owned(),
            message: message.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_follows_the_exit_code_unless_the_kernel_ran_out_of_memory() {
        let reason = |oom_killed, exit_code| {
            Exit::reported(&pod::ContainerState { oom_killed, exit_code, ..Default::default() }).reason
        };
        assert_eq!(reason(false, 0), "Completed");
        assert_eq!(reason(false, 7), "Error");
        assert_eq!(reason(true, 137), "OOMKilled");
        assert_eq!(reason(true, 0), "OOMKilled");
    }

    #[test]
    fn one_that_never_ran_failed_to_start() {
        let reason = |started_at, exit_code| {
            Exit::reported(&pod::ContainerState { started_at, exit_code, ..Default::default() }).reason
        };
        assert_eq!(reason(0, 128), "StartError");
        // A program's own code, and one that was killed at the gate.
        assert_eq!(reason(1, 128), "Error");
        assert_eq!(reason(0, 137), "Error");
    }
}
