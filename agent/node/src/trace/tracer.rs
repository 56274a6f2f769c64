//! Which calls have spans, and where finished spans go.

use std::sync::Arc;

use hartpod_proto::pod::TRACEPARENT;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::sync::mpsc;
use tonic::codegen::http::HeaderMap;

use super::otlp;
use super::traceparent::TraceParent;
use crate::metrics::Own;

/// Characters of a `tracestate` that are passed on (W3C Trace Context: at least 512).
const STATE: usize = 512;

/// Whose time a span is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Teller {
    Daemon,
    /// The agent of a pod, by what it answered.
    Agent,
}

/// A finished span.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) teller: Teller,
    pub(super) span: otlp::Span,
}

/// Begins traces. Clones share everything.
#[derive(Debug, Clone)]
pub(crate) struct Tracer {
    queue: mpsc::Sender<Finished>,
    ratio: f64,
    own: Own,
}

/// One trace, as far as it is this daemon's.
#[derive(Debug)]
pub(super) struct Trace {
    pub(super) tracer: Tracer,
    pub(super) id: [u8; 16],
    /// What the caller's tracing says to itself.
    pub(super) state: String,
}

impl Tracer {
    pub(super) fn new(queue: mpsc::Sender<Finished>, ratio: f64, own: Own) -> Self {
        Self { queue, ratio, own }
    }

    /// The trace of a call with these headers, and its caller's span; none where it is not recorded. A caller that traces has decided that.
    pub(super) fn trace(&self, headers: &HeaderMap) -> Option<(Arc<Trace>, Option<[u8; 8]>)> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let parent = text(TRACEPARENT).and_then(TraceParent::parse);
        let (id, span) = match parent {
            Some(parent) if parent.is_sampled => (parent.trace, Some(parent.span)),
            Some(_) => return None,
            None => (random()?, None),
        };
        if span.is_none() && !is_chosen(&id, self.ratio) {
            return None;
        }
        let state = text("tracestate").filter(|state| span.is_some() && state.len() <= STATE);
        let state = state.unwrap_or_default().to_owned();
        Some((Arc::new(Trace { tracer: self.clone(), id, state }), span))
    }

    /// Never waits: a span for which there is no room is counted and dropped.
    pub(super) fn finish(&self, finished: Finished) {
        if self.queue.try_send(finished).is_err() {
            self.own.spans("dropped", 1);
        }
    }
}

/// By the id, so that all who see a trace decide alike (TraceIdRatioBased).
fn is_chosen(id: &[u8; 16], ratio: f64) -> bool {
    let number = id[8..].iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    // 53 bits are exact.
    #[allow(clippy::cast_precision_loss)]
    let part = (number >> 11) as f64 / (1u64 << 53) as f64;
    part < ratio
}

/// A new id; none where the kernel has no randomness, which it has from the first second on.
pub(super) fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let count = getrandom(&mut bytes, GetRandomFlags::NONBLOCK).ok()?;
    (count == N && bytes != [0; N]).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracer(ratio: f64) -> Tracer {
        Tracer::new(mpsc::channel(1).0, ratio, Own::new().unwrap())
    }

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_caller_that_traces_has_decided() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let (trace, span) =
            tracer(0.0).trace(&headers(&[("traceparent", parent), ("tracestate", "a=b")])).unwrap();
        assert_eq!((trace.id[0], trace.state.as_str(), span.unwrap()[0]), (0x0a, "a=b", 0xb7));
        let unsampled = parent.replace("-01", "-00");
        assert!(tracer(1.0).trace(&headers(&[("traceparent", &unsampled)])).is_none());
    }

    #[test]
    fn other_calls_are_chosen_by_their_share() {
        let chosen = |ratio| (0..400).filter(|_| tracer(ratio).trace(&HeaderMap::new()).is_some()).count();
        assert_eq!((chosen(0.0), chosen(1.0)), (0, 400));
        assert!((100..300).contains(&chosen(0.5)));
        let (trace, span) = tracer(1.0).trace(&headers(&[("traceparent", "nonsense")])).unwrap();
        assert!(span.is_none() && trace.id != [0; 16]);
    }

    #[test]
    fn what_the_collector_does_not_take_is_dropped_and_counted() {
        let (queue, _kept) = mpsc::channel(1);
        let own = Own::new().unwrap();
        let tracer = Tracer::new(queue, 1.0, own.clone());
        for _ in 0..3 {
            tracer.finish(Finished { teller: Teller::Daemon, span: otlp::Span::default() });
        }
        let text = own.render();
        assert!(text.contains("hartpod_trace_spans_total{result=\"dropped\"} 2"), "{text}");
    }
}
