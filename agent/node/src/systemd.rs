//! Units of systemd for the cgroups of pods in slices: made, told their limits, stopped.
//!
//! systemd makes a scope around processes that exist already. A container's, an agent's or a VMM's does not exist before its cgroup does: it is
//! to be born there. So a **placeholder** is the scope's first process, until the real one is there. It is this program again, waits for
//! the end of its input, and so ends with the daemon, whatever becomes of that; systemd drops a scope that has become empty.

mod bus;
mod wire;

use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use hartpod_container::cgroup::{CgroupError, DestroyError, Leaf, Limits, UnitValue};

use bus::Bus;
pub(crate) use bus::BusError;
use wire::{Kind, Value, Writer};

/// systemd runs where this is (sd_booted(3)).
pub(crate) const BOOTED: &str = "/run/systemd/system";
const SOCKET: &str = "/run/systemd/private";
/// The slice of pods whose caller names none.
pub(crate) const DEFAULT_SLICE: &str = "hartpod.slice";
/// What this program is called with to be a placeholder.
pub(crate) const PLACEHOLDER: &str = "placeholder";
/// What is left in a scope that is stopped is killed after this long, in microseconds: hartpod has killed it before.
const STOP_TIMEOUT_US: u64 = 1_000_000;
const JOB_REMOVED: &str = "JobRemoved";
const DONE: &str = "done";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// A scope was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScopeError {
    #[error("start the first process of {scope}")]
    Placeholder { scope: String, source: io::Error },
    #[error("make {scope} in {slice}")]
    Make { scope: String, slice: String, source: Box<BusError> },
}

