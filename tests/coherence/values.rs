//! Values: what comes back from L2 is what was loaded, or it is not there.

mod generated;
mod matrix;
mod types;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;

use perto::sim::Sim;
use perto::{
    Cache, CacheBuilder, Codec, Freshness, InRemote, Load, Loaded, Perto, Stamp, Tier, TroubleKind, Value,
};
use serde::{Deserialize, Serialize};

use crate::ring::{CACHE, ms};

type Settings<V> = fn(CacheBuilder<u64, V>) -> CacheBuilder<u64, V>;

/// An instance whose loader makes the same value each time, in a cache of a mebibyte.
async fn instance<V: Value>(sim: &Sim, make: fn() -> V) -> (Perto, Cache<u64, V>) {
    instance_with(sim, make, |cache| cache).await
}

async fn instance_with<V: Value>(
    sim: &Sim,
    make: fn() -> V,
    settings: Settings<V>,
) -> (Perto, Cache<u64, V>) {
    let perto = sim.node().builder("ring").build().unwrap();
    let postgres = sim.postgres.clone();
    let load = move |load: Load<u64>| {
        let stamp = Stamp::parse(&format!("{} primary clean 1", postgres.snapshot())).unwrap();
        let loaded = load.keys.into_iter().fold(Loaded::new(stamp), |loaded, key| loaded.with(key, make()));
        async move { Ok::<_, perto::sim::Down>(loaded) }
    };
    let cache = settings(perto.cache(CACHE).capacity_bytes(1 << 20)).loader(load).unwrap();
    perto.start().await.unwrap();
    (perto, cache)
}

/// One instance loads a value, another reads it: through L2, or by a load of its own where L2 is `kept_out` of it, which is
/// then counted and told of once.
async fn crosses<V: Value + PartialEq + Debug>(make: fn() -> V, kept_out: bool) {
    crosses_with(make, |cache| cache, kept_out).await;
}

async fn crosses_as_json<V: Value + PartialEq + Debug>(make: fn() -> V, kept_out: bool) {
    crosses_with(make, |cache| cache.codec(Codec::Json), kept_out).await;
}

