//! Bytes that leave the process: values in L2 and hints on the bus.
//!
//! Everything read here may be old, cut short, of another version or garbage: it is then refused, never trusted and
//! never a panic. Payloads are bincode 2 in its standard configuration, which other crates write too
//! (`tests/wire`); nothing else in the crate knows the codec.
//!
//! ```text
//! value: 0 'P'  1 version  2 kind V|T  3 flags  4 n  5..8 zero  8 xmin  16 xmax  24 created ms  32 life ms  36 crc32
//!        40 n × u32 (running transaction - xmin)  then the payload              all big endian; crc over key and rest
//! ```

use bincode::config::{Configuration, Limit};
use bytes::{BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::coherence::snapshot::Snapshot;

pub(crate) const VERSION: u8 = 1;
const HEADER: usize = 40;
const FLAG_ABSENT: u8 = 1;

/// Largest payload that is decoded. Also what a corrupt length may make the decoder allocate.
pub(crate) const MAX_PAYLOAD: usize = 16 << 20;
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
    pub(crate) created_unix_ms: u64,
    pub(crate) life_ms: u32,
    /// `None` where the source has no such row.
    pub(crate) payload: Option<Bytes>,
}

impl Stored {
    /// The bytes to put under `key`.
    pub(crate) fn encode(&self, key: &str) -> Bytes {
        let stamp = self.stamp.for_wire();
        let payload = self.payload.as_deref().unwrap_or_default();
        let mut out = BytesMut::with_capacity(HEADER + 4 * stamp.running().len() + payload.len());
        out.put_slice(&[b'P', VERSION, b'V', if self.payload.is_none() { FLAG_ABSENT } else { 0 }]);
        out.put_u8(u8::try_from(stamp.running().len()).unwrap_or(u8::MAX));
        out.put_slice(&[0; 3]);
        out.put_u64(stamp.xmin());
        out.put_u64(stamp.xmax());
        out.put_u64(self.created_unix_ms);
        out.put_u32(self.life_ms);
        out.put_u32(0);
        for xid in stamp.running() {
            out.put_u32(u32::try_from(xid - stamp.xmin()).unwrap_or(u32::MAX));
        }
        out.put_slice(payload);
        let crc = checksum(key, &out);
        out[36..40].copy_from_slice(&crc.to_be_bytes());
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
        Ok(Some(Self {
            stamp: Snapshot::new(xmin, xmax, &running),
            created_unix_ms: u64_at(24),
            life_ms: u32_at(32),
            payload: (head[3] & FLAG_ABSENT == 0).then(|| bytes.slice(end..)),
        }))
    }
}

/// Over the key, so that a value under another's key is refused, and all bytes but the checksum's own.
fn checksum(key: &str, bytes: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key.as_bytes());
    crc.update(&bytes[..36]);
    crc.update(&bytes[HEADER..]);
    crc.finalize()
}

/// Encodes a payload. `None` where the type can't be encoded or is too large.
pub(crate) fn encode_payload<V: Serialize>(value: &V) -> Option<Bytes> {
    let bytes = bincode::serde::encode_to_vec(value, CODEC).ok()?;
    (bytes.len() <= MAX_PAYLOAD).then(|| Bytes::from(bytes))
}

/// The size that [`encode_payload`] would give, without the bytes.
pub(crate) fn payload_size<V: Serialize>(value: &V) -> Option<usize> {
    let mut size = bincode::enc::write::SizeWriter::default();
    bincode::serde::encode_into_writer(value, &mut size, CODEC).ok()?;
    Some(size.bytes_written)
}

/// Decodes a payload, all of it: bytes left over mean another type.
pub(crate) fn decode_payload<V: DeserializeOwned>(bytes: &[u8]) -> Result<V, Refused> {
    match bincode::serde::decode_from_slice(bytes, CODEC) {
        Ok((value, read)) if read == bytes.len() => Ok(value),
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
    pub(crate) fn encode(&self) -> Option<Bytes> {
        let mut out = vec![b'P', b'H', VERSION];
        out.extend(bincode::serde::encode_to_vec(self, CODEC).ok()?);
        (out.len() <= MAX_HINT).then(|| Bytes::from(out))
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Refused> {
        if bytes.len() > MAX_HINT {
            return Err(Refused::Corrupt);
        }
        match bytes.get(..3) {
            Some([b'P', b'H', VERSION]) => decode_payload(&bytes[3..]),
            _ => Err(Refused::Foreign),
        }
    }
}
