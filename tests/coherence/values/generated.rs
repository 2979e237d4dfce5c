//! Types made of attributes and of what may stand in them: 23 ways to hold a value, around each of 10 values, and around each
//! other. Where L2 takes a value of one of them, by either codec, it brings the same value back.
#![expect(dead_code, reason = "a variant that only moves the others")]

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;

use perto::{Codec, Value};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What stands in a generated type. `made` differs from the default, and one number from the next.
trait Part: Value + Clone + Debug + Default + PartialEq {
    fn made(n: u64) -> Self;
}

macro_rules! parts {
    ($($type:ty: $n:ident => $made:expr),* $(,)?) => {
        $(impl Part for $type {
            fn made($n: u64) -> Self {
                $made
            }
        })*
    };
}

parts! {
    u8: n => 1 + u8::try_from(n % 255).unwrap(),
    i64: n => -1 - i64::try_from(n).unwrap(),
    u128: n => u128::MAX - u128::from(n),
    f64: n => 0.1 + n as f64,
    bool: _n => true,
    char: n => char::from_u32(0x4E00 + u32::try_from(n).unwrap()).unwrap(),
    String: n => "x".repeat(1 + usize::try_from(n).unwrap()),
    Option<u32>: n => Some(u32::try_from(n).unwrap()),
    Vec<u16>: n => vec![1 + u16::try_from(n).unwrap(); 3],
    Uuid: n => Uuid::from_u128(1 + u128::from(n)),
}

fn is_default<T: Part>(value: &T) -> bool {
    *value == T::default()
}

/// Defines ways to hold a value.
macro_rules! holders {
    ($($name:ident $body:tt $n:ident => $made:expr;)*) => {
        $(
            holders!(@define $name $body);
            impl<T: Part> Part for $name<T> {
                fn made($n: u64) -> Self {
                    $made
                }
            }
        )*
    };
    (@define $name:ident { $($field:tt)* }) => {
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(bound = "T: Part")]
        struct $name<T: Part> { $($field)* }
    };
    (@define $name:ident ( $($field:tt)* )) => {
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(bound = "T: Part")]
        struct $name<T: Part>($($field)*);
    };
}

