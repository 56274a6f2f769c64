//! Attaching to a container.

use std::time::Duration;

use hartpod_proto::pod::v1::{AttachRequest, CreateContainerRequest, Phase, StartContainerRequest};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tonic::{Code, Status};

use crate::kit::{Agent, LONG, eventually, id, token};

fn exited(state: &hartpod_proto::pod::v1::ContainerState) -> bool {
    state.phase() == Phase::Exited
}

/// Whom to attach: to stdin, stdout, stderr.
fn wanted(number: u8, [stdin, stdout, stderr]: [bool; 3]) -> AttachRequest {
    let token = |wanted: bool| if wanted { token() } else { String::new() };
    AttachRequest {
        container_id: id(number).to_string(),
        stdin_token: token(stdin),
        stdout_token: token(stdout),
        stderr_token: token(stderr),
    }
}

async fn attach(agent: &mut Agent, request: &AttachRequest) -> Result<(), Status> {
    agent.client.attach(request.clone()).await.map(drop)
}

/// Attached to stdout.
async fn listen(agent: &mut Agent) -> BufReader<UnixStream> {
    let request = wanted(1, [false, true, false]);
    attach(agent, &request).await.unwrap();
    BufReader::new(agent.stream(&request.stdout_token).await)
}

/// Attached to stdin.
async fn speak(agent: &mut Agent) -> UnixStream {
    let request = wanted(1, [true, false, false]);
    attach(agent, &request).await.unwrap();
    agent.stream(&request.stdin_token).await
}

async fn line(stream: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    let read = tokio::time::timeout(LONG, stream.read_line(&mut line)).await;
    read.expect("there is no line").unwrap();
    line
}

async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(LONG, stream.read_to_end(&mut rest)).await;
    read.expect("the stream does not end").unwrap();
    rest
}

fn with_stdin(request: CreateContainerRequest) -> CreateContainerRequest {
    CreateContainerRequest { stdin: true, ..request }
}

/// Both with a log, which its writer copies, and without one, where the agent itself does.
fn ways(agent: &Agent, script: &str) -> [CreateContainerRequest; 2] {
    let logged = with_stdin(agent.shell(1, script));
    [logged.clone(), CreateContainerRequest { log_path: String::new(), ..with_stdin(agent.shell(2, script)) }]
}

#[tokio::test]
async fn attachers_see_all_from_their_call_on_and_the_log_has_it_too() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let script = "echo begun; read line; echo got $line; echo problem >&2; echo -n last";
    for request in ways(&agent, script) {
        let number = if request.log_path.is_empty() { 2 } else { 1 };
        agent.client.create_container(request).await.unwrap();
        let (first, second) = (wanted(number, [true, true, true]), wanted(number, [false, true, false]));
        attach(&mut agent, &first).await.unwrap();
        let start = StartContainerRequest { container_id: id(number).to_string() };
        agent.client.start_container(start).await.unwrap();
        // It has said something by now, and nobody was there to hear it.
        let mut early = BufReader::new(agent.stream(&first.stdout_token).await);
        assert_eq!(line(&mut early).await, "begun\n");
        attach(&mut agent, &second).await.unwrap();
        let mut late = agent.stream(&second.stdout_token).await;
        let mut errors = agent.stream(&first.stderr_token).await;
        agent.stream(&first.stdin_token).await.write_all(b"it\n").await.unwrap();
        assert_eq!(rest(&mut early).await, b"got it\nlast");
        assert_eq!(rest(&mut late).await, b"got it\nlast");
        assert_eq!(rest(&mut errors).await, b"problem\n");
        assert_eq!(agent.until(number, exited).await.exit_code, 0);
        if number == 1 {
            let mut log = agent.log(1);
            log.sort();
            assert_eq!(log, ["stderr F problem", "stdout F begun", "stdout F got it", "stdout P last"]);
        }
        let error = attach(&mut agent, &wanted(number, [false, true, false])).await.unwrap_err();
        assert_eq!(
            (error.code(), error.message()),
            (Code::FailedPrecondition, &*format!("container {} is exited", id(number)))
        );
    }
}

