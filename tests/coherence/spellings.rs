//! Keys that a loader, or a key's own type, spells otherwise than they were asked for: never cached as absent.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use perto::sim::{Down, Sim};
use perto::{Cache, Error, Freshness, Key, Load, Loaded, Perto, Refusal, Stamp, Tier, TroubleKind};

use crate::ring::{CACHE, ms};

/// An instance whose loader brings what `bring` makes of the keys that it is asked for.
async fn bringing<K: Key>(
    sim: &Sim,
    bring: impl Fn(&[K]) -> Vec<(K, &'static str)> + Send + Sync + 'static,
) -> (Perto, Cache<K, String>) {
    let perto = sim.node().builder("ring").build().unwrap();
    let postgres = sim.postgres.clone();
    let load = move |load: Load<K>| {
        let stamp = Stamp::parse(&format!("{} primary clean 1", postgres.snapshot())).unwrap();
        let brought = bring(&load.keys).into_iter();
        let loaded =
            brought.fold(Loaded::new(stamp), |loaded, (key, value)| loaded.with(key, value.to_owned()));
        async move { Ok::<_, Down>(loaded) }
    };
    let cache = perto.cache(CACHE).loader(load).unwrap();
    perto.start().await.unwrap();
    (perto, cache)
}

fn text(text: &str) -> String {
    text.to_owned()
}

/// A row whose key comes as `brought` where `asked` was asked for: an error that says what to change and names no key.
async fn is_refused(asked: &'static str, brought: &'static str) {
    let sim = Sim::new(1);
    let (perto, cache) = bringing(&sim, move |_| vec![(text(brought), "there")]).await;
    for count in 1..=2 {
        let error = cache.get(&text(asked)).await.unwrap_err();
        assert!(matches!(error, Error::UnaskedKeys { unasked: 1, missing: 1, .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains(CACHE) && said.contains("char(n)") && !said.contains(asked), "{said}");
        ms(5).await;
        assert!(cache.get_if_cached(&text(asked)).is_none(), "it was cached as absent");
        assert_eq!(sim.remote.keys(), [""; 0], "it was put into L2 as absent");
        assert_eq!((cache.stats().keys_unasked, cache.stats().load_errors), (count, count));
    }
    let troubles = perto.health().troubles;
    assert!(matches!(&troubles[..], [trouble] if trouble.kind == TroubleKind::KeysDiffer), "{troubles:?}");
    perto.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_loader_that_brings_another_spelling_than_was_asked_for_is_an_error_and_nothing_is_absent() {
    is_refused("PT", "PT      ").await;
    is_refused("ada@example.com", "Ada@Example.com").await;
    is_refused("blue-shirt", "4711").await;
    is_refused("0042", "42").await;
}

#[tokio::test(start_paused = true)]
async fn that_a_loader_spells_keys_otherwise_is_a_trouble_for_ten_minutes_after_the_last_time() {
    let sim = Sim::new(1);
    let (perto, cache) = bringing(&sim, |_| vec![(text("Prod-61"), "there")]).await;
    for _ in 0..2 {
        cache.get(&text("prod-61")).await.unwrap_err();
        ms(9 * 60_000).await;
        assert_eq!(perto.health().troubles.len(), 1, "nine minutes after the last time");
    }
    assert_eq!(cache.get(&text("Prod-61")).await.unwrap().tier, Tier::Load);
    ms(61_000).await;
    assert_eq!(perto.health().troubles, []);
    perto.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn one_key_of_another_spelling_fails_the_load_of_all_and_caches_none() {
    let sim = Sim::new(1);
    let (perto, cache) = bringing(&sim, |_| vec![(text("a"), "there"), (text("B"), "there")]).await;
    let error = cache.get_many(&[text("a"), text("b"), text("c")]).await.unwrap_err();
    assert!(matches!(error, Error::UnaskedKeys { unasked: 1, missing: 2, .. }), "{error}");
    assert!(!error.is_retryable(), "it is the loader that must change");
    assert!(["a", "b", "c"].iter().all(|key| cache.get_if_cached(&text(key)).is_none()));
    perto.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn more_keys_than_were_asked_for_do_no_harm_where_those_are_there() {
    let sim = Sim::new(1);
    let bring =
        |keys: &[u64]| keys.iter().flat_map(|key| [(*key, "asked"), (*key + 100, "not asked")]).collect();
    let (perto, cache) = bringing(&sim, bring).await;
    assert_eq!(cache.get(&1).await.unwrap().value().map(String::as_str), Some("asked"));
    assert_eq!(cache.stats().keys_unasked, 1);
    assert!(cache.get_if_cached(&101).is_none(), "nobody asked for it");
    assert_eq!(perto.health().troubles, []);
    perto.shutdown().await;
}

/// A row that was brought besides may be the answer under another spelling.
#[tokio::test(start_paused = true)]
async fn a_loader_of_a_whole_table_finds_an_absent_key_once_it_leaves_out_what_nobody_asked_for() {
    let sim = Sim::new(1);
    let table = || (1..=3_u64).map(|key| (key, "there"));
    let (perto, cache) = bringing(&sim, move |_| table().collect()).await;
    assert!(cache.get(&1).await.unwrap().value().is_some());
    let error = cache.get(&7).await.unwrap_err();
    assert!(matches!(error, Error::UnaskedKeys { unasked: 3, missing: 1, .. }), "{error}");
    assert!(error.to_string().contains("leave that out"), "{error}");
    perto.shutdown().await;
    let of_asked = move |keys: &[u64]| table().filter(|(key, _)| keys.contains(key)).collect();
    let (perto, cache) = bringing(&sim, of_asked).await;
    assert!(cache.get(&1).await.unwrap().value().is_some());
    let read = cache.get(&7).await.unwrap();
    assert_eq!((read.value(), read.freshness), (None, Freshness::Fresh));
    perto.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_comes_twice_with_different_values_is_an_error_and_with_the_same_is_not() {
    let sim = Sim::new(1);
    let bring = |keys: &[u64]| {
        let second = |key| if key == 7 { "other" } else { "one" };
        keys.iter().flat_map(|key| [(*key, "one"), (*key, second(*key))]).collect()
    };
    let (perto, cache) = bringing(&sim, bring).await;
    assert_eq!(cache.get(&1).await.unwrap().tier, Tier::Load);
    let error = cache.get_many(&[7, 8]).await.unwrap_err();
    assert!(matches!(error, Error::AmbiguousKeys { count: 1, .. }), "{error}");
    assert!(cache.get_if_cached(&7).is_none() && cache.get_if_cached(&8).is_none());
    assert_eq!(perto.health().troubles.len(), 1);
    perto.shutdown().await;
}

/// A write that the log names as `logged`, where readers ask for `asked`: it is seen by all of them, within the bound.
async fn is_seen_as(logged: &'static str, asked: &'static str) {
    let sim = Sim::new(1);
    let asked = text(asked);
    let mut members = Vec::new();
    for _ in 0..2 {
        let perto = sim.node().builder("ring").build().unwrap();
        let cache: Cache<String, String> =
            perto.cache(CACHE).loader(sim.postgres.loader(CACHE).function()).unwrap();
        perto.start().await.unwrap();
        members.push((perto, cache));
    }
    for (round, value) in ["old", "new", "newest"].into_iter().enumerate() {
        let mut tx = sim.postgres.begin();
        tx.put_unlogged(CACHE, &asked, &value.to_owned()).unwrap();
        tx.touch(CACHE, logged);
        tx.commit().unwrap();
        ms(2_000).await;
        for (perto, cache) in &members {
            let read = cache.get(&asked).await.unwrap();
            assert_eq!(read.value().map(String::as_str), Some(value), "{asked} in round {round}");
            ms(50).await;
            assert_eq!(cache.get(&asked).await.unwrap().tier, Tier::Local, "it is held as ever");
            let held = cache.inspect(&asked).await.unwrap().local.unwrap();
            assert_eq!(held.refused, None);
            assert_eq!(perto.health().troubles, []);
        }
    }
    let (hits, (perto, cache)) = (members[0].1.stats().l1_hits, &members[0]);
    let mut tx = sim.postgres.begin();
    tx.touch(CACHE, logged);
    tx.commit().unwrap();
    ms(2_000).await;
    let held = cache.inspect(&asked).await.unwrap().local.unwrap();
    assert!(matches!(held.refused, Some(Refusal::Misses(_))), "{:?}", held.refused);
    assert!(cache.get_if_cached(&asked).is_none() && cache.stats().l1_hits == hits);
    perto.shutdown().await;
    members[1].0.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_write_that_the_log_spells_in_another_case_or_with_blanks_is_a_write_to_the_key() {
    is_seen_as("prod-61", "Prod-61").await;
    is_seen_as("PROD-61", "Prod-61").await;
    is_seen_as("pt", "PT").await;
    is_seen_as("ada@example.com", "Ada@Example.com").await;
    is_seen_as("pt", "pt      ").await;
    is_seen_as("straße", "Straße").await;
}

/// Equal whatever its case, and keeps the case: so its texts differ where the keys don't.
#[derive(Debug, Clone)]
struct Caseless(String);

impl PartialEq for Caseless {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for Caseless {}

impl Hash for Caseless {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_ascii_lowercase().hash(state);
    }
}

impl fmt::Display for Caseless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Caseless {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

#[tokio::test(start_paused = true)]
async fn equal_keys_of_different_texts_are_two_keys() {
    let sim = Sim::new(1);
    let (perto, cache) = bringing(&sim, |_| vec![(Caseless(text("Prod-61")), "there")]).await;
    let error = cache.get(&Caseless(text("prod-61"))).await.unwrap_err();
    assert!(matches!(error, Error::UnaskedKeys { .. }), "{error}");
    perto.shutdown().await;
}

/// Its text is read back as another key: a row of the log would evict that one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Lowered(String);

impl fmt::Display for Lowered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Lowered {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_lowercase()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_not_what_its_text_is_parsed_as_is_an_error() {
    let sim = Sim::new(1);
    let (perto, cache) =
        bringing(&sim, |keys: &[Lowered]| keys.iter().map(|key| (key.clone(), "there")).collect()).await;
    let error = cache.get(&Lowered(text("Prod-61"))).await.unwrap_err();
    assert!(matches!(error, Error::KeyNotReadBack { .. }), "{error}");
    assert_eq!(cache.get(&Lowered(text("prod-61"))).await.unwrap().tier, Tier::Load);
    perto.shutdown().await;
}
