//! Bearer tokens of registries (distribution spec: "token authentication" and "OAuth2 token").

use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, StatusCode};
use serde::Deserialize;

use super::refusal::{Class, Refusal};
use super::transport::{Ask, Transport, read_body, refusal};
use crate::auth::{Secret, basic};

/// The most bytes of a token server's answer.
const MAX_ANSWER: usize = 1 << 20;
const CLIENT_ID: &str = "hartpod";

/// What a token is asked for.
pub(super) struct TokenRequest<'a> {
    pub(super) realm: &'a str,
    pub(super) service: Option<&'a str>,
    pub(super) scope: &'a str,
    pub(super) secret: Option<&'a Secret>,
    /// The registry itself is asked over TLS, so its credentials must not leave without.
    pub(super) encrypted: bool,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

/// Asks the realm for a token and returns the value of the `Authorization` header.
pub(super) async fn fetch(
    transport: &Transport,
    request: &TokenRequest<'_>,
    timeout: Duration,
) -> Result<HeaderValue, Refusal> {
    if request.secret.is_some() && request.encrypted && !request.realm.starts_with("https://") {
        return Err(denied("its token server is not https, credentials were not sent"));
    }
    let ask = match request.secret {
        Some(Secret::IdentityToken(token)) => refresh(request, token),
        Some(Secret::Password { username, password }) => with_password(request, username, password)?,
        Some(Secret::RegistryToken(_)) | None => Ask::get(query_url(request, None)),
    };
    let response = transport.send(&ask).await?;
    if response.status() != StatusCode::OK {
        let refusal = refusal(response, timeout).await;
        // A token server that does not know the user says 400, 401, 403 or 404.
        let class = match refusal.class {
            Class::NotFound => Class::Unauthorized,
            other => other,
        };
        return Err(Refusal { class, said: format!("token server: {}", refusal.said), ..refusal });
    }
    let body = read_body(response.into_body(), MAX_ANSWER, timeout).await?;
    let answer: Answer = serde_json::from_slice(&body)
        .map_err(|_| Refusal::unavailable("token server: an answer that is not JSON"))?;
    let token = [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.is_empty());
    let token = token.ok_or_else(|| denied("token server: an answer without a token"))?;
    bearer(&token).ok_or_else(|| Refusal::unavailable("token server: a token that cannot be sent"))
}

/// The value of an `Authorization` header with a bearer token.
pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn denied(said: &str) -> Refusal {
    Refusal { class: Class::Unauthorized, said: said.to_owned(), dead: false }
}

fn with_password(request: &TokenRequest<'_>, username: &str, password: &str) -> Result<Ask, Refusal> {
    let mut ask = Ask::get(query_url(request, Some(username)));
    let mut value = HeaderValue::try_from(basic(username, password))
        .map_err(|_| denied("a user name or password that cannot be sent"))?;
    value.set_sensitive(true);
    ask.private.insert(AUTHORIZATION, value);
    Ok(ask)
}

fn refresh(request: &TokenRequest<'_>, token: &str) -> Ask {
    let fields = [
        ("grant_type", Some("refresh_token")),
        ("service", request.service),
        ("scope", Some(request.scope)),
        ("client_id", Some(CLIENT_ID)),
        ("refresh_token", Some(token)),
    ];
    let mut ask = Ask::get(request.realm.to_owned());
    ask.method = Method::POST;
    ask.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    ask.body = Bytes::from(form(&fields));
    ask
}

fn query_url(request: &TokenRequest<'_>, account: Option<&str>) -> String {
    let fields = [("service", request.service), ("scope", Some(request.scope)), ("account", account)];
    let separator = if request.realm.contains('?') { '&' } else { '?' };
    format!("{}{separator}{}", request.realm, form(&fields))
}

/// `application/x-www-form-urlencoded` of the fields that are given.
fn form(fields: &[(&str, Option<&str>)]) -> String {
    let given =
        fields.iter().filter_map(|(key, value)| value.map(|value| format!("{key}={}", encode(value))));
    given.collect::<Vec<_>>().join("&")
}

/// Percent-encodes all but RFC 3986's unreserved characters.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_encoded() {
        let request = TokenRequest {
            realm: "https://a.example/token?x=1",
            service: Some("a & b"),
            scope: "repository:a/b:pull",
            secret: None,
            encrypted: true,
        };
        assert_eq!(
            query_url(&request, Some("me+you")),
            "https://a.example/token?x=1&service=a%20%26%20b&scope=repository%3Aa%2Fb%3Apull&account=me%2Byou"
        );
        assert!(bearer("a\r\nb").is_none());
    }
}
