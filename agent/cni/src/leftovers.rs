//! Plugins that a daemon left running when it was killed.
//!
//! A plugin outlives the daemon that started it. While the ADD (or DEL) of the last daemon is still at work for a pod, the next
//! daemon's DEL would undo half of it and miss what comes after, so it waits for the stragglers first. They are known by
//! their environment, which what they start (IPAM plugins, iptables) inherits.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tracing::warn;

/// A process in the middle of execve shows no environment for a moment (less than a millisecond); others never have one.
const LOOKS_AT_EMPTY: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// Waits until no plugin runs for the pod, and kills what still runs after `limit`.
pub(crate) fn wait_blocking(container_id: &str, limit: Duration) {
    let deadline = Instant::now() + limit;
    loop {
        let running = running_for(container_id);
        let Some(first) = running.first() else { return };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            warn!(container = container_id, count = running.len(), "plugins of an earlier daemon are killed");
            // What is gone already needs no signal; what cannot be killed is left to DEL's own errors.
            for process in &running {
                let _ = pidfd_send_signal(process, Signal::KILL);
            }
            return;
        }
        // An interrupted wait looks again.
        let _ = wait_for_end(first, left);
    }
}

fn wait_for_end(process: &OwnedFd, left: Duration) -> io::Result<()> {
    let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout))?;
    Ok(())
}

/// Processes whose environment names the pod.
fn running_for(container_id: &str) -> Vec<OwnedFd> {
    let wanted = format!("CNI_CONTAINERID={container_id}");
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        // Taken first: a process that ends and whose number is given anew is then not mistaken for it.
        let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        let environment = environment_of(pid)?;
        environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()).then_some(process)
    })
    .collect()
}

fn environment_of(pid: i32) -> Option<Vec<u8>> {
    for _ in 1..LOOKS_AT_EMPTY {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        // Kernel threads and zombies have neither an environment nor a program.
        if !environment.is_empty() || fs::read_link(format!("/proc/{pid}/exe")).is_err() {
            return Some(environment);
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
    fs::read(format!("/proc/{pid}/environ")).ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn plugin(container_id: &str, seconds: &str) -> Child {
        Command::new("sleep").arg(seconds).env("CNI_CONTAINERID", container_id).spawn().unwrap()
    }

    #[test]
    fn a_straggler_is_waited_for() {
        let mut child = plugin("waited-for", "0.2");
        wait_blocking("waited-for", Duration::from_secs(30));
        // A zombie has no environment any more, so the wait is over although nobody has reaped it.
        assert!(child.try_wait().unwrap().expect("ended").success());
    }

    #[test]
    fn one_that_hangs_is_killed_and_those_of_other_pods_are_let_be() {
        let (mut hangs, mut other) = (plugin("hangs", "600"), plugin("hangs-not", "600"));
        wait_blocking("hangs", Duration::ZERO);
        assert_eq!(hangs.wait().unwrap().code(), None);
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
