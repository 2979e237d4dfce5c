//! One path of the library, many times over, for callgrind: `scripts/instructions`. Usage: `perto-instructions PATH KEY DEPENDS`
//!
//! In memory, on one thread and a bound of a minute, so that each run does the same. What is counted is what runs
//! within [`counted`], tasks of the instance included.
#![allow(missing_docs, clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a bench")]
#![allow(clippy::cast_sign_loss, clippy::panic, clippy::print_stdout, unreachable_pub, reason = "a bench")]

#[path = "../setup/rows.rs"]
mod rows;

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use perto::sim::{Sim, SimBus};
use perto::{Cache, Load, Perto, Remote, RemoteError, StaleWhileLoading, State, Tier};
use rows::{Id, Message, ROWS, bare_moka, zipf};
use tokio::runtime::Runtime;
use tokio::task::yield_now;

const CACHE: &str = "messages";
/// Hits that are counted.
const HITS: usize = 100_000;
/// Rows that each of the slower paths takes, and how many of them before, to have every table as large as it gets.
const SLOW: usize = 4_096;
const WARM: usize = 1_024;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, key, depends] = arguments.as_slice() else { panic!("PATH KEY DEPENDS") };
    let depends = depends.parse().expect("DEPENDS is a number");
    let count = match key.as_str() {
        "i64" => run::<i64>(path, depends),
        "string" => run::<String>(path, depends),
        other => panic!("no key {other}"),
    };
    println!("counted {count}");
}

fn run<K: perto::Key + From<Id>>(path: &str, depends: i64) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    match path {
        "moka" => moka::<K>(),
        "get" | "get_ref" | "get_all" => hits::<K>(&runtime, path, depends),
        "l2" => reads::<K>(&runtime, Tier::Remote, 1),
        "l2_64" => reads::<K>(&runtime, Tier::Remote, 64),
        "miss" => reads::<K>(&runtime, Tier::Load, 1),
        "miss_64" => reads::<K>(&runtime, Tier::Load, 64),
        "invalidate" => invalidations::<K>(&runtime),
        other => panic!("no path {other}"),
    }
}

/// What callgrind counts, by name.
#[inline(never)]
fn counted(work: impl FnOnce()) {
    #[cfg(not(feature = "allocations"))]
    work();
    #[cfg(feature = "allocations")]
    println!("allocations {}", allocation_counter::measure(work).count_total);
}

fn moka<K: perto::Key + From<Id>>() -> usize {
    let (moka, keys) = (bare_moka::<K>(), popular::<K>());
    counted(|| keys.iter().for_each(|key| drop(black_box(moka.get(key)))));
    keys.len()
}

fn hits<K: perto::Key + From<Id>>(runtime: &Runtime, path: &str, depends: i64) -> usize {
    let (keys, world) = (popular::<K>(), World::new());
    runtime.block_on(async {
        let (perto, cache) = world.instance_with::<K>(depends, path == "get_all").await;
        #[cfg(feature = "otel")]
        let _unsampled = observed(&perto);
        cache.get_many(&keys_of(0..ROWS as usize)).await.expect("load");
        // What the loads left moka to do is done by then.
        let ((_entries, _bytes), before) = (cache.size(), cache.stats().l1_hits);
        // A hit never waits, so its future is ready at once.
        match path {
            "get" | "get_all" => {
                counted(|| keys.iter().for_each(|key| drop(black_box(cache.get(key).now_or_never()))));
            }
            _ => counted(|| {
                for key in &keys {
                    black_box(cache.get_ref(key, |message| message.is_some()));
                }
            }),
        }
        assert_eq!(cache.stats().l1_hits - before, keys.len() as u64, "every read was to be a hit");
        perto.shutdown().await;
    });
    keys.len()
}

/// Reads of keys that no other read has asked for, so many at a time, all from one tier. Those that load fill L2.
fn reads<K: perto::Key + From<Id>>(runtime: &Runtime, tier: Tier, together: usize) -> usize {
    let world = World::new();
    let (perto, cache) = runtime.block_on(async {
        if tier == Tier::Remote {
            let (other, cache) = world.instance::<K>(0).await;
            cache.get_many(&keys_of(0..ROWS as usize)).await.expect("load");
            world.remote.has(ROWS as usize).await;
            other.shutdown().await;
        }
        world.instance::<K>(0).await
    });
    let all = |rows: std::ops::Range<usize>| {
        let (cache, remote) = (cache.clone(), Arc::clone(&world.remote));
        async move {
            let end = rows.end;
            for keys in keys_of::<K>(rows).chunks(together) {
                for read in join_all(keys.iter().map(|key| cache.get(key))).await {
                    assert_eq!(read.expect("a read").tier, tier);
                }
            }
            // Fills are not awaited.
            remote.has(end).await;
        }
    };
    runtime.block_on(all(0..WARM));
    let reading = all(WARM..WARM + SLOW);
    counted(|| runtime.block_on(reading));
    runtime.block_on(perto.shutdown());
    SLOW
}

