//! Everything that /proc offers of a process, tried.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::Report;

/// The most that is read of one process: more than the whole agent has.
const MOST: u64 = 64 << 20;

/// All processes but this one.
pub(crate) fn pids() -> impl Iterator<Item = i32> {
    let me = i32::try_from(std::process::id()).unwrap_or(0);
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(move |pid| *pid != me)
}

/// Tries to reach something through `pid`.
pub(crate) fn at(pid: i32, target: &str, report: &mut Report) {
    let exe =
        fs::read_link(format!("/proc/{pid}/exe")).map(|path| path.display().to_string()).unwrap_or_default();
    let is_agents = exe.contains("memfd") || exe.contains("hartpod");
    report.caught_early += u64::from(is_agents && pid != 1);
    if let Ok(link) = fs::read_link(format!("/proc/{pid}/ns/mnt")) {
        report.mount_namespaces.insert(link.display().to_string());
    }
    let who = format!("{pid} ({exe})");
    reach_files(pid, target, &who, report);
    reach_open_files(pid, target, &who, is_agents, report);
    read_memory(pid, target, &who, report);
    for file in ["environ", "cmdline", "mountinfo"] {
        let Ok(text) = fs::read(format!("/proc/{pid}/{file}")) else { continue };
        // A container's mount table names the node's paths only if the container sees more than its own.
        if file != "mountinfo" && find(&text, target.as_bytes()) {
            report.reached.insert(format!("the node's path in {file} of {who}"));
        }
        if find(&text, b"HARTPOD") || find(&text, b"RUST_LOG") {
            report.reached.insert(format!("the agent's environment in {file} of {who}"));
        }
    }
    if is_agents && File::options().write(true).open(format!("/proc/{pid}/exe")).is_ok() {
        report.reached.insert(format!("the agent's program, for writing, through {who}"));
    }
}

/// A path of the node below whatever place the process gives.
fn reach_files(pid: i32, target: &str, who: &str, report: &mut Report) {
    let up = "../".repeat(12);
    let below = target.trim_start_matches('/');
    for place in ["root", "cwd"] {
        for path in [format!("/proc/{pid}/{place}/{below}"), format!("/proc/{pid}/{place}/{up}{below}")] {
            if Path::new(&path).exists() {
                report.reached.insert(format!("the node's files through {place} of {who}"));
            }
        }
    }
}

fn reach_open_files(pid: i32, target: &str, who: &str, is_agents: bool, report: &mut Report) {
    let up = "../".repeat(12);
    let below = target.trim_start_matches('/');
    let pidfd = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        report.files += 1;
        let name = entry.file_name().to_string_lossy().into_owned();
        let link = fs::read_link(entry.path()).map(|path| path.display().to_string()).unwrap_or_default();
        if link.contains(target) {
            report.reached.insert(format!("fd {name} of {who} is {link}"));
        }
        for path in [format!("/proc/{pid}/fd/{name}/{below}"), format!("/proc/{pid}/fd/{name}/{up}{below}")] {
            if Path::new(&path).exists() {
                report.reached.insert(format!("the node's files through fd {name} ({link}) of {who}"));
            }
        }
        let standard = ["0", "1", "2"].contains(&name.as_str());
        // On its way to execve a process may hold the pipe that reports a failure, and nothing else.
        if is_agents && !standard && !link.starts_with("pipe:") && !link.is_empty() {
            let taken = pidfd.as_ref().zip(name.parse().ok());
            let taken =
                taken.is_some_and(|(pidfd, fd)| pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty()).is_ok());
            report.reached.insert(format!("fd {name} of {who} is {link} (taken: {taken})"));
        }
    }
}

/// Reads all that is mapped and looks for the node's path: it is in the agent's memory and in nobody else's.
fn read_memory(pid: i32, target: &str, who: &str, report: &mut Report) {
    let (Ok(maps), Ok(memory)) =
        (fs::read_to_string(format!("/proc/{pid}/maps")), File::open(format!("/proc/{pid}/mem")))
    else {
        return;
    };
    let mut budget = MOST;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (Some(range), Some(rights)) = (words.next(), words.next()) else { continue };
        let Some((from, to)) = range.split_once('-') else { continue };
        let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16)) else {
            continue;
        };
        if !rights.starts_with('r') || line.ends_with("[vvar]") || to - from > budget {
            continue;
        }
        budget -= to - from;
        let mut content = vec![0; usize::try_from(to - from).unwrap_or(0)];
        let Ok(read) = memory.read_at(&mut content, from) else { continue };
        report.bytes += read as u64;
        if find(&content[..read], target.as_bytes()) {
            let place = words.last().unwrap_or("anonymous").to_owned();
            report.reached.insert(format!("the node's path in the memory of {who}, in {place}"));
        }
    }
    let mut rest = String::new();
    // What the kernel says it is doing is no secret, but must not crash it.
    let _ = File::open(format!("/proc/{pid}/syscall")).and_then(|mut file| file.read_to_string(&mut rest));
}

fn find(text: &[u8], word: &[u8]) -> bool {
    !word.is_empty() && text.windows(word.len()).any(|window| window == word)
}
