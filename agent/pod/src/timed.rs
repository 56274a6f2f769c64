//! Says how long a call took, to a daemon that traces it. The agent keeps no spans and sends none: the daemon makes one of this number.

use std::task::{Context, Poll};
use std::time::Instant;

use hartpod_proto::pod::{TOOK, TRACEPARENT};
use tonic::body::Body;
use tonic::codegen::http::{HeaderValue, Request, Response};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;

/// A service whose answers say how long they took, where the request belongs to a trace. Others pass through as they are.
#[derive(Debug, Clone)]
pub(crate) struct Timed<S>(pub(crate) S);

impl<S: NamedService> NamedService for Timed<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, E> Service<Request<Body>> for Timed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = E, Future = BoxFuture<Response<Body>, E>>,
    E: 'static,
{
    type Response = Response<Body>;
    type Error = E;
    type Future = BoxFuture<Response<Body>, E>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if !request.headers().contains_key(TRACEPARENT) {
            return self.0.call(request);
        }
        let began = Instant::now();
        let answer = self.0.call(request);
        Box::pin(async move {
            let mut answer = answer.await?;
            let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            answer.headers_mut().insert(TOOK, HeaderValue::from(took));
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use super::*;

    #[derive(Clone)]
    struct Slow;

    impl Service<Request<Body>> for Slow {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<Response<Body>, Infallible>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            Box::pin(async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(Response::new(Body::empty()))
            })
        }
    }

    #[tokio::test]
    async fn only_a_traced_call_is_timed() {
        let plain = Timed(Slow).call(Request::new(Body::empty())).await.unwrap();
        assert!(!plain.headers().contains_key(TOOK));
        let request = Request::builder().header(TRACEPARENT, "00-..").body(Body::empty()).unwrap();
        let told = Timed(Slow).call(request).await.unwrap();
        let took: u64 = told.headers()[TOOK].to_str().unwrap().parse().unwrap();
        assert!(took >= 20_000, "{took}");
    }
}
