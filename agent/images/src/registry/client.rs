//! Manifests from the hosts of a registry.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Response, StatusCode};

use super::challenge::{self, Challenge};
use super::host::Host;
use super::hosts_file::{SettingsError, hosts_blocking};
use super::refusal::{Class, Refusal, Refusals};
use super::token::{self, TokenRequest, bearer, encode};
use super::transport::{Ask, Transport, read_body, refusal};
use crate::auth::{Auth, Secret, basic};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::reference::Reference;

/// The most bytes of a manifest, index or configuration. Same as containerd's.
pub(crate) const MAX_MANIFEST: usize = 8 << 20;
/// What is accepted as a manifest.
const ACCEPTED: HeaderValue = HeaderValue::from_static(
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1",
);

/// Settings of all pulls.
#[derive(Clone, Debug)]
pub(crate) struct RegistryOptions {
    pub(crate) hosts_dir: PathBuf,
    /// How long a host may send nothing.
    pub(crate) progress_timeout: Duration,
}

/// The hosts to ask during one pull.
pub(crate) struct Registry {
    reference: Reference,
    auth: Option<Auth>,
    pub(super) timeout: Duration,
    pub(super) peers: Vec<Peer>,
}

/// A host, and what was learned about it during this pull.
pub(super) struct Peer {
    pub(super) host: Host,
    transport: Transport,
    /// Guards the value of the `Authorization` header that it took last.
    authorization: Mutex<Option<HeaderValue>>,
    /// It did not answer, or sent something wrong: do not ask it again.
    dead: AtomicBool,
}

/// A manifest or index as it came.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    pub(crate) bytes: Bytes,
    pub(crate) media_type: Option<String>,
    pub(crate) digest: Digest,
}

/// What a host must be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// Content by digest.
    Pull,
    /// The digest of a tag.
    Resolve,
}

impl Registry {
    /// Reads the registry's settings.
    pub(crate) async fn open(
        reference: &Reference,
        auth: Option<Auth>,
        options: &RegistryOptions,
    ) -> Result<Registry, SettingsError> {
        let (folder, registry) = (options.hosts_dir.clone(), reference.registry().to_owned());
        let hosts = tokio::task::spawn_blocking(move || hosts_blocking(&folder, &registry)).await;
        let hosts = hosts.unwrap_or_else(|error| {
            Err(SettingsError::Read { path: options.hosts_dir.clone(), source: error.into() })
        })?;
        let timeout = options.progress_timeout;
        let peers = hosts.into_iter().map(|host| Peer::new(host, timeout)).collect();
        Ok(Registry { reference: reference.clone(), auth, timeout, peers })
    }

    /// The digest that the reference's tag or digest has now, if a host says so to a HEAD request: the cheap way to see that an
    /// image is up to date and that these credentials may have it.
    pub(crate) async fn head(&self) -> Option<Digest> {
        let (what, need) = self.wanted();
        for peer in self.usable(need) {
            let mut ask = self.manifest_ask(peer, &what);
            ask.method = Method::HEAD;
            match self.send(peer, ask).await {
                Ok(response) => return content_digest(response.headers()),
                Err(refusal) => peer.note(&refusal),
            }
        }
        None
    }

    /// The manifest or index that the reference names.
    pub(crate) async fn top(&self) -> Result<Fetched, Refusals> {
        let (what, need) = self.wanted();
        self.manifest(&what, need, self.reference.digest()).await
    }

    /// A manifest by digest.
    pub(crate) async fn by_digest(&self, digest: &Digest) -> Result<Fetched, Refusals> {
        self.manifest(&digest.to_string(), Need::Pull, Some(digest)).await
    }

    fn wanted(&self) -> (String, Need) {
        match self.reference.digest() {
            Some(digest) => (digest.to_string(), Need::Pull),
            None => (self.reference.tag().unwrap_or("latest").to_owned(), Need::Resolve),
        }
    }

    async fn manifest(&self, what: &str, need: Need, digest: Option<&Digest>) -> Result<Fetched, Refusals> {
        let mut refusals = Refusals::default();
        for peer in self.usable(need) {
            match self.manifest_from(peer, what, digest).await {
                Ok(fetched) => return Ok(fetched),
                Err(refusal) => {
                    peer.note(&refusal);
                    refusals.add(peer.host.label(), refusal);
                }
            }
        }
        Err(refusals)
    }

    async fn manifest_from(
        &self,
        peer: &Peer,
        what: &str,
        digest: Option<&Digest>,
    ) -> Result<Fetched, Refusal> {
        let response = self.send(peer, self.manifest_ask(peer, what)).await?;
        let media_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = media_type.map(|text| text.split(';').next().unwrap_or(text).trim().to_owned());
        let promised = digest.cloned().or_else(|| content_digest(response.headers()));
        let bytes = read_body(response.into_body(), MAX_MANIFEST, self.timeout).await?;
        let mut hasher = Hasher::new(promised.as_ref().map_or(Algorithm::Sha256, Digest::algorithm));
        hasher.update(&bytes);
        let found = hasher.finish();
        match promised {
            Some(promised) if promised != found => {
                Err(Refusal::wrong(format!("sent a manifest with digest {found} for {promised}")))
            }
            _ => Ok(Fetched { bytes, media_type, digest: found }),
        }
    }

