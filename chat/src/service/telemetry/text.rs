//! Metrics in the [text format](https://prometheus.io/docs/instrumenting/exposition_formats/) of Prometheus, named by
//! [the rules](https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/) of `OpenTelemetry`.
//!
//! The format has no exponential histograms. Theirs are told at every power of the square root of two from a microsecond to a
//! minute: these are boundaries of theirs, so nothing is estimated.

use std::fmt::Display;

use opentelemetry::KeyValue;
use opentelemetry_sdk::metrics::data::{
    AggregatedMetrics, ExponentialHistogram, Metric, MetricData, ResourceMetrics,
};

/// Twice the powers of two, in seconds. Always all of them: a rate is taken of each.
const BOUNDS: std::ops::RangeInclusive<i32> = -40..=12;

pub(super) fn of(collected: &ResourceMetrics) -> String {
    let mut out = String::new();
    let resource = collected.resource().iter().map(|(key, value)| (key.as_str(), value.to_string()));
    out.push_str("# HELP target_info What the figures are of.\n# TYPE target_info gauge\n");
    line(&mut out, "target_info", &labels(resource, None), 1);
    for metric in collected.scope_metrics().flat_map(|scope| scope.metrics()) {
        match metric.data() {
            AggregatedMetrics::F64(data) => write(&mut out, metric, data, |value| value),
            #[expect(clippy::cast_precision_loss, reason = "the format has floats, exact to 2^53")]
            AggregatedMetrics::U64(data) => write(&mut out, metric, data, |value| value as f64),
            #[expect(clippy::cast_precision_loss, reason = "the format has floats, exact to 2^53")]
            AggregatedMetrics::I64(data) => write(&mut out, metric, data, |value| value as f64),
        }
    }
    out
}

fn write<T: Copy>(out: &mut String, metric: &Metric, data: &MetricData<T>, number: fn(T) -> f64) {
    let (kind, suffix) = match data {
        MetricData::Sum(sum) if sum.is_monotonic() => ("counter", "_total"),
        MetricData::Sum(_) | MetricData::Gauge(_) => ("gauge", ""),
        MetricData::ExponentialHistogram(_) => ("histogram", ""),
        // A view makes all of them exponential.
        MetricData::Histogram(_) => return,
    };
    let unit = match metric.unit() {
        "s" => "_seconds",
        "By" => "_bytes",
        "1" => "_ratio",
        _ => "",
    };
    let name = format!("{}{unit}{suffix}", plain(metric.name()));
    let help = metric.description().replace('\\', "\\\\").replace('\n', "\\n");
    out.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    match data {
        MetricData::Sum(sum) => sum
            .data_points()
            .for_each(|point| line(out, &name, &of_point(point.attributes(), None), number(point.value()))),
        MetricData::Gauge(gauge) => gauge
            .data_points()
            .for_each(|point| line(out, &name, &of_point(point.attributes(), None), number(point.value()))),
        MetricData::ExponentialHistogram(histogram) => buckets(out, &name, histogram, number),
        MetricData::Histogram(_) => {}
    }
}

fn buckets<T: Copy>(out: &mut String, name: &str, histogram: &ExponentialHistogram<T>, number: fn(T) -> f64) {
    for point in histogram.data_points() {
        // A bucket ends at two to the power of this, times its index and one.
        let width = f64::from(-i32::from(point.scale())).exp2();
        let positive = point.positive_bucket();
        let mut counts = (positive.offset()..).zip(positive.counts()).peekable();
        let mut below = point.zero_count();
        for exponent in BOUNDS.map(|half| f64::from(half) / 2.0) {
            while let Some((_, count)) = counts.next_if(|(index, _)| f64::from(index + 1) * width <= exponent)
            {
                below += count;
            }
            let bound = exponent.exp2().to_string();
            line(out, &format!("{name}_bucket"), &of_point(point.attributes(), Some(&bound)), below);
        }
        line(out, &format!("{name}_bucket"), &of_point(point.attributes(), Some("+Inf")), point.count());
        line(out, &format!("{name}_sum"), &of_point(point.attributes(), None), number(point.sum()));
        line(out, &format!("{name}_count"), &of_point(point.attributes(), None), point.count());
    }
}

fn of_point<'a>(attributes: impl Iterator<Item = &'a KeyValue>, bound: Option<&str>) -> String {
    labels(attributes.map(|label| (label.key.as_str(), label.value.to_string())), bound)
}

fn labels<'a>(attributes: impl Iterator<Item = (&'a str, String)>, bound: Option<&str>) -> String {
    let mut all: Vec<(String, String)> = attributes.map(|(key, value)| (plain(key), value)).collect();
    all.sort_unstable();
    // Names that differ only in what the format has no place for.
    all.dedup_by(|later, first| {
        later.0 == first.0 && {
            first.1 = format!("{};{}", first.1, later.1);
            true
        }
    });
    all.extend(bound.map(|bound| ("le".to_owned(), bound.to_owned())));
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let all: Vec<String> = all.iter().map(|(key, value)| format!("{key}=\"{}\"", quoted(value))).collect();
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

fn line(out: &mut String, name: &str, labels: &str, value: impl Display) {
    out.push_str(&format!("{name}{labels} {value}\n"));
}

/// A name that Prometheus takes.
fn plain(name: &str) -> String {
    let digit = name.starts_with(|first: char| first.is_ascii_digit());
    (if digit { "_" } else { "" })
        .chars()
        .chain(name.chars())
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' })
        .collect()
}
