//! What leaves the instance to be looked at: traces and metrics of `OpenTelemetry`, and the same metrics at `/metrics`.
//!
//! Where they go is said by the standard variables (`OTEL_EXPORTER_OTLP_ENDPOINT` switches it on). A collector that is down,
//! slow or refusing costs what was to be exported, counted, and nothing else: queues are bounded and threads are their own.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use opentelemetry::metrics::{Meter, MeterProvider as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{KeyValue, global};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{
    Aggregation, Instrument, InstrumentKind, PeriodicReader, SdkMeterProvider, Stream,
};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::registry::LookupSpan;

use super::Service;
use exported::{Counted, Spans};
use scraped::Scraped;

mod exported;
pub(super) mod instruments;
mod otlp;
mod scraped;
pub(super) mod spans;
mod text;

/// The pipelines of an instance.
#[derive(Debug)]
pub(crate) struct Telemetry {
    traces: Option<SdkTracerProvider>,
    meters: SdkMeterProvider,
    scraped: Scraped,
    spans: Arc<Spans>,
}

/// Buckets of an exponential histogram: a relative error of 2 % over six decades.
const BUCKETS: u32 = 160;
/// How long the last spans and figures may take to leave.
const GRACE: Duration = Duration::from_secs(3);

impl Telemetry {
    /// In the runtime: what exports by HTTP/2 has a task there.
    ///
    /// # Errors
    /// If a variable makes no sense; it is named.
    pub(crate) fn begin(instance: &str) -> anyhow::Result<Self> {
        let (resource, spans) = (resource(instance), Arc::new(Spans::default()));
        let traces = otlp::spans()?.map(|exporter| {
            SdkTracerProvider::builder()
                .with_span_processor(Counted::new(exporter, Arc::clone(&spans)))
                .with_resource(resource.clone())
                .build()
        });
        if let Some(traces) = &traces {
            global::set_tracer_provider(traces.clone());
        }
        let scraped = Scraped::default();
        let mut meters = SdkMeterProvider::builder()
            .with_resource(resource)
            .with_reader(scraped.clone())
            .with_view(exponential);
        if let Some(exporter) = otlp::metrics()? {
            meters = meters.with_reader(PeriodicReader::builder(exporter).build());
        }
        Ok(Self { traces, meters: meters.build(), scraped, spans })
    }

    /// Spans of requests and statements, and the warnings that come in between. None where no traces are wanted.
    pub(crate) fn layer<S: tracing::Subscriber + for<'a> LookupSpan<'a>>(&self) -> Option<impl Layer<S>> {
        let tracer = self.traces.as_ref()?.tracer("perto-service");
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_target(false)
            .with_threads(false)
            .with_tracked_inactivity(false);
        Some(layer.with_filter(FilterFn::new(|data| {
            data.target() == spans::TARGET || (data.is_event() && *data.level() <= tracing::Level::WARN)
        })))
    }

    pub(super) fn meter(&self) -> Meter {
        self.meters.meter("perto")
    }

    /// Sends what is left, for as long as that may take. Figures are those of now, so it is for when the caches are still there.
    pub(crate) async fn shutdown(&self) {
        let (traces, meters) = (self.traces.clone(), self.meters.clone());
        tokio::join!(
            within_grace(move || drop(meters.shutdown_with_timeout(GRACE))),
            within_grace(move || drop(traces.map(|traces| traces.shutdown_with_timeout(GRACE)))),
        );
    }
}

/// Figures only, of no tenant and no key: whoever reaches the address may read them, save the pages of other sites.
pub(super) async fn metrics(State(service): State<Arc<Service>>, headers: HeaderMap) -> Response {
    if let Err(problem) = service.access.check_origin(&headers) {
        return problem.into_response();
    }
    let text = service.telemetry.scraped.text();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// On a thread that nobody waits for longer: exporters have limits of their own, and don't keep to those that they are given.
async fn within_grace(end: impl FnOnce() + Send + 'static) {
    let (done, ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        end();
        let _nobody_waits_any_more = done.send(());
    });
    drop(tokio::time::timeout(GRACE, ended).await);
}

fn exponential(instrument: &Instrument) -> Option<Stream> {
    let aggregation =
        Aggregation::Base2ExponentialHistogram { max_size: BUCKETS, max_scale: 20, record_min_max: true };
    let wanted = instrument.kind() == InstrumentKind::Histogram;
    wanted.then(|| Stream::builder().with_aggregation(aggregation).build().ok()).flatten()
}

/// `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` are read by the builder.
fn resource(instance: &str) -> Resource {
    let named = std::env::var_os("OTEL_SERVICE_NAME").is_some()
        || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|text| text.contains("service.name="));
    let builder = Resource::builder().with_attributes([
        KeyValue::new("service.instance.id", instance.to_owned()),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
    ]);
    if named { builder.build() } else { builder.with_service_name("perto").build() }
}
