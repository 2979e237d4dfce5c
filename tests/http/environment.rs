//! The environment: what is empty is not set, and what is of others ends nothing.

use std::process::Command;

use crate::command::{Served, perto, seeded};
use crate::service::request;
use crate::sink::Sink;
use crate::support::engines::redis_url;
use crate::support::servers::Folder;
use crate::support::wait::eventually;

const STANDARD: [&str; 27] = [
    "OTEL_SDK_DISABLED",
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_TRACES_EXPORTER",
    "OTEL_METRICS_EXPORTER",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_COMPRESSION",
    "OTEL_EXPORTER_OTLP_INSECURE",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
    "OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_EXPORT_TIMEOUT",
    "OTEL_METRIC_EXPORT_INTERVAL",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
    "OTEL_PROPAGATORS",
];

/// What is said of itself by an instance that is asked once and ended.
async fn said(command: Command) -> String {
    let folder = Folder::new("environment");
    let path = folder.0.join("log");
    let served = Served::start_saying(command, "a", &[], std::fs::File::create(&path).unwrap().into());
    assert_eq!(request(&served, "GET", "/api/v1/companies/1", "", "").await.status, 200);
    assert!(tokio::task::spawn_blocking(move || served.end()).await.unwrap());
    std::fs::read_to_string(&path).unwrap()
}

/// Each `[env: NAME]` of the help.
fn variables() -> Vec<String> {
    let help = perto("", "").args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let names = help.split("[env: ").skip(1).map(|rest| rest.split(['=', ']']).next().unwrap().to_owned());
    names.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_that_is_empty_is_not_set() {
    let database = seeded();
    let known = variables();
    assert!(known.len() > 25 && known.iter().any(|name| name == "PERTO_BOUND"), "{known:?}");
    let mut command = perto(&database.url, "");
    for name in known.iter().map(String::as_str).chain(STANDARD).filter(|name| *name != "DATABASE_URL") {
        command.env(name, "");
    }
    let log = said({
        command.env("RUST_LOG", "");
        command
    })
    .await;
    assert!(log.contains("serving") && !log.contains("OTEL_"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standard_variable_that_makes_no_sense_is_told_once_and_ends_nothing() {
    let database = seeded();
    let mut command = perto(&database.url, "");
    for name in STANDARD.iter().filter(|name| **name != "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
        command.env(name, "s3cret");
    }
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9").env("RUST_LOG", "s3cret==");
    command
        .env("OTEL_TRACES_EXPORTER", "otlp,console")
        .env("OTEL_METRICS_EXPORTER", "otlp,prometheus,s3cret");
    let log = said(command).await;
    for name in [
        "RUST_LOG",
        "OTEL_SDK_DISABLED",
        "OTEL_RESOURCE_ATTRIBUTES",
        "OTEL_TRACES_EXPORTER",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        "OTEL_EXPORTER_OTLP_TIMEOUT",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_COMPRESSION",
        "OTEL_EXPORTER_OTLP_INSECURE",
        "OTEL_EXPORTER_OTLP_CERTIFICATE",
        "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
        "OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE",
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
        "OTEL_PROPAGATORS",
        "OTEL_TRACES_SAMPLER",
        "OTEL_BSP_MAX_QUEUE_SIZE",
        "OTEL_METRIC_EXPORT_INTERVAL",
        "OTEL_SPAN_LINK_COUNT_LIMIT",
    ] {
        // Others begin with a longer name.
        let says =
            |line: &&str| line.contains(&format!("{name}: ")) || line.contains(&format!("{name} makes"));
        assert_eq!(log.lines().filter(says).count(), 1, "{name}: {log}");
    }
    assert!(log.contains("`/metrics` is always there"), "{log}");
    assert!(!log.contains("s3cret"), "{log}");
    for (name, value) in [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "99999999999999"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "0"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://user:s3cret@collector:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://s3cret s3cret"),
    ] {
        let mut command = perto(&database.url, "");
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9").env(name, value);
        let log = said(command).await;
        assert!(log.contains(&name[..19]) && !log.contains("s3cret"), "{name}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_of_the_service_wins_over_that_among_the_attributes() {
    let (database, sink) = (seeded(), Sink::grpc().await);
    let mut command = perto(&database.url, &redis_url());
    command
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", sink.address))
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        .env("OTEL_TRACES_EXPORTER", "otlp,console")
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .env("OTEL_SERVICE_NAME", "the-name")
        .env("OTEL_RESOURCE_ATTRIBUTES", "service.name=another,team=x");
    let served = Served::start_by(command, "a", &[]);
    assert_eq!(request(&served, "GET", "/api/v1/companies/1", "", "").await.status, 200);
    eventually("a span came", async || !sink.spans().is_empty()).await;
    let sent = sink.everything();
    assert!(sent.contains("\"the-name\"") && !sent.contains("\"another\"") && sent.contains("\"team\""));
}

#[test]
fn a_setting_of_its_own_that_makes_no_sense_ends_the_start_and_says_what_to_change() {
    for (name, value, says) in [
        ("PERTO_REQUEST_TIMEOUT", "0s", "must be longer than 0"),
        ("PERTO_POOL_ACQUIRE", "0s", "must be longer than 0"),
        ("PERTO_TTL_USER", "0s", "must be longer than 0"),
        ("PERTO_REQUEST_TIMEOUT", "30", "like 250ms"),
        ("PERTO_DRAIN", "2h", "at most 1h"),
        ("PERTO_RATE_LIMIT", "many", "--rate-limit"),
        ("PERTO_MAX_CONNECTIONS", "0", "--max-connections"),
        ("PERTO_PREPARED_STATEMENTS", "perhaps", "--prepared-statements"),
    ] {
        let output =
            perto("postgres://nobody@127.0.0.1:1/x", "").arg("serve").env(name, value).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(says), "{name}={value}: {said}");
    }
}
