//! What OpenTelemetry is told of calls, by a collector of the tests' own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hartpod_tests::eventually::{eventually, patient};
use hartpod_tests::{Lab, Need, Node, Refused as _, cni, cri, tests};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status};

use crate::metrics::scrape;

tests![
    a_pods_start_is_told_with_its_parts,
    a_clients_trace_is_taken_over,
    what_fails_is_told_as_failed,
    a_pull_is_told_layer_by_layer,
    what_is_left_is_told_at_the_end,
    a_collector_that_hangs_slows_nothing needs Need::Speed,
    a_collector_that_talks_nonsense_costs_spans_alone,
    what_the_collector_refuses_is_counted,
    nothing_is_told_without_a_collector
];

/// A collector, and what it was told.
#[derive(Debug, Clone, Default)]
struct Collector {
    told: Arc<Mutex<Vec<ResourceSpans>>>,
    refuses: bool,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).extend(request.into_inner().resource_spans);
        let partial_success = self
            .refuses
            .then(|| ExportTracePartialSuccess { rejected_spans: i64::MAX, error_message: "no".to_owned() });
        Ok(Response::new(ExportTraceServiceResponse { partial_success }))
    }
}

/// The section of config.toml that names `listener`.
fn settings(listener: &TcpListener) -> Result<String> {
    Ok(format!("[tracing]\notlp_endpoint = \"http://{}\"", listener.local_addr()?))
}

impl Collector {
    /// A node, and its collector.
    async fn with_node(lab: &Lab) -> Result<(Self, Node)> {
        let collector = Self::default();
        let node = collector.clone().node(lab).await?;
        Ok((collector, node))
    }

    async fn node(self, lab: &Lab) -> Result<Node> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let settings = settings(&listener)?;
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(self));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        lab.node_with(&settings).await
    }

    /// All spans of a program.
    fn spans_of(&self, program: &str) -> Vec<Span> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_of = |told: &&ResourceSpans| {
            let attributes = told.resource.as_ref().map(|r| r.attributes.as_slice()).unwrap_or_default();
            text(attributes, "service.name") == Some(program)
        };
        told.iter().filter(is_of).flat_map(|r| &r.scope_spans).flat_map(|s| s.spans.clone()).collect()
    }

    /// The daemon's first span of this name, once it is told.
    async fn span(&self, name: &str) -> Result<Span> {
        let find = async || Ok(self.spans_of("hartpod").into_iter().find(|span| span.name == name));
        eventually(&format!("a span {name:?}"), find, Option::is_some).await?.context("no span")
    }

    /// What the daemon told as a part of `parent`.
    fn part(&self, parent: &Span, name: &str) -> Result<Span> {
        part(&self.spans_of("hartpod"), parent, name)
    }
}

fn part(all: &[Span], parent: &Span, name: &str) -> Result<Span> {
    let found = all.iter().find(|span| span.parent_span_id == parent.span_id && span.name == name);
    let found = found.with_context(|| {
        let names: Vec<_> = all.iter().map(|span| span.name.as_str()).collect();
        format!("no {name:?} in {:?}, but {names:?}", parent.name)
    })?;
    ensure!(found.trace_id == parent.trace_id, "{found:?}: another trace than {parent:?}");
    ensure!(
        parent.start_time_unix_nano <= found.start_time_unix_nano
            && found.end_time_unix_nano <= parent.end_time_unix_nano,
        "{found:?} is not within {parent:?}"
    );
    Ok(found.clone())
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    match value(attributes, key) {
        Some(Value::StringValue(text)) => Some(text),
        _ => None,
    }
}

fn code(span: &Span) -> Option<i64> {
    match value(&span.attributes, "rpc.grpc.status_code") {
        Some(Value::IntValue(code)) => Some(*code),
        _ => None,
    }
}

fn has_failed(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
}

const RUNTIME: &str = "runtime.v1.RuntimeService";
const AGENT: &str = "hartpod.pod.v1.PodAgent";

