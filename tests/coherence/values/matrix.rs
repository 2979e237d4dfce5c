//! Each thing that Serde can do with a type: either L2 brings a value back as it was, or it is kept out.
#![expect(dead_code, reason = "fields that are never written are read by nobody")]

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::{Bound, Range, RangeInclusive};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use perto::Value;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// The value comes back. By what it looks like where it isn't equal to itself.
fn comes_back<V: Value + Debug>(what: &str, value: &V) {
    let bytes = perto::fuzzing::payload(value).unwrap_or_else(|flaw| panic!("{what}: {flaw}"));
    let back = perto::fuzzing::value::<V>(&bytes).unwrap_or_else(|| panic!("{what}: can't be read"));
    assert_eq!(format!("{back:?}"), format!("{value:?}"), "{what}");
}

/// The value stays out, for a reason that says this.
fn stays_out<V: Value + Debug>(what: &str, value: &V, why: &str) {
    match perto::fuzzing::payload(value) {
        Ok(bytes) => panic!("{what}: {:?} from {value:?}", perto::fuzzing::value::<V>(&bytes)),
        Err(flaw) => assert!(flaw.contains(why), "{what}: {flaw}"),
    }
    assert!(perto::fuzzing::weight(value) > 0, "{what} weighs nothing");
}

const ASKS: &str = "asks what comes next";
const FIELDS: &str = "not those that it reads";
const OTHERWISE: &str = "asks for something else";
const DIFFERS: &str = "differs from what was written";
const LENGTH: &str = "length that is not known";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Plain {
    id: i64,
    name: String,
    price: Option<u32>,
    ratio: f64,
}

