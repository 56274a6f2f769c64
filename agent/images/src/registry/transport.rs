//! HTTP: one request, its redirects, and the time it may take.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderMap, HeaderValue, LOCATION, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::OnceCell;

use super::host::TlsSettings;
use super::refusal::{Class, Refusal, chain, printable};
use super::tls;

/// Redirects that are followed. Same as Go's default.
const MAX_REDIRECTS: usize = 10;
/// The most bytes of an error's body that are looked at.
const MAX_ERROR_BODY: usize = 64 << 10;
const AGENT: HeaderValue = HeaderValue::from_static(concat!("hartpod/", env!("CARGO_PKG_VERSION")));

type Body = Full<Bytes>;

/// The connections to one registry and wherever it sends us.
pub(super) struct Transport {
    plain: Client<HttpConnector, Body>,
    /// Made when the first https URL is asked for: reading the system's certificates takes a while.
    secure: OnceCell<Client<HttpsConnector<HttpConnector>, Body>>,
    tls: TlsSettings,
    dial_timeout: Duration,
    answer_timeout: Duration,
}

/// A request, before redirects.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) url: String,
    /// Sent wherever a redirect leads.
    pub(super) headers: HeaderMap,
    /// Sent only to the scheme, host and port of `url`.
    pub(super) private: HeaderMap,
    pub(super) body: Bytes,
}

impl Ask {
    pub(super) fn get(url: String) -> Ask {
        let (headers, private) = (HeaderMap::new(), HeaderMap::new());
        Ask { method: Method::GET, url, headers, private, body: Bytes::new() }
    }
}

impl Transport {
    /// `answer_timeout` is how long the head of an answer may take.
    pub(super) fn new(tls: TlsSettings, dial_timeout: Duration, answer_timeout: Duration) -> Transport {
        let plain = builder().build(connector(dial_timeout));
        Transport { plain, secure: OnceCell::new(), tls, dial_timeout, answer_timeout }
    }

    /// Sends a request and follows redirects of GET and HEAD. The answer may have any status but a redirect's.
    pub(super) async fn send(&self, ask: &Ask) -> Result<Response<Incoming>, Refusal> {
        let first = parse_url(&ask.url)?;
        let mut uri = first.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.once(ask, &uri, same_origin(&uri, &first)).await?;
            let follows = matches!(ask.method, Method::GET | Method::HEAD) && is_redirect(response.status());
            match response.headers().get(LOCATION) {
                Some(location) if follows => uri = redirected(&uri, location)?,
                _ => return Ok(response),
            }
        }
        Err(Refusal::unavailable(format!("more than {MAX_REDIRECTS} redirects")))
    }

    async fn once(&self, ask: &Ask, uri: &Uri, with_private: bool) -> Result<Response<Incoming>, Refusal> {
        let mut request = Request::new(Full::new(ask.body.clone()));
        *request.method_mut() = ask.method.clone();
        *request.uri_mut() = uri.clone();
        request.headers_mut().insert(USER_AGENT, AGENT);
        request.headers_mut().extend(ask.headers.clone());
        if with_private {
            request.headers_mut().extend(ask.private.clone());
        }
        let answer = async {
            match uri.scheme_str() {
                Some("https") => self.secure().await?.request(request).await,
                _ => self.plain.request(request).await,
            }
            .map_err(|error| Refusal { dead: error.is_connect(), ..Refusal::unavailable(chain(&error)) })
        };
        match tokio::time::timeout(self.answer_timeout, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(Refusal::dead(format!("no answer in {:?}", self.answer_timeout))),
        }
    }

    async fn secure(&self) -> Result<&Client<HttpsConnector<HttpConnector>, Body>, Refusal> {
        let make = || async {
            let settings = self.tls.clone();
            let config = tokio::task::spawn_blocking(move || tls::config_blocking(&settings)).await;
            let config = config
                .map_err(|error| Refusal::dead(chain(&error)))?
                .map_err(|error| Refusal::dead(chain(&error)))?;
            let connector = HttpsConnectorBuilder::new()
                .with_tls_config(config)
                .https_only()
                .enable_all_versions()
                .wrap_connector(connector(self.dial_timeout));
            Ok(builder().build(connector))
        };
        self.secure.get_or_try_init(make).await
    }
}

fn builder() -> hyper_util::client::legacy::Builder {
    let mut builder = Client::builder(TokioExecutor::new());
    builder.timer(TokioTimer::new()).pool_timer(TokioTimer::new());
    builder
}

