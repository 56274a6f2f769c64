//! The way to the collector: batches over one connection, made anew when it breaks. A collector that is dead, slow or hostile costs spans, which are
//! counted, and nothing else.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::otlp::{
    self, ExportRequest, ExportResponse, KeyValue, Resource, ResourceSpans, Scope, ScopeSpans,
};
use super::tracer::{Finished, Teller, Tracer};
use crate::backend::printable;
use crate::config::Tracing;
use crate::metrics::Own;

/// Spans that wait for the collector: a megabyte or so, and ten pods' starts a second for as long as a batch may take.
const QUEUE: usize = 2048;
/// Spans of one request.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// For one request (OTLP's own default).
const REQUEST: Duration = Duration::from_secs(10);
/// Between attempts to send a batch, after which it is given up.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];
/// For what is left when the daemon ends.
const LAST: Duration = Duration::from_secs(2);
/// Bytes of an answer, which says next to nothing.
const ANSWER: usize = 64 << 10;
/// Bytes of its headers.
const HEADERS: u32 = 16 << 10;

/// Characters of what the collector says of an error.
const WORDS: usize = 256;

/// Sends what [`Tracer`]s finish.
#[derive(Debug)]
pub(crate) struct Exporter {
    tracer: Tracer,
    ending: oneshot::Sender<()>,
    work: JoinHandle<()>,
}

impl Exporter {
    /// None, unless a collector is configured. The endpoint was looked at with the configuration.
    pub(crate) fn start(config: &Tracing, own: &Own) -> Result<Option<Self>, tonic::transport::Error> {
        if config.otlp_endpoint.is_empty() {
            return Ok(None);
        }
        let channel = Endpoint::from_shared(config.otlp_endpoint.clone())?
            .connect_timeout(REQUEST)
            .http2_max_header_list_size(HEADERS)
            .connect_lazy();
        let (queue, finished) = mpsc::channel(QUEUE);
        let (ending, ends) = oneshot::channel();
        let work = Work { channel, own: own.clone(), finished, is_failing: false };
        Ok(Some(Self {
            tracer: Tracer::new(queue, config.sample_ratio, own.clone()),
            ending,
            work: tokio::spawn(work.run(ends)),
        }))
    }

    pub(crate) fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Sends what there is, for a moment; what comes later is dropped.
    pub(crate) async fn end(self) {
        let _ = self.ending.send(());
        // It has a deadline of its own.
        let _ = self.work.await;
    }
}

/// The task that sends.
struct Work {
    channel: Channel,
    own: Own,
    finished: mpsc::Receiver<Finished>,
    /// The log knows already that the collector does not take spans.
    is_failing: bool,
}

impl Work {
    async fn run(mut self, mut ends: oneshot::Receiver<()>) {
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                () = self.gather(&mut batch) => {}
                _ = &mut ends => return self.finish(batch, Instant::now() + LAST).await,
            }
            let mut deadline = None;
            {
                let mut sending = std::pin::pin!(self.send(batch));
                tokio::select! {
                    () = &mut sending => {}
                    _ = &mut ends => {
                        let until = *deadline.insert(Instant::now() + LAST);
                        let _ = timeout_at(until, sending).await;
                    }
                }
            }
            if let Some(deadline) = deadline {
                return self.finish(Vec::new(), deadline).await;
            }
        }
    }

    /// Waits for a span, and a little longer for others. What it has is in the batch when it is dropped.
    async fn gather(&mut self, batch: &mut Vec<Finished>) {
        self.finished.recv_many(batch, BATCH).await;
        let until = Instant::now() + LINGER;
        while batch.len() < BATCH {
            let more = self.finished.recv_many(batch, BATCH - batch.len());
            if !matches!(timeout_at(until, more).await, Ok(1..)) {
                return;
            }
        }
    }

    /// The last batches; what is not sent by then is lost.
    async fn finish(mut self, mut batch: Vec<Finished>, deadline: Instant) {
        self.finished.close();
        let mut lost = 0;
        loop {
            let room = BATCH.saturating_sub(batch.len()).max(1);
            let more = self.finished.recv_many(&mut batch, room).await;
            if batch.is_empty() && more == 0 {
                break;
            }
            let count = batch.len();
            let request = request(std::mem::take(&mut batch));
            match timeout_at(deadline, self.attempt(request)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => lost += count,
            }
        }
        if lost > 0 {
            tracing::warn!(spans = lost, "ended before the collector had all spans");
        }
    }

    /// Sends a batch, again if need be; or gives it up.
    async fn send(&mut self, batch: Vec<Finished>) {
        let count = batch.len() as u64;
        if count == 0 {
            return;
        }
        let request = request(batch);
        let mut pauses = PAUSES.iter();
        loop {
            let error = match self.attempt(request.clone()).await {
                Ok(()) => break self.is_failing = false,
                Err(error) => error,
            };
            match pauses.next().filter(|_| may_succeed_later(error.code())) {
                Some(pause) => sleep(*pause).await,
                None => {
                    self.own.spans("failed", count);
                    break self.told_of(&error);
                }
            }
        }
    }

    /// Once, until spans are taken again.
    fn told_of(&mut self, error: &Status) {
        if !std::mem::replace(&mut self.is_failing, true) {
            let error: String = printable(error.message()).chars().take(WORDS).collect();
            tracing::warn!(error, "the collector takes no spans; told again when it did meanwhile");
        }
    }

    async fn attempt(&self, request: ExportRequest) -> Result<(), Status> {
        let count: usize =
            request.resource_spans.iter().flat_map(|r| &r.scope_spans).map(|s| s.spans.len()).sum();
        let answer = timeout(REQUEST, export(self.channel.clone(), request)).await;
        let answer = answer
            .unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("no answer for {REQUEST:?}"))))?;
        let refused = answer.partial_success.map_or(0, |part| part.rejected_spans);
        let refused = u64::try_from(refused).unwrap_or(0).min(count as u64);
        self.own.spans("refused", refused);
        self.own.spans("exported", count as u64 - refused);
        Ok(())
    }
}

