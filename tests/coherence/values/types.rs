//! Fingerprints: two builds share values only where their types ask for the same. A module stands for a release.
#![expect(clippy::use_self, reason = "releases are told apart by the names of their types")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use perto::sim::Sim;
use perto::{Cache, Codec, Event, Freshness, Load, Loaded, Perto, Stamp, Tier, Value};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::ring::{CACHE, ms};

const CODECS: [Codec; 2] = [Codec::Bincode, Codec::Json];

/// A release's types: each `Row`, whatever they are.
macro_rules! releases {
    ($($release:ident { $($item:item)* })*) => {
        $(mod $release {
            use super::*;
            $(
                #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
                $item
            )*
        })*
    };
}

releases! {
    first {
        pub(super) struct Row { pub(super) width: u32, pub(super) height: u32, pub(super) place: Place, pub(super) kind: Kind }
        pub(super) struct Place(pub(super) String, pub(super) Option<Box<Place>>);
        pub(super) enum Kind { Plain, Sized(u16), Named { name: String, at: i64 } }
    }
    // The same again, in another file of another crate.
    rebuilt {
        pub(super) struct Row { width: u32, height: u32, place: Place, kind: Kind }
        pub(super) struct Place(String, Option<Box<Place>>);
        pub(super) enum Kind { Plain, Sized(u16), Named { name: String, at: i64 } }
    }
    swapped {
        pub(super) struct Row { pub(super) height: u32, pub(super) width: u32, pub(super) place: first::Place, pub(super) kind: first::Kind }
    }
    added {
        pub(super) struct Row { width: u32, height: u32, place: first::Place, kind: first::Kind, depth: u32 }
    }
    added_option {
        pub(super) struct Row { width: u32, height: u32, place: first::Place, kind: first::Kind, depth: Option<u32> }
    }
    removed {
        pub(super) struct Row { width: u32, height: u32, place: first::Place }
    }
    renamed {
        pub(super) struct Row { width: u32, length: u32, place: first::Place, kind: first::Kind }
    }
    wider {
        pub(super) struct Row { width: u32, height: u64, place: first::Place, kind: first::Kind }
    }
    signed {
        pub(super) struct Row { width: u32, height: i32, place: first::Place, kind: first::Kind }
    }
    optional {
        pub(super) struct Row { width: u32, height: Option<u32>, place: first::Place, kind: first::Kind }
    }
    many {
        pub(super) struct Row { width: u32, height: Vec<u32>, place: first::Place, kind: first::Kind }
    }
    other_name {
        pub(super) struct Line { width: u32, height: u32, place: first::Place, kind: first::Kind }
    }
    nested {
        pub(super) struct Row { width: u32, height: u32, place: Place, kind: first::Kind }
        pub(super) struct Place(String, Option<Arc<Place>>, u8);
    }
    nested_text {
        pub(super) struct Row { width: u32, height: u32, place: Place, kind: first::Kind }
        pub(super) struct Place(Vec<u8>, Option<Box<Place>>);
    }
    new_variant {
        pub(super) struct Row { width: u32, height: u32, place: first::Place, kind: Kind }
        pub(super) enum Kind { Plain, Sized(u16), Named { name: String, at: i64 }, Other }
    }
    reordered_variants {
        pub(super) struct Row { width: u32, height: u32, place: first::Place, kind: Kind }
        pub(super) enum Kind { Plain, Named { name: String, at: i64 }, Sized(u16) }
    }
    renamed_variant {
        pub(super) struct Row { width: u32, height: u32, place: first::Place, kind: Kind }
        pub(super) enum Kind { Plain, Large(u16), Named { name: String, at: i64 } }
    }
    wider_variant {
        pub(super) struct Row { width: u32, height: u32, place: first::Place, kind: Kind }
        pub(super) enum Kind { Plain, Sized(u32), Named { name: String, at: i64 } }
    }
    last_variant {
        pub(super) struct Row { width: u32, height: u32, place: first::Place, kind: Kind }
        pub(super) enum Kind { Plain, Sized(u16), Named { name: String, at: u64 } }
    }
    unit_to_newtype {
        pub(super) struct Row { width: u32, height: u32, place: first::Place, kind: Kind }
        pub(super) enum Kind { Plain(()), Sized(u16), Named { name: String, at: i64 } }
    }
}

fn whole<V: Value>(codec: Codec) -> u32 {
    let (fingerprint, is_whole) = perto::fuzzing::fingerprint::<V>(codec);
    assert!(is_whole, "{} by {codec:?}", std::any::type_name::<V>());
    fingerprint
}

