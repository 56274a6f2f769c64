//! Spans of gRPC calls, with the names and attributes that OpenTelemetry has for them (semantic conventions, RPC): those of CRI, and those to agents.

use std::task::{Context as Wake, Poll};
use std::time::Duration;

use hartpod_proto::pod::{TOOK, TRACEPARENT};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::otlp::{KeyValue, Kind};
use super::span::{Context, Span};
use super::tracer::Tracer;

const AGENT: &str = "hartpod.pod.v1.PodAgent";

impl Tracer {
    /// The span of a call of CRI to `service/method`.
    pub(crate) fn call(&self, (service, method): (&str, &'static str), headers: &HeaderMap) -> Span {
        let Some((trace, parent)) = self.trace(headers) else { return Span::none() };
        let span = Span::first(trace, parent, format!("{service}/{method}").into());
        for (key, value) in [("rpc.system", "grpc"), ("rpc.service", service), ("rpc.method", method)] {
            span.set(key, value);
        }
        span
    }
}

impl Span {
    /// Ends that of a call of CRI; `status` where it was not answered as asked. That a caller asked for what cannot be is no failure of the server.
    pub(crate) fn answered(self, status: Option<Status>) {
        let code = status.as_ref().map_or(Code::Ok, Status::code);
        self.set("rpc.grpc.status_code", i64::from(i32::from(code)));
        match status {
            Some(status) if is_servers(code) => self.fail(|| status.message().to_owned()),
            Some(_) | None => self.end(),
        }
    }
}

/// Codes for which the span of a server is one of an error.
fn is_servers(code: Code) -> bool {
    match code {
        Code::Unknown
        | Code::DeadlineExceeded
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::Ok
        | Code::Cancelled
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unauthenticated => false,
    }
}

/// A channel to an agent that tells it the current span.
#[derive(Debug, Clone)]
pub(crate) struct Traced(pub(crate) Channel);

impl Service<Request<Body>> for Traced {
    type Response = Response<Body>;
    type Error = tonic::transport::Error;
    type Future = <Channel as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, wake: &mut Wake<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(wake)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(header) = Context::header().and_then(|text| HeaderValue::try_from(text).ok()) {
            request.headers_mut().insert(TRACEPARENT, header);
        }
        self.0.call(request)
    }
}

/// Asks an agent for `method`, as a part of the current span. The agent answers how long it took, which becomes a span of its own: it keeps none, so
/// that it stays small, and has no clock that could be compared with this one's in a guest.
pub(crate) async fn agent_call<T>(
    method: &'static str,
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<tonic::Response<T>, Status> {
    if !Context::current().is_recorded() {
        return answer.await;
    }
    let span = Span::child_of_kind(format!("{AGENT}/{method}"), Kind::Client);
    let attributes = [("rpc.system", "grpc"), ("rpc.service", AGENT), ("rpc.method", method)];
    for (key, value) in attributes {
        span.set(key, value);
    }
    let answer = span.context().scope(answer).await;
    let (metadata, code) = match &answer {
        Ok(answer) => (answer.metadata(), Code::Ok),
        Err(status) => (status.metadata(), status.code()),
    };
    let code_told = ("rpc.grpc.status_code", i64::from(i32::from(code)));
    span.set(code_told.0, code_told.1);
    if let Some(took) = took(metadata) {
        let mut told: Vec<_> = attributes.map(|(key, value)| KeyValue::new(key, value)).into();
        told.push(KeyValue::new(code_told.0, code_told.1));
        span.tell_part(Kind::Server, took, told);
    }
    match &answer {
        Ok(_) => span.end(),
        Err(status) => span.fail(|| status.message().to_owned()),
    }
    answer
}

/// Microseconds; an agent in a guest may say anything.
fn took(metadata: &MetadataMap) -> Option<Duration> {
    metadata.get(TOOK)?.to_str().ok()?.parse().ok().map(Duration::from_micros)
}
