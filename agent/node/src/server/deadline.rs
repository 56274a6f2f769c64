//! The time that callers give a call.
//!
//! tonic ends a call when its `grpc-timeout` is over, with CANCELLED. gRPC has DEADLINE_EXCEEDED for that (statuscodes.md), and clients who hear the server's answer
//! before their own clock strikes tell the two apart: so the answer is given here, a moment before tonic's.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};

/// How long before the end of a call's time it is answered.
const MOMENT: Duration = Duration::from_millis(5);

/// Adds [`Deadline`] to a service.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeadlineLayer;

/// Answers calls whose time is over.
#[derive(Debug, Clone)]
pub(crate) struct Deadline<S>(S);

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline(inner)
    }
}

impl<S, B> Service<Request<B>> for Deadline<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Some(timeout) = timeout(request.headers()) else { return Box::pin(self.0.call(request)) };
        let answer = self.0.call(request);
        Box::pin(async move {
            match tokio::time::timeout(timeout.saturating_sub(MOMENT), answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    Ok(Status::deadline_exceeded(format!("the caller's {timeout:?} are over")).into_http())
                }
            }
        })
    }
}

/// `grpc-timeout`: at most eight digits and a unit (PROTOCOL-HTTP2.md). What is none is tonic's to refuse.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_number = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let number: u64 = digits.parse().ok().filter(|_| is_number)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tonic::Code;

    use super::*;

    fn told(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().unwrap());
        timeout(&headers)
    }

    #[test]
    fn a_timeout_has_a_number_and_a_unit() {
        assert_eq!(told("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(told("2M"), Some(Duration::from_secs(120)));
        assert_eq!(told("1000000u"), Some(Duration::from_secs(1)));
        for bad in ["", "S", "1", "-1S", "+1S", "1x", "123456789S", "1 S"] {
            assert_eq!(told(bad), None, "{bad:?}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn a_call_whose_time_is_over_is_told_so() {
        let service = tower::service_fn(|request: Request<bool>| async move {
            if !request.into_body() {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(Response::new(Body::empty()))
        });
        let mut service = DeadlineLayer.layer(service);
        let ask = |answers: bool, timeout: &str| {
            Request::builder().header("grpc-timeout", timeout).body(answers).unwrap()
        };
        for timeout in ["20m", "1m"] {
            let answer = service.call(ask(false, timeout)).await.unwrap();
            let status = Status::from_header_map(answer.headers()).unwrap();
            assert_eq!(status.code(), Code::DeadlineExceeded, "{timeout}");
        }
        let answer = service.call(ask(true, "60S")).await.unwrap();
        assert!(Status::from_header_map(answer.headers()).is_none());
    }
}
