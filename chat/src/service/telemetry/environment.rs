//! What the standard variables say. One that is empty is not set; one that makes no sense is as good as not set, and is
//! told of once: they are often those of a whole machine, and of other programs on it.
//!
//! <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>

use std::ops::RangeInclusive;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use opentelemetry_sdk::trace::{BatchConfig, BatchConfigBuilder, Sampler};

/// How it is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Grpc,
    Http,
}

const DAY_MS: u64 = 24 * 3_600 * 1_000;
/// Those that only the SDK reads, which passes over what is no number.
const COUNTS: [&str; 3] =
    ["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_SPAN_EVENT_COUNT_LIMIT", "OTEL_SPAN_LINK_COUNT_LIMIT"];

const TEMPORALITY: &str = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
const PROPAGATORS: &str = "OTEL_PROPAGATORS";
const NO_TLS: &str = "is not read: only http:// is supported";

/// The variables, and what was wrong with those that were asked for.
#[derive(Debug)]
pub(super) struct Environment {
    read: fn(&str) -> Option<String>,
    pub(super) wrong: Vec<String>,
}

impl Default for Environment {
    fn default() -> Self {
        Self { read: |name| std::env::var(name).ok(), wrong: Vec::new() }
    }
}

impl Environment {
    fn read(&self, name: &str) -> Option<String> {
        (self.read)(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// What it says is not quoted: it may be a secret that was meant for another variable.
    fn warn(&mut self, name: &str, wrong: &str) {
        let wrong = format!("{name}: {wrong}");
        if !self.wrong.contains(&wrong) {
            self.wrong.push(wrong);
        }
    }

    /// The variable of a signal, or else that of all; and what it says.
    fn either(&self, signal: &str, what: &str) -> Option<(String, String)> {
        let (own, all) =
            (format!("OTEL_EXPORTER_OTLP_{signal}_{what}"), format!("OTEL_EXPORTER_OTLP_{what}"));
        self.read(&own).map(|text| (own, text)).or_else(|| self.read(&all).map(|text| (all, text)))
    }

    fn number(&mut self, name: &str, usual: u64, within: RangeInclusive<u64>) -> u64 {
        let Some(text) = self.read(name) else { return usual };
        match text.parse() {
            Ok(number) if within.contains(&number) => number,
            _ => {
                let (least, most) = (within.start(), within.end());
                self.warn(name, &format!("is no number from {least} to {most}, and {usual} is taken"));
                usual
            }
        }
    }

    /// Whether a signal is to be exported, and how. Nothing is unless it is said where to.
    pub(super) fn wanted(&mut self, signal: &str) -> Option<By> {
        const DISABLED: &str = "OTEL_SDK_DISABLED";
        match self.read(DISABLED).map(|text| text.to_ascii_lowercase()).as_deref() {
            Some("true") => return None,
            None | Some("false") => {}
            Some(_) => self.warn(DISABLED, "is neither `true` nor `false`, and `false` is taken"),
        }
        let exporter = format!("OTEL_{signal}_EXPORTER");
        if let Some(list) = self.read(&exporter) {
            let mut known = false;
            for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                match name.to_ascii_lowercase().as_str() {
                    "otlp" => known = true,
                    "none" => {}
                    "prometheus" if signal == "METRICS" => {
                        self.warn(&exporter, "needs no `prometheus`: `/metrics` is always there");
                    }
                    _ => self.warn(&exporter, "only `otlp` and `none` are known; the others are left out"),
                }
            }
            if !known {
                return None;
            }
        }
        let (name, endpoint) = self.either(signal, "ENDPOINT")?;
        match endpoint.split_once("://") {
            Some(("http", rest)) if !rest.is_empty() => {}
            Some(("https", _)) => {
                let wrong =
                    "only http:// is supported, so nothing is exported; let a collector nearby do the rest";
                self.warn(&name, wrong);
                return None;
            }
            _ => {
                self.warn(&name, "is no URL like http://127.0.0.1:4317, so nothing is exported");
                return None;
            }
        }
        self.judge_the_rest(signal);
        match self.either(signal, "PROTOCOL") {
            Some((_, protocol)) if protocol == "grpc" => Some(By::Grpc),
            Some((name, protocol)) if protocol != "http/protobuf" => {
                self.warn(&name, "is neither `grpc` nor `http/protobuf`, and `http/protobuf` is taken");
                Some(By::Http)
            }
            _ => Some(By::Http),
        }
    }

    /// What only the exporter reads, which passes over what makes no sense.
    fn judge_the_rest(&mut self, signal: &str) {
        if let Some((name, headers)) = self.either(signal, "HEADERS") {
            let mut parts = headers.split(',').map(str::trim).filter(|part| !part.is_empty());
            if parts.any(|part| !is_header(part)) {
                self.warn(&name, "has a part that is no NAME=VALUE, and is left out");
            }
        }
        for (what, known, wrong) in [
            ("COMPRESSION", &["none"][..], "only `none` is supported, and is taken"),
            (
                "INSECURE",
                &["true", "false"],
                "is neither `true` nor `false`; the http:// of the endpoint decides",
            ),
            ("CERTIFICATE", &[], NO_TLS),
            ("CLIENT_KEY", &[], NO_TLS),
            ("CLIENT_CERTIFICATE", &[], NO_TLS),
        ] {
            let set = self.either(signal, what);
            self.one_of(set, known, wrong);
        }
        let set = |name: &str| self.read(name).map(|text| (name.to_owned(), text));
        let (temporality, propagators) = (set(TEMPORALITY), set(PROPAGATORS));
        if signal == "METRICS" {
            let known = ["cumulative", "delta", "lowmemory"];
            self.one_of(
                temporality,
                &known,
                "is none of `cumulative`, `delta` and `lowmemory`; `cumulative` is taken",
            );
        }
        for one in
            propagators.iter().flat_map(|(name, list)| list.split(',').map(move |one| (name, one.trim())))
        {
            let one = Some((one.0.clone(), one.1.to_owned()));
            self.one_of(
                one,
                &["tracecontext", "baggage", ""],
                "only `tracecontext` is read, and baggage is passed over",
            );
        }
    }

    fn one_of(&mut self, set: Option<(String, String)>, known: &[&str], wrong: &str) {
        if let Some((name, text)) = set
            && !known.iter().any(|known| text.eq_ignore_ascii_case(known))
        {
            self.warn(&name, wrong);
        }
    }

    /// An exporter, if it could be made. Why not is not told: it may quote a URL.
    pub(super) fn built<T, E>(&mut self, signal: &str, built: Result<T, E>) -> Option<T> {
        if built.is_err() {
            let wrong = format!("{signal} are not exported: an endpoint, a header or a compression is none");
            self.warn("OTEL_EXPORTER_OTLP_*", &wrong);
        }
        built.ok()
    }

    /// Of one export.
    pub(super) fn timeout(&mut self, signal: &str) -> Duration {
        const USUAL: u64 = 10_000;
        let name = self.either(signal, "TIMEOUT").map(|(name, _)| name);
        Duration::from_millis(name.map_or(USUAL, |name| self.number(&name, USUAL, 1..=DAY_MS)))
    }

    pub(super) fn sampler(&mut self) -> Sampler {
        const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
        let Some(name) = self.read(SAMPLER) else { return Sampler::ParentBased(Box::new(Sampler::AlwaysOn)) };
        let (of_parent, root) =
            name.strip_prefix("parentbased_").map_or((false, name.as_str()), |root| (true, root));
        let root = match root {
            "always_on" => Sampler::AlwaysOn,
            "always_off" => Sampler::AlwaysOff,
            "traceidratio" => Sampler::TraceIdRatioBased(self.share()),
            _ => {
                let wrong = "is none of `always_on`, `always_off` and `traceidratio`, with or without `parentbased_`; \
                             `parentbased_always_on` is taken";
                self.warn(SAMPLER, wrong);
                return Sampler::ParentBased(Box::new(Sampler::AlwaysOn));
            }
        };
        if of_parent { Sampler::ParentBased(Box::new(root)) } else { root }
    }

    fn share(&mut self) -> f64 {
        const SHARE: &str = "OTEL_TRACES_SAMPLER_ARG";
        match self.read(SHARE).map(|text| text.parse::<f64>()) {
            None => 1.0,
            Some(Ok(share)) if (0.0..=1.0).contains(&share) => share,
            Some(_) => {
                self.warn(SHARE, "is no share from 0 to 1, and 1 is taken");
                1.0
            }
        }
    }

    /// Of spans. The queue is made at once, so it has a bound.
    pub(super) fn batches(&mut self) -> BatchConfig {
        for name in COUNTS {
            if self.read(name).is_some_and(|text| text.parse::<u32>().is_err()) {
                self.warn(name, "is no number, and 128 is taken");
            }
        }
        let size = |number| usize::try_from(number).unwrap_or(usize::MAX);
        let queue = self.number("OTEL_BSP_MAX_QUEUE_SIZE", 2_048, 1..=1_000_000);
        let batch = self.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512.min(queue), 1..=1_000_000);
        BatchConfigBuilder::default()
            .with_max_queue_size(size(queue))
            .with_max_export_batch_size(size(batch.min(queue)))
            .with_scheduled_delay(Duration::from_millis(self.number(
                "OTEL_BSP_SCHEDULE_DELAY",
                5_000,
                1..=DAY_MS,
            )))
            .build()
    }

