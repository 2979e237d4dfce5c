//! Spans on their way out, counted: those that ended, that were taken, and that were not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfig, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor,
};

/// Since the start. What ended and was neither exported nor failed waits, or found no room in the queue.
#[derive(Debug, Default)]
pub(super) struct Spans {
    pub(super) ended: AtomicU64,
    pub(super) exported: AtomicU64,
    pub(super) failed: AtomicU64,
}

/// A bounded queue in front of an exporter with a thread of its own: 2,048 spans, unless `OTEL_BSP_MAX_QUEUE_SIZE` says
/// otherwise. What finds no room is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    batches: BatchSpanProcessor,
    spans: Arc<Spans>,
}

impl Counted {
    pub(super) fn new(
        exporter: impl SpanExporter + 'static,
        batches: BatchConfig,
        spans: Arc<Spans>,
    ) -> Self {
        let exporter = Told { exporter, spans: Arc::clone(&spans) };
        let batches = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        Self { batches, spans }
    }
}

impl SpanProcessor for Counted {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        self.spans.ended.fetch_add(1, Ordering::Relaxed);
        self.batches.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// An exporter whose answers are counted.
#[derive(Debug)]
struct Told<E> {
    exporter: E,
    spans: Arc<Spans>,
}

impl<E: SpanExporter> SpanExporter for Told<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len() as u64;
        let answer = self.exporter.export(batch).await;
        let outcome = if answer.is_ok() { &self.spans.exported } else { &self.spans.failed };
        outcome.fetch_add(count, Ordering::Relaxed);
        answer
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
