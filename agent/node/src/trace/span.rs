//! Spans under way, and which of them is the current one.

use std::borrow::Cow;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::otlp::{self, KeyValue, Kind, StatusCode, Value};
use super::traceparent::TraceParent;
use super::tracer::{Finished, Teller, Trace, random};

/// Attributes of a span.
const ATTRIBUTES: usize = 32;
/// Characters of an attribute or a message: errors may quote anything.
const TEXT: usize = 512;

tokio::task_local! {
    static CURRENT: Context;
}

/// The span that work is done for, or none: then nothing is recorded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Context(Option<Arc<Open>>);

/// A span that has not ended.
#[derive(Debug)]
struct Open {
    trace: Arc<Trace>,
    id: [u8; 8],
    parent: Option<[u8; 8]>,
    name: Cow<'static, str>,
    kind: Kind,
    at: SystemTime,
    began: Instant,
    /// Guards nothing else; held for a push.
    attributes: Mutex<Vec<KeyValue>>,
}

impl Context {
    /// Of the task that asks.
    pub(crate) fn current() -> Self {
        CURRENT.try_with(Clone::clone).unwrap_or_default()
    }

    /// Does `work` for this span.
    pub(crate) async fn scope<T>(self, work: impl Future<Output = T>) -> T {
        CURRENT.scope(self, work).await
    }

    /// The same for what does not wait.
    pub(crate) fn enter<T>(self, work: impl FnOnce() -> T) -> T {
        if self.0.is_none() {
            return work();
        }
        CURRENT.sync_scope(self, work)
    }

    pub(super) fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// How a server that is asked now learns of the current span.
    pub(super) fn header() -> Option<String> {
        let open = Self::current().0?;
        Some(TraceParent { trace: open.trace.id, span: open.id, is_sampled: true }.to_string())
    }
}

/// The owner of a span, which ends with it. One that is dropped before it was told how it ended was broken off.
#[derive(Debug)]
#[must_use]
pub(crate) struct Span {
    context: Context,
    outcome: Result<(), Cow<'static, str>>,
}

impl Span {
    /// The first of this daemon's in a trace.
    pub(super) fn first(trace: Arc<Trace>, parent: Option<[u8; 8]>, name: Cow<'static, str>) -> Self {
        Self::begin(trace, parent, name, Kind::Server)
    }

    /// A part of the current one.
    pub(crate) fn child(name: impl Into<Cow<'static, str>>) -> Self {
        Self::child_of_kind(name, Kind::Internal)
    }

    pub(super) fn child_of_kind(name: impl Into<Cow<'static, str>>, kind: Kind) -> Self {
        match Context::current().0 {
            Some(open) => Self::begin(open.trace.clone(), Some(open.id), name.into(), kind),
            None => Self::none(),
        }
    }

    /// Not recorded.
    pub(crate) fn none() -> Self {
        Self { context: Context(None), outcome: Ok(()) }
    }

    fn begin(trace: Arc<Trace>, parent: Option<[u8; 8]>, name: Cow<'static, str>, kind: Kind) -> Self {
        let open = random().map(|id| Open {
            trace,
            id,
            parent,
            name,
            kind,
            at: SystemTime::now(),
            began: Instant::now(),
            attributes: Mutex::default(),
        });
        Self { context: Context(open.map(Arc::new)), outcome: Err("broken off".into()) }
    }

    pub(crate) fn is_recorded(&self) -> bool {
        self.context.0.is_some()
    }

    /// For work that is its part.
    pub(crate) fn context(&self) -> Context {
        self.context.clone()
    }

    /// Adds an attribute.
    pub(crate) fn set(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(open) = &self.context.0 {
            open.set(key, value.into());
        }
    }

    /// Ends it well.
    pub(crate) fn end(mut self) {
        self.outcome = Ok(());
    }

    /// Ends it with an error.
    pub(crate) fn fail(mut self, why: impl FnOnce() -> String) {
        self.outcome = Err(if self.is_recorded() { why().into() } else { "".into() });
    }

    /// A part that has ended, whose time another tells: in the middle of what has passed here, since the way there and back took the rest.
    pub(super) fn tell_part(&self, kind: Kind, took: Duration, attributes: Vec<KeyValue>) {
        let (Some(open), Some(id)) = (&self.context.0, random::<8>()) else { return };
        let passed = open.began.elapsed();
        let took = took.min(passed);
        let part = Open {
            trace: open.trace.clone(),
            id,
            parent: Some(open.id),
            name: open.name.clone(),
            kind,
            at: open.at + (passed - took) / 2,
            began: Instant::now(),
            attributes: Mutex::new(attributes),
        };
        part.finish(Teller::Agent, took, Ok(()));
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(open) = self.context.0.take() {
            let outcome = std::mem::replace(&mut self.outcome, Ok(()));
            open.finish(Teller::Daemon, open.began.elapsed(), outcome);
        }
    }
}

impl Open {
    fn set(&self, key: &str, value: Value) {
        let mut attributes = self.attributes.lock().unwrap_or_else(PoisonError::into_inner);
        if attributes.len() < ATTRIBUTES && attributes.iter().all(|known| known.key != key) {
            let value = match value {
                Value::Text(text) => Value::Text(cut(text)),
                number @ Value::Number(_) => number,
            };
            attributes.push(KeyValue::new(key, value));
        }
    }

