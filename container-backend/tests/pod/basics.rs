//! A container runs, and ends as it should.

use serde_json::json;

use crate::kit::{Outcome, agent, agent_with, finish, set, shell, spec, streams, wait};

pub(crate) const SCENARIOS: &[(&str, fn())] = &[
    ("a_container_runs_and_its_exit_code_comes_back", runs),
    ("a_created_container_waits_for_its_start", waits),
    ("a_container_that_is_dropped_before_its_start_dies", dropped),
    ("the_environment_is_that_of_the_spec_with_home", environment),
    ("descriptors_are_the_three_standard_ones", descriptors),
    ("signals_umask_and_session_are_those_of_a_fresh_process", fresh),
    ("127_layers_are_one_root", layers),
    ("127_layers_are_one_root_on_an_old_kernel", layers_on_an_old_kernel),
    ("a_hundred_containers_leave_no_process_behind", hundred),
];

fn runs() {
    let agent = agent();
    let outcome = agent.run(shell("echo out; echo err >&2; exit 7"));
    assert_eq!(outcome, Outcome { code: 7, out: "out\n".into(), err: "err\n".into() });
    let running = agent.start(spec(&["sleep", "1000"])).unwrap();
    running.child.signal(15).unwrap();
    // Init of a pid namespace has no default for SIGTERM, but for SIGKILL from outside.
    assert_eq!(running.child.try_wait().unwrap(), None);
    running.child.signal(9).unwrap();
    assert_eq!(running.end().code, 137);
}

fn waits() {
    let agent = agent();
    let (stdio, stdin, output) = streams().split();
    let created = agent.create(agent.request(shell("cat; echo started"), stdio)).unwrap();
    assert_eq!(created.waiting.child().unwrap().try_wait().unwrap(), None);
    assert!(created.container.leaf().populated().unwrap());
    let mut starting = created.waiting.open_gate().unwrap();
    let child = finish(&mut starting, |s| s.poll()).unwrap();
    rustix::io::write(&stdin, b"hello ").unwrap();
    drop(stdin);
    assert_eq!(wait(&child).code(), 0);
    assert_eq!(output.rest().0, "hello started\n");
}

fn dropped() {
    let agent = agent();
    let (stdio, _stdin, output) = streams().split();
    let created = agent.create(agent.request(shell("echo never"), stdio)).unwrap();
    let leaf = created.container.leaf().clone();
    drop(created);
    crate::kit::eventually("it dies", || !leaf.populated().unwrap());
    assert_eq!(output.rest().0, "");
    assert_eq!(hartpod_container::reap_orphans(|_| false).unwrap(), 1);
}

fn environment() {
    let agent = agent();
    let mut with_home = spec(&["env"]);
    set(&mut with_home, "/process", "env", json!(["PATH=/bin", "HOME=/here", "A=b c"]));
    assert_eq!(agent.run(with_home).out, "PATH=/bin\nHOME=/here\nA=b c\n");
    assert_eq!(agent.run(spec(&["env"])).out, "PATH=/bin\nHOME=/root\n");
}

fn descriptors() {
    // The fourth is ls reading the folder.
    assert_eq!(agent().sh("ls /proc/self/fd | wc -l").trim(), "4");
}

fn fresh() {
    let agent = agent();
    let status = agent.run(spec(&["cat", "/proc/1/status", "/proc/1/stat"])).out;
    let lines = ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000", "Umask:\t0022", "Threads:\t1"];
    for line in lines {
        assert!(status.contains(line), "{line}: {status}");
    }
    let stat: Vec<&str> = status.lines().last().unwrap().split(' ').collect();
    // pid, name, state, parent, group, session
    assert_eq!((stat[0], stat[3], stat[4], stat[5]), ("1", "0", "1", "1"));
}

fn layers() {
    let agent = agent_with(|setup| {
        for n in 0..125 {
            let etc = setup.layers_dir.join(format!("{n:064}/etc"));
            std::fs::create_dir_all(&etc).unwrap();
            std::fs::write(etc.join(format!("file{n}")), "").unwrap();
            std::fs::write(etc.join("who"), n.to_string()).unwrap();
        }
    });
    let mut agent = agent;
    agent.layers.extend((0..125).map(|n| format!("{n:064}")));
    assert_eq!(agent.sh("ls /etc | grep file | wc -l; cat /etc/who").trim(), "125\n124");
}

/// As before Linux 6.7, see `OLD_KERNEL` of the runner.
fn layers_on_an_old_kernel() {
    assert!(rustix::system::uname().release().to_bytes().starts_with(b"2.6."));
    layers();
}

fn hundred() {
    let agent = agent();
    for _ in 0..100 {
        assert_eq!(agent.run(spec(&["true"])).code, 0);
    }
    // Nothing but the agent itself is left below it: no zombie, no helper.
    assert_eq!(hartpod_container::reap_orphans(|_| false).unwrap(), 0);
    let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    assert_eq!(children, "");
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(fds < 20, "{fds}");
}
