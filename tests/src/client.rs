//! A CRI client made of `k8s-cri`, so that hartpod is tested against somebody else's reading of the protocol.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Response, Status};

use crate::eventually::patient;

/// No call of a test takes longer, however long its own deadline is; the kubelet's default for most calls is 2 minutes.
const DEADLINE: Duration = Duration::from_secs(120);
/// ExecSync answers up to 16 MiB of each stream; tonic's own limit is 4 MiB.
const MAX_ANSWER: usize = 64 << 20;

/// Speaks CRI to one socket; connects again by itself when the daemon was restarted.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    /// Guards the ids of every pod and container that was given out through this client.
    ids: Arc<Mutex<Vec<String>>>,
}

/// Defines a method per call: the request in, the bare answer out.
macro_rules! calls {
    ($($service:ident: $name:ident($request:ident) -> $answer:ident;)*) => {
        $(
            pub async fn $name(&self, request: cri::$request) -> Result<cri::$answer, Status> {
                let mut service = self.$service();
                timely(stringify!($name), service.$name(request)).await
            }
        )*
    };
}

impl Client {
    /// Connects when the first call is made.
    pub fn new(socket: &Path) -> Self {
        let path: PathBuf = socket.to_owned();
        let connect = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        Self { channel: endpoint.connect_with_connector_lazy(connect), ids: Arc::default() }
    }

    /// For clients of other readings of the protocol.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// For calls that have no method here.
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Ids of all pods and containers that were given out.
    pub fn ids(&self) -> Vec<String> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, id: &str) {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
    }

    pub async fn run_pod_sandbox(
        &self,
        config: cri::PodSandboxConfig,
        handler: &str,
    ) -> Result<String, Status> {
        let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
        let mut runtime = self.runtime();
        let answer = timely("run_pod_sandbox", runtime.run_pod_sandbox(request)).await?;
        self.remember(&answer.pod_sandbox_id);
        Ok(answer.pod_sandbox_id)
    }

    pub async fn create_container(&self, request: cri::CreateContainerRequest) -> Result<String, Status> {
        let mut runtime = self.runtime();
        let answer = timely("create_container", runtime.create_container(request)).await?;
        self.remember(&answer.container_id);
        Ok(answer.container_id)
    }

    calls! {
        runtime: version(VersionRequest) -> VersionResponse;
        runtime: status(StatusRequest) -> StatusResponse;
        runtime: runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
        runtime: update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        runtime: stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
        runtime: remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
        runtime: pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
        runtime: list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
        runtime: start_container(StartContainerRequest) -> StartContainerResponse;
        runtime: stop_container(StopContainerRequest) -> StopContainerResponse;
        runtime: remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
        runtime: container_status(ContainerStatusRequest) -> ContainerStatusResponse;
        runtime: list_containers(ListContainersRequest) -> ListContainersResponse;
        runtime: exec_sync(ExecSyncRequest) -> ExecSyncResponse;
        runtime: reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        runtime: update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        runtime: container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        runtime: list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        runtime: list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
        runtime: list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
        runtime: pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        runtime: list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
        images: pull_image(PullImageRequest) -> PullImageResponse;
        images: image_status(ImageStatusRequest) -> ImageStatusResponse;
        images: list_images(ListImagesRequest) -> ListImagesResponse;
        images: remove_image(RemoveImageRequest) -> RemoveImageResponse;
        images: image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
    }

    /// Pulls without credentials and returns the image reference.
    pub async fn pull(&self, reference: &str) -> Result<String, Status> {
        let image = Some(image_spec(reference));
        Ok(self.pull_image(cri::PullImageRequest { image, ..Default::default() }).await?.image_ref)
    }

    /// The image of this name or id, if the node has it.
    pub async fn image(&self, reference: &str) -> Result<Option<cri::Image>, Status> {
        let request = cri::ImageStatusRequest { image: Some(image_spec(reference)), verbose: false };
        Ok(self.image_status(request).await?.image)
    }

    /// Names of all images, sorted.
    pub async fn image_tags(&self) -> Result<Vec<String>, Status> {
        let images = self.list_images(cri::ListImagesRequest::default()).await?.images;
        let mut tags: Vec<String> = images.into_iter().flat_map(|image| image.repo_tags).collect();
        tags.sort();
        Ok(tags)
    }

    pub async fn pods(&self) -> Result<Vec<cri::PodSandbox>, Status> {
        Ok(self.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?.items)
    }

    pub async fn containers(&self) -> Result<Vec<cri::Container>, Status> {
        Ok(self.list_containers(cri::ListContainersRequest::default()).await?.containers)
    }
}

/// Names an image in a request.
pub fn image_spec(reference: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: reference.to_owned(), ..Default::default() }
}

async fn timely<T>(name: &str, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    let limit = patient(DEADLINE);
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("test: {name} did not answer within {limit:?}"))),
    }
}

/// For calls that must fail: the error, or a failure of the test.
pub trait Refused {
    fn refused(self, what: &str) -> Result<Status>;
}

impl<T> Refused for Result<T, Status> {
    fn refused(self, what: &str) -> Result<Status> {
        match self {
            Ok(_) => bail!("{what} succeeded, but must be refused"),
            Err(status) => Ok(status),
        }
    }
}
