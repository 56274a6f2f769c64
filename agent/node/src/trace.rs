//! What a CRI call was spent on, for OpenTelemetry: spans of the call, of its steps and of the questions to the pod's agent, sent to a collector.
//!
//! A call's span is the current one of the task that answers it, and goes along with the work that a pod's task does for it ([`Context`]). Where nothing
//! is exported there is none, and a step costs a look at that. Spans are finished into a bounded queue and sent by one task: no call waits for a collector.
//!
//! It is not made of `opentelemetry-otlp`: that has a thread of its own, a second layer below `tracing`'s macros that sees every event, and more code than
//! what it would be used for here, a tree of spans and one message ([`otlp`]).

mod export;
mod otlp;
mod pull;
mod rpc;
mod span;
mod traceparent;
mod tracer;

pub(crate) use export::Exporter;
pub(crate) use pull::layers;
pub(crate) use rpc::{Traced, agent_call};
pub(crate) use span::{Context, Span, note, step};
pub(crate) use tracer::Tracer;
