//! The agent as a process: what it needs, whom it serves, when it ends.

use std::process::{Command, Stdio};
use std::time::Duration;

use hartpod_proto::pod::v1::{DescribeRequest, SetUpPodRequest, StartContainerRequest, WatchRequest};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt;
use tonic::Code;

use crate::kit::{Agent, id, pod_id};

#[test]
fn without_its_sockets_it_says_what_it_needs() {
    let output = Command::new(env!("CARGO_BIN_EXE_hartpod-pod")).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("descriptors 3 and 4 must be listening unix sockets"), "{log}");
}

#[tokio::test]
async fn before_its_pod_is_set_up_it_only_describes_itself() {
    let mut agent = Agent::start().await;
    let described = agent.client.describe(DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!((described.set_up, described.agent_pid), (false, agent.process.pid));
    let start = StartContainerRequest { container_id: id(1).to_string() };
    let error = agent.client.start_container(start).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::FailedPrecondition, "the pod is not set up"));
    let start = StartContainerRequest { container_id: "short".to_owned() };
    assert_eq!(agent.client.start_container(start).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_pod_that_makes_no_sense_can_be_set_up_right_afterwards() {
    let mut agent = Agent::start().await;
    let error = agent.client.set_up_pod(SetUpPodRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(!agent.client.describe(DescribeRequest {}).await.unwrap().into_inner().set_up);
}

#[tokio::test]
async fn a_pod_that_cannot_be_set_up_is_the_end_of_its_agent() {
    let mut agent = Agent::start().await;
    let request = SetUpPodRequest {
        pod_id: pod_id().to_string(),
        netns_path: "/run/netns/missing".to_owned(),
        cgroup_parent: agent.cgroup(),
        layers_dir: "/".to_owned(),
        containers_dir: "/".to_owned(),
        ..SetUpPodRequest::default()
    };
    let error = agent.client.set_up_pod(request).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().starts_with("set up the pod: network namespace /run/netns/missing: "), "{error}");
    assert_eq!(agent.exit_code().await, 1);
}

#[tokio::test]
async fn a_pod_is_set_up_once() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let mut request = agent.set_up_request();
    agent.client.set_up_pod(request.clone()).await.unwrap();
    request.hostname = "other".to_owned();
    assert_eq!(agent.client.set_up_pod(request).await.unwrap_err().code(), Code::AlreadyExists);
}

#[tokio::test]
async fn an_idle_agent_does_not_wake_up() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = agent.shell(1, "echo hello; sleep 1000");
    agent.run(request).await.unwrap();
    let agent_and_children = agent.process_ids();
    let wakes = || {
        let switches = agent_and_children.iter().map(|pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        });
        switches.sum::<u64>()
    };
    // After a second they have given back the memory that they used, and then there is nothing to do.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let before = wakes();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(wakes(), before);
}

#[tokio::test]
async fn it_has_one_thread_and_a_name_and_ignores_termination() {
    let mut agent = Agent::start().await;
    agent.client.describe(DescribeRequest {}).await.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.process.pid)).unwrap();
    assert!(status.contains("Name:\thartpod-pod\n"), "{status}");
    assert!(status.contains("Threads:\t1\n"), "{status}");
    let pid = Pid::from_raw(agent.process.pid).unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        kill_process(pid, signal).unwrap();
    }
    agent.client.describe(DescribeRequest {}).await.unwrap();
}

#[tokio::test]
async fn it_ends_when_it_is_shut_down_and_ends_its_watches() {
    let mut agent = Agent::start().await;
    let mut watch = agent.client.watch(WatchRequest {}).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some(), "synced");
    agent.shut_down().await;
    assert!(watch.message().await.unwrap().is_none());
    assert_eq!(agent.exit_code().await, 0);
}

#[tokio::test]
async fn other_users_are_hung_up_on() {
    let agent = Agent::start().await;
    let path = agent.path("agent.sock");
    std::fs::set_permissions(agent.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    // The effective user of a thread is its own, so this one connects as nobody.
    let connection = std::thread::spawn(move || {
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65_534)).unwrap();
        std::os::unix::net::UnixStream::connect(path).unwrap()
    });
    let connection = connection.join().unwrap();
    connection.set_nonblocking(true).unwrap();
    let mut connection = tokio::net::UnixStream::from_std(connection).unwrap();
    assert_eq!(connection.read(&mut [0]).await.unwrap(), 0);
}