async fn a_pods_start_is_told_with_its_parts(lab: &Lab) -> Result<()> {
    let (collector, node) = Collector::with_node(lab).await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    main.stop(Duration::ZERO).await?;
    pod.stop().await?;

    let stop = collector.span(&format!("{RUNTIME}/StopPodSandbox")).await?;
    collector.part(&stop, "CNI DEL")?;
    let run = collector.span(&format!("{RUNTIME}/RunPodSandbox")).await?;
    ensure!(run.parent_span_id.is_empty() && run.kind() == SpanKind::Server && !has_failed(&run), "{run:?}");
    let uid = pod.config.metadata.as_ref().map(|m| m.uid.clone()).context("no uid")?;
    for (key, expected) in [
        ("rpc.system", "grpc"),
        ("rpc.service", RUNTIME),
        ("rpc.method", "RunPodSandbox"),
        ("hartpod.sandbox.id", &pod.id),
        ("k8s.namespace.name", "test"),
        ("k8s.pod.name", "web"),
        ("k8s.pod.uid", &uid),
    ] {
        assert_eq!(text(&run.attributes, key), Some(expected), "{key}");
    }
    assert_eq!(code(&run), Some(0));
    for name in
        ["make network namespace", "CNI ADD", if pod.is_guest() { "boot guest" } else { "start agent" }]
    {
        let step = collector.part(&run, name)?;
        assert_eq!(step.kind(), SpanKind::Internal, "{name}");
    }
    let set_up = collector.part(&run, &format!("{AGENT}/SetUpPod"))?;
    ensure!(
        set_up.kind() == SpanKind::Client && text(&set_up.attributes, "rpc.service") == Some(AGENT),
        "{set_up:?}"
    );

    let create = collector.span(&format!("{RUNTIME}/CreateContainer")).await?;
    for (key, expected) in [("container.id", &main.id), ("hartpod.sandbox.id", &pod.id)] {
        assert_eq!(text(&create.attributes, key), Some(expected.as_str()), "{key}");
    }
    collector.part(&create, "plan container")?;
    let asked = collector.part(&create, &format!("{AGENT}/CreateContainer"))?;
    // What the agent itself took of that, by its own word.
    let answered = part(&collector.spans_of("hartpod-pod"), &asked, &asked.name)?;
    ensure!(answered.kind() == SpanKind::Server && code(&answered) == Some(0), "{answered:?}");
    let start = collector.span(&format!("{RUNTIME}/StartContainer")).await?;
    collector.part(&start, &format!("{AGENT}/StartContainer"))?;
    Ok(())
}

async fn a_clients_trace_is_taken_over(lab: &Lab) -> Result<()> {
    let (collector, node) = Collector::with_node(lab).await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let exec = async |traceparent: &'static str| -> Result<()> {
        let request =
            cri::ExecSyncRequest { container_id: main.id.clone(), cmd: vec!["true".to_owned()], timeout: 20 };
        let mut request = Request::new(request);
        request.metadata_mut().insert("traceparent", traceparent.parse()?);
        request.metadata_mut().insert("tracestate", "vendor=1".parse()?);
        node.client().runtime().exec_sync(request).await?;
        Ok(())
    };
    exec("00-11111111111111111111111111111111-2222222222222222-00").await?;
    exec("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").await?;

    let name = format!("{RUNTIME}/ExecSync");
    let span = collector.span(&name).await?;
    assert_eq!(span.trace_id[..2], [0x0a, 0xf7]);
    assert_eq!(span.parent_span_id, [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]);
    assert_eq!(span.trace_state, "vendor=1");
    assert_eq!(text(&span.attributes, "container.id"), Some(main.id.as_str()));
    for call in ["StartExec", "WaitExec"] {
        let asked = collector.part(&span, &format!("{AGENT}/{call}"))?;
        part(&collector.spans_of("hartpod-pod"), &asked, &asked.name)?;
    }
    let all = collector.spans_of("hartpod");
    ensure!(all.iter().filter(|span| span.name == name).count() == 1, "an unsampled call was told: {all:?}");
    Ok(())
}