#[test]
fn a_type_that_has_changed_has_another_fingerprint_and_one_that_has_not_the_same() {
    for codec in CODECS {
        let first = whole::<first::Row>(codec);
        assert_eq!(first, whole::<rebuilt::Row>(codec));
        let others = [
            ("swapped", whole::<swapped::Row>(codec)),
            ("added", whole::<added::Row>(codec)),
            ("added_option", whole::<added_option::Row>(codec)),
            ("removed", whole::<removed::Row>(codec)),
            ("renamed", whole::<renamed::Row>(codec)),
            ("wider", whole::<wider::Row>(codec)),
            ("signed", whole::<signed::Row>(codec)),
            ("optional", whole::<optional::Row>(codec)),
            ("many", whole::<many::Row>(codec)),
            ("other_name", whole::<other_name::Line>(codec)),
            ("nested", whole::<nested::Row>(codec)),
            ("nested_text", whole::<nested_text::Row>(codec)),
            ("new_variant", whole::<new_variant::Row>(codec)),
            ("reordered_variants", whole::<reordered_variants::Row>(codec)),
            ("renamed_variant", whole::<renamed_variant::Row>(codec)),
            ("wider_variant", whole::<wider_variant::Row>(codec)),
            ("last_variant", whole::<last_variant::Row>(codec)),
            ("unit_to_newtype", whole::<unit_to_newtype::Row>(codec)),
        ];
        let distinct: HashSet<u32> = others.iter().map(|(_, other)| *other).chain([first]).collect();
        assert_eq!(distinct.len(), others.len() + 1, "{others:?} and {first}");
    }
}

