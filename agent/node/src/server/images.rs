//! ImageService, call by call.

use std::sync::Arc;
use std::time::Instant;

use hartpod_images::{Auth, AuthFields, Image, InvalidReference, Reference};
use hartpod_proto::cri::v1 as cri;
use hartpod_proto::cri::v1::image_service_server::ImageService;
use serde_json::json;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, async_trait};

use super::parts::in_parts;
use super::{Server, image_view, info};
use crate::clock;
use crate::status_code::status;
use crate::trace;

type Answer<T> = Result<Response<T>, Status>;

#[async_trait]
impl ImageService for Server {
    async fn list_images(&self, request: Request<cri::ListImagesRequest>) -> Answer<cri::ListImagesResponse> {
        let images = self.list_of_images(request.into_inner().filter);
        Ok(Response::new(cri::ListImagesResponse { images }))
    }

    type StreamImagesStream = BoxStream<cri::StreamImagesResponse>;
    async fn stream_images(
        &self,
        request: Request<cri::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        let images = self.list_of_images(request.into_inner().filter);
        Ok(in_parts(images, |images| cri::StreamImagesResponse { images }))
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Answer<cri::ImageStatusResponse> {
        let request = request.into_inner();
        let name = named(request.image)?;
        // An image that is not there is an empty answer, not an error.
        let Some(image) = self.node.images.resolve(&name) else {
            return Ok(Response::new(cri::ImageStatusResponse::default()));
        };
        Ok(Response::new(cri::ImageStatusResponse {
            info: if request.verbose { verbose(&image) } else { Default::default() },
            image: Some(image_view::image(&image)),
        }))
    }

    async fn pull_image(&self, request: Request<cri::PullImageRequest>) -> Answer<cri::PullImageResponse> {
        let request = request.into_inner();
        let name = named(request.image)?;
        let reference: Reference = name.parse().map_err(|e: InvalidReference| status(&e))?;
        let auth = request.auth.map(auth_fields).unwrap_or_default();
        let auth = Auth::from_fields(auth).map_err(|e| status(&e))?;
        trace::note("container.image.name", &reference.to_string());
        let (progress, _pull) = self.node.pulls.begin(&reference);
        let began = Instant::now();
        let watched = progress.subscribe();
        let pulled = trace::layers(watched, self.node.images.pull(&reference, auth, Some(progress))).await;
        self.node.own_metrics.pulled(pulled.is_ok(), began.elapsed());
        let image = pulled.map_err(|e| status(&e))?;
        tracing::info!(image = %image.id, %reference, "image pulled");
        Ok(Response::new(cri::PullImageResponse { image_ref: image.id.to_string() }))
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Answer<cri::RemoveImageResponse> {
        let name = named(request.into_inner().image)?;
        // One at a time: whoever asks for the same image meanwhile finds it gone, which is what was wanted.
        let _turn = self.removals.lock().await;
        if let Some(image) = self.node.images.resolve(&name) {
            self.remove_unused(&image).await?;
        }
        Ok(Response::new(cri::RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<cri::ImageFsInfoRequest>) -> Answer<cri::ImageFsInfoResponse> {
        Ok(Response::new(self.fs_info()))
    }
}

impl Server {
    fn list_of_images(&self, filter: Option<cri::ImageFilter>) -> Vec<cri::Image> {
        let wanted = filter.and_then(|f| f.image).map(|i| i.image).unwrap_or_default();
        let found = if wanted.is_empty() {
            self.node.images.list()
        } else {
            self.node.images.resolve(&wanted).into_iter().collect()
        };
        found.iter().map(|i| image_view::image(i)).collect()
    }

    /// Removes an image with all its names, unless a container still runs from its layers.
    async fn remove_unused(&self, image: &Arc<Image>) -> Result<(), Status> {
        let removal = self.node.image_uses.remove(&image.id.to_string()).map_err(|e| status(&e))?;
        let removed = self.node.images.remove(&image.id).await;
        drop(removal);
        removed.map_err(|e| status(&e))?;
        tracing::info!(image = %image.id, "image removed");
        Ok(())
    }

    /// Usage of the image store; writable layers are on the same file system but not in it, so nothing is counted twice.
    fn fs_info(&self) -> cri::ImageFsInfoResponse {
        let usage = self.node.images.usage();
        let images = cri::FilesystemUsage {
            timestamp: clock::now(),
            fs_id: Some(cri::FilesystemIdentifier {
                mountpoint: self.node.layout.images().to_string_lossy().into_owned(),
            }),
            used_bytes: Some(cri::UInt64Value { value: usage.bytes }),
            inodes_used: Some(cri::UInt64Value { value: usage.inodes }),
        };
        cri::ImageFsInfoResponse {
            image_filesystems: vec![images.clone()],
            container_filesystems: vec![images],
        }
    }
}

fn named(image: Option<cri::ImageSpec>) -> Result<String, Status> {
    match image {
        Some(image) if !image.image.is_empty() => Ok(image.image),
        _ => Err(Status::invalid_argument("image.image: is missing")),
    }
}

fn auth_fields(auth: cri::AuthConfig) -> AuthFields {
    AuthFields {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    }
}

/// containerd's names: `imageSpec` is the image's configuration, `chainID` has no counterpart here.
fn verbose(image: &Image) -> std::collections::BTreeMap<String, String> {
    info::wrap(&json!({ "imageSpec": image.config, "layers": image.layers }))
}
