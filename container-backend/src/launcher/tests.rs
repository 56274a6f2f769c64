use super::*;

#[test]
fn start_time_is_found_behind_a_hostile_command_name() {
    let stat = "7 (a) R 1 (x) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
    assert_eq!(parse_start_time(stat), Some(4242));
    assert_eq!(parse_start_time("7 (a"), None);
}

#[test]
fn only_the_process_with_that_start_time_is_adopted() {
    let pid = i32::try_from(std::process::id()).unwrap();
    let start_time = start_time(pid).unwrap();
    assert_eq!(adopt(pid, start_time).unwrap().pid, pid);
    assert!(adopt(pid, start_time + 1).is_none());
}

#[test]
fn an_agent_gets_its_sockets_as_3_and_4_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(120));
    fs::create_dir(&deep).unwrap();
    let log = tempfile::tempfile().unwrap();
    // The shell tells what it got; /proc/self of ls would be ls.
    let script = dir.path().join("agent");
    fs::write(&script, "unused").unwrap();
    let image = AgentImage::load(Path::new("/bin/busybox")).unwrap();
    let agent = spawn(&image, &deep, log.as_fd(), None).unwrap();
    let mut exit = None;
    while exit.is_none() {
        exit = crate::sys::process::wait_exit(&crate::sys::process::Which::PidFd(agent.pidfd.as_fd()), true)
            .unwrap();
        std::thread::yield_now();
    }
    // busybox has no applet of that name, and says so on the stderr that it was given.
    let mut said = String::new();
    use std::io::{Read as _, Seek as _};
    let mut log = log;
    log.rewind().unwrap();
    log.read_to_string(&mut said).unwrap();
    assert_eq!(said, "hartpod-pod: applet not found\n");
    let mode = fs::metadata(deep.join(CONTROL_SOCKET)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// Needs root.
#[test]
fn an_agent_is_born_in_the_cgroup_it_is_given() {
    use crate::cgroup::{Limits, Tree};
    use std::time::{Duration, Instant};

    let tree = Tree::detect("/sys/fs/cgroup".as_ref()).unwrap();
    let leaf = tree.leaf(&format!("/hartpod-launcher-{}", std::process::id()), "agent").unwrap();
    leaf.create(&Limits::default()).unwrap();
    let (dir, log) = (tempfile::tempdir().unwrap(), tempfile::tempfile().unwrap());
    let image = AgentImage::load(Path::new("/bin/busybox")).unwrap();
    let cgroup = leaf.open_unified().unwrap();
    let agent = spawn(&image, dir.path(), log.as_fd(), Some(cgroup.as_fd())).unwrap();
    // A zombie keeps the cgroup that it died in.
    let own = fs::read_to_string(format!("/proc/{}/cgroup", agent.pid)).unwrap();
    let wanted = format!("0::{}", leaf.cgroup_path());
    assert!(own.lines().any(|line| line.trim_end_matches(" (deleted)") == wanted), "{own}");
    while process::wait_exit(&process::Which::PidFd(agent.pidfd.as_fd()), true).unwrap().is_none() {
        std::thread::yield_now();
    }
    leaf.destroy_blocking(Instant::now() + Duration::from_secs(5)).unwrap();
}

#[test]
fn a_program_that_cannot_be_executed_is_an_error_and_leaves_nothing() {
    let (dir, log) = (tempfile::tempdir().unwrap(), tempfile::tempfile().unwrap());
    let garbage = dir.path().join("garbage");
    fs::write(&garbage, "neither a script nor a program").unwrap();
    let image = AgentImage::load(&garbage).unwrap();
    let error = spawn(&image, dir.path(), log.as_fd(), None).unwrap_err();
    let LauncherError::Spawn { source } = error else { panic!("{error}") };
    assert_eq!(source.raw_os_error(), Some(libc::ENOEXEC));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_program_in_memory_cannot_be_changed() {
    let image = AgentImage::load(Path::new("/bin/busybox")).unwrap();
    assert!(rustix::io::pwrite(&image, b"x", 0).is_err());
    assert!(rustix::fs::ftruncate(&image, 0).is_err());
}

#[test]
fn a_failed_bind_leaves_no_socket() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(STREAM_SOCKET)).unwrap();
    let image = AgentImage::load(Path::new("/bin/busybox")).unwrap();
    let log = tempfile::tempfile().unwrap();
    let error = spawn(&image, dir.path(), log.as_fd(), None).unwrap_err();
    assert!(matches!(error, LauncherError::Bind { .. }), "{error}");
    assert!(!dir.path().join(CONTROL_SOCKET).exists());
}
