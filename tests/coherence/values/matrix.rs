//! Each thing that Serde can do with a type, by each codec: either L2 brings a value back as it was, or it is kept out.
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
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use perto::{Codec, Value};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// The value comes back. By what it looks like where it isn't equal to itself.
fn comes_back_by<V: Value + Debug>(codec: Codec, what: &str, value: &V) {
    let bytes = perto::fuzzing::payload_by(codec, value).unwrap_or_else(|flaw| panic!("{what}: {flaw}"));
    let back =
        perto::fuzzing::value_by::<V>(codec, &bytes).unwrap_or_else(|| panic!("{what}: can't be read"));
    assert_eq!(format!("{back:?}"), format!("{value:?}"), "{what}");
}

/// The value stays out, for a reason that says this.
fn stays_out_by<V: Value + Debug>(codec: Codec, what: &str, value: &V, why: &str) {
    match perto::fuzzing::payload_by(codec, value) {
        Ok(bytes) => panic!("{what}: {:?} from {value:?}", perto::fuzzing::value_by::<V>(codec, &bytes)),
        Err(flaw) => assert!(flaw.contains(why), "{what}: {flaw}"),
    }
}

fn comes_back<V: Value + Debug>(what: &str, value: &V) {
    comes_back_by(Codec::Bincode, what, value);
    comes_back_by(Codec::Json, what, value);
}

/// By neither, each for its reason.
fn stays_out<V: Value + Debug>(what: &str, value: &V, bincode: &str, json: &str) {
    stays_out_by(Codec::Bincode, what, value, bincode);
    stays_out_by(Codec::Json, what, value, json);
    assert!(perto::fuzzing::weight(value) > 0, "{what} weighs nothing");
}

/// By JSON alone, since bincode does not say what comes next.
fn needs_json<V: Value + Debug>(what: &str, value: &V, bincode: &str) {
    needs_json_weightless(what, value, bincode);
    assert!(perto::fuzzing::weight(value) > 0, "{what} weighs nothing");
}

/// Unit variants of what is untagged, and `null`, are nothing at all.
fn needs_json_weightless<V: Value + Debug>(what: &str, value: &V, bincode: &str) {
    stays_out_by(Codec::Bincode, what, value, bincode);
    comes_back_by(Codec::Json, what, value);
}

/// By bincode alone, since JSON can't say it.
fn needs_bincode<V: Value + Debug>(what: &str, value: &V, json: &str) {
    comes_back_by(Codec::Bincode, what, value);
    stays_out_by(Codec::Json, what, value, json);
}

