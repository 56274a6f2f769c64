//! What a guest costs and does, as the host sees it: what its VMM counts, and what the kernel says of the VMM's process.

use std::path::Path;
use std::time::Duration;

use hartpod_vm::counts::Counts;

use crate::pod::RunningAgent;

/// For a VMM to answer; who asks for numbers does not wait for one that hangs.
const ANSWER: Duration = Duration::from_secs(1);
/// Threads of a VMM that are looked at: more than one with all its vCPUs, disks and logs has.
const THREADS: usize = 1024;
/// What a VMM calls the threads of its vCPUs, with a number behind.
const VCPU: &str = "vcpu";

/// What the kernel says of a VMM's process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct VmmUse {
    /// CPU time of the vCPUs' threads, in the guest and for it.
    pub(crate) vcpu_nanos: Option<u64>,
    /// Memory that is nobody's but the VMM's: the guest's RAM as far as it was touched, and a MiB or two.
    pub(crate) resident_bytes: Option<u64>,
}

impl VmmUse {
    pub(crate) fn of_blocking(agent: &RunningAgent) -> Self {
        if !agent.process.is_alive() {
            return Self::default();
        }
        let process = Path::new("/proc").join(agent.process.record.pid.to_string());
        Self { vcpu_nanos: vcpu_nanos_blocking(&process), resident_bytes: resident_bytes_blocking(&process) }
    }
}

/// Asks the VMM; nothing where it does not answer, or is of a version that does not count.
pub(crate) async fn counts(agent: &RunningAgent) -> Option<Counts> {
    if !agent.process.is_alive() {
        return None;
    }
    let asked = agent.vmm.ask(ANSWER, hartpod_vm::launcher::Control::counts);
    match tokio::time::timeout(ANSWER, asked).await.ok()? {
        Ok(counts) => Some(counts),
        Err(error) => {
            tracing::debug!(pid = agent.process.record.pid, error = %crate::chain(&error), "a VMM does not count");
            None
        }
    }
}

/// Nanoseconds on a CPU (Documentation/scheduler/sched-stats.rst). A vCPU thread does nothing but the guest's work until the guest ends.
fn vcpu_nanos_blocking(process: &Path) -> Option<u64> {
    let threads = std::fs::read_dir(process.join("task")).ok()?.take(THREADS).flatten();
    let vcpus = threads.map(|thread| thread.path()).filter(|thread| is_vcpu(thread));
    let nanos = vcpus.map(|thread| {
        let text = std::fs::read_to_string(thread.join("schedstat")).ok()?;
        text.split_ascii_whitespace().next()?.parse::<u64>().ok()
    });
    // What is not known of one is not known of all.
    let nanos = nanos.collect::<Option<Vec<_>>>().filter(|nanos| !nanos.is_empty())?;
    Some(nanos.into_iter().fold(0, u64::saturating_add))
}

fn is_vcpu(thread: &Path) -> bool {
    let name = std::fs::read_to_string(thread.join("comm")).unwrap_or_default();
    let number = name.trim_end().strip_prefix(VCPU);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// proc_pid_status(5).
fn resident_bytes_blocking(process: &Path) -> Option<u64> {
    let status = std::fs::read_to_string(process.join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(process: &Path, id: u32, name: &str, schedstat: &str) {
        let dir = process.join("task").join(id.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("comm"), format!("{name}\n")).unwrap();
        std::fs::write(dir.join("schedstat"), schedstat).unwrap();
    }

    #[test]
    fn the_time_of_vcpus_is_that_of_their_threads() {
        let dir = tempfile::tempdir().unwrap();
        thread(dir.path(), 1, "hartpod-vmm", "9000 1 1\n");
        assert_eq!(vcpu_nanos_blocking(dir.path()), None);
        thread(dir.path(), 2, "vcpu0", "700 20 3\n");
        thread(dir.path(), 3, "vcpu11", "50 0 1\n");
        thread(dir.path(), 4, "vcpux", "4000 0 1\n");
        assert_eq!(vcpu_nanos_blocking(dir.path()), Some(750));
        thread(dir.path(), 5, "vcpu2", "");
        assert_eq!(vcpu_nanos_blocking(dir.path()), None, "no kernel that keeps such times");
        assert_eq!(vcpu_nanos_blocking(Path::new("/none")), None);
    }

    #[test]
    fn a_processs_own_memory_is_read() {
        let own = resident_bytes_blocking(Path::new("/proc/self")).unwrap();
        assert!((1 << 16..1 << 40).contains(&own), "{own}");
        assert_eq!(resident_bytes_blocking(Path::new("/none")), None);
    }
}
