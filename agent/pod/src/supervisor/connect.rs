//! Calls for connections to the pod's ports.

use std::sync::Arc;

use hartpod_proto::pod::v1::{ConnectRequest, ConnectResponse};

use super::Supervisor;
use super::execs::expect;
use crate::call::{CallError, Reply};
use crate::request::{self, InvalidRequest};
use crate::stream::{Forward, InvalidToken};

/// Forwarded connections at one time. Each holds at most two chunks of 16 KiB, when both of its ends are slow.
pub(super) const FORWARDS_MAX: usize = 1024;

impl Supervisor {
    pub(super) fn connect(&mut self, request: ConnectRequest, reply: Reply<ConnectResponse>) {
        let mut reply = Some(reply);
        if let Err(error) = self.begin_connect(&request, &mut reply) {
            if let Some(reply) = reply {
                let _ = reply.send(Err(error));
            }
        }
    }

    /// Takes the reply if it is to be given later.
    fn begin_connect(
        &mut self,
        request: &ConnectRequest,
        reply: &mut Option<Reply<ConnectResponse>>,
    ) -> Result<(), CallError> {
        // The pod's network is the agent's own from then on.
        self.is_set_up()?;
        let port = request::port(request.port)?;
        let no_token = |source| InvalidRequest::Token { stream: "connect", source };
        let token = request.token.parse().map_err(no_token)?;
        let too_many = CallError::TooMany { what: "forwarded connections", limit: FORWARDS_MAX };
        let room = Arc::clone(&self.forwards).try_acquire_owned().map_err(|_| too_many)?;
        let [expected] = expect(&self.tokens, [Some(token)], ["connect"])?;
        let expected = expected.ok_or(no_token(InvalidToken::Format))?;
        let Some(mut reply) = reply.take() else { return Ok(()) };
        tokio::spawn(async move {
            let connected = tokio::select! {
                connected = Forward::connect(port) => connected,
                // Nobody would come for it.
                () = reply.closed() => return,
            };
            match connected {
                Ok(forward) => {
                    let _ = reply.send(Ok(ConnectResponse {}));
                    forward.relay(expected).await;
                }
                Err(source) => drop(reply.send(Err(CallError::Connect { port, source }))),
            }
            drop(room);
        });
        Ok(())
    }
}
