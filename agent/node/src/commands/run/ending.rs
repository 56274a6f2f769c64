//! Asking a container to end.

use std::io::{IsTerminal as _, Write as _};

use anyhow::Context as _;
use hartpod_proto::cri::v1 as cri;
use tokio::task::JoinSet;

use super::super::client::Client;

/// Seconds between asking a container to stop and killing it; a second Ctrl-C kills at once.
const GRACE_S: i64 = 10;

/// How far the asking has come.
#[derive(Debug)]
pub(super) struct Ending {
    client: Client,
    container: String,
    grace: i64,
    calls: JoinSet<anyhow::Result<()>>,
}

impl Ending {
    pub(super) fn new(client: Client, container: String) -> Self {
        Self { client, container, grace: GRACE_S, calls: JoinSet::new() }
    }

    /// Somebody wants it to end: first it is asked to, then it is killed.
    pub(super) fn ask(&mut self) {
        if self.grace > 0 {
            // The terminal may be raw: its lines do not begin at the left by themselves.
            let end = if std::io::stderr().is_terminal() { "\r\n" } else { "\n" };
            let _ =
                write!(std::io::stderr(), "hartpod: asking the container to end; once more kills it{end}");
        }
        self.call();
        self.grace = 0;
    }

    /// Makes it end, unless that is under way.
    pub(super) fn begin(&mut self) {
        if self.calls.is_empty() {
            self.call();
        }
    }

    fn call(&mut self) {
        let request = cri::StopContainerRequest { container_id: self.container.clone(), timeout: self.grace };
        let client = self.client.clone();
        self.calls.spawn(async move {
            client.stop_container(request).await.context("stop the container")?;
            Ok(())
        });
    }

    /// The answer to a call; waits for ever when there is none to come.
    pub(super) async fn asked(&mut self) -> anyhow::Result<()> {
        match self.calls.join_next().await {
            Some(asked) => asked?,
            None => std::future::pending().await,
        }
    }
}
