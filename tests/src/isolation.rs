//! Namespaces around each test: pid, mount, network, IPC and UTS.
//!
//! Whatever a failed or killed test leaves ends with its pid namespace; its mounts, interfaces and firewall rules go with the others.
//! What stays outside is a folder and a cgroup, both named after the test's id and removed by whoever started it, or by the next
//! run when that was killed too. The cgroup file systems are the machine's own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

use crate::cgroup;
use crate::lab::cgroup_root;

/// Tells a copy of the test program what it is: `init` or `test`.
pub const ROLE: &str = "HARTPOD_E2E_ROLE";
/// The name of the test to run.
pub const TEST: &str = "HARTPOD_E2E_TEST";
/// The test's folder.
pub const DIR: &str = "HARTPOD_E2E_DIR";
/// When set, the folder of a failed test is kept and its path said.
pub const KEEP: &str = "HARTPOD_E2E_KEEP";

/// When set, there is a systemd around all tests, whose units are theirs (`tests/systemd/run`): it knows processes by the numbers that they have in
/// its pid namespace, so tests have none of their own.
pub const SYSTEMD: &str = "HARTPOD_E2E_SYSTEMD";

pub fn under_systemd() -> bool {
    std::env::var_os(SYSTEMD).is_some()
}

/// Folder of all tests' folders. Short: a unix socket's path has 107 bytes at most.
fn base() -> PathBuf {
    std::env::temp_dir().join("hartpod-e2e")
}

/// A test's folder, locked for as long as the test runs.
struct Scratch {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Scratch {
    fn create() -> Result<Self> {
        let base = base();
        fs::create_dir_all(&base).with_context(|| format!("create {}", base.display()))?;
        // One at a time: a folder that is not locked yet looks like one that was left.
        let turn = File::create(base.join("turn")).context("create the file that tells whose turn it is")?;
        let turn = Flock::lock(turn, FlockArg::LockExclusive).map_err(|(_, errno)| errno);
        let _turn = turn.context("wait for a turn")?;
        sweep(&base);
        for number in 0..1000 {
            let dir = base.join(format!("{}-{number}", std::process::id()));
            if fs::create_dir(&dir).is_ok() {
                let file = File::create(lock_file(&dir)).context("create the lock file")?;
                let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock);
                let lock = lock.map_err(|(_, errno)| errno).context("lock the test's folder")?;
                return Ok(Self { dir, _lock: lock });
            }
        }
        bail!("no free name for a test's folder in {}", base.display())
    }
}

fn lock_file(dir: &Path) -> PathBuf {
    dir.with_extension("lock")
}

/// Mounts that others made on the machine's /run and /tmp came along when the mount namespace was copied. They vanish when
/// their owner removes the file below them, which would look like a difference.
fn forget_others_mounts() -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let mine = std::env::var(DIR).context(DIR)?;
    let others: Vec<&str> = points
        .filter(|point| point.starts_with("/run/") || point.starts_with("/tmp/"))
        .filter(|point| !mine.starts_with(*point))
        .collect();
    for point in others.into_iter().rev() {
        // Gone already, if its owner was faster.
        let _ = umount2(point, MntFlags::MNT_DETACH);
    }
    Ok(())
}

/// Removes what tests left that were killed: their folder is no longer locked.
fn sweep(base: &Path) {
    for path in fs::read_dir(base).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "lock") {
            continue;
        }
        let Ok(file) = File::open(&path) else { continue };
        if let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            remove(&path.with_extension(""));
            drop(lock);
        }
    }
}

/// Best effort: what cannot be removed is tried again by the next run.
fn remove(dir: &Path) {
    if let Some(id) = dir.file_name() {
        let _ = cgroup::remove_tree(&cgroup_root(&id.to_string_lossy()));
    }
    let _ = fs::remove_dir_all(dir);
    if !dir.exists() {
        let _ = fs::remove_file(lock_file(dir));
    }
}

/// Runs one test in namespaces of its own; an error says that it failed (it has told its story on stderr).
pub fn run(test: &str) -> Result<()> {
    let scratch = Scratch::create()?;
    let program = std::env::current_exe().context("find this program")?;
    let mut namespaces = vec!["--fork", "--kill-child", "--mount", "--net", "--ipc", "--uts"];
    if !under_systemd() {
        namespaces.extend(["--pid", "--mount-proc"]);
    }
    let status = Command::new("unshare")
        .args(namespaces)
        .arg(&program)
        .env(ROLE, "init")
        .env(TEST, test)
        .env(DIR, &scratch.dir)
        .status()
        .context("run unshare")?;
    if std::env::var_os(KEEP).is_some() && !status.success() {
        eprintln!("kept: {}", scratch.dir.display());
    } else {
        remove(&scratch.dir);
    }
    ensure!(status.success(), "{test} failed ({status})");
    Ok(())
}

/// Pid 1 of the test's namespaces: makes them usable, runs the test and reaps what daemons and agents leave behind.
pub fn init() -> Result<ExitCode> {
    prepare()?;
    let program = std::env::current_exe().context("find this program")?;
    let child = Command::new(program).env(ROLE, "test").spawn().context("start the test")?;
    let pid = Pid::from_raw(i32::try_from(child.id()).context("pid out of range")?);
    loop {
        match wait() {
            Ok(WaitStatus::Exited(ended, code)) if ended == pid => {
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
            }
            Ok(WaitStatus::Signaled(ended, signal, _)) if ended == pid => {
                bail!("the test was ended by {signal}")
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("wait for the test"),
        }
    }
}

fn prepare() -> Result<()> {
    if !under_systemd() {
        forget_others_mounts()?;
    }
    // Like a host: shared mounts, but with no peer outside.
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none).context("make / shared")?;
    if under_systemd() {
        return loopback();
    }
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755"))
        .context("mount a tmpfs on /run")?;
    loopback()
}

fn loopback() -> Result<()> {
    let lo: ExitStatus = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("run ip")?;
    ensure!(lo.success(), "ip link set lo up: {lo}");
    Ok(())
}
