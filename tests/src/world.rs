//! What a node looks like from outside, and the difference between two looks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::eventually::{PATIENCE, patient};
use crate::{cgroup, isolation, process};

/// Where to look.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Folders whose whole content counts, such as the daemon's root and state.
    pub folders: Vec<PathBuf>,
    /// Folders in there that are listed but not entered: the image store's layers.
    pub shallow: Vec<PathBuf>,
    /// Names whose presence in a cgroup's path makes it count: the test's own parent and the ids that it was given.
    pub cgroups: Vec<String>,
    /// Files and folders that come and go by themselves, such as the lock of host-local.
    pub ignored: Vec<PathBuf>,
    /// The daemon, which a test may end and start again.
    pub daemon: Option<i32>,
    /// Folders whose content counts, but not whether they are there.
    pub unlisted: Vec<PathBuf>,
}

/// The lists that are compared: by kind, each entry a line that a person can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    lists: BTreeMap<&'static str, BTreeSet<String>>,
}

impl World {
    /// Takes the lists. The test has namespaces of its own, so what is in them is what the test and its daemons made.
    pub fn look(scope: &Scope) -> Result<Self> {
        let mut lists = BTreeMap::new();
        lists.insert("process", processes(scope.daemon)?);
        lists.insert("mount", mounts()?);
        lists.insert("network namespace", names("/run/netns")?);
        lists.insert("network interface", interfaces()?);
        lists.insert("firewall rule", firewall()?);
        lists.insert("shared memory", shared_memory()?);
        let in_scope = |path: &str| scope.cgroups.iter().any(|name| path.contains(name.as_str()));
        lists.insert("cgroup", cgroup::find(in_scope)?);
        let mut files = BTreeSet::new();
        for folder in &scope.folders {
            walk(folder, scope, &mut files);
        }
        // Its runtime files come and go as it likes; its units are looked at by the tests that make some.
        files.retain(|path| !(isolation::under_systemd() && path.starts_with("/run/systemd")));
        lists.insert("file", files);
        Ok(Self { lists })
    }

    /// Empty if `after` has nothing that this has not, and the other way round.
    pub fn difference(&self, after: &Self) -> String {
        let mut text = String::new();
        for (kind, before) in &self.lists {
            let after = after.lists.get(kind).cloned().unwrap_or_default();
            for line in after.difference(before) {
                let _ = writeln!(text, "  + {kind}: {line}");
            }
            for line in before.difference(&after) {
                let _ = writeln!(text, "  - {kind}: {line}");
            }
        }
        text
    }

    /// Leaves out one kind of list, where a test changes it on purpose.
    pub fn without(mut self, kind: &str) -> Self {
        self.lists.retain(|name, _| *name != kind);
        self
    }

    /// The lines of one kind.
    pub fn list(&self, kind: &str) -> BTreeSet<String> {
        self.lists.get(kind).cloned().unwrap_or_default()
    }
}

/// Zombies count: somebody must reap them. The looking process itself and what it runs does not.
fn processes(daemon: Option<i32>) -> Result<BTreeSet<String>> {
    let me = i32::try_from(std::process::id()).context("pid")?;
    let all = process::all()?.into_iter().filter(|one| one.pid != me && Some(one.pid) != daemon);
    // That one may have executed itself again.
    let all = all.filter(|one| one.pid != 1 || !isolation::under_systemd());
    let zombie = |one: &process::Process| if one.state == 'Z' { " (zombie)" } else { "" };
    Ok(all.map(|one| format!("{} {}{} {}", one.pid, one.name, zombie(&one), one.command)).collect())
}

fn mounts() -> Result<BTreeSet<String>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let line = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let kind = line.split_once(" - ").map(|(_, rest)| rest).unwrap_or_default();
        Some(format!("{} on {} ({kind})", fields.get(3)?, fields.get(4)?))
    };
    Ok(text.lines().filter_map(line).collect())
}

fn names(dir: &str) -> Result<BTreeSet<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error).with_context(|| format!("list {dir}")),
    };
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// From /proc, which shows this network namespace; /sys shows that of whoever mounted it.
fn interfaces() -> Result<BTreeSet<String>> {
    let text = fs::read_to_string("/proc/self/net/dev").context("read /proc/self/net/dev")?;
    Ok(text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect())
}

