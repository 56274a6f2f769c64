//! What goes wrong on a node, and what must go on all the same.

use std::fs;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use hartpod_proto::pod::v1::{
    ContainerState, NamespaceMode, Phase, ReopenLogRequest, SignalContainerRequest,
};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, pidfd_send_signal, waitid};
use tonic::Code;

use crate::kit::{Agent, eventually, id};

fn exited(state: &ContainerState) -> bool {
    state.phase() == Phase::Exited
}

/// Children of the agent: pid and name.
fn children(agent: &Agent) -> Vec<(i32, String)> {
    let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).map(|name| name.trim().to_owned());
    agent.process_ids().into_iter().skip(1).filter_map(|pid| Some((pid, name(pid).ok()?))).collect()
}

fn log_writer(agent: &Agent) -> Pid {
    let writers = children(agent).into_iter().find(|(_, name)| name == "hartpod-log");
    Pid::from_raw(writers.expect("a log writer runs").0).unwrap()
}

async fn kill(agent: &mut Agent, number: u8) {
    let request = SignalContainerRequest { container_id: id(number).to_string(), signal: 9 };
    agent.client.signal_container(request).await.unwrap();
}

/// A disk that hangs, played by a log writer that is stopped.
#[tokio::test]
async fn a_log_that_hangs_holds_up_its_own_container_only() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = agent.shell(1, "echo up; sleep 1000");
    agent.run(request).await.unwrap();
    let stopped = log_writer(&agent);
    kill_process(stopped, Signal::STOP).unwrap();
    let request = agent.shell(2, "echo unharmed; exit 6");
    agent.run(request).await.unwrap();
    assert_eq!(agent.until(2, exited).await.exit_code, 6);
    assert_eq!(agent.log(2), ["stdout F unharmed"]);

    kill(&mut agent, 1).await;
    let begun = Instant::now();
    let end = agent.until(1, exited).await;
    assert!(begun.elapsed() < Duration::from_secs(4));
    assert_eq!(end.exit_code, 137);
    assert_eq!(end.message, "its log was not written to the end within 2 seconds");
    agent.remove(1).await.unwrap();
    eventually(|| children(&agent).is_empty()).await;
}

#[tokio::test]
async fn a_log_writer_that_is_killed_is_replaced_and_the_container_runs_on() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = agent.shell(1, "echo up; sleep 1000");
    agent.run(request).await.unwrap();
    eventually(|| agent.log(1) == ["stdout F up"]).await;
    // What it has not taken is there for the next one.
    let first = log_writer(&agent);
    kill_process(first, Signal::STOP).unwrap();
    agent.exec(1, "echo one >/proc/1/fd/1; echo two >/proc/1/fd/2", "").await;
    kill_process(first, Signal::KILL).unwrap();
    eventually(|| agent.log(1).len() == 3).await;
    let mut log = agent.log(1);
    log.sort_unstable();
    assert_eq!(log, ["stderr F two", "stdout F one", "stdout F up"]);
    // A reopen that finds it dead is met by the next one.
    kill_process(log_writer(&agent), Signal::KILL).unwrap();
    let (current, old) = (agent.path("logs/c/1.log"), agent.path("logs/c/1.log.old"));
    fs::rename(&current, &old).unwrap();
    let request = ReopenLogRequest { container_id: id(1).to_string() };
    agent.client.reopen_log(request).await.unwrap();
    agent.exec(1, "echo three >/proc/1/fd/1", "").await;
    eventually(|| current.exists() && agent.log(1) == ["stdout F three"]).await;

    kill(&mut agent, 1).await;
    let end = agent.until(1, exited).await;
    assert_eq!(end.exit_code, 137);
    assert_eq!(end.message, "its log writer died 2 times and was replaced: output may be missing");
    agent.remove(1).await.unwrap();
    eventually(|| children(&agent).is_empty()).await;
}

#[tokio::test]
async fn a_reopen_of_a_log_that_hangs_is_given_up() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = agent.shell(1, "sleep 1000");
    agent.run(request).await.unwrap();
    let writer = log_writer(&agent);
    kill_process(writer, Signal::STOP).unwrap();
    let request = ReopenLogRequest { container_id: id(1).to_string() };
    let error = agent.client.reopen_log(request.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    // The late answer to that one is not taken for the answer to the next.
    kill_process(writer, Signal::CONT).unwrap();
    agent.client.reopen_log(request).await.unwrap();
}

