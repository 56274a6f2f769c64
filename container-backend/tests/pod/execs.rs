//! One more process in a running container.

use std::fs;

use hartpod_container::{CommandError, Failure, LaunchError, reap_orphans};
use serde_json::json;

use crate::kit::{Agent, agent, agent_sharing_pids, eventually, finish, shell, spec, streams, wait};

pub(crate) const SCENARIOS: &[(&str, fn())] = &[
    ("an_exec_is_in_the_container", inside),
    ("an_exec_has_what_the_container_has", same_settings),
    ("an_exec_in_a_shared_pid_namespace", shared),
    ("an_exec_of_nothing_says_so", || missing(&agent())),
    ("an_exec_of_nothing_says_so_with_shared_pids", || missing(&agent_sharing_pids())),
    ("an_execs_tree_is_killed_by_its_leaf", killed),
    ("an_exec_in_a_dead_container_fails", dead),
    ("fifty_execs_leave_nothing", || fifty(&agent())),
    ("fifty_execs_leave_nothing_with_shared_pids", || fifty(&agent_sharing_pids())),
];

fn inside() {
    let agent = agent();
    let running = agent.start(shell("echo mark > /tmp/mark; echo ok; sleep 1000; :")).unwrap();
    let mut running = running;
    assert_eq!(running.output.line(), "ok");
    let outcome = agent
        .exec(&running.container, &["sh", "-c", "cat /tmp/mark /proc/1/comm; hostname; exit 5"])
        .unwrap();
    assert_eq!((outcome.code, outcome.out.as_str()), (5, "mark\nsh\ntest-pod\n"));
    for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let link = format!("/proc/self/ns/{kind}");
        let exec = agent.exec(&running.container, &["readlink", &link]).unwrap();
        let its = fs::read_link(format!("/proc/{}/ns/{kind}", running.child.pid())).unwrap();
        assert_eq!(exec.out.trim(), its.to_str().unwrap());
    }
    running.kill();
}

fn same_settings() {
    let agent = agent();
    let mut usual = spec(&["sleep", "1000"]);
    usual["process"]["env"] = json!(["PATH=/bin", "WHO=me"]);
    usual["process"]["cwd"] = json!("/made/here");
    usual["process"]["noNewPrivileges"] = json!(true);
    usual["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
    usual["process"]["oomScoreAdj"] = json!(500);
    let running = agent.start_with(usual, |r| r.user = "web".into()).unwrap();
    let pid = running.child.pid();
    let lines = |status: &str| -> Vec<String> {
        let wanted = ["Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp", "Umask", "SigIgn", "SigBlk"];
        let of_interest = |line: &&str| wanted.iter().any(|w| line.starts_with(w));
        status.lines().filter(of_interest).map(ToOwned::to_owned).collect()
    };
    let exec = agent.exec(&running.container, &["cat", "/proc/self/status"]).unwrap();
    assert_eq!(lines(&exec.out), lines(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap()));
    let exec = agent
        .exec(&running.container, &["sh", "-c", "pwd; ulimit -n; cat /proc/self/oom_score_adj; env"])
        .unwrap();
    assert!(exec.out.starts_with("/made/here\n100\n500\n"), "{exec:?}");
    for variable in ["PATH=/bin\n", "WHO=me\n", "HOME=/srv/www\n"] {
        assert!(exec.out.contains(variable), "{exec:?}");
    }
    running.kill();
}

fn shared() {
    let agent = agent_sharing_pids();
    let running = agent.start(shell("echo $$; sleep 1000")).unwrap();
    let exec = agent
        .exec(&running.container, &["sh", "-c", "cat /proc/1/comm; ls /proc/self/fd | wc -l; exit 9"])
        .unwrap();
    assert_eq!((exec.code, exec.out.as_str()), (9, "hartpod-holder\n4\n"));
    // A leader of its own session, like any program that was started afresh.
    let stat = agent.exec(&running.container, &["cat", "/proc/self/stat"]).unwrap().out;
    let fields: Vec<&str> = stat.split(' ').collect();
    assert_eq!((fields[0], fields[0]), (fields[4], fields[5]));
    running.kill();
    eventually("P1s are reaped", || reap_orphans(|_| false).unwrap() == 0);
}

fn missing(agent: &Agent) {
    let running = agent.start(spec(&["sleep", "1000"])).unwrap();
    for (args, message) in [
        (vec!["foo"], "exec \"foo\": no such file in $PATH"),
        (vec!["/x"], "exec \"/x\": no such file or directory"),
        (vec!["/etc/passwd"], "exec \"/etc/passwd\": permission denied"),
        (vec!["/etc"], "exec \"/etc\": is a directory"),
    ] {
        let error = agent.exec(&running.container, &args).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    let error = agent.exec(&running.container, &[]).unwrap_err();
    assert!(matches!(error, LaunchError::Failed(Failure::Command(CommandError::Empty))));
    // Only execve itself can tell that a file is no program: P2 reports that.
    agent
        .exec(
            &running.container,
            &["sh", "-c", "echo garbage > /bin/broken; /bin/busybox chmod 755 /bin/broken"],
        )
        .unwrap();
    let error = agent.exec(&running.container, &["broken"]).unwrap_err();
    assert_eq!(error.to_string(), "exec \"broken\": exec format error");
    running.kill();
}

fn killed() {
    let agent = agent();
    let running = agent.start(spec(&["sleep", "1000"])).unwrap();
    let (stdio, _stdin, mut output) = streams().split();
    let command = ["sh", "-c", "setsid sleep 1000 & (sleep 1000 &) ; echo started; sleep 1000"];
    let mut execing = agent.begin_exec(&running.container, &command, stdio).unwrap();
    let executed = finish(&mut execing, |e| e.poll()).unwrap();
    assert_eq!(output.line(), "started");
    let leaf = agent.last_exec_leaf(&running.container);
    leaf.kill().unwrap();
    assert_eq!(wait(&executed.child).code(), 137);
    eventually("the whole tree dies", || !leaf.populated().unwrap());
    assert!(running.container.leaf().populated().unwrap());
    assert_eq!(running.child.try_wait().unwrap(), None);
    running.kill();
}

fn dead() {
    let agent = agent();
    let running = agent.start(spec(&["sleep", "1000"])).unwrap();
    running.child.signal(9).unwrap();
    wait(&running.child);
    let error = agent.exec(&running.container, &["true"]).unwrap_err();
    assert!(matches!(error, LaunchError::Failed(Failure::PidNamespace)), "{error:?}");
}

fn fifty(agent: &Agent) {
    let running = agent.start(spec(&["sleep", "1000"])).unwrap();
    let before = fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    for _ in 0..50 {
        assert_eq!(agent.exec(&running.container, &["true"]).unwrap().code, 0);
    }
    assert_eq!(fs::read_dir("/proc/self/fd").unwrap().count(), before);
    // Mailboxes are gone as well.
    assert!(fs::read_to_string("/proc/self/maps").unwrap().lines().count() < maps + 5);
    eventually("P1s are reaped", || reap_orphans(|_| false).unwrap() == 0);
    running.kill();
}
