//! Bytes that leave the process: values in L2 and hints on the bus.
//!
//! Everything read here may be old, cut short, of another version or garbage: it is then refused, never trusted and
//! never a panic. A payload says in the header which codec wrote it (`wire/codec.rs`): bincode 2 in its standard configuration,
//! which other crates write too (`tests/wire`), or JSON. bincode's bytes don't say what they are, and JSON can't say everything,
//! so a value goes into L2 only after a proof that it comes back as it was: `wire/read_back.rs`, `wire/json.rs`.
//!
//! ```text
//! value: 0 'P'  1 version  2 kind V|T  3 flags  4 n  5 m  6 codec  7 packing  8 xmin  16 xmax  24 created ms  32 life ms  36 checksum
//!        40 n × u32 (running transaction - xmin)  then, where a flag says so, u64: the rank of the whole snapshot
//!        then m × (u8, u16, cache, key): what it depends on, with the lengths of both texts
//!        then the payload; a packed one begins with u32, its length unpacked    all big endian; checksum (xxh3) over key and rest
//! codec: 0 bincode, 1 JSON.  packing: 0 none, 1 an LZ4 block.  Both 0 where there is no payload.
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bincode::config::{Configuration, Limit};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::coherence::snapshot::{MAX_XID, Rank, Snapshot};
use crate::coherence::token::Token;

pub(crate) mod codec;
pub(crate) mod flaw;
#[cfg(feature = "json")]
mod json;
mod packing;
pub(crate) mod read_back;
pub(crate) mod shape;
pub(crate) mod tape;

/// Of values in L2.
const VERSION: u8 = 4;
/// Of hints.
pub(crate) const HINT_VERSION: u8 = 1;
const HEADER: usize = 40;
const FLAG_ABSENT: u8 = 1;
/// The stamp was cut: the rank of the whole snapshot follows it.
const FLAG_CUT: u8 = 2;
/// The stamp is a lower bound of a snapshot that nobody knows.
const FLAG_NO_RANK: u8 = 4;

/// Most keys that a value may depend on, beside its own.
pub const MAX_DEPENDENCIES: usize = 16;
/// Most bytes of what a value depends on: the names of the caches and the texts of the keys.
pub const MAX_DEPENDENCY_BYTES: usize = 4_096;

/// Longest text of a key, in bytes.
pub const MAX_KEY_BYTES: usize = 1_024;
/// Largest payload that is decoded. Also what a corrupt length may make the decoder allocate.
pub(crate) const MAX_PAYLOAD: usize = 16 << 20;
/// Most bytes that any value in L2 has.
#[cfg(feature = "redis")]
pub(crate) const MAX_STORED: usize = most_stored(MAX_PAYLOAD);
/// Most bytes that a value in L2 has with such a payload: header, running transactions, payload.
pub(crate) const fn most_stored(payload: usize) -> usize {
    let dependencies = MAX_DEPENDENCY_BYTES + 3 * MAX_DEPENDENCIES;
    HEADER + 4 * crate::coherence::snapshot::MAX_RUNNING + size_of::<u64>() + dependencies + payload
}

/// Largest hint that is decoded.
pub(crate) const MAX_HINT: usize = 256 << 10;

const CODEC: Configuration<bincode::config::LittleEndian, bincode::config::Varint, Limit<MAX_PAYLOAD>> =
    bincode::config::standard().with_limit::<MAX_PAYLOAD>();

/// Why bytes were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Written by another version, or not by Perto at all.
    Foreign,
    /// Cut short, corrupt or under the wrong key.
    Corrupt,
}

/// A value as it lies in L2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) stamp: Snapshot,
    /// Of the snapshot that it was read under, where that is known: it holds nothing beyond. The stamp may say less.
    pub(crate) rank: Option<Rank>,
    /// At most [`MAX_DEPENDENCIES`], in [`MAX_DEPENDENCY_BYTES`].
    pub(crate) depends: Vec<Dependency>,
    pub(crate) created_unix_ms: u64,
    pub(crate) life_ms: u32,
    /// `None` where the source has no such row.
    pub(crate) payload: Option<Payload>,
}

/// The bytes of a value, and what they say of themselves. Other builds may know other codecs and packings than this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Payload {
    pub(crate) codec: u8,
    pub(crate) packing: u8,
    pub(crate) bytes: Bytes,
}

