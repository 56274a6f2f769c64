//! Which streams of a port-forwarding client belong together.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::session::{Outbound, PortStreams};
use crate::spdy::{Headers, ResetStatus, Stream, StreamId};
use crate::wire::{End, Inbound};

/// Halves that may wait at one time, also of streams that the client has given up meanwhile.
const MOST_WAITING: usize = 1024;

/// Bytes of a request's name. Go's clients count.
const LONGEST_REQUEST: usize = 64;

/// What the two streams of a connection have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    /// The client's own number for it.
    Request(String),
    /// The number of the error stream. Clients that name no request make the data stream right after it, two numbers further.
    ErrorStream(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

/// Why a stream is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    #[error("port {0:?} is not from 1 to 65535")]
    Port(Option<String>),
    #[error("stream type {0:?} is neither data nor error")]
    Kind(Option<String>),
    #[error("a request's name of {0} bytes")]
    Request(usize),
    #[error("its connection has one like it")]
    Twice,
    #[error("{MOST_WAITING} streams wait for their other halves")]
    ManyWaiting,
}

/// What becomes of a stream.
#[derive(Debug)]
pub(super) enum Paired {
    Whole(PortStreams),
    /// The other one is yet to come.
    Half,
    Refused(Unfit),
}

#[derive(Debug)]
enum Half {
    Data { port: u16, inbound: Inbound, outbound: Outbound },
    Error(Outbound),
}

/// The streams that wait for their other halves.
#[derive(Debug)]
pub(super) struct Pairs {
    timeout: Duration,
    waiting: HashMap<Key, (Instant, Half)>,
}

impl Pairs {
    /// A half waits for `timeout`.
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, waiting: HashMap::new() }
    }

    /// Takes a stream on, or refuses it.
    pub(super) fn add(&mut self, stream: Stream) -> Result<Paired, End> {
        let (key, kind, port) = match purpose(stream.id(), stream.headers()) {
            Ok(purpose) => purpose,
            Err(unfit) => {
                stream.refuse(ResetStatus::Cancel)?;
                return Ok(Paired::Refused(unfit));
            }
        };
        match (self.waiting.remove(&key), kind) {
            (None, _) if self.waiting.len() >= MOST_WAITING => {
                stream.refuse(ResetStatus::RefusedStream)?;
                Ok(Paired::Refused(Unfit::ManyWaiting))
            }
            (None, kind) => {
                let (inbound, outbound) = stream.accept()?;
                let half = match kind {
                    Kind::Data => Half::Data { port, inbound, outbound: outbound.into() },
                    // What a client says there is of no interest.
                    Kind::Error => Half::Error(outbound.into()),
                };
                self.waiting.insert(key, (Instant::now() + self.timeout, half));
                Ok(Paired::Half)
            }
            (Some((_, Half::Error(error))), Kind::Data) => {
                let (inbound, outbound) = stream.accept()?;
                Ok(Paired::Whole(PortStreams { port, inbound, outbound: outbound.into(), error }))
            }
            (Some((_, Half::Data { port, inbound, outbound })), Kind::Error) => {
                let (_, error) = stream.accept()?;
                Ok(Paired::Whole(PortStreams { port, inbound, outbound, error: error.into() }))
            }
            (Some(first), _) => {
                self.waiting.insert(key, first);
                stream.refuse(ResetStatus::ProtocolError)?;
                Ok(Paired::Refused(Unfit::Twice))
            }
        }
    }

    /// Waits until a half has waited too long, and gives it up.
    pub(super) async fn expired(&mut self) {
        let Some(first) = self.waiting.values().map(|(deadline, _)| *deadline).min() else {
            return std::future::pending().await;
        };
        sleep_until(first).await;
        let now = Instant::now();
        self.waiting.retain(|_, (deadline, half)| {
            let waits = *deadline > now;
            if !waits {
                let (Half::Data { outbound, .. } | Half::Error(outbound)) = half;
                // A full queue of answers ends the connection by itself.
                let _ = outbound.reset();
            }
            waits
        });
    }
}

fn purpose(id: StreamId, headers: &Headers) -> Result<(Key, Kind, u16), Unfit> {
    let port = headers.get("port");
    let port = match port.and_then(|port| port.parse().ok()) {
        Some(port @ 1..) => port,
        _ => return Err(Unfit::Port(port.map(str::to_owned))),
    };
    let kind = match headers.get("streamType") {
        Some("data") => Kind::Data,
        Some("error") => Kind::Error,
        other => return Err(Unfit::Kind(other.map(str::to_owned))),
    };
    let key = match (headers.get("requestID"), kind) {
        (Some(request), _) if request.len() > LONGEST_REQUEST => return Err(Unfit::Request(request.len())),
        (Some(request), _) if !request.is_empty() => Key::Request(request.to_owned()),
        (_, Kind::Error) => Key::ErrorStream(id.0),
        (_, Kind::Data) => Key::ErrorStream(id.0.saturating_sub(2)),
    };
    Ok((key, kind, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(id: u32, headers: &[(&str, &str)]) -> Result<(Key, Kind, u16), Unfit> {
        purpose(StreamId(id), &Headers::of(headers))
    }

    #[test]
    fn streams_say_where_they_belong() {
        let request = |id, kind| of(id, &[("streamtype", kind), ("port", "80"), ("requestid", "7")]);
        assert_eq!(request(1, "error"), Ok((Key::Request("7".to_owned()), Kind::Error, 80)));
        assert_eq!(request(9, "data"), Ok((Key::Request("7".to_owned()), Kind::Data, 80)));
        let old = |id, kind| of(id, &[("streamtype", kind), ("port", "80")]);
        assert_eq!(old(5, "error"), Ok((Key::ErrorStream(5), Kind::Error, 80)));
        assert_eq!(old(7, "data"), Ok((Key::ErrorStream(5), Kind::Data, 80)));
    }

    #[test]
    fn ports_and_types_are_checked() {
        for port in ["", "0", "65536", "-1", "http", "8 0"] {
            let unfit = Unfit::Port(Some(port.to_owned()));
            assert_eq!(of(1, &[("port", port), ("streamtype", "data")]), Err(unfit));
        }
        let long = "7".repeat(65);
        let request = [("port", "80"), ("streamtype", "data"), ("requestid", long.as_str())];
        assert_eq!(of(1, &request), Err(Unfit::Request(65)));
        assert_eq!(of(1, &[("streamtype", "data")]), Err(Unfit::Port(None)));
        assert_eq!(of(1, &[("port", "80")]), Err(Unfit::Kind(None)));
        assert_eq!(
            of(1, &[("port", "80"), ("streamtype", "stdin")]),
            Err(Unfit::Kind(Some("stdin".to_owned())))
        );
    }
}