#[tokio::test]
async fn an_attacher_that_lags_behind_holds_nobody_and_gets_what_was_kept() {
    let mut agent = Agent::with_pod(|_| {}).await;
    for request in ways(&agent, "for n in $(seq 20); do read line; yes 0123456 | head -c 400000; done") {
        let number = if request.log_path.is_empty() { 2 } else { 1 };
        agent.run(request).await.unwrap();
        let (slow, quick) = (wanted(number, [false, true, false]), wanted(number, [true, true, false]));
        for request in [&slow, &quick] {
            attach(&mut agent, request).await.unwrap();
        }
        let mut slow = agent.stream(&slow.stdout_token).await;
        let mut stdout = agent.stream(&quick.stdout_token).await;
        let mut stdin = agent.stream(&quick.stdin_token).await;
        // Nobody waits for the one that does not read, and the one that does loses nothing.
        for _ in 0..20 {
            stdin.write_all(b"\n").await.unwrap();
            let mut piece = vec![0; 400_000];
            let read = tokio::time::timeout(LONG, stdout.read_exact(&mut piece)).await;
            read.expect("it waits").unwrap();
            assert!(piece.starts_with(b"0123456\n0") && piece.ends_with(b"0123456\n"));
        }
        assert!(rest(&mut stdout).await.is_empty());
        assert_eq!(agent.until(number, exited).await.exit_code, 0);
        let kept = rest(&mut slow).await.len();
        assert!((1 << 20..3 << 20).contains(&kept), "{kept}");
        if number == 1 {
            assert_eq!(agent.log(1).len(), 1_000_000);
        }
    }
}

#[tokio::test]
async fn an_attacher_that_lagged_behind_is_told_what_was_left_out_and_goes_on() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let script =
        "read l; yes 0123456 | head -c 5000000; echo >/tmp/over; while read l; do echo said $l; done";
    let request = with_stdin(agent.shell(1, script));
    agent.run(request).await.unwrap();
    let mut stdin = speak(&mut agent).await;
    let mut stdout = listen(&mut agent).await;
    stdin.write_all(b"\n").await.unwrap();
    while agent.exec(1, "cat /tmp/over", "").await.1.is_empty() {}
    eventually(|| agent.log(1).len() == 625_000).await;
    let (mut kept, mut left_out) = (1 << 20, 0);
    stdout.read_exact(&mut vec![0; kept]).await.unwrap();
    stdin.write_all(b"on\n").await.unwrap();
    loop {
        let line = line(&mut stdout).await;
        match line.strip_prefix("[hartpod: ").and_then(|mark| mark.split_once(' ')) {
            Some((count, "bytes of output left out: the client is too far behind]\r\n")) => {
                left_out += count.parse::<usize>().unwrap();
            }
            _ if line == "said on\n" => break,
            _ => kept += line.trim_end_matches("\r\n").len(),
        }
    }
    assert_eq!(left_out, 5_000_000 - kept);
}

#[tokio::test]
async fn stdin_stays_open_from_attacher_to_attacher() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = with_stdin(agent.shell(1, "while read line; do echo got $line; done"));
    agent.run(request).await.unwrap();
    let mut output = listen(&mut agent).await;
    for word in ["one", "two"] {
        let mut input = speak(&mut agent).await;
        input.write_all(format!("{word}\n").as_bytes()).await.unwrap();
        input.shutdown().await.unwrap();
        assert_eq!(line(&mut output).await, format!("got {word}\n"));
        assert!(rest(&mut input).await.is_empty());
    }
    assert_eq!(agent.state(1).await.unwrap().phase(), Phase::Running);
}

#[tokio::test]
async fn stdin_once_ends_with_the_input_of_an_attacher() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = CreateContainerRequest {
        stdin_once: true,
        ..with_stdin(agent.shell(1, "cat; echo over; sleep 1000"))
    };
    agent.run(request).await.unwrap();
    let mut output = listen(&mut agent).await;
    let mut other = speak(&mut agent).await;
    let mut input = speak(&mut agent).await;
    input.write_all(b"text\n").await.unwrap();
    assert_eq!(line(&mut output).await, "text\n");
    input.shutdown().await.unwrap();
    assert_eq!(line(&mut output).await, "over\n");
    // Nor can anybody else feed it any more.
    assert!(rest(&mut other).await.is_empty());
    let error = attach(&mut agent, &wanted(1, [true, true, false])).await.unwrap_err();
    let message = format!("container {} has no stdin that is open", id(1));
    assert_eq!((error.code(), error.message()), (Code::FailedPrecondition, &*message));
}

