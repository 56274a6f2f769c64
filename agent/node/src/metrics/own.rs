//! What the daemon counts of its own work.

use std::time::Duration;

use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// From a list out of memory to a pull of a large image.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0];

/// Counters and histograms. Clones share everything.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    registry: Registry,
    calls: IntCounterVec,
    call_seconds: HistogramVec,
    calls_in_flight: IntGaugeVec,
    pulls: IntCounterVec,
    pull_seconds: Histogram,
    plugins: IntCounterVec,
    plugin_seconds: HistogramVec,
    swept: IntCounterVec,
    record_errors: IntCounter,
    spans: IntCounterVec,
}

impl Own {
    /// All at 0.
    ///
    /// # Errors
    /// Two of them have one name: never, in a program that was started once.
    pub(crate) fn new() -> prometheus::Result<Self> {
        let seconds = |name: &str, help: &str| HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
        let own = Self {
            registry: Registry::new(),
            calls: IntCounterVec::new(
                Opts::new("hartpod_cri_calls_total", "CRI calls that were answered."),
                &["method", "code"],
            )?,
            call_seconds: HistogramVec::new(
                seconds("hartpod_cri_call_seconds", "How long CRI calls took."),
                &["method"],
            )?,
            calls_in_flight: IntGaugeVec::new(
                Opts::new("hartpod_cri_calls_in_flight", "CRI calls that are being answered."),
                &["method"],
            )?,
            pulls: IntCounterVec::new(
                Opts::new("hartpod_image_pulls_total", "Pulls of images."),
                &["result"],
            )?,
            pull_seconds: Histogram::with_opts(seconds(
                "hartpod_image_pull_seconds",
                "How long pulls that succeeded took.",
            ))?,
            plugins: IntCounterVec::new(
                Opts::new(
                    "hartpod_cni_calls_total",
                    "Networks joined (ADD) and left (DEL), by all plugins together.",
                ),
                &["verb", "result"],
            )?,
            plugin_seconds: HistogramVec::new(
                seconds("hartpod_cni_call_seconds", "How long joining and leaving networks took."),
                &["verb"],
            )?,
            swept: IntCounterVec::new(
                Opts::new("hartpod_swept_total", "What the sweep at the start found that no record claimed."),
                &["what"],
            )?,
            record_errors: IntCounter::new(
                "hartpod_record_errors_total",
                "Records of pods and containers that could not be written.",
            )?,
            spans: IntCounterVec::new(
                Opts::new(
                    "hartpod_trace_spans_total",
                    "Spans for the collector of traces, by what became of them.",
                ),
                &["result"],
            )?,
        };
        own.registry.register(Box::new(own.record_errors.clone()))?;
        for collector in [&own.calls, &own.pulls, &own.plugins, &own.swept, &own.spans] {
            own.registry.register(Box::new(collector.clone()))?;
        }
        own.registry.register(Box::new(own.call_seconds.clone()))?;
        own.registry.register(Box::new(own.calls_in_flight.clone()))?;
        own.registry.register(Box::new(own.pull_seconds.clone()))?;
        own.registry.register(Box::new(own.plugin_seconds.clone()))?;
        Ok(own)
    }

    /// A CRI call has come; what comes back counts its end.
    pub(crate) fn call(&self, method: &'static str) -> CallGuard {
        let in_flight = self.calls_in_flight.with_label_values(&[method]);
        in_flight.inc();
        CallGuard {
            own: self.clone(),
            in_flight,
            method,
            began: std::time::Instant::now(),
            code: "cancelled",
        }
    }

    pub(crate) fn pulled(&self, succeeded: bool, took: Duration) {
        self.pulls.with_label_values(&[result(succeeded)]).inc();
        if succeeded {
            self.pull_seconds.observe(took.as_secs_f64());
        }
    }

    pub(crate) fn network(&self, verb: &'static str, succeeded: bool, took: Duration) {
        self.plugins.with_label_values(&[verb, result(succeeded)]).inc();
        self.plugin_seconds.with_label_values(&[verb]).observe(took.as_secs_f64());
    }

    /// The sweep found a `what` that nobody claims.
    pub(crate) fn swept(&self, what: &'static str) {
        self.swept.with_label_values(&[what]).inc();
    }

    /// `count` spans were exported, refused by the collector, failed to reach it, or dropped for want of room.
    pub(crate) fn spans(&self, result: &'static str, count: u64) {
        if count > 0 {
            self.spans.with_label_values(&[result]).inc_by(count);
        }
    }

    pub(crate) fn record_not_written(&self) {
        self.record_errors.inc();
    }

    /// In Prometheus' text format.
    pub(crate) fn render(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::warn!(%error, "own metrics cannot be told");
        }
        String::from_utf8(text).unwrap_or_default()
    }
}

/// A call under way; one whose caller hung up is dropped.
#[derive(Debug)]
pub(crate) struct CallGuard {
    own: Own,
    in_flight: prometheus::IntGauge,
    method: &'static str,
    began: std::time::Instant,
    code: &'static str,
}

impl CallGuard {
    /// It was answered, with gRPC's word for the outcome.
    pub(crate) fn end(mut self, code: &'static str) {
        self.code = code;
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        self.in_flight.dec();
        self.own.calls.with_label_values(&[self.method, self.code]).inc();
        self.own.call_seconds.with_label_values(&[self.method]).observe(self.began.elapsed().as_secs_f64());
    }
}

fn result(succeeded: bool) -> &'static str {
    if succeeded { "success" } else { "failure" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_from_their_beginning_to_their_end() {
        let own = Own::new().unwrap();
        let call = own.call("Version");
        assert!(own.render().contains("hartpod_cri_calls_in_flight{method=\"Version\"} 1"));
        call.end("ok");
        drop(own.call("Version"));
        let text = own.render();
        assert!(text.contains("hartpod_cri_calls_in_flight{method=\"Version\"} 0"), "{text}");
        assert!(text.contains("hartpod_cri_calls_total{code=\"ok\",method=\"Version\"} 1"), "{text}");
        assert!(text.contains("hartpod_cri_calls_total{code=\"cancelled\",method=\"Version\"} 1"), "{text}");
        assert!(text.contains("hartpod_cri_call_seconds_count{method=\"Version\"} 2"), "{text}");
    }

    #[test]
    fn a_pull_that_failed_has_no_time() {
        let own = Own::new().unwrap();
        own.pulled(false, Duration::from_secs(1));
        own.pulled(true, Duration::from_secs(2));
        own.network("ADD", true, Duration::from_millis(20));
        let text = own.render();
        assert!(text.contains("hartpod_image_pulls_total{result=\"failure\"} 1"), "{text}");
        assert!(text.contains("hartpod_image_pull_seconds_sum 2\n"), "{text}");
        assert!(text.contains("hartpod_cni_calls_total{result=\"success\",verb=\"ADD\"} 1"), "{text}");
    }
}