    fn finish(&self, teller: Teller, took: Duration, outcome: Result<(), Cow<'static, str>>) {
        let status = outcome.err().map(|message| otlp::Status {
            message: cut(message.into_owned()),
            code: StatusCode::Error.into(),
        });
        let attributes = &mut *self.attributes.lock().unwrap_or_else(PoisonError::into_inner);
        let span = otlp::Span {
            trace_id: self.trace.id.to_vec(),
            span_id: self.id.to_vec(),
            trace_state: self.trace.state.clone(),
            parent_span_id: self.parent.map(|id| id.to_vec()).unwrap_or_default(),
            name: self.name.clone().into_owned(),
            kind: self.kind.into(),
            start_time_unix_nano: nanos(self.at),
            end_time_unix_nano: nanos(self.at + took),
            attributes: std::mem::take(attributes),
            status,
        };
        self.trace.tracer.finish(Finished { teller, span });
    }
}

fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn cut(mut text: String) -> String {
    if let Some((at, _)) = text.char_indices().nth(TEXT) {
        text.truncate(at);
    }
    text
}

/// Does `work` as a part of the current span.
pub(crate) async fn step<T, E: Error>(
    name: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let span = Span::child(name);
    if !span.is_recorded() {
        span.end();
        return work.await;
    }
    let outcome = span.context().scope(work).await;
    match &outcome {
        Ok(_) => span.end(),
        Err(error) => span.fail(|| crate::chain(error)),
    }
    outcome
}

/// Adds an attribute to the current span.
pub(crate) fn note(key: &'static str, value: &str) {
    if let Context(Some(open)) = Context::current() {
        open.set(key, value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::sync::mpsc;
    use tonic::codegen::http::HeaderMap;

    use super::super::Tracer;
    use super::*;
    use crate::metrics::Own;

    fn traced() -> (Span, mpsc::Receiver<Finished>) {
        let (queue, finished) = mpsc::channel(16);
        let tracer = Tracer::new(queue, 1.0, Own::new().unwrap());
        (tracer.call(("runtime.v1.RuntimeService", "Version"), &HeaderMap::new()), finished)
    }

    fn all(mut finished: mpsc::Receiver<Finished>) -> Vec<otlp::Span> {
        std::iter::from_fn(|| finished.try_recv().ok()).map(|f| f.span).collect()
    }

    #[tokio::test]
    async fn a_step_is_a_part_of_what_it_was_done_for() {
        let (call, finished) = traced();
        let work = async {
            let failed = step("outer", async {
                let inner = async {
                    note("k", "v");
                    Ok::<_, io::Error>(())
                };
                step("inner", inner).await?;
                Err::<(), _>(io::Error::other("no"))
            });
            failed.await.unwrap_err();
        };
        call.context().scope(work).await;
        call.end();
        let spans = all(finished);
        let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names, ["inner", "outer", "runtime.v1.RuntimeService/Version"]);
        assert_eq!(
            (&spans[0].parent_span_id, &spans[1].parent_span_id),
            (&spans[1].span_id, &spans[2].span_id)
        );
        assert_eq!(spans[0].attributes, [KeyValue::new("k", "v")]);
        assert_eq!(spans[1].status.as_ref().unwrap().message, "no");
        assert!(spans[2].parent_span_id.is_empty() && spans[2].status.is_none());
        assert!(spans.iter().all(|span| span.start_time_unix_nano <= span.end_time_unix_nano));
    }

    #[tokio::test]
    async fn work_for_a_call_stays_its_part_in_another_task() {
        let (call, finished) = traced();
        let context = call.context().enter(Context::current);
        tokio::spawn(context.scope(async { Span::child("elsewhere").end() })).await.unwrap();
        call.end();
        let spans = all(finished);
        assert_eq!(spans[0].parent_span_id, spans[1].span_id);
    }

    #[tokio::test]
    async fn a_span_that_nobody_ends_was_broken_off() {
        let (call, finished) = traced();
        drop(call);
        assert_eq!(all(finished)[0].status.as_ref().unwrap().message, "broken off");
    }

    #[tokio::test]
    async fn without_a_call_that_is_traced_nothing_is_recorded() {
        assert!(!Span::child("a").is_recorded() && Context::header().is_none());
        assert_eq!(step("b", async { Ok::<_, io::Error>(1) }).await.unwrap(), 1);
        note("k", "v");
    }

    #[tokio::test]
    async fn what_an_agent_says_of_its_time_fits_into_ours() {
        let (call, finished) = traced();
        call.tell_part(Kind::Server, Duration::MAX, Vec::new());
        call.set("long", "ä".repeat(9999).as_str());
        call.end();
        let spans = all(finished);
        assert!(spans[0].start_time_unix_nano >= spans[1].start_time_unix_nano);
        assert!(spans[0].end_time_unix_nano <= spans[1].end_time_unix_nano);
        let Some(Value::Text(long)) = spans[1].attributes.last().and_then(|a| a.value.clone()?.value) else {
            panic!()
        };
        assert_eq!(long.chars().count(), TEXT);
    }
}
