//! Which namespaces a container has, and whose.

use std::fs;

use hartpod_container::{PidNamespace, reap_orphans};
use serde_json::json;

use crate::kit::{Running, add, agent, agent_sharing_pids, agent_with, eventually, shell, spec};

pub(crate) const SCENARIOS: &[(&str, fn())] = &[
    ("a_container_has_namespaces_of_its_own_and_the_pods", own),
    ("containers_of_a_pod_share_host_name_ipc_and_shm", shared_by_the_pod),
    ("a_shared_pid_namespace_has_the_holder_as_init", shared_pids),
    ("orphans_in_a_shared_pid_namespace_are_reaped_by_the_holder", orphans),
    ("an_own_pid_namespace_beside_a_shared_one", own_beside_shared),
    ("a_container_in_the_pid_namespace_of_another", target),
    ("a_container_in_the_nodes_pid_namespace", node),
    ("the_holder_has_nothing", holder_has_nothing),
    ("host_name_and_ipc_of_the_node_on_request", of_the_node),
    ("sysctls_are_the_pods_own", sysctls),
    ("the_agent_sees_nothing_of_the_host", agents_view),
];

fn namespace(of: &str, kind: &str) -> String {
    fs::read_link(format!("/proc/{of}/ns/{kind}")).unwrap().into_os_string().into_string().unwrap()
}

fn namespaces(running: &Running, kind: &str) -> (String, String) {
    (namespace(&running.child.pid().to_string(), kind), namespace("self", kind))
}

/// A process in the host's namespaces.
fn the_runner() -> String {
    std::os::unix::process::parent_id().to_string()
}

