//! Exec, Attach and PortForward: a URL each, which is good once; what it comes to is opened when its client is there.

use hartpod_proto::cri::v1 as cri;
use hartpod_streaming::{AttachRequest, ExecRequest, PortForwardRequest, Streams, Url};
use tonic::Status;

use super::Server;
use crate::container::{ExecError, ExecTarget};
use crate::status_code::status;

impl Server {
    /// That the container runs is looked at twice: now, to tell the caller, and when the client comes.
    pub(super) fn exec_url(&self, request: cri::ExecRequest) -> Result<Url, Status> {
        let streams = Streams {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            tty: request.tty,
        };
        let target = ExecTarget::running(&self.node, &request.container_id).map_err(|e| status(&e))?;
        if request.cmd.is_empty() {
            return Err(status(&ExecError::NoCommand { container: target.container }));
        }
        let container_id = target.container.to_string();
        let request = ExecRequest { container_id, cmd: request.cmd, streams };
        self.streaming.exec(request).map_err(|e| status(&e))
    }

    pub(super) fn attach_url(&self, request: &cri::AttachRequest) -> Result<Url, Status> {
        let target = ExecTarget::attachable(&self.node, &request.container_id).map_err(|e| status(&e))?;
        // Which streams the client makes is its own word, whatever the container has.
        let streams = Streams {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            tty: request.tty,
        };
        let request = AttachRequest { container_id: target.container.to_string(), streams };
        self.streaming.attach(request).map_err(|e| status(&e))
    }

    pub(super) fn port_forward_url(&self, request: &cri::PortForwardRequest) -> Result<Url, Status> {
        let pod = self.node.registry.pod(&request.pod_sandbox_id).map_err(|e| status(&e))?;
        let pod = pod.snapshot();
        if pod.agent.is_none() {
            let sandbox = pod.info.id.to_string();
            return Err(Status::failed_precondition(format!(
                "pod sandbox {sandbox} is {}",
                pod.state.adjective()
            )));
        }
        let request = PortForwardRequest { sandbox_id: pod.info.id.to_string(), ports: request.port.clone() };
        self.streaming.port_forward(request).map_err(|e| status(&e))
    }
}
