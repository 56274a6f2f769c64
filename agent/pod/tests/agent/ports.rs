//! Connections to ports of the pod, which in these tests has the network of this machine.

use hartpod_proto::pod::v1::{ConnectRequest, KillExecRequest, WaitExecRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tonic::{Code, Status};

use crate::kit::{Agent, eventually, exec, token};

async fn connect(agent: &mut Agent, port: u16) -> Result<String, Status> {
    let request = ConnectRequest { port: port.into(), token: token() };
    agent.client.connect(request.clone()).await.map(|_| request.token)
}

#[tokio::test]
async fn a_question_and_its_answer() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let token = connect(&mut agent, listener.local_addr().unwrap().port()).await.unwrap();
    let mut client = agent.stream(&token).await;
    let (mut server, _) = listener.accept().await.unwrap();
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = String::new();
    server.read_to_string(&mut heard).await.unwrap();
    server.write_all(b"answer").await.unwrap();
    drop(server);
    client.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "questionanswer");
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_says_so() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let error = connect(&mut agent, port).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    let expected = format!("connect to port {port} of the pod: 127.0.0.1:{port}: connection refused, and ");
    assert!(error.message().starts_with(&expected), "{error}");
    for (port, token) in [(0, token()), (65536, token()), (80, "short".to_owned())] {
        let error = agent.client.connect(ConnectRequest { port, token }).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
}

#[tokio::test]
async fn before_the_pod_is_set_up_it_has_no_ports() {
    let mut agent = Agent::start().await;
    let error = connect(&mut agent, 80).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::FailedPrecondition, "the pod is not set up"));
}

#[tokio::test]
async fn there_is_a_limit_and_what_is_over_makes_room() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(2048).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut clients = Vec::new();
    for _ in 0..1024 {
        let token = connect(&mut agent, port).await.unwrap();
        clients.push(agent.stream(&token).await);
    }
    let error = connect(&mut agent, port).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert_eq!(error.message(), "forwarded connections: the limit of 1024 is reached");
    clients.truncate(1000);
    let begun = std::time::Instant::now();
    while connect(&mut agent, port).await.is_err() {
        assert!(begun.elapsed() < crate::kit::LONG, "what is over takes room");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

/// A client of hundreds of ports at once, and then without any.
#[tokio::test]
async fn a_burst_of_calls_does_not_break_the_connection_that_others_use() {
    let mut agent = Agent::with_pod(|_| {}).await;
    let request = agent.shell(1, "sleep 1000");
    agent.run(request).await.unwrap();
    let other = exec(1, "sleep 1000");
    agent.client.start_exec(other.clone()).await.unwrap();
    let (container_id, exec_id) = (other.container_id, other.exec_id);
    let wait = WaitExecRequest { container_id: container_id.clone(), exec_id: exec_id.clone() };
    let mut client = agent.client.clone();
    let waiting = tokio::spawn(async move { client.wait_exec(wait).await });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = u32::from(listener.local_addr().unwrap().port());
    drop(listener);
    let burst = || {
        let call = |_| {
            let (mut client, request) = (agent.client.clone(), ConnectRequest { port, token: token() });
            tokio::spawn(async move { client.connect(request).await })
        };
        (0..1000).map(call).collect::<Vec<_>>()
    };
    for call in burst() {
        let error = call.await.unwrap().unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    }
    let taken_back = burst();
    eventually(|| taken_back.iter().any(tokio::task::JoinHandle::is_finished)).await;
    for call in taken_back {
        call.abort();
    }
    agent.client.kill_exec(KillExecRequest { container_id, exec_id }).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().get_ref().exit_code, 137);
}