/// Another one is another type for every release that is out: what they have put into L2 is not found any more.
#[test]
fn fingerprints_are_those_that_they_have_always_been() {
    let now = |codec| {
        (whole::<first::Row>(codec), whole::<Vec<(String, f64)>>(codec), whole::<DateTime<Utc>>(codec))
    };
    for codec in CODECS {
        assert_eq!(now(codec), (2_601_429_610, 2_171_503_245, 3_715_084_645));
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Page<T> {
    items: Vec<T>,
    next: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Either<L, R> {
    Left(L),
    Right(R),
}

#[derive(Debug, Serialize, Deserialize)]
struct Meters(f64);

#[derive(Debug, Serialize, Deserialize)]
struct Feet(f64);

#[derive(Debug, Serialize, Deserialize)]
struct In<T>(T);

type In4<T> = In<In<In<In<T>>>>;
type In16<T> = In4<In4<In4<In4<T>>>>;

#[test]
fn what_is_too_deep_to_be_seen_is_told_of() {
    for codec in CODECS {
        assert_ne!(whole::<In16<In4<u32>>>(codec), whole::<In16<In4<u64>>>(codec));
        assert!(!perto::fuzzing::fingerprint::<In16<In16<In4<u32>>>>(codec).1);
    }
}

#[test]
fn what_a_type_is_made_of_is_part_of_it() {
    for codec in CODECS {
        let all = [
            whole::<Page<u32>>(codec),
            whole::<Page<u64>>(codec),
            whole::<Page<Page<u32>>>(codec),
            whole::<Page<Page<u64>>>(codec),
            whole::<Page<Page<Page<u32>>>>(codec),
            whole::<Page<Page<Page<u64>>>>(codec),
            whole::<Page<Page<Page<Page<u32>>>>>(codec),
            whole::<Either<u8, Either<u16, Either<u32, i8>>>>(codec),
            whole::<Either<u8, Either<u16, Either<u32, i16>>>>(codec),
            whole::<Page<Option<u32>>>(codec),
            whole::<Meters>(codec),
            whole::<Feet>(codec),
            whole::<f64>(codec),
            whole::<f32>(codec),
            whole::<()>(codec),
            whole::<((), ())>(codec),
            whole::<[u8; 3]>(codec),
            whole::<[u8; 4]>(codec),
            whole::<BTreeMap<String, u8>>(codec),
            whole::<BTreeMap<String, u16>>(codec),
            whole::<BTreeMap<u16, u8>>(codec),
            whole::<Result<u8, u16>>(codec),
            whole::<Result<u16, u8>>(codec),
        ];
        let distinct: HashSet<u32> = all.into_iter().collect();
        assert_eq!(distinct.len(), all.len(), "{all:?}");
        assert_eq!(
            whole::<HashMap<String, u8>>(codec),
            whole::<BTreeMap<String, u8>>(codec),
            "they write the same"
        );
    }
}

/// Holds itself in each way.
#[derive(Debug, Serialize, Deserialize)]
enum Tree {
    Both(Box<Tree>, Box<Tree>),
    Pair(Box<Pair<Tree>>),
    Many(Vec<Tree>),
    Named(BTreeMap<String, Tree>),
    Leaf(i64),
}

#[derive(Debug, Serialize, Deserialize)]
struct Pair<T> {
    left: T,
    right: Option<Box<Pair<T>>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename = "Tree")]
enum OtherTree {
    Both(Box<OtherTree>, Box<OtherTree>),
    Pair(Box<Pair<OtherTree>>),
    Many(Vec<OtherTree>),
    Named(BTreeMap<String, OtherTree>),
    Leaf(u64),
}

#[test]
fn a_type_that_holds_itself_has_an_end() {
    for codec in CODECS {
        assert_ne!(whole::<Tree>(codec), whole::<OtherTree>(codec));
        assert_ne!(whole::<Pair<u8>>(codec), whole::<Pair<i8>>(codec));
    }
}

/// Takes no number that is made up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
struct Checked(u32);

impl TryFrom<u32> for Checked {
    type Error = &'static str;

    fn try_from(number: u32) -> Result<Self, Self::Error> {
        if number > 1_000 { Ok(Self(number)) } else { Err("too small") }
    }
}

impl From<Checked> for u32 {
    fn from(Checked(number): Checked) -> Self {
        number
    }
}

/// Takes no text that is made up.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Article(String);

impl TryFrom<String> for Article {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.starts_with("A-") { Ok(Self(text)) } else { Err("no article") }
    }
}

impl From<Article> for String {
    fn from(Article(text): Article) -> Self {
        text
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Order<T> {
    article: Article,
    count: Checked,
    lines: Vec<Line<T>>,
    last: Option<Line<T>>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Line<T> {
    Article { article: Article, price: T },
    Free { price: T },
}

#[derive(Debug, Serialize, Deserialize)]
struct Prices<T> {
    prices: HashMap<Article, T>,
    more: u8,
}

/// A map whose `Deserialize` asks for keys first, and for values then.
#[derive(Debug, Serialize)]
struct Keyed<T>(Vec<(Article, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Keyed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Pairs<T> {
            type Value = Keyed<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keyed<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(key) = map.next_key()? {
                    all.push((key, map.next_value()?));
                }
                Ok(Keyed(all))
            }
        }
        deserializer.deserialize_map(Pairs(PhantomData))
    }
}

/// Reads what comes by what came before: a number and a text, a text alone, nothing.
#[derive(Debug, Serialize)]
struct ByTag(u8);

#[derive(Debug, Serialize, Deserialize)]
enum Tag {
    Whatever,
    Text,
    Nothing,
    Number,
}

/// The same by a flag, and not right behind it.
#[derive(Debug, Serialize)]
struct ByFlag(u8);

/// Hand-written types of a tuple's parts.
macro_rules! by_parts {
    ($($type:ident, $parts:literal, $access:ident => $read:block)*) => {
        $(impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Parts;
                impl<'de> Visitor<'de> for Parts {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("parts")
                    }

                    fn visit_seq<A: SeqAccess<'de>>(self, mut $access: A) -> Result<$type, A::Error> $read
                }
                deserializer.deserialize_tuple($parts, Parts)
            }
        })*
    };
}

fn some<T, E: serde::de::Error>(part: Option<T>) -> Result<T, E> {
    part.ok_or_else(|| E::custom("too short"))
}

by_parts! {
    ByTag, 2, parts => {
        match some(parts.next_element()?)? {
            Tag::Whatever => drop(parts.next_element::<serde_json::Value>()?),
            Tag::Text => drop(parts.next_element::<String>()?),
            Tag::Nothing => drop(parts.next_element::<()>()?),
            Tag::Number => drop(parts.next_element::<u8>()?),
        }
        Ok(ByTag(1))
    }
    ByFlag, 4, parts => {
        let flag: bool = some(parts.next_element()?)?;
        some(parts.next_element::<NonZeroU32>()?)?;
        some(parts.next_element::<NaiveDate>()?)?;
        if flag { parts.next_element::<serde_json::Value>()?; } else { some(parts.next_element::<u8>()?)?; }
        Ok(ByFlag(1))
    }
}