#[tokio::test]
async fn of_an_output_that_has_ended_nothing_comes() {
    let mut agent = Agent::with_pod(|_| {}).await;
    for request in ways(&agent, "echo said; exec >&- 2>&-; echo waits >/tmp/waits; read line") {
        let number = if request.log_path.is_empty() { 2 } else { 1 };
        agent.run(request).await.unwrap();
        while agent.exec(number, "cat /tmp/waits", "").await.1.is_empty() {}
        let request = wanted(number, [true, true, true]);
        // While the log writer ends, nobody can tell whether it will be back.
        while let Err(error) = attach(&mut agent, &request).await {
            assert!(error.message().ends_with("the log writer has ended"), "{error}");
        }
        for token in [&request.stdout_token, &request.stderr_token] {
            assert!(rest(&mut agent.stream(token).await).await.is_empty());
        }
        agent.stream(&request.stdin_token).await.write_all(b"\n").await.unwrap();
        assert_eq!(agent.until(number, exited).await.exit_code, 0);
    }
}

#[tokio::test]
async fn attachers_that_make_no_sense_are_refused() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let error = attach(&mut agent, &wanted(1, [false, true, false])).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    let request = agent.shell(1, "sleep 1000");
    agent.run(request).await.unwrap();
    let error = attach(&mut agent, &wanted(1, [false; 3])).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let error = attach(&mut agent, &wanted(1, [true, true, false])).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    let twice = wanted(1, [false, true, false]);
    attach(&mut agent, &twice).await.unwrap();
    let error = attach(&mut agent, &twice).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn attachers_that_have_gone_make_room_for_others() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = with_stdin(agent.shell(1, "sleep 1000"));
    agent.run(request).await.unwrap();
    let mut attached = Vec::new();
    for _ in 0..16 {
        let request = wanted(1, [true, true, true]);
        attach(&mut agent, &request).await.unwrap();
        let mut connections = Vec::new();
        for token in [&request.stdin_token, &request.stdout_token, &request.stderr_token] {
            connections.push(agent.stream(token).await);
        }
        attached.push(connections);
    }
    let error = attach(&mut agent, &wanted(1, [false, true, false])).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert_eq!(error.message(), "attachers of the container: the limit of 16 is reached");
    // One that only says that it will say no more is still there.
    for connection in attached.last_mut().unwrap() {
        connection.shutdown().await.unwrap();
    }
    let begun = std::time::Instant::now();
    let error = attach(&mut agent, &wanted(1, [false, true, false])).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    drop(attached.pop());
    while attach(&mut agent, &wanted(1, [false, true, false])).await.is_err() {
        assert!(begun.elapsed() < LONG, "who has gone still takes room");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn the_log_writer_after_one_that_died_goes_on_for_its_attachers_and_takes_new_ones() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = with_stdin(agent.shell(1, "while read line; do echo got $line; done"));
    agent.run(request).await.unwrap();
    let mut before = listen(&mut agent).await;
    let writers = || {
        let ids = agent.process_ids().into_iter();
        let is_writer = |pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "hartpod-log\n")
        };
        ids.filter(is_writer).collect::<Vec<_>>()
    };
    let writer = writers()[0];
    kill_process(Pid::from_raw(writer).unwrap(), Signal::KILL).unwrap();
    // Said while there is no writer.
    speak(&mut agent).await.write_all(b"on\n").await.unwrap();
    assert_eq!(line(&mut before).await, "got on\n");
    let mut after = listen(&mut agent).await;
    speak(&mut agent).await.write_all(b"and on\n").await.unwrap();
    for attached in [&mut before, &mut after] {
        assert_eq!(line(attached).await, "got and on\n");
    }
}
