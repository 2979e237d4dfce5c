//! Perto's figures by the `metrics` crate: here for Prometheus, as a text. Copy `publish`, and call it every few seconds.
//!
//! `cargo run -p perto-bridges --example with_metrics`
#![expect(clippy::print_stdout, reason = "an example shows something")]

use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::PrometheusBuilder;
use perto::sim::Sim;
use perto::{Cache, Histogram, Key, Perto, State, Tier, Value};

/// Hands on what one instance and one of its caches have counted so far. `told` has the durations that were handed on already.
pub fn publish<K: Key, V: Value>(perto: &Perto, cache: &Cache<K, V>, told: &mut [Histogram; 3]) {
    let (name, stats, health) = (cache.name().to_owned(), cache.stats(), perto.health());
    for (tier, reads) in [("l1", stats.l1_hits), ("l2", stats.l2_hits), ("load", stats.load_hits)] {
        counter!("perto_reads_total", "cache" => name.clone(), "tier" => tier).absolute(reads);
    }
    for (outcome, loads) in [("all", stats.loads), ("failed", stats.load_errors)] {
        counter!("perto_loads_total", "cache" => name.clone(), "outcome" => outcome).absolute(loads);
    }
    for (why, values) in [("too-large", stats.too_large), ("unstorable", stats.l2_unstorable)] {
        counter!("perto_kept_out_of_l2_total", "cache" => name.clone(), "why" => why).absolute(values);
    }
    for (earlier, tier) in told.iter_mut().zip([Tier::Local, Tier::Remote, Tier::Load]) {
        let now = cache.latency(tier).clone();
        let seconds =
            histogram!("perto_read_seconds", "cache" => name.clone(), "tier" => format!("{tier:?}"));
        for (took, reads) in now.since(earlier).counts() {
            seconds.record_many(took, usize::try_from(reads).unwrap_or(usize::MAX));
        }
        *earlier = now;
    }
    let (entries, bytes) = cache.size();
    #[expect(clippy::cast_precision_loss, reason = "it is shown")]
    for (what, size) in [("perto_l1_entries", entries), ("perto_l1_bytes", bytes)] {
        gauge!(what, "cache" => name.clone()).set(size as f64);
    }
    gauge!("perto_coherent").set(f64::from(u8::from(health.state == State::Coherent)));
    gauge!("perto_lease_left_seconds").set(health.lease_left);
    gauge!("perto_troubles").set(u32::try_from(health.troubles.len()).unwrap_or(u32::MAX));
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tokio::time::pause();
    let figures = PrometheusBuilder::new().install_recorder()?;
    let sim = Sim::new(1);
    let perto = sim.node().builder("shop").build()?;
    let users: Cache<u64, String> = perto.cache("user").loader(sim.postgres.loader("user").function())?;
    perto.start().await?;
    perto.ready().await?;
    for _ in 0..3 {
        users.get(&7).await?;
    }
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    publish(&perto, &users, &mut Default::default());
    println!("{}", figures.render());
    perto.shutdown().await;
    Ok(())
}