/// Rules and chains, without counters and comments.
fn firewall() -> Result<BTreeSet<String>> {
    let mut rules = BTreeSet::new();
    for program in ["iptables-save", "ip6tables-save"] {
        // Without iptables there are no rules of it.
        let Ok(output) = Command::new(program).output() else { continue };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut table = String::new();
        for line in text.lines() {
            match line.chars().next() {
                Some('*') => line[1..].clone_into(&mut table),
                Some(':' | '-') if !is_of_the_tables(line) => {
                    let rule = line.split(" [").next().unwrap_or(line);
                    rules.insert(format!("{program} {table} {rule}"));
                }
                _ => {}
            }
        }
    }
    Ok(rules)
}

/// What comes with the tables (built-in chains) and with portmap's first use (its three chains and the jumps to them).
/// A chain of one pod (`CNI-DN-..`, `CNI-SN-..`, `CNI-` and a hash) is not.
fn is_of_the_tables(line: &str) -> bool {
    let built_in = line.starts_with(':') && !line.contains(" - ");
    let shared = ["CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ"];
    built_in || (shared.iter().any(|chain| line.contains(chain)) && !line.contains("CNI-DN-"))
}

/// System V segments and message queues of this IPC namespace would be the daemon's or a container's that shared it.
fn shared_memory() -> Result<BTreeSet<String>> {
    let text = fs::read_to_string("/proc/sysvipc/shm").context("read /proc/sysvipc/shm")?;
    Ok(text
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
        .collect())
}

fn walk(dir: &Path, scope: &Scope, files: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if scope.ignored.contains(&path) {
            continue;
        }
        if !scope.unlisted.contains(&path) {
            files.insert(path.display().to_string());
        }
        let shallow = scope.shallow.iter().any(|folder| path.starts_with(folder) && path != *folder);
        if path.is_dir() && !path.is_symlink() && !shallow {
            walk(&path, scope, files);
        }
    }
}

/// Fails, naming every difference, unless the node comes to look like `before` within [`PATIENCE`].
///
/// Waiting is right: what a reply promises is tested where it is promised; here the question is whether something stays.
pub async fn must_return_to(before: &World, look: impl Fn() -> Result<World>) -> Result<()> {
    let mut patience = patient(PATIENCE);
    loop {
        let difference = before.difference(&look()?);
        if difference.is_empty() {
            return Ok(());
        }
        let pause = std::time::Duration::from_millis(50);
        if patience < pause {
            bail!("the node is not what it was (+ is left, - is gone):\n{difference}");
        }
        patience -= pause;
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rules_of_pods_count() {
        let shared = [
            ":POSTROUTING ACCEPT [0:0]",
            ":CNI-HOSTPORT-DNAT - [0:0]",
            "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
        ];
        assert!(shared.iter().all(|line| is_of_the_tables(line)));
        let of_pods = [
            ":CNI-0123456789abcdef - [0:0]",
            "-A POSTROUTING -s 10.1.0.2/32 -j CNI-0123456789abcdef",
            "-A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 80 -j CNI-DN-0123456789abcdef",
        ];
        assert!(!of_pods.iter().any(|line| is_of_the_tables(line)));
    }

    #[test]
    fn a_file_that_appears_is_named_and_a_shallow_folder_is_not_entered() {
        let dir = tempfile::tempdir().unwrap();
        let layers = dir.path().join("layers");
        fs::create_dir_all(layers.join("one/etc")).unwrap();
        let scope =
            Scope { folders: vec![dir.path().into()], shallow: vec![layers.clone()], ..Scope::default() };
        let files = |scope: &Scope| {
            let mut files = BTreeSet::new();
            walk(dir.path(), scope, &mut files);
            World { lists: BTreeMap::from([("file", files)]) }
        };
        let before = files(&scope);
        assert!(before.list("file").contains(&layers.join("one").display().to_string()));
        assert!(!before.list("file").contains(&layers.join("one/etc").display().to_string()));
        fs::write(dir.path().join("left"), "").unwrap();
        let difference = before.difference(&files(&scope));
        assert_eq!(difference, format!("  + file: {}/left\n", dir.path().display()));
    }
}
