//! Spans of reads and loads by `tracing`, without OpenTelemetry. Copy `get` and `loading`.
//!
//! `cargo run -p perto-bridges --example with_tracing`

use std::future::Future;

use perto::sim::Sim;
use perto::{Cache, Error, Key, Load, Read, Value};
use tracing::field::{Empty, debug};
use tracing::instrument::Instrumented;
use tracing::{Instrument, Span, info_span};
use tracing_subscriber::fmt::format::FmtSpan;

/// Reads a key in a span of its own, which says which tier answered and how fresh the answer is.
///
/// # Errors
/// Those of [`Cache::get`].
pub async fn get<K: Key, V: Value>(cache: &Cache<K, V>, key: &K) -> Result<Read<V>, Error> {
    let span = info_span!("cache.get", cache = cache.name(), tier = Empty, freshness = Empty, error = Empty);
    let read = cache.get(key).instrument(span.clone()).await;
    match &read {
        Ok(read) => {
            span.record("tier", debug(read.tier)).record("freshness", debug(read.freshness));
        }
        Err(error) => drop(span.record("error", error.to_string())),
    }
    read
}

/// Runs a loader in a span of its own. It serves whoever waits, so it is part of no reader's span.
pub fn loading<K, F: Future>(
    cache: &'static str,
    loader: impl Fn(Load<K>) -> F,
) -> impl Fn(Load<K>) -> Instrumented<F> {
    move |load| {
        let span = info_span!(parent: Span::none(), "cache.load", cache, keys = load.keys.len());
        loader(load).instrument(span)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tokio::time::pause();
    let spans = tracing_subscriber::fmt().with_span_events(FmtSpan::CLOSE).with_ansi(false).without_time();
    spans.with_writer(std::io::stdout).init();
    let sim = Sim::new(1);
    let perto = sim.node().builder("shop").build()?;
    let loader = loading("user", sim.postgres.loader("user").function());
    let users: Cache<u64, String> = perto.cache("user").loader(loader)?;
    perto.start().await?;
    perto.ready().await?;
    get(&users, &7).await?;
    get(&users, &7).await?;
    perto.shutdown().await;
    Ok(())
}