    fn manifest_ask(&self, peer: &Peer, what: &str) -> Ask {
        let mut ask = Ask::get(self.url(peer, "manifests", what));
        ask.headers.insert(ACCEPT, ACCEPTED);
        ask
    }

    /// Mirrors of several registries are told which one is meant, as containerd does.
    pub(super) fn url(&self, peer: &Peer, kind: &str, what: &str) -> String {
        let registry = self.reference.registry();
        let namespace = match peer.host.is_upstream {
            true => String::new(),
            false => format!("?ns={}", encode(registry)),
        };
        format!("{}/{}/{kind}/{what}{namespace}", peer.host.base, self.reference.path())
    }

    /// The hosts that can do it. When all of them failed before they get another chance: there is nobody else to ask.
    fn usable(&self, need: Need) -> Vec<&Peer> {
        let able = |peer: &&Peer| match need {
            Need::Pull => peer.host.can_pull,
            Need::Resolve => peer.host.can_resolve,
        };
        let alive: Vec<_> = self.peers.iter().filter(able).filter(|peer| !peer.is_dead()).collect();
        match alive.is_empty() {
            true => self.peers.iter().filter(able).collect(),
            false => alive,
        }
    }

    /// The places of the hosts that have content by digest.
    pub(super) fn pullable(&self) -> Vec<usize> {
        let able: Vec<_> = (0..self.peers.len()).filter(|&at| self.peers[at].host.can_pull).collect();
        let alive: Vec<_> = able.iter().copied().filter(|&at| !self.peers[at].is_dead()).collect();
        if alive.is_empty() { able } else { alive }
    }

    /// Asks a host, with credentials when it wants them. Anything but 2xx is a refusal.
    pub(super) async fn send(&self, peer: &Peer, mut ask: Ask) -> Result<Response<Incoming>, Refusal> {
        ask.private.extend(peer.host.headers.iter().cloned());
        let mut known = peer.known_authorization(self.secret(peer));
        // Round 1 with what is known, round 2 with a token for what the answer to round 1 asked for.
        for round in 1.. {
            if let Some(value) = &known {
                ask.private.insert(AUTHORIZATION, value.clone());
            }
            let response = peer.transport.send(&ask).await?;
            if response.status().is_success() {
                return Ok(response);
            }
            if response.status() != StatusCode::UNAUTHORIZED || round == 2 {
                return Err(refusal(response, self.timeout).await);
            }
            let challenges = challenges(response.headers());
            match self.authorization(peer, &challenges).await? {
                Some(value) => known = Some(peer.remember(value)),
                None => return Err(refusal(response, self.timeout).await),
            }
        }
        Err(Refusal::unavailable("no answer"))
    }

    fn secret(&self, peer: &Peer) -> Option<&Secret> {
        let auth = self.auth.as_ref()?;
        auth.secret_for(&peer.host.authority(), self.reference.registry(), peer.host.is_upstream)
    }

    /// Meets a challenge; None when there is nothing to meet it with.
    async fn authorization(
        &self,
        peer: &Peer,
        challenges: &[Challenge],
    ) -> Result<Option<HeaderValue>, Refusal> {
        let secret = self.secret(peer);
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, service, scope } => Some((realm, service, scope)),
            Challenge::Basic => None,
        });
        if let Some((realm, service, scope)) = bearer {
            let default = format!("repository:{}:pull", self.reference.path());
            let request = TokenRequest {
                realm,
                service: service.as_deref(),
                scope: scope.as_deref().unwrap_or(&default),
                secret,
                encrypted: peer.host.base.starts_with("https://"),
            };
            return token::fetch(&peer.transport, &request, self.timeout).await.map(Some);
        }
        match secret {
            Some(Secret::Password { username, password }) if challenges.contains(&Challenge::Basic) => {
                let mut value = HeaderValue::try_from(basic(username, password)).map_err(|_| Refusal {
                    class: Class::Unauthorized,
                    said: "a user name or password that cannot be sent".to_owned(),
                    dead: false,
                })?;
                value.set_sensitive(true);
                Ok(Some(value))
            }
            _ => Ok(None),
        }
    }
}

impl Peer {
    fn new(host: Host, timeout: Duration) -> Peer {
        let transport = Transport::new(host.tls.clone(), host.dial_timeout, timeout);
        Peer { host, transport, authorization: Mutex::new(None), dead: AtomicBool::new(false) }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    pub(super) fn note(&self, refusal: &Refusal) {
        if refusal.dead {
            self.dead.store(true, Ordering::Relaxed);
        }
    }

    fn known_authorization(&self, secret: Option<&Secret>) -> Option<HeaderValue> {
        let known = self.authorization.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        known.or_else(|| match secret {
            Some(Secret::RegistryToken(token)) => bearer(token),
            _ => None,
        })
    }

    fn remember(&self, value: HeaderValue) -> HeaderValue {
        let mut known = self.authorization.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        known.insert(value).clone()
    }
}

fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(challenge::parse).collect()
}

/// What the host says that the content's digest is.
fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.trim().parse().ok()
}
