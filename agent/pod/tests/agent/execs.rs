//! Execs and their streams.

use std::time::{Duration, Instant};

use hartpod_proto::pod::v1::{KillExecRequest, Phase, StartExecRequest, WaitExecRequest, WaitExecResponse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::kit::{Agent, LONG, eventually, exec, id, token};

async fn with_sleeper() -> Agent {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = agent.shell(1, "sleep 1000");
    agent.run(request).await.unwrap();
    agent
}

async fn wait(agent: &mut Agent, request: &StartExecRequest) -> Result<WaitExecResponse, tonic::Status> {
    let request =
        WaitExecRequest { container_id: request.container_id.clone(), exec_id: request.exec_id.clone() };
    agent.client.wait_exec(request).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn streams_and_exit_code() {
    let mut agent = with_sleeper().await;
    let (result, out, err) = agent.exec(1, "cat; echo problem >&2; exit 5", "typed\n").await;
    assert_eq!((result.exit_code, result.timed_out), (5, false));
    assert_eq!((out.as_str(), err.as_str()), ("typed\n", "problem\n"));
}

#[tokio::test]
async fn a_lot_of_output_arrives_whole() {
    let mut agent = with_sleeper().await;
    let (result, out, _) = agent.exec(1, "yes 0123456789 | head -n 1000000", "").await;
    assert_eq!(result.exit_code, 0);
    assert!(out.len() == 11_000_000 && out.ends_with("0123456789\n"), "{}", out.len());
}

#[tokio::test]
async fn a_result_is_there_before_and_after_the_end_and_once() {
    let mut agent = with_sleeper().await;
    let request = exec(1, "exit 9");
    let pid = agent.client.start_exec(request.clone()).await.unwrap().into_inner().pid;
    assert!(pid > 0);
    // The same request again is the same exec.
    assert_eq!(agent.client.start_exec(request.clone()).await.unwrap().into_inner().pid, pid);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(wait(&mut agent, &request).await.unwrap().exit_code, 9);
    assert_eq!(wait(&mut agent, &request).await.unwrap_err().code(), Code::NotFound);
    let request = exec(1, "sleep 0.2; exit 8");
    agent.client.start_exec(request.clone()).await.unwrap();
    assert_eq!(wait(&mut agent, &request).await.unwrap().exit_code, 8);
}

#[tokio::test]
async fn a_timeout_kills_the_whole_tree() {
    let mut agent = with_sleeper().await;
    let request = StartExecRequest { timeout_ms: 200, ..exec(1, "setsid sleep 4242 & sleep 4242") };
    let begun = Instant::now();
    agent.client.start_exec(request.clone()).await.unwrap();
    let result = wait(&mut agent, &request).await.unwrap();
    assert!(result.timed_out && result.exit_code == 137, "{result:?}");
    assert!(begun.elapsed() < Duration::from_secs(2));
    let (_, processes, _) = agent.exec(1, "ps", "").await;
    assert!(!processes.contains("4242"), "{processes}");
    assert_eq!(agent.state(1).await.unwrap().phase(), Phase::Running);
}

async fn kill(agent: &mut Agent, request: &StartExecRequest) -> Result<(), tonic::Status> {
    let request =
        KillExecRequest { container_id: request.container_id.clone(), exec_id: request.exec_id.clone() };
    agent.client.kill_exec(request).await.map(drop)
}

#[tokio::test]
async fn a_killed_exec_ends_with_all_that_it_began() {
    let mut agent = with_sleeper().await;
    let request = StartExecRequest {
        stdout_token: token(),
        ..exec(1, "setsid sleep 4243 & (trap '' TERM; sleep 4243) & echo begun; sleep 4243")
    };
    agent.client.start_exec(request.clone()).await.unwrap();
    let mut out = agent.stream(&request.stdout_token).await;
    let mut begun = [0; 6];
    out.read_exact(&mut begun).await.unwrap();
    kill(&mut agent, &request).await.unwrap();
    assert_eq!(out.read(&mut [0]).await.unwrap(), 0);
    // Over, but not forgotten; then unknown.
    kill(&mut agent, &request).await.unwrap();
    let result = wait(&mut agent, &request).await.unwrap();
    assert!(!result.timed_out && result.exit_code == 137, "{result:?}");
    kill(&mut agent, &request).await.unwrap();
    let (_, processes, _) = agent.exec(1, "ps", "").await;
    assert!(!processes.contains("4243"), "{processes}");
    assert_eq!(agent.state(1).await.unwrap().phase(), Phase::Running);
    agent.remove(1).await.unwrap();
    kill(&mut agent, &request).await.unwrap();
}

#[tokio::test]
async fn an_exec_that_is_killed_while_it_starts_leaves_nothing() {
    let mut agent = with_sleeper().await;
    for _ in 0..20 {
        let request = exec(1, "exec sleep 4244");
        let (mut client, started) = (agent.client.clone(), request.clone());
        let starting = tokio::spawn(async move { client.start_exec(started).await });
        // Known, and still on its way as a rule.
        while wait_is_for_nothing(&mut agent, &request).await {}
        kill(&mut agent, &request).await.unwrap();
        match starting.await.unwrap() {
            Ok(_) => assert_eq!(wait(&mut agent, &request).await.unwrap().exit_code, 137),
            Err(error) => assert_eq!(error.code(), Code::Aborted, "{error}"),
        }
    }
    let (_, processes, _) = agent.exec(1, "ps", "").await;
    assert!(!processes.contains("4244"), "{processes}");
    let leaves = agent.cgroups().into_iter().map(|parent| parent.join(id(1).to_string()));
    let leaves: Vec<_> = leaves.filter(|leaf| leaf.is_dir()).collect();
    eventually(|| leaves.iter().all(|leaf| !has_sub_leaf(leaf))).await;
}

/// Whether the agent knows nothing of the exec (yet).
async fn wait_is_for_nothing(agent: &mut Agent, request: &StartExecRequest) -> bool {
    match tokio::time::timeout(Duration::from_millis(1), wait(agent, request)).await {
        Ok(Err(error)) => error.code() == Code::NotFound,
        _ => false,
    }
}

fn has_sub_leaf(leaf: &std::path::Path) -> bool {
    let entries = std::fs::read_dir(leaf).unwrap().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("exec-"))
}

#[tokio::test]
async fn what_an_exec_leaves_in_the_background_runs_on_and_does_not_hold_it() {
    let mut agent = with_sleeper().await;
    let begun = Instant::now();
    let (result, out, _) = agent.exec(1, "sleep 4242 & echo begun", "").await;
    assert_eq!((result.exit_code, out.as_str()), (0, "begun\n"));
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(4), "{took:?}");
    let (_, processes, _) = agent.exec(1, "ps", "").await;
    assert!(processes.contains("sleep 4242"), "{processes}");
}