holders! {
    Named { before: u8, part: T, after: i16 } n => Self { before: 9, part: T::made(n), after: -9 };
    Tuple(T, u8, T) n => Self(T::made(n), 9, T::made(n + 1));
    New(T) n => Self(T::made(n));
    Optional { part: Option<T>, after: u32 } n => Self { part: n.is_multiple_of(2).then(|| T::made(n)), after: 9 };
    SkipIf { #[serde(default, skip_serializing_if = "is_default")] part: T, after: u32, last: u64 }
        n => Self { part: if n.is_multiple_of(2) { T::made(n) } else { T::default() }, after: 1, last: 300 };
    SkipSer { #[serde(default, skip_serializing)] part: T, after: T } n => Self { part: T::default(), after: T::made(n) };
    SkipDe { part: T, #[serde(skip_deserializing)] after: T } n => Self { part: T::made(n), after: T::default() };
    SkipEach { #[serde(default, skip_serializing)] a: T, b: T, #[serde(skip_deserializing)] c: T }
        n => Self { a: T::made(n), b: T::made(n + 1), c: T::made(n + 2) };
    SkipEachDefault { #[serde(default, skip_serializing)] a: T, b: T, #[serde(skip_deserializing)] c: T }
        n => Self { a: T::made(n), b: T::default(), c: T::default() };
    Flat { before: u8, #[serde(flatten)] part: Named2<T> } n => Self { before: 9, part: Named2::made(n) };
    FlatMap { #[serde(flatten)] part: BTreeMap<String, T> } n => Self { part: BTreeMap::from([("a".to_owned(), T::made(n))]) };
    Renamed { #[serde(rename = "x")] part: T, y: u8 } n => Self { part: T::made(n), y: 9 };
    RenamedOnOneSide { #[serde(rename(serialize = "y", deserialize = "x"))] part: T, #[serde(rename(serialize = "x", deserialize = "y"))] other: T }
        n => Self { part: T::made(n), other: T::made(n + 1) };
    Alias { #[serde(alias = "z", alias = "a")] part: T, #[serde(alias = "q")] other: T } n => Self { part: T::made(n), other: T::made(n + 1) };
    Boxed { part: Box<T>, list: Vec<T> } n => Self { part: Box::new(T::made(n)), list: vec![T::made(n), T::made(n + 1)] };
    Pair { pair: [T; 2], result: Option<Result<T, u8>> } n => Self { pair: [T::made(n), T::made(n + 1)], result: Some(Err(9)) };
    Maps { tree: BTreeMap<u8, T>, hash: HashMap<u8, T> }
        n => Self { tree: BTreeMap::from([(1, T::made(n))]), hash: (0..5).map(|key| (key, T::made(n + u64::from(key)))).collect() };
    Named2 { part2: T, after2: u8 } n => Self { part2: T::made(n), after2: 9 };
    OneOfFive { part: External<T> } n => Self { part: External::made(n) };
    OneOfTagged { part: Internal<T> } n => Self { part: Internal::made(n) };
    OneOfAdjacent { part: Adjacent<T> } n => Self { part: Adjacent::made(n) };
    OneOfUntagged { part: Untagged<T> } n => Self { part: Untagged::made(n) };
    OneBehindSkipped { part: Behind<T> } n => Self { part: Behind::made(n) };
}

macro_rules! choices {
    ($($(#[$attribute:meta])* $name:ident { $first:ident, $($(#[$inner:meta])* $variant:ident $body:tt),* } $n:ident => [$($made:expr),*];)*) => {
        $(
            #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
            #[serde(bound = "T: Part")]
            $(#[$attribute])*
            enum $name<T: Part> {
                #[default]
                $first,
                $($(#[$inner])* $variant $body),*
            }
            impl<T: Part> Part for $name<T> {
                fn made($n: u64) -> Self {
                    let made = [Self::$first, $($made),*];
                    made[usize::try_from($n).unwrap() % made.len()].clone()
                }
            }
        )*
    };
}

choices! {
    External { Unit, New(T), Tuple(T, u8), Named { part: T, after: u8 } }
        n => [Self::New(T::made(n)), Self::Tuple(T::made(n), 9), Self::Named { part: T::made(n), after: 9 }];
    #[serde(tag = "kind")]
    Internal { Unit, Named { part: T }, New(Named<T>) } n => [Self::Named { part: T::made(n) }, Self::New(Named::made(n))];
    #[serde(tag = "kind", content = "data")]
    Adjacent { Unit, New(T), Tuple(T, u8), Named { part: T } }
        n => [Self::New(T::made(n)), Self::Tuple(T::made(n), 9), Self::Named { part: T::made(n) }];
    #[serde(untagged)]
    Untagged { Unit, New(T), Tuple(T, u8) } n => [Self::New(T::made(n)), Self::Tuple(T::made(n), 9)];
    Behind { Unit, #[serde(skip)] Skipped(T), New(T), Other(T), #[serde(alias = "eins")] Last { part: T } }
        n => [Self::New(T::made(n)), Self::Other(T::made(n)), Self::Last { part: T::made(n) }];
}

/// How many types there were, how many values came back, and how many stayed out.
#[derive(Debug, Default)]
struct Tally {
    codec: Codec,
    types: u32,
    back: u32,
    out: u32,
}

impl Tally {
    fn check<V: Part>(&mut self) {
        self.types += 1;
        for n in 0..8 {
            let value = V::made(n);
            let Ok(bytes) = perto::fuzzing::payload_by(self.codec, &value) else {
                self.out += 1;
                continue;
            };
            self.back += 1;
            let back = perto::fuzzing::value_by::<V>(self.codec, &bytes);
            assert_eq!(back, Some(value), "a wrong value of {}", std::any::type_name::<V>());
        }
    }
}

macro_rules! check_each {
    ($tally:ident: $($holder:ident)*; $parts:tt) => { $(check_each!(@of $tally: $holder $parts);)* };
    (@of $tally:ident: $holder:ident [$($part:ty),*]) => { $($tally.check::<$holder<$part>>();)* };
}

fn tally(codec: Codec) -> Tally {
    let mut tally = Tally { codec, ..Tally::default() };
    check_each! {
        tally: Named Tuple New Optional SkipIf SkipSer SkipDe SkipEach SkipEachDefault Flat FlatMap Renamed RenamedOnOneSide
            Alias Boxed Pair Maps Named2 OneOfFive OneOfTagged OneOfAdjacent OneOfUntagged OneBehindSkipped;
        [u8, i64, u128, f64, bool, char, String, Option<u32>, Vec<u16>, Uuid]
    }
    check_each! {
        tally: Named Tuple Optional SkipIf SkipEach Alias Maps OneOfFive OneOfAdjacent;
        [Named<u8>, Optional<u8>, SkipIf<u8>, Tuple<bool>, OneOfFive<u8>, OneBehindSkipped<u8>, Alias<u8>, Maps<u8>]
    }
    tally
}

#[test]
fn no_generated_type_comes_back_as_another_value() {
    let bincode = tally(Codec::Bincode);
    assert!(bincode.types >= 300 && bincode.back > 1_000 && bincode.out > 500, "{bincode:?}");
    let json = tally(Codec::Json);
    assert!(json.back > bincode.back && json.out > 100, "{json:?}");
}