fn connector(dial_timeout: Duration) -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(dial_timeout));
    connector.set_nodelay(true);
    connector
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn parse_url(url: &str) -> Result<Uri, Refusal> {
    let uri: Uri =
        url.parse().map_err(|_| Refusal::unavailable(format!("{:?} is no URL", printable(url))))?;
    match uri.scheme_str() {
        Some("http" | "https") if uri.authority().is_some() => Ok(uri),
        _ => Err(Refusal::unavailable(format!("{:?} is no http or https URL", printable(url)))),
    }
}

/// The target of a redirect, which may leave out scheme, host, and even its path (RFC 9110, section 10.2.2).
fn redirected(from: &Uri, location: &HeaderValue) -> Result<Uri, Refusal> {
    let bad = || Refusal::unavailable("a redirect to something that is no URL");
    let location = location.to_str().map_err(|_| bad())?;
    let location = location.split('#').next().unwrap_or(location);
    let scheme = from.scheme_str().unwrap_or("http");
    let authority = from.authority().map_or("", |authority| authority.as_str());
    if location.contains("://") && !location.starts_with('/') {
        return parse_url(location);
    }
    if let Some(rest) = location.strip_prefix("//") {
        return parse_url(&format!("{scheme}://{rest}"));
    }
    if location.starts_with('/') {
        return parse_url(&format!("{scheme}://{authority}{location}"));
    }
    let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    parse_url(&format!("{scheme}://{authority}{folder}/{location}"))
}

fn same_origin(one: &Uri, other: &Uri) -> bool {
    let port = |uri: &Uri| uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let host = |uri: &Uri| uri.host().unwrap_or_default().to_ascii_lowercase();
    (one.scheme(), host(one), port(one)) == (other.scheme(), host(other), port(other))
}

/// Reads a whole body of at most `limit` bytes; `timeout` is for each piece of it.
pub(super) async fn read_body(body: Incoming, limit: usize, timeout: Duration) -> Result<Bytes, Refusal> {
    let mut body = Limited::new(body, limit);
    let mut bytes = Vec::new();
    loop {
        match tokio::time::timeout(timeout, body.frame()).await {
            Err(_) => return Err(Refusal::dead(format!("no byte in {timeout:?}"))),
            Ok(None) => return Ok(bytes.into()),
            Ok(Some(Err(error))) if error.is::<http_body_util::LengthLimitError>() => {
                return Err(Refusal::unavailable(format!("an answer of more than {limit} bytes")));
            }
            Ok(Some(Err(error))) => return Err(Refusal::unavailable(chain(error.as_ref()))),
            Ok(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    bytes.extend_from_slice(data);
                }
            }
        }
    }
}

/// What an answer other than 2xx means, with the registry's own words (distribution spec, "error codes").
pub(super) async fn refusal(response: Response<Incoming>, timeout: Duration) -> Refusal {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Error>,
    }
    #[derive(serde::Deserialize)]
    struct Error {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let status = response.status();
    let class = match status.as_u16() {
        404 => Class::NotFound,
        401 | 403 => Class::Unauthorized,
        _ => Class::Unavailable,
    };
    let body = read_body(response.into_body(), MAX_ERROR_BODY, timeout).await.unwrap_or_default();
    let words = match serde_json::from_slice::<Errors>(&body) {
        Ok(errors) => errors
            .errors
            .into_iter()
            .map(|error| if error.message.is_empty() { error.code } else { error.message })
            .collect::<Vec<_>>()
            .join(", "),
        Err(_) => String::new(),
    };
    let said = match printable(&words) {
        none if none.is_empty() => status.to_string(),
        words => format!("{status}: {words}"),
    };
    Refusal { class, said, dead: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_may_be_relative() {
        let from: Uri = "https://a.example:1/v2/x/blobs/y?q=1".parse().unwrap();
        for (location, to) in [
            ("https://b.example/z?s=1#f", "https://b.example/z?s=1"),
            ("//b.example/z", "https://b.example/z"),
            ("/z?u=https://c.example", "https://a.example:1/z?u=https://c.example"),
            ("z", "https://a.example:1/v2/x/blobs/z"),
        ] {
            assert_eq!(redirected(&from, &HeaderValue::from_static(location)).unwrap(), *to, "{location}");
        }
        for location in ["ftp://b.example/", "file:///etc/passwd", "http://"] {
            assert!(redirected(&from, &HeaderValue::from_static(location)).is_err(), "{location}");
        }
    }

    #[test]
    fn another_port_or_scheme_is_another_origin() {
        let same = |one: &str, other: &str| same_origin(&one.parse().unwrap(), &other.parse().unwrap());
        assert!(same("https://A.example/x", "https://a.example:443/y"));
        assert!(!same("https://a.example/", "http://a.example/"));
        assert!(!same("https://a.example/", "https://a.example:444/"));
        assert!(!same("https://a.example/", "https://a.example.evil/"));
    }
}
