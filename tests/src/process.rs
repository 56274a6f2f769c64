//! Processes as /proc shows them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// One process, as much of it as a comparison needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    pub pid: i32,
    /// Clock ticks since boot: tells a process from a later one with the same pid.
    pub start_time: u64,
    pub state: char,
    pub parent: i32,
    pub name: String,
    /// Arguments with spaces between; empty for a zombie.
    pub command: String,
}

/// Every process that /proc shows, kernel threads left out.
pub fn all() -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list /proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(process) = read(pid) {
            if process.parent != 2 && pid != 2 {
                found.push(process);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// One process, or `None` if there is no such pid.
pub fn read(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may itself hold brackets and spaces.
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    let rest: Vec<&str> = stat[close + 1..].split_whitespace().collect();
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    Some(Process {
        pid,
        start_time: rest.get(19)?.parse().ok()?,
        state: rest.first()?.chars().next()?,
        parent: rest.get(1)?.parse().ok()?,
        name: stat[open + 1..close].to_owned(),
        command: String::from_utf8_lossy(&command).replace('\0', " ").trim_end().to_owned(),
    })
}

/// True while `pid` runs; a zombie does not.
pub fn is_alive(pid: i32) -> bool {
    read(pid).is_some_and(|process| process.state != 'Z')
}

/// Sends one signal to one process.
pub fn signal(pid: i32, signal: Signal) -> Result<()> {
    ensure!(pid > 1, "refusing to signal pid {pid}");
    kill(Pid::from_raw(pid), signal).with_context(|| format!("send {signal} to pid {pid}"))
}

/// Number of open files of a process, by what they are (`socket`, `pipe`, `anon_inode:[eventpoll]`, or a path). Left out are those that a cgroup's numbers are
/// read from: the daemon opens them at some time, and keeps them for as long as there is the container.
pub fn open_files(pid: i32) -> Result<BTreeMap<String, usize>> {
    let mut kinds = BTreeMap::new();
    let dir = PathBuf::from(format!("/proc/{pid}/fd"));
    for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
        // A file closed meanwhile has no link any more.
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        if target.starts_with("/sys/fs/cgroup/") && !target.ends_with("/cgroup.events") {
            continue;
        }
        let kind = match target.split_once(":[") {
            Some((kind @ ("socket" | "pipe"), _)) => kind.to_owned(),
            _ => target,
        };
        *kinds.entry(kind).or_default() += 1;
    }
    Ok(kinds)
}

/// Proportional set size in KiB: what the process adds to the machine's memory, shared pages split among their users.
pub fn pss_kib(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(Path::new(&path)).with_context(|| format!("read {path}"))?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss line in smaps_rollup")?;
    let number = line.split_whitespace().next().context("empty Pss line")?;
    number.parse().context("Pss is not a number")
}

/// The identity of a process's namespace, such as `pid:[4026531836]`.
pub fn namespace(pid: i32, kind: &str) -> Result<String> {
    let path = format!("/proc/{pid}/ns/{kind}");
    let link = fs::read_link(&path).with_context(|| format!("read {path}"))?;
    Ok(link.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_listed_and_has_weight() {
        let me = i32::try_from(std::process::id()).unwrap();
        let found = all().unwrap().into_iter().find(|process| process.pid == me).unwrap();
        assert!(found.command.contains("hartpod_tests"), "{found:?}");
        assert!(pss_kib(me).unwrap() > 100);
        assert!(is_alive(me));
        assert!(namespace(me, "pid").unwrap().starts_with("pid:["));
    }

    #[test]
    fn a_pid_that_nobody_has_is_not_alive() {
        assert!(!is_alive(i32::MAX));
        assert!(signal(1, Signal::SIGTERM).is_err(), "pid 1 is never signalled");
    }
}
