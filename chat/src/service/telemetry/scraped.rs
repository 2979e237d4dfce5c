//! The reader of the pipeline that whoever scrapes asks.

use std::sync::{Arc, Weak};
use std::time::Duration;

use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::reader::MetricReader;
use opentelemetry_sdk::metrics::{InstrumentKind, ManualReader, Pipeline, Temporality};

use super::text;

/// Figures since the start, collected when they are asked for.
#[derive(Debug, Clone)]
pub(super) struct Scraped(Arc<ManualReader>);

impl Default for Scraped {
    fn default() -> Self {
        Self(Arc::new(ManualReader::builder().with_temporality(Temporality::Cumulative).build()))
    }
}

impl Scraped {
    /// In the text format of Prometheus.
    pub(super) fn text(&self) -> String {
        let mut collected = ResourceMetrics::default();
        match self.0.collect(&mut collected) {
            Ok(()) => text::of(&collected),
            // The pipeline has been shut down.
            Err(_) => String::new(),
        }
    }
}

impl MetricReader for Scraped {
    fn register_pipeline(&self, pipeline: Weak<Pipeline>) {
        self.0.register_pipeline(pipeline);
    }

    fn collect(&self, collected: &mut ResourceMetrics) -> OTelSdkResult {
        self.0.collect(collected)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self, kind: InstrumentKind) -> Temporality {
        self.0.temporality(kind)
    }
}