#[tokio::test]
async fn output_reaches_the_log_when_the_agent_is_dead() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = agent.shell(1, "while :; do echo tick; sleep 0.02; done");
    agent.run(request).await.unwrap();
    pidfd_send_signal(&agent.process.pidfd, Signal::KILL).unwrap();
    waitid(WaitId::PidFd(agent.process.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        .unwrap();
    let lines = agent.log(1).len();
    eventually(|| agent.log(1).len() >= lines + 5).await;
}

#[tokio::test]
async fn a_container_that_hits_its_memory_limit_is_known() {
    let mut agent = Agent::with_pod(|_| {}).await;
    // The shell itself grows; a child of it that is killed would do as well.
    let mut request = agent.shell(1, "a=0123456789abcdef; while :; do a=$a$a; done");
    let spec = String::from_utf8(request.spec_json).unwrap();
    let limit = r#""linux":{"resources":{"memory":{"limit":16777216,"swap":16777216}},"#;
    request.spec_json = spec.replace(r#""linux":{"#, limit).into_bytes();
    agent.run(request).await.unwrap();
    let end = agent.until(1, exited).await;
    assert_eq!((end.exit_code, end.oom_killed), (137, true));
}

#[tokio::test]
async fn a_memory_limit_too_small_to_begin_with_is_told() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let mut request = agent.command(1, &["true"]);
    let spec = String::from_utf8(request.spec_json).unwrap();
    let limit = r#""linux":{"resources":{"memory":{"limit":4096}},"#;
    request.spec_json = spec.replace(r#""linux":{"#, limit).into_bytes();
    let error = agent.run(request).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    assert!(error.message().ends_with("its memory limit is too small to begin with"), "{error}");
}

#[tokio::test]
async fn a_container_begins_with_clean_signals_and_descriptors() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = agent.shell(1, "cat /proc/self/status; echo fds $(ls /proc/self/fd | wc -l)");
    agent.run(request).await.unwrap();
    agent.until(1, exited).await;
    let log = agent.log(1).join("\n");
    for clean in ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000", "fds 4"] {
        assert!(log.contains(clean), "{clean}: {log}");
    }
}

#[tokio::test]
async fn nothing_is_left_in_an_agent_after_many_containers() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let descriptors =
        |agent: &Agent| fs::read_dir(format!("/proc/{}/fd", agent.process.pid)).unwrap().count();
    let mut first = 0;
    for number in 1..=12 {
        let request = agent.shell(number, "sleep 1000");
        agent.run(request).await.unwrap();
        let (result, out, _) = agent.exec(number, "echo hi", "").await;
        assert_eq!((result.exit_code, out.as_str()), (0, "hi\n"));
        let request = agent.command(number + 100, &["missing"]);
        agent.run(request).await.unwrap_err();
        agent.remove(number + 100).await.unwrap();
        agent.remove(number).await.unwrap();
        if number == 2 {
            first = descriptors(&agent);
        }
    }
    assert_eq!((descriptors(&agent), children(&agent)), (first, Vec::new()));
    let (status, pid) = (agent.cgroups(), agent.process.pid);
    assert!(!status.is_empty());
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert!(!mounts.contains("overlay"), "{mounts}");
}

/// A pid namespace without its init takes no new process, so no container of the pod could start any more.
#[tokio::test]
async fn a_pod_that_loses_its_pid_namespace_is_over() {
    let mut agent = Agent::with_pod(|pod| pod.pid = NamespaceMode::Pod.into()).await;
    let request = agent.command(1, &["sleep", "1000"]);
    agent.run(request).await.unwrap();
    let (holder, _) = children(&agent).into_iter().find(|(_, name)| name == "hartpod-holder").unwrap();
    kill_process(Pid::from_raw(holder).unwrap(), Signal::KILL).unwrap();
    assert_eq!(agent.exit_code().await, 1);
    let log = agent.agent_log();
    assert!(log.lines().last().unwrap().contains("the holder of the pod's pid namespace ended"), "{log}");
}
