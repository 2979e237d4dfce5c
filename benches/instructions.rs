//! One L1 hit in instructions, for callgrind: `scripts/instructions`. Usage: `instructions moka|perto i64|string COUNT DEPENDS`
//!
//! With the feature `otel` hits are made within a span that is not sampled, and every figure has its instrument.
#![allow(
    missing_docs,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a bench"
)]
#![allow(clippy::panic, clippy::missing_panics_doc, unreachable_pub, dead_code, reason = "a bench")]

mod setup;

use std::hint::black_box;
use std::sync::Arc;

use futures_util::FutureExt;
use setup::{Bed, Id, Message, ROWS, bare_moka, zipf};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [what, key, count, depends] = arguments.as_slice() else {
        // `cargo bench` runs every bench; this one counts only under callgrind.
        return;
    };
    let count: usize = count.parse().expect("COUNT is a number");
    let depends: i64 = depends.parse().expect("DEPENDS is a number");
    match key.as_str() {
        "i64" => run::<i64>(what, count, depends),
        _ => run::<String>(what, count, depends),
    }
}

fn run<K: perto::Key + From<Id>>(what: &str, count: usize, depends: i64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let keys: Vec<K> = zipf(count).into_iter().map(|id| K::from(Id(id))).collect();
    runtime.block_on(async {
        if what == "moka" {
            return counted_moka(&bare_moka::<K>(), &keys);
        }
        let bed = Bed::make().await;
        let (perto, cache) = bed.instance_of::<K>(64 << 20, depends).await;
        #[cfg(feature = "otel")]
        let _unsampled = observed(&perto);
        let all: Vec<K> = (0..ROWS).map(|id| K::from(Id(id))).collect();
        cache.get_many(&all).await.expect("load");
        let (_entries, _bytes) = cache.size();
        counted_perto(&cache, &keys);
        assert_eq!(cache.stats().l1_hits, count as u64, "every read was to be a hit");
        perto.shutdown().await;
        bed.clean_up().await;
    });
}

/// As in a service that is traced, of a request that isn't.
#[cfg(feature = "otel")]
fn observed(perto: &perto::Perto) -> opentelemetry::ContextGuard {
    use opentelemetry::metrics::MeterProvider as _;
    use opentelemetry::trace::{TraceContextExt as _, Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::metrics::SdkMeterProvider;
    use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
    let traces = SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOff).build();
    opentelemetry::global::set_tracer_provider(traces.clone());
    perto.instrument(&SdkMeterProvider::default().meter("perto"));
    let request = traces.tracer("bench").start("request");
    opentelemetry::Context::current_with_span(request).attach()
}

/// What callgrind counts, by name.
#[inline(never)]
fn counted_moka<K: perto::Key>(moka: &moka::sync::Cache<K, Arc<Message>>, keys: &[K]) {
    for key in keys {
        black_box(moka.get(key));
    }
}

/// What callgrind counts, by name. A hit never waits, so its future is ready at once.
#[inline(never)]
fn counted_perto<K: perto::Key>(cache: &perto::Cache<K, Message>, keys: &[K]) {
    for key in keys {
        black_box(cache.get(key).now_or_never());
    }
}