/// What systemd knows of new limits, or has made of them, is not as it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TellError {
    #[error("systemd may not know the new limits, and then sets the old ones when it is reloaded")]
    Untold(#[source] BusError),
    #[error(
        "systemd knows the new limits, but does not say that it has written them: the CPU quota may become whole percents"
    )]
    Unwritten(#[source] BusError),
    #[error("systemd is told nothing of the CPU quota, and may have rounded it to whole percents: read it")]
    UnknownQuota(#[source] CgroupError),
    #[error("systemd may have rounded the CPU quota to whole percents: set it back")]
    Quota(#[source] CgroupError),
}

/// The systemd of this node.
#[derive(Debug, Clone)]
pub(crate) struct Systemd {
    socket: PathBuf,
    /// This program.
    program: PathBuf,
}

/// The first process of a scope, until it is dropped.
#[derive(Debug)]
pub(crate) struct Placeholder(Child);

impl Drop for Placeholder {
    fn drop(&mut self) {
        // It may have ended; there is nothing more to do about one that cannot be killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Default for Systemd {
    fn default() -> Self {
        // Also when the file was replaced by another version.
        Self { socket: SOCKET.into(), program: "/proc/self/exe".into() }
    }
}

impl Systemd {
    /// Makes the scope of `leaf`, if it is to be one, with these limits. The real process has to be in it before the answer is dropped.
    pub(crate) fn make_blocking(
        &self,
        leaf: &Leaf,
        limits: &Limits,
    ) -> Result<Option<Placeholder>, ScopeError> {
        let Some(unit) = leaf.unit() else { return Ok(None) };
        let (scope, slice) = (unit.scope, unit.slice);
        let child = Command::new(&self.program)
            .arg(PLACEHOLDER)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| ScopeError::Placeholder { scope: scope.to_owned(), source })?;
        let placeholder = Placeholder(child);
        self.start(scope, slice, &[placeholder.0.id()], limits).map_err(|source| ScopeError::Make {
            scope: scope.to_owned(),
            slice: slice.to_owned(),
            source: Box::new(source),
        })?;
        Ok(Some(placeholder))
    }

    fn start(&self, scope: &str, slice: &str, pids: &[u32], limits: &Limits) -> Result<(), BusError> {
        let limits = limits.unit_properties();
        let mut properties = vec![
            ("Description", Value::Text("hartpod pod")),
            ("Slice", Value::Text(slice)),
            ("PIDs", Value::Pids(pids)),
            ("Delegate", Value::Bool(true)),
            ("DefaultDependencies", Value::Bool(false)),
            ("CollectMode", Value::Text("inactive-or-failed")),
            ("TimeoutStopUSec", Value::Number(STOP_TIMEOUT_US)),
        ];
        if !limits.iter().any(|(name, _)| *name == "TasksMax") {
            // systemd's own default is a share of what the machine can have.
            properties.push(("TasksMax", Value::Number(u64::MAX)));
        }
        properties.extend(limits.iter().map(|(name, value)| (*name, as_value(value))));
        let mut body = Writer::default();
        body.text(scope);
        body.text("fail");
        body.properties(&properties);
        body.no_units();
        self.job(scope, "StartTransientUnit", "ssa(sv)a(sa(sv))", body)
    }

    /// Tells systemd the new limits of a leaf, which are in force already: it would write its own into the cgroup at the next reload.
    ///
    /// It writes into the cgroup now as well, the CPU quota in whole percents, be that new or not. So what was in force is set again, whatever
    /// systemd answers.
    pub(crate) fn set_blocking(&self, leaf: &Leaf, limits: &Limits) -> Vec<TellError> {
        let Some(unit) = leaf.unit() else { return Vec::new() };
        let (in_force, unread) = match leaf.bandwidth() {
            Ok(in_force) => (in_force, None),
            Err(error) => (None, Some(error)),
        };
        let mut properties = limits.completed(in_force).unit_properties();
        if unread.is_some() {
            // Half of it may be what these limits leave as it is.
            properties.retain(|(name, _)| !name.starts_with("CPUQuota"));
        }
        let told =
            || if properties.is_empty() { Ok(()) } else { self.set_properties(unit.scope, &properties) };
        let mut failed = told_and_set_back(in_force, told, |exact| leaf.set_bandwidth(exact));
        failed.extend(unread.map(TellError::UnknownQuota));
        failed
    }

    /// When this returns without an error, systemd has also written what it wants to.
    fn set_properties(&self, scope: &str, properties: &[(&str, UnitValue)]) -> Result<(), TellError> {
        let properties: Vec<_> = properties.iter().map(|(name, value)| (*name, as_value(value))).collect();
        let mut body = Writer::default();
        body.text(scope);
        // Of this boot alone.
        body.bool(true);
        body.properties(&properties);
        let mut bus = Bus::open_blocking(&self.socket).map_err(TellError::Untold)?;
        bus.call_blocking("SetUnitProperties", "sba(sv)", body, |_| {}).map_err(TellError::Untold)?;
        // systemd answers first, writes then, and looks at the next message only after that (src/core/manager.c: manager_loop).
        let mut body = Writer::default();
        body.text(scope);
        bus.call_blocking("GetUnit", "s", body, |_| {}).map(drop).map_err(TellError::Unwritten)
    }

    /// Has systemd forget the scope of a leaf, which is gone. It learns of an empty cgroup by itself, but not of one that was removed at once.
    pub(crate) fn stop_blocking(&self, leaf: &Leaf) -> Result<(), BusError> {
        let Some(unit) = leaf.unit() else { return Ok(()) };
        let mut body = Writer::default();
        body.text(unit.scope);
        body.text("replace");
        match self.job(unit.scope, "StopUnit", "ss", body) {
            Err(BusError::Answered { name, .. }) if name == NO_SUCH_UNIT => Ok(()),
            other => other,
        }
    }

    /// Calls what begins a job, and waits for the job's end.
    fn job(&self, unit: &str, method: &'static str, signature: &str, body: Writer) -> Result<(), BusError> {
        let mut bus = Bus::open_blocking(&self.socket)?;
        let mut removed = Vec::new();
        let answer = bus.call_blocking(method, signature, body, |signal| removed.push(signal))?;
        let job = answer.first_text().unwrap_or_default();
        let mut early = removed.into_iter();
        loop {
            let message = match early.next() {
                Some(message) => message,
                None => bus.next_blocking()?,
            };
            if message.kind != Kind::Signal || message.name != JOB_REMOVED {
                continue;
            }
            match message.removed_job() {
                Some((path, result)) if path == job && result == DONE => return Ok(()),
                Some((path, result)) if path == job => {
                    return Err(BusError::Job { unit: unit.to_owned(), result });
                }
                _ => {}
            }
        }
    }
}

/// An answer that did not come says nothing about what systemd has written.
fn told_and_set_back<B>(
    in_force: Option<B>,
    tell: impl FnOnce() -> Result<(), TellError>,
    set: impl FnOnce(B) -> Result<(), CgroupError>,
) -> Vec<TellError> {
    let told = tell();
    let set_back = in_force.map_or(Ok(()), set).map_err(TellError::Quota);
    [told, set_back].into_iter().filter_map(Result::err).collect()
}

fn as_value(value: &UnitValue) -> Value<'_> {
    match value {
        UnitValue::Number(number) => Value::Number(*number),
        UnitValue::Bits(bits) => Value::Bytes(bits),
    }
}

/// Takes a leaf down, and the scope that it may be.
///
/// # Errors
/// What is left of the leaf. A scope that systemd keeps is told in the log: it is empty.
pub(crate) fn destroy_leaf_blocking(
    systemd: Option<&Systemd>,
    leaf: &Leaf,
    deadline: Instant,
) -> Result<(), DestroyError> {
    leaf.destroy_blocking(deadline)?;
    if let Some(Err(error)) = systemd.map(|systemd| systemd.stop_blocking(leaf)) {
        tracing::warn!(cgroup = leaf.cgroup_path(), error = %crate::chain(&error), "an empty scope stays");
    }
    Ok(())
}

/// What a placeholder does.
pub(crate) fn be_placeholder() {
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
}

#[cfg(test)]
mod tests;
