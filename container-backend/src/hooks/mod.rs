//! OCI hooks: programs of the node's administrator that run at moments of a container's life (runtime-spec, config.md and
//! runtime.md).
//!
//! The agent of a pod runs all but the last kind, see [`crate::Pod::begin_hook`]; the daemon runs those after a container's end
//! with [`run_blocking`], for there may be no agent any more. What both need is here.

mod launcher;
mod run;
mod state;
mod tail;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oci_spec::runtime::{Hook, Hooks, Spec};

pub(crate) use launcher::UMASK;
pub use launcher::{Launcher, be_hook};
pub use run::{run_blocking, wait_blocking};
pub use state::HookState;
pub use tail::Tail;

use crate::launch::LaunchError;

/// How long a hook that names no timeout may take. The specification has no limit; a container that waits for a hook for ever could
/// only be removed.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What all hooks of one call have together, whatever their timeouts say: the kubelet gives up after two minutes (its
/// --runtime-request-timeout), and a second try would find the first.
const TIMEOUT_IN_ALL: Duration = Duration::from_secs(100);

/// The time that all hooks of one call have together.
#[derive(Debug, Clone, Copy)]
pub struct Budget(Instant);

impl Budget {
    /// That of a call, which begins now.
    #[must_use]
    pub fn of_call() -> Self {
        Self::of(TIMEOUT_IN_ALL)
    }

    /// As much as this, from now on.
    #[must_use]
    pub fn of(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    /// This, and not less than so much from now on.
    #[must_use]
    pub fn or_at_least(self, time: Duration) -> Self {
        Self(self.0.max(Instant::now() + time))
    }

    /// How long `hook` may take.
    #[must_use]
    pub fn timeout(self, hook: &Hook) -> Duration {
        let asked = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok());
        let left = self.0.saturating_duration_since(Instant::now());
        asked.map_or(TIMEOUT, Duration::from_secs).min(left)
    }
}

/// For children of a hook that has ended to let go of its stderr.
pub const DRAIN: Duration = Duration::from_millis(500);

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// As [`Moment::CreateRuntime`], just before; deprecated since 1.0.2.
    Prestart,
    /// Everything is mounted, the root is not yet the only one; outside of the container.
    CreateRuntime,
    /// After those; in the container's mount namespace, where the host's files are still to be seen.
    CreateContainer,
    /// At the start, in the container.
    StartContainer,
    /// The program runs; outside.
    Poststart,
    /// The container is gone; outside.
    Poststop,
}

impl Moment {
    /// All of them, in the order of a container's life.
    pub const ALL: [Self; 6] = [
        Self::Prestart,
        Self::CreateRuntime,
        Self::CreateContainer,
        Self::StartContainer,
        Self::Poststart,
        Self::Poststop,
    ];

    /// As the specification calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// What a container is at that moment, as its state says it.
    #[must_use]
    pub fn status(self) -> &'static str {
        match self {
            Self::Prestart | Self::CreateRuntime | Self::CreateContainer => "creating",
            Self::StartContainer => "created",
            Self::Poststart => "running",
            Self::Poststop => "stopped",
        }
    }

    /// The hooks of this moment, in their order.
    #[must_use]
    pub fn of(self, hooks: &Hooks) -> &[Hook] {
        #[allow(deprecated)] // those of specs that know nothing newer
        let list = match self {
            Self::Prestart => hooks.prestart(),
            Self::CreateRuntime => hooks.create_runtime(),
            Self::CreateContainer => hooks.create_container(),
            Self::StartContainer => hooks.start_container(),
            Self::Poststart => hooks.poststart(),
            Self::Poststop => hooks.poststop(),
        };
        list.as_deref().unwrap_or_default()
    }

    /// Puts a hook behind those of this moment.
    pub fn add(self, hooks: &mut Hooks, hook: Hook) {
        #[allow(deprecated)] // as above
        let list = match self {
            Self::Prestart => hooks.prestart_mut(),
            Self::CreateRuntime => hooks.create_runtime_mut(),
            Self::CreateContainer => hooks.create_container_mut(),
            Self::StartContainer => hooks.start_container_mut(),
            Self::Poststart => hooks.poststart_mut(),
            Self::Poststop => hooks.poststop_mut(),
        };
        list.get_or_insert_default().push(hook);
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The hooks of a spec, if it has any.
#[must_use]
pub fn hooks_of(spec: &Spec) -> Option<&Hooks> {
    spec.hooks().as_ref().filter(|hooks| Moment::ALL.iter().any(|moment| !moment.of(hooks).is_empty()))
}

/// Whether a hook's path and timeout are what the specification wants.
///
/// # Errors
/// Why not, in words.
pub fn check(hook: &Hook) -> Result<(), String> {
    let strings = hook.args().iter().chain(hook.env()).flatten();
    let has_nul = |text: &[u8]| text.contains(&0);
    if !hook.path().is_absolute() || has_nul(hook.path().as_os_str().as_encoded_bytes()) {
        return Err(format!("path {} is not absolute", hook.path().display()));
    }
    if let Some(seconds) = hook.timeout().filter(|seconds| *seconds <= 0) {
        return Err(format!("timeout {seconds} is not greater than 0"));
    }
    if strings.into_iter().any(|text| has_nul(text.as_bytes())) {
        return Err("args or env hold a NUL byte".to_owned());
    }
    Ok(())
}

/// A hook did not do its work.
#[derive(Debug, thiserror::Error)]
#[error("{moment} hook {}", path.display())]
pub struct HookError {
    moment: Moment,
    path: PathBuf,
    #[source]
    failure: HookFailure,
}

impl HookError {
    /// That of a hook.
    #[must_use]
    pub fn new(moment: Moment, path: &Path, failure: HookFailure) -> Self {
        Self { moment, path: path.to_owned(), failure }
    }
}

/// Why a hook did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum HookFailure {
    /// It never ran.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A step on the way to it.
    #[error("{what}")]
    Step {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It did not end in time, and was killed with what it had started.
    #[error("it was killed: it did not end within {:.0} s{}", after.as_secs_f32(), said(stderr))]
    TimedOut {
        /// The time that it had.
        after: Duration,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
    /// It failed.
    #[error("it ended with code {code}{}", said(stderr))]
    Code {
        /// Its exit code, or 128 + signal.
        code: i32,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
}

impl HookFailure {
    pub(crate) fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Step { what, source: source.into() }
    }
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}

#[cfg(test)]
mod tests;