async fn crosses_with<V: Value + PartialEq + Debug>(make: fn() -> V, settings: Settings<V>, kept_out: bool) {
    let sim = Sim::new(1);
    let (one, values) = instance_with(&sim, make, settings).await;
    let (two, too) = instance_with(&sim, make, settings).await;
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
    crosses_as_json(|| Article { discount: None, stock: 1, price_cents: 300 }, false).await;
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
    crosses(|| Some(flattened()), true).await;
    crosses(|| vec![serde_json::json!({ "a": [1, null, "text"] })], true).await;
    crosses_as_json(|| Some(flattened()), false).await;
    crosses_as_json(|| serde_json::json!({ "a": [1, null, "text"] }), false).await;
    crosses_as_json(|| vec![1.0, f64::INFINITY], true).await;
    crosses_as_json(|| BTreeMap::from([((1, 2), "text".to_owned())]), true).await;
    crosses(|| BTreeMap::from([(1_u8, Some("text".to_owned())), (2, None)]), false).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_trouble_says_of_a_value_names_its_field_and_nothing_that_is_in_it() {
    let sim = Sim::new(1);
    let (perto, articles) =
        instance(&sim, || Article { discount: None, stock: 4_711, price_cents: 300 }).await;
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
    let (perto, articles) = instance(&sim, || Article { discount: None, stock: 1, price_cents: 300 }).await;
    for key in 0..2 {
        articles.get(&key).await.unwrap();
        ms(9 * 60_000).await;
        assert_eq!(perto.health().troubles.len(), 1, "nine minutes after the last one");
    }
    ms(61_000).await;
    assert_eq!(perto.health().troubles, []);
    perto.shutdown().await;
}

/// What the declaration of a cache says of its type.
fn declared<V: Value>(has_l2: bool, settings: Settings<V>) -> Result<(), String> {
    let node = Sim::new(1).node();
    let builder = if has_l2 { node.builder("ring") } else { Perto::builder("ring").log(node.log) };
    let perto = builder.build().unwrap();
    let load = |_| async { Ok::<_, perto::sim::Down>(Loaded::<u64, V>::computed()) };
    settings(perto.cache(CACHE)).loader(load).map(drop).map_err(|error| error.to_string())
}

#[tokio::test(start_paused = true)]
async fn a_type_of_which_bincode_can_bring_back_no_value_is_refused_where_its_cache_is_declared() {
    let refused = declared::<Flattened>(true, |cache| cache).unwrap_err();
    assert!(refused.contains("Flattened") && refused.contains("`flatten`"), "{refused}");
    assert!(refused.contains("codec(Codec::Json)"), "{refused}");
    let refused = declared::<serde_json::Value>(true, |cache| cache).unwrap_err();
    assert!(refused.contains("asks what comes next"), "{refused}");
    assert_eq!(declared::<Flattened>(true, |cache| cache.codec(Codec::Json)), Ok(()));
    assert_eq!(declared::<Flattened>(true, CacheBuilder::local_only), Ok(()));
    assert_eq!(declared::<Flattened>(false, |cache| cache), Ok(()), "there is no L2");
    // Some values of these come back.
    assert_eq!(declared::<Option<Flattened>>(true, |cache| cache), Ok(()));
    assert_eq!(declared::<Article>(true, |cache| cache), Ok(()));
    assert_eq!(declared::<Panics>(true, |cache| cache), Ok(()), "nobody knows");
}

#[tokio::test(start_paused = true)]
async fn what_another_codec_wrote_is_a_miss_is_counted_and_is_replaced() {
    let sim = Sim::new(1);
    let make = || Article { discount: Some(5), stock: 1, price_cents: 300 };
    let (one, bincode) = instance(&sim, make).await;
    let (two, json) = instance_with(&sim, make, |cache| cache.codec(Codec::Json)).await;
    let in_l2 = async |cache: &Cache<u64, Article>| match cache.inspect(&7).await.unwrap() {
        seen @ perto::Inspection { remote: InRemote::Value(_), .. } => {
            let InRemote::Value(value) = seen.remote else { unreachable!() };
            (value.codec, value.compressed, seen.remote_refused)
        }
        seen => panic!("{seen:?}"),
    };
    assert_eq!(bincode.get(&7).await.unwrap().tier, Tier::Load);
    ms(5).await;
    assert_eq!(in_l2(&bincode).await, ("bincode", false, None));
    assert_eq!(in_l2(&json).await, ("bincode", false, Some(perto::Refusal::OtherType)));
    let read = json.get(&7).await.unwrap();
    assert_eq!((read.tier, read.freshness), (Tier::Load, Freshness::Fresh));
    assert_eq!((json.stats().l2_unreadable, json.stats().load_errors), (1, 0));
    // A write takes what there is out of the way, and whoever comes first puts its own there.
    json.invalidate(&7).await.unwrap();
    assert_eq!(json.get(&7).await.unwrap().tier, Tier::Load);
    ms(5).await;
    assert_eq!(in_l2(&json).await, ("json", false, None));
    assert_eq!(bincode.get(&7).await.unwrap().tier, Tier::Load);
    assert_eq!(bincode.stats().l2_unreadable, 1);
    one.shutdown().await;
    two.shutdown().await;
}

/// In JSON the text begins with a quote, by bincode with its length: a quote is 34. And 34 bytes follow.
#[tokio::test(start_paused = true)]
async fn what_another_codec_wrote_is_not_read_even_where_it_could_be() {
    let sim = Sim::new(1);
    let make = || "x".repeat(33);
    let (one, json) = instance_with(&sim, make, |cache| cache.codec(Codec::Json)).await;
    let (two, bincode) = instance(&sim, make).await;
    json.get(&7).await.unwrap();
    ms(5).await;
    let read = bincode.get(&7).await.unwrap();
    assert_eq!((read.value(), read.tier), (Some(&make()), Tier::Load));
    one.shutdown().await;
    two.shutdown().await;
}

/// A page that gets smaller, and a text that doesn't.
fn page() -> Vec<String> {
    (0..40).map(|n| format!("the message number {n} of this page says the same")).collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_compressed_is_smaller_in_l2_comes_back_and_weighs_the_same_in_l1() {
    crosses_with(page, |cache| cache.compress_above(100), false).await;
    crosses_with(page, |cache| cache.compress_above(100).codec(Codec::Json), false).await;
    let lies = async |settings: Settings<Vec<String>>| {
        let sim = Sim::new(1);
        let (perto, pages) = instance_with(&sim, page, settings).await;
        pages.get(&7).await.unwrap();
        ms(5).await;
        let seen = pages.inspect(&7).await.unwrap();
        let InRemote::Value(value) = seen.remote else { panic!("{:?}", seen.remote) };
        perto.shutdown().await;
        (value.compressed, value.bytes, seen.local.unwrap().weight)
    };
    let (compressed, plain, weight) = lies(|cache| cache).await;
    assert!(!compressed);
    let packed = lies(|cache| cache.compress_above(100)).await;
    assert!(packed.0 && packed.1 < plain / 3 && packed.2 == weight, "{packed:?} of {plain}, {weight}");
    assert_eq!(lies(|cache| cache.compress_above(10_000)).await, (false, plain, weight));
}

#[tokio::test(start_paused = true)]
async fn the_largest_value_is_judged_before_it_is_compressed() {
    let sim = Sim::new(1);
    let small = |cache: CacheBuilder<u64, Vec<String>>| cache.compress_above(0).max_value_bytes(1_000);
    let (perto, pages) = instance_with(&sim, page, small).await;
    pages.get(&7).await.unwrap();
    ms(5).await;
    assert_eq!((pages.stats().too_large, sim.remote.keys().len()), (1, 0));
    // Nor is it read where another instance has put it there, for a read unpacks no more than that.
    let (other, large) = instance_with(&sim, page, |cache| cache.compress_above(0)).await;
    large.get(&8).await.unwrap();
    ms(5).await;
    assert_eq!(sim.remote.keys().len(), 1);
    assert_eq!(pages.get(&8).await.unwrap().tier, Tier::Load);
    assert_eq!((pages.stats().l2_unreadable, pages.stats().l2_hits), (1, 0));
    other.shutdown().await;
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
        let (perto, values) = instance(&sim, make).await;
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
    bounded(|| Some(flattened())).await;
    bounded(unwritable).await;
    bounded(|| vec![serde_json::json!({ "text": "x".repeat(10_000) })]).await;
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