fn plain() -> Plain {
    Plain { id: -7, name: "Ada".to_owned(), price: Some(250), ratio: 0.1 }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum External {
    Unit,
    New(Plain),
    Tuple(u8, i16),
    Named { width: u16, plain: Plain },
    Nested(Box<Self>),
}

#[test]
fn plain_types_come_back() {
    comes_back("a struct", &plain());
    for value in [
        External::Unit,
        External::New(plain()),
        External::Tuple(255, -1),
        External::Named { width: 65_535, plain: plain() },
        External::Nested(Box::new(External::Nested(Box::new(External::Unit)))),
    ] {
        comes_back("an enum", &value);
    }
    comes_back(
        "numbers",
        &(i8::MIN, i16::MIN, i32::MIN, i64::MIN, i128::MIN, u8::MAX, u16::MAX, u32::MAX, u64::MAX, u128::MAX),
    );
    comes_back(
        "more numbers",
        &(
            usize::MAX,
            isize::MIN,
            true,
            'é',
            NonZeroU32::MAX,
            f32::NAN,
            f64::NAN,
            f64::NEG_INFINITY,
            -0.0_f64,
        ),
    );
    comes_back("nothing", &((), PhantomData::<u8>, Vec::<()>::new(), [(); 3]));
    comes_back("options", &(Some(Some(1_u8)), Some(None::<u8>), None::<Option<u8>>));
    comes_back("results", &(Ok::<u8, String>(1), Err::<u8, String>("no".to_owned())));
    comes_back(
        "lists",
        &(vec![vec![1_u64], vec![]], [1_u8; 32], vec![plain(); 3], Box::<[u16]>::from([1, 2])),
    );
    comes_back(
        "maps",
        &BTreeMap::from([((1_u8, "a".to_owned()), Some(plain())), ((2, String::new()), None)]),
    );
    comes_back("borrowed", &(Cow::<'static, str>::Borrowed("text"), Box::<str>::from("text")));
    comes_back(
        "times",
        &(Duration::new(u64::MAX, 999_999_999), SystemTime::UNIX_EPOCH + Duration::from_nanos(1)),
    );
    comes_back(
        "addresses",
        &("::1".parse::<IpAddr>().unwrap(), "127.0.0.1:80".parse::<std::net::SocketAddr>().unwrap()),
    );
    comes_back(
        "ranges",
        &(
            Range { start: 1_u8, end: 2 },
            RangeInclusive::new(1_u8, 2),
            Bound::Included(1_u8),
            Bound::<u8>::Unbounded,
        ),
    );
    comes_back("a path", &PathBuf::from("/tmp/é"));
    comes_back("a C string", &c"text".to_owned());
    comes_back("bytes", &bytes::Bytes::from_static(b"\x00\xFF"));
    comes_back("json as text", &serde_json::json!({ "a": 1 }).to_string());
    comes_back("uuid", &(Uuid::from_u128(7), Some(Uuid::nil())));
    comes_back("chrono", &(DateTime::<Utc>::UNIX_EPOCH, NaiveDate::MAX, NaiveDateTime::MIN));
    comes_back("atomics", &std::sync::atomic::AtomicU32::new(7));
    comes_back("wrapped", &(std::num::Wrapping(7_u8), std::cmp::Reverse(8_i8)));
}

#[test]
fn what_a_hash_holds_comes_back_in_whatever_order() {
    for _ in 0..20 {
        let map: HashMap<u32, HashSet<String>> =
            (0..9).map(|key| (key, (0..key).map(|n| n.to_string()).collect())).collect();
        let bytes = perto::fuzzing::payload(&map).unwrap();
        assert_eq!(perto::fuzzing::value::<HashMap<u32, HashSet<String>>>(&bytes), Some(map));
    }
    comes_back("a set", &BTreeSet::from([3, 1, 2]));
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename = "Other")]
struct Renamed {
    #[serde(rename = "one", alias = "eins", alias = "un")]
    first: String,
    second_one: String,
    #[serde(default)]
    third: Option<u8>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct Transparent {
    inner: Plain,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(from = "(i64, String)", into = "(i64, String)")]
struct Converted(Plain);

impl From<(i64, String)> for Converted {
    fn from((id, name): (i64, String)) -> Self {
        Self(Plain { id, name, ..plain() })
    }
}

impl From<Converted> for (i64, String) {
    fn from(converted: Converted) -> Self {
        (converted.0.id, converted.0.name)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
struct Even(u8);

impl TryFrom<u8> for Even {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        if number.is_multiple_of(2) { Ok(Self(number)) } else { Err(format!("{number} is odd")) }
    }
}

impl From<Even> for u8 {
    fn from(even: Even) -> Self {
        even.0
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Foreign {
    id: u8,
    name: String,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Foreign")]
struct ForeignDef {
    id: u8,
    name: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Remote {
    #[serde(with = "ForeignDef")]
    foreign: Foreign,
    after: u8,
}

#[derive(Debug, Serialize, Deserialize)]
enum Aliased {
    #[serde(alias = "Eins", alias = "Un")]
    One,
    #[serde(rename = "zwei")]
    Two(u8),
    #[serde(rename(serialize = "drei", deserialize = "trois"))]
    Three(u8),
}

#[derive(Debug, Serialize, Deserialize)]
struct Withs {
    #[serde(with = "text_of_arc")]
    text: Arc<str>,
    #[serde(with = "chrono::serde::ts_milliseconds")]
    at: DateTime<Utc>,
    #[serde(with = "chrono::serde::ts_microseconds_option")]
    until: Option<DateTime<Utc>>,
    #[serde(with = "as_text")]
    price: Decimal,
    #[serde(with = "raw")]
    bytes: Vec<u8>,
}

/// As `rust_decimal` has it: written as a text, and read as whatever comes.
#[derive(Debug, Clone)]
struct Decimal(String);

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde_json::Value::deserialize(deserializer).map(|value| Self(value.to_string()))
    }
}

/// As `rust_decimal::serde::str` has it.
mod as_text {
    use super::*;

    pub(super) fn serialize<S: Serializer>(decimal: &Decimal, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&decimal.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Decimal, D::Error> {
        String::deserialize(deserializer).map(Decimal)
    }
}

mod text_of_arc {
    use super::*;

    pub(super) fn serialize<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
        String::deserialize(deserializer).map(Arc::from)
    }
}

/// As `serde_bytes` does it.
mod raw {
    use super::*;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        bytes::Bytes::deserialize(deserializer).map(Vec::from)
    }
}

#[test]
fn types_whose_both_sides_agree_come_back() {
    comes_back("rename, alias, default", &Renamed { first: "a".into(), second_one: "b".into(), third: None });
    comes_back("transparent", &Transparent { inner: plain() });
    comes_back("from and into", &Converted(plain()));
    comes_back("try_from", &Even(8));
    comes_back("remote", &Remote { foreign: Foreign { id: 1, name: "text".into() }, after: 2 });
    for value in [Aliased::One, Aliased::Two(2), Aliased::Three(3)] {
        comes_back("aliases of variants", &value);
    }
    let at = DateTime::<Utc>::UNIX_EPOCH + Duration::from_millis(1_790_000_000_123);
    let price = Decimal("19.95".to_owned());
    comes_back(
        "with",
        &Withs { text: Arc::from("text"), at, until: Some(at), price: price.clone(), bytes: vec![0, 255] },
    );
    comes_back("with, and none", &Withs { text: Arc::from(""), at, until: None, price, bytes: vec![] });
}

#[derive(Debug, Serialize, Deserialize)]
struct SkipIf {
    before: u8,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    list: Vec<u8>,
    after: u8,
}

#[derive(Debug, Serialize, Deserialize)]
enum SkipIfInVariant {
    Named {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        option: Option<u8>,
        after: u8,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct SkipSerializing {
    #[serde(default, skip_serializing)]
    a: u8,
    b: u8,
}

#[derive(Debug, Serialize, Deserialize)]
struct SkipDeserializing {
    a: u8,
    #[serde(skip_deserializing)]
    b: u8,
}

/// As many are written as are read.
#[derive(Debug, Serialize, Deserialize)]
struct SkipEach {
    #[serde(default, skip_serializing)]
    a: u8,
    b: u8,
    #[serde(skip_deserializing)]
    c: u8,
}

#[derive(Debug, Serialize, Deserialize)]
struct SkipLast {
    a: u8,
    #[serde(default, skip_serializing)]
    b: u8,
}

#[derive(Debug, Serialize, Deserialize)]
struct SkipEachOfTuple(#[serde(skip_serializing)] u8, u8, #[serde(skip_deserializing)] u8);

#[derive(Debug, Serialize, Deserialize)]
enum SkippedVariant {
    Before(u8),
    #[serde(skip)]
    #[expect(dead_code, reason = "it only moves the others")]
    Skipped(u8),
    After(u8),
    Last(u8),
}

#[derive(Debug, Serialize, Deserialize)]
struct RenamedOnOneSide {
    #[serde(rename(serialize = "x"))]
    a: u8,
}

#[derive(Debug, Serialize, Deserialize)]
struct RenamedWithAlias {
    #[serde(rename(serialize = "x"), alias = "x")]
    a: u8,
}

#[derive(Debug, Serialize, Deserialize)]
struct Flat {
    a: u8,
    #[serde(flatten)]
    plain: Plain,
}

#[derive(Debug, Serialize, Deserialize)]
struct FlatMap {
    #[serde(flatten)]
    more: BTreeMap<String, u8>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(u64),
    Text(String),
    Named { a: u8 },
    Unit,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Internal {
    Unit,
    Named { a: u8 },
    New(Plain),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", content = "data")]
enum Adjacent {
    Unit,
    New(Plain),
    Tuple(u8, u8),
    Named { a: u8 },
}

#[test]
fn types_whose_sides_differ_stay_out() {
    stays_out(
        "skip_serializing_if",
        &SkipIf { before: 1, list: vec![], after: 2 },
        "leaves its field list out",
    );
    comes_back("skip_serializing_if, not skipped", &SkipIf { before: 1, list: vec![3], after: 2 });
    stays_out("in a list", &vec![SkipIf { before: 0, list: vec![], after: 0 }], "leaves its field list out");
    stays_out(
        "in a variant",
        &SkipIfInVariant::Named { option: None, after: 1 },
        "leaves its field option out",
    );
    for n in [0, 1, 7] {
        stays_out("skip_serializing", &SkipSerializing { a: n, b: 2 }, FIELDS);
        stays_out("skip_deserializing", &SkipDeserializing { a: n, b: 2 }, FIELDS);
        stays_out("one of each", &SkipEach { a: 7, b: n, c: 0 }, FIELDS);
        stays_out("the last", &SkipLast { a: n, b: 7 }, FIELDS);
        stays_out("the last, in a list", &vec![SkipLast { a: n, b: 7 }, SkipLast { a: n, b: 7 }], FIELDS);
    }
    stays_out("of a tuple", &SkipEachOfTuple(7, 8, 9), DIFFERS);
    comes_back("before a variant that is skipped", &SkippedVariant::Before(1));
    stays_out_or_comes_back("behind one", &SkippedVariant::After(2));
    stays_out_or_comes_back("the last behind one", &SkippedVariant::Last(3));
    stays_out("rename of one side", &RenamedOnOneSide { a: 1 }, FIELDS);
    comes_back("rename of one side, with an alias", &RenamedWithAlias { a: 1 });
    stays_out("flatten", &Flat { a: 1, plain: plain() }, LENGTH);
    stays_out("flatten of a map", &FlatMap { more: BTreeMap::from([("a".into(), 1)]) }, LENGTH);
    for value in [Untagged::Number(1), Untagged::Text("1".into()), Untagged::Named { a: 1 }, Untagged::Unit] {
        stays_out_weightless("untagged", &value, ASKS);
    }
    for value in [Internal::Unit, Internal::Named { a: 1 }, Internal::New(plain())] {
        stays_out("internally tagged", &value, ASKS);
    }
    for value in [Adjacent::Unit, Adjacent::New(plain()), Adjacent::Tuple(1, 2), Adjacent::Named { a: 3 }] {
        stays_out("adjacently tagged", &value, "");
    }
    for value in [
        serde_json::json!(null),
        serde_json::json!(1),
        serde_json::json!("a"),
        serde_json::json!({ "a": [1.5] }),
    ] {
        stays_out_weightless("a JSON value", &value, ASKS);
    }
    stays_out("raw JSON", &serde_json::value::to_raw_value(&[1]).unwrap(), OTHERWISE);
    stays_out("a JSON number", &serde_json::Number::from(7), ASKS);
    stays_out("a decimal", &Decimal("19.95".to_owned()), ASKS);
}

/// Unit variants of what is untagged, and `null`, are nothing at all.
fn stays_out_weightless<V: Value + Debug>(what: &str, value: &V, why: &str) {
    let flaw = perto::fuzzing::payload(value).expect_err(what);
    assert!(flaw.contains(why), "{what}: {flaw}");
}

/// Serde may change its mind about these. Either is right.
fn stays_out_or_comes_back<V: Value + Debug>(what: &str, value: &V) {
    if let Ok(bytes) = perto::fuzzing::payload(value) {
        let back = perto::fuzzing::value::<V>(&bytes);
        assert_eq!(format!("{back:?}"), format!("{:?}", Some(value)), "{what}");
    }
}

/// What `Serialize` and `Deserialize` by hand may get wrong, each with the bytes of something else.
mod by_hand {
    use super::*;

    macro_rules! by_hand {
        ($name:ident, $written:expr, $read:ty) => {
            #[derive(Debug)]
            pub(super) struct $name;

            impl Serialize for $name {
                fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    $written(serializer)
                }
            }

            impl<'de> Deserialize<'de> for $name {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    <$read>::deserialize(deserializer).map(|_| Self)
                }
            }
        };
    }

    by_hand!(SignedReadUnsigned, |s: S| s.serialize_i64(7), u64);
    by_hand!(ShortReadLong, |s: S| s.serialize_u16(7), u32);
    by_hand!(TupleReadList, |s: S| (1_u8, 2_u8).serialize(s), Vec<u8>);
    by_hand!(ListReadTuple, |s: S| vec![1_u8, 2].serialize(s), (u8, u8, u8));
    by_hand!(LongerTuple, |s: S| (1_u8, 2_u8, 3_u8).serialize(s), (u8, u8));
    by_hand!(ShorterTuple, |s: S| (1_u8, 2_u8).serialize(s), (u8, u8, u8));
    by_hand!(OptionReadPlain, |s: S| Some(7_u8).serialize(s), u8);
    by_hand!(PlainReadOption, |s: S| 1_u8.serialize(s), Option<()>);
    by_hand!(TextReadNumber, |s: S| "1".serialize(s), u16);
    by_hand!(FloatReadDouble, |s: S| 1_f32.serialize(s), f64);
    by_hand!(NumberReadBool, |s: S| 1_u8.serialize(s), bool);
    by_hand!(MapReadList, |s: S| BTreeMap::from([(1_u8, 2_u8)]).serialize(s), Vec<(u8, u8)>);
    by_hand!(StructReadTuple, |s: S| SkipEach { a: 1, b: 2, c: 3 }.serialize(s), (u8, u8));
    by_hand!(NothingReadList, |s: S| ().serialize(s), Vec<()>);
    by_hand!(NoLength, |s: S| s.collect_seq([1_u8, 2].iter().filter(|n| **n > 0)), Vec<u8>);
    by_hand!(
        WrongLength,
        |s: S| {
            let mut list = s.serialize_seq(Some(3))?;
            serde::ser::SerializeSeq::serialize_element(&mut list, &1_u8)?;
            serde::ser::SerializeSeq::end(list)
        },
        Vec<u8>
    );
    by_hand!(AnError, |_: S| Err(serde::ser::Error::custom("a secret")), u8);
}

#[test]
fn what_is_written_by_hand_and_read_otherwise_stays_out() {
    use by_hand::*;
    stays_out("i64 read as u64", &SignedReadUnsigned, OTHERWISE);
    stays_out("u16 read as u32", &ShortReadLong, OTHERWISE);
    stays_out_weightless("a tuple read as a list", &TupleReadList, OTHERWISE);
    stays_out("a list read as a tuple", &ListReadTuple, OTHERWISE);
    stays_out("a longer tuple", &LongerTuple, OTHERWISE);
    stays_out("a shorter tuple", &ShorterTuple, OTHERWISE);
    stays_out("an option read without", &OptionReadPlain, OTHERWISE);
    stays_out("read as an option", &PlainReadOption, OTHERWISE);
    stays_out("a text read as a number", &TextReadNumber, OTHERWISE);
    stays_out("f32 read as f64", &FloatReadDouble, OTHERWISE);
    stays_out("u8 read as bool", &NumberReadBool, OTHERWISE);
    stays_out("a map read as a list", &MapReadList, OTHERWISE);
    stays_out("a struct read as a tuple", &StructReadTuple, OTHERWISE);
    stays_out_weightless("nothing read as a list", &NothingReadList, OTHERWISE);
    stays_out("a list of unknown length", &NoLength, LENGTH);
    stays_out("a list of another length", &WrongLength, "another length");
    stays_out_weightless("an error", &AnError, "gives an error");
    let flaw = perto::fuzzing::payload(&vec![AnError]).unwrap_err();
    assert!(!flaw.contains("secret"), "{flaw}");
}
