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
use environment::Environment;
use exported::{Counted, Spans};
use scraped::Scraped;

mod environment;
mod exported;
pub(super) mod instruments;
pub(crate) mod lines;
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
    /// What is wrong with the environment, and what is done instead.
    wrong: Vec<String>,
}

/// Buckets of an exponential histogram: a relative error of 2 % over six decades.
const BUCKETS: u32 = 160;
/// How long the last spans and figures may take to leave.
const GRACE: Duration = Duration::from_secs(3);

impl Telemetry {
    /// In the runtime: what exports by HTTP/2 has a task there. A variable that makes no sense is told of by
    /// [`Telemetry::warn`], and is as good as not set: nobody is served better by a service that ends.
    pub(crate) fn begin(instance: &str) -> Self {
        let mut environment = Environment::default();
        let (resource, spans) = (resource(instance, &mut environment), Arc::new(Spans::default()));
        let traces = otlp::spans(&mut environment).map(|exporter| {
            let batches = environment.batches();
            SdkTracerProvider::builder()
                .with_sampler(environment.sampler())
                .with_span_processor(Counted::new(exporter, batches, Arc::clone(&spans)))
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
        if let Some(exporter) = otlp::metrics(&mut environment) {
            let reader = PeriodicReader::builder(exporter).with_interval(environment.interval());
            meters = meters.with_reader(reader.build());
        }
        Self { traces, meters: meters.build(), scraped, spans, wrong: environment.wrong }
    }

    /// Once, where lines can be logged.
    pub(crate) fn warn(&self) {
        for wrong in &self.wrong {
            tracing::warn!(target: lines::SETTINGS, "{wrong}");
        }
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

/// The builder reads `OTEL_RESOURCE_ATTRIBUTES`, and would let it win.
fn resource(instance: &str, environment: &mut Environment) -> Resource {
    Resource::builder()
        .with_attributes([
            KeyValue::new("service.instance.id", instance.to_owned()),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ])
        .with_service_name(environment.service_name())
        .build()
}
