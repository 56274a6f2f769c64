//! A blob as a stream of bytes that goes on where a broken connection left off.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderValue, RANGE};
use hyper::{Response, StatusCode};
use tracing::debug;

use super::client::Registry;
use super::refusal::{Refusal, Refusals, chain};
use super::transport::Ask;
use crate::digest::Digest;

/// How often a download is taken up again, in all.
const MAX_RESUMES: u32 = 6;
/// The wait before the first of them; it doubles each time, to 6 seconds in all.
const FIRST_PAUSE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 100 });

/// Why a blob did not come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BlobError {
    /// What the hosts said.
    Refused(Refusals),
    /// Every host that was asked ends the blob before its size.
    Truncated { found: u64 },
    /// The host says that it has more bytes than the manifest says.
    TooLong,
}

/// A download.
pub(crate) struct Blob<'a> {
    registry: &'a Registry,
    digest: Digest,
    size: u64,
    /// Bytes handed out.
    offset: u64,
    body: Option<Incoming>,
    /// Bytes to pass over, of a host that starts from the beginning.
    skip: u64,
    /// Hosts that are left, the current one first.
    hosts: Vec<usize>,
    resumes: u32,
    /// The last one ended too early, rather than with an error.
    ended_early: bool,
    refusals: Refusals,
}

impl Registry {
    /// A blob of a size that the manifest tells. Nothing is asked for before the first byte is wanted.
    pub(crate) fn blob(&self, digest: &Digest, size: u64) -> Blob<'_> {
        Blob {
            registry: self,
            digest: digest.clone(),
            size,
            offset: 0,
            body: None,
            skip: 0,
            hosts: self.pullable(),
            resumes: 0,
            ended_early: false,
            refusals: Refusals::default(),
        }
    }
}

impl Blob<'_> {
    /// The next bytes; None after the last. More bytes than the blob's size may come: the caller counts.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, BlobError> {
        loop {
            if self.body.is_none() {
                if self.offset >= self.size {
                    return Ok(None);
                }
                self.connect().await?;
            }
            match self.frame().await {
                Ok(Some(bytes)) => {
                    self.offset += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                Ok(None) if self.offset >= self.size => return Ok(None),
                Ok(None) => {
                    self.ended_early = true;
                    let said = format!("ended after {} of {} bytes", self.offset, self.size);
                    self.broken(Refusal::unavailable(said)).await?;
                }
                Err(refusal) => self.broken(refusal).await?,
            }
        }
    }

    /// The whole blob, of which the caller knows that it is small.
    pub(crate) async fn bytes(&mut self) -> Result<Vec<u8>, BlobError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > self.size {
                return Err(BlobError::TooLong);
            }
        }
        Ok(bytes)
    }

    /// The host that sent the last bytes is not to be asked again during this pull. False when it was the last one.
    pub(crate) fn distrust(&self) -> bool {
        let Some(&at) = self.hosts.first() else { return false };
        self.registry.peers[at].note(&Refusal::dead(""));
        self.registry.peers.iter().any(|peer| peer.host.can_pull && !peer.is_dead())
    }

    /// A piece of the body without what is to be skipped. An `Err` closes the connection.
    async fn frame(&mut self) -> Result<Option<Bytes>, Refusal> {
        let timeout = self.registry.timeout;
        while let Some(body) = &mut self.body {
            let frame = match tokio::time::timeout(timeout, body.frame()).await {
                Err(_) => {
                    self.ended_early = false;
                    return Err(Refusal::dead(format!("no byte in {timeout:?}")));
                }
                Ok(None) => break,
                Ok(Some(Err(error))) => {
                    self.ended_early = is_end_of_file(&error);
                    return Err(Refusal::unavailable(chain(&error)));
                }
                Ok(Some(Ok(frame))) => frame,
            };
            let mut data = frame.into_data().unwrap_or_default();
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(data.len());
            self.skip -= skipped as u64;
            let data = data.split_off(skipped);
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// Notes what broke, and decides whether there is another try.
    async fn broken(&mut self, refusal: Refusal) -> Result<(), BlobError> {
        self.body = None;
        self.resumes += 1;
        let gone = refusal.dead || self.resumes > MAX_RESUMES;
        debug!(digest = %self.digest, offset = self.offset, said = refusal.said, "a download broke");
        if gone {
            self.give_up(refusal)?;
        }
        tokio::time::sleep(FIRST_PAUSE.saturating_mul(1 << self.resumes.saturating_sub(1).min(10))).await;
        Ok(())
    }

    /// Turns to the next host; an error when there is none.
    fn give_up(&mut self, refusal: Refusal) -> Result<(), BlobError> {
        if let Some(&at) = self.hosts.first() {
            let peer = &self.registry.peers[at];
            peer.note(&refusal);
            self.refusals.add(peer.host.label(), refusal);
        }
        if self.hosts.len() > 1 {
            self.hosts.remove(0);
            self.resumes = 0;
            return Ok(());
        }
        match self.ended_early {
            true => Err(BlobError::Truncated { found: self.offset }),
            false => Err(BlobError::Refused(std::mem::take(&mut self.refusals))),
        }
    }

    /// Asks for the rest of the blob, of one host after the other.
    async fn connect(&mut self) -> Result<(), BlobError> {
        loop {
            let Some(&at) = self.hosts.first() else {
                return Err(BlobError::Refused(std::mem::take(&mut self.refusals)));
            };
            let peer = &self.registry.peers[at];
            let mut ask = Ask::get(self.registry.url(peer, "blobs", &self.digest.to_string()));
            if self.offset > 0 {
                if let Ok(range) = HeaderValue::try_from(format!("bytes={}-", self.offset)) {
                    ask.headers.insert(RANGE, range);
                }
            }
            let response = self.registry.send(peer, ask).await;
            match response.and_then(|response| self.starts_at(&response).map(|skip| (response, skip))) {
                Ok((response, skip)) => {
                    if let Some(length) = content_length(&response) {
                        self.check_length(length.saturating_sub(skip))?;
                    }
                    self.skip = skip;
                    self.body = Some(response.into_body());
                    return Ok(());
                }
                Err(refusal) if self.offset > 0 && !refusal.dead => {
                    self.ended_early = false;
                    self.broken(refusal).await?;
                }
                Err(refusal) => {
                    self.ended_early = false;
                    self.give_up(refusal)?;
                }
            }
        }
    }

    /// How many bytes at the start of an answer are known already.
    fn starts_at(&self, response: &Response<Incoming>) -> Result<u64, Refusal> {
        match response.status() {
            StatusCode::OK => Ok(self.offset),
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let start: Option<u64> =
                    range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
                match start {
                    Some(start) if start == self.offset => Ok(0),
                    _ => Err(Refusal::dead("an answer with another range than asked for")),
                }
            }
            other => Err(Refusal::unavailable(format!("an answer with status {other}"))),
        }
    }

    /// A host that knows the blob's length, and it is another one than the manifest's, need not be listened to.
    fn check_length(&self, length: u64) -> Result<(), BlobError> {
        let found = self.offset + length;
        match found.cmp(&self.size) {
            std::cmp::Ordering::Less => Err(BlobError::Truncated { found }),
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => Err(BlobError::TooLong),
        }
    }
}

fn content_length(response: &Response<Incoming>) -> Option<u64> {
    response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The connection was closed in the middle of a body.
fn is_end_of_file(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    error.is_incomplete_message()
        || cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::UnexpectedEof)
}