impl Stored {
    /// The bytes to put under `key`.
    pub(crate) fn encode(&self, key: &str) -> Bytes {
        let stamp = self.stamp.for_wire();
        let (codec, packing, payload) = match &self.payload {
            Some(payload) => (payload.codec, payload.packing, &payload.bytes[..]),
            None => (0, 0, &[][..]),
        };
        let cut = self.rank.filter(|rank| *rank != stamp.rank());
        let flags = [
            (self.payload.is_none(), FLAG_ABSENT),
            (cut.is_some(), FLAG_CUT),
            (self.rank.is_none(), FLAG_NO_RANK),
        ];
        let flags = flags.iter().filter(|(is, _)| *is).fold(0, |flags, (_, flag)| flags | flag);
        let depends: usize = self.depends.iter().map(|on| 3 + on.cache.len() + on.key.len()).sum();
        let length = HEADER + 4 * stamp.running().len() + size_of::<u64>() + depends + payload.len();
        let mut out = BytesMut::with_capacity(length);
        out.put_slice(&[b'P', VERSION, b'V', flags]);
        out.put_u8(u8::try_from(stamp.running().len()).unwrap_or(u8::MAX));
        out.put_u8(u8::try_from(self.depends.len()).unwrap_or(u8::MAX));
        out.put_slice(&[codec, packing]);
        out.put_u64(stamp.xmin());
        out.put_u64(stamp.xmax());
        out.put_u64(self.created_unix_ms);
        out.put_u32(self.life_ms);
        out.put_u32(0);
        for xid in stamp.running() {
            out.put_u32(u32::try_from(xid - stamp.xmin()).unwrap_or(u32::MAX));
        }
        if let Some(rank) = cut {
            out.put_u64(rank.number());
        }
        for Dependency { cache, key } in &self.depends {
            out.put_u8(u8::try_from(cache.len()).unwrap_or(u8::MAX));
            out.put_u16(u16::try_from(key.len()).unwrap_or(u16::MAX));
            out.put_slice(cache.as_bytes());
            out.put_slice(key.as_bytes());
        }
        out.put_slice(payload);
        let sum = checksum(key, &out);
        out[36..40].copy_from_slice(&sum.to_be_bytes());
        out.freeze()
    }

    /// Reads what lies under `key`. `Ok(None)` for a tombstone.
    pub(crate) fn decode(key: &str, bytes: &Bytes) -> Result<Option<Self>, Refused> {
        let head = bytes.get(..HEADER).ok_or(Refused::Corrupt)?;
        if head[..2] != [b'P', VERSION] {
            return Err(Refused::Foreign);
        }
        match head[2] {
            b'T' => return Ok(None),
            b'V' => {}
            _ => return Err(Refused::Foreign),
        }
        let u64_at = |at: usize| head[at..at + 8].iter().fold(0, |n, b| n << 8 | u64::from(*b));
        let u32_at = |at: usize| head[at..at + 4].iter().fold(0, |n, b| n << 8 | u32::from(*b));
        if u32_at(36) != checksum(key, bytes) {
            return Err(Refused::Corrupt);
        }
        let (xmin, xmax, end) = (u64_at(8), u64_at(16), HEADER + 4 * usize::from(head[4]));
        let running: Vec<u64> = bytes
            .get(HEADER..end)
            .ok_or(Refused::Corrupt)?
            .chunks_exact(4)
            .map(|b| xmin.saturating_add(b.iter().fold(0, |n, b| n << 8 | u64::from(*b))))
            .collect();
        if xmin > xmax || xmax > MAX_XID {
            return Err(Refused::Corrupt);
        }
        let (flag, stamp) = (|flag| head[3] & flag != 0, Snapshot::new(xmin, xmax, &running));
        let mut rest = bytes.slice(end..);
        let rank = if flag(FLAG_CUT) {
            Some(Rank::from_number(rest.try_get_u64().map_err(|_short| Refused::Corrupt)?))
        } else {
            Some(stamp.rank())
        };
        let depends = (0..head[5]).map(|_| Dependency::decode(&mut rest)).collect::<Option<Vec<_>>>();
        Ok(Some(Self {
            stamp,
            rank: rank.filter(|_| !flag(FLAG_NO_RANK)),
            depends: depends.filter(|depends| Dependency::fit(depends)).ok_or(Refused::Corrupt)?,
            created_unix_ms: u64_at(24),
            life_ms: u32_at(32),
            payload: (!flag(FLAG_ABSENT)).then_some(Payload {
                codec: head[6],
                packing: head[7],
                bytes: rest,
            }),
        }))
    }
}

