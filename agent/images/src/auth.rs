//! Credentials for a registry, as the kubelet hands them over in CRI's AuthConfig.

use std::fmt;

use base64::Engine as _;
use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

/// The fields of CRI's AuthConfig, all of them optional: empty means not given.
#[derive(Clone, Default)]
pub struct AuthFields {
    /// User name.
    pub username: String,
    /// Password of `username`.
    pub password: String,
    /// base64 of `username:password`, as in docker's config.json.
    pub auth: String,
    /// The registry that all this is for, as a host or URL; empty means the registry of the image.
    pub server_address: String,
    /// An OAuth2 refresh token.
    pub identity_token: String,
    /// A bearer token to be sent to the registry as it is.
    pub registry_token: String,
}

impl fmt::Debug for AuthFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthFields").field("server_address", &self.server_address).finish_non_exhaustive()
    }
}

/// Credentials that may be sent to one registry, and to nobody else.
#[derive(Clone, PartialEq, Eq)]
pub struct Auth {
    /// The registry's host and port in lower case; None: the registry that the pulled reference names.
    server: Option<String>,
    secret: Secret,
}

/// What is sent. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Secret {
    Password { username: String, password: String },
    IdentityToken(String),
    RegistryToken(String),
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.secret {
            Secret::Password { .. } => "password",
            Secret::IdentityToken(_) => "identity token",
            Secret::RegistryToken(_) => "registry token",
        };
        f.debug_struct("Auth").field("server", &self.server).field("kind", &kind).finish()
    }
}

/// Why an AuthConfig cannot be used. Tells nothing of the secrets in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAuth {
    /// `auth` is no base64.
    #[error("registry credentials: auth is not base64")]
    NotBase64,
    /// `auth` decodes to something without a colon.
    #[error("registry credentials: auth does not hold username:password")]
    NoColon,
    /// A line break or another control character, which no HTTP header may hold.
    #[error("registry credentials: a token holds a control character")]
    ControlCharacter,
}

impl Auth {
    /// Takes what the kubelet sent; all fields empty means no credentials.
    ///
    /// The first of these that is given counts, as in containerd: user name, identity token, `auth`, and then the registry token.
    ///
    /// # Errors
    /// When `auth` is not base64 of `username:password`, or a token cannot be a header's value.
    pub fn from_fields(fields: AuthFields) -> Result<Option<Auth>, InvalidAuth> {
        let secret = if !fields.username.is_empty() {
            Secret::Password { username: fields.username, password: fields.password }
        } else if !fields.identity_token.is_empty() {
            Secret::IdentityToken(fields.identity_token)
        } else if !fields.auth.is_empty() {
            decode_basic(&fields.auth)?
        } else if !fields.registry_token.is_empty() {
            Secret::RegistryToken(fields.registry_token)
        } else {
            return Ok(None);
        };
        if let Secret::RegistryToken(token) | Secret::IdentityToken(token) = &secret {
            if token.chars().any(char::is_control) {
                return Err(InvalidAuth::ControlCharacter);
            }
        }
        Ok(Some(Auth { server: server_host(&fields.server_address), secret }))
    }

    /// A user name and a password for the registry of the image.
    pub fn password(username: impl Into<String>, password: impl Into<String>) -> Auth {
        let secret = Secret::Password { username: username.into(), password: password.into() };
        Auth { server: None, secret }
    }

    /// The secret, if it may be sent to the registry host `host` on behalf of an image whose reference names `registry`.
    ///
    /// `is_upstream` tells that the host is the registry itself and not a mirror of it.
    pub(crate) fn secret_for(&self, host: &str, registry: &str, is_upstream: bool) -> Option<&Secret> {
        let fits = match &self.server {
            None => is_upstream,
            Some(server) if same_registry(server, host) => true,
            Some(server) => is_upstream && same_registry(server, registry),
        };
        fits.then_some(&self.secret)
    }
}

/// The value of an `Authorization` header for a user name and a password (RFC 7617).
pub(crate) fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

