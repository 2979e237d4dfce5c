//! What must hold for every input from outside: fuzzed by `fuzz/`, and run over its kept inputs by
//! `tests/coherence/corpus.rs`. Not part of the interface.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::wire::{self, Change, Hint, Payload, Stored};
use crate::{Codec, Snapshot, Stamp, Token, Value};

/// What people cache: a bit of everything that an encoding must get right.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Order {
    id: i64,
    customer: String,
    note: Option<String>,
    lines: Vec<Line>,
    labels: BTreeMap<String, u32>,
    paid: bool,
    total: u128,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Line {
    Goods { article: u32, count: u16 },
    Voucher(String),
    Shipping,
}

/// A value from L2, under its key: the first byte says how long the key is. Then once more with a checksum that fits, for else
/// hardly any input gets past it.
pub fn stored(input: &[u8]) {
    let Some((length, rest)) = input.split_first() else { return };
    let (key, bytes) = rest.split_at(usize::from(*length).min(rest.len()));
    let key = String::from_utf8_lossy(key);
    drop(Stored::decode(&key, &Bytes::copy_from_slice(bytes)));
    let Some(sealed) = wire::seal(&key, bytes) else { return };
    let Ok(Some(stored)) = Stored::decode(&key, &sealed) else { return };
    check(&stored.stamp);
    let again = Stored::decode(&key, &stored.encode(&key));
    let cut = Stored { stamp: stored.stamp.for_wire(), ..stored.clone() };
    assert_eq!(again, Ok(Some(cut)), "what is written is read back");
    let Some(payload) = &stored.payload else { return };
    // As a cache of each codec would read it, whatever it says of itself.
    for codec in CODECS {
        for packing in [0, 1, payload.packing] {
            let payload = Payload { codec: codec.byte(), packing, bytes: payload.bytes.clone() };
            read(*codec, &payload);
        }
    }
}

#[cfg(feature = "json")]
const CODECS: &[Codec] = &[Codec::Bincode, Codec::Json];
#[cfg(not(feature = "json"))]
const CODECS: &[Codec] = &[Codec::Bincode];

fn read(codec: Codec, payload: &Payload) {
    if let Ok(order) = codec.value::<Order>(payload, wire::MAX_PAYLOAD) {
        let bytes = wire::read_back::payload(&order, codec, wire::MAX_PAYLOAD);
        let bytes = bytes.expect("what was decoded goes into L2 again");
        for above in [0, usize::MAX] {
            let again = codec.payload(bytes.clone(), above);
            assert!(again.bytes.len() <= bytes.len(), "what is compressed is not larger");
            assert_eq!(codec.value(&again, bytes.len()).as_ref(), Ok(&order), "what is written is read back");
        }
    }
    drop(codec.value::<Vec<String>>(payload, wire::MAX_PAYLOAD));
    drop(codec.value::<(i64, f64, Vec<u8>)>(payload, wire::MAX_PAYLOAD));
}

/// The bytes of a value in L2.
///
/// # Errors
/// Why it is kept out.
pub fn payload<V: Value>(value: &V) -> Result<Bytes, String> {
    payload_by(Codec::Bincode, value)
}

/// The bytes of a value in L2, by this codec.
///
/// # Errors
/// Why it is kept out.
pub fn payload_by<V: Value>(codec: Codec, value: &V) -> Result<Bytes, String> {
    wire::read_back::payload(value, codec, wire::MAX_PAYLOAD).map_err(|flaw| flaw.to_string())
}

/// Why no value of the type can come back by bincode, as far as the type itself tells.
pub fn unreadable<V: Value>() -> Option<String> {
    wire::shape::of::<V>(Codec::Bincode).unreadable.map(|flaw| flaw.to_string())
}

/// The fingerprint of a type, and whether all of the type is in it.
#[must_use]
pub fn fingerprint<V: Value>(codec: Codec) -> (u32, bool) {
    let shape = wire::shape::of::<V>(codec);
    (shape.fingerprint, shape.is_whole)
}

/// A value by its bytes in L2. `None` where they are not of its type.
#[must_use]
pub fn value<V: Value>(bytes: &[u8]) -> Option<V> {
    value_by(Codec::Bincode, bytes)
}

/// The same by this codec.
#[must_use]
pub fn value_by<V: Value>(codec: Codec, bytes: &[u8]) -> Option<V> {
    codec.decode(bytes).ok()
}

/// About how many bytes a value counts for in L1.
pub fn weight<V: Value>(value: &V) -> usize {
    wire::tape::weigh(value)
}

/// A hint from the bus.
pub fn hint(input: &[u8]) {
    drop(Hint::decode(input));
    // Past the magic, which the fuzzer would have to find first.
    let Ok(hint) = Hint::decode(&[b"PH", &[wire::HINT_VERSION][..], input].concat()) else { return };
    if let Some(bytes) = hint.encode() {
        assert_eq!(Hint::decode(&bytes), Ok(hint), "what is written is read back");
    }
}

/// A hint as anybody could publish it who may write to Redis.
///
/// # Panics
/// Where it is longer than a hint may be.
#[must_use]
pub fn forged_hint(epoch: u64, publisher: u64, sequence: u64, xid: u64, changes: &[Change]) -> Bytes {
    let changes = changes.to_vec();
    let hint = Hint { epoch, publisher, sequence, xid, changes, committed_unix_us: 0, traceparent: None };
    hint.encode().expect("it is short")
}

/// The text of a token, from a header.
pub fn token(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(token) = text.parse::<Token>() else { return };
    assert_eq!(token.to_string().parse(), Ok(token), "what is written is read back");
}

/// The texts of snapshots and stamps, from Postgres.
pub fn snapshot(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    drop(Stamp::parse(text));
    let Some(snapshot) = Snapshot::parse(text) else { return };
    check(&snapshot);
    assert_eq!(Snapshot::parse(&snapshot.to_string()), Some(snapshot), "what is written is read back");
}

/// What holds for every snapshot, wherever it came from.
fn check(snapshot: &Snapshot) {
    let (xmin, xmax, running) = (snapshot.xmin(), snapshot.xmax(), snapshot.running());
    assert!(xmin <= xmax && running.windows(2).all(|pair| pair[0] < pair[1]));
    assert!(running.iter().all(|xid| (xmin..xmax).contains(xid) && !snapshot.contains(*xid)));
    assert!(!snapshot.contains(xmax) && !snapshot.contains(u64::MAX));
    assert!(xmin == 0 || snapshot.contains(xmin - 1));
    let cut = snapshot.for_wire();
    assert!(cut.rank() <= snapshot.rank() && cut.for_wire() == cut);
    let near = running.iter().flat_map(|xid| [xid.saturating_sub(1), *xid, xid.saturating_add(1)]);
    assert!(near.chain([xmin, xmax]).all(|xid| !cut.contains(xid) || snapshot.contains(xid)));
}