    /// Of metrics.
    pub(super) fn interval(&mut self) -> Duration {
        Duration::from_millis(self.number("OTEL_METRIC_EXPORT_INTERVAL", 60_000, 1..=DAY_MS))
    }

    pub(super) fn service_name(&mut self) -> String {
        const ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
        let attributes = self.read(ATTRIBUTES).unwrap_or_default();
        let pairs = attributes.split(',').map(str::trim).filter(|pair| !pair.is_empty());
        let pairs: Vec<Option<(&str, &str)>> = pairs.map(|pair| pair.split_once('=')).collect();
        if pairs.iter().any(Option::is_none) {
            self.warn(ATTRIBUTES, "has a part that is no NAME=VALUE, and is left out");
        }
        let named = pairs.into_iter().flatten().rfind(|(name, _)| name.trim() == "service.name");
        let named = named.map(|(_, value)| value.trim().to_owned()).filter(|value| !value.is_empty());
        self.read("OTEL_SERVICE_NAME").or(named).unwrap_or_else(|| "perto".to_owned())
    }
}

/// As the exporter takes it: what may stand in the line of a request.
fn is_header(part: &str) -> bool {
    part.split_once('=').is_some_and(|(name, value)| {
        let (name, value) = (name.trim().parse::<HeaderName>(), value.trim().parse::<HeaderValue>());
        name.is_ok() && value.is_ok_and(|value| !value.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(read: fn(&str) -> Option<String>) -> Environment {
        Environment { read, wrong: Vec::new() }
    }

    fn of(pairs: &[(&str, &str)], name: &str) -> Option<String> {
        pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn what_is_known_of_a_list_is_taken_and_the_rest_is_told_once() {
        let mut some = environment(|name| {
            of(
                &[
                    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h:4317"),
                    ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon"),
                    ("OTEL_TRACES_EXPORTER", "otlp, console,zipkin"),
                    ("OTEL_METRICS_EXPORTER", "prometheus"),
                ],
                name,
            )
        });
        assert_eq!((some.wanted("TRACES"), some.wanted("METRICS")), (Some(By::Http), None));
        let told: Vec<&str> = some.wrong.iter().filter_map(|wrong| wrong.split(':').next()).collect();
        assert_eq!(
            told,
            ["OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_METRICS_EXPORTER"],
            "{:?}",
            some.wrong
        );
    }

    #[test]
    fn what_makes_no_sense_is_as_good_as_not_set_and_is_not_quoted() {
        let mut odd = environment(|name| (!name.ends_with("_EXPORTER")).then(|| "s3cret".to_owned()));
        assert_eq!((odd.wanted("TRACES"), odd.timeout("TRACES").as_secs()), (None, 10));
        assert_eq!(format!("{:?}", odd.sampler()), "ParentBased(AlwaysOn)");
        let usual = format!("{:?}", BatchConfigBuilder::default().build());
        assert_eq!((format!("{:?}", odd.batches()), odd.interval().as_secs()), (usual, 60));
        assert_eq!(odd.wrong.len(), 11, "{:?}", odd.wrong);
        assert!(odd.wrong.iter().all(|wrong| wrong.starts_with("OTEL_") && !wrong.contains("s3cret")));
        let mut huge = environment(|_| Some("99999999999".to_owned()));
        assert_eq!(huge.number("N", 7, 1..=1_000_000), 7, "a queue of that size would end the process");
        let mut empty = environment(|_| Some(" ".to_owned()));
        assert_eq!((empty.wanted("TRACES"), empty.service_name().as_str()), (None, "perto"));
        assert!(empty.wrong.is_empty());
    }

    #[test]
    fn the_services_own_name_wins_over_that_among_its_attributes() {
        let mut both = environment(|name| {
            of(&[("OTEL_SERVICE_NAME", "a"), ("OTEL_RESOURCE_ATTRIBUTES", "x=y,service.name=b")], name)
        });
        assert_eq!(both.service_name(), "a");
        let mut one =
            environment(|name| of(&[("OTEL_RESOURCE_ATTRIBUTES", "service.name= b ,odd,x=y")], name));
        assert_eq!((one.service_name().as_str(), one.wrong.len()), ("b", 1));
    }
}
