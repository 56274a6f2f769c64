//! How long the steps of a container take: `latency [CONTAINERS]`, as root, with busybox-static installed.
//!
//! Prints medians in microseconds. `strace -f -c` on it counts the system calls.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use hartpod_container::cgroup::Tree;
use hartpod_container::{
    Child, ContainerRequest, ExecRequest, GroupPolicy, IpcMode, Overlay, PidNamespace, Pod, PodPid, PodSetup,
    RootFs, Stdio,
};
use hartpod_proto::{ContainerId, SandboxId};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use oci_spec::runtime::Spec;
use rustix::event::{PollFd, PollFlags, poll};

const PARENT: &str = "/hartpod-latency";

/// As Kubernetes' containers have it, seccomp included.
fn spec() -> Spec {
    let mut spec = Spec::default();
    let capabilities =
        spec.process().as_ref().unwrap().capabilities().as_ref().unwrap().bounding().clone().unwrap();
    let seccomp = hartpod_container::seccomp::default_profile(&capabilities);
    spec.linux_mut().as_mut().unwrap().set_seccomp(Some(seccomp));
    let process = spec.process_mut().as_mut().unwrap();
    process.set_terminal(None);
    process.set_no_new_privileges(Some(false));
    process.set_args(Some(vec!["/bin/busybox".into(), "sleep".into(), "1000".into()]));
    spec
}

fn pod_id(pid: PodPid) -> SandboxId {
    SandboxId::from_bytes([255 - u8::from(pid == PodPid::Shared); 32])
}

fn wait(fd: impl AsFd) {
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], None).unwrap();
}

fn stdio() -> Stdio {
    let null = || OwnedFd::from(fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap());
    Stdio::Fds { stdin: null(), stdout: null(), stderr: null() }
}

fn reap(child: &Child) {
    wait(child);
    child.try_wait().unwrap();
}

fn main() {
    let containers = std::env::args().nth(1).map_or(20, |n| n.parse().unwrap());
    let home = tempfile::tempdir().unwrap();
    let (layers_dir, containers_dir) = (home.path().join("layers"), home.path().join("containers"));
    fs::create_dir_all(layers_dir.join("one/bin")).unwrap();
    fs::create_dir(&containers_dir).unwrap();
    fs::copy("/bin/busybox", layers_dir.join("one/bin/busybox")).expect("package busybox-static");
    for shared in [PodPid::PerContainer, PodPid::Shared] {
        // Becoming an agent is for ever.
        let birth = hartpod_container::fork_role("latency", &[], || {
            measure(&layers_dir, &containers_dir, shared, containers);
            0
        });
        reap(&birth.unwrap());
        // The holder is left in the agent's leaf.
        let tree = Tree::detect(Path::new("/sys/fs/cgroup")).unwrap();
        let leaf = tree.leaf(PARENT, pod_id(shared).as_str()).unwrap();
        leaf.destroy_blocking(Instant::now() + Duration::from_secs(5)).unwrap();
    }
}

fn measure(layers_dir: &Path, containers_dir: &Path, pid: PodPid, containers: u8) {
    let setup = PodSetup {
        pod_id: pod_id(pid),
        hostname: "latency".into(),
        netns: None,
        ipc: IpcMode::Pod,
        pid,
        cgroup_parent: PARENT.into(),
        layers_dir: layers_dir.into(),
        containers_dir: containers_dir.into(),
        shm_size: 0,
        sysctls: BTreeMap::new(),
        mount_label: String::new(),
        users: None,
    };
    let begin = Instant::now();
    let (pod, _) = Pod::set_up(setup).unwrap();
    println!("{pid:?}: set up {} us", begin.elapsed().as_micros());
    let before = cpu();
    let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for n in 0..containers {
        one(&pod, pid, n, &mut |what, time| times.entry(what).or_default().push(time));
    }
    for (what, mut times) in times {
        times.sort();
        println!("  {what:<20} {:>7} us", times[times.len() / 2].as_micros());
    }
    for ((what, after), before) in ["cpu of the agent", "cpu of its children"].iter().zip(cpu()).zip(before) {
        println!("  {what:<20} {:>7} us", (after - before) / i64::from(containers));
    }
}

/// User and system time of this process and of its reaped children, in microseconds.
fn cpu() -> [i64; 2] {
    [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN].map(|who| {
        let usage = getrusage(who).unwrap();
        usage.user_time().num_microseconds() + usage.system_time().num_microseconds()
    })
}

fn one(pod: &Pod, pid: PodPid, n: u8, record: &mut dyn FnMut(&'static str, Duration)) {
    let id = ContainerId::from_bytes([n; 32]);
    let begin = Instant::now();
    let request = ContainerRequest {
        id: id.clone(),
        spec: spec(),
        rootfs: RootFs::Overlay(Overlay { layers: vec!["one".into()], scratch: format!("{pid:?}{n}") }),
        images: Vec::new(),
        user: String::new(),
        groups: GroupPolicy::Merge,
        pid: if pid == PodPid::Shared { PidNamespace::Pod } else { PidNamespace::Container },
        bundle: None,
        stdio: stdio(),
    };
    let mut creating = pod.begin_create(request).unwrap();
    record("1 begin_create", begin.elapsed());
    wait(&creating);
    let created = creating.poll().unwrap().unwrap();
    record("2 created", begin.elapsed());
    let gate = Instant::now();
    let mut starting = created.waiting.open_gate().unwrap();
    let child = loop {
        wait(&starting);
        if let Some(child) = starting.poll().unwrap() {
            break child;
        }
    };
    record("3 gate to execve", gate.elapsed());
    let exec = Instant::now();
    let args = vec!["/bin/busybox".into(), "true".into()];
    let mut execing =
        pod.begin_exec(&created.container, ExecRequest { id: "e".into(), args, stdio: stdio() }).unwrap();
    record("4 begin_exec", exec.elapsed());
    let executed = loop {
        wait(&execing);
        if let Some(executed) = execing.poll().unwrap() {
            break executed;
        }
    };
    record("5 exec to execve", exec.elapsed());
    reap(&executed.child);
    record("6 exec to exit", exec.elapsed());
    let end = Instant::now();
    created.container.leaf().kill().unwrap();
    reap(&child);
    record("7 kill to exit", end.elapsed());
    created.container.leaf().destroy_blocking(Instant::now() + Duration::from_secs(5)).unwrap();
    record("8 leaf removed", end.elapsed());
    hartpod_container::reap_orphans(|_| false).unwrap();
}