#[test]
fn what_depends_on_a_value_is_told_of_and_refused_only_where_no_value_is_read() {
    for codec in CODECS {
        assert!(!perto::fuzzing::fingerprint::<ByTag>(codec).1, "{codec:?}");
        assert!(!perto::fuzzing::fingerprint::<Keyed<u8>>(codec).1, "{codec:?}");
    }
    assert!(!perto::fuzzing::fingerprint::<ByFlag>(Codec::Bincode).1);
    assert_eq!(perto::fuzzing::unreadable::<ByTag>(), None);
    assert_eq!(perto::fuzzing::unreadable::<ByFlag>(), None);
    assert!(perto::fuzzing::unreadable::<(bool, u64, serde_json::Value)>().is_some());
}

/// As `perto`'s own readers of documents do.
#[derive(Debug, Serialize)]
struct ByNames<T> {
    one: T,
    two: u8,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ByNames<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Names<T> {
            type Value = ByNames<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("fields by their names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ByNames<T>, A::Error> {
                let (mut one, mut two) = (None, None);
                while let Some(name) = map.next_key::<String>()? {
                    match &*name {
                        "one" => one = Some(map.next_value()?),
                        _ => two = Some(map.next_value()?),
                    }
                }
                Ok(ByNames { one: some(one)?, two: some(two)? })
            }
        }
        deserializer.deserialize_struct("ByNames", &["one", "two"], Names(PhantomData))
    }
}

#[derive(Debug, Serialize, Deserialize)]
enum Renamed {
    #[serde(alias = "Old", alias = "Older")]
    New(u8),
    Other(u16),
}

