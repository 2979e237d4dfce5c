//! Where traces and metrics go, as the standard variables say: by gRPC or by HTTP, to a collector nearby.
//!
//! <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>

use std::env;
use std::time::Duration;

use anyhow::bail;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    MetricExporter, Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
};
use tokio::runtime::Handle;

#[derive(Debug, Clone, Copy)]
enum By {
    Grpc,
    Http,
}

/// # Errors
/// If a variable makes no sense.
pub(super) fn spans() -> anyhow::Result<Option<SpanExporter>> {
    let Some(by) = wanted("TRACES")? else { return Ok(None) };
    check_sampler()?;
    let limit = timeout("TRACES")?;
    Ok(Some(match by {
        By::Grpc => SpanExporter::builder().with_tonic().with_timeout(limit).build()?,
        By::Http => SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_http_client(OnRuntime::new(limit))
            .build()?,
    }))
}

/// # Errors
/// If a variable makes no sense.
pub(super) fn metrics() -> anyhow::Result<Option<MetricExporter>> {
    let Some(by) = wanted("METRICS")? else { return Ok(None) };
    let limit = timeout("METRICS")?;
    Ok(Some(match by {
        By::Grpc => MetricExporter::builder().with_tonic().with_timeout(limit).build()?,
        By::Http => MetricExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_http_client(OnRuntime::new(limit))
            .build()?,
    }))
}

fn read(name: &str) -> Option<String> {
    env::var(name).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The pipeline would sample everything where it does not know better.
fn check_sampler() -> anyhow::Result<()> {
    const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
    let Some(sampler) = read(SAMPLER) else { return Ok(()) };
    match sampler.trim_start_matches("parentbased_") {
        "always_on" | "always_off" => Ok(()),
        "traceidratio" => match read("OTEL_TRACES_SAMPLER_ARG").map(|share| share.parse::<f64>()) {
            None => Ok(()),
            Some(Ok(share)) if (0.0..=1.0).contains(&share) => Ok(()),
            Some(_) => bail!("OTEL_TRACES_SAMPLER_ARG: must be a share from 0 to 1"),
        },
        _ => bail!(
            "{SAMPLER}: must be `always_on`, `always_off` or `traceidratio`, each with or without `parentbased_`"
        ),
    }
}

/// Of one export.
fn timeout(signal: &str) -> anyhow::Result<Duration> {
    match either(signal, "TIMEOUT").map(|(name, ms)| (name, ms.parse())) {
        None => Ok(Duration::from_secs(10)),
        Some((_, Ok(ms))) => Ok(Duration::from_millis(ms)),
        Some((name, Err(_))) => bail!("{name}: must be a number of milliseconds"),
    }
}

/// The variable of a signal, or else that of all; and what it says.
fn either(signal: &str, what: &str) -> Option<(String, String)> {
    let (own, all) = (format!("OTEL_EXPORTER_OTLP_{signal}_{what}"), format!("OTEL_EXPORTER_OTLP_{what}"));
    read(&own).map(|text| (own, text)).or_else(|| read(&all).map(|text| (all, text)))
}

/// Whether a signal is to be exported, and how. Nothing is unless it is said where to.
fn wanted(signal: &str) -> anyhow::Result<Option<By>> {
    if read("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    let exporter = format!("OTEL_{signal}_EXPORTER");
    match read(&exporter).as_deref() {
        Some("none") => return Ok(None),
        None | Some("otlp") => {}
        Some(_) => bail!("{exporter}: must be `otlp` or `none`"),
    }
    let Some((name, endpoint)) = either(signal, "ENDPOINT") else { return Ok(None) };
    // Not quoted: it may hold a password.
    match endpoint.split_once("://") {
        Some(("http", rest)) if !rest.is_empty() => {}
        Some(("https", _)) => bail!("{name}: only http:// is supported; let a collector nearby do the rest"),
        _ => bail!("{name}: must be a URL like http://127.0.0.1:4317"),
    }
    match either(signal, "PROTOCOL") {
        Some((_, protocol)) if protocol == "grpc" => Ok(Some(By::Grpc)),
        None => Ok(Some(By::Http)),
        Some((_, protocol)) if protocol == "http/protobuf" => Ok(Some(By::Http)),
        Some((name, _)) => bail!("{name}: must be `grpc` or `http/protobuf`"),
    }
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
