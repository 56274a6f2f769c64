//! Terminals of containers and execs.

use hartpod_proto::pod::v1::{
    AttachRequest, CreateContainerRequest, Phase, ResizeTerminalRequest, StartExecRequest, Stdio,
    WaitExecRequest,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::{Code, Status};

use crate::kit::{Agent, LONG, exec, id, token};

/// A container that runs `script` on a terminal, which attachers may feed.
fn on_terminal(agent: &Agent, number: u8, script: &str, size: &str) -> CreateContainerRequest {
    let request = agent.shell(number, script);
    let spec = String::from_utf8(request.spec_json).unwrap();
    let process = format!(r#""process":{{"terminal":true,{size}"#);
    CreateContainerRequest {
        spec_json: spec.replace(r#""process":{"#, &process).into_bytes(),
        stdio: Some(Stdio { tty: true, ..Stdio::default() }),
        stdin: true,
        ..request
    }
}

fn attachment(number: u8) -> AttachRequest {
    AttachRequest {
        container_id: id(number).to_string(),
        stdin_token: token(),
        stdout_token: token(),
        ..AttachRequest::default()
    }
}

/// Attached to the terminal: what types, and what shows.
async fn attach(agent: &mut Agent, number: u8) -> (UnixStream, UnixStream) {
    let request = attachment(number);
    agent.client.attach(request.clone()).await.unwrap();
    (agent.stream(&request.stdin_token).await, agent.stream(&request.stdout_token).await)
}

/// Reads until `text` was shown.
async fn shown(screen: &mut UnixStream, text: &str) -> String {
    let mut seen = String::new();
    let looking = async {
        while !seen.contains(text) {
            let mut chunk = [0; 512];
            let count = screen.read(&mut chunk).await.unwrap();
            assert!(count > 0, "the screen went dark after {seen:?}");
            seen.push_str(std::str::from_utf8(&chunk[..count]).unwrap());
        }
    };
    let looked = tokio::time::timeout(LONG, looking).await;
    assert!(looked.is_ok(), "{text:?} was never shown: {seen:?}");
    seen
}

async fn resize(agent: &mut Agent, number: u8, exec: &str, columns: u32, rows: u32) -> Result<(), Status> {
    let request = ResizeTerminalRequest {
        container_id: id(number).to_string(),
        exec_id: exec.to_owned(),
        columns,
        rows,
    };
    agent.client.resize_terminal(request).await.map(drop)
}

#[tokio::test]
async fn an_attacher_types_on_the_terminal_and_sees_it() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let script =
        "stty size; trap 'stty size' WINCH; while [ \"$line\" != bye ]; do read line; echo got $line; done";
    for (number, log_path) in [(1, "c/1.log"), (2, "")] {
        let size = r#""consoleSize":{"width":100,"height":30},"#;
        let request = on_terminal(&agent, number, script, size);
        let request = CreateContainerRequest { log_path: log_path.to_owned(), ..request };
        agent.client.create_container(request.clone()).await.unwrap();
        let (mut keyboard, mut screen) = attach(&mut agent, number).await;
        agent.run(request).await.unwrap();
        shown(&mut screen, "30 100\r\n").await;
        keyboard.write_all(b"it\r").await.unwrap();
        shown(&mut screen, "got it\r\n").await;
        resize(&mut agent, number, "", 120, 40).await.unwrap();
        shown(&mut screen, "40 120\r\n").await;
        // A terminal has no end of input but what is typed.
        keyboard.shutdown().await.unwrap();
        let (mut keyboard, mut other) = attach(&mut agent, number).await;
        keyboard.write_all(b"bye\r").await.unwrap();
        let ended = agent.until(number, |state| state.phase() == Phase::Exited).await;
        assert_eq!(ended.exit_code, 0);
        for screen in [&mut screen, &mut other] {
            screen.read_to_end(&mut Vec::new()).await.unwrap();
        }
    }
    let log = agent.log(1);
    let at = |text: &str| log.iter().position(|line| line == text);
    assert!(at("stdout F 30 100") < at("stdout F got it") && at("stdout F 30 100").is_some(), "{log:?}");
    assert!(log.iter().all(|line| line.starts_with("stdout ")), "{log:?}");
}

#[tokio::test]
async fn a_terminal_that_is_closed_and_opened_again_goes_on() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let script = "echo one; exec </dev/null >/dev/null 2>&1; sleep 0.3; exec >/dev/console; echo two";
    let request = on_terminal(&agent, 1, script, "");
    agent.run(request).await.unwrap();
    let ended = agent.until(1, |state| state.phase() == Phase::Exited).await;
    assert_eq!((ended.exit_code, ended.message.as_str()), (0, ""));
    assert_eq!(agent.log(1), ["stdout F one", "stdout F two"]);
}

#[tokio::test]
async fn an_execs_terminal_has_the_size_that_it_is_told() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = agent.shell(1, "sleep 1000");
    agent.run(request).await.unwrap();
    let request = StartExecRequest {
        tty: true,
        columns: 132,
        rows: 43,
        stdin_token: token(),
        stdout_token: token(),
        ..exec(1, "stty size; echo $TERM; read line; stty size; exit 3")
    };
    let exec_id = request.exec_id.clone();
    agent.client.start_exec(request.clone()).await.unwrap();
    let mut keyboard = agent.stream(&request.stdin_token).await;
    let mut screen = agent.stream(&request.stdout_token).await;
    shown(&mut screen, "43 132\r\nxterm\r\n").await;
    resize(&mut agent, 1, &exec_id, 90, 20).await.unwrap();
    keyboard.write_all(b"\r").await.unwrap();
    shown(&mut screen, "20 90\r\n").await;
    let wait = WaitExecRequest { container_id: id(1).to_string(), exec_id: exec_id.clone() };
    assert_eq!(agent.client.wait_exec(wait).await.unwrap().into_inner().exit_code, 3);
    assert_eq!(resize(&mut agent, 1, &exec_id, 90, 20).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn only_terminals_have_a_size() {
    let mut agent = Agent::with_pod(|_| {}).await;
    assert_eq!(resize(&mut agent, 1, "", 80, 24).await.unwrap_err().code(), Code::NotFound);
    let request = agent.shell(1, "sleep 1000");
    agent.run(request).await.unwrap();
    let error = resize(&mut agent, 1, "", 80, 24).await.unwrap_err();
    let message = format!("container {} has no terminal", id(1));
    assert_eq!((error.code(), error.message()), (Code::FailedPrecondition, &*message));
    let request = exec(1, "sleep 1000");
    agent.client.start_exec(request.clone()).await.unwrap();
    let error = resize(&mut agent, 1, &request.exec_id, 80, 24).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    let error = resize(&mut agent, 1, "", 65536, 24).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_terminal_has_no_stderr() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = on_terminal(&agent, 1, "sleep 1000", "");
    agent.run(request).await.unwrap();
    let request = AttachRequest { stderr_token: token(), ..attachment(1) };
    assert_eq!(agent.client.attach(request).await.unwrap_err().code(), Code::InvalidArgument);
}
