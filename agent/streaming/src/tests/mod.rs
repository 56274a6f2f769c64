//! The whole server over real sockets, with a runtime in memory and clients that speak byte by byte what Kubernetes' do.

mod channels;
mod commands;
mod hostile;
mod http;
mod machine;
mod pace;
mod ports;
mod spdy_client;
mod tls;
mod turns;
mod websocket_client;

use std::sync::Arc;
use std::time::Duration;

use machine::Machine;

use crate::{AttachRequest, Config, ExecRequest, PortForwardRequest, Server, Streams, Url};

/// Nothing here takes so long unless it hangs.
const HANG: Duration = Duration::from_secs(100);

const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true, tty: false };
const OUTPUT: Streams = Streams { stdin: false, stdout: true, stderr: false, tty: false };
const TERMINAL: Streams = Streams { stdin: true, stdout: true, stderr: false, tty: true };

/// A server and what it runs.
struct Lab {
    server: Server,
    machine: Arc<Machine>,
}

impl Lab {
    async fn new() -> Self {
        Self::with(Config::default()).await
    }

    async fn with(config: Config) -> Self {
        let machine = Arc::new(Machine::default());
        let server = Server::bind(config, Arc::clone(&machine) as _).await.unwrap();
        Self { server, machine }
    }

    fn exec(&self, cmd: &[&str], streams: Streams) -> Url {
        let cmd = cmd.iter().map(|word| (*word).to_owned()).collect();
        self.server.exec(ExecRequest { container_id: "box".to_owned(), cmd, streams }).unwrap()
    }

    fn attach(&self, container_id: &str, streams: Streams) -> Url {
        self.server.attach(AttachRequest { container_id: container_id.to_owned(), streams }).unwrap()
    }

    fn port_forward(&self, ports: &[i32]) -> Url {
        let request = PortForwardRequest { sandbox_id: "pod".to_owned(), ports: ports.to_vec() };
        self.server.port_forward(request).unwrap()
    }
}

/// Waits for something that has to come true.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + HANG;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Fails a test that hangs.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(HANG, future).await.expect("it hangs")
}

/// Bytes that differ, and are the same each time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(length).collect()
}
