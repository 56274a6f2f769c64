//! Which protocol is spoken after the upgrade.
//!
//! Clients name those they know, best first, and the first that is known here is taken: as the reference server does it
//! (`k8s.io/cri-streaming`), which has no v5 and no tunnel.

use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Method, Request, StatusCode};

use super::answer::Refusal;
use crate::request::{Plan, checked_ports};
use crate::serve::{Command, Job, Protocol, Transport};
use crate::session::StatusFormat;
use crate::websocket::{self, Codec};

/// What SPDY clients know.
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// What the server knows, told to a client that knows nothing of it.
const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

const SPDY: &str = "SPDY/3.1";

/// Exec and attach over SPDY. v5 is v4 there: it brought the closing of one stream, which SPDY always had.
const SPDY_COMMAND: &[(&str, Protocol)] = &[
    ("v5.channel.k8s.io", over_spdy(StatusFormat::Json, true)),
    ("v4.channel.k8s.io", over_spdy(StatusFormat::Json, true)),
    ("v3.channel.k8s.io", over_spdy(StatusFormat::Text, true)),
    ("v2.channel.k8s.io", over_spdy(StatusFormat::Text, false)),
    ("channel.k8s.io", over_spdy(StatusFormat::Text, false)),
];

/// Exec and attach over WebSocket; "" is for clients that name nothing.
const WEBSOCKET_COMMAND: &[(&str, Protocol)] = &[
    ("v5.channel.k8s.io", over_channels(Codec::Closing, StatusFormat::Json)),
    ("v4.channel.k8s.io", over_channels(Codec::Binary, StatusFormat::Json)),
    ("v4.base64.channel.k8s.io", over_channels(Codec::Base64, StatusFormat::Json)),
    ("channel.k8s.io", over_channels(Codec::Binary, StatusFormat::Text)),
    ("base64.channel.k8s.io", over_channels(Codec::Base64, StatusFormat::Text)),
    ("", over_channels(Codec::Binary, StatusFormat::Text)),
];

const SPDY_PORTS: &[(&str, Transport)] = &[("portforward.k8s.io", Transport::Spdy)];

const WEBSOCKET_PORTS: &[(&str, Transport)] = &[
    ("SPDY/3.1+portforward.k8s.io", Transport::Tunnel),
    ("v4.channel.k8s.io", Transport::Channels(Codec::Binary)),
    ("v4.base64.channel.k8s.io", Transport::Channels(Codec::Base64)),
    ("", Transport::Channels(Codec::Binary)),
];

const fn over_spdy(status: StatusFormat, resize: bool) -> Protocol {
    Protocol { transport: Transport::Spdy, status, resize }
}

const fn over_channels(codec: Codec, status: StatusFormat) -> Protocol {
    Protocol { transport: Transport::Channels(codec), status, resize: true }
}

/// An upgrade.
pub(super) struct Agreement {
    /// Of the answer.
    pub(super) headers: HeaderMap,
    pub(super) job: Job,
}

/// Agrees with a client on how its request is served.
pub(super) fn negotiate<B>(request: &Request<B>, plan: Plan) -> Result<Agreement, Refusal> {
    let websocket = is_websocket(request.headers());
    let mut upgrade = if websocket { Upgrade::websocket(request)? } else { Upgrade::spdy(request)? };
    let job = match plan {
        Plan::Exec(exec) => {
            let known = if websocket { WEBSOCKET_COMMAND } else { SPDY_COMMAND };
            Job::Command(Command::Exec(exec), upgrade.choose(known)?)
        }
        Plan::Attach(attach) => {
            let known = if websocket { WEBSOCKET_COMMAND } else { SPDY_COMMAND };
            Job::Command(Command::Attach(attach), upgrade.choose(known)?)
        }
        Plan::PortForward(forward) => {
            let transport = upgrade.choose(if websocket { WEBSOCKET_PORTS } else { SPDY_PORTS })?;
            let ports = match transport {
                Transport::Channels(_) => ports(&forward.ports, request.uri().query())?,
                Transport::Spdy | Transport::Tunnel => Vec::new(),
            };
            Job::PortForward { request: forward, ports, transport }
        }
    };
    upgrade.check(request.headers())?;
    Ok(Agreement { headers: upgrade.headers, job })
}

/// An upgrade that is being agreed on.
struct Upgrade {
    websocket: bool,
    /// What the client knows, best first.
    offered: Vec<String>,
    headers: HeaderMap,
}

