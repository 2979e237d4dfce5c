//! Where traces and metrics go, as the standard variables say: by gRPC or by HTTP, to a collector nearby.
//!
//! <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>

use std::time::Duration;

use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    MetricExporter, Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
};
use tokio::runtime::Handle;

use super::environment::{By, Environment};

/// None where they are not wanted, or can't be had.
pub(super) fn spans(environment: &mut Environment) -> Option<SpanExporter> {
    let by = environment.wanted("TRACES")?;
    let limit = environment.timeout("TRACES");
    let built = match by {
        By::Grpc => SpanExporter::builder().with_tonic().with_timeout(limit).build(),
        By::Http => SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_http_client(OnRuntime::new(limit))
            .build(),
    };
    environment.built("traces", built)
}

/// None where they are not wanted, or can't be had.
pub(super) fn metrics(environment: &mut Environment) -> Option<MetricExporter> {
    let by = environment.wanted("METRICS")?;
    let limit = environment.timeout("METRICS");
    let built = match by {
        By::Grpc => MetricExporter::builder().with_tonic().with_timeout(limit).build(),
        By::Http => MetricExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_http_client(OnRuntime::new(limit))
            .build(),
    };
    environment.built("metrics", built)
}

/// The exporter's thread is none of the runtime's; the client wants one.
#[derive(Debug)]
struct OnRuntime {
    client: HyperClient,
    runtime: Handle,
}

impl OnRuntime {
    fn new(limit: Duration) -> Self {
        Self { client: HyperClient::with_default_connector(limit, None), runtime: Handle::current() }
    }
}

#[async_trait::async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        self.runtime.spawn(async move { client.send_bytes(request).await }).await?
    }
}