#[tokio::test]
async fn the_timeout_is_not_that_of_what_an_exec_leaves_in_the_background() {
    let mut agent = with_sleeper().await;
    let request = StartExecRequest {
        stdout_token: token(),
        timeout_ms: 500,
        ..exec(1, "echo begun; sleep 4243 & exit 3")
    };
    agent.client.start_exec(request.clone()).await.unwrap();
    let mut stdout = agent.stream(&request.stdout_token).await;
    let mut said = String::new();
    // Its silence is longer than the timeout.
    let read = tokio::time::timeout(LONG, stdout.read_to_string(&mut said)).await;
    read.expect("the output never ended").unwrap();
    assert_eq!(said, "begun\n");
    let result = wait(&mut agent, &request).await.unwrap();
    assert_eq!((result.exit_code, result.timed_out), (3, false));
    let (_, processes, _) = agent.exec(1, "ps", "").await;
    assert!(processes.contains("sleep 4243"), "{processes}");
}

/// As those of a daemon that was killed.
#[tokio::test]
async fn an_exec_that_everybody_has_left_is_killed_and_no_other() {
    let mut agent = with_sleeper().await;
    let streams = |request| StartExecRequest {
        stdin_token: token(),
        stdout_token: token(),
        stderr_token: token(),
        ..request
    };
    let awaited = streams(exec(1, "exec sleep 4001"));
    let listened_to = streams(exec(1, "exec sleep 4002"));
    let left = streams(exec(1, "setsid sleep 4003 & exec sleep 4004"));
    // The process reads none of its input, so that there is always some.
    let full = streams(exec(1, "exec sleep 4005"));
    let deaf = StartExecRequest { stdin_token: token(), ..exec(1, "cat; exec sleep 4006") };
    let ended = StartExecRequest { stdout_token: token(), ..exec(1, "exec sleep 4007 > /dev/null 2>&1") };
    let mut kept = Vec::new();
    for request in [&awaited, &listened_to, &left, &full, &deaf, &ended] {
        agent.client.start_exec(request.clone()).await.unwrap();
    }
    let (mut client, wanted) = (agent.client.clone(), awaited.clone());
    let waiting = tokio::spawn(async move {
        let request = WaitExecRequest { container_id: wanted.container_id, exec_id: wanted.exec_id };
        client.wait_exec(request).await
    });
    kept.push(agent.stream(&listened_to.stderr_token).await);
    // The process has ended its only stream itself.
    kept.push(agent.stream(&ended.stdout_token).await);
    for request in [&awaited, &listened_to, &left, &full, &deaf] {
        let mut stdin = agent.stream(&request.stdin_token).await;
        if request.exec_id == full.exec_id {
            stdin.write_all(&[b'x'; 100_000]).await.unwrap();
        }
        stdin.shutdown().await.unwrap();
        if request.exec_id != deaf.exec_id {
            agent.stream(&request.stdout_token).await;
        }
        if ![&listened_to.exec_id, &deaf.exec_id].contains(&&request.exec_id) {
            agent.stream(&request.stderr_token).await;
        }
    }
    let begun = Instant::now();
    loop {
        let (_, processes, _) = agent.exec(1, "ps", "").await;
        let runs = |seconds: u32| processes.contains(&format!("sleep {seconds}"));
        if ![4003, 4004, 4005, 4006].into_iter().any(runs) {
            assert!([4001, 4002, 4007].into_iter().all(runs), "{processes}");
            break;
        }
        assert!(begun.elapsed() < LONG, "{processes}");
    }
    assert_eq!(wait(&mut agent, &left).await.unwrap().exit_code, 137);
    assert!(!waiting.is_finished());
    // Nobody is left for it when its last caller has hung up.
    waiting.abort();
    while agent.exec(1, "ps", "").await.1.contains("sleep 4001") {
        assert!(begun.elapsed() < LONG, "an exec runs on without anybody");
    }
}

