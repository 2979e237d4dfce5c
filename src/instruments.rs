//! placeholder
use opentelemetry::KeyValue;
use opentelemetry::metrics::Histogram;
use std::time::Duration;

/// An instrument, and what is said with each value.
#[derive(Debug)]
pub(crate) struct Recorder(pub(crate) Histogram<f64>, pub(crate) Vec<KeyValue>);

impl Recorder {
    pub(crate) fn record(&self, duration: Duration) {
        self.0.record(duration.as_secs_f64(), &self.1);
    }
}
