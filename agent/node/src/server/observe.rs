//! Counts CRI calls and how long they take, and begins the traces of those that are traced.

use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::metrics::Own;
use crate::trace::{Span, Tracer};

/// Adds [`Observe`] to a service.
#[derive(Debug, Clone)]
pub(crate) struct ObserveLayer {
    pub(crate) own: Own,
    pub(crate) tracer: Option<Tracer>,
}

/// Counts what passes through it.
#[derive(Debug, Clone)]
pub(crate) struct Observe<S> {
    inner: S,
    layer: ObserveLayer,
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner, layer: self.clone() }
    }
}

impl<S, B> Service<Request<B>> for Observe<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let named = named(request.uri().path());
        let call = self.layer.own.call(named.1);
        let tracer = self.layer.tracer.as_ref();
        let span = tracer.map_or_else(Span::none, |tracer| tracer.call(named, request.headers()));
        let answer = span.context().enter(|| self.inner.call(request));
        Box::pin(async move {
            let answer = span.context().scope(answer).await;
            // An error is told in the headers, where nothing else was; a stream counts as answered when it begins.
            let status = answer.as_ref().ok().and_then(|answer| Status::from_header_map(answer.headers()));
            call.end(status.as_ref().map_or("ok", |status| word(status.code())));
            span.answered(status);
            answer
        })
    }
}

/// Service and name of a call of CRI; whatever else somebody asks for is one.
fn named(path: &str) -> (&'static str, &'static str) {
    let (service, name) = path.rsplit_once('/').unwrap_or_default();
    let known = |all: &'static [&'static str], name: &str| all.iter().copied().find(|one| *one == name);
    let service = known(SERVICES, service.trim_start_matches('/')).unwrap_or("unknown");
    (service, known(METHODS, name).unwrap_or("unknown"))
}

/// gRPC's codes as Go's metrics write them.
fn word(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

const SERVICES: &[&str] = &["runtime.v1.RuntimeService", "runtime.v1.ImageService"];

/// Labels are bounded by this list.
const METHODS: &[&str] = &[
    "Version",
    "RunPodSandbox",
    "StopPodSandbox",
    "RemovePodSandbox",
    "PodSandboxStatus",
    "ListPodSandbox",
    "StreamPodSandboxes",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "ListContainers",
    "StreamContainers",
    "ContainerStatus",
    "UpdateContainerResources",
    "ReopenContainerLog",
    "ExecSync",
    "Exec",
    "Attach",
    "PortForward",
    "ContainerStats",
    "ListContainerStats",
    "StreamContainerStats",
    "PodSandboxStats",
    "ListPodSandboxStats",
    "StreamPodSandboxStats",
    "UpdateRuntimeConfig",
    "Status",
    "CheckpointContainer",
    "GetContainerEvents",
    "ListMetricDescriptors",
    "ListPodSandboxMetrics",
    "StreamPodSandboxMetrics",
    "RuntimeConfig",
    "UpdatePodSandboxResources",
    "ListImages",
    "StreamImages",
    "ImageStatus",
    "PullImage",
    "RemoveImage",
    "ImageFsInfo",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_one_of_cris() {
        assert_eq!(named("/runtime.v1.RuntimeService/RunPodSandbox"), (SERVICES[0], "RunPodSandbox"));
        assert_eq!(named("/runtime.v1.ImageService/PullImage"), (SERVICES[1], "PullImage"));
        assert_eq!(named("/x/\"}evil{"), ("unknown", "unknown"));
        assert_eq!(named(""), ("unknown", "unknown"));
    }

    #[test]
    fn every_call_of_cri_has_a_name() {
        let api = include_str!("../../../../proto/cri/v1/api.proto");
        let calls: Vec<_> =
            api.lines().filter_map(|l| l.trim().strip_prefix("rpc ")?.split('(').next()).collect();
        assert_eq!(calls, METHODS);
    }
}
