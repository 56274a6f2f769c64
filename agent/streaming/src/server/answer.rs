//! The answer to a request.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::debug;

use super::negotiate::{Agreement, negotiate};
use crate::request::Plan;
use crate::serve::Job;
use crate::tokens::Tokens;

/// Why a client gets no session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) text: String,
    /// More headers.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), headers: Vec::new() }
    }
}

/// What is to be served after an upgrade, and its place among all that are served.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) job: Job,
    pub(super) place: OwnedSemaphorePermit,
}

/// Answers a request; with an upgrade comes what is to be served then.
pub(super) fn answer<B>(
    request: &Request<B>,
    tokens: &Tokens,
    places: &Arc<Semaphore>,
) -> (Response<Full<Bytes>>, Option<Admitted>) {
    let agreed = redeem(request, tokens, places)
        .and_then(|(plan, place)| negotiate(request, plan).map(|agreement| (agreement, place)));
    match agreed {
        Ok((Agreement { headers, job }, place)) => {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().extend(headers);
            (response, Some(Admitted { job, place }))
        }
        Err(Refusal { status, text, headers }) => {
            debug!(%status, text, "refused a streaming client");
            let mut response = Response::new(Full::from(text + "\n"));
            *response.status_mut() = status;
            // One request a connection. hyper would say so in an upgrade too, if it knew.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            for (name, value) in headers {
                response.headers_mut().append(name, value);
            }
            (response, None)
        }
    }
}

/// What the path's token stands for, and a place to serve that. The token is spent whatever comes next, unless there is no place.
fn redeem<B>(
    request: &Request<B>,
    tokens: &Tokens,
    places: &Arc<Semaphore>,
) -> Result<(Plan, OwnedSemaphorePermit), Refusal> {
    if request.method() != Method::GET && request.method() != Method::POST {
        let mut refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "the method is neither GET nor POST");
        refusal.headers.push((ALLOW, HeaderValue::from_static("GET, POST")));
        return Err(refusal);
    }
    let not_found = || Refusal::new(StatusCode::NOT_FOUND, "this URL was used, has expired, or never was");
    let path = request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/'));
    let (verb, token) = path.ok_or_else(not_found)?;
    // Given back at once by whoever has no token.
    let place = Arc::clone(places).try_acquire_owned().map_err(|_| {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "as many clients are served as there may be")
    })?;
    let plan = tokens.redeem(token).filter(|plan| plan.verb() == verb).ok_or_else(not_found)?;
    Ok((plan, place))
}