#[tokio::test]
async fn output_that_nobody_fetches_does_not_block() {
    let mut agent = with_sleeper().await;
    let request = StartExecRequest { stdout_token: token(), ..exec(1, "yes | head -c 1000000") };
    agent.client.start_exec(request.clone()).await.unwrap();
    assert_eq!(wait(&mut agent, &request).await.unwrap().exit_code, 0);
    // Its token is worth nothing any more.
    let mut late = agent.stream(&request.stdout_token).await;
    assert_eq!(late.read(&mut [0]).await.unwrap_or_default(), 0);
}

#[tokio::test]
async fn a_command_that_is_missing_is_named() {
    let mut agent = with_sleeper().await;
    let request = StartExecRequest { args: vec!["foo".to_owned()], ..exec(1, "") };
    let error = agent.client.start_exec(request.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().ends_with("exec \"foo\": no such file in $PATH"), "{error}");
    assert_eq!(wait(&mut agent, &request).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_terminal_carries_everything_on_stdout() {
    let mut agent = with_sleeper().await;
    let request = StartExecRequest {
        tty: true,
        stdout_token: token(),
        ..exec(1, "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo out && echo err >&2")
    };
    agent.client.start_exec(request.clone()).await.unwrap();
    let mut out = String::new();
    agent.stream(&request.stdout_token).await.read_to_string(&mut out).await.unwrap();
    assert_eq!(out, "out\r\nerr\r\n");
    assert_eq!(wait(&mut agent, &request).await.unwrap().exit_code, 0);
}

#[tokio::test]
async fn only_running_containers_take_execs() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let error = agent.client.start_exec(exec(1, "true")).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    let request = agent.shell(1, "exit 0");
    agent.client.create_container(request).await.unwrap();
    let error = agent.client.start_exec(exec(1, "true")).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert_eq!(error.message(), format!("container {} is created and not started", id(1)));
}

#[tokio::test]
async fn the_end_of_the_container_ends_its_execs() {
    let mut agent = with_sleeper().await;
    let request = exec(1, "sleep 1000");
    agent.client.start_exec(request.clone()).await.unwrap();
    let (mut waiter, awaited) = (agent.client.clone(), request.clone());
    let waiting = tokio::spawn(async move {
        let request = WaitExecRequest { container_id: awaited.container_id, exec_id: awaited.exec_id };
        waiter.wait_exec(request).await
    });
    agent.remove(1).await.unwrap();
    // Whichever of the two calls was first, the wait ends.
    match waiting.await.unwrap() {
        Ok(result) => assert_eq!(result.get_ref().exit_code, 137),
        Err(error) => assert!([Code::Aborted, Code::NotFound].contains(&error.code()), "{error}"),
    }
}

#[tokio::test]
async fn many_at_once() {
    let mut agent = with_sleeper().await;
    let requests: Vec<_> = (0..40).map(|n| exec(1, &format!("exit {n}"))).collect();
    let starts = requests.iter().map(|request| {
        let (mut client, request) = (agent.client.clone(), request.clone());
        tokio::spawn(async move { client.start_exec(request).await })
    });
    for start in starts.collect::<Vec<_>>() {
        start.await.unwrap().unwrap();
    }
    for (n, request) in (0..40).zip(&requests) {
        assert_eq!(wait(&mut agent, request).await.unwrap().exit_code, n);
    }
}

/// `cargo test -p hartpod-pod --release --test agent how_fast -- --ignored --nocapture`
#[tokio::test]
#[ignore = "measures"]
async fn how_fast_output_flows() {
    use std::io::Read as _;

    const TOTAL: usize = 4 << 30;
    let mut agent = with_sleeper().await;
    for block in ["4k", "64k", "1M"] {
        let count = TOTAL
            / if block == "4k" {
                4 << 10
            } else if block == "64k" {
                64 << 10
            } else {
                1 << 20
            };
        let script = format!("exec dd if=/dev/zero bs={block} count={count} 2>/dev/null");
        let request = StartExecRequest { stdout_token: token(), ..exec(1, &script) };
        let (begun, ticks_before) = (Instant::now(), ticks(agent.process.pid));
        agent.client.start_exec(request.clone()).await.unwrap();
        let mut stdout = agent.stream(&request.stdout_token).await.into_std().unwrap();
        stdout.set_nonblocking(false).unwrap();
        let reader = tokio::task::spawn_blocking(move || {
            let (mut chunk, mut total) = (vec![0; 1 << 20], 0);
            loop {
                match stdout.read(&mut chunk).unwrap() {
                    0 => return total,
                    count => total += count,
                }
            }
        });
        assert_eq!(reader.await.unwrap(), TOTAL);
        let took = begun.elapsed();
        let speed = TOTAL as f64 / f64::from(1 << 20) / took.as_secs_f64();
        let ticks = ticks(agent.process.pid) - ticks_before;
        println!("writes of {block}: {speed:.0} MiB/s, {ticks} ticks of the agent");
        assert_eq!(wait(&mut agent, &request).await.unwrap().exit_code, 0);
    }
}

/// The processor time of a process, as a rule in hundredths of a second.
fn ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