fn own() {
    let agent = agent();
    let running = agent.start(spec(&["sleep", "1000"])).unwrap();
    for kind in ["mnt", "pid"] {
        let (its, ours) = namespaces(&running, kind);
        assert_ne!(its, ours, "{kind}");
    }
    for kind in ["net", "ipc", "uts", "user", "cgroup"] {
        let (its, ours) = namespaces(&running, kind);
        assert_eq!(its, ours, "{kind}");
    }
    let mut private = spec(&["sleep", "1000"]);
    private["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}]);
    let with_cgroup = agent.start(private).unwrap();
    let (its, ours) = namespaces(&with_cgroup, "cgroup");
    assert_ne!(its, ours);
    running.kill();
    with_cgroup.kill();
}

fn shared_by_the_pod() {
    let agent = agent();
    assert_eq!(agent.sh("hostname"), "test-pod\n");
    agent.sh("echo hello > /dev/shm/note");
    assert_eq!(agent.sh("cat /dev/shm/note; stat -c %a /dev/shm"), "hello\n1777\n");
    // 64 MiB by default.
    assert_eq!(agent.sh("stat -f -c '%b %S' /dev/shm"), "16384 4096\n");
    assert_ne!(namespace(&the_runner(), "ipc"), namespace("self", "ipc"));
}

fn shared_pids() {
    let agent = agent_sharing_pids();
    let running = agent.start(shell("echo $$; sleep 1000; :")).unwrap();
    let seen = agent.sh("cat /proc/1/comm; echo $$");
    let mut lines = seen.lines();
    assert_eq!(lines.next(), Some("hartpod-holder"));
    assert_ne!(lines.next(), Some("1"));
    // Holder, the other container's shell and its sleep, once it is there, and this one's shell.
    eventually("all of the pod's processes are seen", || agent.sh("set -- /proc/[0-9]*; echo $#") == "4\n");
    assert_eq!(
        namespaces(&running, "pid").0,
        namespace(&agent.pod.holder().unwrap().pid().to_string(), "pid")
    );
    // The container's init is our child, whatever pid namespace it is in.
    running.child.signal(9).unwrap();
    assert_eq!(crate::kit::wait(&running.child).code(), 137);
    // What it has started lives on, unlike with a pid namespace of its own, until the leaf is killed.
    let leaf = running.container.leaf();
    assert!(leaf.populated().unwrap());
    leaf.kill().unwrap();
    eventually("the rest dies", || !leaf.populated().unwrap());
    // The processes that did the set-up are ours to reap.
    eventually("P1s are reaped", || reap_orphans(|_| false).unwrap() == 0);
}

fn orphans() {
    let agent = agent_sharing_pids();
    let holder = agent.pod.holder().unwrap().pid();
    let children = format!("/proc/{holder}/task/{holder}/children");
    let running = agent.start(shell("(setsid sh -c 'sleep 0.2; exit 3' &) ; sleep 1000")).unwrap();
    eventually("the orphan comes to the holder", || !fs::read_to_string(&children).unwrap().is_empty());
    eventually("it is reaped", || fs::read_to_string(&children).unwrap().is_empty());
    assert_eq!(agent.pod.holder().unwrap().try_wait().unwrap(), None);
    // Nor does one become ours when its container's init dies.
    running.kill();
    eventually("P1 is reaped", || reap_orphans(|_| false).unwrap() == 0);
}

fn own_beside_shared() {
    let agent = agent_sharing_pids();
    let running = agent.start_with(shell("echo $$"), |r| r.pid = PidNamespace::Container).unwrap();
    assert_eq!(running.end().out, "1\n");
}

fn target() {
    let agent = agent();
    let mut target = agent.start(shell("sleep 1000 & echo ready; wait")).unwrap();
    assert_eq!(target.output.line(), "ready");
    let debugger = shell("echo $$; cat /proc/1/comm; ls -d /proc/[0-9]* | wc -l");
    let mut with_ptrace = debugger.clone();
    for set in ["bounding", "effective", "permitted"] {
        add(&mut with_ptrace, &format!("/process/capabilities/{set}"), json!("CAP_SYS_PTRACE"));
    }
    let debugger =
        agent.start_with(with_ptrace, |r| r.pid = PidNamespace::Target(&target.container)).unwrap();
    let outcome = debugger.end();
    let lines: Vec<&str> = outcome.out.lines().collect();
    assert_ne!(lines[0], "1");
    // Its own /proc shows the target's processes: sh, sleep; and its own shell, ls, wc.
    assert_eq!(lines[1..3], ["sh", "5"], "{outcome:?}");
    target.kill();
}

fn node() {
    let agent = agent();
    let running = agent.start_with(shell("echo $$; sleep 1000"), |r| r.pid = PidNamespace::Node).unwrap();
    let mut running = running;
    assert_eq!(running.output.line(), running.child.pid().to_string());
    assert_eq!(namespaces(&running, "pid").0, namespace("self", "pid"));
    let exec = agent.exec(&running.container, &["sh", "-c", "cat /proc/1/comm"]).unwrap();
    assert_eq!(exec.out, fs::read_to_string("/proc/1/comm").unwrap());
    running.kill();
}

fn holder_has_nothing() {
    let agent = agent_sharing_pids();
    let holder = agent.pod.holder().unwrap().pid();
    let read = |file: &str| fs::read_to_string(format!("/proc/{holder}/{file}")).unwrap();
    let status = read("status");
    let expected = [
        "Uid:\t65534\t65534\t65534\t65534",
        "Groups:\t \n",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "NSpid:\t",
    ];
    for line in expected {
        assert!(status.contains(line), "{line}: {status}");
    }
    assert_eq!(fs::read_dir(format!("/proc/{holder}/fd")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(format!("/proc/{holder}/root")).unwrap().count(), 0);
    assert_eq!(read("mountinfo").lines().count(), 1);
    for file in ["environ", "cmdline"] {
        assert_eq!(read(file).trim_matches('\0'), "", "{file}");
    }
}

fn of_the_node() {
    let agent = agent_with(|setup| {
        setup.hostname = String::new();
        setup.ipc = hartpod_container::IpcMode::Node;
    });
    assert_eq!(agent.sh("hostname"), fs::read_to_string("/proc/sys/kernel/hostname").unwrap());
    for kind in ["uts", "ipc"] {
        assert_eq!(namespace("self", kind), namespace(&the_runner(), kind));
    }
}

fn sysctls() {
    let host = fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap();
    assert_eq!(host, "0\n");
    let agent = agent_with(|setup| {
        setup.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    });
    assert_eq!(agent.sh("cat /proc/sys/kernel/shm_rmid_forced"), "1\n");
}

fn agents_view() {
    let _agent = agent();
    let mut names: Vec<_> =
        fs::read_dir("/").unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let expected = ["containers", "dev", "empty", "layers", "pod-proc", "proc", "rootfs", "shm", "sys"];
    assert_eq!(names, expected);
    assert_eq!(fs::write("/layers/x", "").unwrap_err().raw_os_error(), Some(30));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("shared:") && !mounts.contains("master:"), "{mounts}");
}
