//! Containers from their creation to their removal.

use std::fs;
use std::time::{Duration, Instant};

use hartpod_proto::pod::v1::{
    CreateContainerRequest, NamespaceMode, Phase, RemoveContainerRequest, ReopenLogRequest,
    SignalContainerRequest, StartContainerRequest, Stdio, UpdateContainerRequest,
};
use tonic::Code;

use crate::kit::{Agent, eventually, id, pod_id};

fn exited(state: &hartpod_proto::pod::v1::ContainerState) -> bool {
    state.phase() == Phase::Exited
}

async fn signal(agent: &mut Agent, number: u8, signal: i32) -> Result<(), tonic::Status> {
    let request = SignalContainerRequest { container_id: id(number).to_string(), signal };
    agent.client.signal_container(request).await.map(drop)
}

#[tokio::test]
async fn a_container_from_creation_to_removal() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = agent.shell(1, "echo out; echo err >&2; exit 7");
    let created = agent.client.create_container(request.clone()).await.unwrap().into_inner().state.unwrap();
    assert_eq!((created.phase(), created.started_at), (Phase::Created, 0));
    assert!(created.pid > 0 && created.created_at > 0);
    let start = StartContainerRequest { container_id: id(1).to_string() };
    agent.client.start_container(start.clone()).await.unwrap();
    let end = agent.until(1, exited).await;
    assert_eq!((end.exit_code, end.pid, end.oom_killed, end.message.as_str()), (7, 0, false, ""));
    assert!(end.created_at <= end.started_at && end.started_at <= end.finished_at);
    let mut log = agent.log(1);
    log.sort();
    assert_eq!(log, ["stderr F err", "stdout F out"]);
    // Calls that find their work done.
    agent.client.start_container(start).await.unwrap();
    agent.client.create_container(request).await.unwrap();
    signal(&mut agent, 1, 15).await.unwrap();
    agent.remove(1).await.unwrap();
    agent.remove(1).await.unwrap();
    assert!(agent.state(1).await.is_none());
    assert_eq!(signal(&mut agent, 1, 15).await.unwrap_err().code(), Code::NotFound);
    agent.shut_down().await;
    assert_eq!(agent.exit_code().await, 0);
}

#[tokio::test]
async fn a_command_that_is_missing_is_named_and_leaves_nothing() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = agent.command(1, &["foo"]);
    let error = agent.run(request).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert_eq!(error.message(), format!("start container {}: exec \"foo\": no such file in $PATH", id(1)));
    let state = agent.state(1).await.unwrap();
    assert_eq!((state.phase(), state.exit_code), (Phase::Exited, 128));
    assert_eq!(state.message, error.message(), "whichever of the two is heard");
    let again = agent.client.start_container(StartContainerRequest { container_id: id(1).to_string() }).await;
    assert_eq!(again.unwrap_err().message(), error.message());
    agent.remove(1).await.unwrap();

    let request = agent.command(2, &["/etc/passwd"]);
    assert_eq!(agent.run(request).await.unwrap_err().code(), Code::PermissionDenied);
    agent.shut_down().await;
}

#[tokio::test]
async fn a_creation_that_fails_leaves_nothing() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let mut request = agent.shell(1, "true");
    request.user = "nobody-of-that-name".to_owned();
    let error = agent.client.create_container(request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(
        error.message().contains("user `nobody-of-that-name` is not in the image's /etc/passwd"),
        "{error}"
    );
    assert!(agent.state(1).await.is_none());
    // A scratch folder is good for one creation.
    let scratch = agent.path("containers").join(id(1).as_str());
    fs::remove_dir_all(&scratch).unwrap();
    fs::remove_dir_all(agent.path("logs/c")).unwrap();
    fs::write(agent.path("logs/c"), "a file where a folder should be").unwrap();
    let request = agent.shell(1, "true");
    let error = agent.client.create_container(request).await.unwrap_err();
    assert!(error.message().contains("open the log file: not a directory"), "{error}");
    fs::remove_file(agent.path("logs/c")).unwrap();
    fs::remove_dir_all(&scratch).unwrap();
    let request = agent.shell(1, "true");
    agent.run(request).await.unwrap();
}

#[tokio::test]
async fn a_container_cannot_take_the_cgroup_of_the_agent() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = CreateContainerRequest { container_id: pod_id().to_string(), ..agent.shell(1, "true") };
    let error = agent.client.create_container(request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    agent.shut_down().await;
}

#[tokio::test]
async fn the_same_id_for_another_container_is_refused() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = agent.shell(1, "sleep 100");
    agent.run(request).await.unwrap();
    let request = agent.shell(1, "true");
    assert_eq!(agent.client.create_container(request).await.unwrap_err().code(), Code::AlreadyExists);
}