/// A key that a value depends on beside its own: of another cache, of its own one, or of a topic.
///
/// Made by [`Cache::key`](crate::Cache::key) and [`Topic::key`](crate::Topic::key), for [`Loaded::depends_on`](crate::Loaded::depends_on).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dependency {
    pub(crate) cache: Arc<str>,
    pub(crate) key: Box<str>,
}

impl Dependency {
    /// A key of the cache or topic of this name: of the loader's own cache, say, which is not there yet when its loader is made.
    #[must_use]
    pub fn of(cache: &str, key: &impl ToString) -> Self {
        Self { cache: cache.into(), key: key.to_string().into() }
    }

    /// The name of the cache or topic.
    #[must_use]
    pub fn cache(&self) -> &str {
        &self.cache
    }

    /// The key's text.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether a value may depend on so much.
    pub(crate) fn fit(depends: &[Self]) -> bool {
        let bytes: usize = depends.iter().map(|on| on.cache.len() + on.key.len()).sum();
        depends.len() <= MAX_DEPENDENCIES && bytes <= MAX_DEPENDENCY_BYTES
    }

    fn decode(rest: &mut Bytes) -> Option<Self> {
        let (cache, key) = (rest.try_get_u8().ok()?, rest.try_get_u16().ok()?);
        let mut text = |length: usize| {
            (rest.len() >= length)
                .then(|| rest.split_to(length))
                .and_then(|text| String::from_utf8(text.into()).ok())
        };
        Some(Self { cache: text(cache.into())?.into(), key: text(key.into())?.into() })
    }
}

/// Which values of a cache are meant: those of this version and of this type.
pub(crate) fn kind(cache: &str, version: u16, fingerprint: u32) -> String {
    format!("{cache}.{version}.{fingerprint:08x}")
}

/// The name in Redis under which the value of a key lies. `kind` is [`kind`]'s.
pub(crate) fn name(app: &str, epoch: u64, kind: &str, key: &str) -> String {
    let mut name = String::with_capacity(app.len() + kind.len() + key.len() + 32);
    // By hand: to format it takes longer than all else about a look-up of one key.
    let bytes = epoch.to_be_bytes();
    let digit = |place: usize| {
        let byte = bytes[place / 2];
        b"0123456789abcdef"[usize::from(if place.is_multiple_of(2) { byte >> 4 } else { byte & 15 })]
    };
    let epoch: [u8; 16] = std::array::from_fn(digit);
    for part in ["perto:", app, ":", str::from_utf8(&epoch).unwrap_or_default(), ":", kind, ":", key] {
        name.push_str(part);
    }
    name
}

/// The name in Redis that says of a key that an instance loads it. No value is under it: an epoch has other letters.
pub(crate) fn claim_name(app: &str, kind: &str, key: &str) -> String {
    format!("perto:{app}:loading:{kind}:{key}")
}

/// The two transactions of a tombstone.
pub(crate) fn buried(bytes: &[u8]) -> Option<[u64; 2]> {
    let number = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    Some([number(8)?, number(16)?])
}

/// Over the key, so that a value under another's key is refused, and all bytes but the checksum's own.
fn checksum(key: &str, bytes: &[u8]) -> u32 {
    let seeded = |sum, bytes: &[u8]| xxh3_64_with_seed(bytes, sum);
    let sum = [key.as_bytes(), &bytes[..36], &bytes[HEADER..]].into_iter().fold(0, seeded);
    #[expect(clippy::cast_possible_truncation, reason = "any bits of it will do")]
    {
        sum as u32
    }
}