async fn export(channel: Channel, request: ExportRequest) -> Result<ExportResponse, Status> {
    let mut collector = Grpc::new(channel).max_decoding_message_size(ANSWER);
    collector.ready().await.map_err(|error| Status::unavailable(crate::chain(&error)))?;
    let path = PathAndQuery::from_static(otlp::EXPORT);
    let codec = ProstCodec::<ExportRequest, ExportResponse>::default();
    collector.unary(Request::new(request), path, codec).await.map(tonic::Response::into_inner)
}

/// OTLP's list of what is worth another attempt (opentelemetry-proto, specification, "Failures").
fn may_succeed_later(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    )
}

fn request(batch: Vec<Finished>) -> ExportRequest {
    let (agents, daemon): (Vec<_>, Vec<_>) = batch.into_iter().partition(|f| f.teller == Teller::Agent);
    let of = |program: &str, spans: Vec<Finished>| ResourceSpans {
        resource: Some(resource(program)),
        scope_spans: vec![ScopeSpans {
            scope: Some(Scope { name: "hartpod".into(), version: env!("CARGO_PKG_VERSION").into() }),
            spans: spans.into_iter().map(|finished| finished.span).collect(),
        }],
    };
    let told = [("hartpod", daemon), ("hartpod-pod", agents)].into_iter();
    let told = told.filter(|(_, spans)| !spans.is_empty()).map(|(program, spans)| of(program, spans));
    ExportRequest { resource_spans: told.collect() }
}

/// Who a program is (semantic conventions, resource). An agent's version may be that of an earlier daemon, so it has none.
fn resource(program: &str) -> Resource {
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let attributes = vec![KeyValue::new("service.name", program), KeyValue::new("host.name", node.as_str())];
    Resource { attributes }
}

#[cfg(test)]
mod tests {
    use super::super::otlp::Span;
    use super::*;

    fn finished(teller: Teller, name: &str) -> Finished {
        Finished { teller, span: Span { name: name.into(), ..Span::default() } }
    }

    fn started(endpoint: &str) -> (Own, Exporter) {
        let own = Own::new().unwrap();
        let config = Tracing { otlp_endpoint: endpoint.into(), ..Tracing::default() };
        let exporter = Exporter::start(&config, &own).unwrap().unwrap();
        (own, exporter)
    }

    #[test]
    fn spans_stand_with_the_program_that_they_are_of() {
        let told = request(vec![
            finished(Teller::Daemon, "a"),
            finished(Teller::Agent, "b"),
            finished(Teller::Daemon, "c"),
        ]);
        let names: Vec<Vec<_>> = told
            .resource_spans
            .iter()
            .map(|r| r.scope_spans[0].spans.iter().map(|s| s.name.as_str()).collect())
            .collect();
        assert_eq!(names, [vec!["a", "c"], vec!["b"]]);
    }

    #[tokio::test]
    async fn nothing_is_started_without_a_collector() {
        let own = Own::new().unwrap();
        assert!(Exporter::start(&Tracing::default(), &own).unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_collector_that_is_not_there_costs_spans_and_nothing_else() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (own, exporter) = started(&format!("http://{closed}"));
        for _ in 0..QUEUE + 10 {
            exporter.tracer().finish(finished(Teller::Daemon, "a"));
        }
        assert!(own.render().contains("{result=\"dropped\"} 10\n"), "{}", own.render());
        sleep(Duration::from_secs(60)).await;
        assert!(own.render().contains(&format!("{{result=\"failed\"}} {QUEUE}\n")), "{}", own.render());
        exporter.end().await;
    }

    #[tokio::test]
    async fn a_collector_that_says_nothing_does_not_hold_the_end() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (_, exporter) = started(&format!("http://{}", silent.local_addr().unwrap()));
        exporter.tracer().finish(finished(Teller::Daemon, "a"));
        timeout(LAST * 3, exporter.end()).await.unwrap();
    }
}