/// Each until another instance, that held the value too, holds it no longer.
fn invalidations<K: perto::Key + From<Id>>(runtime: &Runtime) -> usize {
    let world = World::new();
    let (instances, caches) = runtime.block_on(async {
        let ((one, here), (other, there)) = (world.instance::<K>(0).await, world.instance::<K>(0).await);
        for cache in [&here, &there] {
            cache.get_many(&keys_of(0..WARM + SLOW)).await.expect("load");
        }
        ([one, other], (here, there))
    });
    let all = |rows: std::ops::Range<usize>| {
        let (here, there) = caches.clone();
        async move {
            for key in keys_of::<K>(rows) {
                here.invalidate(&key).await.expect("invalidate");
                while there.get_ref(&key, |_| ()).is_some() {
                    yield_now().await;
                }
            }
        }
    };
    runtime.block_on(all(0..WARM));
    let invalidating = all(WARM..WARM + SLOW);
    counted(|| runtime.block_on(invalidating));
    runtime.block_on(join_all(instances.iter().map(Perto::shutdown)));
    SLOW
}

fn keys_of<K: From<Id>>(rows: std::ops::Range<usize>) -> Vec<K> {
    rows.map(|id| K::from(Id(id as i64))).collect()
}

fn popular<K: From<Id>>() -> Vec<K> {
    zipf(HITS).into_iter().map(|id| K::from(Id(id))).collect()
}

/// A database, an L2 and a bus in memory.
struct World {
    sim: Sim,
    remote: Arc<Kept>,
    bus: SimBus,
}

impl World {
    fn new() -> Self {
        Self { sim: Sim::new(7), remote: Arc::default(), bus: SimBus::new(7) }
    }

    async fn instance<K: perto::Key + From<Id>>(&self, depends: i64) -> (Perto, Cache<K, Message>) {
        self.instance_with(depends, false).await
    }

    /// A coherent instance on the machine's own clock, as in production. Its values depend on so many keys besides their own. Where
    /// `all` is set, the cache does all that a cache can.
    async fn instance_with<K: perto::Key + From<Id>>(
        &self,
        depends: i64,
        all: bool,
    ) -> (Perto, Cache<K, Message>) {
        let perto = Perto::builder("bench")
            .log(Arc::new(self.sim.postgres.log(7)))
            .remote(Arc::clone(&self.remote) as _)
            .bus(Arc::new(self.bus.another(7)))
            .bound(Duration::from_mins(1))
            .poll_interval(Duration::from_secs(20))
            .audit_rate(0)
            // Of valgrind's time.
            .remote_timeout(Duration::from_secs(10))
            .build()
            .expect("settings");
        let others = perto.topic::<i64>("others").declare().expect("topic");
        let stamp = self.sim.postgres.loader(CACHE);
        let mut cache = perto.cache::<K, Message>(CACHE);
        if all {
            let stale = StaleWhileLoading::for_up_to(Duration::from_mins(1));
            cache = cache
                .stale_while_loading(stale)
                .refresh_ahead(Duration::from_secs(30))
                .refresh_hot()
                .ttl_jitter(10)
                .groups(|_, message| message.map_or(0, |message| message.id.unsigned_abs()));
        }
        let cache = cache
            .loader(move |load: Load<K>| {
                let (others, stamp, keys) = (others.clone(), stamp.clone(), load.keys.clone());
                async move {
                    let mut loaded = stamp.load::<K, Message>(load).await?;
                    for key in keys {
                        let id = key.to_string().parse().unwrap_or(-1);
                        loaded = loaded.with(key, Message::new(id));
                    }
                    Ok::<_, perto::sim::Down>(match depends {
                        0 => loaded,
                        _ => loaded.depends_on(move |_, message: Option<&Message>| {
                            let id = message.map_or(0, |message| message.id);
                            let others = others.clone();
                            (0..depends).map(move |other| others.key(&(id * depends + other)))
                        }),
                    })
                }
            })
            .expect("cache");
        perto.start().await.expect("start");
        while perto.health().state != State::Coherent {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (perto, cache)
    }
}

/// An L2 that costs as little as can be: [`perto::sim::SimRemote`] looks at all it holds each time.
#[derive(Debug, Default)]
struct Kept(Mutex<HashMap<String, Bytes>>);

impl Kept {
    async fn has(&self, values: usize) {
        while self.0.lock().len() < values {
            yield_now().await;
        }
    }
}

impl Remote for Kept {
    fn get<'a>(
        &'a self,
        keys: &'a [String],
        _: usize,
    ) -> BoxFuture<'a, Result<Vec<Option<Bytes>>, RemoteError>> {
        Box::pin(async move {
            // As long as a server takes, others ask too.
            yield_now().await;
            let values = self.0.lock();
            Ok(keys.iter().map(|key| values.get(key).cloned()).collect())
        })
    }

    fn fill<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        _: Duration,
    ) -> BoxFuture<'a, Result<bool, RemoteError>> {
        self.0.lock().insert(key.to_owned(), value);
        Box::pin(std::future::ready(Ok(true)))
    }

    fn invalidate<'a>(
        &'a self,
        keys: &'a [String],
        _: u64,
        _: Duration,
    ) -> BoxFuture<'a, Result<(), RemoteError>> {
        let mut values = self.0.lock();
        keys.iter().for_each(|key| drop(values.remove(key)));
        Box::pin(std::future::ready(Ok(())))
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), RemoteError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// As in a service that is traced, of a request that isn't.
#[cfg(feature = "otel")]
fn observed(perto: &Perto) -> opentelemetry::ContextGuard {
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
