//! Values: what comes back from L2 is what was loaded, or it is not there.

mod generated;
mod matrix;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;

use perto::sim::Sim;
use perto::{Cache, Freshness, Load, Loaded, Perto, Stamp, Tier, TroubleKind, Value};
use serde::{Deserialize, Serialize};

use crate::ring::{CACHE, ms};

/// An instance whose loader makes the same value each time.
async fn instance<V: Value>(sim: &Sim, make: fn() -> V, capacity_bytes: u64) -> (Perto, Cache<u64, V>) {
    let perto = sim.node().builder("ring").build().unwrap();
    let postgres = sim.postgres.clone();
    let load = move |load: Load<u64>| {
        let stamp = Stamp::parse(&format!("{} primary clean 1", postgres.snapshot())).unwrap();
        let loaded = load.keys.into_iter().fold(Loaded::new(stamp), |loaded, key| loaded.with(key, make()));
        async move { Ok::<_, perto::sim::Down>(loaded) }
    };
    let cache = perto.cache(CACHE).capacity_bytes(capacity_bytes).loader(load).unwrap();
    perto.start().await.unwrap();
    (perto, cache)
}

/// One instance loads a value, another reads it: through L2, or by a load of its own where L2 is `kept_out` of it, which is
/// then counted and told of once.
async fn crosses<V: Value + PartialEq + Debug>(make: fn() -> V, kept_out: bool) {
    let sim = Sim::new(1);
    let (one, values) = instance(&sim, make, 1 << 20).await;
    let (two, too) = instance(&sim, make, 1 << 20).await;
    for key in 0..3 {
        assert_eq!(values.get(&key).await.unwrap().tier, Tier::Load);
        ms(5).await;
        let read = too.get(&key).await.unwrap();
        assert_eq!(read.freshness, Freshness::Fresh);
        assert_eq!(read.tier, if kept_out { Tier::Load } else { Tier::Remote });
        assert_eq!(*read.value().unwrap(), make(), "from {:?}", read.tier);
        assert_eq!(values.get(&key).await.unwrap().tier, Tier::Local, "it is served from L1 as ever");
        assert_eq!(sim.remote.keys().len(), if kept_out { 0 } else { 1 + usize::try_from(key).unwrap() });
    }
    assert_eq!(values.stats().l2_unstorable, if kept_out { 3 } else { 0 });
    assert_eq!(too.stats().l2_unreadable, 0);
    let told: Vec<_> = one.health().troubles;
    assert_eq!(told.len(), usize::from(kept_out), "{told:?}");
    assert!(told.iter().all(|trouble| trouble.kind == TroubleKind::ValuesUnstorable), "{told:?}");
    one.shutdown().await;
    two.shutdown().await;
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Article {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    discount: Option<u8>,
    stock: u32,
    price_cents: u64,
}

#[tokio::test(start_paused = true)]
async fn a_value_that_leaves_a_field_out_is_what_was_loaded_on_every_instance() {
    crosses(|| Article { discount: None, stock: 1, price_cents: 300 }, true).await;
    crosses(|| Article { discount: Some(5), stock: 1, price_cents: 300 }, false).await;
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Flattened {
    id: u32,
    #[serde(flatten)]
    more: BTreeMap<String, String>,
}

fn flattened() -> Flattened {
    Flattened { id: 7, more: BTreeMap::from([("text".to_owned(), "x".repeat(10_000))]) }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_l2_cannot_bring_back_stays_out_of_it_and_is_told_of_once() {
    crosses(flattened, true).await;
    crosses(|| serde_json::json!({ "a": [1, null, "text"] }), true).await;
    crosses(|| BTreeMap::from([(1_u8, Some("text".to_owned())), (2, None)]), false).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_trouble_says_of_a_value_names_its_field_and_nothing_that_is_in_it() {
    let sim = Sim::new(1);
    let (perto, articles) =
        instance(&sim, || Article { discount: None, stock: 4_711, price_cents: 300 }, 1 << 20).await;
    articles.get(&7).await.unwrap();
    ms(5).await;
    let troubles = perto.health().troubles;
    let [trouble] = &troubles[..] else { panic!("{troubles:?}") };
    assert_eq!(trouble.cache.as_deref(), Some(CACHE));
    assert!(trouble.detail.contains("Article leaves its field discount out"), "{trouble:?}");
    assert!(!trouble.detail.contains("4711"), "{trouble:?}");
    perto.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn that_a_value_cannot_be_stored_is_a_trouble_for_ten_minutes_after_the_last_one() {
    let sim = Sim::new(1);
    let (perto, articles) =
        instance(&sim, || Article { discount: None, stock: 1, price_cents: 300 }, 1 << 20).await;
    for key in 0..2 {
        articles.get(&key).await.unwrap();
        ms(9 * 60_000).await;
        assert_eq!(perto.health().troubles.len(), 1, "nine minutes after the last one");
    }
    ms(61_000).await;
    assert_eq!(perto.health().troubles, []);
    perto.shutdown().await;
}

/// A path that isn't UTF-8 is an error of `Serialize`, and what stands after it in the value has a weight all the same.
fn unwritable() -> (PathBuf, String) {
    use std::os::unix::ffi::OsStringExt;
    (PathBuf::from(std::ffi::OsString::from_vec(vec![b'/', 0xFF])), "x".repeat(10_000))
}

#[tokio::test(start_paused = true)]
async fn a_value_whose_serialize_gives_an_error_stays_out_of_l2() {
    crosses(unwritable, true).await;
}

#[tokio::test(start_paused = true)]
async fn l1_is_bounded_in_bytes_by_values_of_any_type() {
    async fn bounded<V: Value>(make: fn() -> V) {
        let sim = Sim::new(1);
        let (perto, values) = instance(&sim, make, 1 << 20).await;
        for key in 0..500 {
            values.get(&key).await.unwrap();
        }
        let (entries, bytes) = values.size();
        assert!(
            bytes <= 1 << 20 && (50..=104).contains(&entries),
            "{entries} entries of 10 KB, {bytes} bytes"
        );
        perto.shutdown().await;
    }
    bounded(flattened).await;
    bounded(unwritable).await;
    bounded(|| serde_json::json!({ "text": "x".repeat(10_000) })).await;
    bounded(|| "x".repeat(10_000)).await;
    // Numbers that take a byte each in L2 take eight in memory.
    bounded(|| vec![0_u64; 1_250]).await;
}

/// Its `Serialize` panics, or its `Deserialize` does.
#[derive(Debug, PartialEq)]
struct Panics(bool);

impl Serialize for Panics {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert!(!self.0, "as this test wants");
        serializer.serialize_u8(7)
    }
}

impl<'de> Deserialize<'de> for Panics {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("as this test wants");
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_panics_when_it_is_written_or_read_is_served_and_stays_out_of_l2() {
    crosses(|| Panics(true), true).await;
    crosses(|| Panics(false), true).await;
}

/// As deep as somebody makes it. To drop it and to compare it takes no stack.
#[derive(Debug, Serialize, Deserialize)]
struct Link {
    next: Option<Box<Self>>,
}

impl Link {
    fn of(depth: usize) -> Self {
        (1..depth).fold(Self { next: None }, |inner, _| Self { next: Some(Box::new(inner)) })
    }

    fn depth(&self) -> usize {
        std::iter::successors(Some(self), |link| link.next.as_deref()).count()
    }
}

impl PartialEq for Link {
    fn eq(&self, other: &Self) -> bool {
        self.depth() == other.depth()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut next = self.next.take();
        while let Some(mut link) = next {
            next = link.next.take();
        }
    }
}

/// A thread of a test has 2 MiB.
#[tokio::test(start_paused = true)]
async fn a_value_of_too_many_values_within_values_stays_out_of_l2_and_ends_no_thread() {
    crosses(|| Link::of(60), false).await;
    // What writes or reads it to its end takes more of the stack than a thread has.
    crosses(|| Link::of(100_000), true).await;
}