impl Upgrade {
    fn spdy<B>(request: &Request<B>) -> Result<Self, Refusal> {
        let offered = listed(request.headers(), &PROTOCOL_VERSION);
        if offered.is_empty() {
            let text = format!("unable to upgrade: header {PROTOCOL_VERSION} is missing or empty");
            return Err(Refusal::new(StatusCode::BAD_REQUEST, text));
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(SPDY));
        Ok(Self { websocket: false, offered, headers })
    }

    fn websocket<B>(request: &Request<B>) -> Result<Self, Refusal> {
        if request.method() != Method::GET {
            let text = "a WebSocket begins with GET";
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, text));
        }
        if request.headers().get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            let text = "the version of WebSocket is not 13";
            let mut refusal = Refusal::new(StatusCode::BAD_REQUEST, text);
            refusal.headers.push((SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")));
            return Err(refusal);
        }
        let key = request.headers().get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
        let accept = key.and_then(websocket::accept).and_then(|accept| HeaderValue::try_from(accept).ok());
        let Some(accept) = accept else {
            let text = format!("header {SEC_WEBSOCKET_KEY} is missing, or not 16 bytes in base64");
            return Err(Refusal::new(StatusCode::BAD_REQUEST, text));
        };
        let mut offered = listed(request.headers(), &SEC_WEBSOCKET_PROTOCOL);
        if offered.is_empty() {
            offered.push(String::new());
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        Ok(Self { websocket: true, offered, headers })
    }

    /// Takes the first that both know.
    fn choose<T: Copy>(&mut self, known: &[(&'static str, T)]) -> Result<T, Refusal> {
        let chosen = self.offered.iter().find_map(|offer| known.iter().find(|(name, _)| name == offer));
        let Some((name, meaning)) = chosen else {
            let names =
                known.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect::<Vec<_>>();
            let offered = self.offered.join(", ");
            let text = format!(
                "unable to negotiate protocol: client supports {offered:?}, server accepts {:?}",
                names.join(", ")
            );
            let mut refusal = Refusal::new(StatusCode::FORBIDDEN, text);
            let accepted = names.into_iter().map(|name| (ACCEPTED_VERSIONS, HeaderValue::from_static(name)));
            refusal.headers.extend(accepted);
            return Err(refusal);
        };
        if !name.is_empty() {
            let header = if self.websocket { SEC_WEBSOCKET_PROTOCOL } else { PROTOCOL_VERSION };
            self.headers.insert(header, HeaderValue::from_static(name));
        }
        Ok(*meaning)
    }

    /// Whether the client asks for the upgrade at all. Known of a WebSocket client; of others only after they were told that no protocol
    /// fits, as from the reference server.
    fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let spdy = listed(headers, &UPGRADE).iter().any(|upgrade| upgrade.eq_ignore_ascii_case(SPDY));
        if self.websocket || (is_upgrade(headers) && spdy) {
            return Ok(());
        }
        let text = format!("unable to upgrade: no \"Connection: Upgrade\" with \"Upgrade: {SPDY}\"");
        Err(Refusal::new(StatusCode::BAD_REQUEST, text))
    }
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    listed(headers, &CONNECTION).iter().any(|option| option.eq_ignore_ascii_case("upgrade"))
}

fn is_websocket(headers: &HeaderMap) -> bool {
    is_upgrade(headers)
        && headers.get(UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// What stands between the commas of a header, which may come more than once. Other than text counts as nothing.
fn listed(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let items = values.flat_map(|value| value.split(',')).map(str::trim);
    items.filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// The ports of a client that has one connection to each: those of the request, or else of the URL that it came with.
fn ports(requested: &[i32], query: Option<&str>) -> Result<Vec<u16>, Refusal> {
    let bad = |text: String| Refusal::new(StatusCode::BAD_REQUEST, text);
    let mut numbers = requested.iter().map(|port| i64::from(*port)).collect::<Vec<_>>();
    if numbers.is_empty() {
        let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        for list in pairs.filter(|(name, _)| *name == "port").map(|(_, list)| list) {
            // A comma may be written as an escape.
            for port in list.split(',').flat_map(|list| list.split("%2C")).flat_map(|list| list.split("%2c"))
            {
                numbers.push(port.parse().map_err(|_| bad(format!("{port:?} is no port")))?);
            }
        }
    }
    if numbers.is_empty() {
        return Err(bad("no port is asked for".to_owned()));
    }
    checked_ports(numbers.into_iter()).map_err(|error| bad(error.to_string()))
}