fn decode_basic(text: &str) -> Result<Secret, InvalidAuth> {
    let text = text.trim();
    let engine: &GeneralPurpose = if text.ends_with('=') { &STANDARD } else { &STANDARD_NO_PAD };
    let bytes = engine.decode(text).map_err(|_| InvalidAuth::NotBase64)?;
    let text = String::from_utf8(bytes).map_err(|_| InvalidAuth::NotBase64)?;
    let (username, password) = text.split_once(':').ok_or(InvalidAuth::NoColon)?;
    // Old docker versions padded the password with NULs; containerd trims them too.
    let password = password.trim_end_matches('\0');
    Ok(Secret::Password { username: username.to_owned(), password: password.to_owned() })
}

/// `https://index.docker.io/v1/` and `index.docker.io` are both in use.
fn server_host(address: &str) -> Option<String> {
    let address = address.trim();
    if address.is_empty() {
        return None;
    }
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    Some(host.to_ascii_lowercase())
}

/// Compares hosts; Docker Hub goes by three names, and a default port may be left out.
fn same_registry(one: &str, other: &str) -> bool {
    fn canonical(host: &str) -> String {
        let host = host.to_ascii_lowercase();
        let host = host.strip_suffix(":443").unwrap_or(&host);
        match host {
            "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
            other => other.to_owned(),
        }
    }
    canonical(one) == canonical(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> AuthFields {
        AuthFields::default()
    }

    #[test]
    fn every_kind_of_credentials_is_understood() {
        assert_eq!(Auth::from_fields(fields()).unwrap(), None);
        let password = Some(Auth::password("me", "p:w"));
        let plain = AuthFields { username: "me".into(), password: "p:w".into(), ..fields() };
        assert_eq!(Auth::from_fields(plain).unwrap(), password);
        for auth in ["bWU6cDp3", "bWU6cDp3AAA=", " bWU6cDp3\n"] {
            assert_eq!(Auth::from_fields(AuthFields { auth: auth.into(), ..fields() }).unwrap(), password);
        }
        let identity = AuthFields { identity_token: "i".into(), registry_token: "r".into(), ..fields() };
        assert!(Auth::from_fields(identity).unwrap().unwrap().secret == Secret::IdentityToken("i".into()));
        let token = AuthFields { registry_token: "r".into(), ..fields() };
        assert!(Auth::from_fields(token).unwrap().unwrap().secret == Secret::RegistryToken("r".into()));
    }

    #[test]
    fn broken_credentials_are_refused_without_telling_them() {
        for (auth, error) in [("!!", InvalidAuth::NotBase64), ("bWU=", InvalidAuth::NoColon)] {
            assert_eq!(Auth::from_fields(AuthFields { auth: auth.into(), ..fields() }), Err(error));
        }
        let split = AuthFields { registry_token: "a\r\nHost: evil".into(), ..fields() };
        assert_eq!(Auth::from_fields(split), Err(InvalidAuth::ControlCharacter));
        let auth = Auth::password("me", "hunter2");
        assert!(!format!("{auth:?}").contains("hunter2"));
        assert!(!format!("{:?}", AuthFields { password: "hunter2".into(), ..fields() }).contains("hunter2"));
    }

    #[test]
    fn credentials_go_to_their_own_registry_only() {
        let any = Auth::password("me", "pw");
        assert!(any.secret_for("reg.example", "reg.example", true).is_some());
        assert!(any.secret_for("mirror.example", "reg.example", false).is_none());

        let hub = AuthFields {
            username: "me".into(),
            server_address: "https://index.docker.io/v1/".into(),
            ..fields()
        };
        let hub = Auth::from_fields(hub).unwrap().unwrap();
        assert!(hub.secret_for("registry-1.docker.io", "docker.io", true).is_some());
        assert!(hub.secret_for("quay.io", "quay.io", true).is_none());

        let mirror =
            AuthFields { username: "me".into(), server_address: "mirror.example:5000".into(), ..fields() };
        let mirror = Auth::from_fields(mirror).unwrap().unwrap();
        assert!(mirror.secret_for("mirror.example:5000", "docker.io", false).is_some());
        assert!(mirror.secret_for("registry-1.docker.io", "docker.io", true).is_none());
        assert!(mirror.secret_for("mirror.example", "docker.io", false).is_none());
    }
}