/// Bytes with the head and the checksum of a value under `key`, whatever they were. `None` where they are too few.
#[cfg(feature = "test-util")]
pub(crate) fn seal(key: &str, bytes: &[u8]) -> Option<Bytes> {
    let mut bytes = BytesMut::from(bytes);
    bytes.get_mut(..HEADER)?[..3].copy_from_slice(&[b'P', VERSION, b'V']);
    let sum = checksum(key, &bytes);
    bytes[36..40].copy_from_slice(&sum.to_be_bytes());
    Some(bytes.freeze())
}

/// Encodes a payload by bincode. `None` where the type can't be encoded or is too large. Whether it is read back as the same
/// is another question: [`read_back::payload`] answers it.
pub(crate) fn encode_payload<V: Serialize>(value: &V) -> Option<Bytes> {
    let bytes = bincode::serde::encode_to_vec(value, CODEC).ok()?;
    (bytes.len() <= MAX_PAYLOAD).then(|| Bytes::from(bytes))
}

/// Decodes a payload of bincode, all of it: bytes left over mean another type. One whose `Deserialize` panics is refused too.
pub(crate) fn decode_payload<V: DeserializeOwned>(bytes: &[u8]) -> Result<V, Refused> {
    let decoding = AssertUnwindSafe(|| bincode::serde::decode_from_slice(bytes, CODEC));
    match catch_unwind(decoding) {
        Ok(Ok((value, read))) if read == bytes.len() => Ok(value),
        _ => Err(Refused::Corrupt),
    }
}

/// What a writer tells the other instances after its commit. May be lost, doubled or late.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hint {
    pub(crate) epoch: u64,
    /// Which instance sends, and the how-manieth hint it is: a gap shows a loss.
    pub(crate) publisher: u64,
    pub(crate) sequence: u64,
    pub(crate) xid: u64,
    pub(crate) changes: Vec<Change>,
    /// When the commit returned, for the propagation figure only.
    pub(crate) committed_unix_us: u64,
    /// W3C trace context of the write, if it has one.
    pub(crate) traceparent: Option<String>,
}

/// Keys of one cache that a transaction invalidated; all of it where `keys` is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The cache's name.
    pub cache: String,
    /// The keys' texts, or `None` for the whole cache.
    pub keys: Option<Vec<String>>,
}

impl Hint {
    /// The write that it tells of.
    pub(crate) const fn token(&self) -> Token {
        Token::of_write(self.epoch, self.xid)
    }

    pub(crate) fn encode(&self) -> Option<Bytes> {
        let mut out = vec![b'P', b'H', HINT_VERSION];
        out.extend(bincode::serde::encode_to_vec(self, CODEC).ok()?);
        (out.len() <= MAX_HINT).then(|| Bytes::from(out))
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Refused> {
        if bytes.len() > MAX_HINT {
            return Err(Refused::Corrupt);
        }
        match bytes.get(..3) {
            Some([b'P', b'H', HINT_VERSION]) => decode_payload(&bytes[3..]),
            _ => Err(Refused::Foreign),
        }
    }
}

#[cfg(test)]
#[expect(clippy::mem_forget, reason = "in what wincode derives")]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::codec::Codec;
    use super::*;

    const KEY: &str = "perto:shop:00000000000000ff:item.1:42";