const ASKS: &str = "asks what comes next";
const FIELDS: &str = "not those that it reads";
const OTHERWISE: &str = "asks for something else";
const DIFFERS: &str = "differs from what was written";
const LENGTH: &str = "length that is not known";
const NOT_JSON: &str = "JSON can't say it";

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
    comes_back("more numbers", &(usize::MAX, isize::MIN, true, 'é', NonZeroU32::MAX, -0.0_f64, 0.1_f32));
    comes_back("floats", &[f64::MAX, f64::MIN_POSITIVE, f64::EPSILON, 5e-324, 0.1 + 0.2, 1.0 / 3.0, 1e23]);
    comes_back("short floats", &[f32::MAX, f32::MIN_POSITIVE, f32::EPSILON, 1e-45, 0.1 + 0.2, 1.0 / 3.0]);
    needs_bincode("not a number", &(f32::NAN, f64::NAN), OTHERWISE);
    needs_bincode("an infinite one", &vec![f64::NEG_INFINITY], OTHERWISE);
    needs_bincode("an optional one", &Some(f64::NAN), DIFFERS);
    comes_back("nothing", &((), PhantomData::<u8>, Vec::<()>::new(), [(); 3]));
    comes_back("options", &(Some(Some(1_u8)), Some(1_u8), None::<Option<u8>>));
    needs_bincode("something that is nothing", &Some(None::<u8>), DIFFERS);
    needs_bincode("some unit", &vec![Some(())], DIFFERS);
    comes_back("results", &(Ok::<u8, String>(1), Err::<u8, String>("no".to_owned())));
    comes_back(
        "lists",
        &(vec![vec![1_u64], vec![]], [1_u8; 32], vec![plain(); 3], Box::<[u16]>::from([1, 2])),
    );
    comes_back("maps", &BTreeMap::from([("a".to_owned(), Some(plain())), (String::new(), None)]));
    comes_back("maps by numbers", &BTreeMap::from([(i128::MIN, 'a'), (-7, 'b'), (i128::MAX, 'c')]));
    comes_back("maps by what is written as a text", &BTreeMap::from([(Uuid::nil(), true)]));
    let pairs = BTreeMap::from([((1_u8, "a".to_owned()), Some(plain())), ((2, String::new()), None)]);
    needs_bincode("maps by pairs", &pairs, NOT_JSON);
    needs_bincode("maps by what there may be", &BTreeMap::from([(None::<u8>, 1), (Some(1), 2)]), NOT_JSON);
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
        for codec in [Codec::Bincode, Codec::Json] {
            let bytes = perto::fuzzing::payload_by(codec, &map).unwrap();
            let back = perto::fuzzing::value_by::<HashMap<u32, HashSet<String>>>(codec, &bytes);
            assert_eq!(back.as_ref(), Some(&map), "by {codec:?}");
        }
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
        let value = serde_json::Value::deserialize(deserializer)?;
        Ok(Self(value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
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
    for value in [Aliased::One, Aliased::Two(2)] {
        comes_back("aliases of variants", &value);
    }
    needs_bincode("a variant that is renamed on one side", &Aliased::Three(3), OTHERWISE);
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
struct SkipLastOfTuple(u8, #[serde(default, skip_serializing)] String);

fn is_zero(number: &u8) -> bool {
    *number == 0
}

#[derive(Debug, Serialize, Deserialize)]
struct SkipIfOfTuple(
    #[serde(default, skip_serializing_if = "is_zero")] u8,
    #[serde(default, skip_serializing_if = "is_zero")] u8,
);

#[derive(Debug, Serialize, Deserialize)]
enum SkipInTupleVariant {
    Tuple(
        u8,
        #[serde(default, skip_serializing_if = "is_zero")] u8,
        #[serde(default, skip_serializing_if = "is_zero")] u8,
    ),
}

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

/// Both sides have a default, so nothing is missed.
#[derive(Debug, Serialize, Deserialize)]
struct RenamedDefault {
    #[serde(default, rename(serialize = "x"))]
    a: u8,
}

/// What has an alias is asked for by more names than it is written by.
#[derive(Debug, Serialize, Deserialize)]
struct SkipBesideAlias {
    #[serde(default, skip_serializing)]
    a: u8,
    #[serde(alias = "bb", alias = "aa")]
    b: u8,
    #[serde(default, alias = "cc")]
    c: u8,
}

#[derive(Debug, Serialize, Deserialize)]
enum Role {
    Admin,
}

/// Named as the enum that stands in it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename = "Role")]
struct SkipBesideRole {
    role: Role,
    #[serde(default, skip_serializing)]
    password: String,
}

#[derive(Debug, Serialize, Deserialize)]
enum SkipInVariant {
    Named {
        #[serde(default, skip_serializing)]
        a: u8,
        b: u8,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Enclosing {
    id: u8,
    #[serde(flatten)]
    inner: SkipSerializing,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Ambiguous {
    Short(u8),
    Long(u64),
}

/// Without what they leave out, both write the same.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum SkipIfUntagged {
    Sale {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        discount: Option<u8>,
        price: u32,
    },
    Rent {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        months: Option<u8>,
        price: u32,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Celsius(f64);
#[derive(Debug, Serialize, Deserialize)]
struct Fahrenheit(f64);

/// Both are a number.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Temperature {
    Celsius(Celsius),
    Fahrenheit(Fahrenheit),
}

#[derive(Debug, Serialize, Deserialize)]
struct Meters {
    length: f64,
}
#[derive(Debug, Serialize, Deserialize)]
struct Feet {
    length: f64,
}

/// Both have the same fields.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Length {
    Meters(Meters),
    Feet(Feet),
}

#[derive(Debug, Serialize, Deserialize)]
struct Point(i8, i8);
#[derive(Debug, Serialize, Deserialize)]
struct Offset(i8, i8);

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Place {
    Point(Point),
    Offset(Offset),
}

#[derive(Debug, Serialize, Deserialize)]
enum Paid {
    Yes,
}
#[derive(Debug, Serialize, Deserialize)]
enum Shipped {
    Yes,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum State {
    Paid(Paid),
    Shipped(Shipped),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum LongUntagged {
    Long(u128),
}

#[derive(Debug, Serialize, Deserialize)]
struct FlatBeside {
    a: u8,
    #[serde(flatten)]
    more: BTreeMap<String, u8>,
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
    needs_json(
        "skip_serializing_if",
        &SkipIf { before: 1, list: vec![], after: 2 },
        "leaves its field list out",
    );
    comes_back("skip_serializing_if, not skipped", &SkipIf { before: 1, list: vec![3], after: 2 });
    needs_json("in a list", &vec![SkipIf { before: 0, list: vec![], after: 0 }], "leaves its field list out");
    needs_json(
        "in a variant",
        &SkipIfInVariant::Named { option: None, after: 1 },
        "leaves its field option out",
    );
    for n in [0, 1, 7] {
        stays_out("skip_serializing", &SkipSerializing { a: n, b: 2 }, FIELDS, FIELDS);
        stays_out("one of each", &SkipEach { a: 7, b: n, c: 0 }, FIELDS, FIELDS);
        stays_out("the last", &SkipLast { a: n, b: 7 }, FIELDS, FIELDS);
        let two = vec![SkipLast { a: n, b: 7 }, SkipLast { a: n, b: 7 }];
        stays_out("the last, in a list", &two, FIELDS, FIELDS);
        stays_out("beside an alias", &SkipBesideAlias { a: n, b: 2, c: 3 }, FIELDS, FIELDS);
        stays_out("in a variant", &SkipInVariant::Named { a: n, b: 2 }, FIELDS, FIELDS);
    }
    needs_json("skip_deserializing of a default", &SkipDeserializing { a: 1, b: 0 }, FIELDS);
    stays_out("skip_deserializing", &SkipDeserializing { a: 1, b: 2 }, FIELDS, DIFFERS);
    stays_out("of a tuple", &SkipEachOfTuple(7, 8, 9), DIFFERS, DIFFERS);
    for text in ["", "x"] {
        let named = SkipBesideRole { role: Role::Admin, password: text.to_owned() };
        stays_out("beside an enum of the same name", &named, FIELDS, FIELDS);
        stays_out("the last of a tuple", &SkipLastOfTuple(1, text.to_owned()), OTHERWISE, FIELDS);
    }
    // What was left out moves the others.
    for (a, b) in [(0, 7), (7, 0)] {
        stays_out("skip_serializing_if of a tuple", &SkipIfOfTuple(a, b), OTHERWISE, FIELDS);
        let variant = SkipInTupleVariant::Tuple(1, a, b);
        stays_out("skip_serializing_if of a variant's tuple", &variant, OTHERWISE, FIELDS);
    }
    comes_back("skip_serializing_if of a tuple, not skipped", &SkipIfOfTuple(7, 7));
    comes_back("before a variant that is skipped", &SkippedVariant::Before(1));
    stays_out_or_comes_back("behind one", &SkippedVariant::After(2));
    stays_out_or_comes_back("the last behind one", &SkippedVariant::Last(3));
    stays_out("rename of one side", &RenamedOnOneSide { a: 1 }, FIELDS, FIELDS);
    comes_back("rename of one side, with an alias", &RenamedWithAlias { a: 1 });
    stays_out("default, skip and rename", &RenamedDefault { a: 1 }, FIELDS, FIELDS);
}

#[test]
fn types_that_ask_what_comes_next_come_back_from_json() {
    needs_json("flatten", &Flat { a: 1, plain: plain() }, LENGTH);
    needs_json("flatten of a map", &FlatMap { more: BTreeMap::from([("a".into(), 1)]) }, LENGTH);
    for value in [Untagged::Number(1), Untagged::Text("1".into()), Untagged::Named { a: 1 }, Untagged::Unit] {
        needs_json_weightless("untagged", &value, ASKS);
    }
    for value in [Internal::Unit, Internal::Named { a: 1 }, Internal::New(plain())] {
        needs_json("internally tagged", &value, ASKS);
    }
    for value in [Adjacent::Unit, Adjacent::New(plain()), Adjacent::Tuple(1, 2), Adjacent::Named { a: 3 }] {
        needs_json("adjacently tagged", &value, "");
    }
    for value in [
        serde_json::json!(null),
        serde_json::json!(1),
        serde_json::json!("a"),
        serde_json::json!({ "a": [1.5, -1, u64::MAX, 0.1, "", null, true], "b": { "c": {} } }),
    ] {
        needs_json_weightless("a JSON value", &value, ASKS);
    }
    needs_json("raw JSON", &serde_json::value::to_raw_value(&[1]).unwrap(), OTHERWISE);
    needs_json("a JSON number", &serde_json::Number::from(7), ASKS);
    needs_json("a decimal", &Decimal("19.95".to_owned()), ASKS);
    // Of what matches several variants the first is read.
    stays_out_by(Codec::Json, "a long number", &Ambiguous::Long(7), DIFFERS);
    comes_back_by(Codec::Json, "a short one", &Ambiguous::Short(7));
    let [sale, rent] =
        [SkipIfUntagged::Sale { discount: None, price: 1 }, SkipIfUntagged::Rent { months: None, price: 1 }];
    comes_back_by(Codec::Json, "the first without a field", &sale);
    stays_out_by(Codec::Json, "the second without its own", &rent, DIFFERS);
    comes_back_by(Codec::Json, "a number", &Temperature::Celsius(Celsius(1.5)));
    stays_out_by(Codec::Json, "another one", &Temperature::Fahrenheit(Fahrenheit(1.5)), DIFFERS);
    comes_back_by(Codec::Json, "a struct", &Length::Meters(Meters { length: 1.5 }));
    stays_out_by(Codec::Json, "one of the same fields", &Length::Feet(Feet { length: 1.5 }), DIFFERS);
    comes_back_by(Codec::Json, "a tuple", &Place::Point(Point(1, 2)));
    stays_out_by(Codec::Json, "one of the same length", &Place::Offset(Offset(1, 2)), DIFFERS);
    comes_back_by(Codec::Json, "a variant", &State::Paid(Paid::Yes));
    stays_out_by(Codec::Json, "one of the same name", &State::Shipped(Shipped::Yes), DIFFERS);
    // A key of the map that is a field of the struct.
    let twice = FlatBeside { a: 1, more: BTreeMap::from([("a".into(), 2)]) };
    stays_out("a name that is there twice", &twice, LENGTH, OTHERWISE);
    stays_out_by(Codec::Json, "what is asked for may not be of 128 bits", &LongUntagged::Long(u128::MAX), "");
}

/// Inside of what is flattened or tagged, Serde does not tell which fields are asked for. So a type whose field
/// is never written is read with its default, as by `skip`.
#[test]
fn a_field_that_is_never_written_is_not_seen_where_no_names_are_told() {
    let value = Enclosing { id: 1, inner: SkipSerializing { a: 0, b: 2 } };
    comes_back_by(Codec::Json, "a default", &value);
    let value = Enclosing { id: 1, inner: SkipSerializing { a: 7, b: 2 } };
    let bytes = perto::fuzzing::payload_by(Codec::Json, &value).unwrap();
    let back = perto::fuzzing::value_by::<Enclosing>(Codec::Json, &bytes).unwrap();
    assert_eq!((back.id, back.inner.a, back.inner.b), (1, 0, 2));
}

fn is_none_or_empty(list: &Option<Vec<u8>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

fn is_nought(number: &f64) -> bool {
    *number == 0.0
}

fn is_small(number: &u8) -> bool {
    *number < 10
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct SkipsMore {
    #[serde(default, skip_serializing_if = "is_none_or_empty")]
    list: Option<Vec<u8>>,
    #[serde(default, skip_serializing_if = "is_nought")]
    float: f64,
    #[serde(default, skip_serializing_if = "is_small")]
    number: u8,
}

/// It writes the same again, so nobody can see it.
#[test]
fn what_is_skipped_and_is_not_the_default_is_read_from_json_as_the_default() {
    let value = SkipsMore { list: Some(vec![]), float: -0.0, number: 9 };
    let bytes = perto::fuzzing::payload_by(Codec::Json, &value).unwrap();
    let back = perto::fuzzing::value_by::<SkipsMore>(Codec::Json, &bytes).unwrap();
    assert_eq!(back, SkipsMore { list: None, float: 0.0, number: 0 });
    assert!(back.float.is_sign_positive());
    comes_back_by(Codec::Json, "the default", &SkipsMore { list: None, float: 0.0, number: 0 });
    comes_back_by(Codec::Json, "none", &SkipsMore { list: Some(vec![1]), float: 0.5, number: 10 });
}

/// So a new field needs a new version, whatever it is.
#[test]
fn a_new_option_is_none_in_the_json_of_an_older_build_and_unreadable_in_its_bincode() {
    #[derive(Debug, Serialize, Deserialize)]
    struct Older {
        price: u32,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Newer {
        price: u32,
        discount: Option<u32>,
    }
    let read = |codec| {
        let bytes = perto::fuzzing::payload_by(codec, &Older { price: 7 }).unwrap();
        perto::fuzzing::value_by::<Newer>(codec, &bytes)
    };
    assert_eq!(read(Codec::Json), Some(Newer { price: 7, discount: None }));
    assert_eq!(read(Codec::Bincode), None);
}

/// Whatever a value looks like, it is known of these types, and of no other one here.
#[test]
fn a_type_tells_by_itself_that_no_value_of_it_comes_back_by_bincode() {
    fn unreadable<V: Value>(why: &str) {
        let flaw = perto::fuzzing::unreadable::<V>();
        let flaw = flaw.unwrap_or_else(|| panic!("{}", std::any::type_name::<V>()));
        assert!(flaw.contains(why), "{}: {flaw}", std::any::type_name::<V>());
    }
    fn readable<V: Value>() {
        assert_eq!(perto::fuzzing::unreadable::<V>(), None, "{}", std::any::type_name::<V>());
    }
    unreadable::<serde_json::Value>(ASKS);
    unreadable::<(u8, Internal)>(ASKS);
    unreadable::<Untagged>(ASKS);
    unreadable::<Flat>(LENGTH);
    unreadable::<[FlatMap; 3]>(LENGTH);
    unreadable::<(Uuid, DateTime<Utc>, NonZeroU32, Plain, External, IpAddr, std::ffi::CString, Internal)>(
        ASKS,
    );
    unreadable::<(NaiveDate, Internal)>(ASKS);
    unreadable::<(Even, serde_json::Value)>(ASKS);
    unreadable::<Decimal>(ASKS);
    readable::<(Plain, External, Renamed, Transparent, Converted, Remote, Aliased, Withs)>();
    readable::<(SkipIf, SkipIfInVariant, SkippedVariant, SkipSerializing)>();
    // Where some values come back.
    readable::<(Option<Flat>, Vec<Internal>, HashMap<u8, Untagged>)>();
    readable::<Result<serde_json::Value, u8>>();
    readable::<BTreeMap<String, FlatMap>>();
}

/// What follows depends on what came first.
#[derive(Debug)]
struct Branches;

impl<'de> Deserialize<'de> for Branches {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_tuple(3, Self)
    }
}

impl Serialize for Branches {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (false, "text", 7_u8).serialize(serializer)
    }
}

impl<'de> serde::de::Visitor<'de> for Branches {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a flag, a text and a number")
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut parts: A) -> Result<Self, A::Error> {
        let asks = parts.next_element::<bool>()? == Some(true);
        if asks || parts.next_element::<String>()?.is_some_and(|text| text.is_empty()) {
            parts.next_element::<serde_json::Value>()?;
        } else {
            parts.next_element::<u8>()?;
        }
        Ok(self)
    }
}

#[test]
fn a_type_that_asks_after_some_values_only_may_be_declared() {
    comes_back("a value after which it does not ask", &Branches);
    assert_eq!(perto::fuzzing::unreadable::<Branches>(), None);
    assert_eq!(perto::fuzzing::unreadable::<(u64, Branches, Plain)>(), None);
    assert!(perto::fuzzing::unreadable::<(Branches, Internal)>().is_some());
}

/// Asks for a tuple that has no end, and counts what it gets.
#[derive(Debug, Serialize)]
struct Endless;

/// Holds itself twice, and passes over what fails.
#[derive(Debug, Serialize)]
struct Bushy;

static PARTS: AtomicUsize = AtomicUsize::new(0);

/// The test ends, whatever it finds.
fn count_a_part() {
    assert!(PARTS.fetch_add(1, Ordering::Relaxed) < 1_000_000, "there is no end");
}

impl<'de> Deserialize<'de> for Endless {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_tuple(usize::MAX, Self)
    }
}

impl<'de> serde::de::Visitor<'de> for Endless {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a tuple without end")
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut parts: A) -> Result<Self, A::Error> {
        while parts.next_element::<u8>()?.is_some() {
            count_a_part();
        }
        Ok(self)
    }
}

impl<'de> Deserialize<'de> for Bushy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_tuple(2, Self)
    }
}

impl<'de> serde::de::Visitor<'de> for Bushy {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("itself, twice")
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut parts: A) -> Result<Self, A::Error> {
        for _ in 0..2 {
            count_a_part();
            drop(parts.next_element::<Self>());
        }
        Ok(self)
    }
}

#[test]
fn a_type_without_end_is_left_after_some_ten_thousand_parts_and_nothing_is_known_of_it() {
    for unreadable in [perto::fuzzing::unreadable::<Endless>, perto::fuzzing::unreadable::<Bushy>] {
        PARTS.store(0, Ordering::Relaxed);
        assert_eq!(unreadable(), None);
        let parts = PARTS.load(Ordering::Relaxed);
        assert!((1_000..50_000).contains(&parts), "{parts} parts");
    }
    assert_eq!(perto::fuzzing::unreadable::<(Endless, Internal)>(), None, "it never comes to the second");
}

/// A number of JSON takes as much room as any other of its values, and one in a list of numbers takes its own.
#[test]
fn what_a_value_weighs_in_l1_is_about_what_it_takes() {
    use perto::fuzzing::weight;
    assert_eq!(weight(&vec![1_u8; 1_000]), 32 + 1_000);
    assert_eq!(weight(&vec![1_i64; 1_000]), 32 + 8_000);
    assert_eq!(weight(&vec![Some(1_u16); 1_000]), 32 + 10_000);
    assert_eq!(weight(&vec!["a".to_owned(); 1_000]), 32 + 33_000);
    assert_eq!(weight(&BTreeMap::from([(1_u8, 2_u32), (2, 3)])), 32 + 2 * (16 + 1 + 4));
    assert_eq!(weight(&HashMap::from([(1_u8, ())])), 32 + 16 + 1);
    assert_eq!(weight(&(1_u8, (), [0_u16; 3])), 1 + 6);
    for part in [serde_json::json!(null), serde_json::json!(true), serde_json::json!(7)] {
        let list = vec![part.clone(); 1_000];
        assert_eq!(weight(&list), 32 + 32_000, "of {part}");
        assert_eq!(weight(&serde_json::Value::Array(list)), 32 + 32_000, "of {part}");
        let map = serde_json::json!({ "a": part });
        assert_eq!(weight(&map), 32 + 16 + 33 + 32, "{map}");
    }
    assert_eq!(weight(&serde_json::json!(["a", []])), 32 + 33 + 32);
    assert_eq!(weight(&vec![Untagged::Unit, Untagged::Unit]), 32 + 2 * 8);
}

/// Serde may change its mind about these. Either is right.
fn stays_out_or_comes_back<V: Value + Debug>(what: &str, value: &V) {
    comes_back_by(Codec::Json, what, value);
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
    // JSON has one kind of numbers, and one of lists. A value whose type has but one value is what it was.
    needs_json("i64 read as u64", &SignedReadUnsigned, OTHERWISE);
    needs_json("u16 read as u32", &ShortReadLong, OTHERWISE);
    needs_json_weightless("a tuple read as a list", &TupleReadList, OTHERWISE);
    needs_json("an option read without", &OptionReadPlain, OTHERWISE);
    needs_json("f32 read as f64", &FloatReadDouble, OTHERWISE);
    needs_json("a list of unknown length", &NoLength, LENGTH);
    stays_out("a list read as a tuple", &ListReadTuple, OTHERWISE, FIELDS);
    stays_out("a longer tuple", &LongerTuple, OTHERWISE, OTHERWISE);
    stays_out("a shorter tuple", &ShorterTuple, OTHERWISE, FIELDS);
    stays_out("read as an option", &PlainReadOption, OTHERWISE, OTHERWISE);
    stays_out("a text read as a number", &TextReadNumber, OTHERWISE, OTHERWISE);
    stays_out("u8 read as bool", &NumberReadBool, OTHERWISE, OTHERWISE);
    stays_out("a map read as a list", &MapReadList, OTHERWISE, OTHERWISE);
    stays_out("a struct read as a tuple", &StructReadTuple, OTHERWISE, OTHERWISE);
    stays_out("a list of another length", &WrongLength, "another length", "another length");
    for codec in [Codec::Bincode, Codec::Json] {
        stays_out_by(codec, "nothing read as a list", &NothingReadList, OTHERWISE);
        stays_out_by(codec, "an error", &AnError, "gives an error");
        let flaw = perto::fuzzing::payload_by(codec, &vec![AnError]).unwrap_err();
        assert!(!flaw.contains("secret"), "{flaw}");
    }
}
