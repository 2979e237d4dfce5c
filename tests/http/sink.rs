//! A collector: what instances export by OTLP, over gRPC or HTTP, as it was sent.

use std::sync::Arc;

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::command::{Database, Served, perto};
use crate::support::engines::redis_url;
use crate::support::wait::eventually;

/// Ends with the test's runtime.
#[derive(Clone, Default)]
pub(crate) struct Sink {
    traces: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    metrics: Arc<Mutex<Vec<ExportMetricsServiceRequest>>>,
    pub(crate) address: String,
    tasks: TaskTracker,
}

/// A span, and which instance it is of.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) instance: String,
    pub(crate) span: Span,
}

impl Sink {
    /// For `grpc`.
    pub(crate) async fn grpc() -> Self {
        let (sink, listener) = Self::listening().await;
        let (traces, metrics) =
            (TraceServiceServer::new(sink.clone()), MetricsServiceServer::new(sink.clone()));
        let server = Server::builder().add_service(traces).add_service(metrics);
        sink.tasks.spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        sink
    }

    /// For `http/protobuf`.
    pub(crate) async fn http() -> Self {
        let (sink, listener) = Self::listening().await;
        let taken = sink.clone();
        let traces = async move |body: axum::body::Bytes| {
            taken.traces.lock().push(ExportTraceServiceRequest::decode(body).unwrap());
        };
        let taken = sink.clone();
        let metrics = async move |body: axum::body::Bytes| {
            taken.metrics.lock().push(ExportMetricsServiceRequest::decode(body).unwrap());
        };
        let routes = axum::Router::new()
            .route("/v1/traces", axum::routing::post(traces))
            .route("/v1/metrics", axum::routing::post(metrics));
        sink.tasks.spawn(async move { axum::serve(listener, routes).await });
        sink
    }

    async fn listening() -> (Self, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (Self { address, ..Self::default() }, listener)
    }

    pub(crate) fn spans(&self) -> Vec<Seen> {
        let mut spans = Vec::new();
        for resource in self.traces.lock().iter().flat_map(|export| &export.resource_spans) {
            let of = resource.resource.as_ref().map_or(&[][..], |resource| &resource.attributes);
            let instance = text(of, "service.instance.id").expect("an instance has a name");
            let scopes = resource.scope_spans.iter().flat_map(|scope| &scope.spans);
            spans.extend(scopes.map(|span| Seen { instance: instance.clone(), span: span.clone() }));
        }
        spans
    }

    /// Those of one trace, once there are as many; repairs may come besides.
    pub(crate) async fn trace(&self, trace: &str, count: usize) -> Vec<Seen> {
        let of = || {
            let mut spans = self.spans();
            spans.retain(|seen| hex(&seen.span.trace_id) == trace);
            spans
        };
        let counted = || of().iter().filter(|seen| seen.span.name != "repair").count();
        eventually(&format!("{count} spans came"), async || counted() >= count).await;
        of()
    }

    /// All that was sent, as text.
    pub(crate) fn everything(&self) -> String {
        format!("{:?} {:?}", self.traces.lock(), self.metrics.lock())
    }

    /// Names of all metrics that came.
    pub(crate) fn metrics(&self) -> Vec<String> {
        let exports = self.metrics.lock();
        let scopes =
            exports.iter().flat_map(|export| &export.resource_metrics).flat_map(|of| &of.scope_metrics);
        scopes.flat_map(|scope| &scope.metrics).map(|metric| metric.name.clone()).collect()
    }
}

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.traces.lock().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Sink {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.metrics.lock().push(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

impl Seen {
    pub(crate) fn text(&self, key: &str) -> Option<String> {
        text(&self.span.attributes, key)
    }

    pub(crate) fn number(&self, key: &str) -> Option<i64> {
        match value(&self.span.attributes, key)? {
            Value::IntValue(number) => Some(*number),
            _ => None,
        }
    }

    pub(crate) fn is_child_of(&self, parent: &Self) -> bool {
        self.span.parent_span_id == parent.span.span_id && self.span.trace_id == parent.span.trace_id
    }

    pub(crate) fn is_linked_to(&self, other: &Self) -> bool {
        let to = |link: &opentelemetry_proto::tonic::trace::v1::span::Link| {
            link.span_id == other.span.span_id && link.trace_id == other.span.trace_id
        };
        self.span.links.iter().any(to)
    }
}

/// The one span of a name, on an instance.
pub(crate) fn one<'a>(spans: &'a [Seen], instance: &str, name: &str) -> &'a Seen {
    let mut found = spans.iter().filter(|seen| seen.instance == instance && seen.span.name == name);
    let one = found.next().unwrap_or_else(|| panic!("{name} of {instance} among {:?}", names(spans)));
    assert!(found.next().is_none(), "{name} of {instance} twice among {:?}", names(spans));
    one
}

pub(crate) fn names(spans: &[Seen]) -> Vec<String> {
    spans.iter().map(|seen| format!("{}: {}", seen.instance, seen.span.name)).collect()
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    found.value.as_ref().and_then(|AnyValue { value }| value.as_ref())
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    match value(attributes, key)? {
        Value::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Served {
    /// An instance that exports to there, and soon.
    pub(crate) fn start_traced(database: &Database, name: &str, to: &str, protocol: &str) -> Self {
        Self::start_traced_on(database, &redis_url(), name, to, protocol, &[])
    }

    pub(crate) fn start_traced_on(
        database: &Database,
        redis: &str,
        name: &str,
        to: &str,
        protocol: &str,
        arguments: &[&str],
    ) -> Self {
        let mut command = perto(&database.url, redis);
        command
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{to}"))
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            .env("OTEL_BSP_SCHEDULE_DELAY", "100")
            // Few, so that a test can fill it.
            .env("OTEL_BSP_MAX_QUEUE_SIZE", "256")
            .env("OTEL_METRIC_EXPORT_INTERVAL", "500");
        Self::start_by(command, name, arguments)
    }
}
