//! A CRI client over the daemon's socket.

use std::path::Path;
use std::time::Duration;

use hartpod_proto::cri::v1 as cri;
use hartpod_proto::cri::v1::image_service_client::ImageServiceClient;
use hartpod_proto::cri::v1::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

/// No call but a pull takes longer; the kubelet's own default.
const CALL: Duration = Duration::from_secs(120);

/// A pull of a large image over a slow line; the daemon itself gives up on one that stands still.
const PULL: Duration = Duration::from_secs(3600);

/// ExecSync answers up to 16 MiB of each stream; tonic's own limit is 4 MiB.
const ANSWER_MAX: usize = 40 << 20;

/// Speaks CRI to one socket.
#[derive(Debug, Clone)]
pub(super) struct Client {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// One method per call: the request in, the answer or the daemon's error out.
macro_rules! calls {
    ($($service:ident.$name:ident($request:ident) -> $answer:ident in $deadline:ident;)*) => { $(
        pub(super) async fn $name(&self, request: cri::$request) -> Result<cri::$answer, CallError> {
            let mut request = Request::new(request);
            request.set_timeout($deadline);
            let answer = tokio::time::timeout($deadline, self.$service.clone().$name(request)).await;
            match answer {
                Ok(Ok(answer)) => Ok(answer.into_inner()),
                Ok(Err(status)) => Err(CallError::of(status)),
                Err(_) => Err(CallError::Late),
            }
        }
    )* };
}

impl Client {
    /// Connects at the first call.
    pub(super) fn new(socket: &Path) -> Self {
        let socket = socket.to_owned();
        let connect = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        });
        // What the kubelet and crictl send as authority, too.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect);
        Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(ANSWER_MAX),
            images: ImageServiceClient::new(channel).max_decoding_message_size(ANSWER_MAX),
        }
    }

    calls! {
        runtime.version(VersionRequest) -> VersionResponse in CALL;
        runtime.status(StatusRequest) -> StatusResponse in CALL;
        runtime.run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse in CALL;
        runtime.pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse in CALL;
        runtime.list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse in CALL;
        runtime.stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse in CALL;
        runtime.remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse in CALL;
        runtime.create_container(CreateContainerRequest) -> CreateContainerResponse in CALL;
        runtime.start_container(StartContainerRequest) -> StartContainerResponse in CALL;
        runtime.stop_container(StopContainerRequest) -> StopContainerResponse in CALL;
        runtime.container_status(ContainerStatusRequest) -> ContainerStatusResponse in CALL;
        runtime.container_stats(ContainerStatsRequest) -> ContainerStatsResponse in CALL;
        runtime.attach(AttachRequest) -> AttachResponse in CALL;
        runtime.exec_sync(ExecSyncRequest) -> ExecSyncResponse in CALL;
        images.image_status(ImageStatusRequest) -> ImageStatusResponse in CALL;
        images.pull_image(PullImageRequest) -> PullImageResponse in PULL;
    }
}

/// A call without an answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// What the daemon says is made to be read.
    #[error("{0}")]
    Refused(String),
    /// The transport's own words repeat each other; the last one says it.
    #[error("{0}")]
    Unreachable(String),
    #[error("the daemon did not answer in time")]
    Late,
}

impl CallError {
    /// A status made by the client's own transport has a cause; one from the daemon has none.
    fn of(status: Status) -> Self {
        let mut cause = std::error::Error::source(&status);
        if cause.is_none() {
            return Self::Refused(status.message().to_owned());
        }
        let mut last = String::new();
        while let Some(error) = cause {
            last = error.to_string();
            cause = error.source();
        }
        Self::Unreachable(last)
    }
}