#[test]
fn fields_that_are_read_by_name_alone_and_variants_of_two_names_are_seen() {
    for codec in CODECS {
        assert_ne!(whole::<ByNames<u32>>(codec), whole::<ByNames<u64>>(codec));
        whole::<Renamed>(codec);
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Times<T>([T; 12], [T; 12], [T; 12]);

#[test]
fn a_large_type_of_dates_and_addresses_is_seen_as_a_whole() {
    for codec in CODECS {
        whole::<Times<(DateTime<Utc>, NaiveDate, Uuid, IpAddr)>>(codec);
    }
}

#[test]
fn what_takes_no_made_up_value_is_traced_up_to_itself_and_the_fields_beside_it() {
    for codec in CODECS {
        assert_ne!(whole::<Order<u32>>(codec), whole::<Order<u64>>(codec));
        assert_ne!(whole::<Order<Option<u32>>>(codec), whole::<Order<u32>>(codec));
        assert_ne!(whole::<Prices<u32>>(codec), whole::<Prices<u64>>(codec));
        assert_ne!(whole::<Prices<Line<u32>>>(codec), whole::<Prices<Line<u64>>>(codec));
        // The elements of a tuple have no names to be asked by.
        let tuple = |(fingerprint, is_whole): (u32, bool)| {
            assert!(!is_whole);
            fingerprint
        };
        let fingerprints = [
            tuple(perto::fuzzing::fingerprint::<(Article, u32)>(codec)),
            tuple(perto::fuzzing::fingerprint::<(Article, u64)>(codec)),
        ];
        assert_eq!(fingerprints[0], fingerprints[1], "that is what `version` is for");
    }
    assert_eq!(perto::fuzzing::unreadable::<(Article, serde_json::Value)>(), None, "nor is that known");
}

#[test]
fn what_people_cache_is_traced_as_a_whole() {
    for codec in CODECS {
        whole::<(Uuid, DateTime<Utc>, NaiveDate, NaiveTime, NaiveDateTime, NonZeroU32, IpAddr)>(codec);
        whole::<(Duration, Arc<str>, Box<[u8]>, char, Option<bool>, i128, bytes::Bytes)>(codec);
        whole::<Option<Result<Vec<Option<String>>, BTreeMap<i64, (u8, u16)>>>>(codec);
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Flat {
    id: u32,
    #[serde(flatten)]
    more: Page<u8>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    One { id: u32 },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(u8),
    Text(String),
}

#[test]
fn what_asks_what_comes_next_is_not_traced_and_what_is_beside_it_is() {
    fn partly<V: Value>() -> u32 {
        let (fingerprint, is_whole) = perto::fuzzing::fingerprint::<V>(Codec::Json);
        assert!(!is_whole, "{}", std::any::type_name::<V>());
        fingerprint
    }
    partly::<Flat>();
    partly::<Tagged>();
    partly::<serde_json::Value>();
    assert_ne!(partly::<(Untagged, u8)>(), partly::<(Untagged, u16)>());
    assert_ne!(partly::<(serde_json::Value, u8)>(), partly::<(serde_json::Value, u16)>());
}

/// An instance of a release, whose loader makes the same value each time.
async fn release<V: Value>(sim: &Sim, codec: Codec, make: fn() -> V) -> (Perto, Cache<u64, V>) {
    let perto = sim.node().builder("ring").build().unwrap();
    let postgres = sim.postgres.clone();
    let load = move |load: Load<u64>| {
        let stamp = Stamp::parse(&format!("{} primary clean 1", postgres.snapshot())).unwrap();
        let loaded = load.keys.into_iter().fold(Loaded::new(stamp), |loaded, key| loaded.with(key, make()));
        async move { Ok::<_, perto::sim::Down>(loaded) }
    };
    let cache = perto.cache(CACHE).tables([""; 0]).codec(codec).loader(load).unwrap();
    perto.start().await.unwrap();
    (perto, cache)
}

/// Two fields have changed places, and nobody has raised a version.
#[tokio::test(start_paused = true)]
async fn two_releases_of_one_type_fight_over_no_key_and_serve_nothing_of_each_other() {
    for codec in CODECS {
        let sim = Sim::new(1);
        let (one, old) = release(&sim, codec, || first::Row {
            width: 1,
            height: 2,
            place: first::Place("shelf".to_owned(), None),
            kind: first::Kind::Plain,
        })
        .await;
        let (two, new) = release(&sim, codec, || swapped::Row {
            width: 1,
            height: 2,
            place: first::Place("shelf".to_owned(), None),
            kind: first::Kind::Plain,
        })
        .await;
        assert_ne!(old.kind(), new.kind());
        let width_of_new = async |tier| {
            let read = new.get(&7).await.unwrap();
            assert_eq!((read.tier, read.freshness), (tier, Freshness::Fresh));
            assert_eq!(read.value().map(|row| (row.width, row.height)), Some((1, 2)));
        };
        assert_eq!(old.get(&7).await.unwrap().tier, Tier::Load);
        ms(5).await;
        width_of_new(Tier::Load).await;
        ms(5).await;
        let counted = (new.stats().load_hits, new.stats().l2_hits, new.stats().l2_unreadable);
        assert_eq!(counted, (1, 0, 0), "it is a miss, and counted as one");
        assert_eq!(sim.remote.keys().len(), 2, "each its own");
        // Whoever comes after finds that of its own release.
        let (three, old_too) = release(&sim, codec, || -> first::Row { unreachable!("L2 has it") }).await;
        let (four, new_too) = release(&sim, codec, || -> swapped::Row { unreachable!("L2 has it") }).await;
        ms(300).await;
        assert_eq!(old_too.get(&7).await.unwrap().value(), old.get(&7).await.unwrap().value());
        assert_eq!(new_too.get(&7).await.unwrap().value(), new.get(&7).await.unwrap().value());
        // A write of the one is one of the other.
        new.invalidate(&7).await.unwrap();
        ms(5).await;
        assert_eq!(old.get(&7).await.unwrap().tier, Tier::Load);
        for perto in [one, two, three, four] {
            perto.shutdown().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_type_that_is_not_traced_as_a_whole_is_told_of_once_at_the_start() {
    async fn told<V: Value>(make: fn() -> V, local_only: bool) -> usize {
        let sim = Sim::new(1);
        let perto = sim.node().builder("ring").build().unwrap();
        let mut events = perto.events();
        let load = move |load: Load<u64>| async move {
            Ok::<_, perto::sim::Down>(
                load.keys.into_iter().fold(Loaded::computed(), |loaded, key| loaded.with(key, make())),
            )
        };
        let cache = perto.cache::<u64, V>(CACHE).tables([""; 0]).codec(Codec::Json);
        let cache = if local_only { cache.local_only() } else { cache };
        let _cache = cache.loader(load).unwrap();
        perto.start().await.unwrap();
        ms(1_000).await;
        perto.shutdown().await;
        let mut told = 0;
        while let Ok(event) = events.try_recv() {
            told += usize::from(matches!(event, Event::Untraced { cache } if cache == CACHE));
        }
        told
    }
    assert_eq!(told(|| Untagged::Number(1), false).await, 1);
    assert_eq!(told(|| Untagged::Number(1), true).await, 0, "it never goes there");
    assert_eq!(told(|| 1_u8, false).await, 0);
}