    /// One of each that a payload may be made of.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, wincode::SchemaWrite, wincode::SchemaRead)]
    struct Sample {
        id: i64,
        name: String,
        price: Option<u32>,
        tags: Vec<String>,
        kind: Kind,
        ratio: f64,
        flag: bool,
        big: u128,
        pair: (u8, i16),
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, wincode::SchemaWrite, wincode::SchemaRead)]
    enum Kind {
        Plain,
        Sized { width: u16, height: u64 },
        Named(String),
    }

    /// [`Hint`] and [`Change`], as the other codec sees them.
    #[derive(wincode::SchemaWrite)]
    struct HintToo {
        epoch: u64,
        publisher: u64,
        sequence: u64,
        xid: u64,
        changes: Vec<(String, Option<Vec<String>>)>,
        committed_unix_us: u64,
        traceparent: Option<String>,
    }

    fn samples() -> Vec<Sample> {
        let small = Sample {
            id: -7,
            name: "Ada".to_owned(),
            price: Some(250),
            tags: vec!["a".to_owned(), String::new()],
            kind: Kind::Sized { width: 65_535, height: 1 << 40 },
            ratio: 0.1,
            flag: true,
            big: u128::MAX,
            pair: (255, -1),
        };
        let absent =
            Sample { id: i64::MIN, price: None, tags: Vec::new(), kind: Kind::Plain, ..small.clone() };
        let long = Sample {
            id: i64::MAX,
            price: Some(251),
            tags: vec!["é".repeat(300); 300],
            kind: Kind::Named("日本".to_owned()),
            ..small.clone()
        };
        vec![small, absent, long]
    }

    fn value(running: &[u64]) -> Stored {
        let stamp = Snapshot::new(1_000, 5_000_000_000, running);
        Stored {
            rank: Some(stamp.rank()),
            depends: Vec::new(),
            stamp,
            created_unix_ms: 1_790_000_000_000,
            life_ms: 1_800_000,
            payload: encode_payload(&samples()[0]).map(plain),
        }
    }

    const fn plain(bytes: Bytes) -> Payload {
        Payload { codec: 0, packing: 0, bytes }
    }

    fn depends() -> Vec<Dependency> {
        let on = |cache: &str, key: &str| Dependency { cache: cache.into(), key: key.into() };
        vec![on("company", "7"), on("contacts_of_company", ""), on("company", "é")]
    }

    fn hint() -> Hint {
        Hint {
            epoch: 0xFF,
            publisher: u64::MAX,
            sequence: 300,
            xid: 5_000_000_000,
            changes: vec![
                Change { cache: "item".to_owned(), keys: Some(vec!["42".to_owned(), "é".to_owned()]) },
                Change { cache: "list".to_owned(), keys: None },
            ],
            committed_unix_us: 1_790_000_000_000_000,
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        }
    }

    #[test]
    fn a_value_comes_back_as_it_was() {
        let many: Vec<u64> = (0..64).map(|n| 1_000 + 3 * n).collect();
        for running in [&[1_000][..], &[1_000, 4_294_968_295], &many] {
            let stored = value(running);
            let of_many = Stored { depends: depends(), rank: None, ..stored.clone() };
            assert_eq!(Stored::decode(KEY, &of_many.encode(KEY)), Ok(Some(of_many)));
            assert_eq!(Stored::decode(KEY, &stored.encode(KEY)), Ok(Some(stored.clone())));
            let absent = Stored { payload: None, ..stored };
            assert_eq!(Stored::decode(KEY, &absent.encode(KEY)), Ok(Some(absent)));
        }
        for sample in samples() {
            let bytes = encode_payload(&sample).unwrap();
            assert_eq!(decode_payload::<Sample>(&bytes), Ok(sample.clone()));
            assert_eq!(read_back::payload(&sample, Codec::Bincode, MAX_PAYLOAD), Ok(bytes));
        }
    }

    #[test]
    fn a_stamp_with_more_running_transactions_than_fit_comes_back_as_a_lower_bound() {
        let running: Vec<u64> = (0..500).map(|n| 1_000 + 3 * n).collect();
        let stored = value(&running);
        let decoded = Stored::decode(KEY, &stored.encode(KEY)).unwrap().unwrap();
        assert!((0..3_000).all(|xid| !decoded.stamp.contains(xid) || stored.stamp.contains(xid)));
        assert!(decoded.stamp.rank() < stored.stamp.rank(), "it is a lower bound");
        assert_eq!(decoded.rank, Some(stored.stamp.rank()), "and an upper one is kept beside it");
        assert_eq!(decoded.payload, stored.payload);
    }

    #[test]
    fn a_value_cut_short_or_with_bytes_too_many_is_refused() {
        let of_many = Stored { depends: depends(), ..value(&[1_000]) };
        for stored in [value(&[1_000, 1_002]), Stored { payload: None, ..value(&[]) }, of_many] {
            let whole = stored.encode(KEY);
            for length in 0..whole.len() {
                assert_eq!(Stored::decode(KEY, &whole.slice(..length)), Err(Refused::Corrupt), "{length}");
            }
            let longer = Bytes::from([&whole[..], &[0]].concat());
            assert_eq!(Stored::decode(KEY, &longer), Err(Refused::Corrupt));
        }
    }

    /// One flip makes a tombstone of a value: a miss too, never a value.
    #[test]
    fn a_value_with_any_bit_flipped_is_refused() {
        let whole = value(&[1_000, 1_002]).encode(KEY);
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let tombstone = flipped[2] == b'T';
            match Stored::decode(KEY, &Bytes::from(flipped)) {
                Err(_) => assert!(!tombstone),
                Ok(None) => assert!(tombstone),
                Ok(Some(read)) => panic!("bit {bit}: {read:?}"),
            }
        }
    }

    #[test]
    fn a_value_under_another_key_or_of_another_version_is_refused() {
        let whole = value(&[1_000]).encode(KEY);
        for key in ["", "perto:shop:00000000000000ff:item.1:43", "perto:shop:00000000000000fe:item.1:42"] {
            assert_eq!(Stored::decode(key, &whole), Err(Refused::Corrupt));
        }
        for version in [0, 1, 3, 5, 255] {
            let mut other = whole.to_vec();
            other[1] = version;
            assert_eq!(Stored::decode(KEY, &Bytes::from(other)), Err(Refused::Foreign));
        }
    }

    #[test]
    fn no_bytes_make_a_decoder_panic() {
        let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let (whole, hint) = (value(&[1_000, 1_002]).encode(KEY), hint().encode().unwrap());
        for _ in 0..20_000 {
            let base = if next() % 2 == 0 { &whole } else { &hint };
            let mut bytes = base.to_vec();
            for _ in 0..=next() % 8 {
                let at = usize::try_from(next()).unwrap() % bytes.len();
                bytes[at] = next().to_le_bytes()[0];
            }
            assert!(
                !matches!(Stored::decode(KEY, &Bytes::from(bytes.clone())), Ok(Some(read)) if read != value(&[1_000, 1_002]))
            );
            drop(Hint::decode(&bytes));
            drop(decode_payload::<Sample>(&bytes));
            let bytes = Bytes::from(bytes);
            for (codec, packing) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let payload = Payload { codec, packing, bytes: bytes.clone() };
                drop(Codec::Bincode.value::<Sample>(&payload, MAX_PAYLOAD));
                #[cfg(feature = "json")]
                drop(Codec::Json.value::<Sample>(&payload, MAX_PAYLOAD));
            }
        }
    }

    #[test]
    fn a_payload_of_another_type_is_refused_where_its_bytes_are_not_all_read() {
        let bytes = encode_payload(&samples()[0]).unwrap();
        assert_eq!(decode_payload::<i64>(&bytes), Err(Refused::Corrupt));
        assert_eq!(decode_payload::<String>(&[200, 1]), Err(Refused::Corrupt));
        // A length of 2^63: refused before anything is allocated for it.
        let huge = [253, 0, 0, 0, 0, 0, 0, 0, 128];
        assert_eq!(decode_payload::<Vec<u64>>(&huge), Err(Refused::Corrupt));
        assert_eq!(decode_payload::<String>(&huge), Err(Refused::Corrupt));
    }

    #[test]
    fn a_hint_comes_back_as_it_was_and_is_refused_cut_short() {
        let whole = hint().encode().unwrap();
        assert_eq!(Hint::decode(&whole), Ok(hint()));
        for length in 0..whole.len() {
            assert!(Hint::decode(&whole[..length]).is_err(), "{length}");
        }
        assert!(Hint::decode(&[&whole[..], &[0]].concat()).is_err());
        assert_eq!(Hint::decode(&[b'P', b'H', 2, 0]), Err(Refused::Foreign));
        assert!(Hint::decode(&vec![b'P'; MAX_HINT + 1]).is_err());
    }

    #[test]
    fn a_hint_of_too_many_keys_is_not_sent() {
        let keys = Some((0..100_000).map(|n| n.to_string()).collect());
        let large = Hint { changes: vec![Change { cache: "item".to_owned(), keys }], ..hint() };
        assert_eq!(large.encode(), None);
    }

    #[test]
    fn what_a_value_depends_on_is_bounded() {
        let on = |key: usize| Dependency { cache: "company".into(), key: "k".repeat(key).into() };
        for (depends, fit) in [
            (vec![on(1); MAX_DEPENDENCIES], true),
            (vec![on(1); MAX_DEPENDENCIES + 1], false),
            (vec![on(MAX_KEY_BYTES); 3], true),
            (vec![on(MAX_KEY_BYTES); 4], false),
        ] {
            assert_eq!(Dependency::fit(&depends), fit);
            let stored = Stored { depends, ..value(&[]) };
            let decoded = Stored::decode(KEY, &stored.encode(KEY));
            assert_eq!(decoded, if fit { Ok(Some(stored)) } else { Err(Refused::Corrupt) });
        }
    }

    /// Written once by each version, and read by every later build that says so: another byte here is another version.
    #[test]
    fn each_version_writes_and_reads_the_bytes_it_always_has() {
        let golden = |name: &str, bytes: &[u8]| {
            let kept = kept(name);
            assert_eq!(kept, bytes, "{name}");
            kept
        };
        let stored = value(&[1_000, 1_002]);
        let kept = golden("value-v4.bin", &stored.encode(KEY));
        assert_eq!(Stored::decode(KEY, &kept), Ok(Some(stored)));
        let absent = Stored { payload: None, ..value(&[]) };
        let kept = golden("absent-v4.bin", &absent.encode(KEY));
        assert_eq!(Stored::decode(KEY, &kept), Ok(Some(absent)));
        let many = Stored { depends: depends(), rank: Some(Rank::from_number(1 << 60)), ..value(&[1_000]) };
        let kept = golden("of-many-v4.bin", &many.encode(KEY));
        assert_eq!(Stored::decode(KEY, &kept), Ok(Some(many)));
        let kept = golden("hint-v1.bin", &hint().encode().unwrap());
        assert_eq!(Hint::decode(&kept), Ok(hint()));
        let tombstone = self::kept("tombstone-v4.bin");
        assert_eq!(Stored::decode(KEY, &tombstone), Ok(None));
        assert_eq!(buried(&tombstone), Some([5_000_000_000, 4_999_999_999]));
    }

    #[test]
    fn names_and_tokens_are_those_that_they_have_always_been() {
        let read = Token::of_read(0xFF, Rank::from_number(0x12_3456_7890));
        let (kind, write) = (kind("item", 2, 0x00AB_CDEF), Token::of_write(0xFF, 5_000_000_000));
        let now = [
            ("value", name("shop", 0xFF, &kind, "42:é")),
            ("claim", claim_name("shop", &kind, "42:é")),
            ("write", write.to_string()),
            ("read", read.to_string()),
        ];
        let kept: std::collections::BTreeMap<String, String> =
            serde_json::from_slice(&kept("texts.json")).unwrap();
        let now = now.map(|(what, text)| (what.to_owned(), text));
        assert_eq!(kept, now.into());
        assert_eq!((kept["write"].parse(), kept["read"].parse()), (Ok(write), Ok(read)));
    }

    fn kept(name: &str) -> Bytes {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire").join(name);
        Bytes::from(fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    #[test]
    fn what_an_earlier_version_wrote_is_of_another_version() {
        for name in ["value-v3.bin", "absent-v3.bin", "of-many-v3.bin"] {
            assert_eq!(Stored::decode(KEY, &kept(name)), Err(Refused::Foreign), "{name}");
        }
    }

    /// Another compressor may pack otherwise, so what is packed is only read.
    #[cfg(all(feature = "json", feature = "lz4"))]
    #[test]
    fn what_each_codec_and_packing_wrote_is_read() {
        for (name, codec, (called, packed)) in [
            ("value-v4.bin", Codec::Bincode, ("bincode", false)),
            ("value-lz4-v4.bin", Codec::Bincode, ("bincode", true)),
            ("value-json-v4.bin", Codec::Json, ("json", false)),
            ("value-json-lz4-v4.bin", Codec::Json, ("json", true)),
        ] {
            let payload = Stored::decode(KEY, &kept(name)).unwrap().unwrap().payload.unwrap();
            assert_eq!(payload.described(), (called, packed), "{name}");
            let sample = if packed { samples().remove(2) } else { samples().remove(0) };
            assert_eq!(codec.value(&payload, MAX_PAYLOAD), Ok(sample), "{name}");
            for other in [Codec::Bincode, Codec::Json] {
                let expected = if other == codec { None } else { Some(Refused::Foreign) };
                assert_eq!(
                    other.value::<Sample>(&payload, MAX_PAYLOAD).err(),
                    expected,
                    "{name} by {other:?}"
                );
            }
        }
    }

    #[cfg(feature = "lz4")]
    #[test]
    fn what_is_compressed_comes_back_and_what_does_not_get_smaller_is_not() {
        let codec = Codec::Bincode;
        let text = "what people write to each other, and each other to people. ".repeat(40);
        let bytes = encode_payload(&text).unwrap();
        let above = codec.payload(bytes.clone(), bytes.len());
        assert_eq!(above, plain(bytes.clone()), "not more than that");
        let payload = codec.payload(bytes.clone(), bytes.len() - 1);
        assert!(payload.packing == 1 && payload.bytes.len() < bytes.len() / 8, "{}", payload.bytes.len());
        assert_eq!(codec.value(&payload, bytes.len()), Ok(text));
        // Random bytes don't get smaller, and half random ones not by an eighth.
        let mut seed = 7_u64;
        let mut random = |_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            seed.to_be_bytes()[0]
        };
        let noise: Vec<u8> = (0..1_000).map(&mut random).collect();
        for zeros in [0, 50, 90] {
            let bytes = Bytes::from([&noise[..], &vec![0; zeros]].concat());
            assert_eq!(codec.payload(bytes.clone(), 0), plain(bytes), "{zeros} zeros");
        }
        let bytes = Bytes::from([&noise[..], &[0; 200]].concat());
        assert_eq!(codec.payload(bytes, 0).packing, 1);
        assert_eq!(codec.payload(Bytes::new(), 0), plain(Bytes::new()));
    }

    #[cfg(feature = "lz4")]
    #[test]
    fn a_length_that_lies_fills_no_memory_and_is_refused() {
        let codec = Codec::Bincode;
        let text = "a".repeat(10_000);
        let bytes = encode_payload(&text).unwrap();
        let good = codec.payload(bytes.clone(), 0);
        let refused = |bytes: &[u8], most| {
            let payload = Payload { bytes: Bytes::copy_from_slice(bytes), ..good.clone() };
            codec.value::<String>(&payload, most).expect_err("it is refused")
        };
        for length in [0_u32, 1, 9_999, 10_100, 1 << 20, u32::MAX] {
            let lie = [&length.to_be_bytes()[..], &good.bytes[4..]].concat();
            assert_eq!(refused(&lie, MAX_PAYLOAD), Refused::Corrupt, "{length}");
        }
        for length in 0..good.bytes.len() {
            assert_eq!(refused(&good.bytes[..length], MAX_PAYLOAD), Refused::Corrupt, "cut to {length}");
        }
        assert_eq!(refused(&good.bytes, bytes.len() - 1), Refused::Corrupt, "more than the cache allows");
        let unknown = Payload { packing: 2, ..good.clone() };
        assert_eq!(codec.value::<String>(&unknown, MAX_PAYLOAD), Err(Refused::Foreign));
        let unknown = Payload { codec: 2, ..good };
        assert_eq!(codec.value::<String>(&unknown, MAX_PAYLOAD), Err(Refused::Foreign));
    }

    /// The way out, should the codec ever have to go: what lies in L2 stays readable.
    #[test]
    fn wincode_with_varints_writes_the_same_bytes() {
        let varints = wincode::config::Configuration::default().with_varint_encoding();
        for sample in samples() {
            let ours = encode_payload(&sample).unwrap();
            let theirs = wincode::config::serialize(&sample, varints).unwrap();
            assert_eq!(&ours[..], &theirs[..]);
            assert_eq!(wincode::config::deserialize::<Sample, _>(&ours, varints).unwrap(), sample);
            assert_eq!(decode_payload::<Sample>(&theirs), Ok(sample));
        }
        let hint = hint();
        let too = HintToo {
            epoch: hint.epoch,
            publisher: hint.publisher,
            sequence: hint.sequence,
            xid: hint.xid,
            changes: hint.changes.iter().map(|change| (change.cache.clone(), change.keys.clone())).collect(),
            committed_unix_us: hint.committed_unix_us,
            traceparent: hint.traceparent.clone(),
        };
        let theirs = wincode::config::serialize(&too, varints).unwrap();
        assert_eq!(&hint.encode().unwrap()[3..], &theirs[..]);
    }
}