async fn what_fails_is_told_as_failed(lab: &Lab) -> Result<()> {
    let (collector, node) = Collector::with_node(lab).await?;
    let request = cri::ContainerStatusRequest { container_id: "0".repeat(64), verbose: false };
    node.client().container_status(request).await.refused("a container that is not there")?;
    let asked_wrong = collector.span(&format!("{RUNTIME}/ContainerStatus")).await?;
    assert_eq!(code(&asked_wrong), Some(Code::NotFound as i64));
    ensure!(
        !has_failed(&asked_wrong),
        "that a caller asks for what is not there is no failure: {asked_wrong:?}"
    );

    let pod = node.pod("web").run().await?;
    node.cni().write(
        "10-pods",
        &serde_json::json!({
            "cniVersion": "1.0.0", "name": "pods", "plugins": [{ "type": "bridge", "bridge": cni::BRIDGE, "ipam": { "type": "no-such-ipam" } }]
        }),
    )?;
    let status = node.pod("unconnected").run().await.refused("a pod without its network")?;
    let is_failed = async || {
        let name = format!("{RUNTIME}/RunPodSandbox");
        Ok(collector.spans_of("hartpod").into_iter().find(|span| span.name == name && has_failed(span)))
    };
    let failed = eventually("a failed start", is_failed, Option::is_some).await?.context("no span")?;
    assert_eq!(code(&failed), Some(status.code() as i64));
    let said = failed.status.as_ref().map(|status| status.message.clone()).unwrap_or_default();
    ensure!(said.contains("no-such-ipam"), "{said}");
    let network = collector.part(&failed, "CNI ADD")?;
    ensure!(has_failed(&network), "{network:?}");
    drop(pod);
    Ok(())
}

async fn a_pull_is_told_layer_by_layer(lab: &Lab) -> Result<()> {
    let (collector, node) = Collector::with_node(lab).await?;
    let pull = collector.span("runtime.v1.ImageService/PullImage").await?;
    assert_eq!(text(&pull.attributes, "container.image.name"), Some(node.image()));
    ensure!(!has_failed(&collector.part(&pull, "resolve image")?));
    let layer = collector.part(&pull, "fetch and unpack layer")?;
    let digest = text(&layer.attributes, "hartpod.layer.digest").unwrap_or_default();
    ensure!(digest.starts_with("sha256:") && !has_failed(&layer), "{layer:?}");
    Ok(())
}

async fn what_is_left_is_told_at_the_end(lab: &Lab) -> Result<()> {
    let (collector, node) = Collector::with_node(lab).await?;
    node.client().status(cri::StatusRequest { verbose: false }).await?;
    ensure!(node.stop().await?.success());
    let name = format!("{RUNTIME}/Status");
    ensure!(collector.spans_of("hartpod").iter().any(|span| span.name == name), "{collector:?}");
    Ok(())
}

/// More calls than spans may wait.
async fn call_often(node: &Node) -> Result<()> {
    for _ in 0..3000 {
        node.client().version(cri::VersionRequest::default()).await?;
    }
    Ok(())
}

async fn count_is_told(node: &Node, result: &str) -> Result<()> {
    let name = format!("hartpod_trace_spans_total{{result=\"{result}\"}} ");
    let count = async || Ok(scrape(node).await?.lines().any(|line| line.starts_with(&name)));
    eventually(&name, count, |told| *told).await?;
    Ok(())
}

async fn a_collector_that_hangs_slows_nothing(lab: &Lab) -> Result<()> {
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let node = lab.node_with(&settings(&silent)?).await?;
    let calls = tokio::time::timeout(patient(Duration::from_secs(30)), call_often(&node));
    calls.await.context("calls wait for the collector")??;
    count_is_told(&node, "dropped").await?;
    let pod = node.pod("web").run().await?;
    pod.stop().await?;
    // Which it does in the time that the kit gives it.
    ensure!(node.stop().await?.success());
    drop(silent);
    Ok(())
}

async fn a_collector_that_talks_nonsense_costs_spans_alone(lab: &Lab) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let settings = settings(&listener)?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(&[0xff; 4096]).await;
        }
    });
    let node = lab.node_with(&settings).await?;
    count_is_told(&node, "failed").await?;
    let told = node.log_tail(200);
    ensure!(told.matches("the collector takes no spans").count() == 1, "{told}");
    Ok(())
}

async fn what_the_collector_refuses_is_counted(lab: &Lab) -> Result<()> {
    let node = Collector { refuses: true, ..Collector::default() }.node(lab).await?;
    count_is_told(&node, "refused").await
}

async fn nothing_is_told_without_a_collector(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    pod.stop().await?;
    let text = scrape(&node).await?;
    ensure!(!text.contains("hartpod_trace"), "{text}");
    Ok(())
}