#[tokio::test]
async fn signals_reach_init_and_its_end_is_128_and_the_signal() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = agent.shell(1, "trap 'echo term; exit 3' TERM; echo up; while :; do sleep 0.01; done");
    agent.run(request).await.unwrap();
    eventually(|| !agent.log(1).is_empty()).await;
    signal(&mut agent, 1, 15).await.unwrap();
    assert_eq!(agent.until(1, exited).await.exit_code, 3);
    assert_eq!(agent.log(1).last().unwrap(), "stdout F term");
    let request = agent.shell(2, "sleep 100");
    agent.run(request).await.unwrap();
    signal(&mut agent, 2, 9).await.unwrap();
    assert_eq!(agent.until(2, exited).await.exit_code, 137);
    assert_eq!(signal(&mut agent, 2, 99).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_container_that_is_killed_before_its_start_has_exited() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = agent.shell(1, "true");
    agent.client.create_container(request).await.unwrap();
    signal(&mut agent, 1, 9).await.unwrap();
    let state = agent.until(1, exited).await;
    assert_eq!((state.exit_code, state.started_at), (137, 0));
    assert_eq!(state.message, "killed before it was started");
    let start = StartContainerRequest { container_id: id(1).to_string() };
    assert_eq!(agent.client.start_container(start).await.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn what_init_leaves_behind_is_killed_in_any_pid_namespace() {
    for (number, pid) in [(1, NamespaceMode::Pod), (2, NamespaceMode::Node), (3, NamespaceMode::Container)] {
        let mut agent = Agent::with_pod(|pod| pod.pid = NamespaceMode::Pod.into()).await;
        let mut request = agent.shell(number, "setsid sleep 1000 & echo started; exit 4");
        request.pid = pid.into();
        agent.run(request).await.unwrap();
        let begun = Instant::now();
        assert_eq!(agent.until(number, exited).await.exit_code, 4, "{pid:?}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{pid:?}: waited for what should have been killed");
        agent.remove(number).await.unwrap();
        agent.shut_down().await;
        assert_eq!(agent.exit_code().await, 0);
    }
}

#[tokio::test]
async fn the_whole_output_is_in_the_log_when_the_exit_is_told() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = agent.shell(1, "seq 1 20000; echo -n unfinished");
    agent.run(request).await.unwrap();
    agent.until(1, exited).await;
    let log = agent.log(1);
    assert_eq!(log.len(), 20001);
    assert!((1..=20000).zip(&log).all(|(n, line)| *line == format!("stdout F {n}")));
    assert_eq!(log[20000], "stdout P unfinished");
}

#[tokio::test]
async fn a_rotation_loses_no_line() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let script = "n=0; while [ $n -lt 30000 ]; do echo $n; n=$((n+1)); done; sleep 1000";
    let request = agent.shell(1, script);
    agent.run(request).await.unwrap();
    let current = agent.path("logs/c/1.log");
    for rotation in 0..5 {
        fs::rename(&current, agent.path(&format!("logs/c/1.log.{rotation}"))).unwrap();
        let request = ReopenLogRequest { container_id: id(1).to_string() };
        agent.client.reopen_log(request).await.unwrap();
        assert!(current.exists(), "answered before the new file was there");
    }
    let lines = || {
        let files = ["1.log.0", "1.log.1", "1.log.2", "1.log.3", "1.log.4", "1.log"];
        let texts = files.map(|name| fs::read_to_string(agent.path("logs/c").join(name)).unwrap());
        let number = |line: &str| line.rsplit_once(' ').unwrap().1.parse::<u32>().unwrap();
        // A line that is being written has no end yet.
        let whole = texts.iter().filter_map(|text| text.rsplit_once('\n'));
        whole.flat_map(|(lines, _)| lines.lines().map(number)).collect::<Vec<_>>()
    };
    eventually(|| lines().last() == Some(&29999)).await;
    assert_eq!(lines(), (0..30000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_terminal_is_logged_as_one_stream() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let mut request = agent.shell(1, "[ -t 0 ] && [ -t 2 ] && echo terminal; echo err >&2");
    let spec = String::from_utf8(request.spec_json).unwrap();
    request.spec_json = spec.replace(r#""process":{"#, r#""process":{"terminal":true,"#).into_bytes();
    request.stdio = Some(Stdio { tty: true, ..Stdio::default() });
    agent.run(request).await.unwrap();
    agent.until(1, exited).await;
    assert_eq!(agent.log(1), ["stdout F terminal", "stdout F err"]);
}

#[tokio::test]
async fn removal_kills_what_runs_and_shutdown_everything() {
    let mut agent = Agent::with_pod(|pod| pod.pid = NamespaceMode::Pod.into()).await;
    for number in 1..=3 {
        let mut request = agent.shell(number, "sleep 1000 & sleep 1000");
        request.pid = NamespaceMode::Pod.into();
        agent.run(request).await.unwrap();
    }
    let request = agent.shell(4, "sleep 1000");
    agent.client.create_container(request).await.unwrap();
    agent.remove(1).await.unwrap();
    assert!(agent.state(1).await.is_none() && agent.state(2).await.is_some());
    let removals = (0..3).map(|_| RemoveContainerRequest { container_id: id(2).to_string() });
    for request in removals {
        agent.client.clone().remove_container(request).await.unwrap();
    }
    agent.shut_down().await;
    assert_eq!(agent.exit_code().await, 0);
    let left: Vec<_> = agent
        .cgroups()
        .into_iter()
        .flat_map(|parent| fs::read_dir(parent).unwrap())
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| entry.file_name())
        .collect();
    assert!(left.iter().all(|name| *name == *pod_id().as_str()), "left behind: {left:?}");
}

#[tokio::test]
async fn orphans_of_a_container_in_the_nodes_pid_namespace_are_buried() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let mut request = agent.shell(1, "(setsid sleep 1 &) ; sleep 1000");
    request.pid = NamespaceMode::Node.into();
    agent.run(request).await.unwrap();
    // The agent, the log writer, init, and for a while the orphan; as a zombie it would still be there.
    eventually(|| agent.process_ids().len() == 4).await;
    eventually(|| agent.process_ids().len() == 3).await;
}

#[tokio::test]
async fn a_container_can_join_the_pid_namespace_of_another() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let target = agent.shell(1, "sleep 4242");
    agent.run(target).await.unwrap();
    let mut request = agent.shell(2, "ps");
    request.pid = NamespaceMode::Target.into();
    request.pid_target = id(1).to_string();
    agent.run(request.clone()).await.unwrap();
    agent.until(2, exited).await;
    assert!(agent.log(2).join("\n").contains("sleep 4242"), "{:?}", agent.log(2));
    request.container_id = id(3).to_string();
    request.pid_target = id(9).to_string();
    assert_eq!(agent.client.create_container(request).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn many_containers_at_once() {
    let mut agent = Agent::with_pod(|pod| pod.pid = NamespaceMode::Pod.into()).await;
    let mut runs = Vec::new();
    for number in 1..=20 {
        let mut request = agent.shell(number, &format!("echo {number}; exit {number}"));
        request.pid = NamespaceMode::Pod.into();
        let mut client = agent.client.clone();
        runs.push(tokio::spawn(async move {
            let container_id = request.container_id.clone();
            client.create_container(request).await?;
            client.start_container(StartContainerRequest { container_id }).await
        }));
    }
    for run in runs {
        run.await.unwrap().unwrap();
    }
    for number in 1..=20 {
        assert_eq!(agent.until(number, exited).await.exit_code, i32::from(number));
        assert_eq!(agent.log(number), [format!("stdout F {number}")]);
    }
    agent.shut_down().await;
    assert_eq!(agent.exit_code().await, 0);
}

#[tokio::test]
async fn limits_change_by_a_child_of_the_agent() {
    let mut agent = Agent::with_pod(|_| {}).await;
    agent.run(agent.shell(1, "sleep 1000")).await.unwrap();
    let update = |number: u8, json: &str, oom_score_adj| UpdateContainerRequest {
        container_id: id(number).to_string(),
        resources_json: json.as_bytes().to_vec(),
        oom_score_adj,
    };
    agent.client.update_container(update(1, r#"{"pids":{"limit":77}}"#, Some(333))).await.unwrap();
    let pid = agent.state(1).await.unwrap().pid;
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap(), "333\n");
    let leaf = format!("{}/{}/pids.max", agent.cgroup(), id(1));
    let trees = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"];
    let limit = trees.iter().find_map(|tree| fs::read_to_string(format!("{tree}{leaf}")).ok());
    assert_eq!(limit.unwrap(), "77\n");
    for (request, code, text) in [
        (update(1, "{", None), Code::InvalidArgument, "resources_json"),
        (update(1, r#"{"cpu":{"period":1}}"#, None), Code::InvalidArgument, "cpu period 1 us"),
        (update(1, r#"{"cpu":{"cpus":"4000"}}"#, None), Code::InvalidArgument, "cpuset.cpus"),
        (update(2, "{}", None), Code::NotFound, "is unknown"),
    ] {
        let error = agent.client.update_container(request).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(text), "{error}");
    }
    signal(&mut agent, 1, 9).await.unwrap();
    agent.until(1, exited).await;
    let error = agent.client.update_container(update(1, "{}", None)).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    agent.shut_down().await;
}
